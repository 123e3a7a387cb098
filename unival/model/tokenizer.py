"""One id space for words, image codes and box positions (specification section 3).

Ids: `<s> <pad> </s> <unk>`, words, `<mask>`, `<code_i>`, `<bin_i>`, in this order, whether the words were learned here
or come from the files of the original.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from unival.errors import UserError

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
BIN = re.compile(r"<bin_(\d+)>")


def train_tokenizer(texts: Iterable[str], num_words: int, num_codes: int, num_bins: int) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE and append `<mask>`, `<code_i>` and `<bin_i>`.

    Args:
        texts: Lines to learn merges from; each is used with a leading space, as prompts and targets are.
        num_words: Upper bound of the BPE vocabulary, special tokens included.
        num_codes, num_bins: How many image codes and position bins to append, in this order.
    """
    tokenizer = _byte_level(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(
        vocab_size=num_words,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" " + text for text in texts), trainer)
    return _finish(tokenizer, num_codes, num_bins)


def load_bpe_tokenizer(folder: str | Path, num_codes: int = 8192, num_bins: int = 1000) -> PreTrainedTokenizerFast:
    """Build the original's tokenizer from its files; saved with a model, it needs them no more.

    Args:
        folder: Holds `encoder.json`, `vocab.bpe` and `dict.txt` (GPT-2's files and the dictionary of fairseq's BART),
            or `vocab.json` and `merges.txt`, or `tokenizer.json`, of the Hugging Face model `facebook/bart-base`. All
            give the same ids.
        num_codes, num_bins: How many image codes and position bins to append; the defaults give 59,457 ids.

    Raises:
        UserError: If files are missing, damaged or do not belong together.
    """
    folder = Path(folder)
    try:
        if (folder / "dict.txt").is_file():
            vocab, merges = _read_fairseq(folder)
        elif (folder / "vocab.json").is_file():
            vocab, merges = json.loads(_text(folder, "vocab.json")), _merges(_text(folder, "merges.txt"))
        elif (folder / "tokenizer.json").is_file():
            model = json.loads(_text(folder, "tokenizer.json"))["model"]
            vocab, merges = model["vocab"], [_pair(merge) for merge in model["merges"]]
        else:
            raise UserError(
                "no BPE files here",
                where=str(folder),
                fix="give a folder with encoder.json, vocab.bpe and dict.txt, or one of facebook/bart-base",
            )
        vocab = {str(token): int(number) for token, number in vocab.items() if token != "<mask>"}  # appended here
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the BPE files cannot be read: {error}", where=str(folder)) from None
    ids = sorted(vocab.values())
    if ids != list(range(len(ids))) or any(vocab.get(token) != i for i, token in enumerate(SPECIAL_TOKENS)):
        raise UserError("the dictionary is not one of BART: ids 0-3 are not <s> <pad> </s> <unk>", where=str(folder))
    unknown = [piece for pair in merges for piece in (*pair, "".join(pair)) if piece not in vocab]
    if unknown:
        raise UserError(f"{len(unknown)} merges use words outside the dictionary: {unknown[:3]}", where=str(folder))
    return _finish(_byte_level(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>")), num_codes, num_bins)


def text_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the ids of `text` as plain words: `<bin_3>` or `</s>` in it are letters, as in the original's `encode`."""
    backend = tokenizer.backend_tokenizer
    pieces = backend.pre_tokenizer.pre_tokenize_str(text)
    return [token.id for piece, _ in pieces for token in backend.model.tokenize(piece)]


def _read_fairseq(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Translate `dict.txt`, whose symbols are GPT-2 ids in decimal, to the tokens that these ids stand for."""
    token_of = {number: token for token, number in json.loads(_text(folder, "encoder.json")).items()}
    symbols = [line.rsplit(" ", 1)[0] for line in _text(folder, "dict.txt").splitlines() if line.strip()]
    # BART's own dictionary goes on with fillers to a round number; the original cuts them off behind the third.
    symbols = [symbol for symbol in symbols if not symbol.startswith("madeupword") or symbol <= "madeupword0002"]
    words = [token_of[int(symbol)] if symbol.isdecimal() else symbol for symbol in symbols]
    vocab = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *words))}
    if len(vocab) < len(SPECIAL_TOKENS) + len(words):
        raise UserError("dict.txt names a symbol twice", where=str(folder))
    return vocab, _merges(_text(folder, "vocab.bpe"))


def _text(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def _merges(text: str) -> list[tuple[str, str]]:
    return [_pair(line) for line in text.split("\n") if line and not line.startswith("#version")]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Return the two parts of a merge, which newer files give as a list."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if len(parts) != 2:
        raise ValueError("one of the merges is not a pair")
    return parts[0], parts[1]


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _finish(tokenizer: Tokenizer, num_codes: int, num_bins: int) -> PreTrainedTokenizerFast:
    """Append `<mask>`, codes and bins, and put `<s>` and `</s>` around a text."""
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    appended = [
        "<mask>",
        *(f"<code_{i}>" for i in range(num_codes)),
        *(f"<bin_{i}>" for i in range(num_bins)),
    ]
    tokenizer.add_tokens([AddedToken(token, lstrip=True, normalized=False) for token in appended])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        clean_up_tokenization_spaces=False,
    )


def box_to_text(box: Sequence[float], width: float, height: float, num_bins: int) -> str:
    """Quantise a box (x0, y0, x1, y1) in pixels of a width x height picture to four position tokens.

    Coordinates are rounded half to even on a grid of `num_bins` values from one border to the other (specification
    4.4, where both borders are 512 because pictures are squashed to 512 x 512 first).
    """
    scale = (width, height, width, height)
    bins = [round(min(max(c / s, 0.0), 1.0) * (num_bins - 1)) for c, s in zip(box, scale, strict=True)]
    return "".join(f"<bin_{b}>" for b in bins)


def text_to_box(text: str, width: float, height: float, num_bins: int) -> list[float] | None:
    """Read the first four position tokens of `text` back to pixels; None when there are fewer than four."""
    bins = [int(b) for b in BIN.findall(text)[:4]]
    if len(bins) < 4:
        return None
    return [b / (num_bins - 1) * s for b, s in zip(bins, (width, height, width, height), strict=True)]
