"""The commands about runs: ``reproduce`` (with ``plan``), ``status`` and ``clean``."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from minilib import claims, notebooks
from minilib.files import from_shell
from minilib.parameters import PROFILES, repository
from minilib.reproduce import batch, folders, views
from minilib.reproduce.costs import expected
from minilib.reproduce.executors import EXECUTORS
from minilib.reproduce.inputs import library_digests
from minilib.reproduce.jobs import Job, plan, read_json, what_changed
from minilib.reproduce.running import lock_of
from minilib.reproduce.sharing import MEMORY, share
from minilib.reproduce.surroundings import (
    bytes_under,
    cores,
    describe_device,
    fixed_threads,
    free_memory,
)
from minilib.reproduce.texts import aligned, duration, parse_duration, size

_JOBS = "runs at the same time (default: one per core, as memory allows; one per GPU)"
# so many of an array's jobs may run at the same time, unless --jobs says otherwise
_ARRAY = 256


def reproduce(options: argparse.Namespace) -> int:
    """Make the runs that are not up to date, or with ``--dry-run`` say
    what they would be."""
    jobs = _jobs(options)
    library = library_digests()
    # Slurm's nodes have their own
    threads = None if options.executor == "slurm" else fixed_threads()
    entries = [
        batch.Entry(job, what_changed(job, library, threads), forced=options.force)
        for job in jobs
    ]
    for entry in entries:
        if options.force and not entry.reasons:
            entry.reasons = ["forced"]
    todo = sum(bool(entry.reasons) for entry in entries)
    # Slurm's machines have other devices than this one: there the notebook checks it.
    device = (
        describe_device(options.device)
        if todo and options.executor != "slurm"
        else None
    )
    _expect(entries, options.device, device)
    settings = _settings(options, device, entries)
    if options.dry_run:
        print(views.plan_text(entries, settings.at_once, _threads(settings)))
        _warn_of_room(entries, jobs[0].out)
        return 0
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and todo
    with (views.LiveTable if live else views.Lines)(entries) as view:
        try:
            batch.execute(entries, jobs[0].out, settings, view)
        except KeyboardInterrupt:
            queued = [
                entry.handle.job_id for entry in entries if entry.handle is not None
            ]
            if settings.executor == "slurm" and queued:
                _say(f"Slurm keeps the jobs {', '.join(queued)} (scancel ends them)")
            raise
    return _conclude(entries, jobs, options)


def status(options: argparse.Namespace) -> int:
    """Show how every run under the folder stands; 0 if all are done and up to date."""
    out, folder = (
        runs_folder(options.out),
        options.notebooks or notebooks.notebooks_folder(),
    )
    chapters = notebooks.chapters(folder)
    wanted = _names(options.chapters)
    names = list(chapters) if wanted == ["all"] else wanted
    library = library_digests()
    states: dict[Job, str] = {}
    for profile in options.profiles or PROFILES:
        found = {name: _seeds(out / name / profile, options.seeds) for name in names}
        for name, seeds in found.items():
            # A profile of which nothing was run is shown only if it was asked for.
            for seed in seeds or (
                [0] if options.profiles or any(found.values()) else []
            ):
                job = _job_as_run(
                    name, profile, seed, notebooks.find_chapter(name, folder), out
                )
                states[job] = _state(job, library)
    print(
        views.status_text(states) if states else f"no runs in {out}",
        end="\n" if not states else "",
    )
    _name_damaged(chapters)
    for job in states:
        if (failure := read_json(job.folder / "failure.json")) is not None:
            print(f"{job}: {failure.get('message')} ({failure.get('when')})")
    return 0 if all(state.startswith("done") for state in states.values()) else 1


def clean(options: argparse.Namespace) -> int:
    """Remove what was asked for from the folder of runs; without a request,
    say what there is."""
    out = runs_folder(options.out)
    library = library_digests()
    kinds: dict[str, list[Path]] = {
        "unfinished": [],
        "stale": [],
        "checkpoints": [],
        "all": [],
    }
    locks: dict[Path, Job] = {}
    wanted = _names(options.chapters)
    known = notebooks.chapters(options.notebooks or notebooks.notebooks_folder())
    damaged = _name_damaged(known)
    for folder in sorted(out.glob("*/*/seed*")):
        name, profile, seed = folder.relative_to(out).parts
        if not _is_run(folder) or (wanted != ["all"] and name not in wanted):
            continue
        if (
            options.profiles
            and profile not in options.profiles
            or not re.fullmatch(r"seed\d+", seed)
        ):
            continue
        job = _job_as_run(
            name, profile, int(seed[4:]), known.get(name, Path("gone")), out
        )
        locks[folder] = job
        kinds["all"].append(folder)
        if not (folder / "run.json").exists():
            kinds["unfinished"].append(folder)
        elif name not in damaged and what_changed(job, library):
            kinds["stale"].append(folder)
        if (folder / "run.json").exists():
            kinds["checkpoints"] += sorted(folder.rglob("*.pt"))
    chosen = [kind for kind in kinds if getattr(options, kind)]
    failed = 0
    rows = [
        (f"--{kind}", str(len(paths)), size(sum(map(_bytes, paths))))
        for kind, paths in kinds.items()
    ]
    if not chosen:
        print(aligned([("would remove", "", ""), *rows]), end="")
        return 0
    with batch.only_runner(out):
        for path in dict.fromkeys(path for kind in chosen for path in kinds[kind]):
            job = locks[
                next(folder for folder in (path, *path.parents) if folder in locks)
            ]
            if (lock := _free(job)) is None:
                _say(f"{job}: at work, left alone")
                continue
            try:
                with lock:
                    left = _remove(path, chosen)
            except OSError as error:
                failed += 1
                _say(f"{path} could not be removed: {error.strerror or error}")
                continue
            _say(f"removed {path}" if not left else f"removed {job}; {left}")
    return 1 if failed else 0


def _remove(path: Path, kinds: Sequence[str]) -> str:
    """Remove a checkpoint, or what a run made in its folder; return what is left there,
    in words."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return ""
    if not {"all", "stale"} & set(kinds) and folders.was_set_aside(path):
        folders.put_back(path)
        return "the finished one before it is put back"
    folders.clear(path)
    folders.forget(path)
    try:
        path.rmdir()
    except OSError:
        kept = sorted(folders.listing(path)) or ["folders"]
        return f"left alone, since no run made it: {', '.join(kept[:5])}"
    return ""


_MOST_SEEDS = 10_000  # more is a slip of the finger, and would not fit a table


def parse_seeds(text: str) -> list[int]:
    """Return the seeds in "0", "0,2,5" or "0..4" (ends included),
    each once, in order."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else -1
        if last < first:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list of seeds: write 0, 0,1,2 or 0..4"
            )
        if last - first >= _MOST_SEEDS:
            raise argparse.ArgumentTypeError(
                f"{text!r} is more than {_MOST_SEEDS:,} seeds: write fewer"
            )
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def runs_folder(given: Path | None) -> Path:
    """Return the folder of runs: the given one as the shell means it, else ``runs``
    in the repository."""
    # os.path: unlike pathlib's, it takes a loop of links as it is
    return (
        Path(os.path.realpath(os.path.expanduser(given)))
        if given is not None
        else (repository() or Path.cwd()) / "runs"
    )


def add_commands(commands: Any) -> None:
    """Add ``reproduce``, ``plan``, ``status`` and ``clean`` to the
    subcommands of a parser."""
    command = commands.add_parser(
        "reproduce",
        help="run notebooks headlessly; what is done and unchanged is skipped",
    )
    _add_options_of_runs(command)
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what would run, and what it would cost",
    )
    command.set_defaults(command=reproduce)

    command = commands.add_parser(
        "plan", help="say what reproduce would run, and what it would cost"
    )
    _add_options_of_runs(command)
    command.set_defaults(command=reproduce, dry_run=True)

    command = commands.add_parser(
        "status", help="say how every run stands; 0 if all are done and up to date"
    )
    _add_choice(command)
    command.add_argument(
        "--seeds",
        type=parse_seeds,
        help="0, 0,1,2 or 0..4 (default: those that were begun)",
    )
    command.set_defaults(command=status)

    command = commands.add_parser(
        "clean", help="say what could be removed from the folder of runs, or remove it"
    )
    _add_choice(command)
    command.add_argument(
        "--unfinished",
        action="store_true",
        help="failed and interrupted runs, checkpoints included",
    )
    command.add_argument(
        "--stale",
        action="store_true",
        help="finished runs whose notebook, library or data changed",
    )
    command.add_argument(
        "--checkpoints", action="store_true", help="checkpoints (*.pt) of finished runs"
    )
    command.add_argument("--all", action="store_true", help="every run")
    command.set_defaults(command=clean)


def add_chapters(command: argparse.ArgumentParser) -> None:
    """Add the option ``--chapters`` to a command."""
    command.add_argument(
        "--chapters",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="chapters, or all (default)",
    )


def _add_options_of_runs(command: argparse.ArgumentParser) -> None:
    add_chapters(command)
    command.add_argument(
        "--profile", default="quick", choices=PROFILES, help="default: quick"
    )
    command.add_argument(
        "--seeds", type=parse_seeds, default=[0], help="0, 0,1,2 or 0..4 (default: 0)"
    )
    command.add_argument("--jobs", type=_count, metavar="N", help=_JOBS)
    command.add_argument(
        "--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps"
    )
    command.add_argument(
        "--out", type=Path, help="folder for runs (default: runs in the repository)"
    )
    command.add_argument(
        "-p",
        dest="parameters",
        action="append",
        type=_pair,
        default=[],
        metavar="NAME=VALUE",
        help=(
            "a further parameter of the notebook, for example -p data=FOLDER for "
            "profile photos; repeatable"
        ),
    )
    command.add_argument(
        "--force", action="store_true", help="run even what is done and unchanged"
    )
    command.add_argument(
        "--keep-going",
        action="store_true",
        help="after a failure, also run the other seeds of that chapter",
    )
    command.add_argument(
        "--time-limit",
        type=parse_duration,
        metavar="TIME",
        help="stop a run after 90s, 30m, 2h; Slurm needs one",
    )
    command.add_argument(
        "--executor", choices=EXECUTORS, default="local", help="default: local"
    )
    command.add_argument(
        "--slurm",
        action="append",
        type=_pair,
        default=[],
        metavar="NAME=VALUE",
        help=(
            "an option of sbatch, for example --slurm partition=gpu --slurm "
            "gpus_per_node=1; repeatable"
        ),
    )
    command.add_argument("--notebooks", type=Path, help=argparse.SUPPRESS)


def _add_choice(command: argparse.ArgumentParser) -> None:
    add_chapters(command)
    command.add_argument(
        "--profiles",
        nargs="+",
        choices=PROFILES,
        help="default: all that there are runs of",
    )
    command.add_argument(
        "--out", type=Path, help="folder of runs (default: runs in the repository)"
    )
    command.add_argument("--notebooks", type=Path, help=argparse.SUPPRESS)


def _jobs(options: argparse.Namespace) -> list[Job]:
    extra = from_shell(dict(options.parameters))
    out = runs_folder(options.out)
    names = _names(options.chapters)
    return plan(
        names,
        options.profile,
        options.seeds,
        out,
        options.device,
        extra,
        options.notebooks,
    )


def _expect(
    entries: Sequence[batch.Entry], asked: str, device: Mapping[str, Any] | None
) -> None:
    """Say of each entry what it is expected to cost on the device."""
    # On Slurm "auto" finds the GPU that people ask for there.
    used = asked.replace("auto", "cuda") if device is None else device["used"]
    results = None if repository() is None else claims.results_folder()
    for entry in entries:
        entry.cost = expected(entry.job, used.partition(":")[0], results)


def _settings(
    options: argparse.Namespace,
    device: Mapping[str, Any] | None,
    entries: Sequence[batch.Entry],
) -> batch.Settings:
    todo = [entry.cost.memory or MEMORY for entry in entries if entry.reasons]
    gpus = _gpus(options.device, device)
    settings = batch.Settings(
        executor=options.executor,
        limit=options.time_limit,
        keep_going=options.keep_going,
        device=device,
        gpus=gpus,
        slurm=dict(options.slurm),
    )
    if options.executor == "slurm":  # its nodes are others: their threads are torch's
        return replace(settings, at_once=max(1, min(options.jobs or _ARRAY, len(todo))))
    # A debugger follows one run at a time.
    jobs = options.jobs or (1 if options.executor == "debug" else None)
    on_gpu = device is not None and device["used"] != "cpu"
    chosen = share(
        cores(),
        free_memory(),
        len(todo),
        need=max(todo, default=MEMORY),
        jobs=jobs,
        gpus=max(1, len(gpus)) if on_gpu else None,
        processes=int(entries[0].job.parameters.get("devices", 1)),
    )
    return replace(settings, at_once=chosen.at_once, threads=chosen.threads)


def _threads(settings: batch.Settings) -> str | None:
    """Return the threads of each run as recorded; None where torch chooses."""
    if settings.threads is None:
        return None
    return os.environ.get("OMP_NUM_THREADS", str(settings.threads))


def _conclude(
    entries: Sequence[batch.Entry], jobs: Sequence[Job], options: argparse.Namespace
) -> int:
    """Print the verdicts on what was run and return the exit status."""
    ledgers = [
        name
        for name in dict.fromkeys(job.chapter for job in jobs)
        if name in claims.papers()
    ]
    # only these runs: what else is in the folder may be stale or damaged
    shown = [e.job.folder for e in entries if e.state in (batch.DONE, batch.UNCHANGED)]
    print(claims.table(claims.collect(shown, [options.profile], ledgers)), end="")
    failed = sum(entry.state in (batch.FAILED, batch.SKIPPED) for entry in entries)
    if failed:
        _say(f"{failed} of {len(entries)} runs failed")
    return 1 if failed else 0


def _warn_of_room(entries: Sequence[batch.Entry], out: Path) -> None:
    needed = sum(entry.cost.disk or 0 for entry in entries if entry.reasons)
    folder = next(path for path in (out, *out.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        _say(
            f"the disk of {out} has {size(free)} free, the runs need about "
            f"{size(needed)}"
        )


def _gpus(asked: str, device: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the GPUs to share out: all that are visible, unless one is named
    or there is none."""
    if device is None or device["used"] != "cuda" or ":" in asked:
        return ()
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return tuple(visible.split(","))
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def _job_as_run(name: str, profile: str, seed: int, notebook: Path, out: Path) -> Job:
    """Return the job of a run that exists, with the parameters that it was run with."""
    about = read_json(out / name / profile / f"seed{seed}" / "run.json") or {}
    noted = about.get("parameters")
    parameters = noted if isinstance(noted, dict) else {}
    return Job(name, profile, seed, notebook, out, parameters)


def _state(job: Job, library: Mapping[str, str]) -> str:
    """Return in a few words how a run stands."""
    progress = read_json(job.folder / "progress.json") or {}
    at = (
        f"in code cell {progress['cell']} of {progress['cells']}"
        if progress.get("cell")
        else "at its start"
    )
    if (job.folder / "attempt.json").exists():
        if _free(job) is None:
            return f"running {at}, {duration(progress.get('seconds', 0.0))}"
        return (
            "failed" if (job.folder / "failure.json").exists() else f"interrupted {at}"
        )
    reasons = what_changed(job, library)
    if not reasons:
        run = read_json(job.folder / "run.json") or {}
        return f"done, {duration(run.get('wall_seconds'))}"
    if not (job.folder / "run.json").exists():
        return "failed" if (job.folder / "failure.json").exists() else "not run"
    return f"stale: {reasons[0]}" + (
        f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    )


def _name_damaged(chapters: Mapping[str, Path]) -> set[str]:
    """Say which notebooks cannot be read, and return their chapters."""
    found = set()
    for name, path in chapters.items():
        try:
            notebooks.read(path)
        except (OSError, ValueError) as error:
            _say(f"minilib: {error}")
            found.add(name)
    return found


def _free(job: Job) -> filelock.FileLock | None:
    """Return the lock of a run that no process works at, None if one does."""
    lock = lock_of(job)
    try:
        with lock.acquire(timeout=0):
            return lock
    except filelock.Timeout:
        return None


def _seeds(folder: Path, wanted: Sequence[int] | None) -> list[int]:
    found = (
        int(path.name[4:])
        for path in folder.glob("seed*")
        if re.fullmatch(r"seed\d+", path.name)
    )
    return sorted(found) if wanted is None else list(wanted)


def _names(chapters: Sequence[str]) -> list[str]:
    return [name for text in chapters for name in text.split(",") if name]


def _is_run(folder: Path) -> bool:
    if not folder.is_dir() or folder.is_symlink():
        return False
    known = any((folder / name).exists() for name in folders.OURS)
    return known or folders.was_set_aside(folder) is not None


def _bytes(path: Path) -> int:
    return bytes_under(path) if path.is_dir() else path.stat().st_size


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of runs: write 1, 2, ..."
        )
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=VALUE")
    return name.strip(), value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
