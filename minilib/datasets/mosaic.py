"""The mosaic of four crops with which CounTX and VLCounter enlarge their training
data (from CounTR)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def blend_mosaic(tiles: Tensor, dots: Tensor, blend: int) -> tuple[Tensor, Tensor]:
    """Join four tiles into one image with soft seams; dot maps are cut, not blended, so
    counts stay exact.

    Tiles 0 and 1, one above the other, make the left half, 2 and 3 the right. Each
    tile's centre is used; its margin of ``blend`` pixels fades into the neighbour: at
    distance i from a seam, own * (i + b) / 2b + the other's margin * (b - i) / 2b.

    Args:
        tiles: (4, 3, L, L) in [0, 1], L = half the image + 2 * blend.
        dots: (4, L, L).
        blend: b, from 1 to a quarter of L.

    Returns:
        image (3, S, S) and dot map (S, S) with S = 2 * (L - 2 * blend).

    Raises:
        ValueError: not four tiles, or a margin that does not fit.
    """
    if len(tiles) != 4 or len(dots) != 4 or not 1 <= blend <= tiles.shape[-1] // 4:
        raise ValueError(
            f"{len(tiles)} tiles, {len(dots)} maps, blend={blend}: expected 4, 4 and "
            "1 ... L / 4"
        )
    left, right = (_joined_down(tiles[i], tiles[i + 1], blend) for i in (0, 2))
    # The columns are joined like the rows, with x and y swapped.
    image = _joined_down(left.mT, right.mT, blend).mT
    centre = dots[:, blend:-blend, blend:-blend]
    joined = rearrange(centre, "(right down) h w -> (down h) (right w)", right=2)
    return image.clamp(0, 1), joined


def _joined_down(upper: Tensor, lower: Tensor, blend: int) -> Tensor:
    """Join two tiles (3, L, W) one above the other to (3, 2 * (L - 2 * blend), W),
    faded into each other."""
    near = torch.arange(blend, device=upper.device, dtype=upper.dtype)[:, None]
    own, other = (near + blend) / (2 * blend), (blend - near) / (2 * blend)
    top, bottom = upper[:, blend:-blend].clone(), lower[:, blend:-blend].clone()
    # i = 0 is the pixel next to the seam. The neighbour is read one pixel nearer to its
    # centre than a continuation would be (authors' code), so that at the seam itself
    # both sides mix the same two rows.
    bottom[:, :blend] = (
        lower[:, blend : 2 * blend] * own + upper[:, -blend - 1 : -1] * other
    )
    top[:, -blend:] = (
        upper[:, -2 * blend : -blend].flip(1) * own
        + lower[:, 1 : blend + 1].flip(1) * other
    ).flip(1)
    return torch.cat([top, bottom], dim=1)
