"""CounTX's trainings that go on from a reader: what they draw, hear and are judged on,
and what of it is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from witness import Drawn

from minilib.batch import required
from minilib.claims import records
from minilib.claims.evidence import Evidence, look_up
from minilib.metrics.counting import follows
from minilib.models.countx import CounTX
from minilib.recipes.countx import experiments, figures, reading
from minilib.recipes.countx.chapter import CHAPTER
from minilib.recipes.countx.reading import ARMS, Guess, Values
from minilib.recipes.countx.recipe import BLIND_TEXT, Schedule, build, counter_of
from minilib.recipes.shared.counting import CountingScenes, answers, counted_classes
from minilib.recipes.shared.counting_scenes import scenes_of, shared_out
from minilib.scenes import TINTS
from minilib.training import Training
from minilib.weights import load_clip

TINY = CountingScenes(size=32, count=(2, 6), distractors=(2, 6))
VALUES = Values(
    scenes=TINY,
    schedule=Schedule(steps=2, images=3, each=2, everything=True),
    arms=tuple(ARMS),
    train_images=8,
    fit_images=8,
    test_images=12,
)


@pytest.fixture(scope="module")
def reader() -> CounTX:
    return build(load_clip("mini-vit"), 32, 8).eval()


@pytest.fixture(scope="module")
def about() -> reading.Judged:
    return reading.judged(VALUES, 0)


def test_trainings_and_fits_draw_classes_that_no_test_asks_for(
    reader: CounTX, drawn_scenes: list[Drawn]
) -> None:
    for arm in ARMS.values():
        reading.arm_training(reader, arm, VALUES, 3)
    reading.baselines(load_clip("mini-vit"), VALUES, 3)
    assert len(drawn_scenes) == 6 + 2 + 2, "one draw, two for half and half"
    known = frozenset(counted_classes("train"))
    for drawn in drawn_scenes:
        assert (drawn.split, drawn.seed) == ("train", 3)
        assert frozenset(drawn.config.classes) == known


def test_judging_draws_new_pictures_of_new_classes(drawn_scenes: list[Drawn]) -> None:
    reading.judged(VALUES, 3)
    known, new = (counted_classes(part) for part in ("train", "test"))
    assert [drawn.config.classes for drawn in drawn_scenes] == [new, new, known, new]
    assert {drawn.split for drawn in drawn_scenes} == {"test"}
    assert [drawn.seed for drawn in drawn_scenes] == [3, 3, 3, 1003]


def test_a_share_of_the_pictures_shows_several_classes() -> None:
    for share in (0.0, 0.25, 1.0):
        scenes = shared_out(TINY, 8, "train", "train", 0, share)
        assert len(scenes) == len(scenes.image) == 8
        classes = [sum(a.kind == "class" for a in asked) for asked in scenes.asked]
        assert sum(n > 1 for n in classes) == round(8 * share)
        for asked, center in zip(scenes.asked, scenes.center, strict=True):
            if len(asked) == 1:  # nothing else is in the picture, and no colour
                assert len(asked[0].objects) == len(center)
            else:
                assert asked[-1].kind == "absent"
    with pytest.raises(ValueError, match="several=1.5"):
        shared_out(TINY, 8, "train", "train", 0, 1.5)


def test_seen_classes_stand_where_unseen_ones_do(about: reading.Judged) -> None:
    """The pictures of C5 differ in their classes alone."""
    unseen, seen = about.several, about.seen
    assert torch.equal(unseen.about, seen.about)
    for image in range(VALUES.test_images):
        counts = [q.counts[q.about == image].sort().values for q in (unseen, seen)]
        assert torch.equal(*counts)
        points = [
            torch.cat([p for p, a in zip(q.points, q.about, strict=True) if a == image])
            for q in (unseen, seen)
        ]
        apart = torch.cdist(*points)
        assert apart.min(0).values.max() < 4 and apart.min(1).values.max() < 4
    assert not set(unseen.asked) & set(seen.asked)


def test_arms_differ_in_what_they_are_for(
    reader: CounTX, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Same start and budget; a blind arm sees its pair's pictures and questions' truth,
    and hears one thing; the reader stays as it was."""
    fits: dict[str, Training] = {}
    starts: dict[str, dict[str, torch.Tensor]] = {}
    fit = Training.fit

    def noted(self: Training, out: Path, progress: str):
        fits[progress] = self
        starts[progress] = {k: v.clone() for k, v in self.model.state_dict().items()}
        return fit(self, out, progress)

    monkeypatch.setattr(Training, "fit", noted)
    before = {name: value.clone() for name, value in reader.state_dict().items()}
    models = reading.train_arms(reader, VALUES, 0, tmp_path)
    assert list(models) == list(fits) == list(ARMS)
    torch.testing.assert_close(dict(reader.state_dict()), before, rtol=0, atol=0)
    assert len({training.config for training in fits.values()}) == 1
    assert fits["one class"].config.steps == VALUES.schedule.steps
    for name, start in starts.items():
        torch.testing.assert_close(start, before, rtol=0, atol=0)
        if ARMS[name].blind:
            continue
        for step in range(2):
            said, blind = (
                fits[other].batches(step) for other in (name, f"{name}, blind")
            )
            assert torch.equal(said.image, blind.image)
            assert torch.equal(said.density, blind.density)
            assert torch.equal(said.mask, blind.mask)
            assert set(blind.caption) == {BLIND_TEXT}
            assert BLIND_TEXT not in said.caption
    weights = [model.decode_head0[0].weight for model in models.values()]
    assert all(
        not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i]
    )
    assert {path.name for path in tmp_path.iterdir()} == set(map(reading.folder, ARMS))
    # a second call loads what the first one trained
    again = reading.train_arms(reader, VALUES, 0, tmp_path)
    torch.testing.assert_close(again["one class"].decode_head0[0].weight, weights[0])


def test_arms_are_judged_by_what_they_heard(
    reader: CounTX, about: reading.Judged
) -> None:
    rows = reading.table(
        {}, dict.fromkeys(["mini-countx", *ARMS], reader), about, "cpu"
    )
    heard = answers(counter_of(reader), about.several)
    deaf = answers(counter_of(reader, BLIND_TEXT), about.several)
    truth = about.several.counts
    for name, row in rows.items():
        blind = name in ARMS and ARMS[name].blind
        said = deaf if blind else heard
        assert row["several"] == pytest.approx((said - truth).abs().mean().item())
        assert (abs(row["follows"]) < 1e-4) == blind


def test_a_row_says_what_it_names(about: reading.Judged) -> None:
    """A counter that is right but for one too many on what is there."""

    def generous(batch):
        counts = [float(len(points)) for points in required(batch.points, "points")]
        return torch.tensor(counts) + (torch.tensor(counts) > 0)

    def twice(batch):
        return 2 * torch.tensor([float(len(p)) for p in required(batch.points, "p")])

    row = reading.row(Guess(one=twice, several=generous), about, "cpu")
    truth = about.several.counts
    assert row["one class"] == pytest.approx(about.one.counts.mean().item())
    assert row["present"] == pytest.approx(1) and row["absent"] == 0
    assert row["several"] == pytest.approx((truth > 0).float().mean().item())
    expected = follows(truth + (truth > 0), truth, about.several.about)
    assert row["follows"] == pytest.approx(expected) and 0.5 < expected < 1


def test_baselines_are_fitted_to_their_own_kind_of_question(
    about: reading.Judged,
) -> None:
    fitted = reading.baselines(load_clip("mini-vit"), VALUES, 0)
    one = shared_out(TINY, 8, "train", "train", 0, 0.0).leading()
    several = scenes_of(TINY, 8, "train", "train", 0).questions(("class", "absent"))
    constant = fitted["best constant"]
    assert answers(constant.one, about.one)[0] == one.counts.median()
    assert answers(constant.several, about.several)[0] == several.counts.median()
    mean = answers(fitted["training mean"].several, about.several)[0]
    assert mean.item() == pytest.approx(several.counts.mean().item())


def test_the_examined_network_is_judged_on_both_kinds_of_classes(
    reader: CounTX, about: reading.Judged
) -> None:
    found = reading.examined("who", reader, about, "cpu")
    for key, questions in (("several", about.several), ("seen", about.seen)):
        said = answers(counter_of(reader), questions)
        mae = (said - questions.counts).abs().mean().item()
        assert found[key] == pytest.approx(mae)
    assert found["several"] != found["seen"] and found["who"] == "who"


def test_colours_are_exchanged_as_named(about: reading.Judged) -> None:
    asked = reading.recoloured(about.coloured)
    named = asked["named"]
    assert len(named) > 6 and len(named) % 2 == 0
    for name, questions in asked.items():
        assert torch.equal(questions.about, named.about), name
        assert torch.equal(questions.counts, named.counts), name
    split = {name: [text.split()[1] for text in q.asked] for name, q in asked.items()}
    for k in range(0, len(named), 2):
        mine = split["named"][k : k + 2]
        assert set(mine) <= set(TINTS) and mine[0] != mine[1]
        assert split["other colour"][k : k + 2] == mine[::-1]
        absent = split["absent colour"][k : k + 2]
        assert absent[0] != absent[1]
        assert set(absent) <= set(TINTS) and not set(absent) & set(mine)
        assert asked["class name"].asked[k] == asked["class name"].asked[k + 1]
    for name in ("named", "other colour", "absent colour"):
        kinds = [text.split(maxsplit=2)[2] for text in asked[name].asked]
        assert kinds == [
            text.removeprefix("the ") for text in asked["class name"].asked
        ]
    # every absent colour has its turn
    assert len(set(split["absent colour"])) == len(TINTS)


def test_who_reads_colours_follows_them(
    about: reading.Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three counters: one knows the colour, one hears that there is a colour, one hears
    the class alone."""
    named = reading.recoloured(about.coloured)["named"]
    truth = {
        (int(i), text): float(len(points))
        for i, text, points in zip(named.about, named.asked, named.points, strict=True)
    }
    pictures = {about.coloured.image[i].float().sum().item(): i for i, _ in truth}

    def knows(batch):
        rows = [pictures[(255 * image).round().sum().item()] for image in batch.image]
        return torch.tensor(
            [
                truth.get((i, text), 0.0)
                for i, text in zip(rows, batch.caption, strict=True)
            ]
        )

    def counter(kind: Callable):
        monkeypatch.setattr(reading, "counter_of", lambda model: kind)
        return reading.colours(None, about.coloured, "cpu")

    right = counter(knows)
    assert right["named"] == {"follows": pytest.approx(1), "mae": pytest.approx(0)}
    assert right["other colour"]["follows"] == pytest.approx(-3)
    assert right["absent colour"]["follows"] == 0 == right["class name"]["follows"]
    halves = counter(lambda batch: torch.full((len(batch.image),), 3.0))
    assert all(row["follows"] == 0 for row in halves.values())


def test_the_curve_and_what_is_left_behind() -> None:
    rows = {
        name: {"one class": 2.0 + arm.blind, "several": 1.0 + 3 * arm.blind}
        for name, arm in ARMS.items()
    }
    rows["best constant"] = {"one class": 6.0, "several": 8.0}
    assert reading.curve(rows) == {
        "0": {"text": 2.0, "blind": 3.0},
        "0.5": {"text": 1.5, "blind": 3.5},
        "1": {"text": 1.0, "blind": 4.0},
    }
    assert reading.left_behind(rows) == {"one class": 0.5, "several classes": 0.5}
    assert reading.curve({}) == {} == reading.left_behind({})
    [curve, deaf] = figures.reading_curve([reading.curve(rows)]).axes[0].lines
    assert list(curve.get_ydata()) == [2.0, 1.5, 1.0]
    assert list(deaf.get_ydata()) == [3.0, 3.5, 4.0]
    mae = {"CounTX": 2.0, "best constant": 8.0}
    assert experiments.left({}, mae) == {}
    mae["image tower frozen"] = 4.0
    assert experiments.left(rows, mae)["C3"] == 0.5


# --- What is recorded -----------------------------------------------------------------

RESULTS = {
    "examined": {"several": 1.0, "seen": 2.0, "seen follows": 0.5},
    "networks": {
        name: {"one class": 10.0 + k, "several": 20.0 + k, "present": 30.0 + k,
               "absent": 40.0 + k}
        for k, name in enumerate(
            ["best constant", "training mean", "similarity threshold", *ARMS]
        )
    },
    "colours": {
        name: {"follows": 0.1 * k}
        for k, name in enumerate(
            ("named", "other colour", "absent colour", "class name")
        )
    },
    "mae": {
        "CounTX": 3.0,
        "image tower frozen": 4.0,
        "best constant": 5.0,
        "training mean": 6.0,
        "similarity threshold": 7.0,
    },
    "left": {"C3": 0.6, "one class": 0.4, "several classes": 0.7},
}  # fmt: skip


@pytest.mark.parametrize("profile", ["quick", "full", "photos"])
def test_every_claim_that_is_tested_has_its_evidence(
    profile: str, tmp_path: Path
) -> None:
    """The chapter's table names a number for all that the ledger asks for, and what is
    recorded is that number."""
    table = (
        experiments.RECORDED_OF_CELLS if profile == "photos" else experiments.RECORDED
    )
    given = {"profile": profile, "seed": 0, "device": "cpu", "out": tmp_path}
    (tmp_path / "data").mkdir()
    run = CHAPTER.open(**given, data=tmp_path / "data")
    for claim in records.load("countx").values():
        name = claim.id.partition(".")[2]
        if isinstance(claim.tests[profile], records.NotRun):
            continue
        experiments.record(run, name, RESULTS, n=1)
        [found] = records.read_records(tmp_path / "result.json")
        measured = found.measurements[claim.id]
        assert measured.treatment == look_up(RESULTS, table[name].treatment)
        assert measured.control == look_up(RESULTS, table[name].control)
        test = claim.test(profile)
        assert set(measured.controls) == set(test.controls)
        assert set(measured.preconditions) == set(test.preconditions)


@pytest.mark.parametrize(
    ("claim", "treatment", "control"),
    [
        ("C1", "examined/several", "networks/similarity threshold/several"),
        ("C2", "colours/named/follows", "colours/absent colour/follows"),
        ("C3", "mae/CounTX", "mae/image tower frozen"),
        ("C5", "examined/several", "examined/seen"),
        (
            "reading",
            "networks/several classes/several",
            "networks/several classes, blind/several",
        ),
        (
            "blind",
            "networks/one class/one class",
            "networks/one class, blind/one class",
        ),
        ("words", "networks/several classes/present", "networks/one class/present"),
        ("nothing", "networks/several classes/absent", "networks/one class/absent"),
    ],
)
def test_the_evidence_is_what_the_ledger_says(
    claim: str, treatment: str, control: str
) -> None:
    evidence = experiments.RECORDED[claim]
    assert (evidence.treatment, evidence.control) == (treatment, control)
    for name, path in evidence.controls.items():
        assert name in path or (name == experiments.BLIND and "blind/" in path)


def test_evidence_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(KeyError, match="none"):
        look_up(RESULTS, "networks/none/several")
    evidence = Evidence("mae/CounTX", "mae/best constant")
    assert look_up(RESULTS, evidence.treatment) == 3.0
    assert replace(evidence, control="left/C3").control == "left/C3"
