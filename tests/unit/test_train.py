"""Training on several processes: the same curve as on one, resume after SIGKILL, and
what a notebook calls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from minilib import parameters
from minilib.batch import Batch
from minilib.recipes.clip import recipe as clip
from minilib.recipes.clip.chapter import CHAPTER
from minilib.recipes.clip.experiments import Lab
from minilib.training import CHECKPOINT, METRICS
from minilib.training import launch as train
from minilib.training.parallel import cut

HERE = Path(__file__).parents[1] / "workers"
sys.path.append(str(HERE))
import train_rank  # noqa: E402


def start(count: int, *arguments: object) -> subprocess.Popen:
    """Start ``train_rank.py`` on ``count`` CPU processes, as
    ``accelerate launch`` does."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(count),
    ]
    command += [
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=0",
    ]
    paths = os.pathsep.join(
        filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")])
    )
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": paths,
    }
    return subprocess.Popen(
        [*command, HERE / "train_rank.py", *map(str, arguments)], env=environment
    )


def rows(out: Path) -> list[dict]:
    text = (out / METRICS).read_text() if (out / METRICS).exists() else ""
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


def assert_same_training(one: Path, other: Path, exact: bool = False) -> None:
    """Same logged values at the same steps, same final weights."""
    how = dict(rtol=0, atol=0) if exact else dict(rtol=1e-4, atol=1e-5)
    assert [row.keys() for row in rows(one)] == [row.keys() for row in rows(other)]
    for a, b in zip(rows(one), rows(other), strict=True):
        a.pop("seconds"), b.pop("seconds")
        assert a == (b if exact else pytest.approx(b, rel=1e-3, abs=1e-5)), a["step"]
    weights = [
        torch.load(out / CHECKPOINT, weights_only=True)["model"] for out in (one, other)
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(
            tensor, weights[1][name], msg=lambda m, n=name: f"{n}: {m}", **how
        )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    assert (
        start(2, out, "accumulate=1", "accumulate=2", "dropout=0.2").wait(timeout=300)
        == 0
    )
    return out


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one_with_the_joined_batch(
    two_processes: Path, tmp_path: Path, accumulate: int
) -> None:
    train_rank.training(accumulate=accumulate).fit(tmp_path, progress=None)
    assert_same_training(tmp_path, two_processes / f"accumulate={accumulate}")
    losses = [row["loss"] for row in rows(tmp_path)]
    assert len(losses) == 30 and losses[-1] < 0.7 * losses[0], (
        "nothing was learned: the curves say little"
    )


def test_gathered_negatives_matter(tmp_path: Path) -> None:
    """The curve above is not what two processes with a private loss each would give."""
    train_rank.training().fit(tmp_path / "joined", progress=None)
    train_rank.training(accumulate=2).fit(tmp_path / "halves", progress=None)
    assert (
        abs(rows(tmp_path / "joined")[0]["loss"] - rows(tmp_path / "halves")[0]["loss"])
        > 0.1
    )


def test_killed_and_resumed_two_processes_end_alike(
    two_processes: Path, tmp_path: Path
) -> None:
    """SIGKILL of the launcher; its workers end by themselves, and the same command
    goes on bit by bit.

    Dropout makes the result depend on each process's random state.
    """
    cut_short = tmp_path / "dropout=0.2,pause=0.1"
    killed = start(2, tmp_path, cut_short.name)
    try:
        deadline = time.monotonic() + 300
        while len(rows(cut_short)) < 12:
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        workers = [
            p
            for p in psutil.Process(killed.pid).children()
            if any("train_rank" in part for part in p.cmdline())
        ]
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert len(workers) == 2
    gone, still_there = psutil.wait_procs(workers, timeout=60)
    assert not still_there, "workers go on although nobody waits for them"
    assert 12 <= len(rows(cut_short)) < 30, "it was finished before it was killed"
    assert start(2, tmp_path, cut_short.name).wait(timeout=300) == 0
    assert_same_training(two_processes / "dropout=0.2", cut_short, exact=True)


def test_another_number_of_processes_goes_on_too(tmp_path: Path) -> None:
    train_rank.training().fit(tmp_path, progress=None)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    # as two processes leave it
    torch.save(state | {"step": 14, "rng": 2 * state["rng"]}, tmp_path / CHECKPOINT)
    history = train_rank.training().fit(tmp_path, progress=None)
    assert [row["step"] for row in history.rows] == list(range(1, 31))


# --- Parts of a batch -----------------------------------------------------------------


def test_a_batch_is_cut_field_by_field() -> None:
    batch = Batch(
        torch.arange(8.0).reshape(4, 2, 1, 1),
        caption=list("abcd"),
        boxes=[torch.zeros(i, 4) for i in range(4)],
    )
    second = cut(batch, 1, 2)
    assert second.caption == ["c", "d"] and second.image.flatten().tolist() == [
        4,
        5,
        6,
        7,
    ]
    assert [len(boxes) for boxes in second.boxes] == [2, 3] and second.mask is None
    x, more = cut((torch.arange(6), {"y": torch.arange(6), "name": "all"}), 2, 3)
    assert x.tolist() == more["y"].tolist() == [4, 5] and more["name"] == "all"
    with pytest.raises(ValueError, match="4 rows cannot be cut into 3 equal parts"):
        cut(batch, 0, 3)


def test_parts_of_scene_pairs_are_the_rows_of_the_whole() -> None:
    recipe = replace(Lab(classes=8, steps=20).pretraining(pairs=30), batch_size=12)
    pairs = clip.scene_pairs(recipe, seed=3)
    whole, parts = pairs(4), [pairs.part(4, index, 3) for index in range(3)]
    assert sum((part.caption for part in parts), []) == whole.caption
    torch.testing.assert_close(torch.cat([part.image for part in parts]), whole.image)
    with pytest.raises(ValueError, match="12 pairs cannot be cut into 5"):
        pairs.part(0, 0, 5)


# --- The command and the notebook's call ----------------------------------------------


def test_the_command_writes_what_a_notebook_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "clip",
        "--profile",
        "quick",
        "--seed",
        "1",
        "--steps",
        "2",
        "--out",
        str(tmp_path),
        "--cpu",
    ]
    assert train.main([*command, "--tracker", "tensorboard"]) == 0
    assert "1 process on cpu, 2 steps" in capsys.readouterr().out
    assert list((tmp_path / "curves").rglob("events.out.tfevents.*")), (
        "no curves for TensorBoard"
    )
    task = CHAPTER.training(
        parameters.check(profile="quick", seed=1, out=tmp_path, device="cpu")
    )
    task = replace(task, config=replace(task.config, steps=2))
    stamp = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    history = task.fit(tmp_path, progress=None)
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == stamp, "nothing is trained"
    assert history.rows[-1]["step"] == 2 and "top1" in history.rows[-1]


def test_the_command_refuses_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, words in (
        (["clap"], "paper='clap' has no chapter: expected one of clip"),
        (["clip", "--profile", "paper"], "profile='paper' is not run here"),
        (["clip", "--profile", "photos"], "needs data"),
        (
            ["clip", "--profile", "photos", "-p", "data=nowhere"],
            "nowhere': there is no",
        ),
    ):
        assert train.main([*wrong, "--out", str(tmp_path), "--cpu"]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        train.main(["clip", "-p", "dta=x", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "'dta=x': expected data=VALUE or weights=VALUE" in capsys.readouterr().err


def checked(out: Path, devices: int) -> parameters.Parameters:
    return parameters.check(
        profile="quick", seed=0, device="cpu", out=out, devices=devices
    )


def test_a_notebook_starts_two_processes_and_reads_their_results(
    tmp_path: Path,
) -> None:
    train.launch("clip", checked(tmp_path, 2), tmp_path, ["--steps", "2"])
    assert rows(tmp_path)[-1]["step"] == 2
    assert "2 processes on cpu" in (tmp_path / train.LOG).read_text()


def test_a_launch_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        RuntimeError,
        match="(?s)training clap on 2 processes failed.*'clap' has no chapter",
    ):
        train.launch("clap", checked(tmp_path, 2), tmp_path)
    with pytest.raises(ValueError, match="devices=1: expected two or more"):
        train.launch("clip", checked(tmp_path, 1), tmp_path)
    fails = tmp_path / "python"
    fails.write_text("#!/bin/sh\necho the disk is on fire >&2\nexit 3\n")
    fails.chmod(0o755)
    monkeypatch.setattr(train.sys, "executable", str(fails))
    with pytest.raises(
        RuntimeError,
        match="(?s)training clip on 2 processes failed.*the disk is on fire",
    ):
        train.launch("clip", checked(tmp_path, 2), tmp_path)


def test_what_batch_normalisation_does_is_said() -> None:
    class Two:
        num_processes, device = 2, torch.device("cpu")

    task = train_rank.training()
    assert "normalisation" not in train.describe(task, Two)
    task.model.norm = nn.BatchNorm1d(8)
    assert "over each process's own rows" in train.describe(task, Two)
    Two.device = torch.device("cuda")
    assert "SyncBatchNorm" in train.describe(task, Two)
