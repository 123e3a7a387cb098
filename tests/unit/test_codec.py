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
from unival.checkpoint import save_model
from unival.cli import app
from unival.codec.base import load_codec, to_grid, to_picture, to_pixels
from unival.codec.layers import nearest
from unival.codec.running_table import RunningTable, spread
from unival.codec.train import SMALL, colour_axes, fit, initialised, picture_loss, save_codec, train_codec
from unival.codec.vqgan import VQGAN, CodecConfig, inferred_config
from unival.data.scenes import ImageScenes
from unival.draw import caption_scores, draw
from unival.errors import UserError, run_cli
from unival.objectives.cross_entropy import Objective as CrossEntropy
from unival.tasks.base import get_task

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


def squares(number: int) -> torch.Tensor:
    """Return pictures (number, 3, 16, 16) of one coloured square each on a coloured ground."""
    colours = torch.rand(2, number, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = colours[0].expand(number, 3, 16, 16).clone()
    pictures[:, :, 4:10, 5:11] = colours[1]
    return pictures


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_codec_lets_colours_pass(seed: int) -> None:
    torch.manual_seed(seed)
    pictures = squares(32)  # whose mean colours deviate by 0.52

    @torch.no_grad()
    def deviation(network: VQGAN) -> float:
        return network.restore(network.features(pictures)).mean((2, 3)).std(0).mean().item()

    # As PyTorch draws it, it is below 0.02: trained from there, a codec learned shapes and no colours.
    assert deviation(VQGAN(SMALL)) < 0.04
    assert deviation(initialised(VQGAN(SMALL))) > 0.06  # 0.09 at least for twelve seeds


def test_a_small_codec_learns_the_colours_of_backgrounds_and_things() -> None:
    torch.manual_seed(0)
    pictures = squares(16)
    network = fit(initialised(VQGAN(replace(SMALL, num_codes=64))), pictures, steps=60, batch_size=8, lr=3e-3)
    codes = network.encode(pictures)
    error = (network.decode(codes) - pictures).mean((2, 3)).abs().mean() * 127.5
    assert error < 25  # 14 levels here, 34 with PyTorch's start
    assert len(codes.unique()) > 45  # 61 here, 38 with PyTorch's start


def test_an_error_of_a_rare_hue_costs_more_than_one_of_brightness() -> None:
    torch.manual_seed(0)
    brightness, hue = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([-0.5, 1.0, -0.5])
    amounts = torch.randn(4, 8, 8, 2) * torch.tensor([0.5, 0.1])
    pictures = (amounts[..., :1] * brightness + amounts[..., 1:] * hue).movedim(-1, 1)
    pictures += 0.01 * torch.randn_like(pictures)
    axes = colour_axes(pictures)
    turned = torch.einsum("ac,bchw->abhw", axes, pictures).flatten(1)
    assert torch.allclose(turned.cov(), turned[0].var() * torch.eye(3), atol=1e-3)  # all axes weigh the same
    costs = []
    for direction in (brightness, hue):
        error = 0.1 * direction / direction.norm()
        costs.append(picture_loss(pictures + error[:, None, None], pictures, axes).item())
    assert costs[1] > 1.5 * costs[0]
    assert picture_loss(pictures, pictures, axes) == 0.0


def test_a_table_starts_from_features_and_follows_their_means() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    often = torch.tensor([0] * 97 + [1, 2, 3])  # nearly all is background, as in pictures
    features = (centres[often] + 0.01 * torch.randn(100, 2)).T.view(1, 2, 10, 10)
    drawn = spread(features[0].flatten(1).T, 4)
    assert sorted(drawn.round().tolist()) == sorted(centres.tolist())
    table = torch.zeros(4, 2)
    running = RunningTable(table, features)
    codes = nearest(features, table)
    assert len(codes.unique()) == 4
    for _ in range(400):
        running.follow(features + 1.0, codes, may_move=False)
    background = codes.flatten()[0]
    mean = (features + 1.0).flatten(2)[0, :, codes.flatten() == background].mean(1)
    assert torch.allclose(table[background], mean, atol=1e-3)  # 0.98 ** 400 of the start is left


def test_a_vector_that_nothing_uses_moves_to_where_the_table_is_worst() -> None:
    torch.manual_seed(0)
    features = torch.zeros(1, 2, 4, 4)
    table = torch.zeros(2, 2)
    running = RunningTable(table, features)
    features[0, :, 3, 3] = 7.0
    codes = torch.zeros(1, 4, 4, dtype=torch.int64)  # the second vector is never used
    for may_move in (False, True):
        for _ in range(300):
            running.follow(features, codes, may_move)
        assert torch.allclose(table[1], torch.full((2,), 7.0 if may_move else 0.0))


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
    (tmp_path / "\N{DOG FACE}: rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    coded, options = tmp_path / "coded.jsonl", ["--codec", tmp_path / "codec", "--json"]
    assert run("codec", "encode", tmp_path / "\N{DOG FACE}: rows.jsonl", coded, *options, "--side", 16) == 0
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
    wrong = {
        b'{"uid": "1"}': "a row has no codes",
        b'{"codes": [true, false, true, true]}': "a row has no codes",
        b"\xff\xfe": "no JSON object",
        b"[" * 100_000: "no JSON object",
    }
    for content, message in wrong.items():
        coded.write_bytes(content)
        assert run("codec", "decode", coded, tmp_path, *options) == 2
        assert message in capsys.readouterr().err


def test_pictures_of_the_world_are_encoded_once_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_codec(codec(TINY), tmp_path / "codec")
    out, options = tmp_path / "coded.jsonl", ["--codec", tmp_path / "codec", "--side", 16]
    source = "{world: train, limit: 3, content: detailed_caption, options: {max_objects: 1}}"
    assert run("codec", "encode", source, out, *options) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    scenes = ImageScenes("train", max_objects=1)
    assert [row["caption"].rpartition(" on ")[0] for row in rows] == [scenes[index].caption for index in range(3)]
    pixels = torch.stack([to_pixels(scenes[index].image, 16) for index in range(3)])
    assert [row["codes"] for row in rows] == load_codec(tmp_path / "codec").encode(pixels).flatten(1).tolist()
    for wrong, message in (("{world: tset}", "did you mean 'test'"), ("{world: [}", "not valid YAML")):
        assert run("codec", "encode", wrong, out, *options) == 2
        assert message in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 3


def test_captions_are_drawn_alike_with_one_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    save_model(model, tiny.model(), tiny.processor())
    asked = ["draw", "a cat", "a dog", "--model", model, "-o", tmp_path / "drawn", "--samples", 2, "--topk", 8]
    assert run(*asked) == 2
    assert "the model has no codec" in capsys.readouterr().err
    save_codec(codec(replace(TINY, num_codes=tiny.NUM_CODES - 1)), tmp_path / "small")
    assert run(*asked, "--codec", tmp_path / "small", "--samples", 1, "--topk", 10**6) == 2
    assert "give the codec that the model was trained with" in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()
    save_codec(codec(replace(TINY, num_codes=tiny.NUM_CODES)), model / "codec")
    found = []
    for seed in (0, 0, 1):
        assert run(*asked, "--seed", seed, "--json") == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["caption"] for row in rows] == ["a cat", "a dog"]
        found.append([np.asarray(Image.open(row["picture"])) for row in rows])
    assert found[0][0].shape == (8, 8, 3)  # 4 x 4 codes of 2 pixels
    assert all(np.array_equal(one, other) for one, other in zip(found[0], found[1], strict=True))
    assert not np.array_equal(found[0][0], found[2][0])
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["000001-a_cat.png", "000002-a_dog.png"]
    assert run(*asked, "-o", model / "config.json") == 2
    assert "is not a folder" in capsys.readouterr().err
    assert run("draw", " ", "--model", model) == 2
    assert "caption 0 is empty" in capsys.readouterr().err


def test_a_judge_chooses_the_drawing_to_which_it_gives_the_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, tiny.model(), tiny.processor())
    save_codec(codec(replace(TINY, num_codes=tiny.NUM_CODES)), tmp_path / "codec")
    pictures = [tiny.picture(index) for index in range(3)]
    scores = caption_scores(tiny.model(), tiny.processor(), pictures, "a red cat")
    for picture, score in zip(pictures, scores, strict=True):
        example = get_task("caption", {}).example({"uid": "0", "image": picture, "caption": "a red cat"})
        batch = tiny.processor().collate([example])
        assert batch.target is not None
        loss = CrossEntropy(tiny.processor())(tiny.model(), batch)
        assert float(score) == pytest.approx(-loss.value.item() * loss.size, rel=1e-5)
    seen: list[Any] = []

    def second(model: Any, processor: Any, drawn: Any, caption: str) -> torch.Tensor:
        seen.append((drawn, caption))
        return torch.tensor([0.0, 1.0, -1.0])

    monkeypatch.setattr("unival.draw.caption_scores", second)
    (chosen,) = draw(["a cat"], tmp_path, samples=3, topk=8, judge=tmp_path)
    ((drawn, caption),) = seen
    assert caption == "a cat"
    assert len({one.tobytes() for one in drawn}) == 3
    assert np.array_equal(chosen, drawn[1])
    with pytest.raises(UserError, match="the judge cannot read pictures"):
        draw(["a cat"], tmp_path, judge="unival-tiny-pictures")


def test_wrong_places_and_descriptions_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_codec(codec(TINY), tmp_path / "codec")
    Image.fromarray(tiny.picture()).save(tmp_path / "0.png")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"uid": "0", "image": "0.png", "caption": "a cat"}')
    before = rows.read_bytes()
    encode = ["codec", "encode", rows]
    for out, message in ((rows, "would replace"), (tmp_path, "Is a directory"), (rows / "x", "File exists")):
        assert run(*encode, out, "--codec", tmp_path / "codec", "--side", 16) == 2
        assert message in capsys.readouterr().err
    assert run("codec", "train", rows, "--steps", 10**9) == 2  # before it begins
    assert "File exists" in capsys.readouterr().err
    for content in (b"[]", b"{", b"\xff\xfe"):
        (tmp_path / "codec" / "codec.json").write_bytes(content)
        assert run(*encode, tmp_path / "c.jsonl", "--codec", tmp_path / "codec") == 2
        assert "not the description of a codec: " in capsys.readouterr().err
    assert rows.read_bytes() == before
