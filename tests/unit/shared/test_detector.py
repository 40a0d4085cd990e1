"""The trunk of the detection chapters: which place answers for which box, the losses,
and a detector whose classes are text vectors."""

from __future__ import annotations

import hashlib
import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from minilib.layers.detection import (
    assign,
    best_detections,
    boxes_at,
    centred,
    detection_losses,
    distances,
    places_of,
)
from minilib.models.detector import Detector, DetectorConfig
from minilib.recipes.shared import mini_detector
from minilib.scenes import names
from minilib.weights import FOLDER, load, load_clip, read_card, save

ROOT = Path(__file__).resolve().parents[3]
NOBODY = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini-rn")


@pytest.fixture(scope="module")
def model(clip) -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Detector.from_clip(clip, mini_detector.text_vectors(clip)).eval()


def test_places_are_the_middles_of_cells() -> None:
    places = places_of([(2, 3), (1, 1)], (4, 8))
    assert places.centre.tolist() == [
        [2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6], [4, 4]
    ]  # fmt: skip
    assert places.stride.tolist() == [4] * 6 + [8]


def test_distances_and_boxes_undo_each_other() -> None:
    centre, box = torch.tensor([[5.0, 6.0]]), torch.tensor([[1.0, 2.0, 10.0, 20.0]])
    assert distances(centre, box).tolist() == [[4, 4, 5, 14]]
    assert torch.equal(boxes_at(centre, distances(centre, box)), box)


def test_a_box_is_answered_for_at_its_middle_and_at_one_level() -> None:
    places = places_of([(16, 16), (8, 8), (4, 4)], (4, 8, 16))
    for side, stride in ((16.0, 4), (40.0, 8), (60.0, 16)):
        box = torch.tensor([[0.0, 0, side, side]]) + (64 - side) / 2
        index = assign(places, box)
        answering = (index == 0).nonzero()[:, 0]
        assert len(answering) and set(places.stride[answering].tolist()) == {stride}
        away = (places.centre[answering] - 32).abs().amax(dim=1)
        assert away.max() <= 1.5 * stride
        assert distances(places.centre[answering], box).min() > 0


def test_of_two_boxes_a_place_takes_the_smaller() -> None:
    places = places_of([(16, 16)], (4,))
    large, small = [16.0, 16, 48, 48], [28.0, 28, 36, 36]
    for boxes in ([large, small], [small, large]):
        middle = assign(places, torch.tensor(boxes))[7 * 16 + 7]
        assert boxes[middle] == small
    assert assign(places, NOBODY[0]).tolist() == [-1] * 256


def test_the_losses_by_hand() -> None:
    places = places_of([(1, 2)], (8,))
    box = torch.tensor([[0.0, 0, 8, 8]])
    sides = torch.tensor([[[4.0, 4, 4, 4], [1, 1, 1, 1]]])
    logits = torch.full((1, 2, 2), -50.0)
    losses = detection_losses(places, logits, sides, [box], [torch.tensor([1])])
    assert losses["boxes"] == pytest.approx(0, abs=1e-6), "the box is exact"
    # one place of class 1 with probability 0: alpha * 50; all others are right
    assert losses["classification"] == pytest.approx(0.25 * 50, rel=1e-4)
    logits[0, 0, 1] = 50.0
    right = detection_losses(places, logits, sides, [box], [torch.tensor([1])])
    assert right["classification"] == pytest.approx(0, abs=1e-6)
    sides[0, 0] = torch.tensor([4.0, 4, 12, 4])  # twice as wide: IoU and GIoU are 1/2
    wide = detection_losses(places, logits, sides, [box], [torch.tensor([1])])
    assert wide["boxes"] == pytest.approx(0.5)


def test_a_batch_without_boxes_trains_the_classes_alone() -> None:
    places = places_of([(2, 2)], (8,))
    logits = torch.zeros(2, 4, 3, requires_grad=True)
    sides = torch.ones(2, 4, 4, requires_grad=True)
    losses = detection_losses(places, logits, sides, [NOBODY[0]] * 2, [NOBODY[1]] * 2)
    (losses["classification"] + losses["boxes"]).backward()
    assert losses["boxes"] == 0 and losses["classification"] > 0
    assert sides.grad.abs().max() == 0 and logits.grad.abs().min() > 0


def test_the_likeliest_boxes_stay_and_are_cut_to_the_image() -> None:
    places = places_of([(1, 2)], (8,))
    sides = torch.full((1, 2, 4), 10.0)
    logits = torch.tensor([[[2.0, -9.0], [1.0, 0.5]]])
    (found,) = best_detections(places, logits, sides, (8, 16))
    assert found["labels"].tolist() == [0, 1], "two boxes of class 0 overlap: one stays"
    assert found["boxes"].tolist() == [[0, 0, 14, 8], [2, 0, 16, 8]]
    assert found["scores"].tolist() == pytest.approx([0.8808, 0.6225], abs=1e-3)
    (few,) = best_detections(places, logits, sides, (8, 16), most=1)
    assert few["labels"].tolist() == [0]


def test_centred_text_has_no_common_direction() -> None:
    text = torch.tensor([[3.0, 1.0], [3.0, -1.0]])
    middle = nn.functional.normalize(text, dim=-1).mean(0)
    torch.testing.assert_close(
        centred(text, middle), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    )


def test_the_image_tower_is_clips_and_its_norms_stay(clip, model) -> None:
    pixels = model.preprocess(torch.rand(2, 3, 96, 96))
    torch.testing.assert_close(
        model.backbone.stages(pixels)["layer4"], clip.visual.features(pixels)
    )
    model.train()
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert model.head.training and not model.eval().head.training


def test_any_list_of_names_can_be_asked_for(clip, model) -> None:
    image = torch.rand(2, 3, 96, 64)
    said = model.answers(model.preprocess(image))
    assert said.regions.shape == (2, 24 * 16 + 12 * 8 + 6 * 4, 128)
    text = mini_detector.text_vectors(clip, names()[:7])
    logits = model.logits(said.regions, text)
    assert logits.shape[-1] == 7
    reach = model.log_scale.exp() + 1e-3
    assert ((logits - model.bias).abs() <= reach).all(), "cosines"
    one = model.logits(said.regions, text[2:3])
    torch.testing.assert_close(one[..., 0], logits[..., 2], msg="others do not matter")


def test_base_and_novel_names_share_nothing() -> None:
    assert not set(mini_detector.BASE) & set(mini_detector.NOVEL)
    assert len(mini_detector.BASE) == 180 and len(mini_detector.NOVEL) == 60


def test_the_training_repeats_and_shows_base_names_only(clip) -> None:
    def trained(seed: int) -> Detector:
        training = mini_detector.prepare(seed, steps=2)
        assert training.config == replace(mini_detector.SCHEDULE, steps=2, seed=seed)
        small = training.batches(1)
        assert len(small) == mini_detector.BATCH
        training.fit()
        return training.model

    first, again, other = (trained(seed).state_dict() for seed in (0, 0, 1))
    for name, value in first.items():
        torch.testing.assert_close(value, again[name])
    assert not torch.allclose(first["head.side.weight"], other["head.side.weight"])
    moved = first["backbone.layer1.0.conv1.weight"] - clip.visual.state_dict()[
        "layer1.0.conv1.weight"
    ]  # fmt: skip
    assert 0 < moved.abs().max() <= 2 * 2e-3 * 0.2
    for step in range(3):
        batch = mini_detector.prepare(0).batches(step)
        shown = {int(i) for image in batch.classes for i in image}
        assert max(shown) < 180, "positions in the list of base names"
    assert mini_detector.scenes().config.classes == mini_detector.BASE


def test_a_detector_is_saved_and_loaded(tmp_path, model) -> None:
    path = save(model, tmp_path / "small.safetensors", {"made": "here"})
    assert path.stat().st_size < 6_000_000
    again = load(path)
    assert isinstance(again, Detector) and again.config == model.config
    torch.testing.assert_close(again.middle, model.middle)


def test_the_script_trains_goes_on_and_ships(tmp_path, monkeypatch) -> None:
    whole = mini_detector.report
    monkeypatch.setattr(mini_detector, "report", lambda *given: whole(*given, images=4))
    script = runpy.run_path(str(ROOT / "data_scripts" / "train_mini_detector.py"))
    command = ["--steps", "1", "--device", "cpu", "--work", str(tmp_path / "work")]
    command += ["--out", str(tmp_path)]
    assert script["main"](command) == 0
    first = load(tmp_path / "mini-detector.safetensors").state_dict()
    assert script["main"](command) == 0, "a finished training is not repeated"
    card = json.loads((tmp_path / "mini-detector.json").read_text())
    assert card["steps"] == 1 and card["scenes_seen"] == mini_detector.BATCH
    assert card["metrics"].keys() == {"ap_base", "ap50_base", "ap_novel", "ap50_novel"}
    torch.testing.assert_close(
        load(tmp_path / "mini-detector.safetensors").state_dict(), first
    )


def test_the_card_belongs_to_the_detector_that_ships(clip) -> None:
    path = FOLDER / "mini-detector.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["bytes"] == path.stat().st_size <= 6_000_000
    assert read_card("mini-detector").items() <= card.items()
    assert mini_detector.ships()
    stated = card["metrics"]
    assert stated["ap50_base"] >= 0.6 and stated["ap50_novel"] >= 0.5
    found = mini_detector.report(load("mini-detector"), clip, images=60, seed=2)
    # a seventh of the scenes of the card, and few of each name in them
    assert found["ap50_base"] == pytest.approx(stated["ap50_base"], abs=0.12)


def test_a_vit_is_refused() -> None:
    vit = load_clip("mini-vit").config
    with pytest.raises(ValueError, match="is a ViT"):
        DetectorConfig(vit)


def test_the_report_asks_for_both_kinds_of_names(clip, model, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        mini_detector,
        "score_boxes",
        lambda detect, test: asked.append(test) or {"ap": 0.25, "ap50": 0.5},
    )
    found = mini_detector.report(model, clip, images=4)
    assert found == json.loads(json.dumps(found)) == {
        "ap_base": 0.25, "ap50_base": 0.5, "ap_novel": 0.25, "ap50_novel": 0.5
    }  # fmt: skip
    assert [len(test) for test in asked] == [4, 4]
