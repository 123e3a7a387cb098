"""Document frequencies of CIDEr-D: in how many samples' references each n-gram occurs.

    python -m preprocessing.cider_frequencies data/coco/val.jsonl --out data/coco/val-frequencies.json

A document is all captions of one row, so take a manifest with a row per picture (`coco/train_images`, `coco/val`).
Captions are tokenised as the official evaluation does (`ptb`), as the original's rewards do (`simple`: lower case,
no punctuation), or are clean already (`none`). `--from-original FILE.p` converts the original's cached files instead.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from preprocessing.official import read_json_lines
from unival.data.fields import given_captions
from unival.errors import UserError, run_cli
from unival.metrics.cider import DocumentFrequencies
from unival.metrics.ngram import simple_tokenize
from unival.metrics.ptb import ptb_tokenize

TOKENIZERS = {"ptb": ptb_tokenize, "simple": lambda texts: [simple_tokenize(text) for text in texts], "none": list}


def frequencies(references: Sequence[Sequence[str]], tokenizer: str = "ptb") -> DocumentFrequencies:
    """Count over the references of each sample after tokenisation."""
    tokenize = TOKENIZERS[tokenizer]
    flat = iter(tokenize([caption for captions in references for caption in captions]))
    return DocumentFrequencies.from_references([[next(flat) for _ in captions] for captions in references])


def main(argv: Sequence[str]) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", choices=sorted(TOKENIZERS), default="ptb")
    parser.add_argument("--from-original", type=Path, metavar="FILE.p")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    if (args.from_original is None) == (not args.manifests):
        raise UserError("give manifests, or --from-original with one file")
    if args.from_original is not None:
        counted = DocumentFrequencies.load(args.from_original)
    else:
        rows = [row for manifest in args.manifests for row in read_json_lines(manifest)]
        references = [given_captions(row) for row in rows]
        if not all(references):
            place = f"{args.manifests[0]}, row {references.index([]) + 1} of all"
            raise UserError("a row has no `captions` or `caption`", where=place)
        counted = frequencies(references, args.tokenizer)
    counted.save(args.out)
    summary = {"documents": counted.num_documents, "ngrams": len(counted.counts), "file": str(args.out)}
    print(json.dumps(summary) if args.json else f"{summary['ngrams']} n-grams of {summary['documents']} documents")


if __name__ == "__main__":
    run_cli(lambda args: main(args), sys.argv[1:])
