"""The one visual style, and the pictures that every chapter draws.

The helpers build figures without pyplot: they return the Figure or the Axes, show nothing and leave no
global state. Show a figure with :func:`minilib.display.figure`, which also takes its alt text.
"""

from minilib.plotting.annotations import draw_annotations
from minilib.plotting.charts import bars, curve_with_band, paper_vs_ours
from minilib.plotting.images import image_array, image_grid, similarity_matrix
from minilib.plotting.style import PALETTE, RC, WIDTH, new_axes, style

__all__ = [
    "PALETTE",
    "RC",
    "WIDTH",
    "bars",
    "curve_with_band",
    "draw_annotations",
    "image_array",
    "image_grid",
    "new_axes",
    "paper_vs_ours",
    "similarity_matrix",
    "style",
]
