"""VLCounter's arms at tiny values, for the tests of what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from witness import Witness

from minilib.recipes.shared.counting import CountingScenes
from minilib.recipes.vlcounter import chapter, experiments, recipe

VALUES = chapter.Values(
    lab=recipe.Lab(steps=2, batch_size=4, channels=8),
    scenes=CountingScenes(size=64, count=(1, 6), distractors=(1, 6)),
    train_images=10,
    test_images=6,
    arms=tuple(recipe.ARMS),
)


def arms(out: Path, seed: int, witness: Witness) -> None:
    """Train the chapter's arms, and say what is compared with what."""
    tiny = replace(chapter.CHAPTER, profiles={"quick": VALUES})
    run = tiny.open(profile="quick", seed=seed, device="cpu", out=out)
    with witness.arm("M5"):
        main, history = run.train("M5")
    study = run.study
    experiments.train_arms(study, seed, main, history)
    witness.compare(*recipe.ARMS)

    with witness.phase("judging"):
        large = experiments.large_objects(study, 4, seed)
        wide = experiments.wide_scenes(study, 2, seed)
    for name, image in (
        ("unseen classes", study.test.image),
        ("seen classes", study.seen.image),
        ("large objects", large.batch.image),
        ("wide scenes", wide.image),
    ):
        witness.judge(image, name)
    for part in (study.test, wide):
        witness.unseen(study.train.names, part.names)

    names = run.study.train.batch(range(VALUES.lab.batch_size)).caption
    witness.deal("shuffled words", names, recipe.wrong_names(names))
