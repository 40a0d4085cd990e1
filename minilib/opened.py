"""Which files of the package a process opens: that, and no more, is what its
results can depend on.

A run of ``minilib.reproduce`` names a file in the environment variable
``MINILIB_OPENED``. Every process of the run that imports minilib, the kernel and
whatever it starts, then adds there each file of the package that it opens: modules as
they are imported, data as they are read. Readers outside Python's own ``open``
(safetensors) are not seen; call ``sys.audit("open", path, "rb", 0)`` beside them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

VARIABLE = "MINILIB_OPENED"
_FOLDER = str(Path(__file__).resolve().parent) + os.sep


def note(target: str) -> None:
    """Append the name of every package file that this process opens from now on to the
    file ``target``.

    A name is relative to the package and stands in a line of its own, once a process.
    """
    notes = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    seen: set[str] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if (
            event != "open"
            or not isinstance(arguments[0], str)
            or not arguments[0].startswith(_FOLDER)
        ):
            return
        name = arguments[0][len(_FOLDER) :]
        if name not in seen:
            seen.add(name)
            os.write(notes, (name + "\n").encode())

    sys.addaudithook(hook)


def read(target: str | os.PathLike[str]) -> set[str]:
    """Return the noted files as ``models/clip.py``, compiled modules as their sources;
    empty without a file."""
    try:
        lines = Path(target).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return set()
    found = set()
    for path in map(Path, lines):
        if path.parent.name == "__pycache__":
            path = path.parent.parent / f"{path.name.partition('.')[0]}.py"
        found.add(path.as_posix())
    return found
