"""Curves and bars over seeds, and our numbers beside the paper's."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from minilib.claims import t_interval
from minilib.plotting.style import (
    BLUE,
    DASHES,
    INK,
    MARKERS,
    PALETTE,
    VERMILION,
    new_axes,
    styled,
    to_array,
)


@styled
def curve_with_band(
    x: Sequence[float] | Tensor,
    ys: Sequence[Sequence[float]] | Tensor,
    label: str,
    ax: Axes | None = None,
    marker: bool = True,
) -> Axes:
    """Draw the mean curve over seeds with its Student-t 95 % band and each
    seed as a thin line.

    Args:
        x: (N,) positions.
        ys: (seeds, N) or (N,) values; one seed has no band.
        label: name in the legend.
        ax: where to draw; by default new axes. Successive calls on one Axes differ in
            colour, dash and marker.
        marker: draw a marker at each point.

    Raises:
        ValueError: lengths that differ or values that are not finite.
    """
    positions, values = to_array(x, "x"), np.atleast_2d(to_array(ys, "ys"))
    if positions.ndim != 1 or values.ndim != 2 or values.shape[1] != len(positions):
        raise ValueError(
            f"ys of shape {values.shape}: expected (seeds, {positions.size}) to go "
            "with x"
        )
    ax = new_axes() if ax is None else ax
    index = sum(line.get_gid() == "mean" for line in ax.lines) % len(PALETTE)
    if len(values) > 1:
        for row in values:
            ax.plot(
                positions,
                row,
                color=PALETTE[index],
                linestyle="-",
                linewidth=0.6,
                alpha=0.5,
            )
        low, high = zip(*(t_interval(column) for column in values.T), strict=True)
        ax.fill_between(
            positions, low, high, color=PALETTE[index], alpha=0.18, linewidth=0
        )
    ax.plot(
        positions,
        values.mean(axis=0),
        label=label,
        gid="mean",
        marker=MARKERS[index] if marker else None,
        color=PALETTE[index],
        linestyle=DASHES[index],
    )
    ax.legend()
    return ax


@styled
def bars(
    values: Mapping[str, Sequence[float]],
    ylabel: str,
    ax: Axes | None = None,
    reference: tuple[float, str] | None = None,
) -> Axes:
    """Draw a bar per name at the mean, its Student-t 95 % interval, and a
    dot for each seed.

    Args:
        values: per name the values over seeds; one value has no interval.
        ylabel: what is measured, with its unit.
        ax: where to draw; by default new axes.
        reference: a level and its name, drawn as a dashed line (chance, for example).

    Raises:
        ValueError: no names, or a name without values.
    """
    rows = {
        name: np.atleast_1d(to_array(value, name)) for name, value in values.items()
    }
    if not rows or any(row.ndim != 1 or row.size == 0 for row in rows.values()):
        raise ValueError(
            f"values of {list(rows)}: expected at least one name with at least one "
            "number each"
        )
    ax = new_axes() if ax is None else ax
    for position, (row, colour) in enumerate(
        zip(rows.values(), cycle(PALETTE[:4]), strict=False)
    ):
        ax.bar(
            position, row.mean(), width=0.65, color=colour, alpha=0.55, edgecolor=colour
        )
        if row.size > 1:
            low, high = t_interval(row)
            ax.plot(
                [position, position],
                [low, high],
                color=INK,
                linestyle="-",
                linewidth=1.6,
                solid_capstyle="butt",
            )
        spread = np.linspace(-0.12, 0.12, row.size) if row.size > 1 else [0.0]
        ax.plot(
            position + np.asarray(spread),
            row,
            "o",
            color="white",
            markeredgecolor=INK,
            markersize=4.5,
        )
    ax.set_xticks(range(len(rows)), [textwrap.fill(name, 16) for name in rows])
    ax.grid(axis="x", visible=False)
    ax.set_ylabel(ylabel)
    if reference is not None:
        level, name = reference
        ax.axhline(level, color=INK, linestyle="--", linewidth=1)
        ax.annotate(
            name,
            (1.0, level),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
        )
    return ax


@styled
def paper_vs_ours(
    rows: Mapping[str, tuple[float | None, Sequence[float]]],
    xlabel: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw, row by row, the paper's number (open diamond) and ours (dot with its 95 %
    interval over seeds).

    Args:
        rows: per name the paper's number (None if it gives none) and ours over seeds
            (may be empty: not run).
        xlabel: what is measured, with its unit.
        ax: where to draw; by default new axes.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows is empty: expected at least one comparison")
    ax = new_axes(height=0.9 + 0.38 * len(rows)) if ax is None else ax
    paper: dict[str, Any] = {
        "marker": "D",
        "markerfacecolor": "none",
        "markeredgecolor": VERMILION,
        "markeredgewidth": 1.6,
        "zorder": 4,
    }
    ours: dict[str, Any] = {"marker": "o", "color": BLUE}
    for position, (name, (number, seeds)) in enumerate(rows.items()):
        values = to_array(seeds, name)
        if number is not None:
            ax.plot([number], [position], linestyle="none", **paper)
        if values.size > 1:
            ax.plot(
                t_interval(values),
                [position, position],
                color=BLUE,
                linestyle="-",
                linewidth=2,
            )
        if values.size:
            ax.plot([values.mean()], [position], linestyle="none", **ours)
        else:
            ax.annotate(
                "not run",
                (0.99, position),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
            )
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    ax.plot([], [], linestyle="none", label="the paper", **paper)
    ax.plot([], [], linestyle="none", label="ours", **ours)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return ax
