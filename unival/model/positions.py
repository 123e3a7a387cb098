"""Position ids and relative-position buckets (all positions of the model enter as attention biases).

Ids and buckets are functions of sizes, so nothing is stored with a model. The two whole tables of buckets are only for
writing files that hold them; inference mode is switched off there, because what it makes cannot be used in training.
"""

import math
import random
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from unival.errors import UserError


def text_bucket(distance: Tensor, bucket_size: int, max_positions: int) -> Tensor:
    """Return the relative text bucket of every entry of `distance` = query - key (int64, any shape).

    Distances up to half of `bucket_size` have a bucket each, longer ones share logarithmic buckets
    (the OFA lineage; specification 2.5).
    """
    middle = bucket_size // 2
    far = torch.where(distance.abs() < middle, middle - 1, distance.abs())
    log_position = torch.ceil(torch.log(far / middle) / math.log((max_positions - 1) / middle) * (middle - 1)) + middle
    bucket = torch.where(far <= middle, distance, (log_position * distance.sign()).long())
    return bucket.long() + bucket_size - 1


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def text_buckets(bucket_size: int, max_positions: int) -> Tensor:
    """Return the (max_positions, max_positions) int64 table of relative text buckets of query i and key j."""
    position = torch.arange(max_positions)
    return text_bucket(position[:, None] - position[None, :], bucket_size, max_positions)


def image_bucket(query: Tensor, key: Tensor, grid_size: int) -> Tensor:
    """Return the relative 2-D bucket of every pair of ids (int64, broadcast against each other).

    Ids 1.. are grid cells in row-major order, id 0 is the start of an image-code sequence, which has three buckets of
    its own: row 0, column 0 and the corner.
    """
    span = 2 * grid_size - 1
    row, column = (query - 1) // grid_size, (query - 1) % grid_size
    key_row, key_column = (key - 1) // grid_size, (key - 1) % grid_size
    bucket = (row - key_row + grid_size - 1) * span + column - key_column + grid_size - 1
    bucket = torch.where(query == 0, span * span, bucket)
    at_start = torch.where(query == 0, span * span + 2, span * span + 1)
    return torch.where(key == 0, at_start, bucket)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def image_buckets(grid_size: int) -> Tensor:
    """Return the (grid_size**2 + 1, same) int64 table of `image_bucket`."""
    ids = torch.arange(grid_size * grid_size + 1)
    return image_bucket(ids[:, None], ids, grid_size)


def num_image_buckets(grid_size: int) -> int:
    """Return the number of rows of a relative image table: (2 * grid_size - 1)**2 + 3."""
    return (2 * grid_size - 1) ** 2 + 3


def grid_ids(frames: int, rows: int, columns: int, grid_size: int, device: torch.device | str | None = None) -> Tensor:
    """Return the position ids (frames * rows * columns,) of a feature map laid out row-major.

    A cell has the same id in every temporal slice: the original has no temporal positions (specification 2.5).

    Raises:
        UserError: If the feature map is larger than the position table.
    """
    if rows > grid_size or columns > grid_size:
        raise UserError(
            f"a feature map of {rows}x{columns} does not fit the position table of {grid_size}x{grid_size}",
            fix="use a smaller input or a larger image_bucket_size",
        )
    ids = torch.arange(rows, device=device)[:, None] * grid_size + torch.arange(columns, device=device) + 1
    return ids.flatten().repeat(frames)


def audio_ids(num_tokens: int, grid_size: int, device: torch.device | str | None = None) -> Tensor:
    """Return the position ids (num_tokens,) of audio tokens, wrapped on the smallest square grid that holds them."""
    side = math.ceil(math.sqrt(num_tokens))
    if side > grid_size:
        raise UserError(
            f"{num_tokens} audio tokens do not fit the position table of {grid_size}x{grid_size}",
            fix="shorten the clip, or use a larger image_bucket_size",
        )
    token = torch.arange(num_tokens, device=device)
    return token // side * grid_size + token % side + 1


def code_ids(length: int, code_image_size: int, grid_size: int, device: torch.device | str | None = None) -> Tensor:
    """Return the position ids (length,) of a decoder sequence of image codes: bos is 0, then a row-major grid.

    Raises:
        UserError: If the grid of codes is larger than the position table.
    """
    side = code_image_size // 8
    if side > grid_size:
        raise UserError(
            f"a picture of {side}x{side} codes does not fit the position table of {grid_size}x{grid_size}",
            fix="use a smaller code_image_size or a larger image_bucket_size",
        )
    cell = torch.arange(length - 1, device=device)
    ids = (cell // side).clamp(max=side - 1) * grid_size + cell % side + 1
    return torch.cat([ids.new_zeros(1), ids])


def resized_grid(table: Tensor, rows: int, columns: int, side: int, grid_size: int) -> Tensor:
    """Return absolute embeddings (rows * columns, D): the first `side` x `side` cells of `table`, resized bilinearly.

    Args:
        table: (grid_size**2 + 1, D); row 0 belongs to no cell.
        rows, columns: Size of the feature map.
        side: Cells per side that the table was trained with.
        grid_size: Cells per side of the table.
    """
    cells = table[1:].unflatten(0, (grid_size, grid_size))[:side, :side]
    resized = F.interpolate(cells.permute(2, 0, 1)[None], size=(rows, columns), mode="bilinear", align_corners=False)
    return resized[0].flatten(1).T


def draw_tokens(num_rows: int, num_tokens: int, num_kept: int) -> Tensor:
    """Return token numbers (num_rows, num_kept): one draw per row without order or return, from Python's generator."""
    return torch.tensor([random.sample(range(num_tokens), num_kept) for _ in range(num_rows)])
