"""Laws of the model: padding, sharing, caching, search and causality never change what it computes."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests import tiny
from unival.batch import Modality
from unival.model.modeling import MEDIA_INPUTS, UnivalForConditionalGeneration

PAD, EOS, BOS = 1, 2, 0
# The laws are checked in double precision: in float32 the order of sums costs up to 1e-4, as attention has peaks.
ATOL = 1e-9
FLOAT32_ATOL = 1e-5

ids = st.integers(4, 340)
prompts = st.lists(st.lists(ids, min_size=1, max_size=9), min_size=1, max_size=4)
targets = st.lists(ids, min_size=1, max_size=6)


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)


def logits(model: UnivalForConditionalGeneration, prompt: Tensor, prefix: Tensor, **inputs: Tensor | bool) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=prompt, decoder_input_ids=prefix, **inputs).logits


def assert_close(ours: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(ours, expected, atol=atol, rtol=1e-5)


def media_of(modality: Modality, num: int) -> dict[str, Tensor]:
    return tiny.media(modality, num, dtype=torch.float64)


@pytest.mark.parametrize("modality", tiny.MODALITIES)
@settings(max_examples=10)
@given(prompts=prompts, target=targets)
def test_padding_and_company_never_change_the_logits_of_a_row(
    modality: Modality, prompts: list[list[int]], target: list[int]
) -> None:
    model, media = tiny.exact_model(), media_of(modality, len(prompts))
    prefix = torch.tensor([[BOS, *target]]).expand(len(prompts), -1)
    together = logits(model, pad(prompts), prefix, **media)
    for row, prompt in enumerate(prompts):
        own = {name: value[row : row + 1] for name, value in media.items()}
        assert_close(together[row], logits(model, torch.tensor([prompt]), prefix[:1], **own)[0])


@settings(max_examples=15)
@given(target=targets, extra=st.integers(1, 5))
def test_padding_of_targets_never_changes_the_logits_before_it(target: list[int], extra: int) -> None:
    model, prompt = tiny.exact_model(), torch.tensor([[5, 6, 7]])
    prefix = torch.tensor([[BOS, *target]])
    padded = torch.cat([prefix, torch.full((1, extra), PAD)], dim=1)
    expected = logits(model, prompt, prefix)
    assert_close(logits(model, prompt, padded)[:, : prefix.shape[1]], expected)
    masked = logits(model, prompt, padded, decoder_attention_mask=padded.ne(PAD).long())
    assert_close(masked[:, : prefix.shape[1]], expected)


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
@settings(max_examples=6)
@given(index=st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_sharing_a_medium_equals_repeating_it(modality: Modality, index: list[int]) -> None:
    model, media = tiny.exact_model(), media_of(modality, 3)
    prompt = torch.arange(5, 5 + 3 * len(index)).reshape(len(index), 3)
    prefix = torch.full((len(index), 1), BOS)
    repeated = {name: value[index] for name, value in media.items()}
    shared = logits(model, prompt, prefix, media_index=torch.tensor(index), **media)
    assert_close(shared, logits(model, prompt, prefix, **repeated))
    found = model.generate(prompt, media_index=torch.tensor(index), max_new_tokens=4, num_beams=2, **media)
    assert torch.equal(found, model.generate(prompt, max_new_tokens=4, num_beams=2, **repeated))


@pytest.mark.parametrize("modality", tiny.MODALITIES)
@settings(max_examples=10)
@given(target=st.lists(ids, min_size=2, max_size=7), position=st.integers(1, 6), other=ids)
def test_later_target_tokens_never_change_earlier_logits(
    modality: Modality, target: list[int], position: int, other: int
) -> None:
    model, media, prompt = tiny.exact_model(), media_of(modality, 1), torch.tensor([[5, 6, 7]])
    position = min(position, len(target))
    prefix = torch.tensor([[BOS, *target]])
    changed = prefix.clone()
    changed[:, position:] = other
    before, after = logits(model, prompt, prefix, **media), logits(model, prompt, changed, **media)
    assert torch.equal(before[:, :position], after[:, :position])
    if target[-1] != other:
        assert not torch.equal(before[:, -1], after[:, -1])


@pytest.mark.parametrize("modality", tiny.MODALITIES)
@pytest.mark.parametrize("seed", range(3))
def test_cached_greedy_search_is_the_argmax_of_the_uncached_model(modality: Modality, seed: int) -> None:
    model, media = tiny.build_model(seed), tiny.media(modality, 3, seed)
    inputs = tiny.prompt_ids(["what does the image describe?", "yes", "what is left of the cat?"])
    found = model.generate(**inputs, **media, do_sample=False, max_new_tokens=10)
    assert isinstance(found, Tensor)
    prefix, finished = torch.full((3, 1), BOS), torch.zeros(3, dtype=torch.bool)
    for _ in range(found.shape[1] - 1):
        best = logits(model, inputs["input_ids"], prefix, **media)[:, -1].argmax(-1)
        best = torch.where(finished, PAD, best)
        finished |= best == EOS
        prefix = torch.cat([prefix, best[:, None]], dim=1)
    assert torch.equal(found, prefix)
    assert len(found.unique()) > 3  # a model that repeats itself would prove nothing


@pytest.mark.parametrize("modality", tiny.MODALITIES)
def test_incremental_logits_equal_the_full_forward_pass(modality: Modality) -> None:
    model, media = tiny.exact_model(), media_of(modality, 2)
    inputs = tiny.prompt_ids(["what is left of the cat?", "yes"])
    for writes_codes in (False, True):
        prefix = torch.tensor([[BOS, 300, 31, 12, 7, 90, 5, 41], [BOS, 8, 8, 70, 9, 44, 4, 6]])
        full = logits(model, inputs["input_ids"], prefix, writes_codes=writes_codes, **media)
        with torch.inference_mode():
            encoded, cache = model.encoder(**inputs, **media), None
            for start, stop in itertools.pairwise([0, 1, 2, 5, 8]):  # one token at a time, and several
                out = model(
                    decoder_input_ids=prefix[:, start:stop],
                    encoder_outputs=encoded,
                    past_key_values=cache,
                    use_cache=True,
                    writes_codes=writes_codes,
                )
                cache = out.past_key_values
                assert_close(out.logits, full[:, start:stop])


def best_by_brute_force(
    model: UnivalForConditionalGeneration, prompt: Tensor, length: int, num_symbols: int
) -> tuple[list[int], float]:
    """Score every sequence that ends with `</s>`, or has `length` tokens; return the best and its mean log p."""
    encoded, best = model.encoder(prompt), ([], -torch.inf)
    rows = torch.tensor(list(itertools.product(range(num_symbols), repeat=length)))
    prefix = torch.cat([torch.full((len(rows), 1), BOS), rows[:, :-1]], dim=1)
    scores = model(input_ids=prompt.expand(len(rows), -1), decoder_input_ids=prefix).logits.log_softmax(-1)
    own = scores.gather(-1, rows[..., None])[..., 0].cumsum(1)
    for row, total in zip(rows.tolist(), own.tolist(), strict=True):
        end = row.index(EOS) + 1 if EOS in row else length
        if total[end - 1] / end > best[1]:
            best = (row[:end], total[end - 1] / end)
    assert encoded is not None
    return best


@pytest.mark.parametrize("seed", range(6))
def test_beam_search_wide_enough_for_every_sequence_equals_brute_force(seed: int) -> None:
    num_symbols, length = 6, 3
    model = tiny.build_model(seed, vocab_size=num_symbols, num_codes=0, num_bins=0, image_encoder=None)
    prompt = torch.tensor([[4, 5, 3, 5]])
    with torch.inference_mode():
        expected, score = best_by_brute_force(model, prompt, length, num_symbols)
    found = model.generate(
        prompt,
        num_beams=num_symbols**length,
        max_new_tokens=length,
        do_sample=False,
        early_stopping="never",
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert not isinstance(found, Tensor)
    assert found.sequences_scores is not None
    assert found.sequences[0, 1:].tolist()[: len(expected)] == expected
    assert float(found.sequences_scores[0]) == pytest.approx(score, abs=FLOAT32_ATOL)


@pytest.mark.parametrize("modality", tiny.MODALITIES)
def test_media_prompt_and_prefix_all_matter(modality: Modality) -> None:
    model, prefix = tiny.model(), torch.tensor([[BOS, 31, 12]])
    prompt = torch.tensor([[5, 6, 7]])
    base = logits(model, prompt, prefix, **tiny.media(modality, 1, 0))
    others = [
        logits(model, prompt.flip(1), prefix, **tiny.media(modality, 1, 0)),
        logits(model, prompt, prefix.flip(1), **tiny.media(modality, 1, 0)),
    ]
    if modality != "text":
        others += [logits(model, prompt, prefix, **tiny.media(modality, 1, 1)), logits(model, prompt, prefix)]
    assert all((other - base).abs().max() > 0.1 for other in others)
    assert set(tiny.media(modality, 1)) == ({MEDIA_INPUTS[modality]} if modality != "text" else set())
