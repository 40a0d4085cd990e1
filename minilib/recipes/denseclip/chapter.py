"""Chapter 6's values per profile, its data, its main training, and the steps
that its cells call by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minilib.batch import Batch, required
from minilib.claims.chapter import Chapter, Run
from minilib.datasets.camvid import CamVid
from minilib.metrics.segmentation import SegmentationScore
from minilib.models.clip import CLIP
from minilib.models.denseclip import DenseCLIP
from minilib.parameters import Parameters
from minilib.recipes.denseclip import recipe
from minilib.recipes.denseclip.recipe import VARIANTS, Lab
from minilib.recipes.shared.photographs import camvid
from minilib.recipes.shared.randomness import seeded_torch
from minilib.recipes.shared.segmentation import LabelSpace, renumber
from minilib.training import History, Training

MAIN = "post-model"
"""The variant that the chapter examines; it is among the variants of every profile."""
NAMED = ("CLIP, no text", MAIN, "shuffled names")
"""The variants that say what names are worth."""
USES = ("concatenation alone", "auxiliary loss alone")
"""Each of the score map's two uses by itself."""
MANY = ("no text, many images", "post-model, many images")
KNOWN = ("sky", "road", "tree", "car")
"""The labels of CamVid that captions of EmojiScenes speak of; pixels of the other seven
are void."""
STARTS = ("random weights", "classifier", "captions", "classifier, post-model")


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    lab: Lab = field(default_factory=Lab)
    """The size of everything."""
    variants: tuple[str, ...] = NAMED
    """The members of ``VARIANTS`` that are trained."""


PROFILES = {
    "quick": Values(lab=Lab(steps=80, test_images=80)),
    "full": Values(variants=(*NAMED, *USES, *MANY, *STARTS)),
    "photos": Values(lab=Lab(size=(128, 160), labelled=32)),
}


@dataclass
class Study:
    """A data set as the chapter uses it."""

    names: tuple[str, ...]
    """K class names."""
    batches: Callable[[int], Batch]
    """Training batches by step, of the few labelled images; mask values 0 ... K - 1 or
    255."""
    many: Callable[[int], Batch]
    """Training batches that never show an image twice (scenes)."""
    test: Batch
    """Test images with masks."""
    things: tuple[str, ...] = ()
    """The classes that are objects, first in ``names`` (scenes)."""


def study(run: Parameters, values: Values) -> Study:
    """Return the data of a run: EmojiScenes, or CamVid."""
    if run.photos:
        return photos_study(values, run.seed, run.device, run.data_path)
    return scenes_study(values, run.seed, run.device)


def scenes_study(
    values: Values, seed: int, device: torch.device | str = "cpu"
) -> Study:
    """Return EmojiScenes as a study."""
    lab, source = values.lab, recipe.scenes(values.lab, device)
    names = lab.things + lab.backgrounds
    labels = LabelSpace(names, seen=tuple(range(len(names))))

    def drawn(n: int, split: str, start: int = 0) -> Batch:
        batch = source.batch("segment", n, split, seed, start)
        return replace(batch, mask=labels.from_scene(required(batch.mask, "mask")))

    size = lab.batch_size
    return Study(
        names=names,
        batches=labelled_batches(drawn(lab.labelled, "train"), size, seed),
        # what lies behind the labelled images
        many=lambda step: drawn(size, "train", lab.labelled + step * size),
        test=drawn(lab.test_images, "test"),
        things=lab.things,
    )


def labelled_batches(
    labelled: Batch, batch_size: int, seed: int
) -> Callable[[int], Batch]:
    """Return ``step -> Batch``: every labelled image once an epoch in a new order, half
    of them mirrored with their masks.

    Raises:
        ValueError: an epoch is not a whole number of batches.
    """
    if len(labelled) % batch_size:
        raise ValueError(
            f"{len(labelled)} labelled images are no whole number of batches of "
            f"{batch_size}"
        )
    mask, per_epoch = required(labelled.mask, "mask"), len(labelled) // batch_size

    def batch(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(labelled), generator=seeded_torch(seed, epoch, 6))
        rows = order[place * batch_size :][:batch_size]
        mirror = torch.rand(batch_size, generator=seeded_torch(seed, step, 7)) < 0.5
        mirror = mirror.to(mask.device)
        image = labelled.image[rows]
        return Batch(
            image=image.flip(-1).where(mirror[:, None, None, None], image),
            mask=mask[rows].flip(-1).where(mirror[:, None, None], mask[rows]),
        )

    return batch


def photos_study(
    values: Values, seed: int, device: torch.device | str, data: Path
) -> Study:
    """Return CamVid as a study, with the labels that ``mini-rn`` has read about: a few
    of the 367 training photographs, chosen by the seed, and all 233 test photographs.

    Raises:
        FileNotFoundError: CamVid is not in it.
    """
    lab = values.lab
    train, test = (camvid(data, split, lab.size) for split in ("train", "test"))
    known = [train.names.index(name) for name in KNOWN]

    def frames(of: CamVid, rows: Sequence[int]) -> Batch:
        batch = of.batch(rows, device)
        return replace(batch, mask=renumber(required(batch.mask, "mask"), known))

    order = torch.randperm(len(train), generator=seeded_torch(seed, 0, 8)).tolist()
    labelled = frames(train, order[: lab.labelled])
    batches = labelled_batches(labelled, lab.batch_size, seed)
    return Study(KNOWN, batches, batches, frames(test, range(len(test))))


def main_training(run: Parameters, values: Values, study: Study) -> Training:
    """Return the chapter's main training, post-model prompting of the CLIP that
    ``run.weights`` names ("" = mini-rn)."""
    clip = recipe.source_clip(run.weights, run.device)
    return variant_training(MAIN, study, clip, values, run.seed)


def variant_training(
    name: str, study: Study, clip: CLIP, values: Values, seed: int
) -> Training:
    """Return the training of one of ``VARIANTS`` from its starting point ``clip``."""
    batches = study.many if VARIANTS[name].many else study.batches
    return recipe.training(name, study.names, batches, clip, values.lab, seed)


@dataclass
class Trained:
    """A trained variant."""

    model: DenseCLIP
    history: History
    score: dict[str, SegmentationScore]
    """See ``recipe.evaluate``."""


def judged(model: nn.Module, history: History, test: Batch) -> Trained:
    """Return a trained variant with its score on the test images."""
    assert isinstance(model, DenseCLIP)  # for the type checker
    return Trained(model, history, recipe.evaluate(model, test))


def train_variant(
    name: str,
    study: Study,
    clip: CLIP,
    values: Values,
    seed: int,
    out: Path | None = None,
) -> Trained:
    """Train the variant ``name`` and judge it; an interrupted training in
    ``out`` resumes."""
    training = variant_training(name, study, clip, values, seed)
    folder = None if out is None else out / name.replace(",", "").replace(" ", "-")
    history = training.fit(folder, progress=name)
    return judged(training.model, history, study.test)


def train_variants(
    run: Run[Values, Study], clip: CLIP, model: nn.Module, history: History
) -> dict[str, Trained]:
    """Train the variants that the values name beside the main one, and judge them all.

    Args:
        run: the notebook's.
        clip: what ``run.weights`` names; see ``recipe.starting_points``.
        model: the result of the main training, which is judged and not trained again.
        history: likewise.

    Returns:
        The variants in the order of the values.
    """
    values, study = run.values, run.study
    points = recipe.starting_points(
        values.lab, values.variants, clip, run.seed, run.out
    )
    trained = {}
    for name in values.variants:
        if name == MAIN:
            trained[name] = judged(model, history, study.test)
        else:
            start = points[VARIANTS[name].start]
            trained[name] = train_variant(name, study, start, values, run.seed, run.out)
    return trained


def mean_ious(rungs: Mapping[str, Trained], kind: str = "head") -> dict[str, float]:
    """Return the mIoU of the variants, of the final output ("head") or, where there is
    one, of the score map ("scores")."""
    return {
        name: rung.score[kind].mean_iou()
        for name, rung in rungs.items()
        if kind in rung.score
    }


def class_ious(
    rungs: Mapping[str, Trained], names: Sequence[str]
) -> dict[str, list[Any]]:
    """Return the IoU per class of each variant for a record, beside the ``names``; None
    where a class does not occur."""
    table: dict[str, list[Any]] = {"names": list(names)}
    for name, rung in rungs.items():
        ious = rung.score["head"].iou().tolist()
        table[name] = [None if v != v else round(v, 4) for v in ious]
    return table


def rounded(values: Mapping[str, float], digits: int = 4) -> dict[str, float]:
    """Return the numbers rounded, for a record or a print."""
    return {name: round(value, digits) for name, value in values.items()}


def photo_ious(
    mean: Sequence[Mapping[str, float]], classes: Sequence[Mapping[str, Sequence[Any]]]
) -> list[dict[str, dict[str, Any]]]:
    """Return per seed the IoU of the mean and of every class, by variant; for
    ``plotting.columns_over_seeds``.

    Args:
        mean: per seed what :func:`mean_ious` returned.
        classes: per seed what :func:`class_ious` returned.
    """
    seeds = []
    for means, table in zip(mean, classes, strict=True):
        rows: dict[str, dict[str, Any]] = {"**mean**": dict(means)}
        for i, name in enumerate(table["names"]):
            rows[name] = {variant: table[variant][i] for variant in means}
        seeds.append(rows)
    return seeds


def by_variant(
    final: Sequence[Mapping[str, float]], maps: Sequence[Mapping[str, float]]
) -> list[dict[str, dict[str, float | None]]]:
    """Return per seed a row for every variant with its mIoU, of the final output and of
    the score map, None where it has none; for ``plotting.columns_over_seeds``.

    Args:
        final: per seed what :func:`mean_ious` returned.
        maps: likewise, of the score maps.
    """
    return [
        {
            name: {"final output": value, "score map": scores.get(name)}
            for name, value in heads.items()
        }
        for heads, scores in zip(final, maps, strict=True)
    ]


CHAPTER = Chapter(
    "denseclip",
    PROFILES,
    study,
    main_training,
    needs={
        "photos": {
            "data": "a folder with CamVid (python data_scripts/get_camvid.py makes one)"
        }
    },
    missing={
        "paper": (
            "it needs ADE20K, OpenAI's RN50 and a GPU, see 'At paper scale' in the "
            "chapter"
        )
    },
)
open = CHAPTER.open
