"""What papers say of generated pictures: FID, Inception Score, CLIP similarity, from files of pictures and weights."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unival.data.image import load_image
from unival.device import find_device
from unival.errors import UserError
from unival.metrics.feature_models import load_clip, load_clip_folder, load_inception
from unival.metrics.fid import FeatureStatistics, clip_similarity, frechet_distance, inception_score

BATCH_SIZE = 32
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
NUM_SPLITS = 10  # of the Inception Score, as everywhere


def pictures_of(folder: Path) -> list[Path]:
    """Return the pictures in a folder, in the order of their names.

    Raises:
        UserError: No such folder, or no picture in it.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        fix = f"give a folder of pictures ({', '.join(SUFFIXES)}), as `codec decode` writes it"
        raise UserError("no pictures in this folder" if folder.is_dir() else "no such folder", str(folder), fix)
    return found


def score_pictures(
    pictures: Path,
    inception: Path | None = None,
    against: Path | None = None,
    clip: Path | None = None,
    clip_name: str | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    device: str = "auto",
) -> dict[str, Any]:
    """Score a folder of pictures.

    Args:
        pictures: As `unival codec decode` writes them: one per row, in order.
        inception: Weights for FID and Inception Score.
        against: Real pictures for FID: a folder, or statistics in an .npz file.
        clip: A folder of `transformers`, or with `clip_name` a file of open_clip.
        clip_name: The architecture of that file, such as `ViT-B-16`.
        rows: With the caption of each picture, in order.
        device: Where to compute; `auto` is a GPU when there is one.

    Raises:
        UserError: A file is missing or something else, or there are not as many captions as pictures.
    """
    files, place = pictures_of(pictures), str(find_device(device))
    report: dict[str, Any] = {"pictures": len(files)}
    if inception is not None:
        extract = load_inception(inception, place)
        found = [extract(batch) for batch in _batches(files)]
        features, probabilities = (np.concatenate([pair[part] for pair in found]) for part in (0, 1))
        mean, deviation = inception_score(probabilities, min(NUM_SPLITS, len(files)))
        report |= {"inception_score": mean, "inception_score_deviation": deviation}
        if against is not None:
            real = _statistics(against, extract)
            report |= {"fid": frechet_distance(FeatureStatistics.of([features]), real), "real": real.num_samples}
    if clip is not None:
        texts = [_caption(row, number) for number, row in enumerate(rows, start=1)]
        if len(texts) != len(files):
            raise UserError(f"{len(files)} pictures, {len(texts)} captions", fix="give the file that was decoded")
        model = load_clip_folder(clip, place) if clip_name is None else load_clip(clip_name, clip, place)
        images = model.images([load_image(path) for path in files])
        report["clip_similarity"] = clip_similarity(images, model.texts(texts)).value
    return report


def _statistics(against: Path, extract: Any) -> FeatureStatistics:
    if against.is_dir():
        return FeatureStatistics.of(extract(batch)[0] for batch in _batches(pictures_of(against)))
    return FeatureStatistics.load(against)


def _batches(files: Sequence[Path]) -> Iterator[torch.Tensor]:
    """Yield pictures (N, 3, H, W), uint8; those of a batch have one size."""
    loaded = (np.asarray(load_image(path)) for path in files)
    for _, same in groupby(loaded, key=lambda pixels: pixels.shape):
        group: list[np.ndarray] = []
        for pixels in same:
            group.append(pixels)
            if len(group) == BATCH_SIZE:
                yield torch.from_numpy(np.stack(group)).permute(0, 3, 1, 2)
                group = []
        if group:
            yield torch.from_numpy(np.stack(group)).permute(0, 3, 1, 2)


def _caption(row: Mapping[str, Any], number: int) -> str:
    captions = [row["caption"]] if "caption" in row else row.get("captions", [])
    if not captions:
        raise UserError("a row has no caption", where=f"row {number}", fix="give it `caption` or `captions`")
    return str(captions[0])
