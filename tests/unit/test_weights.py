"""Initial weights: what other programs write is renamed, completed and checked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import tiny
from unival.errors import UserError
from unival.model.audio import PannCNN
from unival.model.image import build_image_encoder
from unival.model.video import ResNeXt3D
from unival.weights import bart_weights, encoder_weights, read_weights

COUNTER = "num_batches_tracked"


def fake_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return a state dict of other values."""
    return {n: torch.randn_like(t) if t.is_floating_point() else t + 3 for n, t in module.state_dict().items()}


def assert_loads(module: torch.nn.Module, complete: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    module.load_state_dict(complete)
    own = module.state_dict()
    assert given
    for name, tensor in given.items():
        assert torch.equal(own[name], tensor), name


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "folder"])
def test_weights_are_read_from_any_kind_of_file(tmp_path: Path, kind: str, key: str | None) -> None:
    state = {"a.weight": torch.randn(3, 4), "b": torch.arange(3)}
    path = tmp_path / "x.pth"
    if kind in ("zip", "legacy"):
        content = state if key is None else {"epoch": 3, key: state}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    else:
        path = tmp_path / ("model.safetensors" if kind == "folder" else "x.safetensors")
        save_file(state, path)
    read = read_weights(tmp_path if kind == "folder" else path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "x.pt")
    with pytest.raises(UserError, match="in this folder"):
        read_weights(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="truncated or corrupt"):
        read_weights(tmp_path / "x.safetensors")
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path / "x.pt")


IMAGE: dict[str, Any] = {"name": "resnet18", "channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}


def test_a_timm_resnet_fits_with_and_without_its_classifier() -> None:
    source, _ = build_image_encoder(IMAGE | {"classifier": 4})
    state = fake_state(source)
    whole, _ = build_image_encoder(IMAGE | {"classifier": 4})
    assert_loads(whole, encoder_weights("image_encoder", whole, state, "x"), state)
    bare, _ = build_image_encoder(IMAGE)
    trunk = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    assert_loads(bare, encoder_weights("image_encoder", bare, state, "x"), trunk)
    short, _ = build_image_encoder(IMAGE | {"out_index": 3})
    stages = {name: tensor for name, tensor in trunk.items() if not name.startswith("layer4")}
    assert_loads(short, encoder_weights("image_encoder", short, state, "x"), stages)
    frozen, _ = build_image_encoder(IMAGE | {"frozen_norm": True})
    fixed = {name: tensor for name, tensor in trunk.items() if not name.endswith(COUNTER)}
    assert_loads(frozen, encoder_weights("image_encoder", frozen, state, "x"), fixed)
    # Without a classifier in the file, ours keeps its own values.
    classifier = whole.state_dict()["fc.weight"]
    assert torch.equal(encoder_weights("image_encoder", whole, trunk, "x")["fc.weight"], classifier)


def test_kinetics_weights_fit_the_video_encoder() -> None:
    encoder = ResNeXt3D(**tiny.VIDEO_ENCODER)
    state = {name: tensor for name, tensor in fake_state(encoder).items() if not name.endswith(COUNTER)}
    file = {f"module.{name}": tensor for name, tensor in state.items()} | {"module.fc.weight": torch.zeros(400, 8)}
    assert_loads(encoder, encoder_weights("video_encoder", encoder, file, "x"), state)


@pytest.mark.parametrize("stored_fourier", [True, False])
def test_pann_weights_bring_their_mel_filters(stored_fourier: bool) -> None:
    options = tiny.AUDIO_ENCODER | {"stored_fourier": stored_fourier}
    encoder, source = PannCNN(**options), PannCNN(**(options | {"stored_fourier": True}))
    file = fake_state(source) | {"fc1.weight": torch.zeros(4, 4), "fc_audioset.weight": torch.zeros(527, 4)}
    expected = {name: tensor for name, tensor in file.items() if name in encoder.state_dict()}
    assert "logmel_extractor.melW" in expected
    assert ("spectrogram_extractor.stft.conv_real.weight" in expected) == stored_fourier
    assert_loads(encoder, encoder_weights("audio_encoder", encoder, file, "x"), expected)


def test_an_encoder_comes_out_of_a_whole_model() -> None:
    model = tiny.model()
    encoder = ResNeXt3D(**tiny.VIDEO_ENCODER)
    given = encoder_weights("video_encoder", encoder, model.state_dict(), "x")
    assert_loads(encoder, given, model.encoder.embed_videos.state_dict())


def test_weights_of_another_encoder_are_refused_with_names() -> None:
    encoder = ResNeXt3D(**tiny.VIDEO_ENCODER)
    state = fake_state(encoder)
    for change, message in (
        ({"new.weight": torch.zeros(1)}, "video_encoder weights do not fit: 1 unknown: new.weight"),
        ({"conv1.weight": torch.zeros(1)}, "1 of another shape: conv1.weight"),
    ):
        with pytest.raises(UserError, match=message):
            encoder_weights("video_encoder", encoder, state | change, "x")
    state.pop("conv1.weight")
    with pytest.raises(UserError, match=r"1 missing: conv1\.weight"):
        encoder_weights("video_encoder", encoder, state, "x")


def bart_state(num_words: int, is_transformers: bool) -> dict[str, Tensor]:
    """Return what a BART of the tiny model's size holds, under fairseq's or transformers' names."""
    own = tiny.model().state_dict()
    kept = ("self_attn.", "encoder_attn.", "fc1", "fc2", "self_attn_layer_norm", "encoder_attn_layer_norm")
    kept += ("final_layer_norm", "layernorm_embedding", "embed_positions")
    state = {
        name: torch.randn_like(tensor)
        for name, tensor in own.items()
        if any(part in name for part in kept) and "c_attn" not in name and "code_" not in name and "patch_" not in name
    }
    words = torch.randn(num_words, 16)
    if not is_transformers:
        return state | {"encoder.embed_tokens.weight": words, "encoder.version": torch.tensor([3.0])}
    return {f"model.{name}": tensor for name, tensor in state.items()} | {
        "model.shared.weight": words,
        "final_logits_bias": torch.zeros(1, num_words),
        "lm_head.weight": words,
    }


@pytest.mark.parametrize("is_transformers", [True, False])
def test_bart_fills_the_transformer_row_by_row(is_transformers: bool) -> None:
    model = tiny.build_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = bart_state(100, is_transformers)
    given = bart_weights(model, file, "x")
    report = model.load_state_dict(given, strict=False)
    assert not report.unexpected_keys
    after = model.state_dict()
    words = after["encoder.embed_tokens.weight"]
    assert torch.equal(words[:100], file["model.shared.weight" if is_transformers else "encoder.embed_tokens.weight"])
    assert 0.15 < float(words[100:].std()) < 0.35  # 1 / sqrt(16)
    assert model.decoder.output_projection.weight is model.encoder.embed_tokens.weight
    prefix = "model." if is_transformers else ""
    for name in ("decoder.layers.1.encoder_attn.q_proj.weight", "encoder.embed_positions.weight"):
        assert torch.equal(after[name], file[prefix + name])
    for name in ("encoder.layers.0.attn_ln.weight", "encoder.image_proj.weight", "encoder.layers.0.self_attn.c_attn"):
        assert torch.equal(after[name], before[name])


def test_a_bart_of_another_size_is_refused() -> None:
    model = tiny.build_model()
    file = bart_state(100, False)
    file.pop("decoder.layers.1.fc2.bias")
    with pytest.raises(UserError, match=r"1 missing: decoder\.layers\.1\.fc2\.bias"):
        bart_weights(model, file, "x")
    file = bart_state(100, False) | {"encoder.layers.0.fc1.weight": torch.zeros(3, 16)}
    with pytest.raises(UserError, match=r"of another shape: encoder.layers.0.fc1.weight"):
        bart_weights(model, file, "x")
