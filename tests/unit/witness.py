"""Notes what experiments really draw, train and compare.

A :class:`Witness` (the fixture ``witness``; ``drawn_scenes``, ``trainings`` and
``probes`` are its lists) wraps the scenes, the photographs, the training loop and the
linear probe. What those cannot know, a chapter's ``arms.py`` declares: which arms are
compared, which images judge them, which rows a shuffled control was dealt. The tests
of ``test_what_is_drawn.py`` then ask the same of every chapter.

``tests/unit/<paper>/arms.py`` holds one function, which runs the chapter's experiments
at tiny values::

    def arms(out: Path, seed: int, witness: Witness) -> None:
        study = recipe.scenes_study(TINY, seed)
        for kind in ("words", "shuffled"):
            with witness.arm(kind):  # names whatever is trained inside
                recipe.train(TINY, study, kind, seed)
        witness.compare("words", "shuffled")
        witness.judge(study.test["unseen"].image)
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import minilib.recipes
from minilib.metrics import LinearProbe
from minilib.recipes.shared import photographs
from minilib.scenes import EmojiScenes, SceneConfig
from minilib.scenes.renderer import render
from minilib.scenes.sampler import Layout
from minilib.training import TrainConfig, fit
from minilib.training.identity import weights_digest


@dataclass(frozen=True)
class Drawn:
    """Scenes that were drawn in one call of ``EmojiScenes.layout``."""

    task: str
    split: str
    seed: int
    start: int
    n: int
    config: SceneConfig
    """Among others the classes and the combinations of colours that may occur."""
    phase: str
    """"training" or "evaluating" inside the training loop, else what the test said
    ("judging", "fitting"), else ""."""
    arm: str
    """The training, as ``Trained.arm``, or what the test said."""

    @property
    def scenes(self) -> set[tuple[str, int, int]]:
        """The scenes as (split, seed, index)."""
        indices = range(self.start, self.start + self.n)
        return {(self.split, self.seed, index) for index in indices}


@dataclass(frozen=True)
class Seen:
    """One batch that the training loop handed to a loss."""

    images: tuple[int, ...]
    """A digest of each image, equal for its mirror image."""
    captions: tuple[str, ...]


@dataclass
class Trained:
    """One call of the training loop."""

    arm: str
    """What the test said (``with witness.arm(...)``), with a number from the second
    training inside on: "words", "words 2". Where it said nothing, the folder's name,
    the progress bar's title or "training"."""
    config: TrainConfig
    out: Path | None
    identity: Mapping[str, str]
    before: str
    """Digest of the weights that it began with."""
    after: str = ""
    """Digest of those that it ended with."""
    batches: dict[tuple[int, ...], Seen] = field(default_factory=dict)
    """By step; by (step, part, parts) where the loop asked for a part."""

    @property
    def images(self) -> set[int]:
        """Digests of all images trained on."""
        return {image for seen in self.batches.values() for image in seen.images}

    @property
    def captions(self) -> set[str]:
        """All captions trained on."""
        return {text for seen in self.batches.values() for text in seen.captions}


@dataclass
class Probed:
    """One fit of a linear probe, and what it was asked afterwards; digests of rows of
    features."""

    arm: str
    fitted: set[int]
    judged: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Dealt:
    """What a shuffled control was dealt, beside what is right: rows of vectors, or
    words."""

    name: str
    right: tuple[Any, ...]
    dealt: tuple[Any, ...]


class Witness:
    """What was drawn, trained, probed and declared, in order."""

    def __init__(self) -> None:
        self.scenes: list[Drawn] = []
        self.trainings: list[Trained] = []
        self.probes: list[Probed] = []
        self.judges: list[tuple[str, set[int]]] = []
        """Per declared set of judging images its name and digests."""
        self.fits: list[tuple[str, set[int]]] = []
        """The same for images that a baseline was fitted to."""
        self.compared: list[tuple[str, ...]] = []
        self.budgets: list[tuple[tuple[str, ...], frozenset[str]]] = []
        self.dealt: list[Dealt] = []
        self.words: list[tuple[set[str], set[str]]] = []
        """Per declaration the seen and the unseen names."""
        self.same_start: list[str] = []
        self._sources: dict[int, set[tuple[str, int | None]]] = {}
        self._layouts: list[tuple[Layout, tuple[str, int | None]]] = []
        self._labels: list[str] = []
        self._phases: list[str] = []
        self._running: list[str] = []

    # --- what a chapter's arms.py says ------------------------------------------------

    @contextmanager
    def arm(self, name: str) -> Iterator[None]:
        """Name what is drawn and trained inside."""
        self._labels.append(name)
        try:
            yield
        finally:
            self._labels.pop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Say that what is drawn inside is for "judging" or "fitting"."""
        self._phases.append(name)
        try:
            yield
        finally:
            self._phases.pop()

    def compare(self, *arms: str, budget_only: bool = False, but: str = "") -> None:
        """Say that arms (patterns as in ``fnmatch``) are compared with each other: all
        have the same configuration and see the same images at the same steps.

        Args:
            arms: two or more, or a pattern that several match.
            budget_only: they see other images by design, such as of fewer classes.
            but: fields of TrainConfig that may differ by design, separated by blanks.
        """
        if not budget_only:
            self.compared.append(arms)
        self.budgets.append((arms, frozenset(but.split())))

    def judge(self, image: Tensor, name: str = "") -> None:
        """Say that arms are judged on images (N, 3, H, W) in [0, 1] or uint8."""
        self.judges.append((name, set(digests(image))))

    def fit(self, image: Tensor, name: str = "") -> None:
        """Say that a baseline or a threshold was fitted to images."""
        self.fits.append((name, set(digests(image))))

    def deal(self, name: str, right: Any, dealt: Any) -> None:
        """Say what a shuffled control got (rows of a tensor, or words) beside what is
        right: it must be a derangement."""
        self.dealt.append(Dealt(name, _rows(right), _rows(dealt)))

    def unseen(self, seen: Sequence[str], unseen: Sequence[str]) -> None:
        """Say which names were trained on and which were not."""
        self.words.append((set(seen), set(unseen)))

    def starts_alike(self, *arms: str) -> None:
        """Say that arms begin with the same weights whatever the seed, such as a
        checkpoint to which nothing is added."""
        self.same_start += arms

    # --- what tests ask ---------------------------------------------------------------

    def matching(self, patterns: Sequence[str]) -> list[Trained]:
        """Return the trainings whose arm matches one of the patterns.

        Raises:
            AssertionError: a pattern matches none.
        """
        found: list[Trained] = []
        for pattern in patterns:
            here = [t for t in self.trainings if fnmatchcase(t.arm, pattern)]
            every = [t.arm for t in self.trainings]
            assert here, f"no training is called {pattern!r}; there are {every}"
            found += [t for t in here if t not in found]
        return found

    def sources(self, images: set[int]) -> set[tuple[str, int | None]]:
        """Return (split, seed) of images (digests), the seed of photographs being None;
        what was cropped or shifted has no known source."""
        return set().union(*(self._sources.get(image, set()) for image in images))

    def splits(self, images: set[int]) -> set[str]:
        """Return the splits from which images (digests) come."""
        return {split for split, _ in self.sources(images)}

    def seeds(self, images: set[int]) -> set[int]:
        """Return the seeds of the scenes among images (digests)."""
        return {seed for _, seed in self.sources(images) if seed is not None}

    # --- what is wrapped --------------------------------------------------------------

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Wrap scenes, photographs, the training loop and the probe until ``patch`` is
        undone."""
        for module in pkgutil.walk_packages(
            minilib.recipes.__path__, "minilib.recipes."
        ):
            importlib.import_module(module.name)
        patch.setattr(EmojiScenes, "layout", self._layout(EmojiScenes.layout))
        _everywhere(patch, render, self._render)
        _everywhere(patch, fit, self._fit)
        for name in ("load_camvid", "load_bccd", "load_photos"):
            read = getattr(photographs, name)
            patch.setattr(photographs, name, self._photographs(read))
        plain = LinearProbe.fit.__func__
        patch.setattr(LinearProbe, "fit", classmethod(self._probe_fit(plain)))
        patch.setattr(LinearProbe, "logits", self._probe_logits(LinearProbe.logits))

    def _label(self) -> str:
        return self._running[-1] if self._running else "/".join(self._labels)

    @contextmanager
    def inside(self, training: str, phase: str) -> Iterator[None]:
        """Say that what is drawn is for a running training."""
        self._running.append(training)
        try:
            with self.phase(phase):
                yield
        finally:
            self._running.pop()

    def _layout(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def layout(
            scenes: EmojiScenes,
            task: str,
            n: int,
            split: str = "train",
            seed: int = 0,
            start: int = 0,
        ) -> Any:
            drawn, stream = plain(scenes, task, n, split, seed, start)
            phase = self._phases[-1] if self._phases else ""
            about = (task, split, seed, start, n, scenes.config)
            self.scenes.append(Drawn(*about, phase, self._label()))
            self._layouts.append((drawn, (split, seed)))
            return drawn, stream

        return layout

    def _render(self, layout: Layout, *args: Any, **named: Any) -> Any:
        picture = render(layout, *args, **named)
        self._note(picture.image, self._source_of(layout))
        return picture

    def _note(self, image: Tensor, source: tuple[str, int | None]) -> None:
        for one in digests(image):
            self._sources.setdefault(one, set()).add(source)

    def _source_of(self, layout: Layout) -> tuple[str, int | None]:
        """Return split and seed of a layout, which may have been cut or changed since
        it was drawn."""
        mine = _arrays(layout)
        for drawn, source in reversed(self._layouts):
            if any(np.shares_memory(a, b) for a in mine for b in _arrays(drawn)):
                return source
        return "", None

    def _photographs(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def load(*args: Any, **named: Any) -> Any:
            result = read(*args, **named)
            if isinstance(result, tuple):  # a folder per class: train and test
                halves = zip(("train", "test"), result, strict=True)
                found = [(split, photos._pixels) for split, photos in halves]
            else:
                split = named.get("split", args[1] if len(args) > 1 else "")
                found = [(split, result.image)]
            for split, pixels in found:
                rows = pixels if pixels.shape[1] == 3 else pixels.movedim(-1, 1)
                self._note(rows, (split, None))
            return result

        return load

    def _fit(
        self,
        model: nn.Module,
        loss: Callable[..., Any],
        batches: Callable[[int], Any],
        config: TrainConfig,
        **named: Any,
    ) -> Any:
        out = named.get("out")
        title = Path(out).name if out else named.get("progress") or "training"
        own = self._label() or title
        before = [t for t in self.trainings if re.sub(r" \d+$", "", t.arm) == own]
        own = f"{own} {len(before) + 1}" if before else own
        told = named.get("identity") or {}
        note = Trained(
            own,
            config,
            None if out is None else Path(out),
            told,
            weights_digest(model),
        )
        self.trainings.append(note)
        if (evaluate := named.get("evaluate")) is not None:
            named["evaluate"] = self._evaluating(evaluate, own)
        kind = _PartlyWatched if hasattr(batches, "part") else _Watched
        history = fit(model, loss, kind(self, note, batches), config, **named)
        note.after = weights_digest(model)
        return history

    def _evaluating(self, evaluate: Callable[..., Any], own: str) -> Callable[..., Any]:
        def watched(model: nn.Module) -> Any:
            with self.inside(own, "evaluating"):
                return evaluate(model)

        watched.__wrapped__ = evaluate  # type: ignore[attr-defined]
        return watched

    def _probe_fit(self, plain: Callable[..., LinearProbe]) -> Callable[..., Any]:
        def fitted(kind: type, x: Tensor, *args: Any, **named: Any) -> LinearProbe:
            probe = plain(kind, x, *args, **named)
            note = Probed(self._label(), set(_rows(x)))
            self.probes.append(note)
            probe.note = note  # type: ignore[attr-defined]
            return probe

        return fitted

    def _probe_logits(self, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def logits(probe: LinearProbe, x: Tensor) -> Tensor:
            note = getattr(probe, "note", None)
            if note is not None:
                note.judged |= set(_rows(x))
            return plain(probe, x)

        return logits


class _Watched:
    """``step -> batch`` that notes every batch."""

    def __init__(
        self,
        witness: Witness,
        note: Trained,
        batches: Callable[..., Any],
    ) -> None:
        self.witness, self.note = witness, note
        self.__wrapped__ = batches  # whose source tells one training from another

    def __call__(self, step: int) -> Any:
        with self.witness.inside(self.note.arm, "training"):
            batch = self.__wrapped__(step)
        self.note.batches[step,] = _seen(batch)
        return batch


class _PartlyWatched(_Watched):
    """The same for batches that can be made in parts."""

    def part(self, step: int, index: int, parts: int) -> Any:
        with self.witness.inside(self.note.arm, "training"):
            batch = self.__wrapped__.part(step, index, parts)  # type: ignore[attr-defined]
        self.note.batches[step, index, parts] = _seen(batch)
        return batch


def digests(image: Tensor) -> list[int]:
    """Return a digest of each image (N, 3, H, W), in [0, 1] or uint8: equal for an
    image, its mirror image and its rounding to 256 levels."""
    levels = image if image.dtype == torch.uint8 else (image * 255).round()
    whole = levels.detach().to("cpu", torch.uint8)
    pairs = zip(whole.contiguous(), whole.flip(-1).contiguous(), strict=True)
    return [
        min(hash(one.numpy().tobytes()), hash(other.numpy().tobytes()))
        for one, other in pairs
    ]


def _seen(batch: Any) -> Seen:
    captions = getattr(batch, "caption", None) or ()
    images = [image for found in _images(batch) for image in digests(found)]
    return Seen(tuple(images), tuple(captions))


def _images(batch: Any) -> Iterator[Tensor]:
    """Yield the images of a batch: its field of that name, else whatever looks so."""
    if isinstance(batch, Tensor):
        if batch.ndim == 4 and batch.shape[1] == 3:
            yield batch
    elif hasattr(batch, "image"):
        yield batch.image
    elif is_dataclass(batch):
        for part in fields(batch):
            yield from _images(getattr(batch, part.name))
    elif isinstance(batch, Mapping):
        yield from _images(list(batch.values()))
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _images(part)


def _arrays(layout: Layout) -> list[np.ndarray]:
    return [value for value in vars(layout).values() if isinstance(value, np.ndarray)]


def _rows(values: Any) -> tuple[Any, ...]:
    """Return rows that can be compared: digests of a tensor's, or the words
    themselves."""
    if isinstance(values, Tensor):
        rows = values.detach().to("cpu", torch.float32).contiguous()
        return tuple(hash(row.numpy().tobytes()) for row in rows)
    return tuple(values)


def _everywhere(patch: pytest.MonkeyPatch, plain: Any, other: Any) -> None:
    """Replace a function in every module of minilib and of its tests that imported
    it."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("minilib", "tests"):
            for key, value in list(vars(module).items()):
                if value is plain:
                    patch.setattr(module, key, other)
