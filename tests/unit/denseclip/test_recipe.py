"""Chapter 6's experiments: the same data and start for every variant, controls that
control, costs that are counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from minilib import parameters, plotting
from minilib.batch import Batch
from minilib.claims.records import Test, read_records
from minilib.claims.records import load as load_ledger
from minilib.metrics.detection import average_precision
from minilib.recipes.denseclip import chapter, experiments, figures, recipe
from minilib.scenes import EmojiScenes, names
from minilib.training import History, Training
from minilib.weights import load_clip

LAB = recipe.Lab(
    size=(32, 32), objects=4, stuff=2, labelled=8, steps=2, batch_size=4, channels=16,
    test_images=6, pretraining_steps=2, pretraining_batch=8,
)  # fmt: skip
TINY = chapter.Values(lab=LAB)


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini-rn")


@pytest.fixture(scope="module")
def study() -> chapter.Study:
    return chapter.scenes_study(TINY, seed=0)


@pytest.fixture
def drawn(monkeypatch) -> list[tuple]:
    """What is drawn from EmojiScenes: (task, split, seed, start, n)."""
    noted: list[tuple] = []
    whole = EmojiScenes.layout

    def layout(self, task, n, split="train", seed=0, start=0):
        noted.append((task, split, seed, start, n))
        return whole(self, task, n, split, seed, start)

    monkeypatch.setattr(EmojiScenes, "layout", layout)
    return noted


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


def test_training_and_judging_draw_from_their_own_splits(drawn: list[tuple]) -> None:
    study = chapter.scenes_study(TINY, seed=7)
    assert drawn == [("segment", "train", 7, 0, 8), ("segment", "test", 7, 0, 6)]
    drawn.clear()
    for step in range(3):
        study.batches(step)
    assert drawn == [], "the labelled images are drawn once"
    for step in range(3):
        study.many(step)
    assert drawn == [("segment", "train", 7, 8 + 4 * step, 4) for step in range(3)], (
        "none of them labelled, none twice"
    )


def test_labelled_images_come_once_an_epoch_with_their_masks() -> None:
    """Images whose pixels are their masks, each of another column order."""
    mask = torch.arange(6)[:, None, None] + torch.arange(5) * 10
    mask = mask.expand(6, 3, 5)
    labelled = Batch(image=mask[:, None].expand(6, 3, 3, 5) / 100, mask=mask)
    batches = chapter.labelled_batches(labelled, 2, seed=1)
    orders, mirrored = [], 0
    for epoch in range(6):
        seen = []
        for step in range(3 * epoch, 3 * epoch + 3):
            batch = batches(step)
            torch.testing.assert_close(batch.image[:, 0] * 100, batch.mask.float())
            seen += (batch.mask[:, 0].min(dim=1).values).tolist()
            mirrored += (batch.mask[:, 0, 0] > batch.mask[:, 0, -1]).sum().item()
        assert sorted(seen) == list(range(6))
        orders.append(seen)
    assert len({tuple(order) for order in orders}) > 1 and 8 < mirrored < 28
    torch.testing.assert_close(batches(4).image, batches(4).image)
    other = chapter.labelled_batches(labelled, 2, seed=2)
    assert any(not torch.equal(other(s).mask, batches(s).mask) for s in range(3))
    with pytest.raises(ValueError, match="6 labelled images are no whole number"):
        chapter.labelled_batches(labelled, 4, seed=1)


def test_variants_that_are_compared_get_the_same_images_and_steps(
    clip, study, monkeypatch
) -> None:
    seen = {}

    def fit(training, out, progress):
        batches = [training.batches(step).image for step in range(3)]
        seen[progress] = (torch.stack(batches), training.config)
        return History([{"step": 1, "loss": 0.0}])

    monkeypatch.setattr(Training, "fit", fit)
    monkeypatch.setattr(recipe, "evaluate", lambda model, test: {})
    points = dict.fromkeys(("clip", "random", "captions", "classifier"), clip)
    for name, variant in recipe.VARIANTS.items():
        chapter.train_variant(name, study, points[variant.start], TINY, seed=0)
    plain, config = seen["CLIP, no text"]
    many, _ = seen["no text, many images"]
    assert not torch.equal(plain, many)
    for name, (images, given) in seen.items():
        torch.testing.assert_close(images, many if "many" in name else plain)
        factors = given.lr_factors
        assert replace(given, lr_factors=config.lr_factors) == config
        assert [factor for _, factor in factors] == [LAB.tower_lr]


def test_another_seed_other_weights(clip, study) -> None:
    for name, variant in recipe.VARIANTS.items():
        first, again, other = (
            recipe.build(variant, clip, study.names, LAB, seed).state_dict()
            for seed in (0, 0, 1)
        )
        for key in ("decode_head.conv_seg.weight", "neck.fpn_convs.0.conv.weight"):
            torch.testing.assert_close(first[key], again[key])
            assert not torch.allclose(first[key], other[key]), name


def test_shuffled_names_are_everybody_elses(clip, study) -> None:
    """Not only in the list, but in the tokens that the model reads."""
    right, wrong = (
        recipe.build(recipe.VARIANTS[name], clip, study.names, LAB, seed=0).tokens
        for name in ("post-model", "shuffled names")
    )
    assert sorted(right.tolist()) == sorted(wrong.tolist())
    assert not (right == wrong).all(dim=1).any()


def test_each_use_of_the_score_map_alone(clip, study) -> None:
    """Without concatenation the pyramid gets no more channels; without the loss the
    map is not trained by itself."""
    channels, losses = {}, {}
    for name in ("CLIP, no text", "post-model", *chapter.USES):
        start = recipe.training(name, study.names, study.batches, clip, LAB, seed=0)
        first = start.model.neck.lateral_convs[3].conv.weight
        channels[name] = first.shape[1]
        losses[name] = set(start.loss(start.model, study.batches(0)))
    plain = channels["CLIP, no text"]
    assert channels == {
        "CLIP, no text": plain,
        "post-model": plain + 6,
        "concatenation alone": plain + 6,
        "auxiliary loss alone": plain,
    }
    assert losses["post-model"] == losses["auxiliary loss alone"] == {
        "loss", "decode", "scores"
    }  # fmt: skip
    assert losses["concatenation alone"] == {"loss"}


def test_shuffled_names_leave_no_class_its_own() -> None:
    letters = tuple("abcdefgh")
    for seed in range(20):
        permuted = recipe.shuffled(letters, seed)
        assert sorted(permuted) == list(letters) and all(
            a != b for a, b in zip(letters, permuted, strict=True)
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
        recipe.VARIANTS["concatenation alone"], clip, study.names, LAB, seed=0
    )
    whole, head = (
        recipe.loss(model.eval(), study.test),
        recipe.head_loss(model, study.test),
    )
    torch.testing.assert_close(whole["loss"] - whole["scores"], head["loss"])


def test_starting_points(clip) -> None:
    points = recipe.starting_points(LAB, chapter.STARTS, clip, seed=0)
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


def test_both_pretrainings_see_the_same_images_and_none_twice(
    clip, drawn: list[tuple], monkeypatch
) -> None:
    lab, shown = replace(LAB, pretraining_steps=3), []
    whole = EmojiScenes.batch

    def batch(self, *given) -> Batch:
        shown.append(whole(self, *given).image)
        return whole(self, *given)

    monkeypatch.setattr(EmojiScenes, "batch", batch)
    for start, task in (("captions", "pairs"), ("classifier", "classify")):
        drawn.clear()
        recipe.starting_points(lab, [start], clip, seed=5)
        steps = [(task, "train", 5, step * 8, 8) for step in range(3)]
        assert drawn[::2] == drawn[1::2] == steps
    for caption, label in zip(shown[:3], shown[3:], strict=True):
        assert torch.equal(caption, label), "the same images"


def test_the_classifier_depends_on_its_seed_alone(clip) -> None:
    lab, heads = replace(LAB, pretraining_steps=1), []
    for noise, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(noise)
        model = recipe.starting_points(lab, ["classifier"], clip, seed)["classifier"]
        heads.append(model.visual.attnpool.c_proj.weight)
    torch.testing.assert_close(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2])


def test_a_guided_classifier_meets_clips_text_in_a_new_pool(clip, study) -> None:
    points = recipe.starting_points(LAB, ["classifier"], clip, seed=0)
    model = recipe.build(
        recipe.VARIANTS["classifier, post-model"],
        points["classifier"], study.names, LAB, seed=0,
    )  # fmt: skip
    tower, text = model.backbone.features.tower, model.text_encoder.state_dict()
    learned = points["classifier"].visual
    torch.testing.assert_close(tower.conv3.weight, learned.conv3.weight)
    for key, value in text.items():
        torch.testing.assert_close(value, clip.state_dict()[key])
    pool = model.backbone.attnpool.c_proj.weight
    assert not torch.allclose(pool, learned.attnpool.c_proj.weight)
    trained = chapter.train_variant(
        "classifier, post-model", study, points["classifier"], TINY, seed=0
    )
    moved = trained.model.backbone.features.tower.conv3.weight - learned.conv3.weight
    pooled = trained.model.backbone.attnpool.c_proj.weight - pool
    steps = LAB.steps * LAB.lr
    assert 0 < moved.abs().max() < 1.01 * steps * LAB.tower_lr < pooled.abs().max()
    assert torch.equal(learned.conv3.weight, points["classifier"].visual.conv3.weight)


def pairs_of_the_ledger() -> list[tuple[str, str]]:
    return [
        (claim.id.partition(".")[2], profile)
        for claim in load_ledger("denseclip").values()
        for profile, test in claim.tests.items()
        if isinstance(test, Test) and test.arms
    ]


@pytest.mark.parametrize(("claim", "profile"), pairs_of_the_ledger())
def test_what_a_claim_records_is_what_the_ledger_names(claim: str, profile) -> None:
    """Every arm has a number of its own, so that a wrong one shows."""
    test = load_ledger("denseclip")[f"denseclip.{claim}"].test(profile)
    results = {
        kind: {name: start + i / 100 for i, name in enumerate(recipe.VARIANTS)}
        for kind, start in (("miou", 0.1), ("score_map_miou", 0.5), ("fitted", 0.3))
    }
    assert set(test.arms) <= set(chapter.PROFILES[profile].variants)
    if claim == "few":
        return
    pair = experiments.PAIRS[claim]
    named = [pair.treatment, pair.control, *pair.controls]
    random = ["random weights"] if pair.better_than_random else []
    assert named + random == list(test.arms)
    told = experiments.measured(claim, results, test.preconditions)
    wanted = results["score_map_miou" if "score map" in test.metric else "miou"]
    assert told["treatment"] == wanted[test.arms[0]]
    assert told["control"] == wanted[test.arms[1]]
    assert told.get("controls", {}) == {name: wanted[name] for name in test.controls}
    assert set(told["preconditions"]) == set(test.preconditions)
    assert told["preconditions"].get("training loss") in (
        None, max(results["fitted"][arm] for arm in test.arms[:2])
    )  # fmt: skip


RECORDS = Path(__file__).resolve().parents[3] / "book" / "results"


@pytest.mark.parametrize("profile", ["full", "photos"])
def test_committed_records_hold_the_named_results(profile: str) -> None:
    """What the notebook recorded for a claim is the result that it says it is."""
    path = RECORDS / f"denseclip.{profile}.json"
    for run in read_records(path) if path.is_file() else []:
        named = {k.partition(".")[2]: value for k, value in run.results.items()}
        for claim, found in run.measurements.items():
            claim = claim.partition(".")[2]
            if claim in experiments.PAIRS:
                told = experiments.measured(claim, named, found.preconditions)
            elif claim == "few":
                gains = experiments.gains(named["miou"])
                told = {"treatment": gains["few"], "control": gains["many"]}
            else:
                cost = {name: cost["gflop"][2] for name, cost in named["cost"].items()
                        if name != "classes"}  # fmt: skip
                told = {"treatment": cost["post-model"], "control": cost["pre-model"]}
            for key, value in told.items():
                assert getattr(found, key) == pytest.approx(value, abs=1e-4), claim


def test_gains_by_hand() -> None:
    miou = {
        "post-model": 0.3, "CLIP, no text": 0.2,
        "post-model, many images": 0.5, "no text, many images": 0.4,
    }  # fmt: skip
    assert experiments.gains(miou) == {
        "few": pytest.approx(0.5), "many": pytest.approx(0.25)
    }  # fmt: skip


def test_how_well_the_labelled_images_are_fitted() -> None:
    rows = [{"step": i, "loss": float(20 - i)} for i in range(20)]
    assert experiments.fitted(History(rows)) == pytest.approx(1.5)
    guided = [row | {"decode": 0.5, "scores": 1.0} for row in rows]
    assert experiments.fitted(History(guided)) == 0.5


def test_detectors_learn_and_are_judged(clip) -> None:
    for name in ("CLIP, no text", "post-model"):
        found = experiments.train_detector(name, clip, LAB, seed=0)
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


def test_pre_model_costs_grow_with_the_classes_and_post_model_hardly(clip) -> None:
    gflop = {
        name: cost["gflop"]
        for name, cost in experiments.prompting_cost(
            clip, (4, 40), LAB, seconds=False
        ).items()
    }
    assert gflop["no text"][0] < gflop["post-model"][0] < gflop["pre-model"][0]
    growth = {name: values[1] - values[0] for name, values in gflop.items()}
    assert growth["pre-model"] > 5 * growth["post-model"] > 0


def test_prompt_maps_are_cosines_at_the_images_size(clip, study) -> None:
    maps = experiments.prompt_maps(
        clip, study.test.image[0], ["a photo of a dog", "grass"]
    )
    assert maps.shape == (2, 32, 32) and maps.abs().max() <= 1
    model = recipe.build(recipe.VARIANTS["post-model"], clip, study.names, LAB, seed=0)
    again = experiments.prompt_maps(
        clip, study.test.image[0], ["a photo of a dog", "grass"], model.backbone.eval()
    )
    torch.testing.assert_close(maps, again)
    alone = experiments.prompt_maps(
        clip, study.test.image[0], ["a photo of a dog", "grass"], values=True
    )
    assert not torch.allclose(alone, maps, atol=1e-3)
    moved = experiments.moved_text(model, study.test.image[:2])
    assert moved["angle"].shape == (2, 6) and moved["angle"].max() < 1, (
        "gamma starts at 1e-4"
    )


def test_spread_by_hand() -> None:
    flat = torch.ones(1, 2, 2, 2)
    assert experiments.spread(flat) == pytest.approx(0, abs=1e-6)
    crossed = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    assert experiments.spread(crossed) == pytest.approx(1 - 0.5**0.5, rel=1e-5)


def test_photos(tmp_path, clip) -> None:
    for split, labels in (
        ("train", (0, 1, 2, 3, 5, 8)), ("val", (0,)), ("test", (0, 3))
    ):  # fmt: skip
        for folder in (split, f"{split}annot"):
            (tmp_path / folder).mkdir()
        for number, label in enumerate(labels):
            Image.new("RGB", (48, 36), (label * 20, 90, 10)).save(
                tmp_path / split / f"{number}.png"
            )
            Image.new("L", (48, 36), label).save(
                tmp_path / f"{split}annot" / f"{number}.png"
            )
    values = replace(TINY, lab=replace(LAB, size=(32, 48), labelled=4))
    tiny = replace(chapter.CHAPTER, profiles={"photos": values})
    run = tiny.open(
        profile="photos", seed=0, device="cpu", out=tmp_path / "out", data=tmp_path
    )
    study = run.study
    assert study.names == chapter.KNOWN and len(study.test) == 2
    assert study.test.mask.unique().tolist() == [0, 1], "sky and road"
    assert study.batches(0).image.shape == (4, 3, 32, 48)
    trained = chapter.train_variant("post-model", study, clip, values, seed=0)
    assert trained.score["head"].confusion.sum() == 2 * 32 * 48


def test_profiles_name_variants_that_exist_and_the_main_one() -> None:
    for values in chapter.PROFILES.values():
        assert chapter.MAIN in values.variants
        assert set(values.variants) <= set(recipe.VARIANTS)


@pytest.fixture
def run(tmp_path):
    tiny = replace(chapter.CHAPTER, profiles={"quick": TINY})
    return tiny.open(profile="quick", seed=3, device="cpu", out=tmp_path)


def test_the_main_training_is_the_one_of_the_ladder(run, clip, monkeypatch) -> None:
    model, history = run.train("post-model")
    by_itself = chapter.train_variant("post-model", run.study, clip, TINY, seed=3)
    for name in ("loss", "decode", "scores"):
        assert by_itself.history.column(name) == history.column(name)
    torch.testing.assert_close(model.state_dict(), by_itself.model.state_dict())
    others = []

    def noted(name, *args):
        others.append(name)
        return by_itself

    monkeypatch.setattr(chapter, "train_variant", noted)
    rungs = chapter.train_variants(run, clip, model, history)
    assert list(rungs) == list(TINY.variants)
    assert others == ["CLIP, no text", "shuffled names"], "it is not trained twice"
    assert rungs["post-model"].model is model
    assert rungs["post-model"].history is history
    assert rungs["post-model"].score.keys() == {"head", "scores"}


def test_a_trained_ladder_is_loaded_the_second_time(run, clip) -> None:
    first = chapter.train_variants(run, clip, *run.train("post-model"))
    folders = sorted(path.name for path in run.out.iterdir())
    assert folders == ["CLIP-no-text", "main", "shuffled-names"]
    model, history = run.train("post-model")
    again = chapter.train_variants(run, clip, model, history)
    for name in TINY.variants:
        assert again[name].history.rows == first[name].history.rows
        torch.testing.assert_close(
            again[name].model.state_dict(), first[name].model.state_dict()
        )


def test_the_main_training_takes_its_clip_from_the_parameter(
    tmp_path, monkeypatch
) -> None:
    loaded = []
    monkeypatch.setattr(
        recipe,
        "load_clip",
        lambda *given: loaded.append(given) or load_clip("mini-rn"),
    )
    for weights in ("", "mini-rn", "RN50-quickgelu/openai"):
        given = parameters.check(
            profile="quick", seed=3, device="cpu", out=tmp_path, weights=weights
        )
        training = chapter.main_training(given, TINY, chapter.study(given, TINY))
        assert training.config == LAB.training(3)
        assert training.model.config.guidance == "post"
    named = [given[:2] for given in loaded]
    assert named == [
        ("mini-rn", None), ("mini-rn", None), ("RN50-quickgelu", "openai")
    ]  # fmt: skip


# --- What the notebook records and draws ----------------------------------------------


def test_ious_for_records_and_tables(run, clip) -> None:
    rungs = chapter.train_variants(run, clip, *run.train("post-model"))
    means = chapter.mean_ious(rungs)
    assert list(means) == list(TINY.variants)
    assert list(chapter.mean_ious(rungs, "scores")) == ["post-model", "shuffled names"]
    table = chapter.class_ious(rungs, run.study.names)
    assert table.pop("names") == list(run.study.names)
    for name, ious in table.items():
        known = [iou for iou in ious if iou is not None]
        assert len(ious) == 6
        assert sum(known) / len(known) == pytest.approx(means[name], abs=1e-4)
    assert chapter.rounded({"a": 0.123456}, 3) == {"a": 0.123}


def test_the_table_of_photographs_has_a_row_per_class() -> None:
    mean = [{"plain": 0.5, "text": 0.4}, {"plain": 0.3, "text": 0.2}]
    classes = [
        {"names": ["sky", "car"], "plain": [0.6, None], "text": [0.1, 0.7]},
        {"names": ["sky", "car"], "plain": [0.2, 0.4], "text": [0.1, 0.3]},
    ]
    rows = plotting.columns_over_seeds(
        chapter.photo_ious(mean, classes), ["plain", "text"], "{:.0%}"
    )
    assert rows == [
        ["**mean**", "40% (30% to 50%)", "30% (20% to 40%)"],
        ["sky", "40% (20% to 60%)", "10% (10% to 10%)"],
        ["car", "40%", "50% (30% to 70%)"],
    ]
    assert chapter.photo_ious([], []) == []


def test_the_table_of_variants_has_a_score_map_where_there_is_one() -> None:
    seeds = chapter.by_variant(
        [{"plain": 0.5, "text": 0.4}, {"plain": 0.3, "text": 0.2}],
        [{"text": 0.1}, {"text": 0.3}],
    )
    rows = plotting.columns_over_seeds(seeds, ["final output", "score map"], "{:.0%}")
    assert [row[:2] for row in rows] == [
        ["plain", "40% (30% to 50%)"], ["text", "30% (20% to 40%)"]
    ]  # fmt: skip
    assert rows[1][2] == "20% (10% to 30%)"
    assert chapter.by_variant([], []) == []


def test_a_run_records_the_pairs_that_the_ledger_tests(run, capsys) -> None:
    results = {
        "miou": {"post-model": 0.3, "CLIP, no text": 0.2, "shuffled names": 0.25},
        "score_map_miou": {"post-model": 0.4, "shuffled names": 0.1},
    }
    experiments.record_pairs(run, results, "C1", "names", "C5")
    written = json.loads((run.out / "result.json").read_text())["claims"]
    assert written.keys() == {"denseclip.C1", "denseclip.names"}
    first, names = written["denseclip.C1"], written["denseclip.names"]
    assert (first["treatment"], first["control"]) == (0.3, 0.2)
    assert first["controls"] == {"shuffled names": 0.25} and first["n"] == 6
    assert (names["treatment"], names["control"]) == (0.4, 0.1)
    assert "C5 is not tested" in capsys.readouterr().out


def test_one_class_everywhere_by_hand() -> None:
    mask = torch.tensor([[[0, 0, 0, 1], [2, 255, 255, 255]]])
    assert experiments.one_class_miou(mask, 3) == pytest.approx(3 / 5 / 3)


def test_a_scene_with_all_classes() -> None:
    scene = experiments.scene_of(("dog", "banana"), "grass", 32)
    assert scene.shape == (3, 32, 32)
    torch.testing.assert_close(
        scene, experiments.scene_of(("dog", "banana"), "grass", 32)
    )
    with pytest.raises(ValueError, match="no scene of the first 60 .* fewer classes"):
        experiments.scene_of(tuple(names()[:30]), "grass", 32)


def test_label_maps_before_and_after_training(clip, study) -> None:
    written, guided, plain = (
        recipe.build(recipe.VARIANTS[name], clip, study.names, LAB, seed=0)
        for name in ("written prompt", "post-model", "CLIP, no text")
    )
    maps = experiments.compared_maps(written, guided, plain, study.test.image[:2])
    assert [name.replace("\n", " ") for name in maps] == [
        "score map, before", "score map, after", "without text", "DenseCLIP"
    ]  # fmt: skip
    for labels in maps.values():
        assert labels.shape == (2, 32, 32)
        assert 0 <= labels.min() and labels.max() < len(study.names)
    assert experiments.cells_of(plain, study.test.image[:2]).shape[:2] == (2, 128)


FOUND = [
    {
        "boxes": torch.tensor([[1.0, 2, 11, 12], [1, 2, 11, 13], [20, 20, 28.123, 30]]),
        "scores": torch.tensor([0.5, 0.9, 0.1]),
        "labels": torch.tensor([0, 1, 2]),
    },
    {
        "boxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "labels": torch.zeros(0, dtype=torch.int64),
    },
]


def test_boxes_survive_a_record() -> None:
    record = json.loads(json.dumps(experiments.listed_boxes(FOUND)))
    for one, again in zip(FOUND, experiments.boxes_of(record), strict=True):
        for key, value in one.items():
            assert again[key].dtype == value.dtype
            torch.testing.assert_close(again[key], value, atol=0.005, rtol=0)


def test_boxes_are_drawn_once_and_if_likely() -> None:
    batch = Batch(
        image=torch.zeros(2, 3, 32, 32),
        boxes=[one["boxes"][:1] for one in FOUND],
        classes=[one["labels"][:1] for one in FOUND],
    )
    axes = figures.boxes(batch, FOUND, ["dog", "cat", "car"]).axes
    assert len(axes) == 4
    words = [[text.get_text() for text in ax.texts] for ax in axes]
    assert words == [["dog"], [], ["cat"], []]
    assert [axes[0].get_title(), axes[2].get_title()] == ["truth", "detected"]


def test_maps_of_prompts_stand_beside_their_image() -> None:
    maps = {"before": torch.zeros(2, 8, 8), "after": torch.ones(2, 8, 8)}
    axes = figures.prompt_maps(torch.zeros(3, 8, 8), maps, ["dog", "sky"], (-1, 1)).axes
    assert [ax.get_title() for ax in axes[:6]] == ["", '"dog"', '"sky"', "", "", ""]
    assert [axes[0].get_ylabel(), axes[3].get_ylabel()] == ["before", "after"]
    assert axes[1].images[0].get_array().max() == 0
    assert axes[4].images[0].get_array().min() == 1
    assert axes[4].images[0].get_clim() == (-1, 1)


def test_losses_are_drawn_without_their_weight() -> None:
    plain = History([{"step": 1, "loss": 3.0}])
    guided = History([{"step": 1, "loss": 5.0, "decode": 2.0, "scores": 0.8}])
    left, right = figures.losses({"plain": plain, "guided": guided}).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[3.0], [2.0]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[2.0]]


def test_bars_over_seeds_for_final_output_and_score_map() -> None:
    final = [
        {"CLIP, no text": 0.2, "post-model": 0.4},
        {"CLIP, no text": 0.4, "post-model": 0.4},
    ]
    maps = [{"post-model": 0.1}, {"post-model": 0.3}]
    above, below = figures.ladders(final, maps).axes
    assert [patch.get_height() for patch in above.patches] == pytest.approx([0.3, 0.4])
    assert [patch.get_height() for patch in below.patches] == pytest.approx([0.2])
    assert [label.get_text() for label in below.get_xticklabels()] == ["post-\nmodel"]
