"""The command line: ``minilib reproduce``, ``plan``, ``status``, ``collect``, ...

``python -m minilib`` is the same where the console script is not on the path.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minilib import claims, notebooks
from minilib.files import write_atomically
from minilib.parameters import PROFILES
from minilib.reproduce.batch import FolderInUse
from minilib.reproduce.commands import add_chapters, add_commands, runs_folder
from minilib.reproduce.inputs import library_digests
from minilib.reproduce.jobs import Job, read_json, what_changed

_EXAMPLES = """examples:
  python -m minilib reproduce --chapters clip    quick profile, seed 0, about a minute
  python -m minilib plan --profile full --jobs 2    what would run, and at what cost
  python -m minilib reproduce --chapters clip --profile full --seeds 10..14
  python -m minilib reproduce --chapters clip --profile photos -p data=~/photos
  python -m minilib reproduce --profile full --seeds 10..14 --executor slurm \\
      --time-limit 2h --slurm partition=gpu
  python -m minilib status
  python -m minilib collect                 runs/ -> book/results/
  python -m minilib scoreboard --write      what pages and notebooks quote from records

exit status of every command:
  0    all is well: every run is done or was up to date
  1    some run failed (the others were made), something is stale or was left out,
       or whoever read the output has gone
  2    wrong use, or the machine does not allow it (a file that is missing or damaged,
       no permission, a full disk); one line says what
  3    another process works in the same folder
  130  stopped by Ctrl-C or SIGTERM; the same command continues
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status, see the end of ``--help``."""
    for stream in (sys.stdout, sys.stderr):
        # A console without the sign for "reproduced" shows "?", and a batch that is
        # done stays done.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            _check_choice(options)
            status = options.command(options)
    except FolderInUse as error:
        _say(f"minilib: {error}")
        status = 3
    except KeyboardInterrupt:
        _say("minilib: stopped. The same command goes on from here.")
        status = 130
    except BrokenPipeError:  # whoever read the output has gone
        status = 1
    except OSError as error:
        _say(f"minilib: {_os_text(error)}")
        status = 2
    except ValueError as error:
        _say(f"minilib: {error}")
        status = 2
    except RuntimeError as error:
        # how pathlib reports a loop of links, and a home that ~name does not have
        if not str(error).startswith(("Symlink loop", "Could not determine home")):
            raise
        _say(f"minilib: {error}")
        status = 2
    return _flushed(status)


def _flushed(status: int) -> int:
    """Write out what was printed and return the exit status, which is not 0 if that
    fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or 1
    except OSError as error:
        _say(f"minilib: the output could not be written: {_os_text(error)}")
        status = status or 2
    else:
        return status
    # else Python tries again at its end, and fails with a status of its own
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _os_text(error: OSError) -> str:
    """Return what the system says, without its number."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"minilib: {message}")


def _check_choice(options: argparse.Namespace) -> None:
    """Refuse chapters and folders that are not there, for the commands that only look
    at what there is.

    ``reproduce`` and ``plan`` check theirs themselves: their folder may be new.
    """
    if options.name not in ("status", "clean", "collect", "publish", "scoreboard"):
        return
    for option in ("out", "runs", "results", "notebooks"):
        folder = getattr(options, option, None)
        if folder is None or os.path.isdir(_path(folder)):
            continue
        makes_it = option == "results" and options.name == "collect"
        if not (makes_it and not os.path.lexists(_path(folder))):
            raise ValueError(f"--{option} {folder}: there is no such folder")
    wanted = _split(getattr(options, "chapters", ["all"]))
    if wanted == ["all"]:
        return
    known = notebooks.chapters(options.notebooks or notebooks.notebooks_folder())
    if options.name == "clean":  # a chapter that is gone may have left runs
        runs = runs_folder(options.out)
        known |= {path.name: path for path in runs.glob("*") if path.is_dir()}
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"unknown chapter {name!r}: expected all or some of {', '.join(known)}"
            )


def _collect(options: argparse.Namespace) -> int:
    results = _results(options)
    runs = runs_folder(options.runs)
    left_out: list[str] = []
    library = library_digests()
    written = claims.merge(
        runs,
        results,
        options.profiles,
        stale=lambda folder: _changes_since(folder, library),
        say=left_out.append,
    )
    if written:
        written.append(results / "claims.csv")
        write_atomically(written[-1], claims.summary(results))
    for path in written:
        _say(f"wrote {path}")
    for text in left_out:
        _say(f"minilib: {text}")
    if not written and not left_out:
        _say(f"no finished runs of profile {', '.join(options.profiles)} found")
    print(claims.table(row for row in claims.collect(results) if row.verdict.n), end="")
    return 1 if left_out else 0


def _publish(options: argparse.Namespace) -> int:
    folder = options.notebooks or notebooks.notebooks_folder()
    wanted = _split(options.chapters)
    library = library_digests()
    ready = {}
    for name in notebooks.chapters(folder) if wanted == ["all"] else wanted:
        target = notebooks.find_chapter(name, folder)
        run = runs_folder(options.runs) / name / "quick" / "seed0"
        if not (run / "run.json").is_file():
            raise ValueError(
                f"no finished quick run of {name}: python -m minilib reproduce "
                f"--chapters {name}"
            )
        ready[target] = _outputs(name, run, target, library)
    for target, text in ready.items():  # all of them, or none
        write_atomically(target, text)
        _say(f"stored the outputs in {target}")
    return 0


def _outputs(name: str, run: Path, target: Path, library: Mapping[str, str]) -> str:
    """Return a chapter's notebook with the outputs of a run; ValueError unless that is
    the default run, of the code as it is now."""
    again = f"python -m minilib reproduce --chapters {name} --force"
    about = read_json(run / "run.json") or {}
    defaults = notebooks.read_parameters(notebooks.read(target))
    given = about.get("parameters", {})
    if changed := notebooks.changed_parameters(given, defaults):
        raise ValueError(
            f"{name}: the run in {run} is not the default one, but with "
            f"{', '.join(changed)}, which the page would not say: {again}"
        )
    text = notebooks.with_outputs(run / "notebook.ipynb", target)
    if reasons := _changes_since(run, library, target):
        raise ValueError(
            f"{name}: the run in {run} is stale ({', '.join(reasons[:3])}): {again}"
        )
    return text


def _changes_since(
    folder: Path, library: Mapping[str, str], notebook: Path | None = None
) -> list[str]:
    """Return what has changed since the finished run in a folder, by name.

    Data that are not on this machine, as where the run was made elsewhere, count as
    unchanged.

    Args:
        folder: of the run.
        library: digests of the library as it is now.
        notebook: the chapter's notebook; by default the one that was run.

    Raises:
        ValueError: a notebook is damaged.
    """
    chapter, profile, seed = folder.absolute().parts[-3:]
    about = read_json(folder / "run.json") or {}
    parameters = about.get("parameters", {})
    if notebook is None:
        notebook = _made_from(folder, chapter, about.get("notebook"))
    notebooks.read(notebook)
    notebooks.read(folder / "notebook.ipynb")
    job = Job(chapter, profile, int(seed[4:]), notebook, folder.parents[2], parameters)
    elsewhere = {
        f"data in {name}"
        for name, value in parameters.items()
        if isinstance(value, str) and not os.path.exists(_path(value))
    }
    return [reason for reason in what_changed(job, library) if reason not in elsewhere]


def _made_from(folder: Path, chapter: str, recorded: str | None) -> Path:
    """Return the notebook that a run was made from, or the one that it left where there
    is none any more."""
    known = notebooks.chapters(notebooks.notebooks_folder())
    found = (recorded and Path(recorded), known.get(chapter))
    return next(
        (path for path in found if path and path.is_file()), folder / "notebook.ipynb"
    )


def _scoreboard(options: argparse.Namespace) -> int:
    results = _results(options)
    if options.write is None and options.check is None:
        print(claims.scoreboard(results), end="")
        return 0
    # Everything is read and checked before the first file is written.
    named = options.write or options.check
    fresh = {
        path: claims.filled(path, results) for path in named or claims.marked_files()
    }
    if not named:
        table, text = results / "claims.csv", claims.summary(results)
        fresh[table] = text if text != _read(table) else None
    stale = {path: text for path, text in fresh.items() if text is not None}
    for path, text in stale.items():
        if options.write is not None:
            write_atomically(path, text)
            _say(f"wrote {path}")
        else:
            _say(
                f"{path} does not show the records: run python -m minilib scoreboard "
                "--write"
            )
    return 1 if stale and options.write is None else 0


def _results(options: argparse.Namespace) -> Path:
    """Return the folder of records: the given one as the shell means it, else
    ``book/results``."""
    return (
        claims.results_folder() if options.results is None else _path(options.results)
    )


def _split(chapters: Sequence[str]) -> list[str]:
    return [name for text in chapters for name in text.split(",") if name]


def _path(given: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(given)))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _parser() -> argparse.ArgumentParser:
    called = Path(sys.argv[0]).stem
    prog = "minilib" if called == "minilib" else "python -m minilib"
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Run chapters, gather what they measured, and show it.",
        epilog=_EXAMPLES.replace("python -m minilib", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="name")

    add_commands(commands)

    command = commands.add_parser(
        "collect", help="merge finished runs into the committed records"
    )
    command.add_argument(
        "--runs", type=Path, help="folder of runs (default: runs in the repository)"
    )
    command.add_argument(
        "--results", type=Path, help="folder of records (default: book/results)"
    )
    command.add_argument(
        "--profiles",
        nargs="+",
        choices=PROFILES,
        default=["full", "photos", "paper"],
        help="default: full photos paper; quick runs are not kept unless named",
    )
    command.set_defaults(command=_collect)

    command = commands.add_parser(
        "publish", help="store a quick run's outputs in the chapter's notebook"
    )
    add_chapters(command)
    command.add_argument(
        "--runs", type=Path, help="folder of runs (default: runs in the repository)"
    )
    command.add_argument("--notebooks", type=Path, help=argparse.SUPPRESS)
    command.set_defaults(command=_publish)

    command = commands.add_parser(
        "scoreboard", help="print the scoreboard, or fill in what pages quote"
    )
    either = command.add_mutually_exclusive_group()
    every = (
        "all pages and notebooks with markers, and the table of records, where no "
        "file is named"
    )
    either.add_argument(
        "--write", type=Path, nargs="*", metavar="FILE", help=f"fill the files; {every}"
    )
    either.add_argument(
        "--check",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="exit with 1 if a file is stale",
    )
    command.add_argument(
        "--results", type=Path, help="folder of records (default: book/results)"
    )
    command.set_defaults(command=_scoreboard)
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
