r"""Make small copies of videos, as the original trains on: short side 224, 3 frames per second, no sound.

    python -m preprocessing.compress_videos data/msrvtt/videos --out data/msrvtt/small/videos
    python -m preprocessing.compress_videos data/activitynet --segments data/activitynet/train.jsonl \
        --out data/activitynet

The second form cuts the `video` of each row out of its `source` at `timestamp`, see `activitynet`. Files that exist
already are kept, so the same command continues an interrupted run. Copies are upright: rotated and mirrored videos are
turned. A video that cannot be read is named and counted, and the others go on; the exit code is then 1. `--processes`
of them are made at a time, each killed after `--seconds`. Two videos of a folder whose names differ only in what
follows the last dot would become one copy, and are refused before anything is written.
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from preprocessing.official import read_json_lines
from unival.data.archive import EXTENSIONS
from unival.errors import UserError, run_cli

SUFFIXES = {f".{extension}" for extension, kind in EXTENSIONS.items() if kind == "video"} | {".gif"}


class Job(NamedTuple):
    """One file to make; `end` None is the end of the video."""

    source: Path
    target: Path
    start: float = 0.0
    end: float | None = None


class Settings(NamedTuple):
    """What the copies are like: pixels of the short side, frames per second."""

    short_side: int = 224
    fps: int = 3


def compress(job: Job, settings: Settings) -> None:
    """Write one copy (H.264 in MP4): the frame shown at each multiple of 1 / fps from the start.

    Raises:
        ValueError: The video has no picture in the wanted part, or its data are damaged.
        OSError: It cannot be read, or the copy cannot be written.
    """
    import av

    temporary = job.target.with_name(f".{job.target.stem}.tmp{job.target.suffix}")
    job.target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with av.open(str(job.source)) as source, av.open(str(temporary), "w", format="mp4") as target:
            stream = None
            if not source.streams.video:
                raise ValueError("the file has no picture track")
            for frame in _at_rate(source, job, settings.fps):
                small = _small(frame, settings.short_side)
                if stream is None:
                    stream = target.add_stream("libx264", rate=settings.fps, options={"crf": "23", "threads": "1"})
                    stream.width, stream.height, stream.pix_fmt = small.width, small.height, "yuv420p"
                small = small.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
                small.pts, small.time_base = count, Fraction(1, settings.fps)
                target.mux(stream.encode(small))
                count += 1
            if stream is None:
                raise ValueError("no picture in the wanted part")
            target.mux(stream.encode(None))
        temporary.replace(job.target)
    finally:
        temporary.unlink(missing_ok=True)


def _at_rate(source: Any, job: Job, fps: int) -> Iterator[Any]:
    """Yield the frame that is shown at each multiple of 1 / fps; a frame is repeated where the video is slower."""
    wanted = 0
    shown = first = last = None
    gap = 1 / fps  # how long the last frame is shown: as long as the one before
    if job.start > 1:
        source.seek(int((job.start - 1) * 1_000_000), backward=True)
    for frame in source.decode(video=0):
        moment = frame.time if frame.time is not None else 0.0
        first = (0.0 if job.start else moment) if first is None else first
        moment -= first
        gap = gap if last is None else moment - last
        for _ in _due(job, wanted, fps, moment) if shown is not None else ():
            yield shown
            wanted += 1
        shown, last = frame, moment
        if job.end is not None and moment >= job.end:
            return
    for _ in _due(job, wanted, fps, last + gap) if last is not None else ():
        yield shown


def _due(job: Job, wanted: int, fps: int, until: float) -> range:
    """Return the numbers of the frames to write, from `wanted` on, whose moment is before `until` and the end."""
    end = until if job.end is None else min(until, job.end)
    return range(wanted, max(wanted, math.ceil((end - job.start) * fps - 1e-6)))


def _small(frame: Any, short_side: int) -> Any:
    """Return the frame in its new size and upright; only one that is turned goes through RGB."""
    from av import VideoFrame

    from unival.data.video import upright

    width, height = _scaled(frame.width, frame.height, short_side)
    if frame.side_data.get("DISPLAYMATRIX") is None:
        return frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")
    pixels = frame.reformat(width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
    return VideoFrame.from_ndarray(upright(pixels, frame), format="rgb24")


def _scaled(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return even sides with the aspect ratio kept; a small video is not enlarged."""
    scale = min(1.0, short_side / min(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def jobs_of_folder(root: Path, out: Path) -> list[Job]:
    """List the videos under a folder; copies are MP4 of the same relative name.

    Raises:
        UserError: Two videos would have the same copy.
    """
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    found: dict[Path, Job] = {}
    for path in files:
        job = Job(path, (out / path.relative_to(root)).with_suffix(".mp4"))
        if job.target in found:
            what = f"{found[job.target].source.name} and {path.name} would both become {job.target.name}"
            raise UserError(what, where=str(path.parent), fix="rename one of them")
        found[job.target] = job
    return list(found.values())


def jobs_of_segments(root: Path, out: Path, manifest: Path) -> list[Job]:
    """List the segments of a manifest, each once."""
    found = {}
    for row in read_json_lines(manifest):
        start, end = row["timestamp"]
        for name in (row["source"], row["video"]):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise UserError(f"the path leaves the folder: {name}", where=f"{manifest}: uid {row['uid']}")
        found[row["video"]] = Job(root / row["source"], out / row["video"], start, end)
    return list(found.values())


def run_all(jobs: Sequence[Job], settings: Settings, processes: int, seconds: float) -> dict[Path, str]:
    """Make all copies that do not exist; return what went wrong by source.

    Each runs in a process of its own, which is killed when its time is up: a decoder can hang in native code.
    """
    context = multiprocessing.get_context("spawn")
    waiting = [job for job in jobs if not job.target.is_file()][::-1]
    running: list[tuple[Job, BaseProcess, float]] = []
    failed: dict[Path, str] = {}
    with tqdm(total=len(waiting), unit=" videos", disable=None) as bar:
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop()
                process = context.Process(target=_quietly, args=(job, settings), daemon=True)
                process.start()
                running.append((job, process, time.monotonic() + seconds))
            time.sleep(0.02)
            for entry in [entry for entry in running if not entry[1].is_alive() or time.monotonic() > entry[2]]:
                job, process, _ = entry
                running.remove(entry)
                bar.update()
                if process.is_alive():
                    process.kill()
                    failed[job.source] = f"killed after {seconds:g} s"
                process.join()
                if not job.target.is_file():
                    failed.setdefault(job.source, "cannot be read")
                    job.target.with_name(f".{job.target.stem}.tmp{job.target.suffix}").unlink(missing_ok=True)
    return failed


def _quietly(job: Job, settings: Settings) -> None:
    from av.error import FFmpegError

    try:
        compress(job, settings)
    except (OSError, ValueError, FFmpegError) as error:
        sys.exit(f"{job.source}: {error}")


def main(argv: Sequence[str]) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with videos")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--segments", type=Path, help="manifest with source and timestamp")
    parser.add_argument("--short-side", type=int, default=224)
    parser.add_argument("--fps", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600.0, help="limit for one video")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    if args.segments is None and args.out.resolve() == args.root.resolve():
        raise UserError("the copies would replace the videos", where="--out", fix="choose another folder")
    jobs = (
        jobs_of_segments(args.root, args.out, args.segments) if args.segments else jobs_of_folder(args.root, args.out)
    )
    if not jobs:
        raise UserError(f"no video in {args.root}", fix=f"known are {', '.join(sorted(SUFFIXES))}")
    failed = run_all(jobs, Settings(args.short_side, args.fps), args.processes, args.seconds)
    for source, why in failed.items():
        print(f"{source}: {why}", file=sys.stderr)
    summary = {"videos": len(jobs), "failed": len(failed)}
    print(json.dumps(summary) if args.json else f"{len(jobs) - len(failed)} of {len(jobs)} videos in {args.out}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_cli(lambda args: main(args), sys.argv[1:])
