"""Contenders timed in turns within one run, and the table of their ratios.

A machine's speed drifts; what holds is the ratio of two things measured in alternation.
Nothing here asserts on time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

ROWS = pytest.StashKey[list[tuple[str, ...]]]()
HEADER = ("measured", "ours", "against", "theirs", "theirs / ours", "aim")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="benchmarks: fewer rounds and smaller batches",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@dataclass
class Contest:
    """Times our function with pytest-benchmark and, before each of its rounds, every
    other contender once."""

    benchmark: BenchmarkFixture
    clock: Callable[[], float]
    rows: list[tuple[str, ...]]
    quick: bool

    def run(
        self,
        title: str,
        ours: Callable[[], object],
        others: dict[str, Callable[[], object]],
        n: int,
        aim: str = "",
    ) -> None:
        """Measure; times are reported per item, of which a call handles ``n``."""
        times: dict[str, list[float]] = {name: [] for name in others}

        def measure_others() -> None:
            for name, other in others.items():
                began = self.clock()
                other()
                times[name].append(self.clock() - began)

        rounds = 5 if self.quick else 15
        self.benchmark.pedantic(
            ours, setup=measure_others, rounds=rounds, warmup_rounds=1
        )
        mine = self.benchmark.stats.stats.median
        self.benchmark.extra_info["seconds per item"] = mine / n
        for name, measured in times.items():
            theirs = statistics.median(measured[1:])
            self.benchmark.extra_info[f"{name} / ours"] = theirs / mine
            ratio = f"{theirs / mine:.2f} x"
            self.report(title, _time(mine / n), name, _time(theirs / n), ratio, aim)

    def report(self, *cells: str) -> None:
        """Add a row to the final table; cells as in HEADER."""
        self.rows.append(cells)


@pytest.fixture
def contest(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Contest:
    """Return the means to compare ours with others; ``--benchmark-timer``
    names another clock."""
    clock = benchmark._timer  # what --benchmark-timer named
    return Contest(
        benchmark,
        clock,
        request.config.stash[ROWS],
        request.config.getoption("--quick", default=False),
    )


@pytest.fixture(params=["one thread", "all threads"])
def threads(request: pytest.FixtureRequest):
    """Run on one thread, and on as many as torch takes by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if request.param == "one thread" else before)
    yield request.param if request.param == "one thread" else f"{before} threads"
    torch.set_num_threads(before)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    table = [HEADER, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    terminalreporter.section("ratios, measured in turns")
    for row in table:
        terminalreporter.write_line(
            "  ".join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
        )


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} us" if seconds < 1e-3 else f"{1e3 * seconds:.1f} ms"
