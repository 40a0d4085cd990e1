"""The command line: ``python -m minilib reproduce``, ``collect``, ``publish`` and ``scoreboard``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from minilib import claims, notebooks, reproduce
from minilib.files import write_atomically
from minilib.parameters import PROFILES, repository

_EXAMPLES = """examples:
  python -m minilib reproduce --chapters clip                         quick profile, seed 0, about a minute
  python -m minilib reproduce --chapters clip --profile full --seeds 0..2 --device cuda
  python -m minilib reproduce --chapters clip --profile photos -p data=~/photos
  python -m minilib collect                                           runs/ -> book/results/
  python -m minilib scoreboard --write README.md book/claims.md
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 well, 1 failed or stale, 2 wrong use, 130 stopped."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"minilib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minilib: stopped. The same command goes on from here.", file=sys.stderr)
        return 130


def parse_seeds(text: str) -> list[int]:
    """Return the seeds in "0", "0,2,5" or "0..4" (ends included), each once, in order."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else -1
        if last < first:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds: write 0, 0,1,2 or 0..4")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def _reproduce(options: argparse.Namespace) -> int:
    extra = dict(options.parameters)
    if extra.get("data"):
        # The notebook runs in another folder: make the path independent of it.
        extra["data"] = str(Path(extra["data"]).expanduser().resolve())
    chapters = [name for text in options.chapters for name in text.split(",") if name]
    out = _runs(options.out)
    jobs = reproduce.plan(chapters, options.profile, options.seeds, out, options.device, extra, options.notebooks)
    failed = 0
    for number, job in enumerate(jobs, start=1):
        changed = reproduce.what_changed(job)
        if not changed and not options.force:
            _say(f"[{number}/{len(jobs)}] {job}: unchanged, not run again")
            continue
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        why = "forced" if not changed else ", ".join(changed[:4]) + more
        _say(f"[{number}/{len(jobs)}] {job}: running ({why})")
        outcome = reproduce.run(job, progress=sys.stderr.isatty())
        _say(f"[{number}/{len(jobs)}] {job}: {outcome.state}, {outcome.message}")
        failed += outcome.state == "failed"
    ledgers = [name for name in dict.fromkeys(job.chapter for job in jobs) if name in claims.papers()]
    print(claims.table(claims.collect(out, [options.profile], ledgers)), end="")
    if failed:
        _say(f"{failed} of {len(jobs)} runs failed")
    return 1 if failed else 0


def _collect(options: argparse.Namespace) -> int:
    results = claims.results_folder() if options.results is None else options.results
    written = claims.merge(_runs(options.runs), results, options.profiles)
    for path in written:
        _say(f"wrote {path}")
    if not written:
        _say(f"no finished runs of profile {', '.join(options.profiles)} found")
    print(claims.table(row for row in claims.collect(results) if row.verdict.n), end="")
    return 0


def _publish(options: argparse.Namespace) -> int:
    folder = notebooks.notebooks_folder() if options.notebooks is None else options.notebooks
    for name in notebooks.chapters(folder) if options.chapters == ["all"] else options.chapters:
        target = notebooks.find_chapter(name, folder)
        executed = _runs(options.runs) / name / "quick" / "seed0" / "notebook.ipynb"
        if not executed.with_name("run.json").is_file():
            raise ValueError(f"no finished quick run of {name}: python -m minilib reproduce --chapters {name}")
        notebooks.publish(executed, target)
        _say(f"stored the outputs of {name} in {target}")
    return 0


def _scoreboard(options: argparse.Namespace) -> int:
    results = claims.results_folder() if options.results is None else options.results
    stale = 0
    for path in options.write or options.check or []:
        text = path.read_text(encoding="utf-8")
        fresh = claims.fill(text, results, name=str(path))
        if fresh == text:
            continue
        if options.write:
            write_atomically(path, fresh)
            _say(f"wrote {path}")
        else:
            stale += 1
            _say(f"{path} does not show the records: run python -m minilib scoreboard --write {path}")
    if not options.write and not options.check:
        print(claims.scoreboard(results), end="")
    return 1 if stale else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minilib",
        description="Run chapters, gather what they measured, and show it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("reproduce", help="run notebooks headlessly; what is done and unchanged is skipped")
    command.add_argument("--chapters", nargs="+", default=["all"], metavar="NAME", help="chapters, or all (default)")
    command.add_argument("--profile", default="quick", choices=PROFILES, help="default: quick")
    command.add_argument("--seeds", type=parse_seeds, default=[0], help="0, 0,1,2 or 0..4 (default: 0)")
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    command.add_argument("--out", type=Path, help="folder for runs (default: runs in the repository)")
    command.add_argument(
        "-p",
        dest="parameters",
        action="append",
        type=_pair,
        default=[],
        metavar="NAME=VALUE",
        help="a further parameter of the notebook, for example -p data=FOLDER for profile photos; repeatable",
    )
    command.add_argument("--force", action="store_true", help="run even what is done and unchanged")
    command.add_argument("--notebooks", type=Path, help=argparse.SUPPRESS)
    command.set_defaults(command=_reproduce)

    command = commands.add_parser("collect", help="merge finished runs into the committed records")
    command.add_argument("--runs", type=Path, help="folder of runs (default: runs in the repository)")
    command.add_argument("--results", type=Path, help="folder of records (default: book/results)")
    command.add_argument(
        "--profiles",
        nargs="+",
        choices=PROFILES,
        default=["full", "photos", "paper"],
        help="default: full photos paper; quick runs are not kept unless named",
    )
    command.set_defaults(command=_collect)

    command = commands.add_parser("publish", help="store a quick run's outputs in the chapter's notebook")
    command.add_argument("--chapters", nargs="+", default=["all"], metavar="NAME", help="chapters, or all (default)")
    command.add_argument("--runs", type=Path, help="folder of runs (default: runs in the repository)")
    command.add_argument("--notebooks", type=Path, help=argparse.SUPPRESS)
    command.set_defaults(command=_publish)

    command = commands.add_parser("scoreboard", help="print the scoreboard, or fill it into files between its markers")
    either = command.add_mutually_exclusive_group()
    either.add_argument("--write", type=Path, nargs="+", metavar="FILE", help="fill the files")
    either.add_argument("--check", type=Path, nargs="+", metavar="FILE", help="exit with 1 if a file is stale")
    command.add_argument("--results", type=Path, help="folder of records (default: book/results)")
    command.set_defaults(command=_scoreboard)
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=VALUE")
    return name.strip(), value


def _runs(given: Path | None) -> Path:
    """Return the folder of runs: the given one as the shell means it, else ``runs`` in the repository."""
    return given.expanduser().resolve() if given is not None else (repository() or Path.cwd()) / "runs"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
