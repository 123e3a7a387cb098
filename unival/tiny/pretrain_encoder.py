"""Pretrain an encoder of `unival-tiny` on labels, before it joins the model.

    python -m unival.tiny.pretrain_encoder image configs/pretrain/tiny.yaml --out runs/encoders/image.safetensors
    python -m unival.tiny.pretrain_encoder audio configs/demo/audio.yaml --out runs/encoders/audio.safetensors

The paper starts from encoders that others trained with labels (ImageNet, Kinetics, AudioSet). Here the embedded
world plays that part: each cell of the feature map learns what lies under its centre (a concept, the family of a sound,
or nothing), the box of that object, the colour of the background, and in clips which way it moves. Only the training
split and training styles are seen. The classifier is thrown away.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from unival.config import load_config
from unival.data import sprites, world
from unival.data.clips import MovingClips
from unival.data.scenes import ImageScenes
from unival.data.sounds import Sounds, families
from unival.errors import UserError
from unival.log import progress
from unival.model.audio import PannCNN
from unival.model.image import build_image_encoder, image_features
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.video import ResNeXt3D
from unival.schema import RunConfig

COLOURS = tuple(sprites.BACKGROUNDS)
MOTIONS = ("still", "left", "right", "up", "down")
NONE_WEIGHT = 0.2  # of cells without an object, which are the majority
BOX_WEIGHT = 5.0  # of the mean error of a side, as a share of the picture
LOG_EVERY = 50


def cell_owner(boxes: np.ndarray, rows: int, columns: int, px: int) -> np.ndarray:
    """Return for every cell the number of the box (K, 4) that its centre lies in, or -1; int64 (rows, columns)."""
    y = (np.arange(rows) + 0.5) * px / rows
    x = (np.arange(columns) + 0.5) * px / columns
    owner = np.full((rows, columns), -1)
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        owner[np.ix_((y >= y0) & (y < y1), (x >= x0) & (x < x1))] = k
    return owner


def image_cells(scene: Any, grid: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return pixels (3, H, W) in [-1, 1], class, motion (-1 is none), box as shares and background of every cell."""
    px = scene.image.shape[0]
    boxes = np.array([obj.box for obj in scene.objects], np.float32)
    rows, columns = grid
    owner = cell_owner(boxes, rows, columns, px)
    ids = np.array([obj.concept for obj in scene.objects] + [-1])
    pixels = scene.image.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    colours = np.full_like(owner, COLOURS.index(scene.background))
    return pixels, ids[owner], np.full_like(owner, -1), boxes[owner] / px, colours


def clip_cells(clip: Any, grid: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return the same for a clip, pixels (3, F, H, W); a cell looks at the frame in the middle of its span."""
    spans, rows, columns = grid
    num_frames, px = clip.frames.shape[:2]
    owners, places = [], []
    for t in range(spans):
        frame = min(int((t + 0.5) * num_frames / spans), num_frames - 1)
        boxes = np.array([obj.boxes[frame] for obj in clip.objects], np.float32)
        owners.append(cell_owner(boxes, rows, columns, px))
        places.append(boxes[owners[-1]] / px)
    owner = np.stack(owners)
    ids = np.array([obj.concept for obj in clip.objects] + [-1])
    motions = np.array([MOTIONS.index(obj.motion) for obj in clip.objects] + [-1])
    pixels = clip.frames.transpose(3, 0, 1, 2).astype(np.float32) / 127.5 - 1
    colours = np.full_like(owner, COLOURS.index(clip.background))
    return pixels, ids[owner], motions[owner], np.stack(places), colours


def sound_cells(sound: Any, grid: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return the same for a sound, a waveform (samples,); the "box" of a cell is the span of its recording."""
    num_samples = len(sound.waveform)
    boxes = np.array([(start, 0, end, num_samples) for start, end in sound.spans], np.float32)
    owner = cell_owner(boxes, grid[1], grid[0], num_samples).T  # time is the first axis of the grid
    ids = np.array([families().index(family) for family in sound.families] + [-1])
    unknown = np.full_like(owner, -1)
    return sound.waveform, ids[owner], unknown, boxes[owner] / num_samples, unknown


WORLDS = {"image": (ImageScenes, image_cells), "video": (MovingClips, clip_cells), "audio": (Sounds, sound_cells)}
# Few sounds and no captions to contradict: vary them widely, one at a time.
OPTIONS = {"image": {}, "video": {}, "audio": {"max_sounds": 1, "seconds": 2.5, "octaves": 0.4, "tone_db": 5.0}}


def sample(modality: str, options: Mapping[str, Any] = MappingProxyType({})) -> Tensor:
    """Return one medium as a batch."""
    grid = (1, 1, 1) if modality == "video" else (1, 1)
    return next(iter(Cells(modality, "train", 1, grid, options)))[0]


def feature_grid(model: UnivalForConditionalGeneration, modality: str) -> tuple[int, ...]:
    """Return the cells of a medium of the world in the encoder of a model."""
    encoder, media = model.encoder, sample(modality)
    with torch.no_grad():
        if modality == "image":
            return tuple(image_features(encoder.embed_images, media).shape[2:])
        return tuple(encoder.get_submodule(f"embed_{modality}s")(media).shape[2:])


class Cells(IterableDataset):
    """Endless batches of a medium with the labels of its cells."""

    def __init__(
        self, modality: str, split: str, batch: int, grid: tuple[int, ...], options: Mapping[str, Any]
    ) -> None:
        source, self.label = WORLDS[modality]
        self.batch, self.grid, self.items = batch, grid, source(split, **options)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        info = torch.utils.data.get_worker_info()
        first, stride = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(first, 10**9, stride):
            rows = [self.label(self.items[number * self.batch + k], self.grid) for k in range(self.batch)]
            yield tuple(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))


class Encoder(nn.Module):
    """An encoder of the model with linear heads for classes, boxes, colours and motions on every cell."""

    def __init__(self, modality: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.modality = modality
        if modality == "image":
            self.encoder, channels = build_image_encoder(options)
        else:
            self.encoder = (ResNeXt3D if modality == "video" else PannCNN)(**options)
            channels = self.encoder.out_channels
        if isinstance(self.encoder, PannCNN):
            with torch.no_grad():
                self.encoder.logmel_extractor.melW.copy_(self.encoder.logmel_extractor.filter_bank())
        self.label = nn.Linear(channels, 1 + len(families() if modality == "audio" else world.concepts()))
        self.motion = nn.Linear(channels, len(MOTIONS))
        self.box = nn.Linear(channels, 4)
        self.colour = nn.Linear(channels, len(COLOURS))

    def features(self, media: Tensor) -> Tensor:
        """Return (B, *cells, C)."""
        if self.modality == "image":
            return image_features(self.encoder, media).movedim(1, -1)
        if self.modality == "video":
            media = media.contiguous(memory_format=torch.channels_last_3d)
        return self.encoder(media).movedim(1, -1)

    def loss(
        self, media: Tensor, labels: Tensor, motions: Tensor, boxes: Tensor, colours: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss, and over cells with an object the accuracies and the mean error of a box side."""
        features = self.features(media).flatten(0, -2)
        logits, wanted = self.label(features), labels.flatten() + 1
        inside = wanted > 0
        weights = torch.where(inside, 1.0, NONE_WEIGHT)
        total = (F.cross_entropy(logits, wanted, reduction="none") * weights).sum() / weights.sum()
        errors = (self.box(features)[inside] - boxes.flatten(0, -2)[inside]).abs().mean()
        total = total + BOX_WEIGHT * errors
        logs = {"label": (logits.argmax(1) == wanted)[inside].float().mean().item(), "box_error": errors.item()}
        for name, head, targets in (("motion", self.motion, motions), ("colour", self.colour, colours)):
            known = targets.flatten() >= 0
            if known.any():
                guesses, right = head(features[known]), targets.flatten()[known]
                total = total + F.cross_entropy(guesses, right)
                logs[name] = (guesses.argmax(1) == right).float().mean().item()
        return total, logs


def encoder_options(modality: str, config: RunConfig) -> dict[str, Any]:
    """Return the arguments of an encoder from the model of a configuration, or from the stage where it joins."""
    name = f"{modality}_encoder"
    for place in (config.model, *(stage.add for stage in config.stages)):
        if place.get(name):
            return place[name]
    raise UserError(f"no {name} in the model or a stage", where="configuration", fix=f"describe model.{name}")


def pretrain(
    modality: str,
    options: Mapping[str, Any],
    out: Path,
    steps: int,
    batch: int,
    lr: float,
    init: Path | None = None,
    world_options: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train an encoder, write it, and return its accuracies on the test split.

    Args:
        modality: "image", "video" or "audio".
        options: Arguments of the encoder.
        out: The safetensors file to write, when all steps are done.
        steps, batch, lr: Updates, media per update, peak learning rate (one cycle).
        init: Continue from this file.
        world_options: Arguments of the world's generator, by default `OPTIONS` of the modality.
    """
    world_options = OPTIONS[modality] if world_options is None else world_options
    torch.manual_seed(1)
    model = Encoder(modality, options)
    if init is not None:
        model.encoder.load_state_dict(load_file(init))
    with torch.no_grad():
        grid = tuple(model.eval().features(sample(modality, world_options)).shape[1:-1])
    data = Cells(modality, "train", batch, grid, world_options)
    batches = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    sums = dict[str, float]()
    model.train()
    with progress() as bar:
        row = bar.add_task(f"{modality} encoder", total=steps, status="")
        for step in range(1, steps + 1):
            loss, logs = model.loss(*next(batches))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            sums = {key: sums.get(key, 0.0) + number for key, number in {"loss": loss.item(), **logs}.items()}
            if step % LOG_EVERY == 0:
                bar.update(row, status=" ".join(f"{key} {total / LOG_EVERY:.3f}" for key, total in sums.items()))
                sums = {}
            bar.advance(row)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.tmp")
    save_file({key: tensor.contiguous() for key, tensor in model.encoder.state_dict().items()}, building)
    building.replace(out)
    model.eval()
    held_out = iter(Cells(modality, "test", 64, grid, {**world_options, "augment": False}))
    with torch.no_grad():
        logs = [model.loss(*next(held_out))[1] for _ in range(8)]
    return {key: round(float(np.mean([log[key] for log in logs])), 3) for key in logs[0]}


def main() -> None:
    """Read the arguments, train, print the accuracies on the test split as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modality", choices=list(WORLDS))
    parser.add_argument("config", type=Path, help="the configuration that describes the encoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="continue from this file")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    given = parser.parse_args()
    options = encoder_options(given.modality, load_config(given.config, [], RunConfig))
    print(json.dumps(pretrain(given.modality, options, given.out, given.steps, given.batch, given.lr, given.init)))


if __name__ == "__main__":
    main()
