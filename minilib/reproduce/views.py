"""What people see of a batch: what it would cost, a live table, plain lines, and how
everything stands."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from textwrap import shorten
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from minilib.reproduce.batch import (
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    SKIPPED,
    UNCHANGED,
    WAITING,
    Entry,
)
from minilib.reproduce.costs import download_text, total
from minilib.reproduce.jobs import Job
from minilib.reproduce.texts import aligned, duration, size

_SIGNS = {
    WAITING: "·",
    QUEUED: "·",
    RUNNING: "▶",
    DONE: "✔",
    FAILED: "✘",
    UNCHANGED: "=",
    SKIPPED: "–",
}
_STYLES = {
    RUNNING: "bold",
    DONE: "green",
    FAILED: "bold red",
    WAITING: "dim",
    QUEUED: "dim",
    UNCHANGED: "dim",
}


def plan_text(
    entries: Sequence[Entry], at_once: int, threads: str | None = None
) -> str:
    """Return what would be run and why, with its expected cost, and the sum.

    ``threads`` are those of each run, None where they are not chosen here.
    """
    rows: list[tuple[str, ...]] = [("run", "why", "time", "memory", "disk", "download")]
    for entry in entries:
        cost = entry.cost
        if entry.reasons:
            needs = [
                duration(cost.seconds),
                size(cost.memory),
                size(cost.disk),
                download_text(cost),
            ]
        else:
            needs = ["-"] * 4
        rows.append(
            (str(entry.job), shorten(why(entry), 44, placeholder=" ..."), *needs)
        )
    todo = [entry.cost for entry in entries if entry.reasons]
    cropped = [
        f"{entry.job}: {', '.join(entry.reasons)}\n"
        for entry in entries
        if len(why(entry)) > 44
    ]
    text = aligned(rows) + "\n" + "".join(cropped) + ("\n" if cropped else "")
    text += f"{len(todo)} of {len(entries)} to run"
    if todo:
        each = f" with {threads} thread{'s' * (threads != '1')} each" if threads else ""
        text += f", {at_once} at a time{each}: {total(todo, at_once)}"
    sources = sorted({cost.source for cost in todo if cost.source})
    return text + "\n" + (f"Expected from {'; '.join(sources)}.\n" if sources else "")


def why(entry: Entry) -> str:
    """Return why an entry is to be run, four reasons at most."""
    more = f" and {len(entry.reasons) - 4} more" if len(entry.reasons) > 4 else ""
    return ", ".join(entry.reasons[:4]) + more or UNCHANGED


def status_text(states: Mapping[Job, str]) -> str:
    """Return a table of chapters and seeds for each profile."""
    parts = []
    for profile in dict.fromkeys(job.profile for job in states):
        mine = {
            (job.chapter, job.seed): text
            for job, text in states.items()
            if job.profile == profile
        }
        seeds = sorted({seed for _, seed in mine})
        rows = [(profile, *(f"seed {seed}" for seed in seeds))]
        for chapter in dict.fromkeys(chapter for chapter, _ in mine):
            rows.append((chapter, *(mine.get((chapter, seed), "-") for seed in seeds)))
        parts.append(aligned(rows))
    return "\n".join(parts)


class Lines:
    """A line to stderr whenever a run begins or ends, and one a minute in between."""

    def __init__(self, entries: Sequence[Entry], every: float = 60.0) -> None:
        """Number the entries as they stand; ``every`` seconds at the latest
        something is said."""
        self._numbers = {
            id(entry): number for number, entry in enumerate(entries, start=1)
        }
        self._every = every
        self._said = time.monotonic()

    def changed(self, entry: Entry) -> None:
        """Print an entry's new state."""
        self._say(self.line(entry))

    def tick(self, entries: Sequence[Entry], left: str) -> None:
        """Print how far everything is, if nothing was printed for a while."""
        if time.monotonic() - self._said < self._every:
            return
        running = [f"{e.job} {_at(e)}" for e in entries if e.state == RUNNING]
        self._say(
            f"... {counts(entries)}{', ' + left if left else ''}: {'; '.join(running)}"
        )

    def line(self, entry: Entry) -> str:
        """Return what is to be said of an entry."""
        words = {
            RUNNING: f"running ({why(entry)})",
            QUEUED: entry.message
            or f"queued as Slurm's job {getattr(entry.handle, 'job_id', '?')}",
            UNCHANGED: "unchanged, not run again",
        }
        text = words.get(entry.state) or f"{entry.state}, {entry.message}"
        return f"[{self._numbers[id(entry)]}/{len(self._numbers)}] {entry.job}: {text}"

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self._said = time.monotonic()


class LiveTable(Lines):
    """Chapters and seeds as a table that stays where it is; what ended
    is told above it."""

    def __init__(
        self, entries: Sequence[Entry], console: Console | None = None
    ) -> None:
        """Show ``entries`` on ``console``, by default the terminal at stderr."""
        super().__init__(entries)
        self._entries = list(entries)
        self._left = ""
        self._live = Live(
            console=console or Console(stderr=True),
            refresh_per_second=2,
            get_renderable=self.render,
        )

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def changed(self, entry: Entry) -> None:
        """Tell failures in full above the table; the table shows the rest."""
        if entry.state in (FAILED, SKIPPED):
            self._live.console.print(Text(self.line(entry)))

    def tick(self, entries: Sequence[Entry], left: str) -> None:
        """Keep the time left; the table draws itself anew."""
        self._left = left

    def render(self) -> Table:
        """Return the table as it stands."""
        seeds = list(dict.fromkeys(entry.job.seed for entry in self._entries))
        caption = Text(
            counts(self._entries) + (f", {self._left}" if self._left else "")
        )
        table = Table(caption=caption, caption_justify="left", title_justify="left")
        table.add_column(self._entries[0].job.profile)
        for seed in seeds:
            table.add_column(f"seed {seed}")
        found = {(entry.job.chapter, entry.job.seed): entry for entry in self._entries}
        for chapter in dict.fromkeys(entry.job.chapter for entry in self._entries):
            table.add_row(chapter, *(cell_text(found[chapter, seed]) for seed in seeds))
        return table


def cell_text(entry: Entry) -> Text:
    """Return an entry's state as a cell of the table: a sign, words,
    and how far it is."""
    text = f"{_SIGNS[entry.state]} {entry.state}"
    if entry.state == RUNNING:
        rest = f", {duration(entry.left)} left" if entry.left is not None else ""
        text = f"{_SIGNS[RUNNING]} {_at(entry)}{rest}"
    elif entry.state == DONE:
        text = f"{_SIGNS[DONE]} {entry.message}"
    return Text(text, style=_STYLES.get(entry.state, ""))


def _at(entry: Entry) -> str:
    where = f"cell {entry.cell[0]}/{entry.cell[1]}" if entry.cell[0] else "starting"
    return f"{where}, {duration(entry.seconds)}"


def counts(entries: Sequence[Entry]) -> str:
    """Return how many entries are in which state: "2 running, 3 waiting, 1 done"."""
    states = [entry.state for entry in entries]
    order = (RUNNING, QUEUED, WAITING, DONE, UNCHANGED, FAILED, SKIPPED)
    return ", ".join(
        f"{states.count(state)} {state}" for state in order if state in states
    )
