"""Files that are never half-written, folders with one writer, and what tells whether
kept files are of what is asked now."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

_MIB = 2**20
_LOCK = ".lock"


class FolderInUse(RuntimeError):
    """Another process writes to the folder."""


class NotTheSame(ValueError):
    """What is kept in a file is of something else than what is asked now."""


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader finds the old file or the new one,
    never part of one."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)  # a temporary file is private to begin with
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def to_json(data: Any) -> str:
    """Return JSON text that diffs well: one key per line, no NaN."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def only_writer(folder: Path, what: str, wait: float = 5.0) -> Iterator[None]:
    """Keep other processes out of a folder that exists; the system frees the lock when
    this process ends, however it ends.

    Args:
        folder: where the file ``.lock`` is made, and stays.
        what: what is done there, for the message: "training".
        wait: seconds that the one before, whose process was killed, has to be gone.

    Raises:
        FolderInUse: another process is at it, with its number and host.
    """
    path = folder / _LOCK
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout:
        who = _text(path).strip()
        raise FolderInUse(
            f"another {what} writes to {folder}{f' ({who})' if who else ''}: wait for "
            "it, stop it, or name another folder with --out"
        ) from None
    except NotImplementedError:  # filelock's, on a file system without locks
        warnings.warn(
            f"the file system of {folder} has no locks: see to it that no other {what} "
            "writes there",
            stacklevel=2,
        )
        yield
        return
    try:
        # into the file that is locked: a new one in its place would not be
        note = f"process {os.getpid()} on {socket.gethostname()}"
        _note(path, note)
        yield
    finally:
        _note(path, "")
        lock.release()


def kept_rows(path: Path, identity: Mapping[str, str]) -> dict[str, Any]:
    """Return the rows by name that :func:`keep_rows` wrote to ``path``; none without
    such a file.

    Args:
        path: the file.
        identity: all that the rows depend on, by name: model, data, settings.

    Raises:
        NotTheSame: the file cannot be read, or its rows are of something else.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        old, rows = data["identity"], data["rows"]
        if not (isinstance(old, dict) and isinstance(rows, dict)):
            raise TypeError("identity and rows must be objects")
    except (ValueError, KeyError, TypeError) as error:
        raise NotTheSame(
            f"{path} holds no rows that say what they are of "
            f"({type(error).__name__}: {error}); delete it to start again"
        ) from None
    if differing := differences(old, identity):
        raise NotTheSame(
            f"{path} holds rows of something else (other: {', '.join(differing)}); "
            "choose another folder, or delete this file to start again"
        )
    return rows


def keep_rows(path: Path, identity: Mapping[str, str], rows: Mapping[str, Any]) -> None:
    """Write rows, with what they depend on, for :func:`kept_rows`."""
    write_atomically(path, to_json({"identity": dict(identity), "rows": dict(rows)}))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the names, sorted, whose values differ or that only one side has."""
    missing = object()
    return sorted(
        name
        for name in set(old) | set(new)
        if old.get(name, missing) != new.get(name, missing)
    )


def digest(data: Any) -> str:
    """Return a short digest of JSON data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def path_digest(path: Path) -> str:
    """Return a short digest of the data in a folder or file.

    Of a folder count the names and sizes of its files, linked folders included; of a
    file its size, beginning and end (where a zip archive has the checksums of all it
    holds).
    """
    if path.is_dir():
        return digest([[name, stat.st_size] for name, stat in _files_under(path)])
    size = path.stat().st_size
    parts = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        parts.update(file.read(_MIB))
        file.seek(max(0, size - _MIB))
        parts.update(file.read(_MIB))
    return parts.hexdigest()[:16]


def path_times(path: Path) -> str:
    """Return a short digest of when the files of a folder, or a file, were changed
    last."""
    if path.is_dir():
        return digest([[name, stat.st_mtime_ns] for name, stat in _files_under(path)])
    return digest(path.stat().st_mtime_ns)


def from_shell(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a notebook's parameters as a command line gave them, with the paths in
    ``data`` and ``weights`` made absolute.

    A shell's user means the working directory, a notebook the repository.
    ``weights`` may also be a name, which stays.
    """
    found = dict(parameters)
    for name in ("data", "weights"):
        value = found.get(name)
        if not isinstance(value, str) or not value.strip():
            continue
        path = Path(value).expanduser()
        named = path.is_file() or (path / "config.json").is_file()
        if name == "data" or named:
            found[name] = str(path.resolve())
    return found


def _files_under(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return names and states of the files in a folder, in order; a linked folder is
    entered unless it leads back to where we are."""
    found = []
    pending = [(folder, "", frozenset([folder.resolve()]))]
    while pending:
        where, prefix, above = pending.pop()
        for entry in os.scandir(where):
            name = prefix + entry.name
            if entry.is_dir():
                real = Path(entry.path).resolve()
                if real not in above:
                    pending.append((Path(entry.path), f"{name}/", above | {real}))
            elif entry.is_file():
                found.append((name, entry.stat()))
    return sorted(found, key=lambda pair: pair[0])


def _note(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        pass  # a full disk: the lock holds without the note


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
