"""A chapter that runs in a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

PARAMETERS = """\
profile = "quick"  # quick, full, photos or paper
seed = 0
device = "auto"
out = "runs/tiny"
lr = 0.1
steps = 3
ema: bool = False
data = None
"""

# Writes what claims.record writes, without the seconds that importing the
# library takes.
RECORD = """\
import json, pathlib
folder = pathlib.Path(out)
result = {"chapter": "tiny", "profile": profile, "seed": seed}
result |= {"claims": {}, "results": {}}
result["results"]["tiny.lr"] = lr * steps
(folder / "result.json").write_text(json.dumps(result))
with open(folder / "metrics.jsonl", "a") as file:
    print(json.dumps({"step": 0, "loss": 1.0}), file=file)
lr * steps
"""


def write_notebook(
    folder: Path, *cells: str, name: str = "01_tiny", parameters: str = PARAMETERS
) -> Path:
    """Write a notebook of a title, the parameters cell and the given code cells."""
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Tiny"), tagged, *code],
        metadata={"kernelspec": kernel, "language_info": {"name": "python"}},
    )
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def gated(gate: Path, log: Path) -> str:
    """Return a cell that trains two steps with a checkpoint in between, and with an odd
    seed waits there for ``gate``.

    It adds a line to ``log`` for each start: the run's folder and the step that
    it goes on from.
    """
    return f"""\
import os, time
folder = pathlib.Path(out)
checkpoint = folder / "checkpoint.txt"
state = checkpoint.read_text() if checkpoint.exists() else "0 0"
step, weight = (int(part) for part in state.split())
with open({str(log)!r}, "a") as file:
    name, process = folder.parent.parent.name, os.getpid()
    print(name, seed, "from", step, "process", process, file=file)
while step < 2:
    step, weight = step + 1, 3 * weight + seed + step
    part = folder / "checkpoint.part"
    part.write_text(f"{{step}} {{weight}}")
    part.replace(checkpoint)
    while step == 1 and seed % 2 and not pathlib.Path({str(gate)!r}).exists():
        time.sleep(0.05)
result["results"]["trained"] = weight
(folder / "result.json").write_text(json.dumps(result))
"""


def starts(log: Path) -> list[tuple[str, int, int, int]]:
    """Return the starts of gated cells so far as (chapter, seed, step it went
    on from, process)."""
    lines = log.read_text().splitlines() if log.exists() else []
    found = [line.split() for line in lines]
    return [
        (chapter, int(seed), int(step), int(pid))
        for chapter, seed, _, step, _, pid in found
    ]


def wait_for(condition: Callable[[], Any], seconds: float = 200) -> Any:
    """Return the first true value of ``condition``; fail if there is none in time."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found
