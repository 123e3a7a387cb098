"""Checkpoints of the original, both ways: `unival convert SRC DST [--to fairseq]`."""

from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from unival.checkpoint import digest
from unival.convert.folder import read_folder, write_folder
from unival.convert.original import read_original, write_original
from unival.errors import UserError


def convert(
    source: str | Path,
    destination: str | Path,
    to: Literal["transformers", "fairseq"] = "transformers",
    is_ema: bool = False,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint and return a summary.

    Args:
        source: A file of the original, or (for `fairseq`) a model folder or the name of a built-in model.
        destination: Folder, or file for `fairseq`; it must not exist.
        to: The format to write.
        is_ema: Take the averaged weights of the file.
        tokenizer: Folder with the tokenizer's files; see `load_bpe_tokenizer`.

    Raises:
        UserError: If the source is unreadable, unsafe or not a UnIVAL model, or the destination is there already.
    """
    source, destination = Path(source), Path(destination)
    is_file = source.is_file()
    if to == "transformers" and not is_file:
        found = "a folder, not a file of the original" if source.is_dir() else "not a regular file"
        raise UserError(
            f"this is {found}" if source.exists() else "no such file",
            where=str(source),
            fix="give a .pt file; a model folder is written as one with --to fairseq",
        )
    if is_ema and not is_file:
        raise UserError("a model folder holds no averaged weights beside its own", where="--ema")
    original = read_original(source, is_ema) if is_file else read_folder(source)
    if is_file:
        original.source |= digest(source)
    summary: dict[str, Any] = {"source": original.source, "written": str(destination), "format": to}
    try:
        if to == "fairseq":
            write_original(original, destination)
            summary["files"] = {destination.name: digest(destination)}
        else:
            summary |= write_folder(original, destination, tokenizer)
    except (OSError, SafetensorError) as error:
        needed = sum(tensor.nbytes for tensor in original.tensors.values())
        reason = error.strerror or error if isinstance(error, OSError) else error
        what = f"cannot write: {reason}; {needed:,} bytes are needed"
        raise UserError(what, where=str(destination), fix="choose another destination") from None
    config = original.config
    media = [kind for kind in ("image", "video", "audio") if getattr(config, f"{kind}_encoder") is not None]
    return summary | {
        "tensors": len(original.order),
        "dtype": str(original.dtype).removeprefix("torch."),
        "media": media,
        "notes": original.notes,
    }
