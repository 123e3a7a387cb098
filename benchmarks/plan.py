"""What `unival plan` predicts against what a real update takes on this machine: arithmetic and memory.

    python benchmarks/plan.py                        # the sizes of unival-tiny: seconds
    python benchmarks/plan.py --size base --rows 1   # the full model with random weights: a minute and 10 GB of memory

The update is one of the curriculum's image mixture on the embedded world, in float32. Arithmetic is counted by torch's
`FlopCounterMode` on the real batch with its paddings (attention as plain products, which the counter sees); memory is
the resident set: what an update adds at its peak to weights and moments, that is gradients, activations and workspace.
The planner knows neither this data nor its lengths; it uses the typical ones of `unival/planning/plan.py`.
"""

import argparse
import ctypes
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unival.checkpoint import load_model, quiet_transformers
from unival.data.mixture import StageBatches, with_sizes
from unival.log import peak_resident
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.objectives.cross_entropy import Objective
from unival.planning.plan import estimate
from unival.planning.plan import with_sizes as with_model_sizes
from unival.schema import RunConfig
from unival.training.optim import build_optimizer
from unival.training.sketch import sketch

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "model"
IMAGE_PX = {"tiny": 96, "base": 384}


def run_of(size: str, rows: int) -> RunConfig:
    """Return a run of the balanced image mixture at the sizes of a file in `configs/model`."""
    source = {"world": "train"}
    tasks = [{"task": name, "source": source} for name in ("caption", "vqa", "grounding", "entailment")]
    stage = {"name": size, "steps": 1, "groups": [{"rows": rows, "tasks": tasks}]}
    model = {"video_encoder": None, "audio_encoder": None, "dropout": 0.0, "drop_path": 0.0}
    run = {"out": "unused", "init": "elsewhere", "precision": "fp32", "stages": [stage], "model": model}
    processor = {"image_px": IMAGE_PX[size]}
    config = RunConfig.model_validate(run | {"processor": processor, "threads": torch.get_num_threads()})
    return with_model_sizes(config, CONFIGS / f"{size}.yaml")


def forget_peak() -> None:
    """Give freed memory back to the system, and start the peak of the resident set anew: it is what is in use now."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(size: str, rows: int) -> dict[str, Any]:
    """Make three updates: one to allocate moments, one for time and memory, one under torch's counter."""
    config = run_of(size, rows)
    (plan,) = estimate(config)
    (shape,) = sketch(config)
    torch.manual_seed(0)
    with quiet_transformers():
        model = UnivalForConditionalGeneration(UnivalConfig.from_dict(dict(shape.settings))).train()
    processor = with_sizes(load_model("unival-tiny")[1], {"image_px": IMAGE_PX[size]})
    (batch,) = StageBatches(config.stages[0], processor, seed=1)[0]
    optimizer, objective = build_optimizer(model, config.stages[0].optim), Objective(processor)

    def update() -> None:
        objective(model, batch, 0).value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    update()
    forget_peak()
    before, start = peak_resident(), time.perf_counter()
    update()
    seconds, added = time.perf_counter() - start, peak_resident() - before
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        update()
    memory = plan.memory("none", 1, has_average=False)
    return {
        "size": size,
        "rows": rows,
        "examples": len(batch.examples),
        "parameters": [plan.total, sum(parameter.numel() for parameter in model.parameters())],
        "GFLOP": [plan.flops / 1e9, counter.get_total_flops() / 1e9],
        "GB that an update adds": [(memory["gradients"] + memory["activations"]) / 1e9, added / 1e9],
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "GFLOP/s": counter.get_total_flops() / 1e9 / seconds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(IMAGE_PX), default="tiny")
    parser.add_argument("--rows", type=int, default=4, help="pictures, four examples each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.size, options.rows)
    print(json.dumps(found))
    if options.json:
        return
    table = Table(f"{options.size}, {found['examples']} examples", "predicted", "measured", "predicted / measured")
    for name in ("parameters", "GFLOP", "GB that an update adds"):
        predicted, measured = found[name]
        table.add_row(name, f"{predicted:,.3f}", f"{measured:,.3f}", f"{predicted / measured:.2f}")
    table.caption = f"{found['seconds']:.2f} s, {found['GFLOP/s']:.0f} GFLOP/s with {found['threads']} threads"
    Console().print(table)


if __name__ == "__main__":
    main()
