"""Chapter 9's values per profile, its data (scenes, or micrographs) and its
trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from minilib.batch import Batch
from minilib.claims.chapter import Chapter, Run
from minilib.datasets.fsc147 import load_fsc147
from minilib.models.clip import CLIP
from minilib.models.countx import CounTX
from minilib.parameters import Parameters
from minilib.recipes.countx import reading, recipe
from minilib.recipes.countx.recipe import Schedule
from minilib.recipes.shared.counting import (
    Counter,
    CountingScenes,
    Questions,
    best_constant,
    similarity_threshold,
    training_mean,
    window_counter,
)
from minilib.recipes.shared.counting_scenes import DescribedScenes, scenes_of
from minilib.recipes.shared.photographs import bccd, bccd_crops, bccd_questions
from minilib.training import Training
from minilib.weights import load, load_clip


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=300, lr=4e-3))
    """The main training; its control differs from it in one switch."""
    scenes: CountingScenes = field(
        default_factory=lambda: CountingScenes(
            size=64, count=(1, 24), distractors=(0, 5), sigma=4.0
        )
    )
    """Size and numbers of the scenes; ``size`` is also the window."""
    train_images: int = 600
    """Training scenes, shown again and again."""
    test_images: int = 120
    """Test scenes of classes never counted."""
    decoder_width: int = 32
    """Channels of the density decoder."""
    from_reader: bool = False
    """Start the main training from mini-countx, which reads and counts scenes, instead
    of from mini-vit."""
    frozen: bool = False
    """Train once more with the image tower frozen."""
    further: reading.Values = field(default_factory=reading.Values)
    """Of the trainings that go on from mini-countx."""


PROFILES = {
    "quick": Values(),
    "full": Values(
        schedule=Schedule(steps=350, lr=4e-3),
        train_images=1600,
        test_images=300,
        frozen=True,
        further=reading.Values(
            arms=tuple(reading.ARMS), fit_images=400, test_images=300
        ),
    ),
    "photos": Values(
        schedule=Schedule(steps=600, images=6, each=3, lr=2e-3, tower_lr=0.3),
        scenes=CountingScenes(size=96, sigma=2.5),
        from_reader=True,
    ),
}
# the scenes as at quick, and the released weights on FSC-147
PROFILES["paper"] = PROFILES["quick"]
FROZEN = "image tower frozen"
"""The main training's control, in words."""
MICROGRAPH = (96, 128)
"""Micrographs are read at this height and width: the window is as high, so a few
windows cover one."""


@dataclass
class Study:
    """Data as chapter 9 uses them."""

    clip: CLIP
    """``mini-vit``, from whose towers every training starts; it is not changed."""
    batches: Callable[[Schedule], Callable[[int], Batch]]
    """Training batches by step."""
    train: Questions
    """Training questions, for the baselines."""
    test: Questions
    """Test questions; on scenes, about classes never counted, one a scene:
    for what fills it."""
    scenes: DescribedScenes | None = None
    """The scenes behind ``test``."""
    photos: bool = False

    def counter(self, model: CounTX) -> Counter:
        """Return the model as a counter of this study's images."""
        if self.photos:
            return window_counter(model.density)
        return recipe.counter_of(model)

    def baselines(self) -> dict[str, Counter]:
        """Return counters that learn nothing but a number or three from the training
        questions, on micrographs for each kind of cell apart."""
        device, apart = self.clip.device, self.photos
        blobs, _ = similarity_threshold(self.clip, self.train, device, by_name=apart)
        return {
            "best constant": best_constant(self.train, by_name=apart),
            "training mean": training_mean(self.train, by_name=apart),
            "similarity threshold": blobs,
        }


def study(run: Parameters, values: Values) -> Study:
    """Return the data of a run: scenes, at profile ``photos`` micrographs.

    At profile ``paper``, whose protocol reads its own data later, say now what they
    lack.

    Raises:
        ValueError: data that cannot be read.
        FileNotFoundError: files that are not there.
    """
    if run.photos:
        return photos_study(values, run.seed, run.device, run.data_path)
    if run.profile == "paper":
        load_fsc147(run.data_path, "test")
        _ = run.weights_file
    return scenes_study(values, run.seed, run.device)


def scenes_study(
    values: Values, seed: int, device: torch.device | str = "cpu"
) -> Study:
    """Return scenes as a study. Test classes are neither asked for nor
    shown in training."""
    shown = scenes_of(values.scenes, values.train_images, "train", "train", seed)
    unseen = scenes_of(values.scenes, values.test_images, "test", "test", seed)
    return Study(
        clip=load_clip("mini-vit", device=device),
        batches=lambda schedule: recipe.scene_batches(shown, schedule, seed, device),
        train=shown.leading(),
        test=unseen.leading(),
        scenes=unseen,
    )


def photos_study(
    values: Values, seed: int, device: torch.device | str, data: Path
) -> Study:
    """Return BCCD as a study: every micrograph is asked for its three kinds of cells.

    Raises:
        FileNotFoundError: BCCD is not in the folder ``data``.
    """
    shown, test = (bccd(data, split, MICROGRAPH) for split in ("train", "test"))
    sigma = values.scenes.sigma
    return Study(
        clip=load_clip("mini-vit", device=device),
        batches=lambda schedule: bccd_crops(
            shown, schedule.images, sigma, seed, device
        ),
        train=bccd_questions(shown, sigma),
        test=bccd_questions(test, sigma),
        photos=True,
    )


def load_reader(device: torch.device | str) -> CounTX:
    """Return the shipped mini-countx."""
    reader = load("mini-countx", device)
    assert isinstance(reader, CounTX)  # for the type checker
    return reader


def main_training(run: Parameters, values: Values, study: Study) -> Training:
    """Return the training of the model that is examined."""
    return study_training(study, values, values.schedule, run.seed)


def study_training(
    study: Study, values: Values, schedule: Schedule, seed: int
) -> Training:
    """Return the training of CounTX on a study by ``schedule``, the values' own or a
    control's."""
    size = values.scenes.size
    if values.from_reader:
        model = recipe.at_size(load_reader(study.clip.device), size)
    else:
        model = recipe.build(
            study.clip,
            size,
            values.decoder_width,
            seed,
            study.train.image[:200],
            study.train.names,
        )
    return recipe.training(model, study.batches(schedule), schedule, seed)


def train_frozen(run: Run[Values, Study]) -> CounTX:
    """Train the main model once more with its image tower frozen, in the folder
    "frozen" of ``run.out``; return it in evaluation mode."""
    schedule = replace(run.values.schedule, frozen=True)
    training = study_training(run.study, run.values, schedule, run.seed)
    training.fit(run.out / "frozen", progress=FROZEN)
    model = training.model.eval()
    assert isinstance(model, CounTX)  # for the type checker
    return model


def wide_questions(values: Values, seed: int, images: int = 16) -> Questions:
    """Ask for what fills it in scenes three times as wide as high, with up to
    60 objects."""
    side, crowded = values.scenes.size, replace(values.scenes, count=(12, 60))
    wide = scenes_of(crowded, images, "test", "test", seed, shape=(side, 3 * side))
    return wide.leading()


CHAPTER = Chapter(
    "countx",
    PROFILES,
    study,
    main_training,
    needs={
        "photos": {
            "data": "the folder with BCCD's micrographs (python "
            "data_scripts/get_bccd.py fetches them)"
        },
        "paper": {
            "data": "the folder of FSC-147 (images_384_VarV2, "
            "annotation_FSC147_384.json, Train_Test_Val_FSC_147.json, "
            "ImageClasses_FSC147.txt, FSC-147-D.json)",
            "weights": "the authors' checkpoint paper-model.pth (1.3 GB), see "
            "CounTX's README",
        },
    },
)
open = CHAPTER.open
