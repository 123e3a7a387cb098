"""Measure the model against a plain implementation of its specification, and its text part against BART-base.

    python benchmarks/model.py                  # base size, batch 4, 480 px, two threads: about eight minutes
    python benchmarks/model.py --size tiny      # under two minutes; shows that everything runs, its ratios mean nothing

All weights are random and the same on both sides, so outputs are compared as well. Each side has a process of its own
(`sides.py`); in prediction they run in turn, so that a disturbance hits both. Medians of the repeats are compared: how
long the plain side waits for fresh memory varies by a fifth from run to run.
"""

import argparse
import datetime
import json
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sides import SIZES, Remote, has_bf16_units, loading, write_model

TARGETS = {
    "forward": 1.3,
    "forward, bf16": 3.5,
    "beam search": 1.8,
    "beam search, bf16": 4.0,
    "training step": 1.3,
    "training step, bf16": 3.0,
    "training step, peak memory": 1.0,
    "decoding step, against BART": 1 / 1.3,
}
# What a forward pass and a search consist of; their times are the sums.
STAGES = {
    "forward": ("backbone", "encoder", "decoder, one pass"),
    "beam search": ("backbone", "encoder", "decoder, beams"),
}
Times = dict[str, dict[str, float]]
Part = Callable[[], tuple[float, Any]]


def interleaved(parts: Mapping[str, Part], repeats: int) -> tuple[Times, dict[str, Any]]:
    """Run parts in turn, after one run of each that does not count.

    Returns:
        Minimum and median seconds of each, and what the first run of each returned.
    """
    first = {name: part()[1] for name, part in parts.items()}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            seconds[name].append(part()[0])
    return {name: {"min": min(values), "median": statistics.median(values)} for name, values in seconds.items()}, first


def comparison(name: str, times: Mapping[str, Mapping[str, float]], base: str = "plain") -> dict[str, Any]:
    """Return a row: seconds (or bytes) of both sides and how many times less ours needs."""
    ratio = times[base]["median"] / times["ours"]["median"]
    return {"name": name, "base": base, "times": times, "ratio": ratio, "target": TARGETS.get(name)}


def summed(times: Times, side: str, parts: Sequence[str], suffix: str = "") -> dict[str, float]:
    """Add up stages of one side."""
    return {kind: sum(times[f"{side}: {part}{suffix}"][kind] for part in parts) for kind in ("min", "median")}


def inference(size: str, folder: Path, threads: int, repeats: int) -> tuple[list[dict[str, Any]], Any, dict[str, Any]]:
    """Measure every stage of forward and search on both sides; return rows, stages, and how well the sides agree."""
    sides = {name: Remote(name, size, folder, threads) for name in ("plain", "ours", "BART")}
    parts: dict[str, Part] = {
        f"{side}: {part}": partial(remote, part)
        for part in sides["ours"].parts
        for side, remote in sides.items()
        if part in remote.parts
    }
    times, first = interleaved(parts, repeats)
    for remote in sides.values():
        remote.close()
    rows = []
    for name, stages in STAGES.items():
        plain = summed(times, "plain", stages)
        rows.append(comparison(name, {"plain": plain, "ours": summed(times, "ours", stages)}))
        if has_bf16_units():
            ours = summed(times, "ours", stages, ", bf16")
            rows.append(comparison(f"{name}, bf16", {"plain": plain, "ours": ours}))
    # One more step of a search: the time of 17 tokens less that of one, over 16.
    step = {
        side: {
            kind: (times[f"{side}: search, 17"][kind] - times[f"{side}: search, 1"][kind]) / 16
            for kind in ("min", "median")
        }
        for side in ("ours", "BART")
    }
    rows.append(comparison("decoding step, against BART", step, "BART"))
    plain, ours = first["plain: decoder, one pass"], first["ours: decoder, one pass"]
    agreement = {
        "largest logit": float(np.abs(plain).max()),
        "largest difference": float(np.abs(ours - plain).max()),
        "same hypotheses": bool(np.array_equal(first["ours: decoder, beams"], first["plain: decoder, beams"])),
    }
    names = list(dict.fromkeys(part for stages in STAGES.values() for part in stages))
    shown = {part: {side: times[f"{side}: {part}"]["median"] for side in ("plain", "ours")} for part in names}
    return rows, shown, agreement


def training(size: str, folder: Path, threads: int, repeats: int) -> tuple[list[dict[str, Any]], list[float]]:
    """Measure training steps and their memory, one side after the other as each needs much; return rows and losses."""
    times: Times = {}
    memory, losses = {}, []
    for side, name in (("plain", "plain training"), ("ours", "our training")):
        remote = Remote(name, size, folder, threads)
        found, first = interleaved({part: partial(remote, part) for part in remote.parts}, repeats)
        memory[side] = {"median": remote.close()}
        times |= {f"{side}: {part}": value for part, value in found.items()}
        losses.append(first["training step"])
    rows = [
        comparison(part, {"plain": times["plain: training step"], "ours": times[f"ours: {part}"]})
        for part in ("training step", "training step, bf16")
        if f"ours: {part}" in times
    ]
    return [*rows, comparison("training step, peak memory", memory)], losses


def measure(size: str, repeats: int, threads: int) -> dict[str, Any]:
    """Return everything as one JSON object."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_model(size, folder)
        rows, stages, agreement = inference(size, folder, threads, repeats)
        loaded = loading(folder, threads)
        more, losses = training(size, folder, threads, repeats)
    return {
        "size": size,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "threads": threads,
        "repeats": repeats,
        "bf16": "measured" if has_bf16_units() else "not measured: this processor has no bf16 matrix units",
        "rows": rows + more,
        "stages": stages,
        "agreement": agreement | {"training losses": losses},
        "loading": loaded,
    }


def machine() -> dict[str, str]:
    """Return what the numbers depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": f"{names[0] if names else platform.processor()}, {len(names)} cores",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def show(found: Mapping[str, Any]) -> None:
    """Print the tables."""
    console = Console()
    info = found["machine"]
    console.print(found["size"], found["date"], info["processor"], info["capability"], f"{found['threads']} threads")
    table = Table("", "compared with", "theirs", "ours", "ratio", "target")
    for row in found["rows"]:
        unit, scale = ("GB", 1e9) if "memory" in row["name"] else ("s", 1.0)
        cells = [f"{row['times'][side]['median'] / scale:.3f} {unit}" for side in (row["base"], "ours")]
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        table.add_row(row["name"], row["base"], *cells, f"{row['ratio']:.2f}", target)
    console.print(table)
    table = Table("stage", "plain", "ours", "ratio", "share of our forward", "share of our search")
    ours = {name: part["ours"] for name, part in found["stages"].items()}
    for name, part in found["stages"].items():
        shares = [ours[name] / sum(ours[n] for n in names) if name in names else None for names in STAGES.values()]
        cells = ["" if share is None else f"{share:.0%}" for share in shares]
        ratio = f"{part['plain'] / part['ours']:.2f}"
        table.add_row(name, f"{part['plain']:.3f} s", f"{part['ours']:.3f} s", ratio, *cells)
    console.print(table)
    console.print(f"bf16: {found['bf16']}")
    console.print(f"agreement: {found['agreement']}")
    console.print("loading: {seconds:.2f} s, {memory:.2f} times the size of the tensors".format(**found["loading"]))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    found = measure(options.size, options.repeats, options.threads)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main()
