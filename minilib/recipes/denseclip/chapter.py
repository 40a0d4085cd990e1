"""Chapter 6's values per profile, its data, and the steps that its
cells call by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from minilib.batch import Batch
from minilib.metrics.segmentation import SegmentationScore
from minilib.models.clip import CLIP
from minilib.models.denseclip import DenseCLIP
from minilib.recipes.denseclip import recipe
from minilib.recipes.denseclip.recipe import VARIANTS, Lab
from minilib.recipes.shared.photographs import CamVidStream, camvid
from minilib.recipes.shared.segmentation import LabelSpace
from minilib.training import History, Training


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    lab: Lab = field(default_factory=Lab)
    """The size of everything."""
    variants: tuple[str, ...] = ("CLIP, no text", "post-model", "shuffled names")
    """The members of ``VARIANTS`` that are trained."""
    detection: tuple[str, ...] = ()
    """The variants that are trained as detectors."""
    detection_steps: int = 200
    """Steps of each detector."""
    other_steps: int = 0
    """Steps of another backbone, without and with text; 0 = not trained."""


PROFILES = {
    "quick": Values(),
    "full": Values(
        lab=Lab(steps=100, test_images=320),
        variants=tuple(VARIANTS),
        detection=("CLIP, no text", "post-model"),
        other_steps=60,
    ),
    "photos": Values(lab=Lab(size=(96, 128), steps=110, batch_size=12)),
}
"""``paper`` has no values here: see the chapter's section on the paper's scale."""


@dataclass
class Study:
    """A data set as the chapter uses it."""

    names: tuple[str, ...]
    """K class names."""
    batches: Callable[[int], Batch]
    """Training batches by step, mask values 0 ... K - 1 or 255."""
    test: Batch
    """Test images with masks."""
    things: tuple[str, ...] = ()
    """The classes that are objects, first in ``names`` (scenes)."""


def scenes_study(
    values: Values, seed: int, device: torch.device | str = "cpu"
) -> Study:
    """Return EmojiScenes as a study."""
    lab, source = values.lab, recipe.scenes(values.lab, device)
    things = source.config.classes
    names = (*things, *source.config.backgrounds)
    labels = LabelSpace(names, seen=tuple(range(len(names))))

    def batch(n: int, split: str, start: int) -> Batch:
        drawn = source.batch("segment", n, split, seed, start)
        return replace(drawn, mask=labels.from_scene(drawn.mask))

    return Study(
        names=names,
        batches=lambda step: batch(lab.batch_size, "train", step * lab.batch_size),
        test=batch(lab.test_images, "test", 0),
        things=things,
    )


def photos_study(
    values: Values, seed: int, device: torch.device | str = "cpu", data: str | Path = ""
) -> Study:
    """Return CamVid as a study: 367 street scenes to train on, and all 233 test images.

    Raises:
        ValueError: no folder given.
        FileNotFoundError: CamVid is not in it.
    """
    train, test = (camvid(data, split, values.lab.size) for split in ("train", "test"))
    batches = CamVidStream(train, values.lab.batch_size, seed, "mirror", device)
    return Study(train.names, batches, test.batch(range(len(test)), device))


def study_of(
    values: Values,
    seed: int,
    device: torch.device | str = "cpu",
    data: str | Path = "",
    *,
    profile: str,
) -> Study:
    """Return the data of a profile: EmojiScenes, or CamVid in the folder ``data``."""
    if profile == "photos":
        return photos_study(values, seed, device, data)
    return scenes_study(values, seed, device)


@dataclass
class Trained:
    """A trained variant."""

    model: DenseCLIP
    history: History
    score: dict[str, SegmentationScore]
    """See ``recipe.evaluate``."""


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
    prepared = recipe.training(name, study.names, study.batches, clip, values.lab, seed)
    folder = None if out is None else out / name.replace(",", "").replace(" ", "-")
    history = prepared.fit(folder, progress=name)
    return Trained(prepared.model, history, recipe.evaluate(prepared.model, study.test))


def train_variants(
    study: Study, values: Values, clip: CLIP, seed: int, out: Path | None = None
) -> dict[str, Trained]:
    """Train every variant that ``values`` names; see :func:`train_variant`."""
    points = recipe.starting_points(values.lab, values.variants, clip, seed, out)
    starts = {name: points[VARIANTS[name].start] for name in values.variants}
    return {
        name: train_variant(name, study, start, values, seed, out)
        for name, start in starts.items()
    }


def main_training(
    profile: str,
    seed: int,
    device: torch.device | str = "cpu",
    *,
    data: str = "",
    weights: str = "mini-rn",
) -> Training:
    """Return the chapter's main training, post-model prompting: for
    ``python -m minilib.train denseclip``.

    Raises:
        ValueError: profile "paper", which has no values here.
    """
    if profile not in PROFILES:
        raise ValueError(
            f"profile={profile!r} is not trained here: expected one of "
            f"{', '.join(PROFILES)}"
        )
    values = PROFILES[profile]
    study = study_of(values, seed, device, data, profile=profile)
    clip = recipe.source_clip(weights, device)
    return recipe.training(
        "post-model", study.names, study.batches, clip, values.lab, seed
    )
