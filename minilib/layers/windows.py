"""Reading an image of any shape through square windows, and putting the windows'
maps together again.

Shapes: H x W an image, S the side of a window, K windows. Windows lie along
the longer side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minilib.layers.pixels import unit_images


def window_starts(width: int, window: int, stride: int) -> list[int]:
    """Return the left edges of windows that cover ``width``: multiples of ``stride``,
    the last one moved to the end.

    Raises:
        ValueError: the width is smaller than the window (the authors' loop then makes
            no window and counts 0).
    """
    if not 0 < stride <= window:
        raise ValueError(
            f"stride={stride}: expected 1 ... {window}, the window, or columns would "
            "be left out"
        )
    if width < window:
        raise ValueError(
            f"a width of {width} holds no window of {window}: resize or pad the image "
            "first"
        )
    starts = list(range(0, width - window + 1, stride))
    return starts if starts[-1] == width - window else [*starts, width - window]


def window_weights(
    starts: Sequence[int], window: int, width: int, merge: str = "recursive"
) -> Tensor:
    """Return how much each window counts in each column, (K, width); every
    column sums to one.

    Args:
        starts: left edges from left to right.
        window: side S of a window.
        width: columns of the image.
        merge: ``recursive`` as the authors merge: a new window is averaged with what is
            already there, so that of three windows over a column the last counts one
            half and the first two a quarter each; ``uniform``: all alike.

    Raises:
        ValueError: another ``merge``, or a column that no window covers.
    """
    weights = torch.zeros(len(starts), width)
    for k, start in enumerate(starts):
        columns = slice(start, start + window)
        if merge == "recursive":
            weights[:k, columns] /= 2
            weights[k, columns] = torch.where(
                weights[:k, columns].sum(dim=0) > 0, 0.5, 1.0
            )
        elif merge == "uniform":
            weights[k, columns] = 1.0
        else:
            raise ValueError(f"merge={merge!r}: expected 'recursive' or 'uniform'")
    total = weights.sum(dim=0)
    if (total == 0).any():
        raise ValueError(
            f"column {int((total == 0).nonzero()[0])} is in no window of {window} at "
            f"{list(starts)}"
        )
    return weights / total


def merge_windows(
    maps: Tensor, starts: Sequence[int], width: int, merge: str = "recursive"
) -> Tensor:
    """Merge the windows' maps (K, ..., S) along their last axis to (..., width)."""
    weights = window_weights(starts, maps.shape[-1], width, merge).to(maps)
    merged = maps.new_zeros(*maps.shape[1:-1], width)
    for piece, weight, start in zip(maps, weights, starts, strict=True):
        columns = slice(start, start + maps.shape[-1])
        merged[..., columns] += piece * weight[columns]
    return merged


def fit_to_windows(
    image: Tensor, window: int, multiple: int = 16
) -> tuple[Tensor, tuple[int, int]]:
    """Resize an image (3, H, W), uint8 or float in [0, 1], for :func:`over_windows`.

    The shorter side becomes ``window`` (bilinear, antialiased), the longer one a
    multiple of ``multiple`` rounded down, at least ``window``. An image that already
    fits keeps its pixels.

    Returns:
        the image (3, H', W'), float in [0, 1], and (H', W').

    Raises:
        ValueError: not an image, see :func:`minilib.layers.pixels.check_images`.
    """
    image = unit_images(image, axes=3)
    height, width = image.shape[-2:]
    longer = max(height, width) * window / min(height, width)
    longer = max(window, int(longer) // multiple * multiple)
    size = (window, longer) if width >= height else (longer, window)
    if size != (height, width):
        image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[
            0
        ].clamp(0, 1)
    return image, size


def over_windows(
    predict: Callable[[Tensor], Tensor],
    image: Tensor,
    window: int,
    stride: int,
    merge: str = "recursive",
    at_once: int = 8,
) -> Tensor:
    """Predict a map of an image (3, H, W), one side of which is ``window``,
    window by window.

    Args:
        predict: square crops (K, 3, S, S) to maps (K, S, S).
        image: as :func:`fit_to_windows` makes it.
        window: side S.
        stride: pixels from one window to the next.
        merge: see :func:`window_weights`.
        at_once: windows predicted together; memory grows with it, the result
            does not change.

    Returns:
        (H, W). Cost grows linearly with the longer side: about (longer side - S) /
        stride + 1 predictions.
    """
    turned = image.shape[-2] > image.shape[-1]
    # Only the cutting is turned, never what the model sees: each crop goes in upright.
    along = -2 if turned else -1
    if image.shape[-1 if turned else -2] != window:
        raise ValueError(
            f"an image of {tuple(image.shape[-2:])}: its shorter side should be the "
            f"window, {window}"
        )
    starts = window_starts(image.shape[along], window, stride)
    crops = torch.stack([image.narrow(along, start, window) for start in starts])
    maps = torch.cat([predict(chunk) for chunk in crops.split(at_once)])
    if maps.shape != (len(starts), window, window):
        raise ValueError(
            f"predict made maps {tuple(maps.shape)}: expected "
            f"{(len(starts), window, window)}"
        )
    if turned:
        maps = rearrange(maps, "k h w -> k w h")
    merged = merge_windows(maps, starts, image.shape[along], merge)
    return merged.T if turned else merged
