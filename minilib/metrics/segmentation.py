"""Intersection over union: of an open list of classes, and of the binary episodes of
few-shot benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from torch import Tensor


class SegmentationScore:
    """Intersections and unions per class, added up over a data set before any division.

    IoU of a class is the number of pixels on which prediction and truth agree on it,
    over the number on which either names it; pixels whose truth is ``ignore`` count in
    neither. Keeps a confusion matrix on the CPU.

    >>> score = SegmentationScore(classes=11)
    >>> score.update(logits.argmax(dim=1), batch.mask)
    >>> score.mean_iou(), score.pixel_accuracy()

    Attributes:
        confusion: (K, K) int64, rows are true classes and columns predicted ones.
    """

    def __init__(self, classes: int, ignore: int = 255) -> None:
        if classes < 1:
            raise ValueError(
                f"classes={classes}: expected the number of classes, 1 or more"
            )
        if 0 <= ignore < classes:
            raise ValueError(
                f"ignore={ignore} is one of the {classes} classes: choose a value "
                "outside them"
            )
        self.classes, self.ignore = classes, ignore
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: (B, H, W) integer class of each pixel; what it says of ignored
                pixels is not read.
            target: (B, H, W) integer class of each pixel, or ``ignore``.

        Raises:
            ValueError: the shapes differ, or a value is not a class.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target "
                f"{tuple(target.shape)} differ in shape: resize the logits to the "
                "mask before argmax"
            )
        target = target.to(prediction.device)
        counted = target != self.ignore
        truth, guess = target[counted].long(), prediction[counted].long()
        _check_classes(
            "target", truth, self.classes, f", or {self.ignore} to ignore a pixel"
        )
        _check_classes("prediction", guess, self.classes)
        pairs = torch.bincount(truth * self.classes + guess, minlength=self.classes**2)
        self.confusion += rearrange(pairs.cpu(), "(t p) -> t p", t=self.classes)

    @property
    def intersection(self) -> Tensor:
        """Return the pixels (K,) int64 on which prediction and truth
        agree on each class."""
        return self.confusion.diagonal()

    @property
    def union(self) -> Tensor:
        """Return the pixels (K,) int64 that prediction or truth gives to each class."""
        return self.confusion.sum(dim=0) + self.confusion.sum(dim=1) - self.intersection

    @property
    def occurring(self) -> list[int]:
        """Return the classes that occur in the truth, ascending."""
        return self.confusion.sum(dim=1).nonzero()[:, 0].tolist()

    def iou(self) -> Tensor:
        """Return the IoU (K,) float of each class; nan where a class
        occurs in neither."""
        return self.intersection.double().div(self.union).float()

    def mean_iou(
        self, of: Iterable[int] | None = None, absent: float | None = None
    ) -> float:
        """Return the mean IoU over classes.

        Args:
            of: the classes to average, such as the unseen ones; all of them by default.
            absent: IoU given to classes that occur in neither prediction nor truth. By
                default they are left out; ADE20K's evaluation counts them as 0.

        Returns:
            The mean in [0, 1]; nan if there is nothing to average.
        """
        iou = self.iou() if of is None else self.iou()[list(of)]
        return (
            iou.nanmean() if absent is None else iou.nan_to_num(nan=absent).mean()
        ).item()

    def pixel_accuracy(self) -> float:
        """Return the share of the counted pixels that are right; nan before
        any was counted."""
        return (self.intersection.sum().double() / self.confusion.sum()).item()


class EpisodeScore:
    """The few-shot protocol: each episode asks for one class, known to be in the image
    (LSeg section 5.1).

    A prediction says for each pixel whether it is the class (1) or something else (0).
    Counts are added up per class over the episodes.

    Attributes:
        intersection: (2, K) float64 pixel counts, row 0 the rest and row 1 the class.
        union: (2, K) likewise.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        """Prepare for the test classes, such as the five of a fold of PASCAL-5i.

        Raises:
            ValueError: there is no class, or one is named twice.
        """
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(
                f"classes={list(classes)}: expected at least one class, each once"
            )
        self.classes = tuple(classes)
        self.intersection = torch.zeros(2, len(classes), dtype=torch.float64)
        self.union = torch.zeros(2, len(classes), dtype=torch.float64)

    def update(
        self, prediction: Tensor, target: Tensor, class_id: Tensor, ignore: int = 255
    ) -> None:
        """Count a batch of episodes.

        Args:
            prediction: (B, H, W) bool or 0 / 1.
            target: (B, H, W) 0 / 1, or ``ignore``, which counts in nothing (only
                PASCAL-5i has such pixels).
            class_id: (B,) the class that each episode asks for.

        Raises:
            ValueError: a value is not allowed, or a class is not one of ``classes``.
        """
        places = []
        for wanted in class_id.tolist():
            if wanted not in self.classes:
                raise ValueError(
                    f"episode of class {wanted}, which is not in {self.classes}"
                )
            places.append(self.classes.index(wanted))
        intersection, union = episode_areas(prediction, target, ignore)
        where = torch.tensor(places, dtype=torch.int64)
        self.intersection.index_add_(1, where, intersection.cpu().double())
        self.union.index_add_(1, where, union.cpu().double())

    def iou(self) -> Tensor:
        """Return the IoU (K,) of each class; 0 for a class that had no episode, as the
        benchmarks count."""
        return (self.intersection[1] / self.union[1].clamp(min=1)).float()

    def mean_iou(self) -> float:
        """Return the mean IoU over the classes, in [0, 1]; published tables
        give it in percent."""
        return self.iou().mean().item()

    def fb_iou(self) -> float:
        """Return FB-IoU: the mean of foreground and background IoU, classes
        pooled, in [0, 1]."""
        return (self.intersection.sum(dim=1) / self.union.sum(dim=1)).mean().item()


def episode_areas(
    prediction: Tensor, target: Tensor, ignore: int = 255
) -> tuple[Tensor, Tensor]:
    """Count the pixels of binary episodes.

    Args:
        prediction: (B, H, W) bool or 0 / 1.
        target: (B, H, W) 0 / 1, or ``ignore``.

    Returns:
        Intersection and union, (2, B) int64 each; row 0 the rest, row 1 the class.

    Raises:
        ValueError: the shapes differ, or a value is neither 0, 1 nor, in the
            target, ``ignore``.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} "
            "differ in shape"
        )
    target = target.to(prediction.device)
    counted = target != ignore
    _check_classes(
        "target", target[counted].long(), 2, f", or {ignore} to ignore a pixel"
    )
    _check_classes("prediction", prediction[counted].long(), 2)
    guess = torch.stack([prediction == 0, prediction == 1]) & counted
    truth = torch.stack([target == 0, target == 1])
    return (guess & truth).sum(dim=(2, 3)), (guess | truth).sum(dim=(2, 3))


def _check_classes(what: str, values: Tensor, classes: int, also: str = "") -> None:
    """Raise ValueError unless all values are in [0, classes)."""
    if (
        len(values)
        and not 0 <= (low := int(values.min())) <= (high := int(values.max())) < classes
    ):
        wrong = low if low < 0 else high
        raise ValueError(
            f"{what} has the value {wrong}: expected classes 0 to {classes - 1}{also}"
        )
