"""ADE20K's words, and its evaluation by scales, windows and mirrors (Tables 4 to 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

ADE20K_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def objectinfo_words(lines: Sequence[str], damaged: bool = False) -> list[str]:
    """Return ADE20K's label words from the lines of ``objectInfo150.txt``.

    A line reads ``Idx,Ratio,Train,Val,Stuff,Name`` after a header; its names are
    separated by semicolons, into which the file also turned the spaces of longer names:
    "chest;of;drawers;chest;bureau".

    Args:
        lines: the file's lines, header included.
        damaged: cut at the first semicolon, as the authors' code does ("chest";
            "screen" twice): what the published numbers were measured with. Otherwise
            semicolons become spaces again.
    """
    words = []
    for line in lines[1:]:
        if line.strip():
            name = line.strip().split(",", 5)[-1]
            words.append(name.split(";")[0] if damaged else name.replace(";", " "))
    return words


def multi_scale_scores(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    base_size: int = 520,
    crop_size: int = 480,
    scales: Sequence[float] = ADE20K_SCALES,
    flip: bool = True,
    pad_value: float = -1.0,
) -> Tensor:
    """Return scores summed over scales, without any softmax: (B, N, H, W); their argmax
    is the prediction.

    At each scale the long side becomes ``base_size * scale`` (rounded up). What fits
    into one crop is padded to it; larger images are covered by windows that overlap by
    a third, and where windows overlap the scores are averaged. Each window's scores are
    added to those of its mirror image. Checked by parity with the authors' code, not
    run here.

    Args:
        network: pixels (B, 3, crop_size, crop_size) to scores
            (B, N, crop_size, crop_size).
        image: (B, 3, H, W), normalised.
        base_size: long side at scale 1, in pixels.
        crop_size: side of the network's input, in pixels.
        scales: multipliers of ``base_size``.
        flip: add the mirror image's scores.
        pad_value: what black is after normalisation.
    """

    def scores_of(crop: Tensor) -> Tensor:
        rows, columns = crop.shape[-2:]
        crop = F.pad(
            crop, (0, crop_size - columns, 0, crop_size - rows), value=pad_value
        )
        scores = network(crop)
        if flip:
            scores = scores + network(crop.flip(-1)).flip(-1)
        return scores[..., :rows, :columns]

    height, width = image.shape[-2:]
    total = image.new_zeros(())
    for scale in scales:
        resized = _resize_long_side(image, math.ceil(base_size * scale))
        if max(resized.shape[-2:]) <= crop_size:
            scores = scores_of(resized)
        else:
            scores = _slide(scores_of, resized, crop_size, pad_value)
        total = total + _resize(scores, (height, width))
    return total


def _resize_long_side(image: Tensor, long_side: int) -> Tensor:
    """Resize so that the longer side is ``long_side`` and the other one in
    proportion, rounded."""
    height, width = image.shape[-2:]
    if height > width:
        return _resize(image, (long_side, int(width * long_side / height + 0.5)))
    return _resize(image, (int(height * long_side / width + 0.5), long_side))


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image, size, mode="bilinear", align_corners=True)


def _slide(
    scores_of: Callable[[Tensor], Tensor], image: Tensor, crop: int, pad_value: float
) -> Tensor:
    """Average the scores of windows of ``crop`` pixels, two thirds of it apart; the
    last ones may be cut."""
    rows, columns = image.shape[-2:]
    image = F.pad(
        image, (0, max(0, crop - columns), 0, max(0, crop - rows)), value=pad_value
    )
    height, width = image.shape[-2:]
    step = int(crop * 2 / 3)
    total: Tensor | None = None
    visits = image.new_zeros(1, 1, height, width)
    for top in range(0, step * math.ceil((height - crop) / step) + 1, step):
        for left in range(0, step * math.ceil((width - crop) / step) + 1, step):
            window = (..., slice(top, top + crop), slice(left, left + crop))
            scores = scores_of(image[window])
            if total is None:
                total = scores.new_zeros(*scores.shape[:2], height, width)
            total[window] += scores
            visits[window] += 1
    assert total is not None  # there is at least one window
    return (total / visits)[..., :rows, :columns]
