"""What several unit tests need."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minilib import claims
from minilib.claims import records

# the tests below this folder share witness.py
sys.path.insert(0, str(Path(__file__).parent))

from witness import Drawn, Probed, Trained, Witness  # noqa: E402

TOY = Path(__file__).with_name("toy_ledger.yaml")


@pytest.fixture
def toy(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, claims.Claim]]:
    """The claims of the toy ledger, which is the only ledger there is meanwhile."""
    folder = tmp_path_factory.mktemp("ledger")
    schema = (records._LEDGER / "schema.json").read_text("utf-8")
    (folder / "schema.json").write_text(schema, "utf-8")
    (folder / "toy.yaml").write_text(TOY.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(records, "_LEDGER", folder)
    records._load.cache_clear()
    yield claims.load("toy")
    records._load.cache_clear()


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
    finished, in a clean checkout unless ``about`` says otherwise."""

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
        made = {"commit": "c0ffee" * 6, "uncommitted": [], "changed_meanwhile": ""}
        text = json.dumps({**head, "inputs": inputs, **made, **about})
        (folder / "run.json").write_text(text)

    return write
