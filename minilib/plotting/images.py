"""Images in rows, and images beside the captions they are compared with."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from minilib.plotting.style import VERMILION, WIDTH, styled, to_array


@styled
def image_grid(
    images: Tensor | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    columns: int = 6,
    width: float = WIDTH,
) -> Figure:
    """Return a figure of images in rows, each under its title (wrapped to
    the image's width).

    Args:
        images: (B, 3, H, W) or a list of (3, H, W), values in [0, 1].
        titles: one per image.
        columns: images in a row.
        width: inches.

    Raises:
        ValueError: no image, an image of the wrong shape or range, or not one
            title per image.
    """
    arrays = [image_array(image) for image in images]
    if not arrays or columns < 1:
        raise ValueError(
            f"{len(arrays)} images in {columns} columns: expected at least one of each"
        )
    _check_length("titles", titles, arrays)
    columns = min(columns, len(arrays))
    rows = -(-len(arrays) // columns)
    side = width / columns
    wrapped = [
        textwrap.fill(title, max(8, int(side * 14)))
        for title in titles or [""] * len(arrays)
    ]
    lines = max(text.count("\n") + 1 if text else 0 for text in wrapped)
    ratio = max(array.shape[0] / array.shape[1] for array in arrays)
    figure = Figure(figsize=(width, rows * (side * ratio + 0.16 * lines + 0.08)))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, array, title in zip(axes, arrays, wrapped, strict=False):
        ax.imshow(array)
        ax.set_title(title, fontsize=8.5, fontweight="normal", pad=3)
    return figure


@styled
def similarity_matrix(
    matrix: Tensor,
    captions: Sequence[str],
    images: Tensor | Sequence[Tensor] | None = None,
    title: str = "",
) -> Figure:
    """Return a heat map of image-caption similarities: a column per image, a
    row per caption.

    The caption that scores highest for an image is framed. Small matrices have their
    values written in.

    Args:
        matrix: (N, M) similarities of N images with M captions, as in
            ``logits_per_image``.
        captions: M texts.
        images: N images (3, H, W) in [0, 1], drawn above their columns.
        title: of the figure.

    Raises:
        ValueError: shapes that do not match.
    """
    values = to_array(matrix, "matrix")
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"matrix has shape {values.shape}: expected (images, captions)"
        )
    _check_length("captions", captions, values.T)
    _check_length("images", images, values)
    n, m = values.shape
    rows = [textwrap.shorten(caption, 44, placeholder=" …") for caption in captions]
    # beside the captions and the colour bar
    room = WIDTH - 1.0 - 0.075 * max(len(row) for row in rows)
    cell, top = min(0.62, room / n), 0 if images is None else 1
    figure = Figure(figsize=(WIDTH, cell * (m + top) + (0.3 if title else 0.0) + 0.3))
    ax = figure.add_subplot()
    shown = ax.imshow(values.T)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_xticks([])
    ax.set_yticks(range(m), rows)
    ax.tick_params(length=0)
    for column, row in enumerate(values.argmax(axis=1)):
        corner = (column - 0.47, row - 0.47)
        frame = Rectangle(
            corner, 0.94, 0.94, fill=False, edgecolor=VERMILION, linewidth=2
        )
        ax.add_patch(frame)
    if max(n, m) <= 10:
        middle = (values.min() + values.max()) / 2
        for (column, row), value in np.ndenumerate(values):
            ink = "white" if value < middle else "black"
            ax.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                color=ink,
                fontsize=8,
            )
    for column, image in enumerate(() if images is None else images):
        ax.imshow(
            image_array(image), extent=(column - 0.46, column + 0.46, -0.56, -1.48)
        )
    ax.set(xlim=(-0.5, n - 0.5), ylim=(m - 0.5, -0.5 - top))
    figure.colorbar(shown, ax=ax, shrink=0.7, label="similarity")
    if title:
        figure.suptitle(title, fontsize=10.5, fontweight="bold")
    return figure


def image_array(image: Tensor) -> np.ndarray:
    """Return an image (3, H, W) in [0, 1] as an array (H, W, 3).

    Raises:
        ValueError: another shape, or values that are not finite or are out of range
            (normalised pixels, for example).
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image of shape {tuple(image.shape)}: expected (3, H, W)")
    array = to_array(image, "image")
    low, high = array.min(), array.max()
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"image values from {low:.3g} to {high:.3g}: expected [0, 1]; show pixels "
            "from before preprocess"
        )
    return rearrange(array.clip(0, 1), "c h w -> h w c")


def _check_length(
    name: str, given: Sequence | Tensor | None, expected: Sequence | np.ndarray
) -> None:
    if given is not None and len(given) != len(expected):
        raise ValueError(
            f"{len(given)} {name} were given for {len(expected)}: expected one each"
        )
