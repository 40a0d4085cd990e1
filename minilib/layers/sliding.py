"""Predicting a map of an image window by window, in both directions.

mmsegmentation's ``slide`` test, which several segmenters are published with.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from minilib.layers.windows import window_starts


def slide(
    predict: Callable[[Tensor], Tensor],
    pixels: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
) -> Tensor:
    """Return the mean over windows of what ``predict`` says of each place.

    Args:
        predict: crops (B, 3, h, w) to maps (B, K, h, w).
        pixels: (B, 3, H, W).
        window: (rows, columns) of a crop; of a side that is shorter than that, the
            whole is taken.
        stride: rows and columns from one window to the next; the last ones are moved
            inwards, so that they end with the image.

    Returns:
        (B, K, H, W).

    Raises:
        ValueError: a stride that leaves pixels out.
    """
    height, width = pixels.shape[-2:]
    total: Tensor | None = None
    visits = pixels.new_zeros(height, width)
    for top in _starts(height, window[0], stride[0]):
        for left in _starts(width, window[1], stride[1]):
            place = slice(top, top + window[0]), slice(left, left + window[1])
            maps = predict(pixels[..., *place])
            if total is None:
                total = maps.new_zeros(*maps.shape[:2], height, width)
            total[..., *place] += maps
            visits[place] += 1
    assert total is not None  # there is at least one window
    return total / visits


def _starts(length: int, window: int, stride: int) -> list[int]:
    return window_starts(length, window, stride) if length > window else [0]
