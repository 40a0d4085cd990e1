"""What a result depends on: the notebook's code, the library's files that it opened,
parameters and data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilib import notebooks
from minilib.files import differences, path_digest, path_times
from minilib.parameters import from_repository

PACKAGE = Path(__file__).resolve().parent.parent
# Code that starts runs and lists results, and that notes what was opened,
# cannot change them.
_WITHOUT_EFFECT = (
    "reproduce/",
    "notebooks.py",
    "__main__.py",
    "opened.py",
    "claims/reports.py",
    "claims/gathering.py",
    "claims/pages.py",
    "claims/forest.py",
    "claims/quoting.py",
)

Inputs = dict[str, Any]
"""``notebook`` (a digest per code cell), ``library``, ``parameters``, ``data`` and
``changed``, when its files were changed last (a digest or value per name), and
``threads``."""


def read_inputs(
    notebook: Path,
    parameters: Mapping[str, Any],
    library: Mapping[str, str] | None = None,
    threads: str | None = None,
) -> Inputs:
    """Return what a run would depend on if it started now, with every
    file of the library.

    Args:
        notebook: the chapter's notebook.
        parameters: all that is passed to it; ``out``, where results go, has
            no effect on them.
        library: :func:`library_digests`, if they are known.
        threads: those of each process of the run; None is equal to any number.
    """
    return {
        "notebook": notebooks.code_digests(notebooks.read(notebook)),
        "library": library_digests() if library is None else dict(library),
        "parameters": {
            name: value for name, value in parameters.items() if name != "out"
        },
        "data": data_digests(parameters),
        "changed": {
            name: path_times(path) for name, path in _paths(parameters).items()
        },
        "threads": threads,
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
    """Return a digest for ``data`` and ``weights``, where they name a folder or file,
    see :func:`minilib.files.path_digest`.

    No other parameter names one, whatever folders there are in the working directory.
    """
    return {name: path_digest(path) for name, path in _paths(parameters).items()}


def _paths(parameters: Mapping[str, Any]) -> dict[str, Path]:
    found = {}
    for name in ("data", "weights"):
        value = parameters.get(name)
        if isinstance(value, str) and value.strip():
            path = from_repository(value)  # as the notebook does
            if path.exists():
                found[name] = path
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
        reasons += [f"{label}{key}" for key in differences(was, now)]
    # of files that kept their names and sizes
    for key, times in new["changed"].items():
        same = old["data"].get(key) == new["data"].get(key)
        if same and times != old.get("changed", {}).get(key, times):
            reasons.append(f"data in {key}, written again since")
    threads = old.get("threads"), new.get("threads")
    if None not in threads and threads[0] != threads[1]:
        reasons.append(f"threads: {threads[1]} instead of {threads[0]}")
    return reasons
