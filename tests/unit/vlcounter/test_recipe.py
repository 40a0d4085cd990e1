"""VLCounter's recipe: variants that differ only in their parts, trainings, and
questions to trained counters."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from minilib import claims
from minilib.batch import Batch
from minilib.models.vlcounter import VLCounter
from minilib.recipes.shared.counting import (
    CountingScenes,
    Questions,
    answers,
    counted_classes,
    window_counter,
)
from minilib.recipes.vlcounter import chapter, experiments, protocol, recipe
from minilib.scenes import VOCABULARY

TINY = chapter.Values(
    lab=recipe.Lab(steps=2, batch_size=4, channels=8),
    scenes=CountingScenes(size=64, count=(1, 6), distractors=(1, 6)),
    train_images=10,
    test_images=6,
)


def build(study: chapter.Study, variant: str, seed: int) -> VLCounter:
    return recipe.build(study.clip, TINY.lab, study.grid, variant, seed)


@pytest.fixture(scope="module")
def study() -> chapter.Study:
    return chapter.scenes_study(TINY, 0)


@pytest.fixture(scope="module")
def untrained(study: chapter.Study) -> VLCounter:
    return build(study, "M5", 0)


def questions(counts: list[int], about: list[int]) -> Questions:
    points = tuple(torch.zeros(n, 2) for n in counts)
    image = torch.zeros(max(about) + 1, 3, 16, 16, dtype=torch.uint8)
    return Questions(
        image, torch.tensor(about), tuple("abcdefgh"[: len(counts)]), points
    )


# --- Arms and trainings ---------------------------------------------------------------


def test_every_scene_is_asked_for_all_its_classes_and_one_that_is_absent(
    study: chapter.Study,
) -> None:
    for part in (study.train, study.test, study.seen):
        for image in range(len(part.image)):
            counts = part.counts[part.about == image]
            assert (counts == 0).sum() == 1 and (counts > 0).sum() >= 1
    assert not set(study.train.names) & set(study.test.names)


def test_variants_start_from_the_same_numbers_where_they_have_the_same_parts(
    study: chapter.Study,
) -> None:
    arms = {
        arm: dict(build(study, arm, 3).named_parameters()) for arm in recipe.VARIANTS
    }
    for name in ("head.t_proj.weight", "head.v_proj.weight", "head.t_proj.bias"):
        for arm in arms:
            torch.testing.assert_close(arms[arm][name], arms["M5"][name])
    sizes = {
        arm: recipe.trained_parameters(build(study, arm, 0)) for arm in recipe.VARIANTS
    }
    assert (
        sizes["M1"]
        < sizes["VPT"]
        < sizes["M2"]
        < sizes["M3"]
        < sizes["M5"]
        == sizes["plain skip"]
    )
    assert sizes["M5"] - sizes["M4"] == 2 * 64
    with pytest.raises(KeyError, match="M6"):
        build(study, "M6", 0)


def test_projections_start_as_principal_axes_of_the_names_to_train_on(
    untrained: VLCounter,
) -> None:
    counted = set(counted_classes("train"))
    text = untrained.encode_names(
        [c.plural for c in VOCABULARY if c.name in counted], recipe.PLURAL
    )
    projected = untrained.head.t_proj(text)
    torch.testing.assert_close(projected.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    spread = projected.var(0)
    assert (spread[:-1] >= spread[1:] - 1e-5).all()
    rows = untrained.head.v_proj.weight
    torch.testing.assert_close(
        rows @ rows.T, recipe.INITIAL_NORM**2 * torch.eye(8), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "M1"},
        {"variant": "M5", "rank": "paper", "rank_weight": 0.1},
        {"variant": "M2", "shuffled": True},
        {"variant": "M5", "templates": recipe.SINGULAR, "rename": recipe.singular},
    ],
)
def test_trainings_move_what_they_should_and_repeat_exactly(
    study: chapter.Study, options: dict
) -> None:
    model, history = recipe.train(study.clip, study.train, TINY.lab, seed=1, **options)
    again, _ = recipe.train(study.clip, study.train, TINY.lab, seed=1, **options)
    before = build(study, options["variant"], 1).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert torch.equal(value, before[key]) or not key.startswith("clip.")
    assert not torch.equal(model.head.v_proj.weight, before["head.v_proj.weight"])
    assert len(history.column("count")[1]) == 2
    assert answers(recipe.counter_of(model), study.test).shape == (len(study.test),)


def test_singulars_and_templates_go_together() -> None:
    assert (
        recipe.singular("wolves") in ("wolf", "wolves")
        and recipe.singular("red blood cells") == "red blood cells"
    )
    assert len(recipe.PLURAL) == len(recipe.SINGULAR)


def test_micrographs_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="get_bccd.py"):
        chapter.photos_study(TINY, 0, data=" ")
    with pytest.raises(FileNotFoundError, match="get_bccd.py"):
        chapter.photos_study(TINY, 0, data=tmp_path)


def test_profiles_fit_the_ledger() -> None:
    assert set(chapter.PROFILES) == {"quick", "full", "photos"}
    for profile, values in chapter.PROFILES.items():
        assert {"M1", "M2", "M5"} <= set(values.variants) <= set(recipe.VARIANTS)
        tests = {c.id: c.tests[profile] for c in claims.load("vlcounter").values()}
        assert (
            isinstance(tests["vlcounter.gate"], str) or "plain skip" in values.variants
        )
        assert isinstance(tests["vlcounter.rank"], str) or values.controls
        semantic = tests["vlcounter.semantic"].controls
        assert ("prompts without text" in semantic) == ("VPT" in values.variants)
        assert ("shuffled words" in semantic) == values.controls


# --- What is asked of counters --------------------------------------------------------


def test_follows_is_about_questions_of_the_same_image() -> None:
    asked = questions([1, 5, 0, 4], [0, 0, 1, 1])
    assert experiments.by_presence(asked.counts * 2 + 1, asked)[
        "follows"
    ] == pytest.approx(1)
    same_for_all = torch.tensor([9.0, 9.0, 2.0, 2.0])
    assert experiments.by_presence(same_for_all, asked)["follows"] == 0
    report = experiments.by_presence(torch.tensor([2.0, 5.0, 3.0, 4.0]), asked)
    assert report["absent"] == 3 and report["present"] == pytest.approx(1 / 3)


def test_dominant_finds_the_most_and_the_least_frequent_class_present() -> None:
    most, least = experiments.dominant(questions([1, 5, 0, 4], [0, 0, 1, 1]))
    assert most.tolist() == [False, True, False, False] and least.tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_area_under_curve_counts_ties_half() -> None:
    score = torch.tensor([3.0, 1.0, 1.0, 0.0])
    positive = torch.tensor([True, True, False, False])
    assert experiments.area_under_curve(score, positive, ~positive) == pytest.approx(
        (2 + 0.5 + 1) / 4
    )
    assert (
        experiments.area_under_curve(score, positive, torch.zeros(4, dtype=torch.bool))
        is None
    )


def test_cells_of_large_objects_are_scored_by_their_own_masks(
    study: chapter.Study, untrained: VLCounter
) -> None:
    large = experiments.large_objects(study, 12, seed=0)
    assert (
        not (large.inside & large.other).any() and (large.centre <= large.inside).all()
    )
    assert large.inside.shape == (12, 8, 8)
    best = experiments.map_scores(large.inside.float() + large.centre.float(), large)
    assert best == {"objects": 1.0, "others": 1.0, "centres": 1.0}
    maps = experiments.maps_of(untrained, large.batch)
    assert maps["density"].shape == (12, 64, 64)
    # the affine map starts as identity
    torch.testing.assert_close(maps["S"], maps["S'"])


def test_read_outs_differ_only_where_their_switch_bites(
    study: chapter.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted maps: a pixel of -1 where nothing is asked for, else two objects in one
    cell and the rest in others."""

    def planted(model: VLCounter, batch: Batch) -> dict[str, torch.Tensor]:
        maps = torch.zeros(len(batch.image), *batch.image.shape[-2:])
        for row, points in enumerate(batch.points):
            maps[row, 40, 40] = -1.0 if len(points) == 0 else 0.0
            for k in range(len(points)):
                maps[row, 0 if k < 2 else 8 * (k - 1), 3] = (
                    2.0 if k < 2 and len(points) > 1 else 1.0
                )
        return {"density": maps}

    monkeypatch.setattr(experiments, "maps_of", planted)
    asked, model = study.test, build(study, "M1", 0)
    empty, crowded = (
        (asked.counts == 0).double().mean().item(),
        (asked.counts > 1).double().mean().item(),
    )
    reads = experiments.read_outs(model, asked, batch_size=5)
    assert reads["sum"] == reads["rounded"] == pytest.approx(empty, abs=1e-5)
    assert (
        reads["never below zero"]
        == reads["positive pixels"]
        == pytest.approx(0, abs=1e-5)
    )
    assert reads["cells"] == pytest.approx(empty + crowded, abs=1e-5)
    assert reads["against smoothed dots"] >= reads["sum"] - 1e-5


def test_wide_scenes_are_read_through_windows(
    study: chapter.Study, untrained: VLCounter
) -> None:
    wide = experiments.wide_scenes(study, 2, seed=0)
    assert wide.image.shape[-2:] == (64, 128) and not set(wide.names) & set(
        study.train.names
    )
    part = wide.take(range(2))
    found = {}
    for merge in ("recursive", "uniform"):
        density = partial(untrained.density, merge=merge, templates=recipe.PLURAL)
        found[merge] = answers(window_counter(density), part)
    direct = untrained.density(
        part.batch([0]).image[0],
        part.asked[0],
        merge="uniform",
        templates=recipe.PLURAL,
    ).sum()
    torch.testing.assert_close(found["uniform"][0], direct)
    assert (found["uniform"] - found["recursive"]).abs().max() > 0


def test_countx_trains_on_the_same_questions_and_refuses_oblong_images(
    study: chapter.Study,
) -> None:
    model, counter = experiments.train_countx(study, 0, frozen=True)
    assert answers(counter, study.test).isfinite().all()
    projection = study.clip.state_dict()["visual.proj"]
    # its start shortens the patches, nothing else
    factor = model.clip_model.visual.proj.norm() / projection.norm()
    torch.testing.assert_close(model.clip_model.visual.proj, factor * projection)
    oblong = replace(
        study, train=replace(study.train, image=study.train.image[:, :, :, :48])
    )
    with pytest.raises(ValueError, match="64 x 48"):
        experiments.train_countx(oblong, 0)


# --- The paper's protocol -------------------------------------------------------------


def test_paper_protocol_counts_photographs_through_windows(
    tmp_path: Path, untrained: VLCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images_384_VarV2").mkdir()
    files = ["2.jpg", "3.jpg"]
    for name, width in zip(files, (384, 700), strict=True):
        Image.new("RGB", (width, 384), "gray").save(
            tmp_path / "images_384_VarV2" / name
        )
    splits = {"train": [], "val": [], "test": files}
    (tmp_path / "Train_Test_Val_FSC_147.json").write_text(json.dumps(splits))
    (tmp_path / "ImageClasses_FSC147.txt").write_text(
        "2.jpg\tsea shells\n3.jpg\tnail polish\n"
    )
    points = {
        "2.jpg": {"points": [[5.0, 5.0], [5.2, 5.1], [90.0, 80.0]]},
        "3.jpg": {"points": [[600.0, 20.0]]},
    }
    (tmp_path / "annotation_FSC147_384.json").write_text(json.dumps(points))
    torch.save({"epoch": 182, "state_dict": {}}, tmp_path / "best.pth")
    asked = []
    monkeypatch.setattr(
        VLCounter, "from_official", classmethod(lambda cls, state: untrained)
    )
    real = untrained.density
    monkeypatch.setattr(
        untrained,
        "density",
        lambda image, name: asked.append(name) or real(image, name),
    )
    report = protocol.paper_protocol(tmp_path, tmp_path / "best.pth")
    assert report["images"] == 2 and asked == ["sea shells", "nail polishes"]
    # Two of the dots share a pixel: the authors' truth for that photograph is 2, not 3.
    assert report["errors"]["bias"] == pytest.approx(
        report["errors_smoothed"]["bias"] - 0.5, abs=1e-3
    )


def test_paper_protocol_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FSC-147.*weights"):
        protocol.paper_protocol("", "")
    with pytest.raises(FileNotFoundError):
        protocol.paper_protocol(tmp_path, tmp_path / "none.pth")
