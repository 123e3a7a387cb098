"""The prompts of our tasks in the ids of the original's tokenizer (specification 3.4)."""

from typing import Any

import pytest

from tests.parity.golden import GOLDEN, HAS_GOLDEN, MISSING
from unival.model.processing import UnivalProcessor
from unival.model.tokenizer import load_bpe_tokenizer
from unival.tasks.base import get_task

pytestmark = pytest.mark.skipif(not HAS_GOLDEN, reason=MISSING)
ROW: dict[str, Any] = {"uid": "1", "image": "a.png", "video": "a.mp4", "audio": "a.wav", "width": 512, "height": 512}
BOX, BIN = [0, 512, 100, 511], 58457


@pytest.fixture(scope="module")
def processor() -> UnivalProcessor:
    return UnivalProcessor(load_bpe_tokenizer(GOLDEN / "bpe"), num_bins=1000)


CASES: list[tuple[str, dict[str, Any], dict[str, Any], list[int], list[int] | None]] = [
    ("caption", {}, {"caption": "Yes!"}, [99, 473, 5, 2274, 6190, 116], None),
    ("caption", {"modality": "video"}, {"caption": ""}, [99, 473, 5, 569, 6190, 116], None),
    ("caption", {"modality": "audio"}, {"caption": ""}, [99, 473, 5, 569, 6190, 116], None),
    ("caption", {"modality": "audio", "corrected": True}, {"caption": ""}, [99, 473, 5, 6086, 6190, 116], None),
    (
        "grounding",
        {"num_bins": 1000},
        {"text": "A red car", "box": BOX},
        [61, 976, 473, 5, 2788, 22, 10, 1275, 512, 22, 6190, 116],
        [BIN, BIN + 999, BIN + 195, BIN + 997],
    ),
    (
        "grounded_caption",
        {"num_bins": 1000},
        {"text": "yes", "box": BOX},
        [1437, 99, 473, 5, 976, 6190, 116, 976, 35, BIN, BIN + 999, BIN + 195, BIN + 997],
        [4420],
    ),
    ("entailment", {}, {"text": "A dog", "label": "neutral"}, [473, 5, 2274, 6190, 22, 10, 2335, 22, 116], [2085]),
    ("matching", {}, {"text": "A dog", "label": "no"}, [473, 5, 2274, 6190, 22, 10, 2335, 22, 116], [117]),
    (
        "text_to_image",
        {},
        {"caption": "a dog", "codes": [0, 8191]},
        [99, 16, 5, 1498, 2274, 116, 3747, 35, 10, 2335],
        [50265, 58456],
    ),
]


@pytest.mark.parametrize(("name", "args", "record", "prompt", "target"), CASES)
def test_prompts_and_targets_have_the_ids_of_the_original(
    processor: UnivalProcessor,
    name: str,
    args: dict[str, Any],
    record: dict[str, Any],
    prompt: list[int],
    target: list[int] | None,
) -> None:
    example = get_task(name, args).example(ROW | record)
    assert processor.encode([example.prompt]) == [[0, *prompt, 2]]
    if target is not None:
        assert processor.encode([example.target]) == [[0, *target, 2]]
