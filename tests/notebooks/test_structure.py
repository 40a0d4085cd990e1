"""Every notebook is stored as a reader, the runner and the book need it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted(
    Path(__file__).resolve().parents[2].joinpath("notebooks").glob("*.ipynb")
)
CHAPTERS = [path for path in NOTEBOOKS if re.match(r"\d\d_", path.name)]

# Section titles of a chapter, in this order: what each must speak of.
SECTIONS = {
    "the idea in one picture": r"\bidea\b|\bone picture\b",
    "the data, looked at": r"\bdata\b",
    "the model, block by block": r"\bmodel\b|\btowers?\b|block by block",
    "the loss": r"\bloss\b",
    "training or evaluation": r"\btrain|\bevaluat|\bwatch",
    "the claims": r"\bclaims?\b",
    "the paper's scale": r"\bscale\b",
    "questions and exercises": r"\bquestions?\b|\bexercises?\b",
    "further reading": r"\breading\b",
}
ABSOLUTE = re.compile(
    r"(?<![\w/.:~}-])/(?:home|root|tmp|work|Users|var|opt|mnt|private)/[\w.-]+"
)
CLOCK = re.compile(
    r"perf_counter|time\.time\(|%%?time|process_time|ru_maxrss|memory_info"
)

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.name)


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [
        cell
        for cell in read(path).cells
        if cell.cell_type == "code" and cell.source.strip()
    ]


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def texts(cell: nbformat.NotebookNode) -> list[str]:
    """All text in a cell's outputs."""
    found = []
    for output in cell.outputs:
        found += [output.get("text", "")]
        found += [
            str(value)
            for kind, value in output.get("data", {}).items()
            if kind.startswith("text/")
        ]
    return found


def pictures(cell: nbformat.NotebookNode) -> bool:
    return any(
        kind.startswith("image/")
        for output in cell.outputs
        for kind in output.get("data", {})
    )


@every
def test_small_enough_for_git_and_pages(path: Path) -> None:
    size = path.stat().st_size
    assert size < 1.5e6, (
        f"{size / 1e6:.2f} MB; save figures at a lower dpi or show fewer pictures"
    )


@every
def test_runs_in_any_environments_kernel(path: Path) -> None:
    assert read(path).metadata.kernelspec.name == "python3"


@every
def test_was_executed_from_top_to_bottom(path: Path) -> None:
    counts = [cell.execution_count for cell in code(path)]
    assert None not in counts, (
        f"code cell {counts.index(None) + 1} was never run: nbval would check nothing"
    )
    assert counts == sorted(counts), (
        "cells were run out of order: restart the kernel and run all"
    )


@every
def test_holds_results_and_no_failure(path: Path) -> None:
    cells = code(path)
    assert any(cell.outputs for cell in cells), (
        "no outputs are stored: the book would show nothing"
    )
    for number, cell in enumerate(cells, 1):
        for output in cell.outputs:
            assert output.output_type != "error", (
                f"code cell {number} failed: {output.get('evalue')}"
            )
            errors = output.get("text", "") if output.get("name") == "stderr" else ""
            assert not re.search(r"Traceback|Warning\b", errors), (
                f"code cell {number} warns: {errors[:200]}"
            )


@every
def test_names_no_place_on_somebodys_machine(path: Path) -> None:
    for cell in read(path).cells:
        for text in [cell.source, *(texts(cell) if cell.cell_type == "code" else [])]:
            found = ABSOLUTE.search(text)
            assert not found, (
                f"{found.group()} in a cell that begins {cell.source[:60]!r}"
            )


@every
def test_cells_with_a_clock_are_not_compared(path: Path) -> None:
    for number, cell in enumerate(code(path), 1):
        if CLOCK.search(cell.source):
            assert tags(cell) & {"nbval-ignore-output", "nbval-skip"}, (
                f"code cell {number} reads a clock"
            )


@every
def test_pictures_have_a_description(path: Path) -> None:
    for number, cell in enumerate(code(path), 1):
        if pictures(cell):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) > 15, (
                f"code cell {number} shows a picture: say what it shows in the cell's "
                "metadata, "
                '{"mystnb": {"image": {"alt": "..."}}}'
            )


@every
def test_was_not_stored_by_the_runner(path: Path) -> None:
    injected = [
        cell for cell in read(path).cells if "injected-parameters" in tags(cell)
    ]
    assert not injected, "this is a run of the notebook, with its parameters in it"
    assert "papermill" not in read(path).metadata or not read(
        path
    ).metadata.papermill.get("parameters")


@every_chapter
def test_parameters_are_literals(path: Path) -> None:
    cells = [cell for cell in code(path) if "parameters" in tags(cell)]
    assert len(cells) == 1, f"{len(cells)} cells are tagged `parameters`"
    values = {}
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign | ast.AnnAssign), (
            f"line {statement.lineno}: papermill sets values after this cell: compute "
            "nothing in it"
        )
        target = (
            statement.targets[0]
            if isinstance(statement, ast.Assign)
            else statement.target
        )
        assert isinstance(target, ast.Name)
        values[target.id] = ast.literal_eval(statement.value)
    wanted = dict(profile=str, seed=int, device=str, out=str, data=str, devices=int)
    assert {name: type(values.get(name)) for name in wanted} == wanted
    assert (values["profile"], values["device"]) == ("quick", "auto"), (
        "stored is what anybody can repeat"
    )


@every_chapter
def test_has_the_sections_of_a_chapter_in_order(path: Path) -> None:
    prose = "\n".join(
        cell.source for cell in read(path).cells if cell.cell_type == "markdown"
    )
    titles = re.findall(r"^#{1,3} +(.+?)\s*$", prose, flags=re.MULTILINE)
    assert len(re.findall(r"^# ", prose, flags=re.MULTILINE)) == 1, (
        "a page has one title"
    )
    at = 0
    for section, pattern in SECTIONS.items():
        after = [
            i
            for i in range(at, len(titles))
            if re.search(pattern, titles[i], re.IGNORECASE)
        ]
        assert after, (
            f"no section on {section} after {titles[max(at - 1, 0)]!r} (title like "
            f"{pattern!r})"
        )
        at = after[0] + 1


@every_chapter
def test_answers_are_folded(path: Path) -> None:
    """An exercise whose answer stands open beside it is none."""
    prose = "\n".join(
        cell.source for cell in read(path).cells if cell.cell_type == "markdown"
    )
    folded = re.findall(
        r":class: [^\n]*\bdropdown\b|^:{3,}\{dropdown\}|<details",
        prose,
        flags=re.MULTILINE,
    )
    hidden = [cell for cell in code(path) if tags(cell) & {"hide-cell", "hide-input"}]
    assert folded or hidden


@every
def test_cells_are_short_enough_to_be_read(path: Path) -> None:
    for number, cell in enumerate(code(path), 1):
        lines = cell.source.count("\n") + 1
        assert lines <= 30, (
            f"code cell {number} has {lines} lines: move what is not the point into "
            "the library"
        )


def definitions(path: Path) -> set[str]:
    """Names of the functions and classes that a notebook defines."""
    nodes = [node for cell in code(path) for node in ast.walk(ast.parse(cell.source))]
    return {
        node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def test_no_helper_is_defined_in_two_notebooks() -> None:
    seen: dict[str, str] = {}
    for path in NOTEBOOKS:
        for name in definitions(path):
            assert name not in seen, (
                f"{name} is defined in {seen[name]} and in {path.name}"
            )
            seen[name] = path.name


@every_chapter
def test_the_chapter_is_opened_with_all_its_parameters(path: Path) -> None:
    parameters = next(cell for cell in code(path) if "parameters" in tags(cell))
    names = {
        node.id
        for node in ast.walk(ast.parse(parameters.source))
        if isinstance(node, ast.Name)
    }
    calls = [
        node
        for cell in code(path)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call)
    ]
    (opened,) = [call for call in calls if ast.unparse(call.func) == "chapter.open"]
    assert {word.arg: ast.unparse(word.value) for word in opened.keywords} == {
        name: name for name in names
    }
