"""How the runs of a batch share a machine: how many at a time, and their threads."""

from __future__ import annotations

from dataclasses import dataclass

MEMORY = 3 * 2**30
"""Bytes that a run is taken to need where nothing is known of it.

No chapter needs more at profile ``quick``."""


@dataclass(frozen=True)
class Share:
    """What the runs of a batch get."""

    at_once: int
    """Runs at the same time."""
    threads: int
    """Threads of each process of a run; they do not depend on how many runs there are
    or are made at a time, since results depend on them in their last digits."""


def share(
    cores: int,
    memory: float,
    runs: int,
    need: float = MEMORY,
    jobs: int | None = None,
    gpus: int | None = None,
    processes: int = 1,
) -> Share:
    """Return how many runs to make at a time, and the threads of each.

    A chapter's small trainings gain little from a second thread, so on the processor
    there is one run per core, as far as there are runs and memory, with one thread.
    A run on a GPU gets that GPU's share of the cores.

    Args:
        cores: processor cores that may be used, at least 1.
        memory: free memory in bytes.
        runs: how many are to be made.
        need: memory in bytes that the largest of them takes.
        jobs: what the user asked for; it is kept, but for runs that there are not.
        gpus: None on the processor; else the number of GPUs; each gets one run.
        processes: over how many each run spreads its main training; runs that spread
            over GPUs are made one at a time.
    """
    if jobs is not None:
        at_once = jobs
    elif gpus is not None:
        at_once = gpus if processes == 1 else 1
    else:
        at_once = min(cores // processes, int(memory // need))
    at_once = max(1, min(at_once, runs))
    if gpus is None:
        return Share(at_once, 1)
    return Share(at_once, max(1, cores // max(gpus, processes)))
