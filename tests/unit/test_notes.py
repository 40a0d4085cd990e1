"""The lint step that refuses working notes in published files."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "notes.py"


@pytest.fixture(scope="module")
def notes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Each is joined here, so that this file passes the very step that it tests.
LEAKED = "".join(
    (
        *("# LEAD -", "> COUNTX: read NOTE_", "FROM_LEAD_TO_COUNTX.md in the "),
        *("repository root NOW (then delete", " this line and that file)."),
    )
)
PARTS = [
    ("# LEAD -", "> COUNTX: see below"),
    ("read NOTE_", "FROM_LEAD.md"),
    ("(then delete", " this line)"),
    ("# TO", "DO(me): finish"),
    ("# X", "XX wrong"),
    ("data = '/wor", "k/main/data'"),
    ("/hom", "e/someone/x"),
]


def test_the_line_that_was_once_published_is_refused(notes: ModuleType) -> None:
    assert notes.found(["", LEAKED]) == [(2, LEAKED)]


@pytest.mark.parametrize("parts", PARTS)
def test_each_kind_of_note_is_refused(
    notes: ModuleType, parts: tuple[str, str]
) -> None:
    assert notes.found(["".join(parts)])


@pytest.mark.parametrize(
    "line",
    [
        "def f(x: Tensor) -> Tensor:",
        "H x W -> N",
        "a note to the reader: remove this layer and see",
        "https://github.com/home/x",
        "the mastodon",
        "i" * 2000 + LEAKED,
    ],
)
def test_prose_and_code_pass(notes: ModuleType, line: str) -> None:
    assert not notes.found([line])


def test_a_file_with_a_note_makes_lint_fail(
    notes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "picture.png").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "good.py").write_text("x = 1\n")
    assert notes.main(tmp_path) == 0
    (tmp_path / "bad.py").write_text(f"{LEAKED}\n")
    assert notes.main(tmp_path) == 1
    assert "bad.py:1: a working note" in capsys.readouterr().out


def test_this_tree_has_none(notes: ModuleType) -> None:
    assert notes.main() == 0
