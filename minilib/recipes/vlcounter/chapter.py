"""Chapter 10's values per profile, and its data: scenes, or micrographs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from minilib.models.clip import CLIP
from minilib.recipes.shared.counting import CountingScenes, Questions
from minilib.recipes.shared.counting_scenes import scenes_of
from minilib.recipes.shared.photographs import bccd, bccd_questions
from minilib.recipes.vlcounter.recipe import VARIANTS, Lab, grid_of
from minilib.weights import load_clip


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    lab: Lab = field(default_factory=Lab)
    """The size of the model and of its training."""
    scenes: CountingScenes = field(
        default_factory=lambda: CountingScenes(count=(1, 12), distractors=(2, 12))
    )
    """Scenes to count in."""
    train_images: int = 400
    """Training scenes, each with several questions."""
    test_images: int = 100
    """Test scenes of classes never counted, and as many of classes counted."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Variants of the ablation that are trained."""
    controls: bool = True
    """Also train the controls: other rank losses, wrong words, singular
    templates, and CounTX."""
    micrograph: tuple[int, int] = (96, 128)
    """Height and width of the micrographs of profile ``photos``."""


PROFILES = {
    "quick": Values(lab=Lab(steps=100), variants=("M1", "M2", "M5"), controls=False),
    "full": Values(
        lab=Lab(steps=110),
        scenes=CountingScenes(count=(1, 60), distractors=(2, 12)),
        train_images=600,
    ),
    "photos": Values(
        lab=Lab(steps=200), variants=("M1", "VPT", "M2", "M5"), controls=False
    ),
}


@dataclass
class Study:
    """Questions to learn from and to be tested on, and the frozen CLIP."""

    clip: CLIP
    train: Questions
    test: Questions
    """Scenes: classes that were never counted in training. Micrographs: the
    published test split."""
    seen: Questions
    """Scenes: new scenes of the training classes. Micrographs: the published
    validation split."""
    values: Values

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return grid_of(self.clip, self.train)


def scenes_study(
    values: Values, seed: int, device: torch.device | str = "cpu"
) -> Study:
    """Return scenes of several classes.

    Each scene is asked for every class in it and for one that is absent.
    """

    def ask(part: str, split: str, n: int) -> Questions:
        scenes = scenes_of(values.scenes, n, part, split, seed, coloured=0.0)
        return scenes.questions(("class", "absent"), plain=True, article=False)

    return Study(
        clip=load_clip("mini-vit", device=device),
        train=ask("train", "train", values.train_images),
        test=ask("test", "test", values.test_images),
        seen=ask("train", "test", values.test_images),
        values=values,
    )


def photos_study(
    values: Values, seed: int, device: torch.device | str = "cpu", data: str | Path = ""
) -> Study:
    """Return BCCD: each micrograph is asked for red cells, white cells and platelets.

    In the published splits, whatever the seed.

    Raises:
        ValueError: no folder given.
        FileNotFoundError: the folder is not BCCD.
    """
    train, val, test = (
        bccd_questions(bccd(data, split, values.micrograph))
        for split in ("train", "val", "test")
    )
    clip = load_clip("mini-vit", device=device)
    return Study(clip=clip, train=train, test=test, seen=val, values=values)


def study_of(
    values: Values,
    seed: int,
    device: torch.device | str = "cpu",
    data: str | Path = "",
    *,
    profile: str,
) -> Study:
    """Return the data of a profile: scenes, or the micrographs in the
    folder ``data``."""
    if profile == "photos":
        return photos_study(values, seed, device, data)
    return scenes_study(values, seed, device)
