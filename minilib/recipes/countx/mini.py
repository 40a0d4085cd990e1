"""The mini CounTX that ships: trained longer than a chapter has time for, and asked for
everything in its pictures."""

from __future__ import annotations

from dataclasses import replace

import torch

from minilib.metrics.counting import follows
from minilib.models.countx import CounTX
from minilib.recipes.countx.recipe import (
    Schedule,
    build,
    counter_of,
    counting_loss,
    scene_batches,
)
from minilib.recipes.shared.counting import (
    CountingScenes,
    answers,
    counted_classes,
    evaluate,
    training_mean,
)
from minilib.recipes.shared.counting_scenes import KINDS, scenes_of
from minilib.training import Training
from minilib.weights import load_clip

SCENES = CountingScenes(size=64, count=(1, 24), distractors=(0, 8), sigma=2.5)
"""What it counts in."""
SCHEDULE = Schedule(
    steps=2800, images=12, each=4, everything=True, lr=1.5e-3, tower_lr=0.1
)
"""How it is trained."""
TRAIN_IMAGES = 6000
"""Different scenes in the training, of classes that the test never asks for."""


def prepare(
    seed: int, device: torch.device | str = "cpu", steps: int | None = None
) -> Training:
    """Return the training: :data:`SCHEDULE` on :data:`SCENES`, starting
    from ``mini-vit``."""
    chosen = replace(SCHEDULE, steps=steps or SCHEDULE.steps)
    shown = scenes_of(SCENES, TRAIN_IMAGES, "train", "train", seed)
    clip = load_clip("mini-vit", device=device)
    model = build(
        clip,
        SCENES.size,
        seed=seed,
        images=shown.image[:300],
        names=counted_classes("train"),
    ).freeze()
    config = replace(chosen.config(seed), checkpoint_every=100, log_every=20)
    return Training(
        model, counting_loss, scene_batches(shown, chosen, seed, device), config
    )


def report(
    model: CounTX, device: torch.device | str = "cpu", images: int = 300
) -> dict[str, float]:
    """Return errors on new scenes of classes never counted, by kind of question; and
    what the text changes.

    ``follows`` is about the classes of a picture and one that is absent, see
    ``metrics.counting.follows``.
    """
    scenes = scenes_of(SCENES, images, "test", "test", 1)
    guess = training_mean(
        scenes_of(SCENES, images, "train", "train", 1).questions(KINDS)
    )
    found: dict[str, float] = {}
    for kind in KINDS:
        questions = scenes.questions([kind])
        found[f"mae_{kind}"] = evaluate(counter_of(model), questions, device).mae
        found[f"mae_{kind}_training_mean"] = evaluate(guess, questions, device).mae
    questions = scenes.questions(("class", "absent"))
    said = answers(counter_of(model), questions, device)
    found["follows"] = follows(said, questions.counts, questions.about)
    return {name: round(value, 4) for name, value in found.items()}
