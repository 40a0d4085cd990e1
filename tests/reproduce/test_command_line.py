"""Exit statuses and one-line errors that hold for all commands, and what ``collect``
and ``publish`` refuse."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_chapter import RECORD, write_notebook

import minilib.__main__
from minilib import claims
from minilib.__main__ import main
from minilib.claims import records, reports, results_folder
from minilib.claims.judging import ICONS
from minilib.reproduce.inputs import PACKAGE


def one_line(capsys) -> str:
    """What was said on stderr: one line that begins with the program's name."""
    said = capsys.readouterr().err
    assert said.startswith("minilib: ") and said.count("\n") == 1, said
    return said


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("status --chapters clp", "unknown chapter 'clp'"),
        ("status --chapters tiny,clp", "unknown chapter 'clp'"),
        ("status --out nowhere", "--out nowhere: there is no such folder"),
        ("status --out file", "--out file: there is no such folder"),
        ("status --out loop", "--out loop: there is no such folder"),
        ("status --notebooks nowhere", "--notebooks nowhere: there is no such folder"),
        ("clean --chapters clp", "unknown chapter 'clp'"),
        ("clean --all --chapters clp", "unknown chapter 'clp'"),
        ("clean --out nowhere", "--out nowhere: there is no such folder"),
        ("publish --chapters clp", "unknown chapter 'clp'"),
        ("publish --runs nowhere", "--runs nowhere: there is no such folder"),
        ("publish --runs runs", "no finished quick run of tiny"),
        ("plan --chapters clp", "unknown chapter 'clp'"),
        ("plan --out ~nobody-of-that-name", None),
        ("reproduce --chapters clp", "unknown chapter 'clp'"),
        ("reproduce --out file", "cannot write to the folder"),
        ("reproduce --out loop", "cannot write to the folder"),
        ("reproduce --out " + "x" * 300, "File name too long"),
        ("collect --runs nowhere", "--runs nowhere: there is no such folder"),
        (
            "collect --runs runs --results file",
            "--results file: there is no such folder",
        ),
        (
            "collect --runs runs --results loop",
            "--results loop: there is no such folder",
        ),
        ("scoreboard --results nowhere", "--results nowhere: there is no such folder"),
        ("scoreboard --write page.md --results nowhere", "--results nowhere: there"),
        ("scoreboard --write page.md --results runs", "runs holds no records"),
        ("scoreboard --write nowhere.md", "nowhere.md: No such file"),
        ("scoreboard --write runs", "runs: Is a directory"),
        ("scoreboard --write loop", "loop: Too many levels of symbolic links"),
        ("scoreboard --write latin.md", "latin.md is not text in UTF-8"),
        ("scoreboard --write latin.ipynb", "latin.ipynb is not a notebook"),
        ("scoreboard --check " + "x" * 300, "File name too long"),
    ],
)
def test_wrong_use_is_2_and_one_line(
    chapters, tmp_path, arguments, words, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "loop").symlink_to("loop")
    page = "<!-- scoreboard:start -->\n| clip |\n<!-- scoreboard:end -->\n"
    (tmp_path / "page.md").write_text(page)
    for name in ("latin.md", "latin.ipynb"):
        (tmp_path / name).write_bytes(page.encode() + b"\xe9")
    command, *rest = arguments.split()
    if command in ("status", "clean", "publish", "plan", "reproduce"):
        rest = ["--notebooks", str(chapters), *rest]
    status = main([command, *rest])
    if words is None:  # a folder called ~nobody-of-that-name may be made
        assert status == 0
        return
    assert status == 2
    assert words in one_line(capsys)
    assert (tmp_path / "page.md").read_text() == page


WORDS = (
    "",
    " ",
    "0",
    "-1",
    "1e-4",
    "nan",
    "0..",
    "2..1",
    "0..99999999999",
    "quick",
    "tiny",
    "all",
    "nowhere",
    "file",
    "loop",
    "a=b",
    "lr=nan",
    "=",
    "\u00e9\u3042",
    "x" * 300,
    "a\nb",
    "../..",
    "--",
    "local",
    "slurm",
    "2h",
    "cuda:99",
)
OPTIONS = (
    "--chapters",
    "--profile",
    "--profiles",
    "--seeds",
    "--device",
    "--out",
    "--runs",
    "--results",
    "--jobs",
    "--time-limit",
    "-p",
    "--write",
    "--check",
    "--unknown",
)


def test_any_words_end_in_a_status_and_no_traceback(
    chapters, tmp_path, capsys, monkeypatch
):
    """Commands that start nothing, with 600 random command lines."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "loop").symlink_to("loop")
    kept = sorted(path.name for path in tmp_path.iterdir())
    drawn = random.Random(0)
    seen = set()
    for _ in range(600):
        command = drawn.choice(("plan", "status", "clean", "collect", "scoreboard"))
        line = [command]
        if command in ("plan", "status", "clean"):
            line += ["--notebooks", str(chapters)]
        for _ in range(drawn.randint(1, 3)):
            line += [drawn.choice(OPTIONS), drawn.choice(WORDS)]
        try:
            status = main(line)
        except SystemExit as stop:  # argparse's own refusals
            status = stop.code
        said = capsys.readouterr()
        assert status in (0, 1, 2), f"{line}: {status}"
        assert "Traceback" not in said.err, line
        assert status != 2 or said.err.strip(), f"{line}: refused without a word"
        seen.add(status)
    assert seen >= {0, 2}
    assert {path.name for path in tmp_path.iterdir()} >= set(kept)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_new_project_has_nothing_to_show(chapters, tmp_path, capsys):
    folders = ["--notebooks", str(chapters), "--out", str(tmp_path)]
    assert main(["status", *folders]) == 0 and main(["clean", *folders]) == 0
    assert main(["scoreboard", "--results", str(tmp_path)]) == 0
    assert "No results have been recorded yet" in capsys.readouterr().out
    results = ["--results", str(tmp_path / "new")]
    assert main(["collect", "--runs", str(tmp_path), *results]) == 0
    assert "no finished runs of profile full, photos, paper" in capsys.readouterr().err


def test_one_damaged_page_keeps_all_from_being_written(tmp_path, capsys):
    text = "<!-- result clip.zero_shot_top1 full -->0 %<!-- /result -->\n"
    good, bad = tmp_path / "a.md", tmp_path / "b.md"
    good.write_text(text)
    bad.write_text(f"1\n{text[:-1].replace('<!-- /result -->', '')}\nkept\n{text}")
    before = bad.read_text()
    assert main(["scoreboard", "--write", str(good), str(bad)]) == 2
    assert "b.md, line 2: <!-- result clip.zero_shot_top1 full --> is incomplete" in (
        one_line(capsys)
    )
    assert good.read_text() == text and bad.read_text() == before
    assert main(["scoreboard", "--write", str(good)]) == 0 and good.read_text() != text


def test_a_broken_ledger_is_named(tmp_path, capsys, monkeypatch):
    for path in Path(str(records._LEDGER)).iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    lines = (tmp_path / "lseg.yaml").read_text() + "claims: []\n"
    (tmp_path / "lseg.yaml").write_text(lines)
    monkeypatch.setattr(records, "_LEDGER", tmp_path)
    records._load.cache_clear()
    try:
        assert main(["scoreboard"]) == 2
    finally:
        records._load.cache_clear()
    line = lines.count("\n")
    assert f"ledger/lseg.yaml, line {line}: 'claims' is given twice" in one_line(capsys)


# The surroundings


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_a_console_without_the_signs_is_no_failure(encoding, monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    rows = [
        claims.Row(claim, "quick", claims.Verdict(claim.id, "quick", kind, n=1))
        for claim, kind in zip(claims.load("clip").values(), ICONS, strict=False)
    ]
    monkeypatch.setattr(reports, "collect", lambda *_: rows)
    assert main(["scoreboard"]) == 0
    shown = out.buffer.getvalue().decode(encoding)
    assert "| clip | quick |" in shown and "? reproduced" in shown
    err.flush()
    assert err.buffer.getvalue() == b""


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    page = tmp_path / "a.md"
    page.write_text("<!-- result clip.zero_shot_top1 full --><!-- /result -->")

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(minilib.__main__, "write_atomically", full)
    assert main(["scoreboard", "--write", str(page)]) == 2
    assert one_line(capsys) == f"minilib: {page}: No space left on device\n"


def command(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.Popen(
        [sys.executable, "-m", "minilib", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written():
    with open("/dev/full", "wb") as full:
        process = command("scoreboard", stdout=full)
        said = process.communicate()[1].decode()
    assert process.returncode == 2
    assert said.startswith("minilib: ") and said.endswith("No space left on device\n")
    assert said.count("\n") == 1


def test_a_reader_that_has_gone():
    read, write = os.pipe()
    os.close(read)
    process = command("scoreboard", stdout=write)
    os.close(write)
    assert process.communicate()[1] == b"" and process.returncode == 1


def test_all_statuses_are_in_the_help_and_the_book(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out.partition("exit status of every command")[2]
    page = (results_folder().parent / "howto-batches.md").read_text()
    table = page.partition("(exits)=")[2].partition("(stale)=")[0]
    for status in (0, 1, 2, 3, 130):
        assert f"\n  {status} " in shown and f"\n| {status} |" in table


# Damaged notebooks


@pytest.mark.parametrize("text", ["", "{}", "[]", '"x"', '{"cells": [{}]}', "{"])
def test_a_damaged_notebook_is_named_and_its_runs_are_kept(
    chapters, runs, capsys, text
):
    damaged = chapters / "02_other.ipynb"
    damaged.write_text(text)
    run = runs / "other" / "quick" / "seed0"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    flags = ["--notebooks", str(chapters), "--out", str(runs)]
    assert main(["status", *flags]) == 1
    shown = capsys.readouterr()
    assert f"minilib: {damaged} is not a notebook (" in shown.err
    assert "02_other.ipynb is damaged" in shown.out and "tiny" in shown.out
    for name in ("plan", "reproduce"):
        assert main([name, *flags]) == 2
        assert f"{damaged} is not a notebook" in one_line(capsys)
    assert main(["clean", "--stale", *flags]) == 0
    assert f"{damaged} is not a notebook" in one_line(capsys)
    assert (run / "run.json").exists()


# What is not collected and not published


def test_only_what_belongs_together_is_collected_and_published(
    chapters, runs, tmp_path, capsys, clean_checkout
):
    notebook = write_notebook(chapters, RECORD)
    flags = ["--notebooks", str(chapters)]
    make = ["reproduce", *flags, "--out", str(runs), "--device", "cpu"]
    results = tmp_path / "results"
    collect = ["collect", "--runs", str(runs), "--results", str(results)]
    collect += ["--profiles", "quick"]
    publish = ["publish", "--runs", str(runs), *flags]

    assert main([*make, "--seeds", "1"]) == 0
    assert main([*make, "--seeds", "0", "-p", "lr=77"]) == 0
    capsys.readouterr()
    assert main(collect) == 1 and not list(results.glob("*.json"))
    said = one_line(capsys)
    assert "tiny.quick.json: not merged: seed 0 and seed 1 were not made alike" in said
    assert "parameter lr: 77.0 and not given" in said
    before = notebook.read_bytes()
    assert main(publish) == 2 and notebook.read_bytes() == before
    assert "is not the default one, but with lr=77.0 (default 0.1)" in one_line(capsys)

    assert main(make) == 0
    capsys.readouterr()
    assert main(collect) == 0
    kept = json.loads((results / "tiny.quick.json").read_text())
    assert [run["seed"] for run in kept["runs"]] == [0, 1]
    assert kept["runs"][0]["environment"]["parameters"] == {}
    assert str(tmp_path) not in (results / "tiny.quick.json").read_text()
    assert main(publish) == 0 and notebook.read_bytes() != before

    # A library that has changed, a result that another run left, changed code.
    place = runs / "tiny" / "quick" / "seed0"
    texts = {name: (place / name).read_text() for name in ("run.json", "result.json")}
    about = json.loads(texts["run.json"])
    about["inputs"]["library"]["minilib/batch.py"] = "another"
    (place / "run.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert main(publish) == 2
    assert f"the run in {place} is stale (minilib/batch.py)" in one_line(capsys)
    assert main(collect) == 1
    said = capsys.readouterr().err
    assert f"minilib: {place}: left out: stale (minilib/batch.py)" in said
    (place / "run.json").write_text(texts["run.json"])
    (place / "result.json").write_text(
        texts["result.json"].replace('"seed": 0', '"seed": 1')
    )
    assert main(["status", *flags, "--out", str(runs)]) == 1
    assert "stale: result.json is of tiny quick seed 1" in capsys.readouterr().out
    assert main(collect) == 1
    said = capsys.readouterr().err
    assert "result.json is of tiny quick seed 1, run.json of tiny quick seed 0" in said
    (place / "result.json").write_text(texts["result.json"])
    assert main(collect) == 0
    write_notebook(chapters, RECORD + "1\n")
    capsys.readouterr()
    assert main(collect) == 1
    said = capsys.readouterr().err
    assert said.count("left out: stale (code cell 2 of the notebook)") == 2
    assert json.loads((results / "tiny.quick.json").read_text()) == kept
