"""Fetch a published archive, check it, and lay it out as a folder that appears
whole or not at all."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 30  # seconds without an answer before giving up


class Refused(Exception):
    """The work cannot go on; the message says why and what to do about it."""


@dataclass(frozen=True)
class Published:
    """One data set as its authors published it, and the folder that is made of it."""

    folder: str
    """Name of the resulting folder, below the one that the user chooses."""
    url: str
    """Where the archive is."""
    archive: str
    """The archive's file name."""
    md5: str | None
    """The archive's checksum; None where the host packs it anew on request, so that
    ``lay_out`` must check."""
    bytes_needed: int
    """Free disk space that is needed."""
    photographs: str
    """Pattern of the photographs below a split's folder."""
    lay_out: Callable[[Path, Path], dict[str, int]]
    """``(archive, new folder) -> photographs per split``; raises Refused for an
    unexpected archive."""


def fetch(data: Published, url: str, md5: str | None, folder: Path) -> Path:
    """Download the archive into ``folder``, unless it is there and complete, and check
    its MD5 if known.

    Raises:
        Refused: there is no connection, or the file is not the expected one.
    """
    import pooch  # here: loading data that are there needs no network
    import requests

    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
    known_hash = f"md5:{md5}" if md5 else None
    try:
        return Path(
            pooch.retrieve(url, known_hash, data.archive, folder, downloader=downloader)
        )
    except requests.RequestException as error:
        raise Refused(
            f"could not download {url} ({error}); check the connection and run again, "
            "or download the file elsewhere and pass it with --archive FILE"
        ) from error
    except ValueError as error:  # pooch: a wrong hash, or an address it cannot read
        raise Refused(
            f"the download of {url} was not kept: {error}; run again, or try a mirror "
            "with --url"
        ) from error


def check_archive(data: Published, path: Path, md5: str | None) -> Path:
    """Return ``path`` if it is the published archive, by its MD5 where that is known.

    Raises:
        Refused: it is missing or another file.
    """
    import pooch

    if not path.is_file():
        raise Refused(
            f"no archive at {path}: expected {data.archive}, as published at {data.url}"
        )
    if md5 and (found := pooch.file_hash(str(path), "md5")) != md5:
        raise Refused(
            f"{path} has the MD5 {found}, expected {md5}: it is truncated or another "
            "file; fetch it again"
        )
    return path


def is_finished(data: Published, folder: Path) -> bool:
    """Return whether ``folder`` holds the whole data set.

    Raises:
        Refused: something else is there.
    """
    if not folder.exists():
        return False
    try:
        expected = dict(
            json.loads((folder / "source.json").read_text("utf-8"))["photographs"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"{folder} was not made by this script; move it away or choose another "
            "--out"
        ) from error
    for split, count in expected.items():
        if (found := sum(1 for _ in (folder / split).glob(data.photographs))) != count:
            raise Refused(
                f"{folder}/{split} has {found} of {count} photographs; delete "
                f"{folder} and run again"
            )
    return True


def get(
    data: Published, out: Path, url: str, md5: str | None, archive: Path | None = None
) -> Path:
    """Put the data set into ``out/<data.folder>`` and return that folder; do
    nothing if it is there.

    Args:
        data: the data set.
        out: folder for data sets.
        url: where to fetch the archive.
        md5: its expected checksum, if known.
        archive: a file to use instead of downloading.

    Raises:
        Refused: it cannot be done; the folder is then unchanged.
    """
    folder, work = out / data.folder, out / f".{data.folder}-unfinished"
    if is_finished(data, folder):
        print(f"{folder} is complete already; nothing to do")
        return folder
    work.mkdir(parents=True, exist_ok=True)
    # from a killed run; a complete archive is kept and checked again
    for leftover in work.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name != data.archive:
            leftover.unlink()
    if (free := shutil.disk_usage(work).free) < data.bytes_needed:
        raise Refused(
            f"{out} has {free / 1e6:.0f} MB free, {data.bytes_needed / 1e6:.0f} MB "
            "are needed; make space or choose another --out"
        )
    source = (
        check_archive(data, archive, md5) if archive else fetch(data, url, md5, work)
    )
    unfinished = work / data.folder
    try:
        counts = data.lay_out(source, unfinished)
        record = {"source": str(archive or url), "md5": md5, "photographs": counts}
        (unfinished / "source.json").write_text(
            json.dumps(record, indent=2) + "\n", "utf-8"
        )
        unfinished.rename(folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, Refused) and not archive and not md5:
            # nothing else tells the next run that this download is of no use
            source.unlink()
        raise
    shutil.rmtree(work)
    print(
        f"{folder}: "
        f"{', '.join(f'{count:,} {split}' for split, count in counts.items())} "
        "photographs"
    )
    return folder


def run(
    data: Published,
    description: str,
    arguments: Sequence[str] | None,
    default_out: Path,
) -> int:
    """Run a script's command line and return its exit status: 0 done, 1 refused,
    130 interrupted."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=default_out,
        help=f"folder to put {data.folder} into (default: data)",
    )
    add("--url", default=data.url, help="where to fetch the archive, for a mirror")
    add(
        "--md5",
        default=data.md5,
        help="expected checksum, for a mirror that packed the files again",
    )
    add("--archive", type=Path, help=f"use this {data.archive} instead of downloading")
    options = parser.parse_args(arguments)
    try:
        get(data, options.out.expanduser(), options.url, options.md5, options.archive)
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0
