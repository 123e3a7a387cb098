"""The original's checkpoint layout: which architecture a set of tensors has, their order, and buffers that follow.

Parameter names are the same on both sides. Released files hold in addition three copies of the embedding matrix and a
few tables that are functions of sizes (specification 2.2 and 9.1).
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from unival.errors import UserError
from unival.model import positions
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration

Shape = tuple[int, ...]
Settings = Mapping[str, Any]

EMBEDDING = "encoder.embed_tokens.weight"
# The copies of the embedding. Loading them one after another, the original keeps the last.
TIED = (EMBEDDING, "decoder.embed_tokens.weight", "decoder.output_projection.weight")
TABLES = ("version", "token_rp_bucket", "image_rp_bucket", "image_position_idx")
TABLE_NAMES = {f"{side}.{table}": table for side in ("encoder", "decoder") for table in TABLES}
COUNTER = ".num_batches_tracked"
FILLER_POSITIONS = 769  # entries of `image_position_idx` behind the grid
BART_WORDS = 50265  # special tokens, dictionary and <mask>
RESNETS = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
    (3, 8, 36, 3, True): "resnet152",
}
# Options of the original that change what it computes and that we do not have, by the tensors they add.
UNSUPPORTED = {
    "qk-norm": re.compile(r"\.[qk]_norm\."),
    "scale-resids": re.compile(r"\.w_resid$"),
    "a norm per modality": re.compile(r"^encoder\.layernorm_(image|video|audio)_embedding\."),
    "feature fusion of audio": re.compile(r"^encoder\.embed_audios\..*fusion"),
}

_SIDE = (*TABLES, "embed_tokens", "layernorm_embedding")
_TABLE_LISTS = ("layers", "layer_norm", "output_projection", "token_rel_pos_table_list", "image_rel_pos_table_list")
_ORDER: dict[str, tuple[str, ...]] = {
    "encoder": (
        *(*_SIDE, "type_embedding", "embed_images", "image_proj", "embed_videos", "embed_video_positions"),
        *("video_proj", "embed_audios", "embed_audio_positions", "audio_proj", "patch_layernorm_embedding"),
        *("embed_positions", "embed_image_positions", "pos_ln", "image_pos_ln", "pos_q_linear", "pos_k_linear"),
        *_TABLE_LISTS,
    ),
    "decoder": (
        *(*_SIDE, "embed_positions", "embed_image_positions", "pos_ln", "image_pos_ln"),
        *("self_pos_q_linear", "self_pos_k_linear", "cross_pos_q_linear", "cross_pos_k_linear"),
        *("code_layernorm_embedding", *_TABLE_LISTS),
    ),
    "encoder layer": (
        *("self_attn", "self_attn_layer_norm", "fc1", "fc2", "attn_ln", "ffn_layernorm", "final_layer_norm"),
    ),
    "decoder layer": (
        *("self_attn", "self_attn_ln", "cross_attn_ln", "self_attn_layer_norm", "encoder_attn"),
        *("encoder_attn_layer_norm", "ffn_layernorm", "fc1", "fc2", "final_layer_norm"),
    ),
    "attention": ("c_attn", "k_proj", "v_proj", "q_proj", "out_proj"),
}


def empty_model(config: UnivalConfig, where: str | None = None) -> UnivalForConditionalGeneration:
    """Return the model without memory for its weights.

    Raises:
        UserError: If no model has such sizes.
    """
    try:
        with torch.device("meta"):
            return UnivalForConditionalGeneration(config)
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise UserError(f"no UnIVAL model has these sizes: {error}", where=where) from None


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def original_order(names: Iterable[str]) -> list[str]:
    """Return names, our model's or a file's, in the order of the original's state dict."""
    indexed = {name: index for index, name in enumerate(names)}

    def rank(name: str) -> tuple[int, ...]:
        side, part, *rest = name.split(".")
        if side not in ("encoder", "decoder"):
            return (2, indexed[name])
        ranks = [int(side == "decoder"), _place(side, part)]
        if part == "layers":
            ranks += [int(rest[0]), _place(f"{side} layer", rest[1])]
            if rest[1] in ("self_attn", "encoder_attn"):
                ranks.append(_place("attention", rest[2]))
        return (*ranks, indexed[name])

    return sorted(indexed, key=rank)


def _place(kind: str, name: str) -> int:
    order = _ORDER[kind]
    return order.index(name) if name in order else len(order)


def original_names(names: Iterable[str]) -> list[str]:
    """Return the names of the original's state dict for a model with these, in order."""
    tables = [name for name in TABLE_NAMES if name != "encoder.image_position_idx"]
    return original_order([*tables, *names])


def rebuild(name: str, config: UnivalConfig, dtype: torch.dtype) -> Tensor | None:
    """Return a table of the original that follows from sizes; None for any other name.

    Args:
        name: In the original's state dict.
        config: Of the model.
        dtype: Of the weights, which `version` has too.
    """
    table = TABLE_NAMES.get(name)
    if table == "version":
        return torch.tensor([3.0], dtype=dtype)
    if table == "token_rp_bucket":
        return positions.text_buckets(config.text_bucket_size, config.max_text_positions)
    if table == "image_rp_bucket":
        return positions.image_buckets(config.image_bucket_size)
    if table == "image_position_idx":
        side = config.code_image_size // 8
        ids = positions.code_ids(1 + side * side, config.code_image_size, config.image_bucket_size)
        return torch.cat([ids, torch.full((FILLER_POSITIONS,), 1024)])
    return None


def table_shape(name: str, config: UnivalConfig) -> Shape | None:
    """Return the shape of a table that follows from sizes; None for any other name."""
    side = config.code_image_size // 8
    return {
        "version": (1,),
        "token_rp_bucket": (config.max_text_positions,) * 2,
        "image_rp_bucket": (config.image_bucket_size**2 + 1,) * 2,
        "image_position_idx": (1 + side * side + FILLER_POSITIONS,),
    }.get(TABLE_NAMES.get(name, ""))


def infer_config(shapes: Mapping[str, Shape], settings: Settings, where: str) -> UnivalConfig:
    """Find the architecture of a checkpoint.

    Args:
        shapes: Of its tensors, by name.
        settings: Command-line arguments stored in it, for what no tensor shows; may be empty.
        where: File name for messages.

    Raises:
        UserError: If the tensors are not those of a UnIVAL model.
    """
    embedding = next((shapes[name] for name in TIED if name in shapes), None)
    if embedding is None or "encoder.layers.0.fc1.weight" not in shapes or "decoder.layers.0.fc1.weight" not in shapes:
        raise UserError("these are not the weights of a UnIVAL model", where=where, fix="give an original checkpoint")
    for option, pattern in UNSUPPORTED.items():
        if any(pattern.search(name) for name in shapes):
            raise UserError(f"the model was trained with {option}, which is not supported", where=where)
    try:
        return UnivalConfig(
            **_transformer(shapes, settings, embedding, where),
            **_vocabulary(embedding[0], settings),
            **_tuning(shapes),
            image_encoder=_image_encoder(shapes, settings),
            video_encoder=_video_encoder(shapes),
            audio_encoder=_audio_encoder(shapes, settings),
        )
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"not the weights of a UnIVAL model: {error} is missing", where=where) from None
    except IndexError:
        raise UserError("not the weights of a UnIVAL model: a tensor has too few axes", where=where) from None
    except (ArithmeticError, ValueError) as error:
        raise UserError(f"not the weights of a UnIVAL model: {error}", where=where) from None


def check_fit(shapes: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> list[str]:
    """Compare a checkpoint with the model that was inferred; return what it holds beside that model's tensors.

    Raises:
        UserError: If tensors are missing, have another shape, or would have a part in the computation.
    """
    missing = [name for name in expected if name not in shapes and name not in TIED and not name.endswith(COUNTER)]
    wrong = [f"{n} {shapes[n]} instead of {expected[n]}" for n in shapes if n in expected and shapes[n] != expected[n]]
    extra = [name for name in shapes if name not in expected]
    harmless = ("classification_heads.",)
    unknown = [n for n in extra if n not in TABLE_NAMES and not n.startswith(harmless)]
    for kind, names in (("missing", missing), ("of another shape", wrong), ("unknown", unknown)):
        if names:
            listed = ", ".join(names[:10])
            raise UserError(f"not the architecture we know: {len(names)} tensors {kind}: {listed}", where=where)
    return extra


def _number(settings: Settings, name: str, default: float) -> Any:
    """Return a setting as a number of the default's type; the default when the file has no such number there."""
    value = settings.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return default
    if value < (0 if isinstance(default, float) else 1):
        return default
    return type(default)(value)


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """Count the parts of a list by their numbers, so that one large number in a hostile file makes no large model."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for name in shapes if (match := pattern.match(name))})


def _transformer(shapes: Mapping[str, Shape], settings: Settings, embedding: Shape, where: str) -> dict[str, Any]:
    positions_idx = shapes.get("decoder.image_position_idx")
    side = math.isqrt(positions_idx[0] - FILLER_POSITIONS - 1) if positions_idx else 0
    if shapes["encoder.type_embedding.weight"][0] != 2:
        option = "add-mm-type-embedding"  # it has 4 rows
        raise UserError(f"the model was trained with {option}, which is not supported", where=where)
    return {
        "d_model": embedding[1],
        "encoder_layers": _count(shapes, "encoder.layers"),
        "decoder_layers": _count(shapes, "decoder.layers"),
        "encoder_ffn_dim": shapes["encoder.layers.0.fc1.weight"][0],
        "decoder_ffn_dim": shapes["decoder.layers.0.fc1.weight"][0],
        "encoder_attention_heads": shapes["encoder.layers.0.self_attn.c_attn"][0],
        "decoder_attention_heads": shapes["decoder.layers.0.self_attn.c_attn"][0],
        "attn_scale_factor": _number(settings, "attn_scale_factor", 2.0),
        "dropout": _number(settings, "dropout", 0.1),
        "drop_path": _number(settings, "encoder_drop_path_rate", 0.1),
        "max_text_positions": shapes["encoder.embed_positions.weight"][0] - 2,
        "text_bucket_size": (shapes["encoder.token_rel_pos_table_list.0.weight"][0] + 1) // 2,
        "image_bucket_size": math.isqrt(shapes["encoder.embed_image_positions.weight"][0] - 1),
        "code_image_size": 8 * side or _number(settings, "code_image_size", 128),
        "interpolate_position": settings.get("interpolate_position") is True,
        "orig_patch_image_size": _number(settings, "orig_patch_image_size", 256),
    }


def _vocabulary(size: int, settings: Settings) -> dict[str, int]:
    """Split the vocabulary in words, image codes and position bins; a file without settings is one of full size."""
    bins = _number(settings, "num_bins", 1000)
    codes = _number(settings, "code_dict_size", max(size - BART_WORDS - bins, 0))
    if codes + bins >= size and not settings.keys().isdisjoint(("num_bins", "code_dict_size")):
        raise ValueError(f"{codes} image codes and {bins} bins do not fit into an embedding of {size} rows")
    return {"vocab_size": size, "num_codes": codes, "num_bins": bins}


def _tuning(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Read the sizes of adapters and learned prefixes."""
    found: dict[str, Any] = {}
    for infix in ("adapter", "adapter.v_adapter"):
        shape = shapes.get(f"encoder.layers.0.{infix}.down_proj.weight")
        if shape is not None:
            found |= {"adapter_dim": shape[0], "adapter_per_modality": infix != "adapter"}
    for side in ("encoder", "decoder"):
        prefix = f"{side}.{side}_prompt_encoder"
        if f"{prefix}.embedding.weight" in shapes:
            found[f"{side}_prompt_length"] = shapes[f"{prefix}.embedding.weight"][0]
            found["prompt_hidden_dim"] = shapes.get(f"{prefix}.trans.0.weight", (0,))[0]
    return found


def _depths(shapes: Mapping[str, Shape], prefix: str) -> list[int]:
    counts = [_count(shapes, f"{prefix}.layer{stage}") for stage in range(1, 5)]
    return [count for count in counts if count]


def _is_frozen(shapes: Mapping[str, Shape], prefix: str) -> dict[str, bool]:
    return {} if f"{prefix}.bn1{COUNTER}" in shapes else {"frozen_norm": True}


def _image_encoder(shapes: Mapping[str, Shape], settings: Settings) -> dict[str, Any] | None:
    prefix = "encoder.embed_images"
    if f"{prefix}.conv1.weight" not in shapes:
        return None
    depths, is_deep = _depths(shapes, prefix), f"{prefix}.layer1.0.conv3.weight" in shapes
    kernel = "conv1" if is_deep else "conv2"
    channels = [shapes[f"{prefix}.layer{stage + 1}.0.{kernel}.weight"][0] for stage in range(len(depths))]
    names = [n for (*d, deep), n in RESNETS.items() if d[: len(depths)] == depths and deep == is_deep]
    wanted = settings.get("resnet_type")  # of a truncated one, the depths may not tell
    options: dict[str, Any] = {
        "name": wanted if wanted in names else (*names, "resnet50" if is_deep else "resnet18")[0]
    }
    if not names or channels != [64, 128, 256, 512][: len(depths)]:
        options |= {"channels": channels, "layers": depths}
    if f"{prefix}.fc.weight" in shapes:
        options["classifier"] = shapes[f"{prefix}.fc.weight"][0]
    elif len(depths) < 4:
        options["out_index"] = len(depths)
    return options | _is_frozen(shapes, prefix)


def _video_encoder(shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    prefix = "encoder.embed_videos"
    if f"{prefix}.conv1.weight" not in shapes:
        return None
    depths = _depths(shapes, prefix)
    planes = [shapes[f"{prefix}.layer{stage + 1}.0.conv1.weight"][0] for stage in range(len(depths))]
    options: dict[str, Any] = {"depths": depths, "planes": planes}
    options["groups"] = planes[0] // shapes[f"{prefix}.layer1.0.conv2.weight"][1]
    stem = shapes[f"{prefix}.conv1.weight"]
    if (stem[0], stem[2:]) != (64, (7, 7, 7)):
        options |= {"stem_width": stem[0], "stem_kernel": list(stem[2:])}
    return options | _is_frozen(shapes, prefix)


def _audio_encoder(shapes: Mapping[str, Shape], settings: Settings) -> dict[str, Any] | None:
    prefix = "encoder.embed_audios"
    if f"{prefix}.bn0.weight" not in shapes:
        return None
    frequencies, mel_bins = shapes[f"{prefix}.logmel_extractor.melW"]
    blocks = sum(f"{prefix}.conv_block{index}.conv1.weight" in shapes for index in range(1, 20))
    return {
        "channels": [shapes[f"{prefix}.conv_block{index + 1}.conv2.weight"][0] for index in range(blocks)],
        "sample_rate": _number(settings, "sample_rate", 48000),
        "n_fft": 2 * (frequencies - 1),
        "hop": _number(settings, "hop_size", 200),  # no tensor shows it; all released models have 200
        "mel_bins": mel_bins,
        "stored_fourier": f"{prefix}.spectrogram_extractor.stft.conv_real.weight" in shapes,
    }
