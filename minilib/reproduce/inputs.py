"""What a result depends on: the notebook's code, the library's files that it opened,
parameters and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from minilib import notebooks

PACKAGE = Path(__file__).resolve().parent.parent
# Code that starts runs and lists results, and that notes what was opened,
# cannot change them.
_WITHOUT_EFFECT = (
    "reproduce/",
    "notebooks.py",
    "__main__.py",
    "opened.py",
    "claims/reports.py",
    "claims/pages.py",
    "claims/forest.py",
    "claims/quoting.py",
)
_MIB = 2**20

Inputs = dict[str, Any]
"""``notebook`` (a digest per code cell), ``library``, ``parameters`` and ``data`` (a
digest or value per name)."""


def read_inputs(
    notebook: Path,
    parameters: Mapping[str, Any],
    library: Mapping[str, str] | None = None,
) -> Inputs:
    """Return what a run would depend on if it started now, with every
    file of the library.

    Args:
        notebook: the chapter's notebook.
        parameters: all that is passed to it; ``out``, where results go, has
            no effect on them.
        library: :func:`library_digests`, if they are known.
    """
    return {
        "notebook": notebooks.code_digests(nbformat.read(notebook, as_version=4)),
        "library": library_digests() if library is None else dict(library),
        "parameters": {
            name: value for name, value in parameters.items() if name != "out"
        },
        "data": data_digests(parameters),
    }


def library_digests() -> dict[str, str]:
    """Return a digest of every file of the package, data included, that a
    result may depend on."""
    found = {}
    for path in sorted(PACKAGE.rglob("*")):
        relative = path.relative_to(PACKAGE)
        name = relative.as_posix()
        hidden = any(part.startswith((".", "__pycache__")) for part in relative.parts)
        if not hidden and not name.startswith(_WITHOUT_EFFECT) and path.is_file():
            found[f"minilib/{name}"] = hashlib.sha256(path.read_bytes()).hexdigest()[
                :16
            ]
    return found


def used_library(before: Mapping[str, str], opened: set[str]) -> dict[str, str]:
    """Return the digests of the library's files that a run opened.

    Args:
        before: :func:`library_digests` when the run began.
        opened: names relative to the package, see :mod:`minilib.opened`.

    A file that was changed while the run went on gets no digest, so that the result
    counts as stale.
    """
    now = library_digests()
    names = {
        f"minilib/{name}" for name in opened | ({"__init__.py"} if opened else set())
    }
    used = {}
    for name in sorted(names & (set(before) | set(now))):
        same = before.get(name) == now.get(name)
        used[name] = before[name] if same else "changed during the run"
    return used


def data_digests(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest for each parameter that names a folder or file.

    Of a folder count the files' names and sizes; of a file its size, beginning and end
    (where a zip archive has the checksums of all it holds).
    """
    found = {}
    for name, value in parameters.items():
        path = (
            Path(value).expanduser()
            if isinstance(value, str) and value and name != "out"
            else None
        )
        if path is None:
            continue
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            found[name] = digest(
                [
                    (file.relative_to(path).as_posix(), file.stat().st_size)
                    for file in files
                ]
            )
        elif path.is_file():
            found[name] = _file_digest(path)
    return found


def changes(old: Inputs, new: Inputs) -> list[str]:
    """Return by name what differs in what ``old``, the inputs of a run, depended on.

    Files of the library that the run did not open are not compared.
    """
    reasons = []
    code, before = new["notebook"], old["notebook"]
    if len(code) != len(before):
        reasons.append(f"the notebook has {len(code)} code cells, not {len(before)}")
    elif code != before:
        cells = [
            str(number)
            for number, pair in enumerate(zip(code, before, strict=True), 1)
            if len(set(pair)) > 1
        ]
        reasons.append(f"code cell {', '.join(cells)} of the notebook")
    library = {name: new["library"].get(name) for name in old["library"]}
    for was, now, label in (
        (old["library"], library, ""),
        (old["parameters"], new["parameters"], "parameter "),
        (old["data"], new["data"], "data in "),
    ):
        reasons += [
            f"{label}{key}"
            for key in sorted(set(was) | set(now))
            if now.get(key) != was.get(key)
        ]
    return reasons


def digest(data: Any) -> str:
    """Return a short digest of JSON data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    parts = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        parts.update(file.read(_MIB))
        file.seek(max(0, size - _MIB))
        parts.update(file.read(_MIB))
    return parts.hexdigest()[:16]
