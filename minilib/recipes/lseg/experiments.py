"""Asking a trained LSeg in words that were never labels: plurals, hypernyms, several
words merged into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.metrics.segmentation import SegmentationScore
from minilib.models.clip import CLIP
from minilib.models.lseg import embed_labels
from minilib.recipes.lseg.recipe import (
    OTHER,
    Lab,
    Segmenter,
    Study,
    predict,
    score_labels,
)
from minilib.recipes.shared.segmentation import IGNORED, renumber, scene_labels
from minilib.scenes import VOCABULARY, EmojiScenes, SceneConfig, find

GROUPS_BY = ("name", "wrong name", "mean", "any")
"""What stands for a group of words: its own name, another group's, the mean of its
members' vectors, or any member."""


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
    batch = replace(batch, mask=renumber(batch.mask, study.labels.asked("seen")))
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
    group_of = range(len(groups))  # the group that each vector stands for
    if by == "mean":
        text = torch.stack(
            [
                merged(clip, [w for w in lab.words if find(w).group == group])
                for group in groups
            ]
        )
    elif by == "any":
        text, group_of = (
            embed_labels(clip, lab.words),
            [groups.index(find(word).group) for word in lab.words],
        )
    else:
        text = embed_labels(clip, groups).roll(int(by == "wrong name"), dims=0)
    text = torch.cat([text, embed_labels(clip, [OTHER])]).to(device)
    group_of = torch.tensor([*group_of, len(groups)], device=device)
    result = SegmentationScore(len(groups) + 1, IGNORED)
    prediction = group_of[
        predict(Segmenter(model.lseg, text), batch.image, range(len(text)))
    ]
    result.update(prediction, table[batch.mask])
    return dict(zip(groups, result.iou().tolist(), strict=False))


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
