"""Chapter 2's own drawings; each takes what an experiment returned and returns a
figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minilib import plotting
from minilib.batch import required
from minilib.plotting.segmentation import label_map, word_colours
from minilib.recipes.lseg.recipe import Study
from minilib.training import History

__all__ = [
    "answers",
    "confusions",
    "data_examples",
    "decoder_levels",
    "full_results",
    "other_wordings",
    "over_training",
    "protocol",
    "reach_of_words",
    "score_maps",
    "seen_and_unseen",
    "training_curves",
]

ASKED_BY = {
    "name": "the group's name",
    "wrong name": "another group's",
    "mean": "mean vector of members",
    "any": "any of its members",
}
"""What the legend calls the entries of ``experiments.GROUPS_BY``."""


def score_maps(
    image: Tensor, scores: Tensor, words: Sequence[str], notes: Sequence[str] = ()
) -> Figure:
    """Draw an image (3, H, W), the scores (N, H, W) of N words, one map each, and the
    word that wins each pixel.

    Args:
        image: values in [0, 1].
        scores: on any device.
        words: N of them.
        notes: one per word, put below it; none by default.
    """
    columns = len(words) + 2 if len(words) < 4 else -(-(len(words) + 2) // 2)
    rows = -(-(len(words) + 2) // columns)
    fig, axes = plotting.panels(columns, rows, height=2.0 if rows == 1 else 3.6)
    scores = scores.cpu()
    low, high = scores.min().item(), scores.max().item()
    axes[0].imshow(plotting.image_array(image.cpu()))
    titles = list(words)
    if notes:
        titles = [f"{word}\n{note}" for word, note in zip(words, notes, strict=True)]
    for ax, one in zip(axes[1:], scores, strict=False):
        ax.imshow(one.numpy(), vmin=low, vmax=high, cmap="cividis")
    label_map(axes[-1], scores.argmax(0), words, columns=1)
    for ax, title in zip(axes, ["image", *titles, "winner"], strict=True):
        ax.set_title(title, fontsize=8.5)
    return fig


def data_examples(
    study: Study, columns: int, rows: Sequence[int] = (0, 7, 14)
) -> Figure:
    """Draw test images over their masks: three for seen words and, where there are any,
    three for unseen ones, each with the labels that are asked for.

    Args:
        study: the data.
        columns: of the legends.
        rows: which three of the test images.
    """
    kinds = [kind for kind in ("seen", "unseen") if kind in study.test]
    shown = [(kind, row) for kind in kinds for row in rows]
    fig, axes = plotting.panels(len(shown), rows=2, height=3.1)
    above, below = axes[: len(shown)], axes[len(shown) :]
    for top, bottom, (kind, row) in zip(above, below, shown, strict=True):
        batch = study.test[kind]
        mask = required(batch.mask, "mask")[row]
        asked = torch.tensor(study.labels.asked(kind), device=mask.device)
        top.imshow(plotting.image_array(batch.image[row].cpu()))
        top.set_title(f"{kind} words", fontsize=8.5)
        mask = torch.where(torch.isin(mask, asked), mask, 255)
        label_map(bottom, mask, study.labels.names, columns=columns)
    return fig


def decoder_levels(image: Tensor, stages: Mapping[str, Any]) -> Figure:
    """Draw an image (3, H, W) and the length of the feature at each place of the
    decoder's paths, from coarse to fine, and of the embeddings.

    Args:
        image: values in [0, 1].
        stages: of ``LSeg.stages`` for this image alone.
    """
    paths = stages["paths"][::-1]
    maps = {f"path {len(paths) - i}": path for i, path in enumerate(paths)}
    maps["embeddings"] = stages["embeddings"]
    fig, axes = plotting.panels(len(maps) + 1, height=1.9)
    axes[0].imshow(plotting.image_array(image.cpu()))
    axes[0].set_title("image", fontsize=8.5)
    for ax, (title, x) in zip(axes[1:], maps.items(), strict=True):
        ax.imshow(x[0].norm(dim=0).cpu().numpy(), cmap="cividis")
        ax.set_title(f"{title}\n{x.shape[2]}×{x.shape[3]}", fontsize=8.5)
    return fig


def training_curves(history: History) -> Figure:
    """Draw the loss of a training, and the mIoU of seen and unseen words along it."""
    fig, (left, right) = plotting.panels(2, height=2.8, ticks=True)
    steps, loss = history.column("loss")
    plotting.curve_with_band(steps, [loss], "cross-entropy", ax=left, marker=False)
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    watched = history.rows[-1]
    for part in (kind for kind in ("seen", "unseen") if kind in watched):
        at, miou = history.column(part)
        plotting.curve_with_band(at, [miou], f"{part} words", ax=right)
    right.set(xlabel="step", ylabel="mIoU", ylim=(0, None))
    right.legend()
    return fig


def seen_and_unseen(
    miou: Mapping[str, Mapping[str, float]], height: float = 2.6
) -> Figure:
    """Draw the mIoU of seen words and of unseen ones, a bar per entry of ``miou``,
    ``{name: {"seen": ..., "unseen": ...}}``."""
    fig, axes = plotting.panels(2, height=height, ticks=True)
    for ax, part in zip(axes, ("seen", "unseen"), strict=True):
        bars = {name: [row[part]] for name, row in miou.items()}
        plotting.bars(bars, "mIoU", ax=ax)
        ax.set_title(f"{part} words")
    return fig


def confusions(confusion: Tensor, cosines: Tensor, words: Sequence[str]) -> Figure:
    """Draw a confusion matrix (N, N) beside the cosines (N, N) of the words'
    vectors."""
    fig, (left, right) = plotting.panels(2, height=3.6, ticks=True)
    places = range(len(words))
    for ax, matrix, title in (
        (left, confusion, "share of the row's pixels"),
        (right, cosines, "cosine of the words"),
    ):
        shown = ax.imshow(matrix.cpu().numpy(), cmap="cividis", vmin=0, vmax=1)
        ax.set_title(title)
        ax.set_xticks(places, words, rotation=90, fontsize=6.5)
        ax.set_yticks(places, words if ax is left else [""] * len(words), fontsize=6.5)
        ax.grid(False)
    fig.colorbar(shown, ax=[left, right], shrink=0.7)
    return fig


def protocol(results: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw "mIoU" and "FB-IoU" of the few-shot protocol, a bar per entry."""
    fig, axes = plotting.panels(2, height=2.6, ticks=True)
    for ax, measure in zip(axes, ("mIoU", "FB-IoU"), strict=True):
        bars = {name: [row[measure]] for name, row in results.items()}
        plotting.bars(bars, measure, ax=ax)
    return fig


def reach_of_words(reach: Mapping[int, float], random: float) -> Axes:
    """Draw the mIoU of unseen words against the number of seen ones, beside that of
    random vectors."""
    ax = plotting.new_axes(height=2.8)
    plotting.curve_with_band(
        list(reach), [list(reach.values())], "vectors of the words", ax=ax
    )
    ax.axhline(random, color="0.4", linestyle=":", label="random vectors, all words")
    ax.set(xlabel="seen words", ylabel="mIoU of unseen words", ylim=(0, None))
    ax.legend()
    return ax


def answers(
    image: Tensor,
    answered: Mapping[str, tuple[Sequence[str], Tensor]],
    same: Mapping[str, str],
) -> Figure:
    """Draw an image (3, H, W) and what a model answers to several lists of words.

    Args:
        image: values in [0, 1].
        answered: by title the list of words and the map (H, W) of places in it.
        same: a word that says the same as another one gets its colour, in all maps.
    """
    words = dict.fromkeys(
        same.get(word, word) for labels, _ in answered.values() for word in labels
    )
    colour = dict(zip(words, word_colours(list(words)), strict=True))
    fig, axes = plotting.panels((len(answered) + 2) // 2, rows=2, height=4.4)
    axes[0].imshow(plotting.image_array(image.cpu()))
    axes[0].set_title("image", fontsize=8.5)
    for ax, (title, (labels, places)) in zip(axes[1:], answered.items(), strict=False):
        colours = [colour[same.get(word, word)] for word in labels]
        label_map(ax, places, labels, columns=1, least=0.003, colours=colours)
        ax.set_title(title, fontsize=8.5)
    return fig


def other_wordings(
    rewording: Mapping[str, float], groups: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Draw the mIoU of seen words asked in other words, and the IoU of groups of words
    for each way of asking.

    Args:
        rewording: mIoU by wording.
        groups: answers of ``experiments.hypernyms`` by what was asked with.
    """
    fig = Figure(figsize=(plotting.WIDTH, 2.7))
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.5))
    plotting.bars(
        {kind: [value] for kind, value in rewording.items()},
        "mIoU of seen words",
        ax=left,
    )
    left.set_title("plurals")
    left.tick_params(axis="x", labelsize=8)
    names = list(groups["name"])
    places = torch.arange(len(names))
    for number, (by, row) in enumerate(groups.items()):
        right.bar(
            places + 0.2 * (number - 1.5),
            [0 if value != value else value for value in row.values()],  # nan: no pixel
            0.2,
            label=ASKED_BY[by],
            color=plotting.PALETTE[number],
            hatch=("", "//", "..", "")[number],
        )
    right.set_xticks(places, names, fontsize=7.5, rotation=60)
    right.set(ylabel="IoU", title="groups of words", ylim=(0, 1))
    right.legend(fontsize=7.5, ncols=2)
    return fig


def over_training(long: Mapping[str, Sequence[float]]) -> Axes:
    """Draw the mIoU of seen and of unseen words along a training on few images, see
    ``experiments.over_training``."""
    ax = plotting.new_axes(height=2.8)
    labels = {
        "seen": "seen words",
        "unseen": "unseen words",
        "validation": "unseen words, other scenes",
    }
    for name, label in labels.items():
        plotting.curve_with_band(long["steps"], [long[name]], label, ax=ax)
    ax.set(xlabel="step", ylabel="mIoU", ylim=(0, None))
    ax.legend()
    return ax


def full_results(
    curves: Sequence[Mapping[str, Sequence[float]]],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Figure:
    """Draw six panels over seeds: the training, unseen words by vectors and by image
    tower, seen words by vectors, blocks, over-training, temperatures.

    Args:
        curves: results "curves", one per seed.
        results: by name the results "vectors", "towers", "seen", "blocks", "long" and
            "temperature", one per seed.
    """
    fig, (one, two, three, four, five, six) = plotting.panels(
        2, rows=3, height=7.6, ticks=True
    )
    for part in ("seen", "unseen"):
        for ax, rows in ((one, curves), (five, results["long"])):
            plotting.curve_with_band(
                rows[0]["steps"], [row[part] for row in rows], f"{part} words", ax
            )
    one.set(title="along the training", xlabel="step", ylabel="mIoU", ylim=(0, None))
    five.set(title="on 64 images", xlabel="step", ylabel="mIoU", ylim=(0, None))
    unseen = {
        "no mask": [row["no mask"]["unseen"] for row in results["towers"]],
        "captions": [
            row["masks, tower of captions"]["unseen"] for row in results["towers"]
        ],
        **{
            kind: [row[kind]["unseen"] for row in results["vectors"]]
            for kind in results["vectors"][0]
        },
    }
    seen = {
        kind: [row[kind]["seen"] for row in results["seen"]]
        for kind in results["seen"][0]
    }
    blocks = {
        kind.replace("words", "none"): [row[kind] for row in results["blocks"]]
        for kind in results["blocks"][0]
    }
    by_temperature = {
        f"t = {t}": [row[t]["unseen"] for row in results["temperature"]]
        for t in results["temperature"][0]
    }
    for ax, bars, title in (
        (two, unseen, "unseen words"),
        (three, seen, "seen words: vectors"),
        (four, blocks, "seen words: blocks"),
        (six, by_temperature, "unseen words: temperature"),
    ):
        plotting.bars(bars, "mIoU", ax=ax)
        ax.set_title(title)
        ax.tick_params(axis="x", labelsize=7.5)
    return fig
