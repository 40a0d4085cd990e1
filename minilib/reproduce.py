"""Run chapters headlessly, one finished folder a run, and run again only what changed.

``runs/<chapter>/<profile>/seed<k>/`` holds the executed ``notebook.ipynb``, ``result.json`` and
``metrics.jsonl``, and last of all ``run.json``: its presence means that the run finished. It says how the
run was made and holds digests of all that went in (the notebook's code, the library, parameters, data
folders), so that a later call can tell whether the result still stands.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from minilib import notebooks
from minilib.claims.records import read_records
from minilib.files import to_json, write_atomically
from minilib.parameters import check_profile, resolve_device, writable_folder

PACKAGE = Path(__file__).resolve().parent
PACKAGES = ("minilib", "torch", "torchvision", "numpy", "open_clip_torch", "matplotlib", "papermill")
_OURS = ("run.json", "attempt.json", "result.json", "metrics.jsonl", "notebook.ipynb")
_COMMON = ("profile", "seed", "device", "out")  # every notebook has these parameters
# Code that starts runs and lists results cannot change them.
_WITHOUT_EFFECT = ("reproduce.py", "notebooks.py", "__main__.py", "claims/reports.py")

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run: a chapter at a profile with a seed."""

    chapter: str
    profile: str
    seed: int
    notebook: Path
    folder: Path
    parameters: Mapping[str, Any]
    """All that is passed to the notebook, ``out`` included."""
    inputs: Inputs
    """Digests of all that decides the result."""

    def __str__(self) -> str:
        return f"{self.chapter} {self.profile} seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: Job
    state: str
    """ "done", "failed" or "unchanged"."""
    message: str
    """What happened, in a line."""


def plan(
    chapters: Sequence[str],
    profile: str,
    seeds: Sequence[int],
    out: Path,
    device: str = "auto",
    extra: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> list[Job]:
    """Check everything that can be checked before the first run, and return the jobs in order.

    Args:
        chapters: names, or ["all"].
        profile: one of the profiles.
        seeds: seeds to run.
        out: folder of runs; made if needed.
        device: passed to the notebooks.
        extra: further notebook parameters as text, typed by the notebook's own defaults.
        folder: where the notebooks are; by default the repository's.

    Raises:
        ValueError: an unknown chapter, profile, device or parameter, or ``out`` cannot be written.
        FileNotFoundError: there are no notebooks here (an installed wheel).
    """
    folder = notebooks.notebooks_folder() if folder is None else folder
    check_profile(profile)
    resolve_device(device)
    names = list(notebooks.chapters(folder)) if list(chapters) == ["all"] else list(dict.fromkeys(chapters))
    if not names or not seeds:
        raise ValueError("nothing to run: expected at least one chapter and one seed")
    own = dict(extra or {})
    for key in _COMMON:
        if key in own:
            raise ValueError(f"-p {key}=... is not taken: say it with the option --{key}{'s' * (key == 'seed')}")
    out = Path(out).expanduser().absolute()
    jobs = []
    for name in names:
        path = notebooks.find_chapter(name, folder)
        notebook = nbformat.read(path, as_version=4)
        try:
            defaults = notebooks.read_parameters(notebook)
            notebooks.check_parameters([*_COMMON, *own], defaults)
            typed = {key: notebooks.typed(key, text, defaults[key]) for key, text in own.items()}
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        code, library, data = notebooks.code_digests(notebook), library_digests(name), data_digests(typed)
        for seed in seeds:
            run = out / name / profile / f"seed{seed}"
            given = {"profile": profile, "seed": seed, "device": device, **typed}
            inputs = {"notebook": code, "library": library, "parameters": given, "data": data}
            jobs.append(Job(name, profile, seed, path, run, {**given, "out": str(run)}, inputs))
    writable_folder(out)
    return jobs


def what_changed(job: Job) -> list[str]:
    """Return what makes the job's stored result stale, by name; an empty list means that it still stands.

    Without a finished run the one reason is "not run yet".
    """
    try:
        old = json.loads((job.folder / "run.json").read_text(encoding="utf-8"))["inputs"]
        parts = {part: old[part] for part in job.inputs}
        read_records(job.folder / "result.json")
        nbformat.read(job.folder / "notebook.ipynb", as_version=4)
    except (OSError, ValueError, KeyError, TypeError):
        return ["not run yet"]
    reasons = []
    code, before = job.inputs["notebook"], parts["notebook"]
    if len(code) != len(before):
        reasons.append(f"the notebook has {len(code)} code cells, not {len(before)}")
    elif code != before:
        cells = [str(number) for number, pair in enumerate(zip(code, before, strict=True), 1) if len(set(pair)) > 1]
        reasons.append(f"code cell {', '.join(cells)} of the notebook")
    for part, label in (("library", ""), ("parameters", "parameter "), ("data", "data in ")):
        new, was = job.inputs[part], parts[part]
        reasons += [f"{label}{key}" for key in sorted(set(new) | set(was)) if new.get(key) != was.get(key)]
    return reasons


def run(job: Job, progress: bool = False) -> Outcome:
    """Run one notebook in a kernel of its own and finish its folder; failures are reported, not raised.

    A run that was cut short and whose inputs are the same goes on in the files that it left (a training
    resumes from its checkpoint); anything else is cleared first. ``run.json`` is removed at the start and
    written at the end.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    partial = job.folder / "notebook.partial.ipynb"
    try:
        _prepare(job)
        with _peak_memory() as peak, _kernel_environment():
            _execute(job, partial, progress)
        records = read_records(job.folder / "result.json")[0]
        got, expected = (records.chapter, records.profile, records.seed), (job.chapter, job.profile, job.seed)
        if got != expected:
            raise ValueError(f"result.json is of {got}, not of {expected}: does the notebook pass its parameters on?")
        partial.replace(job.folder / "notebook.ipynb")
        about = {
            "chapter": job.chapter,
            "profile": job.profile,
            "seed": job.seed,
            "started": started.isoformat(timespec="seconds"),
            "wall_seconds": round(time.monotonic() - clock, 1),
            "peak_memory_bytes": peak[0],
            **environment(str(job.parameters["device"])),
            "key": _digest(job.inputs),
            "parameters": dict(job.parameters),
            "inputs": job.inputs,
        }
        (job.folder / "attempt.json").unlink(missing_ok=True)
        (job.folder / "failed.ipynb").unlink(missing_ok=True)
        write_atomically(job.folder / "run.json", to_json(about))
    except Exception as error:  # the next run must not suffer from this one
        return Outcome(job, "failed", _failure(job, partial, error))
    memory = f", {peak[0] / 2**30:.1f} GiB" if peak[0] else ""
    return Outcome(job, "done", f"{about['wall_seconds']:.0f} s{memory}")


def library_digests(chapter: str) -> dict[str, str]:
    """Return a digest of every file of the package, data included, that a chapter's result may depend on."""
    found = {}
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE).as_posix()
        hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(PACKAGE).parts)
        other_ledger = name.startswith("ledger/") and path.stem not in (chapter, "schema")
        if path.is_file() and not hidden and not other_ledger and name not in _WITHOUT_EFFECT:
            found[f"minilib/{name}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def data_digests(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return, for each parameter that names a folder, a digest of its files' names and sizes."""
    found = {}
    for name, value in parameters.items():
        if isinstance(value, str) and value and Path(value).is_dir():
            files = sorted(path for path in Path(value).rglob("*") if path.is_file())
            listing = [(path.relative_to(value).as_posix(), path.stat().st_size) for path in files]
            found[name] = _digest(listing)
    return found


def environment(device: str) -> dict[str, Any]:
    """Return what a result may owe to its surroundings: commit, versions, machine."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    commit = _git("rev-parse", "HEAD")
    used = resolve_device(device)
    return {
        "commit": commit,
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "minilib", "notebooks")) if commit else None,
        "versions": versions,
        "device": {"asked": device, "used": str(used), "name": _device_name(used.type)},
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _prepare(job: Job) -> None:
    """Make the run's folder ready: go on after an interruption with equal inputs, else start clean."""
    folder = writable_folder(job.folder)
    attempt, text = folder / "attempt.json", to_json(job.inputs)
    goes_on = not (folder / "run.json").exists() and attempt.is_file() and attempt.read_text(encoding="utf-8") == text
    (folder / "run.json").unlink(missing_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    if not goes_on:
        # Only a folder that a run made is emptied; elsewhere only the names that a run writes.
        mine = attempt.exists() or (folder / "notebook.ipynb").exists()
        for path in folder.iterdir() if mine else [folder / name for name in _OURS]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    write_atomically(attempt, text)


def _execute(job: Job, output: Path, progress: bool) -> None:
    logging.getLogger("papermill").setLevel(logging.ERROR)
    papermill.execute_notebook(
        nbformat.read(job.notebook, as_version=4),
        str(output).replace("{", "{{").replace("}", "}}"),  # papermill formats paths
        parameters=dict(job.parameters),
        progress_bar=progress,
        cwd=job.folder,
        start_timeout=300,  # a kernel starts slowly where many jobs share the cores
        extra_arguments=["--IPKernelApp.log_level=50"],  # else each kernel warns that its local sockets are plain
    )


@contextmanager
def _kernel_environment() -> Iterator[None]:
    """Let the kernel import this very package, whose digests are recorded, in this environment."""
    root = str(PACKAGE.parent)
    paths = [root] + [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    changes = {"PYTHONPATH": os.pathsep.join(paths), "JUPYTER_PREFER_ENV_PATH": "1"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _peak_memory(interval: float = 0.2) -> Iterator[list[int]]:
    """Yield a list of one number that ends up as the peak resident memory of all child processes."""
    peak, stop = [0], threading.Event()
    this = psutil.Process()

    def watch() -> None:
        while not stop.wait(interval):
            total = 0
            for child in this.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:
                    continue  # it ended meanwhile
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _failure(job: Job, partial: Path, error: Exception) -> str:
    """Keep the notebook as far as it came and return a line that says what went wrong and where."""
    where = ""
    if partial.is_file():
        kept = job.folder / "failed.ipynb"
        partial.replace(kept)
        where = f"; see {_short(kept)}"
    if isinstance(error, PapermillExecutionError):
        return f"{error.ename} in cell [{error.exec_count}]: {error.evalue}{where}"
    if isinstance(error, DeadKernelError):
        return f"the kernel died (killed from outside, out of memory, or crashed){where}"
    if isinstance(error, ValueError) and not (job.folder / "result.json").exists() and where:
        return f"the notebook ended without recording a result in out{where}"
    return f"{type(error).__name__}: {error}{where}"


def _short(path: Path) -> str:
    """Return a path as a person in the working directory would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(PACKAGE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _device_name(kind: str) -> str:
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
