"""The CounTX checkpoint that ships: it is what its card says, and it reads the text."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path

import pytest
import torch

from minilib.recipes.countx import mini as recipe
from minilib.weights import FOLDER, load, load_clip, read_card, save

ROOT = Path(__file__).parents[3]
MINI_COUNTX = FOLDER / "mini-countx.safetensors"


@pytest.fixture(scope="module")
def model():
    return load("mini-countx")


def test_the_file_is_the_one_that_the_card_describes() -> None:
    card = json.loads(MINI_COUNTX.with_suffix(".json").read_text())
    assert hashlib.sha256(MINI_COUNTX.read_bytes()).hexdigest() == card["sha256"]
    assert read_card("mini-countx")["metrics"] == card["metrics"]


def test_it_counts_classes_that_it_never_counted(model) -> None:
    found = recipe.report(model, images=40)
    assert found["mae_class"] < 0.75 * found["mae_class_training_mean"]
    assert found["mae_colour"] < 0.6 * found["mae_colour_training_mean"]
    assert found["follows"] > 0.35


def test_saved_and_loaded_it_answers_alike(model, tmp_path: Path) -> None:
    other = load(save(model, tmp_path / "a.safetensors", {"command": "none"}))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        other.predict(image, "the dogs"), model.predict(image, "the dogs")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_is_no_countx_is_refused(model, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        load(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(MINI_COUNTX.read_bytes()[:5000])
    with pytest.raises(ValueError, match="truncated"):
        load(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="not hold a CLIP but a minilib.countx"):
        load_clip(MINI_COUNTX)
    with torch.no_grad():
        model.fim_norm.bias[0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        save(model, tmp_path / "inf.safetensors", {})
    with torch.no_grad():
        model.fim_norm.bias[0] = 0.0


def test_the_script_trains_goes_on_and_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "TRAIN_IMAGES", 310)
    whole = recipe.report
    monkeypatch.setattr(recipe, "report", lambda *given: whole(*given, images=4))
    script = runpy.run_path(str(ROOT / "data_scripts" / "train_mini_countx.py"))
    command = [
        "--steps",
        "1",
        "--device",
        "cpu",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path),
    ]
    assert script["main"](command) == 0
    first = load(tmp_path / "mini-countx.safetensors").state_dict()
    assert script["main"](command) == 0, "a finished training is not repeated"
    card = json.loads((tmp_path / "mini-countx.json").read_text())
    assert card["steps"] == 1
    torch.testing.assert_close(
        load(tmp_path / "mini-countx.safetensors").state_dict(), first
    )
