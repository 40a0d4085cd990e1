"""LSeg's recipe: what is trained on and what is not, what the protocols count, and the
chapter's studies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minilib import parameters, plotting
from minilib.claims.chapter import Run
from minilib.claims.pictures import unpacked
from minilib.datasets import BadFile
from minilib.datasets.camvid import NAMES
from minilib.models.lseg import LSeg, LSegConfig, ResNetBackbone
from minilib.recipes.lseg import chapter, experiments, figures, recipe
from minilib.recipes.lseg import protocol as paper
from minilib.scenes import find

TINY = recipe.Lab(
    image_size=32,
    classes=24,
    objects=(1, 2),
    features=8,
    batch_size=4,
    steps=2,
    tower_steps=1,
    test_images=12,
)


@pytest.fixture(scope="module")
def study() -> recipe.Study:
    return recipe.scenes_study(TINY, seed=0, fold=1)


@pytest.fixture(scope="module")
def model(study: recipe.Study) -> recipe.Segmenter:
    return recipe.build(TINY, study).eval()


def test_folds_share_out_all_words() -> None:
    folds = [recipe.scenes_study(TINY, 0, fold=fold) for fold in range(4)]
    unseen = [set(study.labels.unseen) for study in folds]
    assert set.union(*unseen) == set(range(24)) and sum(map(len, unseen)) == 24
    for study in folds:
        assert set(study.labels.seen) == set(range(24)) - set(study.labels.unseen)
        assert len({find(study.labels.names[i]).fold for i in study.labels.unseen}) == 1
        assert study.labels.always == (24,) and study.labels.names[24] == "other"


def test_no_mask_of_an_unseen_word_is_ever_trained_on(study: recipe.Study) -> None:
    values = (
        torch.cat([study.batches(step).mask.unique() for step in range(8)])
        .unique()
        .tolist()
    )
    assert set(values) <= {*study.labels.seen, 24} and 24 in values
    assert set(study.test["unseen"].mask.unique().tolist()) <= {
        *study.labels.unseen,
        24,
    }


def test_fewer_seen_words_leave_the_test_as_it_is(study: recipe.Study) -> None:
    fewer = recipe.scenes_study(TINY, 0, fold=1, seen_classes=4)
    assert len(fewer.labels.seen) == 4 and set(fewer.labels.seen) < set(
        study.labels.seen
    )
    assert fewer.labels.unseen == study.labels.unseen
    torch.testing.assert_close(fewer.test["unseen"].mask, study.test["unseen"].mask)
    assert set(fewer.batches(0).mask.unique().tolist()) <= {*fewer.labels.seen, 24}
    with pytest.raises(ValueError, match="expected 1 to"):
        recipe.scenes_study(TINY, 0, seen_classes=24)
    with pytest.raises(ValueError, match="fold=4"):
        recipe.scenes_study(TINY, 0, fold=4)


def test_label_vectors_and_their_controls() -> None:
    clip, words = recipe.text_tower(), ("dog", "cat", "car", "tree", "other")
    true = recipe.label_vectors(clip, words)
    deranged = recipe.label_vectors(clip, words, "deranged", seed=1)
    random = recipe.label_vectors(clip, words, "random", seed=1)
    torch.testing.assert_close(true[4], deranged[4])
    assert sorted(true[:4, 0].tolist()) == pytest.approx(
        sorted(deranged[:4, 0].tolist())
    )
    for seed in range(20):
        dealt = recipe.label_vectors(clip, words, "deranged", seed=seed)
        assert (true[:4] != dealt[:4]).any(dim=1).all(), "no word keeps its own"
    torch.testing.assert_close(random.norm(dim=1), torch.ones(5))
    # Words share much of their direction; without their mean they do not.
    centred = recipe.label_vectors(clip, words, "centred")
    torch.testing.assert_close(centred.norm(dim=1), torch.ones(5))
    assert abs((centred @ centred.T).mean() - 1 / 5) < (true @ true.T).mean() - 1 / 5
    torch.testing.assert_close(
        random, recipe.label_vectors(clip, words, "random", seed=1)
    )
    with pytest.raises(ValueError, match="kind='free'"):
        recipe.label_vectors(clip, words, "free")


def test_only_learned_vectors_are_trained_and_the_text_tower_never(
    study: recipe.Study,
) -> None:
    for kind in ("words", "learned"):
        segmenter = recipe.build(TINY, study, recipe.Arm(kind))
        trained = [name for name, p in segmenter.named_parameters() if p.requires_grad]
        assert ("vectors" in trained) == (kind == "learned")
        assert not [name for name in trained if "text" in name or "transformer" in name]
    assert not any(p.requires_grad for p in recipe.text_tower().parameters())


def test_backbones_start_from_labels_or_captions_and_the_rest_from_the_seed(
    study: recipe.Study,
) -> None:
    one, same, other = (recipe.build(TINY, study, seed=seed) for seed in (0, 0, 1))
    captions = recipe.build(TINY, study, recipe.Arm(tower="captions"))
    read = recipe.text_tower().visual.state_dict()
    labelled = recipe.pretrained(TINY, 0).weights
    for name, weight in captions.lseg.backbone.state_dict().items():
        torch.testing.assert_close(weight, read[name])
        torch.testing.assert_close(one.lseg.backbone.state_dict()[name], labelled[name])
    for model in (captions, other):
        conv1 = one.lseg.backbone.conv1.weight
        assert (conv1 - model.lseg.backbone.conv1.weight).abs().max() > 0.001
    torch.testing.assert_close(one.lseg.head.weight, same.lseg.head.weight)
    torch.testing.assert_close(one.lseg.head.weight, captions.lseg.head.weight)
    assert (one.lseg.head.weight - other.lseg.head.weight).abs().max() > 0.01
    with pytest.raises(ValueError, match="tower='text'"):
        recipe.build(TINY, study, recipe.Arm(tower="text"))


def test_the_loss_falls(study: recipe.Study) -> None:
    lab = recipe.Lab(
        image_size=32, classes=24, features=8, batch_size=8, steps=30, tower_steps=1,
        test_images=12,
    )  # fmt: skip
    _, history = recipe.train(lab, study, evaluations=2)
    steps, losses = history.column("loss")
    assert losses[-1] < 0.8 * losses[0] and steps[-1] == 30
    assert len(history.column("unseen")[0]) == 2


def test_score_counts_the_words_that_were_asked_for(
    model: recipe.Segmenter, study: recipe.Study
) -> None:
    result = recipe.score(model, study, "unseen")
    assert result.classes == len(study.labels.unseen) + 1
    assert result.confusion.sum() == study.test["unseen"].mask.numel()
    only = recipe.score(model, study, "unseen", labels=study.labels.unseen)
    assert only.confusion.sum() == (study.test["unseen"].mask != 24).sum()
    assert recipe.mean_iou(model, study, "unseen") == pytest.approx(
        result.iou()[:-1].nanmean().item(), nan_ok=True
    )


def test_episodes_ask_for_the_largest_class(study: recipe.Study) -> None:
    trivial = recipe.episodes(None, study)
    mask = study.test["unseen"].mask
    largest = torch.stack([m[m != 24].bincount(minlength=24).argmax() for m in mask])
    share = {}
    for wanted, m in zip(largest.tolist(), mask, strict=True):
        share.setdefault(wanted, []).append([(m == wanted).sum().item(), m.numel()])
    for position, wanted in enumerate(study.labels.unseen):
        expected = sum(a for a, _ in share.get(wanted, [])) / max(
            1, sum(b for _, b in share.get(wanted, []))
        )
        assert trivial.iou()[position].item() == pytest.approx(expected)
    assert trivial.intersection[0].sum() == 0


def test_a_perfect_segmenter_is_scored_as_perfect(study: recipe.Study) -> None:
    """Images that hold their own answer: pixel value k / 50 is class k."""

    class Oracle(torch.nn.Module):
        vectors = torch.zeros(25, 1)

        def forward(self, image, labels):
            wanted = torch.tensor(list(labels))[None, :, None, None] / 50
            return -(image[:, :1] - wanted).abs()

    mask = study.test["seen"].mask
    image = (mask / 50)[:, None].expand(-1, 3, -1, -1)
    answer = replace(study, test={"seen": replace(study.test["seen"], image=image)})
    assert recipe.mean_iou(Oracle(), answer, "seen") == 1


def test_hypernyms_and_independence(
    model: recipe.Segmenter, study: recipe.Study
) -> None:
    clip = recipe.text_tower()
    answers = [
        experiments.hypernyms(model, TINY, clip, 0, by, n=6)
        for by in experiments.GROUPS_BY
    ]
    assert all(
        answer.keys() == answers[0].keys() and "animal" in answer for answer in answers
    )
    assert len({tuple(answer.values()) for answer in answers}) == len(answers), (
        "what is asked with matters"
    )
    wide = replace(study, labels=replace(study.labels, other=None))
    with pytest.raises(ValueError, match="no 'other'"):
        recipe.episodes(None, wide)
    with pytest.raises(ValueError, match="by='groups'"):
        experiments.hypernyms(model, TINY, clip, 0, "groups")
    assert recipe.independence(model, study) < 1e-4
    coupled = recipe.build(TINY, study, recipe.Arm(block="bottleneck")).eval()
    assert recipe.independence(coupled, study) > 1e-3


def test_merged_words_lie_between_their_members() -> None:
    clip = recipe.text_tower()
    vector, members = (
        experiments.merged(clip, ["dog", "cat"]),
        recipe.label_vectors(clip, ["dog", "cat"]),
    )
    assert vector.norm().item() == pytest.approx(1)
    to_members = members @ vector
    assert to_members[0].item() == pytest.approx(to_members[1].item(), abs=1e-5)
    assert to_members.min() > members[0] @ members[1]


def test_other_wordings(model: recipe.Segmenter, study: recipe.Study) -> None:
    clip, seen = recipe.text_tower(), experiments.seen_words(study)
    same = experiments.reworded(model, study, clip, seen)
    own = recipe.score(model, study, "seen").iou()[:-1]
    torch.testing.assert_close(same, own, equal_nan=True)
    answers = experiments.plurals(model, study, clip)
    assert list(answers) == ["the words", "plurals", "wrong plurals"]
    changed = [i for i, word in enumerate(seen) if find(word).plural != word]
    assert answers["the words"] == pytest.approx(own[changed].nanmean().item())
    by_group = experiments.hypernyms_of_text(clip, study.labels.names[:-1])
    assert "animal" in by_group and all(0 <= share <= 1 for share in by_group.values())


def test_the_temperature_reaches_the_correlation(study: recipe.Study) -> None:
    warm = recipe.build(TINY, study, recipe.Arm(temperature=1.0))
    cold = recipe.build(TINY, study)
    image, labels = study.test["seen"].image[:1], study.labels.seen
    with torch.no_grad():
        torch.testing.assert_close(warm(image, labels), 0.07 * cold(image, labels))


def test_the_best_word_is_the_one_with_the_highest_iou(study: recipe.Study) -> None:
    class Knows(torch.nn.Module):
        """Says ``word`` where pixels are bright, and "other" elsewhere."""

        def __init__(self, word: int) -> None:
            super().__init__()
            self.word = word

        def forward(self, image, labels):
            bright = image[:, :1] > 0.5
            wins = torch.tensor([i == self.word for i in labels])[:, None, None]
            rest = torch.tensor([i == 24 for i in labels])[:, None, None]
            return (bright & wins).float() + (~bright & rest).float()

    animals = [
        i for i in study.labels.seen if find(study.labels.names[i]).group == "animal"
    ]
    word = animals[-1]
    batch = study.test["seen"]
    mask = batch.mask.clone()
    mask[0, :4] = word  # at least some pixels
    image = (mask == word).float()[:, None].expand(-1, 3, -1, -1)
    answer = replace(study, test={"seen": replace(batch, image=image, mask=mask)})
    name = study.labels.names[word]
    assert experiments.best_word(Knows(word), answer, "seen") == name
    assert experiments.best_word(Knows(word), answer, "seen", animal=True) == name
    other = experiments.best_word(Knows(word), answer, "seen", animal=False)
    assert find(other).group != "animal"


def test_scenes_of_two_objects_show_both() -> None:
    image = experiments.scene_with(("dog", "car"), 32)
    assert image.shape == (3, 32, 32)
    torch.testing.assert_close(image, experiments.scene_with(("dog", "car"), 32))


def test_confusions_are_shares_of_what_a_word_covers(
    model: recipe.Segmenter, study: recipe.Study
) -> None:
    matrix = experiments.confusion(model, study)
    size = len(study.labels.unseen) + 1
    assert matrix.shape == (size, size)
    present = study.test["unseen"].mask.unique().tolist()
    expected = [float(label in present) for label in study.labels.asked("unseen")]
    assert matrix.sum(dim=1).tolist() == pytest.approx(expected)


def test_words_share_a_direction() -> None:
    words = ("dog", "cat", "car")
    cosine = experiments.text_cosines(words)
    upper = (cosine[0, 1] + cosine[0, 2] + cosine[1, 2]).item() / 3
    assert experiments.mean_cosine(words) == pytest.approx(upper, abs=1e-5)


def test_lists_of_words_keep_what_they_mean(
    model: recipe.Segmenter, study: recipe.Study
) -> None:
    seen = experiments.seen_words(study)
    animal = next(word for word in seen if find(word).group == "animal")
    thing = next(word for word in seen if find(word).group != "animal")
    lists, same = experiments.scene_lists(animal, thing, study)
    assert all(words for words in lists.values())
    assert lists["a word is missing"] == [thing, "other"]
    assert set(same.values()) <= {animal, thing}
    clip, image = recipe.text_tower(), study.test["seen"].image[0]
    one, other = (
        experiments.answer(model, clip, image, lists[title])
        for title in ("its names", "another order")
    )
    order = torch.tensor([2, 1, 0])
    assert (order[one] == other).all(), "the order of the words does not matter"
    labels, places = experiments.animals_as_one(model, clip, image, study, thing)
    animals = [word for word in seen if find(word).group == "animal"]
    assert labels == [f"{len(animals)} animals", thing, "other"]
    alone = experiments.answer(model, clip, image, [*animals, thing, "other"])
    assert ((places == 0) == (alone < len(animals))).all()
    assert ((places == 2) == (alone == len(animals) + 1)).all()
    streets, synonyms = experiments.street_lists(NAMES)
    known = {synonyms.get(word, word) for words in streets.values() for word in words}
    assert known == set(NAMES)


def test_groups_that_the_text_tower_knows_are_averaged(
    model: recipe.Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"name": {"animal": 0.2, "food": 0.4, "sport": float("nan"), "body": 0.9}}
    for by in ("wrong name", "mean", "any"):
        rows[by] = {"animal": 0.6, "food": 0.8, "sport": 0.1, "body": 0.1}
    monkeypatch.setattr(experiments, "hypernyms", lambda *given: rows[given[-1]])
    clip, known = recipe.text_tower(), ["animal", "food", "sport"]
    monkeypatch.setattr(experiments, "known_groups", lambda *given: known)
    mean = experiments.groups_asked(model, TINY, clip, 0)
    assert mean["name"] == pytest.approx(0.3) and mean["any"] == pytest.approx(0.5)
    assert mean["all groups, name"] == pytest.approx(0.5)


def test_known_groups_are_those_with_their_own_words_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = {"animal": 0.6, "food": 0.59, "vehicle": 1.0}
    monkeypatch.setattr(experiments, "hypernyms_of_text", lambda *given: shares)
    words = ["dog", "apple", "car"]
    known = experiments.known_groups(recipe.text_tower(), words)
    assert known == ["animal", "vehicle"]


# --- figures --------------------------------------------------------------------------


def titles(axes: object) -> list[str]:
    return [ax.get_title() for ax in axes]


def test_score_maps_say_which_word_they_are_of() -> None:
    image, scores = torch.rand(3, 8, 8), torch.rand(3, 8, 8)
    words, notes = ["dog", "car", "other"], ["(seen)", "(unseen)", "(trained)"]
    noted = figures.score_maps(image, scores, words, notes)
    assert titles(noted.axes) == [
        "image", "dog\n(seen)", "car\n(unseen)", "other\n(trained)", "winner"
    ]  # fmt: skip
    words = list(NAMES[:6])
    plain = figures.score_maps(image, torch.rand(6, 8, 8), words)
    assert titles(plain.axes) == ["image", *words, "winner"]


def test_examples_show_only_what_is_asked_for(study: recipe.Study) -> None:
    wide = replace(study, labels=replace(study.labels, other=None))
    fig = figures.data_examples(wide, columns=1, rows=(0, 1))
    assert titles(fig.axes[:4]) == ["seen words"] * 2 + ["unseen words"] * 2
    legends = [ax.get_legend() for ax in fig.axes[4:]]
    named = {text.get_text() for one in legends if one for text in one.get_texts()}
    assert named and "other" not in named


def test_words_for_the_same_thing_share_a_colour() -> None:
    places = torch.zeros(4, 4, dtype=torch.long)
    answered = {
        "names": (["dog", "other"], places),
        "order": (["other", "pet"], 1 - places),
    }
    fig = figures.answers(torch.rand(3, 4, 4), answered, {"pet": "dog"})
    one, two = (ax.images[0].get_array() for ax in fig.axes[1:3])
    assert (one == two).all()
    fig = figures.answers(torch.rand(3, 4, 4), answered, {})
    one, two = (ax.images[0].get_array() for ax in fig.axes[1:3])
    assert (one != two).any()


def test_results_of_several_seeds_can_be_drawn(tmp_path: Path) -> None:
    both = {"seen": 0.3, "unseen": 0.1}
    kinds = {kind: both for kind in ("words", "random", "deranged")}
    towers = ("no mask", "masks, tower of captions", "masks, tower of labels")
    long = {"steps": [1, 2], "validation": [0, 0.1], "unseen": [0, 0.1], "seen": [0, 1]}
    rows = {
        "vectors": [kinds] * 2,
        "seen": [{"words": {"seen": 0.3}, "learned": {"seen": 0.2}}] * 2,
        "towers": [dict.fromkeys(towers, both)] * 2,
        "blocks": [{"words": 0.3, "depthwise 4": 0.0}] * 2,
        "long": [long] * 2,
        "temperature": [{"0.07": both, "1": both}] * 2,
    }
    fig = figures.full_results([long] * 2, rows)
    assert titles(fig.axes)[3] == "seen words: blocks" and len(fig.axes) == 6
    assert len(figures.over_training(long).lines) == 3
    run = chapter.open(profile="quick", seed=0, device="cpu", out=tmp_path)
    told = chapter.said(run)
    assert [what for what, _ in told] == list(chapter.SAID)
    assert all("%" in text or text == "not yet measured" for _, text in told)


# --- the chapter ----------------------------------------------------------------------


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 1), ("test", 3)):
        for number in range(count):
            for folder, array in (
                (split, random.integers(0, 255, (36, 48, 3), np.uint8)),
                (f"{split}annot", random.integers(0, 12, (36, 48)).astype(np.uint8)),
            ):
                (tmp_path / folder).mkdir(exist_ok=True)
                Image.fromarray(array).save(tmp_path / folder / f"{number}.png")
    return tmp_path


SMALL = chapter.Values(
    lab=recipe.Lab(features=8, batch_size=3, steps=2, tower_steps=1), frame=(36, 48)
)


def test_camvid_as_a_study(camvid: Path) -> None:
    study = chapter.photos_study(SMALL, 1, "cpu", camvid)
    assert study.labels.names == NAMES and study.labels.asked("seen") == tuple(
        range(len(NAMES))
    )
    batch = study.batches(0)
    assert batch.image.shape == (3, 3, 36, 48) and batch.mask.shape == (3, 36, 48)
    assert list(study.test) == ["seen"] and len(study.test["seen"]) == 3
    untrained = recipe.build(SMALL.lab, study).eval()
    assert set(experiments.by_class(untrained, study)) == set(NAMES)


def test_the_cells_of_profile_photos(camvid: Path, tmp_path: Path) -> None:
    run = opened("photos", SMALL, tmp_path / "out", camvid)
    model, history = run.train("LSeg")
    assert not model.training and titles(figures.training_curves(history).axes)
    arms = chapter.Trainings(run, model)
    fixed = {kind: arms(kind).model for kind in ("words", "learned")}
    assert fixed["words"] is model and fixed["learned"].vectors.requires_grad
    rows = experiments.street_pictures(fixed, run.study, rows=(0, 2))
    assert [list(row) for row in unpacked(rows)] == [
        ["image", "truth", "words", "learned"]
    ] * 2
    table = {kind: experiments.by_class(arm, run.study) for kind, arm in fixed.items()}
    shown = experiments.camvid_rows([table, table])
    assert [row[0] for row in shown] == [*NAMES, "**mean**"]
    assert experiments.camvid_rows([]) == []
    assert plotting.table(["class"], []).data.startswith("No record")
    assert (
        titles(figures.data_examples(run.study, 2, rows=(0, 1)).axes)[:2]
        == ["seen words"] * 2
    )


def opened(
    profile: str, values: chapter.Values, out: Path, data: Path | str = ""
) -> Run:
    """A run of the chapter at other values, of seed 1."""
    tiny = replace(chapter.CHAPTER, profiles=dict.fromkeys(chapter.PROFILES, values))
    return tiny.open(profile=profile, seed=1, device="cpu", out=out, data=data)


def test_photos_without_data_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="get_camvid.py"):
        chapter.open(profile="photos", seed=0, out=tmp_path)
    given = parameters.check(profile="photos", seed=0, out=tmp_path, data=tmp_path)
    with pytest.raises(FileNotFoundError, match="get_camvid.py"):
        chapter.CHAPTER.training(given)
    with pytest.raises(ValueError, match="needs the authors' checkpoints"):
        chapter.open(profile="paper", seed=0, out=tmp_path)


def test_main_training_is_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = recipe.pretrained(TINY, 2)
    monkeypatch.setattr(recipe, "pretrained", lambda *given: tower)
    given = parameters.check(profile="quick", seed=2, device="cpu", out=tmp_path)
    training = chapter.CHAPTER.training(given)
    assert training.config.steps == chapter.PROFILES["quick"].lab.steps
    assert training.config.lr_factors == (("lseg.backbone.", 0.1),)
    loss = training.loss(training.model, training.batches(0))["loss"]
    assert loss.isfinite()


# --- at paper scale -------------------------------------------------------------------


def test_fss_protocol_on_a_folder_of_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper, "SIDE", 64)
    classes = ["adhensive_tape", "bus"]
    for name in classes:
        (tmp_path / name).mkdir()
        mask = np.zeros((56, 56), np.uint8)
        mask[10:40, 10:40] = 128
        Image.fromarray(np.repeat(mask[..., None], 3, axis=2)).save(
            tmp_path / name / "1.jpg"
        )
        Image.fromarray(mask).save(tmp_path / name / "1.png")
    listing = tmp_path / "test.txt"
    listing.write_bytes(b"bus\r\nadhensive_tape\r\n")
    assert paper.read_classes(listing) == classes
    _, target = paper.read_pair(tmp_path / "bus", 1)
    assert target.shape == (64, 64) and target.unique().tolist() == [0, 1]
    torch.manual_seed(0)
    model = LSeg(
        LSegConfig(ResNetBackbone((1, 1, 1, 1), 8, 4), features=8, embed_dim=128)
    )
    score = paper.evaluate_fss(
        model, recipe.text_tower(), tmp_path, classes, examples=[1]
    )
    assert 0 <= score.mean_iou() <= 1 and score.union[1].min() >= target.sum()
    with pytest.raises(FileNotFoundError, match="expected FSS-1000's"):
        paper.evaluate_fss(model, recipe.text_tower(), tmp_path, ["car"])


def test_an_example_is_read_as_its_mask_means_it(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # shown upright this picture would be turned by 90 degrees
    picture = Image.new("RGB", (60, 40))
    picture.paste((255, 255, 255), (0, 0, 60, 20))
    picture.save(tmp_path / "1.jpg", exif=turned, quality=95)
    mask = Image.new("L", (60, 40))
    mask.paste(255, (0, 0, 60, 20))
    mask.save(tmp_path / "1.png")
    image, target = paper.read_pair(tmp_path, 1)
    assert image.mean(0)[target == 1].mean() > 0.95
    assert image.mean(0)[target == 0].mean() < 0.05
    data = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadFile, match="1.jpg"):
        paper.read_pair(tmp_path, 1)


def test_checkpoints_are_read_without_running_code(tmp_path: Path) -> None:
    good = tmp_path / "good.ckpt"
    torch.save(
        {"state_dict": {"net.scratch.head1.weight": torch.ones(1)}, "epoch": 3}, good
    )
    assert paper.load_checkpoint(good).keys() == {"net.scratch.head1.weight"}
    with pytest.raises(FileNotFoundError, match="lang-seg"):
        paper.load_checkpoint(tmp_path / "none.ckpt")
    bad = tmp_path / "bad.ckpt"
    torch.save({"state_dict": recipe.Lab}, bad)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        paper.load_checkpoint(bad)
