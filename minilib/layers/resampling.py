"""Position embeddings for another image size or text length than the trained one."""

from __future__ import annotations

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, cat


def resize_grid_positions(
    positions: Tensor, grid: tuple[int, int], source: tuple[int, int] | None = None
) -> Tensor:
    """Interpolate the position embeddings of an image grid (bicubic, with antialiasing, as open_clip does).

    Args:
        positions: (1 + g, W); row 0, the class or mean token's, is kept; the rest is a grid in row order.
        grid: wanted (rows, columns).
        source: (rows, columns) of the given grid; square when left out.

    Returns:
        (1 + rows * columns, W).

    Raises:
        ValueError: the number of positions does not fit ``source``.
    """
    cells = len(positions) - 1
    side = math.isqrt(cells)
    source = source or (side, side)
    if source[0] * source[1] != cells:
        raise ValueError(
            f"{cells} positions do not fill a {source[0]} x {source[1]} grid: pass source=(rows, columns)"
        )
    if grid == source:
        return positions
    cell_rows = rearrange(positions[1:], "(h w) c -> 1 c h w", h=source[0])
    # In float32: the antialiased kernel is not available in half precision everywhere.
    resized = F.interpolate(cell_rows.float(), size=grid, mode="bicubic", antialias=True, align_corners=False)
    return cat([positions[:1], rearrange(resized, "1 c h w -> (h w) c").to(positions.dtype)])


def resize_sequence_positions(positions: Tensor, length: int) -> Tensor:
    """Interpolate the position embeddings (L, W) of a text linearly to (length, W)."""
    if length == len(positions):
        return positions
    sequence = rearrange(positions.float(), "l c -> 1 c l")
    resized = F.interpolate(sequence, size=length, mode="linear", align_corners=False)
    return rearrange(resized, "1 c l -> l c").to(positions.dtype)
