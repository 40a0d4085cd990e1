"""Density maps drawn over their pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from minilib.plotting.images import image_array
from minilib.plotting.style import VERMILION, WIDTH


def draw_density(
    ax: Axes,
    image: Tensor,
    density: Tensor,
    points: Tensor | None = None,
    peak: float | None = None,
    title: str = "",
) -> Axes:
    """Draw a density (H, W) in colour over its picture (3, H', W') in pale grey.

    Args:
        ax: where to draw.
        image: values in [0, 1].
        density: objects per pixel; negative values are not drawn.
        points: (n, 2) true centres, x y in pixels of the picture, drawn
            as small crosses.
        peak: density that is drawn opaque; default: the map's maximum. Equal peaks make
            maps comparable.
        title: above the picture.
    """
    grey = image_array(image).mean(axis=-1, keepdims=True)
    ax.imshow(np.repeat(0.45 + 0.5 * grey, 3, axis=-1), vmin=0, vmax=1)
    values = density.detach().cpu().numpy().clip(0)
    peak = peak or float(values.max()) or 1.0
    overlay = np.empty((*values.shape, 4))
    overlay[..., :3] = to_rgb(VERMILION)
    overlay[..., 3] = np.sqrt(values / peak).clip(0, 1)
    height, width = image.shape[-2:]
    ax.imshow(overlay, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    if points is not None and len(points):
        x, y = (points.cpu() - 0.5).unbind(1)
        ax.plot(
            x,
            y,
            "+",
            color="black",
            markersize=4,
            markeredgewidth=0.8,
            linestyle="none",
        )
    ax.set_axis_off()
    ax.set_title(title, fontsize=8.5, fontweight="normal", pad=3)
    return ax


def density_row(
    image: Tensor,
    densities: Sequence[Tensor],
    titles: Sequence[str],
    points: Sequence[Tensor] | None = None,
    fig: Figure | None = None,
) -> Figure:
    """Draw a picture and, beside it, each density over it under its title, all on
    one colour scale."""
    columns = 1 + len(densities)
    lines = 1 + max(title.count("\n") for title in titles)
    fig = fig or Figure(figsize=(WIDTH, WIDTH / columns + 0.08 + 0.17 * lines))
    axes = fig.subplots(1, columns)
    axes[0].imshow(image_array(image))
    axes[0].set_axis_off()
    peak = max(float(d.max()) for d in densities) or 1.0
    for i, (ax, density, title) in enumerate(
        zip(axes[1:], densities, titles, strict=True)
    ):
        draw_density(
            ax, image, density, points[i] if points is not None else None, peak, title
        )
    return fig
