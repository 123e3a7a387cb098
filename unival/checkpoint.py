"""Checkpoints: complete or absent, never torn; safetensors and JSON only.

A model folder is a `transformers` folder. A training checkpoint `step-0000500/` holds `model/`, `training.safetensors`
(optimizer moments and generator state), `state.json` and `manifest.json` with the size and sha256 of every file; it is
written under a temporary name, flushed and renamed.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unival.errors import UserError
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.weights import bart_weights, encoder_weights, read_weights

BUILT_IN = {"unival-tiny": Path(__file__).parent / "assets" / "unival-tiny"}


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a run stands: the next step of a stage, and how long it has trained."""

    stage: int
    step: int
    seconds: float


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
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"not a model folder: {name} is missing",
                where=str(folder),
                fix="a finished run has its model in `model/`",
            )
    return folder


def load_model(path: str | Path) -> tuple[UnivalForConditionalGeneration, UnivalProcessor]:
    """Load model (float32, evaluation mode) and processor from a folder or a built-in name.

    Raises:
        UserError: If the folder is not a complete UnIVAL model.
    """
    folder = resolve_model_dir(path)
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not a valid config.json: {error}", where=str(folder)) from None
    if settings.get("model_type") != UnivalConfig.model_type:
        raise UserError(
            f"not a UnIVAL model: model_type is {settings.get('model_type')!r}, expected 'unival'",
            where=str(folder),
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
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"unreadable model: {error}", where=str(folder), fix="copy or convert it again") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(map(str, report[kind]))
        if names:
            listed = ", ".join(names[:10])
            raise UserError(f"{len(names)} {kind.replace('_', ' ')}: {listed}", where=str(folder))
    return model.eval(), processor


def load_encoder(model: UnivalForConditionalGeneration, name: str, path: str | Path) -> None:
    """Load the weights of one encoder into a model, in place; `unival.weights` says which files are understood.

    Args:
        model: A model that has the encoder.
        name: "image_encoder", "video_encoder" or "audio_encoder".
        path: The file.

    Raises:
        UserError: If the file is unreadable or does not fit.
    """
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
        dtype: Store floating-point weights like this; None keeps them.
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
) -> None:
    """Write the files of a model folder in place."""
    state = {k: v for k, v in model.state_dict().items() if k not in model._tied_weights_keys}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    with quiet_transformers():
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        processor.save_pretrained(folder)
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in state.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


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
        umask = os.umask(0)
        os.umask(umask)
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                path.chmod(0o666 & ~umask)  # safetensors writes 0600
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if final.exists():
            old = final.with_name(f".{final.name}.old-{os.getpid()}")
            final.rename(old)
            temporary.rename(final)
            shutil.rmtree(old)
        else:
            temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_training(
    run_dir: Path,
    total_step: int,
    state: TrainState,
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> Path:
    """Write a training checkpoint and delete the oldest ones beyond `keep`."""
    folder = run_dir / f"step-{total_step:07d}"
    with atomic_folder(folder) as temporary:
        (temporary / "model").mkdir()
        write_model(temporary / "model", model, processor)
        tensors = {f"{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
        tensors["torch_generator"] = torch.get_rng_state()
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / "training.safetensors")
        (temporary / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
        manifest = {str(p.relative_to(temporary)): digest(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return folder


def digest(path: Path) -> dict[str, Any]:
    """Return size in bytes and sha256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def checkpoints(run_dir: Path) -> list[Path]:
    """List the training checkpoints of a run, oldest first; leftovers of killed writes are not among them."""
    return sorted(run_dir.glob("step-[0-9]*")) if run_dir.is_dir() else []


def problem_with(folder: Path) -> str | None:
    """Return why a training checkpoint cannot be used, None when every file is what its manifest says."""
    try:
        manifest: Mapping[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if digest(folder / name) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError, AttributeError) as error:
        return f"manifest.json: {error}"
    return None


def newest_valid(run_dir: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint whose files are intact, and a line for every one passed over."""
    skipped = []
    for folder in reversed(checkpoints(run_dir)):
        problem = problem_with(folder)
        if problem is None:
            return folder, skipped
        skipped.append(f"skipped {folder.name}: {problem}")
    return None, skipped


def load_training(folder: Path, optimizer: torch.optim.Optimizer) -> TrainState:
    """Restore optimizer and generator from a valid checkpoint (the model is loaded with `load_model`)."""
    tensors = load_file(folder / "training.safetensors")
    torch.set_rng_state(tensors.pop("torch_generator"))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))


def restore_generator(folder: Path) -> None:
    """Set torch's generator to its state in a checkpoint, for a stage that has not begun and has no optimizer yet."""
    with safe_open(folder / "training.safetensors", "pt") as tensors:
        torch.set_rng_state(tensors.get_tensor("torch_generator"))


def read_state(folder: Path) -> TrainState:
    """Return the train state of a checkpoint."""
    return TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
