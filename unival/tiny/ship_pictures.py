"""Make a finished run of `configs/pretrain/tiny_pictures.yaml` the built-in model `unival-tiny-pictures`.

    python -m unival.tiny.ship_pictures runs/pictures/run --codec runs/pictures/codec

Stores its weights as bf16 with the codec beside them, draws pictures with *those* weights, asks `unival-tiny` what it
sees in them, and writes the model card from the answers.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from unival.checkpoint import BUILT_IN, load_model, save_model
from unival.codec.base import load_codec, to_picture, to_pixels
from unival.codec.train import SIDE
from unival.config import load_config
from unival.data.world_rows import WorldRows
from unival.draw import CODEC_FOLDER, draw
from unival.metrics.table import intervals
from unival.predict import pipeline
from unival.schema import RunConfig
from unival.tiny.ship import training_seconds

JUDGE = "unival-tiny"
OPTIONS = (("augment", False), ("concepts", "cast"), ("max_objects", 1), ("seed", 5))  # a seed that was not trained on
CARD = """---
license: apache-2.0
library_name: transformers
tags: [unival, text-to-image]
---
# unival-tiny-pictures

A UnIVAL (arXiv 2307.16184) of {millions:.1f} M parameters that reads a caption and writes the codes of a picture, and
the codec (`codec/`) that makes them a picture of {side} pixels. It knows single things of 153 emoji concepts on ten
backgrounds, in two art styles:

    unival draw "{example}" --model unival-tiny-pictures --samples {samples} --judge unival-tiny

- Made by `make pretrain-pictures` (seed {seed}): a codec of 8 x 8 codes, then {steps} steps, {minutes:.0f} minutes of
  them on one thread.
- Weights: bf16 safetensors, {megabytes:.1f} MB; data and licences: `NOTICE`.

`unival-tiny` says what it sees in drawings for {number} captions, and which colour the ground has. Where it also chose
the drawing it judges itself. Concepts and colours were all trained on. 95 % bootstrap intervals over captions:

| what it looks at | share right | interval | captions |
| --- | --- | --- | --- |
{rows}
"""


def ship(run_dir: Path, codec: Path, number: int, samples: int, destination: Path) -> None:
    """Write the built-in model.

    Raises:
        UserError: If the run is not finished, or the codec is none.
    """
    model, processor = load_model(run_dir / "model")
    save_model(destination, model, processor, torch.bfloat16)
    shutil.copytree(codec, destination / CODEC_FOLDER)
    rows = WorldRows("detailed_caption", "image", "train", None, number, OPTIONS)
    asked = [rows[index] for index in range(0, len(rows), rows.variants)]
    captions = [row["caption"] for row in asked]
    network = load_codec(codec)
    with torch.no_grad():
        pixels = torch.stack([to_pixels(row["image"], SIDE) for row in asked])
        restored = [to_picture(one) for one in network.decode(network.encode(pixels))]
    seen = {
        "drawing": draw(captions, destination),
        "drawing of another caption": draw(captions[1:] + captions[:1], destination),
        f"{samples} drawings, one chosen by `unival-tiny`": draw(captions, destination, None, samples, judge=JUDGE),
        "real picture through the codec": restored,
        "real picture": [row["image"] for row in asked],
    }
    table = intervals({f"{name}: {what}": s for name, p in seen.items() for what, s in recognised(p, captions).items()})
    config = load_config(run_dir / "config.yaml", [], RunConfig)
    card = CARD.format(
        millions=sum(p.numel() for p in model.parameters()) / 1e6,
        side=SIDE,
        example=captions[0],
        seed=config.seed,
        steps=config.stages[0].steps,
        minutes=training_seconds(run_dir) / 60,
        megabytes=(destination / "model.safetensors").stat().st_size / 1e6,
        number=number,
        samples=samples,
        rows="\n".join(f"| {' | '.join(cells)} |" for cells in table.cells()),
    )
    (destination / "README.md").write_text(card, encoding="utf-8")


def recognised(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> dict[str, list[float]]:
    """Return for each picture whether `unival-tiny` names the thing of its caption, and the colour of its ground."""
    things = pipeline("caption", JUDGE)(pictures)
    grounds = pipeline("vqa", JUDGE)(pictures, "what color is the background?")
    asked = [(caption.split(" on ")[0], caption.split()[-2]) for caption in captions]
    return {
        "thing": [float(seen["prediction"] == thing) for seen, (thing, _) in zip(things, asked, strict=True)],
        "ground": [float(seen["prediction"] == ground) for seen, (_, ground) in zip(grounds, asked, strict=True)],
    }


def main() -> None:
    """Ship what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--out", type=Path, default=BUILT_IN["unival-tiny-pictures"])
    arguments = parser.parse_args()
    ship(arguments.run, arguments.codec, arguments.number, arguments.samples, arguments.out)


if __name__ == "__main__":
    main()
