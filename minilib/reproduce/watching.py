"""What happens beside a running kernel: its memory, its time, and whether anybody
still waits for it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import psutil

_INTERVAL = 0.25  # seconds between two looks
_WRITE_EVERY = 2.0  # seconds between two lines about progress


class Watch:
    """While entered, measure the memory of new child processes, note progress, and stop
    them at the limit."""

    def __init__(self, progress: Path, limit: float | None) -> None:
        """Prepare to write ``progress``; ``limit`` seconds from entering, child
        processes are killed."""
        self.progress = progress
        self.limit = limit
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
        self._others = {
            child.pid for child in psutil.Process().children(recursive=True)
        }
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
                c
                for c in psutil.Process().children(recursive=True)
                if c.pid not in self._others
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
        about = {
            "cell": self.cell,
            "cells": self.cells,
            "seconds": round(self.seconds(), 1),
        }
        partial = self.progress.with_suffix(".tmp")
        try:
            partial.write_text(json.dumps(about))
            partial.replace(self.progress)
        except OSError:
            partial.unlink(missing_ok=True)


def end_with(pid: int, created: float) -> None:
    """End this process and its children soon after the process ``pid``, started at
    ``created``, is gone.

    The same happens when this process's parent is gone.
    """
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent and is_alive(pid, created):
            time.sleep(0.5)
        kill(psutil.Process().children(recursive=True))
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def is_alive(pid: int, created: float) -> bool:
    """Tell whether the process ``pid`` that started at ``created`` still runs, and not
    another of that number."""
    try:
        process = psutil.Process(pid)
        return (
            abs(process.create_time() - created) < 1
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


def family(pid: int) -> list[psutil.Process]:
    """Return a process with all its descendants, empty if it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
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
