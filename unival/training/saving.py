"""Training checkpoints: complete or absent, never torn; safetensors and JSON only.

`step-0000500/` holds `model/` and, with averaging, `ema/` (model folders), `optimizer/` (moments by parameter name,
each process's part in a file of its own), `random-00000.safetensors` (generators of each process), `state.json` and
`manifest.json` with size and sha256 of every file. It is written under a temporary name, flushed and renamed, so a
folder with the final name is whole; the manifest finds what happens to it later. Whole weights and named moments make
it independent of the number of processes and of how they share the model.
"""

import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from unival.checkpoint import digest, flush, publish, write_model
from unival.errors import UserError
from unival.log import console
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.training.distributed import World, full_state
from unival.training.ema import Ema, untied
from unival.training.random_state import save_random

T = TypeVar("T")
FORMAT = 2
MANIFEST = "manifest.json"
RETRY_SECONDS = (1.0, 10.0)  # waits before the second and the third attempt of a write
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)(-\d+)?$")  # of `atomic_folder` and of checkpoints


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a run stands.

    Attributes:
        stage, step: The next step, and the stage it belongs to.
        seconds: How long the run has trained.
        scale: Loss scale of fp16 and the finite updates since it last changed.
        watch: What `unival.training.validation.Watch` remembers in this stage.
        world: How the run was carried out: processes, kind.
        validating: A signal halted the validation that comes before the next step.
        rows: How many rows the data sets of the stage have.
        format: Of the folder.
    """

    stage: int
    step: int
    seconds: float
    scale: Mapping[str, Any] = field(default_factory=dict)
    watch: Mapping[str, Any] = field(default_factory=dict)
    world: Mapping[str, Any] = field(default_factory=dict)
    validating: bool = False
    rows: Mapping[str, int] = field(default_factory=dict)
    format: int = FORMAT


def save_training(
    run_dir: Path,
    total_step: int,
    state: TrainState,
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    optimizer: torch.optim.Optimizer,
    keep: int,
    ema: Ema | None = None,
    world: World | None = None,
) -> Path:
    """Write a training checkpoint and delete the oldest ones beyond `keep`; all processes must call it.

    A write that fails, as on a full disk, is tried again.

    Raises:
        UserError: If it fails for good; the checkpoints before it are untouched.
    """
    world = world or World()
    folder = run_dir / f"step-{total_step:07d}"
    weights = full_state(untied(model), world)
    averages = None if ema is None else full_state(ema.tensors, world)
    moments = moments_by_name(model, optimizer)

    def write(temporary: Path) -> None:
        (temporary / "model").mkdir()
        write_model(temporary / "model", model, processor, state=weights)
        if averages is not None:
            (temporary / "ema").mkdir()
            write_model(temporary / "ema", model, processor, state=averages)
        (temporary / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")

    held = sum(tensor.numel() * tensor.element_size() for tensor in [*weights.values(), *moments.values()])
    insist(folder.name, run_dir, lambda: attempt(folder, write, moments, world), held)
    if world.is_main:
        prune(run_dir, keep)
    return folder


def attempt(folder: Path, write: Callable[[Path], None], moments: Mapping[str, Tensor], world: World) -> str | None:
    """Write a checkpoint once; return what went wrong in any process, with nothing left of it."""
    temporary = folder.with_name(f".{folder.name}.tmp")  # the same in all processes

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "optimizer").mkdir(parents=True)
        write(temporary)

    def end() -> None:
        write_manifest(temporary)
        flush(temporary)
        publish(temporary, folder)

    def moments_and_random() -> None:
        save_random(temporary / f"random-{world.rank:05d}.safetensors", world.device)
        if moments:
            writer = HuggingFaceStorageWriter(str(temporary / "optimizer"), save_distributed=True)
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one process is one process
                dcp.save(dict(moments), storage_writer=writer)  # pyright: ignore[reportPrivateImportUsage]

    problem = world.first_problem(problem_in(begin) if world.is_main else None)
    if problem is None:
        problem = world.first_problem(problem_in(moments_and_random))
    if problem is None:
        problem = world.first_problem(problem_in(end) if world.is_main else None)
    if problem is not None and world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
    return problem


def insist(what: str, run_dir: Path, attempt: Callable[[], str | None], held: int | None = None) -> None:
    """Attempt to write something, and again where that fails, as on a full disk.

    Args:
        what: For messages.
        run_dir: Of the run.
        attempt: Returns what went wrong, with nothing left of it.
        held: How many bytes it takes, where that is known.

    Raises:
        UserError: If it fails for good; what was written before is untouched.
    """
    for wait in (*RETRY_SECONDS, None):
        problem = attempt()
        if problem is None:
            return
        if wait is not None:
            console.print(f"[yellow]writing {what} failed, trying again: {problem}[/]")
            time.sleep(wait)
    free = shutil.disk_usage(next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())).free
    older = checkpoints(run_dir)
    fix = ("" if held is None else f"it takes about {held / 1e6:,.0f} MB and ") + f"{free / 1e6:,.0f} MB are free; "
    fix += f"make room, and the same command goes on from {older[-1].name if older else 'the start'}"
    raise UserError(f"{what} could not be written: {problem}", str(run_dir), fix)


def written(what: str, run_dir: Path, action: Callable[[], T]) -> T:
    """Return what an action gives that writes files in this process alone; see `insist`."""
    found: list[T] = []
    insist(what, run_dir, lambda: problem_in(lambda: found.append(action())))
    return found[0]


def problem_in(action: Callable[[], None]) -> str | None:
    """Run an action that writes files; return what the system said against it."""
    try:
        action()
    except (OSError, SafetensorError) as error:
        return str(error)
    except CheckpointException as error:  # no `Exception`: it would pass through most handlers
        return "; ".join(f"process {rank}: {reason[0]}" for rank, reason in error.failures.items())
    return None


def moments_by_name(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of the optimizer by `PARAMETER.MOMENT`; a parameter that never had a gradient has none."""
    named = ((name, optimizer.state.get(parameter, {})) for name, parameter in model.named_parameters())
    return {f"{name}.{key}": state[key] for name, state in named for key in sorted(state)}


def load_moments(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore the optimizer from a checkpoint; every process reads its part of the moments.

    Raises:
        UserError: If a moment has another shape than its parameter.
    """
    reader = HuggingFaceStorageReader(str(folder / "optimizer"))
    stored = {name: entry.size for name, entry in reader.read_metadata().state_dict_metadata.items()}  # pyright: ignore[reportAttributeAccessIssue]
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    wanted: dict[str, Tensor] = {}
    for key, shape in stored.items():
        name, _, moment = key.rpartition(".")
        if name not in parameters:
            continue
        parameter = parameters[name].detach()
        value = torch.zeros((), device=parameter.device) if moment == "step" else torch.zeros_like(parameter)
        if value.shape != shape:
            raise UserError(f"the checkpoint's moments do not fit: {name}", where=str(folder))
        optimizer.state[parameters[name]][moment] = wanted[key] = value
    if wanted:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            dcp.load(dict(wanted), storage_reader=reader)  # pyright: ignore[reportPrivateImportUsage]


def read_state(folder: Path) -> TrainState:
    """Return where the run stood at a checkpoint.

    Raises:
        UserError: If another version wrote it.
    """
    fields = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if fields.get("format") != FORMAT:
        what = f"the checkpoint has format {fields.get('format', 1)}, this version reads {FORMAT}"
        raise UserError(what, str(folder), "continue with the version that began, or use its `model/` as `init`")
    return TrainState(**fields)


def checkpoints(run_dir: Path) -> list[Path]:
    """List the training checkpoints of a run, oldest first; leftovers of killed writes are not among them."""
    return sorted(run_dir.glob("step-[0-9]*")) if run_dir.is_dir() else []


def write_manifest(folder: Path) -> None:
    """Write the size and the sha256 of every file of a folder beside them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {path.relative_to(folder).as_posix(): digest(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def problem_with(folder: Path, by_hash: bool = True) -> str | None:
    """Return why a folder with a manifest cannot be used, None when every file is what the manifest says.

    Args:
        folder: A training checkpoint, or one of the best models.
        by_hash: Read every byte; otherwise only sizes are compared.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        if not isinstance(manifest, dict) or manifest.keys().isdisjoint(("state.json", "score.json")):
            return f"{MANIFEST} is damaged"
        for name in sorted(files - {*manifest, MANIFEST}):
            return f"{name} is not in {MANIFEST}"
        for name, expected in manifest.items():
            if name not in files:
                return f"{name} is missing"
            is_same = digest(folder / name) == expected if by_hash else size(folder / name) == expected["bytes"]
            if not is_same:
                return f"{name} is damaged"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{MANIFEST} is damaged: {error}"
    return None


def size(path: Path) -> int:
    """Return the size of a file in bytes."""
    return path.stat().st_size


def newest_valid(run_dir: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint whose files are intact, and a line for every one passed over."""
    skipped = []
    for folder in reversed(checkpoints(run_dir)):
        problem = problem_with(folder)
        if problem is None:
            return folder, skipped
        skipped.append(f"skipped {folder.name}: {problem}")
    return None, skipped


def prune(run_dir: Path, keep: int) -> None:
    """Delete every checkpoint that is older than `keep` others of which all files have their size."""
    intact = 0
    for folder in reversed(checkpoints(run_dir)):
        if intact >= keep:
            doomed = folder.with_name(f".{folder.name}.tmp")  # out of sight at once, whatever happens during deletion
            shutil.rmtree(doomed, ignore_errors=True)
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        intact += problem_with(folder, by_hash=False) is None if folder.is_dir() else 0


def clean_up(run_dir: Path) -> None:
    """Delete what killed writes left in a run folder; a folder that was moved aside and not replaced comes back."""
    for path in [*sorted(run_dir.glob(".*")), *sorted(run_dir.glob("best/.*"))]:
        match = LEFTOVER.match(path.name)
        if match is None or not path.is_dir():
            continue
        if match["kind"] == "old" and not path.with_name(match["name"]).exists():
            path.rename(path.with_name(match["name"]))
        else:
            shutil.rmtree(path, ignore_errors=True)
