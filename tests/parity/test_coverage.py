"""No golden case passes unseen: an empty folder fails, and so does every case of a
paper without tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_folder_holds_cases(request: pytest.FixtureRequest) -> None:
    folder = Path(request.config.getoption("--golden"))
    found = [*folder.glob("*.json"), *folder.glob("*/*.json")]
    assert found, (
        f"no golden case in {folder}: --golden takes a folder of <paper>/<case>.json"
    )


def test_unknown_paper(golden_case) -> None:
    if golden_case is not None:
        pytest.fail(
            f"{golden_case.path}: no parity test knows the paper {golden_case.paper!r}"
        )
