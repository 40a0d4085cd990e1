"""Notebooks as files: parameters, types, stored outputs."""

from __future__ import annotations

import nbformat
import pytest
from tiny_chapter import PARAMETERS, RECORD, write_notebook

from minilib import notebooks
from minilib.__main__ import main


def test_chapters_are_found_by_name_and_in_order(tmp_path):
    for name in ("02_lseg", "01_clip", "draft", "03_x.partial"):
        write_notebook(tmp_path, name=name)
    assert list(notebooks.chapters(tmp_path)) == ["clip", "lseg"]
    with pytest.raises(ValueError, match="'clap'.*clip, lseg"):
        notebooks.find_chapter("clap", tmp_path)


def test_parameters_are_read_with_their_types(chapters):
    found = notebooks.read_parameters(
        nbformat.read(chapters / "01_tiny.ipynb", as_version=4)
    )
    expected = ("quick", 0, "auto", "runs/tiny", 0.1, 3, False, None)
    assert tuple(found.values()) == expected
    assert [type(value) for value in found.values()] == [
        type(value) for value in expected
    ]


@pytest.mark.parametrize(
    "line", ["half = lr / 2", "import os", "a, b = 1, 2", "print(3)", "steps += 1"]
)
def test_parameters_cell_holds_literals_only(tmp_path, line):
    path = write_notebook(tmp_path, parameters=PARAMETERS + line)
    with pytest.raises(ValueError, match="only name = literal"):
        notebooks.read_parameters(nbformat.read(path, as_version=4))


def test_notebook_without_a_parameters_cell_is_refused(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("a = 1")])
    with pytest.raises(ValueError, match="found 0"):
        notebooks.read_parameters(notebook)


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("1e-4", 0.1, 1e-4),
        ("2", 0.1, 2.0),
        ("300", 3, 300),
        ("true", False, True),
        ("False", True, False),
        ("7", "text", "7"),
        ("photos/mine", None, "photos/mine"),
        ("[1, 2]", [4], [1, 2]),
    ],
)
def test_text_becomes_the_type_of_the_default(text, default, value):
    got = notebooks.typed("name", text, default)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "default"),
    [("1e3", 3), ("fast", 0.1), ("1", True), ("yes", True), ("3", [4])],
)
def test_text_of_another_type_is_refused(text, default):
    with pytest.raises(ValueError, match=f"name='{text}'"):
        notebooks.typed("name", text, default)


def test_publish_stores_outputs_and_keeps_the_prose(chapters, runs, capsys):
    figure = """\
class Shown:
    def __repr__(self):
        return "Figure: a square"
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/png": "iVBORw0KGgo=", "text/plain": repr(self)}, {}
Shown()"""
    path = write_notebook(chapters, RECORD, figure)
    flags = ["--notebooks", str(chapters)]
    assert main(["publish", "--runs", str(runs), *flags]) == 2, "nothing was run yet"
    assert main(["reproduce", "--out", str(runs), *flags]) == 0
    edited = nbformat.read(path, as_version=4)
    edited.cells[0].source = "# A better title"
    nbformat.write(edited, path)
    assert main(["publish", "--runs", str(runs), *flags]) == 0
    stored = nbformat.read(path, as_version=4)
    assert stored.cells[0].source == "# A better title"
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3], (
        "the injected cell is not counted"
    )
    assert code[1].outputs[0].data["text/plain"] == "0.30000000000000004"
    assert code[1].outputs[0].execution_count == 2
    assert code[2].metadata["mystnb"] == {"image": {"alt": "a square"}}
    text = path.read_text()
    assert "papermill" not in text and "injected" not in text and str(runs) not in text
    # Stored outputs do not make the run stale, changed code does.
    assert main(["reproduce", "--out", str(runs), *flags]) == 0
    assert "unchanged" in capsys.readouterr().err
    edited = nbformat.read(path, as_version=4)
    edited.cells[2].source += "\n"
    edited.cells[2].source += "1"
    nbformat.write(edited, path)
    before = path.read_bytes()
    assert main(["publish", "--runs", str(runs), *flags]) == 2
    assert "code changed" in capsys.readouterr().err and path.read_bytes() == before


def test_alt_texts_of_a_cell_are_joined_and_replaced():
    def cell(*texts):
        outputs = [
            {"output_type": "display_data", "data": {"text/plain": text}}
            for text in texts
        ]
        return {
            "cell_type": "code",
            "metadata": {"mystnb": {"image": {"alt": "old", "width": "50%"}}},
            "outputs": outputs,
        }

    notebook = {
        "cells": [
            cell("Figure: One.", "3", "Figure: Two."),
            cell("4"),
            {"cell_type": "markdown", "metadata": {}},
        ]
    }
    notebooks.add_alt_texts(notebook)
    images = [cell["metadata"].get("mystnb") for cell in notebook["cells"]]
    assert images == [
        {"image": {"width": "50%", "alt": "One. Two."}},
        {"image": {"width": "50%"}},
        None,
    ]
