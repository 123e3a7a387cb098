r"""Descriptions of Debian packages (each under its package's licence): prompts for one sentence about a long text.

    apt-get -o Acquire::Languages=en update
    /usr/lib/apt/apt-helper cat-file /var/lib/apt/lists/*_Translation-en* > Translation-en  # packed on some machines
    python -m preprocessing.debian_descriptions data/debian --source Translation-en

Written are `train`, `test` and `other` (sections that the first two do not have) as JSON lines:

    {"prompt": "<|im_start|>user\n...", "source": "GIMP is ...", "question": "what is gimp?", "package": "gimp",
     "short": "GNU Image Manipulation Program"}

Packages of one source share sentences, so the split goes by the name up to its first hyphen (foo, foo-data, foo-doc).
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from unival.atomic import replacing
from unival.errors import UserError, run_cli

MIN_WORDS, MAX_WORDS = 30, 60  # longer ones cost most of the time of a training on a processor
OTHER = ("lib", "python3", "node", "r", "golang", "fonts")  # kinds of packages, by the start of their names
# The chat form of SmolLM2-Instruct.
PROMPT = (
    "<|im_start|>user\nThis describes the package {name}: {source}\nIn one short sentence, what is {name}?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def entries(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (package, short description, long description) of a `Translation-en` file."""
    for block in re.split(r"\n\s*\n", text):
        name = re.search(r"^Package: (\S+)$", block, re.MULTILINE)
        found = re.search(r"^Description-en: (.*)\n((?: .*\n?)*)", block, re.MULTILINE)
        if name and found:
            lines = [line.strip() for line in found[2].splitlines()]
            yield name[1], found[1].strip(), " ".join(line for line in lines if line and line != ".")


def record(name: str, short: str, source: str, template: str) -> dict[str, str]:
    """Return one row."""
    prompt = template.format(name=name, source=source)
    return {"prompt": prompt, "source": source, "question": f"what is {name}?", "package": name, "short": short}


def split_of(name: str, share: float) -> str:
    """Return which file a package belongs to."""
    family = name.partition("-")[0]
    if any(family == kind or (kind == "lib" and family.startswith("lib")) for kind in OTHER):
        return "other"
    place = int(hashlib.sha256(family.encode()).hexdigest()[:8], 16) / 16**8
    return "test" if place < share else "train"


def build(texts: list[str], template: str = PROMPT, share: float = 0.1) -> dict[str, list[dict[str, str]]]:
    """Return the rows of each file, in the order of a hash, so that the first ones are a sample of all."""
    rows: dict[str, dict[str, dict[str, str]]] = {"train": {}, "test": {}, "other": {}}
    for text in texts:
        for name, short, source in entries(text):
            if MIN_WORDS <= len(source.split()) <= MAX_WORDS:
                rows[split_of(name, share)].setdefault(source, record(name, short, source, template))
    return {
        split: sorted(found.values(), key=lambda row: hashlib.sha256(row["package"].encode()).digest())
        for split, found in rows.items()
    }


def read(path: Path) -> str:
    """Return the text of a file.

    Raises:
        UserError: It is packed or not there.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "unpack it with /usr/lib/apt/apt-helper cat-file"
        raise UserError(f"cannot be read ({error})", where=str(path), fix=fix) from None


def main(argv: Sequence[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--source", type=Path, nargs="+", required=True, help="Translation-en files, unpacked")
    parser.add_argument("--template", default=PROMPT, help="prompt with {name} and {source}")
    options = parser.parse_args(argv)
    found = build([read(path) for path in options.source], options.template)
    options.out.mkdir(parents=True, exist_ok=True)
    for split, rows in found.items():
        with replacing(options.out / f"{split}.jsonl") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{len(rows)} rows: {options.out / split}.jsonl")


if __name__ == "__main__":
    run_cli(lambda args: main(args), sys.argv[1:])
