"""What detectors share: places that answer for boxes, their targets and losses.

A dense detector without anchors (FCOS, arXiv 1904.01355) asks every place of every
level two questions: which class is here, and how far away are the four sides of its
box. Shapes: B images, n boxes in one image, L places of all levels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss


class UnresizedTransform(GeneralizedRCNNTransform):
    """Standardise and pad images, and leave their size alone.

    torchvision's own option to skip resizing works in training only.
    """

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the image (3, H, W) and its target as they are."""
        return image, target


class Places(NamedTuple):
    """The places of all levels, from fine to coarse."""

    centre: Tensor
    """(L, 2), x and y in pixels."""
    stride: Tensor
    """(L,) pixels from a place to its neighbour."""


def places_of(
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
    device: torch.device | str = "cpu",
) -> Places:
    """Return the places of levels with these rows and columns."""
    centres, steps = [], []
    for (rows, columns), stride in zip(grids, strides, strict=True):
        y, x = torch.meshgrid(
            torch.arange(rows, device=device),
            torch.arange(columns, device=device),
            indexing="ij",
        )
        centres.append((torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5) * stride)
        steps.append(torch.full((rows * columns,), float(stride), device=device))
    return Places(torch.cat(centres), torch.cat(steps))


def assign(
    places: Places, boxes: Tensor, reach: float = 1.5, largest: float = 4.0
) -> Tensor:
    """Return which box each place answers for: (L,) index into ``boxes``, -1 = none.

    A place answers for a box if it lies in the box, at most ``reach`` strides from its
    centre (centre sampling), and if the farthest side is neither too far for its level,
    ``largest`` strides, nor near enough for the next finer one. The finest level has no
    lower limit and the coarsest no upper one. Of several boxes it takes the smallest.

    Args:
        places: of all levels; each stride is twice the one before.
        boxes: (n, 4), x1 y1 x2 y2 in pixels; n may be 0.
        reach: in strides, from the box's centre.
        largest: in strides, to the farthest side.
    """
    if not len(boxes):
        return torch.full_like(places.stride, -1, dtype=torch.int64)
    sides = distances(places.centre[:, None], boxes)  # (L, n, 4)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    offset = (places.centre[:, None] - centre).abs().amax(dim=-1)
    stride, farthest = places.stride[:, None], sides.amax(dim=-1)
    not_too_far = (farthest <= largest * stride) | (stride == places.stride.max())
    not_too_near = (farthest > largest * stride / 2) | (stride == places.stride.min())
    answers = (sides.amin(dim=-1) > 0) & (offset <= reach * stride)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).expand_as(answers)
    area = area.masked_fill(~(answers & not_too_far & not_too_near), torch.inf)
    smallest, index = area.min(dim=1)
    return index.where(smallest < torch.inf, index.new_tensor(-1))


def distances(centre: Tensor, boxes: Tensor) -> Tensor:
    """Return how far left, up, right and down of a place (..., 2) the sides of
    boxes (..., 4) are: (..., 4) pixels, negative outside the box."""
    return torch.cat([centre - boxes[..., :2], boxes[..., 2:] - centre], dim=-1)


def boxes_at(centre: Tensor, sides: Tensor) -> Tensor:
    """Undo :func:`distances`: places (..., 2) and distances (..., 4) make boxes."""
    return torch.cat([centre - sides[..., :2], centre + sides[..., 2:]], dim=-1)


def detection_losses(
    places: Places,
    logits: Tensor,
    sides: Tensor,
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Return ``classification`` (focal loss, arXiv 1708.02002, of all places) and
    ``boxes`` (generalised IoU, arXiv 1902.09630, of those that answer for a box).

    Both are sums over places, divided by the number of places that answer for a box.

    Args:
        places: L places.
        logits: (B, L, K).
        sides: (B, L, 4) predicted distances in pixels.
        boxes: per image (n, 4) in pixels; n may be 0, also for all images.
        classes: per image (n,) int64 in 0 ... K - 1.
    """
    target, wanted = torch.zeros_like(logits), []
    chosen = []
    for image, (corners, labels) in enumerate(zip(boxes, classes, strict=True)):
        index = assign(places, corners)
        there = (index >= 0).nonzero()[:, 0]
        target[image, there, labels[index[there]]] = 1
        wanted.append(corners[index[there]])
        chosen.append(boxes_at(places.centre[there], sides[image, there]))
    count = max(1, sum(map(len, wanted)))
    return {
        "classification": sigmoid_focal_loss(logits, target, reduction="sum") / count,
        "boxes": generalized_box_iou_loss(
            torch.cat(chosen), torch.cat(wanted), reduction="sum"
        )
        / count,
    }


def best_detections(
    places: Places,
    logits: Tensor,
    sides: Tensor,
    size: tuple[int, int],
    least: float = 0.05,
    candidates: int = 100,
    overlap: float = 0.5,
    most: int = 20,
) -> list[dict[str, Tensor]]:
    """Return per image ``boxes`` (m, 4), ``scores`` (m,), descending, and ``labels``.

    Args:
        places: L places.
        logits: (B, L, K).
        sides: (B, L, 4) distances in pixels.
        size: rows and columns of the images, to which boxes are cut.
        least: lowest score of a detection.
        candidates: pairs of place and class of an image that compete.
        overlap: of two boxes of a class with a larger IoU only the likelier stays.
        most: detections of an image.
    """
    found = []
    limit = logits.new_tensor([size[1], size[0], size[1], size[0]])
    for scores, reach in zip(logits.sigmoid(), sides, strict=True):
        best, index = scores.flatten().topk(min(candidates, scores.numel()))
        index, best = index[best > least], best[best > least]
        place, label = index // scores.shape[1], index % scores.shape[1]
        boxes = boxes_at(places.centre[place], reach[place]).clamp(min=0).minimum(limit)
        kept = batched_nms(boxes, best, label, overlap)[:most]
        found.append(
            {"boxes": boxes[kept], "scores": best[kept], "labels": label[kept]}
        )
    return found


def centred(text: Tensor, middle: Tensor) -> Tensor:
    """Return unit text vectors (K, E) less what all names share, (E,), at length 1.

    CLIP's text vectors lie in a narrow cone: without their mean the cosines of
    different names spread over the whole range.
    """
    return F.normalize(F.normalize(text, dim=-1) - middle, dim=-1)
