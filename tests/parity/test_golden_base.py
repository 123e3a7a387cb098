"""The model of `configs/model/base*.yaml` against the released architecture: names, shapes, sizes, recorded outputs.

The forward cases take about two minutes of a free processor core and 3 GB, so they are marked slow.
"""

from typing import Any

import pytest
import torch
from pydantic import BaseModel

from tests.parity import golden
from tests.parity.golden import HAS_GOLDEN, MISSING, ROOT, find, read_cases
from unival.config import load_config
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.norm import FrozenBatchNorm

needs_golden = pytest.mark.skipif(not HAS_GOLDEN, reason=MISSING)
FORWARD = "base_forward"
NAMES = [case["name"] for case in read_cases(FORWARD)]
SIZES = {"vocab_size": 59457, "num_codes": 8192, "num_bins": 1000}


class ModelFile(BaseModel):
    """What files under `configs/model` hold."""

    model: dict[str, Any]
    processor: dict[str, Any]
    tokenizer: dict[str, Any]


def configuration(name: str, **changes: Any) -> UnivalConfig:
    file = load_config(ROOT / "configs" / "model" / f"{name}.yaml", [], ModelFile)
    return UnivalConfig(**(SIZES | file.model | changes))


def empty(name: str, **changes: Any) -> UnivalForConditionalGeneration:
    """Make a model without memory for its weights."""
    with torch.device("meta"):
        return UnivalForConditionalGeneration(configuration(name, **changes))


def num_parameters(model: UnivalForConditionalGeneration) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("base", {"video_encoder": None}, 200_038_704),
        ("base", {}, 250_489_072),
        ("base_audio", {}, 329_979_120),
        ("large", {}, 542_466_216),
    ],
)
def test_sizes_are_the_originals(name: str, changes: dict[str, Any], expected: int) -> None:
    assert num_parameters(empty(name, **changes)) == expected


@needs_golden
@pytest.mark.parametrize(("name", "keys"), [("base", "base_image_video"), ("base_audio", "base_image_video_audio")])
def test_names_and_shapes_are_the_originals(name: str, keys: str) -> None:
    golden.check_names(empty(name), golden.read_json("base_keys.json")[keys])


def test_frozen_norms_leave_out_counters_and_train_nothing() -> None:
    config = configuration("base")
    assert config.image_encoder is not None
    assert config.video_encoder is not None
    frozen = {"frozen_norm": True}
    model = empty("base", image_encoder=config.image_encoder | frozen, video_encoder=config.video_encoder | frozen)
    names = set(empty("base").state_dict())
    left_out = {name for name in names if name.endswith("num_batches_tracked")}
    assert len(left_out) == 208
    assert set(model.state_dict()) == names - left_out
    assert sum(isinstance(module, FrozenBatchNorm) for module in model.modules()) == 208
    assert not any(".bn" in name or "downsample.1" in name for name, _ in model.named_parameters())


@needs_golden
@pytest.mark.parametrize("name", [name for name in NAMES if golden.modality_of(find(FORWARD, name)) is not None])
def test_media_position_ids_are_the_originals(name: str) -> None:
    golden.check_position_ids(find(FORWARD, name), FORWARD, 42)


@pytest.fixture(scope="module")
def model() -> UnivalForConditionalGeneration:
    model = UnivalForConditionalGeneration(configuration("base_audio"))
    return golden.fill(model, model.state_dict())


@needs_golden
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "image_masked"])
def test_model_computes_what_the_original_computed(model: UnivalForConditionalGeneration, name: str) -> None:
    case = find(FORWARD, name)
    if golden.modality_of(case) is not None:
        golden.check_backbone(model, case, FORWARD)
    golden.check_forward(model, case, FORWARD, golden.media_of(case, FORWARD))


@needs_golden
@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 1])
def test_a_row_without_its_picture_is_a_row_of_text(model: UnivalForConditionalGeneration, row: int) -> None:
    case = find(FORWARD, "image_masked")
    golden.check_forward(model, case, FORWARD, golden.media_of(case, FORWARD), row)
