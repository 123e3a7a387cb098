"""What the name of a metric looks like on an axis: ``cider_d`` is written CIDEr-D."""

WRITTEN = {
    "acc": "Accuracy",
    "bleu": "BLEU",
    "cider": "CIDEr",
    "cider_d": "CIDEr-D",
    "clip": "CLIP",
    "em": "Exact match",
    "f1": "F1",
    "fid": "FID",
    "iou": "IoU",
    "kl": "KL",
    "meteor": "METEOR",
    "rouge": "ROUGE",
    "spice": "SPICE",
    "vqa": "VQA",
}


def written(metric: str) -> str:
    """Return a metric's name for people; a name that is already written with capitals or spaces is kept.

    >>> [written(name) for name in ("cider_d", "bleu4", "rouge_l", "vqa_accuracy", "brevity", "My metric")]
    ['CIDEr-D', 'BLEU-4', 'ROUGE-L', 'VQA accuracy', 'Brevity', 'My metric']
    """
    if metric != metric.lower() or " " in metric or not metric.isidentifier():
        return metric
    if metric in WRITTEN:
        return WRITTEN[metric]
    stem = metric.rstrip("0123456789")
    if stem in WRITTEN and metric != stem:
        return f"{WRITTEN[stem]}-{metric.removeprefix(stem)}"
    head, *rest = metric.split("_")
    if head in WRITTEN and rest:
        is_variant = len(rest) == 1 and (len(rest[0]) == 1 or rest[0].isdigit())
        return f"{WRITTEN[head]}-{rest[0].upper()}" if is_variant else " ".join([WRITTEN[head], *rest])
    words = metric.replace("_", " ").strip()
    return words[:1].upper() + words[1:] or metric
