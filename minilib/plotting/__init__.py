"""The one visual style, and the pictures that every chapter draws.

The helpers build figures without pyplot: they return the Figure or the Axes, show
nothing and leave no global state. Show a figure with :func:`minilib.display.figure`,
which also takes its alt text.
"""

from minilib.plotting.annotations import draw_annotations
from minilib.plotting.charts import bars, curve_with_band, paper_vs_ours
from minilib.plotting.images import image_array, image_grid, similarity_matrix
from minilib.plotting.panels import (
    bare,
    columns_over_seeds,
    over_seeds,
    overlay,
    panels,
    show_image,
    table,
)
from minilib.plotting.style import PALETTE, RC, WIDTH, new_axes, style

__all__ = [
    "PALETTE",
    "RC",
    "WIDTH",
    "bare",
    "bars",
    "columns_over_seeds",
    "curve_with_band",
    "draw_annotations",
    "image_array",
    "image_grid",
    "new_axes",
    "over_seeds",
    "overlay",
    "panels",
    "paper_vs_ours",
    "show_image",
    "similarity_matrix",
    "style",
    "table",
]
