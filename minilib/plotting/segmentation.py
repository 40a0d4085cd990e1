"""Label maps: a segmenter's word for each pixel, in one colour per word
across pictures."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from torch import Tensor

from minilib.plotting.images import image_array

REST = "#d9d9d4"
"""Colour of "other", "others" and "background": pixels that no word fits."""


def word_colours(words: Sequence[str]) -> list[str]:
    """Return a colour per word; the first twenty differ, and "other" is grey."""
    # tab20 is ten pairs of a strong and a pale colour: the strong ones first.
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    palette = [mpl.colors.to_hex(mpl.colormaps["tab20"](i)) for i in order]
    rest = ("other", "others", "background")
    return [REST if word in rest else palette[i % 20] for i, word in enumerate(words)]


def label_map(
    ax: Axes,
    labels: Tensor,
    words: Sequence[str],
    image: Tensor | None = None,
    columns: int = 2,
    least: float = 0.01,
    colours: Sequence[str] | None = None,
) -> Axes:
    """Draw a map of labels, with a legend below of the words that cover at least
    ``least`` of it.

    Args:
        ax: where to draw.
        labels: (H, W) index of each pixel's word in ``words``, or 255 for none (white).
        words: in the order of the labels.
        image: (3, H, W) in [0, 1], to show through.
        columns: of the legend.
        least: smallest fraction of the pixels for a word to be in the legend.
        colours: one per word, to keep them between lists of words; default: those of
            ``word_colours``.
    """
    places, hexes = labels.cpu().numpy(), list(colours or word_colours(words))
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in hexes])
    picture = np.ones((*places.shape, 3))
    known = places != 255
    picture[known] = rgb[places[known]]
    if image is not None:
        picture = 0.72 * picture + 0.28 * image_array(image.cpu())
    ax.imshow(picture.clip(0, 1))
    ax.set_axis_off()
    found = [i for i in range(len(words)) if (places == i).mean() >= least]
    handles = [Patch(facecolor=hexes[i], label=words[i]) for i in found]
    if handles:
        ax.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=columns,
            fontsize=7, handlelength=0.9, columnspacing=0.8, handletextpad=0.4,
            borderpad=0.1,
        )  # fmt: skip
    return ax
