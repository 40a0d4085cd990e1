"""Intervals keep what they promise on simulated data, and the rule of a verdict is the
one of the record."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from minilib import claims
from minilib.claims import judging

C1 = "clip.C1"  # treatment greater by a margin of 0.05, three seeds or more


def simulate(
    generator, n: int, effect: float, spread: float = 0.02, between: float = 0.2
) -> list[claims.Measurement]:
    """``n`` seeds whose treatment and control share how lucky the seed
    is (``between``)."""
    rule = claims.load("clip")[C1].test("full").rule
    luck = generator.normal(0, between, n)
    control = 0.4 + luck + generator.normal(0, spread / 2**0.5, n)
    treatment = 0.4 + luck + effect + generator.normal(0, spread / 2**0.5, n)
    return [
        claims.Measurement(
            C1,
            "full",
            seed,
            t,
            c,
            100,
            controls={"shuffled captions": t - 1},
            rule=rule,
        )
        for seed, (t, c) in enumerate(zip(treatment, control, strict=True))
    ]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_paired_interval_covers_the_difference(n: int) -> None:
    generator = np.random.default_rng(n)
    claim, hits, widths = claims.load("clip")[C1], 0, []
    for _ in range(1500):
        verdict = claims.judge(claim, simulate(generator, n, effect=0.1))
        hits += verdict.low <= 0.1 <= verdict.high
        widths.append(verdict.high - verdict.low)
    assert abs(hits / 1500 - 0.95) < 0.017, "more than three standard errors from 95 %"
    # pairing takes the seeds' luck out: unpaired intervals would be ten times as wide
    if n >= 5:
        assert np.median(widths) < 0.1


def test_verdicts_are_right_as_often_as_the_rule_promises() -> None:
    generator = np.random.default_rng(3)
    claim = claims.load("clip")[C1]

    def share(effect: float, kind: str, n: int) -> float:
        kinds = [
            claims.judge(claim, simulate(generator, n, effect)).kind for _ in range(600)
        ]
        return float(np.mean([found == kind for found in kinds]))

    assert share(0.05, "reproduced", 3) < 0.05  # at the margin: 2.5 % by the rule
    assert share(0.05, "not reproduced", 3) < 0.05
    assert share(0.0, "reproduced", 3) < 0.02
    assert share(0.0, "not reproduced", 5) > 0.9
    assert share(0.15, "reproduced", 5) > 0.95


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
        draws = generator.normal(0, 1, (800 if n < 20 else 200, n))
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


def test_t_and_bootstrap_intervals_stand_side_by_side() -> None:
    verdict = claims.judge(
        claims.load("clip")[C1], simulate(np.random.default_rng(0), 5, 0.1)
    )
    assert (
        verdict.low
        < verdict.resampled[0]
        < verdict.mean
        < verdict.resampled[1]
        < verdict.high
    )
    assert (
        np.mean(verdict.differences) == pytest.approx(verdict.mean)
        and len(verdict.differences) == 5
    )


# The rule is part of the record


def test_a_measurement_keeps_the_rule_it_was_made_under(tmp_path) -> None:
    where = dict(profile="full", seed=0, out=tmp_path, n=9)
    claims.record(
        "clip.C3", treatment=0.9, control=0.8, controls={"one template": 0.85}, **where
    )
    entry = json.loads((tmp_path / "result.json").read_text())["claims"]["clip.C3"]
    assert entry["rule"]["direction"] == "greater" and entry["rule"]["min_seeds"] == 3
    assert entry["rule"]["controls"] == {"one template": ["greater", 0]}
    (run,) = claims.read_records(tmp_path / "result.json")
    assert (
        claims.judge(
            claims.load("clip")["clip.C3"], list(run.measurements.values())
        ).kind
        == "indicative"
    )


@pytest.mark.parametrize(
    "change",
    [{"margin": 0.01}, {"min_seeds": 2}, {"direction": "smaller"}, {"controls": {}}],
)
def test_a_rule_changed_after_the_run_decides_nothing(change) -> None:
    claim, measured = (
        claims.load("clip")[C1],
        simulate(np.random.default_rng(0), 4, 0.3),
    )
    assert claims.judge(claim, measured).kind == judging.REPRODUCED
    moved = replace(
        claim, tests={**claim.tests, "full": replace(claim.test("full"), **change)}
    )
    verdict = claims.judge(moved, measured)
    assert (
        verdict.kind == judging.INDICATIVE
        and "rule was changed after 4 of 4 runs" in verdict.reason
    )
    reworded = replace(
        claim,
        tests={
            **claim.tests,
            "full": replace(claim.test("full"), how="in other words"),
        },
    )
    assert claims.judge(reworded, measured).kind == judging.REPRODUCED
