"""The sides that `benchmarks/model.py` compares, each in a process of its own: memory that one frees helps no other."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from plain import Plain, weights
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, LogitsProcessor
from transformers.modeling_outputs import BaseModelOutput

from unival.checkpoint import load_model, quiet_transformers, save_model
from unival.log import peak_resident
from unival.memory import keep_freed_memory
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.model.tokenizer import train_tokenizer

BEAMS, TARGET_LENGTH, PROMPT_LENGTH = 5, 16, 12
EOS = 2  # of both models
LENGTHS = (1, 17)  # of two searches whose difference is the time of 16 steps
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
COMPARED = ("decoder, one pass", "decoder, beams", "training step")  # parts whose results both sides must share
in_bf16 = torch.autocast("cpu", dtype=torch.bfloat16)  # a decorator
Parts = dict[str, Callable[[], Any]]


@torch.no_grad()
def write_model(size: str, folder: Path) -> None:
    """Write a model folder with random weights.

    All embeddings get the scale of a trained model, so that hypotheses differ and searches can be compared.
    """
    torch.manual_seed(0)
    with quiet_transformers():
        model = UnivalForConditionalGeneration(UnivalConfig(**SIZES[size]["model"]))
    model.encoder.embed_tokens.weight.normal_(0.0, model.config.d_model**-0.5)
    model.encoder.embed_tokens.weight[model.config.pad_token_id] = 0.0
    tokenizer = train_tokenizer(["what does the image describe?"], num_words=260, num_codes=4, num_bins=4)
    save_model(folder, model, UnivalProcessor(tokenizer, num_bins=4))


class Setup:
    """Model and inputs, the same on all sides."""

    def __init__(self, size: str, folder: Path) -> None:
        self.model: Any = load_model(folder)[0]
        torch.manual_seed(0)
        rows, pixels = SIZES[size]["batch"], SIZES[size]["pixels"]
        self.pixels = torch.rand(rows, 3, pixels, pixels) * 2 - 1
        self.ids = torch.randint(4, 400, (rows, PROMPT_LENGTH))
        self.prefix = torch.cat([torch.zeros(rows, 1, dtype=torch.long), self.ids.repeat(1, 2)], 1)[:, :TARGET_LENGTH]
        self.labels = self.prefix.roll(-1, 1)
        self.grid = (pixels // 32, pixels // 32)

    def plain(self) -> Plain:
        """Return the plain side with its own copy of the weights, in place of the model's."""
        side = Plain(weights(self.model.state_dict(keep_vars=True)), self.model.config)
        self.model.to("meta")
        return side


def plain_parts(setup: Setup, _: str) -> Parts:
    """Return the stages of the plain side, by name; each starts from what the one before it returned."""
    plain = setup.plain()
    features = plain.backbone(setup.pixels)
    encoded = plain.encode(setup.ids, features, setup.grid)
    return {
        "backbone": lambda: plain.backbone(setup.pixels),
        "encoder": lambda: plain.encode(setup.ids, features, setup.grid),
        "decoder, one pass": lambda: plain.decode(setup.prefix, encoded),
        "decoder, beams": lambda: plain.beam_search(encoded, BEAMS, TARGET_LENGTH),
    }


def our_parts(setup: Setup, _: str) -> Parts:
    """Return the same stages of our side, with bf16 where the processor has it, and searches to compare with BART's."""
    model = setup.model
    media = model.encoder.encode_media(setup.pixels)
    encoded = model.encoder(setup.ids, media_tokens=media)
    parts: Parts = {
        "backbone": lambda: model.encoder.encode_media(setup.pixels),
        "encoder": lambda: model.encoder(setup.ids, media_tokens=media),
        "decoder, one pass": lambda: model(decoder_input_ids=setup.prefix, encoder_outputs=encoded).logits,
        "decoder, beams": lambda: fixed_search(model, TARGET_LENGTH, encoder_outputs=encoded),
    }
    if has_bf16_units():
        parts |= {f"{name}, bf16": in_bf16(part) for name, part in parts.items()}
    for length in LENGTHS:
        parts[f"search, {length}"] = partial(fixed_search, model, length, encoder_outputs=encoded)
    return parts


def bart_parts(setup: Setup, size: str) -> Parts:
    """Return searches of BART at the same width, depth and source length."""
    with quiet_transformers():
        bart = BartForConditionalGeneration(BartConfig(**SIZES[size]["bart"])).eval()
    num_tokens = setup.grid[0] * setup.grid[1] + PROMPT_LENGTH
    states = torch.randn(len(setup.ids), num_tokens, SIZES[size]["bart"]["d_model"])

    def search(length: int) -> Tensor:  # with an output of its own, whose rows `generate` repeats in place
        return fixed_search(bart, length, encoder_outputs=BaseModelOutput(last_hidden_state=states))

    return {f"search, {length}": partial(search, length) for length in LENGTHS}


class NoEnd(LogitsProcessor):
    """Forbid `</s>` as the plain side does; `min_new_tokens` compares all ids with it at every step."""

    def __init__(self, eos_id: int) -> None:
        self.eos_id = eos_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Change scores (rows, ids) in place."""
        scores[:, self.eos_id] = -torch.inf
        return scores


def fixed_search(model: Any, length: int, **inputs: Any) -> Tensor:
    """Run beam search of `transformers` to exactly `length` tokens."""
    options = {"num_beams": BEAMS, "do_sample": False, "max_new_tokens": length, "logits_processor": [NoEnd(EOS)]}
    return model.generate(**inputs, **options, forced_eos_token_id=None, forced_bos_token_id=None)[:, 1:]


def plain_training(setup: Setup, _: str) -> Parts:
    """Return one update of the plain side: forward, backward and AdamW."""
    plain = setup.plain()
    plain.training = True
    optimizer = torch.optim.AdamW(unique(plain.w.values()), lr=1e-5)
    return {"training step": lambda: update(plain.forward(setup.ids, setup.pixels, setup.prefix), setup, optimizer)}


def our_training(setup: Setup, _: str) -> Parts:
    """Return one update of our side."""
    model = setup.model.train()
    inputs = {"input_ids": setup.ids, "pixel_values": setup.pixels, "decoder_input_ids": setup.prefix}
    optimizer = torch.optim.AdamW(unique(model.parameters()), lr=1e-5, fused=True)
    parts: Parts = {"training step": lambda: update(model(**inputs).logits, setup, optimizer)}
    if has_bf16_units():
        parts["training step, bf16"] = in_bf16(parts["training step"])
    return parts


def unique(parameters: Any) -> list[Tensor]:
    """Return what is trained, tied tensors once."""
    return list({id(p): p for p in parameters if p.requires_grad}.values())


def update(logits: Tensor, setup: Setup, optimizer: torch.optim.Optimizer) -> float:
    """Go backward from logits and step; return the loss."""
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), setup.labels.flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


SIDES: dict[str, Callable[[Setup, str], Parts]] = {
    "plain": plain_parts,
    "ours": our_parts,
    "BART": bart_parts,
    "plain training": plain_training,
    "our training": our_training,
}


def serve(pipe: Connection, side: str, size: str, folder: Path, threads: int) -> None:
    """Run the parts that are asked for by name, and answer with seconds and result; then say what memory it took."""
    torch.set_num_threads(threads)
    if side.startswith("our"):
        keep_freed_memory()  # as our commands do
    with torch.inference_mode("training" not in side):
        parts = SIDES[side](Setup(size, folder), size)
        pipe.send(list(parts))
        for name in iter(pipe.recv, None):
            start = time.perf_counter()
            result = parts[name]()
            seconds = time.perf_counter() - start
            compared = result if name in COMPARED else None
            pipe.send((seconds, compared.numpy() if isinstance(compared, Tensor) else compared))
    pipe.send(peak_resident())


class Remote:
    """A side in a process of its own; `parts` are the names that it answers to."""

    def __init__(self, side: str, size: str, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, side, size, folder, threads), daemon=True)
        self.process.start()
        other.close()
        self.parts: list[str] = self.pipe.recv()

    def __call__(self, part: str) -> tuple[float, Any]:
        """Return seconds and result."""
        self.pipe.send(part)
        return self.pipe.recv()

    def close(self) -> int:
        """End the process; return its peak memory in bytes."""
        self.pipe.send(None)
        found = self.pipe.recv()
        self.process.join()
        return found


def load(pipe: Connection, folder: Path, threads: int) -> None:
    """Load a folder twice; answer with the seconds of the second, and bytes of memory per byte of tensors."""
    torch.set_num_threads(threads)
    before = resident()
    model = load_model(folder)[0]
    stored = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    for tensor in stored.values():  # what is mapped from the file becomes memory when it is read
        tensor.sum()
    growth, size = peak_resident() - before, sum(tensor.nbytes for tensor in stored.values())
    del model, stored
    start = time.perf_counter()
    load_model(folder)
    pipe.send({"seconds": time.perf_counter() - start, "memory": growth / size})


def loading(folder: Path, threads: int) -> Mapping[str, float]:
    """Run `load` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=load, args=(other, folder, threads), daemon=True)
    process.start()
    other.close()
    found = pipe.recv()
    process.join()
    return found


def resident() -> int:
    """Return the resident memory of this process, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def has_bf16_units() -> bool:
    """Say whether this processor multiplies bf16 matrices in hardware; without, bf16 is slower than fp32."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)() or torch.cpu._is_avx512_bf16_supported())
