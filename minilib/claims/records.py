"""Claims as data, and the measurements that notebooks write about them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from minilib.files import to_json, write_atomically
from minilib.parameters import check_profile

_LEDGER = resources.files("minilib") / "ledger"
# The book's order; any other paper comes last.
_ORDER = (
    "clip lseg groupvit vild glip denseclip clims detclipv3 countx vlcounter".split()
)


@dataclass(frozen=True)
class Comparison:
    """How the treatment should compare with a control: greater, smaller or equal,
    by which margin."""

    direction: str
    margin: float
    why: str = ""


@dataclass(frozen=True)
class Test:
    """How one profile tests a claim. The rule (direction, margin, seeds) is fixed
    before anything is run."""

    __test__ = False  # not for pytest to collect

    how: str
    treatment: str
    control: str
    metric: str
    direction: str
    margin: float
    min_seeds: int
    budget: str
    controls: Mapping[str, Comparison] = field(default_factory=dict)
    """Further controls by name."""

    @property
    def rule(self) -> dict[str, Any]:
        """All that decides a verdict, as data: measurements keep it, so that later
        changes are noticed."""
        sides = {
            name: [control.direction, control.margin]
            for name, control in self.controls.items()
        }
        return {
            "direction": self.direction,
            "margin": self.margin,
            "min_seeds": self.min_seeds,
            "controls": sides,
        }


@dataclass(frozen=True)
class Claim:
    """One claim of a paper."""

    id: str
    method: str
    """The method's name as people write it."""
    title: str
    statement: str
    where: str
    """Section, figure or table of the paper."""
    numbers: str
    """What the paper measured, in words."""
    differences: Mapping[str, float]
    """The paper's own differences treatment - control in the claim's unit, by what is
    compared; may be empty."""
    unit: str
    """ "percent" (measured as a fraction, shown times 100) or "number"."""
    tests: Mapping[str, Test | str]
    """Per profile a test, or the reason why there is none."""

    @property
    def paper(self) -> str:
        """The chapter's name, for example "clip"."""
        return self.id.partition(".")[0]

    def test(self, profile: str) -> Test:
        """Return the test of ``profile``; ValueError if the ledger has none there."""
        test = self.tests[check_profile(profile)]
        if isinstance(test, str):
            raise ValueError(f"{self.id} is not tested at profile {profile!r}: {test}")
        return test


@dataclass(frozen=True)
class Measurement:
    """One claim, measured once: one seed of one profile."""

    claim: str
    profile: str
    seed: int
    treatment: float
    control: float
    n: int
    """Number of test items behind the two numbers."""
    controls: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval of treatment - control over the test items of
    this one checkpoint."""
    details: Mapping[str, Any] = field(default_factory=dict)
    rule: Mapping[str, Any] | None = None
    """The rule as it was when this was measured; None in old records
    that do not hold it."""


@dataclass(frozen=True)
class Records:
    """All that one run wrote: its measurements, its named results and
    how it was made."""

    chapter: str
    profile: str
    seed: int
    measurements: Mapping[str, Measurement]
    results: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """Return this run as JSON data: one entry of a merged file."""
        return {
            "seed": self.seed,
            "claims": {
                id_: _entry(measurement)
                for id_, measurement in self.measurements.items()
            },
            "results": dict(self.results),
            "environment": dict(self.environment),
        }


def papers() -> list[str]:
    """Return the names of the papers that have a ledger, in the book's order."""
    found = sorted(
        Path(entry.name).stem
        for entry in _LEDGER.iterdir()
        if entry.name.endswith(".yaml")
    )
    return sorted(found, key=chapter_number)


def chapter_number(paper: str) -> int:
    """Return a paper's number in the book, from 1."""
    return (_ORDER.index(paper) if paper in _ORDER else len(_ORDER)) + 1


def load(paper: str) -> dict[str, Claim]:
    """Return the claims of ``paper`` by id, in the ledger's order; ValueError if there
    is no such ledger."""
    if paper not in papers():
        raise ValueError(
            f"no ledger for paper {paper!r}: expected one of {', '.join(papers())}"
        )
    return dict(_load(paper))


@cache
def _load(paper: str) -> dict[str, Claim]:
    return parse(
        (_LEDGER / f"{paper}.yaml").read_text(encoding="utf-8"),
        source=f"ledger/{paper}.yaml",
    )


def parse(text: str, source: str = "ledger") -> dict[str, Claim]:
    """Return the claims in a ledger's YAML text.

    Raises:
        ValueError: the text does not match ``ledger/schema.json``, repeats an id, or
            has another paper's id.
    """
    import jsonschema  # here: it takes half as long to import as torch

    data = yaml.safe_load(text)
    schema = json.loads((_LEDGER / "schema.json").read_text(encoding="utf-8"))
    error = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema).iter_errors(data)
    )
    if error is not None:
        place = "/".join(str(part) for part in error.absolute_path) or "the top"
        raise ValueError(f"{source}, {place}: {error.message}")
    claims: dict[str, Claim] = {}
    for entry in data["claims"]:
        claim = _claim(entry, method=data["title"])
        if claim.id in claims or claim.paper != data["paper"]:
            raise ValueError(
                f"{source}: id {claim.id!r} is repeated or does not begin with "
                f"{data['paper']!r}"
            )
        claims[claim.id] = claim
    return claims


def _claim(entry: dict[str, Any], method: str) -> Claim:
    tests: dict[str, Test | str] = {}
    for profile, test in entry["tests"].items():
        if "not_run" in test:
            tests[profile] = test["not_run"]
        else:
            controls = {
                name: Comparison(**value)
                for name, value in test.get("controls", {}).items()
            }
            tests[profile] = Test(**{**test, "controls": controls})
    plain = {key: entry[key] for key in ("id", "title", "statement", "unit")}
    return Claim(
        **plain, **{"differences": {}, **entry["paper"]}, method=method, tests=tests
    )


def find(claim_id: str) -> Claim:
    """Return a claim by its id; ValueError naming the nearest ids if there is none."""
    paper = str(claim_id).partition(".")[0]
    known = (
        load(paper)
        if paper in papers()
        else {id_: c for name in papers() for id_, c in load(name).items()}
    )
    if claim_id not in known:
        near = get_close_matches(str(claim_id), known, n=3, cutoff=0.3) or list(known)
        raise ValueError(f"unknown claim {claim_id!r}: did you mean {', '.join(near)}?")
    return known[claim_id]


def record(
    claim_id: str,
    *,
    treatment: float,
    control: float,
    profile: str,
    seed: int,
    out: str | os.PathLike[str],
    n: int,
    controls: Mapping[str, float] | None = None,
    interval: tuple[float, float] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Measurement:
    """Write one measurement of a claim into ``out/result.json`` and return it.

    Recording a claim again replaces it. A file left there by another run
    (chapter, profile or seed) is replaced whole.

    Args:
        claim_id: for example "clip.C1".
        treatment: the treatment's metric, in the ledger's unit (an
            accuracy is a fraction).
        control: the control's metric.
        profile: profile of this run; the ledger must have a test for it.
        seed: seed of this run.
        out: existing folder of this run.
        n: number of test items behind the two numbers.
        controls: the further controls that the ledger names for this
            profile, all of them.
        interval: from :func:`bootstrap_interval` of the per-item differences, if
            the test has items.
        details: anything else worth keeping, as JSON.

    Raises:
        ValueError: unknown id, profile without a test, a control missing or unknown, or
            a number that is not finite.
    """
    test = find(claim_id).test(profile)
    given = dict(controls or {})
    if interval is not None:
        low, high = (_finite(end, f"{claim_id}: interval") for end in interval)
        interval = (low, high)
    if set(given) != set(test.controls):
        expected = ", ".join(map(repr, test.controls)) or "none"
        raise ValueError(
            f"{claim_id} at profile {profile!r}: controls are {expected}, got "
            f"{list(given) or 'none'}"
        )
    if not n > 0:
        raise ValueError(
            f"{claim_id}: n={n!r}, expected the number of test items, at least 1"
        )
    measurement = Measurement(
        claim=claim_id,
        profile=profile,
        seed=int(seed),
        treatment=_finite(treatment, f"{claim_id}: treatment"),
        control=_finite(control, f"{claim_id}: control"),
        n=int(n),
        controls={
            name: _finite(value, f"{claim_id}: control {name!r}")
            for name, value in given.items()
        },
        interval=interval,
        details=_json(dict(details or {}), f"{claim_id}: details"),
        rule=test.rule,
    )
    _update(claim_id, profile, seed, out, "claims", _entry(measurement))
    return measurement


def record_result(
    name: str, value: Any, *, profile: str, seed: int, out: str | os.PathLike[str]
) -> None:
    """Write a named number (or list or table of numbers) that prose quotes into
    ``out/result.json``.

    Args:
        name: "<chapter>.<what>", for example "clip.zero_shot_top1".
        value: a number, or a list or dict of numbers and text; tensors with one element
            count as numbers.
        profile: profile of this run.
        seed: seed of this run.
        out: existing folder of this run.

    Raises:
        ValueError: the name lacks its chapter, or the value holds a number
            that is not finite.
    """
    if not all(str(name).partition(".")):
        raise ValueError(
            f"result name {name!r}: expected '<chapter>."
            "<what>', for example 'clip.zero_shot_top1'"
        )
    _update(name, profile, seed, out, "results", _json(value, name))


def read_records(path: str | os.PathLike[str]) -> list[Records]:
    """Return the records in a ``result.json`` (one run) or in a merged file of
    ``book/results`` (many seeds).

    Raises:
        ValueError: the file is not such a record.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        runs = data["runs"] if "runs" in data else [data]
        return [_records(data["chapter"], data["profile"], run) for run in runs]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a record of results ({type(error).__name__}: {error})"
        ) from error


def _entry(measurement: Measurement) -> dict[str, Any]:
    entry = asdict(measurement)
    for key in (
        "claim",
        "profile",
        "seed",
        *(["rule"] if measurement.rule is None else []),
    ):
        del entry[key]
    return entry


def _records(chapter: str, profile: str, run: dict[str, Any]) -> Records:
    seed = run["seed"]
    measurements = {}
    for claim_id, entry in run["claims"].items():
        interval = tuple(entry["interval"]) if entry.get("interval") else None
        fields = {**entry, "interval": interval}
        measurements[claim_id] = Measurement(
            claim=claim_id, profile=profile, seed=seed, **fields
        )
    return Records(
        chapter, profile, seed, measurements, run["results"], run.get("environment", {})
    )


def _update(
    name: str,
    profile: str,
    seed: int,
    out: str | os.PathLike[str],
    kind: str,
    entry: Any,
) -> None:
    path = Path(out) / "result.json"
    head = {
        "chapter": name.partition(".")[0],
        "profile": check_profile(profile),
        "seed": int(seed),
    }
    data: dict[str, Any] = {**head, "claims": {}, "results": {}}
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if {key: old.get(key) for key in head} == head:
            data = old
    data[kind][name] = entry
    write_atomically(path, to_json(data))


def _finite(value: Any, name: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(
            f"{name} is {number}: expected a finite number; look at the cell that "
            "computed it"
        )
    return number


def _json(value: Any, name: str) -> Any:
    """Return ``value`` as plain JSON data; tensors and arrays become
    numbers or lists."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {
            str(key): _json(item, f"{name}[{key!r}]") for key, item in value.items()
        }
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_json(item, name) for item in value]
    return value if isinstance(value, int) else _finite(value, name)
