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
from minilib.recipes.clip import chapter, lab, recipe
from minilib.recipes.clip import experiments as claims
from minilib.recipes.clip.controls import BagOfWords
from minilib.scenes import (
    TINTS,
    VOCABULARY,
    CaptionConfig,
    EmojiScenes,
    SceneConfig,
    class_names,
    find,
    held_out_tint,
    names,
    noun_phrase,
)
from minilib.tokenizer import get_tokenizer
from minilib.training import TrainConfig

TINY = lab.Lab(
    image_size=32,
    classes=6,
    steps=4,
    evaluations=2,
    test_images=24,
    width=32,
    batch_size=32,
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


def test_accuracy_under_shift_is_read_off_the_line():
    def shifted(accuracy: float) -> float:
        return 1 / (1 + math.exp(1 - 0.5 * claims.logit(accuracy)))

    stages = [(a, shifted(a)) for a in (0.3, 0.5, 0.8, 0.9)]
    assert claims.shifted_at(stages, 0.7) == pytest.approx(shifted(0.7), abs=1e-6)
    with pytest.raises(ValueError, match="at least two points, not 1"):
        claims.shifted_at(stages[:1], 0.7)


def test_robustness_is_compared_at_equal_accuracy():
    points = {
        "zero-shot, two styles": [(0.5, 0.4)],
        "supervised": [(0.4, 0.1), (0.5, 0.2), (0.6, 0.3)],
        "probe, two styles": [(0.45, 0.3), (0.55, 0.3)],
        "zero-shot, one style": [(0.2, 0.1), (0.9, 0.5)],
    }
    found = claims.at_equal_accuracy(points)
    assert found["zero-shot, two styles"] == 0.4
    assert found["supervised"] == pytest.approx(0.19, abs=0.01)
    assert found["probe, two styles"] == pytest.approx(0.3)
    assert found["reach"] == pytest.approx(0.1)  # supervised: 0.6


def test_images_needed_by_hand(monkeypatch):
    class History:
        def __init__(self, top1):
            self.top1 = top1

        def column(self, style):
            assert style == "noto"
            return [1, 2, 4], self.top1

    along = {
        "bag": [0.18, 0.54, 0.7],
        "prediction": [0.1, 0.2, 0.4],
        "bag, shuffled": [0.01, 0.02, 0.01],
    }
    made = {n: lab.Trained(None, None, History(top1)) for n, top1 in along.items()}
    arms = lab.Arms(TINY, 0, made=made)
    monkeypatch.setattr(arms, "top1", lambda name: along[name][-1])
    # half-way between 32 and 64 images, in the logarithm; later; and never
    assert claims.images_needed(arms) == {
        "milestone": pytest.approx(0.36),
        "bag": pytest.approx(5.5),
        "prediction": pytest.approx(6 + 0.16 / 0.2),
        "bag, shuffled": 7,
    }
    assert claims.curves(arms, ("bag",)) == {"seen": [32, 64, 128], "bag": along["bag"]}


def test_shots_are_counted_in_logarithms():
    shots = {
        "shots": [1, 2, 4],
        "probe": [0.2, 0.4, 0.6],
        "zero-shot": [0.4],
        "random names": [0.01],
    }
    assert claims.worth(shots) == {
        "one image": 0,
        "top1": 0.4,
        "zero-shot": pytest.approx(1.0),
        "random names": 0,
    }
    more = claims.worth({**shots, "zero-shot": [0.9]})
    assert more["zero-shot"] == 2  # at least four


def test_a_power_of_the_pairs_is_a_line():
    sizes = {"a": 1, "b": 4, "c": 16, "d": 64}
    top1 = {name: 1 - 0.5 * n**-0.5 for name, n in sizes.items()}
    found = claims.off_the_line(top1, sizes)
    assert found["expected"] == pytest.approx(0.5 / 8)
    assert found["measured"] == pytest.approx(0.5 / 8)
    stopped = claims.off_the_line({**top1, "d": 0.875}, sizes)
    assert stopped == {"expected": found["expected"], "measured": 0.125}


def test_the_late_gain_is_that_of_the_last_quarter():
    assert claims.late_gain([0.0, 0.1, 0.3, 0.4]) == pytest.approx(0.1)
    assert claims.late_gain([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9]) == pytest.approx(
        0.3
    )
    assert claims.late_gain([0.4]) == 0


def test_shares_kept_and_gains_of_a_probe_by_hand():
    top1 = {"words": 0.8, "words, 1/64": 0.2, "labels": 0.9, "labels, 1/64": 0.45}
    assert claims.kept(top1) == {
        "words": 0.25,
        "labels": 0.5,
        "lost": pytest.approx(0.6),
    }
    points = {
        "zero-shot, two styles": [(0.5, 0.3)],
        "probe, two styles": [(0.4, 0.2), (0.8, 0.35)],
    }
    assert claims.gains_of_a_probe(points) == {
        "reference": pytest.approx(0.3),
        "shifted": pytest.approx(0.05),
    }


def test_images_in_common():
    some = Batch(torch.arange(4.0).reshape(4, 1, 1, 1))
    others = Batch(torch.tensor([1.0, 3.0, 9.0]).reshape(3, 1, 1, 1))
    assert claims.in_common(some, others) == 2


def test_a_probe_gets_the_penalty_that_validates_best():
    noise = torch.Generator().manual_seed(0)
    label = torch.arange(40) % 2
    signal = torch.where(label == 1, 1.0, -1.0)[:, None]
    x = torch.cat([signal, torch.randn(40, 6, generator=noise)], dim=1)
    chosen = claims.chosen_C((x[:20], label[:20]), (x[20:], label[20:]))
    assert chosen in claims.DECADES
    score = {
        C: claims.LinearProbe.fit(x[:20], label[:20], C).accuracy(x[20:], label[20:])
        for C in claims.DECADES
    }
    assert score[chosen] == max(score.values())


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


def test_validation_images_are_others_of_every_class():
    label = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    assert claims.first_of_each(label, 2).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert claims.first_of_each(label, 1).tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="class 0 has 4 examples: give more than 4"):
        claims.first_of_each(label, 4)


def test_held_out_phrases_never_occur_in_training(monkeypatch):
    tiny = replace(TINY, classes=4, steps=20)
    held_out = claims.held_out_phrases(tiny)
    assert len(set(held_out)) == 4
    assert claims.held_out_shown(tiny, 0) == 0
    recipe_of = claims.combination_recipe

    def leaking(lab):
        found = recipe_of(lab)
        return replace(found, scenes=replace(found.scenes, combinations="all"))

    monkeypatch.setattr(claims, "combination_recipe", leaking)
    assert claims.held_out_shown(tiny, 0) > 50


# --- Questions put to a model (untrained here: only their form) -----------------------


def test_prompt_ladder(model):
    report = claims.prompt_ladder(model, TINY.test(), TINY.names)
    ensembles = {f"ensemble of {n}" for n in range(2, len(recipe.TEMPLATES) + 1)}
    others = {"bare word", "probabilities", "one template", "ensemble"}
    assert set(report) == {*recipe.TEMPLATES} | ensembles | others
    assert all(0 <= value <= 1 for value in report.values())
    assert report["ensemble"] == report[f"ensemble of {len(recipe.TEMPLATES)}"]
    singles = [report[template] for template in recipe.TEMPLATES]
    assert report["one template"] == pytest.approx(sum(singles) / len(singles))
    gains = claims.template_gains(model, TINY.test(), TINY.names)
    assert gains["templates"].mean().item() == pytest.approx(
        report["one template"] - report["bare word"]
    )
    assert gains["ensemble"].mean().item() == pytest.approx(
        report["ensemble"] - report["one template"]
    )


def test_few_shot(model):
    pool, test = claims.shot_pool(8, 32, TINY.names), TINY.test()
    report = claims.few_shot(model, pool, test, TINY.names, shots=(1, 4), draws=2)
    assert set(report) == {"shots", "zero-shot", "random names", "probe", "C"}
    assert (
        report["shots"] == [1, 4]
        and len(report["probe"]) == len(report["C"]) == 2
        and len(report["zero-shot"]) == 1
    )
    assert report == claims.few_shot(
        model, pool, test, TINY.names, shots=(1, 4), draws=2
    )
    # even an untrained tower tells red things from blue ones
    assert report["probe"][1] > 1 / 6
    with pytest.raises(ValueError, match="has 8 examples: give more than 8"):
        claims.few_shot(model, pool, test, TINY.names, shots=(8,))


def test_counting(model):
    report = claims.counting(model, n=60, fitted=80)
    assert set(report) == {"zero-shot", "probe", "chance", "error", "confusion"}
    assert report["chance"] == pytest.approx(1 / claims.NUMBERS_ASKED)
    confusion = torch.tensor(report["confusion"])
    torch.testing.assert_close(confusion.sum(1), torch.ones(claims.NUMBERS_ASKED))
    assert confusion.diagonal().mean().item() == pytest.approx(report["zero-shot"])


def test_relations(model):
    report = claims.relations(model, n=40)
    assert set(report) == {"contrary", "swapped", "replaced", "chance"}
    assert all(0 <= value <= 1 for value in report.values())
    assert report["chance"] == 0.5


def test_the_contrary_relation_changes_nothing_but_its_word(model, monkeypatch):
    read: list[list[str]] = []

    def embed(model, texts):
        read.append(list(texts))
        return recipe.embed_texts(model, texts)

    monkeypatch.setattr(claims, "embed_texts", embed)
    claims.relations(model, n=30)
    true, contrary, *_ = read
    assert len(true) == len(contrary) >= 25
    for one, other in zip(true, contrary, strict=True):
        said = [word for word in claims.OPPOSITE if f" {word} " in one]
        assert len(said) == 1
        assert other == one.replace(said[0], claims.OPPOSITE[said[0]])
    assert all(claims.OPPOSITE[other] == one for one, other in claims.OPPOSITE.items())


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


@pytest.fixture
def drawn(monkeypatch) -> list[dict]:
    """Every list of scenes that is drawn, in order."""
    calls: list[dict] = []
    layout = EmojiScenes.layout

    def watched(self, task, n, split="train", seed=0, start=0):
        calls.append(dict(config=self.config, split=split, seed=seed, start=start, n=n))
        return layout(self, task, n, split, seed, start)

    monkeypatch.setattr(EmojiScenes, "layout", watched)
    recipe.single_objects.cache_clear()
    claims.shot_pool.cache_clear()
    return calls


@pytest.fixture
def fitted(monkeypatch) -> list[dict]:
    """Every training: its configuration, its first weights and the batches it asks
    for."""
    calls: list[dict] = []
    fit = lab.fit

    def watched(model, loss, batches, config, **more):
        first = {k: v.detach().clone() for k, v in model.state_dict().items()}
        shown: list[Batch] = []

        def kept(step):
            shown.append(batches(step))
            return shown[-1]

        calls.append(dict(config=config, weights=first, shown=shown))
        return fit(model, loss, kept, config, **more)

    monkeypatch.setattr(lab, "fit", watched)
    return calls


def images(call: dict) -> list[bytes]:
    return [row.numpy().tobytes() for batch in call["shown"] for row in batch.image]


def captions(call: dict) -> list[str]:
    return [caption for batch in call["shown"] for caption in batch.caption]


def test_every_arm_trains_once_and_is_judged():
    arms = lab.Arms(TINY, seed=0, styles=("noto", "twemoji"))
    for name, arm in lab.ARMS.items():
        assert 0 <= arms.top1(name) <= 1
        assert arms[name] is arms[name]
        if arm.watched:
            for style in ("noto", "twemoji"):
                steps, values = arms[name].history.column(style)
                assert steps[-1] == 4
                # the last number of the curve is the one that is reported
                assert values[-1] == pytest.approx(arms.top1(name, style))
    with pytest.raises(TypeError, match="'labels' has no text tower"):
        arms.clip("labels")
    found = claims.reached(arms, ("words", "words, 1/64"))
    assert set(found) == {"words", "words, 1/64", "late gain, words"}


def test_arms_share_budget_data_and_first_weights(fitted, drawn):
    """What is compared differs in what the ledger names, and in nothing else."""
    arms = lab.Arms(TINY, seed=3)
    calls = {}
    for name in lab.ARMS:
        _ = arms[name]
        calls[name] = fitted[-1]
    reference = calls["words"]
    for name, call in calls.items():
        arm = lab.ARMS[name]
        steps = int(4 * arm.length)
        expected = replace(
            reference["config"],
            lr=arm.lr or TINY.lr,
            steps=steps,
            warmup=max(1, steps // 10),
        )
        assert call["config"] == expected and call["config"].seed == 3, name
        assert len(images(call)) == steps * 32
        like = calls["bag" if arm.kind is BagOfWords else "words"]["weights"]
        first = call["weights"]["visual.class_embedding"]
        assert torch.equal(first, like["visual.class_embedding"]), name
        if arm.share == 1 and arm.styles == ("noto",):
            both = min(len(images(call)), 4 * 32)
            assert images(call)[:both] == images(reference)[:both], name
            assert len(set(images(call))) == len(images(call))  # none comes twice
            pairs = list(zip(captions(call), captions(reference), strict=False))
            own = sum(said == right for said, right in pairs[:both])
            assert (own == both) != arm.shuffled, name
            assert not arm.shuffled or own < 0.3 * both  # equal ones may come back
    assert len(fitted) == len(lab.ARMS)
    few = set(images(calls["words, 1/64"]))
    assert len(few) == 32 and few < set(images(reference))
    # labels see the few images that captions see: not one more
    assert images(calls["labels, 1/64"]) == images(calls["words, 1/64"])
    assert {call["seed"] for call in drawn} == {3}
    assert {call["split"] for call in drawn} == {"train", "test"}


def test_another_seed_gives_other_weights_and_other_data(fitted):
    for seed in (0, 1):
        _ = lab.Arms(TINY, seed)["labels"]
    one, other = fitted
    assert not set(images(one)) & set(images(other))
    for name in ("head.weight", "visual.class_embedding"):
        assert not torch.equal(one["weights"][name], other["weights"][name])


def test_arms_are_judged_on_scenes_of_the_test_split(drawn):
    arms = lab.Arms(TINY, seed=5)
    _ = arms["labels, 1/64"]  # is not watched along the way
    drawn.clear()
    for style in ("noto", "twemoji"):
        arms.top1("labels, 1/64", style)
    assert [(c["split"], c["seed"], c["config"].styles) for c in drawn] == [
        ("test", 5, ("noto",)),
        ("test", 5, ("twemoji",)),
    ]


def test_labels_are_those_of_the_images():
    scores = torch.eye(6)[[TINY.names.index(n) for n in TINY.names]]
    batch = recipe.scene_pairs(TINY.pretraining(), 0)(0)
    shown = [phrases[0].concept for phrases in batch.phrases]
    right = torch.tensor([TINY.names.index(names()[concept]) for concept in shown])
    loss = lab.label_loss(TINY.names)
    assert loss(100 * scores[right], batch) < 1e-3
    assert loss(100 * scores[right.roll(1)], batch) > 10


def test_a_word_counts_by_how_much_likelier_it_is_than_usual():
    reader = lab.WordPredictor(recipe.build(TINY.pretraining().model, 0))
    classes = ["dog", "ice cream"]
    words = reader.words(classes)
    assert words.sum(1).tolist() == [1, 2]
    mean, spread = torch.zeros(reader.size), torch.full((reader.size,), 0.5)
    mean[words[0] == 1] = 5.0  # "dog" is in every second caption
    logits = mean[None] + 2 * words[1] + words[0]
    assert (logits @ words.T / words.sum(1)).argmax() == 0
    scores = reader.scores(logits, (mean, spread), classes)
    torch.testing.assert_close(scores, torch.tensor([[2.0, 4.0]]))


def test_the_predictor_is_told_which_words_the_caption_has():
    reader = lab.WordPredictor(recipe.build(TINY.pretraining().model, 0))
    batch = recipe.scene_pairs(TINY.pretraining(), 0)(0)
    words = reader.words(batch.caption)
    least = words.sum(1).log().mean()  # the entropy of the target
    assert reader.loss(40 * words, batch) == pytest.approx(least.item(), abs=1e-3)
    assert reader.loss(40 * words.roll(1, 0), batch) > least + 10


def test_combinations_hold_out_a_colour_of_every_object(fitted):
    tiny = replace(TINY, classes=4)
    report = claims.combinations(tiny, seed=0)
    assert set(report) == {"transformer", "lookup table", "two heads"}
    assert all(set(row) == {"seen", "unseen"} for row in report.values())
    held_out = {
        noun_phrase(find(name).index, int(held_out_tint(find(name).index)))
        for name in tiny.names
    }
    assert len(held_out) == 4 and len(TINTS) == 6
    assert len(fitted) == 3  # all of them see the same pairs
    for call in fitted:
        assert captions(call) == captions(fitted[0])
        assert not held_out & set(captions(call))
        assert len(set(captions(call))) == 4 * 5  # and everything else is seen
        assert call["config"] == fitted[0]["config"]


def test_combinations_ask_for_what_was_held_out(monkeypatch):
    tiny = replace(TINY, classes=4)
    asked: list[list[str]] = []
    batch = EmojiScenes.batch

    def watched(self, task, n, split="train", seed=0, start=0):
        found = batch(self, task, n, split, seed, start)
        if split == "test":
            asked.append(found.caption)
        return found

    monkeypatch.setattr(EmojiScenes, "batch", watched)
    claims.combinations(tiny, seed=0)
    seen, unseen = map(set, asked)
    assert not seen & unseen and len(unseen) == 4


def test_style_shift_runs():
    arms = lab.Arms(TINY, seed=0, styles=("noto", "twemoji"))
    report = claims.style_shift(arms, shots=(1, 2))
    assert list(report) == [
        "zero-shot, two styles",
        "supervised",
        "probe, two styles",
        "zero-shot, one style",
    ]
    assert [len(points) for points in report.values()] == [1, 2, 2, 2]
    assert all(
        0 <= value <= 1 for pairs in report.values() for pair in pairs for value in pair
    )
    assert set(claims.at_equal_accuracy(report)) == {*report, "reach"}


def test_a_share_of_the_pairs_is_whole_batches():
    tiny = replace(TINY, steps=8)
    assert tiny.distinct_pairs(1 / 4) == 64 and tiny.distinct_pairs(1) is None
    assert tiny.distinct_pairs(1 / 64) == 32  # never less than a batch


@pytest.mark.parametrize("judged", ["counting", "few_shot", "style_shift"])
def test_probes_never_see_a_scene_that_they_are_judged_on(
    judged, model, drawn, monkeypatch
):
    shown: dict[str, set[bytes]] = {"fit": set(), "accuracy": set()}
    fit, accuracy = claims.LinearProbe.fit, claims.LinearProbe.accuracy

    def note(what: str, x: torch.Tensor) -> None:
        shown[what] |= {row.numpy().tobytes() for row in x}

    def watched_fit(x, *more, **named):
        note("fit", x)
        return fit(x, *more, **named)

    def watched_accuracy(self, x, y):
        note("accuracy", x)
        return accuracy(self, x, y)

    monkeypatch.setattr(claims.LinearProbe, "fit", watched_fit)
    monkeypatch.setattr(claims.LinearProbe, "accuracy", watched_accuracy)
    # features that say which image they are of
    monkeypatch.setattr(
        claims, "probe_features", lambda model, image: image.flatten(1)[:, ::97]
    )
    if judged == "counting":
        claims.counting(model, n=20, fitted=40)
    elif judged == "few_shot":
        pool, test = claims.shot_pool(4, 32, TINY.names, 0), TINY.test()
        claims.few_shot(model, pool, test, TINY.names, shots=(2,), draws=1)
    else:
        arms = lab.Arms(TINY, 0, styles=("noto", "twemoji"))
        claims.style_shift(arms, shots=(2,))
    assert shown["fit"] and shown["accuracy"]
    assert not shown["fit"] & shown["accuracy"]
    expected = {"val", "test"} | ({"train"} if judged == "style_shift" else set())
    assert {call["split"] for call in drawn} == expected


def test_the_scenes_of_a_count_are_others_for_every_number_and_split(model):
    found = {
        split: claims._counted(model, 12, split, 0)[0] for split in ("val", "test")
    }
    rows = [row.numpy().tobytes() for images in found.values() for row in images]
    assert len(set(rows)) == 24
    image, concept, number = claims._counted(model, 12, "test", 0)
    assert number.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len(concept) == len(image) == 12


def test_shuffled_captions_are_the_batchs_own_on_other_images(fitted):
    settings = TINY.pretraining()
    lab.train_clip(settings, 0, shuffled=True)
    for step, batch in enumerate(fitted[0]["shown"]):
        right = recipe.scene_pairs(settings, 0)(step)
        assert torch.equal(batch.image, right.image)
        assert sorted(batch.caption) == sorted(right.caption)
        same = sum(a == b for a, b in zip(batch.caption, right.caption, strict=True))
        assert same < 0.2 * len(right)  # captions that occur twice may come back


def test_a_deranged_list_has_nothing_at_its_place():
    for size in (2, 3, 128):
        given = [str(i) for i in range(size)]
        found = lab.deranged(given, "seed")
        assert sorted(found) == sorted(given)
        assert not any(a == b for a, b in zip(found, given, strict=True))
    assert lab.deranged(given, "seed") == found != lab.deranged(given, "other")


def test_seconds_of_training_beat_chance_and_shuffled_captions_do_not():
    small = lab.Lab(
        image_size=32,
        classes=8,
        steps=60,
        evaluations=1,
        test_images=160,
        width=64,
        lr=3e-3,
    )
    test = small.test()

    def top1(model: CLIP) -> dict[str, float]:
        return {
            "top1": recipe.accuracy(
                lab.class_scores(model, small.names, test.image), test.label
            )
        }

    settings = replace(small.pretraining(), batch_size=64)
    learnt = lab.train_clip(settings, 0, evaluate=top1)[1].column("top1")[1][-1]
    shuffled = lab.train_clip(settings, 0, evaluate=top1, shuffled=True)[1].column(
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
    assert study.pool.label.tolist() == [0] * 4 + [1] * 4  # to fit, and to validate
    batch = study.pairs(3)
    assert len(batch) == study.training.batch_size
    assert torch.equal(chapter.study(run, values).pairs(3).image, batch.image)
    few = chapter.photos_study(values, 5, "cpu", tmp_path, fraction=1 / 4)
    assert few.names == study.names


def test_arms_on_photographs_share_images_and_budget(tmp_path, fitted, monkeypatch):
    noise = torch.Generator().manual_seed(0)
    for part, number in (("train", 64), ("test", 3)):
        for name in ("dog", "ice cream"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=noise).byte()
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    main = replace(chapter.photo_pretraining(steps=3), batch_size=8)
    values = replace(chapter.PROFILES["photos"], main=main, shots=(1, 2), test_images=6)
    own = replace(chapter.CHAPTER, profiles={"photos": values})
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "cache"))
    run = own.open(
        profile="photos", seed=3, device="cpu", out=tmp_path, data=tmp_path / "data"
    )
    asked: dict[float, chapter.Study] = {}
    made = chapter.photos_study

    def watched(values, seed, device, data, fraction=1.0):
        asked[fraction] = made(values, seed, device, data, fraction)
        return asked[fraction]

    monkeypatch.setattr(chapter, "photos_study", watched)
    _ = run.train("CLIP")
    found = chapter.photo_arms(run, top1=0.5)
    assert set(found) == {
        "words",
        "labels",
        "words, 1/64",
        "late gain, words",
        "late gain, labels",
    }
    assert found["words"] == 0.5
    assert set(asked) == {1.0, 1 / 64}
    whole, few = asked[1.0], asked[1 / 64]
    (labels,) = fitted
    assert labels["config"] == whole.training.training(3)
    assert few.training.training(3) == whole.training.training(3)
    for step, batch in enumerate(labels["shown"]):
        assert torch.equal(batch.image, whole.pairs(step).image)
