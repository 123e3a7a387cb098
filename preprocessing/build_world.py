"""Build the assets of the embedded world from the development data (run once; the result is committed).

    python preprocessing/build_world.py --data-dir ../shared/data --output-dir unival/assets/world

Reads the emoji sheets (64 px), the animated emoji and the Sonic Pi sounds; writes at most 3,000,000 bytes.
Every file is reproducible byte for byte, except that an Ogg stream carries a random serial number.

    concepts.jsonl   {"name": "red apple", "kind": "food", "group": "food-drink", "hexcode": "1F34E", ...}
    STYLE.webp       40 columns of 48 px cells with alpha, cells in the order of concepts.jsonl
    animations.webp  one row of 8 cells per animated concept
    sounds.ogg       all sounds one after the other, 16 kHz mono Vorbis
    world.json       layout of the above: animated hexcodes; name, family, caption, place of each sound
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from unival.data.language import plain_name

STYLES = ("fluent-emoji-flat", "noto", "twemoji")
CELL_PX, SOURCE_PX, NUM_COLUMNS = 48, 64, 40
NUM_ANIMATIONS, NUM_FRAMES = 50, 8
SHEET_QUALITY, ALPHA_QUALITY, ANIMATION_QUALITY = 80, 60, 75
SAMPLE_RATE_HZ, MAX_SOUND_SECONDS, GAP_SECONDS = 16_000, 2.0, 0.05
MAX_TOTAL_BYTES = 3_000_000

# The source draws this one pointing left, exactly like its counterpart.
MIRRORED = {("fluent-emoji-flat", "backhand index pointing right")}

KIND_OF_SUBGROUP = {
    "monkey-face": "animal",
    "heart": "symbol",
    "emotion": "symbol",
    "body-parts": "body part",
    "person-symbol": "symbol",
    "plant-flower": "plant",
    "plant-other": "plant",
    "transport-ground": "vehicle",
    "transport-water": "vehicle",
    "transport-air": "vehicle",
    "hotel": "object",
    "time": "object",
    "sky-weather": "weather sign",
    "dishware": "object",
}
KIND_OF_GROUP = {
    "smileys-emotion": "face",
    "people-body": "person",
    "animals-nature": "animal",
    "food-drink": "food",
    "travel-places": "place",
    "activities": "activity",
    "objects": "object",
    "symbols": "symbol",
}
KIND_OF_NAME = {
    "pile of poo": "object",
    "footprints": "symbol",
    "rosette": "symbol",
    "pig nose": "animal",
    "spider web": "object",
    "baby bottle": "object",
    "amphora": "object",
    "station": "place",
    "bus stop": "place",
    "motorway": "place",
    "railway track": "place",
    "oil drum": "object",
    "fuel pump": "object",
    "police car light": "object",
    "horizontal traffic light": "object",
    "vertical traffic light": "object",
    "stop sign": "symbol",
    "construction": "object",
    "anchor": "object",
    "seat": "object",
    "barber pole": "object",
    "world map": "object",
    "map of japan": "object",
    "thermometer": "object",
    "closed umbrella": "object",
    "umbrella": "object",
    "umbrella with rain drops": "object",
    "umbrella on ground": "object",
    "high voltage": "symbol",
    "nail polish": "object",
}


def kind_of(name: str, group: str, subgroup: str) -> str:
    """Return the group word that questions use for a concept."""
    if subgroup.startswith("hand"):
        return KIND_OF_NAME.get(name, "body part")
    return KIND_OF_NAME.get(name) or KIND_OF_SUBGROUP.get(subgroup) or KIND_OF_GROUP[group]


def resize_cells(sheet: np.ndarray, cell_px: int) -> np.ndarray:
    """Resize every 64 px cell of an RGBA sheet on premultiplied alpha (Lanczos), uint8 in and out."""
    rows, columns = sheet.shape[0] // SOURCE_PX, sheet.shape[1] // SOURCE_PX
    scaled = sheet.astype(np.float32) / 255
    scaled[..., :3] *= scaled[..., 3:]
    result = np.zeros((rows * cell_px, columns * cell_px, 4), np.float32)
    for row, column, channel in np.ndindex(rows, columns, 4):
        y, x = row * SOURCE_PX, column * SOURCE_PX
        cell = Image.fromarray(np.ascontiguousarray(scaled[y : y + SOURCE_PX, x : x + SOURCE_PX, channel]))
        small = cell.resize((cell_px, cell_px), Image.Resampling.LANCZOS)
        y, x = row * cell_px, column * cell_px
        result[y : y + cell_px, x : x + cell_px, channel] = np.asarray(small)
    alpha = np.clip(result[..., 3:], 0, 1)
    colour = np.where(alpha > 1e-3, np.clip(result[..., :3] / np.maximum(alpha, 1e-3), 0, 1), 0)
    return (np.concatenate([colour, alpha], -1) * 255 + 0.5).astype(np.uint8)


def build_concepts(data_dir: Path, output_dir: Path) -> list[dict]:
    """Write concepts.jsonl; raise if two concepts would get the same plain name."""
    concepts = []
    for line in (data_dir / "emoji/concepts.jsonl").read_text("utf-8").splitlines():
        source = json.loads(line)
        name = plain_name(source["name"])
        kind = kind_of(name, source["group"], source["subgroup"])
        tags = sorted({plain_name(tag) for tag in source["tags"]} - {""})
        concepts.append(
            {"name": name, "kind": kind, "group": source["group"], "hexcode": source["hexcode"], "tags": tags}
        )
    names = [concept["name"] for concept in concepts]
    if len(set(names)) != len(names):
        raise ValueError(f"names are not unique: {sorted({n for n in names if names.count(n) > 1})}")
    lines = [json.dumps(concept, separators=(",", ":")) for concept in concepts]
    (output_dir / "concepts.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return concepts


def build_sheets(data_dir: Path, output_dir: Path, concepts: list[dict]) -> None:
    """Write one WebP sheet per art style."""
    for style in STYLES:
        sheet = np.array(Image.open(data_dir / f"emoji/{style}.png").convert("RGBA"))
        for index, concept in enumerate(concepts):
            if (style, concept["name"]) in MIRRORED:
                y, x = index // NUM_COLUMNS * SOURCE_PX, index % NUM_COLUMNS * SOURCE_PX
                cell = sheet[y : y + SOURCE_PX, x : x + SOURCE_PX]
                cell[:] = cell[:, ::-1].copy()
        Image.fromarray(resize_cells(sheet, CELL_PX)).save(
            output_dir / f"{style}.webp", quality=SHEET_QUALITY, alpha_quality=ALPHA_QUALITY, method=6
        )


def build_animations(data_dir: Path, output_dir: Path, hexcodes: set[str]) -> list[str]:
    """Write the liveliest animated emoji that are also concepts; return their hexcodes in row order."""
    with (data_dir / "fluent-anim/meta.csv").open(encoding="utf-8") as file:
        clips = [row for row in csv.DictReader(file) if row["hexcode"] in hexcodes]
    clips.sort(key=lambda row: (-float(row["motion"]), row["hexcode"]))
    rows, chosen = [], []
    for clip in clips[:NUM_ANIMATIONS]:
        strip = np.asarray(Image.open(data_dir / "fluent-anim" / clip["file"]).convert("RGBA"))
        frames = strip.reshape(SOURCE_PX, 16, SOURCE_PX, 4)[:, :: 16 // NUM_FRAMES]
        rows.append(resize_cells(frames.reshape(SOURCE_PX, -1, 4), CELL_PX))
        chosen.append(clip["hexcode"])
    Image.fromarray(np.concatenate(rows)).save(
        output_dir / "animations.webp", quality=ANIMATION_QUALITY, alpha_quality=ALPHA_QUALITY, method=6
    )
    return chosen


def build_sounds(data_dir: Path, output_dir: Path) -> list[dict]:
    """Write the sounds of at most 2 s as one stream with short silences between; return their index."""
    with (data_dir / "sonic-pi/meta.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if float(row["seconds"]) <= MAX_SOUND_SECONDS]
    gap = np.zeros(round(GAP_SECONDS * SAMPLE_RATE_HZ), np.float32)
    parts, index, start = [], [], 0
    for row in rows:
        wave, rate = soundfile.read(data_dir / "sonic-pi" / row["file"], dtype="float32")
        if rate != SAMPLE_RATE_HZ or wave.ndim != 1:
            raise ValueError(f"{row['file']}: expected 16 kHz mono, found {rate} Hz with {wave.ndim} axes")
        caption = row["caption"].lower()
        entry = {"name": row["name"], "family": row["family"], "caption": caption, "start": start}
        index.append(entry | {"length": len(wave)})
        parts += [wave, gap]
        start += len(wave) + len(gap)
    with soundfile.SoundFile(
        output_dir / "sounds.ogg",
        "w",
        SAMPLE_RATE_HZ,
        1,
        format="OGG",
        subtype="VORBIS",
        compression_level=0.5,
    ) as stream:
        # libsndfile overflows its stack on one huge Vorbis write, so feed it in blocks.
        whole = np.concatenate(parts)
        for block in range(0, len(whole), 4096):
            stream.write(whole[block : block + 4096])
    return index


def main() -> None:
    """Build everything and fail if the result is larger than the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output-dir", type=Path, default=Path("unival/assets/world"))
    arguments = parser.parse_args()
    output_dir: Path = arguments.output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    concepts = build_concepts(arguments.data_dir, output_dir)
    build_sheets(arguments.data_dir, output_dir, concepts)
    animated = build_animations(arguments.data_dir, output_dir, {concept["hexcode"] for concept in concepts})
    sounds = build_sounds(arguments.data_dir, output_dir)
    layout = {
        "format": 1,
        "cell_px": CELL_PX,
        "columns": NUM_COLUMNS,
        "styles": STYLES,
        "frames": NUM_FRAMES,
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "animations": animated,
        "sounds": sounds,
    }
    (output_dir / "world.json").write_text(json.dumps(layout, separators=(",", ":")) + "\n", "utf-8")
    sizes = {path.name: path.stat().st_size for path in sorted(output_dir.iterdir())}
    print(json.dumps(sizes | {"total": sum(sizes.values())}, indent=1))
    if sum(sizes.values()) > MAX_TOTAL_BYTES:
        raise SystemExit(f"assets exceed {MAX_TOTAL_BYTES} bytes")


if __name__ == "__main__":
    main()
