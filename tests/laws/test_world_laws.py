"""Laws of the embedded world: splits are disjoint, scenes depend on their index only, boxes are tight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unival.data import world
from unival.data.scenes import ImageScenes
from unival.data.sprites import BACKGROUNDS

INDICES = st.integers(0, 10**9 - 1)


def test_splits_never_share_a_set_of_concepts():
    sets = {}
    for split in world.SPLITS:
        scenes = ImageScenes(split, image_px=24, augment=False)
        rng = np.random.default_rng(0)
        sets[split] = {frozenset(o.concept for o in scenes[i].objects) for i in range(150)}
        for num in (1, 2, 3, 4) * 500:
            sets[split].add(frozenset(world.draw_concepts(rng, split, num, range(60))))
        assert all(world.split_of(members) == split for members in sets[split])
    assert not sets["train"] & sets["validation"]
    assert not sets["train"] & sets["test"]
    assert not sets["validation"] & sets["test"]


@given(st.lists(st.integers(0, 1051), min_size=1, max_size=4, unique=True), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_split_of_a_set_ignores_order_and_spelling(members, random):
    shuffled = random.sample(members, len(members))
    names = [world.concepts()[i].name for i in shuffled]
    assert world.split_of(members) == world.split_of(shuffled) == world.split_of(names)


def test_the_split_of_known_sets_is_fixed():
    """Pinned: a change would let a shipped model be tested on what it was trained on."""
    assert world.split_of(["cat"]) == "train"
    assert world.split_of(["cat", "dog"]) == "train"
    assert world.split_of(["bus", "cat", "dog", "red apple"]) == "validation"
    shares = [world.split_of([i]) for i in range(1052)]
    assert 0.07 < shares.count("test") / 1052 < 0.13
    assert 0.07 < shares.count("validation") / 1052 < 0.13


@given(INDICES, st.sampled_from(world.SPLITS), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_a_scene_is_a_function_of_its_index(index, split, seed):
    first = ImageScenes(split, image_px=48, seed=seed)[index]
    second = ImageScenes(split, image_px=48, seed=seed)[index]
    assert np.array_equal(first.image, second.image)
    assert first.objects == second.objects
    assert first.caption == second.caption


@given(INDICES, st.sampled_from([48, 64, 96, 130]), st.booleans(), st.sampled_from(world.styles()))
@settings(max_examples=60, deadline=None)
def test_boxes_are_tight_inside_and_apart(index, image_px, augment, style):
    scene = ImageScenes("train", styles=(style,), image_px=image_px, augment=augment)[index]
    assert scene.image.shape == (image_px, image_px, 3)
    painted = np.abs(scene.image.astype(int) - BACKGROUNDS[scene.background]).max(-1) > 8
    boxes = [obj.box for obj in scene.objects]
    outside = painted.copy()
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= image_px
        assert 0 <= y0 < y1 <= image_px
        assert max(x1 - x0, y1 - y0) >= 0.27 * image_px
        # Faint edges and shadows may reach a little further than what counts as visible.
        margin = 4 if augment else 2
        outside[max(int(y0) - margin, 0) : int(y1) + margin, max(int(x0) - margin, 0) : int(x1) + margin] = False
    assert outside.mean() < 0.002
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_augmentation_is_for_training_only(split):
    assert not ImageScenes(split).augment
    assert ImageScenes("train").augment
