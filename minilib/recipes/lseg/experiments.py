"""What chapter 2 measures: unseen words, wordings that never were labels, and CamVid
class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
    Lab,
    Segmenter,
    Study,
    label_vectors,
    predict,
    score,
    score_labels,
    text_tower,
)
from minilib.recipes.shared.segmentation import IGNORED, renumber, scene_labels
from minilib.scenes import VOCABULARY, EmojiScenes, SceneConfig, find

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
    per seed.

    A row is a class, its mean IoU over seeds with words and with learned vectors where
    all classes were trained, and its IoU in the runs that held it out.
    """
    if not tables:
        return []
    rows = []
    for name in tables[0]["words"]:
        trained = [
            f"{sum(table[kind][name] for table in tables) / len(tables):.1%}"
            for kind in ("words", "learned")
        ]
        held_out = [
            f"{table['words, some held out'][name]:.1%}"
            for table in tables
            if name in table["held_out"]
        ]
        rows.append([name, *trained, ", ".join(held_out) or "–"])
    means = [
        [sum(table[kind].values()) / len(table[kind]) for table in tables]
        for kind in ("words", "learned")
    ]
    return [
        *rows,
        ["**mean**", *(f"{sum(mean) / len(mean):.1%}" for mean in means), ""],
    ]


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
    wrong: bool = False,
) -> float:
    """Ask for the seen words of EmojiScenes in other words, such as their plurals: mIoU
    on the seen test scenes.

    Args:
        model: trained with the words themselves.
        study: of scenes.
        clip: the text tower.
        phrases: one for each seen word, in their order.
        wrong: permute the phrases so that each is another word's, as a control.
    """
    text = embed_labels(clip, list(phrases)).to(model.vectors)
    other = model.vectors[[study.labels.other]]
    vectors = torch.cat([text.roll(1, dims=0) if wrong else text, other])
    batch = study.test["seen"]
    mask = renumber(required(batch.mask, "mask"), study.labels.asked("seen"))
    batch = replace(batch, mask=mask)
    result = score_labels(Segmenter(model.lseg, vectors), batch, range(len(vectors)))
    return result.mean_iou(range(len(phrases)))


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
    config = SceneConfig(
        size=lab.image_size, objects=lab.objects, classes=lab.words, tint=0.0
    )
    batch = EmojiScenes(config, device=device).batch("segment", n, "test", seed)
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
        text = embed_labels(clip, groups).roll(int(by == "wrong name"), dims=0)
    text = torch.cat([text, embed_labels(clip, [OTHER])]).to(device)
    group_of = torch.tensor([*stands_for, len(groups)], device=device)
    result = SegmentationScore(len(groups) + 1, IGNORED)
    prediction = group_of[
        predict(Segmenter(model.lseg, text), batch.image, range(len(text)))
    ]
    result.update(prediction, table[required(batch.mask, "mask")])
    return dict(zip(groups, result.iou().tolist(), strict=False))


def mean_over_groups(
    groups: Mapping[str, Mapping[str, float]], clip: CLIP, words: Sequence[str]
) -> dict[str, float]:
    """Return the mean IoU over groups for each way of asking, and what the text tower
    alone would give.

    Args:
        groups: answers of :func:`hypernyms` by what was asked with.
        clip: the text tower.
        words: the members of all groups.

    Returns:
        A number per entry of ``groups``, then "text tower alone" and "chance", see
        :func:`hypernyms_of_text`.
    """
    mean = {
        by: torch.tensor(list(row.values())).nanmean().item()
        for by, row in groups.items()
    }
    alone, chance = hypernyms_of_text(clip, words)
    return mean | {"text tower alone": alone, "chance": chance}


def hypernyms_of_text(clip: CLIP, words: Sequence[str]) -> tuple[float, float]:
    """Return how often a word's nearest group, by the text tower alone, is its own, and
    what chance gives."""
    groups = _groups(words)
    nearest = (
        (embed_labels(clip, list(words)) @ embed_labels(clip, groups).T)
        .argmax(dim=1)
        .tolist()
    )
    right = [
        groups[i] == find(word).group for i, word in zip(nearest, words, strict=True)
    ]
    return sum(right) / len(right), 1 / len(groups)


def _groups(words: Sequence[str]) -> list[str]:
    """Return the top-level groups of the words, in order of appearance."""
    return list(dict.fromkeys(find(word).group for word in words))
