"""What chapter 2's arms are trained on and with, what its controls may see, and what it
records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from minilib import claims
from minilib.claims.chapter import Run
from minilib.recipes.lseg import chapter, controls, experiments, recipe, towers
from minilib.recipes.shared.randomness import derangement
from minilib.scenes import EmojiScenes, find
from minilib.training import loop

TINY = recipe.Lab(
    image_size=32, classes=24, features=8, batch_size=4, steps=3, tower_steps=2,
    evaluations=1, test_images=12, lr=1e-3,
)  # fmt: skip
VALUES = chapter.Values(lab=TINY, folds=4, fewer=(4,))


@dataclass
class Watched:
    """What was drawn and trained, in order."""

    scenes: list[dict] = field(default_factory=list)
    fits: list[dict] = field(default_factory=list)

    def drawn(self, split: str) -> list[dict]:
        return [scene for scene in self.scenes if scene["split"] == split]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Note every call of ``EmojiScenes.layout`` and of the training loop."""
    seen, layout, fit = Watched(), EmojiScenes.layout, loop.fit

    def noting_layout(self, task, n, split="train", seed=0, start=0):
        classes = self.config.classes
        seen.scenes.append(
            {"task": task, "n": n, "split": split, "seed": seed, "start": start,
             "classes": classes}
        )  # fmt: skip
        return layout(self, task, n, split, seed, start)

    def noting_fit(model, loss, batches, config, **given):
        start = len(seen.scenes)
        history = fit(model, loss, batches, config, **given)
        drawn = []  # each once: the loop looks at a batch before it trains
        for scene in seen.scenes[start:]:
            if scene["split"] == "train" and scene not in drawn:
                drawn.append(scene)
        seen.fits.append({"config": config, "model": model, "drawn": drawn})
        return history

    monkeypatch.setattr(EmojiScenes, "layout", noting_layout)
    monkeypatch.setattr(loop, "fit", noting_fit)
    monkeypatch.setattr(towers, "fit", noting_fit)
    towers.label_tower.cache_clear()
    yield seen
    towers.label_tower.cache_clear()


def opened(out: Path, values: chapter.Values = VALUES, seed: int = 1) -> Run:
    """A run of the chapter at other values."""
    tiny = replace(chapter.CHAPTER, profiles=dict.fromkeys(chapter.PROFILES, values))
    return tiny.open(profile="quick", seed=seed, device="cpu", out=out)


def test_arms_get_the_same_scenes_and_the_same_budget(
    tmp_path: Path, watched: Watched
) -> None:
    run = opened(tmp_path)
    model, _ = run.train("LSeg")
    arms = chapter.Trainings(run, model)
    for name in chapter.ARMS:
        arms(name)
    tower, *fits = watched.fits
    assert len(fits) == len(chapter.ARMS), "one training each, the main one included"
    for fit in fits:
        assert fit["config"] == TINY.training(run.seed)
        assert fit["drawn"] == fits[0]["drawn"] and len(fit["drawn"]) == TINY.steps
        assert fit["model"].lseg.config.features == TINY.features
    starts = [scene["start"] for scene in fits[0]["drawn"]]
    assert starts == [0, TINY.batch_size, 2 * TINY.batch_size], "no scene comes twice"
    assert tower["config"].steps == TINY.tower_steps


def test_training_and_judging_never_share_a_scene(
    tmp_path: Path, watched: Watched
) -> None:
    run = opened(tmp_path)
    model, _ = run.train("LSeg")
    arms = chapter.Trainings(run, model)
    arms("random", place=1), arms("words", seen=4)
    tests = watched.drawn("test")
    assert {scene["seed"] for scene in watched.scenes} == {run.seed}
    assert {scene["split"] for scene in watched.scenes} == {"train", "test"}
    for fit in watched.fits:
        assert {scene["split"] for scene in fit["drawn"]} == {"train"}
    # judging draws nothing any more: its scenes are those of the study
    arms.mean(recipe.mean_ious, "words", 1)
    assert tests == watched.drawn("test")
    # what is judged are the scenes of the split "test", image by image
    for arm in (arms("words"), arms("random", place=1), arms("words", seen=4)):
        for kind in ("seen", "unseen"):
            words = tuple(
                arm.study.labels.names[i] for i in arm.study.labels.counted(kind)
            )
            scenes = recipe.scenes_of(TINY, words)
            wanted = scenes.batch("segment", TINY.test_images, "test", run.seed)
            torch.testing.assert_close(arm.study.test[kind].image, wanted.image)


def test_unseen_words_are_met_by_no_training_and_by_no_image_tower(
    tmp_path: Path, watched: Watched
) -> None:
    run = opened(tmp_path)
    model, _ = run.train("LSeg")
    arms = chapter.Trainings(run, model)
    held_out = []
    for place in range(4):
        study = arms("words", place).study
        unseen = set(experiments.unseen_words(study))
        held_out.append(unseen)
        classes = {
            name for scene in watched.fits[-1]["drawn"] for name in scene["classes"]
        }
        assert classes == set(experiments.seen_words(study)) and not classes & unseen
        assert {find(word).fold for word in unseen} == {chapter.fold(run.seed, place)}
    assert set.union(*held_out) == set(TINY.words)
    assert sum(map(len, held_out)) == len(TINY.words)
    (met,) = {scene["classes"] for scene in watched.fits[0]["drawn"]}
    assert not set(met) & set(TINY.words) and len(met) == 240 - len(TINY.words)


def test_another_seed_gives_other_weights_and_other_scenes(
    tmp_path: Path, watched: Watched
) -> None:
    models = []
    for seed in (1, 5):  # the same fold
        run = opened(tmp_path / str(seed), seed=seed)
        models.append(chapter.CHAPTER.training_on(run, run.study).model)
        assert {scene["seed"] for scene in watched.scenes} == {seed}
        watched.scenes.clear()
    one, other = (dict(model.lseg.named_parameters()) for model in models)
    for name in ("head.weight", "decoder.fuse1.out.weight", "backbone.conv1.weight"):
        if name in one:
            assert not torch.equal(one[name], other[name]), name
    assert not torch.equal(
        recipe.scenes_study(TINY, 1).test["unseen"].image,
        recipe.scenes_study(TINY, 5).test["unseen"].image,
    )


def test_arms_are_trained_once_each_in_folders_of_their_own(tmp_path: Path) -> None:
    run = opened(tmp_path)
    model, _ = run.train("LSeg")
    arms = chapter.Trainings(run, model)
    assert arms("words").model is model and arms("words").study is run.study
    few = arms("words", seen=4)
    assert few is arms("words", seen=4) and len(few.study.labels.seen) == 4
    assert few.study.labels.unseen == run.study.labels.unseen
    coupled = arms("bottleneck 4").model.lseg.config
    assert (coupled.block, coupled.block_depth) == ("bottleneck", 4)
    arms("random", place=2)
    folders = {str(path.parent.relative_to(run.out)) for path in run.out.rglob("*.pt")}
    assert folders == {
        "main", "words-4-fold1", "bottleneck-4-fold1", "random-fold3"
    }  # fmt: skip


def test_figures_are_averaged_over_folds(tmp_path: Path) -> None:
    run = opened(tmp_path)
    model, _ = run.train("LSeg")
    arms = chapter.Trainings(run, model)
    each = [
        recipe.mean_ious(arms("words", place).model, arms("words", place).study)
        for place in range(2)
    ]
    mean = arms.mean(recipe.mean_ious, "words", 2)
    assert each[0] != each[1]
    for kind in ("seen", "unseen"):
        assert mean[kind] == pytest.approx((each[0][kind] + each[1][kind]) / 2)


def test_wrong_wordings_are_the_phrases_of_other_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, clip = recipe.scenes_study(TINY, 0), recipe.text_tower()
    model, handed = recipe.build(TINY, study).eval(), []
    keep = experiments.Segmenter

    def noting(lseg, vectors):
        handed.append(vectors)
        return keep(lseg, vectors)

    monkeypatch.setattr(experiments, "Segmenter", noting)
    phrases = [find(word).plural for word in experiments.seen_words(study)]
    experiments.reworded(model, study, clip, phrases)
    experiments.reworded(model, study, clip, phrases, deal=3)
    own, dealt = (vectors[:-1] for vectors in handed)
    assert sorted(map(tuple, own.tolist())) == sorted(map(tuple, dealt.tolist()))
    assert (own != dealt).any(dim=1).all(), "none at its own place"
    torch.testing.assert_close(handed[0][-1], handed[1][-1])


def test_groups_are_asked_by_the_names_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, clip = recipe.scenes_study(TINY, 0), recipe.text_tower()
    model, handed = recipe.build(TINY, study).eval(), []
    keep = experiments.Segmenter
    monkeypatch.setattr(
        experiments, "Segmenter",
        lambda lseg, vectors: handed.append(vectors) or keep(lseg, vectors),
    )  # fmt: skip
    for by in ("name", "wrong name"):
        experiments.hypernyms(model, TINY, clip, 5, by, n=4)
    own, dealt = (vectors[:-1] for vectors in handed)
    assert sorted(map(tuple, own.tolist())) == sorted(map(tuple, dealt.tolist()))
    assert (own != dealt).any(dim=1).all(), "no group keeps its own name"


def test_a_derangement_leaves_nothing_at_its_place() -> None:
    for n in (2, 3, 10):
        for seed in range(20):
            order = derangement(n, torch.Generator().manual_seed(seed))
            assert sorted(order.tolist()) == list(range(n))
            assert (order != torch.arange(n)).all()
    with pytest.raises(ValueError, match="n=1"):
        derangement(1, torch.Generator())


# --- controls -------------------------------------------------------------------------


def test_mask_free_scores_each_word_by_its_own_text() -> None:
    study, clip = recipe.scenes_study(TINY, 0), recipe.text_tower()
    free = controls.MaskFree(clip, study, side=48, bias=0.1).eval()
    image, other = study.test["seen"].image[:2], study.labels.other
    labels = [3, 1, other]
    with torch.no_grad():
        scores = free(image, labels)
        pairs = free(image, torch.tensor([[other, 3], [other, 1]]))
        unbiased = controls.MaskFree(clip, study, side=48).eval()(image, labels)
    assert scores.shape == (2, 3, 32, 32)
    torch.testing.assert_close(pairs[0, 1], scores[0, 0])
    torch.testing.assert_close(pairs[1, 1], scores[1, 1])
    torch.testing.assert_close(pairs[:, 0], scores[:, 2])
    torch.testing.assert_close(scores[:, :2], unbiased[:, :2])
    torch.testing.assert_close(scores[:, 2], unbiased[:, 2] + 0.1)
    found = recipe.protocol(free, study)
    assert 0 <= found["mIoU"] <= 1


def test_mask_free_is_fitted_to_its_best() -> None:
    study, clip = recipe.scenes_study(TINY, 0), recipe.text_tower()
    best = controls.fit_mask_free(clip, replace(study, test={}), batches=3)
    training = [study.batches(step) for step in range(3)]
    shown = replace(
        study,
        test={
            "seen": replace(
                training[0],
                image=torch.cat([batch.image for batch in training]),
                mask=torch.cat([batch.mask for batch in training]),
                caption=None,
                present=None,
            )
        },
    )
    with torch.no_grad():
        reached = recipe.mean_iou(best, shown, "seen")
        for side, bias in ((32, 0.0), (64, 0.0), (96, -0.2)):
            rival = controls.MaskFree(clip, study, side, bias).eval()
            assert reached >= recipe.mean_iou(rival, shown, "seen") - 1e-6


def test_the_blind_answer_is_the_best_single_word() -> None:
    study = recipe.scenes_study(TINY, 0)
    found = controls.blind(study)

    class Says(torch.nn.Module):
        def __init__(self, word: int) -> None:
            super().__init__()
            self.word = word

        def forward(self, image, labels):
            wins = torch.as_tensor(labels) == self.word
            return wins.float()[None, :, None, None].expand(len(image), -1, 32, 32)

    for kind in ("seen", "unseen"):
        best = max(
            recipe.mean_iou(Says(word), study, kind)
            for word in study.labels.asked(kind)
        )
        assert found[kind] == pytest.approx(best)


def test_asked_together_every_word_competes() -> None:
    study = recipe.scenes_study(TINY, 0)
    batch = study.test["both"]
    values = set(batch.mask.unique().tolist())
    assert values & set(study.labels.seen) and values & set(study.labels.unseen)

    class Oracle(torch.nn.Module):
        """Knows every pixel, but never says a word of ``blind``."""

        def __init__(self, blind: tuple[int, ...] = ()) -> None:
            super().__init__()
            self.blind = blind

        def forward(self, image, labels):
            labels = torch.as_tensor(labels)[None, :, None, None]
            score = -(image[:, :1] * 50 - labels).abs()
            return score - 99 * torch.isin(labels, torch.tensor(self.blind))

    image = (batch.mask / 50)[:, None].expand(-1, 3, -1, -1)
    shown = replace(study, test={"both": replace(batch, image=image)})
    perfect = recipe.generalised(Oracle(), shown)
    assert perfect == pytest.approx({"seen": 1, "unseen": 1, "harmonic": 1})
    half = recipe.generalised(Oracle(study.labels.unseen), shown)
    assert half["unseen"] == 0 and half["harmonic"] == 0 and half["seen"] > 0.3


# --- over-training --------------------------------------------------------------------


def test_over_training_sees_few_images_and_is_judged_on_others(
    watched: Watched,
) -> None:
    long = experiments.LongTraining(images=8, batch_size=4, steps=6, evaluations=3)
    found = experiments.over_training(TINY, long, seed=2, fold=1)
    assert found["steps"] == [2, 4, 6]
    assert all(len(found[key]) == 3 for key in ("validation", "unseen", "seen"))
    fit = watched.fits[-1]
    assert [scene["start"] for scene in fit["drawn"]] == [0, 4], "8 images in all"
    assert fit["config"].final_lr == 1.0 and fit["config"].steps == 6
    rates = [loop.learning_rate(step, fit["config"]) for step in (2, 5)]
    assert rates[0] == rates[1], "the rate does not fall"
    assert [scene["split"] for scene in watched.scenes].count("val") == 1
    (choosing,) = (s for s in watched.scenes if s["split"] == "val")
    study = recipe.scenes_study(TINY, 2, fold=1)
    assert choosing["classes"] == tuple(experiments.unseen_words(study))


def test_the_best_checkpoint_is_chosen_on_other_scenes() -> None:
    curve = {
        "steps": [1, 2, 3],
        "validation": [0.1, 0.3, 0.2],
        "unseen": [0.5, 0.2, 0.1],
        "seen": [0.0, 0.1, 0.2],
    }
    assert experiments.best_and_last(curve) == (0.2, 0.1)


# --- ledger and records ---------------------------------------------------------------


def test_arms_of_the_ledger_are_trained_by_the_chapter() -> None:
    known = set(chapter.ARMS) | {"few words"}
    for claim in claims.load("lseg").values():
        for test in claim.tests.values():
            if not isinstance(test, str):
                assert set(test.arms) <= known, claim.id


RECORDED = {
    "C1": ("vectors/words/unseen", "vectors/random/unseen"),
    "masks": ("towers/masks, tower of captions/unseen", "towers/no mask/unseen"),
    "C2": ("protocol/words/mIoU", "protocol/everything/mIoU"),
    "generalised": ("together/words/harmonic", "together/random/harmonic"),
    "C4": ("seen/words/seen", "seen/learned/seen"),
    "centred": ("seen/centred/seen", "seen/words/seen"),
    "C5": ("blocks/bottleneck 2", "blocks/words"),
    "depth": ("blocks/bottleneck 4", "blocks/depthwise 4"),
    "C7": ("plurals/plurals", "plurals/wrong plurals"),
    "hypernyms": ("groups/name", "groups/wrong name"),
}
"""Which named results each claim's treatment and control are."""
