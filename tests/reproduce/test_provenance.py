"""A run says at what commit it began, and whether it stayed there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tiny_chapter import RECORD, write_notebook

from minilib import claims, reproduce
from minilib.reproduce import running, surroundings

CLEAN = {"commit": "a" * 40, "uncommitted": []}


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *who, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a package of one file, as if it were this one."""
    root = tmp_path / "checkout"
    (root / "minilib").mkdir(parents=True)
    (root / "notebooks").mkdir()
    (root / "minilib" / "__init__.py").write_text("")
    (root / "minilib" / "train.py").write_text("lr = 1\n")
    (root / "notebooks" / "01_clip.ipynb").write_text("{}")
    (root / "README.md").write_text("read me\n")
    (root / ".gitignore").write_text("runs\nsite\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "all")
    monkeypatch.setattr(surroundings, "PACKAGE", root / "minilib")
    return root


def test_a_checkout_says_its_commit_and_what_was_changed(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert surroundings.source() == {"commit": commit, "uncommitted": []}
    (checkout / "README.md").write_text("prose\n")
    (checkout / "runs").mkdir()
    assert surroundings.source()["uncommitted"] == [], "neither can change a result"
    (checkout / "minilib" / "train.py").write_text("lr = 2\n")
    (checkout / "minilib" / "new.py").write_text("")
    (checkout / "notebooks" / "01_clip.ipynb").unlink()
    names = ["minilib/new.py", "minilib/train.py", "notebooks/01_clip.ipynb"]
    dirty = surroundings.source()
    assert dirty["commit"] == commit and sorted(dirty["uncommitted"]) == names
    git(checkout, "add", ".")
    assert sorted(surroundings.source()["uncommitted"]) == names, "staged is no commit"
    git(checkout, "commit", "-q", "-m", "more")
    after = surroundings.source()
    assert after["uncommitted"] == [] and after["commit"] != commit
    assert surroundings.moved(dirty, after).startswith(f"commit {commit[:8]} became ")
    edited = {**after, "uncommitted": ["minilib/train.py"]}
    assert "changed in the working tree" in surroundings.moved(after, edited)
    assert surroundings.moved(after, dict(after)) == ""


def test_what_is_not_a_checkout_has_no_commit(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "site" / "minilib"  # in a repository that ignores it
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    nowhere = {"commit": None, "uncommitted": None}
    for package in (installed, tmp_path / "elsewhere" / "minilib"):
        package.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(surroundings, "PACKAGE", package)
        assert surroundings.source() == nowhere


def run_in(
    chapters: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, *sources: dict
) -> tuple[dict, running.Outcome]:
    """Run the tiny chapter while the source is what ``sources`` say, one a look."""
    said = iter(sources)
    monkeypatch.setattr(running, "source", lambda: next(said))
    (job,) = reproduce.plan(["all"], "quick", [0], runs, folder=chapters)
    outcome = reproduce.run(job)
    assert outcome.state == "done", outcome.message
    return json.loads((job.folder / "run.json").read_text()), outcome


def test_a_run_is_stamped_at_its_start(
    chapters: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = {"commit": "b" * 40, "uncommitted": []}
    about, outcome = run_in(chapters, runs, monkeypatch, CLEAN, later)
    assert (about["commit"], about["uncommitted"]) == ("a" * 40, [])
    assert about["changed_meanwhile"] == "commit aaaaaaaa became bbbbbbbb"
    assert "commit aaaaaaaa became bbbbbbbb during the run" in outcome.message
    said: list[str] = []
    folder = runs.parent / "results"
    assert claims.merge(runs, folder, ["quick"], say=said.append) == []
    assert len(said) == 1 and "tiny quick seed 0: commit aaaaaaaa became" in said[0]


def test_a_run_in_a_clean_checkout_is_collected(
    chapters: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about, outcome = run_in(chapters, runs, monkeypatch, CLEAN, dict(CLEAN))
    assert about["changed_meanwhile"] == "" and "warning" not in outcome.message
    said: list[str] = []
    (path,) = claims.merge(runs, runs.parent / "results", ["quick"], say=said.append)
    (found,) = claims.read_records(path)
    assert said == [] and found.environment["commit"] == "a" * 40


def test_a_run_that_goes_on_keeps_the_stamp_of_its_first_start(
    chapters: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped, and the commit was moved before it went on."""
    flag = runs.parent / "flag"
    stop = f"import pathlib\nassert pathlib.Path({str(flag)!r}).exists(), 'stopped'\n"
    write_notebook(chapters, stop, RECORD)
    said = iter([CLEAN])
    monkeypatch.setattr(running, "source", lambda: next(said))
    (job,) = reproduce.plan(["all"], "quick", [0], runs, folder=chapters)
    assert reproduce.run(job).state == "failed"
    flag.write_text("")
    later = {"commit": "b" * 40, "uncommitted": []}
    about, _ = run_in(chapters, runs, monkeypatch, later, later)
    assert about["commit"] == "a" * 40
    assert about["changed_meanwhile"] == "commit aaaaaaaa became bbbbbbbb"
