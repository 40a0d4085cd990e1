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
from minilib.files import digest, to_json, write_atomically
from minilib.parameters import writable_folder
from minilib.reproduce import folders
from minilib.reproduce.inputs import (
    PACKAGE,
    Inputs,
    changes,
    read_inputs,
    used_library,
)
from minilib.reproduce.jobs import Job, read_json
from minilib.reproduce.surroundings import (
    PACKAGES,
    cached_bytes,
    environment,
    fixed_threads,
    foreign_kernel,
    moved,
    source,
)
from minilib.reproduce.texts import duration, size
from minilib.reproduce.watching import Watch

LOCK_SECONDS = 30
"""How long a run waits for the one before it in the same folder, whose runner was
killed, to be gone."""
_WHILE_AT_WORK = (
    "attempt.json",
    "progress.json",
    "failure.json",
    "failed.ipynb",
    "opened.txt",
    "kernel.json",
)
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
    left (a training resumes from its checkpoint). A finished run is set aside first
    (``minilib.reproduce.folders``) and removed when the new one is done; what else is
    in the folder stays. ``run.json`` is written at the end; the commit in it is that of
    the start, before the first cell.

    Args:
        job: what to run.
        limit: seconds after which it is stopped.
        device: what ``surroundings.describe_device`` says, where it is known; else it
            is asked at the end.
    """
    folder = job.folder
    partial, kernel = folder / "notebook.partial.ipynb", folder / "kernel.json"
    foreign: set[str] = set()
    watch = Watch(
        folder / "progress.json",
        limit,
        lambda: sorted(folders.listing(folder) - foreign),
    )
    threads = fixed_threads()
    try:
        with _lock(job):
            on_gpu = device is not None and device["used"] != "cpu"
            inputs = read_inputs(
                job.notebook, job.parameters, threads=None if on_gpu else threads
            )
            watch.before, start = _prepare(job, inputs, source())
            foreign |= folders.foreign(folder)
            started, caches = datetime.now(UTC), cached_bytes()
            with watch, _kernel_environment(job, kernel, threads):
                _execute(job, partial, watch)
            _check_cells(partial)
            _check_result(job)
            partial.replace(folder / "notebook.ipynb")
            inputs["library"] = used_library(
                inputs["library"], opened.read(folder / "opened.txt")
            )
            said = read_json(kernel)
            surroundings = environment(str(job.parameters["device"]), device, said)
            if surroundings["device"]["used"] != "cpu":
                inputs["threads"] = None  # a GPU's numbers do not depend on them
            changed = moved(start, source())
            files = folders.listing(folder) - foreign - set(_WHILE_AT_WORK)
            about = {
                "chapter": job.chapter,
                "profile": job.profile,
                "seed": job.seed,
                "notebook": str(job.notebook),
                "started": started.isoformat(timespec="seconds"),
                "wall_seconds": round(watch.seconds(), 1),
                "peak_memory_bytes": watch.peak,
                "disk_bytes": sum(os.lstat(folder / name).st_size for name in files),
                "downloaded_bytes": max(0, cached_bytes() - caches),
                **start,
                "changed_meanwhile": changed,
                **surroundings,
                "threads": threads,
                "key": digest(inputs),
                "parameters": dict(job.parameters),
                "inputs": inputs,
                "files": sorted(files),
            }
            write_atomically(folder / "run.json", to_json(about))
            for name in _WHILE_AT_WORK:
                (folder / name).unlink(missing_ok=True)
            folders.forget(folder)
    except Exception as error:  # the next run must not suffer from this one
        return Outcome(job, "failed", _failure(job, partial, error, watch))
    message = duration(about["wall_seconds"])
    if watch.peak:
        message += f", {size(watch.peak)}"
    if warning := foreign_kernel(said):
        message += f"; warning: {warning}"
    if changed:
        message += f"; warning: {changed} during the run, so it cannot be collected"
    return Outcome(job, "done", message)


def restore(job: Job) -> bool:
    """Put back the run that was set aside for one that then was not done, if it is what
    the job asks for; return whether it was."""
    path = folders.was_set_aside(job.folder)
    if path is None or (job.folder / "run.json").exists():
        return False
    try:
        with lock_of(job).acquire(timeout=0):
            old = (read_json(path) or {})["inputs"]
            now = read_inputs(job.notebook, job.parameters, threads=fixed_threads())
            if changes(old, now):
                return False
            folders.put_back(job.folder)
            return True
    except (
        filelock.Timeout, OSError, KeyError, TypeError, AttributeError, ValueError,
    ):  # fmt: skip
        return False


def lock_of(job: Job) -> filelock.FileLock:
    """Return the lock that a process holds while it works in the job's folder; the
    system frees it at its end."""
    folder = job.out / ".batch"
    if not folder.is_dir():
        writable_folder(folder)
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


def _prepare(
    job: Job, inputs: Inputs, start: dict[str, Any]
) -> tuple[float, dict[str, Any]]:
    """Make the folder ready, to go on after an interruption with equal inputs or clean;
    return the seconds spent, and what ``source()`` was at the run's first start."""
    to_json(inputs)  # what cannot be written must not cost what is there
    folder = writable_folder(job.folder)
    if (free := shutil.disk_usage(folder).free) < _FULL:
        raise OSError(errno.ENOSPC, f"no room to start: {size(free)} free")
    folders.set_aside(folder)
    attempt, spent = read_json(folder / "attempt.json"), 0.0
    if attempt is not None and _continues(attempt, inputs, folder):
        spent = float((read_json(folder / "progress.json") or {}).get("seconds", 0.0))
        start = attempt["source"]
        foreign = folders.foreign(folder) | folders.listing(folder) - folders.own(
            folder
        )
        _note(folder, inputs, start, foreign)
        for name in (
            "result.json",
            "failure.json",
            "progress.json",
            "kernel.json",
            "notebook.partial.ipynb",
        ):
            (folder / name).unlink(missing_ok=True)
    else:
        folders.clear(folder)
        _note(folder, inputs, start, folders.listing(folder))
    return spent, start


def _note(
    folder: Path, inputs: Inputs, start: Mapping[str, Any], foreign: set[str]
) -> None:
    """Say in the folder what the attempt that begins depends on, and which files are
    not its own."""
    note = {**inputs, "source": dict(start), "foreign": sorted(foreign)}
    write_atomically(folder / "attempt.json", to_json(note))


def _continues(attempt: Inputs, inputs: Inputs, folder: Path) -> bool:
    """Tell whether what an interrupted attempt depended on, as far as it
    came, is as it was."""
    names = [f"minilib/{name}" for name in opened.read(folder / "opened.txt")]
    try:
        used = {
            name: value for name, value in attempt["library"].items() if name in names
        }
        known = "source" in attempt  # not where an older version left it
        return known and not changes({**attempt, "library": used}, inputs)
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
        extra_arguments=[
            "--IPKernelApp.log_level=50",
            f"--IPKernelApp.exec_lines={_ASK}",
        ],
        on_cell_start=begins,
    )


def _check_cells(executed: Path) -> None:
    """Raise _NoResult unless every code cell ran to its end: ``sys.exit(0)`` in one
    ends a notebook without an error."""
    notebook = nbformat.read(executed, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        ended = any(out.get("ename") == "SystemExit" for out in cell.outputs)
        if ended or (cell.source.strip() and cell.execution_count is None):
            raise _NoResult(
                f"the notebook ended in code cell {number} of {len(code)} without an "
                "error: take sys.exit() out of it"
                if ended
                else f"code cell {number} of {len(code)} did not run"
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


# what the kernel runs before the first cell
_ASK = (
    "exec(open(__import__('os').environ.pop('MINILIB_ASK')).read(), globals().copy())"
)


@contextmanager
def _kernel_environment(job: Job, kernel: Path, threads: str) -> Iterator[None]:
    """Let the kernel import this very package, whose digests are recorded, note what
    it opens, and say what it is."""
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
        "OMP_NUM_THREADS": threads,
        "MINILIB_ASK": str(Path(__file__).with_name("kernel.py")),
        "MINILIB_KERNEL": str(kernel),
        "MINILIB_PACKAGES": json.dumps(PACKAGES),
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
