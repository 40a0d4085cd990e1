"""Chapter 9's values per profile, and its data: scenes, or micrographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from minilib import claims
from minilib.batch import Batch
from minilib.claims.chapter import Run
from minilib.models.clip import CLIP
from minilib.models.countx import CounTX
from minilib.recipes.countx.mini import SCENES
from minilib.recipes.countx.recipe import (
    BLIND_TEXT,
    Schedule,
    build,
    counter_of,
    scene_batches,
    train,
)
from minilib.recipes.shared.counting import (
    Counter,
    CountingScenes,
    Questions,
    similarity_threshold,
    training_mean,
    window_counter,
)
from minilib.recipes.shared.counting_scenes import DescribedScenes, scenes_of
from minilib.recipes.shared.photographs import bccd, bccd_crops, bccd_questions
from minilib.training import History


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=300, lr=4e-3))
    """The training of the model that is examined; its controls differ from it in
    one switch each."""
    scenes: CountingScenes = field(
        default_factory=lambda: CountingScenes(
            size=64, count=(1, 24), distractors=(0, 5), sigma=4.0
        )
    )
    """Size and numbers of the scenes; ``size`` is also the window."""
    train_images: int = 600
    """Training scenes, shown again and again."""
    test_images: int = 120
    """Test scenes of classes never counted, and as many of classes counted."""
    decoder_width: int = 32
    """Channels of the density decoder."""
    controls: tuple[str, ...] = ()
    """Switches of the schedule, each set in one more training: "frozen", "blind"."""
    continued: int = 0
    """Further steps of the shipped mini-countx, asked for everything, and asked as
    FSC-147 asks; 0 = none."""


PROFILES = {
    "quick": Values(),
    "full": Values(
        schedule=Schedule(steps=350, lr=4e-3),
        train_images=1600,
        test_images=300,
        controls=("frozen", "blind"),
        continued=120,
    ),
    "photos": Values(
        schedule=Schedule(steps=350, images=6, each=3, lr=4e-3),
        scenes=CountingScenes(size=72, sigma=4.0),
    ),
}
# the scenes as at quick, and the released weights on FSC-147
PROFILES["paper"] = PROFILES["quick"]
MICROGRAPH = (72, 96)
"""Micrographs are read at this height and width: the window is as high, so a few
windows cover one."""


@dataclass
class Study:
    """Data as chapter 9 uses them."""

    batches: Callable[[Schedule], Callable[[int], Batch]]
    """Training batches by step."""
    train: Questions
    """Training questions, for the baselines."""
    test: Questions
    """Test questions; on scenes, about classes never counted, one a scene:
    for what fills it."""
    seen: Questions | None = None
    """Test questions about classes counted in training (scenes only)."""
    scenes: DescribedScenes | None = None
    """The scenes behind ``test``."""
    photos: bool = False

    def counter(self, model: CounTX, blind: bool = False) -> Counter:
        """Return the model as a counter of this study's images."""
        return (
            window_counter(model.density)
            if self.photos
            else counter_of(model, BLIND_TEXT if blind else None)
        )


def scenes_study(
    values: Values, seed: int, device: torch.device | str = "cpu"
) -> Study:
    """Return scenes as a study. Test classes are neither asked for nor
    shown in training."""
    shown = scenes_of(values.scenes, values.train_images, "train", "train", seed)
    unseen = scenes_of(values.scenes, values.test_images, "test", "test", seed)
    return Study(
        batches=lambda schedule: scene_batches(shown, schedule, seed, device),
        train=shown.leading(),
        test=unseen.leading(),
        seen=scenes_of(
            values.scenes, values.test_images, "train", "test", seed
        ).leading(),
        scenes=unseen,
    )


def photos_study(
    values: Values, seed: int, device: torch.device | str = "cpu", data: str | Path = ""
) -> Study:
    """Return BCCD as a study: every micrograph is asked for its three kinds of cells.

    Raises:
        ValueError: no folder given.
        FileNotFoundError: BCCD is not there.
    """
    shown, test = (bccd(data, split, MICROGRAPH) for split in ("train", "test"))
    sigma = values.scenes.sigma
    return Study(
        batches=lambda schedule: bccd_crops(
            shown, schedule.images, sigma, seed, device
        ),
        train=bccd_questions(shown, sigma),
        test=bccd_questions(test, sigma),
        photos=True,
    )


def trained(
    study: Study,
    clip: CLIP,
    values: Values,
    seed: int,
    out: Path | None = None,
    progress: str | None = None,
    *,
    frozen: bool = False,
    blind: bool = False,
) -> tuple[CounTX, History]:
    """Train CounTX on a study; ``frozen`` and ``blind`` of Schedule
    make the controls."""
    schedule = replace(values.schedule, frozen=frozen, blind=blind)
    model = build(
        clip,
        values.scenes.size,
        values.decoder_width,
        seed,
        study.train.image[:200],
        study.train.names,
    )
    history = train(
        model, study.batches(schedule), schedule, seed, progress=progress, out=out
    )
    return model.eval(), history


def continued(
    reader: CounTX, values: Values, seed: int, everything: bool, out: Path | None = None
) -> CounTX:
    """Train a copy of the shipped ``reader`` further on new scenes of its kind, four
    questions a picture.

    ``everything``: questions of all kinds; else only for what fills the picture.
    """
    shown = scenes_of(
        SCENES, 50 * values.schedule.images, "train", "train", 1000 + seed
    )
    schedule = Schedule(
        steps=values.continued,
        images=values.schedule.images,
        each=4,
        everything=everything,
        lr=1e-3,
        tower_lr=0.1,
    )
    model = deepcopy(reader)
    train(
        model,
        scene_batches(shown, schedule, seed, model.device),
        schedule,
        seed,
        progress="continued",
        out=out,
    )
    return model.eval()


def baselines(
    study: Study, clip: CLIP, device: torch.device | str = "cpu"
) -> dict[str, Counter]:
    """Return counters that learn nothing but a number or three: the training mean and
    the similarity threshold."""
    return {
        "training mean": training_mean(study.train, by_name=study.photos),
        "similarity threshold": similarity_threshold(clip, study.train, device)[0],
    }


def record(
    claim_id: str,
    run: Run,
    *,
    treatment: float,
    control: float,
    n: int,
    controls: Mapping[str, float] | None = None,
    interval: tuple[float, float] | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Record a measurement where the ledger has a test of the claim at the run's
    profile; elsewhere do nothing.

    Arguments as in ``claims.record``.
    """
    if isinstance(claims.load("countx")[claim_id].tests[run.profile], str):
        return
    claims.record(
        claim_id,
        treatment=treatment,
        control=control,
        profile=run.profile,
        seed=run.seed,
        out=run.out,
        n=n,
        controls=controls,
        interval=interval,
        details=details,
    )
