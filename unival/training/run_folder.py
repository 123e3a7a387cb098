"""The folder of a run: begun, continued, or refused."""

import shutil
from pathlib import Path

from unival.atomic import write_json
from unival.config import dump_config, load_config
from unival.evaluation.provenance import versions
from unival.log import console
from unival.schema import RunConfig
from unival.training.check import check_execution, check_progress, check_run, check_same
from unival.training.saving import checkpoints, clean_up, newest_valid, written


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


def has_begun(run_dir: Path) -> bool:
    """Say whether a run folder holds weights, or numbers of steps."""
    log = run_dir / "metrics.jsonl"
    folders = [*checkpoints(run_dir), run_dir / "best", run_dir / "model"]
    return any(folder.is_dir() for folder in folders) or (log.is_file() and log.stat().st_size > 0)


def prepare_run_dir(run_dir: Path, config: RunConfig, fresh: bool, processes: int) -> None:
    """Create the run folder with the resolved configuration, or check that it holds the same one.

    A run that failed before its first step has nothing to lose: it is begun anew, with any configuration.
    """
    path = run_dir / "config.yaml"
    if path.is_file() and not fresh and has_begun(run_dir):
        old = load_config(path, [], RunConfig)
        if old == config:
            return
        check_same(old, config, str(path))
        check_execution(config, processes)
    else:
        check_run(config, processes)  # before anything is deleted or written
        if run_dir.is_dir() and fresh:
            shutil.rmtree(run_dir)

    def begin() -> None:
        dump_config(config, path)
        write_json(run_dir / "versions.json", versions(), indent=1)

    written("the run folder", run_dir, begin)
