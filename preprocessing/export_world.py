"""Write a part of the embedded world as ordinary files, to look at it or to train another model on it.

    python preprocessing/export_world.py --modality image --split test --num 200 --output-dir data/world-test

    data/world-test/manifest.jsonl          one record per input, paths relative to the manifest
    data/world-test/image/test-000000.png   or video/*.mp4, audio/*.wav

Image record: {"uid": "image-test-000000", "image": "image/test-000000.png", "style": "noto", "caption": ...,
"objects": [{"name", "group", "box"}], "questions": [{"type", "question", "answer"}],
"regions": [{"text", "box"}], "statements": [{"text", "label"}]}. Video and audio records have "video" or
"audio", "caption" and "questions". Boxes are [x0, y0, x1, y1] in pixels. The manifest is written last, so a
folder with a manifest is complete.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from unival.data import world
from unival.data.clips import MovingClip, MovingClips, clip_questions
from unival.data.questions import questions
from unival.data.scenes import ImageScenes, Scene
from unival.data.sounds import Sound, Sounds, sound_questions
from unival.data.statements import regions, statements
from unival.errors import UserError

EXTENSIONS = {"image": "png", "video": "mp4", "audio": "wav"}
NUM_PER_KIND = 4  # questions, regions and statements per input


def image_record(scene: Scene, rng: np.random.Generator, path: Path) -> dict[str, Any]:
    """Write the picture and return its ground truth."""
    scene.pil.save(path)
    return {
        "style": scene.style,
        "background": scene.background,
        "caption": scene.caption,
        "objects": [{"name": o.name, "group": o.group, "box": list(o.box)} for o in scene.objects],
        "questions": [asdict(question) for question in questions(scene, rng, NUM_PER_KIND)],
        "regions": [{"text": r.text, "box": list(r.box)} for r in regions(scene, rng, NUM_PER_KIND)],
        "statements": [asdict(statement) for statement in statements(scene, rng, NUM_PER_KIND)],
    }


def video_record(clip: MovingClip, rng: np.random.Generator, path: Path) -> dict[str, Any]:
    """Write the clip and return its ground truth."""
    path.write_bytes(clip.encode())
    return {
        "style": clip.style,
        "caption": clip.caption,
        "objects": [{"name": o.name, "group": o.group, "motion": o.motion} for o in clip.objects],
        "questions": [asdict(question) for question in clip_questions(clip, rng, NUM_PER_KIND)],
    }


def audio_record(sound: Sound, rng: np.random.Generator, path: Path) -> dict[str, Any]:
    """Write the waveform and return its ground truth."""
    soundfile.write(path, sound.waveform, sound.sample_rate)
    return {
        "caption": sound.caption,
        "families": list(sound.families),
        "questions": [asdict(question) for question in sound_questions(sound, rng, NUM_PER_KIND)],
    }


def export(modality: str, split: str, num: int, output_dir: Path, styles: tuple[str, ...], seed: int) -> Path:
    """Write `num` inputs and their manifest; return the path of the manifest."""
    manifest_path = output_dir / "manifest.jsonl"
    if manifest_path.exists():
        raise UserError(f"{manifest_path} exists", where="--output-dir", fix="choose an empty folder")
    sources = {
        "image": lambda: (ImageScenes(split, styles, seed=seed), image_record),
        "video": lambda: (MovingClips(split, styles, seed=seed), video_record),
        "audio": lambda: (Sounds(split, seed=seed), audio_record),
    }
    source, write = sources[modality]()
    (output_dir / modality).mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(num):
        name = f"{modality}/{split}-{index:06d}.{EXTENSIONS[modality]}"
        rng = world.generator(seed, split, f"export/{modality}", index)
        truth = write(source[index], rng, output_dir / name)
        records.append({"uid": f"{modality}-{split}-{index:06d}", modality: name, **truth})
        if sys.stderr.isatty() and index % 50 == 0:
            print(f"\r{index}/{num}", end="", file=sys.stderr)
    partial_path = manifest_path.with_suffix(".partial")
    with partial_path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    partial_path.replace(manifest_path)
    return manifest_path


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modality", choices=sorted(EXTENSIONS), default="image")
    parser.add_argument("--split", choices=world.SPLITS, default="test")
    parser.add_argument("--num", type=int, default=100, help="how many inputs")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--styles", default=",".join(world.TRAIN_STYLES), help="art styles, with commas")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        styles = tuple(options.styles.split(","))
        path = export(options.modality, options.split, options.num, options.output_dir, styles, options.seed)
    except UserError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        sys.exit(2)
    print(path)


if __name__ == "__main__":
    main()
