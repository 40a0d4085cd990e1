"""Options that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "golden"),
        metavar="DIR",
        help=(
            "folder of golden cases, DIR/<paper>/"
            "<case>.json, or the cases of one paper directly in DIR"
        ),
    )
