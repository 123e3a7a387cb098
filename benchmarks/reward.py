"""Reward training against a naive loop: sampling, reward and update of the same model on the same pictures.

    python benchmarks/reward.py [--model unival-tiny] [--rows 16] [--samples 5] [--tokens 32] [--repeats 5] [--json]

Ours is one step of the objective `self_critical` with CIDEr-D: pictures and prompts are encoded once for all samples,
sampling keeps keys and values, and the product with the vocabulary is computed at target tokens only. The naive loop
repeats every input for every sample, samples with `generate` without a cache, scores in line with the same scorer, and
takes log-probabilities from a plain forward pass. Both write exactly `--tokens` tokens and make one AdamW step.

Wall time and processor time are both given: on a busy machine only the second means something. CIDEr-D is timed once
more by itself, on captions that the model samples.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unival.batch import Batch
from unival.checkpoint import load_model
from unival.data.mixture import StageBatches
from unival.model.modeling import MEDIA_INPUTS, UnivalForConditionalGeneration
from unival.objectives.self_critical import Objective, advantages
from unival.schema import StageConfig


def main() -> None:
    """Measure both loops in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="unival-tiny", help="model folder or name")
    parser.add_argument("--rows", type=int, default=16, help="pictures per step")
    parser.add_argument("--samples", type=int, default=5, help="captions per picture")
    parser.add_argument("--tokens", type=int, default=32, help="length of every caption")
    parser.add_argument("--repeats", type=int, default=5, help="measured steps of each loop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, processor = load_model(options.model)
    batches = StageBatches(stage(options.rows), processor, seed=1)
    batch, records = batches[0][0], [e.record for step in range(8) for e in batches[step][0].examples]
    objective = Objective(
        processor=processor,
        rows=lambda: records,
        rewards={"cider_d": 0.1},
        samples=options.samples,
        min_new_tokens=options.tokens,
        max_new_tokens=options.tokens,
    )
    model.encoder.embed_images.requires_grad_(False)  # as in the demo's recipe
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, fused=True)
    train_mode(model)
    clock = Clock()
    objective.draw = clock.timed("sampling", objective.draw)
    objective.score = clock.timed("reward", objective.score)
    loops = {
        "ours": lambda: update(optimizer, objective(model, batch).value),
        "naive": lambda: update(optimizer, naive_loss(model, batch, objective)),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for repeat in range(options.repeats + 1):  # the first step of each warms up
        for name, loop in loops.items():
            wall, cpu = time.perf_counter(), time.process_time()
            loop()
            if repeat:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            elif name == "ours":
                clock.seconds.clear()
    report(options, seconds, clock, reward_seconds(objective, model, batch))


def reward_seconds(
    objective: Objective, model: UnivalForConditionalGeneration, batch: Batch, repeats: int = 20
) -> float:
    """Return how long CIDEr-D of all captions of a step takes, the median of several times."""
    texts = objective.processor.decode(objective.draw(model, batch).tokens.flatten(0, 1))
    records, times = [example.record for example in batch.examples for _ in range(objective.samples)], []
    for _ in range(repeats):
        start = time.perf_counter()
        objective.scorer.reward(texts, records)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def stage(rows: int) -> StageConfig:
    """Return a stage of captioning on the embedded world."""
    source = {"world": "train", "content": "detailed_caption", "options": {"seed": 11}}
    group = {"rows": rows, "tasks": [{"task": "caption", "source": source}]}
    return StageConfig.model_validate({"name": "benchmark", "steps": 8, "groups": [group]})


def train_mode(model: UnivalForConditionalGeneration) -> None:
    """Train, with the statistics of the picture encoder fixed."""
    model.train()
    model.encoder.embed_images.eval()


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def naive_loss(model: UnivalForConditionalGeneration, batch: Batch, objective: Objective) -> Tensor:
    """Compute the same loss the plain way."""
    rows = torch.arange(len(batch.examples)).repeat_interleave(objective.samples)
    media = batch.inputs.get("media_index", torch.arange(len(batch.examples)))
    repeated = {name: batch.inputs[name][rows] for name in ("input_ids", "attention_mask")}
    repeated |= {name: batch.inputs[name][media[rows]] for name in MEDIA_INPUTS.values() if name in batch.inputs}
    limits = {"min_new_tokens": objective.min_new_tokens, "max_new_tokens": objective.max_new_tokens}
    model.eval()
    with torch.no_grad():
        ids = model.generate(**repeated, do_sample=True, top_k=0, use_cache=False, suppress_tokens=[0, 1], **limits)
    train_mode(model)
    assert isinstance(ids, Tensor)
    sampled = ids[:, 1:]
    records = [batch.examples[row].record for row in rows.tolist()]
    rewards = objective.scorer.reward(objective.processor.decode(sampled), records)
    weights = torch.from_numpy(advantages(rewards.reshape(-1, objective.samples), "others")).float().flatten()
    logits = model(**repeated, decoder_input_ids=model.shift_right(sampled)).logits
    log_probs = logits.log_softmax(-1).gather(-1, sampled[..., None])[..., 0]
    return -(weights[:, None] * log_probs).mean()


class Clock:
    """Processor seconds by part, of every call."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with its calls timed."""

        def call(*args: Any) -> Any:
            start = time.process_time()
            result = function(*args)
            self.seconds.setdefault(name, []).append(time.process_time() - start)
            return result

        return call


def report(
    options: argparse.Namespace, seconds: dict[str, list[tuple[float, float]]], clock: Clock, cider_seconds: float
) -> None:
    """Print medians, ratios and the parts of our step."""
    median = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in seconds.items()}
    parts = {name: statistics.median(values) for name, values in clock.seconds.items()}
    parts["log-probabilities, backward and step"] = median["ours"][1] - sum(parts.values())
    result = {
        "settings": vars(options),
        "wall_seconds": {name: round(values[0], 4) for name, values in median.items()},
        "cpu_seconds": {name: round(values[1], 4) for name, values in median.items()},
        "ratio_wall": round(median["naive"][0] / median["ours"][0], 2),
        "ratio_cpu": round(median["naive"][1] / median["ours"][1], 2),
        "our_parts_cpu_seconds": {name: round(value, 4) for name, value in parts.items()},
        "cider_d": {"captions": options.rows * options.samples, "wall_ms": round(1000 * cider_seconds, 2)},
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{options.rows} pictures x {options.samples} captions of {options.tokens} tokens, {options.threads} threads")
    for name, (wall, cpu) in median.items():
        print(f"  {name:6} {wall:7.3f} s wall, {cpu:7.3f} s processor a step")
    for name, value in result["our_parts_cpu_seconds"].items():
        print(f"         {value:7.3f} s {name}")
    print(f"  {1000 * cider_seconds:.1f} ms: CIDEr-D of {options.rows * options.samples} captions alone")
    print(f"  naive / ours: {result['ratio_wall']} (wall), {result['ratio_cpu']} (processor)")


if __name__ == "__main__":
    main()
