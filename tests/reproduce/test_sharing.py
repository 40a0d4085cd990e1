"""How runs share a machine: a pure choice, and what it is made from."""

from __future__ import annotations

import os
from dataclasses import astuple

import psutil
import pytest

from minilib.reproduce import batch, commands
from minilib.reproduce.costs import Cost
from minilib.reproduce.jobs import Job
from minilib.reproduce.sharing import MEMORY, share
from minilib.reproduce.surroundings import cores, free_memory

GIB = 2**30


@pytest.mark.parametrize(
    ("count", "runs", "expected"),
    [
        (1, 5, (1, 1)),
        (2, 5, (2, 1)),
        (4, 5, (4, 1)),
        (8, 5, (5, 1)),
        (64, 5, (5, 1)),
        (64, 100, (64, 1)),
        (2, 1, (1, 1)),
        (64, 1, (1, 1)),
        (2, 0, (1, 1)),
    ],
)
def test_one_run_per_core_with_one_thread_however_many_runs_there_are(
    count, runs, expected
):
    assert astuple(share(count, 512 * GIB, runs)) == expected


@pytest.mark.parametrize(
    ("memory", "need", "expected"),
    [
        (8 * GIB, MEMORY, (2, 1)),
        (8 * GIB, GIB, (5, 1)),
        (8 * GIB, 5 * GIB, (1, 1)),
        (GIB, MEMORY, (1, 1)),
    ],
)
def test_memory_limits_the_runs(memory, need, expected):
    assert astuple(share(8, memory, 5, need)) == expected


def test_what_the_user_asks_for_is_kept():
    assert astuple(share(2, GIB, 5, jobs=1)) == (1, 1)
    assert astuple(share(2, GIB, 5, jobs=4)) == (4, 1), "whatever cores and memory"
    assert astuple(share(8, 64 * GIB, 5, jobs=2)) == (2, 1)
    assert astuple(share(8, 64 * GIB, 2, jobs=9)) == (2, 1), "no more than there are"


def test_a_gpu_gets_one_run():
    assert astuple(share(16, 64 * GIB, 5, gpus=1)) == (1, 16)
    assert astuple(share(16, 64 * GIB, 5, gpus=8)) == (5, 2)
    assert astuple(share(16, 64 * GIB, 1, gpus=8)) == (1, 2)
    assert astuple(share(16, 64 * GIB, 5, jobs=2, gpus=1)) == (2, 16)


def test_a_run_of_several_processes_counts_as_so_many():
    assert astuple(share(8, 64 * GIB, 5, processes=2)) == (4, 1)
    assert astuple(share(8, 64 * GIB, 2, processes=2)) == (2, 1)
    assert astuple(share(2, 64 * GIB, 5, processes=8)) == (1, 1)
    assert astuple(share(16, 64 * GIB, 5, gpus=8, processes=8)) == (1, 2)


@pytest.mark.parametrize("gpus", [None, 1, 4])
def test_threads_do_not_depend_on_runs_memory_and_jobs(gpus):
    chosen = {
        share(16, memory * GIB, runs, jobs=jobs, gpus=gpus).threads
        for memory in (1, 1024)
        for runs in (1, 3, 200)
        for jobs in (None, 1, 5)
    }
    assert chosen == {1 if gpus is None else 16 // gpus}


def test_limits_of_a_container(tmp_path):
    free, all_cores = psutil.virtual_memory().available, cores(tmp_path)
    assert all_cores == len(os.sched_getaffinity(0))
    assert free_memory(tmp_path) == pytest.approx(free, rel=0.5)
    for quota, expected in {
        "max 100000": all_cores,
        "100000 100000": 1,
        "50000 100000": 1,
        "900000000 100000": all_cores,
    }.items():
        (tmp_path / "cpu.max").write_text(quota + "\n")
        assert cores(tmp_path) == expected, quota
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert free_memory(tmp_path) == 2000000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 2000000


def settings(monkeypatch, memory, arguments=(), parameters=None, used="cpu"):
    """Settings of a batch of four runs that need ``memory``, of which one is done."""
    from minilib.__main__ import _parser

    monkeypatch.setattr(commands, "cores", lambda: 4)
    monkeypatch.setattr(commands, "free_memory", lambda: 8 * GIB)
    job = Job("clip", "quick", 0, None, None, parameters or {})
    entries = [batch.Entry(job, ["not run yet"], Cost(memory=memory)) for _ in range(3)]
    entries.append(batch.Entry(job, [], Cost(memory=99 * GIB)))
    device = {"asked": used, "used": used, "name": "X"}
    options = _parser().parse_args(["reproduce", "--device", used, *arguments])
    found = commands._settings(options, device, entries)
    return found.at_once, found.threads


def test_the_runner_shares_by_what_the_plan_knows(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert settings(monkeypatch, GIB) == (3, 1)
    assert settings(monkeypatch, None) == (2, 1), "3 GiB where nothing is known"
    assert settings(monkeypatch, 6 * GIB) == (1, 1)
    assert settings(monkeypatch, GIB, ["--jobs", "1"]) == (1, 1)
    assert settings(monkeypatch, GIB, ["--executor", "debug"]) == (1, 1)
    assert settings(monkeypatch, GIB, parameters={"devices": 2}) == (2, 1)
    assert settings(monkeypatch, GIB, used="cuda:1") == (1, 4)
    slurm = ["--executor", "slurm", "--time-limit", "1h"]
    assert settings(monkeypatch, GIB, slurm) == (3, None), "its nodes are others"


def test_the_longest_runs_begin_first_when_several_run(monkeypatch, tmp_path):
    begun = []

    class Workers:
        local, at_once = True, 2

        def start(self, orders):
            begun.extend(order.job.chapter for order in orders)
            return orders

    class View:
        def changed(self, entry):
            pass

    def order_of(at_once):
        begun.clear()
        Workers.at_once = at_once
        costs = {"short": 10.0, "long": 90.0, "unknown": None, "middle": 50.0}
        entries = [
            batch.Entry(
                Job(name, "quick", 0, tmp_path, tmp_path, {}), ["new"], Cost(cost)
            )
            for name, cost in costs.items()
        ]
        chosen = batch.Settings(at_once=at_once)
        for _ in entries:
            batch._start(entries, Workers(), chosen, View())
            for entry in entries:
                entry.handle = None
        return begun

    assert order_of(1) == ["short", "long", "unknown", "middle"]
    assert order_of(2) == ["unknown", "long", "middle", "short"]
