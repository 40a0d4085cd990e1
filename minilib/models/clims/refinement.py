"""IRNet's refinement of maps, as CLIMS uses it: a random walk that edges stop.

Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel
Relations" (arXiv 1904.05044). A network learns where edges are from pairs of nearby
cells that sure labels put into one class or into two; maps then spread wherever no edge
lies between. B images, K classes, h x w cells, r the radius, D the offsets to
neighbours within it: half of all, since a pair has no direction.
"""

from __future__ import annotations

from types import EllipsisType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.models.clims.protocol import predict

RADIUS, BETA, DOUBLINGS = 5, 10.0, 8
"""Of the random walk as published: reach in cells, power of the affinity, and how often
the number of steps doubles."""

Cell = tuple[int, int]


def paths(radius: int) -> list[list[Cell]]:
    """Return the cells (dy, dx) of the straight path to each neighbour closer than
    ``radius``: the neighbour first, the cell itself, (0, 0), among the others.

    Neighbours lie to the right in the same row or in a row below; a path holds the
    cells between whose centres are less than one cell away from the line. Ordered by
    number of cells, as the authors' code is.

    Raises:
        ValueError: the radius is below 2, so that there are no neighbours.
    """
    if radius < 2:
        raise ValueError(f"radius={radius}: expected 2 or more, for there are no pairs")
    reach = range(1 - radius, radius)
    neighbours = [(0, dx) for dx in range(1, radius)]
    neighbours += [
        (dy, dx) for dy in range(1, radius) for dx in reach if dy**2 + dx**2 < radius**2
    ]
    return sorted((_line(neighbour) for neighbour in neighbours), key=len)


def _line(end: Cell) -> list[Cell]:
    """Return the cells of the path to ``end``, from there to (0, 0)."""
    rows = range(0, end[0] + 1)
    columns = range(min(0, end[1]), max(0, end[1]) + 1)
    length = end[0] ** 2 + end[1] ** 2
    cells = [
        (dy, dx)
        for dy in rows
        for dx in columns
        if (end[0] * dx - end[1] * dy) ** 2 < length  # squared distance to the line
    ]
    return sorted(cells, key=lambda cell: -abs(cell[0]) - abs(cell[1]))


def shifted(x: Tensor, offset: Cell, radius: int) -> Tensor:
    """Return what lies ``offset`` (dy, dx) away from each source cell.

    Sources are the cells of x (..., h, w) all of whose neighbours are inside:
    (..., h - r + 1, w - 2 r + 2).
    """
    height, width = x.shape[-2:]
    reach = radius - 1
    rows, columns = height - reach, width - 2 * reach
    if min(rows, columns) < 1:
        raise ValueError(
            f"a map of {height} x {width} cells is too small for pairs of radius "
            f"{radius}: expected at least {radius} x {2 * radius - 1}"
        )
    top, left = offset[0], reach + offset[1]
    return x[..., top : top + rows, left : left + columns]


def affinity(edge: Tensor, radius: int = RADIUS) -> Tensor:
    """Return 1 - the strongest edge on the path between a source and its neighbour.

    Args:
        edge: (B, h, w) in [0, 1].
        radius: in cells.

    Returns:
        (B, D, h - r + 1, w - 2 r + 2), in the order of :func:`paths`.

    Raises:
        ValueError: the map is smaller than the radius needs.
    """
    strongest = [
        torch.stack([shifted(edge, cell, radius) for cell in path]).amax(dim=0)
        for path in paths(radius)
    ]
    return 1 - torch.stack(strongest, dim=1)


def random_walk(
    maps: Tensor,
    edge: Tensor,
    radius: int = RADIUS,
    beta: float = BETA,
    doublings: int = DOUBLINGS,
) -> Tensor:
    """Spread maps along cells that no edge parts, for 2^doublings steps.

    The transition matrix is T = A^beta with columns that sum to 1. A, the affinity, is
    symmetric, so a step gives each cell the mean of its neighbours, weighed by A^beta,
    itself with weight 1. The authors square the matrix of (h w)^2 entries; here it is
    applied neighbour by neighbour, which is the same and linear in the number of cells.

    Args:
        maps: (B, K, h, w), ``ClassMaps.coarse``; they start weakened on edges, as
            maps (1 - edge).
        edge: (B, h, w) in [0, 1].
        radius: how far a step reaches, in cells.
        beta: power of the affinity; the higher, the harder weak edges are to cross.
        doublings: base-2 logarithm of the number of steps.

    Returns:
        (B, K, h, w).

    Raises:
        ValueError: the shapes do not belong together, or edges are outside [0, 1].
    """
    if maps.shape[:1] + maps.shape[2:] != edge.shape:
        raise ValueError(
            f"maps {tuple(maps.shape)} and edges {tuple(edge.shape)} do not belong "
            "together: expected (B, K, h, w) and (B, h, w)"
        )
    if edge.numel() and not (edge.min() >= 0 and edge.max() <= 1):
        raise ValueError(
            "edges are outside [0, 1]: pass probabilities, such as a sigmoid of logits"
        )
    reach = radius - 1
    # beyond the border all is edge: nothing enters from there
    padded = F.pad(edge, (reach, reach, 0, reach), value=1.0)
    weights = affinity(padded, radius)[:, :, None] ** beta  # (B, D, 1, h, w)
    pairs = []
    for number, path in enumerate(paths(radius)):
        here, there = _ends(path[0], edge.shape[-2], edge.shape[-1])
        pairs.append((weights[:, number][here], here, there))
    total = torch.ones_like(edge)[:, None]  # of a cell's weights, its own included
    for weight, here, there in pairs:
        total[here] += weight
        total[there] += weight
    x = maps * (1 - edge)[:, None]
    for _ in range(2**doublings):
        # as flows between neighbours, whose rounding stays small over many steps
        gain = torch.zeros_like(x)
        for weight, here, there in pairs:
            flow = (x[there] - x[here]).mul_(weight)
            gain[here] += flow
            gain[there] -= flow
        x = x + gain / total
    return x


Place = tuple[EllipsisType, slice, slice]


def _ends(offset: Cell, height: int, width: int) -> tuple[Place, Place]:
    """Return where in a map the pairs of an offset begin and end; nowhere if the map
    is smaller than the offset."""
    dy, dx = min(offset[0], height), max(-width, min(offset[1], width))
    here = (..., slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
    there = (..., slice(dy, height), slice(max(0, dx), width - max(0, -dx)))
    return here, there


def pseudo_labels(
    walked: Tensor, size: tuple[int, int], background: float = 0.2
) -> Tensor:
    """Return labels (B, H, W) int64 of maps after the walk: 0 for background, else 1 +
    the class.

    Maps are enlarged four times and divided by the maximum over all classes of an
    image.

    Args:
        walked: (B, K, h, w) from :func:`random_walk`, 0 for absent classes.
        size: (H, W), at most 4 h and 4 w.
        background: score of the background; 0.20 on PASCAL VOC, 0.25 on COCO.
    """
    return predict(walked_maps(walked, size), background)


def walked_maps(walked: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the maps (B, K, H, W) in [0, 1] that :func:`pseudo_labels` thresholds."""
    full = F.interpolate(walked, scale_factor=4, mode="bilinear", align_corners=False)
    full = full[..., : size[0], : size[1]]
    highest = full.amax(dim=(1, 2, 3), keepdim=True)
    return full / highest.clamp(min=torch.finfo(full.dtype).tiny)


def confident_labels(
    maps: Tensor, foreground: float = 0.3, background: float = 0.1, ignore: int = 255
) -> Tensor:
    """Return the labels (B, H, W) int64 that the edges are learned from: 1 + the class
    where it is sure, 0 where nothing is, ``ignore`` between.

    The authors sharpen both predictions with a dense CRF first, which is left out here.

    Args:
        maps: (B, K, H, W), ``ClassMaps.full``.
        foreground: threshold above which a class is sure.
        background: threshold below which the background is.
        ignore: the value of all other pixels.
    """
    sure, possible = predict(maps, foreground), predict(maps, background)
    return torch.where(sure > 0, sure, torch.where(possible > 0, ignore, 0))


class PairLabels(NamedTuple):
    """What labels say of pairs; each (B, D, h - r + 1, w - 2 r + 2), 1 or 0."""

    background: Tensor
    """Both are background."""
    foreground: Tensor
    """Both are of one class."""
    negative: Tensor
    """They differ."""


def pair_labels(labels: Tensor, radius: int = RADIUS, ignore: int = 255) -> PairLabels:
    """Compare the labels of each source with those of its neighbours.

    Args:
        labels: (B, h, w) int64; a pair with an end of ``ignore`` is in none of the
            three.
        radius: in cells; 10 in the training of the authors.
        ignore: the value of unlabelled cells.
    """
    source = shifted(labels, (0, 0), radius)[:, None]
    ends = [shifted(labels, path[0], radius) for path in paths(radius)]
    end = torch.stack(ends, dim=1)
    valid, same = (source != ignore) & (end != ignore), source == end
    return PairLabels(
        (valid & same & (source == 0)).float(),
        (valid & same & (source > 0)).float(),
        (valid & ~same).float(),
    )


def boundary_loss(
    edge_logits: Tensor, displacement: Tensor, pairs: PairLabels, radius: int = RADIUS
) -> dict[str, Tensor]:
    """Return IRNet's ``loss`` and its parts: affinities of pairs that belong together
    near 1, of others near 0; displacements that point to one centre per object.

    Between two cells of one object the displacement fields differ by the way from one
    to the other; between two of the background they do not differ.

    Args:
        edge_logits: (B, 1, h, w).
        displacement: (B, 2, h, w), rows and columns, in cells.
        pairs: from :func:`pair_labels`.
        radius: that of the pairs.
    """
    near = affinity(edge_logits.sigmoid()[:, 0], radius)
    joined, parted = -(near + 1e-5).log(), -(1 + 1e-5 - near).log()
    positive = _mean_over(joined, pairs.background) + _mean_over(
        joined, pairs.foreground
    )
    source = shifted(displacement, (0, 0), radius)[:, :, None]
    offsets = [path[0] for path in paths(radius)]
    ends = [shifted(displacement, offset, radius) for offset in offsets]
    difference = source - torch.stack(ends, dim=2)  # (B, 2, D, ...)
    way = difference.new_tensor(offsets).T[None, :, :, None, None]
    moved, still = (difference - way).abs().sum(dim=1), difference.abs().sum(dim=1)
    parts = {
        "positive": positive / 2,
        "negative": _mean_over(parted, pairs.negative),
        "foreground": _mean_over(moved, pairs.foreground, axes=2),
        "background": _mean_over(still, pairs.background, axes=2),
    }
    return {"loss": torch.stack(list(parts.values())).sum() / 2} | parts


def _mean_over(values: Tensor, where: Tensor, axes: int = 1) -> Tensor:
    return (values * where).sum() / (axes * where.sum() + 1e-5)


def image_edges(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return edges (B, h, w) in [0, 1] without learning any: the strongest change of
    colour in each cell, divided by the image's strongest.

    A stand-in for IRNet's edge branch, for scenes whose objects have clear outlines; it
    also sees the edges within an object, and of textures.

    Args:
        image: (B, 3, H, W) float in [0, 1].
        size: (h, w), that of the maps.
    """
    right = F.pad(image.diff(dim=-1), (0, 1)).square().sum(dim=1)
    down = F.pad(image.diff(dim=-2), (0, 0, 0, 1)).square().sum(dim=1)
    change = F.adaptive_max_pool2d(torch.maximum(right, down).sqrt(), size)
    highest = change.amax(dim=(1, 2), keepdim=True)
    return change / highest.clamp(min=torch.finfo(change.dtype).tiny)
