"""The command line: ``minilib reproduce``, ``plan``, ``status``, ``collect``, ...

``python -m minilib`` is the same where the console script is not on the path.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from minilib import claims, notebooks
from minilib.files import write_atomically
from minilib.parameters import PROFILES
from minilib.reproduce.batch import FolderInUse
from minilib.reproduce.commands import add_commands, runs_folder

_EXAMPLES = """examples:
  python -m minilib reproduce --chapters clip    quick profile, seed 0, about a minute
  python -m minilib plan --profile full --jobs 2    what would run, and at what cost
  python -m minilib reproduce --chapters clip --profile full --seeds 0..2 --device cuda
  python -m minilib reproduce --chapters clip --profile photos -p data=~/photos
  python -m minilib reproduce --profile full --seeds 0..4 --executor slurm \\
      --time-limit 2h --slurm partition=gpu
  python -m minilib status
  python -m minilib collect                 runs/ -> book/results/
  python -m minilib scoreboard --write      what pages and notebooks quote from records

exit status:
  0  all is well: every run is done or was up to date
  1  some run failed (the others were made), or something is stale
  2  wrong use, or nothing could be started
  3  another runner works in the same folder
  130  stopped by Ctrl-C or SIGTERM; the same command continues
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status, see the end of ``--help``."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"minilib: {error}", file=sys.stderr)
        return 2
    except FolderInUse as error:
        print(f"minilib: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("minilib: stopped. The same command goes on from here.", file=sys.stderr)
        return 130


def _collect(options: argparse.Namespace) -> int:
    results = claims.results_folder() if options.results is None else options.results
    written = claims.merge(runs_folder(options.runs), results, options.profiles)
    if written:
        written.append(results / "claims.csv")
        write_atomically(written[-1], claims.summary(results))
    for path in written:
        _say(f"wrote {path}")
    if not written:
        _say(f"no finished runs of profile {', '.join(options.profiles)} found")
    print(claims.table(row for row in claims.collect(results) if row.verdict.n), end="")
    return 0


def _publish(options: argparse.Namespace) -> int:
    folder = (
        notebooks.notebooks_folder() if options.notebooks is None else options.notebooks
    )
    for name in (
        notebooks.chapters(folder) if options.chapters == ["all"] else options.chapters
    ):
        target = notebooks.find_chapter(name, folder)
        executed = (
            runs_folder(options.runs) / name / "quick" / "seed0" / "notebook.ipynb"
        )
        if not executed.with_name("run.json").is_file():
            raise ValueError(
                f"no finished quick run of {name}: python -m minilib reproduce "
                f"--chapters {name}"
            )
        notebooks.publish(executed, target)
        _say(f"stored the outputs of {name} in {target}")
    return 0


def _scoreboard(options: argparse.Namespace) -> int:
    results = claims.results_folder() if options.results is None else options.results
    if options.write is None and options.check is None:
        print(claims.scoreboard(results), end="")
        return 0
    stale = 0
    for path in options.write or options.check or claims.marked_files():
        if not claims.fill_file(path, results, write=options.write is not None):
            continue
        if options.write is not None:
            _say(f"wrote {path}")
        else:
            stale += 1
            _say(
                f"{path} does not show the records: run python -m minilib scoreboard "
                "--write"
            )
    table = results / "claims.csv"
    if not (options.write or options.check) and claims.summary(results) != _read(table):
        if options.write is not None:
            write_atomically(table, claims.summary(results))
            _say(f"wrote {table}")
        else:
            stale += 1
            _say(
                f"{table} does not show the records: run python -m minilib scoreboard "
                "--write"
            )
    return 1 if stale else 0


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
    commands = parser.add_subparsers(required=True, metavar="command")

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
    command.add_argument(
        "--chapters",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="chapters, or all (default)",
    )
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
