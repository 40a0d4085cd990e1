"""The book's pages of claims, made from the ledger and the records whenever
the book is built."""

from __future__ import annotations

import csv
import html
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from minilib.claims.attempts import Attempt, find_attempts, retired
from minilib.claims.forest import badge, css_class, forest
from minilib.claims.judging import ICONS, KINDS, NOT_RUN, rule_text
from minilib.claims.records import Claim, NotRun, Test, chapter_number, load, papers
from minilib.claims.reports import (
    WHOSE,
    Check,
    Row,
    chapter_title,
    checks,
    collect,
    difference_text,
    effect_text,
    estimate_text,
    interval_text,
    measured,
    number_text,
    seeds_text,
    size_text,
)
from minilib.files import write_atomically
from minilib.parameters import PROFILES


@dataclass(frozen=True)
class Repository:
    """Where readers find the files behind a page."""

    url: str
    branch: str = "main"

    def file(self, path: str) -> str:
        """Return the address of a file, or of a folder."""
        kind = "blob" if Path(path).suffix else "tree"
        return f"{self.url}/{kind}/{self.branch}/{path}"

    def history(self, path: str) -> str:
        """Return the address of the changes of a file."""
        return f"{self.url}/commits/{self.branch}/{path}"


def write_pages(
    folder: Path,
    results_dir: str | os.PathLike[str],
    repository: Repository | None = None,
) -> list[Path]:
    """Write the overview's parts and one MyST page per chapter; files that are up to
    date are left alone.

    Args:
        folder: of the pages.
        results_dir: the folder of records.
        repository: where pages link to; without it they have no links to files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, attempts = collect(results_dir), find_attempts(results_dir)
    wanted = overview(rows, attempts)
    for chapter in papers():
        wanted[_page(chapter)] = chapter_page(
            chapter,
            [row for row in rows if row.claim.paper == chapter],
            attempts,
            repository,
        )
    for old in folder.glob("*.*"):
        # a page of a ledger that is gone, not one that somebody put there
        if old.name not in wanted and re.fullmatch(
            r"\d\d_[a-z][a-z0-9]*\.md", old.name
        ):
            old.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)
    return [folder / name for name in wanted]


def overview(rows: Sequence[Row], attempts: Sequence[Attempt] = ()) -> dict[str, str]:
    """Return the parts of the overview page by file name, in HTML.

    ``papers.html`` holds the papers' claims at the profiles that were run,
    ``others.html`` those of later work and ours, ``cost.html`` time and memory of what
    was run, ``not-run.html`` the reasons for the rest, and ``retired.html`` the claims
    of earlier attempts that are made no more.
    """
    places = {chapter: f"claims/{_page(chapter)[:-3]}.html" for chapter in papers()}
    theirs = [row for row in rows if row.claim.origin == "paper"]
    others = [row for row in rows if row.claim.origin != "paper"]
    parts = {
        "papers.html": [_counts(theirs), _legend(theirs), _matrix(theirs, places)],
        "others.html": [_counts(others), _legend(others), _matrix(others, places)],
        "cost.html": [_costs(rows)],
        "not-run.html": [_not_run(rows)],
        "retired.html": [_retired(attempts)],
    }
    return {name: "\n".join(texts) + "\n" for name, texts in parts.items()}


def chapter_page(
    chapter: str,
    rows: Sequence[Row],
    attempts: Sequence[Attempt] = (),
    repository: Repository | None = None,
) -> str:
    """Return one chapter's page in MyST: per claim a plot, and all data behind it."""
    done = Counter(row.verdict.text for row in rows if measured(row))
    counted = (
        ", ".join(f"{count} {text}" for text, count in done.items())
        or "nothing recorded yet"
    )
    title = chapter_title(chapter)
    head = (
        f"Claims at the profiles that were run: {counted}. {{doc}}`/claims` shows all "
        "chapters."
    )
    parts = [f"# {title}: the claims", "", head, "", _KEY, ""]
    for claim in load(chapter).values():
        parts.append(_section(claim, rows, attempts, repository))
    return "\n".join(parts)


def summary(results_dir: str | os.PathLike[str]) -> str:
    """Return a table in CSV with one row per claim and profile that was run: seeds,
    interval, controls, verdict, cost."""
    out = io.StringIO()
    lines: list[dict[str, str]] = []
    for row in collect(results_dir):
        if measured(row):
            lines.append(_summary(row))
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


_COLUMNS = (
    "claim origin profile verdict seeds pilots treatment control effect difference low "
    "high bootstrap_low bootstrap_high items_low items_high unit controls "
    "preconditions seconds_a_run peak_memory_bytes device reason"
).split()


def _summary(row: Row) -> dict[str, str]:
    verdict, test = row.verdict, row.claim.test(row.profile)
    assert verdict.treatment is not None and verdict.control is not None
    numbers = {
        "treatment": verdict.treatment.mean,
        "control": verdict.control.mean,
        "effect": test.effect,
        "difference": verdict.mean,
    }
    for name, ends in (
        ("", verdict.interval),
        ("bootstrap_", verdict.resampled),
        ("items_", verdict.items),
    ):
        numbers |= zip((f"{name}low", f"{name}high"), ends or (None, None), strict=True)
    peaks = [e.get("peak_memory_bytes") or 0 for e in row.environments]
    costs = {
        "seconds_a_run": _seconds(row),
        "peak_memory_bytes": max(peaks, default=0),
    }
    found = checks(row)
    return {
        "claim": row.claim.id,
        "origin": row.claim.origin,
        "profile": row.profile,
        "verdict": verdict.text,
        "seeds": str(verdict.n),
        "pilots": str(len(verdict.pilot)),
        **{k: "" if v is None else f"{v:.6g}" for k, v in numbers.items()},
        "unit": row.claim.unit,
        "controls": "; ".join(str(c) for c in found if c.kind == "control"),
        "preconditions": "; ".join(str(c) for c in found if c.kind != "control"),
        **{k: f"{v:.0f}" if v else "" for k, v in costs.items()},
        "device": _device(row),
        "reason": verdict.reason,
    }


def _page(chapter: str) -> str:
    return f"{chapter_number(chapter):02}_{chapter}.md"


# --- The overview ---------------------------------------------------------------------


def _counts(rows: Sequence[Row]) -> str:
    claims, chapters = {row.claim.id for row in rows}, {row.claim.paper for row in rows}
    sentences = [
        f"{_number(len(claims), 'claim')} in {_number(len(chapters), 'chapter')}."
    ]
    for profile in PROFILES:
        kinds = Counter(
            row.verdict.kind for row in rows if row.profile == profile and measured(row)
        )
        if kinds:
            said = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
            sentences.append(f"Profile <code>{profile}</code>: {said}.")
    if len(sentences) == 1:
        sentences.append("None has been measured by the present rules yet.")
    return f"<p>{' '.join(sentences)}</p>"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _legend(rows: Sequence[Row]) -> str:
    """Return the signs that occur, with their words; none before the first run."""
    kinds = {row.verdict.kind for row in rows}
    if not any(map(measured, rows)):
        return ""
    signs = "".join(
        f'<span class="verdict {css_class(kind)}">'
        f'<span aria-hidden="true">{ICONS[kind]}</span> {kind}</span> '
        for kind in KINDS
        if kind in kinds
    )
    return f'<p class="legend">{signs}</p>'


def _matrix(rows: Sequence[Row], places: dict[str, str]) -> str:
    """Return the claims with a column for each profile at which any of them was run;
    before the first run, with the profiles at which they will be."""
    profiles = [p for p in PROFILES if any(measured(r) for r in rows if r.profile == p)]
    cell = {(row.claim.id, row.profile): row for row in rows}
    names = profiles or ["to be measured at"]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    bodies = []
    for chapter, place in places.items():
        claims = [c for c in load(chapter).values() if (c.id, PROFILES[0]) in cell]
        if not claims:
            continue
        title = html.escape(chapter_title(chapter))
        head = (
            f'<th scope="rowgroup" colspan="{len(names) + 1}">'
            f'<a href="{place}">{title}</a></th>'
        )
        lines = [f'<tr class="chapter">{head}</tr>']
        for claim in claims:
            name = claim.id.partition(".")[2]
            link = (
                f'<a href="{place}#{anchor(claim)}"><b>{html.escape(name)}'
                f"</b> {html.escape(claim.title)}</a>"
            )
            cells = "".join(_matrix_cell(cell[claim.id, p]) for p in profiles)
            cells = cells or f'<td data-profile="{names[0]}">{_planned(claim)}</td>'
            lines.append(f'<tr><th scope="row">{link}</th>{cells}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return (
        '<div class="claims-scroll"><table class="claims-matrix"><thead><tr>'
        '<th scope="col">claim</th>'
        f"{heads}</tr></thead>{''.join(bodies)}</table></div>"
    )


def _matrix_cell(row: Row) -> str:
    verdict = row.verdict
    head = (
        f'<td class="{css_class(verdict.kind)}" data-profile="{row.profile}" '
        f'title="{html.escape(verdict.reason)}">'
    )
    if not measured(row):
        return f"{head}{badge(verdict)}{_needs(row.claim.tests[row.profile])}</td>"
    exact = row.claim.test(row.profile).exact
    size = "" if exact else f"δ {effect_text(row)}; {seeds_text(row)}"
    text = (
        f'<span class="numbers">{html.escape(difference_text(row))}'
        f"{f'<br><small>{size}</small>' if size else ''}</span>"
    )
    items = "".join(f"<li>{_check(check)}</li>" for check in checks(row))
    return f"{head}{badge(verdict)}{text}{f'<ul>{items}</ul>' if items else ''}</td>"


def _needs(test: Test | NotRun) -> str:
    gpu = isinstance(test, NotRun) and test.needs == "gpu"
    return " <small>needs a GPU</small>" if gpu else ""


def _check(check: Check) -> str:
    asked = f", asked {check.asked}" if check.kind == "precondition" else ""
    text = html.escape(f"{check.name} {check.measured}{asked}")
    return (
        f'<span class="sign {_state(check)}" role="img" aria-label="{check.word}">'
        f"{check.icon}</span>{text}"
    )


def _state(check: Check) -> str:
    return {True: "met", False: "unmet", None: "undecided"}[check.met]


def _planned(claim: Claim) -> str:
    planned = [
        p for p, t in claim.tests.items() if isinstance(t, Test) and p != "quick"
    ]
    return (
        ", ".join(f"<code>{p}</code>" for p in PROFILES if p in planned) or "not here"
    )


def _costs(rows: Sequence[Row]) -> str:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if measured(row):
            groups[row.claim.paper, row.profile].append(row)
    if not groups:
        return "<p>No run has been recorded yet.</p>"
    lines = []
    for (chapter, profile), found in groups.items():
        most = max(found, key=lambda row: len(row.environments))
        cells = [
            chapter_title(chapter),
            profile,
            html.escape(str(len(most.environments))),
            _time(most),
            _memory(most),
            _device(most),
        ]
        lines.append(
            "<tr>"
            + "".join(f"<td>{html.escape(cell or '–')}</td>" for cell in cells)
            + "</tr>"
        )
    names = ("chapter", "profile", "runs", "a run", "memory", "on")
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<div class="claims-scroll"><table class="claims-cost"><thead><tr>{heads}'
        "</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        "<p>Wall time (median over runs, pilots included) and peak memory of a whole "
        "chapter, all its claims together. The records are in "
        "<code>book/results</code>, a row for each claim and profile in "
        "<code>claims.csv</code>.</p>"
    )


def _not_run(rows: Sequence[Row]) -> str:
    chapters: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    pending: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.verdict.kind != NOT_RUN:
            continue
        if isinstance(row.claim.tests[row.profile], str):
            chapters[row.claim.paper][row.profile, row.verdict.reason].append(
                row.claim.id.partition(".")[2]
            )
        else:
            pending[row.claim.paper][row.profile] += 1
    text = ""
    for chapter in papers():
        items = [
            f"<li><code>{profile}</code>, {html.escape(', '.join(names))}: "
            f"{html.escape(reason)}</li>"
            for (profile, reason), names in chapters[chapter].items()
        ]
        items += [
            f"<li><code>{profile}</code>: {_number(count, 'claim')} could be "
            "run and have no committed record"
            f"{' (quick runs are not kept)' if profile == 'quick' else ' yet'}</li>"
            for profile, count in pending[chapter].items()
        ]
        if items:
            title = html.escape(chapter_title(chapter))
            text += (
                f"<details><summary>{title}</summary><ul>{''.join(items)}</ul>"
                "</details>"
            )
    return text or "<p>Everything was run.</p>"


def _retired(attempts: Sequence[Attempt]) -> str:
    gone = retired(attempts)
    if not gone:
        return "<p>None: every claim that was ever judged is still in the ledger.</p>"
    return _attempts_table(gone, named=True)


def _attempts_table(attempts: Sequence[Attempt], named: bool = False) -> str:
    heads = [*(["claim"] if named else []), "profile", "verdict", "difference", "seeds"]
    lines = []
    for one in attempts:
        cells = [
            html.escape(one.profile),
            f"{html.escape(one.verdict)}<br><small>{html.escape(one.reason)}</small>",
            html.escape(attempt_text(one)),
            str(one.seeds),
        ]
        if named:
            cells.insert(0, f"<b>{html.escape(one.claim)}</b> {html.escape(one.title)}")
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<div class="claims-scroll"><table class="claims-attempts"><thead><tr>{head}'
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def attempt_text(attempt: Attempt) -> str:
    """Return the difference of an earlier attempt, with its interval if it has one."""
    text = number_text(attempt.difference, attempt.unit, sign=True)
    if attempt.interval is None:
        return text
    return f"{text} ({interval_text(attempt.interval, attempt.unit)})"


# --- A chapter's page -----------------------------------------------------------------

_KEY = (
    '<p class="forest-key">In the plots: <span class="key-ours">●</span> our mean '
    "difference over the fresh seeds with its 95 % interval (dashed: over test items); "
    'below it <span class="key-ours">•</span> single fresh seeds, '
    '<span class="key-ours">◦</span> pilot seeds, which do not count; '
    '<span class="key-small">grey</span> differences too small to matter (±δ); '
    '<span class="key-claimed">tinted</span> where the interval must lie for the '
    "claim to hold; "
    '<span class="key-paper">◇</span> the paper’s own difference, where it '
    "compares the same two things.</p>"
)
_ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth")


def anchor(claim: Claim) -> str:
    """Return the anchor of a claim on its page: "claim-clip-c1"."""
    return "claim-" + claim.id.replace(".", "-").replace("_", "-").lower()


def _section(
    claim: Claim,
    rows: Sequence[Row],
    attempts: Sequence[Attempt],
    repository: Repository | None,
) -> str:
    own = [row for row in rows if row.claim.id == claim.id]
    parts = [
        f"({anchor(claim)})=",
        f"## {_short(claim)}: {claim.title}",
        claim.statement,
        _source(claim),
        forest(claim, own),
        _reasons(own),
        _checks(own),
        _skipped(own),
        _shared(claim, rows),
        _how(own),
        _earlier([one for one in attempts if one.claim == claim.id]),
        _links(claim, own, repository),
    ]
    first, *rest = [part for part in parts if part]
    return "\n".join([first, "\n\n".join(rest), ""])


def _short(claim: Claim) -> str:
    return claim.id.partition(".")[2]


def _source(claim: Claim) -> str:
    """Return whose claim it is, with the paper's numbers; differences between other
    things than ours are text, not marks on our axis."""
    text = f"**{WHOSE[claim.origin]}** ({claim.where}): {claim.numbers.rstrip('.')}."
    if claim.differences and not claim.comparable:
        said = ", ".join(
            f"{what} {number_text(value, claim.unit, sign=True)}"
            + (" points" if claim.unit == "percent" else "")
            for what, value in claim.differences.items()
        )
        text += f" Its own differences, of other things than ours: {said}."
    return text


def _reasons(rows: Sequence[Row]) -> str:
    """Return why the verdicts are what they are."""
    said = "; ".join(
        f"<code>{row.profile}</code>: {html.escape(row.verdict.reason)}"
        for row in rows
        if measured(row)
    )
    return f'<p class="claim-notes">{said}.</p>' if said else ""


def _checks(rows: Sequence[Row]) -> str:
    """Return the controls and preconditions of a claim, a row each."""
    found = [(row, check) for row in rows if measured(row) for check in checks(row)]
    if not found:
        return ""
    many = len({row.profile for row, _ in found}) > 1
    lines = []
    for row, check in found:
        place = f" <small>{row.profile}</small>" if many else ""
        cells = [
            html.escape(check.name) + place,
            html.escape(check.measured),
            f'<span class="{_state(check)}"><span aria-hidden="true">{check.icon}'
            f"</span> {check.word}</span> <small>{html.escape(check.asked)}</small>",
        ]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    names = ("beside the main comparison", "measured", "asked")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<div class="claims-scroll"><table class="claims-checks"><thead><tr>{head}'
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _skipped(rows: Sequence[Row]) -> str:
    skipped: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        kept_nowhere = row.profile == "quick" and isinstance(
            row.claim.tests["quick"], Test
        )
        if not measured(row) and not kept_nowhere:
            skipped[row.verdict.reason].append(row.profile)
    if not skipped:
        return ""
    reasons = "; ".join(
        f"{' and '.join(profiles)} ({html.escape(why)})"
        for why, profiles in skipped.items()
    )
    return f'<p class="not-run-line"><b>– not run:</b> {reasons}</p>'


def _shared(claim: Claim, rows: Sequence[Row]) -> str:
    """Return which claims of the chapter rest on the same trained arms."""
    arms: dict[str, set[str]] = defaultdict(set)
    others: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        test = row.claim.tests[row.profile]
        own = claim.tests[row.profile]
        if (
            row.claim.id != claim.id
            and isinstance(test, Test)
            and isinstance(own, Test)
        ):
            for arm in own.arms:
                if arm in test.arms:
                    others[_short(row.claim)].add(arm)
    for name, common in others.items():
        arms[", ".join(sorted(common))].add(name)
    if not arms:
        return ""
    order = [_short(one) for one in load(claim.paper).values()]
    said = "; ".join(
        f"{', '.join(sorted(names, key=order.index))} ({html.escape(common)})"
        for common, names in arms.items()
    )
    return (
        '<p class="claim-notes">Rests on the same trained arms as '
        f"{said}: these verdicts are not independent.</p>"
    )


def _how(rows: Sequence[Row]) -> str:
    """Return the folded part: the test in words, its rule, and all numbers, one
    column per profile."""
    said: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        test = row.claim.tests[row.profile]
        if isinstance(test, Test):
            said[_test_text(row.claim, test)].append(row.profile)
    paragraphs = "".join(
        f"<p><b>{', '.join(profiles)}.</b> {text}</p>"
        for text, profiles in said.items()
    )
    run = [row for row in rows if measured(row)]
    table = ""
    if run:
        head = "".join(f'<th scope="col">{row.profile}</th>' for row in run)
        columns = [_cells(row) for row in run]
        body = "".join(
            f'<tr><th scope="row">{name}'
            f"</th>{''.join(f'<td>{column[name]}</td>' for column in columns)}</tr>"
            for name in columns[0]
        )
        table = (
            '<div class="claims-scroll"><table class="claims-rows"><thead><tr><th>'
            f"</th>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )
    title = "<summary>How it is tested, and all numbers</summary>"
    return f'<details class="claim-how">{title}{paragraphs}{table}</details>'


def _test_text(claim: Claim, test: Test) -> str:
    text = (
        f"{test.how.rstrip('.')}. Measured: {test.metric}. Rule: "
        f"{rule_text(claim, test)}."
    )
    if not test.exact:
        text += (
            f" Why {size_text(test.effect, claim.unit)} as the smallest effect: "
            f"{test.why.rstrip('.')}."
        )
    for name, control in test.controls.items():
        text += f" Control {name}: {control.why.rstrip('.')}."
    for name, condition in test.preconditions.items():
        text += f" Precondition {name}: {condition.why.rstrip('.')}."
    return html.escape(text)


def _cells(row: Row) -> dict[str, str]:
    verdict, unit = row.verdict, row.claim.unit
    test = row.claim.test(row.profile)
    further = "<br>".join(
        f"{estimate_text(row, control.value)} <small>{html.escape(name)}</small>"
        for name, control in verdict.controls.items()
    )
    over = (
        "" if test.over == "seeds" else f" <small>over {html.escape(test.over)}</small>"
    )
    pilots = ", ".join(number_text(d, unit, sign=True) for d in verdict.pilot)
    return {
        "verdict": f"{badge(verdict)} <small>{html.escape(verdict.reason)}</small>",
        "seeds": html.escape(seeds_text(row)),
        "treatment": (
            f"{estimate_text(row, verdict.treatment)} "
            f"<small>{html.escape(test.treatment)}</small>"
        ),
        "control": (
            f"{estimate_text(row, verdict.control)} "
            f"<small>{html.escape(test.control)}</small>"
        ),
        "further controls": further or "–",
        "difference": number_text(verdict.mean, unit, sign=True),
        "smallest effect δ": "–" if test.exact else effect_text(row),
        "95 %, t over seeds": interval_text(verdict.interval, unit) + over,
        "95 %, bootstrap over seeds": interval_text(verdict.resampled, unit),
        "95 %, bootstrap over test items": interval_text(verdict.items, unit),
        "differences of the pilot seeds": pilots or "–",
        "cost of a run": html.escape(
            ", ".join(filter(None, [_time(row), _memory(row), _device(row)])) or "–"
        ),
    }


def _earlier(attempts: Sequence[Attempt]) -> str:
    """Return what earlier attempts found, folded."""
    text = ""
    for number in sorted({one.number for one in attempts}):
        rows = [one for one in attempts if one.number == number]
        known = number <= len(_ORDINALS)
        title = f"{_ORDINALS[number - 1]} attempt" if known else f"Attempt {number}"
        lead = "<p>What was found by the rules and the regime of that time.</p>"
        if rows[0].title:
            lead = (
                f"<p>As “{html.escape(rows[0].title)}”, by the rules and the "
                "regime of that time; it is not a result any more.</p>"
            )
        text += (
            f'<details class="claim-first"><summary>{title}</summary>{lead}'
            f"{_attempts_table(rows)}</details>"
        )
    return text


def _links(claim: Claim, rows: Sequence[Row], repository: Repository | None) -> str:
    """Return links to the history of the ledger and to the records."""
    if repository is None:
        return ""
    ledger = f"minilib/ledger/{claim.paper}.yaml"
    places = {
        "ledger": repository.file(ledger),
        "its history": repository.history(ledger),
    }
    for row in rows:
        if measured(row) or row.verdict.pilot:
            path = f"book/results/{claim.paper}.{row.profile}.json"
            places[f"records of {row.profile}"] = repository.file(path)
    links = [f'<a href="{html.escape(url)}">{name}</a>' for name, url in places.items()]
    return f'<p class="claim-links">{" · ".join(links)}</p>'


# --- Costs ----------------------------------------------------------------------------


def _seconds(row: Row) -> float | None:
    times = [e["wall_seconds"] for e in row.environments if e.get("wall_seconds")]
    return median(times) if times else None


def _time(row: Row) -> str:
    seconds = _seconds(row)
    if seconds is None:
        return ""
    if seconds < 6000:
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _memory(row: Row) -> str:
    peaks = [
        e["peak_memory_bytes"] for e in row.environments if e.get("peak_memory_bytes")
    ]
    return f"{max(peaks) / 1e9:.1f} GB" if peaks else ""


def _device(row: Row) -> str:
    names = []
    for environment in row.environments:
        device = environment.get("device") or {}
        cores = (
            f", {environment['cores']} cores"
            if device.get("used") == "cpu" and environment.get("cores")
            else ""
        )
        names.append(f"{device['name']}{cores}" if device.get("name") else "")
    return "; ".join(dict.fromkeys(filter(None, names)))
