"""Numbers in prose that come from the records: written by the machine, checked by a
test, never typed.

In the README, a page of the book or a markdown cell of a notebook a number is between
two comments, which readers do not see::

    reaches <!-- result clip.zero_shot_top1 full -->84.2 %
    (72.1 to 96.3, 3 seeds)<!-- /result --> zero-shot

``python -m minilib scoreboard --write`` fills in what the records say: "not yet
measured" as long as a chapter has none at that profile. A test fails where the text
says something else, or where there are records and none has the number. The comment
holds a name, the profile, and optionally a style:

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilib.claims.attempts import find_attempts
from minilib.claims.gathering import Sources, find_records
from minilib.claims.judging import estimate
from minilib.claims.records import Claim, find, papers, seeds_of
from minilib.claims.reports import (
    Row,
    collect,
    difference_text,
    estimate_text,
    format_estimate,
    measured,
    number_text,
    results_folder,
    scoreboard,
)
from minilib.files import write_atomically
from minilib.parameters import PROFILES, repository

# A comment that begins like a marker; one that never ends reaches to the text's end.
_MARKER = re.compile(r"<!--\s*/?\s*(?:result|scoreboard)\b.*?(?:-->|\Z)", re.DOTALL)
_RESULT = re.compile(r"<!-- result (?P<what>[^<>]*?) -->")
_START, _END, _RESULT_END = (
    "<!-- scoreboard:start -->",
    "<!-- scoreboard:end -->",
    "<!-- /result -->",
)
_STYLES = ("mean", "number")
_SIDES = ("treatment", "control", "difference", "verdict", "seeds")
_SIDES_TEXT = "treatment, control, difference, verdict or seeds"
NOT_YET = "not yet measured"


class NotMeasured(ValueError):
    """A chapter has no record of a seed that counts at the profile that is quoted."""


def quote(
    name: str,
    profile: str = "full",
    sources: Sources | None = None,
    percent: bool = True,
    mean: bool = False,
) -> str:
    """Return a named result, or a claim's numbers, as prose quotes it: "93.1 %
    (92.6 to 93.5, 5 seeds)". Pilot seeds do not count.

    Args:
        name: a result, "clip.zero_shot_top1" or "clip.few_shot/probe/0", or a claim's,
            "clip.C1:difference".
        profile: the profile of the records.
        sources: files or folders of records; by default the committed ones.
        percent: show a fraction times 100; a claim knows its own unit.
        mean: without interval and number of seeds.

    Raises:
        NotMeasured: the chapter has no record at ``profile``.
        ValueError: it has some, and none has a number of that name.
    """
    sources = results_folder() if sources is None else sources
    chapter = name.partition(".")[0]
    claim = _claim_of(name)
    if chapter not in papers():
        raise ValueError(f"{name!r}: there is no chapter {chapter!r}")
    fresh = seeds_of(chapter, profile).fresh
    found = [
        records
        for records in find_records(sources, [chapter])
        if records.profile == profile and (not fresh or records.seed in fresh)
    ]
    if not found:
        raise NotMeasured(
            f"no record of {name!r} at profile {profile!r}: run `python -m minilib "
            "collect` first"
        )
    if claim is not None:
        return _of_claim(claim, name, profile, sources, mean)
    what, *path = name.split("/")
    values = [
        _inside(records.results[what], path, name)
        for records in found
        if what in records.results
    ]
    if not values:
        raise ValueError(
            f"the records of {chapter} at profile {profile!r} hold no {what!r}"
        )
    return _shown(values, "percent" if percent else "number", mean)


def _claim_of(name: str) -> Claim | None:
    """Return the claim that a name is of; None where it is a result's."""
    id_, colon, side = name.partition(":")
    if not colon:
        return None
    claim = find(id_)
    if side not in _SIDES:
        raise ValueError(f"{name!r}: expected {_SIDES_TEXT} after the colon")
    return claim


def fill(text: str, results_dir: str | os.PathLike[str], name: str = "the text") -> str:
    """Return ``text`` with fresh scoreboards and fresh numbers between its markers.

    ``<!-- scoreboard:start -->`` and ``<!-- scoreboard:end -->`` enclose the
    scoreboards; for single numbers see this module's docstring.

    Raises:
        ValueError: the text has no markers, one that is damaged or without its partner
            (the message has its line), a number that the records do not hold, or the
            folder is none of records.
    """
    passages = _passages(text, name)  # all of them before anything is replaced
    if not passages:
        raise ValueError(
            f"{name} has no markers: put {_START} and {_END}, or "
            f"<!-- result NAME PROFILE -->{_RESULT_END} into it"
        )
    parts, done = [], 0
    for passage in passages:
        try:
            _check_folder(results_dir)
            fresh = (
                f"\n\n{scoreboard(results_dir)}\n"
                if passage.what is None
                else _quoted(passage.what, results_dir)
            )
        except ValueError as error:
            raise ValueError(f"{passage.place}: {error}") from error
        parts += [text[done : passage.begin], fresh]
        done = passage.end
    return "".join([*parts, text[done:]])


@dataclass(frozen=True)
class _Passage:
    """What stands between two markers: ``text[begin:end]``."""

    begin: int
    end: int
    what: str | None
    """The result that it quotes; None for the scoreboard."""
    place: str
    """File and line, for messages."""


def _passages(text: str, name: str) -> list[_Passage]:
    """Return what is between the markers of a text; ValueError if one is damaged or
    stands alone."""
    found: list[_Passage] = []
    begun: re.Match[str] | None = None
    for mark in [*_MARKER.finditer(text), None]:
        if begun is None:
            if mark is None:
                break
            if mark[0] != _START and not _RESULT.fullmatch(mark[0]):
                raise ValueError(
                    f"{_place(text, mark, name)}: {_short(mark)} is incomplete: write "
                    f"<!-- result NAME PROFILE -->, the number, {_RESULT_END}, or "
                    f"{_START}, the table, {_END}"
                )
            begun = mark
            continue
        result = _RESULT.fullmatch(begun[0])
        end, place = _RESULT_END if result else _END, _place(text, begun, name)
        if mark is None or mark[0] != end:
            before = f", before {_short(mark)}" if mark else ""
            raise ValueError(
                f"{place}: {_short(begun)} is incomplete: {end} must follow it{before}"
            )
        what = result["what"] if result else None
        found.append(_Passage(begun.end(), mark.start(), what, place))
        begun = None
    return found


def _place(text: str, mark: re.Match[str], name: str) -> str:
    line = text.count("\n", 0, mark.start()) + 1
    return f"{name}, line {line}"


def _short(mark: re.Match[str]) -> str:
    line = mark[0].splitlines()[0]
    return line if len(line) <= 60 else f"{line[:60]} ..."


def _check_folder(results_dir: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds neither records nor earlier attempts: what pages say
    must not be emptied by a slip of the pen."""
    if not find_attempts(results_dir) and not find_records(results_dir):
        raise ValueError(
            f"{results_dir} holds no records, so that nothing could be quoted: name "
            "another folder with --results"
        )


def is_marked(text: str) -> bool:
    """Return whether a text holds a scoreboard or a number that comes
    from the records."""
    return bool(_MARKER.search(text))


def fill_file(
    path: Path, results_dir: str | os.PathLike[str], write: bool = True
) -> bool:
    """Refresh what a page, or a notebook's markdown cells, quote from the records;
    return whether it was stale.

    Raises:
        ValueError: see :func:`fill`.
    """
    fresh = filled(path, results_dir)
    if fresh is not None and write:
        write_atomically(path, fresh)
    return fresh is not None


def filled(path: Path, results_dir: str | os.PathLike[str]) -> str | None:
    """Return the fresh text of a page or notebook, None where it is up to date.

    Raises:
        ValueError: see :func:`fill`; or the file is not text, or not a notebook.
    """
    if path.suffix == ".ipynb":
        import nbformat  # imported here: it is slow to import and rarely needed

        from minilib import notebooks

        notebook, stale = notebooks.read(path), False
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown" and is_marked(cell.source):
                fresh = fill(cell.source, results_dir, f"{path.name}, cell {number}")
                stale, cell.source = stale or fresh != cell.source, fresh
        return nbformat.writes(notebook) + "\n" if stale else None
    text = _text(path)
    fresh = fill(text, results_dir, path.name)
    return fresh if fresh != text else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error})") from error


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
    return [page for page in pages if is_marked(_text(page))]


def _quoted(what: str, sources: Sources) -> str:
    name, *rest = what.split()
    styles = set(rest[1:])
    if not rest or rest[0] not in PROFILES or not styles <= set(_STYLES):
        raise ValueError(
            f"<!-- result {what} -->: expected a name, a profile "
            f"({', '.join(PROFILES)}) and perhaps a style "
            f"({', '.join(_STYLES)})"
        )
    try:
        return quote(
            name,
            rest[0],
            sources,
            percent="number" not in styles,
            mean="mean" in styles,
        )
    except NotMeasured:
        return NOT_YET


def _of_claim(
    claim: Claim, name: str, profile: str, sources: Sources, mean: bool
) -> str:
    side = name.partition(":")[2]
    (row,) = (
        row
        for row in collect(sources, [profile], [claim.paper])
        if row.claim.id == claim.id
    )
    verdict = row.verdict
    if not measured(row):
        raise ValueError(
            f"the records of {claim.paper} at profile {profile!r} do not measure "
            f"{claim.id}"
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
    return _estimate_text(row, side, mean)


def _estimate_text(row: Row, side: str, mean: bool) -> str:
    value = getattr(row.verdict, side)
    return (
        _shown([value.mean], row.claim.unit, mean)
        if mean
        else estimate_text(row, value, seeds=True)
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
