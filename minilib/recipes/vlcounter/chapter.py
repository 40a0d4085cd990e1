"""Chapter 10's values per profile, its data (scenes, or micrographs) and its main
training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from minilib.claims.chapter import Chapter
from minilib.models.clip import CLIP
from minilib.parameters import Parameters
from minilib.recipes.shared.counting import CountingScenes, Questions
from minilib.recipes.shared.counting_scenes import scenes_of
from minilib.recipes.shared.photographs import bccd, bccd_questions
from minilib.recipes.vlcounter.recipe import Lab, build, grid_of, training
from minilib.training import Training
from minilib.weights import load_clip


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    lab: Lab = field(default_factory=Lab)
    """The size of the model and of its training."""
    scenes: CountingScenes = field(
        default_factory=lambda: CountingScenes(count=(1, 20), distractors=(5, 20))
    )
    """Scenes to count in: others are as many as what is asked for first."""
    train_images: int = 400
    """Training scenes, each with several questions."""
    test_images: int = 100
    """Test scenes of classes never counted, and as many of classes counted."""
    arms: tuple[str, ...] = ("M1", "M5")
    """Arms that are trained, M5, the main training, among them."""
    micrograph: tuple[int, int] = (96, 128)
    """Height and width of the micrographs of profile ``photos``."""


PROFILES = {
    "quick": Values(lab=Lab(steps=240)),
    "full": Values(
        lab=Lab(steps=400),
        train_images=1500,
        test_images=300,
        arms=(
            "M1",
            "VPT",
            "M2",
            "plain skip",
            "M4",
            "M5",
            "shuffled words",
            "the paper's plural",
            "the paper's singular",
        ),
    ),
    "photos": Values(lab=Lab(steps=220), arms=("M1", "VPT", "M2", "M5")),
}
# the scenes as at quick, and the released weights on FSC-147
PROFILES["paper"] = PROFILES["quick"]


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
    photos: bool = False
    """Whether these are micrographs."""

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
    values: Values, seed: int, device: torch.device | str, data: Path
) -> Study:
    """Return BCCD: each micrograph is asked for red cells, white cells and platelets.

    In the published splits, whatever the seed.

    Raises:
        FileNotFoundError: ``data`` is not BCCD.
    """
    train, val, test = (
        bccd_questions(bccd(data, split, values.micrograph))
        for split in ("train", "val", "test")
    )
    clip = load_clip("mini-vit", device=device)
    return Study(clip, train, test, seen=val, values=values, photos=True)


def study(run: Parameters, values: Values) -> Study:
    """Return the data of a profile: scenes, or the micrographs in ``run.data``."""
    if run.photos:
        return photos_study(values, run.seed, run.device, run.data_path)
    return scenes_study(values, run.seed, run.device)


def main_training(run: Parameters, values: Values, study: Study) -> Training:
    """Return the training of M5, the whole VLCounter.

    With several processes the rank-aware loss scales its target over each process's
    rows, not over the batch; at its weight of a millionth that changes nothing.
    """
    model = build(study.clip, values.lab, study.grid, "M5", run.seed)
    return training(model, study.train, values.lab, run.seed)


CHAPTER = Chapter(
    "vlcounter",
    PROFILES,
    study,
    main_training,
    needs={
        "photos": {
            "data": "a folder with BCCD's micrographs "
            "(python data_scripts/get_bccd.py fetches one)"
        },
        "paper": {
            "data": "a folder with FSC-147 (images_384_VarV2, "
            "annotation_FSC147_384.json, Train_Test_Val_FSC_147.json, "
            "ImageClasses_FSC147.txt)",
            "weights": "the authors' checkpoint, to which their page links",
        },
    },
)
open = CHAPTER.open
