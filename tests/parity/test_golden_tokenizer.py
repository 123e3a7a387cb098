"""The tokenizer against ids recorded from the original: texts, symbols, decoding, both kinds of source folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.parity.golden import GOLDEN, HAS_GOLDEN, MISSING, read_json
from unival.data.clean import clean_caption, clean_question
from unival.model.processing import UnivalProcessor
from unival.model.tokenizer import load_bpe_tokenizer, text_ids

pytestmark = pytest.mark.skipif(not HAS_GOLDEN, reason=MISSING)
BPE = GOLDEN / "bpe"
SYMBOLS = {"<code_0>", "<bin_12>", "<mask>"}  # of our prompts; letters for the original's `encode`
CONTROL = {"<s>", "</s>", "<pad>", "<unk>"}  # symbols only for `transformers`' own call


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_bpe_tokenizer(BPE)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return read_json("tokenizer.json")


def test_the_files_are_those_of_the_original(golden: dict[str, Any]) -> None:
    for name, entry in golden["files"].items():
        assert hashlib.sha256((BPE / name).read_bytes()).hexdigest() == entry["sha256"]


def test_every_text_has_the_ids_of_the_original(tokenizer: PreTrainedTokenizerFast, golden: dict[str, Any]) -> None:
    assert len(golden["cases"]) > 200
    for case in golden["cases"]:
        assert text_ids(tokenizer, case["text"]) == case["ids"], case["text"]
        if case["text"] not in SYMBOLS | CONTROL:
            assert tokenizer(case["text"], add_special_tokens=False)["input_ids"] == case["ids"], case["text"]


def test_ids_become_the_text_of_the_original(tokenizer: PreTrainedTokenizerFast, golden: dict[str, Any]) -> None:
    for case in golden["cases"]:
        assert tokenizer.decode(case["ids"]) == case["decoded"]


def test_the_dictionary_has_the_layout_of_the_original(
    tokenizer: PreTrainedTokenizerFast, golden: dict[str, Any]
) -> None:
    layout = golden["dictionary"]
    assert len(tokenizer) == layout.pop("size")
    gpt2 = {number: token for token, number in json.loads((BPE / "encoder.json").read_text()).items()}
    for number, symbol in layout.pop("first_merge_tokens").items():
        assert tokenizer.convert_tokens_to_ids(gpt2[int(symbol)]) == int(number)
    for token, number in layout.items():
        assert tokenizer.convert_tokens_to_ids(token) == number


def test_symbols_have_the_ids_of_the_original(tokenizer: PreTrainedTokenizerFast, golden: dict[str, Any]) -> None:
    gpt2 = {str(number): token for token, number in json.loads((BPE / "encoder.json").read_text()).items()}
    for case in golden["without_merges"]:
        symbols = [gpt2.get(symbol, symbol) for symbol in case["line"].split()]
        assert tokenizer.convert_tokens_to_ids(symbols) == case["ids"], case["line"]
    line = "<bin_0> <bin_500> <bin_999>"
    assert tokenizer(line, add_special_tokens=False)["input_ids"] == [58457, 58957, 59456]


def test_start_end_and_truncation_are_those_of_the_original(
    tokenizer: PreTrainedTokenizerFast, golden: dict[str, Any]
) -> None:
    for case in golden["encode_options"]:
        ids = text_ids(tokenizer, case["text"])[: case["length"]]
        ids = [0] * case["append_bos"] + ids + [2] * case["append_eos"]
        assert ids == case["ids"]
    (ids,) = UnivalProcessor(tokenizer, num_bins=1000).encode(["what does the image describe?"])
    assert ids == [0, 99, 473, 5, 2274, 6190, 116, 2]


def test_region_prompts_are_those_of_the_original(tokenizer: PreTrainedTokenizerFast) -> None:
    # Two leading spaces, then positions, which the original looks up one by one (specification 3.4, 4.10).
    processor = UnivalProcessor(tokenizer, num_bins=1000)
    (ids,) = processor.encode([" what does the region describe? region: <bin_1> <bin_2> <bin_3> <bin_4>"])
    assert ids == [0, 1437, 99, 473, 5, 976, 6190, 116, 976, 35, 58458, 58459, 58460, 58461, 2]


def test_clean_texts_are_those_of_the_original(golden: dict[str, Any]) -> None:
    for case in golden["cases"]:
        assert clean_caption(case["text"], 12) == case["pre_caption"]
        assert clean_question(case["text"], 12) == case["pre_question"]


def test_the_hugging_face_folder_gives_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    vocab = {token: number for token, number in tokenizer.get_vocab().items() if number <= 50264}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text((BPE / "vocab.bpe").read_text())
    other = load_bpe_tokenizer(tmp_path)
    assert other.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_saved_tokenizer_needs_nothing_else(
    tokenizer: PreTrainedTokenizerFast, golden: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert all(text_ids(loaded, case["text"]) == case["ids"] for case in golden["cases"])
