"""Chapter 6's experiments: the same data and start for every variant, controls that
control, costs that are counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from minilib.metrics.detection import average_precision
from minilib.recipes.denseclip import chapter, recipe
from minilib.recipes.denseclip import experiments as extras
from minilib.weights import load_clip

LAB = recipe.Lab(
    size=(32, 32), objects=4, stuff=2, steps=2, batch_size=4, channels=16, test_images=6
)
TINY = chapter.Values(lab=LAB, detection_steps=2, other_steps=2)


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini-rn")


@pytest.fixture(scope="module")
def study() -> chapter.Study:
    return chapter.scenes_study(TINY, seed=0)


def test_scenes_have_the_chapters_classes_only(study: chapter.Study) -> None:
    batch = study.batches(3)
    assert len(study.names) == 6 and study.things == study.names[:4]
    assert batch.image.shape == (4, 3, 32, 32)
    assert set(batch.mask.unique().tolist()) <= set(range(6))
    again = chapter.scenes_study(TINY, seed=0).batches(3)
    torch.testing.assert_close(batch.image, again.image)
    assert not torch.equal(
        batch.image, chapter.scenes_study(TINY, seed=1).batches(3).image
    )
    assert not torch.equal(study.test.image[:4], study.batches(0).image)


def test_shuffled_names_leave_no_class_its_own() -> None:
    names = tuple("abcdefgh")
    for seed in range(20):
        permuted = recipe.shuffled(names, seed)
        assert sorted(permuted) == list(names) and all(
            a != b for a, b in zip(names, permuted, strict=True)
        )


def test_every_variant_starts_from_the_same_image_tower(clip, study) -> None:
    for name in ("CLIP, no text", "post-model", "shuffled names", "free prototypes"):
        model = recipe.build(recipe.VARIANTS[name], clip, study.names, LAB, seed=0)
        for key, value in clip.visual.state_dict().items():
            torch.testing.assert_close(model.backbone.state_dict()[key], value)
    fresh = recipe.build(
        recipe.VARIANTS["random weights"], clip, study.names, LAB, seed=0
    )
    assert not torch.allclose(fresh.backbone.conv3.weight, clip.visual.conv3.weight)


def test_training_is_repeatable_and_leaves_the_clip_alone(clip, study) -> None:
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    first, second = (
        chapter.train_variant("post-model", study, clip, TINY, seed=0) for _ in range(2)
    )
    assert first.history.rows[-1]["loss"] == pytest.approx(
        second.history.rows[-1]["loss"], rel=1e-4
    )
    assert all(
        torch.equal(clip.state_dict()[key], value) for key, value in before.items()
    )
    moved = (
        first.model.backbone.layer1[0].conv1.weight - clip.visual.layer1[0].conv1.weight
    )
    assert 0 < moved.abs().max() < 2 * LAB.steps * LAB.lr * LAB.tower_lr, (
        "a share of the learning rate"
    )
    tower = first.model.text_encoder.state_dict()
    assert all(torch.equal(tower[key], before[key]) for key in tower), (
        "the text tower is fixed"
    )


def test_scores_are_of_head_and_map(clip, study) -> None:
    for name, kinds in (
        ("CLIP, no text", {"head"}),
        ("written prompt", {"head", "scores"}),
    ):
        model = recipe.build(recipe.VARIANTS[name], clip, study.names, LAB, seed=0)
        scores = recipe.evaluate(model, study.test)
        assert scores.keys() == kinds
        assert all(0 <= score.mean_iou() <= 1 for score in scores.values())


def test_without_the_auxiliary_loss_only_the_head_is_trained(clip, study) -> None:
    model = recipe.build(
        recipe.VARIANTS["no auxiliary loss"], clip, study.names, LAB, seed=0
    )
    whole, head = (
        recipe.loss(model.eval(), study.test),
        recipe.head_loss(model, study.test),
    )
    torch.testing.assert_close(whole["loss"] - whole["scores"], head["loss"])


def test_starting_points(clip) -> None:
    variants, lab = (
        ("classifier", "captions", "post-model"),
        replace(LAB, pretraining_steps=2),
    )
    points = recipe.starting_points(lab, variants, clip, seed=0)
    assert points["clip"] is clip and points.keys() == {
        "clip",
        "random",
        "captions",
        "classifier",
    }
    towers = [points[name].visual.conv3.weight for name in ("captions", "classifier")]
    assert not torch.allclose(*towers)
    assert (towers[0] - towers[1]).abs().max() < 0.1, (
        "both start from the same random weights"
    )
    assert recipe.starting_points(LAB, TINY.variants, clip, seed=0).keys() == {
        "clip",
        "random",
    }


def test_detectors_learn_and_are_judged(clip) -> None:
    for name in ("CLIP, no text", "post-model"):
        found = extras.train_detector(name, clip, TINY, seed=0)
        assert found.score.keys() == {"ap", "ap50"}
        assert ("scores" in found.history.rows[-1]) == (name == "post-model")


def test_average_precision_by_hand() -> None:
    truth = [torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])]
    classes = [torch.tensor([0, 1])]
    perfect = [
        {"boxes": truth[0], "scores": torch.tensor([0.9, 0.8]), "labels": classes[0]}
    ]
    assert average_precision(perfect, truth, classes) == {
        "ap": pytest.approx(1),
        "ap50": pytest.approx(1),
    }
    half = [
        {"boxes": truth[0][:1], "scores": torch.tensor([0.9]), "labels": classes[0][:1]}
    ]
    assert average_precision(half, truth, classes)["ap50"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="1 images"):
        average_precision(half, [], [])


def test_another_backbone_with_and_without_text(clip, study) -> None:
    for guidance in ("none", "post"):
        trained = extras.train_other(guidance, study, clip, TINY, seed=0)
        assert 0 <= trained.score["head"].mean_iou() <= 1
    assert trained.model.backbone.strides == (4, 8, 16)


def test_pre_model_costs_grow_with_the_classes_and_post_model_hardly(clip) -> None:
    gflop = {
        name: cost["gflop"]
        for name, cost in extras.prompting_cost(
            clip, (4, 40), LAB, seconds=False
        ).items()
    }
    assert gflop["no text"][0] < gflop["post-model"][0] < gflop["pre-model"][0]
    growth = {name: values[1] - values[0] for name, values in gflop.items()}
    assert growth["pre-model"] > 5 * growth["post-model"] > 0


def test_prompt_maps_are_cosines_at_the_images_size(clip, study) -> None:
    maps = extras.prompt_maps(clip, study.test.image[0], ["a photo of a dog", "grass"])
    assert maps.shape == (2, 32, 32) and maps.abs().max() <= 1
    model = recipe.build(recipe.VARIANTS["post-model"], clip, study.names, LAB, seed=0)
    again = extras.prompt_maps(
        clip, study.test.image[0], ["a photo of a dog", "grass"], model.backbone.eval()
    )
    torch.testing.assert_close(maps, again)
    alone = extras.prompt_maps(
        clip, study.test.image[0], ["a photo of a dog", "grass"], values=True
    )
    assert not torch.allclose(alone, maps, atol=1e-3)
    moved = extras.moved_text(model, study.test.image[:2])
    assert moved["angle"].shape == (2, 6) and moved["angle"].max() < 1, (
        "gamma starts at 1e-4"
    )


def test_spread_by_hand() -> None:
    flat = torch.ones(1, 2, 2, 2)
    assert extras.spread(flat) == pytest.approx(0, abs=1e-6)
    crossed = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    assert extras.spread(crossed) == pytest.approx(1 - 0.5**0.5, rel=1e-5)


def test_photos(tmp_path, clip) -> None:
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for folder in (split, f"{split}annot"):
            (tmp_path / folder).mkdir()
        for number in range(count):
            Image.new("RGB", (48, 36), (number * 40, 90, 10)).save(
                tmp_path / split / f"{number}.png"
            )
            Image.new("L", (48, 36), number).save(
                tmp_path / f"{split}annot" / f"{number}.png"
            )
    values = replace(TINY, lab=replace(LAB, size=(30, 40)))
    study = chapter.study_of(values, 0, "cpu", tmp_path, profile="photos")
    assert len(study.names) == 11 and len(study.test) == 2
    assert study.batches(0).image.shape == (4, 3, 30, 40)
    trained = chapter.train_variant("post-model", study, clip, values, seed=0)
    assert trained.score["head"].confusion.sum() == 2 * 30 * 40
    with pytest.raises(ValueError, match="data='FOLDER'"):
        chapter.study_of(values, 0, "cpu", "", profile="photos")


def test_profiles_name_variants_that_exist() -> None:
    for values in chapter.PROFILES.values():
        assert set(values.variants) <= set(recipe.VARIANTS) and set(
            values.detection
        ) <= set(recipe.VARIANTS)


def test_the_main_training_is_the_chapters() -> None:
    prepared = chapter.main_training("quick", seed=3)
    assert prepared.config == chapter.PROFILES["quick"].lab.training(3)
    assert prepared.model.config.guidance == "post"
    with pytest.raises(ValueError, match="quick, full, photos"):
        chapter.main_training("paper", seed=0)
