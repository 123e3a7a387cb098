"""How the encoders of `unival-tiny` learn: packed pictures, the classifier's start, and an interrupted training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unival.data import world
from unival.data.scenes import ImageScenes
from unival.tiny import pretrain_encoder
from unival.tiny.packed import SCENE_EVERY, PackedScenes
from unival.tiny.pretrain_encoder import Encoder, image_cells, looks, pretrain

# With 4 channels oneDNN (torch 2.11) corrupts memory in the backward pass of channels-last convolutions.
SMALL = {"name": "resnet18", "out_index": 3, "channels": [16, 16, 16], "layers": [1, 1, 1]}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_packed_picture_shows_a_grid_of_concepts_that_its_split_owns(split: str) -> None:
    pictures = PackedScenes(split)
    for index in (1, 2, 3, 5, 6):
        scene = pictures[index]
        assert len(scene.objects) in (4, 9)
        assert world.split_of(obj.concept for obj in scene.objects) == split
        for obj in scene.objects:
            x0, y0, x1, y1 = obj.box
            assert 0 <= x0 < x1 <= 96
            assert 0 <= y0 < y1 <= 96
        centres = np.array([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] for box in (o.box for o in scene.objects)])
        apart = np.abs(centres[:, None] - centres[None]).max(-1) + 96 * np.eye(len(centres))
        assert apart.min() > 15  # px: objects stand beside each other


def test_every_cell_of_a_packed_picture_that_an_object_covers_has_its_label() -> None:
    scene = next(scene for scene in map(PackedScenes("train").__getitem__, (1, 2, 3)) if len(scene.objects) == 9)
    pixels, labels, _, boxes, _ = image_cells(scene, (6, 6))
    assert pixels.shape == (3, 96, 96)
    assert set(labels.flatten().tolist()) - {-1} <= {obj.concept for obj in scene.objects}
    assert (labels >= 0).sum() > 18  # more than half of the cells
    for obj in scene.objects:
        assert np.allclose(boxes[labels == obj.concept] * 96, obj.box)


def test_every_fourth_picture_is_a_scene_of_the_world() -> None:
    pictures, scenes = PackedScenes("train", seed=3), ImageScenes("train", seed=3)
    for number in range(3):
        assert np.array_equal(pictures[SCENE_EVERY * number].image, scenes[number].image)
    assert not np.array_equal(pictures[1].image, PackedScenes("train", seed=4)[1].image)


def test_concepts_that_look_alike_begin_with_weights_that_are_alike() -> None:
    torch.manual_seed(0)
    vectors = looks(192)
    names = [concept.name for concept in world.concepts()]
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(names)))

    def likeness(first: str, second: str) -> float:
        return float(vectors[names.index(first)] @ vectors[names.index(second)])

    assert likeness("four o'clock", "five o'clock") > 0.5 > likeness("four o'clock", "banana")


def test_an_interrupted_training_comes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_encoder, "SAVE_EVERY", 2)
    monkeypatch.setattr(pretrain_encoder, "TEST_BATCHES", 1)
    arguments: Any = {"modality": "image", "options": SMALL, "steps": 5, "batch": 2}
    scores = pretrain(out=tmp_path / "whole.safetensors", **arguments)
    assert set(scores) == {"label", "box_error", "group", "colour"}

    calls, loss = [], Encoder.loss

    def stop_in_the_fourth(self: Encoder, *cells: Tensor) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(self, *cells)

    out = tmp_path / "halves.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "loss", stop_in_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            pretrain(out=out, **arguments)
    assert not out.exists()
    assert pretrain(out=out, **arguments) == scores
    whole, halves = load_file(tmp_path / "whole.safetensors"), load_file(out)
    assert whole.keys() == halves.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, halves[name]), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["halves.safetensors", "whole.safetensors"]
