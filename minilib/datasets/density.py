"""Density maps that sum to the number of points, for data sets that mark
objects with dots."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def points_inside(points: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return which points (n, 2), x y in pixels, lie in an image of ``shape``
    (H, W): (n,) bool."""
    limit = points.new_tensor([shape[1], shape[0]])
    return ((points >= 0) & (points < limit)).all(dim=-1)


def dot_map(
    points: Tensor, shape: tuple[int, int], *, merge: bool = False, clamp: bool = False
) -> Tensor:
    """Mark every point (n, 2), x y in pixels, in its pixel of a map (H, W) of zeros.

    By default the map sums to the number of points inside: points that share a pixel
    add up, those outside are dropped.

    Args:
        points: (n, 2), n may be 0.
        shape: (H, W).
        merge: set the pixel to 1 however many points share it, as CounTX's authors do
            (the sum is then too small).
        clamp: move points outside onto the border instead, as they also do.

    Raises:
        ValueError: points of another shape, or not finite.
    """
    points = torch.as_tensor(points, dtype=torch.float32)
    if points.numel() == 0:
        points = points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(
            f"points of shape {tuple(points.shape)}: expected (n, 2), x and y in pixels"
        )
    if not points.isfinite().all():
        bad = int((~points.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(
            f"point {bad} is {tuple(points[bad].tolist())}: expected finite x and y"
        )
    height, width = shape
    if not clamp:
        points = points[points_inside(points, shape)]
    x = points[:, 0].long().clamp(0, width - 1)
    y = points[:, 1].long().clamp(0, height - 1)
    dots = points.new_zeros(height, width)
    dots.index_put_((y, x), torch.ones_like(points[:, 0]), accumulate=not merge)
    return dots


def smooth(dots: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Blur dot maps (..., H, W) by a Gaussian of ``sigma`` pixels without losing
    anything at the edge.

    What would leave the image is mirrored back into it, as
    ``scipy.ndimage.gaussian_filter`` does by default: the sum stays the number of dots.

    Raises:
        ValueError: sigma is negative or not finite (0 leaves the dots as they are).
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma}: expected 0 or more pixels")
    if sigma == 0:
        return dots
    down = _blur_matrix(dots.shape[-2], float(sigma), truncate).to(dots)
    across = _blur_matrix(dots.shape[-1], float(sigma), truncate).to(dots)
    return down @ dots @ across.T


@lru_cache(maxsize=32)
def _blur_matrix(length: int, sigma: float, truncate: float) -> Tensor:
    """Return the blur of a line of ``length`` pixels as a matrix whose
    columns sum to one."""
    radius = int(truncate * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1)
    bell = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    bell /= bell.sum()
    # (length, 2 * radius + 1), including beyond the edges
    target = torch.arange(length)[:, None] + offset
    period = target.remainder(2 * length)
    mirrored = torch.where(period < length, period, 2 * length - 1 - period)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    matrix.scatter_add_(1, mirrored, bell.expand(length, -1))
    return matrix.float()


def density_of_points(points: Tensor, shape: tuple[int, int], sigma: float) -> Tensor:
    """Return a density map (H, W) that sums to the number of points (n, 2)
    inside the image."""
    return smooth(dot_map(points, shape), sigma)
