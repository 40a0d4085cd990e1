"""What chapter 10 asks of trained counters: do they follow the question, where do their
maps look, is CounTX better?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import einsum
from torch import Tensor

from minilib.batch import Batch
from minilib.metrics.counting import count_errors
from minilib.models import vlcounter as paper
from minilib.models.vlcounter import VLCounter
from minilib.recipes.countx import recipe as countx
from minilib.recipes.shared.counting import (
    Counter,
    Questions,
    counted_classes,
    validation_target,
)
from minilib.recipes.shared.counting_scenes import scenes_of
from minilib.recipes.vlcounter.chapter import Study
from minilib.recipes.vlcounter.protocol import cell_readout
from minilib.recipes.vlcounter.recipe import PLURAL
from minilib.scenes import VOCABULARY

# --- What a counter does with the question --------------------------------------------


def by_presence(answer: Tensor, questions: Questions) -> dict[str, float]:
    """Return how well answers (N,) follow the question.

    Returns:
        "present" and "absent", the mean absolute errors of questions for what is there
        and for what is not; "follows", the correlation of answers and truth within an
        image, over images with several questions: 0 where a counter gives every
        question about an image the same answer.
    """
    truth, error = questions.counts, (answer - questions.counts).abs()
    there = truth > 0
    inside = torch.zeros(2, len(truth))
    for image in questions.about.unique():
        rows = questions.about == image
        for k, values in enumerate((answer, truth)):
            inside[k, rows] = values[rows] - values[rows].mean()
    spread = inside.square().sum(1).prod().sqrt()
    return {
        "present": error[there].mean().item() if there.any() else 0.0,
        "absent": error[~there].mean().item() if (~there).any() else 0.0,
        "follows": ((inside[0] * inside[1]).sum() / spread).item()
        if spread > 0
        else 0.0,
    }


def dominant(questions: Questions) -> tuple[Tensor, Tensor]:
    """Return which questions mean the most frequent class of their image, and which the
    least frequent one present."""
    first, last = (
        torch.zeros(len(questions), dtype=torch.bool),
        torch.zeros(len(questions), dtype=torch.bool),
    )
    counts = questions.counts
    for image in questions.about.unique():
        rows = ((questions.about == image) & (counts > 0)).nonzero()[:, 0]
        if len(rows) > 1:
            first[rows[counts[rows].argmax()]] = True
            last[rows[counts[rows].argmin()]] = True
    return first, last


# --- Where the similarity map looks ---------------------------------------------------


@dataclass(frozen=True)
class LargeObjects:
    """Scenes of a few large objects of two classes, and which cells of
    the map they cover."""

    batch: Batch
    """``caption`` is what is asked for."""
    inside: Tensor
    """(B, h, w) bool: the cell's centre lies in a box of what is asked for."""
    centre: Tensor
    """(B, h, w) bool: and within a quarter of the box's side of its middle."""
    other: Tensor
    """(B, h, w) bool: in a box of another class."""


def large_objects(
    study: Study, n: int = 60, seed: int = 0, part: str = "test"
) -> LargeObjects:
    """Draw ``n`` scenes of two to five objects asked for and one to three others, and
    lay the grid over them."""
    size = study.values.scenes.size
    scenes = replace(
        study.values.scenes,
        count=(2, 5),
        distractors=(1, 3),
        scale=(0.75, 1.0),
        jitter=0.5,
    )
    batch = scenes.scenes(counted_classes(part), study.clip.device).batch(
        "count", n, "test", seed
    )
    batch.caption = [VOCABULARY[i].plural for i in batch.label.tolist()]
    rows, columns = study.grid
    x = (torch.arange(columns, device=batch.image.device) + 0.5) * size / columns
    y = (torch.arange(rows, device=batch.image.device) + 0.5) * size / rows
    masks = torch.zeros(
        3, n, rows, columns, dtype=torch.bool, device=batch.image.device
    )
    for i, (boxes, classes) in enumerate(zip(batch.boxes, batch.classes, strict=True)):
        middle, half = (
            (boxes[:, :2] + boxes[:, 2:]) / 2,
            (boxes[:, 2:] - boxes[:, :2]) / 2,
        )
        # (objects, columns), 1 at the box's edge
        across = (x[None] - middle[:, :1]).abs() / half[:, :1]
        down = (y[None] - middle[:, 1:]).abs() / half[:, 1:]
        reach = torch.maximum(across[:, None, :], down[:, :, None])
        asked = classes == batch.label[i]
        masks[0, i] = (reach[asked] <= 1).any(0)
        masks[1, i] = (reach[asked] <= 0.5).any(0)
        masks[2, i] = (reach[~asked] <= 1).any(0) & ~masks[0, i]
    return LargeObjects(batch, *masks)


def area_under_curve(score: Tensor, positive: Tensor, negative: Tensor) -> float | None:
    """Return the chance that a positive cell scores higher than a negative one; None
    where one kind is missing."""
    high, low = score[positive], score[negative]
    if not len(high) or not len(low):
        return None
    wins = (high[:, None] > low[None]).double() + 0.5 * (
        high[:, None] == low[None]
    ).double()
    return wins.mean().item()


def map_scores(maps: Tensor, large: LargeObjects) -> dict[str, float]:
    """Say what maps (B, h, w) are high on, as areas under the curve, means over
    scenes; 0.5 is chance.

    Returns:
        "objects", what is asked for against background; "others", against objects of
        other classes; "centres", the middle of an object against its own rim.
    """
    background, rim = ~large.inside & ~large.other, large.inside & ~large.centre
    pairs = {
        "objects": (large.inside, background),
        "others": (large.inside, large.other),
        "centres": (large.centre, rim),
    }
    report = {}
    for name, (positive, negative) in pairs.items():
        found = [
            area_under_curve(m, p, n)
            for m, p, n in zip(maps, positive, negative, strict=True)
        ]
        kept = [value for value in found if value is not None]
        report[name] = sum(kept) / len(kept)
    return report


@torch.no_grad()
def maps_of(
    model: VLCounter, batch: Batch, templates: Sequence[str] = PLURAL
) -> dict[str, Tensor]:
    """Return the maps on the way from CLIP to the count, (B, h, w) each, and
    ``density`` (B, H, W) in objects.

    ``cosine`` is raw CLIP's, with the encoder as the variant prompts it; ``S`` and
    ``S'`` are before and after the affine map.
    """
    text = model.encode_names(batch.caption, templates)
    output = model.eval()(model.preprocess(batch.image), text)
    return {
        "cosine": einsum(output.patches, text, "b e h w, b e -> b h w"),
        "S": output.raw_similarity[:, 0],
        "S'": output.similarity[:, 0],
        "density": output.density[:, 0] / paper.DENSITY_SCALE,
    }


# --- Ways to read a count from a map --------------------------------------------------


@torch.no_grad()
def read_outs(
    model: VLCounter, questions: Questions, batch_size: int = 40
) -> dict[str, float]:
    """Return the mean absolute error of each way to read a count from the
    same density maps.

    "sum" is the plain one. "cells" is the authors' rule for CARPK and PUCPR+, with
    cells of one patch as theirs; "against smoothed dots" keeps the sum and takes for
    the truth what their script for FSC-147 does.
    """
    patch, found = (
        model.config.clip.vision.patch,
        {name: [] for name in ("sum", "positive pixels", "cells")},
    )
    for rows in torch.arange(len(questions)).split(batch_size):
        for density in maps_of(
            model, questions.batch(rows.tolist(), model.clip.device)
        )["density"].cpu():
            found["sum"].append(density.sum())
            found["positive pixels"].append(density.clamp(min=0).sum())
            found["cells"].append(
                cell_readout(density * paper.DENSITY_SCALE, patch)["count"]
            )
    answer = {name: torch.stack(values) for name, values in found.items()}
    shape = tuple(questions.image.shape[-2:])
    smoothed = torch.stack(
        [validation_target(points, shape, shape).sum() for points in questions.points]
    ).float()
    truth = questions.counts
    return {
        "sum": count_errors(answer["sum"], truth).mae,
        "never below zero": count_errors(answer["sum"].clamp(min=0), truth).mae,
        "rounded": count_errors(answer["sum"].round(), truth).mae,
        "positive pixels": count_errors(answer["positive pixels"], truth).mae,
        "cells": count_errors(answer["cells"], truth).mae,
        "against smoothed dots": count_errors(answer["sum"], smoothed).mae,
    }


def wide_scenes(study: Study, n: int, seed: int) -> Questions:
    """Draw ``n`` scenes twice as wide as the window, of classes that
    were never counted."""
    size = study.values.scenes.size
    scenes = scenes_of(
        study.values.scenes,
        n,
        "test",
        "test",
        seed,
        coloured=0.0,
        shape=(size, 2 * size),
    )
    return scenes.questions(("class", "absent"), plain=True, article=False)


# --- Beside CounTX --------------------------------------------------------------------


def train_countx(
    study: Study, seed: int, *, frozen: bool = False, progress: str | None = None
) -> tuple[torch.nn.Module, Counter]:
    """Train CounTX on the very questions, in the very order, for as many steps as a
    variant of the ablation.

    It reads "the dogs" and starts with patches and texts of mean zero, as in its own
    chapter. It trains its image tower, as its authors do, unless ``frozen``.

    Raises:
        ValueError: the images are not square, as CounTX needs them.
    """
    height, width = study.train.image.shape[-2:]
    if height != width:
        raise ValueError(
            f"CounTX reads square windows, the images have {height} x {width} pixels: "
            "make them square"
        )
    lab = study.values.lab
    model = countx.build(
        study.clip,
        width,
        decoder_width=lab.channels,
        seed=seed,
        images=study.train.image[:100],
        names=study.train.names,
    )
    stream = study.train.stream(lab.batch_size, seed, study.clip.device)

    def batches(step: int) -> Batch:
        batch = stream(step)
        return replace(batch, caption=[f"the {name}" for name in batch.caption])

    schedule = countx.Schedule(
        steps=lab.steps, images=lab.batch_size, each=1, frozen=frozen
    )
    countx.train(model, batches, schedule, seed, progress=progress)
    plain = countx.counter_of(model.eval())
    return model, lambda batch: plain(
        replace(batch, caption=[f"the {name}" for name in batch.caption])
    )
