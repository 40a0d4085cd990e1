"""A tiny chapter in a folder of its own, run with real kernels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests of this folder share tiny_chapter.py

from tiny_chapter import RECORD, write_notebook  # noqa: E402


@pytest.fixture
def chapters(tmp_path: Path) -> Path:
    """A folder of notebooks with one good chapter."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder, RECORD)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where runs go; not made yet."""
    return tmp_path / "runs"
