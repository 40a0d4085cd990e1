"""A tiny chapter in a folder of its own, run with real kernels."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# the tests of this folder share tiny_chapter.py
sys.path.insert(0, str(Path(__file__).parent))

from tiny_chapter import RECORD, write_notebook  # noqa: E402

from minilib.reproduce import running  # noqa: E402
from minilib.reproduce.inputs import PACKAGE  # noqa: E402
from minilib.reproduce.watching import family, kill  # noqa: E402


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


@pytest.fixture
def clean_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process begin and end in a clean checkout, whatever this one is."""
    monkeypatch.setattr(
        running, "source", lambda: {"commit": "a" * 40, "uncommitted": []}
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``python -m minilib ...`` in a process that does not outlive the test, nor
    do its children."""
    started = []

    def popen(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(PACKAGE.parent),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        # Tests that run in the background of a shell inherit that SIGINT is ignored.
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        command = [sys.executable, "-m", "minilib", *arguments]
        options = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        # as a terminal does it
        options |= {"preexec_fn": heed, "start_new_session": True}
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, **options)
        started.append(process)
        return process

    yield popen
    for process in started:
        if process.poll() is None:
            kill(family(process.pid))
        process.stderr.close()
