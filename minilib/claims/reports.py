"""Verdicts gathered and shown: tables for the terminal, the notebooks, the
README and the book."""

from __future__ import annotations

import html
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from minilib.claims.attempts import find_attempts
from minilib.claims.gathering import (
    Sources,
    check_against_ledger,
    find_records,
    together,
)
from minilib.claims.judging import (
    EXACT,
    ICONS,
    INCONCLUSIVE,
    KINDS,
    NO_DIFFERENCE,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_SENSITIVE,
    NOT_SUPPORTED,
    REPRODUCED,
    SUPPORTED,
    ControlOutcome,
    Estimate,
    PreconditionOutcome,
    Verdict,
    judge,
)
from minilib.claims.records import Claim, Records, load, papers
from minilib.parameters import PROFILES, repository


@dataclass(frozen=True)
class Row:
    """One claim at one profile with its verdict."""

    claim: Claim
    profile: str
    verdict: Verdict
    environments: tuple[Mapping[str, Any], ...] = ()
    """How each seed's run was made, where its ``run.json`` says so:
    time, memory, device."""


def results_folder() -> Path:
    """Return the repository's folder of committed records; FileNotFoundError for an
    installed wheel."""
    root = repository()
    if root is None:
        raise FileNotFoundError(
            "the committed records are in the repository (book/results), not in the "
            "package"
        )
    return root / "book" / "results"


def collect(
    sources: Sources,
    profiles: Sequence[str] = PROFILES,
    chapters: Sequence[str] | None = None,
) -> list[Row]:
    """Judge every claim at every profile by the records under ``sources``; without any
    it is "not run".

    A seed found twice counts once; the source named last wins. Fresh seeds that were
    not made alike (see :func:`minilib.claims.differing`) are not judged as one: they
    are left out with a warning.

    Args:
        sources: files or folders, see :func:`minilib.claims.find_records`.
        profiles: the profiles to judge, in this order.
        chapters: the chapters to judge; default: all that have a ledger.

    Raises:
        ValueError: a file is not a record, or it holds a claim that the
            ledger does not know.
    """
    chapters = papers() if chapters is None else list(chapters)
    found: dict[tuple[str, str], dict[int, Records]] = defaultdict(dict)
    for records in find_records(sources, chapters):
        check_against_ledger(records)
        found[records.chapter, records.profile][records.seed] = records
    rows = []
    for chapter in chapters:
        runs = {
            profile: _alike(found[chapter, profile], f"{chapter} {profile}")
            for profile in profiles
        }
        for claim in load(chapter).values():
            for profile in profiles:
                measured = [
                    (records.measurements[claim.id], records.environment)
                    for records in runs[profile]
                    if claim.id in records.measurements
                ]
                verdict = judge(
                    claim, [measurement for measurement, _ in measured], profile
                )
                rows.append(
                    Row(
                        claim,
                        profile,
                        verdict,
                        tuple(environment for _, environment in measured),
                    )
                )
    return rows


def _alike(seeds: Mapping[int, Records], name: str) -> list[Records]:
    """Return the records by seed, or none where they were not made alike."""
    runs, reason = together([seeds[seed] for seed in sorted(seeds)])
    if seeds and not runs:
        warnings.warn(f"{name} is not judged: {reason}", stacklevel=3)
    return runs


def measured(row: Row) -> bool:
    """Return whether a record of a claim at a profile counts; pilots do not."""
    return row.verdict.n > 0


def estimate_text(row: Row, value: Estimate | None, seeds: bool = False) -> str:
    """Return the number of one of a claim's arms; what is exact has no interval."""
    if value is not None and row.claim.test(row.profile).exact:
        value, seeds = replace(value, low=None, high=None), False
    return format_estimate(value, row.claim.unit, seeds)


def format_estimate(value: Estimate | None, unit: str, seeds: bool = False) -> str:
    """Return mean and interval as text: "93.1 % (92.6 to 93.5)"."""
    if value is None:
        return "–"
    text = number_text(value.mean, unit) + (" %" if unit == "percent" else "")
    inside = []
    if value.interval is not None:
        inside.append(" to ".join(number_text(end, unit) for end in value.interval))
    if seeds:
        inside.append(_counted(value.n, "seed"))
    return text + (f" ({', '.join(inside)})" if inside else "")


def interval_text(interval: tuple[float, float] | None, unit: str) -> str:
    """Return an interval of differences as text, signs included: "+1.2 to +3.4"."""
    return (
        "–"
        if interval is None
        else " to ".join(number_text(value, unit, sign=True) for value in interval)
    )


def difference_text(row: Row) -> str:
    """Return the difference treatment - control with its interval and, unless that is
    seeds, what the interval is over; what is exact has none."""
    verdict, unit = row.verdict, row.claim.unit
    if verdict.mean is None:
        return "–"
    text = number_text(verdict.mean, unit, sign=True)
    test = row.claim.test(row.profile)
    if test.exact:
        return text
    if verdict.interval is not None:
        over = f" over {test.over}" if test.over != "seeds" else ""
        return f"{text} ({interval_text(verdict.interval, unit)}{over})"
    if verdict.items is not None:
        return f"{text} ({interval_text(verdict.items, unit)} over test items)"
    return text


def size_text(size: float, unit: str) -> str:
    """Return the size of an effect with its unit, "5 points" or "0.8"."""
    if unit != "percent":
        return f"{size:.4g}"
    points = f"{100 * size:.4g}"
    return f"{points} point{'s' * (points != '1')}"


def effect_text(row: Row) -> str:
    """Return the smallest effect of interest of a test, "5 points" or "0.8"."""
    return size_text(row.claim.test(row.profile).effect, row.claim.unit)


def seeds_text(row: Row) -> str:
    """Return how many seeds decide and how many pilots went before, "5 seeds, 2
    pilots"; what is exact needs none."""
    if row.claim.test(row.profile).exact:
        return "exact"
    fresh, pilots = row.verdict.n, len(row.verdict.pilot)
    parts = [_counted(fresh, "seed")] if fresh or not pilots else []
    parts += [_counted(pilots, "pilot")] if pilots else []
    return ", ".join(parts)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


@dataclass(frozen=True)
class Check:
    """What a verdict needs beside the main comparison, as readers see it."""

    kind: str
    """ "control" or "precondition"."""
    name: str
    measured: str
    """The difference to the control, or the precondition's number."""
    asked: str
    """What the ledger asks of it."""
    met: bool | None
    """None: undecided."""
    word: str
    """The outcome in a word or two."""

    @property
    def icon(self) -> str:
        """A sign whose shape, not colour, shows the outcome."""
        return {True: "✓", False: "✗", None: "?"}[self.met]

    def __str__(self) -> str:
        return f"{self.name} {self.measured}, {self.word}"


def checks(row: Row) -> list[Check]:
    """Return a verdict's preconditions and further controls, in the ledger's order."""
    verdict = row.verdict
    found = [_condition(name, one) for name, one in verdict.preconditions.items()]
    return found + [_control(name, one, row) for name, one in verdict.controls.items()]


def _condition(name: str, outcome: PreconditionOutcome) -> Check:
    word = "at least" if outcome.expected.at_most is None else "at most"
    value = (
        "not recorded by every run" if outcome.value is None else f"{outcome.value:.3g}"
    )
    asked = f"{word} {outcome.bound:g}"
    said = "met" if outcome.met else "not met"
    return Check("precondition", name, value, asked, outcome.met, said)


def _control(name: str, outcome: ControlOutcome, row: Row) -> Check:
    expected, unit = outcome.expected, row.claim.unit
    exact = row.claim.test(row.profile).exact
    effect = number_text(expected.effect, unit).lstrip("+")
    asked = {
        "greater": f"above +{effect}" if expected.effect else "above zero",
        "smaller": f"below −{effect}" if expected.effect else "below zero",
        "equal": f"within ±{effect}",
    }[expected.direction]
    yes = "equal" if expected.direction == "equal" else "beaten"
    said = {True: yes, False: f"not {yes}", None: "undecided"}[outcome.beaten]
    if outcome.difference is None:
        return Check("control", name, "not recorded", asked, None, said)
    value = number_text(outcome.difference.mean, unit, sign=True)
    if outcome.difference.interval is not None and not exact:
        value += f" ({interval_text(outcome.difference.interval, unit)})"
    if outcome.missing:
        value += f", missing in {_counted(outcome.missing, 'seed')}"
    return Check("control", name, value, asked, outcome.beaten, said)


def table(rows: Iterable[Row]) -> str:
    """Return a markdown table of verdicts, one row per claim and profile."""
    head = (
        "claim",
        "profile",
        "verdict",
        "treatment",
        "control",
        "difference",
        "δ",
        "seeds",
        "controls and preconditions",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        verdict = row.verdict
        known = measured(row)
        why = verdict.kind == NOT_RUN and verdict.reason
        cells = [
            f"{row.claim.id}: {row.claim.title}",
            row.profile,
            f"{verdict} ({why})" if why else str(verdict),
            estimate_text(row, verdict.treatment),
            estimate_text(row, verdict.control),
            difference_text(row),
            effect_text(row) if known else "–",
            seeds_text(row) if known else "–",
            ("; ".join(map(str, checks(row))) if known else "") or "–",
        ]
        lines.append(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        )
    return "\n".join(lines) + "\n"


class VerdictTable:
    """Verdicts as notebooks and the book show them; sign and words carry the meaning,
    never colour alone.

    Numbers stand beside their verdict, on a phone below it.
    """

    def __init__(self, rows: Sequence[Row]):
        """Keep ``rows`` in their order."""
        self.rows = list(rows)

    def __repr__(self) -> str:
        return f"Verdicts on {_claims(self.rows)}"

    def _repr_markdown_(self) -> str:
        return table(self.rows)

    def _repr_html_(self) -> str:
        groups = [
            list(group) for _, group in groupby(self.rows, key=lambda row: row.claim.id)
        ]
        items = "".join(_html_claim(group) for group in groups)
        return (
            '<ul class="verdicts" style="list-style:none;margin:0;padding:0;'
            f'text-align:left;max-width:54em">{items}</ul>'
        )


# No backgrounds and no text colour: both are the page's, light or dark.
_ITEM = "margin:0;padding:0.5em 0.2em;border-top:1px solid rgba(128,128,128,0.4)"
_EDGE = {
    **dict.fromkeys((REPRODUCED, SUPPORTED, EXACT), "solid"),
    **dict.fromkeys((NOT_REPRODUCED, NOT_SUPPORTED, NO_DIFFERENCE), "double"),
    **dict.fromkeys((INCONCLUSIVE, NOT_SENSITIVE), "dashed"),
    NOT_RUN: "none",
}
WHOSE = {"paper": "The paper", "later work": "Later work", "ours": "Our own claim"}


def _html_claim(rows: Sequence[Row]) -> str:
    """Return one claim: title, verdict and numbers per profile, the paper's numbers."""
    claim = rows[0].claim
    text = f"<b>{html.escape(claim.title)}</b> <small>{html.escape(claim.id)}</small>"
    for row in rows:
        text += (
            '<div style="display:flex;flex-wrap:wrap;gap:0.1em 1em;margin:0.35em 0">'
            f'<div style="flex:1 1 11em">{_verdict_html(row)}</div>'
            f'<div style="flex:3 1 19em">{_numbers_html(row)}</div></div>'
        )
    text += (
        f"<small>{WHOSE[claim.origin]} ({html.escape(claim.where)}): "
        f"{html.escape(claim.numbers)}</small>"
    )
    return f'<li style="{_ITEM}">{text}</li>'


def _verdict_html(row: Row) -> str:
    verdict = row.verdict
    style = (
        f"border-left:4px {_EDGE.get(verdict.kind, 'dotted')} currentColor;"
        "padding-left:0.4em;font-weight:bold"
    )
    where = row.profile + (f", {seeds_text(row)}" if measured(row) else "")
    return (
        f'<span style="{style}"><span aria-hidden="true">{verdict.icon}'
        f"</span> {verdict.text}</span><br><small>{html.escape(where)}</small>"
    )


def _numbers_html(row: Row) -> str:
    verdict, unit = row.verdict, row.claim.unit
    reason = html.escape(verdict.reason)
    if not measured(row):
        return f"<small>{reason}</small>"
    test = row.claim.test(row.profile)
    points = " points" if unit == "percent" else ""
    lines = [f"<b>{html.escape(difference_text(row))}</b>{points}"]
    if not test.exact:
        lines[0] += f" <small>smallest effect {effect_text(row)}</small>"
    for side in ("treatment", "control"):
        value = estimate_text(row, getattr(verdict, side))
        lines.append(
            f"{html.escape(value)} <small>{html.escape(getattr(test, side))}</small>"
        )
    lines += [
        f'<small><span aria-hidden="true">{check.icon}</span> '
        f"{html.escape(str(check))}</small>"
        for check in checks(row)
    ]
    return "<br>".join([*lines, f"<small><i>{reason}</i></small>"])


def verdicts(sources: Sources, profiles: Sequence[str], chapter: str) -> VerdictTable:
    """Return the table for a notebook: the claims of ``chapter`` at ``profiles``, those
    not run included."""
    return VerdictTable(collect(sources, profiles, [chapter]))


def scoreboard(results_dir: str | os.PathLike[str]) -> str:
    """Return the README's two markdown tables, the papers' claims and those of later
    work and ours: per chapter and profile, which claims had which verdict."""
    rows = collect(results_dir)
    theirs = [row for row in rows if row.claim.origin == "paper"]
    others = [row for row in rows if row.claim.origin != "paper"]
    if not any(map(measured, rows)):
        text = (
            "No results have been recorded yet: every claim is to be measured under "
            "version 2 of the rules."
        )
        if find_attempts(results_dir):
            text += " An earlier attempt is kept in `book/results/attempts`."
        return text + "\n"
    waiting = [
        chapter_title(chapter)
        for chapter in papers()
        if not any(measured(row) for row in rows if row.claim.paper == chapter)
    ]
    parts = [
        f"**What the papers claim**, {_claims(theirs)}:",
        _board(theirs),
        f"**What later work and we claim**, {_claims(others)}:",
        _board(others),
    ]
    if waiting:
        parts.append(f"Not run yet: {', '.join(waiting)}.")
    return "\n\n".join(parts) + "\n"


def _claims(rows: Sequence[Row]) -> str:
    return _counted(len({row.claim.id for row in rows}), "claim")


def _board(rows: Sequence[Row]) -> str:
    """Return a markdown table with a row for each chapter and profile that was run, and
    a column for each kind of verdict that occurs in them."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.claim.paper, row.profile].append(row)
    run = {place: group for place, group in groups.items() if any(map(measured, group))}
    if not run:
        return "None has been measured yet."
    found = {row.verdict.kind for group in run.values() for row in group}
    kinds = [kind for kind in KINDS if kind in found]
    head = ["chapter", "profile", "seeds"] + [f"{ICONS[kind]} {kind}" for kind in kinds]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (paper, profile), group in run.items():
        counted = [row.verdict.n for row in group if row.verdict.kind != EXACT]
        cells = [paper, profile, str(max(counted, default=0) or "–")]
        for kind in kinds:
            names = [_named(row) for row in group if row.verdict.kind == kind]
            cells.append(", ".join(names) or " ")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _named(row: Row) -> str:
    """Return a claim's name, with what its kind of verdict does not say."""
    name, (_, _, more) = (
        row.claim.id.partition(".")[2],
        row.verdict.text.partition(" ("),
    )
    return f"{name} ({more}" if more else name


def chapter_title(chapter: str) -> str:
    """Return how people write the method's name, for example "CLIP"."""
    return next(iter(load(chapter).values())).method


def number_text(value: float | None, unit: str, sign: bool = False) -> str:
    """Return a number as it is shown: percent with one decimal, others with three
    digits; a dash for None."""
    if value is None:
        return "–"
    scaled = 100 * value if unit == "percent" else value
    text = f"{scaled:.1f}" if unit == "percent" else f"{scaled:.3g}"
    if float(text) == 0:
        text = text.lstrip("-")  # no minus zero
    elif sign and not text.startswith("-"):
        text = "+" + text
    return text.replace("-", "−")
