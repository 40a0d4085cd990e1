"""What chapter 10 asks of trained counters: do they follow the question, where do their
maps look, is CounTX better?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from minilib.batch import Batch, required
from minilib.layers.transformer import ResidualAttentionBlock
from minilib.metrics.counting import count_errors
from minilib.models import vlcounter as paper
from minilib.models.clip import VisionTransformer
from minilib.models.vlcounter import VLCounter
from minilib.models.vlcounter.prompts import PLURAL_TEMPLATES, SINGULAR_TEMPLATES

# The one recipe of another paper here: the claim compares with CounTX as its own
# chapter builds and trains it, and that is too much to be shared code.
from minilib.recipes.countx import recipe as countx
from minilib.recipes.shared.counting import (
    Counter,
    Questions,
    answers,
    counted_classes,
    similarity_threshold,
    training_mean,
    validation_target,
    window_counter,
)
from minilib.recipes.shared.counting_scenes import scenes_of
from minilib.recipes.vlcounter.chapter import Study
from minilib.recipes.vlcounter.protocol import cell_readout
from minilib.recipes.vlcounter.recipe import (
    CONTROLS,
    PLURAL,
    SINGULAR,
    counter_of,
    singular,
    train,
    trained_parameters,
)
from minilib.scenes import VOCABULARY
from minilib.training import History

# --- The ablation ---------------------------------------------------------------------


def ablation(
    study: Study, seed: int, main: VLCounter, history: History
) -> tuple[dict[str, VLCounter], dict[str, History]]:
    """Train the variants of the profile but M5, which ``main`` is, with its history.

    Returns:
        all models and all histories, by variant in the order of the profile.
    """
    models, histories = {"M5": main}, {"M5": history}
    for variant in study.values.variants:
        if variant != "M5":
            models[variant], histories[variant] = train(
                study.clip, study.train, study.values.lab, variant, seed,
                progress=variant,
            )  # fmt: skip
    order = study.values.variants
    return {v: models[v] for v in order}, {v: histories[v] for v in order}


def controls(study: Study, seed: int) -> dict[str, Counter]:
    """Train the controls of ``recipe.CONTROLS`` where the profile wants them, else
    none."""
    counters: dict[str, Counter] = {}
    for name, (variant, lesson) in CONTROLS.items():
        if study.values.controls:
            model, _ = train(
                study.clip, study.train, study.values.lab, variant, seed, lesson, name
            )
            counters[name] = counter_of(model, lesson.templates, lesson.rename)
    return counters


def baselines(study: Study) -> dict[str, Counter]:
    """Return the two answers to beat: the mean of the training answers (of each name on
    micrographs), and blobs of raw CLIP's similarity map.

    The threshold of the blobs is fitted to every k-th training question.
    """
    apart = max(1, len(study.train) // 120)
    spread = study.train.take(range(0, len(study.train), apart))
    blobs, _ = similarity_threshold(study.clip, spread, study.clip.device)
    mean = training_mean(study.train, by_name=study.photos)
    return {"training mean": mean, "similarity threshold": blobs}


def scores(
    study: Study, counters: Mapping[str, Counter], found: Mapping[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Return the row of each counter in the chapter's table.

    Args:
        study: for its questions about seen classes (on micrographs, validation).
        counters: by name.
        found: their answers (N,) to the test questions.

    Returns:
        per counter "mae" and "rmse", "seen", the MAE on ``study.seen``, and what
        :func:`by_presence` says.
    """
    rows = {}
    for name, counter in counters.items():
        errors = count_errors(found[name], study.test.counts)
        seen = answers(counter, study.seen, study.clip.device)
        rows[name] = {
            "mae": errors.mae,
            "rmse": errors.rmse,
            "seen": count_errors(seen, study.seen.counts).mae,
            **by_presence(found[name], study.test),
        }
    return rows


def by_name(
    questions: Questions, found: Mapping[str, Tensor]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return "mae" and "rmse" of every counter's answers (N,), for each name asked."""
    report = {}
    for name in questions.names:
        mine = torch.tensor([asked == name for asked in questions.asked])
        errors = {
            counter: count_errors(answer[mine], questions.counts[mine])
            for counter, answer in found.items()
        }
        report[name] = {k: {"mae": e.mae, "rmse": e.rmse} for k, e in errors.items()}
    return report


def over_seeds(
    tables: Sequence[Mapping[str, Mapping[str, float]]],
    variants: Sequence[Mapping[str, float]],
    beside: Sequence[Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, list[float]]]:
    """Join the committed results "table", "variants" and "beside", one of each per
    seed.

    Returns:
        per counter, variant and control the numbers over seeds of "mae" and, where
        they are known, "rmse", "seen" and "follows"; empty without results.
    """
    if not tables:
        return {}
    keys = ("mae", "rmse", "seen", "follows")
    rows = {
        name: {key: [table[name][key] for table in tables] for key in keys}
        for name in tables[0]
    }
    rows["CounTX"] = {
        key: [numbers["CounTX"][key] for numbers in beside]
        for key in ("mae", "follows")
    }
    for name, (variant, _) in CONTROLS.items():
        maes = [numbers[name] for numbers in variants]
        rows[f"{variant}, {name}"] = {"mae": maes}
    return rows


# --- What a counter does with the question --------------------------------------------


def simplest(questions: Questions, names: int = 3) -> list[int]:
    """Return ``names`` questions about one image, for pictures: the image with the
    fewest objects among those that show so many classes or more.

    Raises:
        ValueError: there is no such image.
    """
    present = [
        ((questions.about == image) & (questions.counts > 0)).nonzero()[:, 0]
        for image in range(len(questions.image))
    ]
    enough = [rows for rows in present if len(rows) >= names]
    if not enough:
        raise ValueError(f"no image shows {names} classes or more: ask for fewer names")
    rows = min(enough, key=lambda rows: questions.counts[rows].sum().item())
    return rows[:names].tolist()


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


def asked_for_the_few(answer: Tensor, questions: Questions) -> dict[str, float]:
    """Return the errors of answers (N,) to the questions for the least frequent class
    of an image.

    Returns:
        "asked", the mean absolute error; "swapped", that of the answers to the question
        for the most frequent class of the same image in their place; and "n", the
        number of questions.
    """
    many, few = dominant(questions)
    images = questions.about[many].tolist()
    other = dict(zip(images, answer[many].tolist(), strict=True))
    swapped = torch.tensor([other[image] for image in questions.about[few].tolist()])
    truth = questions.counts[few]
    return {
        "asked": (answer[few] - truth).abs().mean().item(),
        "swapped": (swapped - truth).abs().mean().item(),
        "n": int(few.sum()),
    }


def mean_answers(
    found: Mapping[str, Tensor], questions: Questions
) -> dict[str, list[float]]:
    """Return the mean of the truth and of each counter's answers (N,) to the questions
    for the most frequent, the least frequent and the absent class of an image."""
    parts = (*dominant(questions), questions.counts == 0)
    rows = {"truth": questions.counts, **found}
    return {
        name: [answer[part].mean().item() for part in parts]
        for name, answer in rows.items()
    }


@torch.no_grad()
def attention_to_prompts(model: VLCounter, batch: Batch) -> Tensor:
    """Return how much each patch attends to the prompts in the second layer,
    (B, h, w): a sum over prompts, a mean over heads.

    Raises:
        ValueError: the variant has no prompts.
    """
    prompts, m = model.eval().prompts, model.config.prompts
    if prompts is None:
        raise ValueError("encoder='frozen' has no prompts: pass M2 or a later variant")
    visual = _tower(model)
    first, second = visual.transformer.resblocks[0], visual.transformer.resblocks[1]
    assert isinstance(second, ResidualAttentionBlock)
    text = model.encode_names(required(batch.caption, "caption"), PLURAL)
    patches = visual.conv1(model.preprocess(batch.image))
    x = visual.tokens(patches, "bilinear", double_class=True)
    x = first(torch.cat([x[:, :1], prompts(0, text), x[:, 1:]], dim=1))
    x = torch.cat([x[:, :1], prompts(1, text), x[:, 1 + m :]], dim=1)
    weights = second.attention(x).mean(1)
    return weights[:, 1 + m :, 1 : 1 + m].sum(-1).unflatten(1, patches.shape[-2:])


def _tower(model: VLCounter) -> VisionTransformer:
    """Return the image tower, which VLCounterConfig lets be nothing else."""
    assert isinstance(model.clip.visual, VisionTransformer)
    return model.clip.visual


# --- The rank-aware loss --------------------------------------------------------------


def positives(study: Study, most: int = 192) -> float:
    """Return the share of the patches with an object that the rank-aware loss takes for
    a positive of some band, over the first ``most`` training questions."""
    levels, occupied = [], []
    for rows in torch.arange(min(most, len(study.train))).split(
        study.values.lab.batch_size
    ):
        chunk = required(study.train.batch(rows.tolist()).density, "density")
        levels.append(paper.sampled_target(chunk, study.grid)[:, 0])
        largest = F.adaptive_max_pool2d(chunk, study.grid)[:, 0]
        occupied.append(largest > chunk.max() / 2)
    level, inside = torch.cat(levels), torch.cat(occupied)
    positive = (level > 0.4) & (level < 1) & inside
    return positive.sum().item() / inside.sum().item()


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
    label = required(batch.label, "label")
    batch.caption = [VOCABULARY[i].plural for i in label.tolist()]
    rows, columns = study.grid
    x = (torch.arange(columns, device=batch.image.device) + 0.5) * size / columns
    y = (torch.arange(rows, device=batch.image.device) + 0.5) * size / rows
    masks = torch.zeros(
        3, n, rows, columns, dtype=torch.bool, device=batch.image.device
    )
    pairs = zip(
        required(batch.boxes, "boxes"), required(batch.classes, "classes"), strict=True
    )
    for i, (boxes, classes) in enumerate(pairs):
        middle, half = (
            (boxes[:, :2] + boxes[:, 2:]) / 2,
            (boxes[:, 2:] - boxes[:, :2]) / 2,
        )
        # (objects, columns), 1 at the box's edge
        across = (x[None] - middle[:, :1]).abs() / half[:, :1]
        down = (y[None] - middle[:, 1:]).abs() / half[:, 1:]
        reach = torch.maximum(across[:, None, :], down[:, :, None])
        asked = classes == label[i]
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
    text = model.encode_names(required(batch.caption, "caption"), templates)
    output = model.eval()(model.preprocess(batch.image), text)
    return {
        "cosine": einsum(output.patches, text, "b e h w, b e -> b h w"),
        "S": output.raw_similarity[:, 0],
        "S'": output.similarity[:, 0],
        "density": output.density[:, 0] / paper.DENSITY_SCALE,
    }


@torch.no_grad()
def last_blocks(base: VLCounter, large: LargeObjects) -> dict[str, dict[str, float]]:
    """Return :func:`map_scores` of the frozen CLIP's cosine, with three ways to end its
    image tower.

    Args:
        base: M1; only its frozen CLIP is used.
        large: what to look at.
    """
    pixels = base.preprocess(large.batch.image)
    text = base.encode_names(required(large.batch.caption, "caption"), PLURAL)
    features = {
        "last block as CLIP has it": base.clip.encode_patches(
            pixels, normalize=True, mode="token"
        ),
        "values only, with MLP": base.clip.encode_patches(
            pixels, normalize=True, mode="value"
        ),
        "values only, no MLP (VLCounter)": paper.encode_image(
            _tower(base), None, pixels, text, ()
        )[1],
    }
    return {
        name: map_scores(einsum(patches, text, "b e h w, b e -> b h w"), large)
        for name, patches in features.items()
    }


def looks(
    base: VLCounter, models: Mapping[str, VLCounter], large: LargeObjects
) -> dict[str, dict[str, float]]:
    """Return :func:`map_scores` of the frozen CLIP's cosine (``base`` is M1, untrained)
    and of each variant's cosine, S and, where it has an affine map, S'."""
    frozen = maps_of(base, large.batch)["cosine"]
    found = {"frozen CLIP, cosine": map_scores(frozen, large)}
    for variant, model in models.items():
        maps = maps_of(model, large.batch)
        for name in ("cosine", "S", "S'"):
            if name != "S'" or model.head.affine is not None:
                found[f"{variant}, {name}"] = map_scores(maps[name], large)
    return found


@torch.no_grad()
def grammar(base: VLCounter, large: LargeObjects) -> dict[str, dict[str, float]]:
    """Return :func:`map_scores` of the frozen CLIP's cosine with words in the plural
    and in the singular; ``base`` is M1, untrained."""
    lists: dict[str, tuple[Sequence[str], Callable[[str], str]]] = {
        "plural": (PLURAL, str),
        "singular": (SINGULAR, singular),
        "bare plural": (("{}",), str),
        "bare singular": (("{}",), singular),
        "the paper's plural list": (PLURAL_TEMPLATES, str),
        "the paper's singular list": (SINGULAR_TEMPLATES, singular),
    }
    names = required(large.batch.caption, "caption")
    pixels = base.preprocess(large.batch.image)
    found = {}
    for title, (templates, rename) in lists.items():
        text = base.encode_names([rename(name) for name in names], templates)
        _, patches = paper.encode_image(_tower(base), None, pixels, text, ())
        cosine = einsum(patches, text, "b e h w, b e -> b h w")
        found[title] = map_scores(cosine, large)
    return found


@torch.no_grad()
def inside_the_gate(model: VLCounter, batch: Batch, pick: int) -> dict[str, Tensor]:
    """Return what M5 learned of places, and what that does to image ``pick``.

    Returns:
        maps by title: "W" and "B" of the affine map (h, w), "gate", which is S'
        (h, w), and the mean size over channels of what the last skip connection adds,
        as large as the decoder's map there.

    Raises:
        ValueError: the variant has no affine map or no skip connections.
    """
    affine = model.head.affine
    if affine is None or not model.head.skips:
        raise ValueError(
            f"affine={model.config.affine}, skip={model.config.skip!r}: expected an "
            "affine map and skip connections, as in M5"
        )
    text = model.encode_names(required(batch.caption, "caption"), PLURAL)
    output = model.eval()(model.preprocess(batch.image), text)
    return {
        "W": affine.weight[0, 0],
        "B": affine.bias[0, 0],
        "gate": output.similarity[pick, 0],
        "last skip, mean |.|": output.skips[-1][pick].abs().mean(0),
    }


# --- Ways to read a count from a map --------------------------------------------------


READ_OUTS = {
    "sum": "the sum of the map, as everywhere in this chapter",
    "never below zero": "answers below zero become zero",
    "rounded": "answers become whole numbers",
    "positive pixels": "the sum of the positive pixels alone",
    "cells": "one less for every patch that holds more than 1.224 objects (the rule "
    "for CARPK)",
    "against smoothed dots": "the sum, against the authors' smoothed truth",
    "twice as wide, recursive merge": "wide scenes, windows averaged one after another "
    "(the authors' merge)",
    "twice as wide, uniform merge": "wide scenes, windows averaged evenly",
}
"""What :func:`read_outs` and :func:`wide_read_outs` measure, in words."""


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
    patch = model.config.clip.vision.reduction
    found: dict[str, list[Tensor]] = {"sum": [], "positive pixels": [], "cells": []}
    for rows in torch.arange(len(questions)).split(batch_size):
        batch = questions.batch(rows.tolist(), model.clip.device)
        for density in maps_of(model, batch)["density"].cpu():
            cells = cell_readout(density * paper.DENSITY_SCALE, patch)
            found["sum"].append(density.sum())
            found["positive pixels"].append(density.clamp(min=0).sum())
            found["cells"].append(cells["count"])
    answer = {name: torch.stack(values) for name, values in found.items()}
    height, width = questions.image.shape[-2:]
    shape = (height, width)
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


def wide_read_outs(model: VLCounter, study: Study, seed: int) -> dict[str, float]:
    """Return the mean absolute error on :func:`wide_scenes`, read through windows, for
    both ways to merge them."""
    wide = wide_scenes(study, 40 if study.values.controls else 20, seed)
    found = {}
    for merge in ("recursive", "uniform"):
        density = partial(model.density, merge=merge, templates=PLURAL)
        answer = answers(window_counter(density), wide, study.clip.device)
        errors = count_errors(answer, wide.counts)
        found[f"twice as wide, {merge} merge"] = errors.mae
    return found


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
        return _with_article(stream(step))

    schedule = countx.Schedule(
        steps=lab.steps, images=lab.batch_size, each=1, frozen=frozen
    )
    countx.train(model, batches, schedule, seed, progress=progress)
    plain = countx.counter_of(model.eval())
    return model, lambda batch: plain(_with_article(batch))


def _with_article(batch: Batch) -> Batch:
    """Return a batch that asks for "the dogs" instead of "dogs"."""
    names = required(batch.caption, "caption")
    return replace(batch, caption=[f"the {name}" for name in names])


def against_countx(
    study: Study, seed: int, m5: VLCounter, answer: Tensor
) -> tuple[dict[str, dict[str, float]], Tensor]:
    """Train CounTX, see :func:`train_countx`, and set it beside M5.

    Args:
        study: what CounTX learns from, and the test questions.
        seed: of its training.
        m5: the trained VLCounter.
        answer: (N,), its answers to the test questions.

    Returns:
        for "CounTX" and "VLCounter (M5)" the "mae", "trained", the number of parameters
        that training changes, and what :func:`by_presence` says; and CounTX's answers
        (N,).
    """
    rival, counter = train_countx(study, seed, progress="CounTX")
    theirs = answers(counter, study.test, study.clip.device)
    both: dict[str, tuple[torch.nn.Module, Tensor]] = {
        "CounTX": (rival, theirs),
        "VLCounter (M5)": (m5, answer),
    }
    report = {
        name: {
            "mae": count_errors(found, study.test.counts).mae,
            "trained": trained_parameters(model),
            **by_presence(found, study.test),
        }
        for name, (model, found) in both.items()
    }
    return report, theirs
