"""The witness sees what happens, and the rules of ``test_what_is_drawn.py`` notice
every way of breaking them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import test_what_is_drawn as rules
import torch
from PIL import Image
from torch import nn
from witness import Witness, digests

from minilib.metrics import LinearProbe
from minilib.recipes.shared import photographs
from minilib.recipes.shared.counting import CountingScenes
from minilib.recipes.shared.counting_scenes import scenes_of
from minilib.scenes import EmojiScenes, SceneConfig
from minilib.training import TrainConfig, fit

SCENES = EmojiScenes(SceneConfig(size=16, objects=(1, 1)))


def train(
    witness: Witness,
    arm: str,
    seed: int,
    *,
    split: str = "train",
    data: int | None = None,
    weights: int | None = None,
    first: int = 0,
    lr: float = 0.01,
    steps: int = 2,
    rows: int = 4,
) -> nn.Module:
    """Train a linear classifier of scenes."""
    with torch.random.fork_rng():
        torch.manual_seed(len(arm) + 100 * (seed if weights is None else weights))
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 240))

    def batches(step: int):
        start = (first + step) * rows
        return SCENES.batch(
            "classify", rows, split, seed if data is None else data, start
        )

    def loss(model: nn.Module, batch):
        return {"loss": nn.functional.cross_entropy(model(batch.image), batch.label)}

    with witness.arm(arm):
        fit(model, loss, batches, TrainConfig(steps, lr=lr, seed=seed), progress=None)
    return model


def experiment(witness: Witness, seed: int, **second) -> None:
    """Compare two arms; ``second`` is what is amiss with the other one."""
    train(witness, "one", seed)
    train(witness, "other", seed, **second)
    witness.compare("one", "other")
    witness.judge(SCENES.batch("classify", 6, "test", seed).image)
    witness.fit(SCENES.batch("classify", 6, "val", seed).image)
    vectors = torch.eye(4)
    witness.deal("shuffled", vectors, vectors.roll(1, 0))
    witness.unseen(["dog"], ["cat"])


def seen(todo, *args, **named) -> Callable[[int], Witness]:
    """Return what ``run`` is in the rules' module, of one experiment."""
    kept = {}

    def run(seed: int) -> Witness:
        if seed not in kept:
            kept[seed] = Witness()
            with pytest.MonkeyPatch.context() as patch:
                kept[seed].install(patch)
                todo(kept[seed], seed, *args, **named)
        return kept[seed]

    return run


RULES = [getattr(rules, name) for name in vars(rules) if name.startswith("test_")]


def broken(run) -> set[str]:
    """Return the names of the rules that a chapter breaks."""
    found = set()
    for rule in RULES:
        try:
            rule(run)
        except AssertionError:
            found.add(rule.__name__.removeprefix("test_"))
    return found


def test_a_good_experiment_breaks_no_rule():
    assert len(RULES) == 8 and broken(seen(experiment)) == set()


def test_arms_that_nobody_compares_are_noticed():
    def two(witness, seed):
        train(witness, "one", seed)
        train(witness, "other", seed)
        witness.judge(SCENES.batch("classify", 6, "test", seed).image)

    def one(witness, seed):
        train(witness, "one", seed)
        witness.judge(SCENES.batch("classify", 6, "test", seed).image)

    unsaid = {"compared_arms_see_the_same_images_at_the_same_steps"}
    assert broken(seen(two)) == unsaid and broken(seen(one)) == set()


@pytest.mark.parametrize(
    ("amiss", "rule"),
    [
        ({"split": "test"}, "training_draws_from_the_training_split_alone"),
        ({"split": "test"}, "nothing_is_judged_on_what_it_has_seen"),
        ({"first": 1}, "compared_arms_see_the_same_images_at_the_same_steps"),
        ({"steps": 3}, "compared_arms_see_the_same_images_at_the_same_steps"),
        ({"steps": 3}, "compared_arms_have_the_same_budget"),
        ({"lr": 0.02}, "compared_arms_have_the_same_budget"),
        ({"rows": 3}, "compared_arms_have_the_same_budget"),
        ({"data": 5}, "another_seed_is_other_data_and_other_weights"),
        ({"weights": 5}, "another_seed_is_other_data_and_other_weights"),
        ({"lr": 0.0}, "training_changes_weights_and_arms_differ"),
    ],
)
def test_an_arm_that_is_amiss_is_noticed(amiss, rule):
    assert rule in broken(seen(experiment, **amiss))


def test_other_declarations_that_are_amiss_are_noticed():
    def judged_on_training(witness, seed):
        experiment(witness, seed)
        witness.judge(SCENES.batch("classify", 4, "train", seed).image)

    def mirrored(witness, seed):
        experiment(witness, seed)
        witness.judge(SCENES.batch("classify", 4, "train", seed).image.flip(-1))

    def same_test(witness, seed):
        experiment(witness, seed)
        witness.judge(SCENES.batch("classify", 4, "test", 7).image)

    def fitted_on_test(witness, seed):
        experiment(witness, seed)
        witness.fit(SCENES.batch("classify", 4, "test", seed).image)

    def probed_on_what_it_was_fitted_to(witness, seed):
        experiment(witness, seed)
        x, y = torch.randn(6, 3), torch.arange(6) % 2
        LinearProbe.fit(x, y).accuracy(x[2:], y[2:])

    def undealt(witness, seed):
        experiment(witness, seed)
        witness.deal("words", ["a", "b", "c"], ["b", "a", "c"])

    def mixed(witness, seed):
        experiment(witness, seed)
        vectors = torch.randn(4, 3)
        witness.deal("channels", vectors, vectors.roll(1, 1))

    def shown(witness, seed):
        experiment(witness, seed)
        witness.unseen(["dog", "cat"], ["cat"])

    nothing_seen = "nothing_is_judged_on_what_it_has_seen"
    assert broken(seen(judged_on_training)) == {nothing_seen}
    assert broken(seen(mirrored)) == {nothing_seen}
    assert broken(seen(same_test)) == {"another_seed_is_other_data_and_other_weights"}
    assert broken(seen(fitted_on_test)) == {nothing_seen}
    assert broken(seen(probed_on_what_it_was_fitted_to)) == {nothing_seen}
    assert broken(seen(undealt)) == {"shuffled_controls_are_derangements"}
    assert broken(seen(mixed)) == {"shuffled_controls_are_derangements"}
    assert broken(seen(shown)) == {"unseen_names_are_not_seen_ones"}


def test_what_is_drawn_is_noted(witness, drawn_scenes, trainings):
    train(witness, "one", 3)
    SCENES.batch("pairs", 2, "val", 4, start=9)
    assert [(d.task, d.split, d.seed, d.start, d.n) for d in drawn_scenes] == [
        ("classify", "train", 3, 0, 4),
        ("classify", "train", 3, 4, 4),
        ("pairs", "val", 4, 9, 2),
    ]
    assert [(d.phase, d.arm) for d in drawn_scenes] == [("training", "one")] * 2 + [
        ("", "")
    ]
    assert drawn_scenes[2].scenes == {("val", 4, 9), ("val", 4, 10)}
    (training,) = trainings
    assert training.config.steps == 2 and sorted(training.batches) == [(0,), (1,)]
    assert len(training.images) == 8 and witness.sources(training.images) == {
        ("train", 3)
    }


def test_scenes_that_are_changed_and_cut_keep_their_source(witness):
    drawn = scenes_of(CountingScenes(size=32, count=(1, 3)), 3, "train", "val", seed=5)
    assert witness.sources(set(digests(drawn.image))) == {("val", 5)}


def test_photographs_keep_their_split(witness, tmp_path):
    drawn = np.random.default_rng(0)

    def picture(path, shape):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 255, shape, np.uint8)).save(path)

    for split in ("train", "test"):
        for number in range(2):
            for name in ("cat", "dog"):
                folder = tmp_path / "folders" / split / name
                picture(folder / f"{number}.png", (8, 8, 3))
            picture(tmp_path / "camvid" / split / f"{number}.png", (6, 8, 3))
            mask = Image.new("L", (8, 6), number)
            folder = tmp_path / "camvid" / f"{split}annot"
            folder.mkdir(exist_ok=True)
            mask.save(folder / f"{number}.png")
    train, test = photographs.class_folders(tmp_path / "folders", 8, seed=0)
    for photos, split in ((train, "train"), (test, "test")):
        image = photos.batch("classify", 4).image
        assert witness.sources(set(digests(image))) == {(split, None)}
        frames = photographs.camvid(tmp_path / "camvid", split, (6, 8)).batch([1])
        assert witness.splits(set(digests(frames.image))) == {split}


def test_evaluations_on_the_way_are_not_training(witness, drawn_scenes):
    def evaluate(model):
        SCENES.batch("classify", 2, "val", 0)
        return {}

    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1))
    fit(
        model,
        lambda model, batch: {"loss": model(batch.image).square().mean()},
        lambda step: SCENES.batch("classify", 2, "train", 0, 2 * step),
        TrainConfig(1),
        evaluate=evaluate,
        progress="watched",
    )
    assert [(d.split, d.phase, d.arm) for d in drawn_scenes] == [
        ("train", "training", "watched"),
        ("val", "evaluating", "watched"),
    ]


def test_digests_hold_for_rounded_and_mirrored_images():
    image = torch.from_numpy(np.random.default_rng(0).random((3, 3, 8, 6), np.float32))
    whole = (image * 255).round().to(torch.uint8)
    assert digests(image) == digests(whole) == digests(image.flip(-1))
    assert digests(whole.float() / 255) == digests(image)
    assert len(set(digests(image))) == 3
    assert set(digests(image)).isdisjoint(digests(image.flip(-2)))


def test_the_library_is_itself_again_afterwards():
    plain = EmojiScenes.layout
    with pytest.MonkeyPatch.context() as patch:
        Witness().install(patch)
        assert EmojiScenes.layout is not plain
    assert EmojiScenes.layout is plain
    assert replace(TrainConfig(1), steps=2).steps == 2
