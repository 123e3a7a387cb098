"""Rebuild `data/metrics_*.json`: generated captions and answers, scored by the reference implementations.

Run with `pycocoevalcap` (1.2) and numpy installed; only its Bleu, Rouge and Cider classes are used, no Java:

    python make_metrics_fixtures.py captions --output data/metrics_captions.json
    python make_metrics_fixtures.py vqa --output data/metrics_vqa.json --official vqa_eval.py

`--official` names a local copy of the official VQA evaluation (class VQAEval of
https://github.com/GT-Vision-Lab/VQA) for Python 3. The stored file was made with the copy in the wheel of
salesforce-lavis 1.0.2, `lavis/common/vqa_tools/vqa_eval.py`. `--num-samples 5000 --num-references 5` gives
the large comparison.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import random
import time
from pathlib import Path
from typing import Any

SEED = 20240817
THINGS = [
    "cat",
    "dog",
    "red bus",
    "man",
    "woman",
    "boat",
    "tree",
    "small house",
    "pizza",
    "kite",
    "cow",
    "train",
]
ACTIONS = ["sits", "is standing", "runs", "sleeps", "is parked", "waits", "plays", "is lying down"]
PLACES = [
    "the beach",
    "a wooden table",
    "the street",
    "a green field",
    "the water",
    "a kitchen",
    "the old bridge",
]
LINKS = ["on", "near", "under", "in front of", "next to"]
# Mostly normal answers; the rest exercise every normalisation rule.
ANSWERS = ["yes", "no", "red", "blue", "cat", "2", "two", "none", "the cat", "a dog", "an apple", "on table"]
ODD_ANSWERS = [
    "dont know", "couldnt've", "couldn'tve", "yall'd've", "ow's'at", "somebody'd", "its", "black/white",
    "black / white", "t-shirt", "1,000", "1,000-2,000", "10:30", "3.5", ".5", "St. Louis", "U.S.A.", "what?!",
    "(left)", "left (side)", "cat's", "a & b", "10 ft.", "ten", "Zero", "new\nline", "tab\there",
    "  spaced  ", "", "the", "50%", "a,b", "a, b",
]  # fmt: skip


def caption(rng: random.Random) -> str:
    """Draw one caption of 4 to 15 words."""
    words = f"a {rng.choice(THINGS)} {rng.choice(ACTIONS)} {rng.choice(LINKS)} {rng.choice(PLACES)}"
    if rng.random() < 0.3:
        words += f" with a {rng.choice(THINGS)}"
    return words


def mutate(text: str, rng: random.Random) -> str:
    """Drop, repeat, swap and replace words, so that scores fill the whole range."""
    words = text.split()
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(words))
        kind = rng.randrange(4)
        if kind == 0 and len(words) > 1:
            del words[place]
        elif kind == 1:
            words.insert(place, words[place])
        elif kind == 2:
            words[place], words[-1] = words[-1], words[place]
        else:
            words[place] = rng.choice(["zebra", "a", "the", "unseen", "cat"])
    return " ".join(words)


def caption_samples(num_samples: int, num_references: int | None, seed: int) -> tuple[list[str], list[list[str]]]:
    """Draw predictions and 1 to 5 (or `num_references`) references each; a few predictions are degenerate."""
    rng = random.Random(seed)
    predictions, references = [], []
    for index in range(num_samples):
        first = caption(rng)
        others = [mutate(first, rng) for _ in range((num_references or rng.randint(1, 5)) - 1)]
        references.append([first, *others])
        prediction = mutate(rng.choice(references[-1]), rng) if rng.random() < 0.9 else caption(rng)
        predictions.append(["", "cat", "a cat", "a red bus", "a a a a a a a"][index] if index < 5 else prediction)
    return predictions, references


def score_captions(predictions: list[str], references: list[list[str]]) -> tuple[dict[str, Any], dict[str, float]]:
    """Score with pycocoevalcap; also return the processor seconds of each metric."""
    from pycocoevalcap.bleu.bleu import Bleu  # pyright: ignore[reportMissingImports] (oracle)
    from pycocoevalcap.cider.cider import Cider  # pyright: ignore[reportMissingImports] (oracle)
    from pycocoevalcap.rouge.rouge import Rouge  # pyright: ignore[reportMissingImports] (oracle)

    truth = dict(enumerate(references))
    result = {index: [text] for index, text in enumerate(predictions)}
    scores: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name, scorer in (("bleu", Bleu(4)), ("rouge_l", Rouge()), ("cider_d", Cider())):
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints
            value, per_sample = scorer.compute_score(truth, result)
        seconds[name] = time.process_time() - start
        values, rows = (value, per_sample) if name == "bleu" else ([value], [per_sample])
        for n, (corpus, samples) in enumerate(zip(values, rows, strict=True), start=1):
            key = f"bleu{n}" if name == "bleu" else name
            scores[key] = {"value": float(corpus), "per_sample": [float(score) for score in samples]}
    return scores, seconds


def answer_samples(num_samples: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Draw predictions and ten answers each, from one to ten distinct ones."""
    rng = random.Random(seed)
    predictions, answers = [], []
    for _ in range(num_samples):
        pool = rng.sample(ANSWERS + ODD_ANSWERS, rng.randint(1, 5))
        answers.append([rng.choice(pool) for _ in range(10)])
        predictions.append(rng.choice(pool) if rng.random() < 0.8 else rng.choice(ANSWERS + ODD_ANSWERS))
    return predictions, answers


def load_official(path: Path) -> Any:
    """Load the class VQAEval of a local file."""
    spec = importlib.util.spec_from_file_location("official", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VQAEval


class _Questions:
    """What VQAEval asks of its data objects; it calls the method by this name."""

    def __init__(self, questions: dict[int, dict[str, Any]]) -> None:
        self.qa = questions

    def getQuesIds(self) -> list[int]:
        return list(self.qa)


def score_answers(predictions: list[str], answers: list[list[str]], official: Path) -> dict[str, Any]:
    """Score with the official evaluation, answers raw and normalised beforehand; list normal forms."""
    evaluation_class = load_official(official)
    normalizer = evaluation_class()

    def normalized(text: str) -> str:
        text = text.replace("\n", " ").replace("\t", " ").strip()
        return normalizer.processDigitArticle(normalizer.processPunctuation(text))

    def accuracies(given: list[list[str]]) -> list[float]:
        truth = {
            index: {
                "answers": [{"answer": answer, "answer_id": place} for place, answer in enumerate(row)],
                "question_type": "any",
                "answer_type": "any",
            }
            for index, row in enumerate(given)
        }
        result = {index: {"answer": text} for index, text in enumerate(predictions)}
        evaluation = evaluation_class(_Questions(truth), _Questions(result), n=12)  # decimals kept of a percentage
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
        return [evaluation.evalQA[index] / 100 for index in truth]

    forms = {text: normalized(text) for text in ANSWERS + ODD_ANSWERS}
    # Entries that lower-cased text can reach and that change it.
    contractions = [pair for pair in normalizer.contractions.items() if pair[0] not in (pair[1], "Im", "Ive")]
    contractions = [pair for pair in contractions if pair[0].islower()]
    return {
        "accuracy_raw": accuracies(answers),
        "accuracy_normalized": accuracies([[normalized(answer) for answer in row] for row in answers]),
        "normalized": forms,
        "contractions_sha256": hashlib.sha256(json.dumps(sorted(contractions)).encode()).hexdigest(),
    }


def main() -> None:
    """Write one fixture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["captions", "vqa"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num-samples", type=int, default=200)
    parser.add_argument("--num-references", type=int, help="default: 1 to 5, drawn per sample")
    parser.add_argument("--official", type=Path, help="a local copy of the official vqaEval.py")
    parser.add_argument("--official-name", default="https://github.com/GT-Vision-Lab/VQA", help="where it is from")
    arguments = parser.parse_args()
    provenance = {"rebuild": "tests/parity/make_metrics_fixtures.py", "seed": SEED}
    if arguments.kind == "captions":
        predictions, references = caption_samples(arguments.num_samples, arguments.num_references, SEED)
        scores, seconds = score_captions(predictions, references)
        provenance["oracle"] = f"pycocoevalcap {importlib.metadata.version('pycocoevalcap')} Bleu, Rouge, Cider"
        data = {
            "provenance": provenance,
            "predictions": predictions,
            "references": references,
            "scores": scores,
        }
        print("processor seconds:", {name: round(value, 3) for name, value in seconds.items()})
    else:
        if arguments.official is None:
            parser.error("vqa needs --official")
        predictions, answers = answer_samples(arguments.num_samples, SEED)
        provenance["oracle"] = f"VQAEval of {arguments.official_name}"
        scores = score_answers(predictions, answers, arguments.official)
        data = {"provenance": provenance, "predictions": predictions, "answers": answers, **scores}
    arguments.output.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
