"""Photographs in one folder per class, as batches: the reader's own, or any public
classification set."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minilib.batch import Batch, required
from minilib.datasets.augment import shift_and_mirror
from minilib.datasets.decode import load_pixels
from minilib.datasets.tree import (
    TEST_FOLDERS,
    TRAIN_FOLDERS,
    list_photographs,
    open_tree,
    split_folders,
)

CAPTION_TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a small photo of a {}.",
    "a close-up photo of a {}.",
    "a blurred photo of a {}.",
    "a snapshot with a {} in it.",
    "here you see a {}.",
    "this is a {}.",
)
TASKS = ("pairs", "classify")
# pixels up to this size live on the device, larger sets stay in the mapped file
DEVICE_BYTES = 4 * 2**30


class PhotoFolder:
    """Photographs in class folders: ``root/<split>/<class>/*``, or ``root/<class>/*``
    with ``split=None``.

    Everything is decoded once, to squares of ``size`` pixels, and kept in a cache
    folder outside ``root`` (``$MINILIB_CACHE`` or the platform's), so that the next
    start takes a moment. A batch is a pure function of (seed, start, n): position p
    of the endless stream is in epoch p // N, and every epoch is one shuffle of all N
    photographs, so training resumes exactly and batches of another size go through
    the same stream.

    Attributes:
        names: class names, ``names[label]``: the folder names with spaces
            for underscores.
        labels: (N,) int64, on ``device``.
        paths: the N files, relative to ``root``.
        skipped: unreadable files left out, with the reason.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        size: int = 32,
        device: torch.device | str = "cpu",
        *,
        names: Mapping[str, str] | None = None,
        templates: Sequence[str] = CAPTION_TEMPLATES,
        skip_unreadable: bool = False,
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        """Open the photographs, decoding them if that was not done before.

        Args:
            root: a folder or a zip file.
            split: the split's folder, such as ``"train"``; None where there is only a
                folder per class.
            size: side of the square images, in pixels.
            device: where batches live.
            names: plain English for folder names that are not in it
                (``{"n02084071": "dog"}``).
            templates: captions with ``{}`` for the class name.
            skip_unreadable: leave out files that cannot be read, instead of stopping.
            cache: folder for the decoded pixels.
            progress: show a progress bar while decoding.

        Raises:
            FileNotFoundError: nothing is at ``root``.
            ValueError: the layout is not as described, a photograph is unreadable, or a
                value is out of range.
        """
        if size < 1:
            raise ValueError(
                f"size={size}: expected the side of the images in pixels, 1 or more"
            )
        if (
            wrong := [template for template in templates if template.count("{}") != 1]
            or not templates
        ):
            raise ValueError(
                f"templates={wrong or templates!r}: expected one {{}} in each, as in "
                f"'a photo of a {{}}.'"
            )
        self.root, self.split, self.size = Path(root).expanduser(), split, size
        self.device, self.templates = torch.device(device), tuple(templates)
        tree = open_tree(self.root)
        listing = list_photographs(tree, split)
        self.names = _class_names(listing.classes, names or {})
        pixels, self.skipped = load_pixels(
            tree,
            listing.paths,
            size,
            cache=Path(cache).expanduser() if cache else None,
            skip_unreadable=skip_unreadable,
            progress=progress,
        )
        kept = [
            row for row, path in enumerate(listing.paths) if path not in self.skipped
        ]
        self.paths = tuple(listing.paths[row] for row in kept)
        self.labels = torch.tensor(
            [listing.labels[row] for row in kept], dtype=torch.int64, device=self.device
        )
        if bare := set(range(len(self.names))) - set(self.labels.tolist()):
            raise ValueError(
                f"no readable photograph of {self.names[min(bare)]!r} in {self.root}: "
                "add some"
            )
        self._pixels = torch.from_numpy(pixels)
        if pixels.nbytes <= DEVICE_BYTES:
            self._pixels = self._pixels.to(self.device)
        self._rows = torch.tensor(kept, device=self._pixels.device)

    def __len__(self) -> int:
        """Return the number of photographs."""
        return len(self.paths)

    def __repr__(self) -> str:
        """Return a summary for a notebook."""
        skipped = f", {len(self.skipped)} unreadable left out" if self.skipped else ""
        split = f"{self.split}: " if self.split else ""
        counts = f"{len(self):,} photographs of {len(self.names)} classes"
        return (
            f"PhotoFolder({self.root.name}, {split}{counts}, "
            f"{self.size}x{self.size}{skipped})"
        )

    def batch(
        self, task: str, n: int, start: int = 0, seed: int = 0, augment: bool = False
    ) -> Batch:
        """Return photographs ``start ... start + n - 1`` of the endless shuffled
        stream of ``seed``.

        Args:
            task: ``"pairs"`` (image, caption, label) or ``"classify"`` (image, label).
            n: number of photographs B.
            start: position in the stream; step ``s`` of a training uses
                ``start = s * n``.
            seed: which stream, 0 or more.
            augment: shift by up to an eighth of the size and mirror half of the images.

        Raises:
            ValueError: an unknown task, or a negative number.
        """
        if task not in TASKS:
            raise ValueError(
                f"task={task!r}: photographs in class folders serve "
                f"{' and '.join(TASKS)}"
            )
        if n < 1 or start < 0 or seed < 0:
            raise ValueError(
                f"n={n}, start={start}, seed={seed}: expected n of 1 or more and the "
                "others not negative"
            )
        draw = self._draw(n, start, seed)
        batch = self.take(draw.photograph)
        if augment:
            batch.image = shift_and_mirror(batch.image, draw.shift, draw.mirror)
        if task == "pairs":
            labels = required(batch.label, "label").tolist()
            chosen = zip(draw.template.tolist(), labels, strict=True)
            batch.caption = [
                self.templates[template].replace("{}", self.names[label])
                for template, label in chosen
            ]
        return batch

    def take(self, indices: Tensor | Sequence[int]) -> Batch:
        """Return the photographs at ``indices`` with their labels."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        pixels = self._pixels[self._rows[index.to(self._rows.device)]].to(self.device)
        return Batch(
            image=pixels.float() / 255, label=self.labels[index.to(self.device)]
        )

    def in_order(self, n: int = 500) -> Iterator[Batch]:
        """Yield every photograph once, in the order of ``paths``, n at a time, with
        labels, to evaluate."""
        for begin in range(0, len(self), n):
            yield self.take(torch.arange(begin, min(begin + n, len(self))))

    def few_shot(self, k: int, seed: int = 0) -> Tensor:
        """Return the indices (K * k,) of k photographs of each class, drawn by ``seed``
        and ordered by class.

        Raises:
            ValueError: a class has fewer than k photographs, or k is less than 1.
        """
        if k < 1:
            raise ValueError(
                f"k={k}: expected the number of photographs of each class, 1 or more"
            )
        return torch.cat([members[:k] for members in self._shuffled_classes(k, seed)])

    def subset(self, indices: Tensor | Sequence[int]) -> PhotoFolder:
        """Return a data set of only these photographs, which shares the
        pixels with this one."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        part = copy.copy(self)
        part.paths = tuple(self.paths[i] for i in index.tolist())
        part.labels = self.labels[index.to(self.device)]
        part._rows = self._rows[index.to(self._rows.device)]
        return part

    def _shuffled_classes(self, least: int, seed: int) -> list[Tensor]:
        """Return each class's indices in a random order, if it has at
        least ``least``."""
        generator, labels = _generator(seed, 0), self.labels.cpu()
        classes = [
            (labels == label).nonzero().flatten() for label in range(len(self.names))
        ]
        for name, members in zip(self.names, classes, strict=True):
            if len(members) < least:
                raise ValueError(
                    f"asked for {least} photographs of each class, but {self.root} "
                    f"has {len(members)} of {name!r}: ask for fewer or add some"
                )
        return [
            members[torch.randperm(len(members), generator=generator)]
            for members in classes
        ]

    def _draw(self, n: int, start: int, seed: int) -> _Draw:
        """Join the pieces of the epochs that positions
        ``start ... start + n - 1`` lie in."""
        pieces = []
        position, stop = start, start + n
        while position < stop:
            epoch, begin = divmod(position, len(self))
            end = min(len(self), begin + stop - position)
            drawn = _draw_epoch(
                len(self), len(self.templates), self.size // 8, seed, epoch
            )
            pieces.append([column[begin:end] for column in drawn])
            position += end - begin
        return _Draw(*map(torch.cat, zip(*pieces, strict=True)))


def load_photos(
    root: str | Path,
    size: int = 32,
    device: torch.device | str = "cpu",
    *,
    holdout: float = 0.2,
    seed: int = 0,
    names: Mapping[str, str] | None = None,
    templates: Sequence[str] = CAPTION_TEMPLATES,
    skip_unreadable: bool = False,
    cache: str | Path | None = None,
    progress: bool = True,
) -> tuple[PhotoFolder, PhotoFolder]:
    """Return the train and test photographs under ``root``, however they are laid out.

    Folders such as ``train`` and ``test`` are used if they are there (``val`` where
    there is no ``test``); otherwise the fraction ``holdout`` of each class, drawn by
    ``seed``, becomes the test set.

    Args:
        root: a folder or a zip file.
        size: side of the square images, in pixels.
        device: where batches live.
        holdout: fraction of each class held out where there is no test folder.
        seed: which photographs are held out.
        names: as for ``PhotoFolder``, like all that follow.
        templates: captions with ``{}`` for the class name.
        skip_unreadable: leave out files that cannot be read, instead of stopping.
        cache: folder for the decoded pixels.
        progress: show a progress bar while decoding.

    Raises:
        FileNotFoundError: nothing is at ``root``.
        ValueError: as ``PhotoFolder`` and ``split_holdout``.
    """
    found = {
        name.casefold(): name
        for name in split_folders(open_tree(Path(root).expanduser()))
    }
    train = next((found[name] for name in TRAIN_FOLDERS if name in found), None)
    test = next((found[name] for name in TEST_FOLDERS if name in found), None)
    if test and not train:
        raise ValueError(
            f"{root} has {test} but no train folder: expected {root}/train/"
            "<class>/ beside it"
        )

    def opened(split: str | None) -> PhotoFolder:
        return PhotoFolder(
            root,
            split,
            size,
            device,
            names=names,
            templates=templates,
            skip_unreadable=skip_unreadable,
            cache=cache,
            progress=progress,
        )

    photos = opened(train)
    return (photos, opened(test)) if test else split_holdout(photos, holdout, seed)


def split_holdout(
    photos: PhotoFolder, fraction: float = 0.2, seed: int = 0
) -> tuple[PhotoFolder, PhotoFolder]:
    """Return (kept, held out): the same fraction of every class is held out, at
    least one photograph.

    Raises:
        ValueError: the fraction is not between 0 and 1, or a class has a
            single photograph.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f"fraction={fraction}: expected the share to hold out, between 0 and 1, "
            "such as 0.2"
        )
    kept, held_out = [], []
    for members in photos._shuffled_classes(2, seed):
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out.append(members[:count])
        kept.append(members[count:])
    return photos.subset(torch.cat(kept).sort().values), photos.subset(
        torch.cat(held_out).sort().values
    )


class _Draw(NamedTuple):
    """What chance decides, for each of n positions of the stream."""

    photograph: Tensor  # (n,) place among ``paths``
    template: Tensor  # (n,) which caption template
    shift: Tensor  # (n, 2) place of the crop, pixels down and right
    mirror: Tensor  # (n,) bool


@lru_cache(maxsize=8)
def _draw_epoch(count: int, templates: int, reach: int, seed: int, epoch: int) -> _Draw:
    """Draw one epoch on the CPU, the same for every device."""
    generator = _generator(seed, epoch)
    return _Draw(
        photograph=torch.randperm(count, generator=generator),
        template=torch.randint(templates, (count,), generator=generator),
        shift=torch.randint(-reach, reach + 1, (count, 2), generator=generator),
        mirror=torch.rand(count, generator=generator) < 0.5,
    )


def _generator(seed: int, stream: int) -> torch.Generator:
    """Return a generator whose state mixes both numbers, so that neighbouring
    seeds share nothing."""
    state = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _class_names(folders: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """Turn folder names into class names: as given, else spaces for underscores."""
    if unknown := sorted(set(names) - set(folders)):
        raise ValueError(
            f"names has {unknown[0]!r}, which is not a class folder; the folders are "
            f"{', '.join(folders)}"
        )
    given = tuple(
        names.get(folder, folder.replace("_", " ").strip()) for folder in folders
    )
    first: dict[str, int] = {}
    for place, (folder, name) in enumerate(zip(folders, given, strict=True)):
        if (other := first.setdefault(_normalised(name), place)) != place:
            raise ValueError(
                f"two class folders are called {name!r}, {folders[other]} and "
                f"{folder}: rename one, join them, or say names={{{folder!r}: ...}}"
            )
    return given


def _normalised(name: str) -> str:
    """Return a name as it reads: two that differ in case, in spaces or in how an accent
    is stored are one text to a model."""
    return " ".join(unicodedata.normalize("NFC", name.casefold()).split())
