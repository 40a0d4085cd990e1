"""From the trained network to maps and labels: scales, normalisation, background.

The labels of an image are known at inference too: only maps of present classes are
kept. B images of H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.layers.pixels import check_images
from minilib.layers.resampling import resize_images
from minilib.models.clims.model import CLIMS

SCALES = (1.0, 0.5, 1.5, 2.0)
"""At which images are seen, as published."""
EPSILON = 1e-5


class ClassMaps(NamedTuple):
    """Maps in [0, 1], each divided by its maximum; those of absent classes are 0."""

    full: Tensor
    """(B, K, H, W), at the pixels of the image: labels are made from it."""
    coarse: Tensor
    """(B, K, H / 4, W / 4), rounded up: what the random walk spreads."""


def merge_scales(
    maps: Sequence[Tensor], size: Sequence[int], present: Tensor
) -> ClassMaps:
    """Sum the maps of several scales and divide each class by its maximum.

    Args:
        maps: (B, K, h, w) per scale, at least 0, from ``CLIMS.cams``.
        size: (H, W) of the images.
        present: (B, K) bool or 0 / 1, which classes are in each image; where there is
            none, all maps are 0.

    Raises:
        ValueError: there is no scale, or the shapes do not belong together.
    """
    if not maps or any(scale.shape[:2] != present.shape for scale in maps):
        raise ValueError(
            f"maps {[tuple(scale.shape) for scale in maps]} and image labels "
            f"{tuple(present.shape)} do not belong together: expected (B, K, h, w) for "
            "at least one scale, and (B, K)"
        )
    height, width = size
    # the corner of an image that would fill whole cells of 16 pixels
    padded = (-(-height // 16) * 16, -(-width // 16) * 16)
    full = _sum_resized(maps, padded)[..., :height, :width]
    coarse = _sum_resized(maps, (-(-height // 4), -(-width // 4)))
    return ClassMaps(_normalised(full, present), _normalised(coarse, present))


@torch.no_grad()
def multi_scale_cams(
    model: CLIMS, image: Tensor, present: Tensor, scales: Sequence[float] = SCALES
) -> ClassMaps:
    """Return the class activation maps of images, as published: four scales, each with
    its mirror image.

    Args:
        model: in evaluation mode.
        image: (B, 3, H, W), uint8 or float in [0, 1].
        present: (B, K) bool or 0 / 1, which classes are in each image.
        scales: of the images' sides.

    Raises:
        ValueError: not images, or the shapes do not belong together.
    """
    check_images(image, model)
    height, width = image.shape[-2:]
    maps = []
    for scale in scales:
        sides = max(1, round(scale * height)), max(1, round(scale * width))
        maps.append(model.cams(model.preprocess(resize_images(image, sides))))
    return merge_scales(maps, (height, width), present)


def predict(maps: Tensor, background: float) -> Tensor:
    """Return labels (B, H, W) int64: 0 where no map exceeds ``background``, else 1 +
    the class of the highest.

    Args:
        maps: (B, K, H, W) in [0, 1], 0 for absent classes.
        background: the score of a constant background, above 0; the value that is best
            for one method is not for another, so sweep it (``metrics.ThresholdSweep``).
    """
    score, label = maps.max(dim=1)
    return torch.where(score > background, label + 1, 0)


def _sum_resized(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    resized = [
        F.interpolate(scale, size, mode="bilinear", align_corners=False)
        for scale in maps
    ]
    return torch.stack(resized).sum(dim=0)


def _normalised(maps: Tensor, present: Tensor) -> Tensor:
    maps = maps * present[..., None, None].to(maps.dtype)
    return maps / (maps.amax(dim=(2, 3), keepdim=True) + EPSILON)
