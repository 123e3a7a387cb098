"""One sweep, many processes: each scores its share of the points and writes to the same store.

A share follows from the order of the points alone, so that processes need not talk to each other; a process that is
killed is started again with the same words. They are started by ``torchrun`` or ``srun``, which say in the environment
how many there are, or as jobs of a cluster through submitit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soups.errors import UserError

if TYPE_CHECKING:
    from soups.points import Point
    from soups.sweep import Sweep

# Of torchrun, and of the steps of Slurm: index, number of processes, index on this machine. The number of tasks of a
# whole Slurm job is not among them: a batch script is one process, however many tasks it may start.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Share:
    """The points of one process: every ``count``-th, from ``index`` on."""

    index: int = 0
    count: int = 1

    def of(self, points: Sequence[Point]) -> list[Point]:
        """Return the points of this share."""
        return list(points[self.index :: self.count])


def launched_share(environment: Mapping[str, str] | None = None) -> Share:
    """Return the share of this process, from what its launcher left in the environment; everything without one."""
    environment = os.environ if environment is None else environment
    for index, count, _ in LAUNCHERS:
        numbers = [environment.get(name, "") for name in (index, count)]
        if all(number.isdecimal() for number in numbers) and int(numbers[1]) > 1:
            return Share(int(numbers[0]), int(numbers[1]))
    return Share()


def take_gpu() -> None:
    """Let this process see one GPU of its machine; to be called before torch uses any."""
    local = next((os.environ[name] for *_, name in LAUNCHERS if os.environ.get(name, "").isdecimal()), None)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    num_gpus = len(list(GPUS.iterdir())) if GPUS.is_dir() else 0
    gpus = named.split(",") if named else [str(index) for index in range(num_gpus)]
    if local is not None and gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(local) % len(gpus)]


def submit(
    sweep: Sweep,
    points: Sequence[Point],
    out_dir: Path,
    *,
    num_jobs: int,
    cluster: str = "slurm",
    params: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Start a sweep as jobs of a cluster; return the jobs of submitit.

    Args:
        sweep: what to mix and how to score it.
        points: coefficients in the order of the checkpoints.
        out_dir: where the results go; logs go to ``jobs`` in it. All machines must see it under this path.
        num_jobs: how many jobs share the points.
        cluster: ``slurm``, or ``local`` for processes on this machine.
        params: of the jobs, such as ``slurm_partition`` or ``timeout_min``; see submitit.AutoExecutor.

    Raises:
        UserError: submitit is not installed, or refuses the cluster or the parameters.
    """
    from soups.sweep import run_sweep

    try:
        import submitit  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise UserError("submitit is not installed", where="--cluster", fix='pip install "unival[cluster]"') from error
    try:
        executor = submitit.AutoExecutor(folder=out_dir / "jobs", cluster=cluster)
        executor.update_parameters(name="soups-sweep", **(params or {}))
    except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
        raise UserError(
            f"submitit: {error}", where="--cluster, --cluster-arg", fix="see submitit.AutoExecutor"
        ) from error
    num_jobs = max(1, min(num_jobs, len(points)))
    with executor.batch():
        return [
            executor.submit(run_sweep, sweep, points, out_dir, share=Share(index, num_jobs))
            for index in range(num_jobs)
        ]


def finish(jobs: Sequence[Any]) -> None:
    """Wait for all jobs of `submit`.

    Raises:
        UserError: one of them failed; names the end of its log.
    """
    for number, job in enumerate(jobs):
        try:
            job.result()
        except Exception as error:  # submitit's own kinds, which hold the traceback of the job as text
            last = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip(" -")), "it failed")
            what = f"job {number} of {len(jobs)}: {last}"
            fix = f"see {getattr(job.paths, 'stderr', job.paths)}; the same command goes on from the finished points"
            raise UserError(what, where="--cluster", fix=fix) from error
