"""The one type that passes from data to models."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Annotation = TypeVar("Annotation")


class Phrase(NamedTuple):
    """A noun phrase of a caption: ``caption[start:end]`` names the objects ``objects``
    of class ``concept``."""

    start: int
    end: int
    concept: int
    objects: tuple[int, ...]


class ConceptName(NamedTuple):
    """One object's name at three levels, from fine to coarse."""

    phrase: str
    category: str
    parent: str


@dataclass
class Batch:
    """A batch of images with whatever annotation a task needs; the rest is None.

    B images of height H and width W, K classes, n objects in one image. All tensors
    live on one device.
    """

    image: Tensor
    """(B, 3, H, W) float in [0, 1]."""
    caption: list[str] | None = None
    label: Tensor | None = None
    """(B,) int64 class of the single object."""
    present: Tensor | None = None
    """(B, K) bool, which classes occur."""
    mask: Tensor | None = None
    """(B, H, W) int64 class of each pixel, 255 = ignore unless the data set
    states another value."""
    boxes: list[Tensor] | None = None
    """Per image (n, 4) float, x1 y1 x2 y2 in pixels."""
    classes: list[Tensor] | None = None
    """Per image (n,) int64 class of each box."""
    phrases: list[list[Phrase]] | None = None
    """Per image the caption's noun phrases with their character spans."""
    points: list[Tensor] | None = None
    """Per image (n, 2) float object centres, x y in pixels."""
    density: Tensor | None = None
    """(B, 1, H, W) float that sums to the number of counted objects in the image."""
    concepts: list[list[ConceptName]] | None = None
    """Per image one three-level name per object."""

    def __len__(self) -> int:
        """Return the number of images."""
        return self.image.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on ``device``."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device)
            elif isinstance(value, list) and value and isinstance(value[0], Tensor):
                moved[field.name] = [tensor.to(device) for tensor in value]
        return replace(self, **moved)


def required(annotation: Annotation | None, name: str) -> Annotation:
    """Return an annotation that the caller cannot do without.

    Args:
        annotation: a field of a batch, such as ``batch.mask``.
        name: the field's name, for the message.

    Raises:
        ValueError: the batch does not have it.
    """
    if annotation is None:
        raise ValueError(
            f"the batch has no {name}: make it with a task, or from a data set, that "
            "has"
        )
    return annotation
