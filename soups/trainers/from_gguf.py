"""Turn a causal language model in one GGUF file into a folder of `save_pretrained`, in float32.

    python -m soups.trainers.from_gguf models/SmolLM2-135M-Instruct.Q4_1.gguf runs/smollm2

Packages bring small models in this form. Quantised weights are expanded to what they stand for. Needs `gguf`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from soups.engine.output import new_folder
from soups.errors import UserError


def convert(path: Path, out: Path) -> None:
    """Write model and tokenizer.

    Raises:
        UserError: no such file, `gguf` is missing, or the file holds something else.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if not path.is_file():
        raise UserError("no such file", where=str(path), fix="give a .gguf file; nothing is downloaded")
    options = {"gguf_file": path.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
        # Without `dequantize` the model counts as quantised, which cannot be saved.
        expanded = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, quantization_config=expanded, **options
        )
    except ImportError as error:
        raise UserError(f"a package is missing: {error}", fix="pip install gguf accelerate") from None
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"no causal language model: {error}", where=str(path), fix="check the file") from None
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main(words: list[str]) -> int:
    """Convert; return the exit code."""
    if len(words) != 2:
        print("usage: python -m soups.trainers.from_gguf FILE.gguf OUT", file=sys.stderr)
        return 2
    try:
        if not Path(words[1]).is_dir():  # it appears when it is complete
            convert(Path(words[0]), Path(words[1]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
