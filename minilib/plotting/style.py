"""Colours, fonts and sizes: one style for print, light pages and dark pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType  # since matplotlib 3.11

WIDTH = 7.0
"""Width of a figure in inches: the text width of the book."""

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, YELLOW, BLACK = "#56B4E9", "#E69F00", "#F0E442", "#000000"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, BLACK, YELLOW)
"""Okabe and Ito's eight colours, told apart with any common colour blindness; yellow
last, as it is faint."""

INK, PANEL, GRID = "#1a1a1a", "#f6f6f3", "#d5d5d0"
MARKERS = "osD^vPX*"
DASHES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
    (0, (8, 2)),
)

RC: dict[RcKeyType, Any] = {
    # A light panel of its own keeps dark ink legible on a dark page.
    "figure.facecolor": PANEL,
    "axes.facecolor": PANEL,
    "savefig.facecolor": PANEL,
    "figure.figsize": (WIDTH, 3.6),
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "figure.constrained_layout.use": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    # Lines differ in dash as well as in colour.
    "axes.prop_cycle": cycler(color=PALETTE) + cycler(linestyle=DASHES),
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "svg.fonttype": "none",
    "svg.hashsalt": "minilib",
}
"""The style as matplotlib settings."""

styled = mpl.rc_context(RC)


def style() -> None:
    """Set the style for figures that a notebook draws with matplotlib itself."""
    mpl.rcParams.update(RC)


@styled
def new_axes(width: float = WIDTH, height: float = 3.6) -> Axes:
    """Return empty axes in the style on a new figure of ``width`` by
    ``height`` inches."""
    return Figure(figsize=(width, height)).add_subplot()


def to_array(values: object, name: str) -> np.ndarray:
    """Return numbers or a tensor on any device as a float array; ValueError if
    any is not finite."""
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float32)
    array = np.asarray(values, dtype=float)
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds values that are not finite: look at what computed it"
        )
    return array
