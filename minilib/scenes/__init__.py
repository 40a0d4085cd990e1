"""EmojiScenes: one embedded data set with every kind of annotation that the
ten papers need."""

from __future__ import annotations

import numpy as np
import torch

from minilib.batch import Batch, ConceptName, required
from minilib.scenes.atlas import load_atlas
from minilib.scenes.backgrounds import BACKGROUNDS
from minilib.scenes.captions import CaptionConfig, noun_phrase, write_captions
from minilib.scenes.renderer import Rendering, density_map, render
from minilib.scenes.sampler import (
    SPLITS,
    STYLES,
    TASKS,
    TINTS,
    VERSION,
    Layout,
    SceneConfig,
    Stream,
    held_out_tint,
    sample_layout,
)
from minilib.scenes.vocabulary import (
    VOCABULARY,
    Concept,
    article,
    find,
    names,
    polysemous,
)

__all__ = [
    "BACKGROUNDS",
    "SPLITS",
    "STYLES",
    "TASKS",
    "TINTS",
    "VERSION",
    "VOCABULARY",
    "CaptionConfig",
    "Concept",
    "EmojiScenes",
    "SceneConfig",
    "article",
    "class_names",
    "find",
    "held_out_tint",
    "load_atlas",
    "names",
    "noun_phrase",
    "polysemous",
]


def class_names() -> list[str]:
    """Return the name of every mask value: the objects of the vocabulary, then
    the backgrounds."""
    return names() + list(BACKGROUNDS)


class EmojiScenes:
    """Scenes composed on the fly: the same (seed, split, index) always
    gives the same scene.

    >>> scenes = EmojiScenes(SceneConfig(size=96, objects=(1, 6)))
    >>> batch = scenes.batch("segment", n=8, split="val")
    >>> batch.image.shape, batch.mask.shape
    (torch.Size([8, 3, 96, 96]), torch.Size([8, 96, 96]))
    """

    def __init__(
        self,
        config: SceneConfig | None = None,
        captions: CaptionConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Fix what scenes look like, how captions are written and where
        images are drawn."""
        self.config = config or SceneConfig()
        self.captions = captions or CaptionConfig()
        self.device = torch.device(device)

    def with_config(self, config: SceneConfig) -> EmojiScenes:
        """Return the same data set with another SceneConfig; captions and device stay.

        >>> few = scenes.with_config(replace(scenes.config, objects=(1, 2)))
        """
        return EmojiScenes(config, self.captions, self.device)

    def layout(
        self, task: str, n: int, split: str = "train", seed: int = 0, start: int = 0
    ) -> tuple[Layout, Stream]:
        """Draw the layouts of scenes ``start`` ... ``start + n - 1``
        without rendering them.

        Raises:
            ValueError: n < 1, a negative start or seed, or an unknown task or split.
        """
        if n < 1 or start < 0:
            raise ValueError(
                f"n={n}, start={start}: expected n >= 1 scenes from a start >= 0"
            )
        stream = Stream(seed, split, np.arange(start, start + n))
        return sample_layout(self.config, task, stream), stream

    def batch(
        self, task: str, n: int, split: str = "train", seed: int = 0, start: int = 0
    ) -> Batch:
        """Render scenes ``start`` ... ``start + n - 1`` of a split,
        annotated for ``task``.

        Args:
            task: ``pairs`` (captions and their phrases), ``classify``
                (one object, label), ``segment`` (masks; values as in
                :func:`class_names`), ``detect`` (boxes and phrases), ``count`` (points
                and density of one class among distractors), ``multilabel`` (which
                classes occur), ``hierarchy`` (boxes and three-level names).
            n: number of scenes.
            split: ``train``, ``val`` or ``test``; they never share a scene.
            seed: which data set of this kind.
            start: index of the first scene.

        Returns:
            A Batch with image and caption, and the task's annotations. H,
            W = config.shape.

        Raises:
            ValueError: unknown task or split, n < 1, negative start or seed.
        """
        layout, stream = self.layout(task, n, split, seed, start)
        boxed = task in ("detect", "hierarchy", "count")
        drawn = render(
            layout, self.config.shape, self.device, masks=task == "segment", boxes=boxed
        )
        captions = write_captions(layout, self.captions, stream)
        batch = Batch(image=drawn.image, caption=[c.text for c in captions])
        concept = torch.from_numpy(layout.concept)
        if task in ("pairs", "detect"):
            batch.phrases = [c.phrases for c in captions]
        if task == "classify":
            batch.label = concept[:, 0].to(self.device)
        if task == "count":
            batch.label = torch.from_numpy(layout.target).to(self.device)
        if task == "segment":
            batch.mask = drawn.mask
        if task in ("segment", "multilabel"):
            present = torch.zeros(n, len(VOCABULARY) + 1, dtype=torch.bool)
            # the last one is a bin
            column = torch.where(concept < 0, len(VOCABULARY), concept)
            present.scatter_(1, column, True)
            batch.present = present[:, :-1].to(self.device)
        if boxed:
            self._add_objects(batch, layout, drawn, task)
        return batch

    def _add_objects(
        self, batch: Batch, layout: Layout, drawn: Rendering, task: str
    ) -> None:
        """Fill the per-object annotations, in slot order."""
        number = (layout.concept >= 0).sum(axis=1).tolist()
        concept = torch.from_numpy(layout.concept).to(self.device)[
            drawn.owner, drawn.slot
        ]

        batch.boxes = list(required(drawn.boxes, "boxes").split(number))
        batch.classes = list(concept.split(number))
        if task == "hierarchy":
            three = [
                ConceptName(noun_phrase(c.index), c.category, c.group)
                for c in VOCABULARY
            ]
            batch.concepts = [
                [three[i] for i in classes.tolist()] for classes in batch.classes
            ]
        if task == "count":
            asked = required(batch.label, "label")
            counted = [classes == asked[b] for b, classes in enumerate(batch.classes)]
            batch.points = [
                (boxes[keep, :2] + boxes[keep, 2:]) / 2
                for boxes, keep in zip(batch.boxes, counted, strict=True)
            ]
            sigma = max(1.0, min(self.config.shape) / 96)
            batch.density = density_map(batch.points, self.config.shape, sigma)
