"""Verdicts gathered and shown: tables for the terminal, the notebooks, the
README and the book."""

from __future__ import annotations

import html
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

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
    INDICATIVE,
    KINDS,
    NO_DIFFERENCE,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_SENSITIVE,
    NOT_SUPPORTED,
    REPRODUCED,
    RULE_CHANGED,
    SUPPORTED,
    Estimate,
    Verdict,
    judge,
)
from minilib.claims.records import Claim, Records, Test, load, papers
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


def format_estimate(value: Estimate | None, unit: str, seeds: bool = False) -> str:
    """Return mean and interval as text: "93.1 % (92.6 to 93.5)"."""
    if value is None:
        return "–"
    text = number_text(value.mean, unit) + (" %" if unit == "percent" else "")
    inside = []
    if value.interval is not None:
        inside.append(" to ".join(number_text(end, unit) for end in value.interval))
    if seeds:
        inside.append(f"{value.n} seed{'s' if value.n > 1 else ''}")
    return text + (f" ({', '.join(inside)})" if inside else "")


def interval_text(interval: tuple[float, float] | None, unit: str) -> str:
    """Return an interval of differences as text, signs included: "+1.2 to +3.4"."""
    return (
        "–"
        if interval is None
        else " to ".join(number_text(value, unit, sign=True) for value in interval)
    )


def difference_text(row: Row) -> str:
    """Return the difference treatment - control with its interval and what the
    interval is over."""
    verdict, unit = row.verdict, row.claim.unit
    if verdict.mean is None:
        return "–"
    text = number_text(verdict.mean, unit, sign=True)
    if verdict.interval is not None:
        return f"{text} ({interval_text(verdict.interval, unit)})"
    if verdict.items is not None:
        return f"{text} ({interval_text(verdict.items, unit)} over test items)"
    return text


def table(rows: Iterable[Row]) -> str:
    """Return a markdown table of verdicts, one row per claim and profile."""
    head = (
        "claim",
        "profile",
        "verdict",
        "treatment",
        "control",
        "difference",
        "seeds",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        verdict, unit = row.verdict, row.claim.unit
        cells = [
            f"{row.claim.id}: {row.claim.title}",
            row.profile,
            str(verdict) + (f" ({verdict.reason})" if verdict.kind == NOT_RUN else ""),
            format_estimate(verdict.treatment, unit),
            format_estimate(verdict.control, unit),
            difference_text(row),
            str(verdict.n or "–"),
        ]
        lines.append(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        )
    return "\n".join(lines) + "\n"


class VerdictTable:
    """A table of verdicts that notebooks and the book show; sign and words carry the
    meaning, never colour alone."""

    def __init__(self, rows: Sequence[Row]):
        """Keep ``rows`` in their order."""
        self.rows = list(rows)

    def __repr__(self) -> str:
        return f"Verdicts on {len({row.claim.id for row in self.rows})} claims"

    def _repr_markdown_(self) -> str:
        return table(self.rows)

    def _repr_html_(self) -> str:
        heads = ("Claim", "Verdict", "Treatment", "Control", "Difference", "The paper")
        cells = "".join(
            f'<th scope="col" style="{_CELL}">{head}</th>' for head in heads
        )
        groups = [
            list(group) for _, group in groupby(self.rows, key=lambda row: row.claim.id)
        ]
        body = "".join(_html_rows(group) for group in groups)
        return (
            '<div style="overflow-x:auto"><table '
            'style="border-collapse:collapse;text-align:left;color:inherit">'
            f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
        )


# No backgrounds and no fixed text colour: the table takes both from the page,
# light or dark.
_CELL = (
    "padding:0.4em 0.7em;text-align:left;vertical-align:top;border-bottom:1px solid "
    "rgba(128,128,128,0.4)"
)
_EDGE = {
    REPRODUCED: "solid",
    SUPPORTED: "solid",
    EXACT: "solid",
    NOT_REPRODUCED: "double",
    NOT_SUPPORTED: "double",
    NO_DIFFERENCE: "double",
    INCONCLUSIVE: "dashed",
    NOT_SENSITIVE: "dashed",
    INDICATIVE: "dotted",
    RULE_CHANGED: "dotted",
    NOT_RUN: "none",
}


def _html_rows(rows: Sequence[Row]) -> str:
    """Return one claim's rows, one per profile; its title and the paper's numbers
    appear once, beside them."""
    claim, span = rows[0].claim, f'<td rowspan="{len(rows)}" style="{_CELL}">'
    first = (
        f"{span}<b>{html.escape(claim.title)}</b><br><small>{html.escape(claim.id)}"
        "</small></td>"
    )
    last = (
        f"{span}{html.escape(claim.numbers)}<br><small>{html.escape(claim.where)}"
        "</small></td>"
    )
    text = ""
    for index, row in enumerate(rows):
        cells = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in _html_cells(row))
        text += (
            "<tr>"
            + (first if index == 0 else "")
            + cells
            + (last if index == 0 else "")
            + "</tr>"
        )
    return text


def _html_cells(row: Row) -> list[str]:
    verdict, unit = row.verdict, row.claim.unit
    seeds = (
        f"{row.profile}, {verdict.n} seed{'s' if verdict.n != 1 else ''}"
        if verdict.n
        else row.profile
    )
    style = (
        f"border-left:4px {_EDGE[verdict.kind]} "
        "currentColor;padding-left:0.4em;font-weight:bold"
    )
    badge = (
        f'<span style="{style}"><span aria-hidden="true">{verdict.icon}'
        f"</span> {verdict.text}</span>"
    )
    extra = "".join(
        f"<br><small>{html.escape(name)}: "
        f"{html.escape(format_estimate(control.value, unit))}</small>"
        for name, control in verdict.controls.items()
    )
    return [
        f"{badge}<br><small>{html.escape(f'{seeds}: {verdict.reason}')}</small>",
        _side_html(row, "treatment"),
        _side_html(row, "control") + extra,
        html.escape(difference_text(row)),
    ]


def _side_html(row: Row, side: str) -> str:
    test = row.claim.tests[row.profile]
    name = getattr(test, side) if isinstance(test, Test) else ""
    value = html.escape(format_estimate(getattr(row.verdict, side), row.claim.unit))
    return f"{value}<br><small>{html.escape(name)}</small>"


def verdicts(sources: Sources, profiles: Sequence[str], chapter: str) -> VerdictTable:
    """Return the table for a notebook: the claims of ``chapter`` at ``profiles``, those
    not run included."""
    return VerdictTable(collect(sources, profiles, [chapter]))


def scoreboard(results_dir: str | os.PathLike[str]) -> str:
    """Return the README's markdown table: per chapter and profile, which claims
    had which verdict."""
    head = ["chapter", "profile", "seeds"] + [f"{ICONS[kind]} {kind}" for kind in KINDS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for chapter in papers():
        for profile in PROFILES:
            rows = collect(results_dir, [profile], [chapter])
            seeds = max(row.verdict.n for row in rows)
            if not seeds:
                continue
            cells = [chapter, profile, str(seeds)]
            for kind in KINDS:
                names = [
                    row.claim.id.partition(".")[2]
                    for row in rows
                    if row.verdict.kind == kind
                ]
                cells.append(", ".join(names) or " ")
            lines.append("| " + " | ".join(cells) + " |")
    if len(lines) == 2:
        return "No results have been recorded yet.\n"
    return "\n".join(lines) + "\n"


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
