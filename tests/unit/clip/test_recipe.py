"""CLIP's recipe: data by step, words, the arithmetic behind the claims, and trainings
small enough to run here."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from minilib.batch import Batch
from minilib.models.clip import CLIP, ViTConfig
from minilib.parameters import Parameters
from minilib.recipes.clip import chapter, recipe
from minilib.recipes.clip import experiments as claims
from minilib.scenes import (
    VOCABULARY,
    CaptionConfig,
    EmojiScenes,
    SceneConfig,
    class_names,
    find,
    names,
)
from minilib.tokenizer import get_tokenizer
from minilib.training import TrainConfig

TINY = claims.Lab(
    image_size=32, classes=6, steps=3, evaluations=1, test_images=24, width=32
)


@pytest.fixture(scope="module")
def model() -> CLIP:
    """An untrained CLIP of the lab's kind."""
    return recipe.build(TINY.pretraining().model, seed=0).eval()


def small_pretraining(**changes) -> recipe.Pretraining:
    model = recipe.clip_config(
        ViTConfig(8, 32, 1, 1), 32, 16, recipe.text_config(32, 1, 1)
    )
    settings = dict(
        train=TrainConfig(steps=10),
        scenes=SceneConfig(size=32, objects=(1, 4)),
        batch_size=16,
    )
    return recipe.Pretraining(model=model, **settings | changes)


# --- Data by step ---------------------------------------------------------------------


def test_pairs_are_a_pure_function_of_the_step():
    pairs = recipe.scene_pairs(small_pretraining(), seed=3)
    later, first = pairs(7), pairs(0)
    again = recipe.scene_pairs(small_pretraining(), seed=3)
    for batch, step in ((later, 7), (first, 0)):
        assert (
            torch.equal(again(step).image, batch.image)
            and again(step).caption == batch.caption
        )
    assert not torch.equal(first.image, later.image)
    assert not torch.equal(
        recipe.scene_pairs(small_pretraining(), seed=4)(0).image, first.image
    )


def test_steps_show_consecutive_scenes_of_the_training_split():
    settings = small_pretraining()
    pairs = recipe.scene_pairs(settings, seed=1)
    expected = EmojiScenes(settings.scenes).batch("pairs", 32, "train", seed=1)
    assert torch.equal(torch.cat([pairs(0).image, pairs(1).image]), expected.image)


def test_simple_scenes_come_first():
    pairs = recipe.scene_pairs(small_pretraining(simple_first=0.4), seed=0)
    most = [
        max(sum(len(p.objects) for p in phrases) for phrases in pairs(step).phrases)
        for step in range(10)
    ]
    assert max(most[:4]) <= 2 and min(most[4:]) >= 3


def test_simple_scenes_never_show_more_than_was_asked_for():
    one = small_pretraining(
        simple_first=1.0, scenes=SceneConfig(size=32, objects=(1, 1))
    )
    assert all(len(phrases) == 1 for phrases in recipe.scene_pairs(one, 0)(0).phrases)


def test_few_pairs_come_again_and_again():
    pairs = recipe.scene_pairs(small_pretraining(pairs=48), seed=0)
    assert torch.equal(pairs(0).image, pairs(3).image) and torch.equal(
        pairs(1).image, pairs(7).image
    )
    distinct = {
        image.numpy().tobytes() for step in range(9) for image in pairs(step).image
    }
    assert len(distinct) == 48


def test_with_steps_and_training_seed():
    settings = small_pretraining()
    assert settings.with_steps(None) is settings
    assert settings.with_steps(3).train.steps == 3 and settings.train.steps == 10
    assert settings.training(5).seed == 5


# --- Words ----------------------------------------------------------------------------


def test_lexicon_reads_every_caption_without_spelling_bytes():
    full, small = get_tokenizer(), get_tokenizer(recipe.CONTEXT, recipe.lexicon())
    captions = []
    for start, (task, how) in enumerate(
        [("pairs", {}), ("count", {}), ("pairs", {"kind": 1.0}), ("classify", {})]
    ):
        noisy = CaptionConfig(missing=0.1, wrong=0.2, irrelevant=0.3, **how)
        scenes = EmojiScenes(SceneConfig(size=16, objects=(1, 4)), noisy)
        captions += scenes.batch(task, 500, seed=start).caption
    assert len(captions) == 2000
    for caption in captions:
        assert len(small.encode(caption)) == len(full.encode(caption)), caption
        assert len(small.encode(caption)) + 2 <= recipe.CONTEXT
    assert small.vocab_size < 2500


def test_general_captions_fit_the_context():
    small = get_tokenizer(recipe.CONTEXT, recipe.lexicon())
    general = CaptionConfig(general=1.0, kind=1.0, irrelevant=1.0)
    scenes = EmojiScenes(SceneConfig(size=16, objects=(4, 4)), general)
    captions = scenes.batch("pairs", 500).caption
    assert max(len(small.encode(text)) for text in captions) + 2 <= recipe.CONTEXT


def test_lexicon_reads_every_prompt_and_still_any_other_text():
    full, small = get_tokenizer(), get_tokenizer(recipe.CONTEXT, recipe.lexicon())
    every = [
        prompt
        for template in recipe.TEMPLATES
        for prompt in recipe.prompts(template, names())
    ]
    assert all(
        len(small.encode(prompt)) == len(full.encode(prompt)) for prompt in every
    )
    assert small.decode(small.encode("一只狗 zyzzyva")).strip() == "一只狗 zyzzyva"


def test_prompts_have_articles():
    assert recipe.prompts("a photo of {a}.", ["elephant", "dog"]) == [
        "a photo of an elephant.",
        "a photo of a dog.",
    ]
    assert recipe.prompts("{}", ["elephant"]) == ["elephant"]
    assert all("{a}" in template for template in recipe.TEMPLATES)


def test_classifier_has_a_unit_column_per_class(model):
    weights = recipe.classifier(model, ["dog", "cat", "elephant"], recipe.TEMPLATES)
    assert weights.shape == (model.config.embed_dim, 3)
    torch.testing.assert_close(weights.norm(dim=0), torch.ones(3))
    texts = recipe.prompts(recipe.TEMPLATES[0], ["dog"])
    one = recipe.classifier(model, ["dog"], recipe.TEMPLATES[:1])
    torch.testing.assert_close(
        one.T, recipe.embed_texts(model, texts), rtol=1e-4, atol=1e-5
    )


def test_hypernyms_are_counted_by_hand(model, monkeypatch):
    axes = dict(dog=0, animal=0, car=1, vehicle=1, plant=2)
    axes["pine tree"] = 1  # a tree where vehicles are: wrong

    def embedded(_, texts):
        return torch.eye(3)[[axes[text] for text in texts]]

    monkeypatch.setattr(recipe, "embed_texts", embedded)
    words = ["dog", "car", "pine tree"]
    assert recipe.hypernyms_of_text(model, words) == (2 / 3, 1 / 3)
    two = recipe.hypernyms_of_text(model, words, ["animal", "vehicle"])
    assert two == (1.0, 1 / 2), "words of other groups are left out"
    wrong = recipe.hypernyms_of_text(model, words, ["animal", "plant"])
    assert wrong == (0.5, 1 / 2)


def test_build_depends_on_the_seed_alone():
    config = TINY.pretraining().model
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = recipe.build(config, 0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    same, other = recipe.build(config, 0), recipe.build(config, 1)
    assert torch.equal(one.text_projection, same.text_projection)
    assert not torch.equal(one.text_projection, other.text_projection)


# --- Arithmetic by hand ---------------------------------------------------------------


def test_tie_accuracy_by_hand():
    scores = torch.tensor(
        [[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [3.0, 3.0, 0.0], [1.0, 1.0, 1.0]]
    )
    label = torch.tensor([0, 1, 2, 2])
    assert claims.tie_accuracy(scores, label) == pytest.approx(
        (1 / 2 + 1 + 0 + 1 / 3) / 4
    )


@pytest.mark.parametrize(
    ("probe", "zero_shot", "expected"),
    [
        ([0.2, 0.4, 0.6], 0.5, 2 * math.sqrt(2)),
        ([0.2, 0.4, 0.6], 0.4, 2.0),
        ([0.2, 0.4, 0.6], 0.1, 1.0),
        ([0.2, 0.4, 0.6], 0.7, None),
        ([0.4, 0.3, 0.6], 0.5, 2 * 2 ** (2 / 3)),  # the dip before does not matter
    ],
)
def test_crossing_by_hand(probe, zero_shot, expected):
    crossing = claims.crossing([1, 2, 4], probe, zero_shot)
    assert (
        crossing == expected
        if expected is None
        else crossing == pytest.approx(expected)
    )


def test_logit_is_kept_off_the_ends():
    assert claims.logit(0.5) == pytest.approx(0) and claims.logit(0.9) == pytest.approx(
        math.log(9)
    )
    assert claims.logit(1.0) == pytest.approx(math.log(999)) and claims.logit(
        0.0
    ) == pytest.approx(-math.log(999))


def test_effective_robustness_by_hand():
    def shifted(accuracy: float) -> float:
        return 1 / (1 + math.exp(1 - 0.5 * claims.logit(accuracy)))

    baseline = [(a, shifted(a)) for a in (0.3, 0.5, 0.8, 0.9)]
    assert claims.effective_robustness(baseline, (0.7, shifted(0.7))) == pytest.approx(
        0, abs=1e-6
    )
    assert claims.effective_robustness(baseline, (0.7, 0.65)) == pytest.approx(
        0.65 - shifted(0.7), abs=1e-6
    )
    with pytest.raises(ValueError, match="at least two supervised models, not 1"):
        claims.effective_robustness(baseline[:1], (0.7, 0.65))


def test_draw_shots_takes_k_of_every_class():
    label = torch.tensor([0, 1, 2] * 5 + [0])
    generator = torch.Generator().manual_seed(0)
    rows = claims.draw_shots(label, 4, generator)
    assert len(set(rows.tolist())) == 12
    assert Counter(label[rows].tolist()) == {0: 4, 1: 4, 2: 4}
    assert claims.draw_shots(label, 4, generator).tolist() != rows.tolist()
    with pytest.raises(ValueError, match="class 1 has 5 examples, fewer than k=6"):
        claims.draw_shots(label, 6, generator)


def test_lab_classes_are_distinct_and_spread():
    for classes in (6, 24, 80, len(VOCABULARY)):
        chosen = replace(TINY, classes=classes).names
        assert len(set(chosen)) == classes
    assert (
        TINY.names[0] == names()[0]
        and find(TINY.names[-1]).index >= len(VOCABULARY) * 5 // 6
    )


def test_lab_test_counts_labels_within_its_names():
    batch = TINY.test(seed=1)
    assert len(batch) == 24 and 0 <= batch.label.min() and batch.label.max() < 6
    described = [TINY.names[label] for label in batch.label.tolist()]
    assert all(
        name in caption or find(name).word in caption
        for name, caption in zip(described, batch.caption, strict=True)
    )


def test_shot_pool_holds_every_class_and_no_test_scene():
    pool = claims.shot_pool(3, 32, TINY.names)
    assert pool.label.tolist() == [c for c in range(6) for _ in range(3)]
    test = TINY.test()
    shown = {image.numpy().tobytes() for image in test.image}
    assert not any(image.numpy().tobytes() in shown for image in pool.image)


def test_held_out_phrases_never_occur_in_training():
    plain = CaptionConfig(
        opening=0, background=0, tint=1, full_stop=0, kind=0, disambiguate=1
    )
    held_out = claims.held_out_phrases(6)
    assert len(set(held_out)) == 6
    config = SceneConfig(size=16, objects=(1, 1), tint=1.0, combinations="seen")
    assert not set(EmojiScenes(config, plain).batch("pairs", 5000).caption) & set(
        held_out
    )


# --- Questions put to a model (untrained here: only their form) -----------------------


def test_prompt_ladder(model):
    report = claims.prompt_ladder(model, TINY.test(), TINY.names)
    ensembles = {f"ensemble of {n}" for n in range(2, len(recipe.TEMPLATES) + 1)}
    assert set(report) == {"bare word", "probabilities", *recipe.TEMPLATES} | ensembles
    assert all(0 <= value <= 1 for value in report.values())


def test_few_shot(model):
    pool, test = claims.shot_pool(4, 32, TINY.names), TINY.test()
    report = claims.few_shot(model, pool, test, TINY.names, shots=(1, 4), draws=2)
    assert set(report) == {"shots", "zero-shot", "random names", "probe"}
    assert (
        report["shots"] == [1, 4]
        and len(report["probe"]) == 2
        and len(report["zero-shot"]) == 1
    )
    assert report == claims.few_shot(
        model, pool, test, TINY.names, shots=(1, 4), draws=2
    )
    # even an untrained tower tells red things from blue ones
    assert report["probe"][1] > 1 / 6
    with pytest.raises(ValueError, match="fewer than k=5"):
        claims.few_shot(model, pool, test, TINY.names, shots=(5,))


def test_counting(model):
    report = claims.counting(model, n=60)
    assert set(report) == {"zero-shot", "probe", "chance", "error", "confusion"}
    assert report["chance"] == pytest.approx(1 / 6)
    confusion = torch.tensor(report["confusion"])
    torch.testing.assert_close(confusion.sum(1), torch.ones(6))
    assert confusion.diagonal().mean().item() == pytest.approx(report["zero-shot"])


def test_relations(model):
    report = claims.relations(model, n=40)
    assert set(report) == {"swapped", "replaced"} and all(
        0 <= value <= 1 for value in report.values()
    )


def test_polysemy(model):
    report = claims.polysemy(model, per_concept=2)
    bare = [row["bare"] for word, row in report.items() if word != "mean"]
    # One word for two things leaves nothing but a guess.
    assert len(bare) >= 5 and all(
        value == pytest.approx(1 / 2, abs=0.17) for value in bare
    )
    assert report["mean"]["bare"] == pytest.approx(sum(bare) / len(bare))


def test_reports(model):
    assert set(recipe.zero_shot_report(model, n=20, style="twemoji")) == {
        "top1_twemoji"
    }
    recall = recipe.retrieval_report(model, n=20)
    assert set(recall) == {
        f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)
    }
    assert set(recipe.patch_report(model, n=4, size=32)) == {
        "patch_miou",
        "patch_miou_one_label",
    }


def test_patch_report_of_an_oracle_is_perfect(model, monkeypatch):
    classes = len(class_names())
    settings = SceneConfig(size=32, objects=(1, 3), tint=0.0, cooccurrence=0.0)
    masks = EmojiScenes(settings).batch("segment", 6, "test", 0).mask
    one_hot = torch.nn.functional.one_hot(masks, classes).permute(0, 3, 1, 2).float()
    eye = torch.eye(classes)
    monkeypatch.setattr(
        recipe, "classifier", lambda model, class_list: eye[:, : len(class_list)]
    )
    monkeypatch.setattr(recipe, "embed_texts", lambda model, texts: eye[-len(texts) :])
    monkeypatch.setattr(
        model, "encode_patches", lambda pixels, normalize, mode: one_hot
    )
    monkeypatch.setattr(
        model, "encode_image", lambda pixels, normalize: one_hot.mean((2, 3))
    )
    report = recipe.patch_report(model, n=6, size=32)
    assert report["patch_miou"] == 1.0
    assert report["patch_miou_one_label"] < 0.6


# --- Trainings ------------------------------------------------------------------------


def test_contrast_or_predict_runs():
    runs = claims.contrast_or_predict(TINY, seed=0)
    assert set(runs) == {
        "contrast, transformer",
        "contrast, bag of words",
        "predict the words",
        "contrast, shuffled captions",
    }
    for history in runs.values():
        steps, values = history.column("top1")
        assert steps[-1] == 3 and all(0 <= value <= 1 for value in values)
    known = claims.contrast_or_predict(
        TINY, 0, control=False, contrast=runs["contrast, transformer"]
    )
    assert (
        known["contrast, transformer"] is runs["contrast, transformer"]
        and len(known) == 3
    )
    assert known["predict the words"].column("top1") == runs[
        "predict the words"
    ].column("top1")


def test_combinations_runs():
    report = claims.combinations(TINY, seed=0, classes=4)
    assert set(report) == {"transformer", "lookup table", "supervised"}
    assert all(set(row) == {"seen", "unseen"} for row in report.values())


def test_style_shift_runs():
    report = claims.style_shift(TINY, seed=0)
    assert set(report) == {
        "supervised",
        "zero-shot, two styles",
        "zero-shot, one style",
        "probe, two styles",
    }
    assert all(
        0 <= value <= 1 for pairs in report.values() for pair in pairs for value in pair
    )


def test_data_efficiency_runs():
    report = claims.data_efficiency(TINY, seed=0, pairs=(128, None))
    assert report["pairs"] == [128, 3 * 128]
    assert len(report["CLIP"]) == len(report["supervised"]) == 2


def test_shuffled_captions_are_the_batchs_own_on_other_images(monkeypatch):
    seen: list[Batch] = []

    def watch(model, batch):
        seen.append(batch)
        return recipe.contrastive_loss(model, batch)

    monkeypatch.setattr(claims, "contrastive_loss", watch)
    settings = TINY.pretraining()
    claims.train_clip(settings, 0, shuffled=True)
    right = recipe.scene_pairs(settings, 0)(0)
    assert torch.equal(seen[0].image, right.image) and sorted(
        seen[0].caption
    ) == sorted(right.caption)
    same = sum(a == b for a, b in zip(seen[0].caption, right.caption, strict=True))
    assert same < 0.2 * len(right)


def test_seconds_of_training_beat_chance_and_shuffled_captions_do_not():
    lab = claims.Lab(
        image_size=32,
        classes=8,
        steps=60,
        evaluations=1,
        test_images=160,
        width=64,
        lr=3e-3,
    )
    test = lab.test()

    def top1(model: CLIP) -> dict[str, float]:
        return {
            "top1": recipe.accuracy(
                claims.class_scores(model, lab.names, test.image), test.label
            )
        }

    settings = replace(lab.pretraining(), batch_size=64)
    learnt = claims.train_clip(settings, 0, evaluate=top1)[1].column("top1")[1][-1]
    shuffled = claims.train_clip(settings, 0, evaluate=top1, shuffled=True)[1].column(
        "top1"
    )[1][-1]
    assert learnt > 0.55 and shuffled < 0.3  # chance is one in eight


# --- Photographs ----------------------------------------------------------------------


def test_a_folder_of_photographs_becomes_the_chapters_study(tmp_path: Path) -> None:
    for part, number in (("train", 8), ("test", 3)):
        for name, colour in (("dog", (200, 0, 0)), ("ice cream", (0, 0, 200))):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (32, 32), colour).save(folder / f"{i}.png")
    run = Parameters(
        "photos", seed=5, device=torch.device("cpu"), out=tmp_path, data=tmp_path
    )
    values = replace(chapter.PROFILES["photos"], shots=(1, 2), test_images=4)
    study = chapter.study(run, values)
    assert study.names == ("dog", "ice cream") and len(study.test) == 4
    assert sorted(study.pool.label.tolist()) == [0, 0, 1, 1]
    batch = study.pairs(3)
    assert len(batch) == study.training.batch_size
    assert torch.equal(chapter.study(run, values).pairs(3).image, batch.image)
    few = chapter.photos_study(values, 5, "cpu", tmp_path, fraction=1 / 4)
    assert few.names == study.names
