"""Scores of generated pictures on the command line, with stand-ins for the networks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unival.codec import score as module
from unival.codec.command import app
from unival.errors import UserError
from unival.metrics.feature_models import ClipModel
from unival.metrics.fid import FeatureStatistics, frechet_distance

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def extract(pictures: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour as features, and as a distribution over three classes."""
    assert pictures.dtype == torch.uint8
    assert pictures.shape[1] == 3
    colours = pictures.double().mean(dim=(2, 3)).numpy()
    return colours, (colours + 1) / (colours + 1).sum(axis=1, keepdims=True)


class Clip(torch.nn.Module):
    """Embeds a picture by its mean colour, a text by the colour that it names."""

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.float()


def to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture.resize((4, 4)), dtype=np.float32) / 255).permute(2, 0, 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, side in (("made", 8), ("real", 6)):
        (tmp_path / name).mkdir()
        for number, colour in enumerate(COLOURS):
            size = (side, side + number // 2)  # two sizes
            Image.new("RGB", size, colour).save(tmp_path / name / f"{number}.png")
    rows = [{"uid": str(number), "captions": [f"{colour}"]} for number, colour in enumerate(COLOURS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = ClipModel(Clip(), to_tensor, lambda texts: torch.tensor([json.loads(f"[{t[1:-1]}]") for t in texts]))
    monkeypatch.setattr(module, "load_inception", lambda path, device: extract)
    monkeypatch.setattr(module, "load_clip_folder", lambda path, device: model)
    monkeypatch.setattr(module, "load_clip", lambda name, path, device: model)
    return tmp_path


def scored(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    app(["score", *map(str, args), "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_pictures_are_scored_against_a_folder_statistics_and_captions(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = (folder / "made", "--inception", folder / "w.pth", "--clip", folder, "--captions", folder / "rows.jsonl")
    found = scored(capsys, *args, "--against", folder / "real")
    assert (found["pictures"], found["real"]) == (4, 4)
    assert found["fid"] == pytest.approx(0.0, abs=1e-6)  # the same colours
    assert found["clip_similarity"] == pytest.approx(100.0)
    assert found["inception_score"] >= 1.0
    other = FeatureStatistics.of([np.array(COLOURS[:3], dtype=float)])
    other.save(folder / "other.npz")
    made = FeatureStatistics.of([np.array(COLOURS, dtype=float)])
    expected = frechet_distance(made, other)
    found = scored(capsys, folder / "made", "--inception", "w.pth", "--against", folder / "other.npz")
    assert found["fid"] == pytest.approx(expected)
    assert scored(capsys, *args[:1], *args[3:], "--clip-name", "ViT-B-16")["clip_similarity"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["made"], "nothing to score with"),
        (["made", "--clip", "."], "--clip needs --captions"),
        (["made", "--clip", ".", "--captions", "rows.jsonl", "--against", "real"], "--against needs --inception"),
        (["nowhere", "--inception", "w"], "no such folder"),
        ([".", "--inception", "w"], "no pictures in this folder"),
        (["made", "--inception", "w", "--against", "absent.npz"], "no such file of feature statistics"),
        (["made", "--clip", ".", "--captions", "short.jsonl"], "4 pictures, 1 captions"),
        (["made", "--clip", ".", "--captions", "bare.jsonl"], "a row has no caption"),
    ],
)
def test_what_is_missing_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str) -> None:
    monkeypatch.chdir(folder)
    Path("short.jsonl").write_text('{"caption": "(1, 2, 3)"}')
    Path("bare.jsonl").write_text('{"uid": "1"}')
    with pytest.raises(UserError, match=message):
        app(["score", *args], standalone_mode=False)
