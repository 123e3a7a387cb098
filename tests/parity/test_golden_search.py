"""The search against hypotheses recorded from the original research code (random weights, float32, CPU).

The cases without media run everywhere, on a copy. Those with media need the encoders, those of the base size 2 GB and
minutes: both are marked slow. The last tests use the numbers in section 13.4 of the specification, which have another
recipe for weights (sines), and record decoder prompts and the scores of answers as well.
"""

import math
import zlib
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity import golden
from tests.parity.golden import HAS_GOLDEN, MISSING, find, read_cases
from tests.parity.test_golden_base import configuration
from unival.generate import AnswerTrie, Hypothesis, SearchOptions, prompt_prefix, score_answers, search
from unival.model.modeling import UnivalForConditionalGeneration

PAD, EOS = 1, 2
SCORE_ATOL = 1e-4  # from the recordings' README; their rounding noise is up to 3e-5
# "Recorded to document the behaviour, not to be imitated": without answers, hypotheses may leave the prefix for tokens
# of one equal score, so that the order of ties decides.
LOOSE_PREFIX = "prefix"
GROUPS = ("tiny_search", "base_search")
NAMES = {group: [case["name"] for case in read_cases(group)] for group in GROUPS}
TEXT = [name for name in NAMES["tiny_search"] if golden.modality_of(find("tiny_search", name)) is None]
needs_golden = pytest.mark.skipif(not HAS_GOLDEN, reason=MISSING)


def run(model: UnivalForConditionalGeneration, case: dict[str, Any], group: str) -> list[list[Hypothesis]]:
    """Search with the options of a case."""
    options = dict(case["options"])
    answers = options.pop("answers", None)
    prefix = torch.tensor(case["prefix_tokens"]) if "prefix_tokens" in case else None
    inputs = {"input_ids": golden.value(case, group, "src_tokens")} | golden.media_of(case, group)
    with golden.options_of(model, case):
        trie = AnswerTrie(answers, EOS) if answers else None
        return search(model, inputs, SearchOptions.from_original(options), trie, prefix)


def check(found: list[list[Hypothesis]], case: dict[str, Any]) -> None:
    """Assert that the hypotheses are the recorded ones, in their order."""
    assert case["same_tokens_in_float64"]
    for ours, expected in zip(found, case["hypotheses"], strict=True):
        assert [hypothesis.tokens for hypothesis in ours] == [hypothesis["tokens"] for hypothesis in expected]
        for hypothesis, recorded in zip(ours, expected, strict=True):
            assert hypothesis.score == pytest.approx(recorded["score"], abs=SCORE_ATOL)
            assert hypothesis.positional_scores == pytest.approx(recorded["positional_scores"], abs=SCORE_ATOL)


@pytest.fixture(scope="module")
def model() -> UnivalForConditionalGeneration:
    return golden.build_tiny(has_encoders=False)


@pytest.fixture(scope="module")
def whole_model() -> UnivalForConditionalGeneration:
    return golden.build_tiny(has_encoders=True)


@pytest.fixture(scope="module")
def base_model() -> UnivalForConditionalGeneration:
    model = UnivalForConditionalGeneration(configuration("base", video_encoder=None))
    return golden.fill(model, model.state_dict())


@pytest.mark.parametrize("name", TEXT)
def test_search_finds_the_originals_hypotheses(model: UnivalForConditionalGeneration, name: str) -> None:
    case = find("tiny_search", name)
    check(run(model, case, "tiny_search"), case)


@pytest.mark.slow
@needs_golden
@pytest.mark.parametrize("name", sorted(set(NAMES["tiny_search"]) - {*TEXT, LOOSE_PREFIX}))
def test_search_about_media_finds_the_originals_hypotheses(
    whole_model: UnivalForConditionalGeneration, name: str
) -> None:
    case = find("tiny_search", name)
    check(run(whole_model, case, "tiny_search"), case)


@pytest.mark.slow
@needs_golden
def test_a_prefix_is_kept_where_the_original_may_leave_it(whole_model: UnivalForConditionalGeneration) -> None:
    case = find("tiny_search", LOOSE_PREFIX)
    num_shared = 0
    found = run(whole_model, case, "tiny_search")
    for row, recorded, padded in zip(found, case["hypotheses"], case["prefix_tokens"], strict=True):
        prefix = [token for token in padded if token != PAD]
        assert all(hypothesis.tokens[: len(prefix)] == prefix for hypothesis in row)
        scores = {tuple(hypothesis["tokens"]): hypothesis["score"] for hypothesis in recorded}
        shared = [hypothesis for hypothesis in row if tuple(hypothesis.tokens) in scores]
        num_shared += len(shared)
        for hypothesis in shared:
            assert hypothesis.score == pytest.approx(scores[tuple(hypothesis.tokens)], abs=SCORE_ATOL)
    assert num_shared > 0


@pytest.mark.slow
@needs_golden
@pytest.mark.parametrize("name", NAMES["base_search"])
def test_search_with_the_base_model_finds_the_originals_hypotheses(
    base_model: UnivalForConditionalGeneration, name: str
) -> None:
    case = find("base_search", name)
    check(run(base_model, case, "base_search"), case)


SOURCE = torch.tensor([[0, 99, 473, 5, 2274, 6190, 116, 2], [0, 16, 24, 1275, 116, 2, 1, 1]])
QUESTIONS = torch.tensor([[0, 99, 16, 24, 116, 2, 1, 1], [0, 16, 24, 10, 1275, 512, 116, 2]])
ANSWERS = [[4420], [117], [2085], [80, 3678], [80, 10017], [1275]]


def sines(name: str, shape: torch.Size) -> Tensor:
    """Return the weights of the specification's recipe (13.1) in float64."""
    phase = zlib.crc32(name.encode()) % 10007 / 10007 * 2.0 * math.pi
    wave = torch.sin(0.37 * torch.arange(1, shape.numel() + 1, dtype=torch.float64) + phase).reshape(shape)
    if name.endswith("running_mean"):
        return 0.05 * wave
    if name.endswith("running_var"):
        return 1.0 + 0.1 * wave
    if len(shape) > 1:
        return math.sqrt(2.0 / shape[1:].numel()) * wave
    return 1.0 + 0.1 * wave if name.endswith((".weight", "c_attn")) else 0.02 * wave


@pytest.fixture(scope="module")
def sine_model() -> UnivalForConditionalGeneration:
    """Return the base model for pictures with the specification's weights, in double precision."""
    model = UnivalForConditionalGeneration(configuration("base", video_encoder=None)).eval().double()
    state = model.state_dict()
    tied = {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.is_floating_point() and name not in tied:
                tensor.copy_(sines(name, tensor.shape))
    return model


def picture_inputs(source: Tensor) -> dict[str, Tensor]:
    """Return the specification's two pictures (13.2) with some prompts."""
    row, column, channel, index = (torch.arange(1, n + 1, dtype=torch.float64) for n in (96, 128, 3, 2))
    wave = 0.05 * channel[:, None, None] * row[:, None] + 0.11 * column
    return {"input_ids": source, "pixel_values": torch.sin(wave + (index - 1.0)[:, None, None, None])}


@pytest.mark.slow
def test_search_in_a_range_finds_what_the_specification_lists(sine_model: UnivalForConditionalGeneration) -> None:
    """Its searches over the whole vocabulary, which ties decide, are in `test_golden_ties.py`."""
    options = SearchOptions(min_len=4, max_len_b=4, constraint_range=(58457, 59457))
    found = [row[0] for row in search(sine_model, picture_inputs(SOURCE), options)]
    assert [h.tokens for h in found] == [[58487, 58478, 58877, 59041, 2], [59037, 58722, 59427, 58491, 2]]
    assert [h.score for h in found] == pytest.approx([-9.106211, -8.662895], abs=SCORE_ATOL)


@pytest.mark.slow
def test_answers_after_a_decoder_prompt_are_what_the_specification_lists(
    sine_model: UnivalForConditionalGeneration,
) -> None:
    inputs, trie = picture_inputs(QUESTIONS), AnswerTrie(ANSWERS, EOS)
    found = search(sine_model, inputs, SearchOptions(unnormalized=True, repeat_prompt=True), trie)
    assert [row[0].tokens for row in found] == [[99, 16, 24, 116, 2085, 2], [16, 24, 10, 1275, 512, 116, 2085, 2]]
    assert [row[0].score for row in found] == pytest.approx([-71.08667, -97.811699], abs=SCORE_ATOL)
    found = search(sine_model, inputs, SearchOptions(unnormalized=True), trie)
    best = [[(h.tokens, h.score) for h in row] for row in found]
    assert [best[0][0][0], best[0][1][0], best[1][0][0]] == [[80, 3678, 2], [2085, 2], [80, 3678, 2]]
    scores = [best[0][0][1], best[0][1][1], best[1][0][1]]
    assert scores == pytest.approx([-0.324251, -1.285319, -0.208624], abs=SCORE_ATOL)


@pytest.mark.slow
def test_scores_of_answers_are_what_the_specification_lists(sine_model: UnivalForConditionalGeneration) -> None:
    prefix = prompt_prefix(sine_model, QUESTIONS)
    scores = score_answers(sine_model, picture_inputs(QUESTIONS), ANSWERS, prefix)
    expected = [
        [-11.613478, -4.97783, -0.229822, -1.618241, -13.681839, -8.628672],
        [-12.451659, -4.687713, -0.165685, -1.956749, -6.207974, -8.840459],
    ]
    torch.testing.assert_close(scores.double(), torch.tensor(expected).double(), atol=SCORE_ATOL, rtol=0.0)
