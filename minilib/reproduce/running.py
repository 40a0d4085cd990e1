"""One run, in this process: a kernel executes the notebook, then the run's
folder is finished."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from minilib import opened
from minilib.files import to_json, write_atomically
from minilib.parameters import writable_folder
from minilib.reproduce.inputs import (
    PACKAGE,
    Inputs,
    changes,
    digest,
    read_inputs,
    used_library,
)
from minilib.reproduce.jobs import Job, read_json
from minilib.reproduce.surroundings import bytes_under, cached_bytes, environment
from minilib.reproduce.texts import duration, size
from minilib.reproduce.watching import Watch

OURS = (
    "run.json", "attempt.json", "progress.json", "failure.json", "opened.txt",
    "result.json", "metrics.jsonl", "notebook.ipynb", "notebook.partial.ipynb",
    "failed.ipynb",
)  # fmt: skip
"""The files that a run writes, beside what its notebook leaves there."""
LOCK_SECONDS = 30
"""How long a run waits for the one before it in the same folder, whose runner was
killed, to be gone."""
_FULL = 2**20  # less room than this is a full disk


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    job: Job
    state: str
    """ "done" or "failed"."""
    message: str
    """What happened, in a line."""


def run(
    job: Job, limit: float | None = None, device: Mapping[str, Any] | None = None
) -> Outcome:
    """Run one notebook in a kernel of its own and finish its folder; failures are
    reported, not raised.

    A run that was cut short and whose inputs are the same goes on in the files that it
    left (a training resumes from its checkpoint); anything else is cleared first.
    ``run.json`` is removed at the start and written at the end.

    Args:
        job: what to run.
        limit: seconds after which it is stopped.
        device: what ``surroundings.describe_device`` says, where it is known; else it
            is asked at the end.
    """
    partial = job.folder / "notebook.partial.ipynb"
    watch = Watch(job.folder / "progress.json", limit)
    try:
        with _lock(job):
            inputs = read_inputs(job.notebook, job.parameters)
            watch.before = _prepare(job, inputs)
            started, caches = datetime.now(UTC), cached_bytes()
            with watch, _kernel_environment(job):
                _execute(job, partial, watch)
            _check_result(job)
            partial.replace(job.folder / "notebook.ipynb")
            inputs["library"] = used_library(
                inputs["library"], opened.read(job.folder / "opened.txt")
            )
            for name in ("attempt.json", "progress.json", "failed.ipynb", "opened.txt"):
                (job.folder / name).unlink(missing_ok=True)
            about = {
                "chapter": job.chapter,
                "profile": job.profile,
                "seed": job.seed,
                "notebook": str(job.notebook),
                "started": started.isoformat(timespec="seconds"),
                "wall_seconds": round(watch.seconds(), 1),
                "peak_memory_bytes": watch.peak,
                "disk_bytes": bytes_under(job.folder),
                "downloaded_bytes": max(0, cached_bytes() - caches),
                **environment(str(job.parameters["device"]), device),
                "key": digest(inputs),
                "parameters": dict(job.parameters),
                "inputs": inputs,
            }
            write_atomically(job.folder / "run.json", to_json(about))
    except Exception as error:  # the next run must not suffer from this one
        return Outcome(job, "failed", _failure(job, partial, error, watch))
    memory = f", {size(watch.peak)}" if watch.peak else ""
    return Outcome(job, "done", f"{duration(about['wall_seconds'])}{memory}")


def lock_of(job: Job) -> filelock.FileLock:
    """Return the lock that a process holds while it works in the job's folder; the
    system frees it at its end."""
    folder = writable_folder(job.out / ".batch")
    return filelock.FileLock(
        folder / f"{job.chapter}.{job.profile}.seed{job.seed}.lock"
    )


@contextmanager
def _lock(job: Job) -> Iterator[None]:
    lock = lock_of(job)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        raise RuntimeError(
            f"another process is still at this run (it holds {lock.lock_file})"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _prepare(job: Job, inputs: Inputs) -> float:
    """Make the folder ready, to go on after an interruption with equal inputs or clean;
    return the seconds spent."""
    folder = writable_folder(job.folder)
    if (free := shutil.disk_usage(folder).free) < _FULL:
        raise OSError(errno.ENOSPC, f"no room to start: {size(free)} free")
    attempt, spent = read_json(folder / "attempt.json"), 0.0
    goes_on = (
        attempt is not None
        and not (folder / "run.json").exists()
        and _continues(attempt, inputs, folder)
    )
    if goes_on:
        spent = float((read_json(folder / "progress.json") or {}).get("seconds", 0.0))
    for name in (
        "run.json",
        "result.json",
        "failure.json",
        "progress.json",
        "notebook.partial.ipynb",
    ):
        (folder / name).unlink(missing_ok=True)
    if not goes_on:
        # Only a folder that a run made is emptied; elsewhere only the names
        # that a run writes.
        mine = attempt is not None or (folder / "notebook.ipynb").exists()
        for path in folder.iterdir() if mine else [folder / name for name in OURS]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    write_atomically(folder / "attempt.json", to_json(inputs))
    return spent


def _continues(attempt: Inputs, inputs: Inputs, folder: Path) -> bool:
    """Tell whether what an interrupted attempt depended on, as far as it
    came, is as it was."""
    names = [f"minilib/{name}" for name in opened.read(folder / "opened.txt")]
    try:
        used = {
            name: value for name, value in attempt["library"].items() if name in names
        }
        return not changes({**attempt, "library": used}, inputs)
    except (KeyError, TypeError, AttributeError):
        return False


def _execute(job: Job, output: Path, watch: Watch) -> None:
    logging.getLogger("papermill").setLevel(logging.ERROR)
    notebook = nbformat.read(job.notebook, as_version=4)
    # With the injected parameters papermill adds one code cell.
    watch.cells = 1 + sum(cell.cell_type == "code" for cell in notebook.cells)
    numbers = iter(range(1, watch.cells + 1))

    def begins(cell: Mapping[str, Any], cell_index: int) -> None:
        if cell["cell_type"] == "code":
            watch.cell = next(numbers, watch.cells)

    papermill.execute_notebook(
        notebook,
        str(output).replace("{", "{{").replace("}", "}}"),  # papermill formats paths
        parameters=dict(job.parameters),
        progress_bar=False,
        cwd=job.folder,
        start_timeout=300,  # a kernel starts slowly where many jobs share the cores
        # else each kernel warns that its local sockets are plain
        extra_arguments=["--IPKernelApp.log_level=50"],
        on_cell_start=begins,
    )


def _check_result(job: Job) -> None:
    records = read_json(job.folder / "result.json")
    if records is None:
        raise _NoResult("the notebook ended without recording a result in out")
    got = tuple(records.get(key) for key in ("chapter", "profile", "seed"))
    expected = (job.chapter, job.profile, job.seed)
    if got != expected:
        raise _NoResult(
            f"result.json is of {got}, not of {expected}: does the notebook pass its "
            "parameters on?"
        )


class _NoResult(RuntimeError):
    """The notebook ran to its end, and yet there is nothing to keep."""


@contextmanager
def _kernel_environment(job: Job) -> Iterator[None]:
    """Let the kernel import this very package, whose digests are recorded, and
    note what it opens."""
    root = str(PACKAGE.parent)
    paths = [root] + [
        path
        for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if path and path != root
    ]
    changed: dict[str, str | None] = {
        "PYTHONPATH": os.pathsep.join(paths),
        "JUPYTER_PREFER_ENV_PATH": "1",
        # compiled modules beside their sources, where their use is noted
        "PYTHONPYCACHEPREFIX": None,
        opened.VARIABLE: str(job.folder / "opened.txt"),
    }
    with changed_environment(changed):
        yield


@contextmanager
def changed_environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables, None to remove one, and put them back afterwards."""
    before = {name: os.environ.get(name) for name in changes}
    _set_environment(changes)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _failure(job: Job, partial: Path, error: Exception, watch: Watch) -> str:
    """Keep the notebook as far as it came and return a line that says what went
    wrong and where."""
    where = ""
    if partial.is_file():
        kept = job.folder / "failed.ipynb"
        partial.replace(kept)
        where = f"; see {_short(kept)}"
    message = _reason(job, error, watch)
    try:
        note = {
            "message": message,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_atomically(job.folder / "failure.json", json.dumps(note) + "\n")
    except OSError:
        # a full disk or a folder that cannot be written: the line that is
        # returned says so
        pass
    return message + where


def _reason(job: Job, error: Exception, watch: Watch) -> str:
    cell = (
        f"in code cell {watch.cell} of {watch.cells}"
        if watch.cells
        else "before its first cell"
    )
    if watch.timed_out and watch.limit is not None:
        return (
            f"stopped at its time limit of {duration(watch.limit)} {cell}; what it "
            "saved is kept to go on from"
        )
    if isinstance(error, PapermillExecutionError):
        first = (str(error.evalue).strip().splitlines() or [""])[0][:300]
        text = f"{error.ename} in cell [{error.exec_count}]: {first}"
    elif isinstance(error, DeadKernelError):
        text = (
            f"the kernel died (killed from outside, out of memory, or crashed) {cell}"
        )
    elif isinstance(error, _NoResult):
        return str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    if room := _no_room(job.out, error, text):
        return f"{room}: {text}"
    return text


def _no_room(folder: Path, error: Exception, text: str) -> str:
    """Return "the disk is full ..." if that is what the error comes
    from, else nothing."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    told = (
        getattr(error, "errno", None) == errno.ENOSPC
        or "No space left on device" in text
    )
    return (
        f"the disk is full ({size(free)} free at {_short(folder)})"
        if told or free < _FULL
        else ""
    )


def _short(path: Path) -> str:
    """Return a path as a person in the working directory would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
