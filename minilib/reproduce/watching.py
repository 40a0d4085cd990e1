"""What happens beside a running kernel: its memory, its time, and whether anybody
still waits for it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

_INTERVAL = 0.25  # seconds between two looks
_WRITE_EVERY = 2.0  # seconds between two lines about progress


class Watch:
    """While entered, measure the memory of new child processes, note progress, and stop
    them at the limit."""

    def __init__(
        self,
        progress: Path,
        limit: float | None,
        made: Callable[[], list[str]] = list,
    ) -> None:
        """Prepare to write ``progress``; ``limit`` seconds from entering, child
        processes are killed.

        ``made`` says which files the run has made so far.
        """
        self.progress = progress
        self.limit = limit
        self.made = made
        self.before = 0.0
        """Seconds that earlier attempts took whose files this one goes on from."""
        self.peak = 0
        """Largest resident memory of the child processes together, in bytes."""
        self.timed_out = False
        self.cell = 0
        """The code cell that runs, from 1; 0 while the kernel starts."""
        self.cells = 0
        self._began = time.monotonic()
        self._ended: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def seconds(self) -> float:
        """Return how long the run has taken, earlier attempts included."""
        return self.before + (self._ended or time.monotonic()) - self._began

    def __enter__(self) -> Watch:
        self._others = {child.pid for child in descendants(os.getpid())}
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._ended = time.monotonic()
        self._write()

    def _look(self) -> None:
        written, cell = 0.0, -1
        while not self._stop.wait(_INTERVAL):
            children = [
                child
                for child in descendants(os.getpid())
                if child.pid not in self._others
            ]
            self.peak = max(self.peak, sum(map(_memory, children)))
            now = time.monotonic()
            if self.limit is not None and now - self._began > self.limit and children:
                self.timed_out = True
                kill(children)
            if now - written > _WRITE_EVERY or self.cell != cell:
                self._write()
                written, cell = now, self.cell

    def _write(self) -> None:
        """Write how far the run is; nobody's result depends on it, so that
        errors do not matter."""
        about: dict[str, Any] = {
            "cell": self.cell,
            "cells": self.cells,
            "seconds": round(self.seconds(), 1),
        }
        partial = self.progress.with_suffix(".tmp")
        try:
            about["files"] = self.made()
            partial.write_text(json.dumps(about))
            partial.replace(self.progress)
        except OSError:
            partial.unlink(missing_ok=True)


def end_with(pid: int, mark: str) -> None:
    """End this process and its children soon after the process ``pid``, whose
    :func:`mark_of` is ``mark``, is gone.

    The same happens when this process's parent is gone.
    """
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent and is_alive(pid, mark):
            time.sleep(0.5)
        kill(descendants(os.getpid()))
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def mark_of(pid: int) -> str:
    """Return what distinguishes a process from a later one of its number; "" where the
    system does not tell.

    On Linux that is its start in ticks since the machine's: the time of day, by which
    psutil counts, is set forward and back while processes run.
    """
    try:
        if sys.platform == "linux":
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
            return text.rpartition(")")[2].split()[19]  # man proc: field 22, starttime
        return str(round(psutil.Process(pid).create_time()))
    except (OSError, IndexError, psutil.Error):
        return ""


def is_alive(pid: int, mark: str) -> bool:
    """Tell whether the process ``pid`` of that mark still runs, and not another of that
    number.

    Where the system tells nothing of a process but that it is there, it is taken for
    the one.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and somebody else's
    now = mark_of(pid)
    if now and mark and now != mark:
        return False
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def descendants(pid: int) -> list[psutil.Process]:
    """Return the children of a process, their children, and so on, as far as the system
    shows them; empty if it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    except psutil.AccessDenied:
        pass  # /proc shows only one's own processes (hidepid): look at those
    offspring: dict[int, list[int]] = {}
    for number in psutil.pids():
        try:
            offspring.setdefault(psutil.Process(number).ppid(), []).append(number)
        except psutil.Error:
            continue
    found, pending = [], list(offspring.get(pid, []))
    while pending:
        number = pending.pop()
        pending += offspring.get(number, [])
        try:
            found.append(psutil.Process(number))
        except psutil.Error:
            continue
    return found


def family(pid: int) -> list[psutil.Process]:
    """Return a process with all its descendants, empty if it is gone."""
    try:
        return [psutil.Process(pid), *descendants(pid)]
    except psutil.Error:
        return []


def kill(processes: Iterable[psutil.Process], wait: float = 10.0) -> None:
    """Kill the processes and wait until they are gone, ``wait`` seconds at most."""
    processes = list(processes)
    for process in processes:
        try:
            process.kill()
        except psutil.Error:
            continue  # it ended by itself
    psutil.wait_procs(processes, timeout=wait)


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0  # it ended meanwhile
