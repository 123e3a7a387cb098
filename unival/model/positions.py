"""Position ids and relative-position buckets (all positions of the model enter as attention biases).

The tables are functions of sizes only, so they are computed on demand and cached instead of being stored as buffers.
Inference mode is switched off for that: a tensor made in it could not be used by a later training step.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from unival.errors import UserError


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def text_buckets(bucket_size: int, max_positions: int) -> Tensor:
    """Return the (max_positions, max_positions) int64 table of relative text buckets.

    Distances up to half of `bucket_size` have a bucket each, longer ones share logarithmic buckets
    (the OFA lineage; specification 2.5). Entry [i, j] describes query i and key j.
    """
    position = torch.arange(max_positions)
    relative = position[:, None] - position[None, :]
    middle = bucket_size // 2
    distance = torch.where(relative.abs() < middle, torch.tensor(middle - 1), relative.abs())
    log_position = (
        torch.ceil(torch.log(distance / middle) / math.log((max_positions - 1) / middle) * (middle - 1)) + middle
    )
    bucket = torch.where(distance <= middle, relative, (log_position * relative.sign()).long())
    return bucket.long() + bucket_size - 1


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def image_buckets(grid_size: int) -> Tensor:
    """Return the (grid_size**2 + 1, same) int64 table of relative 2-D buckets.

    Ids 1.. are grid cells in row-major order, id 0 is the start of an image-code sequence, which has three buckets of
    its own: row 0, column 0 and the corner.
    """
    cell = torch.arange(grid_size * grid_size)
    row, column = cell // grid_size, cell % grid_size
    span = 2 * grid_size - 1
    delta_row = row[:, None] - row[None, :] + grid_size - 1
    delta_column = column[:, None] - column[None, :] + grid_size - 1
    table = torch.empty(grid_size**2 + 1, grid_size**2 + 1, dtype=torch.long)
    table[1:, 1:] = delta_row * span + delta_column
    table[0, :] = span * span
    table[:, 0] = span * span + 1
    table[0, 0] = span * span + 2
    return table


def num_image_buckets(grid_size: int) -> int:
    """Return the number of rows of a relative image table: (2 * grid_size - 1)**2 + 3."""
    return (2 * grid_size - 1) ** 2 + 3


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def grid_ids(frames: int, rows: int, columns: int, grid_size: int) -> Tensor:
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
    ids = torch.arange(rows)[:, None] * grid_size + torch.arange(columns)[None, :] + 1
    return ids.flatten().repeat(frames)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def audio_ids(num_tokens: int, grid_size: int) -> Tensor:
    """Return the position ids (num_tokens,) of audio tokens, wrapped on the smallest square grid that holds them."""
    side = math.ceil(math.sqrt(num_tokens))
    if side > grid_size:
        raise UserError(
            f"{num_tokens} audio tokens do not fit the position table of {grid_size}x{grid_size}",
            fix="shorten the clip, or use a larger image_bucket_size",
        )
    token = torch.arange(num_tokens)
    return token // side * grid_size + token % side + 1


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def code_ids(length: int, code_image_size: int, grid_size: int) -> Tensor:
    """Return the position ids (length,) of a decoder sequence of image codes: bos is 0, then a row-major grid."""
    side = code_image_size // 8
    cell = torch.arange(length - 1)
    ids = (cell // side).clamp(max=side - 1) * grid_size + cell % side + 1
    return torch.cat([torch.zeros(1, dtype=torch.long), ids])
