"""What the segmentation chapters share: spaces of labels, and one evaluation of masks.

Shapes: B images of H x W pixels, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from minilib.metrics.segmentation import SegmentationScore
from minilib.scenes import BACKGROUNDS, class_names

IGNORED = 255
"""The mask value that is neither trained nor scored."""

T = TypeVar("T")


def evenly_spaced(sequence: Sequence[T], n: int) -> tuple[T, ...]:
    """Return ``n`` members of a sequence, the first one and then evenly spaced.

    Raises:
        ValueError: n is not between 1 and the length of the sequence.
    """
    if not 1 <= n <= len(sequence):
        raise ValueError(
            f"n={n}: expected 1 to {len(sequence)}, the length of the sequence"
        )
    return tuple(sequence[i * len(sequence) // n] for i in range(n))


@dataclass(frozen=True)
class LabelSpace:
    """K labels in the order in which masks count them, and which of them have masks."""

    names: tuple[str, ...]
    """K names."""
    seen: tuple[int, ...]
    """The labels whose masks are trained on."""
    unseen: tuple[int, ...] = ()
    """The labels that have no mask in training."""
    other: int | None = None
    """The label of whatever has no name of its own, such as "other" or "background".

    It is neither seen nor unseen, and is always among the labels asked for.
    """

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: a label is out of range, or is named twice.
        """
        every = (*self.seen, *self.unseen, *self.always)
        if len(set(every)) < len(every) or not set(every) <= set(
            range(len(self.names))
        ):
            raise ValueError(
                f"seen={self.seen}, unseen={self.unseen}, other={self.other}: "
                f"expected each of 0 to {len(self.names) - 1} at most once"
            )

    @property
    def always(self) -> tuple[int, ...]:
        """The labels that are always asked for: ``(other,)`` or ``()``."""
        return () if self.other is None else (self.other,)

    def counted(self, kind: str) -> tuple[int, ...]:
        """Return the labels of ``kind``, "seen" or "unseen", over which
        IoU is averaged.

        Raises:
            ValueError: another kind.
        """
        if kind not in ("seen", "unseen"):
            raise ValueError(f"kind={kind!r}: expected 'seen' or 'unseen'")
        return self.seen if kind == "seen" else self.unseen

    def asked(self, kind: str) -> tuple[int, ...]:
        """Return :meth:`counted` and the label ``other``: what images
        are labelled with."""
        return self.counted(kind) + self.always

    def with_seen(self, n: int) -> LabelSpace:
        """Return the same space with only ``n`` of the seen labels, evenly spaced.

        Raises:
            ValueError: there are fewer.
        """
        return replace(self, seen=evenly_spaced(self.seen, n))

    def from_scene(self, mask: Tensor) -> Tensor:
        """Renumber a scene's mask by these labels; see :func:`scene_labels`."""
        named = {
            name: label for label, name in enumerate(self.names) if label != self.other
        }
        return scene_labels(named, self.other).to(mask.device)[mask]


def scene_labels(labels: Mapping[str, int], other: int | None = None) -> Tensor:
    """Return the table (256,) int64 from a scene's mask values to labels.

    Args:
        labels: label of each object or background that has one, by its name in
            ``minilib.scenes.class_names``; several may share a label.
        other: label of the backgrounds without one; None = ``IGNORED``.
            Objects without a label are ``IGNORED`` in any case.

    Raises:
        ValueError: a name that is neither an object's nor a background's.
    """
    every = class_names()
    if unknown := sorted(set(labels) - set(every)):
        raise ValueError(
            f"{unknown[0]!r} is not a name of an object or a background of EmojiScenes"
        )
    table = torch.full((256,), IGNORED)
    if other is not None:
        table[len(every) - len(BACKGROUNDS) : len(every)] = other
    for value, name in enumerate(every):
        table[value] = labels.get(name, table[value])
    return table


def renumber(mask: Tensor, labels: Sequence[int]) -> Tensor:
    """Return the mask with each value replaced by its place in ``labels``, 255
    where it has none."""
    table = torch.full((256,), IGNORED, device=mask.device)
    table[list(labels)] = torch.arange(len(labels), device=mask.device)
    return table[mask]


@torch.no_grad()
def score_masks(
    predict: Callable[[slice], Mapping[str, Tensor]],
    mask: Tensor,
    classes: int,
    batch_size: int = 40,
) -> dict[str, SegmentationScore]:
    """Score one or several label maps of the same images.

    Args:
        predict: given which images, returns label maps (b, H, W) of values 0 ...
            classes - 1 by name; a method that makes several of them in one pass
            returns them together.
        mask: (B, H, W) int64 truth, ``IGNORED`` where nothing is scored.
        classes: number of labels K.
        batch_size: images of one call of ``predict``.

    Returns:
        The score of each map, by name.
    """
    scores: dict[str, SegmentationScore] = {}
    for start in range(0, len(mask), batch_size):
        rows = slice(start, start + batch_size)
        for name, found in predict(rows).items():
            scores.setdefault(name, SegmentationScore(classes, IGNORED)).update(
                found, mask[rows]
            )
    return scores
