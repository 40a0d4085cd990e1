"""The checkpoints that ship do what their cards and the README say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from minilib.recipes.clip import recipe
from minilib.weights import load_clip, read_card

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(recipe.MINI)


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


def card_file(name: str) -> dict:
    return json.loads((ROOT / "minilib" / "weights" / f"{name}.json").read_text())


def test_card_belongs_to_the_file_that_ships(name):
    path, card = ROOT / "minilib" / "weights" / f"{name}.safetensors", card_file(name)
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["bytes"] == path.stat().st_size <= 6_000_000
    assert read_card(name).items() <= card.items()
    assert card["command"].startswith(
        f"python data_scripts/train_mini_clip.py --model {name}"
    )
    assert card["steps"] == recipe.MINI[name].train.steps
    assert card["parameters"] == sum(p.numel() for p in load_clip(name).parameters())


def test_card_states_the_accuracy_that_is_measured(name):
    stated = card_file(name)["metrics"]["top1_noto"]
    assert stated >= 0.95
    measured = recipe.zero_shot_report(load_clip(name), n=960, seed=1)["top1_noto"]
    # three standard errors of 960 other scenes
    assert measured == pytest.approx(stated, abs=0.03)


def test_places_know_more_than_the_whole_image(name):
    card = card_file(name)["metrics"]
    assert card["patch_miou"] > card["patch_miou_one_label"] + 0.05


def test_card_states_how_many_words_find_their_group(name):
    stated = card_file(name)["metrics"]
    measured = recipe.hypernym_report(load_clip(name))
    assert len(measured) == 2
    for key, share in measured.items():
        # two words more or less: other devices round otherwise
        assert share == pytest.approx(stated[key], abs=0.02), key
    told = recipe.MINI[name].captions.general > 0
    assert (stated["hypernyms_of_five_groups"] > 0.6) == told, (
        "what no caption ever says, a text tower does not know"
    )


def test_any_text_encodes(name):
    model = load_clip(name)
    with torch.no_grad():
        features = model.encode_text(
            model.tokenize(["a photo of a dog", "一张狗的照片", "🐕", ""])
        )
    assert torch.isfinite(features).all()


def test_readme_quotes_the_cards():
    readme = (ROOT / "README.md").read_text()
    for name in NAMES:
        metrics = card_file(name)["metrics"]
        row = next(
            line for line in readme.splitlines() if line.startswith(f"| `{name}` |")
        )
        quoted = [cell.strip() for cell in row.split("|")[3:-1]]
        keys = (
            "top1_noto",
            "top1_openmoji",
            "top1_twemoji",
            "image_to_text_r1",
            "text_to_image_r1",
        )
        assert quoted == [f"{metrics[key]:.1%}" for key in keys] + [
            f"{metrics['patch_miou_at_double_size']:.2f}"
        ]
    prose = " ".join(readme.split())
    of_five, of_eleven = (
        [card_file(name)["metrics"][f"hypernyms_of_{n}_groups"] for name in NAMES]
        for n in ("five", "eleven")
    )
    rn, vit = (NAMES.index(name) for name in ("mini-rn", "mini-vit"))
    assert f"alone puts {of_five[rn]:.0%} of the names of animals, food" in prose
    assert f"own group (`mini-vit`: {of_five[vit]:.0%}, chance: 20%)" in prose
    assert f"eleven groups, {of_eleven[rn]:.0%} ({of_eleven[vit]:.0%}, 9%)" in prose
