"""Measure reading data against the original's way: sequential lines, Pillow in one process, decord.

    python benchmarks/data.py                # about two minutes on a quiet machine with two cores
    python benchmarks/data.py --rows 64      # seconds; shows that everything runs

Both sides read the same file, warm in the page cache, in turn within one process; medians of the repeats. Wall time of
two workers says little while something else uses the cores, so CPU seconds per example are printed too.
"""

import argparse
import base64
import datetime
import io
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from unival.batch import Example
from unival.data.mixture import shuffled
from unival.data.table import TableRows
from unival.data.video import load_video
from unival.data.workers import Workers
from unival.model.processing import UnivalProcessor
from unival.model.tokenizer import train_tokenizer

SIDE, BATCH, QUALITY = 480, 8, 90
TARGETS = {"rows": 1.0, "examples": 3.0, "clip": 1.0}


def blobs(rng: np.random.Generator) -> Image.Image:
    """Return 640 x 480 pixels of smooth colours."""
    coarse = Image.fromarray(rng.integers(0, 255, (40, 53, 3)).astype(np.uint8))
    return coarse.resize((640, 480), Image.Resampling.BICUBIC)


def photo(seed: int) -> bytes:
    """Return a JPEG of 640 x 480 that is as large as a photograph of that size."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (40, 53, 3)).astype(np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    pixels = np.clip(np.asarray(coarse) + rng.normal(0, 6, (480, 640, 3)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def write_table(path: Path, num_rows: int) -> None:
    """Write a caption file of the original; a few pictures are repeated, because drawing them takes long."""
    cells = [base64.urlsafe_b64encode(photo(seed)).decode() for seed in range(min(num_rows, 24))]
    with path.open("w", encoding="utf-8") as file:
        for row in range(num_rows):
            file.write(f"{row}\t{row}\ta caption of row {row}\tdog&&cat\t{cells[row % len(cells)]}\n")


def write_clip(path: Path, seconds: int = 20) -> None:
    """Write a clip of 320 x 240 at 25 frames a second in H.264, with a key frame every 250 frames at most."""
    rng = np.random.default_rng(0)
    scene = Image.fromarray(rng.integers(0, 255, (60, 80, 3)).astype(np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=25)
        track.width, track.height, track.pix_fmt = 320, 240, "yuv420p"
        for number in range(25 * seconds):
            left, top = 160 + int(150 * np.sin(number / 40)), 120 + int(110 * np.cos(number / 55))
            frame = av.VideoFrame.from_image(scene.crop((left, top, left + 320, top + 240)))
            container.mux(track.encode(frame))
        container.mux(track.encode(None))


def sequential_rows(path: Path) -> int:
    """Read as the original's reader: text lines in order, split into columns, the picture decoded from base64."""
    total = 0
    with path.open(encoding="utf-8") as file:
        while line := file.readline():
            columns = line.rstrip("\n").split("\t")
            total += len(base64.urlsafe_b64decode(columns[4]))
    return total


def random_rows(path: Path) -> int:
    """Read the same cells in random order, index included."""
    rows = TableRows(path, "caption")
    return sum(len(rows[shuffled(i, len(rows), 1, 0)]["image"].read()) for i in range(len(rows)))


def original_batches(path: Path) -> int:
    """Decode, resize and normalise in the reading process, as the original must."""
    transform = transforms.Compose(
        [
            lambda image: image.convert("RGB"),
            transforms.Resize((SIDE, SIDE), interpolation=Image.Resampling.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.5] * 3, std=[0.5] * 3),
        ]
    )
    num_examples, batch = 0, []
    with path.open(encoding="utf-8") as file:
        while line := file.readline():
            columns = line.rstrip("\n").split("\t")
            batch.append(transform(Image.open(io.BytesIO(base64.urlsafe_b64decode(columns[4])))))
            if len(batch) == BATCH:
                num_examples += seen(torch.stack(batch))
                batch = []
    return num_examples


@cache
def tokenizer() -> Any:
    """Return what a processor cannot do without, and nobody uses here."""
    return train_tokenizer(["a caption"], num_words=300, num_codes=0, num_bins=2)


def our_batches(path: Path, workers: int) -> int:
    """Read in random order in several processes; the tensors arrive here."""
    rows, processor = TableRows(path, "caption"), UnivalProcessor(tokenizer(), image_px=SIDE)
    processor.exact_resize = False  # as in training

    def batch(number: int, struck: frozenset[str]) -> torch.Tensor:
        records = [rows[shuffled(i, len(rows), 1, 0)] for i in range(number * BATCH, (number + 1) * BATCH)]
        return processor.media([Example(row["uid"], "", modality="image", media=row["image"]) for row in records])

    return sum(map(seen, Workers(batch, workers).results(range(len(rows) // BATCH))))


def seen(pixels: torch.Tensor) -> int:
    """Return how many pictures there are, after reading a value of every page of memory, as whoever uses them does."""
    assert pixels.reshape(-1)[::1024].isfinite().all()
    return len(pixels)


def decord_frames(path: Path) -> np.ndarray:
    """Read the middle frames of 8 parts as the original does, which opens the file for every clip."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    bounds = np.linspace(0, len(reader), 9).astype(int)
    return reader.get_batch((bounds[:-1] + bounds[1:] - 1) // 2).asnumpy()


def measure(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Return the median wall and CPU seconds of each side, measured in turn."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for run in sides.values():
        run()  # imports, page cache
    for _ in range(repeats):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            run()
            taken[name].append((time.perf_counter() - wall, cpu_seconds() - cpu))
    return {
        name: {"wall": statistics.median(wall for wall, _ in pairs), "cpu": statistics.median(cpu for _, cpu in pairs)}
        for name, pairs in taken.items()
    }


def cpu_seconds() -> float:
    """Return CPU seconds of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800, help="rows of the table, a multiple of 8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table, clip = Path(folder) / "rows.tsv", Path(folder) / "clip.mp4"
        write_table(table, options.rows)
        write_clip(clip)
        assert np.array_equal(decord_frames(clip), load_video(clip, 8)), "the two decoders give other frames"
        results = {
            "rows": measure(
                {"original": partial(sequential_rows, table), "ours": partial(random_rows, table)}, options.repeats
            ),
            "examples": measure(
                {
                    "original": partial(original_batches, table),
                    "ours": partial(our_batches, table, options.workers),
                    "ours, one process": partial(our_batches, table, 0),
                },
                options.repeats,
            ),
            "clip": measure(
                {"original": partial(decord_frames, clip), "ours": partial(load_video, clip, 8)}, options.repeats
            ),
        }
    show(results, options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def show(results: dict[str, dict[str, dict[str, float]]], options: argparse.Namespace) -> None:
    """Print the table, the machine, and whether targets are met."""
    names = {
        "rows": f"{options.rows} rows of TSV, text and picture bytes: sequential, random",
        "examples": f"{options.rows} pictures as tensors of {SIDE} px: one process, {options.workers} workers",
        "clip": "8 frames of a 20 s clip: decord, PyAV",
    }
    print("| | original | ours | ratio | of CPU time | target |\n| --- | --- | --- | --- | --- | --- |")
    for key, sides in results.items():
        original, ours = sides["original"], sides["ours"]
        wall, cpu = (original[kind] / ours[kind] for kind in ("wall", "cpu"))
        verdict = "met" if wall >= TARGETS[key] else "missed"
        cells = f"{original['wall']:.3f} s | {ours['wall']:.3f} s | {wall:.2f} | {cpu:.2f}"
        print(f"| {names[key]} | {cells} | {TARGETS[key]:g}: {verdict} |")
    single = results["examples"]["ours, one process"]
    print(f"\nOurs in one process: {single['wall']:.3f} s.")
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{datetime.date.today()}, {machine}")
    print(f"torch {torch.__version__}, Pillow {Image.__version__}, PyAV {av.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
