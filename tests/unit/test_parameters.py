"""Bad parameters stop a notebook at once, with a message that helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minilib import parameters

GOOD = {"profile": "quick", "seed": 0, "device": "cpu"}


def test_good_parameters_are_resolved(tmp_path):
    threads = torch.get_num_threads()
    run = parameters.check(**GOOD, out=str(tmp_path / "a" / "b"), weights="mini-rn")
    assert run.device == torch.device("cpu")
    assert run.out == (tmp_path / "a" / "b").resolve() and run.out.is_dir()
    assert list(run.out.iterdir()) == [], "the writability check left something behind"
    assert (run.data, run.weights, run.devices) == (None, "mini-rn", 1)
    assert torch.get_num_threads() == threads
    assert not run.photos


def test_numpy_seed_is_a_plain_int(tmp_path):
    seed = parameters.check(**{**GOOD, "seed": np.int64(7)}, out=tmp_path).seed
    assert seed == 7 and type(seed) is int


def test_auto_is_a_device_of_this_machine():
    assert torch.zeros(1, device=parameters.resolve_device("auto")).sum() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"profile": "fast"}, ["'fast'", "quick, full, photos, paper"]),
        ({"profile": None}, ["None", "quick"]),
        ({"seed": -1}, ["-1", "0 to"]),
        ({"seed": "3"}, ["'3'", "str", "whole number"]),
        ({"seed": 1.5}, ["1.5", "whole number"]),
        ({"seed": True}, ["True", "whole number"]),
        ({"device": "gpu"}, ["'gpu'", "cuda"]),
        ({"device": "cuda:99"}, ["'cuda:99'", "CUDA device(s)"]),
        ({"device": "meta"}, ["'meta'", "auto"]),
        ({"device": 0}, ["device=0", "auto"]),
        ({"data": "none"}, ["data='none'", "data = ''"]),
        ({"data": 3}, ["data=3", "int", "text"]),
        ({"weights": None}, ["weights=None", "NoneType"]),
        ({"devices": 0}, ["devices=0", "1 or more"]),
        ({"devices": "2"}, ["devices='2'", "whole number"]),
    ],
)
def test_bad_parameters_are_named(tmp_path, change, words):
    with pytest.raises(ValueError) as error:
        parameters.check(**{**GOOD, "out": tmp_path, **change})
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("out", ["", "   ", None, 3])
def test_out_must_be_a_name(out):
    with pytest.raises(ValueError, match="folder"):
        parameters.check(**GOOD, out=out)


def test_out_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/minilib"):
        with pytest.raises(ValueError, match="cannot write to the folder"):
            parameters.check(**GOOD, out=out)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_relative_out_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "repository", lambda: tmp_path / "repository")
    monkeypatch.delenv("MINILIB_OUT_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert (
        parameters.writable_folder("runs/x")
        == (tmp_path / "repository" / "runs" / "x").resolve()
    )
    monkeypatch.setattr(parameters, "repository", lambda: None)
    assert parameters.writable_folder("runs/x") == (tmp_path / "runs" / "x").resolve()
    monkeypatch.setenv("MINILIB_OUT_ROOT", str(tmp_path / "elsewhere"))
    assert (
        parameters.writable_folder("runs/x")
        == (tmp_path / "elsewhere" / "runs" / "x").resolve()
    )
    assert parameters.writable_folder(tmp_path / "y") == (tmp_path / "y").resolve(), (
        "an absolute one stays"
    )


def test_relative_data_and_weights_do_not_follow_the_working_directory(
    tmp_path, monkeypatch
):
    root = tmp_path / "repository"
    (root / "data" / "camvid").mkdir(parents=True)
    (root / "weights.pth").write_bytes(b"")
    monkeypatch.setattr(parameters, "repository", lambda: root)
    monkeypatch.chdir(tmp_path)
    run = parameters.check(
        **GOOD, out=tmp_path / "out", data="data/camvid", weights="weights.pth"
    )
    assert run.data == (root / "data" / "camvid").resolve()
    assert run.weights_file == root / "weights.pth"


def test_data_and_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="data='nowhere'"):
        parameters.check(**GOOD, out=tmp_path, data="nowhere")
    with pytest.raises(FileNotFoundError, match="weights='nowhere.pth'"):
        _ = parameters.check(**GOOD, out=tmp_path, weights="nowhere.pth").weights_file
    with pytest.raises(ValueError, match="weights=''"):
        _ = parameters.check(**GOOD, out=tmp_path).weights_file


def test_paths_that_the_system_refuses_are_named(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / ("x" * 300)):
        with pytest.raises(FileNotFoundError, match="data='.*cannot be read"):
            parameters.check(**GOOD, out=tmp_path, data=path)
        with pytest.raises(ValueError, match="cannot write to the folder"):
            parameters.check(**GOOD, out=path / "below")
        with pytest.raises(FileNotFoundError, match="there is no file"):
            _ = parameters.check(**GOOD, out=tmp_path, weights=str(path)).weights_file
    with pytest.raises(ValueError, match="cannot write to the folder"):
        parameters.check(**GOOD, out="a\0b")
