"""Chapter 6's own drawings; each takes what an experiment returned and
returns a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.ops import nms

from minilib import plotting
from minilib.batch import Batch
from minilib.training import History

__all__ = [
    "boxes",
    "ladder",
    "ladders",
    "learning_rates",
    "losses",
    "prompt_maps",
    "prompting_cost",
    "token_row",
    "turned_text",
]


def prompt_maps(
    image: Tensor,
    maps: Mapping[str, Tensor],
    prompts: Sequence[str],
    limits: tuple[float, float],
) -> Figure:
    """Draw cosines of an image's places with prompts, a row per model.

    Args:
        image: (3, R, R') in [0, 1].
        maps: per row's title (P, R, R'), as ``experiments.prompt_maps`` returns them.
        prompts: P texts.
        limits: cosines at the ends of the colour scale.
    """
    columns, low, high = 1 + len(prompts), *limits
    height = len(maps) * (plotting.WIDTH / columns + 0.05)
    fig, axes = plotting.panels(columns, len(maps), height, layout="compressed")
    for row, (title, scores) in enumerate(maps.items()):
        first, *others = axes[row * columns : (row + 1) * columns]
        plotting.show_image(first, image)
        first.set_ylabel(title, fontsize=7.5)
        for ax, prompt, score in zip(others, prompts, scores, strict=True):
            shown = ax.imshow(score.cpu().numpy(), vmin=low, vmax=high, cmap="cividis")
            if row == 0:
                ax.set_title(f'"{prompt}"', fontsize=7.5, fontweight="normal")
    fig.colorbar(shown, ax=axes, shrink=0.85, label="cosine")
    return fig


def token_row(pieces: Sequence[str]) -> Figure:
    """Draw a row of numbered tokens: learned contexts, which begin with "$", the end,
    and all others, in three colours."""
    fig = Figure(figsize=(plotting.WIDTH, 0.95))
    ax = fig.subplots()
    for i, piece in enumerate(pieces):
        kind = 1 if piece.startswith("$") else 2 if piece == "end" else 0
        colour = plotting.PALETTE[kind]
        ax.add_patch(
            Rectangle(
                (i + 0.04, 0), 0.92, 1, facecolor=colour, alpha=0.35, edgecolor="0.3"
            )
        )
        ax.text(i + 0.5, 0.5, piece, ha="center", va="center", fontsize=9)
        ax.text(i + 0.5, -0.3, str(i), ha="center", va="center", fontsize=8)
    ax.set(xlim=(0, len(pieces)), ylim=(-0.6, 1.05))
    ax.set_axis_off()
    return fig


def learning_rates(steps: Sequence[int], rates: Mapping[str, Sequence[float]]) -> Axes:
    """Draw learning rates over steps in logarithmic scale; 0 is drawn below the
    scale's end."""
    ax = plotting.new_axes(height=2.4)
    for label, values in rates.items():
        ax.plot(steps, [max(value, 1e-9) for value in values], label=label)
    ax.set(yscale="log", ylim=(1e-8, 2e-4), xlabel="step", ylabel="learning rate")
    ax.legend(fontsize=8)
    return ax


def losses(histories: Mapping[str, History], score_weight: float = 0.4) -> Figure:
    """Draw the cross-entropy of the head and, undone of its weight, of the score map,
    over the steps of several trainings."""
    fig, (left, right) = plotting.panels(2, height=2.6, ticks=True)
    for name, history in histories.items():
        guided = any("scores" in row for row in history.rows)
        at, loss = history.column("decode" if guided else "loss")
        plotting.curve_with_band(at, [loss], name, ax=left, marker=False)
        if guided:
            at, loss = history.column("scores")
            loss = [value / score_weight for value in loss]
            plotting.curve_with_band(at, [loss], name, ax=right, marker=False)
    left.set(title="head", xlabel="step", ylabel="cross-entropy")
    right.set(title="score map", xlabel="step")
    return fig


def turned_text(
    angle: Tensor, gamma: Tensor, names: Sequence[str], most: int = 8
) -> Figure:
    """Draw what ``experiments.moved_text`` measured: the angles (B, K) of the ``most``
    turned classes, and gamma (E,)."""
    fig, (left, right) = plotting.panels(2, height=2.5, ticks=True)
    order = angle.mean(0).argsort(descending=True)[:most].tolist()
    each = [angle[:, k].cpu().numpy() for k in order]
    left.boxplot(each, orientation="horizontal", widths=0.6)
    words = [names[k] for k in order]
    left.set_yticks(range(1, len(order) + 1), words, fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="turn of the text, degrees", title="by the image")
    right.plot(gamma.detach().abs().sort(descending=True).values.cpu().numpy())
    right.axhline(1e-4, color="0.4", linestyle=":")
    right.annotate("start", (0, 1.15e-4), fontsize=8)
    right.set(
        yscale="log", xlabel="channel, sorted", title=r"$|\gamma|$ after training"
    )
    return fig


def ladder(miou: Mapping[str, float]) -> Axes:
    """Draw a bar for each variant that one run trained."""
    bars = {name: [value] for name, value in miou.items()}
    ax = plotting.new_axes(height=2.3)
    plotting.bars(bars, "mIoU on test images", ax=ax)
    ax.tick_params(axis="x", labelsize=7.5)
    return ax


def ladders(
    final: Sequence[Mapping[str, float]], maps: Sequence[Mapping[str, float]]
) -> Figure:
    """Draw bars over seeds: the mIoU of every variant's final output, and of the score
    map of those that have one.

    Args:
        final: per seed the mIoU by variant.
        maps: per seed that of the score maps.
    """
    fig = Figure(figsize=(plotting.WIDTH, 5.2))
    panels = ("mIoU, final", final), ("mIoU, score map", maps)
    for ax, (title, seeds) in zip(fig.subplots(2, 1), panels, strict=True):
        bars = {name: [seed[name] for seed in seeds] for name in seeds[0]}
        plotting.bars(bars, title, ax=ax)
        # narrow enough for eleven bars
        labels = [textwrap.fill(name, 9, break_long_words=False) for name in bars]
        ax.set_xticks(ax.get_xticks(), labels)
        ax.tick_params(axis="x", labelsize=6.5)
    return fig


def prompting_cost(
    counts: Sequence[int], cost: Mapping[str, Mapping[str, Sequence[float]]]
) -> Figure:
    """Draw what ``experiments.prompting_cost`` measured against the number of
    classes."""
    fig, (left, right) = plotting.panels(2, height=2.6, ticks=True)
    for name, values in cost.items():
        plotting.curve_with_band(counts, [values["gflop"]], name, ax=left)
        milliseconds = [1000 * seconds for seconds in values["seconds"]]
        plotting.curve_with_band(counts, [milliseconds], name, ax=right)
    left.set(ylabel="billions of operations, one image")
    right.set(ylabel="milliseconds, one image")
    for ax in (left, right):
        ax.set(xlabel="classes", ylim=(0, None))
        ax.set_xticks(counts[1:])
    return fig


def boxes(
    truth: Batch,
    found: Sequence[Mapping[str, Tensor]],
    names: Sequence[str],
    least: float = 0.15,
    most: int = 5,
) -> Figure:
    """Draw the true boxes of scenes, and below them those that a detector found.

    Args:
        truth: images with ``boxes`` and ``classes``.
        found: per image "boxes" (m, 4), "scores" and "labels" (m,).
        names: class names.
        least: lowest score of a box that is drawn; of boxes at the same place only the
            likeliest is.
        most: boxes drawn in an image.
    """
    kept = []
    for one in found:
        apart = nms(one["boxes"], one["scores"], 0.5)
        kept.append(apart[one["scores"][apart] > least][:most])
    answer = replace(
        truth,
        boxes=[one["boxes"][k] for one, k in zip(found, kept, strict=True)],
        classes=[one["labels"][k] for one, k in zip(found, kept, strict=True)],
    )
    count = len(found)
    fig, axes = plotting.panels(count, 2, height=2.5, layout="compressed")
    for row, (batch, title) in enumerate(((truth, "truth"), (answer, "detected"))):
        for i, ax in enumerate(axes[row * count : (row + 1) * count]):
            plotting.draw_annotations(ax, batch, i, "detect", names)
        axes[row * count].set_title(title, fontsize=9)
    return fig
