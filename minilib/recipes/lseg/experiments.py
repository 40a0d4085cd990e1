"""What chapter 2 measures: unseen words, wordings that never were labels, and CamVid
class by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.batch import required
from minilib.claims.pictures import packed
from minilib.metrics.segmentation import SegmentationScore
from minilib.models.clip import CLIP
from minilib.models.lseg import embed_labels
from minilib.recipes.lseg.recipe import (
    OTHER,
    Arm,
    Lab,
    Segmenter,
    Study,
    build,
    label_vectors,
    make_training,
    mean_iou,
    predict,
    repeated,
    scenes_of,
    scenes_study,
    score,
    score_labels,
    text_tower,
)
from minilib.recipes.shared.randomness import derangement
from minilib.recipes.shared.segmentation import IGNORED, renumber, scene_labels
from minilib.scenes import VOCABULARY, EmojiScenes, SceneConfig, find
from minilib.training import History

GROUPS_BY = ("name", "wrong name", "mean", "any")
"""What stands for a group of words: its own name, another group's, the mean of its
members' vectors, or any member."""


def seen_words(study: Study) -> list[str]:
    """Return the words that have masks, without "other"."""
    return [study.labels.names[i] for i in study.labels.seen]


def unseen_words(study: Study) -> list[str]:
    """Return the words that have none."""
    return [study.labels.names[i] for i in study.labels.unseen]


def best_word(
    model: nn.Module, study: Study, kind: str, animal: bool | None = None
) -> str:
    """Return the word of EmojiScenes that the model finds best, "other" excepted.

    Args:
        model: see ``recipe.score``.
        study: of scenes.
        kind: "seen" or "unseen".
        animal: choose among animals, or among all others; None = among all.
    """
    iou = score(model, study, kind).iou().nan_to_num().tolist()
    words = [study.labels.names[i] for i in study.labels.counted(kind)]
    able = {
        word: value
        for word, value in zip(words, iou, strict=False)  # "other" comes last
        if animal is None or (find(word).group == "animal") == animal
    }
    return max(able, key=lambda word: able[word])


def scene_with(
    names: Sequence[str], size: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return, of 64 test scenes (3, size, size) made of these two objects, the one in
    which the smaller of them is largest."""
    config = SceneConfig(
        size=size,
        objects=(2, 2),
        classes=tuple(names),
        repeat=0.0,
        tint=0.0,
        scale=(0.85, 1.0),
    )
    batch = EmojiScenes(config, device=device).batch("segment", 64, "test", seed=3)
    mask = required(batch.mask, "mask")
    areas = torch.stack([(mask == find(name).index).sum(dim=(1, 2)) for name in names])
    return batch.image[areas.amin(dim=0).argmax()]


def confusion(model: nn.Module, study: Study) -> Tensor:
    """Return (N, N): in row i, which share of the pixels of the i-th word was called
    which word.

    The words are the unseen ones and, where the study has it, "other".
    """
    counts = score(model, study, "unseen").confusion.double()
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def text_cosines(words: Sequence[str]) -> Tensor:
    """Return the cosines (N, N) between the words' vectors."""
    vectors = label_vectors(text_tower(), words)
    return vectors @ vectors.T


def mean_cosine(words: Sequence[str]) -> float:
    """Return the mean cosine of the vectors of two different words."""
    cosine, n = text_cosines(words), len(words)
    return ((cosine.sum() - n) / (n**2 - n)).item()


# --- over-training --------------------------------------------------------------------


@dataclass(frozen=True)
class LongTraining:
    """A training in which over-training can occur: few images, many passes, a learning
    rate that does not fall."""

    images: int = 64
    """Different training images, a multiple of the batch."""
    batch_size: int = 8
    steps: int = 1500
    evaluations: int = 10


def over_training(
    lab: Lab,
    long: LongTraining,
    seed: int,
    fold: int,
    device: torch.device | str = "cpu",
    out: Path | None = None,
) -> dict[str, list[float]]:
    """Train on a few images for long, and judge unseen words along the way.

    Returns:
        "steps" of the evaluations; "validation" and "unseen", mIoU of the unseen words
        on scenes of the split "val" and on the test scenes; "seen", that of seen words.
    """
    lab = replace(lab, steps=long.steps, batch_size=long.batch_size)
    study = scenes_study(lab, seed, device, fold)
    unseen = tuple(unseen_words(study))
    validation = scenes_of(lab, unseen, device).batch(
        "segment", lab.test_images, "val", seed
    )
    mask = study.labels.from_scene(required(validation.mask, "mask"))
    chosen_on = replace(study, test={"unseen": replace(validation, mask=mask)})

    def watch(model: nn.Module) -> dict[str, float]:
        return {
            "validation": mean_iou(model, chosen_on, "unseen"),
            "unseen": mean_iou(model, study, "unseen"),
            "seen": mean_iou(model, study, "seen"),
        }

    few = repeated(study, long.images // long.batch_size)
    training = make_training(build(lab, study, Arm(), seed, device), few, lab, seed)
    config = replace(
        training.config,
        final_lr=1.0,
        evaluate_every=max(1, long.steps // long.evaluations),
    )
    history = replace(training, config=config, evaluate=watch).fit(out, "over-training")
    columns = ("validation", "unseen", "seen")
    found = {name: history.column(name)[1] for name in columns}
    return {"steps": history.column("unseen")[0], **found}


def late_gain(history: History) -> float:
    """Return how much the mIoU of seen words rose between the last two evaluations: of
    four in all, over the last quarter of the training."""
    seen = history.column("seen")[1]
    return seen[-1] - seen[-2]


def best_and_last(curve: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Return the mIoU of unseen test words at the checkpoint that other scenes of them
    choose, and at the end; see :func:`over_training`."""
    chosen = max(range(len(curve["steps"])), key=lambda i: curve["validation"][i])
    return curve["unseen"][chosen], curve["unseen"][-1]


# --- CamVid ---------------------------------------------------------------------------


def by_class(model: nn.Module, study: Study) -> dict[str, float]:
    """Return the IoU of every word of CamVid, all words being asked
    for, seen or not."""
    names = study.labels.names
    result = score(model, study, "seen", labels=tuple(range(len(names))))
    return dict(zip(names, result.iou().tolist(), strict=True))


def street_pictures(
    models: Mapping[str, nn.Module], study: Study, rows: Sequence[int] = (10, 90, 180)
) -> list[dict[str, str]]:
    """Return some test frames of CamVid for a record, see
    :func:`minilib.claims.pictures.packed`: "image", "truth" and a label map per model,
    all words being asked for."""
    batch, everywhere = study.test["seen"], range(len(study.labels.names))
    frames = batch.image[list(rows)]
    maps = {"truth": required(batch.mask, "mask")[list(rows)]}
    for name, model in models.items():
        maps[name] = predict(model, frames, everywhere)
    return packed(frames, maps)


def camvid_rows(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """Return the rows of the table of CamVid from the committed results "camvid", one
    per seed: each class, then the mean, with its mean IoU over seeds by words and by
    learned vectors."""
    if not tables:
        return []
    kinds, names = ("words", "learned"), list(tables[0]["words"])
    mean = {
        kind: [sum(t[kind][name] for t in tables) / len(tables) for name in names]
        for kind in kinds
    }
    rows = [
        [name, *(f"{mean[kind][i]:.1%}" for kind in kinds)]
        for i, name in enumerate(names)
    ]
    overall = [f"{sum(mean[kind]) / len(names):.1%}" for kind in kinds]
    return [*rows, ["**mean**", *overall]]


# --- other words for the same pixels --------------------------------------------------


@torch.no_grad()
def answer(
    model: Segmenter, clip: CLIP, image: Tensor, labels: Sequence[str]
) -> Tensor:
    """Return the place in ``labels``, any words, of the best one for each pixel (H, W)
    of an image (3, H, W) in [0, 1]."""
    vectors = embed_labels(clip, list(labels)).to(image.device)
    scores = model.lseg(model.lseg.preprocess(image[None]), vectors).scores
    return scores[0].argmax(0)


def street_lists(
    names: Sequence[str],
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return lists of words to ask a street for, by title, and which of the words say
    the same as one of CamVid's ``names``."""
    lists = {
        "the eleven names": list(names),
        "fewer": ["sky", "building", "road", "tree", "car"],
        "only two": ["road", "building"],
        "other words": ["sky", "house", "street", "plant", "vehicle"],
        "one renamed": ["sky", "house", "road", "tree", "car"],
    }
    same = {"house": "building", "street": "road", "plant": "tree", "vehicle": "car"}
    return lists, same


def scene_lists(
    animal: str, thing: str, study: Study
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return lists of words to ask a scene of two seen objects for, by title, and which
    of the words say the same as one of the two."""
    more = [word for word in seen_words(study) if word not in (animal, thing)][::5]
    plurals = find(animal).plural, find(thing).plural
    lists = {
        "its names": [animal, thing, OTHER],
        "another order": [OTHER, thing, animal],
        "more words": [animal, thing, *more, OTHER],
        "a word is missing": [thing, OTHER],
        'no "other"': [animal, thing],
        "plurals": [*plurals, OTHER],
        "hypernym": ["animal", thing, OTHER],
        "pet": ["pet", thing, OTHER],
    }
    same = {"animal": animal, "pet": animal, plurals[0]: animal, plurals[1]: thing}
    return lists, same


def animals_as_one(
    model: Segmenter, clip: CLIP, image: Tensor, study: Study, thing: str
) -> tuple[list[str], Tensor]:
    """Ask for all seen animals, for a thing and for "other", and let any animal count
    as the first label.

    Returns:
        The labels, the first of which says how many animals it stands for, and the map
        (H, W) of places in them.
    """
    animals = [word for word in seen_words(study) if find(word).group == "animal"]
    places = answer(model, clip, image, [*animals, thing, OTHER])
    merged_places = (places - len(animals) + 1).clamp(min=0)
    return [f"{len(animals)} animals", thing, OTHER], merged_places


def reworded(
    model: Segmenter,
    study: Study,
    clip: CLIP,
    phrases: Sequence[str],
    deal: int | None = None,
) -> Tensor:
    """Ask for the seen words of EmojiScenes in other words, such as their plurals: IoU
    of each (N,) on the seen test scenes.

    Args:
        model: trained with the words themselves.
        study: of scenes.
        clip: the text tower.
        phrases: one for each seen word, in their order.
        deal: seed of a derangement that gives each word the phrase of another one, as a
            control; None = its own.
    """
    text = embed_labels(clip, list(phrases), allow_duplicates=True).to(model.vectors)
    if deal is not None:
        text = text[derangement(len(text), torch.Generator().manual_seed(deal))]
    vectors = torch.cat([text, model.vectors[[study.labels.other]]])
    batch = study.test["seen"]
    mask = renumber(required(batch.mask, "mask"), study.labels.asked("seen"))
    batch = replace(batch, mask=mask)
    result = score_labels(Segmenter(model.lseg, vectors), batch, range(len(vectors)))
    return result.iou()[:-1]


def plurals(
    model: Segmenter, study: Study, clip: CLIP, seed: int = 0
) -> dict[str, float]:
    """Ask for the seen words by their names, their plurals, and plurals of wrong words:
    mIoU of each over the words whose plural is another word ("sheep" is left out)."""
    names = seen_words(study)
    many = [find(word).plural for word in names]
    changed = [i for i, word in enumerate(names) if many[i] != word]
    answers = {
        "the words": reworded(model, study, clip, names),
        "plurals": reworded(model, study, clip, many),
        "wrong plurals": reworded(model, study, clip, many, deal=seed),
    }
    return {kind: iou[changed].nanmean().item() for kind, iou in answers.items()}


def merged(clip: CLIP, names: Sequence[str]) -> Tensor:
    """Return one unit vector (C,) that stands for several words: the
    direction of their mean."""
    return F.normalize(embed_labels(clip, names).mean(dim=0), dim=0)


def hypernyms(
    model: Segmenter, lab: Lab, clip: CLIP, seed: int, by: str = "name", n: int = 96
) -> dict[str, float]:
    """Ask for groups ("animal", "food", ...), which never were labels: IoU of each on
    scenes of all words.

    Args:
        model: trained with the names of the members.
        lab: which words there are.
        clip: the text tower.
        seed: of the scenes.
        by: what is asked with, see GROUPS_BY.
        n: how many scenes.

    Raises:
        ValueError: an unknown ``by``.
    """
    if by not in GROUPS_BY:
        raise ValueError(f"by={by!r}: expected one of {', '.join(GROUPS_BY)}")
    groups = _groups(lab.words)
    device = model.vectors.device
    of_group = {c.name: groups.index(c.group) for c in VOCABULARY if c.group in groups}
    table = scene_labels(of_group, other=len(groups)).to(device)
    batch = scenes_of(lab, lab.words, device).batch("segment", n, "test", seed)
    stands_for = list(range(len(groups)))  # the group that each vector stands for
    if by == "mean":
        text = torch.stack(
            [
                merged(clip, [w for w in lab.words if find(w).group == group])
                for group in groups
            ]
        )
    elif by == "any":
        text = embed_labels(clip, lab.words)
        stands_for = [groups.index(find(word).group) for word in lab.words]
    else:
        text = embed_labels(clip, groups)
        if by == "wrong name":
            text = text[derangement(len(text), torch.Generator().manual_seed(seed))]
    text = torch.cat([text, embed_labels(clip, [OTHER])]).to(device)
    group_of = torch.tensor([*stands_for, len(groups)], device=device)
    result = SegmentationScore(len(groups) + 1, IGNORED)
    prediction = group_of[
        predict(Segmenter(model.lseg, text), batch.image, range(len(text)))
    ]
    result.update(prediction, table[required(batch.mask, "mask")])
    return dict(zip(groups, result.iou().tolist(), strict=False))


def groups_asked(model: Segmenter, lab: Lab, clip: CLIP, seed: int) -> dict[str, float]:
    """Return the mean IoU over the groups that the text tower knows, for each way of
    asking, see GROUPS_BY; then "all groups, name", over all of them.

    Which groups those are, the text tower alone says: see :func:`known_groups`.
    """
    known = known_groups(clip, lab.words)
    rows = {by: hypernyms(model, lab, clip, seed, by) for by in GROUPS_BY}
    found = {by: _mean([row[g] for g in known]) for by, row in rows.items()}
    return found | {"all groups, name": _mean(rows["name"].values())}


def _mean(values: Iterable[float]) -> float:
    return torch.tensor(list(values)).nanmean().item()


def known_groups(clip: CLIP, words: Sequence[str], share: float = 0.6) -> list[str]:
    """Return the groups of ``words`` that the text tower knows: of all words of the
    vocabulary in such a group, at least ``share`` have its name nearest among the
    groups' names."""
    names = [concept.name for concept in VOCABULARY]
    by_group = hypernyms_of_text(clip, names)
    return [group for group in _groups(words) if by_group[group] >= share]


def hypernyms_of_text(clip: CLIP, words: Sequence[str]) -> dict[str, float]:
    """Return, for each group of the words, in which share of its words the nearest
    group, by the text tower alone, is their own."""
    groups = _groups(words)
    cosines = embed_labels(clip, list(words)) @ embed_labels(clip, groups).T
    nearest = [groups[i] for i in cosines.argmax(dim=1).tolist()]
    pairs = [
        (find(word).group, found) for word, found in zip(words, nearest, strict=True)
    ]
    return {
        group: _mean([float(own == found) for own, found in pairs if own == group])
        for group in groups
    }


def _groups(words: Sequence[str]) -> list[str]:
    """Return the top-level groups of the words, in order of appearance."""
    return list(dict.fromkeys(find(word).group for word in words))
