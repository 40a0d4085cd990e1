"""What the repository's own pages say about the results is what the records say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from minilib import claims

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", claims.marked_files(), ids=lambda page: page.name)
def test_what_is_quoted_from_the_records_is_in_the_records(page: Path) -> None:
    """The README's scoreboard, and every number in a page or a chapter that is
    marked as a result."""
    # raises where a record is missing
    stale = claims.fill_file(page, ROOT / "book" / "results", write=False)
    assert not stale, "run: python -m minilib scoreboard --write"


def test_the_readme_has_the_scoreboard_and_the_table_of_records_is_fresh() -> None:
    assert ROOT / "README.md" in claims.marked_files()
    table = (ROOT / "book" / "results" / "claims.csv").read_text("utf-8")
    assert table == claims.summary(ROOT / "book" / "results"), (
        "run: python -m minilib scoreboard --write"
    )


def test_the_readme_leads_to_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (ROOT / target).exists(), target


def test_make_has_the_targets_that_the_pages_speak_of() -> None:
    targets = set(
        re.findall(
            r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE
        )
    )
    for page in ("README.md", "book/howto-run.md", "book/intro.md"):
        spoken = set(re.findall(r"`make ([a-z]+)", (ROOT / page).read_text("utf-8")))
        assert spoken <= targets, f"{page} speaks of {spoken - targets}"


def test_conda_and_make_install_the_same_set() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    pip = next(
        entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)
    )
    make = (ROOT / "Makefile").read_text("utf-8")
    assert all(option.replace("'", "") in make.replace("'", "") for option in pip)


def test_every_direct_dependency_has_a_tried_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {
        re.match(r"[\w.-]+", entry)[0].lower().replace("_", "-") for entry in wanted
    }
    text = (ROOT / "constraints.txt").read_text("utf-8")
    pinned = set(re.findall(r"^([\w.-]+)==\S+$", text, re.MULTILINE))
    assert names <= pinned, names - pinned
    assert not re.search(r"https?:|index|find-links", text), (
        "versions only, no places to fetch from"
    )
