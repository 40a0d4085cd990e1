"""From measurements to verdicts: paired differences, intervals and one rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from minilib.claims.records import (
    Claim,
    Comparison,
    Measurement,
    NotRun,
    Precondition,
    Test,
)

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
SUPPORTED = "supported"
NOT_SUPPORTED = "not supported"
NO_DIFFERENCE = "no difference"
INCONCLUSIVE = "inconclusive"
NOT_SENSITIVE = "not sensitive here"
EXACT = "exact"
INDICATIVE = "indicative"
RULE_CHANGED = "rule changed after the run"
NOT_RUN = "not run"
ICONS = {
    REPRODUCED: "✔",
    NOT_REPRODUCED: "✘",
    SUPPORTED: "▲",
    NOT_SUPPORTED: "▼",
    NO_DIFFERENCE: "=",
    INCONCLUSIVE: "≈",
    NOT_SENSITIVE: "○",
    EXACT: "■",
    INDICATIVE: "◐",
    RULE_CHANGED: "↺",
    NOT_RUN: "–",
}
KINDS = tuple(ICONS)
FEWEST_SEEDS, MOST_SEEDS = 5, 10


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
class ControlOutcome:
    """A further control of a test, as it was measured."""

    expected: Comparison
    value: Estimate | None
    """The control's own metric; None where no seed has it."""
    difference: Estimate | None
    """Treatment - this control, paired by seed."""
    beaten: bool | None
    """Whether the difference lies wholly on its side; None where the interval does not
    tell, or a seed lacks it. Where too few seeds were run, by the mean."""
    missing: int = 0
    """Number of seeds that lack it."""


@dataclass(frozen=True)
class PreconditionOutcome:
    """A precondition of a test, as it was measured."""

    expected: Precondition
    value: float | None
    """Mean over the seeds that count; None where one of them lacks it."""

    @property
    def bound(self) -> float:
        """What the value must keep to."""
        return self.expected.bound

    @property
    def met(self) -> bool:
        """Whether the value keeps the bound."""
        return self.value is not None and self.expected.met(self.value)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one claim at one profile."""

    claim: str
    profile: str
    kind: str
    """One of :data:`KINDS`."""
    n: int
    """Number of seeds that count: the fresh ones, where the ledger names seeds."""
    planned: int = 0
    """Number of fresh seeds that the ledger names; 0 where any seed is taken."""
    rule: str = ""
    """The rule in words, as fixed in the ledger."""
    reason: str = ""
    """Why the rule gave this outcome, or why nothing was run."""
    agrees: bool | None = None
    """Indicative: does the mean difference agree with the claim? Exact: does it
    hold?"""
    mean: float | None = None
    """Mean paired difference treatment - control over the seeds that count, with its
    Student-t 95 % interval in low and high."""
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    """The smallest effect of interest, which the interval is held against."""
    differences: tuple[float, ...] = ()
    """The difference at each seed that counts."""
    seeds: tuple[int, ...] = ()
    """Those seeds."""
    pilot: tuple[float, ...] = ()
    """The difference at each pilot seed, which does not count."""
    treatment: Estimate | None = None
    control: Estimate | None = None
    controls: dict[str, ControlOutcome] = field(default_factory=dict)
    """The further controls by name."""
    preconditions: dict[str, PreconditionOutcome] = field(default_factory=dict)
    items: tuple[float, float] | None = None
    """With one seed, the bootstrap interval of the difference over test items."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval (low, high) over seeds, or None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def resampled(self) -> tuple[float, float] | None:
        """The bootstrap interval over seeds, for comparison: with few seeds it is too
        narrow, so the rule ignores it."""
        if self.interval is None:
            return None
        return seed_bootstrap_interval(self.differences)

    @property
    def text(self) -> str:
        """The verdict in words, for example "indicative (agrees)"."""
        if self.agrees is None:
            return self.kind
        yes, no = ("holds", "does not hold") if self.kind == EXACT else _AGREES
        return f"{self.kind} ({yes if self.agrees else no})"

    @property
    def icon(self) -> str:
        """A sign whose shape, not colour, shows the kind."""
        return ICONS[self.kind]

    def __str__(self) -> str:
        return f"{self.icon} {self.text}"


_AGREES = ("agrees", "disagrees")


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
    half = _t_quantile(level, array.size) * array.std(ddof=1) / math.sqrt(array.size)
    return float(array.mean() - half), float(array.mean() + half)


@cache
def _t_quantile(level: float, n: int) -> float:
    from scipy import stats  # here: slow to import, and most uses of claims need none

    return float(stats.t.ppf((1 + level) / 2, n - 1))


def bootstrap_interval(
    per_item: Any,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    statistic: Callable[[np.ndarray], float] | None = None,
    groups: Any = None,
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
        groups: (N,) whole numbers or names, the group of each item: where several
            questions are about one image, images are resampled and not questions.
            Default: every item by itself.

    Raises:
        ValueError: no items, more than one dimension without a ``statistic``, a
            value that is not finite, or another number of groups than of items.
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
    if groups is not None:
        members = _members(groups, len(values))
        if statistic is None:
            # (G,) each; a resample's mean is over the items of the groups drawn
            sums = np.array([values[index].sum() for index in members])
            sizes = np.array([len(index) for index in members])
            share = np.full(len(members), 1 / len(members))
            draws = generator.multinomial(len(members), share, size=resamples)
            means = (draws @ sums) / (draws @ sizes)
        else:
            chosen = generator.integers(len(members), size=(resamples, len(members)))
            means = np.array(
                [
                    statistic(values[np.concatenate([members[k] for k in row])])
                    for row in chosen
                ]
            )
    elif statistic is None:
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


def _members(groups: Any, items: int) -> list[np.ndarray]:
    """Return for each of the G groups the places of its items."""
    if hasattr(groups, "detach"):
        groups = groups.detach().cpu()
    names = np.asarray(groups)
    if names.shape != (items,):
        raise ValueError(
            f"groups of shape {names.shape}: expected one for each of the {items} items"
        )
    _, group = np.unique(names, return_inverse=True)
    order = np.argsort(group, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group))[:-1])


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


def seeds_needed(sd: float, effect: float) -> int | None:
    """Return how many fresh seeds a test needs to be able to end as "no difference".

    That is the smallest number from 5 to 10 with which a true difference of zero does
    so with probability 0.8 or more; None where ten are too few.

    Args:
        sd: standard deviation over seeds of the paired difference, from pilots.
        effect: the smallest effect of interest, in the same unit.

    Raises:
        ValueError: ``sd`` is negative, or ``effect`` is not positive.
    """
    if not sd >= 0 or not effect > 0:
        raise ValueError(f"expected sd >= 0 and effect > 0, got {sd} and {effect}")
    for n in range(FEWEST_SEEDS, MOST_SEEDS + 1):
        if _null_power(n, sd / effect) >= 0.8:
            return n
    return None


def _null_power(n: int, sd: float) -> float:
    """Return the probability that the interval of n differences, normal with mean 0
    and standard deviation ``sd``, lies within ±1."""
    from scipy import stats

    if sd == 0:
        return 1.0
    # The mean of the differences is independent of their standard deviation, whose
    # distribution is cut into 4000 slices of equal probability.
    slices = (np.arange(4000) + 0.5) / 4000
    spread = sd * np.sqrt(stats.chi2.ppf(slices, n - 1) / (n - 1))
    room = 1 - _t_quantile(0.95, n) * spread / math.sqrt(n)
    inside = 2 * stats.norm.cdf(room * math.sqrt(n) / sd) - 1
    return float(np.clip(inside, 0, None).mean())


def judge(
    claim: Claim, measurements: Sequence[Measurement], profile: str | None = None
) -> Verdict:
    """Return the verdict on ``claim`` by the rule that the ledger fixed for the
    measurements' profile.

    The differences treatment - control are paired by seed, and those of the fresh seeds
    that the ledger names count; pilot seeds are kept beside them. In this order:

    1. A measurement made under another test than the ledger's of today: "rule changed
       after the run".
    2. A test that the ledger calls exact: "exact", which holds if every run says so.
    3. Fewer fresh seeds than named, or none named (quick): "indicative", by the mean.
    4. A precondition whose mean over the seeds breaks its bound: "not sensitive here".
    5. Else the Student-t 95 % interval is held against the smallest effect of interest.
       Wholly beyond it on the claimed side, with every further control wholly on its
       own side: "reproduced" (a paper's claim) or "supported" (others). Within it on
       both sides: "no difference". Wholly short of it otherwise: "not reproduced" or
       "not supported". Anything else, also a control that is not beaten, undecided or
       missing in a seed: "inconclusive". A claim of equality is reproduced where the
       whole interval lies within the bound, and not where it lies wholly outside.

    Args:
        claim: the claim.
        measurements: one per seed, all of one profile; may be empty.
        profile: needed only where there are no measurements.

    Raises:
        ValueError: measurements of another claim, of several profiles, of a profile
            without a test, or two of one seed.
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
    if not measurements:
        planned = claim.tests[profile]
        reason = planned if isinstance(planned, NotRun) else "no record yet"
        return Verdict(claim.id, profile, NOT_RUN, 0, reason=reason)
    return _judge(claim, claim.test(profile), measurements)


def _judge(claim: Claim, test: Test, measurements: Sequence[Measurement]) -> Verdict:
    counted, pilot = _counted(test, measurements)
    verdict = Verdict(
        claim=claim.id,
        profile=measurements[0].profile,
        kind=NOT_RUN,
        n=len(counted),
        planned=0 if test.exact else len(test.seeds.fresh),
        rule=rule_text(claim, test),
        bound=test.effect,
        pilot=_differences(pilot),
    )
    if not counted:
        seeds = ", ".join(str(m.seed) for m in measurements)
        reason = f"no fresh seed yet (seed {seeds} does not count)"
        return replace(verdict, reason=reason)
    difference = estimate(_differences(counted))
    rough = test.exact or len(counted) < len(test.seeds.fresh) or not test.seeds.fresh
    controls = {
        name: _control(name, expected, counted, rough)
        for name, expected in test.controls.items()
    }
    preconditions = {
        name: _precondition(name, expected, counted)
        for name, expected in test.preconditions.items()
    }
    verdict = replace(
        verdict,
        mean=difference.mean,
        low=None if test.exact else difference.low,
        high=None if test.exact else difference.high,
        differences=_differences(counted),
        seeds=tuple(m.seed for m in counted),
        treatment=estimate([m.treatment for m in counted]),
        control=estimate([m.control for m in counted]),
        controls=controls,
        preconditions=preconditions,
        items=counted[0].interval if len(counted) == 1 else None,
    )
    if changed := sum(m.test != test.digest for m in counted):
        reason = f"the rule was changed after {changed} of {len(counted)} runs"
        return replace(verdict, kind=RULE_CHANGED, reason=reason)
    if test.exact:
        return _exactly(verdict, test)
    if rough:
        return _by_the_mean(verdict, test)
    if unmet := [name for name, outcome in preconditions.items() if not outcome.met]:
        said = "; ".join(_unmet(name, preconditions[name]) for name in unmet)
        return replace(verdict, kind=NOT_SENSITIVE, reason=said)
    kind, reason = _by_the_interval(claim, test, difference)
    if kind in (REPRODUCED, SUPPORTED) and (open_ := _open(controls)):
        kind, reason = INCONCLUSIVE, f"{reason}; but {open_}"
    return replace(verdict, kind=kind, reason=reason)


def _counted(
    test: Test, measurements: Sequence[Measurement]
) -> tuple[Sequence[Measurement], Sequence[Measurement]]:
    """Return the measurements that count, and those of pilot seeds.

    Where the ledger names no seeds, or one is as good as any (exact), all count.
    Without a fresh one, measurements made under another test are what there is to show.
    """
    if test.exact or not test.seeds.fresh:
        return measurements, []
    fresh = [m for m in measurements if m.seed in test.seeds.fresh]
    if not fresh and any(m.test != test.digest for m in measurements):
        return measurements, []
    return fresh, [m for m in measurements if m.seed in test.seeds.pilot]


def _differences(measurements: Sequence[Measurement]) -> tuple[float, ...]:
    return tuple(m.treatment - m.control for m in measurements)


def _control(
    name: str, expected: Comparison, measurements: Sequence[Measurement], rough: bool
) -> ControlOutcome:
    found = [m for m in measurements if name in m.controls]
    missing = len(measurements) - len(found)
    if not found:
        return ControlOutcome(expected, None, None, None, missing)
    difference = estimate([m.treatment - m.controls[name] for m in found])
    held = _point(difference) if rough else difference
    return ControlOutcome(
        expected,
        value=estimate([m.controls[name] for m in found]),
        difference=difference,
        beaten=None if missing else _side(held, expected),
        missing=missing,
    )


def _precondition(
    name: str, expected: Precondition, measurements: Sequence[Measurement]
) -> PreconditionOutcome:
    values = [m.preconditions.get(name) for m in measurements]
    known = [value for value in values if value is not None]
    mean = float(np.mean(known)) if len(known) == len(values) else None
    return PreconditionOutcome(expected, mean)


def _exactly(verdict: Verdict, test: Test) -> Verdict:
    """Return the verdict on a count or an identity: it holds if every run says so."""
    runs = [Estimate(value, None, None, 1) for value in verdict.differences]
    holds = all(_side(run, test.main) for run in runs)
    open_ = _open(verdict.controls)
    reason = "in every run" if holds else "not in every run"
    if open_:
        reason += f"; but {open_}"
    return replace(verdict, kind=EXACT, agrees=holds and not open_, reason=reason)


def _by_the_mean(verdict: Verdict, test: Test) -> Verdict:
    """Return the indicative verdict: too few seeds for an interval to be trusted."""
    assert verdict.mean is not None
    agrees = bool(_side(Estimate(verdict.mean, None, None, 1), test.main))
    open_ = _open(verdict.controls)
    reason = f"{verdict.n} of {verdict.planned} fresh seeds"
    if not test.seeds.fresh:
        reason = f"profile {verdict.profile} takes any seed and decides nothing"
    notes = [open_] + [
        _unmet(name, outcome)
        for name, outcome in verdict.preconditions.items()
        if not outcome.met
    ]
    reason = "; ".join([reason, *filter(None, notes)])
    return replace(verdict, kind=INDICATIVE, agrees=agrees and not open_, reason=reason)


def _by_the_interval(claim: Claim, test: Test, difference: Estimate) -> tuple[str, str]:
    """Return the kind of verdict that the main comparison alone gives, and why."""
    low, high = difference.low, difference.high
    assert low is not None and high is not None  # five seeds or more
    bound = _amount(claim, test.effect)
    yes, no = (
        (REPRODUCED, NOT_REPRODUCED)
        if claim.origin == "paper"
        else (SUPPORTED, NOT_SUPPORTED)
    )
    within = -test.effect <= low and high <= test.effect
    if test.direction == "equal":
        if within:
            return yes, f"equal within ±{bound}"
        if low > test.effect or high < -test.effect:
            return no, f"the whole interval lies outside ±{bound}"
        return INCONCLUSIVE, f"the interval reaches across ±{bound}"
    if test.direction == "smaller":
        low, high = -high, -low
    if low > test.effect:
        return yes, f"the whole interval lies beyond the smallest effect, {bound}"
    if within:
        return NO_DIFFERENCE, f"the whole interval lies within ±{bound}"
    if high < 0:
        return no, "opposite effect: the whole interval lies on the other side of zero"
    if high <= test.effect:
        return no, f"the effect is smaller than the smallest effect, {bound}"
    return INCONCLUSIVE, f"the interval reaches across the smallest effect, {bound}"


def _open(controls: Mapping[str, ControlOutcome]) -> str:
    """Return in words which controls do not support the claim; empty if all do."""
    found = []
    for name, outcome in controls.items():
        if outcome.missing:
            found.append(f"control {name} is missing in a seed")
        elif not outcome.beaten:
            how = "undecided" if outcome.beaten is None else "not beaten"
            found.append(f"control {name} is {how}")
    return ", ".join(found)


def _unmet(name: str, outcome: PreconditionOutcome) -> str:
    if outcome.value is None:
        return f"{name} was not recorded by every run"
    word = "at least" if outcome.expected.at_most is None else "at most"
    return f"{name} is {outcome.value:.3g} and should be {word} {outcome.bound:g}"


def _point(difference: Estimate) -> Estimate:
    return Estimate(difference.mean, None, None, 1)


def _side(difference: Estimate, expected: Comparison) -> bool | None:
    """Is the interval (or, where there is none, the mean) wholly on the claimed side?
    None if it reaches across the effect."""
    low = difference.mean if difference.low is None else difference.low
    high = difference.mean if difference.high is None else difference.high
    effect = expected.effect
    if expected.direction == "equal":
        if -effect <= low and high <= effect:
            return True
        return False if low > effect or high < -effect else None
    if expected.direction == "smaller":
        low, high = -high, -low
    if low > effect:
        return True
    return False if high <= effect else None


def rule_text(claim: Claim, test: Test) -> str:
    """Return a test's rule in plain words."""
    difference = f"treatment ({test.treatment}) − control ({test.control})"
    place = _place(claim, test.main)
    if test.exact:
        text = f"in every run, {difference} is {place}"
    else:
        text = f"the whole 95 % interval of {difference} lies {place}"
    for name, control in test.controls.items():
        text += f"; that of treatment − {name} {_place(claim, control)}"
    if test.direction != "equal" and not test.exact:
        text += f"; within ±{_amount(claim, test.effect)} it is no difference"
    for name, condition in test.preconditions.items():
        word = "at least" if condition.at_most is None else "at most"
        text += f"; it decides only if {name} is {word} {condition.bound:g}"
    if test.exact:
        return text
    if test.over == "test images":
        text += "; one fixed checkpoint, of which each seed draws new test images"
    if not test.seeds.fresh:
        return text + "; any seed, indicative only"
    fresh = ", ".join(map(str, test.seeds.fresh))
    return text + f"; paired over {len(test.seeds.fresh)} fresh seeds ({fresh})"


def _place(claim: Claim, expected: Comparison) -> str:
    amount = _amount(claim, expected.effect)
    if expected.direction == "equal":
        return f"within ±{amount}"
    word, sign = {"greater": ("above", "+"), "smaller": ("below", "−")}[
        expected.direction
    ]
    return f"{word} {sign}{amount}" if expected.effect else f"{word} zero"


def _amount(claim: Claim, effect: float) -> str:
    return f"{100 * effect:g} points" if claim.unit == "percent" else f"{effect:g}"
