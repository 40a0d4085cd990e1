"""VLCounter's losses: the density's, and the rank-aware one, as coded and as written.

Shapes: B images of H x W pixels, h x w cells of the similarity map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

RANK_WEIGHT = 1e-6
"""Weight of the rank-aware loss in the released training script."""
THRESHOLDS = (1.0, 0.8, 0.6, 0.4)
"""Borders of the bands of the rank-aware loss."""


def count_loss(density: Tensor, target: Tensor) -> Tensor:
    """L_count: mean squared error of (B, 1, H, W), 60 times objects per pixel."""
    return F.mse_loss(density, target)


def sampled_target(target: Tensor, grid: Sequence[int]) -> Tensor:
    """Return the target (B, 1, H, W) at the top-left pixel of every cell, scaled to
    [0, 1] over the whole batch.

    A batch without any object gives NaN, of which every comparison is false.
    """
    rows, columns = target.shape[-2] // grid[0], target.shape[-1] // grid[1]
    sampled = target[..., ::rows, ::columns]
    return (sampled - sampled.min()) / (sampled.max() - sampled.min())


def rank_loss(
    similarity: Tensor, target: Tensor, thresholds: Sequence[float] = THRESHOLDS
) -> Tensor:
    """L_rank as the authors' code has it: places of high density shall score higher
    than those of low density.

    The paper: -sum_k log(sum_pos exp(S / tau) / sum_all exp(S / tau)). The code: no
    temperature, bands between neighbouring thresholds, and places outside a set count
    as exp(0) = 1 in its sum.

    Args:
        similarity: (B, 1, h, w) after the affine map.
        target: (B, 1, H, W) density.
        thresholds: falling; each neighbouring pair bounds the positives of one band.
    """
    level = sampled_target(target, similarity.shape[-2:])
    loss = similarity.new_zeros(())
    for upper, lower in zip(thresholds, thresholds[1:], strict=False):
        positive = (
            (similarity * ((level > lower) & (level < upper))).exp().sum((1, 2, 3))
        )
        negative = (similarity * (level < lower)).exp().sum((1, 2, 3))
        loss = loss - (positive / (positive + negative)).log().mean()
    return loss


def object_loss(similarity: Tensor, target: Tensor) -> Tensor:
    """The code's alternative to ``rank_loss``: places with objects against all places.

    Checked by parity with the authors' code, not run here.
    """
    positive = (
        (similarity * (sampled_target(target, similarity.shape[-2:]) > 0))
        .exp()
        .sum((1, 2, 3))
    )
    return -(positive / (positive + similarity.exp().sum((1, 2, 3)))).log().mean()


def nested_rank_loss(
    similarity: Tensor,
    target: Tensor,
    thresholds: Sequence[float] = THRESHOLDS,
    temperature: float = 1.0,
) -> Tensor:
    """L_rank as the paper writes it, for comparison: nested sets, true InfoNCE, the
    largest density of each cell.

    Densities are scaled to [0, 1] in each image; an image without objects adds nothing.
    """
    pooled = F.adaptive_max_pool2d(target, tuple(similarity.shape[-2:]))
    level = pooled / pooled.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    scores = rearrange(similarity / temperature, "b 1 h w -> b (h w)")
    level = rearrange(level, "b 1 h w -> b (h w)")
    loss = similarity.new_zeros(())
    for lower in thresholds[1:]:
        inside = level > lower
        positive = scores.masked_fill(~inside, -torch.inf).logsumexp(1)
        missing = scores.logsumexp(1) - positive
        loss = (
            loss + torch.where(inside.any(1), missing, torch.zeros_like(missing)).mean()
        )
    return loss


def total_loss(
    density: Tensor,
    similarity: Tensor,
    target: Tensor,
    rank_weight: float = RANK_WEIGHT,
) -> dict[str, Tensor]:
    """Return ``loss`` = L_count + rank_weight * L_rank and both parts.

    Args:
        density: (B, 1, H, W), 60 times objects per pixel.
        similarity: (B, 1, h, w) after the affine map.
        target: (B, 1, H, W), on the scale of ``density``.
        rank_weight: the authors' by default.
    """
    count, rank = count_loss(density, target), rank_loss(similarity, target)
    return {
        "loss": count + rank_weight * rank,
        "count": count.detach(),
        "rank": rank.detach(),
    }
