"""Images and position embeddings at another size than the trained one."""

from __future__ import annotations

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, cat


def resize_images(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (B, C, H, W) to ``size`` (rows, columns), bicubic with
    antialiasing, float in [0, 1].

    uint8 images give what Pillow gives, which works along the rows, rounds, then works
    along the columns and rounds again; released models were trained and measured with
    it. Images already in [0, 1] are not rounded.
    """
    if image.is_floating_point():
        if tuple(image.shape[-2:]) == size:
            return image
        return F.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(
            0, 1
        )
    pixels = image.float()
    for step in ((image.shape[-2], size[1]), size):
        if tuple(pixels.shape[-2:]) != step:
            pixels = F.interpolate(pixels, size=step, mode="bicubic", antialias=True)
            pixels = (pixels + 0.5).floor().clamp(0, 255)
    return pixels / 255


def resize_grid_positions(
    positions: Tensor,
    grid: tuple[int, int],
    source: tuple[int, int] | None = None,
    mode: str = "bicubic",
) -> Tensor:
    """Fit the position embeddings of an image grid to another grid.

    Args:
        positions: (1 + g, W); row 0, the class or mean token's, is kept; the rest is a
            grid in row order.
        grid: wanted (rows, columns).
        source: (rows, columns) of the given grid; square when left out.
        mode: "bicubic" with antialiasing, as open_clip does; "bilinear" without, as
            DPT, LSeg, DenseCLIP and VLCounter do; "crop" takes the top-left corner, as
            DenseCLIP's detection code does.

    Returns:
        (1 + rows * columns, W).

    Raises:
        ValueError: the number of positions does not fit ``source``, the mode is
            unknown, or "crop" from a grid that is too small.
    """
    if mode not in ("bicubic", "bilinear", "crop"):
        raise ValueError(f"unknown mode {mode!r}: use 'bicubic', 'bilinear' or 'crop'")
    cells = len(positions) - 1
    side = math.isqrt(cells)
    source = source or (side, side)
    if source[0] * source[1] != cells:
        raise ValueError(
            f"{cells} positions do not fill a {source[0]} x {source[1]} grid: pass "
            "source=(rows, columns)"
        )
    if grid == source:
        return positions
    cell_rows = rearrange(positions[1:], "(h w) c -> 1 c h w", h=source[0])
    if mode == "crop":
        if grid[0] > source[0] or grid[1] > source[1]:
            raise ValueError(
                f"a {grid[0]} x {grid[1]} map cannot be cropped out of the positions' "
                f"{source[0]} x {source[1]} grid: resize the image, or the positions"
            )
        resized = cell_rows[..., : grid[0], : grid[1]]
    else:
        # In float32: not every device has the antialiased kernel in half precision.
        resized = F.interpolate(
            cell_rows.float(),
            size=grid,
            mode=mode,
            antialias=mode == "bicubic",
            align_corners=False,
        )
    return cat(
        [positions[:1], rearrange(resized, "1 c h w -> (h w) c").to(positions.dtype)]
    )


def resize_sequence_positions(positions: Tensor, length: int) -> Tensor:
    """Interpolate the position embeddings (L, W) of a text linearly to (length, W).

    Checked by parity with open_clip, not run here: no chapter reads longer texts.
    """
    if length == len(positions):
        return positions
    sequence = rearrange(positions.float(), "l c -> 1 c l")
    resized = F.interpolate(sequence, size=length, mode="linear", align_corners=False)
    return rearrange(resized, "1 c l -> l c").to(positions.dtype)
