"""From segments to a label for every pixel, without any training on masks
(section 3.4).

Shapes: B images of H x W pixels, N = h w patches, G segments, K classes, E joint
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from minilib.models.groupvit.grouping import Assignment
from minilib.models.groupvit.model import GroupViT

TOP = 5
"""Classes that an image may show at most, as published."""


def group_maps(
    assignments: Sequence[Assignment], grid: tuple[int, int], size: tuple[int, int]
) -> list[Tensor]:
    """Return for each grouping how much every pixel belongs to each of its groups:
    (B, G, H, W), bilinear between patches.

    A patch belongs to a late group by way of the early ones: soft assignments are
    multiplied. The paper describes hard ones; soft ones are the code's, and give finer
    borders.

    Args:
        assignments: of the encoder, the first one of the patches.
        grid: rows and columns of patches.
        size: rows and columns of pixels.

    Raises:
        ValueError: the grid has another number of patches than were assigned.
    """
    patches = assignments[0].logits.shape[-1]
    if grid[0] * grid[1] != patches:
        raise ValueError(
            f"a grid of {grid[0]} x {grid[1]} for {patches} assigned patches: expected "
            "the image's rows and columns of patches"
        )
    maps = []
    belongs: Tensor | None = None
    for assignment in assignments:
        soft = assignment.soft.float()
        belongs = soft if belongs is None else soft @ belongs
        cells = rearrange(belongs, "b g (h w) -> b g h w", h=grid[0])
        maps.append(F.interpolate(cells, size, mode="bilinear", align_corners=False))
    return maps


class Affinity(NamedTuple):
    """How well segments and classes agree."""

    values: Tensor
    """(B, G, K), in [0, 1]; 0 for classes that were left out."""
    kept: Tensor
    """(B, K) bool: the classes that the whole image resembles most."""


def class_affinity(
    image: Tensor, segments: Tensor, text: Tensor, multiplier: Tensor, top: int = TOP
) -> Affinity:
    """Return the affinity of segments with classes.

    It is the product of two softmaxes over classes: over all of them, and over the
    ``top`` that the whole image resembles most, so that a single segment cannot bring
    in what the image does not show.

    Args:
        image: (B, E) unit rows.
        segments: (B, G, E) unit rows.
        text: (K, E) unit rows.
        multiplier: of the cosines.
        top: classes that are kept; all where there are fewer.

    Raises:
        ValueError: there is no class, or ``top`` is not positive.
    """
    if text.ndim != 2 or not len(text) or text.shape[1] != image.shape[1]:
        raise ValueError(
            f"class vectors {tuple(text.shape)}: expected (K, {image.shape[1]}) with "
            "at least one class, see embed_classes"
        )
    if top < 1:
        raise ValueError(f"top={top}: expected at least 1 class of an image")
    resembled = (multiplier * image @ text.T).topk(min(top, len(text)), dim=-1).indices
    kept = torch.zeros(len(image), len(text), dtype=torch.bool, device=image.device)
    kept.scatter_(1, resembled, True)
    logits = multiplier * einsum(segments, text, "b g e, k e -> b g k")
    among_kept = logits.masked_fill(~kept[:, None], -torch.inf).softmax(dim=-1)
    return Affinity(among_kept * logits.softmax(dim=-1), kept)


class WindowScores(NamedTuple):
    """What :func:`zero_shot_scores` returns."""

    scores: Tensor
    """(B, K, H, W), or (B, 1 + K, H, W) with the background in front; the largest is
    the label."""
    owner: Tensor
    """(B, H, W) int64: the segment that every pixel belongs to."""
    affinity: Tensor
    """(B, G, K)."""
    kept: Tensor
    """(B, K) bool."""


def add_background(scores: Tensor, affinity: Tensor, threshold: float) -> Tensor:
    """Put a background in front of scores (B, K, H, W): (B, 1 + K, H, W).

    It scores 1 where no class reaches the threshold, else 0. Where not even the most
    confident segment of an image would, the threshold falls to that segment's affinity:
    it stays in the foreground, unless it owns no pixel.

    Args:
        scores: of the classes.
        affinity: (B, G, K) of the segments.
        threshold: from 0, all is foreground, to 1.

    Raises:
        ValueError: a threshold outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: expected a number from 0 to 1")
    reachable = affinity.amax(dim=(1, 2)).clamp(max=threshold)
    background = scores.amax(dim=1) < reachable[:, None, None]
    return torch.cat([background[:, None].to(scores.dtype), scores], dim=1)


@torch.no_grad()
def zero_shot_scores(
    model: GroupViT,
    pixels: Tensor,
    text: Tensor,
    threshold: float | None = None,
    top: int = TOP,
) -> WindowScores:
    """Score classes at pixels, each image being one window.

    Every pixel gets the affinities of the segment that owns it, so there are at most as
    many labels in a window as segments, and as ``top``.

    Args:
        model: in evaluation mode.
        pixels: (B, 3, H, W) from ``preprocess``, sides multiples of the patch.
        text: (K, E) from ``embed_classes``.
        threshold: of the background; None for data sets that label every pixel.
        top: see :func:`class_affinity`.

    Raises:
        ValueError: a side is not a whole number of patches, there is no class, or a
            threshold outside [0, 1].
    """
    features, patch = model.encode_segments(pixels), model.config.patch
    height, width = pixels.shape[-2], pixels.shape[-1]
    # Whether a score reaches a threshold is decided by equal numbers: never in half
    # precision.
    with torch.autocast(pixels.device.type, enabled=False):
        grid = height // patch, width // patch
        maps = group_maps(features.assignments, grid, (height, width))
        image, segments = features.image.float(), features.segments.float()
        affinity = class_affinity(
            image, segments, text.float(), model.multiplier.float(), top
        )
        owner = maps[-1].argmax(dim=1)
        first = torch.arange(len(owner), device=owner.device)[:, None, None]
        scores = rearrange(affinity.values[first, owner], "b h w k -> b k h w")
        if threshold is not None:
            scores = add_background(scores, affinity.values, threshold)
    return WindowScores(scores, owner, affinity.values, affinity.kept)
