"""Stand-ins for sbatch, srun, sacct and scancel: they check the script and run its
tasks as processes here.

Jobs lie in the folder FAKE_SLURM, each with its script; a file per task holds the
number of its process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

COMMANDS = ("sbatch", "srun", "sacct", "scancel")
FIRST = 4711


def install(folder: Path) -> Path:
    """Make the commands in ``folder``/bin and return that folder of programs."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in COMMANDS:
        path = programs / name
        path.write_text(
            f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n'
        )
        path.chmod(0o755)
    return programs


def sbatch(path: str) -> None:
    """Check a submission script as sbatch would, start its tasks, and print
    the job's number."""
    text = Path(path).read_text()
    if not text.startswith("#!"):
        sys.exit("sbatch: error: This does not look like a batch script")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.MULTILINE))
    for name in ("time", "output", "error", "job-name"):
        if name not in options:
            sys.exit(f"sbatch: error: the script has no --{name}")
    if options.get("partition") == "none":
        sys.exit("sbatch: error: invalid partition specified: none")
    folder = Path(os.environ["FAKE_SLURM"])
    job = FIRST + len(list(folder.glob("*.sh")))
    (folder / f"{job}.sh").write_text(text)
    last = (
        int(re.fullmatch(r"0-(\d+)%\d+", options["array"])[1])
        if "array" in options
        else None
    )
    for task in [None] if last is None else range(last + 1):
        number = str(job) if task is None else f"{job}_{task}"
        variables = {
            "SLURM_JOB_ID": str(job),
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
        }
        variables |= {
            "SLURM_NODEID": "0",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "node1",
        }
        if task is not None:
            variables |= {
                "SLURM_ARRAY_JOB_ID": str(job),
                "SLURM_ARRAY_TASK_ID": str(task),
            }
        process = subprocess.Popen(
            ["bash", str(path)], env={**os.environ, **variables},
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        (folder / f"{number}.pid").write_text(str(process.pid))
    print(f"Submitted batch job {job}")


def srun(*arguments: str) -> None:
    """Run the command behind srun's own options."""
    rest = list(arguments)
    while rest[0].startswith("-"):
        rest = rest[1:] if rest[0] == "--unbuffered" or "=" in rest[0] else rest[2:]
    os.execvp(rest[0], rest)


def sacct(*_: str) -> None:
    """Print the states of all tasks."""
    print("JobID|State|NodeList")
    for path in Path(os.environ["FAKE_SLURM"]).glob("*.pid"):
        pid = int(path.read_text())
        alive = (
            psutil.pid_exists(pid)
            and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        )
        print(f"{path.stem}|{'RUNNING' if alive else 'COMPLETED'}|node1")


def scancel(number: str) -> None:
    """End a task with all that it started."""
    process = psutil.Process(
        int((Path(os.environ["FAKE_SLURM"]) / f"{number}.pid").read_text())
    )
    for one in [*process.children(recursive=True), process]:
        one.kill()


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "sacct": sacct, "scancel": scancel}[sys.argv[1]](
        *sys.argv[2:]
    )
