"""The results: metrics, curves, rewards, the front, styles. One function per part; each reads what it needs.

A function raises `MissingError` where the demo has not come so far; `unival.report` then writes that instead.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unival.report.estimate import Estimate, Metric, metric_of, verdict, wilson
from unival.report.folder import RunFolder
from unival.report.markup import Markup, join, note, table, tag
from unival.report.plot import BLUE, CORAL, CURVE, blend, curve

EVALUATIONS = {
    "caption": "Describe a picture",
    "vqa": "Answer about a picture",
    "grounding": "Find in a picture",
    "video-caption": "Describe a clip",
    "video-vqa": "Answer about a clip",
    "audio-caption": "Describe a sound",
}
FAMILY = Metric("family of the first sound right")
Row = tuple[str, str, Markup, Markup]  # title, detail, number, drawing
NUM_ALONG, NUM_COEFFICIENTS = 3, 5  # samples and points of "the same picture along the coefficient"


def headline(run: RunFolder) -> Markup:
    """Show the few numbers that a reader wants first, as far as they are there."""
    rows: list[Row] = []
    if run.has("understand/evaluation.json"):
        content = run.json("understand/evaluation.json")
        chosen = [("caption", "names"), ("caption", "exact"), ("vqa", "accuracy"), ("grounding", "accuracy@0.5")]
        for name, key in [*chosen, ("video-vqa", "accuracy")]:
            if key in content.get(name, {}).get("metrics", {}):
                rows.append(_row(EVALUATIONS[name], key, content[name]))
    if run.has("audio/family.json"):
        rows.append(_family_row(run.json("audio/family.json")))
    line = run.json("sweep/front.json")["straight_line"] if run.has("sweep/front.json") else None
    if line and line["area"]:
        area = Estimate.of(line["area"])
        label = ("Two rewards, averaged weights", "area above the straight line, in boxes of the specialists")
        rows.append((*label, area.spell_change(Metric("", is_rate=False)), area.draw_change()))
    if run.has("ood/table.json"):
        content = run.json("ood/table.json")
        margin = Estimate.of(content["margin"])
        label = ("Unseen art style", "average of two specialists, minus the better one")
        rows.append((*label, margin.spell_change(metric_of(content["metric"])), margin.draw_change()))
    if not rows:
        return note("No numbers yet.")
    text = (
        "Lines run from 0 to the highest possible value; for differences, from a loss through zero (grey) to a gain. "
        "Another grey tick is what a constant answer reaches."
    )
    return join([table(("", "mean [95 % interval]", ""), _grouped(rows), "numbers"), note(text)])


def metrics(run: RunFolder) -> Markup:
    """Show all metrics of the shipped model, and the accuracy of each type of question."""
    content = run.json("understand/evaluation.json")
    rows = []
    for name, result in content.items():
        for key in result["metrics"]:
            rows.append((*_row(_title(name), key, result), str(result["samples"])))
    parts: list[Markup] = [table(("", "mean [95 % interval]", "", "samples"), _grouped(rows), "numbers")]
    for name, result in content.items():
        if result.get("question_types"):
            parts += [tag("h3", _title(name), ", by type of question"), _types(result["question_types"])]
    if len(parts) > 1:
        parts.append(
            note(
                "The grey tick is what always giving the type's most frequent answer would reach. ",
                "Intervals of types, and of rates of 0 or 100 %, are Wilson's; all others are bootstrap percentiles.",
            )
        )
    return join(parts)


def _types(types: Mapping[str, Any]) -> Markup:
    rows = []
    for kind, row in types.items():
        rate, guess = wilson(row["accuracy"], row["samples"]), row["most_frequent_answer"]
        shown = metric_of("accuracy")
        rows.append((kind, rate.spell(shown), rate.draw(shown, guess), f"{100 * guess:.1f} %", str(row["samples"])))
    return table(("type", "accuracy [95 % interval]", "", "most frequent", "samples"), rows, "numbers types")


def pretraining(run: RunFolder) -> Markup:
    """Show the loss of each task of the demo's own pretraining, with the stages."""
    rows = run.rows("pretrain/metrics.jsonl")
    starts = stage_starts(rows)
    stages = ", then ".join(f"{name} from step {step}" for name, step in starts)
    text = (
        f"Cross-entropy of each task, from scratch, {rows[-1]['seconds']:.0f} s of training: {stages}. "
        "The dashed line is where the second stage begins. This shows that the curriculum learns; it is too short "
        "for claims, and nothing below uses this model."
    )
    return join([tag("p", text), losses(rows)])


def losses(rows: list[dict[str, Any]]) -> Markup:
    """Draw the loss of each task of a run, on one scale."""
    names = sorted({key for row in rows for key in row if key.startswith("loss/")}) or ["loss"]
    curves = {name: [(r["step"] + 1, r[name]) for r in rows if r.get(name) is not None] for name in names}
    top = max((v for points in curves.values() for _, v in points if math.isfinite(v)), default=1.0)
    boundaries = [step for _, step in stage_starts(rows)[1:]]
    figures = [
        _figure(name.removeprefix("loss/").replace("_", " "), points, rows[-1]["step"] + 1, top, boundaries)
        for name, points in curves.items()
    ]
    return _figures(figures)


def stage_starts(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return each stage with the number of steps before it."""
    starts: list[tuple[str, int]] = []
    end = 0
    for row in rows:
        if not starts or starts[-1][0] != row["stage"]:
            starts.append((row["stage"], end))
        end = row["step"] + 1
    return starts


def _figure(
    title: str, points: list[tuple[int, float]], end: int, top: float, boundaries: list[int], colour: str = CURVE
) -> Markup:
    steps, values = [step for step, _ in points], [value for _, value in points]
    caption = tag("figcaption", title, " ", tag("b", f"{values[-1]:.2f}"))
    drawing = curve(steps, values, end, top, boundaries, colour, f"{title} over {end} steps")
    return tag("figure", caption, drawing)


def _figures(figures: Sequence[Markup]) -> Markup:
    return tag("div", *figures, class_="curves" if len(figures) % 3 else "curves three")


def sound_learning(run: RunFolder) -> Markup:
    """Say how often the right family of sounds is named, and show the loss."""
    family = run.json("audio/family.json")
    rate = Estimate.of_rate(family["accuracy"], family["samples"])
    chance = family["chance"]
    text = (
        "The shipped model never heard a sound: its audio encoder joins here. After this fine-tuning it names the "
        f"right family of sounds for {100 * rate.mean:.1f} % of {family['samples']} test sounds, "
        f"{rate.mean / chance:.1f} times chance (95 % interval {rate.low / chance:.1f} to {rate.high / chance:.1f} "
        f"times). Chance is {100 * chance:.1f} %; always naming the most frequent family would reach "
        f"{100 * family['most_frequent']:.1f} %, the grey tick."
    )
    rows = [_family_row(family)]
    if run.has("audio/evaluation.json"):
        for name, result in run.json("audio/evaluation.json").items():
            rows += [_row(_title(name), key, result) for key in result["metrics"]]
    return join([tag("p", text), table(("", "mean [95 % interval]", ""), _grouped(rows), "numbers")])


def sound_curve(run: RunFolder) -> Markup:
    """Show the loss of the fine-tuning on sounds."""
    return losses(run.rows("audio/metrics.jsonl"))


def rewards(run: RunFolder) -> Markup:
    """Show reward and caption length while the specialists train."""
    logs = {name: run.rows(f"{name}/metrics.jsonl") for name in ("detail", "brevity")}
    longest = max(row["length"] for rows in logs.values() for row in rows)
    figures = []
    for (name, rows), colour in zip(logs.items(), (CORAL, BLUE), strict=True):
        end = rows[-1]["step"] + 1
        for key, top in (("reward", max(row["reward"] for row in rows)), ("length", longest)):
            points = [(row["step"] + 1, row[key]) for row in rows]
            title = f"{name}: {'reward' if key == 'reward' else 'tokens'}"
            figures.append(_figure(title, points, end, top, [], colour))
    text = (
        "The same checkpoint is fine-tuned twice with self-critical training, once for each reward. The curves are "
        "means over sampled captions of training batches, of reward and of length, so they are noisy; the test follows."
    )
    return join([tag("p", text), _figures(figures)])


def gains(run: RunFolder) -> Markup:
    """Say whether each specialist gained on its own reward."""
    rows, sentences = [], []
    for name, content in run.json("sweep/gains.json").items():
        gain, metric = Estimate.of(content), metric_of(content["metric"])
        label = _labels(f"{name} specialist", f"{metric.label}, minus the start model")
        rows.append((label, gain.spell_change(metric), gain.draw_change()))
        sentence = verdict(
            gain,
            "gained: the interval excludes zero",
            "lost: the interval excludes zero",
            "is not shown to have gained: the interval includes zero",
        )
        sentences.append(f"The {name} specialist {sentence}.")
    text = f"Each specialist on its own reward, on the same test pictures. {' '.join(sentences)}"
    heading = tag("h3", "What each gained")
    return join([heading, tag("p", text), table(("", "change [95 % interval]", ""), rows, "numbers")])


def front(run: RunFolder) -> Markup:
    """Show the front, the area between it and the straight line, its hypervolume and the knee.

    The gain in hypervolume over points of the straight line also counts how evenly the soups are spread, so that it
    may contradict the area: it is shown only where there is no area.
    """
    content = run.json("sweep/front.json")
    plain = Metric("", is_rate=False)
    last = content["checkpoints"][-1]
    rows: list[tuple[object, ...]] = [("hypervolume of the front", Estimate.of(content["hypervolume"]).spell(plain))]
    text = f"{len(content['points'])} soups between {' and '.join(content['checkpoints'])}, evaluated on "
    text += f"{content['num_samples']} test pictures. "
    line = content["straight_line"]
    if line:
        if not line["area"]:
            label = "hypervolume of as many points of the straight line"
            rows.append((label, Estimate.of(line["hypervolume"]).spell(plain)))
            rows.append(("gain over these points", Estimate.of(line["gain"]).spell_change(plain)))
        else:
            area = Estimate.of(line["area"])
            rows.insert(0, ("area above the straight line, in boxes of the specialists", area.spell_change(plain)))
            text += verdict(
                area,
                "The front lies above the straight line between the specialists: the interval of the area between "
                "them excludes zero.",
                "The front lies below the straight line between the specialists: the interval of the area between "
                "them excludes zero.",
                "The front is not shown to lie above or below the straight line between the specialists: the interval "
                "of the area between them includes zero.",
            )
    knee = content["points"][content["knee"]["index"]]
    scores = [join([Estimate.of(v).spell(plain), f" {metric_of(k).label}"]) for k, v in knee["metrics"].items()]
    label = _labels("knee of the front", f"at a coefficient of {knee['coefficients'][last]:.2g} of {last}")
    rows.append((label, _lines(scores)))
    kept = sum(point["nondominated"] for point in content["points"])
    rows.append(("points that no other dominates", f"{kept} of {len(content['points'])}"))
    heading = tag("h3", "The front")
    return join([heading, tag("p", text), _picture(run), table(("", "value [95 % interval]"), rows, "numbers wide")])


def _picture(run: RunFolder) -> Markup:
    link = None
    if run.has("sweep/front.html"):
        link = tag("figcaption", tag("a", "The same front, point by point", href="sweep/front.html"))
    if not run.has("sweep/front.svg"):
        return note("No drawing yet: sweep/front.svg is missing.")
    drawing = tag("img", src=run.uri("sweep/front.svg"), alt="The front of the two rewards", class_="front")
    return tag("figure", tag("div", drawing, class_="scroll"), link)


def along(run: RunFolder) -> Markup:
    """Show what the soups say about the same pictures, from one specialist to the other."""
    results = run.rows("sweep/results.jsonl")
    last = list(results[0]["coefficients"])[-1]
    points = sorted(results, key=lambda result: result["coefficients"][last])
    places = [round(i * (len(points) - 1) / (NUM_COEFFICIENTS - 1)) for i in range(NUM_COEFFICIENTS)]
    points = [points[place] for place in dict.fromkeys(places)]
    pictures = run.json("sweep/pictures.json") if run.has("sweep/pictures.json") else {}
    cards = []
    for index, sample in enumerate(points[0]["samples"][:NUM_ALONG]):
        rows = [_said(point["coefficients"][last], point["samples"][index]["prediction"]) for point in points]
        name = pictures.get(sample["uid"])
        picture = tag("div", tag("img", src=run.uri(name), alt=""), class_="picture") if name else None
        asked = tag("p", "reference: ", sample.get("caption"), class_="reference")
        cards.append(tag("article", tag("div", picture, asked, class_="asked-about"), tag("ol", *rows)))
    text = f"The first {len(cards)} test pictures; the number is the coefficient of {last}."
    return join([tag("h3", "The same picture along the coefficient"), note(text), tag("div", *cards, class_="along")])


def _said(coefficient: float, prediction: str) -> Markup:
    badge = tag("span", f"{coefficient:.1f}", class_="badge", style=f"background: {blend(coefficient)}")
    num_words = len(prediction.split())
    words = tag("span", f"{num_words} word{'' if num_words == 1 else 's'}", class_="ci")
    return tag("li", badge, tag("span", prediction or "(nothing)", " ", words))


def styles(run: RunFolder) -> Markup:
    """Show both specialists and their average on seen and unseen styles, and say what the margin allows."""
    content = run.json("ood/table.json")
    metric = metric_of(content["metric"])
    num_samples = int(content.get("samples", 0))
    unseen = ", ".join(style["name"] for style in content["styles"] if not style["seen"])
    header = [""] + [
        join([style["name"], " ", tag("span", "seen" if style["seen"] else "never seen", class_="ci")])
        for style in content["styles"]
    ]
    rows = [
        [row["model"], *(Estimate.of_rate(cell, num_samples).spell(metric) for cell in row["cells"])]
        for row in content["rows"]
    ]
    margin = Estimate.of(content["margin"])
    sentence = verdict(
        margin,
        "The average is better than the better specialist there: the interval of the margin excludes zero.",
        "The average is worse than the better specialist there: the interval of the margin excludes zero.",
        "Neither the average nor the better specialist is shown to be ahead there: the interval of the margin "
        "includes zero.",
    )
    text = f"Two specialists, one art style each, and the average of their weights; {unseen} was in no training set. "
    measured = f"Measured: {metric.label}. The average minus the better specialist on {unseen}: "
    return join(
        [
            tag("p", text, sentence),
            table(header, rows, "numbers styles"),
            note(
                measured, margin.spell_change(metric), "; the better one is chosen on these samples, which favours it."
            ),
        ]
    )


def _row(title: str, key: str, result: Mapping[str, Any]) -> Row:
    metric = metric_of(key)
    content = result["metrics"][key]
    found = Estimate.of_rate(content, result["samples"]) if metric.is_rate else Estimate.of(content)
    return title, metric.label, found.spell(metric), found.draw(metric)


def _family_row(family: Mapping[str, Any]) -> Row:
    rate = Estimate.of_rate(family["accuracy"], family["samples"])
    return "Describe a sound", FAMILY.label, rate.spell(FAMILY), rate.draw(FAMILY, family["most_frequent"])


def _title(name: str) -> str:
    return EVALUATIONS.get(name) or name


def _grouped(rows: Sequence[tuple[object, ...]]) -> list[list[object]]:
    """Join title and detail in one cell; rows with the title of the row above show the detail alone."""
    titles = [None, *(row[0] for row in rows)]
    return [
        [_labels(None if row[0] == above else row[0], row[1]), *row[2:]]
        for row, above in zip(rows, titles[:-1], strict=True)
    ]


def _labels(title: object, detail: object) -> Markup:
    return join([title, tag("span", detail, class_="detail")])


def _lines(parts: Sequence[Markup]) -> Markup:
    return Markup(tag("br").join(parts))
