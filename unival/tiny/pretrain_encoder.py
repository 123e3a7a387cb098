"""Pretrain an encoder of `unival-tiny` on labels, before it joins the model.

    python -m unival.tiny.pretrain_encoder image configs/pretrain/tiny.yaml --out runs/encoders/image.safetensors
    python -m unival.tiny.pretrain_encoder audio configs/demo/audio.yaml --out runs/encoders/audio.safetensors

The paper starts from encoders that others trained with labels (ImageNet, Kinetics, AudioSet). Here the embedded
world plays that part: each cell of the feature map learns what lies under its centre (a concept, the family of a sound,
or nothing), its group, the box of that object, the colour of the background, and in clips which way it moves. Only the
training split and training styles are seen. The classifier is thrown away.

Three things make this quick (docs/experiments.md): pictures packed with objects, Muon for the convolutions, and a
classifier whose weights begin as descriptions of what the concepts look like: similar drawings, similar weights.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from unival.atomic import replacing
from unival.config import load_config
from unival.data import sprites, world
from unival.data.clips import MovingClips
from unival.data.sounds import Sounds, families
from unival.errors import UserError
from unival.log import progress
from unival.model.audio import PannCNN
from unival.model.image import build_image_encoder, image_features
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.video import ResNeXt3D
from unival.schema import OptimConfig, RunConfig
from unival.tiny.packed import PackedScenes
from unival.training.optim import build_optimizer, clip_gradients, learning_rate

COLOURS = tuple(sprites.BACKGROUNDS)
MOTIONS = ("still", "left", "right", "up", "down")
NONE_WEIGHT = 0.2  # of cells without an object, which are the majority
BOX_WEIGHT = 5.0  # of the mean error of a side, as a share of the picture
LOG_EVERY = 50
SAVE_EVERY = 500
TEST_BATCHES = 8  # of 64 media
LOOK_PX = 16  # of the pictures that describe a concept


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


WORLDS = {"image": (PackedScenes, image_cells), "video": (MovingClips, clip_cells), "audio": (Sounds, sound_cells)}
_LAYERS = ["encoder.layer1", "encoder.layer2", "encoder.layer3"]
_ADAMW = OptimConfig(lr=2e-3, weight_decay=0.05, schedule="cosine", warmup_ratio=0.1)
_MUON = _ADAMW.model_copy(update={"lr": 4e-3, "muon": _LAYERS, "lr_scale": dict.fromkeys(_LAYERS, 2.0)})
OPTIM = {"image": _MUON, "video": _MUON, "audio": _ADAMW}
# Few sounds and no captions to contradict: vary them widely. Every second time two in a row, to be told apart.
OPTIONS = {"image": {}, "video": {}, "audio": {"octaves": 0.4, "tone_db": 5.0, "seed": 1}}


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
    """Endless batches of a medium with the labels of its cells, from number `first`."""

    def __init__(
        self,
        modality: str,
        split: str,
        batch: int,
        grid: tuple[int, ...],
        options: Mapping[str, Any],
        first: int = 0,
    ) -> None:
        source, self.label = WORLDS[modality]
        self.batch, self.grid, self.first, self.items = batch, grid, first, source(split, **options)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        info = torch.utils.data.get_worker_info()
        offset, stride = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(self.first + offset, 10**9, stride):
            rows = [self.label(self.items[number * self.batch + k], self.grid) for k in range(self.batch)]
            yield tuple(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))


def looks(width: int) -> Tensor:
    """Return unit vectors (concepts, width), alike for concepts whose small pictures in the training styles are alike.

    They are the principal components of the pictures, in a random basis, each divided by the root of its deviation.
    """
    styles = []
    for style in world.TRAIN_STYLES:
        pictures = []
        for concept in world.concepts():
            sprite = world.sprite(style, concept.index)
            square = Image.new("RGBa", (max(sprite.size), max(sprite.size)))
            square.paste(sprite, ((square.width - sprite.width) // 2, (square.height - sprite.height) // 2))
            pictures.append(np.asarray(square.resize((LOOK_PX, LOOK_PX), Image.Resampling.BOX), np.float32).ravel())
        styles.append(np.stack(pictures))
    pixels = torch.from_numpy(np.concatenate(styles, 1)).double()
    pixels -= pixels.mean(0)
    variances, directions = torch.linalg.eigh(pixels @ pixels.T)  # ascending
    components = directions[:, -width:] * variances[-width:] ** 0.25
    basis = torch.linalg.qr(torch.randn(width, width))[0]
    return F.normalize(components.float() @ basis)


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
        if modality != "audio":
            with torch.no_grad():
                self.label.weight[0], self.label.weight[1:] = 0.0, looks(channels)
                self.label.bias.zero_()
            groups = list(world.concepts_by_group())
            self.group_of = torch.tensor([groups.index(concept.group) for concept in world.concepts()])
            self.group = nn.Linear(channels, len(groups))  # what looks alike is not always of one group
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
        readings = [("motion", self.motion, motions), ("colour", self.colour, colours)]
        if self.modality != "audio":
            readings.append(("group", self.group, self.group_of[labels].where(labels >= 0, -1)))
        for name, head, targets in readings:
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
    init: Path | None = None,
    world_options: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train an encoder, write it, and return its accuracies on the test split.

    Interrupted, it goes on from the last `SAVE_EVERY` steps when it is called again, and comes to the same weights.

    Args:
        modality: "image", "video" or "audio".
        options: Arguments of the encoder.
        out: The safetensors file to write, when all steps are done.
        steps, batch: Updates, media per update.
        init: Continue from this file.
        world_options: Arguments of the world's generator, by default `OPTIONS` of the modality.
    """
    world_options = OPTIONS[modality] if world_options is None else world_options
    torch.manual_seed(1)
    model = Encoder(modality, options)
    if init is not None:
        model.encoder.load_state_dict(load_file(init))
    optimizer = build_optimizer(model, OPTIM[modality])
    state = out.with_name(f".{out.stem}.state{out.suffix}")
    done = load_state(state, model, optimizer) if state.exists() else 0
    with torch.no_grad():
        grid = tuple(model.eval().features(sample(modality, world_options)).shape[1:-1])
    data = Cells(modality, "train", batch, grid, world_options, first=done)
    batches = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
    sums = dict[str, float]()
    model.train()
    out.parent.mkdir(parents=True, exist_ok=True)
    with progress() as bar:
        row = bar.add_task(f"{modality} encoder", total=steps, completed=done, status="")
        for step in range(done, steps):
            loss, logs = model.loss(*next(batches))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clip_gradients(model.parameters(), OPTIM[modality].clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * learning_rate(OPTIM[modality], step, steps)
            optimizer.step()
            sums = {key: sums.get(key, 0.0) + number for key, number in {"loss": loss.item(), **logs}.items()}
            bar.advance(row)
            if (step + 1) % LOG_EVERY == 0:
                status = " ".join(f"{key} {total / LOG_EVERY:.3f}" for key, total in sums.items())
                bar.update(row, status=status)
                if not bar.console.is_terminal:  # where a bar would show nothing before the end
                    bar.console.print(f"{modality} encoder {step + 1}/{steps} {status}", soft_wrap=True)
                sums = {}
            if (step + 1) % SAVE_EVERY == 0:
                save_state(state, model, optimizer, step + 1)
    write_tensors(out, model.encoder.state_dict())
    state.unlink(missing_ok=True)
    model.eval()
    held_out = iter(Cells(modality, "test", 64, grid, {**world_options, "augment": False}))
    with torch.no_grad():
        logs = [model.loss(*next(held_out))[1] for _ in range(TEST_BATCHES)]
    return {key: round(float(np.mean([log[key] for log in logs])), 3) for key in logs[0]}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that appears whole."""
    with replacing(path, "wb") as file:
        file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def save_state(path: Path, model: Encoder, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write what `load_state` needs to go on at update `step`."""
    states = optimizer.state_dict()["state"]
    moments = {f"optimizer.{number}.{key}": value for number, state in states.items() for key, value in state.items()}
    write_tensors(path, {"step": torch.tensor(step), **model.state_dict(prefix="model."), **moments})


def load_state(path: Path, model: Encoder, optimizer: torch.optim.Optimizer) -> int:
    """Take up what `save_state` wrote, and return the number of updates made."""
    tensors, states = load_file(path), dict[int, dict[str, Tensor]]()
    step = int(tensors.pop("step"))
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        _, number, key = name.split(".")
        states.setdefault(int(number), {})[key] = tensors.pop(name)
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return step


def main() -> None:
    """Read the arguments, train, print the accuracies on the test split as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modality", choices=list(WORLDS))
    parser.add_argument("config", type=Path, help="the configuration that describes the encoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="continue from this file")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    options = encoder_options(given.modality, load_config(given.config, [], RunConfig))
    print(json.dumps(pretrain(given.modality, options, given.out, given.steps, given.batch, given.init)))


if __name__ == "__main__":
    main()
