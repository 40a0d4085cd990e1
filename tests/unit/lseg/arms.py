"""LSeg's arms at tiny values, for the tests of what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from witness import Witness

from minilib.recipes.lseg import chapter, experiments, recipe
from minilib.recipes.lseg.towers import label_tower

VALUES = chapter.Values(
    lab=recipe.Lab(
        image_size=32,
        classes=24,
        features=8,
        batch_size=4,
        steps=2,
        tower_steps=1,
        lr=3e-3,
        backbone_factor=0.2,
        evaluations=2,
        test_images=6,
    ),
    folds=2,
    fewer=(5,),
)
LONG = experiments.LongTraining(images=8, batch_size=4, steps=4, evaluations=2)


def arms(out: Path, seed: int, witness: Witness) -> None:
    """Train the chapter's arms, and say what is compared with what."""
    tiny = replace(chapter.CHAPTER, profiles={"quick": VALUES})
    run = tiny.open(profile="quick", seed=seed, device="cpu", out=out)
    lab, clip = VALUES.lab, recipe.text_tower()
    label_tower.cache_clear()
    with witness.arm("tower"):
        tower = recipe.pretrained(lab, seed)
    assert tower.names == 240 - lab.classes
    with witness.arm("words 0"):
        model, _ = run.train("words")
    trainings = chapter.Trainings(run, model)
    trained = {("words", 0): trainings("words")}
    for name in chapter.ARMS:
        for place in range(VALUES.folds):
            if (name, place) not in trained:
                with witness.arm(f"{name} {place}"):
                    trained[name, place] = trainings(name, place)
    with witness.arm("fewer words"):
        few = trainings("words", seen=5)
    with witness.arm("few images"):
        experiments.over_training(lab, LONG, seed, chapter.fold(seed))

    # the main training is watched more often, which is no part of its budget
    watched = "evaluate_every"
    for place in range(VALUES.folds):
        witness.compare(*(f"{name} {place}" for name in chapter.ARMS), but=watched)
    witness.compare("words 0", "fewer words", budget_only=True, but=watched)
    for arm in (*trained.values(), few):
        for kind, batch in arm.study.test.items():
            witness.judge(batch.image, kind)
        seen = experiments.seen_words(arm.study)
        witness.unseen(seen, experiments.unseen_words(arm.study))
    names = trained["words", 0].study.labels.names[:-1]
    own, dealt = (
        recipe.label_vectors(clip, names, kind, seed) for kind in ("words", "deranged")
    )
    witness.deal("vectors of other words", own, dealt)
