"""The paper's ablations, small: task balancing, curriculum, what audio gains from pictures and clips.

    make runs/aligned/model.safetensors              # once: what the runs on the embedded world begin with
    python benchmarks/ablations.py                   # 18 runs of one to four minutes on one quiet core
    python benchmarks/ablations.py --seeds 1 --start FOLDER --out FOLDER
    python benchmarks/ablations.py --suite real --data DATA    # the hour-sized benchmark: 18 runs of two to six minutes

Runs are files in `configs/experiments`, or `configs/experiments/real` (its `_start.yaml` says what DATA holds); this
script trains each with every seed, which `unival train` does too. Seeds come one after the other, complete runs are
kept, and the same command continues after a stop. When a run is done `table.md`, `results.json` and `ablations.png` in
`--out` are written anew from the runs that are there.

The difference between two arms is taken per seed (both see the same data order), with the 95 % interval of Student's t.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unival.config import load_config
from unival.data.mixture import with_steps
from unival.errors import UserError, run_cli
from unival.planning.plan import estimate
from unival.schema import RunConfig
from unival.train import train
from unival.training.stop import interruptible

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "experiments"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # 97.5 %, n - 1
IMAGE = {"caption, names right": "caption/names", "VQA": "vqa/accuracy", "grounding": "grounding/accuracy@0.5"}
VIDEO = {"video caption, names right": "video-caption/names", "video VQA": "video-vqa/accuracy"}


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training.

    Attributes:
        name: Of its run folders, `NAME-SEED`.
        file: In `configs/experiments`.
        after: Arm whose run of the same seed it goes on from, as `option` says.
        option: `init` takes over the weights, `resume` continues the run itself: its first stage is the same; `none`
            leaves the start to the file.
    """

    name: str
    file: str
    after: str | None = None
    option: Literal["init", "resume", "none"] = "init"


@dataclass(frozen=True, slots=True)
class Question:
    """Two arms, the second of which the paper prefers; `metrics` are `EVALUATION/METRIC` by their name in the table."""

    title: str
    arms: tuple[str, str]
    metrics: Mapping[str, str]
    paper: str


@dataclass(frozen=True, slots=True)
class Suite:
    """What is trained on some data, and what its runs answer.

    Attributes:
        folder: Of its files, in `configs/experiments`.
        start: The model that runs begin with by default.
        fix: What to do when it is not there.
        arms: The longest last.
    """

    folder: str
    start: str
    fix: str
    arms: tuple[Arm, ...]
    questions: tuple[Question, ...]


PAPER_BALANCING = (
    "COCO CIDEr / VQAv2 / RefCOCO+: 129.9 / 75.21 / 78.85 size-proportional, 131.3 / 75.34 / 79.47 balanced"
)
PAPER_CURRICULUM = (
    "COCO / VQAv2 / RefCOCO+ / MSRVTT / MSRVTT-QA: 127.9 / 73.21 / 70.89 / 55.9 / 42.38 one-stage, "
    "128 / 73.24 / 70.19 / 56.3 / 42.27 curriculum, 18 % faster"
)
PAPER_AUDIO = "AudioCaps CIDEr: 53.2 from text alone, 58.8 from image+video-text"
PICTURES = {
    "caption, CIDEr-D": "caption/cider_d",
    "VQA": "vqa/accuracy",
    "grounding": "grounding/accuracy@0.5",
}
SOUNDS = {"ESC-10 caption, exact": "sounds/exact", "spoken digits caption, exact": "digits/exact"}
SOUND_QUESTIONS = {"ESC-10 QA": "sounds-qa/accuracy", "spoken digits QA": "digits-qa/accuracy"}

FIRST_ARMS = (
    Arm("balanced", "balanced.yaml"),
    Arm("proportional", "proportional.yaml"),
    Arm("curriculum", "curriculum.yaml", "balanced", "resume"),
)
SUITES = {
    "world": Suite(
        folder=".",
        start="runs/aligned",
        fix="`make runs/aligned/model.safetensors` (about an hour), or name a model with --start",
        arms=(
            *FIRST_ARMS,
            Arm("audio_words", "audio.yaml"),
            Arm("audio_image_video", "audio.yaml", "curriculum"),
            Arm("one_stage", "one_stage.yaml"),
        ),
        questions=(
            Question("Task balancing", ("proportional", "balanced"), IMAGE, PAPER_BALANCING),
            Question("Curriculum", ("one_stage", "curriculum"), IMAGE | VIDEO, PAPER_CURRICULUM),
            Question(
                "Audio after pictures and clips",
                ("audio_words", "audio_image_video"),
                {"audio caption, CIDEr-D": "audio-caption/cider_d", "audio caption, exact": "audio-caption/exact"},
                PAPER_AUDIO,
            ),
        ),
    ),
    "real": Suite(
        folder="real",
        start="unival-tiny",
        fix="name a model folder with --start",
        arms=(
            *FIRST_ARMS,
            Arm("audio_none", "audio_none.yaml", option="none"),
            Arm("audio_image_video", "audio.yaml"),
            Arm("one_stage", "one_stage.yaml"),
        ),
        questions=(
            Question(
                "Task balancing",
                ("proportional", "balanced"),
                PICTURES | {"entailment": "entailment/accuracy"},
                PAPER_BALANCING,
            ),
            Question("Curriculum", ("one_stage", "curriculum"), PICTURES | SOUNDS, PAPER_CURRICULUM),
            Question(
                "Audio after pictures and clips",
                ("audio_none", "audio_image_video"),
                SOUNDS | SOUND_QUESTIONS,
                PAPER_AUDIO,
            ),
        ),
    ),
}


def run_of(suite: Suite, arm: Arm, seed: int, out: Path, start: str, data: str | None = None) -> RunConfig:
    """Return the configuration of one run."""
    changes = [f"seed={seed}", f"out={out / f'{arm.name}-{seed}'}"]
    if arm.option == "init" and arm.after is not None:
        changes.append(f"init={out / f'{arm.after}-{seed}' / 'model'}")
    elif arm.option != "none":
        changes.append(f"init={start}")
    if data is not None:
        changes.append(f"data.root={data}")
    config = load_config(CONFIGS / suite.folder / arm.file, changes, RunConfig)
    if arm.option == "resume":
        checkpoint = out / f"{arm.after}-{seed}" / f"step-{config.stages[0].steps:07d}"
        config = config.model_copy(update={"resume": str(checkpoint)})
    return config


def value_of(run_dir: Path, metric: str) -> float:
    """Return a mean in the `evaluation.json` of a run."""
    evaluation, _, name = metric.rpartition("/")
    return json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))[evaluation]["metrics"][name]["mean"]


def collect(suite: Suite, out: Path, seeds: int) -> list[dict[str, Any]]:
    """Return for every question its arms' values per metric, of the seeds that both arms have finished."""
    found = []
    for question in suite.questions:
        done = [
            seed
            for seed in range(1, seeds + 1)
            if all((out / f"{arm}-{seed}" / "evaluation.json").is_file() for arm in question.arms)
        ]
        values = {
            name: {arm: [value_of(out / f"{arm}-{seed}", metric) for seed in done] for arm in question.arms}
            for name, metric in question.metrics.items()
        }
        found.append({"title": question.title, "paper": question.paper, "seeds": done, "values": values})
    return found


def difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of `second - first` and half its 95 % interval; None with a single pair."""
    gaps = np.subtract(second, first)
    if len(gaps) not in STUDENT:
        return float(gaps.mean()), None
    return float(gaps.mean()), float(STUDENT[len(gaps)] * gaps.std(ddof=1) / len(gaps) ** 0.5)


def verdict(mean: float, half: float | None) -> str:
    """Say what a difference shows."""
    if half is None:
        return "one seed"
    if abs(mean) <= half:
        return "not shown"
    return "better" if mean > 0 else "worse"


def lines(results: Sequence[Mapping[str, Any]], arithmetic: Mapping[str, float]) -> Iterator[str]:
    """Yield the lines of `table.md`."""
    for result in results:
        if not result["seeds"]:
            continue
        first, second = next(iter(result["values"].values()))
        yield f"**{result['title']}** ({len(result['seeds'])} seeds). Paper: {result['paper']}."
        yield ""
        yield f"| | {first} | {second} | difference | {second} is |"
        yield "|---|---|---|---|---|"
        for name, values in result["values"].items():
            mean, half = difference(values[first], values[second])
            shown = [f"{np.mean(values[arm]):.3f} ({', '.join(f'{v:.3f}' for v in values[arm])})" for arm in values]
            gap = f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")
            yield f"| {name} | {shown[0]} | {shown[1]} | {gap} | {verdict(mean, half)} |"
        if first in arithmetic and second in arithmetic:  # after a restart they are counted one after the other
            tflop = [arithmetic[arm] / 1e12 for arm in (first, second)]
            yield f"| TFLOP of a run | {tflop[0]:,.1f} | {tflop[1]:,.1f} | {tflop[1] / tflop[0] - 1:+.0%} | |"
        yield ""


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the difference of every metric, a dot per seed and the mean as a line."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [result for result in results if result["seeds"]]
    heights = [len(result["values"]) for result in shown]
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 0.9 * len(shown) + 0.32 * sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for panel, result in zip(panels, shown, strict=True):
            names = list(result["values"])
            first, second = result["values"][names[0]]
            for row, name in enumerate(names):
                gaps = np.subtract(result["values"][name][second], result["values"][name][first])
                panel.plot(gaps, [row] * len(gaps), "o", color="#2a6f97", markersize=5, alpha=0.7)
                panel.plot([gaps.mean()] * 2, [row - 0.3, row + 0.3], color="#12304a", linewidth=2)
            panel.axvline(0, color="#999999", linewidth=1)
            panel.set_yticks(range(len(names)), names)
            panel.set_ylim(len(names) - 0.5, -0.5)
            panel.set_title(f"{result['title']}: {second} minus {first}", loc="left", fontsize=9, fontweight="bold")
        figure.savefig(path, dpi=150)


def report(suite: Suite, out: Path, seeds: int, arithmetic: Mapping[str, float]) -> str:
    """Write the results of the runs that are there; return the table."""
    results = collect(suite, out, seeds)
    table = "\n".join(lines(results, arithmetic))
    (out / "table.md").write_text(table, encoding="utf-8")
    (out / "results.json").write_text(json.dumps({"arithmetic": arithmetic, "questions": results}), encoding="utf-8")
    if any(result["seeds"] for result in results):
        draw(results, out / "ablations.png")
    return table


def flops_of(config: RunConfig) -> float:
    """Return the arithmetic of a whole run, counted by the planner."""
    return sum(stage.flops * (stage.steps or 0) for stage in estimate(with_steps(config)))


def main(args: Sequence[str]) -> None:
    """Train what is missing, report after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=list(SUITES), default="world")
    parser.add_argument("--data", help="folder of the hour-sized data sets, for --suite real")
    parser.add_argument("--out", type=Path, help="by default runs/experiments, or runs/experiments/real")
    parser.add_argument("--start", help="the model that runs begin with, by default the suite's own")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(args)
    suite = SUITES[options.suite]
    if (options.data is None) == (options.suite == "real"):
        parser.error("--suite real needs --data, and only that does")
    out, start = options.out or Path("runs/experiments") / suite.folder, options.start or suite.start
    if start != "unival-tiny" and not Path(start).is_dir():
        raise UserError(f"no such model: {start}", where="--start", fix=suite.fix)
    arithmetic = dict[str, float]()
    for seed in range(1, options.seeds + 1):
        for arm in suite.arms:
            config = run_of(suite, arm, seed, out, start, options.data)
            with interruptible():
                train(config)
            if arm.name not in arithmetic:
                arithmetic[arm.name] = flops_of(config)
            table = report(suite, out, options.seeds, arithmetic)
    print(table)


if __name__ == "__main__":
    run_cli(lambda args: main(args))
