"""Chapter 2's values per profile, CamVid as a study, and the trainings that
its claims compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minilib.claims.chapter import Chapter, Run
from minilib.claims.quoting import quote
from minilib.parameters import Parameters
from minilib.recipes.lseg import recipe
from minilib.recipes.lseg.experiments import LongTraining
from minilib.recipes.lseg.recipe import Arm, Lab, Segmenter, Study
from minilib.recipes.shared.photographs import CamVidStream, camvid
from minilib.recipes.shared.segmentation import LabelSpace
from minilib.training import Training


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    lab: Lab = field(default_factory=Lab)
    """The size of everything."""
    folds: int = 1
    """How many folds are held out, one training each, in the central comparisons, which
    are averaged over them."""
    some_folds: int = 1
    """Likewise in the others: the first ones of those folds."""
    fewer: tuple[int, ...] = (9,)
    """Numbers of seen words to compare with all of them; the first one is
    the control of C3."""
    thorough: bool = False
    """Whether the arms that only ``full`` has time for are trained."""
    temperatures: tuple[float, ...] = ()
    """Values of t to train with, beside the paper's 0.07."""
    long: LongTraining | None = None
    """A training long enough to over-train."""
    frame: tuple[int, int] = (64, 80)
    """Rows and columns of CamVid's frames."""


PROFILES = {
    "quick": Values(),
    "full": Values(
        lab=Lab(
            image_size=32,
            classes=56,
            steps=500,
            tower_steps=800,
            evaluations=4,
            test_images=240,
        ),
        folds=4,
        some_folds=2,
        fewer=(8,),
        thorough=True,
        temperatures=(1.0, 0.02),
        long=LongTraining(),
    ),
    "photos": Values(lab=Lab(steps=400, tower_steps=600, lr=3e-3)),
}

ARMS = {
    "words": Arm(),
    "random": Arm("random"),
    "deranged": Arm("deranged"),
    "learned": Arm("learned"),
    "centred": Arm("centred"),
    "captions": Arm(tower="captions"),
    "bottleneck 2": Arm(block="bottleneck", block_depth=2),
    "bottleneck 4": Arm(block="bottleneck", block_depth=4),
    "depthwise 4": Arm(block="depthwise", block_depth=4),
}
"""The trainings that claims compare, by the names that the ledger gives them."""


def fold(seed: int, place: int = 0) -> int:
    """Return the fold that a seed holds out first, or at another place: four places are
    all four folds."""
    return (seed + place) % recipe.FOLDS


def study(run: Parameters, values: Values) -> Study:
    """Return what a run trains and tests on: one fold of EmojiScenes, or CamVid."""
    if run.photos:
        return photos_study(values, run.seed, run.device, run.data_path)
    return scenes_study(values, run.seed, run.device)


def scenes_study(
    values: Values,
    seed: int,
    device: torch.device | str = "cpu",
    seen_classes: int | None = None,
    place: int = 0,
) -> Study:
    """Return EmojiScenes with the words of one fold unseen; see :func:`fold` and
    ``recipe.scenes_study``."""
    held_out = fold(seed, place)
    return recipe.scenes_study(values.lab, seed, device, held_out, seen_classes)


def photos_study(
    values: Values, seed: int, device: torch.device | str, data: Path
) -> Study:
    """Return CamVid, all of whose eleven classes are trained on; there is no "other".

    Raises:
        FileNotFoundError: the folder is not CamVid as
            ``data_scripts/get_camvid.py`` lays it out.
    """
    train, test = (camvid(data, split, values.frame) for split in ("train", "test"))
    return Study(
        labels=LabelSpace(train.names, tuple(range(len(train.names)))),
        batches=CamVidStream(train, values.lab.batch_size, seed, device),
        test={"seen": test.batch(range(len(test)), device)},
    )


def main_training(run: Parameters, values: Values, study: Study) -> Training:
    """Return the training that the chapter examines: the words of the text tower, one
    fold unseen, seen and unseen mIoU watched along the way."""
    model = recipe.build(values.lab, study, ARMS["words"], run.seed, run.device)
    return recipe.make_training(
        model, study, values.lab, run.seed, values.lab.evaluations
    )


@dataclass(frozen=True)
class Trained:
    """A segmenter and what it was trained on."""

    model: Segmenter
    study: Study


Measure = Callable[[Segmenter, Study], Mapping[str, float]]


class Trainings:
    """The arms of a run: each is trained when it is first asked for, with the run's
    budget, on the scenes that all arms of its fold see."""

    def __init__(self, run: Run[Values, Study], main: Segmenter) -> None:
        """Start with the main training's model, the arm "words" of the first fold."""
        self.run = run
        self._done: dict[tuple[str, int, int | None], Trained] = {}
        self._done["words", 0, None] = Trained(main, run.study)

    def __call__(self, name: str, place: int = 0, seen: int | None = None) -> Trained:
        """Return an arm of ARMS, trained.

        Args:
            name: of the arm.
            place: which of the run's folds is held out, see :func:`fold`.
            seen: number of seen words, by default all of them; what is tested stays.
        """
        if (key := (name, place, seen)) not in self._done:
            self._done[key] = self._train(name, place, seen)
        return self._done[key]

    def _train(self, name: str, place: int, seen: int | None) -> Trained:
        run, study = self.run, self.run.study
        if not run.photos and (place, seen) != (0, None):
            study = scenes_study(run.values, run.seed, run.device, seen, place)
        words = "" if seen is None else f"-{seen}"
        folder = f"{name.replace(' ', '-')}{words}-fold{fold(run.seed, place)}"
        return self.on(study, ARMS[name], folder)

    def on(self, study: Study, arm: Arm, folder: str) -> Trained:
        """Train an arm on any study, in a folder of its own."""
        run = self.run
        model, _ = recipe.train(
            run.values.lab, study, arm, run.seed, run.device,
            progress=folder, out=run.out / folder,
        )  # fmt: skip
        return Trained(model.eval(), study)

    def mean(
        self, measure: Measure, name: str, folds: int = 1, seen: int | None = None
    ) -> dict[str, float]:
        """Return the numbers that ``measure`` gives of an arm, averaged over its first
        ``folds`` folds."""
        arms = (self(name, place, seen) for place in range(folds))
        return average([measure(arm.model, arm.study) for arm in arms])


def average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number over dictionaries with the same keys."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


SAID = {
    "unseen words, their own vectors": "vectors/words/unseen",
    "unseen words, random vectors": "vectors/random/unseen",
    "unseen words, vectors of other words": "vectors/deranged/unseen",
    "unseen words, CLIP's map without a mask": "towers/no mask/unseen",
    "unseen words, masks and a tower of captions": (
        "towers/masks, tower of captions/unseen"
    ),
    "unseen words, each image asks for one": "protocol/words/mIoU",
    "the same, everything is the class": "protocol/everything/mIoU",
    "seen and unseen words together, harmonic mean": "together/words/harmonic",
    "unseen words, eight words with masks": "reach/8",
    "seen words, their own vectors": "seen/words/seen",
    "seen words, centred vectors": "seen/centred/seen",
    "seen words, learned vectors": "seen/learned/seen",
    "seen words, two bottleneck blocks": "blocks/bottleneck 2",
    "seen words, four depthwise blocks": "blocks/depthwise 4",
    "seen words asked by their plurals": "plurals/plurals",
    "groups asked by their name": "groups/name",
}
"""What the chapter tells of profile ``full``, and the named results that say it."""


def said(run: Run[Values, Study]) -> list[tuple[str, str]]:
    """Return the rows of :data:`SAID` as the committed records have them."""
    rows = []
    for what, name in SAID.items():
        try:
            rows.append((what, quote(f"{CHAPTER.paper}.{name}", "full")))
        except ValueError:
            rows.append((what, "not yet measured"))
    return rows


CHAPTER = Chapter(
    "lseg",
    PROFILES,
    study,
    main_training,
    needs={
        "photos": {
            "data": "the folder with CamVid (python data_scripts/get_camvid.py fetches "
            "one)"
        }
    },
    missing={
        "paper": "it needs the authors' checkpoints and their data, see 'At paper "
        "scale' in this chapter"
    },
)

open = CHAPTER.open
