"""The tokenizer: layout of ids, round trips, boxes."""

from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests import tiny
from unival.model.processing import UnivalProcessor
from unival.model.tokenizer import SPECIAL_TOKENS, box_to_text, text_to_box, train_tokenizer


def test_ids_are_words_then_mask_then_codes_then_bins() -> None:
    tokenizer = tiny.processor().tokenizer
    size = len(tokenizer)
    assert tokenizer.convert_ids_to_tokens(range(4)) == list(SPECIAL_TOKENS) == ["<s>", "<pad>", "</s>", "<unk>"]
    first_bin = size - tiny.NUM_BINS
    assert tokenizer.convert_tokens_to_ids([f"<bin_{i}>" for i in range(tiny.NUM_BINS)]) == [*range(first_bin, size)]
    first_code = first_bin - tiny.NUM_CODES
    codes = tokenizer.convert_tokens_to_ids([f"<code_{i}>" for i in range(tiny.NUM_CODES)])
    assert codes == [*range(first_code, first_bin)]
    assert tokenizer.convert_tokens_to_ids("<mask>") == first_code - 1
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (
        0,
        1,
        2,
        3,
    )


def test_training_is_deterministic_and_bounded() -> None:
    first, second = (train_tokenizer(tiny.TEXTS, 300, 4, 8) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert len(first) <= 300 + 1 + 4 + 8
    assert len(train_tokenizer(["a"], 260, 0, 2)) == 4 + 256 + 1 + 2  # the bytes, and no room for merges


def test_words_of_the_corpus_are_one_token_with_their_space() -> None:
    tokenizer = tiny.processor().tokenizer
    assert tokenizer.tokenize(" what does the image") == ["Ġwhat", "Ġdoes", "Ġthe", "Ġimage"]


def test_encoding_adds_start_and_end_and_one_space() -> None:
    processor = tiny.processor()
    (ids,) = processor.encode(["what"])
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["<s>", "Ġwhat", "</s>"]
    assert processor.encode([""]) == [[0, processor.tokenizer.convert_tokens_to_ids("Ġ"), 2]]


def test_masks_are_symbols_before_and_after_loading(tmp_path: Path) -> None:
    texts = ["a <mask> b", "<mask>", "a<mask><mask> </s>", "a  <mask>", " <mask>cat <bin_3>"]
    processor = tiny.processor()
    processor.save_pretrained(tmp_path)
    loaded = UnivalProcessor.from_pretrained(tmp_path)
    mask = processor.tokenizer.convert_tokens_to_ids("<mask>")
    rows = processor.encode(texts)
    assert [row.count(mask) for row in rows] == [1, 1, 2, 1, 1]
    assert loaded.encode(texts) == rows
    assert rows[0] == [*processor.encode(["a"])[0][:-1], mask, *processor.encode(["b"])[0][1:]]
    assert rows[1] == [0, mask, 2]


def test_bins_are_single_tokens_with_or_without_spaces() -> None:
    processor = tiny.processor()
    (tight,), (spaced,) = processor.encode(["<bin_0><bin_9>"]), processor.encode(["<bin_0> <bin_9>"])
    assert tight[-3:] == spaced[-3:] == [len(processor.tokenizer) - 10, len(processor.tokenizer) - 1, 2]
    (prompt,) = processor.encode(["region: <bin_3><bin_4>"])
    assert processor.tokenizer.convert_ids_to_tokens(prompt)[-4:] == [":", "<bin_3>", "<bin_4>", "</s>"]


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=30))
@example("price <s>20</s> 10 <pad><unk>")
@example("what does <pad> mean?")
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    processor = tiny.processor()
    (ids,) = processor.encode([text])
    assert not {0, 1, 2, 3} & set(ids[1:-1])  # bytes are all known, and symbols in a text are letters
    assert processor.decode(torch.tensor([ids])) == [text.strip()]


@given(bins=st.lists(st.integers(0, tiny.NUM_BINS - 1), min_size=4, max_size=4))
def test_position_tokens_survive_encoding_and_decoding(bins: list[int]) -> None:
    processor, text = tiny.processor(), "".join(f"<bin_{i}>" for i in bins)
    assert processor.decode(torch.tensor(processor.encode([text]))) == [text]
    expected = [i / (tiny.NUM_BINS - 1) * side for i, side in zip(bins, (64, 32, 64, 32), strict=True)]
    assert text_to_box(text, 64, 32, tiny.NUM_BINS) == pytest.approx(expected)


def test_decoding_drops_padding_and_strips() -> None:
    processor = tiny.processor()
    (ids,) = processor.encode(["a cat"])
    assert processor.decode(torch.tensor([[*ids, 1, 1]])) == ["a cat"]


def test_boxes_are_rounded_half_to_even_and_clipped_to_the_picture() -> None:
    # Specification 4.4: bin = round(coordinate * 512 / side / 512 * 999).
    assert box_to_text([0, 0, 512, 256], 512, 512, 1000) == "<bin_0><bin_0><bin_999><bin_500>"  # 499.5 is odd
    assert box_to_text([5, 15, 25, 35], 180, 180, 19) == "<bin_0><bin_2><bin_2><bin_4>"  # 0.5, 1.5, 2.5, 3.5
    assert box_to_text([-5, 10, 700, 48], 96, 96, 100) == "<bin_0><bin_10><bin_99><bin_50>"


def test_text_without_four_positions_is_no_box() -> None:
    assert text_to_box("<bin_1><bin_2><bin_3>", 10, 10, 100) is None
    assert text_to_box("", 10, 10, 100) is None
    five = "a <bin_0> <bin_9> b <bin_9> <bin_0> <bin_5>"
    assert text_to_box(five, 9, 18, 10) == [0.0, 18.0, 9.0, 0.0]
