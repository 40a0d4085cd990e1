"""VLCounter's recipe: variants that differ only in their parts, trainings, and
questions to trained counters."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from minilib import claims, parameters
from minilib.batch import Batch
from minilib.claims import gathering, records, reports
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
from minilib.scenes import find
from minilib.training import History

TINY = chapter.Values(
    lab=recipe.Lab(steps=2, batch_size=4, channels=8),
    scenes=CountingScenes(size=64, count=(1, 6), distractors=(1, 6)),
    train_images=10,
    test_images=6,
    arms=("M1", "M2", "M5"),
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
    train, test = (
        {find(name).plural for name in counted_classes(part)}
        for part in ("train", "test")
    )
    assert set(study.train.names) | set(study.seen.names) <= train
    assert set(study.test.names) <= test and not train & test


def test_variants_start_from_the_same_numbers_where_they_have_the_same_parts(
    study: chapter.Study,
) -> None:
    arms = {arm: build(study, arm, 3).state_dict() for arm in recipe.VARIANTS}
    for arm, state in arms.items():
        for name, value in state.items():
            torch.testing.assert_close(value, arms["M5"][name], msg=f"{arm}, {name}")
    sizes = {
        arm: recipe.trained_parameters(build(study, arm, 0)) for arm in recipe.VARIANTS
    }
    assert (
        sizes["M1"]
        < sizes["VPT"]
        < sizes["M2"]
        < sizes["M3"]
        < sizes["M4"]
        == sizes["plain skip"]
    )
    assert sizes["M5"] - sizes["M4"] == sizes["M3"] - sizes["M2"] == 2 * 64
    with pytest.raises(KeyError, match="M6"):
        build(study, "M6", 0)


def test_claims_about_one_part_compare_variants_that_differ_in_it_alone() -> None:
    part = {"semantic": "encoder", "prompts": "encoder", "affine": "affine"}
    part |= {"skips": "skip", "gate": "skip"}
    for claim, name in part.items():
        one, other = (vars(recipe.VARIANTS[arm]) for arm in experiments.PAIRS[claim])
        assert {key for key in one if one[key] != other[key]} == {name}, claim


def test_initial_weights_are_the_authors_and_depend_on_the_seed(
    study: chapter.Study,
) -> None:
    one, other = (build(study, "M5", seed).state_dict() for seed in (0, 1))
    torch.testing.assert_close(one, build(study, "M5", 0).state_dict())
    for name in (
        "head.t_proj.weight",
        "head.v_proj.weight",
        "head.stages.0.conv.weight",
        "head.skips.1.conv.weight",
        "head.density.weight",
        "prompts.embeddings",
        "prompts.text_proj.weight",
    ):
        assert not torch.equal(one[name], other[name]), name
    for name in ("head.t_proj.weight", "head.v_proj.weight"):
        assert one[name].std() == pytest.approx(0.02, rel=0.2)
    assert all(
        torch.equal(one[name], other[name]) for name in one if name[:5] == "clip."
    )


@pytest.mark.parametrize("name", recipe.ARMS)
def test_trainings_move_what_they_should_and_repeat_exactly(
    study: chapter.Study, name: str
) -> None:
    arm = recipe.ARMS[name]
    given = (study.clip, study.train, TINY.lab, arm, 1)
    (model, history), (again, _) = recipe.train(*given), recipe.train(*given)
    before = build(study, arm.variant, 1).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert torch.equal(value, before[key]) or not key.startswith("clip.")
    assert not torch.equal(model.head.v_proj.weight, before["head.v_proj.weight"])
    assert len(history.column("count")[1]) == 2
    counter = recipe.counter_of(model, arm.lesson)
    assert answers(counter, study.test).shape == (len(study.test),)


@pytest.mark.parametrize(
    "name", [name for name in recipe.ARMS if name not in recipe.VARIANTS]
)
def test_every_control_differs_from_its_variant(
    study: chapter.Study, name: str
) -> None:
    arm, losses = recipe.ARMS[name], []
    for taught in (recipe.RELEASED, arm.lesson):
        model = build(study, arm.variant, 1)
        made = recipe.training(model, study.train, TINY.lab, 1, taught)
        torch.manual_seed(0)
        losses.append(made.loss(model, made.batches(0))["loss"].item())
    assert losses[0] != losses[1]


def test_shuffled_words_are_those_of_other_questions(
    study: chapter.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row of text that the network sees is that of another name of the batch."""
    heard, forward = [], VLCounter.forward
    monkeypatch.setattr(
        VLCounter,
        "forward",
        lambda self, pixels, text: heard.append(text) or forward(self, pixels, text),
    )
    arm = recipe.ARMS["shuffled words"]
    model, _ = recipe.train(study.clip, study.train, TINY.lab, arm, 1)
    stream = study.train.stream(TINY.lab.batch_size, 1)
    assert len(heard) == TINY.lab.steps
    for step, text in enumerate(heard):
        names = stream(step).caption
        own = model.encode_names(names, recipe.PLURAL)
        apart = torch.cdist(text, own)
        assert (apart.diagonal() > 0.01).all(), "a question heard its own name"
        said = [names[i] for i in apart.argmin(1)]
        assert sorted(said) == sorted(names) and apart.min(1).values.max() < 1e-4
    assert recipe.wrong_names(["a", "a", "b", "c"]) == ["b", "c", "a", "a"]
    with pytest.raises(ValueError, match="4 questions another name"):
        recipe.wrong_names(["a", "a", "a", "b"])


def test_a_resnet_is_refused_by_name(study: chapter.Study) -> None:
    class Towers:
        config = CLIPConfig(vision=ResNetConfig())

    with pytest.raises(ValueError, match="ResNetConfig.*vision transformer"):
        recipe.build(Towers(), TINY.lab, (8, 8), "M5", 0)


@pytest.fixture(scope="module")
def arms(
    study: chapter.Study, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, experiments.Trained]:
    """M5 by the chapter's main training, the other arms after it."""
    run = parameters.check(
        profile="quick", seed=2, device="cpu", out=tmp_path_factory.mktemp("out")
    )
    main = chapter.main_training(run, TINY, study)
    history = main.fit(run.out / "main", progress=None)
    found = experiments.train_arms(study, 2, main.model.eval(), history)
    assert list(found) == list(TINY.arms)
    assert found["M5"].model is main.model and found["M5"].history is history
    return found


@pytest.fixture(scope="module")
def trained(arms: dict[str, experiments.Trained]) -> dict[str, VLCounter]:
    return {name: arm.model for name, arm in arms.items()}


def test_the_main_training_is_the_variant_m5(
    study: chapter.Study, trained: dict[str, VLCounter]
) -> None:
    """The notebook examined ``recipe.train(..., "M5", seed)``: the same numbers."""
    for variant in ("M1", "M5"):
        arm = recipe.ARMS[variant]
        alone, _ = recipe.train(study.clip, study.train, TINY.lab, arm, 2)
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
    ledger = claims.load("vlcounter")
    for profile in ("quick", "full", "photos"):
        arms = set(chapter.PROFILES[profile].arms)
        assert {"M1", "M5"} <= arms <= set(recipe.ARMS)
        needed = set()
        for claim in ledger.values():
            test = claim.tests[profile]
            needed |= set(test.arms if isinstance(test, claims.Test) else ())
        assert needed <= arms, profile


def test_claims_about_two_arms_record_the_rows_that_the_ledger_names() -> None:
    for claim, pair in experiments.PAIRS.items():
        paths = experiments.RECORDED[claim]
        for test in ledger_tests(claim):
            assert set(test.arms) == set(pair), claim
            if claim != "unseen":  # that one is about both arms at once
                for path, arm, text in zip(
                    (paths.treatment, paths.control),
                    pair,
                    (test.treatment, test.control),
                    strict=True,
                ):
                    assert path == f"table/{arm}/mae" and f"({arm})" in text, claim


def test_what_is_recorded_is_what_the_ledger_asks_for() -> None:
    tested = {
        claim.partition(".")[2]
        for claim in claims.load("vlcounter")
        if ledger_tests(claim.partition(".")[2])
    }
    assert tested == set(experiments.RECORDED)
    for claim, paths in experiments.RECORDED.items():
        for test in ledger_tests(claim):
            assert set(test.controls) <= set(paths.controls), claim
            assert set(test.preconditions) <= set(paths.preconditions), claim
            for name in test.controls:  # a rival is the row of its name
                assert "/" + name + "/" in paths.controls[name] or claim == "asked"
    others = set(experiments.RECORDED) - set(experiments.PAIRS)
    pinned = {
        "centres": ("maps/M5, S'/centres", "maps/M5, S/centres"),
        "trained": ("size/share", "size/everything"),
        "reads": ("table/M5/follows", "table/shuffled words/follows"),
        "asked": ("few/asked", "few/constant"),
        "rank": ("pull/share", "pull/counting loss"),
    }
    assert others == set(pinned)
    for claim, pair in pinned.items():
        paths = experiments.RECORDED[claim]
        assert (paths.treatment, paths.control) == pair


def ledger_tests(claim: str) -> list[claims.Test]:
    tests = claims.load("vlcounter")[f"vlcounter.{claim}"].tests.values()
    return [test for test in tests if isinstance(test, claims.Test)]


def test_committed_records_are_the_named_results() -> None:
    ledger = claims.load("vlcounter")
    for path in reports.results_folder().glob("vlcounter.*.json"):
        for run in records.read_records(path):
            results = {name.partition(".")[2]: v for name, v in run.results.items()}
            for claim, measured in run.measurements.items():
                test = ledger[claim].tests[measured.profile]
                if getattr(test, "digest", "") != measured.test:
                    continue  # of an earlier rule
                paths = experiments.RECORDED[claim.partition(".")[2]]
                assert measured.treatment == experiments.look_up(
                    results, paths.treatment
                ), (path.name, claim)
                assert measured.control == experiments.look_up(
                    results, paths.control
                ), (path.name, claim)
            # what is measured twice is the same
            table = results["table"]
            if "few" in results:
                assert results["few"]["asked"] == table["M5"]["rarest"]
            if "gate" in results:
                assert results["gate"] == experiments.gain_of_the_gate(table)


def test_a_claim_is_recorded_from_named_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = chapter.open(profile="full", seed=0, device="cpu", out=tmp_path)
    results = {
        "few": {"asked": 1.0, "constant": 2.0, "swapped": 3.0, "n": 4},
        "table": {"M5": {"mae": 1.0}, "M1": {"mae": 2.0}, "M2": {"mae": 2.5}},
    }
    results["table"][experiments.CONSTANT] = {"mae": 4.0}
    results["gains"] = experiments.gains(results["table"])
    assert results["gains"] == {"parts": 0.5, "prompts": 0.375, "M5": 0.75}
    experiments.record(run, "asked", results, n=4)
    experiments.record(run, "prompts", results, n=4, interval=(0.0, 1.0))
    experiments.record(run, "countx", results, n=4)
    assert "countx is not tested at profile full" in capsys.readouterr().out
    (written,) = gathering.find_records(tmp_path)
    asked = written.measurements["vlcounter.asked"]
    assert (asked.treatment, asked.control) == (1.0, 2.0)
    assert asked.controls == {"answer to the most frequent class": 3.0}
    assert asked.preconditions == {"M5 over the best constant": 0.75}
    prompts = written.measurements["vlcounter.prompts"]
    assert (prompts.treatment, prompts.control) == (2.5, 2.0)
    assert prompts.preconditions == {experiments.LEARNED: 0.375}


# --- What is asked of counters --------------------------------------------------------


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
    learned = questions([3, 9, 3, 8, 0, 7, 9, 1, 1], [0, 0, 1, 1, 1, 2, 2, 3, 3])
    answer = torch.tensor([2.0, 7.0, 9.0, 4.0, 2.5])
    found = experiments.asked_for_the_few(answer, asked, learned)
    # answers 2 and 2.5 to the truths 1 and 2; in their place 7 and 4; and 3, the median
    # of the rarest classes of the images to learn from, which are 3, 3, 7 and 1
    assert found == {"asked": 0.75, "constant": 1.5, "swapped": 4.0, "n": 2}
    means = experiments.mean_answers({"one": answer}, asked)
    assert means == {"truth": [4.5, 1.5, 0.0], "one": [5.5, 2.25, 9.0]}


def test_who_does_not_hear_the_question_gives_an_image_one_answer() -> None:
    asked = questions([1, 5, 0, 4, 9], [0, 0, 1, 1, 1])
    deaf = experiments.deaf_answers(asked)
    assert deaf.tolist() == [3, 3, 4, 4, 4]
    best = (deaf - asked.counts).abs().mean()
    for other in range(10):
        answer = torch.where(asked.about == 1, torch.tensor(float(other)), deaf)
        assert (answer - asked.counts).abs().mean() >= best


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


def test_baselines_are_fitted_to_the_training_questions_alone(
    study: chapter.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, real = [], experiments.similarity_threshold
    monkeypatch.setattr(
        experiments,
        "similarity_threshold",
        lambda clip, train, *rest, **more: (
            fitted.append(train) or real(clip, train, *rest, **more)
        ),
    )
    poor = replace(study, test=study.test.take([0]), seen=study.test.take([1]))
    counters = experiments.baselines(study)
    for name, counter in experiments.baselines(poor).items():
        again = answers(counters[name], study.test)
        torch.testing.assert_close(answers(counter, study.test), again)
    assert all(part is study.train for part in fitted)
    constant = answers(counters[experiments.CONSTANT], study.test)
    assert constant.unique().tolist() == [study.train.counts.median()]
    by_class = experiments.baselines(replace(study, photos=True))
    constant = answers(by_class[experiments.CONSTANT], study.train)
    assert len(constant.unique()) > 1


def test_scores_are_the_rows_of_the_table(study: chapter.Study) -> None:
    right, seen = study.test.counts, study.seen.counts
    found = {"right": right, "one more": right + 1}
    rows = experiments.scores(study, found, {"right": seen, "one more": seen + 2})
    assert set(rows["right"].values()) == {0.0, 1.0}  # it follows, and never errs
    more = {"mae": 1, "rmse": 1, "seen": 2, "present": 1, "absent": 1, "rarest": 1}
    assert rows["one more"] == pytest.approx(more | {"follows": 1})
    deaf = experiments.all_answers(study, {}, study.test)
    assert list(deaf) == [experiments.DEAF]
    theirs = experiments.scores(study, deaf, deaf | {experiments.DEAF: seen})
    assert theirs[experiments.DEAF]["follows"] == pytest.approx(0, abs=1e-9)


def test_an_interval_of_two_arms_is_of_their_errors_and_of_images(
    study: chapter.Study,
) -> None:
    right, about = study.test.counts, study.test.about
    found = {"M4": right + 1, "M2": right + 2}
    interval = experiments.gap_interval("skips", found, study.test, 0)
    assert interval == pytest.approx((-1, -1))
    # one image counts as one, however many questions are about it
    found["M4"] = right + 2 - 3.0 * (about == 0)
    low, high = experiments.gap_interval("skips", found, study.test, 0)
    assert high == 0 and low < -0.5
    assert experiments.gap_interval("parts", found, study.test, 0) is None


def test_the_gain_of_the_gate_is_the_error_that_it_saves() -> None:
    gain = experiments.gain_of_the_gate(
        {"M4": {"mae": 1.0, "seen": 2.0}, "plain skip": {"mae": 1.5, "seen": 2.25}}
    )
    assert gain == {"unseen": 0.5, "seen": 0.25}


def test_of_the_released_size_less_than_a_hundredth_is_trained() -> None:
    size = experiments.trained_share()
    # the authors' last GroupNorm, which they never apply, has two more
    assert (size["all"], size["trained"]) == (151_354_563 - 2, 1_441_987 - 2)
    assert size["share"] == size["trained"] / size["all"] < 0.01


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
    # maps that are low on objects are turned over, both together
    turned = dict(trained)
    with torch.no_grad():
        for part in ("M1", "M5"):
            turned[part] = copy.deepcopy(trained[part])
            turned[part].head.t_proj.weight.mul_(-1)
            turned[part].head.t_proj.bias.mul_(-1)
        turned["M5"].head.affine.bias.mul_(-1)
    again = experiments.looks(base, turned, large)
    for row in ("M1, S", "M5, S", "M5, S'"):
        assert again[row] == pytest.approx(looks[row]), row
        assert looks[row]["objects"] >= 0.5 or row == "M5, S'"
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


def test_the_rank_loss_pulls_by_its_gradient(
    study: chapter.Study, untrained: VLCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull = experiments.rank_pull(study, untrained, 0, batches=2)
    assert 0 < pull["share"] <= pull["largest"] < 0.01
    assert pull != experiments.rank_pull(study, untrained, 1, batches=2)
    monkeypatch.setattr(experiments.paper, "RANK_WEIGHT", 1e-3)
    stronger = experiments.rank_pull(study, untrained, 0, batches=2)
    assert stronger["share"] == pytest.approx(1000 * pull["share"], rel=1e-3)


def test_words_kept_is_the_share_of_names_nearest_to_themselves(
    study: chapter.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build(study, "M1", 0)
    assert 0.5 < experiments.words_kept(base) < 1
    monkeypatch.setattr(experiments, "SINGULAR_TEMPLATES", recipe.PLURAL)
    monkeypatch.setattr(experiments, "PLURAL_TEMPLATES", recipe.PLURAL)
    monkeypatch.setattr(experiments, "singular", str)
    assert experiments.words_kept(base) == 1


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
