"""Chapter 1's own drawings; each takes what an experiment returned and
returns a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from minilib import plotting
from minilib.claims.chapter import Run
from minilib.recipes.clip.experiments import LENGTHS, NUMBERS_ASKED, logit
from minilib.recipes.clip.lab import REFERENCE
from minilib.training import History

__all__ = [
    "answers",
    "climb",
    "data_hunger",
    "few_shot",
    "full_results",
    "labelled_patches",
    "limits",
    "modality_gap",
    "polysemy",
    "prompt_ladder",
    "race",
    "robustness",
    "scaling",
    "seed_rows",
    "softmax_at_scales",
]


def labelled_patches(
    images: Tensor, labels: Sequence[Tensor], words: Sequence[Sequence[str]]
) -> Figure:
    """Draw images (N, 3, H, W) over maps (h, w) that say which of an image's words is
    nearest to each patch."""
    fig, axes = plotting.panels(len(images), rows=2, height=5.4)
    for above, below, image, label, names in zip(
        axes, axes[len(images) :], images, labels, words, strict=False
    ):
        plotting.show_image(above, image)
        colours = ListedColormap(plotting.PALETTE[: len(names)])
        below.imshow(label.cpu(), cmap=colours, vmin=-0.5, vmax=len(names) - 0.5)
        for colour, name in zip(plotting.PALETTE, names, strict=False):
            below.plot([], [], "s", color=colour, label=name)
        below.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=8)
    return fig


def softmax_at_scales(row: Tensor, scales: Sequence[float]) -> Figure:
    """Draw the softmax of one image's similarities (N,) at several multipliers."""
    fig = Figure(figsize=(plotting.WIDTH, 2.2))
    for ax, scale in zip(
        fig.subplots(1, len(scales), sharey=True), scales, strict=True
    ):
        ax.bar(
            range(len(row)), torch.softmax(scale * row, 0), color=plotting.PALETTE[0]
        )
        ax.set_title(f"s = {scale}")
        ax.set_xlabel("caption")
    return fig


def climb(history: History, batch_size: int, classes: int) -> Figure:
    """Draw the loss and the zero-shot accuracy of a training beside what
    knowing nothing gives."""
    fig, (left, right) = plotting.panels(2, height=2.8, ticks=True)
    steps, loss = history.column("loss")
    plotting.curve_with_band(steps, [loss], "InfoNCE", ax=left, marker=False)
    left.axhline(
        math.log(batch_size), color="0.4", linestyle=":", label=f"ln {batch_size}"
    )
    left.set(xlabel="step", ylabel="loss")
    at, top1 = history.column(REFERENCE)
    plotting.curve_with_band(
        [0, *at], [[1 / classes, *top1]], "zero-shot top-1", ax=right
    )
    right.axhline(1 / classes, color="0.4", linestyle=":", label="chance")
    right.set(xlabel="step", ylabel="top-1", ylim=(0, 1))
    for ax in (left, right):
        ax.legend()
    return fig


def answers(
    images: Tensor, scores: Tensor, label: Tensor, names: Sequence[str]
) -> Figure:
    """Draw twelve test images with their answers, up to six mistakes among them."""
    answer = scores.argmax(1)
    wrong, right = (
        (answer != label).nonzero()[:, 0][:6].tolist(),
        (answer == label).nonzero()[:, 0].tolist(),
    )
    chosen = right[: 12 - len(wrong)] + wrong
    titles = [
        names[int(answer[i])] + (f" (is: {names[int(label[i])]})" if i in wrong else "")
        for i in chosen
    ]
    return plotting.image_grid(images[chosen].cpu(), titles, columns=6)


def modality_gap(
    image: Tensor, text: Tensor, matched: Tensor, unmatched: Tensor
) -> Figure:
    """Draw unit features of images and texts (N, E) on two principal axes, and the
    cosines of pairs."""
    both = torch.cat([image, text]).cpu()
    flat = (both - both.mean(0)) @ torch.pca_lowrank(both, q=2)[2]
    fig, (left, right) = plotting.panels(2, height=2.7, ticks=True)
    blue, red = plotting.PALETTE[:2]
    (x, y), (x_text, y_text) = flat[: len(image)].T, flat[len(image) :].T
    left.scatter(x, y, s=10, marker="o", color=blue, label="images")
    left.scatter(x_text, y_text, s=14, marker="^", color=red, label="texts")
    left.set(title="first two principal axes", xticks=[], yticks=[])
    bins = torch.linspace(-0.6, 1, 41).tolist()
    for cosines, colour, name, hatch in (
        (unmatched, red, "unmatched", "//"),
        (matched, blue, "matched", ""),
    ):
        right.hist(
            cosines.cpu(), bins, color=colour, label=name, density=True, alpha=0.6,
            hatch=hatch,
        )  # fmt: skip
    right.set(xlabel="cosine", yticks=[])
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)
    right.legend()
    return fig


def race(curves: Mapping[str, Sequence[float]], milestone: float) -> Axes:
    """Draw zero-shot accuracy against images seen for several ways of training.

    Args:
        curves: what ``experiments.curves`` returned.
        milestone: the accuracy up to which images are counted.
    """
    ax = plotting.new_axes(height=3.0)
    for name, top1 in curves.items():
        if name != "seen":
            plotting.curve_with_band(curves["seen"], [top1], name, ax=ax)
    ax.axhline(milestone, color="0.4", linestyle=":", label="milestone")
    ax.set(xlabel="images seen", ylabel="zero-shot top-1", xscale="log")
    ax.legend()
    return ax


def prompt_ladder(ladder: Mapping[str, float], templates: Sequence[str]) -> Axes:
    """Draw what ``experiments.prompt_ladder`` measured: the bare word, single
    templates, growing ensembles."""
    counts = range(2, len(templates) + 1)
    single = [ladder[template] for template in templates]
    ax = plotting.new_axes(height=3.0)
    blue, red, green = plotting.PALETTE[:3]
    ax.axhline(
        ladder["bare word"], color=plotting.PALETTE[6], linestyle=":", label="bare word"
    )
    ax.plot(
        [1] * len(single),
        single,
        "o",
        color=red,
        label="single templates",
        linestyle="none",
    )
    ensembles = [ladder[f"ensemble of {count}"] for count in counts]
    ax.plot(counts, ensembles, "s-", color=blue, label="ensemble, embeddings")
    ax.plot(
        len(templates),
        ladder["probabilities"],
        "D",
        color=green,
        label="ensemble, probabilities",
    )
    ax.set(xlabel="templates", ylabel="zero-shot top-1")
    ax.legend()
    return ax


def polysemy(words: Mapping[str, Mapping[str, float]], most: int = 9) -> Axes:
    """Draw the accuracy within concepts that share a word, by the bare word and
    by edited names."""
    some = list(words)[:most]
    ax = plotting.new_axes(height=2.8)
    for offset, kind, hatch in ((-0.2, "bare", "//"), (0.2, "edited", None)):
        heights = [words[word][kind] for word in some]
        ax.bar(
            [i + offset for i in range(len(some))],
            heights,
            0.38,
            label=f"{kind} name",
            hatch=hatch,
        )
    ax.axhline(0.5, color="0.3", linestyle=":")
    ax.set_xticks(range(len(some)), some)
    ax.set(ylabel="top-1 within the pair", ylim=(0, 1.02))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
    return ax


def few_shot(shots: Mapping[str, Sequence[float]]) -> Axes:
    """Draw linear probes against the number of labelled images per
    class, and zero-shot."""
    ax = plotting.new_axes(height=3.0)
    plotting.curve_with_band(shots["shots"], [shots["probe"]], "linear probe", ax=ax)
    ax.axhline(
        shots["zero-shot"][0],
        color=plotting.PALETTE[1],
        linestyle="--",
        label="zero-shot",
    )
    ax.axhline(
        shots["random names"][0],
        color="0.4",
        linestyle=":",
        label="zero-shot, random names",
    )
    ax.set_xscale("log", base=2)
    ax.set(xlabel="labelled images per class", ylabel="top-1")
    ax.legend()
    return ax


def robustness(points: Mapping[str, Sequence[tuple[float, float]]]) -> Axes:
    """Draw accuracy under a change of style against accuracy without,
    both in logit axes."""
    ax = plotting.new_axes(height=3.4)
    for (name, pairs), mark in zip(points.items(), "os^D", strict=True):
        x, y = zip(*pairs, strict=True)
        ax.plot([*map(logit, x)], [*map(logit, y)], mark, linestyle="none", label=name)
    ticks = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(
            [logit(tick) for tick in ticks], [f"{tick:.0%}" for tick in ticks]
        )
    ax.set(xlabel="top-1 on Noto (reference)", ylabel="top-1 on Twemoji (shift)")
    ax.legend()
    return ax


def limits(counted: Mapping[str, Any], related: Mapping[str, float]) -> Figure:
    """Draw the confusion of counts, and the accuracies of counting and of
    telling captions apart."""
    fig = Figure(figsize=(plotting.WIDTH, 3.0))
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.25))
    left.imshow(counted["confusion"], vmin=0, vmax=1, cmap="cividis")
    left.set(xlabel="answered", ylabel="objects in the scene", title="counting by text")
    numbers = range(1, NUMBERS_ASKED + 1)
    left.set_xticks(range(NUMBERS_ASKED), numbers)
    left.set_yticks(range(NUMBERS_ASKED), numbers)
    left.grid(False)
    bars = {
        "counting:\ntext": (counted["zero-shot"], counted["chance"]),
        "counting:\nprobe": (counted["probe"], counted["chance"]),
        "contrary\nrelation": (related["contrary"], 0.5),
        "objects\nswapped": (related["swapped"], 0.5),
        "object\nreplaced": (related["replaced"], 0.5),
    }
    for place, (height, chance) in enumerate(bars.values()):
        right.bar(place, height, color=plotting.PALETTE[place % 2])
        right.plot(
            [place - 0.4, place + 0.4], [chance, chance], color="0.1", linestyle=":"
        )
    right.set_xticks(range(len(bars)), bars, fontsize=7.5)
    right.set(ylim=(0, 1), ylabel="accuracy (dotted: chance)")
    return fig


def data_hunger(top1: Mapping[str, float], classes: int) -> Axes:
    """Draw the accuracy after trainings on few and on many distinct images."""
    bars = {name: [value] for name, value in top1.items()}
    return plotting.bars(bars, "top-1", reference=(1 / classes, "chance"))


def scaling(
    top1: Sequence[Mapping[str, float]], pairs: int, ax: Axes | None = None
) -> Axes:
    """Draw the error against the pairs seen, in logarithms.

    Args:
        top1: per seed the result of ``experiments.reached``.
        pairs: how many pairs a training of length 1 sees.
        ax: where to draw.
    """
    ax = ax or plotting.new_axes(height=2.8)
    seen = [pairs * length for length in LENGTHS.values()]
    errors = [[1 - row[name] for name in LENGTHS] for row in top1]
    plotting.curve_with_band(seen, errors, "CLIP", ax=ax)
    ax.set(xlabel="pairs seen", ylabel="error", xscale="log", yscale="log")
    return ax


def full_results(
    races: Sequence[Mapping[str, Sequence[float]]],
    probes: Sequence[Mapping[str, Sequence[float]]],
    top1: Sequence[Mapping[str, float]],
    shifts: Sequence[Mapping[str, float]],
    pairs: int,
) -> Figure:
    """Draw what the committed records of profile full hold, a curve or bar
    over seeds each.

    Args:
        races: per seed the result of ``experiments.curves``.
        probes: per seed the result of ``experiments.few_shot``.
        top1: per seed the result of ``experiments.reached``.
        shifts: per seed the result of ``experiments.at_equal_accuracy``.
        pairs: how many pairs a training of length 1 sees.
    """
    fig, (one, two, three, four) = plotting.panels(2, rows=2, height=5.6, ticks=True)
    for name in [name for name in races[0] if name != "seen"]:
        ys = [race[name] for race in races]
        plotting.curve_with_band(races[0]["seen"], ys, name, ax=one)
    one.set(
        title="C1: ways of training", xlabel="images seen", ylabel="zero-shot top-1"
    )
    one.legend(fontsize=7.5)
    shots = probes[0]["shots"]
    plotting.curve_with_band(
        shots, [probe["probe"] for probe in probes], "probe", ax=two
    )
    flat = [[probe["zero-shot"][0]] * len(shots) for probe in probes]
    plotting.curve_with_band(shots, flat, "zero-shot", ax=two, marker=False)
    two.set_xscale("log", base=2)
    two.set(
        title="C4: zero-shot and few-shot",
        xlabel="labelled images per class",
        ylabel="top-1",
    )
    scaling(top1, pairs, three)
    three.set(title="C8: error and pairs seen")
    rows = {
        name.replace(", ", ",\n"): [shift[name] for shift in shifts]
        for name in shifts[0]
        if name != "reach"
    }
    plotting.bars(rows, "top-1 on Twemoji", ax=four)
    four.set(title="C7: at equal accuracy on Noto")
    four.tick_params(axis="x", labelsize=6.5)
    return fig


SEEDS_SAY = (
    ("C1: images for the milestone, prediction over contrast", "race", "times"),
    ("C2: unseen combinations, CLIP", "combinations/transformer/unseen", ""),
    ("C2: unseen combinations, two heads", "combinations/two heads/unseen", ""),
    ("C3: bare word", "prompts/bare word", ""),
    ("C3: one template", "prompts/one template", ""),
    ("C3: ensemble", "prompts/ensemble", ""),
    ("C4: labelled images per class that zero-shot is worth", "worth", "shots"),
    ("C7: Twemoji, zero-shot, two styles", "robustness/zero-shot, two styles", ""),
    ("C7: Twemoji, supervised, at the same accuracy", "robustness/supervised", ""),
    ("counting: by text", "counting/zero-shot", ""),
    ("counting: by a probe", "counting/probe", ""),
    ("relations: the true word over its contrary", "relations/contrary", ""),
    ("words with two meanings: edited names", "polysemy/mean/edited", ""),
    ("same images: zero-shot", "top1/words", ""),
    ("same images: labels", "top1/labels", ""),
    ("1/64 of the images: zero-shot", "top1/words, 1/64", ""),
    ("1/64 of the images: labels", "top1/labels, 1/64", ""),
)
"""What the table over seeds shows: a text, a named result, and how it is read."""


def seed_rows(run: Run[Any, Any], profile: str = "full") -> list[tuple[str, str]]:
    """Return what the committed records of a profile say, in rows of text and mean with
    range over seeds; none where nothing is measured yet."""
    rows = []
    for text, path, kind in SEEDS_SAY:
        name, *keys = path.split("/")
        values = []
        for found in run.recorded(profile, name):
            for key in keys:
                found = found[key]
            if kind == "times":
                found = 2 ** (found["prediction"] - found["bag"])
            values.append(2 ** found["zero-shot"] if kind == "shots" else found)
        if values:
            rows.append(
                (text, plotting.over_seeds(values, "{:.1f}" if kind else "{:.1%}"))
            )
    return rows
