"""The small sets of real photographs that the chapters read at profile ``photos``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from minilib.batch import Batch, required
from minilib.datasets import PhotoFolder, load_photos
from minilib.datasets.augment import shift_and_mirror
from minilib.datasets.bccd import Bccd, load_bccd
from minilib.datasets.camvid import CamVid, load_camvid
from minilib.datasets.density import points_inside
from minilib.recipes.shared.counting import Questions
from minilib.recipes.shared.randomness import seeded
from minilib.scenes.renderer import density_map


def class_folders(
    data: Path, size: int, seed: int, device: torch.device | str = "cpu"
) -> tuple[PhotoFolder, PhotoFolder]:
    """Return train and test photographs of a folder per class, or of a zip of it.

    Args:
        data: the folder or zip.
        size: side of the square images in pixels.
        seed: which photographs are held out where there is no test folder.
        device: where batches live.

    Raises:
        ValueError: ``data`` is not laid out so (see ``minilib.datasets``).
        FileNotFoundError: nothing is there.
    """
    return load_photos(data, size=size, device=device, seed=seed)


# --- CamVid --------------------------------------------------------------------------


@lru_cache(maxsize=6)
def camvid(data: Path, split: str, size: tuple[int, int]) -> CamVid:
    """Return a split of CamVid at ``size`` (rows, columns); decoded once a process.

    Raises:
        FileNotFoundError: it is not CamVid as
            ``data_scripts/get_camvid.py`` lays it out.
    """
    return load_camvid(data, split, size)


@dataclass(frozen=True)
class CamVidStream:
    """``step -> Batch`` of training frames with masks, a pure function of the step."""

    frames: CamVid
    """The split to draw from."""
    batch_size: int
    """Frames of a batch."""
    seed: int
    """Of order and augmentation."""
    device: torch.device | str = "cpu"
    """Where batches live."""

    def __call__(self, step: int) -> Batch:
        """Return the batch of ``step``: every frame once an epoch, moved by up to an
        eighth of the shorter side, half of them mirrored."""
        size, count = self.batch_size, len(self.frames)
        position = torch.arange(step * size, (step + 1) * size)
        epochs = (position // count).unique().tolist()
        orders = [
            torch.randperm(count, generator=_mixed(self.seed, epoch))
            for epoch in epochs
        ]
        order = torch.cat(orders)
        batch = self.frames.batch(order[position - epochs[0] * count], self.device)
        chance = _mixed(self.seed, step, 1)
        reach = min(batch.image.shape[-2:]) // 8
        shift = torch.randint(-reach, reach + 1, (size, 2), generator=chance)
        mirror = torch.rand(size, generator=chance) < 0.5
        return _moved(batch, shift, mirror)


def _moved(batch: Batch, shift: Tensor, mirror: Tensor) -> Batch:
    """Return images and masks shifted and mirrored alike."""
    mask = shift_and_mirror(required(batch.mask, "mask")[:, None], shift, mirror)[:, 0]
    return Batch(image=shift_and_mirror(batch.image, shift, mirror), mask=mask)


def _mixed(*numbers: int) -> torch.Generator:
    """Return a generator seeded by all of the numbers."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 1) % (2**62)
    return torch.Generator().manual_seed(state)


# --- BCCD ----------------------------------------------------------------------------


def bccd(data: Path, split: str, size: tuple[int, int]) -> Bccd:
    """Return a split of BCCD's micrographs at ``size`` (height, width).

    Raises:
        FileNotFoundError: BCCD is not there.
    """
    return load_bccd(data, split, size)


def bccd_questions(split: Bccd, sigma: float = 1.5) -> Questions:
    """Ask for every class in every one of the M micrographs.

    Questions i, i + M and i + 2M are about image i. ``sigma`` is the standard deviation
    of the target density's bells, in pixels.
    """
    pairs = [(i, c) for c in range(len(split.names)) for i in range(len(split))]
    return Questions(
        split.image,
        torch.tensor([i for i, _ in pairs]),
        tuple(split.names[c] for _, c in pairs),
        tuple(split.points(i, c) for i, c in pairs),
        sigma,
    )


def bccd_crops(
    shown: Bccd,
    images: int,
    sigma: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> Callable[[int], Batch]:
    """Return ``step -> Batch`` of square crops, mirrored at random.

    Each of the ``images`` crops is asked for all three kinds of cells, in a row.
    ``sigma`` is the standard deviation of the target density's bells, in pixels.
    """

    def batch(step: int) -> Batch:
        drawn = seeded(seed, step, 5)
        side, width = shown.image.shape[-2:]
        pixels, texts, points = [], [], []
        for row in drawn.integers(0, len(shown), images).tolist():
            left = int(drawn.integers(0, width - side + 1))
            mirrored, upended = drawn.random(2) < 0.5
            crop = shown.image[row, :, :, left : left + side]
            crop = crop.flip(-1) if mirrored else crop
            pixels.append(crop.flip(-2) if upended else crop)
            for asked, name in enumerate(shown.names):
                there = shown.points(row, asked) - torch.tensor([left, 0.0])
                there = there[points_inside(there, (side, side))]
                x = side - there[:, 0] if mirrored else there[:, 0]
                y = side - there[:, 1] if upended else there[:, 1]
                texts.append(("the " if drawn.random() < 0.5 else "") + name)
                points.append(torch.stack([x, y], dim=1).to(device))
        image = torch.stack(pixels).to(device).float() / 255
        density = density_map(points, (side, side), sigma)
        return Batch(image, texts, points=points, density=density)

    return batch
