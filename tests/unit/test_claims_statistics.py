"""Intervals keep what they promise on simulated data, and the rule of a verdict errs as
rarely as it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from minilib import claims
from minilib.claims import judging, records

TOYS = records.parse(Path(__file__).with_name("toy_ledger.yaml").read_text("utf-8"))
DRAWS = 20_000
LEVEL = 0.025 + 3 * (0.025 * 0.975 / DRAWS) ** 0.5  # three standard errors above


def asked(direction: str, n: int, effect: float = 1.0) -> claims.Claim:
    """A paper's claim that n fresh seeds test, without further controls."""
    gain = TOYS["toy.gain"]
    fresh = records.Seeds((), tuple(range(n)))
    test = replace(
        gain.test("full"), direction=direction, effect=effect, controls={}, seeds=fresh
    )
    return replace(gain, tests={**gain.tests, "full": test})


def measured(
    claim: claims.Claim, treatment: np.ndarray, control: np.ndarray
) -> list[claims.Measurement]:
    digest = claim.test("full").digest
    return [
        claims.Measurement(claim.id, "full", seed, float(t), float(c), 9, test=digest)
        for seed, (t, c) in enumerate(zip(treatment, control, strict=True))
    ]


def draw(effect: float, sd: float, n: int, seed: int = 0) -> np.ndarray:
    """Differences (DRAWS, n) of runs whose true effect is ``effect``."""
    return np.random.default_rng(seed).normal(effect, sd, (DRAWS, n))


def intervals(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Student-t intervals of rows, written down a second time."""
    n = differences.shape[1]
    half = stats.t.ppf(0.975, n - 1) * differences.std(axis=1, ddof=1) / n**0.5
    mean = differences.mean(axis=1)
    return mean - half, mean + half


def kinds(differences: np.ndarray, direction: str) -> np.ndarray:
    """The verdicts on rows at a smallest effect of 1, written down a second time, and
    compared with the library's on the first rows."""
    low, high = intervals(differences)
    within = (low >= -1) & (high <= 1)
    if direction == "equal":
        outside = (low > 1) | (high < -1)
        found = np.select([within, outside], ["reproduced", "not reproduced"], "?")
    else:
        low, high = (low, high) if direction == "greater" else (-high, -low)
        cases = [low > 1, within, high <= 1]
        found = np.select(cases, ["reproduced", "no difference", "not reproduced"], "?")
    claim = asked(direction, differences.shape[1])
    for row, kind in zip(differences[:100], found, strict=False):
        verdict = claims.judge(claim, measured(claim, row, 0 * row))
        assert verdict.kind == ("inconclusive" if kind == "?" else kind)
    return found


def share(kind: str, differences: np.ndarray, direction: str = "greater") -> float:
    return float(np.mean(kinds(differences, direction) == kind))


@cache
def widest(n: int) -> float:
    """The largest spread, in smallest effects, for which n seeds are said to do."""
    low, high = 0.1, 2.0
    for _ in range(25):
        middle = (low + high) / 2
        needed = claims.seeds_needed(middle, 1.0)
        low, high = (middle, high) if needed and needed <= n else (low, middle)
    return low


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_interval_covers_the_mean(n: int) -> None:
    differences = draw(0.3, 0.7, n)
    low, high = intervals(differences)
    for row, *ends in zip(differences[:50], low, high, strict=False):
        assert claims.t_interval(row) == pytest.approx(ends)
    covered = np.mean((low <= 0.3) & (0.3 <= high))
    assert covered == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / DRAWS) ** 0.5)
    with pytest.raises(ValueError, match="at least 2"):
        claims.t_interval([1.0])


def test_pairing_takes_the_luck_of_a_seed_out() -> None:
    """Treatment and control of a seed are lucky together: unpaired intervals would be
    ten times as wide."""
    generator, claim = np.random.default_rng(5), asked("greater", 5)
    hits, widths = 0, []
    for _ in range(1000):
        luck = generator.normal(0, 10, 5)
        treatment = luck + 2 + generator.normal(0, 0.5, 5)
        verdict = claims.judge(
            claim, measured(claim, treatment, luck + generator.normal(0, 0.5, 5))
        )
        hits += verdict.low <= 2 <= verdict.high
        widths.append(verdict.high - verdict.low)
    assert abs(hits / 1000 - 0.95) < 3 * (0.95 * 0.05 / 1000) ** 0.5
    assert np.median(widths) < 3


@pytest.mark.parametrize("n", [5, 7, 10])
def test_a_true_zero_ends_as_no_difference(n: int) -> None:
    """With as many seeds as seeds_needed asks for, in 80 % of cases; it is taken for an
    effect in fewer than 2.5 %."""
    sd = widest(n)
    assert claims.seeds_needed(sd, 1.0) == n
    nothing = draw(0.0, sd, n)
    for direction in ("greater", "smaller"):
        # just 80 %, since the spread is the widest that is allowed
        assert share("no difference", nothing, direction) == pytest.approx(
            0.8, abs=0.01
        )
        assert share("reproduced", nothing, direction) < 0.001
        assert share("not reproduced", nothing, direction) < 0.15
    assert share("reproduced", nothing, "equal") > 0.8 - 0.01
    assert share("not reproduced", nothing, "equal") < 0.001
    # and one seed fewer would not do
    if n > 5:
        assert share("no difference", nothing[:, :-1]) < 0.8 + 0.01


@pytest.mark.parametrize(("n", "sd"), [(5, 0.3), (5, 0.8), (7, 1.0), (10, 1.2)])
def test_the_power_is_that_of_simulated_runs(n: int, sd: float) -> None:
    simulated = share("no difference", draw(0.0, sd, n))
    assert judging._null_power(n, sd) == pytest.approx(simulated, abs=0.01)


@pytest.mark.parametrize("n", [5, 7, 10])
@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0, 3.0])
def test_an_effect_of_exactly_the_smallest_is_rarely_reproduced(
    n: int, spread: float
) -> None:
    at = draw(1.0, spread * widest(n), n)
    assert share("reproduced", at) < LEVEL
    assert share("reproduced", -at, "smaller") < LEVEL
    assert share("no difference", at) < LEVEL
    assert share("no difference", -at) < LEVEL
    assert share("reproduced", at, "equal") < LEVEL
    assert share("reproduced", -at, "equal") < LEVEL
    assert share("not reproduced", at, "equal") < LEVEL
    lost = np.isin(kinds(at, "greater"), ["no difference", "not reproduced"])
    assert lost.mean() < LEVEL, "neither is it lost"


def test_an_effect_of_twice_the_smallest_is_found() -> None:
    for n in (5, 7, 10):
        assert share("reproduced", draw(2.0, widest(n), n)) > 0.8
        assert share("not reproduced", draw(-2.0, widest(n), n)) > 0.99


def test_a_trivial_control_that_is_not_beaten_passes_rarely() -> None:
    """The main comparison always holds; the control is as good as the treatment."""
    claim, passed = TOYS["toy.gain"], 0
    digest = claim.test("full").digest
    for luck in np.random.default_rng(6).normal(0, 0.02, (3000, 5)):
        runs = [
            claims.Measurement(
                claim.id, "full", seed, 0.5 + d, 0.1, 9,
                controls={"shuffled text": 0.5}, test=digest,
            )
            for seed, d in zip(range(10, 15), luck, strict=True)
        ]  # fmt: skip
        passed += claims.judge(claim, runs).kind == "reproduced"
    assert passed / 3000 == pytest.approx(0.025, abs=0.009)


def test_seeds_needed_grows_with_the_spread_and_ends_at_ten() -> None:
    found = [claims.seeds_needed(sd, 1.0) for sd in np.linspace(0, 1.2, 40)]
    numbers = [n for n in found if n is not None]
    assert found[: len(numbers)] == sorted(numbers) and found[-1] is None
    assert set(numbers) == {5, 6, 7, 8, 9, 10}
    assert claims.seeds_needed(0.02, 0.05) == claims.seeds_needed(2, 5) == 5
    for wrong in ((-0.1, 1.0), (0.1, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="expected sd >= 0"):
            claims.seeds_needed(*wrong)


def test_bootstrap_covers_the_mean_and_follows_its_seed():
    generator = np.random.default_rng(2)
    hits = 0
    for seed in range(400):
        correct = generator.random(200) < 0.8
        low, high = claims.bootstrap_interval(correct, seed=seed, resamples=400)
        hits += low <= 0.8 <= high
    assert abs(hits / 400 - 0.95) < 0.035
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert claims.bootstrap_interval(values, seed=1) == claims.bootstrap_interval(
        values, seed=1
    )
    assert claims.bootstrap_interval(values, seed=1) != claims.bootstrap_interval(
        values, seed=2
    )
    low, high = claims.bootstrap_interval(values, resamples=20000)
    spread = values.std(correction=0).item() / 50**0.5
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.05)


@pytest.mark.parametrize("items", [[], [[1.0, 2.0]], [1.0, float("nan")]])
def test_bootstrap_refuses_what_is_not_a_row_of_numbers(items):
    with pytest.raises(ValueError, match="per_item"):
        claims.bootstrap_interval(items)


def test_bootstrap_over_seeds_is_exact_and_too_narrow_for_three() -> None:
    values = [1.0, 2.0, 4.0]
    every = [
        np.mean([values[i] for i in np.unravel_index(k, (3, 3, 3))]) for k in range(27)
    ]
    low, high = claims.seed_bootstrap_interval(values)
    assert low in every and high in every
    assert (
        np.mean(np.array(every) <= low) >= 0.025
        and np.mean(np.array(every) < low) < 0.025
    )
    assert (
        np.mean(np.array(every) <= high) >= 0.975
        and np.mean(np.array(every) < high) < 0.975
    )

    generator, kept = np.random.default_rng(4), {}
    for n in (3, 6, 20):
        draws = generator.normal(0, 1, ({3: 800, 6: 500, 20: 200}[n], n))
        intervals = [claims.seed_bootstrap_interval(row) for row in draws]
        kept[n] = np.mean([low <= 0 <= high for low, high in intervals])
    assert kept[3] < 0.85 < kept[6] < kept[20] + 0.04 and kept[20] > 0.89, kept
    with pytest.raises(ValueError, match="at least 2"):
        claims.seed_bootstrap_interval([1.0])


def test_paired_bootstrap_over_items_covers_the_difference_of_two_classifiers() -> None:
    """Two classifiers that are mostly right on the same items: pairing makes the
    interval narrow, and it holds."""
    generator, hits, narrower = np.random.default_rng(5), 0, []
    for seed in range(400):
        easy = generator.random(400) < 0.7
        one = np.where(easy, 1.0, generator.random(400) < 0.5)
        two = np.where(easy, 1.0, generator.random(400) < 0.3)
        low, high = claims.bootstrap_interval(one - two, seed=seed, resamples=400)
        hits += low <= 0.3 * 0.2 <= high
        alone = claims.bootstrap_interval(one, seed=seed, resamples=400)
        narrower.append((high - low) / (alone[1] - alone[0]))
    assert abs(hits / 400 - 0.95) < 0.035
    # of independent items it would be about 1.5 times as wide
    assert np.median(narrower) < 1.15


def test_bootstrap_of_a_statistic_that_is_no_mean() -> None:
    """The difference of two RMSEs over 150 images; the coverage is that of the
    percentile method, a little low."""
    generator, hits = np.random.default_rng(6), 0

    def difference(errors: np.ndarray) -> float:
        return float(
            np.sqrt((errors[:, 0] ** 2).mean()) - np.sqrt((errors[:, 1] ** 2).mean())
        )

    for seed in range(250):
        shared = generator.normal(0, 1, 150)
        errors = np.stack(
            [
                2 * shared + generator.normal(0, 1, 150),
                shared + generator.normal(0, 1, 150),
            ],
            axis=1,
        )
        low, high = claims.bootstrap_interval(
            errors, seed=seed, resamples=200, statistic=difference
        )
        hits += low <= 5**0.5 - 2**0.5 <= high
    assert 0.88 < hits / 250 <= 0.99

    values = generator.normal(0, 1, 80)
    plain = claims.bootstrap_interval(values, resamples=20000)
    same = claims.bootstrap_interval(
        values, resamples=4000, statistic=lambda x: float(x.mean())
    )
    assert plain == pytest.approx(same, abs=0.02)
    with pytest.raises(ValueError, match="expected a non-empty"):
        claims.bootstrap_interval(np.zeros((0, 2)), statistic=difference)


def grouped(generator: np.random.Generator, images: int) -> tuple[np.ndarray, ...]:
    """Differences of questions, of which an image has one to nine that are much alike;
    their true mean is 0.2."""
    sizes = generator.integers(1, 10, images)
    group = np.repeat(np.arange(images), sizes)
    alike = generator.normal(0.2, 1, images)[group]
    return alike + generator.normal(0, 0.3, len(group)), group


@pytest.mark.parametrize("statistic", [None, lambda rows: float(rows.mean())])
def test_bootstrap_over_images_covers_where_questions_share_them(
    statistic: Callable[[np.ndarray], float] | None,
) -> None:
    generator, hits, naive = np.random.default_rng(7), 0, 0
    repeats = 150 if statistic is None else 80
    for seed in range(repeats):
        values, group = grouped(generator, images=60)
        more = {"seed": seed, "resamples": 300, "statistic": statistic}
        low, high = claims.bootstrap_interval(values, groups=group, **more)
        hits += low <= 0.2 <= high
        low, high = claims.bootstrap_interval(values, **more)
        naive += low <= 0.2 <= high
    assert 0.88 < hits / repeats <= 0.99
    assert naive / repeats < 0.75, "questions alone make it too narrow"


def test_a_resample_is_averaged_over_items_and_not_over_images() -> None:
    """Here the images of many questions have the larger differences."""
    sizes = np.arange(1, 31)
    group, values = np.repeat(sizes, sizes), np.repeat(sizes / 30, sizes)
    more = {"groups": group, "resamples": 4000}
    fast = claims.bootstrap_interval(values, **more)
    slow = claims.bootstrap_interval(
        values, statistic=lambda x: float(x.mean()), **more
    )
    assert fast == pytest.approx(slow, abs=0.02)
    assert fast[0] < values.mean() < fast[1] and fast[0] > 0.55


def test_groups_of_one_item_are_the_items_themselves() -> None:
    values = np.random.default_rng(8).normal(0, 1, 80)
    names = [f"image {k}" for k in range(80)]
    plain = claims.bootstrap_interval(values, resamples=20_000)
    one = claims.bootstrap_interval(values, resamples=20_000, groups=names)
    assert one == pytest.approx(plain, abs=0.02)
    # order and names of the groups do not matter, who is in one does
    order = np.random.default_rng(9).permutation(80)
    pairs = np.arange(80) // 2
    same = claims.bootstrap_interval(values[order], groups=pairs[order])
    assert same == pytest.approx(claims.bootstrap_interval(values, groups=pairs))
    with pytest.raises(ValueError, match="one for each of the 80 items"):
        claims.bootstrap_interval(values, groups=pairs[1:])


def test_t_and_bootstrap_intervals_stand_side_by_side() -> None:
    claim, values = asked("greater", 5), draw(2.0, 0.5, 5)[0]
    verdict = claims.judge(claim, measured(claim, values, 0 * values))
    low, high = verdict.resampled
    assert verdict.low < low < verdict.mean < high < verdict.high
    assert np.mean(verdict.differences) == pytest.approx(verdict.mean)
    assert len(verdict.differences) == 5
    one = claims.judge(claim, measured(claim, values[:1], np.zeros(1)))
    assert one.resampled is None and one.kind == judging.INDICATIVE
