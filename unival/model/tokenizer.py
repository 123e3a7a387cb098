"""One id space for words, image codes and box positions (specification section 3)."""

import re
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
BIN = re.compile(r"<bin_(\d+)>")


def train_tokenizer(texts: Iterable[str], num_words: int, num_codes: int, num_bins: int) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE and append `<mask>`, `<code_i>` and `<bin_i>`.

    Args:
        texts: Lines to learn merges from; each is used with a leading space, as prompts and targets are.
        num_words: Upper bound of the BPE vocabulary, special tokens included.
        num_codes, num_bins: How many image codes and position bins to append, in this order.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_words,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" " + text for text in texts), trainer)
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
