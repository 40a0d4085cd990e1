"""What chapter 9 draws, trains and judges, at tiny sizes; see ``witness.py``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from witness import Witness

from minilib.recipes.countx import chapter, reading
from minilib.recipes.countx.recipe import Schedule, build
from minilib.recipes.shared.counting import CountingScenes
from minilib.weights import load_clip

SMALL = CountingScenes(size=32, count=(2, 6), distractors=(2, 6))
TINY = chapter.Values(
    schedule=Schedule(steps=2, images=2, each=1),
    scenes=SMALL,
    train_images=8,
    test_images=6,
    decoder_width=8,
    frozen=True,
    further=reading.Values(
        scenes=SMALL,
        schedule=Schedule(steps=2, images=2, each=2, everything=True),
        arms=tuple(reading.ARMS),
        train_images=8,
        fit_images=6,
        test_images=6,
    ),
)


def arms(out: Path, seed: int, witness: Witness) -> None:
    """Run profile ``full``'s trainings and draw what they are judged on."""
    tiny = replace(chapter.CHAPTER, profiles={"full": TINY})
    run = tiny.open(profile="full", seed=seed, device="cpu", out=out)
    study, further = run.study, TINY.further
    run.train("CounTX")
    chapter.train_frozen(run)
    witness.compare("main", "frozen")

    reader = build(load_clip("mini-vit"), 32, 8).eval()
    reading.train_arms(reader, further, seed, out)
    pairs = [reading.folder(name) for name in reading.ARMS]
    for heard, blind in zip(pairs[::2], pairs[1::2], strict=True):
        witness.compare(heard, blind)
    witness.compare(*pairs, budget_only=True)  # each pair has pictures of its own
    witness.starts_alike(*pairs)

    with witness.phase("fitting"):
        reading.baselines(study.clip, further, seed)
    witness.fit(study.train.image, "baselines of the main test")
    with witness.phase("judging"):
        about = reading.judged(further, seed)
    witness.judge(study.test.image, "what fills the picture")
    for name in ("one", "several", "seen", "coloured"):
        witness.judge(getattr(about, name).image, name)
    witness.unseen(study.train.names, study.test.names)
    witness.unseen(about.seen.names, about.several.names)
