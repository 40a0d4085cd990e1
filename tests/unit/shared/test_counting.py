"""What both counting chapters share: classes that are never counted in training,
questions, baselines."""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import replace

import pytest
import torch

from minilib.recipes.shared import counting
from minilib.recipes.shared.counting import CountingScenes, Questions
from minilib.recipes.shared.counting_scenes import scenes_of
from minilib.scenes import VOCABULARY, find
from minilib.weights import load_clip

SMALL = CountingScenes(size=48, count=(0, 8), distractors=(0, 6))
NAMED = {c.plural: c.name for c in VOCABULARY}


@pytest.fixture(scope="module")
def train() -> Questions:
    return (
        scenes_of(SMALL, 40, "train", "train", 0)
        .questions(article=False)
        .take(range(40))
    )


@pytest.fixture(scope="module")
def test() -> Questions:
    return (
        scenes_of(SMALL, 24, "test", "test", 0).questions(article=False).take(range(24))
    )


def test_classes_of_the_test_are_neither_asked_for_nor_shown_in_training(
    train: Questions, test: Questions
) -> None:
    parts = [set(counting.counted_classes(part)) for part in ("train", "test")]
    assert (
        not parts[0] & parts[1]
        and len(parts[0] | parts[1]) == 240
        and len(parts[1]) == 48
    )
    assert {NAMED[name] for name in train.asked} <= parts[0] and {
        NAMED[name] for name in test.asked
    } <= parts[1]
    shown = SMALL.scenes(counting.counted_classes("train")).batch(
        "count", 40, "train", 0
    )
    assert {
        VOCABULARY[int(c)].name for classes in shown.classes for c in classes
    } <= parts[0]
    groups = Tally(find(name).group for name in parts[1])
    # nearly every kind of thing is tested
    assert len(groups) >= len({c.group for c in VOCABULARY}) - 1
    with pytest.raises(ValueError, match="'val'"):
        counting.counted_classes("val")


def test_density_sums_to_the_count_also_of_mirrored_and_empty_scenes(
    train: Questions,
) -> None:
    assert (train.counts == 0).any()
    for mirror in (None, [True] * len(train)):
        batch = train.batch(range(len(train)), mirror=mirror)
        torch.testing.assert_close(
            batch.density.sum((1, 2, 3)), train.counts, rtol=1e-4, atol=1e-4
        )


def test_mirroring_takes_points_and_density_along(train: Questions) -> None:
    plain, mirrored = train.batch([3]), train.batch([3], mirror=[True])
    torch.testing.assert_close(mirrored.image, plain.image.flip(-1))
    torch.testing.assert_close(
        mirrored.density, plain.density.flip(-1), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(mirrored.points[0][:, 0], 48 - plain.points[0][:, 0])


def test_stream_is_a_pure_function_of_the_step_and_shows_everything_once_an_epoch(
    train: Questions,
) -> None:
    stream = train.stream(8, seed=1)
    later, first = stream(7), stream(0)
    again = train.stream(8, seed=1)
    for step, batch in ((7, later), (0, first)):
        assert (
            torch.equal(again(step).image, batch.image)
            and again(step).caption == batch.caption
        )
    epoch = [name for step in range(5) for name in stream(step).caption]
    assert Tally(epoch) == Tally(train.asked)
    assert not torch.equal(train.stream(8, seed=2)(0).image, first.image)


def test_training_mean_knows_the_name_only_where_asked(
    train: Questions, test: Questions
) -> None:
    plain, named = (
        counting.training_mean(train),
        counting.training_mean(train, by_name=True),
    )
    batch = test.batch([0, 1])
    assert plain(batch).tolist() == pytest.approx([train.counts.mean().item()] * 2)
    # names that were never counted
    torch.testing.assert_close(named(batch), plain(batch))
    name = train.asked[0]
    own = [
        c for c, n in zip(train.counts.tolist(), train.asked, strict=True) if n == name
    ]
    assert named(train.batch([0])).item() == pytest.approx(sum(own) / len(own))


def test_the_best_constant_is_the_median(train: Questions, test: Questions) -> None:
    constant = counting.best_constant(train)
    errors = {
        answer: (train.counts - answer).abs().mean().item()
        for answer in [constant(test.batch([0])).item(), *range(9)]
    }
    assert errors[constant(test.batch([0])).item()] == min(errors.values())
    named = counting.best_constant(train, by_name=True)
    name = train.asked[0]
    own = train.counts[[i for i, n in enumerate(train.asked) if n == name]]
    assert named(train.batch([0])).item() == own.median().item()


def test_threshold_baseline_is_fitted_to_training_questions_and_beats_nothing_by_chance(
    train: Questions,
) -> None:
    clip = load_clip("mini-vit")
    counter, found = counting.similarity_threshold(clip, train)
    errors = counting.evaluate(counter, train)
    assert errors.mae == pytest.approx(found[""]["mae"], rel=0.02)
    median = train.counts.median()
    # a slope of 0 would already give about this
    assert errors.mae <= (train.counts - median).abs().mean() * 1.05


def test_the_threshold_is_fitted_to_questions_of_every_name(
    train: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions sorted by name, many more than are fitted to: no name is left out;
    where each name has a fit of its own, it sees that name's questions alone."""
    clip, heard = load_clip("mini-vit"), []
    thrice = train.take([*range(12)] * 3)
    names = ["cells"] * 12 + ["dots"] * 12 + ["rings"] * 12
    sorted_by_name = replace(thrice, asked=tuple(names))
    inner = counting._fitted_blobs
    monkeypatch.setattr(
        counting,
        "_fitted_blobs",
        lambda clip, part, device: (
            heard.append(part.asked) or inner(clip, part, device)
        ),
    )
    counting.similarity_threshold(clip, sorted_by_name, most=9)
    assert Tally(heard.pop()) == {"cells": 3, "dots": 3, "rings": 3}
    _, fits = counting.similarity_threshold(clip, sorted_by_name, most=9, by_name=True)
    assert list(fits) == ["", "cells", "dots", "rings"]
    assert [set(asked) for asked in heard[1:]] == [{"cells"}, {"dots"}, {"rings"}]
    assert [len(asked) for asked in heard] == [9] * 4


def test_a_name_with_its_own_fit_answers_by_it(train: Questions) -> None:
    """Two names, the same pictures, numbers ten times apart: one line fits neither."""
    clip = load_clip("mini-vit")
    few = train.take(range(12))
    many = tuple(torch.cat([p] * 10) for p in few.points)
    both = Questions(
        few.image,
        torch.cat([few.about, few.about]),
        ("cells",) * 12 + ("dots",) * 12,
        (*few.points, *many),
    )
    errors = [
        counting.evaluate(
            counting.similarity_threshold(clip, both, by_name=by_name)[0], both
        ).mae
        for by_name in (False, True)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_blobs_are_counted() -> None:
    maps = torch.zeros(1, 8, 8)
    maps[0, 1:3, 1:3] = maps[0, 5, 5] = 2.0
    assert counting._blobs(maps, 1.0).tolist() == [2.0]


def test_answers_keep_the_order_of_the_questions(test: Questions) -> None:
    seen = counting.answers(
        lambda batch: torch.tensor([float(len(p)) for p in batch.points]),
        test,
        batch_size=7,
    )
    assert torch.equal(seen, test.counts)


def test_validation_target_merges_points_of_a_pixel_and_clamps_those_outside() -> None:
    points = torch.tensor([[10.0, 10.0], [10.3, 10.2], [500.0, 5.0]])
    target = counting.validation_target(points, (100, 100), (50, 50))
    assert target.shape == (50, 50) and target.sum().item() == pytest.approx(
        2, rel=1e-4
    )
    assert target[:4, -3:].sum() > 0.5
