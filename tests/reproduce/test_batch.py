"""Batches: processes of their own, several at once, killed and started again, failures
that stay where they are."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import psutil
import pytest
from rich.console import Console
from tiny_chapter import RECORD, gated, starts, wait_for, write_notebook

from minilib.__main__ import main
from minilib.reproduce import batch, commands, views
from minilib.reproduce.costs import Cost, expected, makespan, total
from minilib.reproduce.jobs import Job, plan
from minilib.reproduce.running import lock_of, run
from minilib.reproduce.texts import duration, parse_duration, size


@pytest.fixture
def two_chapters(chapters, tmp_path):
    """Two chapters whose odd seeds wait in the middle for the file ``gate``; starts are
    listed in ``log``."""
    wait = gated(tmp_path / "gate", tmp_path / "log")
    for name, number in (("tiny", 1), ("other", 2)):
        write_notebook(
            chapters,
            RECORD.replace('"tiny"', f'"{name}"'),
            wait,
            name=f"{number:02}_{name}",
        )
    return chapters


def options(chapters, runs, *more):
    common = ("--device", "cpu", "--jobs", "1")
    return [
        "reproduce",
        "--notebooks",
        str(chapters),
        "--out",
        str(runs),
        *common,
        *more,
    ]


def gone(pid):
    return (
        not psutil.pid_exists(pid)
        or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    )


def contents(runs):
    """What a batch measured, and the files of each of its runs."""
    found = {}
    for path in sorted(runs.glob("*/quick/seed*")):
        names = tuple(sorted(file.name for file in path.iterdir()))
        found[str(path.relative_to(runs))] = (
            names,
            json.loads((path / "result.json").read_text()),
        )
    return found


def test_killed_in_the_middle_and_started_again(two_chapters, tmp_path, start, capsys):
    gate, log = tmp_path / "gate", tmp_path / "log"
    flags = ("--seeds", "0..1", "--jobs", "2", "--keep-going")
    gate.touch()
    assert (
        main(
            options(
                two_chapters, tmp_path / "undisturbed", *flags, "--executor", "debug"
            )
        )
        == 0
    )
    undisturbed = contents(tmp_path / "undisturbed")
    assert len(undisturbed) == 4
    gate.unlink()
    log.unlink()

    # Both even seeds end; the two that wait in the middle take both places.
    runs = tmp_path / "runs"
    runner = start(*options(two_chapters, runs, *flags))
    done = [runs / name / "quick" / "seed0" / "run.json" for name in ("tiny", "other")]
    wait_for(lambda: all(path.exists() for path in done) and len(starts(log)) == 4)
    stamps = [path.stat().st_mtime_ns for path in done]
    kernels = {chapter: pid for chapter, seed, _, pid in starts(log) if seed == 1}
    checkpoints = [
        runs / name / "quick" / "seed1" / "checkpoint.txt" for name in kernels
    ]
    wait_for(lambda: all(path.exists() for path in checkpoints))
    os.kill(kernels["tiny"], signal.SIGKILL)
    failure = runs / "tiny" / "quick" / "seed1" / "failure.json"
    wait_for(failure.exists)
    assert "the kernel died" in failure.read_text()
    family = psutil.Process(runner.pid).children(recursive=True)
    assert kernels["other"] in {process.pid for process in family}, (
        "the other run is unharmed"
    )
    runner.kill()
    runner.wait()
    wait_for(lambda: all(gone(process.pid) for process in family))
    for folder in (
        runs / "tiny" / "quick" / "seed1",
        runs / "other" / "quick" / "seed1",
    ):
        assert (
            not (folder / "run.json").exists()
            and not (folder / "notebook.ipynb").exists()
        )
    capsys.readouterr()
    assert main(["status", "--notebooks", str(two_chapters), "--out", str(runs)]) == 1
    told = capsys.readouterr().out
    assert re.search(r"tiny +done, .* failed", told)
    assert re.search(r"other +done, .* interrupted ", told)

    gate.touch()
    assert main(options(two_chapters, runs, *flags)) == 0
    assert contents(runs) == undisturbed, "the same results, and nothing left over"
    assert [path.stat().st_mtime_ns for path in done] == stamps, (
        "no finished run was repeated"
    )
    again = sorted(begun[:3] for begun in starts(log)[4:])
    assert again == [("other", 1, 1), ("tiny", 1, 1)], (
        "what was cut short went on from its checkpoint"
    )
    capsys.readouterr()
    assert main(["status", "--notebooks", str(two_chapters), "--out", str(runs)]) == 0
    assert main(options(two_chapters, runs, *flags)) == 0
    assert (
        capsys.readouterr().err.count("unchanged, not run again") == 4
        and len(starts(log)) == 6
    )


def test_one_runner_a_folder_and_ctrl_c(two_chapters, tmp_path, start, capsys):
    runs = tmp_path / "runs"
    flags = options(two_chapters, runs, "--chapters", "tiny", "--seeds", "1")
    runner = start(*flags)
    wait_for(lambda: starts(tmp_path / "log"))
    assert main(options(two_chapters, runs, "--chapters", "other")) == 3
    told = capsys.readouterr().err
    assert (
        f"another runner works in {runs}" in told and f"process {runner.pid} on" in told
    )
    assert not (runs / "other").exists()
    assert (
        main(
            [
                "clean",
                "--unfinished",
                "--notebooks",
                str(two_chapters),
                "--out",
                str(runs),
            ]
        )
        == 3
    )
    capsys.readouterr()
    main(["status", "--notebooks", str(two_chapters), "--out", str(runs)])
    assert re.search(
        "tiny .* running (in code cell . of 4|at its start), ", capsys.readouterr().out
    )
    children = psutil.Process(runner.pid).children(recursive=True)
    os.killpg(runner.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches every process
    _, told = runner.communicate(timeout=200)
    assert (
        runner.returncode == 130
        and "The same command goes on" in told
        and "Traceback" not in told
    ), told
    assert all(gone(process.pid) for process in children), (
        "the kernel goes with its runner"
    )
    assert not (runs / "tiny" / "quick" / "seed1" / "run.json").exists()
    # The lock went with it.
    (tmp_path / "gate").touch()
    assert main(flags) == 0 and starts(tmp_path / "log")[-1][:3] == ("tiny", 1, 1)


def test_a_process_that_is_killed_leaves_the_others_alone(chapters, runs, capsys):
    write_notebook(
        chapters,
        RECORD,
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        name="02_orphan",
    )
    assert main(options(chapters, runs, "--jobs", "2")) == 1
    told = capsys.readouterr().err
    assert (
        "orphan quick seed 0: failed, its process ended without a word (killed from "
        "outside" in told
    )
    assert "tiny quick seed 0: done" in told
    assert not (runs / "orphan" / "quick" / "seed0" / "run.json").exists()


def test_time_limit(chapters, runs, capsys):
    write_notebook(chapters, RECORD, "import time; time.sleep(600)")
    assert (
        main(options(chapters, runs, "--executor", "debug", "--time-limit", "4s")) == 1
    )
    told = capsys.readouterr().err
    assert (
        "tiny quick seed 0: failed, stopped at its time limit of 4 s in code cell"
        in told
    )
    assert not (runs / "tiny" / "quick" / "seed0" / "run.json").exists()


def test_seeds_after_a_failure_wait_for_keep_going(chapters, runs, capsys):
    write_notebook(chapters, "raise ValueError(seed)")
    debug = ("--executor", "debug", "--seeds", "0..2")
    assert main(options(chapters, runs, *debug)) == 1
    told = capsys.readouterr().err
    assert (
        told.count("failed, ValueError") == 1
        and told.count("not run, seed 0 failed; --keep-going") == 2
    )
    assert main(options(chapters, runs, *debug, "--keep-going")) == 1
    assert capsys.readouterr().err.count("failed, ValueError") == 3


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(
            "a disk that fills up needs mount, and this machine has no such command"
        )
    if done.returncode:
        pytest.skip(
            "a disk that fills up needs a small tmpfs, which only root may mount "
            f"here: {done.stderr.strip()}"
        )
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk(chapters, small_disk, capsys):
    fill = RECORD + (
        "\nif not (folder.parents[3] / 'room').exists(): (folder / "
        "'large').write_bytes(bytes(2**23))"
    )
    write_notebook(chapters, fill.replace('"tiny"', '"large"'), name="02_large")
    write_notebook(chapters, RECORD.replace('"tiny"', '"after"'), name="03_after")
    runs = small_disk / "runs"
    flags = options(chapters, runs, "--executor", "debug")
    assert main(flags) == 1
    told = capsys.readouterr().err
    assert "tiny quick seed 0: done" in told
    for name in ("large", "after"):
        assert re.search(
            rf"{name} quick seed 0: failed, the disk is full \(\d.* free at "
            r".*small/runs\)",
            told,
        ), told
        assert not (runs / name / "quick" / "seed0" / "run.json").exists()
    assert main(flags[:-2] + ["--executor", "debug", "--chapters", "tiny"]) == 0
    assert "tiny quick seed 0: unchanged" in capsys.readouterr().err, (
        "what was finished stands"
    )
    # With room again the same command goes on.
    assert (
        main(
            ["clean", "--unfinished", "--notebooks", str(chapters), "--out", str(runs)]
        )
        == 0
    )
    assert (
        not (runs / "large" / "quick" / "seed0").exists()
        and (runs / "tiny" / "quick" / "seed0").exists()
    )
    (small_disk / "room").touch()
    assert main(flags) == 0


def test_dry_run_says_what_it_would_cost_and_writes_nothing(chapters, runs, capsys):
    debug = ("--executor", "debug")
    assert main(["plan", *options(chapters, runs, "--seeds", "0..1")[1:]]) == 0
    told = capsys.readouterr().out
    assert re.search(
        "tiny quick seed 1 +not run yet +unknown +unknown +unknown +none", told
    )
    assert "2 of 2 to run" in told and "time unknown" in told and not runs.exists()
    assert main(options(chapters, runs, *debug)) == 0
    path = runs / "tiny" / "quick" / "seed0" / "run.json"
    about = json.loads(path.read_text())
    costs = {
        "wall_seconds": 90.0,
        "peak_memory_bytes": 2**31,
        "disk_bytes": 3 * 2**20,
        "downloaded_bytes": 2**20,
    }
    path.write_text(json.dumps(about | costs))
    assert (
        main(
            options(
                chapters, runs, "--seeds", "0..4", "--jobs", "2", "--dry-run", *debug
            )
        )
        == 0
    )
    told = capsys.readouterr().out
    assert re.search("tiny quick seed 0 +unchanged +- ", told)
    assert re.search(
        "tiny quick seed 1 +not run yet +1:30 min +2.0 GiB +3 MiB +1 MiB", told
    )
    assert re.search(
        "4 of 5 to run, 2 at a time with [0-9]+ threads? each: about 3:00 min", told
    )
    expected = (
        "about 3:00 min, up to 4.0 GiB of memory, 12 MiB of disk, downloads: 4 MiB"
    )
    assert expected in told and "earlier runs here" in told
    assert not (runs / "tiny" / "quick" / "seed1").exists()


def test_expected_costs(tmp_path):
    job = Job("clip", "full", 0, tmp_path, tmp_path / "runs", {})
    assert expected(job, "cpu", tmp_path) == Cost(download=0.0)
    device = {"used": "cpu", "name": "X"}
    about = {"wall_seconds": 60, "peak_memory_bytes": 5, "cores": 2, "device": device}
    (tmp_path / "clip.full.json").write_text(
        json.dumps({"runs": [{"environment": about}]})
    )
    assert expected(job, "cpu", tmp_path) == Cost(
        60, 5, None, 0.0, "the records (2 cores, X)"
    )
    assert expected(job, "cuda", tmp_path).seconds is None, (
        "another device tells nothing"
    )
    assert makespan([3, 2, 2], 2) == (4, False)
    assert makespan([3, None], None) == (3, True) and makespan([], 1) == (0, False)
    assert total([Cost(60), Cost()], 1).startswith("more than 1:00 min, memory unknown")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400)]
)
def test_time_limits(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "fast", "0s"])
def test_wrong_time_limits(chapters, runs, text, capsys):
    with pytest.raises(SystemExit):
        main(options(chapters, runs, "--time-limit", text))
    assert "write 90s, 30m, 2h" in capsys.readouterr().err


def test_numbers_as_people_write_them():
    assert [duration(value) for value in (9.6, 89, 3660, None)] == [
        "10 s",
        "1:29 min",
        "1:01 h",
        "unknown",
    ]
    assert [size(value) for value in (0, 3 * 2**10, 1.5 * 2**30, None)] == [
        "0 B",
        "3 KiB",
        "1.5 GiB",
        "unknown",
    ]


def test_runs_at_once_share_processors_and_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    alone = batch._environment(0, batch.Settings(gpus=("0", "1")))
    assert alone == {"CUDA_VISIBLE_DEVICES": None}, "one run sees everything"
    settings = batch.Settings(at_once=3, threads=2, gpus=("0", "1"))
    two = [batch._environment(slot, settings) for slot in range(3)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in two] == [
        "0",
        "1",
        "0",
    ]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        assert {environment[name] for environment in two} == {"2"}
    monkeypatch.setenv("MKL_NUM_THREADS", "4")
    found = batch._environment(0, settings)
    assert found["OMP_NUM_THREADS"] == "2" and "MKL_NUM_THREADS" not in found
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert set(batch._environment(0, settings)) == {"CUDA_VISIBLE_DEVICES"}, (
        "what was set stays"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert commands._gpus("auto", {"used": "cuda"}) == ("4", "6")
    assert (
        commands._gpus("cuda:0", {"used": "cuda:0"})
        == ()
        == commands._gpus("cpu", {"used": "cpu"})
    )


def test_a_run_sees_its_share(chapters, runs, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "seen")
    names = "('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')"
    show = (
        "import os; (folder / 'seen').write_text(' '.join(os.environ[name] for name "
        f"in {names}))"
    )
    write_notebook(chapters, RECORD, show)
    assert main(options(chapters, runs, "--seeds", "0..1", "--jobs", "2")) == 0
    folder = runs / "tiny" / "quick" / "seed1"
    threads, gpus = (folder / "seen").read_text().split()
    assert threads == "1" and gpus == "seen"
    assert json.loads((folder / "run.json").read_text())["threads"] == threads


def test_table_of_chapters_and_seeds(tmp_path):
    jobs = [
        Job(name, "full", seed, tmp_path, tmp_path, {})
        for name in ("clip", "lseg")
        for seed in range(2)
    ]
    entries = [batch.Entry(job, ["not run yet"], Cost(100.0)) for job in jobs]
    entries[0].state, entries[0].message = batch.DONE, "1:40 min, 1.7 GiB"
    entries[1].state, entries[1].cell, entries[1].seconds = batch.RUNNING, (5, 34), 30.0
    entries[2].state, entries[2].message = batch.FAILED, "the kernel died"
    console = Console(
        record=True, width=100, force_terminal=True, file=open(os.devnull, "w")
    )
    with views.LiveTable(entries, console) as view:
        view.changed(entries[2])
        view.tick(entries, batch.time_left(entries, 1))
        console.print(view.render())
    told = console.export_text()
    assert "[3/4] lseg full seed 0: failed, the kernel died" in told
    assert re.search(
        r"clip .*✔ 1:40 min, 1.7 GiB.*cell 5/34, 30 s, 1:10 min left", told
    )
    assert re.search(r"lseg .*✘ failed.*· waiting", told)
    assert "1 running, 1 waiting, 1 done, 1 failed, about 2:50 min left" in told
    entries[3].cost = Cost()
    assert batch.time_left(entries, 1) == "more than 1:10 min left"


def test_clean_lists_and_removes(chapters, runs, capsys):
    write_notebook(chapters, "raise ValueError", name="02_bad")
    flags = ["--notebooks", str(chapters), "--out", str(runs)]
    assert main(["reproduce", "--executor", "debug", *flags]) == 1
    good, bad = (runs / name / "quick" / "seed0" for name in ("tiny", "bad"))
    (good / "last.pt").write_bytes(bytes(2**20))
    (runs / "mine" / "quick" / "seed0").mkdir(parents=True)  # not made by a run
    capsys.readouterr()
    assert main(["clean", *flags]) == 0
    told = capsys.readouterr().out
    assert re.search("--unfinished +1 ", told) and re.search(
        "--checkpoints +1 +1 MiB", told
    )
    assert re.search("--stale +0 ", told) and re.search("--all +2 ", told)
    assert good.exists() and bad.exists(), "without a request nothing is removed"
    assert main(["clean", "--checkpoints", "--unfinished", *flags]) == 0
    assert (
        not bad.exists()
        and not (good / "last.pt").exists()
        and (good / "run.json").exists()
    )
    write_notebook(chapters, RECORD, "1")
    assert main(["status", *flags]) == 1
    assert (
        "tiny   stale: the notebook has 3 code cells, not 2" in capsys.readouterr().out
    )
    assert main(["clean", "--stale", *flags]) == 0
    assert not good.exists() and (runs / "mine" / "quick" / "seed0").exists()


def test_a_run_at_work_is_left_alone(chapters, runs, monkeypatch):
    (job,) = plan(["all"], "quick", [0], runs, folder=chapters)
    monkeypatch.setattr("minilib.reproduce.running.LOCK_SECONDS", 0.1)
    with lock_of(job):
        outcome = run(job)
    assert (
        outcome.state == "failed"
        and "another process is still at this run" in outcome.message
    )
    assert not (job.folder / "attempt.json").exists()
    assert run(job).state == "done"
