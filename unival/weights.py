"""Initial weights from elsewhere, for stage 1: BART-base, and encoders trained on ImageNet, Kinetics or AudioSet.

Files are local. Pickled ones are read by `unival.pickles`, which runs nothing of them.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unival.errors import UserError
from unival.pickles.torch_file import read_torch_file, tensors_of

# Where the weights lie inside a file, by its maker: fairseq and PANN, Kinetics, timm.
STATES = ("model", "state_dict", "model_state_dict", "state_dict_ema")
# What other programs put before the names of a whole model.
WRAPPERS = ("module.", "_orig_mod.", "backbone.")
# Parts that our encoders do not have; classifiers end in `fc`, PANN's tagger is `fc1` and `fc_audioset`.
UNUSED = re.compile(r"^(fc|fc1|fc_audioset|head|classifier|spectrogram_extractor|logmel_extractor)\.")
STAGE = re.compile(r"^(layer|conv_block)\d+\.")  # an encoder may end at an earlier one than its source
# Parts of an encoder that may keep their own values when the file lacks them.
OPTIONAL = re.compile(r"(^fc\.|num_batches_tracked$|^spectrogram_extractor\.|^logmel_extractor\.)")
# What a layer of BART has; the norms inside the branches and the scale per head are UnIVAL's own.
BART_LAYER = re.compile(
    r"(en|de)coder\.layers\.\d+\.(self_attn|encoder_attn|fc1|fc2|\w+_attn_layer_norm|final_layer_norm)\."
)
IN_MODEL = {"image_encoder": "embed_images", "video_encoder": "embed_videos", "audio_encoder": "embed_audios"}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a file of `torch.save`, its tensors mapped from the file.

    Args:
        path: The file, or a folder with `model.safetensors` or `pytorch_model.bin`.

    Raises:
        UserError: If the file is unreadable, unsafe, or holds no weights.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not found:
            what = "no model.safetensors and no pytorch_model.bin in this folder"
            raise UserError(what, where=str(path), fix="give the folder or the file that holds the weights")
        path = found[0]
    if not path.is_file():
        raise UserError("no such file", where=str(path), fix="check the path; nothing is downloaded")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            fix = "copy or download it again"
            raise UserError(f"truncated or corrupt weights: {error}", where=str(path), fix=fix) from None
    tree = read_torch_file(path).tree
    for state in (tree, *(tree.get(name) for name in STATES if isinstance(tree, dict))):
        tensors = _tensors(state)
        if tensors:
            return tensors
    raise UserError("the file holds no weights", where=str(path), fix=f"expected under one of: {', '.join(STATES)}")


def _tensors(state: Any) -> dict[str, Tensor]:
    return {name: stored.load() for name, stored in tensors_of(state).items()} if isinstance(state, dict) else {}


def encoder_weights(name: str, encoder: nn.Module, weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return a complete state dict for an encoder out of the weights of somebody's model.

    Wrappers of names are taken off, classifiers left out; a whole UnIVAL checkpoint gives its own encoder. What other
    trainings lack (our unused classifier, batch counters, the Fourier basis) keeps the encoder's values. PANN's file
    brings its mel filters along, as in the original, where the 32 kHz ones replace those of 48 kHz (specification 2.8).

    Args:
        name: "image_encoder", "video_encoder" or "audio_encoder".
        encoder: The module.
        weights: From `read_weights`.
        where: File name for messages.

    Raises:
        UserError: If tensors are missing, unknown or of another shape.
    """
    inner = f"encoder.{IN_MODEL[name]}."
    is_whole = any(key.startswith(inner) for key in weights)
    given = {key.removeprefix(inner): t for key, t in weights.items() if key.startswith(inner) or not is_whole}
    given = {unwrapped(key): tensor for key, tensor in given.items()}
    own = encoder.state_dict()
    parts = {key.split(".")[0] for key in own}
    has_counters = any(key.endswith("num_batches_tracked") for key in own)

    def is_left_out(key: str) -> bool:
        is_counter = key.endswith("num_batches_tracked") and not has_counters
        return (
            is_counter
            or UNUSED.match(key) is not None
            or (STAGE.match(key) is not None and key.split(".")[0] not in parts)
        )

    given = {key: tensor for key, tensor in given.items() if key in own or not is_left_out(key)}
    kept = {key: tensor for key, tensor in own.items() if key not in given and OPTIONAL.search(key)}
    complete = kept | given
    _check(f"{name} weights", own, complete, where)
    return complete


def unwrapped(name: str) -> str:
    """Take the prefixes of wrappers off a name."""
    while prefix := next((prefix for prefix in WRAPPERS if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def bart_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the part of a UnIVAL model's state dict that BART gives; load it with `strict=False`.

    Rows are copied to rows of the same number, text positions too, although BART itself reads those two rows further
    on. Words beyond BART's are drawn from N(0, 1 / width) (specification 2.9 and 3.5).

    Args:
        model: A UnIVAL model.
        weights: From `read_weights`, with names of fairseq or of `transformers`.
        where: File name for messages.

    Raises:
        UserError: If these are not BART's weights, or of another size.
    """
    own = model.state_dict()
    given = {bart_name(name): tensor for name, tensor in weights.items()}
    given = {name: tensor for name, tensor in given.items() if name in own}
    layers = [name for name in own if BART_LAYER.match(name) and not name.endswith("c_attn")]
    if "encoder.embed_tokens.weight" not in given or any(name not in given for name in layers):
        absent = [name for name in ("encoder.embed_tokens.weight", *layers) if name not in given]
        listed = ", ".join(absent[:10])
        raise UserError(f"not the weights of a BART of this depth: {len(absent)} missing: {listed}", where=where)
    for name in ("encoder.embed_tokens.weight", "encoder.embed_positions.weight", "decoder.embed_positions.weight"):
        if name in given:
            given[name] = _fit_rows(given[name], own[name])
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        given[name] = given["encoder.embed_tokens.weight"]
    _check("BART weights", {name: own[name] for name in given}, given, where)
    return given


def bart_name(name: str) -> str:
    """Translate a name of `transformers`' BART to fairseq's, which are ours."""
    name = unwrapped(name).removeprefix("model.")
    return {"shared.weight": "encoder.embed_tokens.weight"}.get(name, name)


def _fit_rows(table: Tensor, own: Tensor) -> Tensor:
    if table.shape[1:] != own.shape[1:] or len(table) >= len(own):
        return table[: len(own)]
    drawn = torch.randn(len(own) - len(table), own.shape[1]) * own.shape[1] ** -0.5
    return torch.cat([table, drawn.to(table.dtype)])


def _check(what: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    def listed(kind: str, names: Iterable[str]) -> None:
        names = list(names)
        if names:
            raise UserError(f"{what} do not fit: {len(names)} {kind}: {', '.join(names[:10])}", where=where)

    listed("missing", (name for name in own if name not in given))
    listed("unknown", (name for name in given if name not in own))
    listed("of another shape", (name for name in own if own[name].shape != given[name].shape))
