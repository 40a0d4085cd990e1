"""Runs finish whole or not at all, say what went wrong, and are repeated only when
something changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint

import nbformat
import pytest
from tiny_chapter import RECORD, write_notebook

from minilib import claims, opened, reproduce
from minilib.__main__ import main
from minilib.reproduce import running
from minilib.reproduce.commands import parse_seeds
from minilib.reproduce.inputs import PACKAGE, data_digests, library_digests, read_inputs


def jobs(chapters, runs, seeds=(0,), names=("all",), extra=None, profile="quick"):
    return reproduce.plan(names, profile, seeds, runs, extra=extra, folder=chapters)


def call(chapters, runs, *arguments):
    """Runs in this very process, which saves the start of one for each run;
    test_batch.py has the real thing."""
    return main(
        [
            "reproduce",
            "--executor",
            "debug",
            "--notebooks",
            str(chapters),
            "--out",
            str(runs),
            *arguments,
        ]
    )


def test_a_run_leaves_everything_and_is_not_repeated(chapters, runs, capsys):
    (job,) = jobs(chapters, runs, extra={"lr": "1e-2", "steps": "5"})
    assert reproduce.what_changed(job) == ["not run yet"]
    outcome = reproduce.run(job)
    assert outcome.state == "done", outcome.message
    folder = runs / "tiny" / "quick" / "seed0"
    assert {path.name for path in folder.iterdir()} == {
        "notebook.ipynb",
        "run.json",
        "result.json",
        "metrics.jsonl",
    }
    about = json.loads((folder / "run.json").read_text())
    assert about["parameters"]["lr"] == 0.01 and about["parameters"]["steps"] == 5
    assert (
        about["seed"] == 0 and about["wall_seconds"] > 0 and about["versions"]["torch"]
    )
    assert about["peak_memory_bytes"] > 10 * 2**20, "a kernel takes more than that"
    assert about["inputs"]["library"] == {}, (
        "this chapter imports nothing of the library"
    )
    assert (
        about["disk_bytes"] > 0
        and about["downloaded_bytes"] >= 0
        and about["device"]["used"]
    )
    assert json.loads((folder / "result.json").read_text())["results"][
        "tiny.lr"
    ] == pytest.approx(0.05)
    assert reproduce.what_changed(job) == []
    stamp = (folder / "run.json").stat().st_mtime_ns
    assert call(chapters, runs, "-p", "lr=1e-2", "-p", "steps=5") == 0
    assert "unchanged, not run again" in capsys.readouterr().err
    assert (folder / "run.json").stat().st_mtime_ns == stamp


def test_what_changed_is_named(chapters, runs, monkeypatch, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("1")
    (job,) = jobs(chapters, runs, extra={"data": str(photos)})
    assert reproduce.run(job).state == "done"

    path = chapters / "01_tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = "# Other prose"
    nbformat.write(notebook, path)
    (again,) = jobs(chapters, runs, extra={"data": str(photos)})
    assert reproduce.what_changed(again) == [], "prose does not change a result"

    (photos / "b.jpg").write_text("2")
    (again,) = jobs(chapters, runs, extra={"data": str(photos)})
    assert reproduce.what_changed(again) == ["data in data"]
    (again,) = jobs(chapters, runs, extra={"data": str(photos), "lr": "0.2"})
    assert reproduce.what_changed(again) == ["parameter lr", "data in data"]

    notebook.cells[2].source += "\n2"
    nbformat.write(notebook, path)
    (again,) = jobs(chapters, runs, extra={"data": str(photos)})
    assert "code cell 2 of the notebook" in reproduce.what_changed(again)
    notebook.cells.append(nbformat.v4.new_code_cell("3"))
    nbformat.write(notebook, path)
    (again,) = jobs(chapters, runs, extra={"data": str(photos)})
    assert "the notebook has 3 code cells, not 2" in reproduce.what_changed(again)


def test_only_the_files_that_a_run_opened_count(chapters, runs):
    cell = """\
import subprocess, sys
from minilib import claims
claims.load("clip")
subprocess.run([sys.executable, "-c", "import minilib.tokenizer"], check=True)"""
    write_notebook(chapters, RECORD, cell)
    (job,) = jobs(chapters, runs)
    assert reproduce.run(job).state == "done"
    used = json.loads((job.folder / "run.json").read_text())["inputs"]["library"]
    expected = {
        "__init__.py",
        "claims/records.py",
        "ledger/clip.yaml",
        "ledger/schema.json",
        "tokenizer.py",
    }
    assert {f"minilib/{name}" for name in expected} <= set(used), (
        "what its child processes open is noted too"
    )
    now = library_digests()
    assert {name: now[name] for name in used} == used
    assert not {
        name
        for name in used
        if name.startswith(("minilib/recipes", "minilib/reproduce", "minilib/opened"))
    }
    assert (
        reproduce.what_changed(
            job,
            {**now, "minilib/models/new.py": "new", "minilib/ledger/lseg.yaml": "new"},
        )
        == []
    )
    assert (
        reproduce.what_changed(job, {**now, "minilib/recipes/clip/recipe.py": "other"})
        == []
    )
    changed = {**now, "minilib/ledger/clip.yaml": "other"}
    del changed["minilib/tokenizer.py"]
    assert reproduce.what_changed(job, changed) == [
        "minilib/ledger/clip.yaml",
        "minilib/tokenizer.py",
    ]


def test_library_files_that_can_count():
    found = library_digests()
    assert {
        "minilib/ledger/clip.yaml",
        "minilib/scenes/vocabulary.tsv",
        "minilib/claims/records.py",
    } <= set(found)
    assert not {
        name
        for name in found
        if "__pycache__" in name or name.startswith("minilib/reproduce/")
    }


def test_a_library_that_changes_during_the_run_makes_its_result_stale(
    chapters, runs, monkeypatch
):
    write_notebook(chapters, RECORD, "import minilib.files")
    (job,) = jobs(chapters, runs)
    before = {**library_digests(), "minilib/files.py": "as it was"}
    monkeypatch.setattr(
        running,
        "read_inputs",
        lambda notebook, given, threads: read_inputs(notebook, given, before, threads),
    )
    assert reproduce.run(job).state == "done"
    assert reproduce.what_changed(job) == ["minilib/files.py"]


def test_shipped_weights_count_though_python_does_not_open_them(tmp_path):
    code = "from minilib.weights import read_card; read_card('mini-vit')"
    environment = {
        **os.environ,
        "PYTHONPATH": str(PACKAGE.parent),
        opened.VARIABLE: str(tmp_path / "opened"),
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    found = opened.read(tmp_path / "opened")
    assert (
        "weights/mini-vit.safetensors" in found
        and "weights/mini-rn.safetensors" not in found
    )


def test_data_in_one_file_count_by_beginning_and_end(tmp_path):
    path = tmp_path / "photos.zip"
    path.write_bytes(b"a" * 100)
    before = data_digests(
        {"data": str(path), "lr": 0.1, "out": str(tmp_path), "none": None}
    )
    assert set(before) == {"data"}
    path.write_bytes(b"a" * 99 + b"b")
    assert data_digests({"data": str(path)}) != before


@pytest.mark.parametrize("name", ["run.json", "result.json", "notebook.ipynb"])
def test_a_damaged_run_is_run_again(chapters, runs, name):
    (job,) = jobs(chapters, runs)
    assert reproduce.run(job).state == "done"
    (job.folder / name).write_text('{"chapter"')
    assert reproduce.what_changed(job) == ["not run yet"]
    assert reproduce.run(job).state == "done" and reproduce.what_changed(job) == []


def test_forced_run_starts_clean(chapters, runs, capsys, tmp_path):
    once = f"""
flag = pathlib.Path({str(tmp_path / "flag")!r})
if not flag.exists(): (folder / "checkpoint.bin").write_text("old")
flag.touch()"""
    write_notebook(chapters, RECORD + once)
    assert call(chapters, runs) == 0
    folder = runs / "tiny" / "quick" / "seed0"
    assert (folder / "checkpoint.bin").exists()
    assert call(chapters, runs, "--force") == 0
    assert "running (forced)" in capsys.readouterr().err
    assert not (folder / "checkpoint.bin").exists()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1


def test_failures_are_named_and_do_not_stop_the_others(chapters, runs, capsys):
    write_notebook(chapters, RECORD, "raise KeyError('the weights')", name="00_broken")
    write_notebook(
        chapters,
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        name="02_dies",
    )
    write_notebook(chapters, "1 + 1", name="03_silent")
    write_notebook(
        chapters, RECORD.replace('"seed": seed', '"seed": 7'), name="04_deaf"
    )
    assert call(chapters, runs) == 1
    told = capsys.readouterr().err
    for name, words in {
        "broken": "KeyError in cell .*the weights",
        "dies": "the kernel died",
        "silent": "without recording a result",
        "deaf": "does the notebook pass its parameters on",
    }.items():
        assert re.search(f"{name} quick seed 0: failed, .*{words}", told), told
        folder = runs / name / "quick" / "seed0"
        assert not (folder / "run.json").exists() and (folder / "failed.ipynb").exists()
        assert not (folder / "notebook.ipynb").exists()
    assert "tiny quick seed 0: done" in told and "4 of 5 runs failed" in told
    # A failed run is tried again, and once it works nothing of the failure is left.
    write_notebook(chapters, RECORD.replace('"tiny"', '"broken"'), name="00_broken")
    assert call(chapters, runs, "--chapters", "broken") == 0
    assert not (runs / "broken" / "quick" / "seed0" / "failed.ipynb").exists()


def test_failed_rerun_takes_the_old_result_away(chapters, runs):
    assert call(chapters, runs) == 0
    write_notebook(chapters, "raise ValueError('new mistake')")
    assert call(chapters, runs) == 1
    folder = runs / "tiny" / "quick" / "seed0"
    assert not (folder / "run.json").exists() and not (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "step=3"], "no parameter 'step': did you mean steps"),
        (["-p", "steps=1e3"], "steps='1e3' is not of type int"),
        (["-p", "seed=3"], "--seeds"),
        (["--chapters", "clap"], "unknown chapter 'clap': the chapters are tiny"),
        (["--device", "gpu"], "device='gpu' is unknown"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    chapters, runs, capsys, arguments, words
):
    assert call(chapters, runs, *arguments) == 2
    assert words in capsys.readouterr().err
    assert not runs.exists()


@pytest.mark.parametrize(
    "arguments",
    [["--profile", "fast"], ["--seeds", "2..0"], ["--seeds", "a"], ["-p", "steps"], []],
)
def test_wrong_use_is_explained(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", *arguments] if arguments else [])
    assert (
        stopped.value.code == 2
        and "usage: python -m minilib" in capsys.readouterr().err
    )


def test_notebook_without_a_common_parameter_is_refused(chapters, runs, capsys):
    write_notebook(chapters, parameters='profile = "quick"\nseed = 0\nout = "x"')
    assert call(chapters, runs) == 2
    assert (
        "01_tiny.ipynb: the notebook has no parameter 'device'"
        in capsys.readouterr().err
    )


def test_runs_that_cannot_be_written(chapters, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "file", "/proc/runs"):
        assert call(chapters, out) == 2
        assert "cannot write to the folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "not a folder"


def test_installed_package_has_no_notebooks(monkeypatch, capsys):
    monkeypatch.setattr("minilib.notebooks.repository", lambda: None)
    assert main(["reproduce"]) == 2
    assert "clone it" in capsys.readouterr().err


def test_a_foreign_file_in_the_runs_folder_is_spared(chapters, runs):
    (job,) = jobs(chapters, runs)
    job.folder.mkdir(parents=True)
    (job.folder / "thesis.txt").write_text("precious")
    assert reproduce.run(job).state == "done"
    assert (job.folder / "thesis.txt").read_text() == "precious"


def test_kernel_imports_the_package_whose_digests_are_recorded(
    chapters, runs, monkeypatch
):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    cell = (
        "import importlib.util; assert "
        "importlib.util.find_spec('minilib').origin.startswith({!r})"
    )
    write_notebook(chapters, RECORD, cell.format(str(PACKAGE)))
    (job,) = jobs(chapters, runs)
    outcome = reproduce.run(job)
    assert outcome.state == "done", outcome.message
    assert "PYTHONPATH" not in os.environ


def test_folder_names_with_braces_work(chapters, tmp_path):
    (job,) = jobs(chapters, tmp_path / "{runs}")
    assert reproduce.run(job).state == "done"


def test_seeds_are_read():
    assert parse_seeds("0") == [0]
    assert parse_seeds("0..2") == [0, 1, 2]
    assert parse_seeds("3,1..2, 1") == [3, 1, 2]


def test_several_seeds_each_have_a_folder(chapters, runs):
    assert call(chapters, runs, "--seeds", "0..1") == 0
    values = [
        json.loads(path.read_text())["seed"]
        for path in sorted(runs.glob("tiny/quick/seed*/result.json"))
    ]
    assert values == [0, 1]


def favourable(claim):
    """A measurement of a claim at full that supports it, whatever the ledger asks."""
    test = claim.test("full")

    def away(expected):
        step = {"greater": -1, "smaller": 1, "equal": 0}[expected.direction]
        return 0.5 + 2 * step * (expected.effect + 0.1) + expected.effect / 9

    return {
        "treatment": 0.5,
        "control": away(test.main),
        "controls": {name: away(rival) for name, rival in test.controls.items()},
        "preconditions": {name: c.bound for name, c in test.preconditions.items()},
        "n": 10,
    }


def test_collect_and_scoreboard(tmp_path, chapters, runs, capsys, clean_checkout):
    claim = next(
        claim
        for claim in claims.load("clip").values()
        if isinstance(claim.tests["full"], claims.Test)
        and not claim.tests["full"].exact
    )
    kind = "reproduced" if claim.origin == "paper" else "supported"
    seeds = claim.test("full").seeds.fresh
    record = f"""\
from minilib import claims
here = {{"profile": profile, "seed": seed, "out": out}}
claims.record("{claim.id}", **{favourable(claim)}, **here)
claims.record_result("clip.top1", 0.9, **here)"""
    write_notebook(chapters, record, name="02_clip")
    arguments = ["--chapters", "clip", "--profile", "full"]
    assert call(chapters, runs, *arguments, "--seeds", ",".join(map(str, seeds))) == 0
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if claim.id in line
    ]
    assert kind in line and claim.title in line
    results = tmp_path / "results"
    assert main(["collect", "--runs", str(runs), "--results", str(results)]) == 0
    text = (results / "clip.full.json").read_text()
    kept = json.loads(text)["runs"][1]
    assert (
        kept["results"] == {"clip.top1": 0.9}
        and kept["environment"]["versions"]["python"]
    )
    assert str(tmp_path) not in text, "a record names no folder of the machine"

    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- scoreboard:start -->\n<!-- scoreboard:end -->\nafter\n"
    )
    page = tmp_path / "claims.md"
    page.write_text(
        f"# Claims\n\nIt is <!-- result {claim.id}:verdict full -->old"
        "<!-- /result -->.\n"
    )
    files = [str(readme), str(page), "--results", str(results)]
    assert main(["scoreboard", "--check", *files]) == 1
    assert main(["scoreboard", "--write", *files]) == 0
    assert main(["scoreboard", "--check", *files]) == 0
    assert f"| clip | full | {len(seeds)} |" in readme.read_text()
    assert readme.read_text().startswith("before\n") and readme.read_text().endswith(
        "after\n"
    )
    assert f"full -->{kind}<!--" in page.read_text()
    assert (
        (results / "claims.csv")
        .read_text()
        .splitlines()[1]
        .startswith(f"{claim.id},{claim.origin},full,{kind},")
    )
    plain = tmp_path / "plain.md"
    plain.write_text("nothing")
    assert main(["scoreboard", "--write", str(plain), "--results", str(results)]) == 2
    assert "plain.md has no markers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("called", "name"),
    [("/usr/bin/minilib", "minilib"), ("minilib/__main__.py", "python -m minilib")],
)
def test_help_names_the_command_as_it_was_called(called, name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [called, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().out
    assert stopped.value.code == 0 and told.startswith(f"usage: {name} ")
    assert f"\n  {name} plan --profile full" in told


def test_console_script_is_the_command_line(chapters, runs, monkeypatch, capsys):
    declared = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    script = EntryPoint(
        "minilib", declared["project"]["scripts"]["minilib"], "console_scripts"
    )
    call = ["minilib", "plan", "--notebooks", str(chapters), "--out", str(runs)]
    monkeypatch.setattr("sys.argv", call)
    assert script.load()() == 0, "the exit status, which the script passes to the shell"
    assert "1 of 1 to run" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*call, "--chapters", "clap"])
    assert script.load()() == 2
