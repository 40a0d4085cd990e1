"""Many runs: start them, watch them, and go on where an earlier call stopped."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import filelock

from minilib.files import FolderInUse, to_json, write_atomically
from minilib.parameters import writable_folder
from minilib.reproduce.costs import Cost, makespan
from minilib.reproduce.executors import Order, Workers, this_process
from minilib.reproduce.jobs import Job, read_json
from minilib.reproduce.running import restore
from minilib.reproduce.texts import duration

_POLL = 0.3  # seconds between two looks at the runs

WAITING, QUEUED, RUNNING = "waiting", "queued", "running"
DONE, FAILED, UNCHANGED, SKIPPED = "done", "failed", "unchanged", "not run"


@dataclass
class Entry:
    """A job in a batch, and how it stands."""

    job: Job
    reasons: list[str]
    """Why it is to be run; empty = its result stands."""
    cost: Cost = field(default_factory=Cost)
    state: str = WAITING
    message: str = ""
    """What happened, in a line."""
    seconds: float = 0.0
    """How long it has run, earlier attempts that it goes on from included."""
    cell: tuple[int, int] = (0, 0)
    """The code cell that runs and the number of them all; (0, 0) before the first."""
    handle: Any = None
    slot: int = 0
    forced: bool = False
    """Whether it is run although an earlier result may stand."""

    @property
    def left(self) -> float | None:
        """Seconds that it is expected to take from now on, None if nothing is known."""
        if self.state in (DONE, FAILED, UNCHANGED, SKIPPED):
            return 0.0
        return (
            None
            if self.cost.seconds is None
            else max(0.0, self.cost.seconds - self.seconds)
        )


class View(Protocol):
    """What shows a batch to people."""

    def changed(self, entry: Entry) -> None:
        """Show that an entry has another state."""

    def tick(self, entries: Sequence[Entry], left: str) -> None:
        """Show how far everything is; called several times a second."""


@dataclass(frozen=True)
class Settings:
    """How a batch is run."""

    executor: str = "local"
    at_once: int = 1
    """Runs at the same time."""
    threads: int | None = None
    """Threads of each run on this machine, unless OMP_NUM_THREADS says otherwise; None
    leaves them to Slurm."""
    limit: float | None = None
    """Seconds for each run."""
    keep_going: bool = False
    """Run the other seeds of a chapter even after one has failed."""
    device: Mapping[str, Any] | None = None
    """What ``surroundings.describe_device`` says; None for Slurm, whose
    machines are others."""
    gpus: tuple[str, ...] = ()
    """CUDA devices to share out among runs at the same time, empty =
    all see the same."""
    slurm: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch."""


def execute(
    entries: Sequence[Entry], out: Path, settings: Settings, view: View
) -> None:
    """Make the runs that have a reason and keep ``entries`` up to date.

    A run that fails does not stop the others, but the seeds of the same chapter
    that have not begun are left out, since they would mostly fail alike
    (``keep_going`` runs them).

    Raises:
        FolderInUse: another runner works in ``out``.
        ValueError: ``out`` cannot be written, or the executor cannot be had.
        KeyboardInterrupt: stopped from outside (SIGINT, SIGTERM); the runs on this
            machine are ended before.
    """
    writable_folder(out)
    for entry in entries:
        if not entry.reasons:
            entry.state = UNCHANGED
            view.changed(entry)
    if all(entry.state == UNCHANGED for entry in entries):
        return
    with only_runner(out), _terminated_like_interrupted():
        workers = Workers(
            settings.executor, out, settings.at_once, settings.limit, settings.slurm
        )
        _put_back(entries, view)
        try:
            _adopt(entries, workers, view)
            while any(entry.state in (WAITING, QUEUED, RUNNING) for entry in entries):
                _start(entries, workers, settings, view)
                for entry in entries:
                    if entry.handle is not None:
                        _look(entry, entries, workers, settings, view)
                view.tick(entries, time_left(entries, settings.at_once))
                time.sleep(_POLL)
        finally:
            workers.stop(
                [entry.handle for entry in entries if entry.handle is not None]
            )
            workers.close()


def _put_back(entries: Sequence[Entry], view: View) -> None:
    """Take results that were set aside for runs that were not done, where they are what
    is asked for now."""
    for entry in entries:
        if entry.state == WAITING and not entry.forced and restore(entry.job):
            entry.state = UNCHANGED
            view.changed(entry)


def time_left(entries: Sequence[Entry], at_once: int) -> str:
    """Return "about 4:10 min left", "more than ..." where a run's length is
    unknown, or nothing."""
    rest = [
        entry.left for entry in entries if entry.state in (WAITING, QUEUED, RUNNING)
    ]
    if not rest or all(left is None for left in rest):
        return ""
    seconds, open_end = makespan(rest, at_once)
    return f"{'more than' if open_end else 'about'} {duration(seconds)} left"


def _start(
    entries: Sequence[Entry], workers: Workers, settings: Settings, view: View
) -> None:
    active = [entry for entry in entries if entry.handle is not None]
    waiting = [entry for entry in entries if entry.state == WAITING]
    if settings.at_once > 1:  # the longest first, so that none is left to run alone
        waiting.sort(key=lambda entry: -_expected_seconds(entry))
    room = len(waiting) if workers.at_once is None else workers.at_once - len(active)
    taken = {entry.slot for entry in active}
    free = [slot for slot in range(len(entries)) if slot not in taken]
    begun = waiting[: max(0, room)]
    if not begun:
        return
    runner = this_process() if settings.executor == "local" else None
    orders = []
    for entry, slot in zip(begun, free, strict=False):
        entry.slot = slot
        environment = _environment(slot, settings) if workers.local else {}
        orders.append(
            Order(entry.job, settings.limit, settings.device, environment, runner)
        )
    for entry, handle in zip(begun, workers.start(orders), strict=True):
        entry.handle = handle
        entry.state = RUNNING if workers.local else QUEUED
        view.changed(entry)


def _expected_seconds(entry: Entry) -> float:
    """Return how long an entry is expected to take, endlessly if nothing is known."""
    return math.inf if entry.cost.seconds is None else entry.cost.seconds


def _adopt(entries: Sequence[Entry], workers: Workers, view: View) -> None:
    """Take over what an earlier call has put into Slurm's queue, rather
    than run it twice."""
    for entry in entries:
        if (
            entry.state == WAITING
            and (handle := workers.still_queued(entry.job)) is not None
        ):
            entry.handle, entry.state = handle, QUEUED
            entry.message = f"already Slurm's job {handle.job_id}"
            view.changed(entry)


def _look(
    entry: Entry,
    entries: Sequence[Entry],
    workers: Workers,
    settings: Settings,
    view: View,
) -> None:
    """Bring one running entry up to date."""
    outcome = workers.outcome(entry.handle, entry.job)
    progress = (
        read_json(entry.job.folder / "progress.json") if outcome is None else None
    )
    if progress is not None:
        entry.seconds = float(progress.get("seconds", 0.0))
        entry.cell = (int(progress.get("cell", 0)), int(progress.get("cells", 0)))
        if entry.state == QUEUED:
            entry.state = RUNNING
            view.changed(entry)
    if outcome is None:
        return
    entry.handle, entry.state, entry.message = None, outcome.state, outcome.message
    view.changed(entry)
    for other in entries:
        same = (other.job.chapter, other.job.profile) == (
            entry.job.chapter,
            entry.job.profile,
        )
        if (
            entry.state == FAILED
            and same
            and other.state == WAITING
            and not settings.keep_going
        ):
            other.state = SKIPPED
            other.message = (
                f"seed {entry.job.seed} failed; --keep-going runs it nevertheless"
            )
            view.changed(other)
        if entry.state == DONE and same and other.cost.seconds is None:
            about = read_json(entry.job.folder / "run.json") or {}
            other.cost = Cost(seconds=about.get("wall_seconds"), source="this batch")


def _environment(slot: int, settings: Settings) -> dict[str, str | None]:
    """Return what the ``slot``-th of the runs at the same time sees of
    processors and GPUs."""
    # submitit hides the GPUs from its local processes: put back what is seen here.
    environment: dict[str, str | None] = {
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")
    }
    if settings.at_once > 1 and settings.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = settings.gpus[slot % len(settings.gpus)]
    # Numbers depend on the threads in their last digits: the runner fixes them.
    if settings.threads is not None and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(settings.threads)
        if "MKL_NUM_THREADS" not in os.environ:
            environment["MKL_NUM_THREADS"] = str(settings.threads)
    return environment


@contextmanager
def only_runner(out: Path) -> Iterator[None]:
    """Keep other runners out of the folder; the system frees the lock when this process
    ends, however it ends."""
    folder = out / ".batch"
    if not folder.is_dir():  # a full disk must not keep anybody from cleaning up
        writable_folder(folder)
    lock, note = filelock.FileLock(folder / "runner.lock"), folder / "runner.json"
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        who = read_json(note) or {}
        raise FolderInUse(
            f"another runner works in {out} (process {who.get('process', '?')} on "
            f"{who.get('host', '?')} since {who.get('since', '?')}): wait for it, "
            "stop it, or name another folder with --out"
        ) from None
    try:
        now = datetime.now().isoformat(sep=" ", timespec="seconds")
        who = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
        try:
            write_atomically(note, to_json(who))
        except OSError:
            pass  # a full disk: the lock holds without the note
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM stop the batch as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
