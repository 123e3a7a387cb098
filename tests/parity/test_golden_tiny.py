"""The architecture against numbers recorded from the original research code (random weights, float32, CPU).

The recordings are not part of the repository; they are looked for beside it, or where UNIVAL_GOLDEN says. Both sides
fill weights and inputs by the recipe that comes with them. By default media features are injected after the projection,
so that the Transformer, all position tables and the tokenless paths are checked in seconds; the whole model with the
original's ResNet-50, 3D ResNeXt-50 and Cnn14 is marked slow.
"""

import functools
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unival.batch import Batch, Example
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalEncoderOutput, UnivalForConditionalGeneration
from unival.objectives.cross_entropy import Objective

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("UNIVAL_GOLDEN", ROOT.parent / "shared" / "golden"))
pytestmark = pytest.mark.skipif(
    not (GOLDEN / "tiny_forward.json").is_file(),
    reason="the recorded outputs of the original are not here; set UNIVAL_GOLDEN to their folder",
)

# From the recordings' README: against a run in double precision the stored numbers are off by at most 1.5e-5
# (features) and 3.2e-5 (logits); a wrong table, mask, norm or scale shows as 1e-2 and more.
FEATURES_ATOL = 1e-4
LOGITS_ATOL = 3e-4
BACKBONE_RTOL = 1e-3  # relative to the largest value of a feature map
LOSS_RTOL = 1e-5
GRADIENT_RTOL = 1e-4

PAD = 1
SIZES: dict[str, Any] = {
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
SMALLEST = {
    "image_encoder": {"name": "resnet18", "out_index": 1, "channels": [4, 4, 4, 4], "stem_width": 4},
    "video_encoder": {"depths": [1], "planes": [4], "groups": 1, "stem_width": 4},
    "audio_encoder": {"channels": [4]},
}
ORIGINAL = {
    "image_encoder": {"name": "resnet50"},
    "video_encoder": {"depths": [3, 4, 6, 3]},
    "audio_encoder": {},
}
MEDIA = {"patch_images": "pixel_values", "patch_videos": "pixel_values_videos", "patch_audios": "input_values"}
# What the original does here has no counterpart: position interpolation, rows without their picture, a random part of
# the patches, and a batch of two modalities (which we refuse, and where the original ignores the video).
NO_COUNTERPART = {
    "interp_480",
    "interp_512",
    "interp_384",
    "image_masked",
    "sampled_patches",
    "mixed_types",
    "code_mixed",  # batches do not mix codes and text; its rows are compared one by one below
}


@functools.cache
def recipe() -> ModuleType:
    """Import the recipe for weights and inputs."""
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def recorded(kind: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"tiny_{kind}.safetensors")


def read_cases(kind: str) -> list[dict[str, Any]]:
    path = GOLDEN / f"tiny_{kind}.json"
    return json.loads(path.read_text(encoding="utf-8"))["cases"] if path.is_file() else []


def find(kind: str, name: str) -> dict[str, Any]:
    return next(case for case in read_cases(kind) if case["name"] == name)


class Projected(nn.Module):
    """Stands for a backbone: returns recorded features whatever it is given (timm's return one per level)."""

    def __init__(self, features: Tensor, is_timm: bool) -> None:
        super().__init__()
        self.features, self.is_timm = features, is_timm

    def forward(self, media: Tensor) -> Tensor | list[Tensor]:
        return [self.features] if self.is_timm else self.features


@functools.cache
def build(has_backbones: bool) -> UnivalForConditionalGeneration:
    """Make the model with the recipe's weights; without the original's backbones it takes injected features."""
    torch.manual_seed(0)
    model = UnivalForConditionalGeneration(
        UnivalConfig(**SIZES, **(ORIGINAL if has_backbones else SMALLEST))
    ).eval()
    state = model.state_dict()
    if not has_backbones:
        state = {name: tensor for name, tensor in state.items() if "embed_images." not in name}
        state = {name: tensor for name, tensor in state.items() if "_proj." not in name or ".layers." in name}
        state = {name: t for name, t in state.items() if not name.startswith("encoder.embed_videos.")}
    recipe().fill(state, 0)
    model.decoder.output_projection.weight = model.encoder.embed_tokens.weight  # `fill` names all three
    return model


def value(case: dict[str, Any], kind: str, name: str) -> Tensor:
    """Return an input of a case."""
    entry = case["inputs"][name]
    if "tensor" in entry:
        return recorded(kind)[entry["tensor"]]
    if "value" in entry:
        return torch.tensor(entry["value"])
    return recipe().build_input(entry)


def media_name(case: dict[str, Any]) -> str | None:
    """Return which medium a case reads; with video and sound the picture is a dummy."""
    given = [name for name in MEDIA if name in case["inputs"]]
    return given[-1] if given else None


def same(case: dict[str, Any], kind: str, name: str, ours: Tensor, atol: float, keep: Tensor | None = None) -> float:
    """Assert that an output is the recorded one where `keep` (B, T) is true; return the largest difference."""
    entry = case["outputs"][name]
    expected = recorded(kind)[entry["tensor"]]
    if "slice" in entry:
        ours = ours.index_select(
            entry["slice"]["dim"], torch.arange(0, ours.shape[entry["slice"]["dim"]], entry["slice"]["step"])
        )
    assert ours.shape == expected.shape, name
    difference = (ours - expected).abs()
    if keep is not None:
        difference = difference[keep]
    assert difference.max() <= atol, f"{case['name']}/{name} differs by {difference.max():.2e}"
    return float(difference.max())


def inject(model: UnivalForConditionalGeneration, case: dict[str, Any]) -> dict[str, Tensor]:
    """Replace the backbone of the case's modality by its recorded, projected features; return the media argument."""
    name = media_name(case)
    if name is None:
        return {}
    modality = name.removeprefix("patch_").removesuffix("s")
    projected = recorded("forward")[f"{case['name']}/out/{modality}_projected"]  # N P D
    shape = recorded("forward")[f"{case['name']}/out/{modality}_backbone"].shape[2:]
    features = projected.transpose(1, 2).unflatten(2, shape)
    setattr(model.encoder, f"embed_{modality}s", Projected(features, modality == "image"))
    setattr(model.encoder, f"{modality}_proj", nn.Identity())
    return {MEDIA[name]: torch.zeros(len(projected), 3, 1, 1, *([1] if modality == "video" else []))}


def check_forward(model: UnivalForConditionalGeneration, case: dict[str, Any], media: dict[str, Tensor]) -> None:
    """Compare encoder output, position embeddings, decoder features and logits of a case."""
    source, prefix = value(case, "forward", "src_tokens"), value(case, "forward", "prev_output_tokens")
    writes_codes = "code_masks" in case["inputs"]
    with torch.inference_mode():
        encoded = model.encoder(source, **media)
        features = model.decoder(prefix, encoded, writes_codes=writes_codes)
        logits = model.decoder.output_projection(features)
    check_encoder(case, encoded)
    written = prefix.ne(PAD)
    same(case, "forward", "decoder_features", features, FEATURES_ATOL, written)
    same(case, "forward", "logits", logits, LOGITS_ATOL, written)
    same(case, "forward", "logits_logsumexp", logits.logsumexp(-1), LOGITS_ATOL, written)
    top = logits.topk(5).values
    same(case, "forward", "logits_top5_values", top, LOGITS_ATOL, written)


def check_encoder(case: dict[str, Any], encoded: UnivalEncoderOutput) -> None:
    """Compare the encoder's output, its mask and its position embeddings."""
    assert encoded.attention_mask is not None and encoded.last_hidden_state is not None
    assert encoded.position_embeddings is not None
    padding = recorded("forward")[case["outputs"]["encoder_padding_mask"]["tensor"]].bool()
    assert torch.equal(~encoded.attention_mask, padding)
    same(case, "forward", "encoder_out", encoded.last_hidden_state, FEATURES_ATOL, ~padding)
    positions = encoded.position_embeddings[0].expand(len(padding), -1, -1)
    same(case, "forward", "position_embeddings", positions, FEATURES_ATOL)


COMPARABLE = [case["name"] for case in read_cases("forward") if case["name"] not in NO_COUNTERPART]


@pytest.mark.parametrize("name", COMPARABLE)
def test_transformer_computes_what_the_original_computed(name: str) -> None:
    case, model = find("forward", name), build(False)
    check_forward(model, case, inject(model, case))


@pytest.mark.parametrize("row", [0, 1])
def test_a_row_of_a_mixed_batch_of_codes_and_text_is_that_row_alone(row: int) -> None:
    case, model = find("forward", "code_mixed"), build(False)
    source, prefix = value(case, "forward", "src_tokens"), value(case, "forward", "prev_output_tokens")
    with torch.inference_mode():
        encoded = model.encoder(source[row : row + 1])
        features = model.decoder(prefix[row : row + 1], encoded, writes_codes=row == 0)
    expected = recorded("forward")["code_mixed/out/decoder_features"][row : row + 1]
    keep = prefix[row : row + 1].ne(PAD)
    torch.testing.assert_close(features[keep], expected[keep], atol=FEATURES_ATOL, rtol=0)


def test_media_position_ids_are_the_originals() -> None:
    from unival.model import positions

    tensors = recorded("forward")
    for name in ("image_480", "image_rect", "video_4f", "video_8f", "video_20f"):
        kind = name.split("_")[0]
        shape = tensors[f"{name}/out/{kind}_backbone"].shape[2:]
        ids = positions.grid_ids(*([1] if kind == "image" else []), *shape, SIZES["image_bucket_size"])
        assert torch.equal(ids, tensors[f"{name}/out/{kind}_position_ids"][0]), name
    ids = positions.audio_ids(14, SIZES["image_bucket_size"])
    assert torch.equal(ids, tensors["audio/out/audio_position_ids"][0])
