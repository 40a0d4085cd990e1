"""Durations and sizes as people write them, and aligned tables."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence


def duration(seconds: float | None) -> str:
    """Return "45 s", "1:29 min", "2:05 h" or "unknown"."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def size(count: float | None) -> str:
    """Return "0 B", "350 KiB", "28 MiB", "1.7 GiB" or "unknown"."""
    if count is None:
        return "unknown"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            value = count / factor
            return f"{value:.1f} {unit}" if unit == "GiB" else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def parse_duration(text: str) -> float:
    """Return the seconds in "90s", "30m", "2h" or "1h30m"."""
    match = re.fullmatch(r"\s*(?:(\d+)h)?\s*(?:(\d+)m(?:in)?)?\s*(?:(\d+)s)?\s*", text)
    hours, minutes, seconds = (
        (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    )
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time limit: write 90s, 30m, 2h or 1h30m"
        )
    return float(total)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as lines of text whose columns stand below each other."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "".join(line.rstrip() + "\n" for line in lines)
