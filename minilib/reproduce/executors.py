"""Where runs are made: processes of this machine or jobs of Slurm, both
through submitit."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import (
    FailedJobError,
    FailedSubmissionError,
    UncompletedJobError,
)

from minilib.files import to_json, write_atomically
from minilib.reproduce.inputs import PACKAGE
from minilib.reproduce.jobs import Job, read_json
from minilib.reproduce.running import Outcome, changed_environment, run
from minilib.reproduce.watching import end_with, family, kill, mark_of

EXECUTORS = ("local", "slurm", "debug")
"""Processes here; Slurm; one after another in this very process, for a debugger."""
# Slurm's limit lies so much above ours, so that ours can tell what happened
_GRACE_MINUTES = 5


@dataclass(frozen=True)
class Order:
    """A job with all that the process that makes it needs to know."""

    job: Job
    limit: float | None
    """Seconds until it is stopped."""
    device: Mapping[str, Any] | None
    """What ``surroundings.describe_device`` says of the device here, None for a
    device elsewhere."""
    environment: Mapping[str, str | None]
    """Environment variables to set, None to remove one."""
    runner: tuple[int, str] | None
    """Number and mark (``watching.mark_of``) of the process whose end ends the run,
    None = goes on by itself."""


class Work(submitit.helpers.Checkpointable):
    """What a process is started for; where Slurm preempts it, it is put into the queue
    again as it was."""

    def __call__(self, order: Order) -> Outcome:
        """Make the run."""
        if order.runner is not None:
            end_with(*order.runner)
        with changed_environment(order.environment):
            return run(order.job, order.limit, order.device)


class Workers:
    """Starts runs and tells how they ended; the same calls whatever the executor."""

    def __init__(
        self,
        executor: str,
        out: Path,
        at_once: int,
        limit: float | None,
        slurm: Mapping[str, str],
    ) -> None:
        """Prepare to start runs.

        Args:
            executor: one of :data:`EXECUTORS`.
            out: folder of runs; for Slurm one that all nodes see.
            at_once: how many may run at the same time.
            limit: seconds for each run.
            slurm: further options of sbatch, such as partition=gpu.

        Raises:
            ValueError: an option that Slurm has not, or no Slurm here, or no
                time limit for it.
        """
        self.local = executor != "slurm"
        self.at_once = at_once if self.local else None
        self._private: tempfile.TemporaryDirectory[str] | None = None
        self._queue = out / ".batch" / "slurm.json"
        if not self.local and limit is None:
            raise ValueError(
                "--executor slurm needs --time-limit, for example 2h: Slurm plans by it"
            )
        self._folder = self._queue.with_suffix("")
        if self.local:
            # Not under `out`: how a run ended can be told even when that disk is full.
            try:
                self._private = tempfile.TemporaryDirectory(prefix="minilib-")
            except OSError as error:
                raise ValueError(
                    f"no temporary folder could be made: {error}; name one in TMPDIR"
                ) from error
            self._folder = Path(self._private.name)
        try:
            self._executor = submitit.AutoExecutor(self._folder, cluster=executor)
            if self.local:
                # a run has its own limit
                self._executor.update_parameters(timeout_min=60 * 24 * 365)
            else:
                options = {
                    f"slurm_{name}": _number(value) for name, value in slurm.items()
                }
                minutes = -int(-(limit or 0) // 60) + _GRACE_MINUTES
                named = {
                    "name": "minilib",
                    "timeout_min": minutes,
                    "slurm_array_parallelism": at_once,
                }
                self._executor.update_parameters(**named | options)
        except (RuntimeError, NameError, ValueError, AssertionError) as error:
            raise ValueError(f"--executor {executor}: {error}") from error

    def start(self, orders: Sequence[Order]) -> list[submitit.Job[Outcome]]:
        """Start the orders (Slurm gets them as one job array) and return a
        handle for each.

        Raises:
            ValueError: they could not be started, with what sbatch or the system says.
        """
        paths = os.pathsep.join(
            filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])
        )
        try:
            with (
                changed_environment({"PYTHONPATH": paths}),
                _deaf_to_ctrl_c(self.local),
            ):
                handles = self._executor.map_array(Work(), list(orders))
        except (OSError, FailedJobError, FailedSubmissionError) as error:
            raise ValueError(f"no run could be started: {error}") from error
        if not self.local:
            queued = {
                str(order.job): handle.job_id
                for order, handle in zip(orders, handles, strict=True)
            }
            write_atomically(
                self._queue, to_json((read_json(self._queue) or {}) | queued)
            )
        return handles

    def still_queued(self, job: Job) -> submitit.Job[Outcome] | None:
        """Return the handle of a job that an earlier call gave to Slurm and that
        waits or runs there."""
        number = None if self.local else (read_json(self._queue) or {}).get(str(job))
        if number is None:
            return None
        handle: submitit.Job[Outcome] = submitit.SlurmJob(self._folder, number)
        known = handle.get_info(mode="force").get("State")
        return None if not known or handle.done() else handle

    def outcome(self, handle: submitit.Job[Outcome], job: Job) -> Outcome | None:
        """Return how a run ended, None while it goes on."""
        if not handle.done():
            return None
        if (
            isinstance(handle, submitit.LocalJob)
            and not handle.paths.result_pickle.exists()
        ):
            return Outcome(
                job,
                "failed",
                "its process ended without a word (killed from outside, or out of "
                "memory?)",
            )
        try:
            return handle.result()
        except (UncompletedJobError, FailedJobError) as error:
            lines = [
                line.strip() for line in str(error).splitlines() if line.strip(" -")
            ]
            state = (
                "" if self.local else f" (Slurm job {handle.job_id}: {handle.state})"
            )
            return Outcome(
                job,
                "failed",
                f"its process failed{state}: {lines[-1] if lines else error}"[:500],
            )

    def stop(self, handles: Sequence[submitit.Job[Outcome]]) -> None:
        """End the runs on this machine with all that they started; Slurm's
        stay in its queue."""
        found = [handle for handle in handles if isinstance(handle, submitit.LocalJob)]
        kill(process for handle in found for process in family(int(handle.job_id)))

    def close(self) -> None:
        """Remove what was needed to start the runs."""
        if self._private is not None:
            self._private.cleanup()


@contextmanager
def _deaf_to_ctrl_c(wanted: bool) -> Iterator[None]:
    """Let processes that are started here ignore Ctrl-C, which a terminal sends to all:
    their runner ends them."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def this_process() -> tuple[int, str]:
    """Return number and mark of this process."""
    return os.getpid(), mark_of(os.getpid())


def _number(value: str) -> Any:
    """Return the text of an option as submitit wants it: whole numbers as such, lists
    and dicts from JSON."""
    try:
        return json.loads(value)
    except ValueError:
        return value
