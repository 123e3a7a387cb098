"""The tiny model against numbers recorded from the original research code (random weights, float32, CPU).

Both sides fill weights and inputs by one recipe. By default media features are injected after the projection, so that
the Transformer and its position tables are checked in seconds; the forward cases run everywhere, on a copy.
The whole model with the original's ResNet-50, 3D ResNeXt-50 and Cnn14 is marked slow.
"""

import random

import pytest
import torch

from tests.parity import golden, recipe
from tests.parity.golden import GOLDEN, MISSING, TINY, read_cases
from unival.model.modeling import UnivalForConditionalGeneration

FORWARD = "tiny_forward"
needs_golden = pytest.mark.skipif(not golden.HAS_GOLDEN, reason=MISSING)

# Our batches do not mix a row that has its picture with one that has none, or codes with text: row by row.
ROW_BY_ROW = {"image_masked", "code_mixed"}
NO_COUNTERPART = {
    "mixed_types",  # a picture and a clip in one batch, which we refuse; the original ignores the clip
    "two_pictures",  # the original fails
}
NEEDS_BACKBONE = {"sampled_patches"}  # its features were not recorded
CASES = {case["name"]: case for case in read_cases(FORWARD) if case["name"] not in NO_COUNTERPART}
WITH_MEDIA = sorted(name for name, case in CASES.items() if golden.modality_of(case) is not None)


@pytest.fixture(scope="module")
def model() -> UnivalForConditionalGeneration:
    return golden.build_tiny(has_encoders=False)


@pytest.mark.parametrize("name", sorted(CASES.keys() - ROW_BY_ROW - NEEDS_BACKBONE))
def test_transformer_computes_what_the_original_computed(model: UnivalForConditionalGeneration, name: str) -> None:
    golden.check_forward(model, CASES[name], FORWARD, golden.inject(model, CASES[name]))


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("name", sorted(ROW_BY_ROW))
def test_a_row_of_a_mixed_batch_is_that_row_alone(model: UnivalForConditionalGeneration, name: str, row: int) -> None:
    golden.check_forward(model, CASES[name], FORWARD, golden.inject(model, CASES[name], row), row)


@needs_golden
@pytest.mark.parametrize("name", sorted(set(WITH_MEDIA) - NEEDS_BACKBONE))
def test_media_position_ids_are_the_originals(name: str) -> None:
    golden.check_position_ids(CASES[name], FORWARD, TINY["image_bucket_size"])


@pytest.fixture(scope="module")
def whole_model() -> UnivalForConditionalGeneration:
    return golden.build_tiny(has_encoders=True)


@needs_golden
def test_the_recipe_makes_the_recorded_weights() -> None:
    keys = golden.read_json("base_keys.json")["base_image_video_audio"]
    sizes = {name: entry["shape"] for name, entry in keys.items() if entry["dtype"] == "float32"}
    checked = 0
    for name, expected in golden.read_json("recipe_probe.json").items():
        if name in sizes:
            weight = recipe.weight_for(name, sizes[name], 0, GOLDEN)
            assert weight.flatten()[:4].tolist() == expected["first"], name
            assert float(weight.double().sum()) == pytest.approx(expected["sum"], rel=1e-9, abs=1e-9), name
            checked += 1
    assert checked >= 10


@needs_golden
def test_names_shapes_and_number_of_parameters_are_the_originals() -> None:
    with torch.device("meta"):
        model = UnivalForConditionalGeneration(golden.UnivalConfig(**TINY, **golden.TINY_ENCODERS))
    golden.check_names(model, golden.read_json("tiny_keys.json"))
    expected = golden.read_json("configs.json")["tiny"]["parameters"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@needs_golden
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(WITH_MEDIA) - ROW_BY_ROW - NEEDS_BACKBONE))
def test_whole_model_computes_what_the_original_computed(
    whole_model: UnivalForConditionalGeneration, name: str
) -> None:
    case = CASES[name]
    golden.check_backbone(whole_model, case, FORWARD)
    golden.check_forward(whole_model, case, FORWARD, golden.media_of(case, FORWARD))


@needs_golden
@pytest.mark.slow
def test_sampled_patches_are_those_of_the_original(whole_model: UnivalForConditionalGeneration) -> None:
    case = CASES["sampled_patches"]
    random.seed(case["python_random_seed"])
    golden.check_forward(whole_model, case, FORWARD, golden.media_of(case, FORWARD))
