"""Refuse working notes in files that are published: ``make lint`` runs this.

A note from one author to another, a task left open or a folder of somebody's machine is
of no use to a reader. The patterns are spelt so that this file does not match itself.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTES = re.compile(
    r"\b(?:TO[D]O|FIX[M]E|XX[X])\b"
    r"|\bNOTE_(?:FRO[M]|T[O])_"
    r"|\b[A-Z]{3,} ?-[>] ?[A-Z]{3,}\b"
    r"|\bthen (?:delete|remove) this (?:lin[e]|file)\b"
    r"|(?<![\w.])/(?:hom[e]|User[s]|wor[k])/\w"
)
LONGEST = 1000
"""Longer lines are data, such as pictures in notebooks."""
ELSEWHERE = ("book/vendor/",)
"""Files that others wrote."""


def found(lines: Iterable[str]) -> list[tuple[int, str]]:
    """Return number and text of the lines that hold a working note."""
    return [
        (number, line.strip())
        for number, line in enumerate(lines, start=1)
        if len(line) <= LONGEST and NOTES.search(line)
    ]


def tracked(root: Path) -> list[Path]:
    """Return the files that git tracks, or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(
        command, cwd=root, check=True, capture_output=True, text=True
    )
    names = sorted(set(listing.stdout.split("\0")[:-1]))
    return [root / name for name in names if not name.startswith(ELSEWHERE)]


def main(root: Path = ROOT) -> int:
    """Print every working note; 1 if there is one."""
    notes = 0
    for path in tracked(root):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, OSError):
            continue  # not text, or removed but not yet from git
        for number, line in found(lines):
            notes += 1
            print(f"{path.relative_to(root)}:{number}: a working note: {line}")
    return 1 if notes else 0


if __name__ == "__main__":
    sys.exit(main())
