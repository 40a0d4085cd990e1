"""Label maps: a segmenter's word for each pixel, in one colour per word
across pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from minilib.plotting.images import image_array
from minilib.plotting.panels import panels
from minilib.plotting.style import WIDTH, styled

REST = "#d9d9d4"
"""Colour of "other", "others" and "background": pixels that no word fits."""


def word_colours(words: Sequence[str]) -> list[str]:
    """Return a colour per word; the first 28 differ, and "other" is grey."""
    # tab20 is ten pairs of a strong and a pale colour: the strong ones first.
    pairs, dark = mpl.colormaps["tab20"], mpl.colormaps["Dark2"]
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    palette = [
        mpl.colors.to_hex(colour)
        for colour in (*(pairs(i) for i in order), *(dark(i) for i in range(8)))
    ]
    rest = ("other", "others", "background")
    return [
        REST if word in rest else palette[i % len(palette)]
        for i, word in enumerate(words)
    ]


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
    picture = _coloured(places, hexes)
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


@styled
def label_pictures(
    rows: Sequence[Mapping[str, np.ndarray]],
    words: Sequence[str],
    titles: Sequence[str] | None = None,
    columns: int = 6,
    least: float = 0.008,
) -> Figure:
    """Return a figure with a row per image: the image and its label maps, and one
    legend below of the words that cover at least ``least`` of some map.

    Args:
        rows: per image the arrays of :func:`minilib.claims.pictures.unpacked`: "image"
            (H, W, 3) uint8, and label maps (H, W), each value the index of a word in
            ``words``, or 255 for none (white). All rows have the same names and sizes.
        words: in the order of the labels.
        titles: one per column; by default the names in the first row.
        columns: of the legend.
        least: smallest fraction of a map's pixels for a word to be in the legend.

    Raises:
        ValueError: no row, rows of different names, or not one title per column.
    """
    names = list(rows[0]) if rows else []
    if not names or any(list(row) != names for row in rows):
        raise ValueError(
            f"{len(rows)} rows with {sorted({name for row in rows for name in row})}: "
            "expected at least one row, and the same names in each"
        )
    titles = names if titles is None else titles
    if len(titles) != len(names):
        raise ValueError(
            f"{len(titles)} titles were given for {len(names)} columns "
            f"({', '.join(names)}): expected one each"
        )
    hexes = word_colours(words)
    maps = [row[name] for row in rows for name in names if name != "image"]
    found = [
        i
        for i in range(len(words))
        if any((places == i).mean() >= least for places in maps)
    ]
    height, width = rows[0][names[0]].shape[:2]
    side = WIDTH / len(names) * height / width
    lines = max(title.count("\n") + 1 for title in titles)
    figure, axes = panels(
        len(names),
        len(rows),
        height=len(rows) * side + 0.16 * lines + 0.17 * -(-len(found) // columns) + 0.1,
        layout="compressed",
    )
    pictures = [(name, row[name]) for row in rows for name in names]
    for ax, (name, pixels) in zip(axes, pictures, strict=True):
        ax.imshow(pixels if name == "image" else _coloured(pixels, hexes))
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, fontsize=8.5, fontweight="normal", pad=3)
    if found:
        figure.legend(
            handles=[Patch(facecolor=hexes[i], label=words[i]) for i in found],
            loc="outside lower center", ncols=columns, fontsize=7.5, handlelength=0.9,
            columnspacing=1.0, handletextpad=0.4, borderpad=0.1,
        )  # fmt: skip
    return figure


def _coloured(places: np.ndarray, hexes: Sequence[str]) -> np.ndarray:
    """Return the picture (H, W, 3) of a label map (H, W); 255 is white."""
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in hexes])
    picture = np.ones((*places.shape, 3))
    known = places != 255
    picture[known] = rgb[places[known]]
    return picture
