"""Segmentation by foreground maps: the threshold below which a pixel is background is
swept, so that no method is judged at another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor


class BestThreshold(NamedTuple):
    """The winner of a sweep."""

    threshold: float
    """Score that a pixel's highest map must exceed."""
    mean_iou: float
    """Its mean IoU in [0, 1], the background counted as a class."""


class ThresholdSweep:
    """Confusion of maps with masks at many background thresholds, added up over a data
    set.

    Label 0 is the background, label k + 1 the map k. A pixel has the label of its
    highest map if that is above the threshold, else it is background.

    >>> sweep = ThresholdSweep(classes=5, thresholds=(0.1, 0.2, 0.3))
    >>> sweep.update(maps, batch.mask)
    >>> sweep.best()

    Attributes:
        confusion: (T, K + 1, K + 1) int64, per threshold; rows are true labels and
            columns predicted ones.
    """

    def __init__(
        self, classes: int, thresholds: Sequence[float], ignore: int = 255
    ) -> None:
        """Prepare for maps of K classes.

        Raises:
            ValueError: there is no class or no threshold, or ``ignore`` is a label.
        """
        if classes < 1 or not len(thresholds) or 0 <= ignore <= classes:
            raise ValueError(
                f"classes={classes}, thresholds={list(thresholds)}, ignore={ignore}: "
                "expected at least one class and one threshold, and a value to ignore "
                "that is not a label"
            )
        self.classes, self.ignore = classes, ignore
        self.thresholds = tuple(float(value) for value in thresholds)
        labels = classes + 1
        self.confusion = torch.zeros(
            len(self.thresholds), labels, labels, dtype=torch.int64
        )

    def update(self, maps: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            maps: (B, K, H, W), scores of the classes.
            target: (B, H, W) integer labels 0 ... K, or ``ignore``.

        Raises:
            ValueError: the shapes do not belong together, or a value is not a label.
        """
        expected = (len(target), self.classes, *target.shape[1:])
        if tuple(maps.shape) != expected:
            raise ValueError(
                f"maps {tuple(maps.shape)} and target {tuple(target.shape)} do not "
                f"belong together: expected maps {expected}"
            )
        labels = self.classes + 1
        counted = target != self.ignore
        truth = target[counted].long()
        if len(truth) and not 0 <= int(truth.min()) <= int(truth.max()) < labels:
            raise ValueError(
                f"target has values from {int(truth.min())} to {int(truth.max())}: "
                f"expected labels 0 to {self.classes}, or {self.ignore} to ignore a "
                "pixel"
            )
        score, label = maps.max(dim=1)
        score, label = score[counted], label[counted] + 1
        for number, threshold in enumerate(self.thresholds):
            guess = torch.where(score > threshold, label, 0)
            pairs = torch.bincount(truth * labels + guess, minlength=labels**2)
            self.confusion[number] += rearrange(pairs.cpu(), "(t p) -> t p", t=labels)

    @property
    def union(self) -> Tensor:
        """Return the pixels (T, K + 1) that prediction or truth gives to each label."""
        hit = self.confusion.diagonal(dim1=1, dim2=2)
        return self.confusion.sum(dim=1) + self.confusion.sum(dim=2) - hit

    def iou(self) -> Tensor:
        """Return the IoU (T, K + 1) double of each label; nan where it occurs in
        neither prediction nor truth."""
        return self.confusion.diagonal(dim1=1, dim2=2).double() / self.union

    def mean_iou(self) -> Tensor:
        """Return the mean IoU (T,) double over the labels that occur."""
        return self.iou().nanmean(dim=1)

    def over(self) -> Tensor:
        """Return (T,) double: false positives as a share of a class's union, mean over
        the classes without the background; high where maps leak."""
        return self._share(self.confusion.sum(dim=1))

    def under(self) -> Tensor:
        """Return (T,) double: false negatives as a share of a class's union, mean over
        the classes without the background; high where maps are partial."""
        return self._share(self.confusion.sum(dim=2))

    def best(self) -> BestThreshold:
        """Return the threshold of the highest mean IoU, the first of equal ones.

        Raises:
            ValueError: nothing has been counted.
        """
        if not self.confusion.any():
            raise ValueError("nothing has been counted: call update first")
        mean = self.mean_iou()
        number = int(mean.argmax())
        return BestThreshold(self.thresholds[number], mean[number].item())

    def _share(self, pixels: Tensor) -> Tensor:
        missed = pixels - self.confusion.diagonal(dim1=1, dim2=2)
        return (missed.double() / self.union)[:, 1:].nanmean(dim=1)
