"""Errors of counts."""

from __future__ import annotations

import math

import pytest
import torch

from minilib.metrics.counting import (
    count_errors,
    error_difference,
    follows,
    paired,
)


def test_errors_of_a_small_example() -> None:
    errors = count_errors([1.0, 4.5, 30.0], [2, 4, 10])
    assert errors.images == 3
    assert errors.mae == pytest.approx((1 + 0.5 + 20) / 3)
    assert errors.rmse == pytest.approx(math.sqrt((1 + 0.25 + 400) / 3))
    assert errors.median == pytest.approx(1.0)
    assert errors.bias == pytest.approx((-1 + 0.5 + 20) / 3)


def test_bins_partition_images_and_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, 3000, (500,), generator=generator)
    errors = count_errors(true + 10 * torch.randn(500, generator=generator), true)
    assert sum(row.images for row in errors.by_count) == 500
    assert sum(row.share for row in errors.by_count) == pytest.approx(1)
    assert sum(row.mae * row.images for row in errors.by_count) == pytest.approx(
        500 * errors.mae
    )
    assert errors.by_count[-1].high is None


def test_bin_edges_are_inclusive_below() -> None:
    errors = count_errors([0, 0, 0, 0], [4, 5, 9, 10], bins=(0, 5, 10))
    assert [(row.low, row.high, row.images) for row in errors.by_count] == [
        (0, 4, 1),
        (5, 9, 2),
        (10, None, 1),
    ]


def test_one_huge_image_causes_nearly_all_of_the_rmse() -> None:
    true = torch.cat([torch.full((999,), 20), torch.tensor([3731])])
    errors = count_errors(true * 0.9, true, largest=1)
    assert errors.share_of_largest == pytest.approx(373.1**2 / (373.1**2 + 999 * 4))
    assert errors.rmse > 5 * errors.mae / 2
    assert errors.median == pytest.approx(2.0)


def test_largest_is_by_true_count_not_by_error() -> None:
    errors = count_errors([100.0, 50.0], [1, 50], largest=1)
    assert errors.share_of_largest == 0


def test_default_of_largest() -> None:
    assert count_errors([1.0] * 3, [1] * 3).largest == 3
    assert count_errors([1.0] * 100, [1] * 100).largest == 5
    assert count_errors([1.0] * 1190, [1] * 1190).largest == 12


def test_perfect_counts_blame_nobody() -> None:
    errors = count_errors([3.0, 0.0], [3, 0])
    assert (errors.mae, errors.rmse, errors.share_of_largest) == (0, 0, 0)
    assert set(errors.as_dict()) == {
        "mae",
        "rmse",
        "median",
        "bias",
        "share_of_largest",
    }


def test_negative_predictions_are_not_clamped() -> None:
    assert count_errors([-1.0], [1]).mae == 2


@pytest.mark.parametrize(
    ("predicted", "true", "options", "message"),
    [
        ([], [], {}, "at least one"),
        ([1.0], [1, 2], {}, "1 predicted and 2 true"),
        ([float("nan")], [1], {}, "predicted count 0 is nan"),
        ([1.0], [-1], {}, "true count of -1"),
        ([[1.0]], [1], {}, r"shape \(1, 1\)"),
        ([1.0], [1], {"bins": (1, 5)}, "start at 0"),
        ([1.0], [1], {"bins": (0, 5, 5)}, "rising"),
        ([1.0], [1], {"largest": 0}, "largest=0"),
    ],
)
def test_bad_input_is_named(
    predicted: list, true: list, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        count_errors(predicted, true, **options)


def test_counters_are_compared_question_by_question() -> None:
    first, second = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([3.0, 4.0, 6.0])
    truth = torch.tensor([1.0, 5.0, 6.0])
    assert error_difference(first, second, truth).tolist() == [-2, 0, 3]
    found = paired(first, second, truth)
    assert found == {"difference": pytest.approx(1 / 3), "wins": pytest.approx(0.5)}
    with pytest.raises(
        ValueError, match=r"answers \(3,\) and \(2,\) to questions \(3,\)"
    ):
        error_difference(first, second[:2], truth)


ABOUT = torch.tensor([4, 4, 4, 7, 7])
TRUE = torch.tensor([3.0, 0.0, 9.0, 1.0, 5.0])


@pytest.mark.parametrize(
    ("answers", "share"),
    [
        (TRUE, 1.0),
        (TRUE + torch.tensor([2.0, 2, 2, -1, -1]), 1.0),  # the level is not its matter
        (torch.tensor([6.0, 6, 6, 1, 1]), 0.0),  # one answer an image: deaf
        (2 * TRUE, 0.0),  # twice the difference is as wrong as none
        (TRUE / 2, 0.75),
        (-TRUE, -3.0),
    ],
)
def test_what_following_means(answers: torch.Tensor, share: float) -> None:
    assert follows(answers, TRUE, ABOUT) == pytest.approx(share)


def test_only_questions_about_one_image_are_compared() -> None:
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    guess = TRUE + torch.tensor([0.5, -1, 0, 2, 0])
    assert follows(guess[shuffled], TRUE[shuffled], ABOUT[shuffled]) == pytest.approx(
        follows(guess, TRUE, ABOUT)
    )
    assert follows(guess, TRUE, torch.tensor([4, 4, 4, 4, 4])) != pytest.approx(
        follows(guess, TRUE, ABOUT)
    )
    with pytest.raises(ValueError, match="nothing to follow"):
        follows(TRUE, TRUE, torch.arange(5))
    with pytest.raises(ValueError, match="about 4 images"):
        follows(TRUE, TRUE, ABOUT[:4])
