"""LSeg's arms at tiny values, for the tests of what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from witness import Witness

from minilib.recipes.lseg import chapter, experiments, recipe

VALUES = chapter.Values(
    lab=recipe.Lab(
        image_size=32,
        classes=24,
        features=8,
        batch_size=4,
        steps=2,
        lr=3e-3,
        backbone_factor=0.2,
        evaluations=2,
        test_images=6,
    ),
    fewer=(5,),
)
CONTROLS = ("shuffled", "random", "learned")


def arms(out: Path, seed: int, witness: Witness) -> None:
    """Train the chapter's arms, and say what is compared with what."""
    tiny = replace(chapter.CHAPTER, profiles={"quick": VALUES})
    run = tiny.open(profile="quick", seed=seed, device="cpu", out=out)
    study, clip = run.study, recipe.text_tower()
    with witness.arm("words"):
        run.train("words")
    for kind in CONTROLS:
        with witness.arm(kind):
            chapter.control(run, study, kind)
    with witness.arm("bottleneck"):
        chapter.control(run, study, block="bottleneck", block_depth=2)
    with witness.arm("fewer words"):
        chapter.control(run, chapter.fewer_words(run, 5))

    # the main training is watched more often, which is no part of its budget
    watched = "evaluate_every"
    witness.compare("words", *CONTROLS, "bottleneck", but=watched)
    witness.compare("words", "fewer words", budget_only=True, but=watched)
    for kind, batch in study.test.items():
        witness.judge(batch.image, kind)
    seen, unseen = experiments.seen_words(study), experiments.unseen_words(study)
    witness.unseen(seen, unseen)
    groups = recipe.label_vectors(clip, ["animal", "food", "vehicle"])
    witness.deal("wrong names of groups", groups, groups.roll(1, dims=0))
