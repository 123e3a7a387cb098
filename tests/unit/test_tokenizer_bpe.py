"""Loading a tokenizer from BPE files, on small files made here: both formats, and what is wrong with files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from tests import tiny
from unival.errors import UserError
from unival.model.tokenizer import SPECIAL_TOKENS, load_bpe_tokenizer, text_ids

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["Ġ c", "a t", "Ġc at", "Ġ d"]
WORDS = [*BYTES, *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]


def write_fairseq(folder: Path, order: list[str] | None = None, fillers: int = 3) -> Path:
    """Write the three files; `dict.txt` lists GPT-2's numbers in the order of `order`."""
    number_of = {word: number for number, word in enumerate(WORDS)}
    folder.mkdir(exist_ok=True)
    (folder / "encoder.json").write_text(json.dumps(number_of))
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    lines = [f"{number_of[word]} {1000 - i}" for i, word in enumerate(order or WORDS[::-1])]
    lines += [f"madeupword{i:04d} 0" for i in range(fillers)]
    (folder / "dict.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_ids_follow_the_dictionary_and_symbols_come_last(tmp_path: Path) -> None:
    tokenizer = load_bpe_tokenizer(write_fairseq(tmp_path), num_codes=3, num_bins=5)
    size = 4 + len(WORDS) + 3
    assert tokenizer.convert_ids_to_tokens(range(5)) == [*SPECIAL_TOKENS, "<|endoftext|>"]
    assert tokenizer.convert_tokens_to_ids(["madeupword0002", "<mask>", "<code_0>", "<bin_0>", "<bin_4>"]) == [
        size - 1,
        size,
        size + 1,
        size + 4,
        size + 8,
    ]
    assert len(tokenizer) == size + 9
    assert tokenizer.tokenize(" cat") == ["Ġcat"]
    assert text_ids(tokenizer, " cat") == [4 + WORDS[::-1].index("Ġcat")]


def test_both_formats_give_the_same_tokenizer(tmp_path: Path) -> None:
    first = load_bpe_tokenizer(write_fairseq(tmp_path / "fairseq"), 3, 5)
    folder = tmp_path / "hugging_face"
    folder.mkdir()
    vocab = {token: number for token, number in first.get_vocab().items() if not token.startswith(("<code", "<bin"))}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
    assert load_bpe_tokenizer(folder, 3, 5).backend_tokenizer.to_str() == first.backend_tokenizer.to_str()


@pytest.mark.parametrize("as_pairs", [True, False])
def test_barts_own_tokenizer_file_gives_the_same_tokenizer(tmp_path: Path, as_pairs: bool) -> None:
    """Folders that newer versions of `transformers` save hold nothing else; merges are texts or pairs."""
    first = load_bpe_tokenizer(write_fairseq(tmp_path / "fairseq"), 3, 5)
    vocab = {token: number for token, number in first.get_vocab().items() if not token.startswith(("<code", "<bin"))}
    merges = [merge.split(" ") if as_pairs else merge for merge in MERGES]
    content = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": merges}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_bpe_tokenizer(tmp_path, 3, 5).backend_tokenizer.to_str() == first.backend_tokenizer.to_str()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {"vocab": [], "merges": []}}', '{"model": 3}'])
def test_a_damaged_tokenizer_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="the BPE files cannot be read"):
        load_bpe_tokenizer(tmp_path)


def test_further_fillers_of_barts_own_dictionary_are_cut_off(tmp_path: Path) -> None:
    short = load_bpe_tokenizer(write_fairseq(tmp_path / "short"), 3, 5)
    long = load_bpe_tokenizer(write_fairseq(tmp_path / "long", fillers=900), 3, 5)
    assert long.get_vocab() == short.get_vocab()


@given(text=st.text(max_size=20))
def test_plain_text_never_yields_symbols_and_survives(text: str) -> None:
    tokenizer = tiny.processor().tokenizer
    for written in (text, f"{text}<bin_3>{text}", f"</s>{text}<s><mask>"):
        ids = text_ids(tokenizer, written)
        assert tokenizer.decode(ids) == written
        assert not set(ids) & {0, 1, 2, 3, *range(len(tokenizer) - tiny.NUM_BINS, len(tokenizer))}


def test_a_folder_without_files_is_refused_and_told_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no BPE files here.*encoder\.json, vocab\.bpe and dict\.txt"):
        load_bpe_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("encoder.json", "{", "cannot be read"),
        ("encoder.json", "{}", "cannot be read"),
        ("vocab.bpe", "a b c\n", "not a pair"),
        ("vocab.bpe", "Ġ z\n", "merges use words outside the dictionary"),
        ("dict.txt", "0 5\n0 4\n", "names a symbol twice"),
        ("vocab.bpe", None, "cannot be read"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    write_fairseq(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_bpe_tokenizer(tmp_path)


def test_a_dictionary_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(BYTES)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="not one of BART"):
        load_bpe_tokenizer(tmp_path)
