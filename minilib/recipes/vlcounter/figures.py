"""Chapter 10's own drawings; each takes what an experiment returned and returns a
figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minilib import plotting
from minilib.batch import Batch, required
from minilib.metrics.counting import CountErrors
from minilib.recipes.vlcounter.recipe import VARIANTS
from minilib.training import History

__all__ = [
    "count_losses",
    "counts_in_titles",
    "error_sources",
    "inside_the_gate",
    "micrographs",
    "over_seeds",
    "question_maps",
    "rank_bands",
    "variant_maps",
]


def question_maps(
    asked: Batch,
    maps: Tensor,
    titles: Sequence[str],
    crosses: bool = True,
    limits: tuple[float, float] | None = None,
    height: float = 2.2,
) -> Figure:
    """Draw an image, and over it the map of each question about it.

    Args:
        asked: B questions about one image.
        maps: (B, h, w).
        titles: one per question.
        crosses: mark the true objects.
        limits: values of the ends of the colour scale; default: each map's own.
        height: of the figure, in inches.
    """
    fig, (first, *axes) = plotting.panels(1 + len(titles), height=height)
    plotting.show_image(first, asked.image[0])
    rows = zip(axes, maps, titles, required(asked.points, "points"), strict=True)
    for ax, values, title, points in rows:
        plotting.overlay(ax, asked.image[0], values, title, limits)
        if crosses:
            _cross(ax, points, color="white", markersize=5)
    return fig


def _cross(
    ax: Axes, points: Tensor, color: str, markersize: float, edge: str | None = None
) -> None:
    """Mark points (n, 2), x y in pixels, of an image that is drawn in ``ax``."""
    x, y = (points.cpu() - 0.5).T.tolist()
    ax.plot(
        x, y, "+", color=color, markersize=markersize, markeredgecolor=edge or color,
        linestyle="none",
    )  # fmt: skip


def counts_in_titles(asked: Batch, densities: Tensor) -> list[str]:
    """Return a title per question: the name, the answer, which is the sum of its
    density (B, H, W), and the truth."""
    rows = zip(
        required(asked.caption, "caption"),
        densities,
        required(asked.points, "points"),
        strict=True,
    )
    return [
        f"{name}:\n{density.sum().item():.1f}, true {len(points)}"
        for name, density, points in rows
    ]


def rank_bands(asked: Batch, sampled: Tensor, pooled: Tensor) -> Figure:
    """Draw an image with its objects, its density, and the bands of the rank-aware loss
    by the target sampled and by the largest density of each patch.

    Args:
        asked: one question.
        sampled: (h, w), the target in [0, 1] as the code samples it.
        pooled: (h, w), its largest value in each patch.
    """
    fig, axes = plotting.panels(4, height=2.3)
    (points,) = required(asked.points, "points")
    (name,) = required(asked.caption, "caption")
    plotting.show_image(axes[0], asked.image[0], name)
    _cross(axes[0], points, color="white", markersize=5, edge="black")
    density = required(asked.density, "density")[0, 0].cpu()
    axes[1].imshow(density.numpy(), cmap="viridis")
    borders = torch.tensor([0.4, 0.6, 0.8])
    for ax, level in zip(axes[2:], (sampled.cpu(), pooled.cpu()), strict=True):
        bands = torch.bucketize(level, borders) + (level >= 1)
        ax.imshow(bands.numpy(), cmap="viridis", vmin=0, vmax=4)
    titles = ("target", "bands: sampled", "bands: largest")
    for ax, title in zip(axes[1:], titles, strict=True):
        ax.set_title(title, fontsize=8.5, fontweight="normal", pad=3)
    return fig


def count_losses(histories: Mapping[str, History]) -> Axes:
    """Draw the counting loss of each training, as a share of what an empty map costs on
    the same questions."""
    ax = plotting.new_axes(height=2.6)
    for name, history in histories.items():
        steps, loss = history.column("count")
        share = torch.tensor(loss) / torch.tensor(history.column("empty")[1])
        plotting.curve_with_band(steps, [share.tolist()], name, ax=ax, marker=False)
    ax.axhline(1.0, color="0.4", linestyle=":", label="an empty map")
    ax.set(xlabel="step", ylabel="count loss (empty map = 1)")
    ax.legend()
    return ax


def error_sources(truth: Tensor, answer: Tensor, errors: CountErrors) -> Figure:
    """Draw M5's answers (N,) against the true counts (N,), and its errors by true
    count."""
    fig, (left, right) = plotting.panels(2, height=2.7, ticks=True)
    noise = torch.randn(len(truth), generator=torch.Generator().manual_seed(0))
    apart = (truth + 0.3 * noise).tolist()
    left.plot(apart, answer.tolist(), "o", markersize=2.5, alpha=0.5, linestyle="none")
    most = truth.max().item()
    left.plot([0, most], [0, most], color="0.3", linestyle=":")
    left.set(xlabel="true count", ylabel="M5's answer")
    bins = errors.by_count
    blue, red = plotting.PALETTE[:2]
    right.bar(range(len(bins)), [b.mae for b in bins], color=blue, label="MAE")
    bias = [b.bias for b in bins]
    right.plot(bias, "D", color=red, linestyle="none", label="bias")
    right.axhline(0, color="0.3", linewidth=0.8)
    names = [f"{b.low}+" if b.high is None else f"{b.low}–{b.high}" for b in bins]
    right.set_xticks(range(len(bins)), names)
    right.set(xlabel="true count", ylabel="objects")
    right.legend()
    return fig


def variant_maps(
    image: Tensor, name: str, maps: Mapping[str, Mapping[str, Tensor]]
) -> Figure:
    """Draw an image (3, H, W) and its maps, a row per variant.

    Args:
        image: values in [0, 1].
        name: what is asked for.
        maps: per variant its maps (h, w) by title, as of ``experiments.maps_of``.
    """
    columns = 1 + max(len(row) for row in maps.values())
    height, width = image.shape[-2:]
    inches = len(maps) * (plotting.WIDTH / columns * height / width + 0.2) + 0.1
    fig, axes = plotting.panels(columns, rows=len(maps), height=inches)
    for start, (variant, row) in enumerate(maps.items()):
        first, *rest = axes[start * columns : (start + 1) * columns]
        plotting.show_image(first, image, f"{variant}: {name}")
        for ax, (title, values) in zip(rest, row.items(), strict=True):
            same = title == "S'" and not VARIANTS[variant].affine
            title = "S' (= S: no LAT)" if same else title
            plotting.overlay(ax, image, values, title)
    return fig


def inside_the_gate(maps: Mapping[str, Tensor]) -> Figure:
    """Draw maps (h, w) under their titles, each with its colour scale."""
    fig, axes = plotting.panels(len(maps), height=2.1)
    for ax, (title, values) in zip(axes, maps.items(), strict=True):
        drawn = ax.imshow(values.detach().cpu().numpy(), cmap="viridis")
        fig.colorbar(drawn, ax=ax, shrink=0.75, location="bottom")
        ax.set_title(title, fontsize=8.5, fontweight="normal", pad=3)
    return fig


def over_seeds(maes: Mapping[str, Sequence[float]]) -> Axes:
    """Draw the error of every training, a dot per seed and a bar at the mean; "M5" must
    be among them."""
    ax = plotting.new_axes(height=0.26 * len(maes) + 0.6)
    for row, found in enumerate(maes.values()):
        ax.scatter(found, [row] * len(found), s=20, color=plotting.PALETTE[0])
        mean = sum(found) / len(found)
        ax.plot(mean, row, "|", color="0.1", markersize=13, markeredgewidth=2)
    best = sum(maes["M5"]) / len(maes["M5"])
    ax.axvline(best, color="0.4", linestyle=":")
    ax.set_yticks(range(len(maes)), list(maes))
    ax.invert_yaxis()
    ax.set(xlabel="MAE, unseen classes (dotted: mean of M5)")
    return ax


def micrographs(asked: Sequence[Batch], densities: Sequence[Tensor]) -> Figure:
    """Draw micrographs, a row each, with the density of every question about them.

    Args:
        asked: per micrograph its B questions.
        densities: per micrograph (B, H, W) in objects.
    """
    columns = 1 + len(asked[0])
    fig, axes = plotting.panels(columns, rows=len(asked), height=1.75 * len(asked))
    for row, (cells, maps) in enumerate(zip(asked, densities, strict=True)):
        first, *rest = axes[row * columns : (row + 1) * columns]
        plotting.show_image(first, cells.image[0])
        titles = counts_in_titles(cells, maps)
        for ax, density, title in zip(rest, maps, titles, strict=True):
            plotting.overlay(ax, cells.image[0], density.clamp(min=0), title)
    return fig
