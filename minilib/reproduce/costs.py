"""What a run is expected to cost, from earlier runs here and from the
committed records."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from minilib.reproduce.jobs import Job, finished_runs, read_json
from minilib.reproduce.texts import duration, size


@dataclass(frozen=True)
class Cost:
    """Expected cost of one run; None where nothing is known."""

    seconds: float | None = None
    memory: float | None = None
    """Peak resident memory in bytes."""
    disk: float | None = None
    """Bytes that the run leaves."""
    download: float | None = None
    """Bytes that come over the network."""
    source: str = ""
    """Where the numbers are from."""


def expected(job: Job, device: str, results: Path | None) -> Cost:
    """Return the median time and the largest needs of earlier runs of the same
    chapter and profile.

    Args:
        job: the run.
        device: type of device ("cpu", "cuda", ...); runs on another type tell nothing.
        results: folder of committed records, which speak where no run is in the
            job's folder of runs.
    """
    here = [
        about
        for about in finished_runs(job.out, job.chapter, job.profile)
        if _of(about, device)
    ]
    cost = _summary(here, "earlier runs here")
    if not here and results is not None:
        merged = read_json(results / f"{job.chapter}.{job.profile}.json") or {}
        records = [run.get("environment", {}) for run in merged.get("runs", [])]
        known = [about for about in records if _of(about, device)]
        machines = sorted(
            {
                f"{about.get('cores')} cores, {about['device'].get('name')}"
                for about in known
            }
        )
        cost = _summary(known, f"the records ({'; '.join(machines)})")
    if cost.download is None and job.profile in ("quick", "full"):
        # These profiles use the embedded data and the shipped weights.
        return Cost(cost.seconds, cost.memory, cost.disk, 0.0, cost.source)
    return cost


def makespan(
    lengths: Iterable[float | None], at_once: int | None
) -> tuple[float, bool]:
    """Return how long runs take together, and whether any length is unknown.

    ``at_once`` of them run at a time, the longest first.
    """
    known = list(lengths)
    ends = [0.0] * (at_once or max(1, len(known)))
    for length in sorted((length or 0.0 for length in known), reverse=True):
        heapq.heappush(ends, heapq.heappop(ends) + length)
    return max(ends), None in known


def total(costs: Sequence[Cost], at_once: int | None) -> str:
    """Return in words what runs cost together: time, memory of those that run at once,
    disk, downloads."""
    seconds, open_end = makespan([cost.seconds for cost in costs], at_once)
    if all(cost.seconds is None for cost in costs):
        time = "time unknown"
    else:
        time = f"{'more than' if open_end else 'about'} {duration(seconds)}"
    memory = sorted(
        (cost.memory for cost in costs if cost.memory is not None), reverse=True
    )[:at_once]
    parts = [
        time,
        f"up to {size(sum(memory))} of memory" if memory else "memory unknown",
        f"{_sum([cost.disk for cost in costs])} of disk",
        f"downloads: {_sum([cost.download for cost in costs])}",
    ]
    return ", ".join(parts)


def download_text(cost: Cost) -> str:
    """Return "none", a size or "unknown"."""
    return "none" if cost.download == 0 else size(cost.download)


def _of(about: dict[str, Any], device: str) -> bool:
    noted = about.get("device")
    used = str(noted.get("used", "")) if isinstance(noted, dict) else ""
    return used.partition(":")[0] == device and isinstance(
        about.get("wall_seconds"), (int, float)
    )


def _summary(runs: Sequence[dict[str, Any]], source: str) -> Cost:
    if not runs:
        return Cost()

    def largest(key: str) -> float | None:
        return max(
            (float(about[key]) for about in runs if about.get(key) is not None),
            default=None,
        )

    seconds = float(median(about["wall_seconds"] for about in runs))
    memory, disk, download = (
        largest(k) for k in ("peak_memory_bytes", "disk_bytes", "downloaded_bytes")
    )
    return Cost(seconds, memory, disk, download, source)


def _sum(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "unknown"
    text = "none" if sum(known) == 0 else size(sum(known))
    return text if len(known) == len(values) else f"{text} and unknown"
