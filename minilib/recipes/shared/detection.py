"""What the detection chapters share: scenes with boxes, their
augmentation, their scores.

Boxes are (n, 4), x1 y1 x2 y2 in pixels; B images of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from minilib.batch import Batch, required
from minilib.metrics.detection import average_precision
from minilib.scenes import EmojiScenes, find

SCENE_ANCHORS = ((14,), (22,), (34,), (50,))
"""Sides of the anchors in pixels, for maps of stride 4, 8, 16 and 16.

Half of the objects of a scene of 64 pixels are 12 to 22 pixels large, too small for
RetinaNet's own pyramid, which begins at stride 8.
"""


def local_classes(classes: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    """Number classes by a list of names instead of by the vocabulary.

    Args:
        classes: per image (n,) int64 indices into the vocabulary of EmojiScenes.
        names: K class names.

    Returns:
        Per image (n,) int64 positions in ``names``.

    Raises:
        ValueError: an object's class is not among the names.
        KeyError: a name that the vocabulary does not have.
    """
    place = {find(name).index: position for position, name in enumerate(names)}
    local = []
    for image, known in enumerate(classes):
        if missing := set(known.tolist()) - place.keys():
            raise ValueError(
                f"image {image} shows class {min(missing)} of the vocabulary, which "
                f"is not among the {len(names)} names given: name every class that "
                "scenes show"
            )
        positions = [place[index] for index in known.tolist()]
        local.append(torch.tensor(positions, dtype=torch.int64, device=known.device))
    return local


def boxed_scenes(
    source: EmojiScenes, n: int, split: str, seed: int, start: int = 0
) -> Batch:
    """Return scenes ``start`` ... ``start + n - 1`` with boxes.

    ``classes`` are positions in the scenes' own list, ``source.config.classes``.

    Raises:
        ValueError: the scenes show the whole vocabulary instead of listed classes.
    """
    if source.config.classes is None:
        raise ValueError(
            "scenes of the whole vocabulary: pass SceneConfig(classes=...) to number "
            "them"
        )
    batch = source.batch("detect", n, split, seed, start)
    shown = required(batch.classes, "classes")
    return replace(batch, classes=local_classes(shown, source.config.classes))


def cropped(
    batch: Batch,
    corner: Tensor,
    size: tuple[int, int],
    mirror: Tensor,
    least_visible: float = 0.3,
    fill: float = 0.5,
) -> Batch:
    """Cut a window out of every image and mirror some; boxes follow.

    A corner below 0 or beyond the image shifts it: what lies outside is ``fill``, not a
    reflection, which would show objects that have no box.

    Args:
        batch: with ``boxes`` and ``classes``.
        corner: (B, 2) int64, row and column of the window's upper left corner.
        size: (h, w) of the window in pixels.
        mirror: (B,) bool, which windows are mirrored left to right afterwards.
        least_visible: a box stays if more than 0 and at least this share of its area is
            in the window; it is clipped to it.
        fill: brightness outside the image.

    Returns:
        image (B, 3, h, w), boxes and classes. Other annotation, which a crop can make
        untrue, is left out.

    Raises:
        ValueError: no boxes or classes, or not one corner and one bool per image.
    """
    if batch.boxes is None or batch.classes is None:
        raise ValueError("the batch has no boxes and classes: draw it for detection")
    if corner.shape != (len(batch), 2) or mirror.shape != (len(batch),):
        raise ValueError(
            f"corner {tuple(corner.shape)} and mirror {tuple(mirror.shape)} of "
            f"{len(batch)} images: expected ({len(batch)}, 2) and ({len(batch)},)"
        )
    device, width = batch.image.device, size[1]
    corner, mirror = corner.to(device), mirror.to(device)
    image = _window(batch.image, corner, size, fill)
    image = torch.where(rearrange(mirror, "b -> b 1 1 1"), image.flip(-1), image)
    boxes, classes = [], []
    for row, (whole, known) in enumerate(zip(batch.boxes, batch.classes, strict=True)):
        top, left = corner[row].tolist()
        moved = whole - whole.new_tensor([left, top, left, top])
        kept, shown = clip_boxes(moved, size, least_visible)
        if mirror[row]:
            x1, y1, x2, y2 = kept.unbind(dim=1)
            kept = torch.stack([width - x2, y1, width - x1, y2], dim=1)
        boxes.append(kept)
        classes.append(known[shown])
    return Batch(image=image, boxes=boxes, classes=classes)


def clip_boxes(
    boxes: Tensor, size: tuple[int, int], least_visible: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Clip boxes (n, 4) to an image and drop those of which too little is left.

    Args:
        boxes: in pixels, also partly or wholly outside.
        size: (h, w) of the image.
        least_visible: least share of a box's area that must be inside. What has no area
            inside is dropped at any share.

    Returns:
        The clipped boxes (m, 4), and which of the n they were, (n,) bool.
    """
    height, width = size
    limit = boxes.new_tensor([width, height, width, height])
    inside = boxes.clamp(min=0).minimum(limit)
    area, visible = (
        (b[:, 2] - b[:, 0]).clamp(min=0) * (b[:, 3] - b[:, 1]).clamp(min=0)
        for b in (boxes, inside)
    )
    shown = (visible > 0) & (visible >= least_visible * area)
    return inside[shown], shown


@torch.no_grad()
def score_boxes(
    detect: Callable[[Tensor], Sequence[dict[str, Tensor]]],
    test: Batch,
    batch_size: int = 40,
) -> dict[str, float]:
    """Return ``ap`` and ``ap50`` of a detector; see ``metrics.detection``.

    Args:
        detect: a model, in evaluation mode afterwards, or a function: images
            (B, 3, H, W) -> per image ``boxes`` (m, 4), ``scores`` (m,) and ``labels``
            (m,).
        test: images with ``boxes`` and ``classes``.
        batch_size: images of one pass.
    """
    if isinstance(detect, nn.Module):
        detect.eval()
    chunks = test.image.split(batch_size)
    found = [detections for image in chunks for detections in detect(image)]
    boxes, classes = required(test.boxes, "boxes"), required(test.classes, "classes")
    return average_precision(found, boxes, classes)


def _window(
    image: Tensor, corner: Tensor, size: tuple[int, int], fill: float
) -> Tensor:
    """Return the windows (B, C, h, w) at ``corner`` (B, 2); outside
    the image ``fill``."""
    channels, height, width = image.shape[1:]
    rows = corner[:, :1] + torch.arange(size[0], device=image.device)  # (B, h)
    columns = corner[:, 1:] + torch.arange(size[1], device=image.device)  # (B, w)
    there = ((rows >= 0) & (rows < height))[:, None, :, None]
    there = there & ((columns >= 0) & (columns < width))[:, None, None, :]
    rows = rows.clamp(0, height - 1)[:, None, :, None]
    columns = columns.clamp(0, width - 1)[:, None, None, :]
    taken = image.gather(2, rows.expand(-1, channels, -1, width))
    taken = taken.gather(3, columns.expand(-1, channels, size[0], -1))
    return taken.where(there, taken.new_tensor(fill))
