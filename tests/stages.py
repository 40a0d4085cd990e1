"""Run the tests in stages, and after an interruption go on with the stage that
was not finished.

A stage that was green leaves a stamp under ``.venv/stamps`` with a fingerprint of
everything that it could depend on: every file of the working tree that git does not
ignore, the interpreter and the packages. It is repeated as soon as any of these
differs. ``--all`` repeats every stage regardless; named stages run alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMPS = ROOT / ".venv" / "stamps"

# Notebooks run in this environment's own kernel. A cell that hangs or lost its kernel
# ends after 300 s.
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"]
NBVAL += [
    "--nbval-sanitize-with",
    "tests/notebooks/sanitize.cfg",
    "-p",
    "no:cacheprovider",
]

# In the order in which a failure tells most. None stands for "every notebook".
STAGES: dict[str, tuple[list[str], list[str] | None]] = {
    "unit": ([], ["tests/unit"]),
    "parity": ([], ["tests/parity"]),
    "reproduce": ([], ["tests/reproduce"]),
    "notebooks": ([], ["tests/notebooks"]),
    "nbval": (NBVAL, None),
    "book": ([], ["tests/book"]),
}
# Folders of tests/ that `make test` leaves to others, or that hold no tests.
ELSEWHERE = {"benchmarks", "golden", "workers", "__pycache__"}


def fingerprint() -> str:
    """Hash of the tree's files (git decides which), the interpreter, and the
    packages' versions."""
    digest = hashlib.sha256(sys.version.encode())
    packages = {
        f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()
    }
    digest.update("\n".join(sorted(packages)).encode())
    for name in sorted(set(files())):
        path = ROOT / name
        digest.update(name.encode() + b"\0")
        if path.is_symlink():
            digest.update(os.readlink(path).encode())
        elif path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def files() -> list[str]:
    """Every file that git tracks or would track; without git (an unpacked archive)
    all but built ones."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(
            git, cwd=ROOT, check=True, capture_output=True, text=True
        )
        return listing.stdout.split("\0")[:-1]
    except (OSError, subprocess.CalledProcessError):
        skip = {
            ".venv",
            "runs",
            "_build",
            "__pycache__",
            ".pytest_cache",
            ".ruff_cache",
        }
        found = (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
        return [str(p) for p in found if not skip & set(p.parts)]


def counts(report: Path) -> dict[str, int]:
    """Passed, failed and skipped tests of a JUnit report; tests that could not start
    count as failed."""
    totals = dict(passed=0, failed=0, skipped=0)
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        totals["failed"] += failed
        totals["skipped"] += skipped
        totals["passed"] += int(suite.get("tests", 0)) - failed - skipped
    return totals


def run(stage: str) -> tuple[dict[str, int], bool]:
    """Run one stage in a process of its own; its counts, and whether it was green."""
    options, paths = STAGES[stage]
    if paths is None:
        paths = sorted(
            str(p.relative_to(ROOT)) for p in (ROOT / "notebooks").glob("*.ipynb")
        )
    paths = [p for p in paths if (ROOT / p).exists()]
    if not paths:
        return dict(passed=0, failed=0, skipped=0), True
    report = STAMPS / f"{stage}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *paths]
    # Notebooks write to folders of their own here: what somebody keeps in runs/ is
    # neither used nor changed.
    with tempfile.TemporaryDirectory(prefix="minilib-") as scratch:
        surroundings = (
            os.environ | {"MINILIB_OUT_ROOT": scratch} if stage == "nbval" else None
        )
        code = subprocess.run(
            command, cwd=ROOT, env=surroundings, stdin=subprocess.DEVNULL
        ).returncode
    # pytest itself did not get through: nothing was counted, and it is no success
    if not report.exists():
        return dict(passed=0, failed=1, skipped=0), False
    return counts(report), code == 0


def main(argv: list[str] | None = None) -> int:
    """Run the stages that are not green yet for this tree; 0 if all are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "stages", nargs="*", help=f"of {', '.join(STAGES)} (default: all)"
    )
    parser.add_argument(
        "--all", action="store_true", help="repeat stages that are already green"
    )
    options = parser.parse_args(argv)
    if unknown := [s for s in options.stages if s not in STAGES]:
        parser.error(
            f"no stage is called {unknown[0]!r}; there are {', '.join(STAGES)}"
        )

    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()}
    if forgotten := folders - ELSEWHERE - set(STAGES):
        parser.error(
            f"no stage runs tests/{min(forgotten)}: add it to STAGES in tests/stages.py"
        )

    STAMPS.mkdir(parents=True, exist_ok=True)
    total, red = dict(passed=0, failed=0, skipped=0), []
    for stage in options.stages or STAGES:
        now, stamp = fingerprint(), STAMPS / f"{stage}.json"
        done = (
            json.loads(stamp.read_text()) if stamp.exists() and not options.all else {}
        )
        if done.get("fingerprint") == now:
            result, green = done["counts"], True
            print(
                f"==> {stage}: {result['passed']} passed with these files on "
                f"{done['when']}",
                flush=True,
            )
        else:
            print(f"==> {stage}", flush=True)
            result, green = run(stage)
        if green and done.get("fingerprint") != now and fingerprint() == now:
            record = dict(
                fingerprint=now, counts=result, when=time.strftime("%Y-%m-%d %H:%M")
            )
            partial = stamp.with_suffix(".part")
            partial.write_text(json.dumps(record))
            partial.replace(stamp)
        if not green:
            red.append(stage)
        total = {key: total[key] + result[key] for key in total}

    if red:
        print(
            f"Not green: {', '.join(red)}. The first failure of each stage tells most."
        )
    print(
        f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} "
        "skipped",
        flush=True,
    )
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
