"""The recorded cases of the original (random weights, float32, CPU): where they are, how ours is built and compared.

All cases are in a folder beside the repository, or where UNIVAL_GOLDEN says. A small copy of the tiny model's forward
cases is in `tests/parity/data/golden` (made by `make_golden_copy.py`), so that those run everywhere.
"""

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.parity import recipe
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
COPY = Path(__file__).parent / "data" / "golden"
GOLDEN = Path(os.environ.get("UNIVAL_GOLDEN", ROOT.parent / "shared" / "golden"))
HAS_GOLDEN = (GOLDEN / "tiny_forward.json").is_file()
MISSING = "the recorded outputs of the original are not here; set UNIVAL_GOLDEN to their folder"

# From the recordings' README: against a run in double precision the stored numbers are off by at most 3e-5 (features)
# and 6e-5 (logits); a wrong table, mask, norm or scale shows as 1e-2 and more.
FEATURES_ATOL = 1e-4
LOGITS_ATOL = 3e-4
BACKBONE_RTOL = 1e-3  # relative to the largest value of a feature map

PAD, EOS = 1, 2
MEDIA = {
    "patch_images": "pixel_values",
    "patch_videos": "pixel_values_videos",
    "patch_audios": "input_values",
}
# Tables that the original stores and we compute, and its version marks.
COMPUTED = {"version", "token_rp_bucket", "image_rp_bucket", "image_position_idx"}
TINY: dict[str, Any] = {
    "vocab_size": 601,
    "num_codes": 64,
    "num_bins": 20,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_text_positions": 1024,
    "text_bucket_size": 32,
    "image_bucket_size": 16,
    "code_image_size": 128,
}
TINY_ENCODERS: dict[str, Any] = {
    "image_encoder": {"name": "resnet50", "classifier": 1000},
    "video_encoder": {"depths": [3, 4, 6, 3]},
    "audio_encoder": {"stored_fourier": True},
}
SMALLEST_ENCODERS: dict[str, Any] = {
    "image_encoder": {"name": "resnet18", "out_index": 1, "channels": [4, 4, 4, 4], "stem_width": 4},
    "video_encoder": {"depths": [1], "planes": [4], "groups": 1, "stem_width": 4},
    "audio_encoder": {"channels": [4]},
}


@functools.cache
def recorded(name: str) -> dict[str, Tensor]:
    """Return the tensors of a group of cases, such as `tiny_forward`."""
    folder = GOLDEN if (GOLDEN / f"{name}.safetensors").is_file() else COPY
    return load_file(folder / f"{name}.safetensors")


def read_cases(name: str) -> list[dict[str, Any]]:
    """Return the cases of a group: all where the recordings are, else those of the copy."""
    paths = [folder / f"{name}.json" for folder in (GOLDEN, COPY)]
    path = next((path for path in paths if path.is_file()), None)
    return json.loads(path.read_text(encoding="utf-8"))["cases"] if path else []


def find(group: str, name: str) -> dict[str, Any]:
    return next(case for case in read_cases(group) if case["name"] == name)


def read_json(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def value(case: dict[str, Any], group: str, name: str) -> Tensor:
    """Return an input of a case."""
    entry = case["inputs"][name]
    if "tensor" in entry:
        return recorded(group)[entry["tensor"]]
    if "value" in entry:
        return torch.tensor(entry["value"])
    return recipe.build_input(entry)


def modality_of(case: dict[str, Any]) -> str | None:
    """Return which medium a case reads, if any; with video and sound the picture is a dummy."""
    given = [name for name in MEDIA if name in case["inputs"]]
    return given[-1].removeprefix("patch_").removesuffix("s") if given else None


def media_of(case: dict[str, Any], group: str) -> dict[str, Tensor]:
    """Return the media argument of the model for a case."""
    modality = modality_of(case)
    return {} if modality is None else {MEDIA[f"patch_{modality}s"]: value(case, group, f"patch_{modality}s")}


def fill(model: UnivalForConditionalGeneration, state: dict[str, Tensor]) -> UnivalForConditionalGeneration:
    """Fill some entries with the recipe's weights; tie again, because the recipe names all three embeddings."""
    recipe.fill(state, 0, GOLDEN)
    model.decoder.output_projection.weight = model.encoder.embed_tokens.weight
    model.decoder.embed_tokens.weight = model.encoder.embed_tokens.weight
    return model.eval()


def build_tiny(has_encoders: bool) -> UnivalForConditionalGeneration:
    """Make the tiny model with the recipe's weights; without its encoders it takes injected features."""
    torch.manual_seed(0)
    encoders = TINY_ENCODERS if has_encoders else SMALLEST_ENCODERS
    model = UnivalForConditionalGeneration(UnivalConfig(**TINY, **encoders))
    state = model.state_dict()
    if not has_encoders:
        left_out = ("encoder.embed_images.", "encoder.embed_videos.", "encoder.embed_audios.")
        left_out += tuple(f"encoder.{name}_proj." for name in ("image", "video", "audio"))
        state = {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}
    return fill(model, state)


@contextmanager
def options_of(model: UnivalForConditionalGeneration, case: dict[str, Any]) -> Iterator[None]:
    """Set the model arguments of a case, which have our names, while it runs."""
    changes = case.get("model_args", {})
    before = {name: getattr(model.config, name) for name in changes}
    for name, setting in changes.items():
        setattr(model.config, name, setting)
    try:
        yield
    finally:
        for name, setting in before.items():
            setattr(model.config, name, setting)


class Projected(nn.Module):
    """Stands for a backbone: returns recorded features whatever it is given (timm's return one per level)."""

    def __init__(self, features: Tensor, is_timm: bool) -> None:
        super().__init__()
        self.features, self.is_timm = features, is_timm

    def forward(self, media: Tensor) -> Tensor | list[Tensor]:
        return [self.features] if self.is_timm else self.features


def inject(model: UnivalForConditionalGeneration, case: dict[str, Any], row: int | None = None) -> dict[str, Tensor]:
    """Replace the backbone of a tiny case by its recorded, projected features; return the media argument.

    With `row`, the backbone answers with that row of the batch only.
    """
    modality = modality_of(case)
    if modality is None:
        return {}
    projected = recorded("tiny_forward")[f"{case['name']}/out/{modality}_projected"]  # N P D
    features = projected.transpose(1, 2).unflatten(2, feature_grid(case))
    features = features if row is None else features[row : row + 1]
    setattr(model.encoder, f"embed_{modality}s", Projected(features, modality == "image"))
    setattr(model.encoder, f"{modality}_proj", nn.Identity())
    shape = (len(projected), 1000) if modality == "audio" else (len(projected), 3, *features.shape[2:])
    return {MEDIA[f"patch_{modality}s"]: torch.zeros(shape)}


def feature_grid(case: dict[str, Any]) -> tuple[int, ...]:
    """Return the size of the feature map of a tiny case behind its channels; the copy has it written out."""
    if "feature_grid" in case:
        return tuple(case["feature_grid"])
    return recorded("tiny_forward")[f"{case['name']}/out/{modality_of(case)}_backbone"].shape[2:]


def same(
    case: dict[str, Any], group: str, name: str, ours: Tensor, atol: float, row: int | None = None, keep: Any = None
) -> float | None:
    """Assert that an output is the recorded one; return the difference, or None if it was not recorded.

    Args:
        case, group, name: What is compared; only the recorded slice of `ours` is.
        ours: With the batch first.
        atol: Largest difference.
        row: Compare with this row of the recorded batch; `ours` then has one row.
        keep: (B, T) bool before slicing, where values have a meaning.
    """
    entry = case["outputs"].get(name)
    if entry is None:
        return None
    expected = recorded(group)[entry["tensor"]]
    expected = expected if row is None else expected[row : row + 1]
    keep = torch.ones(ours.shape[:2], dtype=torch.bool) if keep is None else keep
    if "slice" in entry:
        axis, step = entry["slice"]["dim"], entry["slice"]["step"]
        ours = ours.index_select(axis, torch.arange(0, ours.shape[axis], step))
        keep = keep[:, ::step] if axis == 1 else keep
    assert ours.shape == expected.shape, f"{case['name']}/{name}: {tuple(ours.shape)}, not {tuple(expected.shape)}"
    difference = float((ours - expected).abs()[keep].max())
    assert difference <= atol, f"{case['name']}/{name} differs by {difference:.2e}"
    return difference


def check_forward(
    model: UnivalForConditionalGeneration,
    case: dict[str, Any],
    group: str,
    media: dict[str, Tensor],
    row: int | None = None,
) -> None:
    """Compare encoder output, mask, position embeddings, decoder features and logits of a case, or of one row of it.

    A row without its picture (`patch_masks`) is compared as a row of text, a row of picture codes alone: our batches
    do not mix kinds of rows.
    """
    rows = slice(None) if row is None else slice(row, row + 1)
    source, prefix = value(case, group, "src_tokens")[rows], value(case, group, "prev_output_tokens")[rows]
    writes_codes = bool(value(case, group, "code_masks")[rows].all()) if "code_masks" in case["inputs"] else False
    has_media = bool(value(case, group, "patch_masks")[rows].all()) if "patch_masks" in case["inputs"] else True
    inputs = {name: tensor[rows] for name, tensor in media.items()} if has_media else {}
    with torch.inference_mode(), options_of(model, case):
        encoded = model.encoder(source, **inputs)
        features = model.decoder(prefix, encoded, writes_codes=writes_codes)
        logits = model.decoder.output_projection(features)
    if has_media:
        check_encoder(case, group, encoded, row)
    written = prefix.ne(PAD)
    same(case, group, "decoder_features", features, FEATURES_ATOL, row, written)
    same(case, group, "logits", logits, LOGITS_ATOL, row, written)
    same(case, group, "logits_logsumexp", logits.logsumexp(-1), LOGITS_ATOL, row, written)
    same(case, group, "logits_top5_values", logits.topk(5).values, LOGITS_ATOL, row, written)


def check_encoder(case: dict[str, Any], group: str, encoded: Any, row: int | None) -> None:
    """Compare the encoder's output, its mask and its position embeddings."""
    rows = slice(None) if row is None else slice(row, row + 1)
    padding = recorded(group)[case["outputs"]["encoder_padding_mask"]["tensor"]].bool()[rows]
    assert torch.equal(~encoded.attention_mask, padding)
    same(case, group, "encoder_out", encoded.last_hidden_state, FEATURES_ATOL, row, ~padding)
    positions = encoded.position_embeddings[0].expand(len(padding), -1, -1)
    same(case, group, "position_embeddings", positions, FEATURES_ATOL, row)


def check_backbone(model: UnivalForConditionalGeneration, case: dict[str, Any], group: str) -> None:
    """Compare the feature map of a media encoder, its projection, and the log-mel spectrogram of a sound."""
    from unival.model.image import image_features

    modality = modality_of(case)
    assert modality is not None
    (media,) = media_of(case, group).values()
    backbone = getattr(model.encoder, f"embed_{modality}s")
    with torch.inference_mode():
        features = image_features(backbone, media) if modality == "image" else backbone(media)
        projected = getattr(model.encoder, f"{modality}_proj")(features.flatten(2).transpose(1, 2))
        if modality == "audio":
            log_mel = backbone.logmel_extractor(backbone.spectrogram(media))[:, None]
            same_relative(case, group, "audio_logmel", log_mel)
    same_relative(case, group, f"{modality}_backbone", features)
    same_relative(case, group, f"{modality}_projected", projected)


def same_relative(case: dict[str, Any], group: str, name: str, ours: Tensor) -> None:
    expected = recorded(group)[case["outputs"][name]["tensor"]]
    same(case, group, name, ours, BACKBONE_RTOL * float(expected.abs().max()))


def check_position_ids(case: dict[str, Any], group: str, grid_size: int) -> None:
    """Compare the rows of the position table that a feature map looks up."""
    from unival.model import positions

    modality = modality_of(case)
    shape = recorded(group)[f"{case['name']}/out/{modality}_backbone"].shape[2:]
    if modality == "audio":
        ids = positions.audio_ids(shape[0] * shape[1], grid_size)
    else:
        ids = positions.grid_ids(*([1] if modality == "image" else []), *shape, grid_size)
    assert torch.equal(ids, recorded(group)[f"{case['name']}/out/{modality}_position_ids"][0].long())


def check_names(model: UnivalForConditionalGeneration, keys: dict[str, Any]) -> None:
    """Compare names and shapes of the whole state dict, and which tensors are parameters."""
    theirs = {name: entry for name, entry in keys.items() if name.split(".")[-1] not in COMPUTED}
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == {name: entry["shape"] for name, entry in theirs.items()}
    if all("kind" in entry for entry in theirs.values()):  # recorded for the base size only
        parameters = {name for name, entry in theirs.items() if entry["kind"] == "parameter"}
        assert {name for name, _ in model.named_parameters(remove_duplicate=False)} == parameters
