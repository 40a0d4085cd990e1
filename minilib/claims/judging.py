"""From measurements to verdicts: paired differences, intervals and one rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from minilib.claims.records import Claim, Measurement, Test

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
INDICATIVE = "indicative"
NOT_RUN = "not run"
KINDS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, INDICATIVE, NOT_RUN)
ICONS = {
    REPRODUCED: "✔",
    NOT_REPRODUCED: "✘",
    INCONCLUSIVE: "≈",
    INDICATIVE: "◐",
    NOT_RUN: "–",
}


@dataclass(frozen=True)
class Estimate:
    """Mean over n seeds with a 95 % interval; the interval is None for one seed."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high), or None for one seed."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one claim at one profile."""

    claim: str
    profile: str
    kind: str
    """One of :data:`KINDS`."""
    n: int
    """Number of seeds."""
    rule: str = ""
    """The rule in words, as fixed in the ledger."""
    reason: str = ""
    """Why the rule gave this outcome, or why nothing was run."""
    agrees: bool | None = None
    """For an indicative verdict: does the mean difference agree with the paper?"""
    mean: float | None = None
    """Mean paired difference treatment - control over the seeds, with its Student-t
    95 % interval in low and high."""
    low: float | None = None
    high: float | None = None
    resampled: tuple[float, float] | None = None
    """The bootstrap interval over seeds, for comparison: with few seeds it is too
    narrow, so the rule ignores it."""
    differences: tuple[float, ...] = ()
    """The difference at each seed."""
    treatment: Estimate | None = None
    control: Estimate | None = None
    controls: dict[str, Estimate] = field(default_factory=dict)
    """The further controls by name."""
    items: tuple[float, float] | None = None
    """With one seed, the bootstrap interval of the difference over test items."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval (low, high) over seeds, or None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def text(self) -> str:
        """The verdict in words, for example "indicative (agrees)"."""
        return (
            self.kind
            if self.agrees is None
            else f"{self.kind} ({'agrees' if self.agrees else 'disagrees'})"
        )

    @property
    def icon(self) -> str:
        """A sign whose shape, not colour, shows the kind."""
        return ICONS[self.kind]

    def __str__(self) -> str:
        return f"{self.icon} {self.text}"


def t_interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95
) -> tuple[float, float]:
    """Return the Student-t confidence interval of the mean of two or more
    independent values.

    Raises:
        ValueError: fewer than two values.
    """
    array = np.asarray(values, dtype=float)
    if array.size < 2:
        raise ValueError(
            f"an interval over seeds needs at least 2 values, got {array.size}"
        )
    from scipy import stats  # here: slow to import, and most uses of claims need none

    quantile = stats.t.ppf((1 + level) / 2, array.size - 1)
    half = quantile * array.std(ddof=1) / math.sqrt(array.size)
    return float(array.mean() - half), float(array.mean() + half)


def bootstrap_interval(
    per_item: Any,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    statistic: Callable[[np.ndarray], float] | None = None,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic over one
    checkpoint's test items.

    For the difference between two methods on the same items pass the per-item
    differences, so that the pairing counts. This is spread over test items; it says
    nothing about the spread over seeds.

    Args:
        per_item: (N,) numbers or booleans, a tensor, an array or a list; with
            ``statistic`` (N, ...), for example (N, 2, K, K) confusion matrices of two
            methods on each image.
        seed: seed of the resampling.
        resamples: number of resamples.
        level: confidence level.
        statistic: maps resampled items (N, ...) to a number, where that is not a mean
            over items: the difference of two mean IoUs, an RMSE. Default: the mean.

    Raises:
        ValueError: no items, more than one dimension without a ``statistic``, or a
            value that is not finite.
    """
    if hasattr(per_item, "detach"):
        per_item = per_item.detach().cpu()
    values = np.asarray(per_item, dtype=float)
    shape_is_wrong = values.ndim == 0 if statistic else values.ndim != 1
    if shape_is_wrong or values.size == 0 or not np.isfinite(values).all():
        expected = "(N, ...) items" if statistic else "(N,) row"
        raise ValueError(
            f"per_item of shape {values.shape}: expected a non-empty {expected} of "
            "finite numbers"
        )
    generator = np.random.default_rng(seed)
    if statistic is None:
        # A resample's mean needs only how often each distinct value was drawn: a
        # multinomial, much smaller than N draws.
        distinct, counts = np.unique(values, return_counts=True)
        # (resamples, distinct)
        draws = generator.multinomial(values.size, counts / values.size, size=resamples)
        means = draws @ distinct / values.size
    else:
        rows = (
            generator.integers(len(values), size=len(values)) for _ in range(resamples)
        )
        means = np.array([statistic(values[index]) for index in rows])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def seed_bootstrap_interval(
    differences: Sequence[float] | np.ndarray, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over seeds.

    Up to six seeds all resamples are counted, so nothing is drawn. It assumes no normal
    distribution, but with few seeds it is far too narrow (95 % asked for, about 75 %
    kept with three): verdicts use :func:`t_interval`, and this is shown beside it.

    Raises:
        ValueError: fewer than two values.
    """
    values = np.asarray(differences, dtype=float)
    if values.size < 2:
        raise ValueError(
            f"an interval over seeds needs at least 2 values, got {values.size}"
        )
    if values.size > 6:
        return bootstrap_interval(values, resamples=20_000, level=level)
    n = values.size
    means, weights = [], []
    for chosen in combinations_with_replacement(range(n), n):
        counts = np.bincount(chosen, minlength=n)
        means.append(counts @ values / n)
        weights.append(
            math.factorial(n) / math.prod(map(math.factorial, counts.tolist())) / n**n
        )
    order = np.argsort(means)
    below = np.cumsum(np.asarray(weights)[order])
    low, high = (
        order[np.searchsorted(below, at - 1e-12)]
        for at in ((1 - level) / 2, (1 + level) / 2)
    )
    return float(means[low]), float(means[high])


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Return mean, interval (None for one value) and number of ``values``."""
    low, high = t_interval(values) if len(values) > 1 else (None, None)
    return Estimate(float(np.mean(values)), low, high, len(values))


def judge(
    claim: Claim, measurements: Sequence[Measurement], profile: str | None = None
) -> Verdict:
    """Return the verdict on ``claim`` by the rule that the ledger fixed for the
    measurements' profile.

    The differences treatment - control are paired by seed. With enough seeds the whole
    Student-t 95 % interval must lie on the claimed side of the margin (reproduced) or
    on the other side (not reproduced); a margin inside the interval is inconclusive.
    Fewer seeds than the ledger asks for are indicative only. "Reproduced" needs every
    further control wholly on its own side too: one that speaks against the claim, is
    undecided, or is missing in a seed makes it inconclusive. Where the ledger's rule
    has changed since the measurements were made, the outcome is indicative only: a rule
    that was changed after the run decides nothing.

    Args:
        claim: the claim.
        measurements: one per seed, all of one profile; may be empty.
        profile: needed only where there are no measurements.

    Raises:
        ValueError: measurements of another claim, of several profiles, or
            two of one seed.
    """
    if any(m.claim != claim.id for m in measurements):
        raise ValueError(
            f"measurements of {sorted({m.claim for m in measurements})} given for "
            f"claim {claim.id}"
        )
    profiles = {m.profile for m in measurements} | ({profile} if profile else set())
    seeds = [m.seed for m in measurements]
    if len(profiles) != 1 or len(set(seeds)) != len(seeds):
        raise ValueError(
            f"{claim.id}: expected one profile and each seed once, got "
            f"{sorted(profiles)} and {seeds}"
        )
    (profile,) = profiles
    planned = claim.tests[profile]
    if not measurements:
        reason = planned if isinstance(planned, str) else "no record yet"
        return Verdict(claim.id, profile, NOT_RUN, 0, reason=reason)
    return _judge(claim, claim.test(profile), profile, measurements)


def _judge(
    claim: Claim, test: Test, profile: str, measurements: Sequence[Measurement]
) -> Verdict:
    treatment = np.array([m.treatment for m in measurements])
    control = np.array([m.control for m in measurements])
    difference = estimate(treatment - control)
    controls: dict[str, Estimate] = {}
    against, open_ = [], []
    for name, expected in test.controls.items():
        values = np.array(
            [m.controls[name] for m in measurements if name in m.controls]
        )
        if len(values) != len(treatment):
            open_.append(f"{name} is missing in a seed")
            continue
        controls[name] = estimate(values)
        beaten = _side(
            estimate(treatment - values), expected.direction, expected.margin
        )
        if beaten is False:
            against.append(f"{name} speaks against it")
        elif beaten is None:
            open_.append(f"{name} is undecided")
    n = len(measurements)
    side = _side(difference, test.direction, test.margin)
    changed = sum(
        m.rule is not None and dict(m.rule) != test.rule for m in measurements
    )
    agrees = None
    if n < test.min_seeds or changed:
        kind = INDICATIVE
        # Too few seeds for an interval that can be trusted: only the mean is compared.
        agrees = (
            bool(
                _side(
                    Estimate(difference.mean, None, None, 1),
                    test.direction,
                    test.margin,
                )
            )
            and not against
        )
        reason = f"{n} of at least {test.min_seeds} seeds"
        if changed:
            reason = f"the rule was changed after {changed} of {n} runs"
    else:
        kind = {True: REPRODUCED, False: NOT_REPRODUCED, None: INCONCLUSIVE}[side]
        reason = {
            True: "the interval lies on the claimed side of the margin",
            False: "the interval lies on the other side of the margin",
            None: "the interval includes the margin",
        }[side]
        if kind == REPRODUCED and (against or open_):
            kind = INCONCLUSIVE
    if against or open_:
        reason += f"; of the controls, {', '.join(against + open_)}"
    return Verdict(
        claim=claim.id,
        profile=profile,
        kind=kind,
        n=n,
        rule=rule_text(claim, test),
        reason=reason,
        agrees=agrees,
        mean=difference.mean,
        low=difference.low,
        high=difference.high,
        resampled=seed_bootstrap_interval(treatment - control) if n > 1 else None,
        differences=tuple((treatment - control).tolist()),
        treatment=estimate(treatment),
        control=estimate(control),
        controls=controls,
        items=measurements[0].interval if n == 1 else None,
    )


def _side(difference: Estimate, direction: str, margin: float) -> bool | None:
    """Is the interval (or, for one seed, the point) on the claimed side? None if it
    includes the margin."""
    low = difference.mean if difference.low is None else difference.low
    high = difference.mean if difference.high is None else difference.high
    if direction == "smaller":
        low, high = -high, -low
    if direction == "equal":
        if -margin < low and high < margin:
            return True
        return False if low >= margin or high <= -margin else None
    if low > margin:
        return True
    return False if high <= margin else None


def rule_text(claim: Claim, test: Test) -> str:
    """Return a test's rule in words."""
    points = (
        f"{100 * test.margin:g} points"
        if claim.unit == "percent"
        else f"{test.margin:g}"
    )
    place = {
        "greater": f"above {points}" if test.margin else "above zero",
        "smaller": f"below −{points}" if test.margin else "below zero",
        "equal": f"within ±{points}",
    }[test.direction]
    sides = f"treatment ({test.treatment}) and control ({test.control})"
    also = ", so does every further control's on its own side" if test.controls else ""
    return (
        f"the 95 % interval of the difference between {sides} lies {place}{also}; "
        f"{test.min_seeds} seeds or more"
    )
