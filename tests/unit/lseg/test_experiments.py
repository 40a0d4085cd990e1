"""What chapter 2's arms are trained on and with, what its controls may see, and what it
records."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from witness import Drawn, Trained

from minilib import claims
from minilib.claims.chapter import Run
from minilib.recipes.lseg import chapter, controls, experiments, recipe, towers
from minilib.recipes.shared.randomness import derangement
from minilib.scenes import find
from minilib.training import loop

TINY = recipe.Lab(
    image_size=32, classes=24, features=8, batch_size=4, steps=3, tower_steps=2,
    evaluations=1, test_images=12, lr=1e-3,
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[3]
CELLS = [
    "".join(cell["source"])
    for cell in json.loads((ROOT / "notebooks" / "02_lseg.ipynb").read_text())["cells"]
    if cell["cell_type"] == "code"
]
VALUES = chapter.Values(lab=TINY, folds=4, fewer=(4,))


def opened(out: Path, values: chapter.Values = VALUES, seed: int = 1) -> Run:
    """A run of the chapter at other values."""
    tiny = replace(chapter.CHAPTER, profiles=dict.fromkeys(chapter.PROFILES, values))
    return tiny.open(profile="quick", seed=seed, device="cpu", out=out)


def test_every_arm_gets_the_budget_of_the_profile(
    tmp_path: Path, trainings: list[Trained]
) -> None:
    run = opened(tmp_path)
    towers.label_tower.cache_clear()
    model, _ = run.train("LSeg")
    arms = chapter.Trainings(run, model)
    arms("random"), arms("bottleneck 2"), arms("words", seen=4)
    tower, *others = trainings
    assert tower.config.steps == TINY.tower_steps and len(others) == 4
    assert all(training.config == TINY.training(run.seed) for training in others)
    for training in others:
        assert list(training.batches) == [(0,), (1,), (2,)]
        assert len(training.images) == 3 * TINY.batch_size, "no scene comes twice"


def test_judged_scenes_are_those_of_the_split_test() -> None:
    for seen in (None, 4):
        study = recipe.scenes_study(TINY, 1, fold=2, seen_classes=seen)
        for kind in ("seen", "unseen"):
            words = [study.labels.names[i] for i in study.labels.counted(kind)]
            scenes = recipe.scenes_of(TINY, tuple(words))
            wanted = scenes.batch("segment", TINY.test_images, "test", seed=1)
            torch.testing.assert_close(study.test[kind].image, wanted.image)


def test_the_image_tower_meets_no_word_of_the_study(
    drawn_scenes: list[Drawn],
) -> None:
    towers.label_tower.cache_clear()
    tower = recipe.pretrained(TINY, 0)
    met = {name for drawn in drawn_scenes for name in drawn.config.classes}
    assert not met & set(TINY.words) and len(met) == tower.names == 240 - 24
    by_phase = {drawn.phase: drawn.split for drawn in drawn_scenes}
    assert by_phase == {"training": "train", "": "test"}
    assert 0 <= tower.accuracy <= 1
    assert not [name for name in tower.weights if name.startswith("attnpool")]


def test_the_same_seed_gives_the_same_image_tower() -> None:
    towers_of = []
    for state in (1, 2):  # of torch's own generator, which must not matter
        towers.label_tower.cache_clear()
        torch.manual_seed(state)
        towers_of.append(recipe.pretrained(TINY, 3).weights)
    for name, weight in towers_of[0].items():
        assert torch.equal(weight, towers_of[1][name]), name


def test_all_places_are_all_folds(tmp_path: Path) -> None:
    run = opened(tmp_path)
    studies = [
        chapter.scenes_study(VALUES, run.seed, place=place) for place in range(4)
    ]
    held_out = [set(experiments.unseen_words(study)) for study in studies]
    assert set.union(*held_out) == set(TINY.words)
    assert sum(map(len, held_out)) == len(TINY.words)
    assert held_out[0] == set(experiments.unseen_words(run.study))


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
    trainings: list[Trained], drawn_scenes: list[Drawn]
) -> None:
    long = experiments.LongTraining(images=8, batch_size=4, steps=6, evaluations=3)
    found = experiments.over_training(TINY, long, seed=2, fold=1)
    assert found["steps"] == [2, 4, 6]
    assert all(len(found[key]) == 3 for key in ("validation", "unseen", "seen"))
    training = trainings[-1]
    assert len(training.images) == 8 and len(training.batches) == 6
    assert training.config.final_lr == 1.0 and training.config.steps == 6
    rates = [loop.learning_rate(step, training.config) for step in (2, 5)]
    assert rates[0] == rates[1], "the rate does not fall"
    (choosing,) = (drawn for drawn in drawn_scenes if drawn.split == "val")
    study = recipe.scenes_study(TINY, 2, fold=1)
    assert choosing.config.classes == tuple(experiments.unseen_words(study))


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


NAMED = {
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


def named(results: Mapping[str, Any], place: str) -> float:
    """Return a number of a named result, "name/key/key"."""
    name, *keys = place.split("/")
    value = results[f"lseg.{name}"]
    for key in keys:
        value = value[key]
    return value


class Numbers(dict):
    """Another number for every key that it is asked for, each time the same."""

    drawn = itertools.count(1)

    def __missing__(self, key: str) -> float:
        return self.setdefault(key, next(self.drawn) / 1000)


class Stand:
    """Stands for a module: whatever is called in it gives numbers."""

    def __init__(self, **real: Any) -> None:
        vars(self).update(real)

    def __getattr__(self, name: str) -> Callable[..., Numbers]:
        return lambda *given, **named: Numbers()


LONG = {"steps": [1, 2], "validation": [0.2, 0.1], "unseen": [0.4, 0.3], "seen": [0, 1]}


def test_what_the_notebook_records_is_what_the_claims_say() -> None:
    """The notebook's own cells, run with measured values in place of trainings."""
    recorded: dict[str, dict[str, Any]] = {}
    kept: dict[str, Any] = {}
    run = SimpleNamespace(photos=False, seed=0, device="cpu", out=Path("out"))
    run.tests = lambda claim: True
    run.result = lambda name, value: kept.update({f"lseg.{name}": value})
    run.record = lambda claim, **given: recorded.update({claim: given})
    shown = {"figure": Stand().any, "display": Stand().any, "plotting": Stand()}
    tested = {"seen": [0], "unseen": [0]}
    namespace = {
        **shown, "figures": Stand(), "controls": Stand(), "clip": None, "model": None,
        "arms": Stand(), "recipe": recipe, "chapter": chapter, "lab": TINY, "folds": 4,
        "values": chapter.PROFILES["full"], "history": None, "run": run,
        "experiments": Stand(
            GROUPS_BY=(), best_and_last=experiments.best_and_last,
            over_training=lambda *given: LONG, late_gain=lambda *given: 0.01,
            mean_cosine=lambda *given: 0.5,
        ),
        "study": SimpleNamespace(
            test=tested, labels=SimpleNamespace(seen=[1] * 42, names=[])
        ),
    }  # fmt: skip
    for source in CELLS:
        if "run.record(" in source or 'run.result("seen"' in source:
            exec(source, namespace)
    assert set(NAMED) | {"C3", "peak"} == set(recorded)
    ledger = claims.load("lseg")
    for claim, given in recorded.items():
        test = ledger[f"lseg.{claim}"].test("full")
        assert set(given.get("controls", {})) == set(test.controls), claim
        assert set(given.get("preconditions", {})) == set(test.preconditions), claim
        if claim in NAMED:
            treatment, control = (named(kept, place) for place in NAMED[claim])
            assert (given["treatment"], given["control"]) == (treatment, control), claim
    assert (recorded["peak"]["treatment"], recorded["peak"]["control"]) == (0.4, 0.3)
    assert recorded["C3"]["treatment"] == kept["lseg.reach"]["42"]
    assert recorded["C3"]["control"] == kept["lseg.reach"]["8"]


def test_committed_records_hold_the_named_results() -> None:
    for profile in ("full", "photos"):
        path = ROOT / "book" / "results" / f"lseg.{profile}.json"
        for run in claims.read_records(path) if path.is_file() else ():
            for claim, places in NAMED.items():
                if (measured := run.measurements.get(f"lseg.{claim}")) is not None:
                    pair = [named(run.results, place) for place in places]
                    assert [measured.treatment, measured.control] == pair, claim
            if (reached := run.measurements.get("lseg.C3")) is not None:
                reach = run.results["lseg.reach"]
                few, every = sorted(reach, key=int)
                assert (reached.treatment, reached.control) == (
                    reach[every],
                    reach[few],
                )
            if (peak := run.measurements.get("lseg.peak")) is not None:
                best = experiments.best_and_last(run.results["lseg.long"])
                assert (peak.treatment, peak.control) == best
