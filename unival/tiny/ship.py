"""Make a finished run the built-in model.

    python -m unival.tiny.ship runs/pretrain-tiny --audio-encoder ENCODER

Stores its weights as bf16, the audio encoder for fine-tuning beside them as fp16, evaluates *those* weights on the
held-out test split, and writes the model card from the measured numbers.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from unival.checkpoint import BUILT_IN, BUILT_IN_ENCODERS, load_model, save_model
from unival.config import load_config
from unival.data.world import concepts
from unival.errors import UserError
from unival.evaluate import evaluate_all
from unival.schema import EvaluationSuite, RunConfig

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-to-text
tags: [unival, image-captioning, visual-question-answering, visual-grounding, video]
---
# unival-tiny

A UnIVAL (arXiv 2307.16184) of {millions:.1f} M parameters: one encoder-decoder that reads pictures and clips of the
embedded world and writes captions, answers and boxes. It exists to show and test the code; it was trained on the
{concepts:,} emoji concepts of that world, drawn in two art styles, and knows nothing else.

- Made by the steps of `make pretrain-tiny` (seed {seed}): encoders trained with labels, embeddings aligned with names,
  {curriculum}. `docs/experiments.md` has the exact history.
- Time of the curriculum: {minutes:.0f} minutes on this machine: {machine} per process, torch {torch}.
- Beside it the package holds `unival-tiny-audio`, an encoder that knows the families of the training sounds; this model
  has not heard it (`configs/demo/audio.yaml` joins them).
- Weights: bf16 safetensors, {megabytes:.1f} MB; data and licences: `NOTICE`.

Greedy decoding on the test split, whose concept combinations never occur in training
(`unival evaluate configs/eval/tiny.yaml`), 95 % bootstrap intervals over samples:

| evaluation | metric | mean | interval | samples |
| --- | --- | --- | --- | --- |
{metrics}

Accuracy by question type, beside always giving the most frequent answer:

| evaluation | type | accuracy | most frequent answer | samples |
| --- | --- | --- | --- | --- |
{types}

`names`: exactly the right objects are named. `exact`: the whole caption is right. `unseen-style-*`: the art style
`twemoji`, which it never saw; `unseen-style-name` has one object per picture.
"""


def ship(run_dir: Path, audio_encoder: Path, destination: Path = BUILT_IN["unival-tiny"]) -> None:
    """Write the built-in model and audio encoder.

    Raises:
        UserError: If a run is not finished.
    """
    if not (run_dir / "model").is_dir():
        raise UserError("the run has no model yet", where=str(run_dir), fix="finish it: make pretrain-tiny")
    tensors = {key: tensor.half() for key, tensor in load_file(audio_encoder).items() if tensor.is_floating_point()}
    BUILT_IN_ENCODERS["unival-tiny-audio"].parent.mkdir(exist_ok=True)
    save_file(load_file(audio_encoder) | tensors, BUILT_IN_ENCODERS["unival-tiny-audio"])
    BUILT_IN_ENCODERS["unival-tiny-audio"].chmod(0o644)  # `save_file` lets nobody else read
    model, processor = load_model(run_dir / "model")
    save_model(destination, model, processor, torch.bfloat16)
    model, processor = load_model(destination)
    suite = load_config(Path("configs/eval/tiny.yaml"), [], EvaluationSuite)
    results = evaluate_all(model, processor, suite.evaluations, run_dir / "shipped")
    config = load_config(run_dir / "config.yaml", [], RunConfig)
    versions = json.loads((run_dir / "versions.json").read_text(encoding="utf-8"))
    card = CARD.format(
        millions=sum(p.numel() for p in model.parameters()) / 1e6,
        concepts=len(concepts()),
        seed=config.seed,
        curriculum=", then ".join(f"{stage.steps} steps of {stage.name}" for stage in config.stages),
        minutes=training_seconds(run_dir) / 60,
        machine=f"{versions['machine']}, {versions['threads']}",
        torch=versions["torch"],
        megabytes=(destination / "model.safetensors").stat().st_size / 1e6,
        metrics="\n".join(metric_rows(results)),
        types="\n".join(type_rows(results)),
    )
    (destination / "README.md").write_text(card, encoding="utf-8")
    (destination / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def training_seconds(run_dir: Path) -> float:
    """Return the seconds of a run from its log; a clock that starts again after a resume is added up."""
    clock = [json.loads(line)["seconds"] for line in (run_dir / "metrics.jsonl").open(encoding="utf-8")]
    return clock[-1] + sum(before for before, after in pairwise(clock) if after < before)


def metric_rows(results: dict[str, Any]) -> list[str]:
    """Return the Markdown rows of all metrics."""
    return [
        f"| {name} | {metric} | {v['mean']:.3f} | {v['low']:.3f} to {v['high']:.3f} | {result['samples']} |"
        for name, result in results.items()
        for metric, v in result["metrics"].items()
    ]


def type_rows(results: dict[str, Any]) -> list[str]:
    """Return the Markdown rows of all question types."""
    return [
        f"| {name} | {kind} | {row['accuracy']:.3f} | {row['most_frequent_answer']:.3f} | {row['samples']} |"
        for name, result in results.items()
        for kind, row in result.get("question_types", {}).items()
    ]


def main() -> None:
    """Ship what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--audio-encoder", type=Path, required=True)
    arguments = parser.parse_args()
    ship(arguments.run, arguments.audio_encoder)


if __name__ == "__main__":
    main()
