"""Nothing is lost and nothing is silent: what a run may delete, what it must say, and
what surroundings may do to it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tiny_chapter import PARAMETERS, RECORD, write_notebook

from minilib import reproduce
from minilib.__main__ import main
from minilib.reproduce import batch, commands, folders, running, watching
from minilib.reproduce.inputs import PACKAGE, data_digests
from minilib.reproduce.surroundings import fixed_threads, foreign_kernel


def call(chapters: Path, runs: Path, *arguments: str) -> int:
    flags = ["--executor", "debug", "--device", "cpu"]
    flags += ["--notebooks", str(chapters), "--out", str(runs)]
    return main(["reproduce", *flags, *arguments])


def states(chapters: Path, runs: Path, command: str = "status", *more: str) -> int:
    return main([command, "--notebooks", str(chapters), "--out", str(runs), *more])


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def done(chapters: Path, runs: Path) -> Path:
    """The folder of a finished run that left a checkpoint in a folder of its own."""
    write_notebook(
        chapters,
        RECORD,
        "(folder / 'main').mkdir(exist_ok=True)\n"
        "(folder / 'main' / 'last.pt').write_text(str(lr))",
    )
    assert call(chapters, runs) == 0
    return runs / "tiny" / "quick" / "seed0"


# --- What is deleted, and when --------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_a_number_that_cannot_be_kept_costs_nothing(
    done, chapters, runs, value, capsys
):
    before = files(done)
    assert call(chapters, runs, "-p", f"lr={value}") == 2
    told = capsys.readouterr().err
    assert "01_tiny.ipynb: lr=" in told and "expected finite numbers" in told
    assert files(done) == before


def test_parameters_that_only_python_has_are_refused(done, chapters, runs, capsys):
    before = files(done)
    for value in ("{1, 2}", "b'x'", "1j", "[float]", "[1e999]"):
        status = call(chapters, runs, "-p", f"data={value}")
        assert status == 0 or "expected finite numbers" in capsys.readouterr().err
        if status:
            assert files(done) == before


def test_the_old_result_stays_until_the_new_one_is_done(done, chapters, runs, capsys):
    before = files(done)
    write_notebook(chapters, RECORD, "assert lr < 1, 'too fast'", "1")
    assert call(chapters, runs, "-p", "lr=77") == 1
    now = files(done)
    assert "run.json" not in now, "it is not lr=77's"
    assert now[".before/main/last.pt"] == before["main/last.pt"]
    assert now[".before/result.json"] == before["result.json"]
    assert not list(runs.rglob("run.json")), "nobody takes it for a finished run"
    # what it was made from is asked for again
    write_notebook(
        chapters,
        RECORD,
        "(folder / 'main').mkdir(exist_ok=True)\n"
        "(folder / 'main' / 'last.pt').write_text(str(lr))",
    )
    capsys.readouterr()
    assert call(chapters, runs) == 0
    assert "tiny quick seed 0: unchanged" in capsys.readouterr().err
    assert files(done) == before and states(chapters, runs) == 0


def test_a_result_that_is_set_aside_goes_when_the_new_one_is_done(
    done, chapters, runs, capsys
):
    assert call(chapters, runs, "-p", "lr=2") == 0
    assert (done / "main" / "last.pt").read_text() == "2.0"
    assert not (done / ".before").exists()
    # a forced run is made, even if an older one was set aside for it
    write_notebook(chapters, RECORD, "import os; assert os.environ.get('WELL')")
    assert call(chapters, runs, "--force") == 1
    os.environ["WELL"] = "1"
    try:
        assert call(chapters, runs, "--force") == 0
    finally:
        del os.environ["WELL"]
    assert not (done / ".before").exists() and not (done / "main").exists()


def test_setting_aside_goes_on_where_it_was_cut_short(done, monkeypatch):
    before, move, calls = files(done), folders._move, []

    def killed(path: Path, target: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        move(path, target)

    monkeypatch.setattr(folders, "_move", killed)
    with pytest.raises(KeyboardInterrupt):
        folders.set_aside(done)
    assert (done / "run.json").exists() and folders.was_set_aside(done) is None
    monkeypatch.setattr(folders, "_move", move)
    folders.set_aside(done)
    assert set(files(done)) == {
        f".before/{'finished.json' if name == 'run.json' else name}" for name in before
    }
    folders.put_back(done)
    assert files(done) == before


def test_notes_and_links_of_a_user_stay(done, chapters, runs, tmp_path, capsys):
    notes = {"notes.md": "precious", "main/why.txt": "too", "mine/a/b.csv": "1"}
    for name, text in notes.items():
        (done / name).parent.mkdir(parents=True, exist_ok=True)
        (done / name).write_text(text)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("precious")
    (done / "linked").symlink_to(elsewhere)

    def all_there() -> bool:
        texts = {name: (done / name).read_text() for name in notes}
        return texts == notes and (done / "linked" / "thesis.txt").exists()

    assert call(chapters, runs, "--force") == 0 and all_there()
    assert call(chapters, runs, "-p", "lr=3") == 0 and all_there()
    assert (done / "main" / "last.pt").read_text() == "3.0"
    write_notebook(chapters, "raise ValueError")
    assert call(chapters, runs) == 1 and all_there()
    write_notebook(chapters, RECORD)
    assert call(chapters, runs) == 0 and all_there()
    assert not (done / "main" / "last.pt").exists(), "that was a run's"
    capsys.readouterr()
    assert states(chapters, runs, "clean", "--all") == 0 and all_there()
    assert "left alone, since no run made it: linked, main/why.txt" in (
        capsys.readouterr().err
    )
    assert set(files(done)) >= set(notes) and "run.json" not in files(done)


def test_a_link_that_a_run_made_is_removed_and_not_what_it_leads_to(
    chapters, runs, tmp_path
):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data.txt").write_text("data")
    link = f"(folder / 'linked').symlink_to({str(tmp_path / 'elsewhere')!r})"
    write_notebook(chapters, RECORD, link)
    assert call(chapters, runs) == 0
    assert call(chapters, runs, "--force") == 0
    assert states(chapters, runs, "clean", "--all") == 0
    assert not (runs / "tiny" / "quick" / "seed0").exists()
    assert (tmp_path / "elsewhere" / "data.txt").read_text() == "data"


def test_notes_beside_an_interrupted_run_stay(chapters, runs, capsys):
    write_notebook(
        chapters,
        RECORD,
        "(folder / 'half.bin').write_text('half')",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    )
    folder = runs / "tiny" / "quick" / "seed0"
    folder.mkdir(parents=True)
    (folder / "before.txt").write_text("before")
    assert call(chapters, runs) == 1
    for name in ("attempt.json", "progress.json"):  # as if it were a while ago
        os.utime(folder / name, (1e9, 1e9))
    (folder / "after.txt").write_text("after")
    write_notebook(chapters, RECORD)
    assert call(chapters, runs) == 0
    assert not (folder / "half.bin").exists(), "that was the run's"
    assert (folder / "before.txt").exists() and (folder / "after.txt").exists()
    assert json.loads((folder / "run.json").read_text())["files"] == [
        "metrics.jsonl", "notebook.ipynb", "result.json",
    ]  # fmt: skip


def test_unfinished_runs_are_cleaned_and_the_result_before_comes_back(
    done, chapters, runs, capsys
):
    before = files(done)
    write_notebook(chapters, "raise ValueError")
    assert call(chapters, runs) == 1
    capsys.readouterr()
    assert states(chapters, runs, "clean", "--unfinished") == 0
    assert "the finished one before it is put back" in capsys.readouterr().err
    assert files(done) == before


def test_what_cannot_be_removed_is_told_and_the_rest_goes(
    done, chapters, runs, capsys, monkeypatch
):
    write_notebook(chapters, RECORD.replace("tiny", "other"), name="02_other")
    assert call(chapters, runs, "--chapters", "other") == 0
    clear = folders.clear

    def refuse(folder: Path) -> None:
        if "other" in folder.parts:
            raise OSError(errno.EROFS, "Read-only file system", str(folder))
        clear(folder)

    monkeypatch.setattr(folders, "clear", refuse)
    capsys.readouterr()
    assert states(chapters, runs, "clean", "--all") == 1
    told = capsys.readouterr().err
    assert "could not be removed: Read-only file system" in told
    assert not done.exists()


def test_cleaning_frees_a_full_disk(done, chapters, runs, capsys, monkeypatch):
    """Whatever is written fails; what is removed must go."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module in (batch, running):
        monkeypatch.setattr(module, "write_atomically", full)
        monkeypatch.setattr(module, "writable_folder", full)
    assert states(chapters, runs, "clean", "--all") == 0
    assert not done.exists() and "removed" in capsys.readouterr().err


# --- What a run is of -----------------------------------------------------------------


def test_only_data_and_weights_name_paths(chapters, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(chapters, runs) == 0
    for name in ("quick", "cpu", "tiny"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("hello")
    assert states(chapters, runs) == 0
    assert data_digests({"profile": "quick", "device": "cpu", "lr": 1}) == {}
    (tmp_path / "w.pt").write_text("1")
    given = {"data": str(tmp_path / "quick"), "weights": str(tmp_path / "w.pt")}
    assert set(data_digests(given)) == {"data", "weights"}
    assert data_digests({"data": "", "weights": "mini-rn"}) == {}


def test_data_written_again_with_the_same_names_and_sizes_are_noticed(
    chapters, runs, tmp_path
):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("1")
    given = {"extra": {"data": str(photos)}, "folder": chapters}
    (job,) = reproduce.plan(["tiny"], "quick", [0], runs, **given)
    assert reproduce.run(job).state == "done"
    (photos / "a.jpg").write_text("2")
    os.utime(photos / "a.jpg", (1, 1))
    assert reproduce.what_changed(job) == ["data in data, written again since"]


def test_threads_are_fixed_recorded_and_part_of_what_a_run_is_of(
    chapters, runs, monkeypatch, capsys
):
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    write_notebook(chapters, RECORD, "import os; print(os.environ['OMP_NUM_THREADS'])")
    assert call(chapters, runs, "--seeds", "0..1") == 0
    for seed in range(2):
        folder = runs / "tiny" / "quick" / f"seed{seed}"
        about = json.loads((folder / "run.json").read_text())
        assert about["threads"] == about["inputs"]["threads"] == "1"
        printed = json.loads((folder / "notebook.ipynb").read_text())["cells"][-1]
        assert printed["outputs"][0]["text"] in ("1\n", ["1\n"])
    capsys.readouterr()
    assert call(chapters, runs) == 0 and "unchanged" in capsys.readouterr().err
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert states(chapters, runs) == 0, "it stands as what it is"
    assert call(chapters, runs) == 0
    assert "running (threads: 2 instead of 1)" in capsys.readouterr().err
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert fixed_threads() == "8"


# --- Every cell, and the kernel it ran in ---------------------------------------------


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ((RECORD, "import sys; sys.exit(0)", "1 / 0"), "code cell 4 of 5 without an"),
        ((RECORD, "raise SystemExit", "1 / 0"), "code cell 4 of 5 without an error"),
        ((RECORD, "import sys; sys.exit(0)"), "code cell 4 of 4 without an error"),
        ((RECORD, "import sys; sys.exit(3)", "1"), "SystemExit in cell"),
        ((RECORD, "import os; os._exit(0)", "1"), "the kernel died"),
    ],
)
def test_a_run_is_done_when_every_cell_ran(chapters, runs, cells, words, capsys):
    write_notebook(chapters, *cells)
    assert call(chapters, runs) == 1
    assert words in capsys.readouterr().err
    assert not (runs / "tiny" / "quick" / "seed0" / "run.json").exists()


def test_empty_cells_need_not_run(chapters, runs):
    write_notebook(chapters, RECORD, "", "  \n", "# a remark")
    assert call(chapters, runs) == 0


def test_the_kernel_says_what_it_is(chapters, runs, tmp_path, monkeypatch, capsys):
    """A "python3" in JUPYTER_PATH, as clusters set it, with another torch."""
    site, kernels = tmp_path / "site", tmp_path / "share" / "kernels" / "python3"
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "__init__.py").write_text('__version__ = "1.0.fake"')
    kernels.mkdir(parents=True)
    starts = (
        f"import sys; sys.path.insert(0, {str(site)!r}); "
        "from ipykernel.kernelapp import launch_new_instance as l; l()"
    )
    argv = [sys.executable, "-c", starts, "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "cluster", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(spec))
    write_notebook(chapters, RECORD, "import torch", "names = dir()")
    path = runs / "tiny" / "quick" / "seed0" / "run.json"

    assert call(chapters, runs) == 0
    about = json.loads(path.read_text())
    assert (
        about["kernel"] == sys.executable and "warning" not in capsys.readouterr().err
    )
    real = about["versions"]["torch"]
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    assert call(chapters, runs, "--force") == 0
    about = json.loads(path.read_text())
    told = capsys.readouterr().err
    assert about["versions"]["torch"] == "1.0.fake"
    warning = "warning: its kernel is of another environment than this one"
    assert f"{warning}, {sys.executable}" in told
    assert f"torch 1.0.fake, here {real}" in told
    assert about["versions"]["numpy"] and about["versions"]["python"]


def test_another_python_is_told():
    said = {"prefix": "/opt/cluster", "executable": "/opt/cluster/bin/python"}
    assert "another environment than this one, /opt/cluster/bin/python" in (
        foreign_kernel(said)
    )
    assert foreign_kernel({"prefix": sys.prefix}) == ""
    assert "did not say" in foreign_kernel(None)


# --- Clocks and what the system shows -------------------------------------------------


def test_a_clock_that_steps_ends_no_process(monkeypatch):
    """psutil's start times follow the time of day."""
    mark = watching.mark_of(os.getpid())
    steps = iter(range(0, 10**6, 3600))
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: next(steps))
    assert watching.mark_of(os.getpid()) == mark != ""
    assert watching.is_alive(os.getpid(), mark)
    assert batch.this_process() == (os.getpid(), mark)


def test_a_process_is_told_from_a_later_one_of_its_number():
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = watching.mark_of(ended.pid)
    assert watching.is_alive(ended.pid, mark)
    assert not watching.is_alive(ended.pid, str(int(mark) + 500))
    ended.kill()
    wait = psutil.Process(ended.pid)
    while wait.status() != psutil.STATUS_ZOMBIE:
        pass
    assert not watching.is_alive(ended.pid, mark), "a zombie does nothing any more"
    ended.wait()
    ended.stdin.close()
    assert not watching.is_alive(ended.pid, mark)


@pytest.fixture
def hidden(monkeypatch):
    """A system that shows only one's own processes (/proc mounted with hidepid=1): to
    ask for those of others, as psutil does for children, is refused."""
    pids, ours = psutil.pids(), os.getpid()

    def refused(self: psutil.Process, recursive: bool = False) -> list:
        raise psutil.AccessDenied(self.pid)

    real = psutil.Process.ppid

    def ppid(self: psutil.Process) -> int:
        parent = real(self)
        if self.pid in pids and self.pid != ours:
            raise psutil.AccessDenied(self.pid)
        return parent

    monkeypatch.setattr(psutil.Process, "children", refused)
    monkeypatch.setattr(psutil.Process, "ppid", ppid)


def test_runs_where_other_peoples_processes_are_hidden(chapters, runs, hidden, capsys):
    assert call(chapters, runs) == 0
    about = json.loads((runs / "tiny/quick/seed0/run.json").read_text())
    assert about["peak_memory_bytes"] > 10 * 2**20
    write_notebook(chapters, RECORD, "import time; time.sleep(600)")
    assert call(chapters, runs, "--time-limit", "4s") == 1
    assert "stopped at its time limit of 4 s" in capsys.readouterr().err


def test_where_nothing_is_told_of_a_process_it_counts_as_alive(monkeypatch):
    def denied(self: psutil.Process) -> str:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "status", denied)
    assert watching.is_alive(os.getpid(), "")
    assert not watching.is_alive(2**22 - 3, "")


# --- Damaged files of others ----------------------------------------------------------


@pytest.mark.parametrize("name", ["result.json", "run.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"runs": 3}', "\\x00"])
def test_a_damaged_run_of_another_chapter_counts_as_not_run(
    chapters, runs, capsys, name, text
):
    write_notebook(chapters, RECORD.replace("tiny", "clip"), name="02_clip")
    other = runs / "lseg" / "quick" / "seed0"
    other.mkdir(parents=True)
    (other / "run.json").write_text("{}")
    (other / "result.json").write_text("{}")
    (other / name).write_text(text)
    assert call(chapters, runs, "--chapters", "clip") == 0


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"cells": [', "\\x00"])
def test_an_unreadable_notebook_is_named(chapters, runs, capsys, text):
    assert call(chapters, runs) == 0
    (chapters / "02_empty.ipynb").write_text(text)
    for command in ("plan", "reproduce"):
        assert states(chapters, runs, command) == 2
        assert "02_empty.ipynb" in capsys.readouterr().err
        assert states(chapters, runs, command, "--chapters", "tiny") == 0
    assert states(chapters, runs, "status") in (0, 1)
    assert states(chapters, runs, "clean") == 0
    (chapters / "01_tiny.ipynb").write_text(text)
    assert states(chapters, runs, "status") == 1
    assert "stale: 01_tiny.ipynb is damaged" in capsys.readouterr().out
    assert states(chapters, runs, "clean") == 0


def test_relative_weights_are_meant_as_the_shell_means_them(
    chapters, runs, tmp_path, monkeypatch
):
    from minilib.__main__ import _parser

    write_notebook(
        chapters,
        RECORD,
        parameters=PARAMETERS + '\nweights = ""',
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper.pth").write_text("weights")
    flags = ["--notebooks", str(chapters), "--out", str(runs)]
    options = _parser().parse_args(
        ["reproduce", *flags, "-p", "weights=paper.pth", "-p", "data=photos"]
    )
    (job,) = commands._jobs(options)
    assert job.parameters["weights"] == str(tmp_path / "paper.pth")
    assert job.parameters["data"] == str(tmp_path / "photos")


# --- The scripts that train what ships ------------------------------------------------


@pytest.mark.parametrize("script", ["train_mini_clip", "train_mini_countx"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "missing"], "--out missing: there is no such folder"),
        (["--steps", "0"], "'0' is not a number of steps"),
        (["--work", "/proc/work"], "cannot write to the folder '/proc/work'"),
    ],
)
def test_scripts_refuse_before_they_train(tmp_path, script, arguments, words):
    path = PACKAGE.parent / "data_scripts" / f"{script}.py"
    command = [sys.executable, str(path), *arguments]
    command += ["--model", "mini-vit"] if script == "train_mini_clip" else []
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 2 and words in ended.stderr
    assert "Traceback" not in ended.stderr and "parameters," not in ended.stdout
