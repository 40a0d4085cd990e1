"""Numbers in prose that come from the records: written by the machine, checked by a
test, never typed.

In the README, a page of the book or a markdown cell of a notebook a number is between
two comments, which readers do not see::

    reaches <!-- result clip.zero_shot_top1 full -->84.2 %
    (72.1 to 96.3, 3 seeds)<!-- /result --> zero-shot

``python -m minilib scoreboard --write`` fills in what the records say, and a test fails
where the text says something else or the record is missing. The comment holds a name,
the profile, and optionally a style:

=======================  ==============================================================
``clip.zero_shot_top1``  a named result; ``clip.few_shot/probe/0`` goes into a dict or a
                         list
``clip.C1:difference``   of a claim treatment, control, difference, verdict or seeds
``mean``                 style: the mean alone, without its interval
``number``               style: not times 100 (claims know their own unit)
=======================  ==============================================================
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from minilib.claims.judging import estimate
from minilib.claims.records import find
from minilib.claims.reports import (
    Row,
    Sources,
    collect,
    difference_text,
    find_records,
    format_estimate,
    number_text,
    results_folder,
    scoreboard,
)
from minilib.files import write_atomically
from minilib.parameters import PROFILES, repository

_MARK = re.compile(
    r"<!-- result (?P<what>[^<>]*?) -->(?P<text>.*?)<!-- /result -->", re.DOTALL
)
_LOOSE = re.compile(r"<!--\s*/?\s*result\b.*?-->", re.DOTALL)
_BOARD = re.compile(
    r"(<!-- scoreboard:start -->).*?(<!-- scoreboard:end -->)", re.DOTALL
)
_STYLES = ("mean", "number")


def quote(
    name: str,
    profile: str = "full",
    sources: Sources | None = None,
    percent: bool = True,
    mean: bool = False,
) -> str:
    """Return a named result, or a claim's numbers, as prose quotes it: "93.1 %
    (92.6 to 93.5, 3 seeds)".

    Args:
        name: a result, "clip.zero_shot_top1" or "clip.few_shot/probe/0", or a claim's,
            "clip.C1:difference".
        profile: the profile of the records.
        sources: files or folders of records; by default the committed ones.
        percent: show a fraction times 100; a claim knows its own unit.
        mean: without interval and number of seeds.

    Raises:
        ValueError: no record at ``profile`` has a number of that name.
    """
    sources = results_folder() if sources is None else sources
    if ":" in name:
        return _of_claim(name, profile, sources, mean)
    what, *path = name.split("/")
    values = []
    for records in find_records(sources):
        if records.profile == profile and what in records.results:
            values.append(_inside(records.results[what], path, name))
    if not values:
        raise ValueError(
            f"no record of {name!r} at profile {profile!r}: run `python -m minilib "
            "collect` first"
        )
    return _shown(values, "percent" if percent else "number", mean)


def fill(text: str, results_dir: str | os.PathLike[str], name: str = "the text") -> str:
    """Return ``text`` with a fresh scoreboard and fresh numbers between its markers.

    ``<!-- scoreboard:start -->`` and ``<!-- scoreboard:end -->`` enclose the
    scoreboard; for single numbers see this module's docstring.

    Raises:
        ValueError: the text has no markers, an incomplete one, or a number
            without a record.
    """
    if not is_marked(text):
        raise ValueError(
            f"{name} has no markers: put <!-- scoreboard:start --> and "
            "<!-- scoreboard:end -->, or "
            "<!-- result NAME PROFILE --><!-- /result --> into it"
        )
    text = _BOARD.sub(
        lambda marks: f"{marks[1]}\n\n{scoreboard(results_dir)}\n{marks[2]}", text
    )
    loose = _LOOSE.search(_MARK.sub("", text))
    if loose:
        raise ValueError(
            f"{name}: {loose[0]} is incomplete: write "
            "<!-- result NAME PROFILE -->, the number, <!-- /result -->"
        )

    def fresh(mark: re.Match[str]) -> str:
        try:
            return (
                f"<!-- result {mark['what']} -->{_quoted(mark['what'], results_dir)}"
                "<!-- /result -->"
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    return _MARK.sub(fresh, text)


def is_marked(text: str) -> bool:
    """Return whether a text holds a scoreboard or a number that comes
    from the records."""
    return bool(_BOARD.search(text) or _LOOSE.search(text))


def fill_file(
    path: Path, results_dir: str | os.PathLike[str], write: bool = True
) -> bool:
    """Refresh what a page, or a notebook's markdown cells, quote from the records;
    return whether it was stale.

    Raises:
        ValueError: see :func:`fill`.
    """
    if path.suffix == ".ipynb":
        import nbformat  # imported here: it is slow to import and rarely needed

        notebook, stale = nbformat.read(path, as_version=4), False
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown" and is_marked(cell.source):
                fresh = fill(cell.source, results_dir, f"{path.name}, cell {number}")
                stale, cell.source = stale or fresh != cell.source, fresh
        if stale and write:
            write_atomically(path, nbformat.writes(notebook) + "\n")
        return stale
    text = path.read_text(encoding="utf-8")
    fresh = fill(text, results_dir, path.name)
    if fresh != text and write:
        write_atomically(path, fresh)
    return fresh != text


def marked_files() -> list[Path]:
    """Return the repository's pages and notebooks that quote the records.

    Raises:
        FileNotFoundError: there is no repository here (an installed wheel).
    """
    root = repository()
    if root is None:
        raise FileNotFoundError(
            "the pages are in the repository, not in the installed package"
        )
    pages = [
        root / "README.md",
        *sorted((root / "book").glob("*.md")),
        *sorted((root / "notebooks").glob("*.ipynb")),
    ]
    return [page for page in pages if is_marked(page.read_text(encoding="utf-8"))]


def _quoted(what: str, sources: Sources) -> str:
    name, *rest = what.split()
    styles = set(rest[1:])
    if not rest or rest[0] not in PROFILES or not styles <= set(_STYLES):
        raise ValueError(
            f"<!-- result {what} -->: expected a name, a profile "
            f"({', '.join(PROFILES)}) and perhaps a style "
            f"({', '.join(_STYLES)})"
        )
    return quote(
        name, rest[0], sources, percent="number" not in styles, mean="mean" in styles
    )


def _of_claim(name: str, profile: str, sources: Sources, mean: bool) -> str:
    claim_id, _, side = name.partition(":")
    claim = find(claim_id)
    (row,) = (
        row
        for row in collect(sources, [profile], [claim.paper])
        if row.claim.id == claim_id
    )
    verdict = row.verdict
    if not verdict.n:
        raise ValueError(
            f"no record of {claim_id} at profile {profile!r}: run `python -m minilib "
            "collect` first"
        )
    if side == "verdict":
        return verdict.text
    if side == "seeds":
        return str(verdict.n)
    if side == "difference":
        return (
            number_text(verdict.mean, claim.unit, sign=True)
            if mean
            else difference_text(row)
        )
    if side not in ("treatment", "control"):
        raise ValueError(
            f"{name!r}: expected treatment, control, difference, verdict or seeds "
            "after the colon"
        )
    return _estimate_text(row, side, mean)


def _estimate_text(row: Row, side: str, mean: bool) -> str:
    value = getattr(row.verdict, side)
    return (
        _shown([value.mean], row.claim.unit, mean)
        if mean
        else format_estimate(value, row.claim.unit, seeds=True)
    )


def _shown(values: list[float], unit: str, mean: bool) -> str:
    if mean:
        return number_text(sum(values) / len(values), unit) + (
            " %" if unit == "percent" else ""
        )
    return format_estimate(estimate(values), unit, seeds=True)


def _inside(value: Any, path: list[str], name: str) -> float:
    for key in path:
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ValueError(f"{name!r}: the record has nothing at {key!r}") from error
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"{name!r} is not a single number in the record: append /KEY or /INDEX"
        )
    return float(value)
