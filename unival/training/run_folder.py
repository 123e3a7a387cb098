"""The folder of a run: begun, continued, or refused."""

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from unival.atomic import write_json
from unival.config import dump_config, load_config
from unival.data.mixture import rows_of_files
from unival.errors import UserError
from unival.evaluation.provenance import versions
from unival.log import console
from unival.schema import RunConfig
from unival.training.check import check_execution, check_run
from unival.training.check_resume import check_progress, check_same, leaves
from unival.training.saving import TrainState, checkpoints, clean_up, newest_valid, written

LOCK = ".lock"
ELSEWHERE = "choose another `out=...`"


def find_checkpoint(config: RunConfig, run_dir: Path) -> Path | None:
    """Return the checkpoint to go on from, None to begin; say which damaged ones are passed over.

    Raises:
        UserError: If `resume` names a checkpoint after which nothing is left.
    """
    clean_up(run_dir)
    checkpoint, skipped = newest_valid(run_dir)
    for line in skipped:
        console.print(f"[yellow]{line}[/]")
    if skipped:
        console.print(f"[yellow]going on from {'the start' if checkpoint is None else checkpoint.name}[/]")
    if checkpoint is None and config.resume != "auto":
        checkpoint = Path(config.resume)
        check_progress(config, checkpoint)  # again, because epochs are steps now
    return checkpoint


def check_data(config: RunConfig, state: TrainState, checkpoint: Path) -> None:
    """Refuse to go on within a stage whose data are not those that it began with.

    A step would train other samples than it would have. Another run, which `resume` names, may have had other data,
    but it must not stand behind the end of the stage, where `epochs` says how long that is.

    Raises:
        UserError: In both cases.
    """
    if state.step == 0:
        return
    stage, fix = config.stages[state.stage], f"restore the data, or {ELSEWHERE} with init={checkpoint / 'model'}"
    if state.step > stage.steps:
        what = f"the checkpoint stands at step {state.step}, and stage {stage.name!r} has {stage.steps} steps"
        raise UserError(f"{what}: its data have fewer rows than when it began", str(checkpoint), fix)
    if checkpoint.parent.resolve() != Path(config.out).resolve():
        return
    rows = rows_of_files(stage)
    for place, number in state.rows.items():
        if rows[place] != number:
            what = f"the data of stages.{state.stage}.{place} had {number} rows when the stage began, and have"
            raise UserError(f"{what} {rows[place]} now", str(checkpoint), fix)


def has_begun(run_dir: Path) -> bool:
    """Say whether a run folder holds weights, or numbers of steps."""
    log = run_dir / "metrics.jsonl"
    folders = [*checkpoints(run_dir), run_dir / "best", run_dir / "model"]
    return any(folder.is_dir() for folder in folders) or (log.is_file() and log.stat().st_size > 0)


def prepare_run_dir(run_dir: Path, config: RunConfig, fresh: bool, processes: int, held: ExitStack) -> None:
    """Create the run folder with the resolved configuration, or check that it holds the same one.

    A run that failed before its first step has nothing to lose: it is begun anew, with any configuration.

    Args:
        run_dir: The folder.
        config: Of the run.
        fresh: Delete what the folder holds.
        processes: How many share the work.
        held: Until it closes, or this process ends in any way, other processes may not train in the folder.

    Raises:
        UserError: If the run cannot work, its folder belongs to another run or is in use, or something that is no run
            would be deleted.
    """
    path = run_dir / "config.yaml"
    if (run_dir / LOCK).exists():
        hold(run_dir, held)
    old: RunConfig | None = None
    if fresh or not has_begun(run_dir):
        check_run(config, processes)  # before anything is deleted or written
        if fresh and run_dir.is_dir():
            check_deletion(run_dir, "run", ["config.yaml", "versions.json"])
            check_inputs(run_dir, config)
            shutil.rmtree(run_dir)
    else:
        if not path.is_file():
            what = "the folder holds weights or steps, and no config.yaml that says of which run"
            raise UserError(what, str(run_dir), ELSEWHERE)
        old = load_config(path, [], RunConfig)
        if old != config:
            check_same(old, config, str(path))
            (check_execution if old.evaluations == config.evaluations else check_run)(config, processes)

    def begin() -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        hold(run_dir, held)
        if old != config:
            dump_config(config, path)
            write_json(run_dir / "versions.json", versions(), indent=1)
        if old is not None and old.evaluations != config.evaluations:
            (run_dir / "evaluation.json").unlink(missing_ok=True)

    written("the run folder", run_dir, begin)


def check_deletion(folder: Path, kind: str, files: Sequence[str]) -> None:
    """Refuse to delete a folder that lacks the files of its kind, or that this process works in.

    Raises:
        UserError: In both cases.
    """
    fix = "choose another folder, or remove this one by hand"
    if any(folder.iterdir()) and not all((folder / name).is_file() for name in files):
        what = f"--fresh deletes the folder of a {kind}, and this is none: it has no {' and '.join(files)}"
        raise UserError(what, str(folder), fix)
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError("--fresh would delete the working folder", str(folder), fix)


def check_inputs(run_dir: Path, config: RunConfig) -> None:
    """Refuse to delete what the new run would read.

    Raises:
        UserError: For the first such path.
    """
    for key, value in leaves(config.model_dump(mode="json", exclude={"out"})):
        if isinstance(value, str) and Path(value).resolve().is_relative_to(run_dir.resolve()):
            raise UserError(f"--fresh would delete {value}, which `{key}` names", str(run_dir), ELSEWHERE)


def hold(run_dir: Path, held: ExitStack) -> None:
    """Keep other processes from training in a folder; one that ends in any way holds nothing.

    Locks of records belong to one process: workers that outlive a killed run for a moment do not hold them.

    Raises:
        UserError: If another process trains there.
    """
    path = run_dir / LOCK
    try:
        file = held.enter_context(path.open("a+", encoding="utf-8"))
    except OSError:
        return  # nothing can be written here: a complete run is only read, any other will say so
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        file.seek(0)
        what = f"another process is training in this folder: {file.read(200).strip() or 'unknown'}"
        raise UserError(what, str(run_dir), f"wait for it, or {ELSEWHERE}") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    held.callback(path.unlink, missing_ok=True)
