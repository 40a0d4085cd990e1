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
from pathlib import Path
from statistics import median

from minilib.claims.forest import badge, forest
from minilib.claims.judging import ICONS, KINDS, NOT_RUN, rule_text
from minilib.claims.records import Claim, Test, chapter_number, load, papers
from minilib.claims.reports import (
    Row,
    chapter_title,
    collect,
    difference_text,
    format_estimate,
    interval_text,
    number_text,
)
from minilib.files import write_atomically
from minilib.parameters import PROFILES


def write_pages(folder: Path, results_dir: str | os.PathLike[str]) -> list[Path]:
    """Write the overview's parts and one MyST page per chapter; files that are up to
    date are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = collect(results_dir)
    wanted = overview(rows)
    for chapter in papers():
        wanted[_page(chapter)] = chapter_page(
            chapter, [row for row in rows if row.claim.paper == chapter]
        )
    for old in folder.glob("*_*.md"):
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


def overview(rows: Sequence[Row]) -> dict[str, str]:
    """Return the parts of the overview page by file name, in HTML.

    ``matrix.html`` holds all claims at all profiles, ``cost.html`` time and memory of
    what was run, and ``not-run.html`` the reasons for the rest.
    """
    places = {chapter: f"claims/{_page(chapter)[:-3]}.html" for chapter in papers()}
    return {
        "matrix.html": "\n".join([_counts(rows), _legend(), _matrix(rows, places)])
        + "\n",
        "cost.html": _costs(rows) + "\n",
        "not-run.html": _not_run(rows) + "\n",
    }


def chapter_page(chapter: str, rows: Sequence[Row]) -> str:
    """Return one chapter's page in MyST: per claim a plot of our numbers and the
    paper's, and all data behind it."""
    done = Counter(row.verdict.text for row in rows if row.verdict.n)
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
        parts.append(_section(claim, [row for row in rows if row.claim.id == claim.id]))
    return "\n".join(parts)


def summary(results_dir: str | os.PathLike[str]) -> str:
    """Return a table in CSV with one row per claim and profile that was run: n,
    interval, verdict, cost."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = (
        "claim profile verdict seeds treatment control difference low high "
        "bootstrap_low bootstrap_high items_low"
    )
    writer.writerow(
        [
            *head.split(),
            "items_high",
            "unit",
            "seconds_a_seed",
            "peak_memory_bytes",
            "device",
            "reason",
        ]
    )
    for row in collect(results_dir):
        verdict = row.verdict
        if verdict.treatment is None or verdict.control is None:  # not run
            continue
        numbers = [
            verdict.treatment.mean,
            verdict.control.mean,
            verdict.mean,
            verdict.low,
            verdict.high,
        ]
        numbers += [
            *(verdict.resampled or (None, None)),
            *(verdict.items or (None, None)),
        ]
        cost = [
            _seconds(row),
            max((e.get("peak_memory_bytes") or 0 for e in row.environments), default=0)
            or None,
        ]
        writer.writerow(
            [row.claim.id, row.profile, verdict.text, verdict.n]
            + ["" if number is None else f"{number:.6g}" for number in numbers]
            + [
                row.claim.unit,
                *("" if number is None else f"{number:.0f}" for number in cost),
            ]
            + [_device(row), verdict.reason]
        )
    return out.getvalue()


def _page(chapter: str) -> str:
    return f"{chapter_number(chapter):02}_{chapter}.md"


# --- The overview ---------------------------------------------------------------------


def _counts(rows: Sequence[Row]) -> str:
    claims, chapters = {row.claim.id for row in rows}, {row.claim.paper for row in rows}
    sentences = [
        f"{len(claims)} claims of {len(chapters)} paper{'s' * (len(chapters) > 1)}."
    ]
    for profile in PROFILES:
        kinds = Counter(
            row.verdict.kind for row in rows if row.profile == profile and row.verdict.n
        )
        if kinds:
            said = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
            sentences.append(f"Profile <code>{profile}</code>: {said}.")
    return f"<p>{' '.join(sentences)}</p>"


def _legend() -> str:
    signs = "".join(
        f'<span class="verdict {kind.replace(" ", "-")}">'
        f'<span aria-hidden="true">{ICONS[kind]}</span> {kind}</span> '
        for kind in KINDS
    )
    return f'<p class="legend">{signs}</p>'


def _matrix(rows: Sequence[Row], places: dict[str, str]) -> str:
    cell = {(row.claim.id, row.profile): row for row in rows}
    heads = "".join(f'<th scope="col">{profile}</th>' for profile in PROFILES)
    bodies = []
    for chapter, place in places.items():
        title = html.escape(chapter_title(chapter))
        head = (
            f'<th scope="rowgroup" colspan="{len(PROFILES) + 1}">'
            f'<a href="{place}">{title}</a></th>'
        )
        lines = [f'<tr class="chapter">{head}</tr>']
        for claim in load(chapter).values():
            name = claim.id.partition(".")[2]
            link = (
                f'<a href="{place}#{anchor(claim)}"><b>{html.escape(name)}'
                f"</b> {html.escape(claim.title)}</a>"
            )
            cells = "".join(
                _matrix_cell(cell[claim.id, profile]) for profile in PROFILES
            )
            lines.append(f'<tr><th scope="row">{link}</th>{cells}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return (
        '<div class="claims-scroll"><table class="claims-matrix"><thead><tr>'
        '<th scope="col">claim</th>'
        f"{heads}</tr></thead>{''.join(bodies)}</table></div>"
    )


def _matrix_cell(row: Row) -> str:
    verdict = row.verdict
    kind = verdict.kind.replace(" ", "-")
    if not verdict.n:
        return (
            f'<td class="{kind}" '
            f'title="{html.escape(verdict.reason)}">{_sign("–")}not run</td>'
        )
    agrees = {None: "", True: ": agrees", False: ": disagrees"}[verdict.agrees]
    seeds = f"{verdict.n} seed{'s' * (verdict.n > 1)}"
    title = html.escape(f"{difference_text(row)}; {verdict.reason}")
    text = f"{_sign(verdict.icon)}{verdict.kind}{agrees}<br><small>{seeds}</small>"
    return f'<td class="{kind}" title="{title}">{text}</td>'


def _sign(icon: str) -> str:
    return f'<span class="sign" aria-hidden="true">{icon}&nbsp;</span>'


def _costs(rows: Sequence[Row]) -> str:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.verdict.n:
            groups[row.claim.paper, row.profile].append(row)
    if not groups:
        return "<p>No run has been recorded yet.</p>"
    lines = []
    for (chapter, profile), found in groups.items():
        most = max(found, key=lambda row: row.verdict.n)
        cells = [
            chapter_title(chapter),
            profile,
            str(most.verdict.n),
            _time(most),
            _memory(most),
            _device(most),
        ]
        lines.append(
            "<tr>"
            + "".join(f"<td>{html.escape(cell or '–')}</td>" for cell in cells)
            + "</tr>"
        )
    names = ("chapter", "profile", "seeds", "a seed", "memory", "on")
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<div class="claims-scroll"><table class="claims-cost"><thead><tr>{heads}'
        "</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        "<p>Wall time (median over seeds) and peak memory of a whole chapter, all its "
        "claims together. The records "
        "are in <code>book/results</code>, a row for each claim and profile in "
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
            f"<li><code>{profile}</code>: {count} claim{'s' * (count > 1)} could be "
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


# --- A chapter's page -----------------------------------------------------------------

_KEY = (
    '<p class="forest-key">In the plots: <span class="key-ours">●</span> our mean '
    "difference over seeds with its 95 % interval, short strokes the single seeds, a "
    "dashed interval one over test items; "
    '<span class="key-paper">◇</span> the paper’s own number, at its own scale; '
    "the tinted side is where the interval must lie for the claim to hold.</p>"
)


def anchor(claim: Claim) -> str:
    """Return the anchor of a claim on its page: "claim-clip-c1"."""
    return "claim-" + claim.id.replace(".", "-").replace("_", "-").lower()


def _section(claim: Claim, rows: Sequence[Row]) -> str:
    lines = [
        f"({anchor(claim)})=",
        f"## {claim.id.partition('.')[2]}: {claim.title}",
        "",
        claim.statement,
        "",
    ]
    lines += [f"**The paper** ({claim.where}): {claim.numbers.rstrip('.')}.", ""]
    plot = forest(claim, rows)
    lines += [plot, ""] if plot else []
    skipped: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        kept_nowhere = row.profile == "quick" and isinstance(
            row.claim.tests["quick"], Test
        )
        if not row.verdict.n and not kept_nowhere:
            skipped[row.verdict.reason].append(row.profile)
    if skipped:
        reasons = "; ".join(
            f"{' and '.join(profiles)} ({html.escape(why)})"
            for why, profiles in skipped.items()
        )
        lines += [f'<p class="not-run-line"><b>– not run:</b> {reasons}</p>', ""]
    lines += [_how(rows), ""]
    return "\n".join(lines)


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
    measured = [row for row in rows if row.verdict.n]
    table = ""
    if measured:
        head = "".join(f'<th scope="col">{row.profile}</th>' for row in measured)
        columns = [_cells(row) for row in measured]
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
    for name, control in test.controls.items():
        text += f" Control {name}: {control.why.rstrip('.')}."
    return html.escape(text)


def _cells(row: Row) -> dict[str, str]:
    verdict, unit = row.verdict, row.claim.unit
    test = row.claim.test(row.profile)
    further = "<br>".join(
        f"{format_estimate(control.value, unit)} <small>{html.escape(name)}</small>"
        for name, control in verdict.controls.items()
    )
    cells = {
        "verdict": f"{badge(verdict)} <small>{html.escape(verdict.reason)}</small>",
        "seeds": str(verdict.n),
        "treatment": (
            f"{format_estimate(verdict.treatment, unit)} "
            f"<small>{html.escape(test.treatment)}</small>"
        ),
        "control": (
            f"{format_estimate(verdict.control, unit)} "
            f"<small>{html.escape(test.control)}</small>"
        ),
        "further controls": further or "–",
        "difference": number_text(verdict.mean, unit, sign=True),
        "95 %, t over seeds": interval_text(verdict.interval, unit),
        "95 %, bootstrap over seeds": interval_text(verdict.resampled, unit),
        "95 %, bootstrap over test items": interval_text(verdict.items, unit),
        "cost of a seed": html.escape(
            ", ".join(filter(None, [_time(row), _memory(row), _device(row)])) or "–"
        ),
    }
    return cells


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
