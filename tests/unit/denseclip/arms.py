"""DenseCLIP's arms at tiny values, for the tests of what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from witness import Witness

from minilib.recipes.denseclip import chapter, recipe

VALUES = chapter.Values(
    lab=recipe.Lab(
        size=(32, 32),
        objects=4,
        stuff=2,
        labelled=8,
        steps=2,
        batch_size=4,
        channels=16,
        test_images=6,
        pretraining_steps=2,
        pretraining_batch=8,
    ),
    variants=chapter.PROFILES["full"].variants,
)
FEW = tuple(name for name in VALUES.variants if not recipe.VARIANTS[name].many)


def arms(out: Path, seed: int, witness: Witness) -> None:
    """Train the chapter's arms, and say what is compared with what."""
    tiny = replace(chapter.CHAPTER, profiles={"quick": VALUES})
    run = tiny.open(profile="quick", seed=seed, device="cpu", out=out)
    study, clip = run.study, recipe.source_clip()
    with witness.arm(chapter.MAIN):
        run.train(chapter.MAIN)
    starts = recipe.starting_points(VALUES.lab, VALUES.variants, clip, seed, out)
    for name in VALUES.variants:
        if name != chapter.MAIN:
            start = starts[recipe.VARIANTS[name].start]
            with witness.arm(name):
                chapter.train_variant(name, study, start, VALUES, seed, out)

    # a new attention pool learns at the full rate, so other names have the lower one
    witness.compare(*FEW, but="lr_factors")
    witness.compare(*chapter.MANY)
    witness.compare(*VALUES.variants, budget_only=True, but="lr_factors")
    witness.compare("pretraining-captions", "pretraining-classifier")
    witness.judge(study.test.image)
    right, wrong = (
        recipe.build(recipe.VARIANTS[name], clip, study.names, VALUES.lab, seed).tokens
        for name in (chapter.MAIN, "shuffled names")
    )
    witness.deal("shuffled names", right, wrong)
