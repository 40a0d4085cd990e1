"""Batches through Slurm. There is none here: stand-ins check the script and run its
tasks as processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import fake_slurm
import pytest
from tiny_chapter import RECORD, gated, starts, wait_for, write_notebook

from minilib.__main__ import main


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of a Slurm that runs its jobs as processes of this machine."""
    programs = fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "slurm"))
    yield tmp_path / "slurm"
    for path in (tmp_path / "slurm").glob("*.pid"):
        subprocess.run(["scancel", path.stem], stderr=subprocess.DEVNULL)


def options(chapters, runs, *more):
    slurm = ("--executor", "slurm", "--time-limit", "90m", "--device", "cpu")
    return [
        "reproduce",
        "--notebooks",
        str(chapters),
        "--out",
        str(runs),
        *slurm,
        *more,
    ]


def test_a_job_array_that_outlives_its_runner(
    chapters, runs, tmp_path, slurm, start, capsys
):
    write_notebook(chapters, RECORD, gated(tmp_path / "gate", tmp_path / "log"))
    resources = (
        "--slurm",
        "partition=gpu",
        "--slurm",
        "gpus_per_node=1",
        "--slurm",
        "cpus_per_task=8",
    )
    flags = options(chapters, runs, "--seeds", "1,3", "--jobs", "7", *resources)
    runner = start(*flags)
    wait_for(lambda: len(starts(tmp_path / "log")) == 2)
    script = (slurm / f"{fake_slurm.FIRST}.sh").read_text()
    for line in (
        "array=0-1%2",
        "time=95",
        "partition=gpu",
        "gpus-per-node=1",
        "cpus-per-task=8",
        "job-name=minilib",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert re.search(r"^srun .* -m submitit.core._submit ", script, re.MULTILINE)

    # The runner may go: the jobs stay, and the same command watches them again.
    runner.send_signal(signal.SIGINT)
    _, told = runner.communicate(timeout=200)
    assert runner.returncode == 130
    assert "Slurm keeps the jobs 4711_0, 4711_1 (scancel ends them)" in told
    (tmp_path / "gate").touch()
    assert main(flags) == 0
    told = capsys.readouterr().err
    assert (
        "tiny quick seed 1: already Slurm's job 4711_0" in told
        and told.count(": done, ") == 2
    )
    assert len(starts(tmp_path / "log")) == 2, "nothing was run twice"
    assert not (slurm / f"{fake_slurm.FIRST + 1}.sh").exists()
    assert main(flags) == 0 and capsys.readouterr().err.count("unchanged") == 2


def test_what_goes_wrong_in_slurm_is_told(chapters, runs, slurm, capsys, monkeypatch):
    # its wait for slow file systems
    monkeypatch.setattr("submitit.SlurmJob._results_timeout_s", 0)
    write_notebook(
        chapters, RECORD, "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    )
    assert main(options(chapters, runs, "--slurm", "partition=none")) == 2
    assert "no run could be started" in capsys.readouterr().err
    assert main(options(chapters, runs, "--slurm", "partitoin=gpu")) == 2
    assert "partitoin" in capsys.readouterr().err
    assert main(options(chapters, runs)) == 1
    assert (
        "tiny quick seed 0: failed, its process failed (Slurm job 4711: COMPLETED)"
        in capsys.readouterr().err
    )


def test_slurm_needs_a_time_limit_and_its_commands(chapters, runs, capsys, monkeypatch):
    arguments = options(chapters, runs)
    arguments.remove("--time-limit")
    arguments.remove("90m")
    assert main(arguments) == 2
    assert "--executor slurm needs --time-limit" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert main(options(chapters, runs)) == 2
    assert 'Could not detect "srun"' in capsys.readouterr().err
