"""The three media encoders: what they compute on inputs whose answer is known."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from tests import tiny
from unival.model import image
from unival.model.audio import PannCNN, drop_stripes
from unival.model.image import build_image_encoder, image_features
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.video import ResNeXt3D, ResNeXtBlock


def pann(**changes) -> PannCNN:
    model = PannCNN(**({"channels": [2, 4], "sample_rate": 8000, "n_fft": 512, "hop": 100, "fmax": 4000.0} | changes))
    model.logmel_extractor.melW.data = model.logmel_extractor.filter_bank()
    return model.eval()


def test_image_features_are_the_chosen_level_of_a_timm_model() -> None:
    backbone, channels = build_image_encoder(tiny.IMAGE_ENCODER)
    features = image_features(backbone.eval(), torch.rand(2, 3, 24, 32))
    assert channels == 8
    assert features.shape == (2, 8, 3, 4)
    assert dict(backbone.named_parameters())["layer2.0.conv1.weight"].shape == (8, 8, 3, 3)
    assert not any(name.startswith("fc") for name, _ in backbone.named_parameters())


def test_many_pictures_are_read_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, _ = build_image_encoder(tiny.IMAGE_ENCODER)
    backbone.eval().double()
    pixels, sizes = torch.randn(5, 3, 16, 16).double(), []
    backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with torch.inference_mode():
        expected = image_features(backbone, pixels)
        monkeypatch.setattr(image, "PART_BYTES", 2 * pixels[:1].nbytes + 1)
        torch.testing.assert_close(image_features(backbone, pixels), expected, atol=1e-12, rtol=1e-12)
        assert sizes == [5, 2, 2, 1]
    image_features(backbone, pixels)  # gradients are wanted
    assert sizes[4:] == [5]


def test_an_unknown_image_encoder_is_refused_with_close_names() -> None:
    with pytest.raises(ValueError, match=r"'resnet1800' is not a timm model.*close: .*resnet18"):
        build_image_encoder({"name": "resnet1800"})


def test_options_are_not_changed_by_building() -> None:
    options = dict(tiny.IMAGE_ENCODER)
    build_image_encoder(options)
    assert options == tiny.IMAGE_ENCODER


def test_video_halves_space_from_the_stem_and_time_from_the_pooling_on() -> None:
    model = ResNeXt3D(depths=[1, 2, 1], planes=[4, 8, 16], groups=2, stem_width=4).eval()
    assert model.out_channels == 32
    assert model(torch.rand(1, 3, 8, 64, 96)).shape == (1, 32, 1, 4, 6)
    assert model.layer1[0].conv2.stride == (1, 1, 1)
    assert model.layer2[0].conv2.stride == (2, 2, 2)
    assert model.layer2[0].conv2.groups == 2
    assert model.layer2[1].downsample is None


def test_defaults_of_the_video_encoder_are_the_originals() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in ResNeXt3D().named_parameters()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7, 7)
    middle = [shapes[f"layer{s}.0.conv2.weight"] for s in (1, 2, 3, 4)]
    assert middle == [(width, width // 32, 3, 3, 3) for width in (128, 256, 512, 1024)]
    assert shapes["layer3.22.conv3.weight"] == (1024, 512, 1, 1, 1)
    assert not any("fc" in name for name in shapes)


def test_a_video_block_adds_its_shortcut_before_the_last_relu() -> None:
    block = ResNeXtBlock(4, 2, groups=1, stride=1).eval()
    assert block.downsample is None
    nn.init.zeros_(block.bn3.weight)
    x = torch.randn(1, 4, 2, 3, 3)
    torch.testing.assert_close(block(x), x.relu())


def test_log_mel_of_silence_is_the_floor_and_of_a_tone_has_one_peak() -> None:
    model, rate = pann(), 8000
    silence = model.logmel_extractor(model.spectrogram(torch.zeros(1, rate)))
    assert silence.shape == (1, 81, 64)
    assert bool((silence == -100.0).all())
    time = torch.arange(rate) / rate
    for hertz in (200.0, 1000.0, 3000.0):
        levels = model.logmel_extractor(model.spectrogram(torch.sin(2 * math.pi * hertz * time)[None]))
        peak = int(levels[0, 40].argmax())
        weights = model.logmel_extractor.melW[:, peak]
        centre = float((weights * torch.linspace(0, 4000, 257)).sum() / weights.sum())
        assert centre == pytest.approx(hertz, rel=0.1)


def test_power_of_a_tone_is_the_square_of_its_windowed_amplitude() -> None:
    model = pann()
    tone = 0.5 * torch.sin(2 * math.pi * 1000.0 * torch.arange(8000) / 8000)
    power = model.spectrogram(tone[None])
    assert power.shape == (1, 81, 257)
    # Bin 64 is 1000 Hz; a sine of amplitude a gives (a / 2 * sum of the window)^2.
    assert float(power[0, 40, 64]) == pytest.approx((0.25 * 256) ** 2, rel=1e-4)


def test_audio_blocks_halve_time_and_mel_except_the_last() -> None:
    with torch.inference_mode():
        assert pann(channels=[2, 4, 8])(torch.rand(2, 8000)).shape == (2, 8, 20, 16)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in PannCNN().named_parameters()}
    assert shapes["logmel_extractor.melW"] == (513, 64)
    assert [shapes[f"conv_block{i}.conv2.weight"][0] for i in range(1, 7)] == [64, 128, 256, 512, 1024, 2048]


def test_the_filter_bank_is_stored_but_never_trained() -> None:
    model = pann()
    assert "logmel_extractor.melW" in model.state_dict()
    assert not model.logmel_extractor.melW.requires_grad


def test_spec_augment_drops_stripes_only_while_training() -> None:
    x = torch.ones(50, 1, 40, 16)
    out = drop_stripes(x, time_stripe=8, mel_stripe=3)
    assert set(out.unique().tolist()) == {0.0, 1.0}
    is_row_dropped = (out == 0).all(3).squeeze(1)  # B T
    is_bin_dropped = (out == 0).all(2).squeeze(1)  # B M
    assert bool((is_row_dropped.sum(1) <= 16).all())
    assert bool((is_bin_dropped.sum(1) <= 6).all())
    union = is_row_dropped[:, :, None] | is_bin_dropped[:, None, :]
    assert torch.equal(union, out[:, 0] == 0)  # whole stripes and nothing else
    assert 0.1 < float(is_row_dropped.float().mean()) < 0.3
    model, sound = pann(), torch.rand(1, 8000)
    assert torch.equal(model(sound), model(sound))
    assert not torch.equal(model.train()(sound), model(sound))


def test_a_stored_fourier_basis_computes_the_same_spectrogram() -> None:
    plain, stored = pann(), pann(stored_fourier=True)
    for basis in stored.spectrogram_extractor.stft.values():
        basis.reset_parameters()
    waveform = torch.rand(2, 3001) * 2.0 - 1.0
    expected = plain.spectrogram(waveform)
    torch.testing.assert_close(stored.spectrogram(waveform), expected, atol=1e-4 * float(expected.max()), rtol=1e-4)
    names = {name for name, _ in stored.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert names == {f"spectrogram_extractor.stft.conv_{part}.weight" for part in ("real", "imag")}
    assert not any(stored.get_parameter(name).requires_grad for name in names)


@pytest.mark.parametrize("samples", [1, 100, 300, 12_345])
def test_sounds_of_any_length_have_features(samples: int) -> None:
    features = pann(channels=[2, 2, 4])(torch.rand(1, samples))
    frames = max(samples, 300) // 100 + 1  # three hops are needed to halve twice
    assert features.shape == (1, 4, frames // 4, 16)
    assert bool(features.isfinite().all())


def test_silence_has_finite_features_in_half_precision() -> None:
    model = pann().to(torch.float16)
    with torch.inference_mode():
        log_mel = model.logmel_extractor(model.spectrogram(torch.zeros(1, 4000, dtype=torch.float16)))
    assert log_mel.dtype == torch.float32
    assert bool((log_mel == -100.0).all())


def log_mel(model: UnivalForConditionalGeneration) -> torch.Tensor:
    """Return the levels in dB of a sound with quiet bands: noise whose power falls with the frequency."""
    encoder = model.encoder.embed_audios
    spectrum = torch.fft.rfft(torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)))
    sound = torch.fft.irfft(spectrum / (1.0 + torch.arange(spectrum.shape[1])) ** 1.5, 4000)
    return encoder.logmel_extractor(encoder.spectrogram(sound / sound.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_audio_front_end_of_a_cast_model_computes_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    config = tiny.UnivalConfig(**tiny.SIZES, audio_encoder=tiny.AUDIO_ENCODER | {"stored_fourier": True})
    model = tiny.UnivalForConditionalGeneration(config).eval()
    expected = log_mel(model)
    model.save_pretrained(tmp_path / "whole")
    built = AutoModelForSeq2SeqLM.from_config(config, dtype=dtype)
    loaded = tiny.UnivalForConditionalGeneration.from_pretrained(tmp_path / "whole", dtype=dtype)
    moved = copy.deepcopy(model).to(dtype)
    named = copy.deepcopy(model).half() if dtype == torch.float16 else copy.deepcopy(model).bfloat16()
    loaded.save_pretrained(tmp_path / "cast")
    assert json.loads((tmp_path / "cast" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    again = tiny.UnivalForConditionalGeneration.from_pretrained(tmp_path / "cast", dtype="auto")
    widened = tiny.UnivalForConditionalGeneration.from_pretrained(tmp_path / "cast", dtype=torch.float32)
    for cast in (built, loaded, moved, named, again):
        assert cast.encoder.audio_proj.weight.dtype == dtype
        assert torch.equal(log_mel(cast), expected)
    assert torch.equal(log_mel(widened), expected)
    assert torch.equal(log_mel(moved.float()), expected)
    assert named.to("meta").encoder.embed_audios.logmel_extractor.melW.device.type == "meta"


def test_tables_of_a_new_model_are_filled() -> None:
    model = tiny.UnivalForConditionalGeneration(
        tiny.UnivalConfig(**tiny.SIZES, audio_encoder=tiny.AUDIO_ENCODER | {"stored_fourier": True})
    )
    encoder = model.encoder.embed_audios.eval()
    real, imaginary = encoder.spectrogram_extractor.stft.values()
    assert float(real.weight[0].sum()) == pytest.approx(64.0)  # the window of 128 samples
    assert float(imaginary.weight[0].abs().max()) == 0.0
    torch.testing.assert_close(encoder.logmel_extractor.melW.data, encoder.logmel_extractor.filter_bank())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("beit_base_patch16_224", {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}),
        ("vit_small_patch16_dinov3", {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 2}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
        ),
    ],
)
def test_backbones_with_tables_that_are_not_stored_come_back_from_a_folder(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    model = tiny.build_model(image_encoder={"name": name, **options})
    inputs = {
        "input_ids": torch.tensor([[5, 6]]),
        "labels": torch.tensor([[5, 6]]),
        "pixel_values": torch.rand(1, 3, 32, 32),
    }
    expected = model(**inputs).logits
    media = model.encoder.encode_media(inputs["pixel_values"])
    assert media is not None
    assert media.tokens.shape[1] == {"beit": 4, "vit_": 4, "swin": 16}[name[:4]]  # a row per place, not per channel
    model.save_pretrained(tmp_path)
    again = UnivalForConditionalGeneration.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**inputs).logits, expected)
