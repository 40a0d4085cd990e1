"""What several tests of claims need."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def finish() -> Callable[..., None]:
    """Write the ``run.json`` that makes a run in ``<chapter>/<profile>/seed<n>``
    finished."""

    def write(folder: Path, **about: Any) -> None:
        chapter, profile, seed = folder.parts[-3:]
        head = {"chapter": chapter, "profile": profile, "seed": int(seed[4:])}
        inputs = {
            "notebook": ["a1", "b2"],
            "library": {"minilib/batch.py": "c3"},
            "parameters": {**head, "device": "cpu"},
            "data": {},
        }
        inputs["parameters"].pop("chapter")
        text = json.dumps({**head, "inputs": inputs, **about})
        (folder / "run.json").write_text(text)

    return write
