"""Forest plots of claims as HTML: our differences with their intervals and seeds, and,
where the paper compares the same two things, its own.

Positions are percentages and sizes pixels, so that a plot is as wide as the page allows
and its text stays readable on a phone; colours are the page's, light or dark
(``book/_static/claims.css``).
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minilib.claims.judging import Verdict
from minilib.claims.records import Claim, Test
from minilib.claims.reports import (
    Row,
    difference_text,
    measured,
    number_text,
    seeds_text,
)

_PAD = 0.04
_HEIGHT = 34
_MEAN, _SEEDS = 11, 26  # heights of the two rows of marks


@dataclass(frozen=True)
class Axis:
    """The values from ``low`` to ``high``, laid out over the width of a plot."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return where ``value`` lies, in percent of the width; what is outside is
        put at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    def ticks(self) -> list[float]:
        """Return three to seven round values inside the axis."""
        step = _round_step((self.high - self.low) / 6)
        first = math.ceil(self.low / step)
        return [
            round(step * k, 12) for k in range(first, math.floor(self.high / step) + 1)
        ]


def axis_for(claim: Claim, rows: Sequence[Row]) -> Axis:
    """Return an axis that shows every measured difference, zero, the smallest effects
    of interest, and the paper's differences where they are drawn.

    Intervals stretch it to at most twice that; a longer one is drawn to the
    edge, with an arrow.
    """
    values = [0.0, *_drawn(claim).values()]
    ends: list[float] = []
    for row in rows:
        test, verdict = row.claim.tests[row.profile], row.verdict
        values += [*verdict.differences, *verdict.pilot]
        if isinstance(test, Test) and not test.exact:
            values += [-test.effect, test.effect]
        ends += verdict.interval or verdict.items or ()
    low, high = min(values), max(values)
    span = (high - low) or 0.1
    low, high = (
        max(low - span / 2, min([low, *ends])),
        min(high + span / 2, max([high, *ends])),
    )
    return Axis(low - _PAD * (high - low), high + _PAD * (high - low))


def forest(claim: Claim, rows: Sequence[Row]) -> str:
    """Return the plot of one claim, one line of HTML: profiles that were run, if
    only by pilots, then the paper's own differences if they are of the same two
    things."""
    ours = [row for row in rows if measured(row) or row.verdict.pilot]
    theirs = _drawn(claim)
    if not ours and not theirs:
        return ""
    axis = axis_for(claim, ours)
    lines = [_ours(row, axis) for row in ours]
    lines += [_paper(claim, what, value, axis) for what, value in theirs.items()]
    unit = (
        "treatment − control, points"
        if claim.unit == "percent"
        else "treatment − control"
    )
    whose = "ours and the paper's" if theirs else "ours"
    label = html.escape(f"{claim.title}: difference of treatment and control, {whose}")
    body = "".join([*lines, _scale(claim, axis, unit)])
    return f'<div class="forest" role="group" aria-label="{label}">{body}</div>'


def badge(verdict: Verdict) -> str:
    """Return a verdict as a coloured sign with its word."""
    return (
        f'<span class="verdict {css_class(verdict.kind)}"><span aria-hidden="true">'
        f"{verdict.icon}</span> {verdict.text}</span>"
    )


def css_class(kind: str) -> str:
    """Return the class that colours a kind of verdict."""
    return kind.replace(" ", "-")


def _drawn(claim: Claim) -> Mapping[str, float]:
    return claim.differences if claim.comparable else {}


def _ours(row: Row, axis: Axis) -> str:
    verdict, test = row.verdict, row.claim.test(row.profile)
    marks = [*_ground(test, axis), _zero(axis)]
    interval, kind = verdict.interval, "seeds"
    if interval is None:
        interval, kind = verdict.items, "items"
    if interval is not None:
        low, high = interval
        marks.append(
            f'<line class="interval {kind}" x1="{axis.at(low)}%" x2="{axis.at(high)}%" '
            f'y1="{_MEAN}" y2="{_MEAN}"/>'
        )
        marks += [_arrow(0, "‹")] if low < axis.low else []
        marks += [_arrow(100, "›")] if high > axis.high else []
    if not test.exact:
        for name, values in (
            ("pilot", verdict.pilot),
            ("fresh", verdict.differences),
        ):
            marks += [
                f'<circle class="seed {name}" cx="{axis.at(d)}%" cy="{_SEEDS}" r="3"/>'
                for d in values
            ]
    if verdict.mean is not None:
        marks.append(
            f'<circle class="ours" cx="{axis.at(verdict.mean)}%" cy="{_MEAN}" r="5"/>'
        )
    seeds = seeds_text(row)
    said = f"{row.profile}, {seeds}: {difference_text(row)}, {verdict.text}"
    text = difference_text(row) if measured(row) else ""
    return _line(row.profile, seeds, marks, said, text, badge(verdict))


def _paper(claim: Claim, what: str, value: float, axis: Axis) -> str:
    # A square that is turned about its own centre: percentages cannot be
    # used in a path.
    mark = (
        f'<svg x="{axis.at(value)}%" overflow="visible">'
        f'<rect class="paper" x="-4.5" y="{_MEAN - 4.5}" width="9" height="9" '
        f'transform="rotate(45 0 {_MEAN})"/></svg>'
    )
    text = number_text(value, claim.unit, sign=True)
    return _line(
        "the paper", what, [_zero(axis), mark], f"the paper, {what}: {text}", text, ""
    )


def _line(
    name: str, more: str, marks: Sequence[str], said: str, text: str, verdict: str
) -> str:
    plot = (
        f'<svg role="img" aria-label="{html.escape(said)}" width="100%" '
        f'height="{_HEIGHT}">{"".join(marks)}</svg>'
    )
    return (
        f'<div class="line"><div class="name"><b>{html.escape(name)}</b> '
        f"<small>{html.escape(more)}</small></div>"
        f'<div class="plot">{plot}</div><div class="text">{html.escape(text)}</div>'
        f'<div class="said">{verdict}</div></div>'
    )


def _ground(test: Test, axis: Axis) -> list[str]:
    """Return the band of effects too small to count, and the side that is claimed."""
    effect = test.effect
    claimed = {
        "greater": (effect, axis.high),
        "smaller": (axis.low, -effect),
        "equal": (-effect, effect),
    }[test.direction]
    bands = [("claimed", *claimed)]
    if test.direction != "equal":
        bands.insert(0, ("small", -effect, effect))
    return [
        f'<rect class="{name}" x="{axis.at(low)}%" '
        f'width="{round(axis.at(high) - axis.at(low), 2)}%" y="0" height="{_HEIGHT}"/>'
        for name, low, high in bands
        if high > low
    ] + [
        f'<line class="edge" x1="{axis.at(at)}%" x2="{axis.at(at)}%" y1="0" '
        f'y2="{_HEIGHT}"/>'
        for at in (-effect, effect)
        if effect and not test.exact
    ]


def _zero(axis: Axis) -> str:
    return (
        f'<line class="zero" x1="{axis.at(0)}%" x2="{axis.at(0)}%" y1="0" '
        f'y2="{_HEIGHT}"/>'
    )


def _arrow(at: int, sign: str) -> str:
    return (
        f'<text class="arrow" x="{at}%" y="15" '
        f'text-anchor="{"start" if at == 0 else "end"}">{sign}</text>'
    )


def _scale(claim: Claim, axis: Axis, unit: str) -> str:
    ticks = "".join(
        f'<line class="tick" x1="{axis.at(t)}%" x2="{axis.at(t)}%" y1="0" y2="4"/>'
        f'<text x="{axis.at(t)}%" y="16" text-anchor="middle">{_tick(t, claim.unit)}'
        "</text>"
        for t in axis.ticks()
    )
    line = '<line class="tick" x1="0" x2="100%" y1="0" y2="0"/>'
    plot = f'<svg aria-hidden="true" width="100%" height="20">{line}{ticks}</svg>'
    return (
        f'<div class="line scale"><div class="name"><small>{unit}</small></div>'
        f'<div class="plot">{plot}</div></div>'
    )


def _tick(value: float, unit: str) -> str:
    shown = 100 * value if unit == "percent" else value
    return f"{shown:+.4g}".replace("-", "−") if shown else "0"


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
