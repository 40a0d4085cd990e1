"""BCCD: 364 micrographs of blood with a box around every cell, used here for counting.

As published: ``Annotations/<name>.xml`` (PASCAL VOC), ``JPEGImages/<name>.jpg``
(640 x 480) and the split lists ``ImageSets/Main/{train,val,test,trainval}.txt`` (205,
87, 72 and 292 images). ``data_scripts/get_bccd.py`` fetches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from minilib.batch import Batch
from minilib.datasets.annotations import (
    BadFile,
    is_file,
    missing_file,
    number_of,
    read_list,
    read_xml,
    text_of,
)
from minilib.datasets.decode import read_picture

SPLITS = ("train", "val", "test")
LABELS = ("RBC", "WBC", "Platelets")
"""The classes as the annotations spell them."""
NAMES = ("red blood cells", "white blood cells", "platelets")
"""The same classes in plain English."""


@dataclass(frozen=True)
class Bccd:
    """One split of BCCD: N micrographs of h x w pixels with their cells."""

    image: Tensor
    """(N, 3, h, w) uint8."""
    boxes: list[Tensor]
    """Per image (n, 4) float, x1 y1 x2 y2 in pixels of ``image``."""
    classes: list[Tensor]
    """Per image (n,) int64 index into ``names``."""
    files: tuple[str, ...]
    """N file names without suffix, in the published order."""
    names: tuple[str, ...] = NAMES
    """What the classes are called."""

    def __len__(self) -> int:
        return len(self.image)

    @property
    def counts(self) -> Tensor:
        """How many cells of each class every image holds, (N, 3) int64."""
        return torch.stack(
            [torch.bincount(c, minlength=len(self.names)) for c in self.classes]
        )

    def points(self, index: int, asked: int) -> Tensor:
        """Return the centres (n, 2) of the cells of class ``asked`` in image
        ``index``, x y in pixels."""
        boxes = self.boxes[index][self.classes[index] == asked]
        return (boxes[:, :2] + boxes[:, 2:]) / 2

    def batch(
        self,
        indices: Sequence[int],
        asked: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> Batch:
        """Return the images ``indices``, each asked for the class at the same
        position in ``asked``.

        ``label`` is that class, ``caption`` its name, ``points`` its cells' centres;
        ``boxes`` and ``classes`` cover all cells.
        """
        pairs = list(zip(indices, asked, strict=True))
        return Batch(
            image=self.image[list(indices)].float() / 255,
            caption=[self.names[c] for c in asked],
            label=torch.tensor(list(asked)),
            boxes=[self.boxes[i] for i in indices],
            classes=[self.classes[i] for i in indices],
            points=[self.points(i, c) for i, c in pairs],
        ).to(device)


def load_bccd(
    folder: str | Path, split: str, size: tuple[int, int] | None = None
) -> Bccd:
    """Read one split of the published layout.

    Two of the published boxes have no area. Each still marks a cell that was counted,
    so they are kept.

    Args:
        folder: holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``, or a
            folder ``BCCD`` that does.
        split: ``train``, ``val`` or ``test``.
        size: (height, width) to resize to (bicubic, antialiased; boxes follow);
            None = as published.

    Raises:
        ValueError: unknown split, a size that is not two positive numbers, or images
            of different sizes without ``size``.
        BadFile: (a ValueError) a list with a name twice, a picture or annotation that
            cannot be read (see ``read_annotation``), or a picture of another size than
            its annotation and boxes say.
        FileNotFoundError: the folder is not BCCD, or a file that the list
            names is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size={size!r}: expected (height, width) in pixels, or None")
    root = Path(folder).expanduser()
    if not (root / "ImageSets").is_dir() and (root / "BCCD").is_dir():
        root = root / "BCCD"
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        raise FileNotFoundError(
            f"no BCCD at {folder}: expected {listing}; `python "
            "data_scripts/get_bccd.py` makes data/bccd"
        )
    files = read_list(listing)
    images: list[Tensor] = []
    boxes, classes = [], []
    for name, row in files.items():
        path = root / "Annotations" / f"{name}.xml"
        picture = root / "JPEGImages" / f"{name}.jpg"
        for needed in (path, picture):
            if not is_file(needed):
                raise missing_file(needed, f"{listing}, row {row}", name)
        annotation = read_annotation(path)
        stated = annotation.size
        image = read_picture(picture, None if stated is None else stated.__eq__)
        width, height = image.size
        check_annotation(annotation, (width, height), path)
        cells = annotation.boxes
        if size is not None:
            image = image.resize(size[::-1], Image.Resampling.BICUBIC)
            cells = cells * cells.new_tensor([size[1] / width, size[0] / height] * 2)
        pixels = rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w")
        if images and pixels.shape != images[0].shape:
            raise ValueError(
                f"{picture} is {width} x {height} unlike {next(iter(files))}: pass "
                "size=(height, width)"
            )
        images.append(pixels)
        boxes.append(cells)
        classes.append(annotation.classes)
    return Bccd(torch.stack(images), boxes, classes, tuple(files))


class Annotation(NamedTuple):
    """What one PASCAL VOC file says."""

    boxes: Tensor
    """(n, 4) float x1 y1 x2 y2 in pixels, 0 <= x1 <= x2, 0 <= y1 <= y2."""
    classes: Tensor
    """(n,) int64 index into ``LABELS``."""
    size: tuple[int, int] | None
    """(width, height) of the picture, where the file states it."""


def read_annotation(path: Path) -> Annotation:
    """Return what one PASCAL VOC file says.

    Raises:
        FileNotFoundError: there is no such file.
        BadFile: it is not XML with the root ``<annotation>``, an object lacks a field
            or has it twice, a coordinate is not a finite number or comes after its
            opposite, or a class is not one of BCCD's.
    """
    root = read_xml(path, "annotation")
    size = None
    if root.find("size") is not None:
        width, height = (
            number_of(root, f"size/{side}", str(path)) for side in ("width", "height")
        )
        size = (round(width), round(height))
    cells, labels = [], []
    for count, item in enumerate(root.iter("object"), 1):
        where = f"{path}, object {count}"
        label = text_of(item, "name", where)
        if label not in LABELS:
            raise BadFile(
                f"{where}: class {label!r}, expected one of {', '.join(LABELS)}"
            )
        corners = [
            number_of(item, f"bndbox/{side}", where)
            for side in ("xmin", "ymin", "xmax", "ymax")
        ]
        if corners[2] < corners[0] or corners[3] < corners[1]:
            raise BadFile(
                f"{where}: a box {corners} whose right or lower edge comes before its "
                "left or upper one; correct it"
            )
        if min(corners) < 0:
            raise BadFile(
                f"{where}: a box {corners} that reaches outside its image; correct it"
            )
        cells.append(corners)
        labels.append(LABELS.index(label))
    return Annotation(
        torch.tensor(cells, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        size,
    )


def check_annotation(annotation: Annotation, size: tuple[int, int], path: Path) -> None:
    """Check that an annotation belongs to a picture of ``size`` (width, height).

    Raises:
        BadFile: it states another size, or a box reaches outside.
    """
    width, height = size
    if annotation.size not in (None, size):
        raise BadFile(
            f"{path} is about a picture of {annotation.size[0]} x "
            f"{annotation.size[1]} pixels, but its picture is {width} x {height}: "
            "fetch both again, or correct <size>"
        )
    limit = annotation.boxes.new_tensor([width, height] * 2)
    if (outside := (annotation.boxes > limit).any(dim=1)).any():
        first = int(outside.nonzero()[0])
        raise BadFile(
            f"{path}, object {first + 1}: a box {annotation.boxes[first].tolist()} "
            f"that reaches outside the {width} x {height} image; correct it"
        )
