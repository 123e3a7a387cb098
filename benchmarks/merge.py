"""Measure merging against mergekit 0.1.5 and a plain copy: time, processor time, anonymous memory, precision.

    python benchmarks/merge.py                      # 0.25B parameters, float32: a few minutes and 8 GB of disk
    python benchmarks/merge.py --parameters 2e6     # seconds; shows that everything runs, its ratios mean nothing
    python benchmarks/merge.py --large              # also four models of 2B parameters, bfloat16: 20 GB of disk
    python benchmarks/merge.py --by cpu_seconds     # compares processor seconds: for a machine that others use too
    python benchmarks/merge.py --models runs/models # keeps the models there, and uses those that are there
    python benchmarks/merge.py --cold               # also from a cold disk; only root of a Linux machine can

mergekit is installed once, from the package index, into an environment of its own under --cache; set SOUPS_MERGEKIT to
the python of an environment that has it to use that one. Without it, its rows are left out and a line says why.

--sweep-runs 2 runs mergekit twice for its sweep instead of 11 times, and counts the other runs as their mean.

Every job is a process of its own, measured from its start to its end, imports and sync to disk included. Jobs to
compare run in turn, --repeats times, with a warm page cache; the median is printed, the range stored; what takes more
than a minute runs once. Memory is the peak of RssAnon, summed over the process and its children, sampled every 5 ms:
pages of mapped files are not in it. "soups linear, new files" knows no digest yet, the other jobs of soups do.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

MERGEKIT = "mergekit==0.1.5"
NUM_POINTS = 11
WEIGHTS = (0.3, 0.7)
SAMPLE_SECONDS = 0.005
ONCE_SECONDS = 60.0  # a job that takes longer is not repeated
NOISE = 1 << 22  # entries of noise that all tensors are cut from


# --- models: the layout of Llama, which mergekit knows best -----------------------------------------------------------


def sizes(num_parameters: float) -> dict[str, int]:
    """Return the settings of a Llama of about this size."""
    width = 64 if num_parameters < 1e7 else 1024 if num_parameters < 1e9 else 2048
    vocab = 32000 if width > 64 else 1000
    per_layer = 4 * width**2 + 3 * width * (width * 11 // 4)
    layers = max(1, round((num_parameters - 2 * vocab * width) / per_layer))
    return {"width": width, "vocab": vocab, "layers": layers, "inner": width * 11 // 4}


def shapes(size: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the model."""
    width, inner = size["width"], size["inner"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (size["vocab"], width),
        "lm_head.weight": (size["vocab"], width),
        "model.norm.weight": (width,),
    }
    for layer in range(size["layers"]):
        root = f"model.layers.{layer}"
        found |= {f"{root}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        found |= {f"{root}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        found |= {f"{root}.mlp.down_proj.weight": (width, inner)}
        found |= {f"{root}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return found


def save_models(folder: Path, num_parameters: float, count: int, dtype: str) -> list[Path]:
    """Write a base and its fine-tunings, each once, unless they are there; return their folders."""
    import torch
    from safetensors.torch import save_file

    size = sizes(num_parameters)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size["width"],
        "intermediate_size": size["inner"],
        "num_attention_heads": size["width"] // 64,
        "num_hidden_layers": size["layers"],
        "num_key_value_heads": size["width"] // 64,
        "vocab_size": size["vocab"],
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0))

    def drawn(shape: tuple[int, ...], seed: int, scale: float) -> torch.Tensor:
        entries = torch.empty(math.prod(shape))
        start, done = 7919 * seed % NOISE, 0
        while done < len(entries):
            part = noise[start : start + len(entries) - done]
            torch.mul(part, scale, out=entries[done : done + len(part)])
            start, done = 0, done + len(part)
        return entries.view(shape)

    paths = []
    for index in range(count):
        path = folder / f"{num_parameters / 1e6:g}M_{dtype}" / f"m{index}"
        paths.append(path)
        if (path / "config.json").exists():
            continue
        path.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for number, (name, shape) in enumerate(shapes(size).items()):
            tensor = drawn(shape, number, 0.02)
            if index:
                tensor += drawn(shape, 1000 * index + number, 0.001)
            tensors[name] = tensor.to(getattr(torch, dtype))
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))
    return paths


# --- measuring --------------------------------------------------------------------------------------------------------


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process and its descendants; 0 where /proc does not tell."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total = int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return total
    return total + sum(anonymous_bytes(int(child)) for child in children)


def run(command: Sequence[str], log: Path, cache: Path | None = None) -> dict[str, float]:
    """Run a command to its end; return wall and processor seconds and the peak of anonymous memory.

    Raises:
        RuntimeError: it failed; the end of what it printed is in the message.
    """
    environment = os.environ | ({"XDG_CACHE_HOME": str(cache)} if cache else {})
    peak, start = 0, time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        result: list[Any] = []

        def wait() -> None:
            result.extend(os.wait4(process.pid, 0))
            result.append(time.perf_counter())

        waiter = threading.Thread(target=wait)
        waiter.start()
        while waiter.is_alive():
            peak = max(peak, anonymous_bytes(process.pid))
            waiter.join(SAMPLE_SECONDS)
    _, status, usage, end = result
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return {"seconds": end - start, "cpu_seconds": usage.ru_utime + usage.ru_stime, "megabytes": peak / 1e6}


Job = Callable[[], dict[str, float]]


def in_turn(jobs: Mapping[str, Job], repeats: int) -> dict[str, dict[str, Any]]:
    """Run all jobs, one after the other, several times; return the median and the range of every number."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for number in range(repeats):
        for name, job in jobs.items():
            if number and seen[name][0]["seconds"] > ONCE_SECONDS:
                continue
            seen[name].append(job())
            print(f"  {name} {number + 1}/{repeats}: {seen[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    summary: dict[str, dict[str, Any]] = {}
    for name, rows in seen.items():
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        summary[name] = {key: statistics.median(values) for key, values in columns.items()}
        summary[name]["range"] = {key: [min(values), max(values)] for key, values in columns.items()}
    return summary


# --- jobs -------------------------------------------------------------------------------------------------------------


def copy_job(models: Sequence[Path], out: Path, log: Path) -> Job:
    """Return the plain copy of the bytes that a merge moves: read every model, write one, sync it."""
    target = out / "model.safetensors"
    others = " ".join(f'"{model}/model.safetensors"' for model in models[1:])
    text = f'cat {others} > /dev/null && cp "{models[0]}/model.safetensors" "{target}" && sync "{target}"'

    def job() -> dict[str, float]:
        fresh(out, make=True)
        return run(["sh", "-c", text], log)

    return job


DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def cold(job: Job) -> Job:
    """Return the job begun with no file in memory."""

    def begun_cold() -> dict[str, float]:
        os.sync()
        DROP_CACHES.write_text("3")
        return job()

    return begun_cold


def soups_job(args: Sequence[str], out: Path, log: Path, *, knows_digests: bool = True) -> Job:
    """Return a merge by our command line, with the digests of earlier jobs or without any."""
    cache = log.parent / ("cache" if knows_digests else "empty")

    def job() -> dict[str, float]:
        fresh(out)
        if not knows_digests:
            shutil.rmtree(cache, ignore_errors=True)
        return run([sys.executable, "-m", "soups", "merge", *args, "-o", str(out)], log, cache)

    return job


def mergekit_job(python: str, recipe: Mapping[str, Any], out: Path, log: Path) -> Job:
    """Return the same merge by mergekit's program for folders of transformers; JSON is YAML."""
    path = out.parent / f"{out.name}.yaml"
    code = "from mergekit.scripts.run_yaml import main; main()"

    def job() -> dict[str, float]:
        fresh(out)
        path.write_text(json.dumps(recipe))
        return run([python, "-c", code, str(path), str(out), "--no-copy-tokenizer"], log)

    return job


def warm(models: Sequence[Path]) -> None:
    """Read the models once, so that no job finds a colder disk than the others."""
    for model in models:
        with (model / "model.safetensors").open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def fresh(out: Path, *, make: bool = False) -> None:
    """Remove an earlier result, and let the disk finish before the clock starts."""
    shutil.rmtree(out, ignore_errors=True)
    if make:
        out.mkdir()
    os.sync()


def mergekit_recipe(method: str, models: Sequence[Path], weights: Sequence[float], **more: Any) -> dict[str, Any]:
    """Return a recipe of mergekit."""
    listed = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, weights, strict=True)]
    return {"merge_method": method, "models": listed, "dtype": "float32", **more}


class NullEvaluator:
    """A live model that is never run: what is left is the time of the engine."""

    def __init__(self, checkpoint_path: Path) -> None:
        from soups.state import open_checkpoint

        self._state = open_checkpoint(checkpoint_path).load()

    def state(self) -> dict[str, Any]:
        """Return the live tensors."""
        return self._state


def sweep(models: Sequence[Path]) -> None:
    """Write all points of a sweep into one live model; print the time of each."""
    from soups.engine.live import LiveSoup
    from soups.methods import get_method
    from soups.points import segment
    from soups.state import open_checkpoint
    from soups.sweep import Sweep

    start = time.perf_counter()
    checkpoints = [open_checkpoint(model) for model in models]
    soup = LiveSoup(Sweep(checkpoints, get_method("linear"), "none:none"), NullEvaluator(models[0]).state())
    load_seconds = time.perf_counter() - start
    points: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    for point in segment(NUM_POINTS):
        start, cpu_start = time.perf_counter(), time.process_time()
        soup.write(point)
        points["seconds"].append(time.perf_counter() - start)
        points["cpu_seconds"].append(time.process_time() - cpu_start)
    print(json.dumps({"load_seconds": load_seconds, "points": points}))


def sweep_job(models: Sequence[Path], log: Path) -> Job:
    """Return an in-memory sweep; the time of a point, without the end points, is added to its numbers."""

    def job() -> dict[str, float]:
        found = run([sys.executable, __file__, "--sweep", *map(str, models)], log, log.parent / "cache")
        printed = json.loads(log.read_text().splitlines()[-1])
        found["load_seconds"] = printed["load_seconds"]
        for clock, values in printed["points"].items():
            found[f"{clock}_per_point"] = statistics.median(values[1:-1])
        return found

    return job


# --- precision --------------------------------------------------------------------------------------------------------


def largest_error(models: Sequence[Path], weights: Sequence[float], out: Path) -> float:
    """Return the largest distance of a linear merge to the float64 sum, over the largest entry."""
    from contextlib import ExitStack

    from soups.state import open_checkpoint

    error, largest = 0.0, 0.0
    with ExitStack() as stack:
        readers = [stack.enter_context(open_checkpoint(path).reader()) for path in (*models, out)]
        for name in open_checkpoint(out).infos:
            *inputs, found = [read(name).double() for read in readers]
            expected = sum(tensor * weight for tensor, weight in zip(inputs[1:], weights[1:], strict=True))
            expected = expected + inputs[0] * weights[0]
            error = max(error, float((found - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    return error / largest


# --- mergekit, and the report -----------------------------------------------------------------------------------------


def find_mergekit(cache: Path) -> tuple[str | None, str]:
    """Return the python of an environment with mergekit, installed now if needed, or None and the reason."""
    given = os.environ.get("SOUPS_MERGEKIT")
    folder = cache / MERGEKIT.replace("==", "-")
    python = given or str(folder / "bin" / "python")
    check = [python, "-c", "import mergekit.scripts.run_yaml"]
    if Path(python).exists() and subprocess.run(check, capture_output=True, check=False).returncode == 0:
        return python, ""
    if given:
        return None, f"{given} cannot import mergekit"
    print(f"  installing {MERGEKIT} into {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    done = subprocess.run([python, "-m", "pip", "install", "-q", MERGEKIT], capture_output=True, text=True, check=False)
    if done.returncode == 0 and subprocess.run(check, capture_output=True, check=False).returncode == 0:
        return python, ""
    return None, (done.stderr.strip().splitlines() or ["it installs, but cannot be imported"])[-1]


def machine(folder: Path) -> dict[str, Any]:
    """Describe what the numbers were measured on."""

    def says(*command: str) -> str:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": says("git", "rev-parse", "--short", "HEAD"),
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": round(os.getloadavg()[0], 1),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "file_system": says("stat", "-f", "-c", "%T", str(folder)),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = ["| job | wall s | processor s | peak anonymous MB |", "|---|---:|---:|---:|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} | {row['megabytes']:.0f} |")
    return "\n".join(lines)


def targets(rows: Mapping[str, Mapping[str, Any]], error: float, clock: str) -> list[tuple[str, float, float]]:
    """Return (what, found, limit) for what this engine promises; what was not measured is left out."""

    def seconds(name: str) -> float | None:
        return rows[name][clock] if name in rows else None

    def ratio(name: str, other: str) -> float | None:
        found, reference = seconds(name), seconds(other)
        return None if found is None or reference is None else found / reference

    found = [
        (f"linear, {clock} over plain copy", ratio("soups linear", "plain copy"), 1.5),
        (f"linear, new files, {clock} over plain copy", ratio("soups linear, new files", "plain copy"), 1.5),
        (
            f"linear, new files on a cold disk, {clock} over plain copy",
            ratio("soups linear, new files, cold", "plain copy, cold"),
            1.5,
        ),
        (f"linear, new files, {clock} over mergekit", ratio("soups linear, new files", "mergekit linear"), 1 / 3),
        ("linear, new files, peak anonymous MB", rows["soups linear, new files"]["megabytes"], 300.0),
        ("linear, error relative to float64", error, 1e-6),
        (f"TIES, {clock} over mergekit", ratio("soups ties", "mergekit ties"), 1 / 2),
        (f"sweep, {clock} per point", rows["soups sweep"][f"{clock}_per_point"], 1.5),
        (f"sweep, {clock} over {NUM_POINTS} mergekit runs", ratio("soups sweep", "mergekit sweep"), 1 / 8),
    ]
    if "soups large" in rows:
        found.append(("large, peak anonymous MB", rows["soups large"]["megabytes"], 1000.0))
    return [(what, value, limit) for what, value, limit in found if value is not None]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything; return what was found."""
    log = folder / "log.txt"
    about = machine(folder)
    python, reason = find_mergekit(options.cache)
    kept = options.models or folder / "models"
    base, *models = save_models(kept, options.parameters, 3, "float32")
    warm([base, *models])
    spelled, out = ",".join(map(str, WEIGHTS)), folder / "out"
    linear = [*map(str, models), "--weights", spelled]
    jobs: dict[str, Job] = {
        "plain copy": copy_job(models, out, log),
        "soups linear, new files": soups_job(linear, folder / "linear", log, knows_digests=False),
        "soups linear": soups_job(linear, folder / "linear", log),
        "soups ties": soups_job(
            [*map(str, models), "--method", "ties", "--base", str(base), "--param", "density=0.5"], folder / "ties", log
        ),
        "soups sweep": sweep_job(models, log),
    }
    if python is not None:
        ties = {"base_model": str(base), "parameters": {"density": 0.5}}
        recipe = mergekit_recipe("linear", models, WEIGHTS)
        jobs["mergekit linear"] = mergekit_job(python, recipe, folder / "mergekit_linear", log)
        recipe = mergekit_recipe("ties", models, (0.5, 0.5), **ties)
        jobs["mergekit ties"] = mergekit_job(python, recipe, folder / "mergekit_ties", log)
    soups_job(linear, folder / "linear", log)()  # from here on the digests are known
    rows = in_turn(jobs, options.repeats)
    if options.cold:
        names = ("plain copy", "soups linear, new files")
        rows |= in_turn({f"{name}, cold": cold(jobs[name]) for name in names}, options.repeats)
    if python is not None:
        each = []
        for index in range(min(options.sweep_runs, NUM_POINTS)):
            point = ((index + 0.5) / NUM_POINTS, 1 - (index + 0.5) / NUM_POINTS)
            each.append(mergekit_job(python, mergekit_recipe("linear", models, point), folder / "point", log)())
        sums = {key: NUM_POINTS * statistics.mean(row[key] for row in each) for key in ("seconds", "cpu_seconds")}
        rows["mergekit sweep"] = sums | {"megabytes": max(row["megabytes"] for row in each)}
    error = largest_error(models, WEIGHTS, folder / "linear")
    if options.large:
        shutil.rmtree(folder / "models", ignore_errors=True)
        large = save_models(kept, 2e9, 4, "bfloat16")
        rows |= in_turn({"soups large": soups_job([str(model) for model in large], folder / "large", log)}, 1)
    found = targets(rows, error, options.by)
    return {
        "machine": about,
        "parameters": options.parameters,
        "repeats": options.repeats,
        "sweep_runs": options.sweep_runs,
        "mergekit": MERGEKIT if python else f"left out: {reason}",
        "rows": rows,
        "targets": [{"what": w, "found": f, "limit": limit, "met": f <= limit} for w, f, limit in found],
    }


def main() -> None:
    """Run the benchmark, or, in a process that it started, one sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=2.5e8, help="of the models; default 0.25B")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--by", choices=("seconds", "cpu_seconds"), default="seconds", help="the clock of the targets")
    parser.add_argument("--sweep-runs", type=int, default=NUM_POINTS, help="of mergekit, for its sweep")
    parser.add_argument("--large", action="store_true", help="also merge four models of 2B parameters")
    parser.add_argument("--cold", action="store_true", help="also copy and merge what no memory holds; needs root")
    parser.add_argument("--folder", type=Path, help="where to put the results; default: the temporary folder")
    parser.add_argument("--models", type=Path, help="keep the models here; default: with the results, and removed")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "soups-benchmark"
    parser.add_argument("--cache", type=Path, default=home, help="where mergekit is installed")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    parser.add_argument("--sweep", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sweep:
        sweep(options.sweep)
        return
    if options.cold and not os.access(DROP_CACHES, os.W_OK):
        parser.error(f"--cold: {DROP_CACHES} cannot be written here")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="soups-benchmark-") as folder:
        found = measure(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()), end="\n\n")
    print(f"{found['parameters']:g} parameters; mergekit: {found['mergekit']}\n\n{table(found['rows'])}\n")
    for row in found["targets"]:
        print(f"{'met   ' if row['met'] else 'MISSED'} {row['what']}: {row['found']:.3g}, limit {row['limit']:.3g}")


if __name__ == "__main__":
    main()
