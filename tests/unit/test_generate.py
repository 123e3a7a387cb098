"""The parts of generation: answer tries, options, the order of rules, which hypotheses count, what `generate` runs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from unival.errors import UserError
from unival.generate import AnswerTrie, SearchOptions, prompt_prefix, score_answers, search
from unival.generate.paths import FirstToFinish, Paths
from unival.generate.rules import SearchRules

BOS, PAD, EOS, UNK = 0, 1, 2, 3
INF = torch.inf
LOGITS = torch.tensor([[0.5, 9.0, 1.0, 2.0, 3.0, -1.0, 0.0, 1.5]])  # V = 8
TEXTS = ["what is left of the cat?", "yes"]


def rules(options: SearchOptions, max_len: int = 5, beams: int = 1, **settings: Any) -> SearchRules:
    return SearchRules(options, Paths(beams, EOS), max_len, PAD, **settings)


def after(tokens: list[int], options: SearchOptions, max_len: int = 5, **settings: Any) -> Tensor:
    """Return the log-probabilities (V,) after some tokens of a single sample."""
    processor = rules(options, max_len, **settings)
    out = processor(torch.tensor([[BOS]]), LOGITS.clone())
    for end in range(1, len(tokens) + 1):
        out = processor(torch.tensor([[BOS, *tokens[:end]]]), LOGITS.clone())
    return out[0]


def test_a_trie_knows_what_may_follow() -> None:
    trie = AnswerTrie([[5], [5, 6], [7, 6], [5]], EOS)
    assert trie.children([]) == [5, 7]
    assert trie.children([5]) == [EOS, 6]
    assert trie.children([7]) == [6]
    assert trie.children((7, 6)) == [EOS]
    assert trie.children([6]) == trie.children([5, EOS]) == []
    assert trie.branches() == [(), (5,)]


@pytest.mark.parametrize("answers", [[], [[5], []]])
def test_a_closed_set_without_answers_is_refused(answers: list[list[int]]) -> None:
    with pytest.raises(UserError, match="at least one answer, and no empty one"):
        AnswerTrie(answers, EOS)


def test_options_are_read_as_the_original_writes_them() -> None:
    given = {"beam": 3, "stop_on_max_len": True, "max_len_b": 22, "constraint_range": "5,9", "lenpen": 0.5}
    options = SearchOptions(beam=3, max_len_b=22, constraint_range=(5, 9), lenpen=0.5)
    assert SearchOptions.from_original(given) == options
    assert SearchOptions.from_original({"constraint_range": [5, 9]}).constraint_range == (5, 9)
    assert SearchOptions(max_len_a=0.5, max_len_b=3).max_len(15) == 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beams": 5}, r"unknown search option 'beams'.*did you mean 'beam'"),
        ({"beam": 0}, "beam is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
        ({"constraint_range": "5"}, "constraint_range is '5'.*first,end"),
        ({"constraint_range": "40,20"}, "constraint_range is 40, 20"),
        ({"constraint_range": "-5,3"}, "constraint_range is -5, 3"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"lenpen": float("nan")}, "lenpen is nan"),
        ({"sampling_topp": 1.5}, "sampling_topp is 1.5"),
        ({"sampling_topp": -1.0}, "sampling_topp is -1.0"),
    ],
)
def test_wrong_options_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SearchOptions.from_original(given)


def test_probabilities_are_scaled_then_normalised_and_padding_is_never_written() -> None:
    expected = (LOGITS[0] / 2.0).log_softmax(0)
    expected[[PAD, EOS]] = -INF  # min_len is 1
    expected[UNK] -= 1.5
    torch.testing.assert_close(after([], SearchOptions(temperature=2.0, unkpen=1.5)), expected)
    expected[EOS] = (LOGITS[0] / 2.0).log_softmax(0)[EOS]
    torch.testing.assert_close(after([4], SearchOptions(temperature=2.0, unkpen=1.5)), expected)


def test_the_end_is_forced_with_its_own_probability() -> None:
    expected = torch.full((8,), -INF)
    expected[EOS] = LOGITS[0].log_softmax(0)[EOS]
    torch.testing.assert_close(after([4, 5], SearchOptions(), max_len=2), expected)
    codes = SearchOptions(gen_code=True, min_len=2)
    assert after([4], codes, max_len=2)[:4].isneginf().all()
    torch.testing.assert_close(after([4, 5], codes, max_len=2), expected)


@pytest.mark.parametrize("zero_shot", [False, True])
def test_a_range_restricts_before_the_softmax_or_after_it(zero_shot: bool) -> None:
    found = after([6], SearchOptions(constraint_range=(5, 7), zero_shot=zero_shot))
    assert found.isfinite().nonzero()[:, 0].tolist() == [BOS, EOS, UNK, 5, 6]
    kept = LOGITS[0].clone()
    if not zero_shot:
        kept[[4, 7]] = -INF
    torch.testing.assert_close(found[[0, 2, 3, 5, 6]], kept.log_softmax(0)[[0, 2, 3, 5, 6]])


def test_a_prefix_is_kept_with_its_own_probability_then_answers_follow() -> None:
    trie, prefix = AnswerTrie([[6], [5, 4]], EOS), torch.tensor([[7, 4, PAD]])
    own = LOGITS[0].log_softmax(0)
    for tokens, forced in ([], 7), ([7], 4):
        found = after(tokens, SearchOptions(), trie=trie, prefix=prefix)
        assert found.isfinite().nonzero()[:, 0].tolist() == [forced]
        assert float(found[forced]) == pytest.approx(float(own[forced]))
    found = after([7, 4], SearchOptions(), trie=trie, prefix=prefix)
    torch.testing.assert_close(found[[5, 6]], LOGITS[0, [5, 6]].log_softmax(0))
    assert after([7, 4, 5], SearchOptions(), trie=trie, prefix=prefix).tolist()[4] == 0.0  # the only way to go on
    assert after([7, 4, 6], SearchOptions(), trie=trie, prefix=prefix).tolist()[EOS] == 0.0


def test_only_the_first_beam_counts_at_the_first_step() -> None:
    processor = rules(SearchOptions(), beams=2)
    found = processor(torch.full((4, 1), BOS), LOGITS.expand(4, -1))
    assert found.isfinite().any(1).tolist() == [True, False, True, False]


def test_a_beam_that_has_ended_or_is_a_copy_has_no_continuation() -> None:
    processor = rules(SearchOptions(), beams=3)
    processor(torch.full((3, 1), BOS), LOGITS.expand(3, -1))
    found = processor(torch.tensor([[BOS, 4], [BOS, EOS], [BOS, PAD]]), LOGITS.expand(3, -1))
    assert found.isfinite().any(1).tolist() == [True, False, False]


def test_a_sample_that_has_ended_or_cannot_go_on_gets_padding() -> None:
    processor = rules(SearchOptions(), trie=AnswerTrie([[4], [5]], EOS), max_len=1)
    processor(torch.full((3, 1), BOS), LOGITS.expand(3, -1))
    found = processor(torch.tensor([[BOS, 4], [BOS, EOS], [BOS, 7]]), LOGITS.expand(3, -1))
    assert found.isfinite().nonzero().tolist() == [[0, EOS], [1, PAD], [2, PAD]]
    stuck = rules(SearchOptions(), trie=AnswerTrie([[4, 5]], EOS), max_len=1)
    stuck(torch.full((1, 1), BOS), LOGITS)
    assert stuck(torch.tensor([[BOS, 4]]), LOGITS).isfinite().nonzero().tolist() == [[0, PAD]]


def test_a_sentence_keeps_the_first_that_finish() -> None:
    """With two beams, of three hypotheses the last one is too late, even if it scores best."""
    paths = Paths(2, EOS)
    collected = FirstToFinish(paths, 1, 2, 1.0)
    log_probs = torch.full((2, 8), -INF)
    log_probs[0, [4, EOS, 5]] = torch.tensor([-1.0, -4.0, -5.0])
    paths.advance(torch.full((2, 1), BOS))
    paths.log_probs = log_probs
    candidates = torch.tensor([[BOS, 4], [BOS, EOS], [BOS, 5], [BOS, 6]])
    assert not collected(candidates, None).any()
    assert [(h.tokens, h.score) for h in collected.finished[0]] == [([EOS], -4.0)]
    paths.advance(torch.tensor([[BOS, 4], [BOS, 5]]))
    paths.log_probs = torch.full((2, 8), -INF).index_fill(1, torch.tensor([EOS]), -0.5)
    candidates = torch.tensor([[BOS, 4, EOS], [BOS, 5, EOS], [BOS, 4, 7], [BOS, 5, 7]])
    collected(candidates, None)
    assert [(h.tokens, h.positional_scores) for h in collected.finished[0]] == [
        ([EOS], [-4.0]),
        ([4, EOS], [-1.0, -0.5]),
    ]


def test_a_copy_of_a_candidate_does_not_count() -> None:
    """When beams run out, `generate` fills them with copies of score -inf, after the real ones."""
    paths = Paths(3, EOS)
    collected = FirstToFinish(paths, 1, 3, 1.0)
    paths.advance(torch.full((3, 1), BOS))
    paths.log_probs = torch.zeros(3, 8)
    collected(torch.tensor([[BOS, EOS], [BOS, 4], [BOS, EOS], [BOS, 4], [BOS, 5], [BOS, 5]]), None)
    assert [h.tokens for h in collected.finished[0]] == [[EOS]]
    paths.advance(torch.tensor([[BOS, 4], [BOS, 4], [BOS, 5]]))
    assert paths.alive.tolist() == [[True, False, True]]


def test_a_finished_candidate_outside_the_beam_does_not_count() -> None:
    paths = Paths(1, EOS)
    collected = FirstToFinish(paths, 1, 1, 1.0)
    paths.advance(torch.full((1, 1), BOS))
    paths.log_probs = torch.zeros(1, 8)
    collected(torch.tensor([[BOS, 4], [BOS, EOS]]), None)
    assert collected.finished == [[]]


@pytest.mark.parametrize("beam", [1, 3])
def test_the_encoder_runs_once_and_the_decoder_reads_one_token_per_step(
    beam: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build_model()
    inputs = tiny.prompt_ids(TEXTS) | tiny.media("image", 2)
    calls: dict[str, list[Any]] = {"encoder": [], "decoder": [], "keys": []}
    model.encoder.register_forward_hook(lambda *_: calls["encoder"].append(1))
    model.decoder.register_forward_pre_hook(lambda _, args: calls["decoder"].append(tuple(args[0].shape)))
    cross = model.decoder.layers[0].encoder_attn.k_proj
    cross.register_forward_hook(lambda *_: calls["keys"].append(1))
    search(model, inputs, SearchOptions(beam=beam, max_len_b=6, min_len=6))
    assert calls["encoder"] == calls["keys"] == [1]
    assert calls["decoder"] == [(2 * beam, 1)] * 7


def test_greedy_search_is_that_of_generate() -> None:
    inputs = tiny.prompt_ids(TEXTS) | tiny.media("image", 2)
    expected = tiny.model().generate(
        **inputs, do_sample=False, max_new_tokens=9, min_new_tokens=1, suppress_tokens=[PAD]
    )
    assert isinstance(expected, Tensor)
    found = search(tiny.model(), inputs, SearchOptions(beam=1, max_len_b=9))
    for row, ids in zip(found, expected[:, 1:].tolist(), strict=True):
        assert row[0].tokens[:-1] == [token for token in ids if token not in (PAD, EOS)]


def test_settings_stored_with_the_model_do_not_leak_into_the_search() -> None:
    model = tiny.build_model()
    inputs = tiny.prompt_ids(TEXTS)
    options = SearchOptions(beam=2, max_len_b=6)
    expected = search(model, inputs, options)
    stored = model.generation_config
    stored.num_beams, stored.no_repeat_ngram_size, stored.length_penalty, stored.min_length = 4, 1, 3.0, 5
    stored.repetition_penalty, stored.early_stopping, stored.min_new_tokens = 2.0, "never", 4
    assert search(model, inputs, options) == expected


def test_picture_codes_are_codes_up_to_the_end() -> None:
    model = tiny.model()
    first = model.config.vocab_size - tiny.NUM_BINS - tiny.NUM_CODES
    options = SearchOptions(
        beam=2, min_len=16, max_len_b=16, gen_code=True, constraint_range=(first, first + tiny.NUM_CODES)
    )
    for sampling in (False, True):
        for row in search(model, tiny.prompt_ids(TEXTS), SearchOptions(**_fields(options) | {"sampling": sampling})):
            assert len(row) == 2
            for hypothesis in row:
                assert len(hypothesis.tokens) == 17
                assert all(first <= token < first + tiny.NUM_CODES for token in hypothesis.tokens[:-1])


def _fields(options: SearchOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in SearchOptions.__slots__}


def test_a_repeated_prompt_is_written_first() -> None:
    inputs = tiny.prompt_ids(TEXTS)
    prefix = prompt_prefix(tiny.model(), inputs["input_ids"])
    assert prefix.tolist() == [[PAD if t == EOS else t for t in row[1:]] for row in inputs["input_ids"].tolist()]
    trie = AnswerTrie([[40], [41, 42]], EOS)
    found = search(tiny.model(), inputs, SearchOptions(repeat_prompt=True, max_len_b=50), trie)
    for row, own in zip(found, prefix, strict=True):
        prompt = own[own.ne(PAD)].tolist()
        assert {tuple(h.tokens) for h in row} == {(*prompt, 40, EOS), (*prompt, 41, 42, EOS)}


def test_contradictions_are_refused() -> None:
    inputs, trie = tiny.prompt_ids(TEXTS), AnswerTrie([[5]], EOS)
    with pytest.raises(UserError, match="exclude each other"):
        search(tiny.model(), inputs, SearchOptions(constraint_range=(5, 9)), trie)
    with pytest.raises(UserError, match="min_len is 9, above the longest length of 4"):
        search(tiny.model(), inputs, SearchOptions(min_len=9, max_len_b=4))


def test_a_length_above_the_position_table_ends_with_the_table() -> None:
    found = search(tiny.model(), tiny.prompt_ids(TEXTS[:1]), SearchOptions(beam=1, min_len=63))
    assert len(found[0][0].tokens) == tiny.SIZES["max_text_positions"]


def test_a_search_that_can_write_nothing_finds_nothing() -> None:
    answer = [[5, 6, 7]]
    found = search(tiny.model(), tiny.prompt_ids(TEXTS), SearchOptions(max_len_b=2), AnswerTrie(answer, EOS))
    assert found == [[], []]


def test_scoring_answers_encodes_once_and_shares_beginnings() -> None:
    model = tiny.build_model()
    calls: list[Any] = []
    model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    model.decoder.register_forward_pre_hook(lambda _, args: calls.append(tuple(args[0].shape)))
    inputs = tiny.prompt_ids(TEXTS) | tiny.media("video", 2)
    score_answers(model, inputs, [[40], [41], [42]])
    assert calls == ["encoder", (2, 1)]
    alone = score_answers(model, inputs, [[40, 41]])
    assert alone.tolist() == [[0.0], [0.0]]  # nothing else could be said


@pytest.mark.parametrize("token", [-1, 999_999])
def test_answers_and_ranges_are_of_the_vocabulary(token: int) -> None:
    model = tiny.model()
    ids = torch.tensor([[0, 7, 2]])
    with pytest.raises(UserError, match=f"an answer holds token {token}"):
        score_answers(model, {"input_ids": ids}, [[20], [token]])
    with pytest.raises(UserError, match="constraint_range ends at 999999"):
        search(model, {"input_ids": ids}, SearchOptions(constraint_range=(5, 999_999)))
