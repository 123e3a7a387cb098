"""Image codecs: names and sizes of taming's checkpoints, codes and back, the small trainable one, the commands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from tests import tiny
from unival.cli import app
from unival.codec.base import load_codec, to_grid, to_picture, to_pixels
from unival.codec.layers import nearest
from unival.codec.train import SMALL, save_codec, train_codec
from unival.codec.vqgan import VQGAN, CodecConfig, inferred_config
from unival.errors import UserError, run_cli

GUMBEL = CodecConfig(
    channels=32, multipliers=(1, 2), res_blocks=1, attention=(1,), z_channels=16, embed_dim=16, num_codes=40
)
NEAREST = CodecConfig(
    channels=32,
    multipliers=(1, 1, 2),
    res_blocks=2,
    attention=(),
    z_channels=8,
    embed_dim=4,
    num_codes=12,
    is_gumbel=False,
)
TINY = replace(SMALL, channels=4, multipliers=(1, 2), groups=2, num_codes=8, attention=())


def codec(config: CodecConfig) -> VQGAN:
    torch.manual_seed(3)
    return VQGAN(config).eval()


@pytest.mark.parametrize("config", [GUMBEL, NEAREST], ids=["gumbel", "nearest"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_checkpoint_of_taming_loads_without_its_configuration(
    config: CodecConfig, suffix: str, tmp_path: Path
) -> None:
    original = codec(config)
    path = tmp_path / f"model{suffix}"
    state = original.state_dict() | {"loss.discriminator.weight": torch.zeros(3)}
    if suffix == ".ckpt":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        save_file(state, path)
    loaded = load_codec(path)
    assert isinstance(loaded, VQGAN)
    assert loaded.config == config
    assert loaded.patch == 2 ** (len(config.multipliers) - 1)
    pixels = torch.stack([to_pixels(tiny.picture(seed), 24) for seed in range(2)])
    codes = loaded.encode(pixels)
    assert codes.shape == (2, 24 // loaded.patch, 24 // loaded.patch)
    assert torch.equal(codes, original.encode(pixels))
    assert torch.equal(loaded.decode(codes), original.decode(codes))
    assert loaded.decode(codes).shape == pixels.shape
    assert loaded.decode(codes).abs().max() <= 1.0


def test_names_are_those_of_taming() -> None:
    names = set(codec(GUMBEL).state_dict())
    assert {
        "encoder.down.0.block.0.norm1.weight",
        "encoder.down.0.downsample.conv.weight",
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down.1.attn.0.proj_out.weight",
        "encoder.mid.attn_1.q.weight",
        "encoder.norm_out.weight",
        "decoder.up.1.block.1.conv2.weight",
        "decoder.up.1.upsample.conv.weight",
        "decoder.up.0.block.0.nin_shortcut.weight",
        "decoder.conv_out.bias",
        "quantize.proj.weight",
        "quantize.embed.weight",
        "quant_conv.weight",
        "post_quant_conv.bias",
    } <= names
    assert "encoder.down.1.downsample.conv.weight" not in names
    assert "decoder.up.0.upsample.conv.weight" not in names
    assert "quantize.embedding.weight" in codec(NEAREST).state_dict()


def test_the_default_is_gumbel_f8_of_8192_codes() -> None:
    with torch.device("meta"):
        network = VQGAN(CodecConfig())
    assert (network.patch, network.num_codes) == (8, 8192)
    assert network.state_dict()["encoder.down.3.attn.1.q.weight"].shape == (512, 512, 1, 1)
    assert inferred_config(network.state_dict(), "") == CodecConfig()


def test_the_nearest_row_is_chosen() -> None:
    table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    features = torch.tensor([[0.9, 0.1], [0.1, 1.4], [-3.0, 0.2]]).T.view(1, 2, 1, 3)
    assert nearest(features, table).tolist() == [[[1, 2, 0]]]


def test_pixels_and_pictures_are_inverse() -> None:
    picture = tiny.picture(4)
    pixels = to_pixels(picture, 24)
    assert pixels.min() >= -1.0
    assert pixels.max() <= 1.0
    assert np.array_equal(to_picture(pixels), picture)


def test_gradients_reach_encoder_decoder_and_table() -> None:
    network = codec(TINY).train()
    pixels = torch.stack([to_pixels(tiny.picture(seed), 16) for seed in range(2)])
    restored, table_loss, _ = network(pixels)
    (F.l1_loss(restored, pixels) + table_loss).backward()
    for name in ("encoder.conv_in.weight", "decoder.conv_in.weight", "quantize.embedding.weight"):
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantize.proj.bias": None}, "quantize.proj.bias"),
        ({"quant_conv.weight": torch.zeros(3, 3, 1, 1)}, "quant_conv.weight"),
        ({"quantize.used": torch.zeros(3)}, "quantize.used"),
        ({"encoder.conv_in.weight": None}, "no VQGAN: encoder.conv_in.weight is missing"),
    ],
)
def test_other_checkpoints_are_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {k: v for k, v in (codec(GUMBEL).state_dict() | change).items() if v is not None}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_codec(tmp_path / "model.safetensors")


def test_codes_must_fill_a_square_and_exist() -> None:
    assert to_grid([1, 2, 3, 0], 4).tolist() == [[[1, 2], [3, 0]]]
    for codes, message in (([1, 2, 3], "3 codes fill no square"), ([], "0 codes"), ([1, 2, 3, 4], "code 4 is none")):
        with pytest.raises(UserError, match=message):
            to_grid(codes, 4)
    with pytest.raises(UserError, match=r"21x24 cannot be cut into squares of 2"):
        codec(GUMBEL).encode(torch.zeros(1, 3, 24, 21))


def test_a_small_codec_learns_and_is_written(tmp_path: Path) -> None:
    report = train_codec(tmp_path / "a", steps=20, batch_size=4, num_pictures=8, config=TINY, num_test=4)
    untrained = codec(TINY)
    save_codec(untrained, tmp_path / "b")
    assert report["mean_absolute_error"] < 127
    assert report["codes_used"] > 1
    assert json.loads((tmp_path / "a" / "evaluation.json").read_text()) == report
    loaded = load_codec(tmp_path / "a")
    assert isinstance(loaded, VQGAN)
    assert loaded.config == TINY  # with the groups, which tensors do not show
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"codec.json", "evaluation.json", "model.safetensors"}


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        run_cli(app, [str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int | None)
    return caught.value.code or 0


def test_pictures_go_to_codes_and_back_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_codec(codec(TINY), tmp_path / "codec")
    for index in range(3):
        Image.fromarray(tiny.picture(index)).save(tmp_path / f"{index}.png")
    rows = [{"uid": f"a/{i}", "image": f"{i}.png", "caption": "a cat"} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    coded, options = tmp_path / "coded.jsonl", ["--codec", tmp_path / "codec", "--json"]
    assert run("codec", "encode", tmp_path / "rows.jsonl", coded, *options, "--side", 16) == 0
    assert json.loads(capsys.readouterr().out)["codes"] == 64
    written = [json.loads(line) for line in coded.read_text().splitlines()]
    assert [set(row) for row in written] == [{"uid", "caption", "codes"}] * 3
    assert all(len(row["codes"]) == 64 for row in written)
    assert run("codec", "decode", coded, tmp_path / "pictures", *options) == 0
    paths = json.loads(capsys.readouterr().out)["pictures"]
    assert [Path(path).name for path in paths] == [f"00000{i + 1}-a_{i}.png" for i in range(3)]
    with Image.open(paths[0]) as picture:
        assert picture.size == (16, 16)
    assert run("codec", "decode", tmp_path / "none.jsonl", tmp_path, *options) == 2
    assert "no such file" in capsys.readouterr().err
    coded.write_text('{"uid": "1"}')
    assert run("codec", "decode", coded, tmp_path, *options) == 2
    assert "a row has no codes" in capsys.readouterr().err
