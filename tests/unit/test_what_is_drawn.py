"""In every chapter: what its experiments draw, train and compare is what they say.

A chapter takes part with ``tests/unit/<paper>/arms.py``, see ``witness.py``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from witness import Witness

ARMS = sorted(Path(__file__).parent.glob("*/arms.py"))


def told(path: Path, out: Path, seed: int) -> Witness:
    """Run the arms of one chapter under a witness."""
    spec = importlib.util.spec_from_file_location(f"arms_of_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    witness = Witness()
    with pytest.MonkeyPatch.context() as patch:
        witness.install(patch)
        spec.loader.exec_module(module)  # what it imports is wrapped already
        module.arms(out, seed, witness)
    return witness


@pytest.fixture(scope="module", params=ARMS, ids=[path.parent.name for path in ARMS])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Witness]:
    """What a chapter does with a seed; each seed runs once."""
    kept: dict[int, Witness] = {}

    def of(seed: int) -> Witness:
        if seed not in kept:
            out = tmp_path_factory.mktemp(f"seed{seed}")
            kept[seed] = told(request.param, out, seed)
        return kept[seed]

    return of


def test_training_draws_from_the_training_split_alone(run) -> None:
    witness = run(0)
    assert witness.trainings
    for training in witness.trainings:
        assert training.images, f"{training.arm} has seen no image"
        assert witness.splits(training.images) <= {"train"}, training.arm
    for drawn in witness.scenes:
        assert drawn.phase != "training" or drawn.split == "train", drawn
        assert drawn.phase != "evaluating" or drawn.split != "train", drawn
        assert drawn.phase != "judging" or drawn.split == "test", drawn
        assert drawn.phase != "fitting" or drawn.split != "test", drawn


def test_nothing_is_judged_on_what_it_has_seen(run) -> None:
    witness = run(0)
    assert witness.judges, "arms.py does not say on what its arms are judged"
    trained = set().union(*(training.images for training in witness.trainings))
    for name, images in witness.judges:
        assert witness.splits(images) == {"test"}, name
        assert not images & trained, name
        for baseline, fitted in witness.fits:
            assert not images & fitted, (name, baseline)
    for baseline, fitted in witness.fits:
        assert witness.splits(fitted) <= {"train", "val"}, baseline
    for probe in witness.probes:
        assert not probe.fitted & probe.judged, probe.arm
    judged = _scenes(witness, "judging") | _scenes(witness, "evaluating")
    assert not judged & (_scenes(witness, "fitting") | _scenes(witness, "training"))


def _scenes(witness: Witness, phase: str) -> set[tuple[str, int, int]]:
    drawn = (drawn.scenes for drawn in witness.scenes if drawn.phase == phase)
    return set().union(*drawn)


def test_compared_arms_see_the_same_images_at_the_same_steps(run) -> None:
    witness = run(0)
    alone = len(witness.trainings) == 1
    assert alone or witness.budgets, "arms.py does not say which arms are compared"
    for patterns in witness.compared:
        first, *others = witness.matching(patterns)
        assert others, f"{first.arm} is compared with nothing"
        for other in others:
            assert other.batches.keys() == first.batches.keys(), (first.arm, other.arm)
            for step, seen in first.batches.items():
                same = other.batches[step].images == seen.images
                assert same, f"{first.arm} and {other.arm} differ at {step}"


def test_compared_arms_have_the_same_budget(run) -> None:
    witness = run(0)
    for patterns, but in witness.budgets:
        first, *others = witness.matching(patterns)
        assert others, f"{first.arm} is compared with nothing"
        for other in others:
            one, two = asdict(first.config), asdict(other.config)
            unequal = {name for name in one if one[name] != two[name]} - but
            assert not unequal, (first.arm, other.arm, unequal)
            sizes = [
                {step: len(seen.images) for step, seen in arm.batches.items()}
                for arm in (first, other)
            ]
            assert sizes[0] == sizes[1], (first.arm, other.arm)


def test_another_seed_is_other_data_and_other_weights(run) -> None:
    one, two = run(0), run(1)
    for training, other in zip(one.trainings, two.trainings, strict=True):
        assert training.arm == other.arm
        step = min(training.batches)
        assert training.batches[step].images != other.batches[step].images, training.arm
        assert training.config.seed != other.config.seed, training.arm
        assert not one.seeds(training.images) & two.seeds(other.images), training.arm
        alike = training.before == other.before
        assert alike == (training.arm in one.same_start), training.arm
    for (name, images), (_, others) in zip(one.judges, two.judges, strict=True):
        assert images != others, f"{name or 'a test set'} does not depend on the seed"
        assert not one.seeds(images) & two.seeds(others), name


def test_training_changes_weights_and_arms_differ(run) -> None:
    witness = run(0)
    for training in witness.trainings:
        assert training.before != training.after, training.arm
    for patterns in witness.compared:
        ends = [training.after for training in witness.matching(patterns)]
        assert len(set(ends)) == len(ends), f"two of {patterns} are one training"


def test_shuffled_controls_are_derangements(run) -> None:
    for seed in (0, 1):
        for dealt in run(seed).dealt:
            assert sorted(dealt.right) == sorted(dealt.dealt), dealt.name
            pairs = zip(dealt.right, dealt.dealt, strict=True)
            kept = sum(right == got for right, got in pairs)
            assert not kept, f"{dealt.name}: {kept} of {len(dealt.right)} stand still"


def test_unseen_names_are_not_seen_ones(run) -> None:
    for seed in (0, 1):
        for seen, unseen in run(seed).words:
            assert seen and unseen and not seen & unseen
