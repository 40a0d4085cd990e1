"""Does it read? Trainings that go on from the shipped mini-countx, on pictures of one
class or of several, with the question or without it; and what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from minilib.metrics.counting import count_errors, follows
from minilib.models.clip import CLIP
from minilib.models.countx import CounTX
from minilib.recipes.countx import recipe
from minilib.recipes.countx.recipe import BLIND_TEXT, Schedule, counter_of
from minilib.recipes.shared.counting import (
    Counter,
    CountingScenes,
    Questions,
    answers,
    best_constant,
    similarity_threshold,
    training_mean,
)
from minilib.recipes.shared.counting_scenes import (
    DescribedScenes,
    scenes_of,
    shared_out,
)
from minilib.scenes import TINTS
from minilib.training import Training

# --- Arms -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One training that goes on from the reader."""

    several: float
    """Share of its pictures that show several classes, so that the question must be
    read; nearly 0 in FSC-147."""
    blind: bool = False
    """Hear one thing whatever is asked, in training and when judged."""

    @property
    def heard(self) -> str | None:
        """What it hears instead of the question; None = the question."""
        return BLIND_TEXT if self.blind else None


ARMS = {
    "one class": Arm(0.0),
    "one class, blind": Arm(0.0, blind=True),
    "half and half": Arm(0.5),
    "half and half, blind": Arm(0.5, blind=True),
    "several classes": Arm(1.0),
    "several classes, blind": Arm(1.0, blind=True),
}
"""All start from one network and go on for as many steps; a blind arm sees the pictures
of the one before it."""


@dataclass(frozen=True)
class Values:
    """Sizes of these experiments at one profile."""

    scenes: CountingScenes = field(
        default_factory=lambda: CountingScenes(
            size=64, count=(1, 12), distractors=(2, 12), sigma=2.5
        )
    )
    """Pictures in which no class need be the most frequent; as large as
    mini-countx's."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=160, images=16, each=2, everything=True, lr=1e-3, tower_lr=0.2
        )
    )
    """Of every arm."""
    arms: tuple[str, ...] = ()
    """Which of ARMS are trained."""
    train_images: int = 2400
    """Pictures of each arm's training."""
    fit_images: int = 200
    """Pictures that the baselines are fitted to."""
    test_images: int = 80
    """Pictures of each kind to be judged on."""


def arm_training(reader: CounTX, arm: Arm, values: Values, seed: int) -> Training:
    """Return the training of a copy of ``reader``, on classes that no test asks for."""
    shown = shared_out(
        values.scenes, values.train_images, "train", "train", seed, arm.several
    )
    schedule = replace(values.schedule, blind=arm.blind)
    model = deepcopy(reader)
    batches = recipe.scene_batches(shown, schedule, seed, model.device)
    return recipe.training(model, batches, schedule, seed)


def folder(name: str) -> str:
    """Return the name of an arm's folder."""
    return name.replace(", ", "-").replace(" ", "_")


def train_arms(
    reader: CounTX, values: Values, seed: int, out: Path
) -> dict[str, CounTX]:
    """Train the arms of ``values``, each in the folder of its name in ``out``, and
    return them in evaluation mode; ``reader`` is not changed."""
    models = {}
    for name in values.arms:
        training = arm_training(reader, ARMS[name], values, seed)
        training.fit(out / folder(name), progress=name)
        model = training.model.eval()
        assert isinstance(model, CounTX)  # for the type checker
        models[name] = model
    return models


# --- What they are judged on ----------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Test pictures, all of classes that were never counted but for ``seen``."""

    one: Questions
    """One class a picture, asked for."""
    several: Questions
    """Every class of a picture, and one that is not in it."""
    seen: Questions
    """The same pictures with classes of the training in the places of those."""
    coloured: DescribedScenes
    """Pictures whose many are of two colours."""


def judged(values: Values, seed: int) -> Judged:
    """Draw the test pictures of a seed."""
    n, scenes = values.test_images, values.scenes
    return Judged(
        one=shared_out(scenes, n, "test", "test", seed, 0.0).leading(),
        several=_several(scenes_of(scenes, n, "test", "test", seed)),
        seen=_several(scenes_of(scenes, n, "train", "test", seed)),
        # another seed: other pictures than those of ``several``
        coloured=scenes_of(scenes, n, "test", "test", 1000 + seed, coloured=1.0),
    )


def _several(scenes: DescribedScenes) -> Questions:
    return scenes.questions(("class", "absent"))


@dataclass(frozen=True)
class Guess:
    """A baseline, fitted to training questions of either kind."""

    one: Counter
    several: Counter


def baselines(clip: CLIP, values: Values, seed: int) -> dict[str, Guess]:
    """Return the rivals that learn a number or three, fitted to training questions like
    those they are judged on: about classes of the training.

    The best constant and the training mean look at nothing; the similarity threshold
    cuts raw CLIP's map.
    """
    n, scenes = values.fit_images, values.scenes
    one = shared_out(scenes, n, "train", "train", seed, 0.0).leading()
    several = _several(scenes_of(scenes, n, "train", "train", seed))

    def blobs(train: Questions) -> Counter:
        return similarity_threshold(clip, train, clip.device)[0]

    return {
        "best constant": Guess(best_constant(one), best_constant(several)),
        "training mean": Guess(training_mean(one), training_mean(several)),
        "similarity threshold": Guess(blobs(one), blobs(several)),
    }


# --- Measures -------------------------------------------------------------------------


def row(guess: Guess, about: Judged, device: torch.device | str) -> dict[str, float]:
    """Return what one counter does on pictures of one class and of several.

    Returns:
        "one class", the mean absolute error where that is all there is; and on pictures
        of several classes "several", that of all questions, "present", of those for
        what is there, "absent", the mean |answer| to the others, and "follows" (see
        ``metrics.counting.follows``).
    """
    said = answers(guess.several, about.several, device)
    one = answers(guess.one, about.one, device)
    return {
        "one class": count_errors(one, about.one.counts).mae,
        **_on_several(said, about.several),
    }


def _on_several(said: Tensor, questions: Questions) -> dict[str, float]:
    truth = questions.counts
    there = truth > 0
    return {
        "several": count_errors(said, truth).mae,
        "present": count_errors(said[there], truth[there]).mae,
        "absent": said[~there].abs().mean().item(),
        "follows": follows(said, truth, questions.about),
    }


def table(
    guesses: Mapping[str, Guess],
    networks: Mapping[str, CounTX],
    about: Judged,
    device: torch.device | str,
) -> dict[str, dict[str, float]]:
    """Return the :func:`row` of every baseline and network; networks that are arms hear
    what they heard in training."""
    counters = dict(guesses)
    for name, network in networks.items():
        counter = counter_of(network, ARMS[name].heard if name in ARMS else None)
        counters[name] = Guess(counter, counter)
    return {name: row(guess, about, device) for name, guess in counters.items()}


def examined(
    name: str, network: CounTX, about: Judged, device: torch.device | str
) -> dict[str, float | str]:
    """Return a reader's row on classes that were never counted and, under "seen", on
    those that were, in pictures of the same arrangement.

    Returns:
        "who", its name; "several" and "follows" of :func:`row`; "seen" and "seen
        follows".
    """
    counter = counter_of(network)
    unseen, seen = (
        _on_several(answers(counter, questions, device), questions)
        for questions in (about.several, about.seen)
    )
    return {
        "who": name,
        "several": unseen["several"],
        "follows": unseen["follows"],
        "seen": seen["several"],
        "seen follows": seen["follows"],
    }


def left_behind(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return for each pair of arms, by the share of its pictures that show several
    classes, the error of the worse one relative to the best constant's: below 1, both
    have left the trivial answer. Pairs that were not trained are left out."""
    kinds = {"one class": "one class", "several classes": "several"}
    return {
        pair: max(rows[pair][kind], rows[f"{pair}, blind"][kind])
        / rows["best constant"][kind]
        for pair, kind in kinds.items()
        if pair in rows
    }


def curve(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the error of every arm on pictures like those of its training, with the
    text and "blind", by the share that shows several classes; empty without arms."""
    found: dict[str, dict[str, float]] = {}
    for name, arm in ARMS.items():
        if name in rows:
            mae = (1 - arm.several) * rows[name]["one class"]
            mae += arm.several * rows[name]["several"]
            point = found.setdefault(f"{arm.several:g}", {})
            point["blind" if arm.blind else "text"] = mae
    return found


# --- Colours --------------------------------------------------------------------------


def recoloured(scenes: DescribedScenes) -> dict[str, Questions]:
    """Ask for each of two colours of one picture, and in its place for other things.

    Returns:
        four lists of questions whose true answers are those of the first, "named", the
        colour; "other colour", the other one of the same picture; "absent colour", one
        that is not there, another for each; "class name", no colour.
    """
    kept = []
    texts: dict[str, list[str]] = {
        name: [] for name in ("other colour", "absent colour")
    }
    for asked in scenes.asked:
        mine = [a for a in asked if a.kind == "colour"]
        kept.append(tuple(mine) if len(mine) == 2 else ())
        if len(mine) != 2:
            continue
        name = mine[0].plain
        there = [a.text.removesuffix(f" {name}") for a in mine]
        absent = [colour for colour in TINTS if colour not in there]
        first = len(kept) % len(absent)  # not the same one for every picture
        texts["other colour"] += [f"the {colour} {name}" for colour in there[::-1]]
        texts["absent colour"] += [
            f"the {absent[(first + k) % len(absent)]} {name}" for k in range(2)
        ]
    pairs = replace(scenes, asked=tuple(kept))
    named = pairs.questions(("colour",))
    other = {name: replace(named, asked=tuple(asked)) for name, asked in texts.items()}
    plain = tuple(f"the {text}" for text in pairs.questions(("colour",), True).asked)
    return {"named": named, **other, "class name": replace(named, asked=plain)}


def colours(
    network: CounTX, scenes: DescribedScenes, device: torch.device | str
) -> dict[str, dict[str, float]]:
    """Return for each list of :func:`recoloured` "follows", the share of the true
    difference between the two colours that the answers follow, and "mae"."""
    counter = counter_of(network)
    found = {}
    for name, questions in recoloured(scenes).items():
        said = answers(counter, questions, device)
        found[name] = {
            "follows": follows(said, questions.counts, questions.about),
            "mae": count_errors(said, questions.counts).mae,
        }
    return found
