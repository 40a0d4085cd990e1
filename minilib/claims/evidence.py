"""What a chapter records of its claims: numbers that are already named results.

A claim's treatment, control, further controls and preconditions are paths into the
results of the run, in one table a chapter. So a notebook records nothing else, and a
test can hold every record against the results beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minilib.claims.chapter import Run
from minilib.claims.records import find


@dataclass(frozen=True)
class Evidence:
    """Paths into named results: "table/CounTX/mae" is the entry "mae" of the row
    "CounTX" of the result "table"."""

    treatment: str
    control: str
    controls: Mapping[str, str] = field(default_factory=dict)
    """By their names in the ledger."""
    preconditions: Mapping[str, str] = field(default_factory=dict)
    """Likewise."""


def look_up(results: Mapping[str, Any], path: str) -> float:
    """Return the number of named results at a path of :class:`Evidence`.

    Raises:
        KeyError: nothing is there.
    """
    value: Any = results
    for key in path.split("/"):
        value = value[key]
    return float(value)


def record(
    run: Run[Any, Any],
    claim: str,
    evidence: Evidence,
    results: Mapping[str, Any],
    *,
    n: int,
    interval: tuple[float, float] | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Record a claim, with the controls and preconditions that the ledger asks for at
    the run's profile; where it does not test the claim, print why.

    Args:
        run: the notebook's.
        claim: the id without the chapter.
        evidence: where its numbers are.
        results: by name, as given to ``run.result``.
        n: number of test items.
        interval: of the difference over test items.
        details: anything else worth keeping.

    Raises:
        KeyError: the ledger asks for what ``evidence`` does not name, or a path leads
            nowhere.
    """
    if not run.tests(claim):
        return
    test = find(f"{run.chapter.paper}.{claim}").test(run.profile)
    run.record(
        claim,
        treatment=look_up(results, evidence.treatment),
        control=look_up(results, evidence.control),
        controls={
            name: look_up(results, evidence.controls[name]) for name in test.controls
        },
        preconditions={
            name: look_up(results, evidence.preconditions[name])
            for name in test.preconditions
        },
        n=n,
        interval=interval,
        details=details,
    )
