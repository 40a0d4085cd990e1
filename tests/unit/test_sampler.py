"""Layouts: determinism, splits, and every knob of SceneConfig measured
against what it says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from minilib.scenes import (
    BACKGROUNDS,
    SPLITS,
    TASKS,
    TINTS,
    VOCABULARY,
    SceneConfig,
    held_out_tint,
    names,
)
from minilib.scenes.sampler import FREQUENCY_WEIGHT, Layout, Stream, sample_layout


def draw(
    config: SceneConfig,
    task: str = "pairs",
    n: int = 400,
    split: str = "train",
    seed=0,
    start=0,
) -> Layout:
    return sample_layout(config, task, Stream(seed, split, np.arange(start, start + n)))


def used(layout: Layout) -> np.ndarray:
    return layout.concept >= 0


def assert_same_scenes(one: Layout, other: Layout) -> None:
    """Compare two layouts that may have another number of (empty) slots."""
    slots = min(one.concept.shape[1], other.concept.shape[1])
    assert (one.concept[:, slots:] < 0).all() and (other.concept[:, slots:] < 0).all()
    for field in fields(Layout):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if a is None or field.name in ("style", "background", "surface", "target"):
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            here = used(one)[:, :slots]
            np.testing.assert_array_equal(
                a[:, :slots][here], b[:, :slots][here], err_msg=field.name
            )


# --- The random stream ----------------------------------------------------------------


def test_stream_is_uniform_and_purposes_are_independent():
    stream = Stream(0, "train", np.arange(20_000))
    a, b = stream.uniform("a"), stream.uniform("b")
    assert 0 <= a.min() and a.max() < 1
    counts = np.histogram(a, bins=20, range=(0, 1))[0]
    assert (
        (counts - 1000) ** 2 / 1000
    ).sum() < 45  # chi-square with 19 degrees of freedom: 0.1 % quantile 43.8
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.03


def test_stream_of_a_scene_does_not_depend_on_how_many_numbers_are_drawn():
    stream = Stream(3, "val", np.arange(5))
    np.testing.assert_array_equal(stream.uniform("x", 4), stream.uniform("x", 9)[:, :4])
    np.testing.assert_array_equal(
        stream.uniform("x", 2, 2), stream.uniform("x", 5, 2)[:, :2]
    )


def test_integers_hold_both_ends():
    drawn = Stream(0, "train", np.arange(3000)).integers("n", 2, 5)
    assert np.unique(drawn).tolist() == [2, 3, 4, 5]
    assert np.bincount(drawn)[2:].min() > 650


def test_splits_and_seeds_share_no_scene():
    index = np.arange(20_000)
    keys = [
        Stream(seed, split, index).key
        for seed in (0, 1, 2, 2**40, 2**40 + 2**32)
        for split in SPLITS
    ]
    every = np.concatenate(keys)
    assert len(np.unique(every)) == len(every)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "dev"), "split='dev': expected one of train, val, test"),
        ((-1, "train"), "seed=-1"),
        ((2**64, "train"), "2**64"),
    ],
)
def test_stream_refuses(arguments, message):
    with pytest.raises(ValueError) as error:
        Stream(*arguments, np.arange(1))
    assert message in str(error.value)


# --- Determinism ----------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_scene_is_the_same_alone_in_a_batch_and_from_any_start(task):
    config = SceneConfig(count=(1, 20))
    whole = draw(config, task, n=40)
    assert_same_scenes(draw(config, task, n=15, start=25), pick(whole, slice(25, 40)))
    for index in (0, 7, 39):
        assert_same_scenes(
            draw(config, task, n=1, start=index), pick(whole, slice(index, index + 1))
        )


def pick(layout: Layout, rows: slice) -> Layout:
    values = {f.name: getattr(layout, f.name) for f in fields(Layout)}
    return Layout(
        **{
            name: None if value is None else value[rows]
            for name, value in values.items()
        }
    )


def test_another_process_draws_the_same():
    code = (
        "import numpy as np; from minilib.scenes.sampler import *\n"
        "layout = sample_layout(SceneConfig(), 'pairs', Stream(5, 'test', "
        "np.arange(100, 150)))\n"
        "print(layout.concept.tolist(), layout.center.sum().hex(), "
        "layout.surface.sum().hex())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    here = draw(SceneConfig(), n=50, split="test", seed=5, start=100)
    assert there == (
        f"{here.concept.tolist()} {here.center.sum().hex()} {here.surface.sum().hex()}"
    )


def test_global_random_state_neither_matters_nor_moves():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    one = draw(SceneConfig(), n=10)
    np.testing.assert_array_equal(before, np.random.get_state()[1])
    np.random.seed(2)
    assert_same_scenes(one, draw(SceneConfig(), n=10))


PINNED = {
    "concept": [[215, -1, -1, -1], [142, 153, 8, 30], [201, 228, 229, 235]],
    "center": [[34.413225, 34.413225], [51.957021, 12.53732], [51.480635, 19.527934]],
    "background": [7, 5, 10],
}


def test_scenes_are_what_they_were_when_the_checkpoints_were_trained():
    """Whoever changes these numbers raises VERSION and trains the mini
    checkpoints anew."""
    layout = draw(SceneConfig(), n=3, seed=7)
    assert layout.concept.tolist() == PINNED["concept"]
    np.testing.assert_allclose(layout.center[:, 0], PINNED["center"], atol=1e-6)
    assert layout.background.tolist() == PINNED["background"]


# --- Knobs ----------------------------------------------------------------------------


@pytest.mark.parametrize("low, high", [(1, 1), (1, 4), (3, 8)])
def test_number_of_objects(low, high):
    number = used(draw(SceneConfig(objects=(low, high)), n=800)).sum(1)
    assert np.unique(number).tolist() == list(range(low, high + 1))
    assert np.bincount(number)[low:].min() > 0.6 * 800 / (high - low + 1)


def test_classify_shows_one_object_whatever_objects_says():
    assert (used(draw(SceneConfig(objects=(3, 9)), "classify")).sum(1) == 1).all()


def test_count_draws_every_number_and_no_distractor_of_the_counted_class():
    layout = draw(SceneConfig(count=(1, 60), distractors=(0, 6)), "count", n=6000)
    target = layout.target[:, None]
    counted = (layout.concept == target).sum(1)
    assert np.unique(counted).tolist() == list(range(1, 61))
    assert np.bincount(counted)[1:].min() > 60
    others = (used(layout) & (layout.concept != target)).sum(1)
    assert np.unique(others).tolist() == list(range(7))


def test_distractors_are_never_the_counted_class_even_of_two():
    layout = draw(
        SceneConfig(count=(2, 2), distractors=(5, 5), classes=("dog", "cat")),
        "count",
        n=200,
    )
    assert ((layout.concept == layout.target[:, None]).sum(1) == 2).all()
    assert (used(layout).sum(1) == 7).all()


def test_count_may_be_zero():
    layout = draw(SceneConfig(count=(0, 0), distractors=(0, 1)), "count", n=50)
    assert not (layout.concept == layout.target[:, None]).any()
    assert not used(layout).all()


def test_counting_among_one_class_needs_no_distractors():
    with pytest.raises(ValueError, match=r"set distractors=\(0, 0\)"):
        draw(SceneConfig(classes=("dog",)), "count")
    assert used(draw(SceneConfig(classes=("dog",), distractors=(0, 0)), "count")).any()


def test_only_the_allowed_classes_backgrounds_and_styles_occur():
    config = SceneConfig(
        classes=("dog", "cat", "train"),
        backgrounds=("snow", "road"),
        styles=("openmoji", "twemoji"),
    )
    layout = draw(config)
    shown = {VOCABULARY[i].name for i in layout.concept[used(layout)]}
    assert shown == {"dog", "cat", "train"}
    assert {list(BACKGROUNDS)[i] for i in layout.background} == {"snow", "road"}
    assert set(layout.style.tolist()) == {1, 2}


def test_classes_are_uniform_unless_long_tailed():
    layout = draw(SceneConfig(objects=(1, 1)), n=24_000)
    counts = np.bincount(layout.concept[:, 0], minlength=len(VOCABULARY))
    assert 60 < counts.min() and counts.max() < 145  # 100 expected


def test_long_tail_has_the_stated_frequencies():
    layout = draw(SceneConfig(objects=(1, 1), long_tail=True), n=20_000)
    bands = np.array([c.frequency for c in VOCABULARY])
    weight = np.array([FREQUENCY_WEIGHT[band] for band in bands])
    for band in FREQUENCY_WEIGHT:
        expected = weight[bands == band].sum() / weight.sum()
        assert np.mean(bands[layout.concept[:, 0]] == band) == pytest.approx(
            expected, abs=0.02
        )
    assert (
        FREQUENCY_WEIGHT["frequent"]
        > FREQUENCY_WEIGHT["common"]
        > FREQUENCY_WEIGHT["rare"]
    )


def test_repeat_is_the_share_of_further_objects_like_the_first():
    for repeat in (0.0, 0.3, 1.0):
        layout = draw(SceneConfig(objects=(4, 4), repeat=repeat), n=3000)
        like = (layout.concept[:, 1:] == layout.concept[:, :1]).mean()
        assert like == pytest.approx(repeat + (1 - repeat) / len(VOCABULARY), abs=0.02)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_cooccurrence_is_measured_in_the_layouts(strength):
    layout = draw(SceneConfig(objects=(1, 1), cooccurrence=strength), n=6000)
    habitat = [VOCABULARY[i].habitat for i in layout.concept[:, 0]]
    with_one = np.array([name is not None for name in habitat])
    at_home = np.array(
        [
            list(BACKGROUNDS)[b] == h
            for b, h in zip(layout.background, habitat, strict=True)
        ]
    )
    expected = strength + (1 - strength) / len(BACKGROUNDS)
    assert at_home[with_one].mean() == pytest.approx(expected, abs=0.025)


def test_a_habitat_that_is_not_allowed_never_shows():
    layout = draw(
        SceneConfig(classes=("train",), backgrounds=("sky",), cooccurrence=1.0)
    )
    assert (layout.background == list(BACKGROUNDS).index("sky")).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_tinted_objects(share):
    layout = draw(SceneConfig(tint=share), n=2000)
    tinted = layout.tint[used(layout)]
    assert (tinted >= 0).mean() == pytest.approx(share, abs=0.02)
    if share:
        assert (
            np.bincount(tinted[tinted >= 0], minlength=len(TINTS)).min()
            > 0.12 * (tinted >= 0).sum()
        )


def test_seen_and_unseen_combinations_are_disjoint_and_complete():
    def pairs(kind: str) -> set[tuple[int, int]]:
        config = SceneConfig(
            objects=(4, 4), tint=1.0, combinations=kind, classes=tuple(names()[:20])
        )
        layout = draw(config, n=3000)
        return set(
            zip(
                layout.concept[used(layout)].tolist(),
                layout.tint[used(layout)].tolist(),
                strict=True,
            )
        )

    seen, unseen = pairs("seen"), pairs("unseen")
    assert not seen & unseen
    assert len(seen) == 20 * (len(TINTS) - 1) and len(unseen) == 20
    assert all(int(held_out_tint(concept)) == tint for concept, tint in unseen)


def test_held_out_tints_are_spread_over_all_colours():
    held_out = held_out_tint(np.arange(len(VOCABULARY)))
    assert np.bincount(held_out, minlength=len(TINTS)).min() == len(VOCABULARY) // len(
        TINTS
    )


def test_rotation_and_mirroring():
    layout = draw(SceneConfig(rotation=30.0, flip=True), n=1000)
    angle = np.rad2deg(layout.angle[used(layout)])
    assert -30 <= angle.min() < -28 and 28 < angle.max() <= 30
    assert layout.flipped[used(layout)].mean() == pytest.approx(0.5, abs=0.05)
    still = draw(SceneConfig(rotation=0.0, flip=False))
    assert not still.angle.any() and not still.flipped.any()


@pytest.mark.parametrize("size", [16, 32, 64, 384, (32, 256), (200, 48)])
@pytest.mark.parametrize("objects", [(1, 1), (1, 6), (30, 60)])
def test_upright_objects_stay_inside(size, objects):
    config = SceneConfig(size=size, objects=objects, jitter=1.5)
    layout = draw(config, n=100)
    here = used(layout)
    half, center = layout.side[here][:, None] / 2, layout.center[here]
    height, width = config.shape
    assert (center - half >= -1e-9).all() and (
        center + half <= np.array([width, height]) + 1e-9
    ).all()


def test_scale_is_relative_to_the_cell_and_to_the_image_for_one_object():
    side = draw(SceneConfig(size=100, objects=(1, 1), scale=(0.5, 0.8)), n=1000).side[
        :, 0
    ]
    assert 50 <= side.min() < 51 and 79 < side.max() <= 80
    many = draw(SceneConfig(size=100, objects=(9, 9), scale=(1.0, 1.0)), n=100)
    assert (many.side[used(many)] <= 100 / 3 + 1e-9).all()


def test_objects_get_cells_of_their_own_unless_jitter_mixes_them():
    def distance(jitter: float) -> float:
        config = SceneConfig(size=64, objects=(4, 4), jitter=jitter, scale=(0.9, 0.9))
        layout = draw(config, n=300)
        gap = np.abs(layout.center[:, :, None] - layout.center[:, None, :]).max(-1)
        gap[:, np.arange(4), np.arange(4)] = np.inf
        return (gap.min((1, 2)) / layout.side[:, 0]).min()

    assert distance(0.0) >= 1.0  # squares do not touch
    assert distance(1.5) < 0.95  # occlusion


# --- Refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 8}, "at least 16 pixels"),
        ({"size": (64, 8)}, "at least 16 pixels"),
        ({"styles": ("apple",)}, "expected one or more of noto, openmoji, twemoji"),
        ({"styles": ()}, "expected one or more of noto"),
        ({"backgrounds": ("moon",)}, "night sky"),
        ({"classes": ()}, "at least one class name"),
        ({"objects": (0, 2)}, "objects=(0, 2)"),
        ({"objects": (3, 2)}, "1 <= smallest <= largest"),
        ({"count": (-1, 2)}, "count=(-1, 2)"),
        ({"distractors": (2, 1)}, "distractors=(2, 1)"),
        ({"scale": (0.0, 1.0)}, "scale=(0.0, 1.0)"),
        ({"jitter": -1.0}, "jitter=-1.0"),
        ({"rotation": -5.0}, "rotation=-5.0"),
        ({"combinations": "held out"}, "'all', 'seen' or 'unseen'"),
        ({"tint": 1.5}, "tint=1.5: expected a probability"),
        ({"repeat": -0.1}, "repeat=-0.1"),
        ({"cooccurrence": 2}, "cooccurrence=2"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError) as error:
        SceneConfig(**changes)
    assert message in str(error.value)


def test_config_names_the_nearest_class():
    with pytest.raises(KeyError, match="no class is called 'dgo'.*dog"):
        SceneConfig(classes=("dgo",))


def test_unknown_task():
    with pytest.raises(
        ValueError, match="task='caption': expected one of pairs, classify"
    ):
        draw(SceneConfig(), "caption")
