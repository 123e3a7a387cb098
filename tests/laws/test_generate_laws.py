"""Laws of generation: the search is the specified one, answers stay in their set, batches change nothing."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny
from tests.laws.test_model_laws import media_of, pad
from unival.batch import Modality
from unival.generate import AnswerTrie, Hypothesis, SearchOptions, score_answers, search
from unival.model.modeling import UnivalForConditionalGeneration

BOS, PAD, EOS, UNK = 0, 1, 2, 3
NUM_SYMBOLS = 12
ATOL = 1e-5  # scores are float32 sums

ids = st.integers(4, NUM_SYMBOLS - 1)
prompts = st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=3)
answer_sets = st.lists(st.lists(ids, min_size=1, max_size=3), min_size=1, max_size=6, unique_by=tuple)


def small_model(seed: int = 0, **changes: object) -> UnivalForConditionalGeneration:
    """Return a model of text with few symbols, in double precision so that no two scores are equal."""
    sizes = {"vocab_size": NUM_SYMBOLS, "num_codes": 0, "num_bins": 0, "image_encoder": None} | changes
    return tiny.build_model(seed, **sizes, video_encoder=None, audio_encoder=None).double()


MODEL = small_model()


def flat(found: list[list[Hypothesis]]) -> list[list[tuple[list[int], float]]]:
    return [[(h.tokens, pytest.approx(h.score, abs=ATOL)) for h in row] for row in found]


def next_log_probs(
    model: UnivalForConditionalGeneration,
    prompt: list[int],
    tokens: list[int],
    options: SearchOptions,
    max_len: int,
    trie: AnswerTrie | None,
    prefix: Sequence[int],
) -> Tensor:
    """Return the log-probabilities (V,) that the specification (8.1, 8.3) gives the next token, without any cache."""
    step = len(tokens) - 1
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([tokens]))
    logits = out.logits[0, -1].float() / options.temperature
    every = range(len(logits))
    allowed = set(every)
    if trie is not None and step >= len(prefix):
        allowed = set(trie.children(tokens[1 + len(prefix) :]))
    if options.constraint_range is not None:
        allowed = {v for v in every if v < 4 or options.constraint_range[0] <= v < options.constraint_range[1]}
    outside = [v for v in every if v not in allowed]
    if not options.zero_shot:
        logits[outside] = -torch.inf
    log_probs = logits.log_softmax(0)
    log_probs[outside] = -torch.inf
    if step < min(len(prefix), max_len):
        log_probs[[v for v in every if v != prefix[step]]] = -torch.inf
    elif step < options.min_len:
        log_probs[EOS] = -torch.inf
    log_probs[PAD] = -torch.inf
    log_probs[UNK] -= options.unkpen
    if step >= max_len:
        log_probs[[v for v in every if v != EOS]] = -torch.inf
    size = options.no_repeat_ngram_size
    for start in range(len(tokens) - size + 1) if size else []:
        if tokens[start : start + size - 1] == tokens[len(tokens) - size + 1 :]:
            log_probs[tokens[start + size - 1]] = -torch.inf
    return log_probs


def plain_search(
    model: UnivalForConditionalGeneration,
    prompt: list[int],
    options: SearchOptions,
    trie: AnswerTrie | None = None,
    prefix: Sequence[int] = (),
) -> list[tuple[list[int], float]]:
    """Search for one prompt, as the specification words it: lists, and the whole prefix again at every step."""
    max_len = options.max_len(len(prompt))
    beams: list[tuple[list[int], float]] = [([BOS], 0.0)]
    finished: list[tuple[list[int], float]] = []
    for step in range(max_len + 1):
        candidates = []
        for tokens, total in beams:
            log_probs = next_log_probs(model, prompt, tokens, options, max_len, trie, prefix).tolist()
            candidates += [([*tokens, v], total + p) for v, p in enumerate(log_probs) if p > -torch.inf]
        candidates = sorted(candidates, key=lambda candidate: -candidate[1])[: 2 * options.beam]
        penalty = 1.0 if options.unnormalized else (step + 1) ** options.lenpen
        ends = [(t[1:], total / penalty) for t, total in candidates[: options.beam] if t[-1] == EOS]
        finished += ends[: options.beam - len(finished)]
        beams = [candidate for candidate in candidates if candidate[0][-1] != EOS][: options.beam]
        if len(finished) == options.beam or not beams:
            break
    return sorted(finished, key=lambda hypothesis: -hypothesis[1])


search_options = st.builds(
    SearchOptions,
    beam=st.integers(1, 6),
    max_len_b=st.integers(2, 7),
    min_len=st.integers(0, 2),
    unnormalized=st.booleans(),
    lenpen=st.sampled_from([0.5, 1.0, 2.0]),
    unkpen=st.sampled_from([0.0, 2.0, -3.0]),
    temperature=st.sampled_from([1.0, 0.5, 1.7]),
    no_repeat_ngram_size=st.integers(0, 3),
    constraint_range=st.sampled_from([None, None, (5, 9)]),
    zero_shot=st.booleans(),
)


@settings(max_examples=40)
@given(prompt=st.lists(ids, min_size=1, max_size=5), options=search_options, seed=st.integers(0, 3))
def test_search_is_the_one_that_the_specification_words(prompt: list[int], options: SearchOptions, seed: int) -> None:
    model = small_model(seed)
    (found,) = flat(search(model, {"input_ids": torch.tensor([prompt])}, options))
    assert plain_search(model, prompt, options) == found


@settings(max_examples=25)
@given(
    prompt=st.lists(ids, min_size=1, max_size=5),
    answers=answer_sets,
    prefix=st.lists(ids, max_size=3),
    beam=st.integers(1, 8),
    zero_shot=st.booleans(),
    unnormalized=st.booleans(),
)
def test_search_among_answers_is_the_one_that_the_specification_words(
    prompt: list[int], answers: list[list[int]], prefix: list[int], beam: int, zero_shot: bool, unnormalized: bool
) -> None:
    options = SearchOptions(beam=beam, max_len_b=9, zero_shot=zero_shot, unnormalized=unnormalized)
    trie = AnswerTrie(answers, EOS)
    given_prefix = torch.tensor([prefix], dtype=torch.long)
    (found,) = search(MODEL, {"input_ids": torch.tensor([prompt])}, options, trie, given_prefix)
    assert plain_search(MODEL, prompt, options, trie, prefix) == flat([found])[0]
    for hypothesis in found:  # only listed answers come out, after the prefix
        assert hypothesis.tokens[: len(prefix)] == prefix
        assert hypothesis.tokens[len(prefix) : -1] in answers
        assert hypothesis.tokens[-1] == EOS


@settings(max_examples=20)
@given(questions=prompts, answers=answer_sets, prefixes=st.lists(st.lists(ids, max_size=3), min_size=3, max_size=3))
def test_scores_of_answers_are_those_of_a_search_wide_enough_for_all(
    questions: list[list[int]], answers: list[list[int]], prefixes: list[list[int]]
) -> None:
    inputs = {"input_ids": pad(questions)}
    prefix = pad([[*row, PAD] for row in prefixes[: len(questions)]])
    scores = score_answers(MODEL, inputs, answers, prefix, chunk=2)
    assert scores.shape == (len(questions), len(answers))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(questions)), atol=ATOL, rtol=0.0)
    options = SearchOptions(beam=len(answers), max_len_b=9, unnormalized=True)
    for row, found in enumerate(search(MODEL, inputs, options, AnswerTrie(answers, EOS), prefix)):
        start = len(prefixes[row])
        ours = {tuple(h.tokens[start:-1]): sum(h.positional_scores[start:]) for h in found}
        assert ours == {tuple(a): pytest.approx(float(s), abs=ATOL) for a, s in zip(answers, scores[row], strict=True)}


@pytest.mark.parametrize("seed", range(4))
def test_search_wide_enough_for_every_sequence_equals_brute_force(seed: int) -> None:
    num_symbols, longest = 6, 3
    model = small_model(seed, vocab_size=num_symbols)
    prompt = torch.tensor([[4, 5, 3, 5]])
    words = [v for v in range(num_symbols) if v not in (PAD, EOS)]
    expected = {}
    for length in range(longest + 1):
        for tokens in itertools.product(words, repeat=length):
            row = torch.tensor([[BOS, *tokens, EOS]])
            with torch.inference_mode():
                logits = model(input_ids=prompt, decoder_input_ids=row[:, :-1]).logits[0].float()
            own = logits.log_softmax(-1).gather(-1, row[0, 1:, None])
            expected[*tokens, EOS] = pytest.approx(float(own.mean()), abs=ATOL)
    options = SearchOptions(beam=len(expected) + 1, max_len_b=longest, min_len=0)
    (found,) = search(model, {"input_ids": prompt}, options)
    assert {tuple(h.tokens): h.score for h in found} == expected
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize("modality", tiny.MODALITIES)
@settings(max_examples=6)
@given(
    questions=st.lists(st.lists(st.integers(4, 340), min_size=1, max_size=9), min_size=1, max_size=3),
    beam=st.integers(1, 4),
)
def test_a_batch_of_different_lengths_gives_the_results_of_each_row_alone(
    modality: Modality, questions: list[list[int]], beam: int
) -> None:
    model, media = tiny.exact_model(), media_of(modality, len(questions))
    options = SearchOptions(beam=beam, max_len_b=6, no_repeat_ngram_size=2)
    together = search(model, {"input_ids": pad(questions)} | media, options)
    for row, prompt in enumerate(questions):
        own = {name: tensor[row : row + 1] for name, tensor in media.items()}
        (alone,) = search(model, {"input_ids": torch.tensor([prompt])} | own, options)
        assert flat([alone])[0] == [(h.tokens, h.score) for h in together[row]]
        assert [h.positional_scores for h in alone] == [pytest.approx(h.positional_scores) for h in together[row]]


@settings(max_examples=10)
@given(questions=prompts, top=st.integers(1, 5), samples=st.integers(1, 4))
def test_samples_are_among_the_most_probable_tokens_and_score_by_the_whole_distribution(
    questions: list[list[int]], top: int, samples: int
) -> None:
    options = SearchOptions(beam=samples, max_len_b=5, sampling=True, sampling_topk=top)
    found = search(MODEL, {"input_ids": pad(questions)}, options)
    for prompt, row in zip(questions, found, strict=True):
        assert len(row) == samples
        for hypothesis in row:
            assert hypothesis.score == pytest.approx(sum(hypothesis.positional_scores) / len(hypothesis.tokens))
            for step, (token, score) in enumerate(zip(hypothesis.tokens, hypothesis.positional_scores, strict=True)):
                written = [BOS, *hypothesis.tokens[:step]]
                log_probs = next_log_probs(MODEL, prompt, written, options, 5, None, ())
                assert score == pytest.approx(float(log_probs[token]), abs=ATOL)
                assert (log_probs > log_probs[token]).sum() < top
