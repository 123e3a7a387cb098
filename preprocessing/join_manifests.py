r"""One manifest out of several: what the pretraining configurations read as `$data/pretrain/captions.jsonl` and so on.

    python -m preprocessing.join_manifests data/coco/train.jsonl data/visual_genome/captions.jsonl \
        data/cc3m/train.jsonl data/sbu/train.jsonl --out data/pretrain/captions.jsonl
    python -m preprocessing.join_manifests data/vqav2/train.jsonl data/visual_genome/qa_pairs.jsonl \
        --out data/pretrain/questions.jsonl

Rows keep their order and fields. A uid gets the name of its manifest's folder in front, a medium's path too, and the
folder is linked beside the new manifest.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from preprocessing.official import Row, read_json_lines, write_manifests
from unival.data.fields import media_of
from unival.errors import UserError, run_cli


def joined(manifests: Sequence[Path]) -> Iterator[Row]:
    """Yield the rows of all manifests.

    Raises:
        UserError: Two folders have the same name, or a medium is no path.
    """
    folders: dict[str, Path] = {}
    for manifest in manifests:
        folder = manifest.resolve().parent
        if folders.setdefault(folder.name, folder) != folder:
            raise UserError(f"two folders are called {folder.name}", where=str(manifest), fix="rename one of them")
        for row in read_json_lines(manifest):
            medium = media_of(row)
            if medium is not None and not isinstance(medium[1], str):
                raise UserError(
                    "only paths can be joined", where=f"{manifest}: uid {row['uid']}", fix="unpack the media"
                )
            moved = {} if medium is None else {medium[0]: f"{folder.name}/{medium[1]}"}
            yield {**row, "uid": f"{folder.name}/{manifest.stem}/{row['uid']}", **moved}


def main(argv: Sequence[str]) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the new manifest")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    roots = {manifest.resolve().parent.parent for manifest in args.manifests}
    if len(roots) > 1:
        raise UserError("the manifests' folders do not lie in one folder", fix=f"found {', '.join(map(str, roots))}")
    name = f"{args.out.parent.name}/{args.out.stem}"
    entry = write_manifests({name: joined(args.manifests)}, roots.pop(), args.out.parent.parent)[0]
    print(json.dumps(entry) if args.json else f"{entry['manifest']}: {entry['rows']} rows, {entry['media']} media")


if __name__ == "__main__":
    run_cli(lambda args: main(args), sys.argv[1:])
