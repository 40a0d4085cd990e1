"""What a kept training or file is of: another one is refused by name, and a folder has
one writer."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from minilib import parameters
from minilib.files import (
    FolderInUse,
    NotTheSame,
    from_shell,
    keep_rows,
    kept_rows,
    only_writer,
    path_digest,
    path_times,
)
from minilib.recipes.clip import chapter as clip
from minilib.training import CHECKPOINT, METRICS, TrainConfig, Training, fit
from minilib.training import launch as train
from minilib.training.identity import weights_digest

CONFIG = TrainConfig(4, warmup=1, log_every=2)


def network(seed: int = 0, width: int = 8) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    return x, (x[:, 0] > 0).long()


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    return {"loss": nn.functional.cross_entropy(model(batch[0]), batch[1])}


def other_labels(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = batches(step)
    return x, 1 - y


def start(model: nn.Module, **parts: object) -> Training:
    given = dict(loss=loss, batches=batches, config=CONFIG) | parts
    return Training(model, **given)  # type: ignore[arg-type]


# --- Trainings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (start(network(), batches=other_labels), "first batch"),
        (start(network(), batches=lambda step: batches(step + 1)), "first batch"),
        (start(network(seed=1)), "initial weights"),
        (start(network(width=9)), "initial weights, model"),
        (start(network(), identity={"data": "b"}), "data"),
        (start(network(), config=replace(CONFIG, lr=0.5)), "lr"),
    ],
)
def test_another_training_is_refused_by_name(tmp_path, other, names):
    start(network(), identity={"data": "a"}).fit(tmp_path, progress=None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    identity = other.identity or {"data": "a"}
    with pytest.raises(NotTheSame, match=rf"another training \(changed: {names}\)"):
        replace(other, identity=identity).fit(tmp_path, progress=None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    same = start(network(), identity={"data": "a"}).fit(tmp_path, progress=None)
    assert same.rows == [json.loads(x) for x in before[METRICS].splitlines()]


def test_changed_code_is_another_training(tmp_path, monkeypatch):
    def module(text: str) -> object:
        (tmp_path / "losses_of_test.py").write_text(text)
        spec = {"__file__": str(tmp_path / "losses_of_test.py")}
        code = compile(text, spec["__file__"], "exec")
        exec(code, spec)
        return spec["loss"]

    text = "from torch.nn.functional import cross_entropy\ndef loss(model, batch):\n"
    text += "    return {'loss': cross_entropy(model(batch[0]), batch[1])}\n"
    out = tmp_path / "out"
    fit(network(), module(text), batches, CONFIG, out=out, progress=None)
    remark = text.replace("return", "# a remark\n    return")
    fit(network(), module(remark), batches, CONFIG, out=out, progress=None)
    halved = text.replace("batch[1])}", "batch[1]) / 2}")
    with pytest.raises(NotTheSame, match=r"\(changed: code\)"):
        fit(network(), module(halved), batches, CONFIG, out=out, progress=None)


def test_last_digits_make_no_other_training(tmp_path):
    """Another device or number of threads changes them."""
    start(network()).fit(tmp_path, progress=None)
    nearly = network()
    with torch.no_grad():
        for weight in nearly.parameters():
            weight.mul_(1 + 1e-6)

    def close(step):
        x, y = batches(step)
        return x + 1e-7, y

    start(nearly, batches=close).fit(tmp_path, progress=None)
    with torch.no_grad():
        for weight in nearly.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    with pytest.raises(NotTheSame, match="initial weights"):
        start(nearly).fit(tmp_path, progress=None)


def test_looking_at_the_first_batch_leaves_the_random_state(tmp_path):
    def drawing(step):
        torch.rand(3)
        return batches(step)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    start(network(), batches=drawing).fit(tmp_path, progress=None)
    assert torch.equal(before, torch.get_rng_state())


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_refused(tmp_path):
    start(network()).fit(tmp_path, progress=None)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del saved["identity"]
    torch.save(saved, tmp_path / CHECKPOINT)
    with pytest.raises(NotTheSame, match="does not say which data and model it is of"):
        start(network()).fit(tmp_path, progress=None)


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    """Two sets of photographs with the same names; in B each means the other picture.

    The files of C have the sizes of A's.
    """
    pixels = np.random.default_rng(0)
    for kind in "ABC":
        for n, name in enumerate(("cat", "dog")):
            for split, count in (("train", 20), ("test", 4)):
                folder = tmp_path / kind / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    bright = (n == 0) == (kind == "A")
                    noise = pixels.integers(0, 30, (32, 32, 3))
                    image = ((220 if bright else 30) + noise).astype(np.uint8)
                    suffix = "png" if kind == "B" else "bmp"
                    Image.fromarray(image).save(folder / f"{i}.{suffix}")
    return {kind: tmp_path / kind for kind in "ABC"}


def test_a_training_on_other_photographs_is_refused(photos, tmp_path, capsys):
    """Not: nothing is trained, and the numbers of the first are printed."""
    command = ["clip", "--profile", "photos", "--cpu", "--steps", "2"]
    command += ["--out", str(tmp_path / "out"), "-p"]
    assert train.main([*command, f"data={photos['A']}"]) == 0
    stamp = (tmp_path / "out" / CHECKPOINT).read_bytes()
    capsys.readouterr()
    for other, names in (("B", "data, first batch"), ("C", "first batch")):
        assert train.main([*command, f"data={photos[other]}"]) == 2
        told = capsys.readouterr()
        assert f"another training (changed: {names})" in told.err
        assert told.err.count("\n") == 1 and "top1" not in told.out
    assert train.main([*command, f"data={photos['A']}", "--seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err
    assert (tmp_path / "out" / CHECKPOINT).read_bytes() == stamp


def test_a_chapters_other_trainings_know_their_data_too(photos, tmp_path):
    """``fit`` itself looks, whoever calls it."""
    values = replace(clip.PROFILES["photos"], main=clip.photo_pretraining(steps=2))

    def training(data: Path) -> Training:
        study = clip.photos_study(values, 0, "cpu", data)
        return clip.study_training(study, 0, "cpu")

    training(photos["A"]).fit(tmp_path / "out", progress=None)
    with pytest.raises(NotTheSame, match="first batch"):
        training(photos["B"]).fit(tmp_path / "out", progress=None)


def test_a_folder_has_one_training_at_a_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(only_writer.__wrapped__, "__defaults__", (0.1,))
    command = ["clip", "--profile", "quick", "--cpu", "--steps", "1"]
    with only_writer(tmp_path, "training"):
        assert train.main([*command, "--out", str(tmp_path)]) == 3
        told = capsys.readouterr().err
        assert f"another training writes to {tmp_path} (process {os.getpid()}" in told
        assert told.count("\n") == 1 and not (tmp_path / CHECKPOINT).exists()
        run = parameters.check(profile="quick", seed=0, out=tmp_path, devices=2)
        (tmp_path / train.LOG).write_text("of the one at work")
        with pytest.raises(FolderInUse):
            train.launch("clip", replace(run, device=torch.device("cpu")), tmp_path)
        assert (tmp_path / train.LOG).read_text() == "of the one at work"
    assert train.main([*command, "--out", str(tmp_path)]) == 0


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import os, pathlib, minilib.files as f\n"
        f"with f.only_writer(pathlib.Path({str(tmp_path)!r}), 'training'): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    with only_writer(tmp_path, "training", wait=0):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_a_lock_waits_for_one_that_ends(tmp_path):
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with only_writer(tmp_path, "training"):
            inside.set()
            leave.wait()

    other = threading.Thread(target=hold)
    other.start()
    inside.wait()
    with pytest.raises(FolderInUse), only_writer(tmp_path, "training", wait=0):
        pass
    leave.set()
    with only_writer(tmp_path, "training", wait=60):
        other.join()


# --- The command line of a training ---------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "must be at least 1"),
        (["--steps", "-3"], "must be at least 1"),
        (["--accumulate", "0"], "must be at least 1"),
        (["--accumulate", "7"], "cannot be cut into 7"),
        (["--seed", "-1"], "seed=-1 is out of range"),
    ],
)
def test_wrong_numbers_are_refused_in_a_line(tmp_path, capsys, arguments, words):
    command = ["clip", "--profile", "quick", "--cpu", "--out", str(tmp_path)]
    assert train.main([*command, *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
    assert not (tmp_path / CHECKPOINT).exists()


def test_paths_are_meant_as_the_shell_means_them(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["clip", "--profile", "photos", "--cpu", "--steps", "1"]
    assert train.main([*command, "--out", "mine", "-p", "data=A"]) == 0
    assert (tmp_path / "mine" / CHECKPOINT).is_file()
    assert not (parameters.repository() / "mine").exists()


def test_names_of_weights_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini-rn").mkdir()
    (tmp_path / "paper.pth").write_text("weights")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    given = {"data": "photos", "weights": "mini-rn", "lr": 0.1}
    found = from_shell(given)
    assert found == {**given, "data": str(tmp_path / "photos")}
    for name in ("paper.pth", "hf"):
        assert from_shell({"weights": name})["weights"] == str(tmp_path / name)
    assert from_shell({"data": "", "weights": ""}) == {"data": "", "weights": ""}


# --- Rows of an evaluation ------------------------------------------------------------


def test_rows_are_of_what_they_say(tmp_path):
    path, mine = tmp_path / "counts.json", {"weights": "a", "split": "test"}
    assert kept_rows(path, mine) == {}
    keep_rows(path, mine, {"1.jpg": 3.5})
    assert kept_rows(path, mine) == {"1.jpg": 3.5}
    for other, names in (
        ({"weights": "b", "split": "test"}, "weights"),
        ({"weights": "a"}, "split"),
        ({**mine, "stride": "8"}, "stride"),
    ):
        with pytest.raises(NotTheSame, match=rf"counts.json .* \(other: {names}\)"):
            kept_rows(path, other)


def test_other_weights_have_another_digest():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).bfloat16()
    before = weights_digest(model)
    assert weights_digest(copy.deepcopy(model)) == before
    with torch.no_grad():
        model[0].weight[7, 3] += 1
    assert weights_digest(model) != before


@pytest.mark.parametrize("text", ["", '{"1.jp', '{"1.jpg": 3.5}', "[]", '"rows"'])
def test_a_damaged_file_of_rows_is_named(tmp_path, text):
    path = tmp_path / "counts.json"
    path.write_text(text)
    with pytest.raises(NotTheSame, match="counts.json holds no rows .* delete it"):
        kept_rows(path, {})
    assert path.read_text() == text


# --- Digests --------------------------------------------------------------------------


def test_a_folder_is_known_by_names_and_sizes_and_its_times(tmp_path):
    folder = tmp_path / "data"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "1.jpg").write_text("one")
    before, times = path_digest(folder), path_times(folder)
    (folder / "cats" / "1.jpg").write_text("two")
    os.utime(folder / "cats" / "1.jpg", (1, 1))
    assert path_digest(folder) == before and path_times(folder) != times
    (folder / "cats" / "2.jpg").write_text("two")
    assert path_digest(folder) != before


def test_links_are_followed_and_do_not_lead_in_circles(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "up").symlink_to(folder)
    before = path_digest(folder)
    (tmp_path / "elsewhere" / "1.jpg").write_text("one")
    assert path_digest(folder) != before
