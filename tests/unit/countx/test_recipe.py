"""CounTX's scenes, training and questions at tiny sizes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minilib.models.countx import CounTX
from minilib.recipes.countx import experiments
from minilib.recipes.countx import protocol as countx_paper
from minilib.recipes.countx.chapter import (
    PROFILES,
    Values,
    baselines,
    continued,
    photos_study,
    scenes_study,
    trained,
)
from minilib.recipes.countx.recipe import (
    BLIND_TEXT,
    Schedule,
    build,
    counter_of,
    paper_learning_rate,
    scene_batches,
    train,
)
from minilib.recipes.shared.counting import CountingScenes, answers, counted_classes
from minilib.recipes.shared.counting_scenes import GROUPS, scenes_of
from minilib.scenes import VOCABULARY
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


def test_the_study_from_end_to_end(tmp_path: Path) -> None:
    study = scenes_study(VALUES, 0)
    clip = load_clip("mini-vit")
    model, history = trained(study, clip, VALUES, 0, tmp_path / "main")
    assert (tmp_path / "main" / "metrics.jsonl").exists() and len(history.rows) > 0
    for counter in [*baselines(study, clip).values(), study.counter(model)]:
        assert answers(counter, study.test).shape == (len(study.test),)
    assert len(study.test) == VALUES.test_images == len(set(study.test.about.tolist()))


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


def test_going_on_leaves_the_reader_as_it_was() -> None:
    reader = build(load_clip("mini-vit"), 64, 8).eval()
    before = {name: value.clone() for name, value in reader.state_dict().items()}
    values = replace(VALUES, continued=2)
    kept, narrowed = (
        continued(reader, values, 0, everything) for everything in (True, False)
    )
    assert all(
        torch.equal(value, before[name]) for name, value in reader.state_dict().items()
    )
    assert not torch.equal(kept.decode_head0[0].weight, narrowed.decode_head0[0].weight)


def test_the_matrix_of_prompts(model: CounTX, scenes) -> None:
    reading = experiments.prompt_matrix(model, scenes, most=4)
    measured = {
        "asked and there",
        "other class there",
        "absent",
        "sensitivity",
        "true sensitivity",
        "follows",
    }
    assert set(reading) == measured
    assert reading["true sensitivity"] > 0


def test_what_following_means(
    model: CounTX, scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are right follow wholly, answers that ignore the text do
    not follow at all."""
    there = {a.text: len(a.objects) for asked in scenes.asked[:1] for a in asked}

    def answer_with(count):
        return lambda _, image, texts: torch.tensor(
            [[[float(count(text))]] for text in texts]
        )

    monkeypatch.setattr(
        experiments, "maps", answer_with(lambda text: there[text.removeprefix("the ")])
    )
    assert experiments.prompt_matrix(model, scenes, most=1)["follows"] == pytest.approx(
        1.0
    )
    monkeypatch.setattr(experiments, "maps", answer_with(lambda text: 7))
    assert experiments.prompt_matrix(model, scenes, most=1)["follows"] == 0


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


def test_photos_and_paper_say_what_they_need(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="get_bccd.py"):
        photos_study(PROFILES["photos"], 0)
    with pytest.raises(FileNotFoundError):
        photos_study(PROFILES["photos"], 0, data=tmp_path)
    with pytest.raises(ValueError, match="paper-model.pth"):
        countx_paper.check("", "")
    with pytest.raises(FileNotFoundError, match="Train_Test_Val"):
        countx_paper.check(tmp_path, tmp_path / "none.pth")


def test_the_authors_file_is_read_without_running_it(
    model: CounTX, tmp_path: Path
) -> None:
    state = model.state_dict()
    file = tmp_path / "paper-model.pth"
    torch.save({"model": state, "epoch": 7, "args": argparse.Namespace(lr=1.0)}, file)
    read = countx_paper.read_checkpoint(file)
    assert read.keys() == state.keys() and torch.equal(
        read["fim_norm.weight"], state["fim_norm.weight"]
    )

    class Harm:
        def __reduce__(self):
            return (print, ("this must not run",))

    torch.save({"model": state, "args": Harm()}, file)
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        countx_paper.read_checkpoint(file)
    torch.save({"other": 3}, file)
    with pytest.raises(ValueError, match="holds no weights"):
        countx_paper.read_checkpoint(file)
    with pytest.raises(FileNotFoundError, match="paper-model.pth"):
        countx_paper.read_checkpoint(tmp_path / "nothing.pth")
