"""Networks from local files: nothing is downloaded, and a stand-in for CLIP is batched correctly."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from unival.errors import UserError
from unival.metrics.feature_models import ClipModel, load_clip, load_inception
from unival.metrics.fid import clip_similarity


class TinyClip(torch.nn.Module):
    """Embeds a picture by its mean colour and a text by the numbers it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return images.mean(dim=(2, 3))

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.float()


def to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)


def tokenize(texts: Sequence[str]) -> torch.Tensor:
    colours = {"red": [1, 0, 0], "grey": [1, 1, 1]}
    return torch.tensor([colours[text] for text in texts])


def test_clip_scores_pictures_against_their_texts_in_batches() -> None:
    model = TinyClip()
    clip = ClipModel(model, to_tensor, tokenize, batch_size=2)
    pictures = [Image.new("RGBA", (4, 4), colour) for colour in ("red", "white", "red")]
    scores = clip_similarity(clip.images(pictures), clip.texts(["red", "grey", "grey"]))
    assert scores.per_sample.tolist() == pytest.approx([100.0, 100.0, 100 / np.sqrt(3)])
    assert model.batches == [2, 1]
    with pytest.raises(UserError, match="nothing to encode"):
        clip.images([])


def test_a_missing_file_is_an_error_and_no_download(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is downloaded"):
        load_clip("ViT-B-16", tmp_path / "absent.bin")
    with pytest.raises(UserError, match="nothing is downloaded"):
        load_inception(tmp_path / "absent.pth")


class TinyInception(torch.nn.Module):
    """Stands in for torch-fidelity's class: loads like it, in the unsafe way."""

    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features == ["2048", "logits_unbiased"]
        self.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = images.float().mean(dim=(2, 3)) * self.scale
        return mean, torch.log(mean)


@pytest.fixture
def fake_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = TinyInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("fake_package")
def test_inception_gives_features_and_probabilities(tmp_path: Path) -> None:
    torch.save({"scale": torch.tensor([2.0])}, tmp_path / "weights.pth")
    extract = load_inception(tmp_path / "weights.pth")
    images = torch.tensor([1, 2, 5], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)
    features, probabilities = extract(images)
    np.testing.assert_allclose(features, [[2, 4, 10]] * 2)
    np.testing.assert_allclose(probabilities, [[1 / 8, 2 / 8, 5 / 8]] * 2, rtol=1e-6)
    with pytest.raises(UserError, match="pass uint8"):
        extract(images.float())


@pytest.mark.usefixtures("fake_package")
def test_inception_weights_are_read_as_data(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "canary",))

    torch.save({"scale": Hostile()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="refused"):
        load_inception(tmp_path / "weights.pth")
    assert not (tmp_path / "canary").exists()
    torch.save({"other": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="not the weights of this network"):
        load_inception(tmp_path / "weights.pth")


def test_an_unknown_architecture_has_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'ViT-B-16'"):
        load_clip("ViT-B16", tmp_path / "absent.bin")
