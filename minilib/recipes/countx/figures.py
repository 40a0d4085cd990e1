"""The pictures of chapter 9, and a table. Every function draws what an experiment
returned, and trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from IPython.display import Markdown
from matplotlib.figure import Figure
from torch import Tensor

from minilib import plotting
from minilib.batch import Batch, required
from minilib.claims.pictures import unpacked_densities
from minilib.datasets.density import density_of_points
from minilib.layers.windows import window_starts, window_weights
from minilib.metrics.counting import count_errors
from minilib.plotting.densities import density_row
from minilib.recipes.countx.experiments import by_crowding
from minilib.recipes.shared.counting import Questions
from minilib.recipes.shared.counting_scenes import Asked, DescribedScenes
from minilib.scenes.renderer import density_map
from minilib.training import History


def true_densities(scenes: DescribedScenes, row: int, asked: Sequence[Asked]) -> Figure:
    """Draw a scene and the densities that the network is asked for, by three or more of
    the scene's questions."""
    image = scenes.image[row] / 255
    height, width = image.shape[-2:]
    maps = density_map(_centres(scenes, row, asked), (height, width), scenes.sigma)
    maps = maps[:, 0]
    sums = [
        f"the {question.text}: {one.sum():.0f}"
        for question, one in zip(asked, maps, strict=True)
    ]
    return density_row(image, list(maps), sums)


def answered_densities(
    scenes: DescribedScenes, row: int, asked: Sequence[Asked], maps: Tensor
) -> Figure:
    """Draw a scene and a network's densities (T, H, W) for T of its questions; crosses
    are what is meant."""
    titles = [
        f"the {question.text}:\n{one.sum():.1f} (true {len(question.objects)})"
        for question, one in zip(asked, maps, strict=True)
    ]
    points = _centres(scenes, row, asked)
    return density_row(scenes.image[row] / 255, list(maps), titles, points)


def _centres(scenes: DescribedScenes, row: int, asked: Sequence[Asked]) -> list[Tensor]:
    return [scenes.center[row][list(question.objects)] for question in asked]


def sentences(
    image: Tensor,
    shown: Sequence[str],
    maps: Sequence[Tensor],
    true: Sequence[int] = (),
) -> Figure:
    """Draw an image (3, H, W) in [0, 1] and the densities that sentences get.

    Args:
        image: what is asked about.
        shown: T sentences, in letters that every font has.
        maps: T densities.
        true: T true counts, where they are known.
    """
    titles = [f"{text}\n{one.sum():.1f}" for text, one in zip(shown, maps, strict=True)]
    if true:
        titles = [
            f"{title} (true {count})" for title, count in zip(titles, true, strict=True)
        ]
    return density_row(image, maps, titles)


def micrograph(record: Mapping[str, Any]) -> Figure:
    """Draw what ``experiments.pictured`` recorded: a micrograph with its densities;
    crosses are the true cells."""
    image, densities = unpacked_densities(record)
    titles = [
        f"{name}:\n{count:.1f} (true {len(points)})"
        for name, count, points in zip(
            record["asked"], record["counts"], record["points"], strict=True
        )
    ]
    true = [torch.tensor(points).view(-1, 2) for points in record["points"]]
    return density_row(image, list(densities), titles, true)


def cell_table(
    title: str, runs: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]]
) -> Markdown:
    """Return the table of cells: MAE and RMSE of CounTX and of the best constant, over
    seeds.

    Args:
        title: head of the first column.
        runs: per seed ``{kind of cell: {counter: {"mae": ..., "rmse": ...}}}``.
    """
    columns = {
        "MAE": ("CounTX", "mae"),
        "MAE of the best constant": ("best constant", "mae"),
        "RMSE": ("CounTX", "rmse"),
        "RMSE of the best constant": ("best constant", "rmse"),
    }
    flat = [
        {
            cell: {name: row[who][key] for name, (who, key) in columns.items()}
            for cell, row in run.items()
        }
        for run in runs
    ]
    rows = plotting.columns_over_seeds(flat, list(columns))
    return plotting.table([title, *columns], rows)


def questions(batch: Batch) -> Figure:
    """Draw eight pictures with crosses on what is asked for, under question and
    answer."""
    fig = Figure(figsize=(plotting.WIDTH, 3.9))
    shown = zip(
        fig.subplots(2, 4).flat,
        batch.image.cpu(),
        required(batch.points, "points"),
        required(batch.caption, "caption"),
        strict=True,
    )
    for ax, image, points, asked in shown:
        ax.imshow(plotting.image_array(image))
        x, y = (points.cpu() - 0.5).T.tolist()
        for colour, edge, size in (("white", 2.4, 5), ("black", 1.0, 4)):
            ax.plot(
                x,
                y,
                "+",
                color=colour,
                markeredgewidth=edge,
                markersize=size,
                linestyle="none",
            )
        ax.set_title(f"{asked}: {len(points)}", fontsize=8.5, fontweight="normal")
        ax.set_axis_off()
    return fig


def bells(points: Tensor, size: tuple[int, int], sigmas: Sequence[float]) -> Figure:
    """Draw points (n, 2) as densities of several widths, over their sums in all and
    left of the middle."""
    fig = Figure(figsize=(plotting.WIDTH, 1.9))
    middle = size[1] // 2
    for ax, sigma in zip(fig.subplots(1, len(sigmas)), sigmas, strict=True):
        density = density_of_points(points, size, sigma)
        ax.imshow(density.sqrt().numpy())
        ax.axvline(middle - 0.5, color="white", linestyle=":")
        ax.set(title=f"σ = {sigma}", xticks=[], yticks=[])
        left, whole = density[:, :middle].sum(), density.sum()
        ax.set_xlabel(f"left {left:.2f}, all {whole:.2f}")
    return fig


def learning(history: History) -> Figure:
    """Draw the loss and the count error of a training's own batches."""
    steps, loss = history.column("loss")
    at, error = history.column("count_error")
    fig, (left, right) = plotting.panels(2, height=2.4, ticks=True)
    plotting.curve_with_band(steps, [loss], "loss", ax=left, marker=False)
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    plotting.curve_with_band(at, [error], "training batch", ax=right, marker=False)
    right.set(xlabel="step", ylabel="mean |count error|", ylim=(0, None))
    return fig


def reading_curve(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> Figure:
    """Draw what reading is worth: the error with the text and without it, by the share
    of pictures that show several classes.

    Args:
        runs: one or more of ``reading.curve``, one a seed.
    """
    fig, (ax,) = plotting.panels(1, height=3.0, ticks=True)
    shares = list(runs[0])
    for key, label in (("text", "hears the question"), ("blind", "hears one thing")):
        errors = [[run[share][key] for share in shares] for run in runs]
        plotting.curve_with_band([float(share) for share in shares], errors, label, ax)
    ax.set(
        xlabel="share of pictures with several classes", ylabel="MAE", ylim=(0, None)
    )
    return fig


def where_errors_are(
    answers: Tensor, questions: Questions, scenes: DescribedScenes | None
) -> Figure:
    """Draw answers (N,) against true counts, and their errors by true count and, where
    the scenes are known, by how many objects of any kind they hold."""
    true = questions.counts
    fig, (left, right) = plotting.panels(2, height=2.9, ticks=True)
    top = true.max().item() + 2
    left.plot([0, top], [0, top], color="0.4", linestyle=":", linewidth=1)
    blue = plotting.PALETTE[0]
    left.plot(
        true.tolist(), answers.tolist(), ".", color=blue, linestyle="none", alpha=0.6
    )
    left.set(xlabel="true count", ylabel="answer", title="every question")
    bins = count_errors(answers, true, bins=(0, 2, 4, 8, 12, 16, 20)).by_count
    middles = [b.low + 2 if b.high is None else (b.low + b.high) / 2 for b in bins]
    right.plot(middles, [b.mae for b in bins], "o-", label="by true count")
    if scenes is not None:
        crowd = by_crowding(answers, questions, scenes).by_count
        right.plot(
            [b.low + 5 for b in crowd],
            [b.mae for b in crowd],
            "s--",
            label="by all objects in the picture",
        )
    right.plot(middles, [b.bias for b in bins], "^:", label="bias, by true count")
    right.axhline(0, color="0.4", linewidth=0.8)
    right.set(xlabel="objects", ylabel="error", title="where errors come from")
    right.legend(fontsize=8)
    return fig


def text_biases(
    biases: Tensor, texts: Sequence[str], silenced: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Draw how alike two blocks' text biases are, and what silencing them costs.

    Args:
        biases: (2, T, E), see ``experiments.text_bias``.
        texts: T texts.
        silenced: by network what ``experiments.knock_out`` returned; may be empty.
    """
    unit = torch.nn.functional.normalize(biases, dim=-1)
    likeness = (unit @ unit.mT).cpu().numpy()
    fig = Figure(figsize=(plotting.WIDTH, 2.9))
    *blocks, bars = fig.subplots(1, 3, width_ratios=(1, 1, 1.1))
    for b, ax in enumerate(blocks):
        ax.imshow(likeness[b], vmin=-1, vmax=1, cmap="cividis")
        ax.set_xticks(range(len(texts)), texts, rotation=90, fontsize=7)
        names = texts if b == 0 else [""] * len(texts)
        ax.set_yticks(range(len(texts)), names, fontsize=7)
        ax.set_title(f"text bias, block {b + 1}", fontsize=9)
        ax.grid(False)
    if not silenced:
        bars.set_axis_off()
        return fig
    for k, (who, errors) in enumerate(silenced.items()):
        places = [i + 0.38 * k - 0.19 for i in range(len(errors))]
        colour = plotting.PALETTE[k]
        bars.barh(places, list(errors.values()), 0.36, color=colour, label=who)
        bars.set_yticks(range(len(errors)), errors, fontsize=7.5)
    bars.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.3, -0.22), ncols=2)
    bars.invert_yaxis()
    bars.set(xlabel="MAE", title="without the text")
    return fig


def merges(window: int, width: int, stride: int) -> Figure:
    """Draw how much each window weighs in every column of a wide picture, by the
    authors' merge and by the uniform one; all in pixels."""
    fig = Figure(figsize=(plotting.WIDTH, 2.1))
    starts = window_starts(width, window, stride)
    titles = {"recursive": "authors' merge", "uniform": "uniform"}
    axes = fig.subplots(1, 2, sharey=True)
    for ax, (merge, title) in zip(axes, titles.items(), strict=True):
        ax.stackplot(
            range(width),
            *window_weights(starts, window, width, merge).numpy(),
            colors=plotting.PALETTE[: len(starts)],
            edgecolor="white",
        )
        ax.set(title=title, xlabel="column", xlim=(0, width - 1), ylim=(0, 1))
    return fig
