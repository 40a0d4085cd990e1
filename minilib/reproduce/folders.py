"""What is a run's own in its folder: only that is set aside, put back or removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from minilib.reproduce.jobs import read_json

OURS = (
    "run.json", "attempt.json", "progress.json", "failure.json", "opened.txt",
    "kernel.json", "result.json", "metrics.jsonl", "notebook.ipynb",
    "notebook.partial.ipynb", "failed.ipynb",
)  # fmt: skip
"""The files that a run writes, beside what its notebook leaves there."""
# Below a run's folder, from before runs noted what they made.
_TRAINED = ("last.pt", "metrics.jsonl", "train.log", "last.pt.tmp", ".lock")
_BEFORE = ".before"
# not "run.json": whoever looks for finished runs must not find what was set aside
_RUN = "finished.json"
_LAST = 5.0  # seconds in which a run that was cut short could no longer note its files


def listing(folder: Path) -> set[str]:
    """Return the files under a run's folder by relative name, without what was set
    aside; a link counts as a file, wherever it leads."""
    found: set[str] = set()
    for parent, folders, files in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        if inside == Path("."):
            folders[:] = [name for name in folders if name != _BEFORE]
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        found.update((inside / name).as_posix() for name in [*files, *linked])
    return found


def own(folder: Path) -> set[str]:
    """Return what the last run in the folder made, finished or not; what somebody put
    beside it is not among it."""
    there = listing(folder)
    mine = {name for name in there if name in OURS}
    run = read_json(folder / "run.json")
    attempt = read_json(folder / "attempt.json")
    about = run or read_json(folder / "progress.json") or {}
    if isinstance(noted := about.get("files"), list):
        mine |= there & set(map(str, noted))
    elif run is not None or attempt is not None:
        mine |= {name for name in there if name.rpartition("/")[2] in _TRAINED}
    if run is None and attempt is not None:
        mine |= _written_last(folder, there - foreign(folder))
    return mine


def foreign(folder: Path) -> set[str]:
    """Return what was in the folder, by its own note, before the attempt began."""
    noted = (read_json(folder / "attempt.json") or {}).get("foreign")
    return set(map(str, noted)) if isinstance(noted, list) else set()


def set_aside(folder: Path) -> None:
    """Move a finished run out of the way, to be kept until the next one is done.

    Cut short, the next call goes on: ``run.json`` moves last.
    """
    if not (folder / "run.json").exists():
        return
    before = folder / _BEFORE
    if (before / _RUN).exists():
        shutil.rmtree(before)  # of the run before this one, which is done
    names = own(folder) - {"run.json"}
    for name in names:
        _move(folder / name, before / name)
    _remove_empty(folder, names)
    _move(folder / "run.json", before / _RUN)


def was_set_aside(folder: Path) -> Path | None:
    """Return the ``run.json`` of a run that is kept until the next is done, or None."""
    path = folder / _BEFORE / _RUN
    return path if path.is_file() else None


def put_back(folder: Path) -> None:
    """Make the run that was set aside the folder's run again; what a later attempt left
    is removed."""
    before = folder / _BEFORE
    clear(folder)
    for name in listing(before) - {_RUN}:
        _move(before / name, folder / name)
    _move(before / _RUN, folder / "run.json")
    shutil.rmtree(before)


def forget(folder: Path) -> None:
    """Remove what was set aside: the new run is done."""
    if (folder / _BEFORE).is_dir():
        shutil.rmtree(folder / _BEFORE)


def clear(folder: Path) -> None:
    """Remove what the last run made, and no more."""
    names = own(folder)
    # what says which files are a run's own goes last
    last = ("progress.json", "attempt.json", "run.json")
    for name in sorted(names, key=lambda name: (name in last, name)):
        (folder / name).unlink(missing_ok=True)
    _remove_empty(folder, names)


def _written_last(folder: Path, names: Iterable[str]) -> set[str]:
    """Return the files that were written up to a run's last sign of life."""
    signs = [folder / name for name in ("progress.json", "attempt.json")]
    end = max((path.stat().st_mtime for path in signs if path.exists()), default=0)
    return {name for name in names if os.lstat(folder / name).st_ctime <= end + _LAST}


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)


def _remove_empty(folder: Path, names: Iterable[str]) -> None:
    """Remove the folders that held the named files, where nothing is left in them."""
    parents = {parent for name in names for parent in Path(name).parents}
    for parent in sorted(parents - {Path(".")}, reverse=True):
        try:
            (folder / parent).rmdir()
        except OSError:
            continue  # something of somebody else's is in it
