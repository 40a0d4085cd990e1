"""Rows of pictures: axes without ticks, a map over its image, and tables of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minilib.plotting.images import image_array
from minilib.plotting.style import WIDTH, styled


@styled
def panels(
    columns: int,
    rows: int = 1,
    height: float | None = None,
    layout: Literal["constrained", "compressed"] = "constrained",
    ticks: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure as wide as the text with ``rows`` x ``columns`` axes, row by row.

    Args:
        columns: axes in a row.
        rows: number of rows.
        height: inches in all; by default square axes with room for a title of one line.
        layout: of matplotlib, "constrained" or "compressed" (no gaps between pictures).
        ticks: keep the axes' ticks and frames, as charts need them; pictures do not.
    """
    height = rows * (WIDTH / columns + 0.25) if height is None else height
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in () if ticks else axes:
        bare(ax)
    return figure, axes


def bare(ax: Axes) -> Axes:
    """Take ticks, grid and frame off axes that show a picture; titles and
    axis labels stay."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def show_image(ax: Axes, image: Tensor, title: str = "") -> Axes:
    """Draw an image (3, H, W) in [0, 1] on any device under a small title."""
    ax.imshow(image_array(image.cpu()))
    ax.set_title(title, fontsize=8.5, fontweight="normal", pad=3)
    return bare(ax)


def overlay(
    ax: Axes,
    image: Tensor,
    values: Tensor,
    title: str = "",
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw a map (h, w) in colour over its image (3, H, W) in grey.

    Args:
        ax: where to draw.
        image: values in [0, 1].
        values: of any size; stretched over the image.
        title: above it.
        limits: values of the ends of the colour scale; by default the map's own.
    """
    grey = image_array(image.cpu()).mean(-1)
    ax.imshow(grey, cmap="gray", vmin=-0.6, vmax=1.6)
    low, high = limits or (values.min().item(), values.max().item())
    height, width = grey.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(
        values.detach().cpu().numpy(),
        cmap="viridis",
        alpha=0.72,
        vmin=low,
        vmax=high,
        extent=extent,
    )
    ax.set_title(title, fontsize=8.5, fontweight="normal", pad=3)
    return bare(ax)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str | float]],
    form: str = "{:.2f}",
    empty: str = "No record of this profile yet.",
) -> Markdown:
    """Return a table for a notebook.

    Args:
        head: names of the columns.
        rows: cells, text as it is and numbers in ``form``.
        form: how numbers are written.
        empty: what to say where there are no rows.
    """
    if not rows:
        return Markdown(empty)
    shown = [
        [cell if isinstance(cell, str) else form.format(cell) for cell in row]
        for row in rows
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *shown)]
    return Markdown("\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]))


def over_seeds(numbers: Sequence[float | None], form: str = "{:.2f}") -> str:
    """Return the mean and, of several numbers, their range: "3.17 (2.90 to 3.40)";
    None is left out."""
    known = [number for number in numbers if number is not None]
    if not known:
        return "–"
    text = form.format(sum(known) / len(known))
    if len(known) == 1:
        return text
    return f"{text} ({form.format(min(known))} to {form.format(max(known))})"


def columns_over_seeds(
    runs: Sequence[Mapping[str, Mapping[str, float]]],
    keys: Sequence[str],
    form: str = "{:.2f}",
) -> list[list[str]]:
    """Return table rows from results of several seeds,
    ``{row name: {key: number}}`` each.

    A row is the name, then :func:`over_seeds` of every key; without runs
    there are no rows.
    """
    names = list(runs[0]) if runs else []
    return [
        [name, *(over_seeds([run[name][key] for run in runs], form) for key in keys)]
        for name in names
    ]
