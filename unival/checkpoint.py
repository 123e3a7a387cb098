"""Model folders, as `transformers` writes them: complete or absent, never torn; safetensors and JSON only.

Checkpoints of a training run are in `unival.training.saving`.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unival.errors import UserError
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.weights import bart_weights, encoder_weights, read_weights

ASSETS = Path(__file__).parent / "assets"
BUILT_IN = {name: ASSETS / name for name in ("unival-tiny", "unival-tiny-pictures")}
COPY_AGAIN = "copy or convert it again"
BUILT_IN_ENCODERS = {"unival-tiny-audio": ASSETS / "encoders" / "audio.safetensors"}


def resolve_model_dir(path: str | Path) -> Path:
    """Return the folder of a model given by path or by the name of a built-in one.

    Raises:
        UserError: If it does not exist or holds no weights.
    """
    folder = BUILT_IN.get(str(path), Path(path))
    if not folder.is_dir():
        raise UserError(
            f"no such model folder: {path}",
            fix=f"give a folder written by `unival train`, or a built-in model: {', '.join(BUILT_IN)}",
        )
    if (folder / "model.safetensors.index.json").is_file() and not (folder / "model.safetensors").is_file():
        raise UserError(
            "the weights are in several files; one is expected, model.safetensors",
            where=str(folder),
            fix='save it with save_pretrained(..., max_shard_size="1TB")',
        )
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"not a model folder: {name} is missing",
                where=str(folder),
                fix="a finished run has its model in `model/`",
            )
    return folder


def load_model(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[UnivalForConditionalGeneration, UnivalProcessor]:
    """Load model (float32, evaluation mode) and processor from a folder or a built-in name, the model onto a device.

    Raises:
        UserError: If the folder is not a complete UnIVAL model.
    """
    folder = resolve_model_dir(path)
    read_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            "the folder has no tokenizer: tokenizer.json is missing",
            where=str(folder),
            fix="copy it again; a file of the original gets one with: unival convert FILE.pt FOLDER --tokenizer DIR",
        )
    try:
        with quiet_transformers():
            # A pair because of `output_loading_info`, which the annotation leaves out.
            model, report = UnivalForConditionalGeneration.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                folder,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, which is checked below
            )
            processor = UnivalProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of odd settings, networks and tokenizers raise whatever comes first; --debug shows it
        raise UserError(f"unreadable model: {error}", where=str(folder), fix=COPY_AGAIN) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(map(str, report[kind]))
        if names:
            listed = ", ".join(names[:10])
            fix = f"config.json describes another model than the weights: {COPY_AGAIN}"
            raise UserError(f"{len(names)} {kind.replace('_', ' ')}: {listed}", where=str(folder), fix=fix)
    processor.max_tokens = model.config.max_text_positions
    return model.eval().to(device), processor  # pyright: ignore[reportReturnType, reportArgumentType]


def read_config(folder: Path) -> UnivalConfig:
    """Return the settings in a model folder.

    Raises:
        UserError: If they are unreadable, or those of another kind of model.
    """
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"not a valid config.json: {error}", where=str(path), fix=COPY_AGAIN) from None
    if not isinstance(settings, dict):
        what = f"not a valid config.json: expected an object, got a {type(settings).__name__}"
        raise UserError(what, where=str(path), fix=COPY_AGAIN)
    if settings.get("model_type") != UnivalConfig.model_type:
        what = f"not a UnIVAL model: model_type is {settings.get('model_type')!r}, expected 'unival'"
        fix = f"give a folder written by `unival train` or `unival convert`, or a built-in model: {', '.join(BUILT_IN)}"
        raise UserError(what, where=str(path), fix=fix)
    try:
        return UnivalConfig.from_dict(settings)
    except Exception as error:  # `transformers` checks a few fields, each in its own way
        raise UserError(f"not a valid config.json: {error}", where=str(path), fix=COPY_AGAIN) from error


def load_encoder(model: UnivalForConditionalGeneration, name: str, path: str | Path) -> None:
    """Load the weights of one encoder into a model, in place; `unival.weights` says which files are understood.

    Args:
        model: A model that has the encoder.
        name: "image_encoder", "video_encoder" or "audio_encoder".
        path: The file, or `unival-tiny-audio` for the audio encoder inside the package.

    Raises:
        UserError: If the file is unreadable or does not fit, or the model has no such encoder.
    """
    if getattr(model.config, name) is None:
        raise UserError(f"this model has no {name}", where=str(path), fix=f"add {name} to its configuration")
    path = BUILT_IN_ENCODERS.get(str(path), path)
    encoder = model.get_submodule(f"encoder.embed_{name.removesuffix('_encoder')}s")
    encoder.load_state_dict(encoder_weights(name, encoder, read_weights(path), str(path)))


def load_bart(model: UnivalForConditionalGeneration, path: str | Path) -> None:
    """Load what a BART of the same size gives into a model, in place; the rest keeps its initial values.

    Raises:
        UserError: If the file is unreadable or does not fit.
    """
    model.load_state_dict(bart_weights(model, read_weights(path), str(path)), strict=False)


@contextlib.contextmanager
def quiet_transformers() -> Any:
    """Silence the progress bars of `transformers`, which draw over ours, and its reports, which we check ourselves."""
    from transformers.utils import logging

    was_on, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_on:
            logging.enable_progress_bar()


def save_model(
    folder: str | Path,
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    dtype: torch.dtype | None = None,
    card: str | None = None,
) -> Path:
    """Write a model folder, replacing an old one only when the new one is complete.

    Args:
        folder: Destination.
        model, processor: What to write.
        dtype: Store floating-point weights like this, those of mel and Fourier tables excepted; None keeps them.
        card: Text of README.md, the model card.
    """
    with atomic_folder(folder) as temporary:
        write_model(temporary, model, processor, dtype)
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")
    return Path(folder)


def write_model(
    folder: Path,
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the files of a model folder in place; `state` replaces the model's own weights."""
    state = model.state_dict() if state is None else state
    state = {k: v.detach().cpu().contiguous() for k, v in state.items() if k not in model._tied_weights_keys}
    if dtype is not None:
        exact = set(model._keep_in_fp32_modules_strict or ())  # tables that are computed, and are used in float32
        state = {
            k: v.to(dtype) if v.is_floating_point() and exact.isdisjoint(k.split(".")) else v for k, v in state.items()
        }
    with quiet_transformers():
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        processor.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@contextlib.contextmanager
def atomic_folder(folder: str | Path) -> Any:
    """Yield a temporary folder that takes the final name when the block ends without an exception."""
    final = Path(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        flush(temporary)
        publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush(folder: Path) -> None:
    """Make every file below a folder survive a power cut, with the permissions that the user's files have."""
    umask = os.umask(0)
    os.umask(umask)
    for path in [*sorted(folder.rglob("*")), folder]:
        if path.is_file():
            path.chmod(0o666 & ~umask)  # safetensors writes 0600
        sync(path)


def publish(temporary: Path, final: Path) -> None:
    """Give a complete folder its name; an older one of that name is moved aside first and then deleted."""
    old = final.with_name(f".{final.name}.old-{os.getpid()}")
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file or the entries of a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> dict[str, Any]:
    """Return size in bytes and sha256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
