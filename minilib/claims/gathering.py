"""Which records count: those of finished runs whose files agree, and their merge into
the committed ones."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minilib.claims.records import (
    Records,
    load,
    read_json,
    read_records,
    seeds_of,
)
from minilib.files import to_json, write_atomically
from minilib.parameters import PROFILES

# What a committed record keeps of run.json: nothing that names the machine's folders.
_ENVIRONMENT = (
    "started",
    "wall_seconds",
    "peak_memory_bytes",
    "disk_bytes",
    "downloaded_bytes",
    "commit",
    "uncommitted",
    "changed_meanwhile",
    "versions",
    "device",
    "platform",
    "cores",
    "threads",
    "key",
)
# They tell runs of one claim apart, or have no bearing on what is measured.
_OF_ONE_RUN = ("profile", "seed", "device", "out")

Sources = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Say = Callable[[str], None]


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def find_records(
    sources: Sources, chapters: Sequence[str] | None = None, say: Say = _warn
) -> list[Records]:
    """Return the records under folders or in files.

    A folder may be ``book/results`` (merged files), one run's folder, or a folder of
    runs, of which only the finished ones (those with a ``run.json``) count. A missing
    folder holds no records.

    Args:
        sources: files or folders.
        chapters: leave out other chapters' records; default: take all.
        say: is told which runs in a folder of runs are left out, and why; default: a
            warning each.

    Raises:
        ValueError: a file is not a record, or a merged file's name is not that of the
            chapter and profile in it.
    """
    found: list[Records] = []
    for source in [sources] if isinstance(sources, (str, os.PathLike)) else sources:
        path = Path(source)
        if path.is_file():
            found += read_records(path)
        elif (path / "run.json").is_file():
            found.append(read_run(path))
        elif (path / "result.json").is_file():  # a run that goes on
            found += read_records(path / "result.json")
        else:
            for file in sorted(path.glob("*.*.json")):
                if chapters is None or file.name.partition(".")[0] in chapters:
                    found += _merged_file(file)
            found += [records for _, records in _finished(path, chapters, say)]
    return [
        records for records in found if chapters is None or records.chapter in chapters
    ]


def read_run(folder: Path) -> Records:
    """Return the record of a finished run, with what ``run.json`` says of how it was
    made as its environment.

    Raises:
        ValueError: ``run.json`` or ``result.json`` is damaged, or the two and the
            folder's name are not of one chapter, profile and seed.
    """
    about = read_json(folder / "run.json")
    try:
        made = (about["chapter"], about["profile"], about["seed"])
        environment = {key: about[key] for key in _ENVIRONMENT if key in about}
        environment |= _identity(about["inputs"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'run.json'} is damaged ({type(error).__name__}: {error}): "
            "reproduce this run again"
        ) from error
    found = read_records(folder / "result.json")
    measured = [(run.chapter, run.profile, run.seed) for run in found]
    if measured != [made]:
        text = "; ".join(_head_text(*head) for head in measured)
        raise ValueError(
            f"{folder}: result.json is of {text}, run.json of {_head_text(*made)}: "
            "another run wrote here; reproduce this one again"
        )
    place = folder.absolute().parts[-3:]
    if place != (made[0], made[1], f"seed{made[2]}"):
        raise ValueError(
            f"{folder} holds {_head_text(*made)}, which belongs into a folder "
            f"{made[0]}/{made[1]}/seed{made[2]}"
        )
    return replace(found[0], environment=environment)


def check_against_ledger(records: Records) -> None:
    """Raise ValueError if a record measures what the ledger does not know, or does not
    test at that profile."""
    for claim_id in records.measurements:
        known = load(records.chapter)
        if claim_id not in known:
            raise ValueError(
                f"the record of {_head(records)} holds an unknown claim {claim_id!r}: "
                f"the ledger has {', '.join(known)}"
            )
        known[claim_id].test(records.profile)


def unfit(records: Records) -> str:
    """Return in words why a finished run may not be committed as a record; empty if it
    may.

    It must have run from a clean checkout that stayed as it was, hold the digest of
    each test that it measured, and be of a seed that the ledger names.
    """
    made = records.environment
    if "changed_meanwhile" not in made:
        return (
            "run.json is of an older form, which does not say at what commit the run "
            "began; reproduce it again"
        )
    if made["commit"] is None:
        return (
            "it did not run from a checkout of the repository, so that nothing says "
            "what its code was"
        )
    if made["uncommitted"]:
        return (
            f"it ran from a tree with uncommitted changes ({_few(made['uncommitted'])})"
            "; commit them and reproduce it again"
        )
    if made["changed_meanwhile"]:
        return f"{made['changed_meanwhile']} while it ran; reproduce it again"
    undated = [id_ for id_, m in records.measurements.items() if m.test is None]
    if undated:
        return f"it does not hold the test that it made ({_few(undated)})"
    named = seeds_of(records.chapter, records.profile).named
    if named and records.seed not in named:
        return (
            f"the ledger names the seeds {', '.join(map(str, named))} for profile "
            f"{records.profile}"
        )
    return ""


def together(runs: Sequence[Records]) -> tuple[list[Records], str]:
    """Return the runs of one chapter and profile that are judged together, and in words
    why not all of them are.

    Fresh seeds must have been made alike, else none counts. What helped to choose the
    test may have been made otherwise: pilots unlike the fresh seeds are left out, as
    are seeds that the ledger does not name.
    """
    if not runs:
        return [], ""
    seeds = seeds_of(runs[0].chapter, runs[0].profile)
    fresh = [run for run in runs if run.seed in seeds.fresh]
    if not fresh:
        reason = differing(runs)
        return ([] if reason else list(runs)), reason
    if reason := differing(fresh):
        return [], reason
    alike, other = list(fresh), []
    for run in runs:
        if run.seed in seeds.fresh:
            continue
        if run.seed in seeds.pilot and not differing([fresh[0], run]):
            alike.append(run)
        else:
            other.append(str(run.seed))
    reason = f"seed {', '.join(other)} is not of the fresh seeds' kind" if other else ""
    return sorted(alike, key=lambda run: run.seed), reason


def differing(runs: Sequence[Records]) -> str:
    """Return in words what runs of one chapter and profile were made with that is not
    the same for all; empty if they belong together.

    Compared are what the results depend on: the notebook's code, the library's files
    that both opened, parameters (apart from seed and device) and data. Records from
    before this was kept say nothing, and agree with one another only.
    """
    first = runs[0]
    for other in runs[1:]:
        if found := _differences(first.environment, other.environment):
            return (
                f"seed {first.seed} and seed {other.seed} were not made alike "
                f"({', '.join(found)})"
            )
    return ""


def merge(
    runs: Sources,
    results: str | os.PathLike[str],
    profiles: Sequence[str],
    stale: Callable[[Path], Sequence[str]] | None = None,
    say: Say = _warn,
) -> list[Path]:
    """Merge per-seed records under ``runs`` into ``results/<chapter>.<profile>.json``;
    return the files written.

    A seed that is already there is replaced, other seeds stay. Everything is read and
    judged before the first file is written. A run that is damaged, stale, not fit to
    be committed (:func:`unfit`) or holds what the ledger does not know is left out; so
    is a chapter's profile whose fresh seeds, those that stay included, were not made
    alike at one commit, and a pilot that is unlike the fresh seeds.

    Args:
        runs: folders of runs, see :func:`find_records`.
        results: the folder of committed records; made if it is missing.
        profiles: the profiles to merge.
        stale: returns what has changed since the finished run in a folder; may raise
            ValueError, which says why the run is damaged.
        say: is told what is left out, and why; default: a warning each.

    Raises:
        ValueError: ``results`` holds a file that is not a record, or does not agree
            with the ledger; nothing is written then.
    """
    folder = Path(results)
    kept: dict[str, list[Records]] = defaultdict(list)
    for records in find_records(folder):
        check_against_ledger(records)
        kept[_name(records)].append(records)
    groups: dict[str, list[Records]] = defaultdict(list)
    for source in [runs] if isinstance(runs, (str, os.PathLike)) else runs:
        for place, records in _finished(Path(source), None, say, profiles):
            try:
                check_against_ledger(records)
                reasons = stale(place) if stale is not None else []
            except ValueError as error:
                say(f"{place}: left out: {error}")
                continue
            if reasons:
                say(
                    f"{place}: left out: stale ({_few(reasons)}); reproduce it again, "
                    "or collect at the commit where it was made"
                )
                continue
            if reason := unfit(records):
                say(f"{place}: left out: {_head(records)}: {reason}")
                continue
            groups[_name(records)].append(records)
    wanted = {}
    for name, fresh in groups.items():
        seeds = {records.seed: records for records in [*kept[name], *fresh]}
        joined, reason = together([seeds[seed] for seed in sorted(seeds)])
        if fault := _commits(joined) if joined else reason:
            say(
                f"{name}: not merged: {fault}; make them alike, or move those that "
                "do not belong there away"
            )
            continue
        if reason:
            say(f"{name}: left out: {reason}")
        wanted[folder / name] = {
            "chapter": fresh[0].chapter,
            "profile": fresh[0].profile,
            "runs": [records.to_data() for records in joined],
        }
    texts = {path: to_json(data) for path, data in sorted(wanted.items())}
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_atomically(path, text)
    return list(texts)


def _commits(runs: Sequence[Records]) -> str:
    """Return in words that fresh seeds are of several commits; empty if of one."""
    fresh = seeds_of(runs[0].chapter, runs[0].profile).fresh
    found: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if run.seed in fresh:
            commit = run.environment.get("commit")
            found[commit[:8] if commit else "none"].append(str(run.seed))
    if len(found) < 2:
        return ""
    said = [f"{commit} (seed {', '.join(seeds)})" for commit, seeds in found.items()]
    return f"the fresh seeds are of several commits: {'; '.join(said)}"


def _finished(
    folder: Path,
    chapters: Sequence[str] | None,
    say: Say,
    profiles: Sequence[str] = PROFILES,
) -> Iterator[tuple[Path, Records]]:
    """Yield the finished runs in a folder that are whole, with their places; say why
    the others are left out."""
    places = [path.parent for path in folder.rglob("run.json")]
    seen: dict[tuple[str, int], Path] = {}
    # A copy of a run lies deeper than the run itself.
    for place in sorted(places, key=lambda place: (len(place.parts), place)):
        chapter, profile = place.absolute().parts[-3:-1]
        if chapters is not None and chapter not in chapters:
            continue
        if profile in PROFILES and profile not in profiles:
            continue
        try:
            records = read_run(place)
        except ValueError as error:
            say(f"left out: {error}")
            continue
        key = (_name(records), records.seed)
        if key in seen:
            say(f"{place}: left out: {seen[key]} holds {_head(records)}, too")
            continue
        seen[key] = place
        yield place, records


def _merged_file(path: Path) -> list[Records]:
    found = read_records(path)
    for records in found:
        if path.name != _name(records):
            raise ValueError(
                f"{path} holds {_head(records)}, which belongs into a file "
                f"{_name(records)}"
            )
    return found


def _identity(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's results depended on, without the machine's folders: of a
    parameter that names files only their digest."""
    data = dict(inputs["data"])
    code = json.dumps(inputs["notebook"])
    parameters = {
        name: Path(value).name
        if isinstance(value, str) and Path(value).is_absolute()
        else value
        for name, value in inputs["parameters"].items()
        if name not in (*_OF_ONE_RUN, *data)
    }
    return {
        "parameters": parameters,
        "data": data,
        "notebook": hashlib.sha256(code.encode()).hexdigest()[:16],
        "library": dict(inputs["library"]),
    }


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return by name what two runs' results depended on differently."""
    if ("parameters" in one) != ("parameters" in other):
        return ["one of them does not say with which parameters it was made"]
    if "parameters" not in one:
        return []
    found = [
        f"parameter {name}: {_given(one, name)} and {_given(other, name)}"
        for name in _unequal(one["parameters"], other["parameters"])
    ]
    found += [f"data in {name}" for name in _unequal(one["data"], other["data"])]
    if one["notebook"] != other["notebook"]:
        found.append("the notebook's code")
    both = set(one["library"]) & set(other["library"])
    changed = sorted(
        name for name in both if one["library"][name] != other["library"][name]
    )
    return found + ([_few(changed)] if changed else [])


def _given(environment: Mapping[str, Any], name: str) -> str:
    given = environment["parameters"]
    return repr(given[name]) if name in given else "not given"


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    missing = object()
    return [
        name
        for name in sorted(set(one) | set(other))
        if one.get(name, missing) != other.get(name, missing)
    ]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _name(records: Records) -> str:
    return f"{records.chapter}.{records.profile}.json"


def _head(records: Records) -> str:
    return _head_text(records.chapter, records.profile, records.seed)


def _head_text(chapter: Any, profile: Any, seed: Any) -> str:
    return f"{chapter} {profile} seed {seed}"
