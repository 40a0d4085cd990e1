"""A batch's annotations drawn on its images, one drawing per task."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from torch import Tensor

from minilib.batch import Batch, required
from minilib.plotting.images import image_array
from minilib.plotting.style import PALETTE, YELLOW, styled


@styled
def draw_annotations(
    ax: Axes, batch: Batch, i: int, task: str, names: Sequence[str] = ()
) -> Axes:
    """Draw image ``i`` of a batch with the annotation of one task on it.

    Args:
        ax: where to draw.
        batch: needs the fields of the task.
        i: index in the batch.
        task: pairs, classify, segment, detect, count, multilabel or hierarchy.
        names: class names by index, for the tasks that have classes.

    Raises:
        ValueError: unknown task, index out of range, a field that the task draws is
            missing, or a class without a name.
    """
    if task not in _DRAW:
        raise ValueError(
            f"task={task!r} is unknown: expected one of {', '.join(_DRAW)}"
        )
    if not -len(batch) <= i < len(batch):
        raise ValueError(f"i={i}: the batch has {len(batch)} images")
    draw = _DRAW[task]
    ax.imshow(image_array(batch.image[i]))
    ax.set_axis_off()
    title = draw(ax, batch, i, names)
    inches = ax.bbox.width / ax.figure.dpi
    ax.set_title(
        textwrap.fill(title, max(10, int(16 * inches))),
        fontsize=8.5,
        fontweight="normal",
        pad=3,
    )
    return ax


def _draw_pairs(ax: Axes, batch: Batch, i: int, names: Sequence[str]) -> str:
    return required(batch.caption, "caption")[i]


def _draw_classify(ax: Axes, batch: Batch, i: int, names: Sequence[str]) -> str:
    return _name(names, required(batch.label, "label")[i])


def _draw_segment(ax: Axes, batch: Batch, i: int, names: Sequence[str]) -> str:
    mask = required(batch.mask, "mask")[i].cpu().numpy()
    overlay = np.zeros((*mask.shape, 4))
    for index, colour in zip(
        np.unique(mask[mask != 255]), cycle(PALETTE[:6]), strict=False
    ):
        here = mask == index
        overlay[here] = (*to_rgb(colour), 0.55)
        ys, xs = np.nonzero(here)
        # The class's pixel that is nearest to their mean, so that the name
        # is on the class.
        nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
        _label(
            ax, xs[nearest], ys[nearest], _name(names, index), ha="center", va="center"
        )
    overlay[mask == 255] = (1, 1, 1, 0.8)
    ax.imshow(overlay)
    return ""


def _draw_detect(ax: Axes, batch: Batch, i: int, names: Sequence[str]) -> str:
    boxes, classes = (
        required(batch.boxes, "boxes")[i],
        required(batch.classes, "classes")[i],
    )
    _draw_boxes(ax, boxes, [_name(names, index) for index in classes])
    return ""


def _draw_hierarchy(ax: Axes, batch: Batch, i: int, names: Sequence[str]) -> str:
    boxes, concepts = (
        required(batch.boxes, "boxes")[i],
        required(batch.concepts, "concepts")[i],
    )
    _draw_boxes(ax, boxes, [concept.phrase for concept in concepts])
    return "; ".join(dict.fromkeys(" < ".join(concept) for concept in concepts))


def _draw_count(ax: Axes, batch: Batch, i: int, names: Sequence[str]) -> str:
    points = required(batch.points, "points")[i].cpu().numpy().reshape(-1, 2)
    if batch.density is not None:
        density = batch.density[i, 0].cpu().numpy()
        height, width = batch.image.shape[2:]
        overlay = np.empty((*density.shape, 4))
        overlay[..., :3] = to_rgb(YELLOW)
        # See-through where there is nothing; the root lets the kernels' flanks be seen.
        overlay[..., 3] = 0.8 * np.sqrt(density.clip(0) / max(density.max(), 1e-12))
        edges = (-0.5, width - 0.5, height - 0.5, -0.5)
        ax.imshow(overlay, extent=edges)
    # Points have (0, 0) at the corner of the image; imshow has it at the centre of
    # the first pixel.
    ax.plot(
        points[:, 0] - 0.5,
        points[:, 1] - 0.5,
        "P",
        color="white",
        markeredgecolor="black",
        markersize=6,
    )
    return f"{len(points)} points"


def _draw_multilabel(ax: Axes, batch: Batch, i: int, names: Sequence[str]) -> str:
    present = required(batch.present, "present")[i]
    return ", ".join(_name(names, index) for index in present.nonzero().flatten())


_DRAW = {
    "pairs": _draw_pairs,
    "classify": _draw_classify,
    "segment": _draw_segment,
    "detect": _draw_detect,
    "count": _draw_count,
    "multilabel": _draw_multilabel,
    "hierarchy": _draw_hierarchy,
}


def _draw_boxes(ax: Axes, boxes: Tensor, labels: Sequence[str]) -> None:
    for (x1, y1, x2, y2), label, colour in zip(
        boxes.tolist(), labels, cycle(PALETTE[:6]), strict=False
    ):
        corner = (x1 - 0.5, y1 - 0.5)
        # A white rim separates the box from any background.
        for width, edge in ((3.2, "white"), (1.6, colour)):
            ax.add_patch(
                Rectangle(
                    corner,
                    x2 - x1,
                    y2 - y1,
                    fill=False,
                    edgecolor=edge,
                    linewidth=width,
                )
            )
        _label(ax, *corner, label, ha="left", va="bottom")


def _label(ax: Axes, x: float, y: float, text: str, ha: str, va: str) -> None:
    box = {
        "boxstyle": "round,pad=0.15",
        "facecolor": "white",
        "edgecolor": "none",
        "alpha": 0.85,
    }
    ax.text(
        x, y, text, fontsize=7.5, color="black", ha=ha, va=va, bbox=box, clip_on=True
    )


def _name(names: Sequence[str], index: Tensor | int) -> str:
    index = int(index)
    if not 0 <= index < len(names):
        raise ValueError(f"class {index} has no name: {len(names)} names were given")
    return names[index]
