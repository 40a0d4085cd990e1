"""What several unit tests need."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# the tests below this folder share witness.py
sys.path.insert(0, str(Path(__file__).parent))

from witness import Drawn, Probed, Trained, Witness  # noqa: E402


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    """Notes what is drawn, trained and compared; see ``witness.py``."""
    notes = Witness()
    notes.install(monkeypatch)
    return notes


@pytest.fixture
def drawn_scenes(witness: Witness) -> list[Drawn]:
    """The scenes drawn since the test began, in order."""
    return witness.scenes


@pytest.fixture
def trainings(witness: Witness) -> list[Trained]:
    """The calls of the training loop since the test began, in order."""
    return witness.trainings


@pytest.fixture
def probes(witness: Witness) -> list[Probed]:
    """The linear probes fitted since the test began, in order."""
    return witness.probes


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
