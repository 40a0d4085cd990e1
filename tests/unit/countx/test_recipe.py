"""CounTX's scenes, training and questions at tiny sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from minilib.claims.chapter import Run
from minilib.datasets.bccd import Bccd
from minilib.files import NotTheSame
from minilib.models.countx import CounTX
from minilib.recipes.countx import chapter, experiments, figures, protocol, recipe
from minilib.recipes.countx.chapter import (
    CHAPTER,
    Values,
    main_training,
    scenes_study,
    study_training,
    train_frozen,
    wide_questions,
)
from minilib.recipes.countx.recipe import (
    BLIND_TEXT,
    Schedule,
    build,
    counter_of,
    counting_loss,
    paper_learning_rate,
    scene_batches,
    train,
)
from minilib.recipes.shared.counting import CountingScenes, answers, counted_classes
from minilib.recipes.shared.counting_scenes import GROUPS, scenes_of
from minilib.scenes import VOCABULARY
from minilib.training import History, Training
from minilib.training.parallel import cut
from minilib.weights import load_clip

TINY = CountingScenes(size=32, count=(2, 6), distractors=(1, 4))
VALUES = Values(
    schedule=Schedule(steps=3, images=2, each=2),
    scenes=TINY,
    train_images=8,
    test_images=6,
    decoder_width=8,
)


@pytest.fixture(scope="module")
def scenes():
    return scenes_of(TINY, 20, "test", "test", 0, coloured=0.6)


@pytest.fixture(scope="module")
def model() -> CounTX:
    return build(load_clip("mini-vit"), 32, 8).eval()


def test_questions_mean_what_they_say(scenes) -> None:
    """Colours and classes of one scene add up, and a group holds at
    least its members."""
    for row, asked in enumerate(scenes.asked):
        classes = [a for a in asked if a.kind == "class"]
        assert sorted(slot for a in classes for slot in a.objects) == list(
            range(len(scenes.center[row]))
        )
        colours = [a for a in asked if a.kind == "colour"]
        assert not colours or sorted(s for a in colours for s in a.objects) == list(
            asked[0].objects
        )
        assert all(
            a.text.endswith(f" {asked[0].text}") and a.plain == asked[0].text
            for a in colours
        )
        group_of = {c.plural: c.group for c in VOCABULARY}
        for a in asked:
            if a.kind == "group":
                inside = [
                    set(c.objects)
                    for c in classes
                    if GROUPS.get(group_of[c.text]) == a.text
                ]
                assert set(a.objects) == set().union(*inside)
        assert [a.objects for a in asked if a.kind == "absent"] == [()]
        assert asked[-1].text not in {a.text for a in classes}


def test_classes_of_the_test_are_never_counted_or_shown() -> None:
    shown = {
        a.plain
        for asked in scenes_of(TINY, 40, "train", "train", 0).asked
        for a in asked
        if a.kind != "group"
    }
    held_out = {c.plural for c in VOCABULARY if c.name in counted_classes("test")}
    assert len(shown) > 60 and not shown & held_out


def test_scenes_are_a_pure_function(scenes) -> None:
    again = scenes_of(TINY, 20, "test", "test", 0, coloured=0.6)
    assert torch.equal(scenes.image, again.image) and scenes.asked == again.asked
    assert scenes_of(TINY, 20, "test", "test", 1).asked != scenes.asked


def test_one_class_a_picture() -> None:
    alone = scenes_of(TINY, 10, "train", "train", 0, companions=(0, 0))
    assert all(sum(a.kind == "class" for a in asked) == 1 for asked in alone.asked)


def test_points_stand_on_what_is_meant(scenes) -> None:
    questions = scenes.questions(("class", "colour"))
    density = questions.batch(range(len(questions))).density.sum((1, 2, 3))
    torch.testing.assert_close(density, questions.counts, rtol=1e-4, atol=1e-4)
    assert all((p >= 0).all() and (p <= 32).all() for p in questions.points)


def test_plain_questions_leave_the_colour_out(scenes) -> None:
    said, unsaid = (
        scenes.questions(("colour",), plain=plain) for plain in (False, True)
    )
    assert len(said) > 0 and said.counts.tolist() == unsaid.counts.tolist()
    for text, name in zip(said.asked, unsaid.asked, strict=True):
        assert (
            text.startswith("the ")
            and text.endswith(f" {name}")
            and not name.startswith("the ")
        )


def test_wide_scenes() -> None:
    wide = scenes_of(TINY, 3, "test", "test", 0, shape=(32, 96))
    assert wide.image.shape == (3, 3, 32, 96)


def test_batches_are_a_pure_function_of_the_step(scenes) -> None:
    batches = scene_batches(scenes, VALUES.schedule, 0)
    first, again, other = batches(4), batches(4), batches(5)
    assert first.caption == again.caption and torch.equal(first.density, again.density)
    assert first.caption != other.caption
    assert (
        len(first.caption) == 4
        and first.image.shape[0] == 2
        and first.density.shape[0] == 4
    )
    torch.testing.assert_close(
        first.density.sum((1, 2, 3)),
        torch.tensor([float(len(p)) for p in first.points]),
    )


def test_positions_of_a_larger_crop_are_interpolated() -> None:
    clip = load_clip("mini-vit")
    model = build(clip, 96, 8)
    assert (
        model.config.window == 96
        and model.clip_model.visual.positional_embedding.shape == (145, 128)
    )
    same = build(clip, 64, 8)
    assert torch.equal(
        same.clip_model.visual.positional_embedding, clip.visual.positional_embedding
    )


def test_another_size_of_crop_keeps_the_weights(model: CounTX, scenes) -> None:
    larger = recipe.at_size(model, 64).eval()
    assert larger.config.window == 64 and model.config.window == 32
    moved = ("clip_model.visual.positional_embedding", "fim_pos_embed")
    for name, value in model.state_dict().items():
        same = torch.equal(value, larger.state_dict()[name])
        assert same != (name in moved), name
    image = scenes.image[:1].repeat_interleave(2, -1).repeat_interleave(2, -2) / 255
    assert larger.predict(image, "the dogs").shape == (1, 64, 64)
    again = recipe.at_size(larger, 32).eval()
    torch.testing.assert_close(again.fim_pos_embed, model.fim_pos_embed)


def test_micrographs_start_from_the_reader(cells: Run) -> None:
    values = replace(VALUES, from_reader=True)
    training = study_training(cells.study, values, values.schedule, 0)
    reader = chapter.load_reader("cpu").state_dict()
    name = "decode_head0.0.weight"
    torch.testing.assert_close(training.model.state_dict()[name], reader[name])
    assert training.model.config.window == 32


def test_training_moves_what_it_should(scenes) -> None:
    for frozen in (False, True):
        model = build(load_clip("mini-vit"), 32, 8)
        before = {name: p.clone() for name, p in model.named_parameters()}
        history = train(
            model,
            scene_batches(scenes, VALUES.schedule, 0),
            replace(VALUES.schedule, frozen=frozen),
            0,
        )
        moved = {
            name
            for name, p in model.named_parameters()
            if not torch.equal(p, before[name])
        }
        assert any(name.startswith("clip_model.visual.") for name in moved) != frozen
        assert not any(
            name.startswith("clip_model.") and not name.startswith("clip_model.visual.")
            for name in moved
        )
        assert "decode_head2.3.weight" in moved
        assert {"loss", "count_error"} <= history.rows[-1].keys()


def test_a_blind_network_hears_one_thing(scenes) -> None:
    heard = []
    model = build(load_clip("mini-vit"), 32, 8)
    tokenize = model.tokenize
    model.tokenize = lambda texts: heard.append(set(texts)) or tokenize(texts)
    train(
        model,
        scene_batches(scenes, VALUES.schedule, 0),
        replace(VALUES.schedule, blind=True),
        0,
    )
    assert heard == [{BLIND_TEXT}] * 3


def test_training_repeats(scenes) -> None:
    weights = []
    for _ in range(2):
        model = build(load_clip("mini-vit"), 32, 8, seed=3)
        train(model, scene_batches(scenes, VALUES.schedule, 3), VALUES.schedule, 3)
        weights.append(model.decode_head0[0].weight)
    torch.testing.assert_close(*weights)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    chapter = replace(CHAPTER, profiles={"quick": VALUES})
    return chapter.open(profile="quick", seed=0, device="cpu", out=tmp_path)


def test_the_chapter_from_end_to_end(run: Run) -> None:
    study = run.study
    model, history = run.train("CounTX")
    assert (run.out / "main" / "metrics.jsonl").exists() and len(history.rows) > 0
    counters = [*study.baselines().values(), study.counter(model)]
    counters += [study.counter(train_frozen(run))]
    found = [answers(counter, study.test) for counter in counters]
    assert all(answer.shape == (len(study.test),) for answer in found)
    assert len({tuple(answer.tolist()) for answer in found}) == len(found)
    assert len(study.test) == VALUES.test_images == len(set(study.test.about.tolist()))
    assert {path.name for path in run.out.iterdir()} == {"main", "frozen"}


def test_the_control_differs_in_one_thing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts from the same weights, sees the same batches for as many steps; only
    its tower stays."""
    trained = []
    fit = Training.fit

    def noted(self, *given, **named):
        start = {k: value.clone() for k, value in self.model.state_dict().items()}
        trained.append((self, start))
        return fit(self, *given, **named)

    monkeypatch.setattr(Training, "fit", noted)
    run.train("CounTX")
    train_frozen(run)
    (main, start), (frozen, same) = trained
    torch.testing.assert_close(same, start)
    assert frozen.config == main.config and main.config.steps == VALUES.schedule.steps
    for step in range(main.config.steps):
        first, second = main.batches(step), frozen.batches(step)
        assert first.caption == second.caption
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.mask, second.mask)
    for training, stays in ((main, False), (frozen, True)):
        tower = training.model.clip_model.visual.state_dict(prefix="clip_model.visual.")
        kept = [name for name in tower if name.endswith("weight")]
        assert stays == all(torch.equal(tower[name], start[name]) for name in kept)


def test_the_baselines_are_fitted_to_training_questions(run: Run) -> None:
    """Training and test counts that never meet: a baseline answers like the former."""
    few, many = (
        scenes_study(replace(VALUES, scenes=replace(TINY, count=(n, n))), 0)
        for n in (2, 6)
    )
    assert set(few.train.counts.tolist()) == {2} and set(many.test.counts.tolist()) == {
        6
    }
    crossed = replace(few, test=many.test)
    for name, counter in crossed.baselines().items():
        answer = answers(counter, crossed.test)
        torch.testing.assert_close(answer, torch.full_like(answer, 2.0), msg=name)


def test_test_classes_are_new(run: Run) -> None:
    study = run.study
    held_out = {c.plural for c in VOCABULARY if c.name in counted_classes("test")}
    train, test = (
        {text.removeprefix("the ") for text in questions.names}
        for questions in (study.train, study.test)
    )
    assert not train & held_out and test <= held_out


def test_processes_share_a_batch(run: Run) -> None:
    """The mean loss of two halves of a batch is that of the whole, once batch
    normalisation is fixed."""
    training = main_training(run, run.values, run.study)
    training.model.eval()
    batch = training.batches(0)
    assert batch.mask.shape == (len(batch), *batch.image.shape[-2:])
    assert 0 < (batch.mask == 255).float().mean() < 0.5
    with torch.no_grad():
        whole = counting_loss(training.model, batch)
        halves = [counting_loss(training.model, cut(batch, k, 2)) for k in range(2)]
    for name, value in whole.items():
        torch.testing.assert_close(sum(half[name] for half in halves) / 2, value)


def test_what_training_asks_for(scenes) -> None:
    """As FSC-147, only for what fills the picture, by name or name and colour;
    or for everything."""
    for everything in (False, True):
        batches = scene_batches(
            scenes,
            replace(VALUES.schedule, images=20, each=2, everything=everything),
            0,
        )
        asked = {
            text.removeprefix("the ")
            for step in range(4)
            for text in batches(step).caption
        }
        fills = {a.text for row in scenes.asked for a in row if a.plain == row[0].plain}
        assert (asked <= fills) != everything
        assert any(" " in text for text in asked)


def test_a_start_of_mean_zero(scenes) -> None:
    """What the first block adds to the patches, and hears of the texts, has no
    mean and unit size."""
    names = scenes.leading().names
    model = build(load_clip("mini-vit"), 32, 8, images=scenes.image, names=names)
    patches = model.encode_image(model.preprocess(scenes.image / 255)).detach()
    attention = model.fim_blocks[0].attn
    moved = patches + attention.proj.bias.detach()[:, None, None]
    torch.testing.assert_close(patches.std(), torch.tensor(1.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(
        moved.mean((0, 2, 3)), torch.zeros(128), rtol=0, atol=1e-3
    )
    heard = attention.wv(model.encode_text(model.tokenize(list(names)))[:, 0]).detach()
    torch.testing.assert_close(heard.mean(0), torch.zeros(128), rtol=0, atol=1e-2)
    fresh = build(load_clip("mini-vit"), 32, 8)
    assert not fresh.fim_blocks[0].attn.proj.bias.any()


def test_leading_questions(scenes) -> None:
    questions = scenes.leading()
    assert questions.about.tolist() == list(range(len(scenes)))
    assert questions.asked[0] == f"the {scenes.asked[0][0].text}"


def test_silencing_the_text(model: CounTX, scenes) -> None:
    image, texts = scenes.image[0], ["the dogs", "the cars"]
    heard = experiments.maps(model, image, texts)
    assert not torch.allclose(heard[0], heard[1], atol=1e-7)
    with experiments.without_text(model, [0, 1]):
        deaf = experiments.maps(model, image, texts)
    torch.testing.assert_close(deaf[0], deaf[1])
    # and it hears again
    torch.testing.assert_close(experiments.maps(model, image, texts), heard)


def test_dead_gradients(model: CounTX, scenes) -> None:
    sizes = experiments.dead_gradients(
        model, scene_batches(scenes, VALUES.schedule, 0)(0)
    )
    assert sizes["wv"] == 1 and max(sizes["wq"], sizes["wk"], sizes["norm1"]) < 1e-4


def test_other_words(scenes) -> None:
    questions = scenes.questions()
    single = experiments.rephrased(questions, "{}")
    plural = {c.plural: c.name for c in VOCABULARY}
    assert single.asked[0] == plural[questions.asked[0].removeprefix("the ")]
    assert (
        experiments.rephrased(questions, "a photo of {s}")
        .asked[0]
        .startswith("a photo of ")
    )


def test_crowding_keeps_the_errors(scenes) -> None:
    questions = scenes.questions()
    predicted = questions.counts + 1.5
    split = experiments.by_crowding(predicted, questions, scenes)
    assert split.mae == pytest.approx(1.5) and sum(
        row.images for row in split.by_count
    ) == len(questions)


def test_wide_pictures_four_ways(model: CounTX) -> None:
    wide = scenes_of(TINY, 2, "test", "test", 0, shape=(32, 96)).questions()
    errors = experiments.merging(model, wide)
    assert len(errors) == 4 and all(e.images == len(wide) for e in errors.values())


def test_tricks_do_what_they_say(model: CounTX, scenes) -> None:
    """An untrained network answers below zero or not; either way each trick changes
    just what it names."""
    questions = scenes.questions(("class",)).take(range(6))
    got = answers(counter_of(model), questions)
    errors = experiments.tricks(model, questions)
    assert len(errors) == 5 and errors["as it comes"].mae == pytest.approx(
        (got - questions.counts).abs().mean().item()
    )
    assert errors["never below zero"].bias == pytest.approx(
        (got.clamp_min(0) - questions.counts).mean().item(), abs=1e-4
    )
    assert errors["positive pixels only"].bias >= errors["as it comes"].bias - 1e-4
    assert errors["rounded"].mae == pytest.approx(
        (got.round() - questions.counts).abs().mean().item(), abs=0.2
    )


def test_several_descriptions_of_one_picture(model: CounTX, scenes) -> None:
    questions = scenes.questions(("class",))
    assert answers(counter_of(model), questions).isfinite().all()
    assert answers(counter_of(model, "the things"), questions).isfinite().all()


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.0), (5, 3.125e-6), (10, 6.25e-6), (505, 3.125e-6), (1000, 0.0)],
)
def test_the_papers_schedule(epoch: float, rate: float) -> None:
    assert paper_learning_rate(epoch) == pytest.approx(rate, abs=1e-12)


# --- Photographs ----------------------------------------------------------------------


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run on two micrographs of 32 x 64 pixels."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [40.0, 4.0, 50.0, 8.0]])
    image = torch.arange(2 * 3 * 32 * 64).view(2, 3, 32, 64).remainder(251).byte()
    classes = [torch.tensor([0, 2]), torch.tensor([1])]
    two = Bccd(image, [boxes, boxes[:1]], classes, ("a", "b"))
    asked = []
    monkeypatch.setattr(chapter, "bccd", lambda *given: asked.append(given) or two)
    tiny = replace(CHAPTER, profiles={"photos": VALUES})
    (tmp_path / "bccd").mkdir()
    run = tiny.open(
        profile="photos",
        seed=0,
        device="cpu",
        out=tmp_path / "out",
        data=tmp_path / "bccd",
    )
    assert run.study.photos
    assert [given[:2] for given in asked] == [(run.data, "train"), (run.data, "test")]
    return run


def test_micrographs_are_trained_on_and_pictured(cells: Run) -> None:
    model, _ = cells.train("CounTX")
    test = cells.study.test
    found = answers(cells.study.counter(model), test)
    assert found.shape == (6,)
    record = experiments.pictured(model, test, 1)
    assert json.loads(json.dumps(record)) == record
    assert record["asked"] == [test.asked[i] for i in (1, 3, 5)]
    assert [len(points) for points in record["points"]] == [0, 1, 0]
    picture = test.image[1] / 255
    counts = [model.count(picture, f"the {text}") for text in record["asked"]]
    assert record["counts"] == pytest.approx(counts, abs=0.01)
    drawn = figures.micrograph(record)
    assert [ax.get_title().endswith("(true 1)") for ax in drawn.axes[1:]] == [
        False,
        True,
        False,
    ]
    tricks = experiments.tricks_on_answers(found, test)
    assert tricks["rounded"].mae == (found.round() - test.counts).abs().mean().item()


def test_the_table_of_cells() -> None:
    runs = [
        {
            "platelets": {
                "CounTX": {"mae": mae, "rmse": 2.0},
                "best constant": {"mae": 3.0, "rmse": 4.0},
            }
        }
        for mae in (0.5, 1.5)
    ]
    table = figures.cell_table("cells", runs).data.splitlines()
    assert table[0].startswith("| cells | MAE | MAE of the best constant |")
    assert table[2].startswith(
        "| platelets | 1.00 (0.50 to 1.50) | 3.00 (3.00 to 3.00)"
    )
    assert "No record" in figures.cell_table("cells", []).data


# --- Pictures -------------------------------------------------------------------------


def test_a_telling_scene_is_asked_three_ways() -> None:
    mixed = CountingScenes(size=32, count=(1, 12), distractors=(2, 12))
    scenes = scenes_of(mixed, 60, "test", "test", 11, coloured=1.0)
    rows = experiments.telling_scenes(scenes)
    assert 0 < len(rows) < 60
    for row in rows:
        fills, colour, animals = experiments.three_ways(scenes.asked[row])
        assert set(colour.objects) < set(fills.objects)
        assert animals.text == "animals" and len(animals.objects) > len(fills.objects)


def test_pictures_say_what_was_found(model: CounTX, scenes) -> None:
    asked = scenes.asked[0][:2]
    true = figures.true_densities(scenes, 0, asked)
    assert [ax.get_title() for ax in true.axes[1:]] == [
        f"the {a.text}: {len(a.objects)}" for a in asked
    ]
    maps = torch.full((2, 32, 32), 2.5 / 32**2)
    given = figures.answered_densities(scenes, 0, asked, maps)
    assert given.axes[1].get_title() == (
        f"the {asked[0].text}:\n2.5 (true {len(asked[0].objects)})"
    )
    for true_counts, end in (((4, 0), "2.5 (true 0)"), ((), "2.5")):
        image = scenes.image[0] / 255
        row = figures.sentences(image, ["a", "b"], list(maps), true_counts)
        assert row.axes[2].get_title() == f"b\n{end}"
    eight = scenes.leading().batch(range(8))
    titles = [ax.get_title() for ax in figures.questions(eight).axes]
    assert titles == [
        f"{text}: {len(points)}"
        for text, points in zip(eight.caption, eight.points, strict=True)
    ]
    inside = torch.tensor([[8.0, 9.0], [30.0, 14.0], [20.0, 8.0]])
    bells = figures.bells(inside, (32, 48), (0, 2))
    assert bells.axes[0].get_xlabel() == "left 2.00, all 3.00"
    assert len(figures.merges(48, 96, 16).axes) == 2


def test_pictures_of_errors(model: CounTX, scenes) -> None:
    questions = scenes.leading()
    guess = questions.counts + 1
    for known, lines in ((scenes, 4), (None, 3)):
        left, right = figures.where_errors_are(guess, questions, known).axes
        assert list(left.lines[1].get_ydata()) == guess.tolist()
        assert len(right.lines) == lines
        assert set(right.lines[0].get_ydata()) == {1.0}
    texts = ["the dogs", "the cats", "the cars"]
    biases = experiments.text_bias(model, texts)
    assert biases.shape == (2, 3, 128)
    drawn = figures.text_biases(biases, texts, {"who": {"a": 1.0, "b": 2.0}})
    assert [bar.get_width() for bar in drawn.axes[2].patches] == [1.0, 2.0]
    assert not figures.text_biases(biases, texts, {}).axes[2].axison
    rows = [{"step": step, "loss": 1.0, "count_error": 2.0} for step in (1, 2)]
    left, right = figures.learning(History(rows)).axes
    assert right.lines[-1].get_ydata().tolist() == [2.0, 2.0]


def test_wide_questions() -> None:
    wide = wide_questions(VALUES, 0, images=2)
    assert wide.image.shape == (2, 3, 32, 96) and len(wide) == 2


# --- The paper's protocol -------------------------------------------------------------


@pytest.fixture
def fsc147(tmp_path: Path) -> Path:
    """FSC-147 with one photograph per split; each is described with one word more."""
    folder = tmp_path / "fsc147"
    (folder / "images_384_VarV2").mkdir(parents=True)
    splits = ("train", "val", "test")
    for split in splits:
        image = Image.new("RGB", (400, 384), (120, 90, 60))
        image.save(folder / "images_384_VarV2" / f"{split}.jpg")
    files = {
        "Train_Test_Val_FSC_147.json": {split: [f"{split}.jpg"] for split in splits},
        "annotation_FSC147_384.json": {
            f"{split}.jpg": {"points": [[5, 6], [30, 9]]} for split in splits
        },
        "FSC-147-D.json": {
            f"{split}.jpg": {
                "data_split": split,
                "text_description": f"the {split} things",
            }
            for split in splits
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    lines = "\n".join(f"{split}.jpg\t{split} things" for split in splits)
    (folder / "ImageClasses_FSC147.txt").write_text(lines)
    return folder


def test_the_released_weights_are_evaluated_and_counts_kept(
    fsc147: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Released(torch.nn.Linear):
        def count(
            self, image: torch.Tensor, text: str, stride: int, merge: str
        ) -> float:
            assert image.shape == (3, 384, 400) and stride == 128
            asked.append(text)
            return 2.0 + len(text)

    released = Released(2, 2)
    weights = tmp_path / "paper-model.pth"
    monkeypatch.setattr(protocol, "load_checkpoint", lambda path: {"from": path})
    monkeypatch.setattr(
        protocol.CounTX,
        "from_official",
        lambda state: released if state == {"from": weights} else None,
    )
    table = protocol.evaluate_released(fsc147, weights, "cpu", tmp_path)
    assert asked == ["the val things", "val things", "the test things", "test things"]
    assert table["test", "description"].mae == len("the test things")
    data = protocol.as_data(table)
    assert data["val by description"]["published"] == {"mae": 17.10, "rmse": 65.61}
    assert data["val by class"]["published"] is None
    assert protocol.evaluate_released(fsc147, weights, "cpu", tmp_path) == table
    assert len(asked) == 4, "what is counted is not counted again"
    released = Released(2, 2)  # other weights: their counts are not the first ones'
    with pytest.raises(NotTheSame, match="weights"):
        protocol.evaluate_released(fsc147, weights, "cpu", tmp_path)


def test_profile_paper_says_at_once_what_is_missing(
    fsc147: Path, tmp_path: Path
) -> None:
    given = {"profile": "paper", "seed": 0, "device": "cpu", "out": tmp_path / "out"}
    with pytest.raises(ValueError, match="needs data.*FSC-147-D.json"):
        CHAPTER.open(**given)
    with pytest.raises(ValueError, match="needs weights.*paper-model.pth"):
        CHAPTER.open(**given, data=fsc147)
    run = CHAPTER.open(**given, data=fsc147, weights=str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError, match="none.pth"):
        _ = run.study
    (tmp_path / "some.pth").touch()
    run = CHAPTER.open(**given, data=tmp_path, weights=str(tmp_path / "some.pth"))
    with pytest.raises(FileNotFoundError, match="Train_Test_Val"):
        _ = run.study
    run = replace(
        run, data=fsc147, chapter=replace(CHAPTER, profiles={"paper": VALUES})
    )
    assert run.study.test.asked == scenes_study(VALUES, 0).test.asked
