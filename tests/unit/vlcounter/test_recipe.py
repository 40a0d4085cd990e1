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

from minilib import claims, parameters
from minilib.batch import Batch
from minilib.metrics.counting import count_errors
from minilib.models.clip import CLIPConfig, ResNetConfig
from minilib.models.vlcounter import VLCounter
from minilib.parameters import Parameters
from minilib.recipes.shared.counting import (
    CountingScenes,
    Questions,
    answers,
    counted_classes,
    window_counter,
)
from minilib.recipes.vlcounter import chapter, experiments, figures, protocol, recipe
from minilib.scenes import VOCABULARY
from minilib.training import History

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
    ("variant", "lesson"),
    [("M1", recipe.RELEASED), *recipe.CONTROLS.values()],
    ids=["M1", *recipe.CONTROLS],
)
def test_trainings_move_what_they_should_and_repeat_exactly(
    study: chapter.Study, variant: str, lesson: recipe.Lesson
) -> None:
    given = (study.clip, study.train, TINY.lab, variant, 1, lesson)
    (model, history), (again, _) = recipe.train(*given), recipe.train(*given)
    before = build(study, variant, 1).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert torch.equal(value, before[key]) or not key.startswith("clip.")
    assert not torch.equal(model.head.v_proj.weight, before["head.v_proj.weight"])
    assert len(history.column("count")[1]) == 2
    assert answers(recipe.counter_of(model), study.test).shape == (len(study.test),)


def test_every_control_differs_from_its_variant(study: chapter.Study) -> None:
    for variant, lesson in recipe.CONTROLS.values():
        losses = []
        for taught in (recipe.RELEASED, lesson):
            made = recipe.training(
                build(study, variant, 1), study.train, TINY.lab, 1, taught
            )
            torch.manual_seed(0)
            losses.append(made.loss(made.model, made.batches(0))["loss"].item())
        assert losses[0] != losses[1]


def test_a_resnet_is_refused_by_name(study: chapter.Study) -> None:
    class Towers:
        config = CLIPConfig(vision=ResNetConfig())

    with pytest.raises(ValueError, match="ResNetConfig.*vision transformer"):
        recipe.build(Towers(), TINY.lab, (8, 8), "M5", 0)


@pytest.fixture(scope="module")
def trained(
    study: chapter.Study, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, VLCounter]:
    """M5 by the chapter's main training, the other variants of the ablation after it,
    with their histories checked."""
    run = parameters.check(
        profile="quick", seed=2, device="cpu", out=tmp_path_factory.mktemp("out")
    )
    main = chapter.main_training(run, TINY, study)
    history = main.fit(run.out / "main", progress=None)
    small = replace(study, values=replace(TINY, variants=("M1", "M2", "M5")))
    models, histories = experiments.ablation(small, 2, main.model.eval(), history)
    assert list(models) == list(histories) == ["M1", "M2", "M5"]
    assert models["M5"] is main.model and histories["M5"] is history
    return models


def test_the_main_training_is_the_variant_m5(
    study: chapter.Study, trained: dict[str, VLCounter]
) -> None:
    """The notebook examined ``recipe.train(..., "M5", seed)``: the same numbers."""
    for variant in ("M1", "M5"):
        alone, _ = recipe.train(study.clip, study.train, TINY.lab, variant, 2)
        torch.testing.assert_close(
            trained[variant].state_dict(), alone.state_dict(), rtol=0, atol=0
        )


def test_singulars_and_templates_go_together() -> None:
    assert (
        recipe.singular("wolves") in ("wolf", "wolves")
        and recipe.singular("red blood cells") == "red blood cells"
    )
    assert len(recipe.PLURAL) == len(recipe.SINGULAR)


def test_profiles_fit_the_ledger() -> None:
    assert chapter.PROFILES["paper"] == chapter.PROFILES["quick"]
    for profile in ("quick", "full", "photos"):
        values = chapter.PROFILES[profile]
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


def test_the_few_are_asked_and_swapped() -> None:
    asked = questions([1, 5, 0, 4, 2], [0, 0, 1, 1, 1])
    answer = torch.tensor([2.0, 7.0, 9.0, 4.0, 2.5])
    found = experiments.asked_for_the_few(answer, asked)
    # answers 2 and 2.5 to the truths 1 and 2; in their place 7 and 4
    assert found == {"asked": 0.75, "swapped": 4.0, "n": 2}
    means = experiments.mean_answers({"one": answer}, asked)
    assert means == {"truth": [4.5, 1.5, 0.0], "one": [5.5, 2.25, 9.0]}


def test_simplest_is_the_image_with_the_fewest_objects_of_enough_classes() -> None:
    asked = questions([1, 0, 4, 2, 2, 1, 9], [0, 0, 1, 1, 2, 2, 2])
    assert experiments.simplest(asked, 2) == [2, 3]
    assert experiments.simplest(asked, 3) == [4, 5, 6]
    with pytest.raises(ValueError, match="no image shows 4 classes"):
        experiments.simplest(asked, 4)


def test_errors_by_name_are_of_that_names_questions() -> None:
    asked = replace(questions([1, 5, 2], [0, 0, 1]), asked=("a", "b", "a"))
    report = experiments.by_name(asked, {"one": torch.tensor([2.0, 5.0, 5.0])})
    assert report["b"] == {"one": {"mae": 0, "rmse": 0}}
    assert report["a"]["one"] == {"mae": 2, "rmse": pytest.approx(5**0.5)}


def test_baselines_and_scores_are_the_rows_of_the_table(
    study: chapter.Study, untrained: VLCounter
) -> None:
    counters = experiments.baselines(study)
    counters["M5"] = recipe.counter_of(untrained)
    found = {name: answers(counter, study.test) for name, counter in counters.items()}
    rows = experiments.scores(study, counters, found)
    assert list(rows) == ["training mean", "similarity threshold", "M5"]
    mean = study.train.counts.mean()
    for key, part in (("mae", study.test), ("seen", study.seen)):
        expected = (part.counts - mean).abs().mean().item()
        assert rows["training mean"][key] == pytest.approx(expected)
    assert set(rows["M5"]) == {"mae", "rmse", "seen", "present", "absent", "follows"}
    by_class = experiments.baselines(replace(study, photos=True))["training mean"]
    assert len(answers(by_class, study.train).unique()) > 1


def test_numbers_over_seeds_join_variants_controls_and_countx() -> None:
    numbers = {"mae": 1.0, "rmse": 2.0, "seen": 3.0, "follows": 0.5}
    tables = [{"M5": numbers}, {"M5": numbers | {"mae": 2.0}}]
    extra = [dict.fromkeys(recipe.CONTROLS, 4.0)] * 2
    beside = [{"CounTX": {"mae": 5.0, "follows": 0.0}}] * 2
    rows = experiments.over_seeds(tables, extra, beside)
    assert rows["M5"]["mae"] == [1.0, 2.0] and rows["CounTX"]["follows"] == [0.0, 0.0]
    assert rows["M2, shuffled words"] == rows["M5, no rank loss"] == {"mae": [4.0, 4.0]}
    assert experiments.over_seeds([], [], []) == {}


# --- Where the maps look --------------------------------------------------------------


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


def test_maps_of_clip_and_of_variants_have_a_row_each(
    study: chapter.Study, trained: dict[str, VLCounter]
) -> None:
    large, base = experiments.large_objects(study, 6, seed=0), build(study, "M1", 0)
    looks = experiments.looks(base, trained, large)
    parts = {"M1": ("cosine", "S"), "M2": ("cosine", "S"), "M5": ("cosine", "S", "S'")}
    named = [f"{variant}, {part}" for variant in parts for part in parts[variant]]
    assert list(looks) == ["frozen CLIP, cosine", *named]
    # the frozen encoder of M1 is the raw one
    assert looks["M1, cosine"] == looks["frozen CLIP, cosine"]
    assert looks["M2, cosine"] != looks["frozen CLIP, cosine"]
    blocks = experiments.last_blocks(base, large)
    raw = looks["frozen CLIP, cosine"]
    assert blocks["values only, no MLP (VLCounter)"] == pytest.approx(raw)
    grammar = experiments.grammar(base, large)
    assert grammar["plural"] == pytest.approx(raw) and len(grammar) == 6
    assert grammar["singular"] != grammar["plural"]


def test_attention_to_prompts_is_a_share_and_needs_prompts(
    study: chapter.Study, trained: dict[str, VLCounter]
) -> None:
    batch = study.test.batch(experiments.simplest(study.test, 2))
    share = experiments.attention_to_prompts(trained["M2"], batch)
    assert share.shape == (2, 8, 8) and 0 < share.min() and share.max() < 1
    assert not torch.allclose(share[0], share[1]), "the prompts know the words"
    again = experiments.attention_to_prompts(trained["M2"].train(), batch)
    torch.testing.assert_close(again, share)  # without dropout
    with pytest.raises(ValueError, match="no prompts"):
        experiments.attention_to_prompts(trained["M1"], batch)


def test_inside_the_gate_shows_the_affine_map_and_what_the_skip_adds(
    study: chapter.Study, trained: dict[str, VLCounter]
) -> None:
    batch, model = study.test.batch([0, 1]), trained["M5"]
    parts = experiments.inside_the_gate(model, batch, 1)
    torch.testing.assert_close(parts["W"], model.head.affine.weight[0, 0])
    torch.testing.assert_close(
        parts["gate"], experiments.maps_of(model, batch)["S'"][1]
    )
    added = parts["last skip, mean |.|"]
    silent = parts["gate"].abs() < 1e-6
    factor = added.shape[-1] // silent.shape[-1]
    blocks = added.unfold(0, factor, factor).unfold(1, factor, factor).sum((-2, -1))
    assert (blocks[~silent] > 0).all() and (blocks[silent] < 1e-3).all()
    with pytest.raises(ValueError, match="skip='none'"):
        experiments.inside_the_gate(trained["M2"], batch, 0)


def test_share_of_positives_is_small_and_counts_bands_alone(
    study: chapter.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < experiments.positives(study) < 0.5
    halves = lambda target, grid: torch.full((len(target), 1, *grid), 0.5)  # noqa: E731
    monkeypatch.setattr(experiments.paper, "sampled_target", halves)
    assert experiments.positives(study) == 1


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
    assert set(reads) < set(experiments.READ_OUTS)


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
    measured = experiments.wide_read_outs(untrained, study, 0)
    assert set(measured) < set(experiments.READ_OUTS) and len(measured) == 2
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


def test_countx_is_set_beside_m5(
    study: chapter.Study, trained: dict[str, VLCounter]
) -> None:
    m5, right = trained["M5"], study.test.counts
    report, theirs = experiments.against_countx(study, 0, m5, right)
    assert theirs.shape == right.shape
    ours = report["VLCounter (M5)"]
    assert (ours["mae"], ours["trained"]) == (0, recipe.trained_parameters(m5))
    assert ours["follows"] == pytest.approx(1)
    error = (theirs - right).abs().mean().item()
    assert report["CounTX"]["mae"] == pytest.approx(error)
    # it trains its image tower
    assert report["CounTX"]["trained"] > 5 * ours["trained"]


# --- Drawings -------------------------------------------------------------------------


def test_drawings_show_what_they_are_given(
    study: chapter.Study, trained: dict[str, VLCounter]
) -> None:
    asked = study.test.batch(experiments.simplest(study.test, 2))
    maps = {name: experiments.maps_of(model, asked) for name, model in trained.items()}
    densities = maps["M5"]["density"]
    titles = figures.counts_in_titles(asked, densities)
    answer, true = densities[0].sum().item(), len(asked.points[0])
    assert titles[0] == f"{asked.caption[0]}:\n{answer:.1f}, true {true}"
    for crosses in (True, False):
        fig = figures.question_maps(asked, densities, titles, crosses)
        assert [ax.get_title() for ax in fig.axes] == ["", *titles]
        assert [len(ax.lines) for ax in fig.axes] == [0, crosses, crosses]
    first = {name: {k: m[0] for k, m in row.items()} for name, row in maps.items()}
    fig = figures.variant_maps(asked.image[0], asked.caption[0], first)
    named = [ax.get_title() for ax in fig.axes]
    assert len(named) == 15 and named[0] == f"M1: {asked.caption[0]}"
    assert named[3] == "S' (= S: no LAT)" and named[13] == "S'"
    fig = figures.micrographs([asked, asked], [densities, densities])
    assert [ax.get_title() for ax in fig.axes] == ["", *titles] * 2


def test_charts_show_what_they_are_given(study: chapter.Study) -> None:
    one = study.train.batch([0])
    sampled = torch.tensor([[0.1, 0.5], [0.7, 1.0]])
    fig = figures.rank_bands(one, sampled, sampled)
    assert fig.axes[2].images[0].get_array().tolist() == [[0, 1], [2, 4]]
    history = History([{"step": 1, "count": 1.0, "empty": 4.0}])
    line = figures.count_losses({"M5": history}).lines[0]
    assert line.get_ydata().tolist() == [0.25]
    truth = torch.tensor([1.0, 7.0])
    fig = figures.error_sources(truth, truth + 1, count_errors(truth + 1, truth))
    assert [bar.get_height() for bar in fig.axes[1].patches] == [1, 1]
    ax = figures.over_seeds({"M1": [3.0], "M5": [1.0, 2.0]})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["M1", "M5"]
    assert list(ax.lines[-1].get_xdata()) == [1.5, 1.5]
    fig = figures.inside_the_gate({"W": sampled, "B": sampled})
    assert [ax.get_title() for ax in fig.axes[:2]] == ["W", "B"]


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
    state = {"a": torch.zeros(1)}
    torch.save({"epoch": 182, "state_dict": state}, tmp_path / "best.pth")
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


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        ({}, "data.*annotation_FSC147_384.json"),
        ({"data": "."}, "weights.*authors' checkpoint"),
    ],
)
def test_profile_paper_says_what_it_needs(
    tmp_path: Path, given: dict[str, str], lacks: str
) -> None:
    with pytest.raises(ValueError, match=f"profile='paper' needs {lacks}"):
        chapter.open(profile="paper", seed=0, out=tmp_path, **given)


def test_the_study_follows_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    given = Parameters(profile="paper", seed=3, device=cpu, out=tmp_path)
    scenes = chapter.study(given, TINY)
    assert not scenes.photos
    assert torch.equal(scenes.train.image, chapter.scenes_study(TINY, 3).train.image)
    monkeypatch.setattr(
        chapter, "photos_study", lambda values, seed, device, data: data
    )
    photos = replace(given, profile="photos", data=tmp_path)
    assert chapter.study(photos, TINY) == tmp_path
