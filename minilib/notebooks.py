"""Notebooks as files: find a chapter, read its parameters, detect
changes, store outputs."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import nbformat

from minilib.parameters import repository


def notebooks_folder() -> Path:
    """Return the repository's ``notebooks``; FileNotFoundError for an installed
    wheel, which has none."""
    root = repository()
    if root is None:
        raise FileNotFoundError(
            "the notebooks are in the repository, not in the installed package: clone "
            "it and run there"
        )
    return root / "notebooks"


def chapters(folder: Path) -> dict[str, Path]:
    """Return the chapters in ``folder`` by name, in order: ``01_clip.ipynb``
    is chapter "clip"."""
    found = {}
    for path in sorted(folder.glob("*.ipynb")):
        match = re.fullmatch(r"\d+_(\w+)", path.stem)
        if match:
            found[match[1]] = path
    return found


def find_chapter(name: str, folder: Path) -> Path:
    """Return the notebook of a chapter; ValueError naming those that exist
    if there is none."""
    found = chapters(folder)
    if name not in found:
        known = (
            ", ".join(found)
            or f"none: {folder} holds no notebook named like 01_clip.ipynb"
        )
        raise ValueError(f"unknown chapter {name!r}: the chapters are {known}")
    return found[name]


def read(path: Path) -> nbformat.NotebookNode:
    """Return the notebook in a file, in nbformat 4.

    Raises:
        ValueError: the file is empty, damaged or not a notebook; the message names it.
        OSError: it cannot be read.
    """
    invalid: dict[str, Exception] = {}
    try:
        notebook = nbformat.reads(
            path.read_text(encoding="utf-8"),
            as_version=4,
            capture_validation_error=invalid,
        )
        if invalid:
            raise ValueError(*map(str, invalid.values()))
    except OSError:
        raise
    except Exception as error:  # nbformat has a dozen types for what it cannot read
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if not path.stat().st_size:
            reason = "the file is empty"
        raise ValueError(
            f"{path} is not a notebook ({reason}): restore it, for example with git"
        ) from error
    return notebook


def read_parameters(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return names and defaults from the cell tagged ``parameters``.

    The injected values come right after that cell, so it may hold nothing but
    ``name = literal``: anything derived there would keep the value of the defaults.

    Raises:
        ValueError: no such cell, several, or a line in it that is not a
            literal assignment.
    """
    cells = [
        cell
        for cell in notebook["cells"]
        if "parameters" in cell["metadata"].get("tags", [])
    ]
    if len(cells) != 1:
        raise ValueError(f"expected one cell tagged 'parameters', found {len(cells)}")
    try:
        lines = ast.parse(_source(cells[0])).body
    except SyntaxError as error:
        raise ValueError(
            f"line {error.lineno} of the parameters cell is not Python: {error.msg}"
        ) from None
    found = {}
    for node in lines:
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        try:
            if not isinstance(node, (ast.Assign, ast.AnnAssign)) or len(targets) != 1:
                raise ValueError
            if node.value is None:  # a bare annotation, ``name: int``
                raise ValueError
            found[targets[0].id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            line = ast.unparse(node)
            raise ValueError(
                f"the parameters cell may hold only name = literal, not: {line}"
            ) from None
    return found


def check_parameters(given: Iterable[str], defaults: Mapping[str, Any]) -> None:
    """Raise ValueError naming the nearest names if ``given`` has a parameter that the
    notebook does not have.

    Papermill itself only warns, and runs with the default.
    """
    for name in given:
        if name not in defaults:
            near = get_close_matches(name, defaults, n=2) or list(defaults)
            raise ValueError(
                f"the notebook has no parameter {name!r}: did you mean "
                f"{', '.join(near)}?"
            )


def typed(name: str, text: str, default: Any) -> Any:
    """Return a command line's text as a value of the type of the notebook's default.

    Raises:
        ValueError: the text is not a value of that type.
    """
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind is str:
            return text
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # a default of None may stand for a missing name
        if default is not None and not isinstance(value, kind):
            raise ValueError
        return value
    except (ValueError, KeyError):
        example = repr(default)
        raise ValueError(
            f"{name}={text!r} is not of type {kind.__name__}: expected something like "
            f"{example}"
        ) from None


def code_digests(notebook: Mapping[str, Any]) -> list[str]:
    """Return a digest of each code cell's source; prose and outputs do not
    change a result."""
    return [
        hashlib.sha256(_source(cell).encode()).hexdigest()[:16]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and not _injected(cell)
    ]


def changed_parameters(
    given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """Return what differs between a run's parameters and a notebook's defaults, in
    words: "lr=77.0 (default 0.1)".

    Where a run writes and on which device it computes does not count.
    """
    missing = object()
    return [
        f"{name}={given[name]!r} (default {defaults.get(name)!r})"
        for name in sorted(given)
        if name not in ("out", "device") and given[name] != defaults.get(name, missing)
    ]


def with_outputs(executed: Path, notebook: Path) -> str:
    """Return the text of ``notebook``, whose prose stays as it is, with the outputs of
    an executed run.

    The cell of injected parameters, papermill's marks and what went to stderr are left
    out, executions are numbered from 1, and each figure's description goes where the
    book's builder looks for alt text.

    Raises:
        ValueError: the code has changed since the run, or a file is not a notebook.
    """
    source, target = read(executed), read(notebook)
    target.cells = [cell for cell in target.cells if not _injected(cell)]
    if code_digests(source) != code_digests(target):
        raise ValueError(
            f"{notebook.name}: its code changed since the run: reproduce it first, "
            "then publish"
        )
    ran = [
        cell
        for cell in source.cells
        if cell.cell_type == "code" and not _injected(cell)
    ]
    cells = [cell for cell in target.cells if cell.cell_type == "code"]
    for number, (cell, done) in enumerate(zip(cells, ran, strict=True), start=1):
        # Progress bars go to stderr: they belong to the run, not to the page.
        cell.outputs = [
            deepcopy(out) for out in done.outputs if out.get("name") != "stderr"
        ]
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    for cell in target.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    target.metadata.pop("papermill", None)
    add_alt_texts(target)
    nbformat.validate(target)
    return nbformat.writes(target) + "\n"


def add_alt_texts(notebook: Mapping[str, Any]) -> None:
    """Copy each figure's description into its cell's metadata, where myst-nb
    looks for alt text.

    The notebook is changed in place. myst-nb has one alt text per cell: several
    figures' texts are joined.
    """
    from minilib.display import ALT_PREFIX  # imported here, since it imports matplotlib

    for cell in notebook["cells"]:
        texts = [
            "".join(out["data"].get("text/plain", ""))
            for out in cell.get("outputs", [])
            if "data" in out
        ]
        alts = [
            text.removeprefix(ALT_PREFIX)
            for text in texts
            if text.startswith(ALT_PREFIX)
        ]
        options = dict(cell["metadata"].get("mystnb", {}))
        image = {
            key: value
            for key, value in options.pop("image", {}).items()
            if key != "alt"
        }
        if alts:
            image["alt"] = " ".join(alts)
        if image:
            options["image"] = image
        if options:
            cell["metadata"]["mystnb"] = options
        else:
            cell["metadata"].pop("mystnb", None)


def _injected(cell: Mapping[str, Any]) -> bool:
    return "injected-parameters" in cell["metadata"].get("tags", [])


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])
