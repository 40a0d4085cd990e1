"""Which runs there are to make, and how each one stands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minilib import notebooks
from minilib.parameters import check_profile
from minilib.reproduce.inputs import changes, read_inputs

_COMMON = ("profile", "seed", "device", "out")  # every notebook has these parameters


@dataclass(frozen=True)
class Job:
    """One run: a chapter at a profile with a seed."""

    chapter: str
    profile: str
    seed: int
    notebook: Path
    out: Path
    """The folder of all runs."""
    parameters: Mapping[str, Any] = field(hash=False)
    """All that is passed to the notebook, its ``out`` (this run's folder) included."""

    def __str__(self) -> str:
        return f"{self.chapter} {self.profile} seed {self.seed}"

    @property
    def folder(self) -> Path:
        """This run's own folder."""
        return self.out / self.chapter / self.profile / f"seed{self.seed}"


def plan(
    chapters: Sequence[str],
    profile: str,
    seeds: Sequence[int],
    out: Path,
    device: str = "auto",
    extra: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> list[Job]:
    """Check everything that can be checked without running, and return the jobs in
    order; nothing is written.

    Args:
        chapters: names, or ["all"].
        profile: one of the profiles.
        seeds: seeds to run.
        out: folder of runs.
        device: passed to the notebooks.
        extra: further notebook parameters as text, typed by the
            notebook's own defaults.
        folder: where the notebooks are; by default the repository's.

    Raises:
        ValueError: an unknown chapter, profile or parameter, or nothing to run.
        FileNotFoundError: there are no notebooks here (an installed wheel).
    """
    folder = notebooks.notebooks_folder() if folder is None else folder
    check_profile(profile)
    names = (
        list(notebooks.chapters(folder))
        if list(chapters) == ["all"]
        else list(dict.fromkeys(chapters))
    )
    if not names or not seeds:
        raise ValueError("nothing to run: expected at least one chapter and one seed")
    own = dict(extra or {})
    for key in _COMMON:
        if key in own:
            raise ValueError(
                f"-p {key}=... is not taken: say it with the option "
                f"--{key}{'s' * (key == 'seed')}"
            )
    out = Path(out).expanduser().absolute()
    jobs = []
    for name in names:
        path = notebooks.find_chapter(name, folder)
        notebook = notebooks.read(path)
        try:
            defaults = notebooks.read_parameters(notebook)
            notebooks.check_parameters([*_COMMON, *own], defaults)
            typed = {
                key: _plain(key, notebooks.typed(key, text, defaults[key]))
                for key, text in own.items()
            }
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        for seed in seeds:
            given = {"profile": profile, "seed": seed, "device": device, **typed}
            run = out / name / profile / f"seed{seed}"
            jobs.append(Job(name, profile, seed, path, out, {**given, "out": str(run)}))
    return jobs


def _plain(name: str, value: Any) -> Any:
    """Return the value of a parameter if JSON can keep it.

    Raises:
        ValueError: it cannot: nan, inf, or of a type that only Python has.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}={value!r}: expected finite numbers, text, or lists of them"
        ) from None
    return value


def what_changed(
    job: Job,
    library: Mapping[str, str] | None = None,
    threads: str | None = None,
) -> list[str]:
    """Return what makes the job's stored result stale, by name; an empty list means
    that it still stands.

    Without a finished run the one reason is that: "not run yet", "failed before" or
    "interrupted before"; without a notebook that can be read, that it is damaged or not
    there.

    Args:
        job: the run.
        library: ``inputs.library_digests()``, if known.
        threads: those that a new run would have; None = any will do.
    """
    from minilib.claims.records import (
        read_records,  # here, because the process of a single run need not wait for it
    )

    try:
        notebooks.read(job.notebook)
    except FileNotFoundError:
        return [f"there is no notebook {job.notebook.name}"]
    except (OSError, ValueError):
        return [f"{job.notebook.name} is damaged"]
    try:
        old = json.loads((job.folder / "run.json").read_text(encoding="utf-8"))[
            "inputs"
        ]
        (found,) = read_records(job.folder / "result.json")
        if (found.chapter, found.profile, found.seed) != (
            job.chapter,
            job.profile,
            job.seed,
        ):
            return [
                f"result.json is of {found.chapter} {found.profile} seed {found.seed}"
            ]
        notebooks.read(job.folder / "notebook.ipynb")
        now = read_inputs(job.notebook, job.parameters, library, threads)
        return changes(old, now)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        if (job.folder / "failure.json").exists():
            return ["failed before"]
        return [
            "interrupted before"
            if (job.folder / "attempt.json").exists()
            else "not run yet"
        ]


def finished_runs(
    out: Path, chapter: str | None = None, profile: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the contents of every ``run.json`` under ``out``, in the order
    of their folders."""
    for path in sorted(out.glob(f"{chapter or '*'}/{profile or '*'}/seed*/run.json")):
        data = read_json(path)
        if data is not None:
            yield data


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if there is no such file
    or it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
