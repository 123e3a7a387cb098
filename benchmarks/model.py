"""Measure the model against a plain implementation of its specification, and its text part against BART-base.

    python benchmarks/model.py                  # base size, batch 4, 480 px, two threads: about five minutes
    python benchmarks/model.py --size tiny      # under two minutes; shows that everything runs, its ratios mean nothing

All weights are random and the same on both sides, so outputs are compared as well. Both sides of a comparison run in
turn within one process, so that a disturbance hits both; the minimum of the repeats is compared. Peak memory is that of
a process of its own.
"""

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from plain import Plain, weights
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from unival.checkpoint import load_model, quiet_transformers, save_model
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.model.tokenizer import train_tokenizer

BEAMS, TARGET_LENGTH, PROMPT_LENGTH = 5, 16, 12
# Sizes of a Transformer, which BART has too.
BASE = {"d_model": 768, **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
        (("layers", 6), ("ffn_dim", 3072), ("attention_heads", 12))}}  # fmt: skip
TINY = {"d_model": 32, **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
        (("layers", 2), ("ffn_dim", 64), ("attention_heads", 2))}}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "base": {
        "batch": 4,
        "pixels": 480,
        "model": {
            **BASE,
            "vocab_size": 59457,
            "num_codes": 8192,
            "num_bins": 1000,
            "max_text_positions": 1024,
            "text_bucket_size": 256,
            "image_bucket_size": 42,
            "code_image_size": 128,
            "image_encoder": {"name": "resnet101"},
            "video_encoder": {},
        },
        "bart": BASE,
    },
    "tiny": {
        "batch": 2,
        "pixels": 64,
        "model": {
            **TINY,
            "vocab_size": 500,
            "image_encoder": {"name": "resnet50", "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_width": 8},
        },
        "bart": {**TINY, "vocab_size": 500},
    },
}
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


class Setup:
    """Models and inputs of one size; the plain side has its own copy of the weights."""

    def __init__(self, size: str) -> None:
        sizes = SIZES[size]
        torch.manual_seed(0)
        with quiet_transformers():
            self.model = UnivalForConditionalGeneration(UnivalConfig(**sizes["model"])).eval()
            spread(self.model)
        self.config = self.model.config
        self.plain = Plain(weights(self.model.state_dict(keep_vars=True)), self.config)
        self.pixels = torch.rand(sizes["batch"], 3, sizes["pixels"], sizes["pixels"]) * 2 - 1
        rows = sizes["batch"]
        self.ids = torch.randint(4, 400, (rows, PROMPT_LENGTH))
        self.prefix = torch.cat([torch.zeros(rows, 1, dtype=torch.long), self.ids.repeat(1, 2)], 1)[:, :TARGET_LENGTH]
        self.labels = self.prefix.roll(-1, 1)
        self.grid = (sizes["pixels"] // 32, sizes["pixels"] // 32)

    @torch.inference_mode()
    def stages(self) -> dict[str, Callable[[], Any]]:
        """Return the stages of our side, by name; each starts from what the one before it returned."""
        model = self.model
        media = model.encoder.encode_media(self.pixels)
        encoded = model.encoder(self.ids, media_tokens=media)
        return {
            "backbone": lambda: model.encoder.encode_media(self.pixels),
            "encoder": lambda: model.encoder(self.ids, media_tokens=media),
            "decoder, one pass": lambda: model(decoder_input_ids=self.prefix, encoder_outputs=encoded).logits,
            "decoder, beams": lambda: fixed_search(model, TARGET_LENGTH, encoder_outputs=encoded),
        }

    @torch.inference_mode()
    def plain_stages(self) -> dict[str, Callable[[], Any]]:
        """Return the same stages of the plain side."""
        plain = self.plain
        features = plain.backbone(self.pixels)
        encoded = plain.encode(self.ids, features, self.grid)
        return {
            "backbone": lambda: plain.backbone(self.pixels),
            "encoder": lambda: plain.encode(self.ids, features, self.grid),
            "decoder, one pass": lambda: plain.decode(self.prefix, encoded),
            "decoder, beams": lambda: plain.beam_search(encoded, BEAMS, TARGET_LENGTH),
        }


@torch.no_grad()
def spread(model: UnivalForConditionalGeneration) -> None:
    """Give all embeddings the scale of a trained model, so that hypotheses differ and searches can be compared."""
    model.encoder.embed_tokens.weight.normal_(0.0, model.config.d_model**-0.5)
    model.encoder.embed_tokens.weight[model.config.pad_token_id] = 0.0


def fixed_search(model: Any, length: int, **inputs: Any) -> Tensor:
    """Run beam search of `transformers` to exactly `length` tokens."""
    options = {"num_beams": BEAMS, "do_sample": False, "min_new_tokens": length, "max_new_tokens": length}
    return model.generate(**inputs, **options, forced_eos_token_id=None, forced_bos_token_id=None)[:, 1:]


class Training:
    """Forward, backward and update of one side."""

    def __init__(self, setup: Setup, is_plain: bool) -> None:
        self.setup, self.is_plain = setup, is_plain
        if is_plain:
            setup.plain.training = True
        else:
            setup.model.train()
        parameters = setup.plain.w.values() if is_plain else setup.model.parameters()
        unique = {id(p): p for p in parameters if p.requires_grad}
        self.optimizer = torch.optim.AdamW(unique.values(), lr=1e-5, fused=None if is_plain else True)

    def __call__(self) -> Tensor:
        """Make one update; return the loss."""
        ids, pixels, prefix = self.setup.ids, self.setup.pixels, self.setup.prefix
        if self.is_plain:
            logits = self.setup.plain.forward(ids, pixels, prefix)
        else:
            logits = self.setup.model(input_ids=ids, pixel_values=pixels, decoder_input_ids=prefix).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), self.setup.labels.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


in_bf16 = torch.autocast("cpu", dtype=torch.bfloat16)  # a decorator
Times = dict[str, dict[str, float]]


def interleaved(sides: Mapping[str, Callable[[], Any]], repeats: int) -> tuple[Times, dict[str, Any]]:
    """Time functions in turn, after one run of each that does not count.

    Returns:
        Minimum and median seconds of each, and what the first run of each returned.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    first = {name: function() for name, function in sides.items()}
    for _ in range(repeats):
        for name, function in sides.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    times = {name: {"min": min(values), "median": statistics.median(values)} for name, values in seconds.items()}
    return times, first


def comparison(name: str, times: Mapping[str, Mapping[str, float]], base: str = "plain") -> dict[str, Any]:
    """Return a row: seconds (or bytes) of both sides and how many times less ours needs."""
    ratio = times[base]["min"] / times["ours"]["min"]
    return {"name": name, "base": base, "times": times, "ratio": ratio, "target": TARGETS.get(name)}


def summed(times: Times, side: str, parts: Sequence[str]) -> dict[str, float]:
    """Add up stages of one side."""
    return {kind: sum(times[f"{side}: {part}"][kind] for part in parts) for kind in ("min", "median")}


@torch.inference_mode()
def inference(setup: Setup, repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Measure every stage of forward and search on both sides; return rows, stages, and how well the sides agree."""
    sides = {"plain": setup.plain_stages(), "ours": setup.stages()}
    if has_bf16_units():
        sides["ours, bf16"] = {name: in_bf16(stage) for name, stage in setup.stages().items()}
    parts = list(sides["plain"])
    times, first = interleaved({f"{side}: {part}": sides[side][part] for part in parts for side in sides}, repeats)
    rows = []
    for name, stages in STAGES.items():
        plain = summed(times, "plain", stages)
        rows.append(comparison(name, {"plain": plain, "ours": summed(times, "ours", stages)}))
        if "ours, bf16" in sides:
            rows.append(comparison(f"{name}, bf16", {"plain": plain, "ours": summed(times, "ours, bf16", stages)}))
    plain, ours = first["plain: decoder, one pass"], first["ours: decoder, one pass"]
    agreement = {
        "largest logit": float(plain.abs().max()),
        "largest difference": float((ours - plain).abs().max()),
        "same hypotheses": bool(torch.equal(first["ours: decoder, beams"], first["plain: decoder, beams"])),
    }
    return rows, {part: {side: times[f"{side}: {part}"]["min"] for side in sides} for part in parts}, agreement


@torch.inference_mode()
def decoding_step(setup: Setup, options: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Compare one more step of beam search with one of BART's: the time of 17 tokens less that of one, over 16."""
    with quiet_transformers():
        bart = BartForConditionalGeneration(BartConfig(**options)).eval()
    encoded = setup.model.encoder(setup.ids, pixel_values=setup.pixels)
    states = BaseModelOutput(last_hidden_state=encoded.last_hidden_state)
    sides = {"ours": (setup.model, encoded), "BART": (bart, states)}
    searches = {
        f"{side}, {length}": partial(fixed_search, model, length, encoder_outputs=outputs)
        for length in (17, 1)
        for side, (model, outputs) in sides.items()
    }
    times, _ = interleaved(searches, repeats)
    step = {side: {"min": (times[f"{side}, 17"]["min"] - times[f"{side}, 1"]["min"]) / 16} for side in sides}
    return comparison("decoding step, against BART", step, "BART")


def training(setup: Setup, size: str, repeats: int, threads: int) -> tuple[list[dict[str, Any]], list[float]]:
    """Measure training steps and their memory; return rows and the first loss of each side."""
    sides = {"plain": Training(setup, True), "ours": Training(setup, False)}
    times, losses = interleaved(sides, repeats)
    rows = [comparison("training step", times)]
    if has_bf16_units():
        more, _ = interleaved({"ours": in_bf16(sides["ours"])}, repeats)
        rows.append(comparison("training step, bf16", {"plain": times["plain"], **more}))
    memory = {side: {"min": in_process(side, size, threads)["peak"]} for side in ("plain", "ours")}
    rows.append(comparison("training step, peak memory", memory))
    return rows, [float(loss) for loss in losses.values()]


def worker(task: str, argument: str) -> None:
    """Do one thing in this process and print what it took, in seconds and bytes: `load` a folder, or train a side."""
    if task == "load":
        before = resident()
        model, _ = load_model(argument)
        stored = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
        for tensor in stored.values():  # what is mapped from the file becomes memory when it is read
            tensor.sum()
        growth, size = peak() - before, sum(tensor.nbytes for tensor in stored.values())
        del model, stored
        start = time.perf_counter()
        load_model(argument)
        print(json.dumps({"seconds": time.perf_counter() - start, "growth": growth, "size": size}))
        return
    setup = Setup(argument)
    step = Training(setup, task == "plain")
    if task == "plain":
        setup.model.to("meta")
    else:
        setup.plain.w = {}
    step()
    step()
    print(json.dumps({"peak": peak()}))


def peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """Return the resident memory of this process, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def in_process(task: str, argument: str, threads: int) -> dict[str, Any]:
    """Run `worker` in a process of its own; return what it measured."""
    command = [sys.executable, __file__, "--worker", task, argument, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def loading(setup: Setup, threads: int) -> dict[str, float]:
    """Measure a second load of a folder, and memory of a first one as a multiple of the tensors' size."""
    tokenizer = train_tokenizer(["what does the image describe?"], num_words=260, num_codes=4, num_bins=4)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", setup.model, UnivalProcessor(tokenizer, num_bins=4))
        found = in_process("load", str(Path(folder) / "model"), threads)
    return {"seconds": found["seconds"], "memory": found["growth"] / found["size"]}


def has_bf16_units() -> bool:
    """Say whether this processor multiplies bf16 matrices in hardware; without, bf16 is slower than fp32."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)() or torch.cpu._is_avx512_bf16_supported())


def measure(size: str, repeats: int, threads: int) -> dict[str, Any]:
    """Return everything as one JSON object."""
    torch.set_num_threads(threads)
    setup = Setup(size)
    with quiet_transformers():
        rows, stages, agreement = inference(setup, repeats)
        rows.append(decoding_step(setup, SIZES[size]["bart"], repeats))
    loaded = loading(setup, threads)
    more, losses = training(setup, size, repeats, threads)
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
        cells = [f"{row['times'][side]['min'] / scale:.3f} {unit}" for side in (row["base"], "ours")]
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
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        torch.set_num_threads(options.threads)
        worker(*options.worker)
        return
    found = measure(options.size, options.repeats, options.threads)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main()
