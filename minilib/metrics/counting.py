"""Errors of predicted counts, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_BINS = (0, 5, 10, 20, 40, 80, 200, 1000)
"""Lower edges of the bins of the true count."""


@dataclass(frozen=True)
class CountBin:
    """The errors of the images whose true count lies in [low, high]."""

    low: int
    high: int | None
    """None = no upper end."""
    images: int
    mae: float
    rmse: float
    bias: float
    """Mean of predicted - true: negative where the model counts too few."""
    share: float
    """Share of the sum of all squared errors, in [0, 1]."""


@dataclass(frozen=True)
class CountErrors:
    """What a set of counts got wrong; all but ``share_of_largest`` in
    objects per image."""

    images: int
    mae: float
    """Mean |predicted - true|."""
    rmse: float
    """Square root of the mean squared error; the papers print it as
    RMSE (some as MSE)."""
    median: float
    """Median |predicted - true|, which a few huge images cannot move."""
    bias: float
    """Mean of predicted - true."""
    by_count: tuple[CountBin, ...]
    """The same, split by the true count; empty bins are left out."""
    largest: int
    """How many images ``share_of_largest`` speaks of."""
    share_of_largest: float
    """Share of the sum of squared errors that the ``largest`` images of highest
    true count cause."""

    def as_dict(self) -> dict[str, float]:
        """Return the single numbers, for a record."""
        names = ("mae", "rmse", "median", "bias", "share_of_largest")
        return {name: getattr(self, name) for name in names}


def count_errors(
    predicted: Tensor | Sequence[float],
    true: Tensor | Sequence[float],
    bins: Sequence[int] = DEFAULT_BINS,
    largest: int | None = None,
) -> CountErrors:
    """Compare predicted with true counts, image by image, without rounding or clamping.

    Args:
        predicted: (N,) counts, any real numbers.
        true: (N,) counts, whole numbers from 0.
        bins: rising lower edges of the bins of the true count, the first one 0; the
            last bin is open.
        largest: how many images of highest true count to hold responsible in
            ``share_of_largest``; by default 1 % of them but at least 5 (or all, where
            there are fewer).

    Raises:
        ValueError: no images, other shapes, counts that are not finite, negative true
            counts, bad bins.
    """
    predicted, true = _counts("predicted", predicted), _counts("true", true)
    if len(predicted) != len(true) or not len(true):
        raise ValueError(
            f"{len(predicted)} predicted and {len(true)} true counts: expected the "
            "same number, at least one"
        )
    if true.min() < 0:
        raise ValueError(f"a true count of {true.min():g}: expected 0 or more")
    edges = list(bins)
    if (
        not edges
        or edges[0] != 0
        or any(b <= a for a, b in zip(edges, edges[1:], strict=False))
    ):
        raise ValueError(
            f"bins={tuple(bins)}: expected rising lower edges that start at 0"
        )
    images = len(true)
    largest = max(5, math.ceil(images / 100)) if largest is None else largest
    if largest < 1:
        raise ValueError(f"largest={largest}: expected 1 or more images")
    largest = min(largest, images)

    error = predicted - true
    squared = error.square()
    total = squared.sum().item()
    table = []
    for low, after in zip(edges, [*edges[1:], None], strict=True):
        inside = (true >= low) & (true < (math.inf if after is None else after))
        if inside.any():
            e = error[inside]
            table.append(
                CountBin(
                    low=low,
                    high=None if after is None else after - 1,
                    images=len(e),
                    mae=e.abs().mean().item(),
                    rmse=e.square().mean().sqrt().item(),
                    bias=e.mean().item(),
                    share=_share(e.square().sum().item(), total),
                )
            )
    top = true.argsort(descending=True, stable=True)[:largest]
    return CountErrors(
        images=images,
        mae=error.abs().mean().item(),
        rmse=squared.mean().sqrt().item(),
        median=error.abs().quantile(0.5).item(),
        bias=error.mean().item(),
        by_count=tuple(table),
        largest=largest,
        share_of_largest=_share(squared[top].sum().item(), total),
    )


def error_difference(first: Tensor, second: Tensor, truth: Tensor) -> Tensor:
    """Return |first - truth| - |second - truth| of every question, (N,).

    Negative where ``first`` is nearer. For an interval over questions: both counters
    answered the same ones, so that what makes a question hard cancels.

    Args:
        first: (N,) answers of one counter.
        second: (N,) answers of another.
        truth: (N,) true counts.

    Raises:
        ValueError: the shapes differ.
    """
    if not first.shape == second.shape == truth.shape:
        raise ValueError(
            f"answers {tuple(first.shape)} and {tuple(second.shape)} to questions "
            f"{tuple(truth.shape)}: expected one each for the same questions"
        )
    return (first - truth).abs() - (second - truth).abs()


def paired(first: Tensor, second: Tensor, truth: Tensor) -> dict[str, float]:
    """Compare two counters' answers (N,) to the same questions; errors as above.

    Returns:
        "difference", the mean of :func:`error_difference`, and "wins", the share of
        questions on which ``first`` is nearer, ties counting one half.
    """
    gap = error_difference(first, second, truth)
    wins = (gap < 0).double() + 0.5 * (gap == 0).double()
    return {"difference": gap.mean().item(), "wins": wins.mean().item()}


def follows(
    predicted: Tensor | Sequence[float], true: Tensor | Sequence[float], about: Tensor
) -> float:
    """Return the share of the true differences between questions about one image that
    the answers follow.

    With a and t the answers and true counts less their means over the questions about
    the same image, this is 1 - sum (a - t)^2 / sum t^2: 1 where answers differ as the
    truth does, 0 where a counter gives every question about an image the same answer
    (it is deaf), and below 0 where one such answer would be nearer. Neither a counter
    that always says too much nor noise is rewarded.

    Args:
        predicted: (N,) answers.
        true: (N,) true counts.
        about: (N,) int64, the image of each question.

    Raises:
        ValueError: the shapes differ, a number is not finite, or no image has two
            questions with different answers.
    """
    predicted, true = _counts("predicted", predicted), _counts("true", true)
    about = about.cpu()
    if not predicted.shape == true.shape == about.shape:
        raise ValueError(
            f"{len(predicted)} predicted and {len(true)} true counts about "
            f"{len(about)} images: expected the same number of each"
        )
    a, t = (_within(values, about) for values in (predicted, true))
    should = t.square().sum()
    if should == 0:
        raise ValueError(
            "no two questions about one image have different answers: nothing to follow"
        )
    return (1 - (a - t).square().sum() / should).item()


def _within(values: Tensor, about: Tensor) -> Tensor:
    """Return (N,) values less the mean of those about the same image."""
    image = about.unique(return_inverse=True)[1]
    number = torch.zeros(int(image.max()) + 1, dtype=values.dtype)
    total = number.index_add(0, image, values)
    number = number.index_add(0, image, torch.ones_like(values))
    return values - (total / number)[image]


def _counts(name: str, values: Tensor | Sequence[float]) -> Tensor:
    """Return (N,) float64 on the host, or say what is wrong with it."""
    tensor = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if tensor.ndim != 1:
        raise ValueError(
            f"{name} counts of shape {tuple(tensor.shape)}: expected one number an "
            "image, (N,)"
        )
    if not tensor.isfinite().all():
        bad = int((~tensor.isfinite()).nonzero()[0])
        raise ValueError(
            f"{name} count {bad} is {tensor[bad]:g}: expected finite numbers"
        )
    return tensor


def _share(part: float, whole: float) -> float:
    """Return part / whole; nothing is responsible for an error of 0."""
    return part / whole if whole > 0 else 0.0
