"""Fetch a published archive, check it, and lay it out as a folder that appears
whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import filelock

TIMEOUT = 30  # seconds without an answer before giving up
RECORD = "source.json"
"""What a finished folder was made of: source, photographs per split, size by file."""
DISK_ERRORS = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
)
"""Errors that say nothing about the archive being read."""
LOCK = "lock"
"""Held in the unfinished folder by the run that fills it."""


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
    except OSError:
        raise  # the disk
    except Exception as error:  # libraries below raise their own for odd answers
        raise Refused(
            f"could not download {url} ({type(error).__name__}: {error}); run again, "
            "or try a mirror with --url"
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
    """Return whether ``folder`` holds the whole data set: every file that was written,
    with the size that it had.

    Raises:
        Refused: something else is there, or photographs that were not published.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    record = _read_record(folder)
    files, counts = record["files"], record["photographs"]
    if files is None:  # laid out before sizes were recorded
        lost = [path for path in folder.rglob("*") if _size(path) == 0]
    else:
        lost = [folder / n for n, size in files.items() if _size(folder / n) != size]
    for split, count in counts.items():
        found = list((folder / split).glob(data.photographs))
        if files is None and len(found) < count:
            lost.append(folder / split)
        known = [path.relative_to(folder).as_posix() for path in found]
        foreign = [name for name in known if files is not None and name not in files]
        if len(found) > count or foreign:
            such = f", such as {foreign[0]}" if foreign else ""
            raise Refused(
                f"{folder}/{split} has {len(found)} photographs, expected {count}"
                f"{such}: move away what is yours and run again"
            )
    if lost:
        _say(f"{lost[0]} is missing or damaged ({len(lost)} in all); mending {folder}")
    return not lost


def _read_record(folder: Path) -> dict[str, Any]:
    """Return what ``source.json`` says, or raise Refused if it is not ours."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        return {
            **record,
            "photographs": {str(k): int(v) for k, v in record["photographs"].items()},
            "files": dict(record["files"]) if "files" in record else None,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(
            f"{folder} was not made by this script, or its {RECORD} is lost; move it "
            "away or choose another --out"
        ) from error


def _size(path: Path) -> int | None:
    """Return a file's size in bytes, None if it is not a file."""
    return path.stat().st_size if path.is_file() else None


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file below ``folder``, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def get(
    data: Published, out: Path, url: str, md5: str | None, archive: Path | None = None
) -> Path:
    """Put the data set into ``out/<data.folder>`` and return that folder.

    Nothing is done if it is there, whole. If files of it are missing or of another
    size, it is made anew and they are put in their places; other files there are left
    alone.

    Args:
        data: the data set.
        out: folder for data sets.
        url: where to fetch the archive.
        md5: its expected checksum, if known.
        archive: a file to use instead of downloading.

    Raises:
        Refused: it cannot be done; the folder is then unchanged.
        OSError: the disk is full, or a folder cannot be written to; likewise.
    """
    folder, work = out / data.folder, out / f".{data.folder}-unfinished"
    if is_finished(data, folder):
        _say(f"{folder} is complete already; nothing to do")
        return folder
    work.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(work):
            counts = _fill(data, folder, work, url, md5, archive)
    finally:
        with contextlib.suppress(OSError):  # an archive may be kept in it
            work.rmdir()
    _say(
        f"{folder}: "
        f"{', '.join(f'{count:,} {split}' for split, count in counts.items())} "
        "photographs"
    )
    return folder


@contextlib.contextmanager
def zip_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a downloaded zip file; damage found then or while it is read is refused.

    Raises:
        Refused: the archive is damaged.
    """
    # NotImplementedError is zipfile's own word for a compression that it does not know:
    # a single damaged byte can name one.
    damage = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
    try:
        with zipfile.ZipFile(path) as content:
            yield content
    except damage as error:
        raise Refused(
            f"{path} is damaged ({error}); delete it and run again"
        ) from error


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Keep other runs out of ``work``; the system frees the lock of a killed one."""
    lock = filelock.FileLock(work / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise Refused(
            f"another run is filling {work}; wait for it, or choose another --out"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (work / LOCK).unlink()
        lock.release()


def _fill(
    data: Published,
    folder: Path,
    work: Path,
    url: str,
    md5: str | None,
    archive: Path | None,
) -> dict[str, int]:
    """Fetch, check and lay out the data set in ``work``, then move it to ``folder``;
    return how many photographs each split has."""
    # from a killed run; a complete archive is kept and checked again
    for leftover in work.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name not in (data.archive, LOCK):
            leftover.unlink()
    if (free := shutil.disk_usage(work).free) < data.bytes_needed:
        raise Refused(
            f"{work.parent} has {free / 1e6:.0f} MB free, "
            f"{data.bytes_needed / 1e6:.0f} MB "
            "are needed; make space or choose another --out"
        )
    source = (
        check_archive(data, archive, md5) if archive else fetch(data, url, md5, work)
    )
    unfinished = work / data.folder
    try:
        counts = _laid_out(data, source, unfinished)
        record = {
            "source": str(archive or url),
            "md5": md5,
            "photographs": counts,
            "files": _sizes(unfinished),
        }
        (unfinished / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        _move(unfinished, folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, Refused) and not archive:
            source.unlink(missing_ok=True)  # it would be of no use to the next run
        raise
    if not archive:
        source.unlink()
    return counts


def _laid_out(data: Published, source: Path, folder: Path) -> dict[str, int]:
    """Call ``data.lay_out``; whatever it makes of a damaged archive becomes Refused."""
    try:
        return data.lay_out(source, folder)
    except (Refused, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise Refused(
            f"{source} is damaged ({type(error).__name__}: {error}); delete it and "
            "run again"
        ) from error


def _move(new: Path, folder: Path) -> None:
    """Put a whole data set in its place: at once, or file by file over a damaged one,
    the record last, so that an interruption is noticed."""
    if not folder.exists() or not any(folder.iterdir()):
        new.rename(folder)
        return
    for name in (*sorted(_sizes(new).keys() - {RECORD}), RECORD):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).replace(folder / name)
    shutil.rmtree(new)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit."""
        self.exit(2, f"error: {message}; --help lists the options\n")


def run(
    data: Published,
    description: str,
    arguments: Sequence[str] | None,
    default_out: Path,
) -> int:
    """Run a script's command line and return its exit status.

    0: the data set is there. 1: it could not be made. 2: wrong use. 130: interrupted.
    Whatever went wrong is said in one line.
    """
    parser = _Parser(
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # paths that a console cannot show
            stream.reconfigure(errors="backslashreplace")
    options = parser.parse_args(arguments)
    out = options.out.expanduser()
    archive = options.archive and options.archive.expanduser()
    _check_use(parser, out, options.url, options.md5, archive)
    try:
        get(data, out, options.url, options.md5 and options.md5.lower(), archive)
    # NotImplementedError: filelock's, where the file system has no locks.
    except (Refused, OSError, MemoryError, NotImplementedError) as error:
        print(f"error: {_said(error, out)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def _say(text: str) -> None:
    """Print a line, on the standard error if the standard output is closed or full: the
    work goes on."""
    try:
        print(text, flush=True)
    except OSError:
        # else the interpreter would fail once more when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(text, file=sys.stderr)


def _check_use(
    parser: argparse.ArgumentParser,
    out: Path,
    url: str,
    md5: str | None,
    archive: Path | None,
) -> None:
    """Refuse arguments that cannot be meant."""
    try:
        is_address = (
            urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname
        )
    except ValueError:
        is_address = None
    if not is_address:
        parser.error(f"--url {url!r}: expected an address that begins with https://")
    if md5 is not None and not re.fullmatch(r"[0-9a-fA-F]{32}", md5):
        parser.error(f"--md5 {md5!r}: expected 32 hexadecimal digits")
    if archive is not None and not os.path.isfile(archive):
        parser.error(f"--archive {archive}: there is no such file")
    if os.path.exists(out) and not os.path.isdir(out):
        parser.error(f"--out {out}: it is a file, expected a folder")


def _said(error: BaseException, out: Path) -> str:
    """Return an error in one line, with what to do."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {out} is full; make space or choose another --out"
    if isinstance(error, MemoryError):
        return "the memory is full; end other programs and run again"
    return " ".join(str(error).split())
