"""Measure the model against a plain implementation of its specification, and its text part against BART-base.

    python benchmarks/model.py                  # base size, batch 4, 480 px, two threads: about ten minutes
    python benchmarks/model.py --size tiny      # seconds; shows that everything runs, its ratios mean nothing

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
from collections.abc import Callable, Mapping
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
    "beam search": 1.8,
    "training step": 1.3,
    "training step, peak memory": 1.0,
    "decoding step, against BART": 1 / 1.3,
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

    def forward(self) -> Tensor:
        """Return logits of our model."""
        return self.model(input_ids=self.ids, pixel_values=self.pixels, decoder_input_ids=self.prefix).logits

    def plain_forward(self) -> Tensor:
        """Return logits of the plain one."""
        return self.plain.forward(self.ids, self.pixels, self.prefix)

    def search(self, length: int = TARGET_LENGTH, **inputs: Any) -> Tensor:
        """Run our beam search to a fixed length; return tokens without `<s>`."""
        return fixed_search(self.model, length, **(inputs or {"input_ids": self.ids, "pixel_values": self.pixels}))

    def plain_search(self) -> Tensor:
        """Run the plain beam search."""
        encoded = self.plain.encode(self.ids, self.plain.backbone(self.pixels), self.grid)
        return self.plain.beam_search(encoded, BEAMS, TARGET_LENGTH)


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
    """Forward, backward and update of one side; the other side's weights are dropped."""

    def __init__(self, setup: Setup, is_plain: bool) -> None:
        self.setup, self.is_plain = setup, is_plain
        setup.plain.training = is_plain
        setup.model.train()
        parameters = list(setup.plain.w.values() if is_plain else setup.model.parameters())
        if is_plain:
            setup.model.to("meta")
        else:
            setup.plain.w = {}
        unique = {id(p): p for p in parameters if p.requires_grad}
        self.optimizer = torch.optim.AdamW(unique.values(), lr=1e-5, fused=None if is_plain else True)

    def __call__(self) -> Tensor:
        """Make one update; return the loss."""
        logits = self.setup.plain_forward() if self.is_plain else self.setup.forward()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.setup.labels.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def interleaved(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Time functions in turn, after one run of each that does not count; return minimum and median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, function in sides.items():
            start = time.perf_counter()
            function()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: {"min": min(values), "median": statistics.median(values)} for name, values in seconds.items()}


def comparison(name: str, times: Mapping[str, Mapping[str, float]], base: str = "plain") -> dict[str, Any]:
    """Return a row: seconds of both sides and how many times faster ours is."""
    return {"name": name, "base": base, "times": times, "ratio": times[base]["min"] / times["ours"]["min"]}


@torch.inference_mode()
def inference(setup: Setup, bart: BartForConditionalGeneration, repeats: int) -> tuple[list[dict[str, Any]], Any]:
    """Measure forward, beam search, decoding step; return rows, and how well the two sides agree."""
    ours, plain = setup.forward(), setup.plain_forward()
    agreement = {
        "largest logit": float(plain.abs().max()),
        "largest difference": float((ours - plain).abs().max()),
        "same hypotheses": bool(torch.equal(setup.search(), setup.plain_search())),
    }
    forward = interleaved({"plain": setup.plain_forward, "ours": setup.forward}, repeats)
    search = interleaved({"plain": setup.plain_search, "ours": setup.search}, repeats)
    encoded = setup.model.encoder(setup.ids, pixel_values=setup.pixels)
    states = BaseModelOutput(last_hidden_state=encoded.last_hidden_state)
    steps = interleaved(
        {
            "ours, 17": lambda: setup.search(TARGET_LENGTH + 1, encoder_outputs=encoded),
            "BART, 17": lambda: fixed_search(bart, TARGET_LENGTH + 1, encoder_outputs=states),
            "ours, 1": lambda: setup.search(1, encoder_outputs=encoded),
            "BART, 1": lambda: fixed_search(bart, 1, encoder_outputs=states),
        },
        repeats,
    )
    step = {}
    for side in ("ours", "BART"):
        long, short = steps[f"{side}, 17"], steps[f"{side}, 1"]
        step[side] = {kind: (long[kind] - short[kind]) / TARGET_LENGTH for kind in long}
    rows = [comparison("forward", forward), comparison("beam search", search)]
    return [*rows, comparison("decoding step, against BART", step, "BART")], agreement


@torch.inference_mode()
def in_bf16(setup: Setup, rows: list[dict[str, Any]], repeats: int) -> list[dict[str, Any]]:
    """Measure our side again in bf16; return rows that compare with the plain float32 times of `rows`."""
    functions = {"forward": setup.forward, "beam search": setup.search}
    more = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for row in [row for row in rows if row["name"] in functions]:
            ours = interleaved({"ours": functions[row["name"]]}, repeats)
            more.append(comparison(f"{row['name']}, bf16", {"plain": row["times"]["plain"]} | ours))
    return more


@torch.inference_mode()
def stages(setup: Setup, repeats: int) -> dict[str, Any]:
    """Measure the parts of forward and beam search on both sides."""
    model, plain = setup.model, setup.plain
    media = model.encoder.encode_media(setup.pixels)
    encoded = model.encoder(setup.ids, media_tokens=media)
    features = plain.backbone(setup.pixels)
    plain_encoded = plain.encode(setup.ids, features, setup.grid)
    times = interleaved(
        {
            "plain backbone": lambda: plain.backbone(setup.pixels),
            "ours backbone": lambda: model.encoder.encode_media(setup.pixels),
            "plain encoder": lambda: plain.encode(setup.ids, features, setup.grid),
            "ours encoder": lambda: model.encoder(setup.ids, media_tokens=media),
            "plain decoder, one pass": lambda: plain.decode(setup.prefix, plain_encoded),
            "ours decoder, one pass": lambda: model(decoder_input_ids=setup.prefix, encoder_outputs=encoded),
            "plain decoder, beams": lambda: plain.beam_search(plain_encoded, BEAMS, TARGET_LENGTH),
            "ours decoder, beams": lambda: setup.search(encoder_outputs=encoded),
        },
        repeats,
    )
    parts = ("backbone", "encoder", "decoder, one pass", "decoder, beams")
    return {part: {side: times[f"{side} {part}"]["min"] for side in ("plain", "ours")} for part in parts}


def worker(task: str, argument: str) -> None:
    """Do one thing in this process and print what it took, in seconds and bytes: `load` a folder, or train a side."""
    if task == "load":
        before, start = resident(), time.perf_counter()
        model, _ = load_model(argument)
        seconds = time.perf_counter() - start
        stored = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
        for tensor in stored.values():  # what is mapped from the file becomes memory when it is read
            tensor.sum()
        size = sum(tensor.nbytes for tensor in stored.values())
        print(json.dumps({"seconds": seconds, "growth": peak() - before, "size": size}))
        return
    step = Training(Setup(argument), task == "plain")
    for _ in range(2):
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
    """Measure a second load of a folder: seconds, and memory as a multiple of the tensors' size."""
    tokenizer = train_tokenizer(["what does the image describe?"], num_words=260, num_codes=4, num_bins=4)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", setup.model, UnivalProcessor(tokenizer, num_bins=4))
        found = [in_process("load", str(Path(folder) / "model"), threads) for _ in range(3)]
    return {
        "seconds": min(f["seconds"] for f in found[1:]),
        "memory": max(f["growth"] for f in found) / found[0]["size"],
    }


def has_bf16_units() -> bool:
    """Say whether this processor multiplies bf16 matrices in hardware; without, bf16 is slower than fp32."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)() or torch.cpu._is_avx512_bf16_supported())


def measure(size: str, repeats: int, threads: int) -> dict[str, Any]:
    """Return everything as one JSON object."""
    torch.set_num_threads(threads)
    setup, options = Setup(size), SIZES[size]["bart"]
    with quiet_transformers():
        bart = BartForConditionalGeneration(BartConfig(**options)).eval()
        rows, agreement = inference(setup, bart, repeats)
        if has_bf16_units():
            rows += in_bf16(setup, rows, repeats)
        parts = stages(setup, repeats)
    del bart
    training = {"plain": Training(Setup(size), True), "ours": Training(Setup(size), False)}
    agreement["training losses"] = [float(step()) for step in training.values()]
    rows.append(comparison("training step", interleaved(training, repeats)))
    del training
    memory = {side: {"min": in_process(side, size, threads)["peak"]} for side in ("plain", "ours")}
    rows.append(comparison("training step, peak memory", memory))
    return {
        "size": size,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "threads": threads,
        "repeats": repeats,
        "bf16": "measured" if has_bf16_units() else "not measured: this processor has no bf16 matrix units",
        "rows": [row | {"target": TARGETS.get(row["name"])} for row in rows],
        "stages": parts,
        "agreement": agreement,
        "loading": loading(setup, threads),
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
    what = (found["size"], found["date"], info["processor"], info["capability"], f"{found['threads']} threads")
    console.print(", ".join(what))
    table = Table("", "compared with", "theirs", "ours", "ratio", "target")
    for row in found["rows"]:
        unit, scale = ("GB", 1e9) if "memory" in row["name"] else ("s", 1.0)
        cells = [f"{row['times'][side]['min'] / scale:.3f} {unit}" for side in (row["base"], "ours")]
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        table.add_row(row["name"], row["base"], *cells, f"{row['ratio']:.2f}", target)
    console.print(table)
    table = Table("stage", "plain", "ours", "ratio")
    for name, part in found["stages"].items():
        table.add_row(name, f"{part['plain']:.3f} s", f"{part['ours']:.3f} s", f"{part['plain'] / part['ours']:.2f}")
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
