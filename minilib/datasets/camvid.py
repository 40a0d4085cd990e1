"""CamVid: street scenes with a class for each pixel, 11 classes and void.

Frames and masks as ``data_scripts/get_camvid.py`` lays them out: ``<folder>/<split>/*``
and ``<folder>/<split>annot/*``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from minilib.batch import Batch
from minilib.datasets.annotations import BadFile, list_folder
from minilib.datasets.decode import read_picture, read_stored
from minilib.datasets.tree import is_image

NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "sidewalk",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
SPLITS = ("train", "val", "test")
VOID = 255


@dataclass(frozen=True)
class CamVid:
    """The frames of one split, decoded; about 15 kB per frame at 96 x 72 pixels."""

    names: tuple[str, ...]
    """The 11 classes, in the order of the mask's values."""
    image: Tensor
    """(N, 3, h, w) uint8."""
    mask: Tensor
    """(N, h, w) uint8, 255 = void."""
    frames: tuple[str, ...]
    """The N frames' names."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.image)

    def batch(
        self, indices: Tensor | Sequence[int], device: torch.device | str = "cpu"
    ) -> Batch:
        """Return the frames ``indices`` on ``device``: image float in [0, 1] and mask
        int64, 255 = void."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        image, mask = self.image[index].to(device), self.mask[index].to(device)
        return Batch(image=image.float() / 255, mask=mask.long())


def load_camvid(
    folder: str | Path, split: str, size: tuple[int, int] | None = None
) -> CamVid:
    """Read one split of CamVid.

    Args:
        folder: holds ``train``, ``trainannot`` and so on.
        split: ``"train"`` (367 frames), ``"val"`` (101) or ``"test"`` (233).
        size: (rows, columns) to resize to, photographs with antialiasing and masks by
            the nearest pixel; published as 360 x 480.

    Raises:
        FileNotFoundError: the folder, or the split in it, is not there.
        ValueError: an unknown split, a frame without a mask, or frames of several
            sizes without ``size``.
        BadFile: (a ValueError) two images of one name, a file that is not an image, a
            mask of another size than its frame, or with a value that is not a class.
    """
    folder = Path(folder).expanduser()
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: CamVid has {', '.join(map(repr, SPLITS))}")
    frames, masks = _list(folder, split), _list(folder, f"{split}annot")
    if alone := sorted(frames.keys() ^ masks.keys()):
        where = split if alone[0] in frames else f"{split}annot"
        raise ValueError(
            f"{folder}: {alone[0]} is only in {where}; expected a frame and a mask "
            "for each name"
        )
    names = sorted(frames)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        pairs = list(
            pool.map(lambda name: _decode(frames[name], masks[name], size), names)
        )
    if len(sizes := {mask.shape for _, mask in pairs}) > 1:
        raise ValueError(
            f"{folder}/{split} has frames of the sizes {sorted(sizes)}: pass "
            "size=(rows, columns)"
        )
    images = torch.from_numpy(np.stack([image for image, _ in pairs]))
    return CamVid(
        NAMES,
        images,
        torch.from_numpy(np.stack([mask for _, mask in pairs])),
        tuple(names),
    )


def _list(folder: Path, name: str) -> dict[str, Path]:
    """Return the images in a folder by their names without suffix."""
    where = folder / name
    images: dict[str, Path] = {}
    for path in list_folder(where) if where.is_dir() else []:
        if is_image(path.name) and images.setdefault(path.stem, path) != path:
            raise BadFile(
                f"{where} has {images[path.stem].name} and {path.name}: expected one "
                "image for each name; delete one of them"
            )
    if not images:
        raise FileNotFoundError(
            f"no images in {where}: expected CamVid's frames there; "
            "`python data_scripts/get_camvid.py` fetches them"
        )
    return images


def _decode(
    frame: Path, mask: Path, size: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (3, h, w) and classes (h, w), uint8."""
    classes = read_stored(mask)
    if classes.mode not in ("L", "P"):
        raise BadFile(
            f"{mask} has the mode {classes.mode}: expected one class number per pixel"
        )
    photograph = read_picture(frame, classes.size.__eq__)
    if photograph.size != classes.size:
        raise BadFile(
            f"{frame} has {photograph.size} pixels and its mask {mask} {classes.size}"
        )
    stored = np.asarray(classes)
    if (highest := stored[stored != VOID].max(initial=0)) > len(NAMES):
        raise BadFile(
            f"{mask} has the value {highest}: expected 0 to {len(NAMES) - 1}, "
            f"{len(NAMES)} = void"
        )
    if size is not None:
        photograph = photograph.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        classes = classes.resize((size[1], size[0]), Image.Resampling.NEAREST)
    values = np.array(classes)
    values[values == len(NAMES)] = VOID
    return rearrange(np.asarray(photograph), "h w c -> c h w"), values
