"""`unival demo`: the whole path on the embedded world, from the shipped model to a front and a page that shows it.

Each step is also a command of its own (`unival train configs/demo/NAME.yaml`, `soups sweep ...`). Complete steps are
not repeated, so the same command continues an interrupted demo. `soups` is run as a program: the packages do not
import each other.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from unival.checkpoint import load_model, resolve_model_dir
from unival.config import load_config
from unival.data.sounds import families, family_of_caption
from unival.data.source import open_source
from unival.errors import UserError
from unival.evaluate import evaluate_all, generate
from unival.evaluation.provenance import versions
from unival.log import console
from unival.metrics.bootstrap import bootstrap_difference, bootstrap_mean
from unival.report import write_report
from unival.schema import EvaluationSuite, RunConfig, SourceConfig
from unival.tasks.base import get_task
from unival.train import train
from unival.training.run_folder import check_deletion

START = "unival-tiny"
STYLES = ("fluent-emoji-flat", "noto", "twemoji")
REWARDS = {"detail": "cider_d", "brevity": "brevity"}
SOUP_ARGS = ["metrics=cider_d,brevity", "content=detailed_caption", "limit=200"]
OOD_ARGS = ["metrics=names", f"styles={','.join(STYLES)}", "limit=150"]


def run_demo(out: Path, configs: Path, fresh: bool = False) -> dict[str, Any]:
    """Run every step that is not complete, write `out/index.html`, return a summary.

    Args:
        out: Folder for all runs and the report.
        configs: Folder with the demo's YAML files.
        fresh: Delete `out` first.

    Raises:
        UserError: If the configurations are not found, or `fresh` would delete something that is no demo.
        unival.train.Interrupted: When stopped; the same call continues.
    """
    if not (configs / "understand.yaml").is_file():
        raise UserError(
            f"no demo configurations in {configs}",
            fix="run in a checkout of the repository, or give --configs",
        )
    if fresh and out.is_dir():
        check_deletion(out, "demo", ["versions.json"])
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "versions.json").write_text(json.dumps(versions(), indent=1), encoding="utf-8")

    def fit(name: str, *overrides: str) -> Path:
        return train(load_config(configs / f"{name}.yaml", [f"out={out / name}", *overrides], RunConfig))

    steps: list[tuple[str, str, Callable[[], object]]] = [
        ("understand", "Describe, answer, find", lambda: understand(out, configs)),
        ("pretrain", "Pretrain from scratch for two minutes", lambda: fit("pretrain")),
        ("audio", "Learn sounds", lambda: learn_sounds(out, fit)),
        ("detail", "Specialise to detailed captions", lambda: fit("detail")),
        ("brevity", "Specialise to brief captions", lambda: fit("brevity")),
        ("sweep", "Sweep the soup, draw the front", lambda: sweep_rewards(out)),
        ("style_fluent", "Specialise to one art style", lambda: fit("style_fluent")),
        ("style_noto", "Specialise to another", lambda: fit("style_noto")),
        ("ood", "Test both and their average on an unseen style", lambda: compare_styles(out)),
    ]
    clock = Clock(out / "times.json")
    try:
        for number, (name, title, action) in enumerate(steps, start=1):
            console.rule(f"{number}/{len(steps)} {title}", align="left")
            clock.run(name, title, action)
    finally:
        report = write_report(out)  # also of what an interrupted demo has so far
    console.print(f"{clock.total:.0f} s in all; open {report}")
    return {"report": str(report), "seconds": clock.total, "steps": clock.rows}


class Clock:
    """Times of the steps, kept on disk; a step that is complete is not run again, an interrupted one adds up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"steps": []}
        self.rows: list[dict[str, Any]] = saved["steps"]

    @property
    def total(self) -> float:
        """Return the time of all steps in seconds."""
        return sum(row["seconds"] for row in self.rows)

    def run(self, name: str, title: str, action: Callable[[], object]) -> None:
        """Run a step unless it is complete, and record its time."""
        row = next((row for row in self.rows if row["name"] == name), None)
        if row is None:
            row = {"name": name, "title": title, "seconds": 0.0, "complete": False}
            self.rows.append(row)
        if row["complete"]:
            console.print(f"complete ({row['seconds']:.0f} s)")
            return
        start = time.monotonic()
        try:
            action()
            row["complete"] = True
        finally:
            row["seconds"] += time.monotonic() - start
            content = {"steps": self.rows, "total_seconds": self.total, "seed": 1}
            self.path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        console.print(f"{row['seconds']:.0f} s")


def understand(out: Path, configs: Path) -> None:
    """Evaluate the shipped model and show it a few pictures and clips."""
    model, processor = load_model(START)
    suite = load_config(configs / "understand.yaml", [], EvaluationSuite)
    evaluate_all(model, processor, suite.evaluations, out / "understand")
    shown = [
        ("caption", "caption", "image", 6),
        ("vqa", "vqa", "image", 6),
        ("grounding", "grounding", "image", 4),
    ]
    shown += [("video-caption", "caption", "video", 3), ("video-vqa", "vqa", "video", 3)]
    entries = [e for spec in shown for e in show(out, model, processor, *spec)]
    write_samples(out, entries)


def learn_sounds(out: Path, fit: Callable[..., Path]) -> None:
    """Fine-tune on captions of sounds; score how often one names the first sound's family."""
    folder = fit("audio")
    rows = [json.loads(line) for line in (out / "audio" / "predictions-audio-caption.jsonl").open(encoding="utf-8")]
    known = family_of_caption()
    first = [row["families"][0] for row in rows]
    named = [known.get(row["prediction"].split(" followed by ")[0]) for row in rows]
    right = np.array([float(a == b) for a, b in zip(named, first, strict=True)])
    result = {
        "accuracy": bootstrap_mean(right)._asdict(),
        "chance": 1.0 / len(families()),
        "most_frequent": max(first.count(family) for family in first) / len(first),
        "samples": len(rows),
    }
    (out / "audio" / "family.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    model, processor = load_model(folder)
    write_samples(out, show(out, model, processor, "audio-caption", "caption", "audio", 4))


def sweep_rewards(out: Path) -> None:
    """Interpolate the two reward specialists, draw the front, and test each gain over the start."""
    score_start(SOUP_ARGS, out / "sweep_start")
    specialists = [str(out / name / "model") for name in REWARDS]
    names = [part for name in REWARDS for part in ("--name", name)]
    soups("sweep", *specialists, *names, "--points", "11", *evaluator(SOUP_ARGS), "-o", str(out / "sweep"))
    x, y = REWARDS.values()
    soups("front", str(out / "sweep"), "--x", x, "--y", y, "--init", str(out / "sweep_start"))
    start = results(out / "sweep_start")[0]["scores"]
    gains = {}
    for name, metric in REWARDS.items():
        end = next(row for row in results(out / "sweep") if row["coefficients"].get(name) == 1.0)["scores"]
        interval = bootstrap_difference(end[metric], start[metric])
        gains[name] = {"metric": metric} | interval._asdict()
    options = SourceConfig(world="test", content="detailed_caption", limit=3)
    rows = open_source(options, "caption", "image")
    pictures = {
        rows[i]["uid"]: write_medium(out, f"sweep-{i}", "image", rows[i]["image"], None)["file"] for i in range(3)
    }
    (out / "sweep" / "pictures.json").write_text(json.dumps(pictures), encoding="utf-8")
    (out / "sweep" / "gains.json").write_text(json.dumps(gains, indent=1), encoding="utf-8")


def compare_styles(out: Path) -> None:
    """Score start, both style specialists and their average on seen and unseen art styles."""
    score_start(OOD_ARGS, out / "ood_start")
    pair = [str(out / name / "model") for name in ("style_fluent", "style_noto")]
    names = ["--name", "fluent", "--name", "noto"]
    soups("sweep", *pair, *names, "--points", "3", *evaluator(OOD_ARGS), "-o", str(out / "ood"))
    by_weight = {row["coefficients"].get("noto", 0.0): row["scores"] for row in results(out / "ood")}
    models = {
        f"{START} (start)": results(out / "ood_start")[0]["scores"],
        "fluent specialist": by_weight[0.0],
        "noto specialist": by_weight[1.0],
        "average of both": by_weight[0.5],
    }
    cells = {
        name: [bootstrap_mean(scores[f"names@{style}"])._asdict() for style in STYLES]
        for name, scores in models.items()
    }
    unseen = f"names@{STYLES[-1]}"
    better = max((by_weight[0.0], by_weight[1.0]), key=lambda scores: float(np.mean(scores[unseen])))
    margin = bootstrap_difference(by_weight[0.5][unseen], better[unseen])
    table = {
        "metric": "names",
        "samples": len(by_weight[0.5][unseen]),
        "styles": [{"name": style, "seen": style != STYLES[-1]} for style in STYLES],
        "rows": [{"model": name, "cells": row} for name, row in cells.items()],
        "margin": margin._asdict(),
    }
    (out / "ood" / "table.json").write_text(json.dumps(table, indent=1), encoding="utf-8")


def soups(*arguments: str) -> None:
    """Run the `soups` command line.

    Raises:
        UserError: If it fails; its own message is on stderr by then.
    """
    done = subprocess.run([sys.executable, "-m", "soups", *arguments], check=False, stdout=subprocess.DEVNULL)
    if done.returncode in (130, -2):
        raise KeyboardInterrupt
    if done.returncode:
        raise UserError(f"soups {arguments[0]} ended with exit code {done.returncode}", fix="see its message above")


def score_start(arguments: list[str], folder: Path) -> None:
    """Score the start model as a sweep of one point, with the evaluator of the sweep that it is compared with."""
    soups("sweep", str(resolve_model_dir(START)), "--name", "start", *evaluator(arguments), "-o", str(folder))


def evaluator(arguments: list[str]) -> list[str]:
    """Return the command-line options that name the evaluator."""
    return [
        "--evaluator",
        "unival.evaluate:soup_evaluator",
        *(part for argument in arguments for part in ("--arg", argument)),
    ]


def results(folder: Path) -> list[dict[str, Any]]:
    """Read the points of a sweep."""
    return [json.loads(line) for line in (folder / "results.jsonl").open(encoding="utf-8")]


def show(out: Path, model: Any, processor: Any, label: str, name: str, modality: Any, num: int) -> list[dict[str, Any]]:
    """Predict for a few rows of the test split and write their media files."""
    args = {"modality": modality} | ({"num_bins": processor.num_bins} if name == "grounding" else {})
    task = get_task(name, args)
    source = open_source(SourceConfig(world="test", limit=40), name, task.modality)
    records = [source[3 * index + 1] for index in range(num)]
    batch = processor.collate([task.example(record) for record in records])
    entries = []
    for record, text in zip(records, generate(model, processor, task, batch.inputs), strict=True):
        prediction = task.parse(text, record)
        reference = record.get("box") or record.get("caption") or record["answers"][0]
        scores = task.score([prediction], [record])
        is_right = bool(scores["accuracy@0.5"][0]) if name == "grounding" else prediction == reference
        entries.append(
            {
                "task": label,
                "text": record.get("question") or record.get("text"),
                "prediction": prediction,
                "reference": reference,
                "correct": is_right,
                **write_medium(out, f"{label}-{len(entries)}", modality, record[modality], processor),
            }
        )
    return entries


def write_medium(out: Path, stem: str, modality: str, medium: Any, processor: Any) -> dict[str, Any]:
    """Write a picture, a clip with its frames, or a sound, and return its fields in `samples.json`."""
    folder = out / "samples"
    folder.mkdir(exist_ok=True)
    if modality == "image":
        Image.fromarray(medium).save(folder / f"{stem}.png")
        return {"file": f"samples/{stem}.png", "width": medium.shape[1], "height": medium.shape[0]}
    if modality == "audio":
        soundfile.write(folder / f"{stem}.wav", medium, processor.sample_rate)
        return {"file": f"samples/{stem}.wav"}
    (folder / f"{stem}.mp4").write_bytes(medium)
    names = []
    with av.open(str(folder / f"{stem}.mp4")) as clip:
        for index, frame in enumerate(clip.decode(video=0)):
            names.append(f"samples/{stem}-{index}.png")
            Image.fromarray(frame.to_ndarray(format="rgb24")).save(out / names[-1])
    return {"file": f"samples/{stem}.mp4", "frames": names}


def write_samples(out: Path, entries: list[dict[str, Any]]) -> None:
    """Add entries to `samples.json`, replacing those of the same tasks."""
    path = out / "samples" / "samples.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    replaced = {entry["task"] for entry in entries}
    kept = [entry for entry in old if entry["task"] not in replaced]
    path.write_text(json.dumps(kept + entries, indent=1), encoding="utf-8")
