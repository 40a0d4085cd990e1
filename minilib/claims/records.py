"""Claims as data, and the measurements that notebooks write about them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
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

_TAG = "tag:yaml.org,2002:"
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?")
_LEDGER = resources.files("minilib") / "ledger"
# The book's order; any other paper comes last.
_ORDER = (
    "clip lseg groupvit vild glip denseclip clims detclipv3 countx vlcounter".split()
)

_SEEDED = ("full", "photos")  # profiles whose verdicts need seeds named beforehand


@dataclass(frozen=True)
class Comparison:
    """How the treatment should compare with a control: greater, smaller or equal, by
    more than ``effect``, the smallest effect of interest (equal: by less)."""

    direction: str
    effect: float
    why: str


@dataclass(frozen=True)
class Precondition:
    """A number that each run records, and the bound that its mean must keep; where it
    does not, the test could not have seen the effect. One bound is None."""

    why: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> float:
        """The bound, whichever it is."""
        bound = self.at_most if self.at_least is None else self.at_least
        assert bound is not None  # the schema asks for one of them
        return bound

    def met(self, value: float) -> bool:
        """Return whether a value keeps the bound, the bound itself included."""
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )


@dataclass(frozen=True)
class Spread:
    """Standard deviation over seeds of the paired main difference, from pilots."""

    sd: float
    source: str


@dataclass(frozen=True)
class Seeds:
    """The seeds of a chapter's profile, fixed before the run."""

    pilot: tuple[int, ...] = ()
    """They helped to choose the test: shown, never counted."""
    fresh: tuple[int, ...] = ()
    """They decide. Without any (quick) every seed is taken, and none decides."""

    @property
    def named(self) -> tuple[int, ...]:
        """All of them, pilots first."""
        return self.pilot + self.fresh


class NotRun(str):
    """The reason why a profile does not test a claim."""

    needs: str | None
    """What it would take, "gpu", where that is the reason."""

    def __new__(cls, reason: str, needs: str | None = None) -> NotRun:
        """Return the reason as text, with what it would take."""
        text = super().__new__(cls, reason)
        text.needs = needs
        return text


@dataclass(frozen=True)
class Test:
    """How one profile tests a claim. All of it is fixed before anything is run."""

    __test__ = False  # not for pytest to collect

    how: str
    treatment: str
    control: str
    metric: str
    direction: str
    effect: float
    """The smallest effect of interest, > 0; for "equal" the bound."""
    why: str
    """Why this effect."""
    budget: str
    controls: Mapping[str, Comparison] = field(default_factory=dict)
    """Further controls by name."""
    preconditions: Mapping[str, Precondition] = field(default_factory=dict)
    spread: Spread | None = None
    over: str = "seeds"
    """What a seed draws: "seeds" (weights, data and test) or, of one fixed checkpoint,
    "test images" alone."""
    exact: bool = False
    """It is a count or an identity: every seed gives the same number."""
    arms: tuple[str, ...] = ()
    """The trained arms that it compares."""
    seeds: Seeds = Seeds()
    digest: str = ""
    """Of the whole entry in the ledger and the seeds: measurements keep it, so that
    later changes are noticed."""

    @property
    def main(self) -> Comparison:
        """How the treatment should compare with the control."""
        return Comparison(self.direction, self.effect, self.why)


@dataclass(frozen=True)
class Claim:
    """One claim of a paper."""

    id: str
    method: str
    """The method's name as people write it."""
    title: str
    statement: str
    origin: str
    """Whose claim it is: "paper", "later work" or "ours"."""
    where: str
    """Section, figure or table of the paper."""
    numbers: str
    """What the paper measured, in words."""
    differences: Mapping[str, float]
    """The paper's own differences treatment - control in the claim's unit, by what is
    compared; may be empty."""
    comparable: bool
    """Whether the paper compares the same two things, so that its differences may be
    drawn on our axis."""
    unit: str
    """ "percent" (measured as a fraction, shown times 100) or "number"."""
    tests: Mapping[str, Test | NotRun]
    """Per profile a test, or the reason why there is none."""

    @property
    def paper(self) -> str:
        """The chapter's name, for example "clip"."""
        return self.id.partition(".")[0]

    def test(self, profile: str) -> Test:
        """Return the test of ``profile``; ValueError if the ledger has none there."""
        test = self.tests[check_profile(profile)]
        if isinstance(test, NotRun):
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
    preconditions: Mapping[str, float] = field(default_factory=dict)
    test: str | None = None
    """Digest of the test as it was when this was measured; None in old records, which
    do not hold it."""


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
        ValueError: the text is not YAML, gives a key twice, holds a number that is not
            a plain finite one, does not match ``ledger/schema.json``, repeats an id,
            has another paper's id, or the seeds do not fit. The message names the
            source and the place in it.
    """
    import jsonschema  # here: it takes half as long to import as torch

    try:
        data = yaml.load(text, Loader=_LedgerLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}, {_yaml_fault(error)}") from error
    schema = json.loads((_LEDGER / "schema.json").read_text(encoding="utf-8"))
    fault = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema).iter_errors(data)
    )
    if fault is not None:
        place = "/".join(str(part) for part in fault.absolute_path) or "the top"
        raise ValueError(f"{source}, {place}: {fault.message}")
    seeds = _seeds(data["seeds"], source)
    claims: dict[str, Claim] = {}
    for entry in data["claims"]:
        claim = _claim(entry, data["title"], seeds, source)
        if claim.id in claims or claim.paper != data["paper"]:
            raise ValueError(
                f"{source}: id {claim.id!r} is repeated or does not begin with "
                f"{data['paper']!r}"
            )
        claims[claim.id] = claim
    return claims


class _LedgerLoader(yaml.SafeLoader):
    """YAML without what a ledger must not hold: a key given twice, a key that is not
    text, numbers such as .nan, .inf, 010 (which means 8) or 1:30 (which means 90)."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # before << merges other mappings in, whose keys may be overridden
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                raise _fault(key, f"the key {key.value!r} is not text: quote it")
            if key.value in seen:
                raise _fault(key, f"{key.value!r} is given twice")
            seen.add(key.value)
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = self.construct_scalar(node)
        if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
            raise _fault(
                node, f"{text} is not a plain finite number: write it like 12 or 0.05"
            )
        return int(text) if text.lstrip("+-").isdecimal() else float(text)


for _kind in ("int", "float"):
    _LedgerLoader.add_constructor(f"{_TAG}{_kind}", _LedgerLoader.construct_number)


def _fault(node: yaml.Node, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)


def _yaml_fault(error: yaml.YAMLError) -> str:
    """Return in one line where and what is wrong in YAML text."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
    return f"line {mark.line + 1}: {problem}" if mark else problem


def _seeds(data: dict[str, Any], source: str) -> dict[str, Seeds]:
    found = {}
    for profile, lists in data.items():
        seeds = Seeds(tuple(lists["pilot"]), tuple(lists["fresh"]))
        if both := set(seeds.pilot) & set(seeds.fresh):
            raise ValueError(
                f"{source}, seeds/{profile}: {sorted(both)} are both pilot and fresh"
            )
        found[profile] = seeds
    return found


def _claim(
    entry: dict[str, Any], method: str, seeds: Mapping[str, Seeds], source: str
) -> Claim:
    tests: dict[str, Test | NotRun] = {}
    for profile, test in entry["tests"].items():
        if "not_run" in test:
            tests[profile] = NotRun(test["not_run"], test.get("needs"))
            continue
        tests[profile] = _test(test, seeds.get(profile, Seeds()))
        if profile in _SEEDED and profile not in seeds and not test.get("exact"):
            raise ValueError(
                f"{source}, seeds: {entry['id']} is tested at profile {profile!r}, for "
                "which no seeds are named"
            )
    plain = {key: entry[key] for key in ("id", "title", "statement", "origin", "unit")}
    paper = {"differences": {}, "comparable": False, **entry["paper"]}
    return Claim(**plain, **paper, method=method, tests=tests)


def _test(entry: dict[str, Any], seeds: Seeds) -> Test:
    made: dict[str, Any] = {
        "controls": {
            name: Comparison(**value)
            for name, value in entry.get("controls", {}).items()
        },
        "preconditions": {
            name: Precondition(**value)
            for name, value in entry.get("preconditions", {}).items()
        },
        "arms": tuple(entry.get("arms", ())),
    }
    if spread := entry.get("spread"):
        made["spread"] = Spread(spread["sd"], spread["from"])
    return Test(**{**entry, **made}, seeds=seeds, digest=digest_of(entry, seeds))


def digest_of(entry: Mapping[str, Any], seeds: Seeds) -> str:
    """Return the digest of a test's whole entry in the ledger, as data, and of its
    seeds: the layout of the file and its comments do not count."""
    data = {"test": entry, "pilot": seeds.pilot, "fresh": seeds.fresh}
    text = json.dumps(data, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seeds_of(paper: str, profile: str) -> Seeds:
    """Return the seeds that a paper's ledger names for a profile; none where any seed
    is taken, or there is no ledger."""
    claims = load(paper).values() if paper in papers() else ()
    tests = (claim.tests[profile] for claim in claims)
    return next((test.seeds for test in tests if isinstance(test, Test)), Seeds())


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
    preconditions: Mapping[str, float] | None = None,
    interval: tuple[float, float] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Measurement:
    """Write one measurement of a claim into ``out/result.json`` and return it.

    Recording a claim again replaces it. A file left there by another run
    (chapter, profile or seed) is replaced whole, unless that run is finished.

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
        preconditions: the numbers that the ledger's preconditions ask for, all of them.
        interval: from :func:`bootstrap_interval` of the per-item differences, if
            the test has items.
        details: anything else worth keeping, as JSON.

    Raises:
        ValueError: unknown id, profile without a test, a control or precondition
            missing or unknown, a number that is not finite, a control that equals the
            treatment to the last bit (unless the test is exact; or, of the main
            control, the interval has a width), or ``out`` holds another finished run.
    """
    test = find(claim_id).test(profile)
    if interval is not None:
        low, high = (_finite(end, f"{claim_id}: interval") for end in interval)
        interval = (low, high)
    place = f"{claim_id} at profile {profile!r}"
    given = _numbers(controls, test.controls, place, "control")
    conditions = _numbers(preconditions, test.preconditions, place, "precondition")
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
        controls=given,
        preconditions=conditions,
        interval=interval,
        details=_json(dict(details or {}), f"{claim_id}: details"),
        test=test.digest,
    )
    if not test.exact:
        _check_ties(measurement)
    _update(claim_id, profile, seed, out, "claims", _entry(measurement))
    return measurement


def _check_ties(measurement: Measurement) -> None:
    """Raise ValueError if a control equals the treatment to the last bit: as a rule
    they are then one thing by mistake.

    An honest tie, of few test items, shows in the main comparison by an interval over
    test items that has a width: the items' answers differ.
    """
    low, high = measurement.interval or (0.0, 0.0)
    controls = {} if low < high else {"the control": measurement.control}
    controls |= {f"control {k!r}": value for k, value in measurement.controls.items()}
    for name, value in controls.items():
        if value == measurement.treatment:
            raise ValueError(
                f"{measurement.claim}: the treatment and {name} are both {value!r}, to "
                "the last bit: are they the same thing? An honest tie of the main "
                "comparison is taken with the interval over test items; only a test "
                "that the ledger calls exact may record others"
            )


def _numbers(
    given: Mapping[str, float] | None, asked: Iterable[str], place: str, kind: str
) -> dict[str, float]:
    """Return named numbers as floats.

    Raises:
        ValueError: a number is not finite, or they are not those that are asked for.
    """
    found, names = dict(given or {}), list(asked)
    if set(found) != set(names):
        expected = ", ".join(map(repr, names)) or "none"
        raise ValueError(
            f"{place}: {kind}s are {expected}, got {list(found) or 'none'}"
        )
    return {
        name: _finite(value, f"{place}: {kind} {name!r}")
        for name, value in found.items()
    }


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
        ValueError: the name lacks its chapter, the value holds a number that is not
            finite, or ``out`` holds another finished run.
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
        ValueError: the file is not such a record: damaged, of another form, with a
            number that is not finite, or with a seed twice. The message names it.
    """
    data = read_json(path)
    try:
        runs = data["runs"] if "runs" in data else [data]
        found = [_records(data["chapter"], data["profile"], run) for run in runs]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = repr(error.args[0]) if isinstance(error, KeyError) else error
        lacks = "it lacks " if isinstance(error, KeyError) else ""
        raise ValueError(
            f"{path} is not a record of results ({lacks}{what})"
        ) from error
    seeds = [run.seed for run in found]
    if not found or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"{path} is not a record of results (expected each seed once, got {seeds})"
        )
    return found


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the JSON data in a file.

    Raises:
        ValueError: the file cannot be read or is not JSON, or an object in it has a key
            twice. The message names the file.
    """
    try:
        return json.loads(
            Path(path).read_text(encoding="utf-8"), object_pairs_hook=_once
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a record of results ({type(error).__name__}: {error})"
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


def _entry(measurement: Measurement) -> dict[str, Any]:
    entry = asdict(measurement)
    for key in ("claim", "profile", "seed"):
        del entry[key]
    for key in ("preconditions", "test"):  # old records hold neither
        if not entry[key]:
            del entry[key]
    return entry


def _records(chapter: Any, profile: Any, run: dict[str, Any]) -> Records:
    seed = run["seed"]
    if not isinstance(chapter, str) or not chapter:
        raise ValueError(f"chapter={chapter!r}: expected a chapter's name")
    check_profile(profile)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r}: expected a whole number, 0 or more")
    measurements = {}
    for claim_id, entry in run["claims"].items():
        measurements[claim_id] = _measurement(claim_id, profile, seed, entry)
    results, environment = run["results"], run.get("environment", {})
    if not isinstance(results, dict) or not isinstance(environment, dict):
        raise TypeError("results and environment must be objects")
    return Records(chapter, profile, seed, measurements, results, environment)


def _measurement(
    claim_id: str, profile: str, seed: int, entry: dict[str, Any]
) -> Measurement:
    numbers = {key: entry[key] for key in ("treatment", "control")}
    for kind in ("control", "precondition"):
        for name, value in entry.get(f"{kind}s", {}).items():
            numbers[f"{kind} {name!r}"] = value
    interval = entry.get("interval")
    if interval is not None:
        low, high = interval
        numbers |= {"lower end": low, "upper end": high}
        interval = (low, high)
    for name, value in numbers.items():
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not plain or not math.isfinite(value):
            raise ValueError(
                f"{claim_id}: {name} is {value!r}, expected a finite number"
            )
    n = entry["n"]
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"{claim_id}: n={n!r}, expected a whole number, 1 or more")
    known = {key: value for key, value in entry.items() if key != "rule"}  # once kept
    return Measurement(
        claim=claim_id,
        profile=profile,
        seed=seed,
        **{**known, "interval": interval},
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
    made = _read_or_nothing(path.with_name("run.json"))
    if any(key in made and made[key] != value for key, value in head.items()):
        raise ValueError(
            f"{path.parent} holds the finished run of {_head(made)}: write what is of "
            f"{_head(head)} into another folder, see the parameter out"
        )
    old = _read_or_nothing(path)
    if {key: old.get(key) for key in head} == head:
        data = old
    data[kind][name] = entry
    write_atomically(path, to_json(data))


def _read_or_nothing(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none, or it is damaged."""
    try:
        data = read_json(path)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _head(data: Mapping[str, Any]) -> str:
    return f"{data.get('chapter')} {data.get('profile')} seed {data.get('seed')}"


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
