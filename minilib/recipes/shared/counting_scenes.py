"""Scenes in which the same picture can be asked many things, and the questions: "the
cats", "the red apples", "the animals".

A scene shows one class many times, up to three other classes among it, and in some
scenes the many are of two colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minilib.recipes.shared.counting import CountingScenes, Questions, counted_classes
from minilib.scenes import SPLITS, TINTS, VOCABULARY, find
from minilib.scenes.renderer import render
from minilib.scenes.sampler import Layout

KINDS = ("class", "colour", "group", "absent")
GROUPS = {
    "animal": "animals",
    "food": "food",
    "vehicle": "vehicles",
    "clothing": "clothes",
    "plant": "plants",
}
"""Groups of the vocabulary that can be asked for, and how one says them."""


@dataclass(frozen=True)
class Asked:
    """One question about one scene, as a sentence and as the objects that it means."""

    kind: str
    """One of KINDS."""
    text: str
    """What is said, without article: "red dogs"."""
    plain: str
    """The bare class name: "dogs"."""
    objects: tuple[int, ...]
    """Slots of the objects meant."""


@dataclass(frozen=True)
class DescribedScenes:
    """M scenes with every question that can be asked about them."""

    image: Tensor
    """(M, 3, H, W) uint8."""
    center: tuple[Tensor, ...]
    """Per scene (n, 2) centres of all its objects, x y in pixels, by slot."""
    asked: tuple[tuple[Asked, ...], ...]
    """Per scene its questions; the first one asks for the counted class."""
    sigma: float

    def __len__(self) -> int:
        return len(self.image)

    def questions(
        self,
        kinds: Sequence[str] = ("class",),
        plain: bool = False,
        article: bool = True,
    ) -> Questions:
        """Return the questions of some kinds, "the red dogs"; ``plain`` asks by bare
        class name whatever is meant."""
        return self._questions(self.asked, kinds, plain, article)

    def leading(self) -> Questions:
        """Return one question a scene, for what fills it: "the dogs".
        FSC-147 asks no others."""
        return self._questions(self.narrowed().asked, KINDS, False, True)

    def narrowed(self) -> DescribedScenes:
        """Return the same pictures, of which nothing but what fills them can be
        asked."""
        return replace(self, asked=tuple(asked[:1] for asked in self.asked))

    def _questions(
        self,
        askable: Sequence[Sequence[Asked]],
        kinds: Sequence[str],
        plain: bool,
        article: bool,
    ) -> Questions:
        about, texts, points = [], [], []
        for scene, asked in enumerate(askable):
            for question in asked:
                if question.kind in kinds:
                    text = question.plain if plain else question.text
                    about.append(scene)
                    texts.append(f"the {text}" if article and not plain else text)
                    points.append(self.center[scene][list(question.objects)])
        return Questions(
            self.image,
            torch.tensor(about, dtype=torch.int64),
            tuple(texts),
            tuple(points),
            self.sigma,
        )


def scenes_of(
    scenes: CountingScenes,
    n: int,
    part: str,
    split: str,
    seed: int,
    coloured: float = 0.4,
    companions: tuple[int, int] = (1, 3),
    shape: tuple[int, int] | None = None,
) -> DescribedScenes:
    """Draw ``n`` scenes of a split; a pure function of its arguments.

    Args:
        scenes: sizes and numbers.
        n: number of scenes.
        part: "train", or "test", whose classes are never counted in training; see
            ``counted_classes``.
        split: ``train``, ``val`` or ``test``.
        seed: another data set of the same kind.
        coloured: share of the scenes whose counted objects are of two colours.
        companions: least and largest number of other classes in a scene; (0, 0) leaves
            the counted class alone, as nearly every photograph of FSC-147 does.
        shape: (height, width) in pixels instead of the scenes' own square.
    """
    classes = counted_classes(part)
    drawn = np.random.default_rng([seed, SPLITS.index(split), n])
    allowed = np.array([find(name).index for name in classes])
    source = scenes.scenes(classes, shape=shape)
    layout, _ = source.layout("count", n, split, seed)
    layout = _recast(layout, allowed, coloured, companions, drawn)
    images, centers = [], []
    for start in range(0, n, 128):
        chunk = _rows(layout, slice(start, start + 128))
        picture = render(chunk, source.config.shape)
        images.append((picture.image * 255).round().to(torch.uint8))
        assert picture.boxes is not None  # they are drawn unless told otherwise
        middle = (picture.boxes[:, :2] + picture.boxes[:, 2:]) / 2
        centers += middle.split((chunk.concept >= 0).sum(axis=1).tolist())
    asked = tuple(_asked(layout, b, allowed, drawn) for b in range(n))
    return DescribedScenes(torch.cat(images), tuple(centers), asked, scenes.sigma)


def shared_out(
    scenes: CountingScenes, n: int, part: str, split: str, seed: int, several: float
) -> DescribedScenes:
    """Draw ``n`` scenes of which a share shows several classes and can be asked
    everything; the others show one class in its own colours and are asked for it.

    Only where a picture shows several classes must the question be read.

    Args:
        scenes: sizes and numbers.
        n: number of scenes.
        part: "train" or "test", as in :func:`scenes_of`.
        split: ``train``, ``val`` or ``test``.
        seed: another data set of the same kind.
        several: the share, 0 to 1.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 <= several <= 1:
        raise ValueError(f"several={several}: expected a share between 0 and 1")
    many = round(n * several)
    drawn = []
    if many:
        drawn.append(scenes_of(scenes, many, part, split, seed))
    if many < n:
        alone = scenes_of(
            scenes, n - many, part, split, seed, coloured=0.0, companions=(0, 0)
        )
        drawn.append(alone.narrowed())
    return DescribedScenes(
        torch.cat([some.image for some in drawn]),
        tuple(center for some in drawn for center in some.center),
        tuple(asked for some in drawn for asked in some.asked),
        scenes.sigma,
    )


def _rows(layout: Layout, rows: slice) -> Layout:
    """Return some scenes of a layout."""
    fields = {
        name: value[rows] for name, value in vars(layout).items() if value is not None
    }
    return replace(layout, **fields)


def _recast(
    layout: Layout,
    allowed: np.ndarray,
    coloured: float,
    companions: tuple[int, int],
    drawn: np.random.Generator,
) -> Layout:
    """Let the distractors of every scene be of few classes, and give some scenes'
    counted objects two colours."""
    assert layout.target is not None  # a layout of the task "count"
    concept, tint = layout.concept.copy(), np.full_like(layout.tint, -1)
    for b, target in enumerate(layout.target):
        others = allowed[allowed != target]
        extra = int(drawn.integers(companions[0], companions[1] + 1))
        counted, rest = concept[b] == target, (concept[b] >= 0) & (concept[b] != target)
        concept[b, rest] = (
            drawn.choice(drawn.choice(others, extra, replace=False), rest.sum())
            if extra
            else -1
        )
        if drawn.random() < coloured:
            tint[b, counted] = drawn.choice(
                drawn.choice(len(TINTS), 2, replace=False), counted.sum()
            )
    return replace(layout, concept=concept, tint=tint)


def _asked(
    layout: Layout, b: int, allowed: np.ndarray, drawn: np.random.Generator
) -> tuple[Asked, ...]:
    """Return the questions about scene ``b``: the counted class first, then colours,
    companions, groups, an absent one.

    Objects are numbered as the renderer lists them: filled slots in order.
    """
    assert layout.target is not None  # a layout of the task "count"
    concept, tint = layout.concept[b], layout.tint[b]
    filled = concept >= 0
    concept, tint = concept[filled], tint[filled]
    target = int(layout.target[b])
    questions = []
    for index in [target, *sorted(set(concept.tolist()) - {target})]:
        name = VOCABULARY[index].plural
        questions.append(Asked("class", name, name, _where(concept == index)))
    name = VOCABULARY[target].plural
    for colour in sorted(set(tint[tint >= 0].tolist())):
        questions.append(
            Asked(
                "colour", f"{list(TINTS)[colour]} {name}", name, _where(tint == colour)
            )
        )
    groups = np.array([VOCABULARY[i].group for i in concept])
    for group in sorted(set(groups.tolist()) & set(GROUPS)):
        questions.append(
            Asked("group", GROUPS[group], GROUPS[group], _where(groups == group))
        )
    missing = VOCABULARY[
        int(drawn.choice(np.setdiff1d(allowed, [*concept, target])))
    ].plural
    return (*questions, Asked("absent", missing, missing, ()))


def _where(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())
