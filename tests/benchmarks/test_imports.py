"""How long the first imports of a chapter take, beside importing torch alone.

Each import happens in a process of its own. The heavy libraries that a chapter does
not need at once (open_clip, transformers, ...) are imported where they are used.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
AIM = "at least 0.83 x"
"""No more than 1.2 times as long as importing torch."""


def opening(name: str) -> str:
    """Return the imports of a chapter's opening cell."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    body = ast.parse("\n".join(cells[:2])).body
    imports = [line for line in body if isinstance(line, ast.Import | ast.ImportFrom)]
    return "\n".join(map(ast.unparse, imports))


def run(code: str) -> None:
    """Run ``code`` in a new process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_load_clip(contest) -> None:
    code = "from minilib import load_clip; load_clip('mini-vit')"
    torch_alone = {"import torch": lambda: run("import torch")}
    contest.run("load_clip('mini-vit')", lambda: run(code), torch_alone, 1, AIM)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapters_first_imports(contest, name: str) -> None:
    code = opening(name)
    torch_alone = {"import torch": lambda: run("import torch")}
    contest.run(f"imports of {name}", lambda: run(code), torch_alone, 1)
