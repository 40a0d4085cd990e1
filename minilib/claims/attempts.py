"""Earlier attempts at the same claims: what their verdicts were, read from the folders
in which they are kept (``book/results/attempts/<number>``)."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from minilib.claims.records import load, papers


@dataclass(frozen=True)
class Attempt:
    """The verdict on one claim at one profile, by the rules of an earlier time."""

    number: int
    """Which attempt, from 1."""
    claim: str
    title: str
    """The claim's title at that time."""
    profile: str
    verdict: str
    seeds: int
    unit: str
    difference: float
    """Treatment - control, mean over seeds."""
    interval: tuple[float, float] | None
    """Its 95 % interval over seeds; None for one seed."""
    reason: str


def find_attempts(results_dir: str | os.PathLike[str]) -> list[Attempt]:
    """Return the verdicts of all earlier attempts that a folder of records keeps, the
    first attempt first; empty where there were none.

    Raises:
        ValueError: a table of verdicts or a ledger of an attempt is missing or damaged.
    """
    folders = [
        path
        for path in (Path(results_dir) / "attempts").glob("*")
        if path.name.isdecimal()
    ]
    return [
        attempt
        for folder in sorted(folders, key=lambda path: int(path.name))
        for attempt in _read(folder)
    ]


def retired(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return those whose claim is in no ledger any more."""
    known = {id_ for paper in papers() for id_ in load(paper)}
    return [attempt for attempt in attempts if attempt.claim not in known]


def _read(folder: Path) -> list[Attempt]:
    path = folder / "claims.csv"
    try:
        titles = _titles(folder / "ledger")
        with path.open(encoding="utf-8", newline="") as file:
            return [
                _attempt(int(folder.name), row, titles) for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} is not a table of an earlier attempt's verdicts "
            f"({type(error).__name__}: {error})"
        ) from error


def _titles(ledger: Path) -> dict[str, str]:
    """Return the claims' titles by id; the tests were written in another form, so
    nothing else is read."""
    found = {}
    for path in sorted(ledger.glob("*.yaml")):
        for claim in yaml.safe_load(path.read_text(encoding="utf-8"))["claims"]:
            found[claim["id"]] = claim["title"]
    return found


def _attempt(number: int, row: dict[str, str], titles: dict[str, str]) -> Attempt:
    ends = (row["low"], row["high"])
    return Attempt(
        number=number,
        claim=row["claim"],
        title=titles[row["claim"]],
        profile=row["profile"],
        verdict=row["verdict"],
        seeds=int(row["seeds"]),
        unit=row["unit"],
        difference=float(row["difference"]),
        interval=(float(ends[0]), float(ends[1])) if all(ends) else None,
        reason=row["reason"],
    )
