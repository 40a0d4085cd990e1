"""A chapter that runs in a second."""

from __future__ import annotations

from pathlib import Path

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

# Writes what claims.record writes, without the seconds that importing the library takes.
RECORD = """\
import json, pathlib
folder = pathlib.Path(out)
result = {"chapter": "tiny", "profile": profile, "seed": seed, "claims": {}, "results": {}}
result["results"]["tiny.lr"] = lr * steps
(folder / "result.json").write_text(json.dumps(result))
with open(folder / "metrics.jsonl", "a") as file:
    print(json.dumps({"step": 0, "loss": 1.0}), file=file)
lr * steps
"""


def write_notebook(folder: Path, *cells: str, name: str = "01_tiny", parameters: str = PARAMETERS) -> Path:
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
