"""BCCD: 364 micrographs of blood with a box around every cell, used here for counting.

As published: ``Annotations/<name>.xml`` (PASCAL VOC), ``JPEGImages/<name>.jpg``
(640 x 480) and the split lists ``ImageSets/Main/{train,val,test,trainval}.txt`` (205,
87, 72 and 292 images). ``data_scripts/get_bccd.py`` fetches it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from minilib.batch import Batch
from minilib.datasets.decode import to_rgb

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
        ValueError: unknown split, a size that is not two positive numbers, an
            annotation that cannot be read, an unknown class, a box outside its image,
            or images of different sizes without ``size``.
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
    files = tuple(listing.read_text(encoding="utf-8").split())
    if not files:
        raise ValueError(f"{listing} is empty: expected one file name per line")
    images: list[Tensor] = []
    boxes, classes = [], []
    for name in files:
        annotation = root / "Annotations" / f"{name}.xml"
        cells, labels = read_annotation(annotation)
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as opened:
            image = to_rgb(opened)
        width, height = image.size
        if len(cells) and (
            cells.min() < 0
            or bool((cells.amax(0) > cells.new_tensor([width, height] * 2)).any())
        ):
            raise ValueError(
                f"{annotation}: a box reaches outside the {width} x {height} image; "
                "correct it"
            )
        if size is not None:
            image = image.resize(size[::-1], Image.Resampling.BICUBIC)
            cells = cells * cells.new_tensor([size[1] / width, size[0] / height] * 2)
        pixels = rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w")
        if images and pixels.shape != images[0].shape:
            raise ValueError(
                f"{name} is {width} x {height} unlike {files[0]}: pass size=(height, "
                "width)"
            )
        images.append(pixels)
        boxes.append(cells)
        classes.append(labels)
    return Bccd(torch.stack(images), boxes, classes, files)


def read_annotation(path: Path) -> tuple[Tensor, Tensor]:
    """Return the boxes (n, 4) float x1 y1 x2 y2 and classes (n,) int64 of one
    PASCAL VOC file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not XML, lacks a field, or names a class that
            BCCD does not have.
    """
    try:
        root = ElementTree.parse(path).getroot()
        cells, labels = [], []
        for item in root.iter("object"):
            label = item.findtext("name", "").strip()
            if label not in LABELS:
                raise ValueError(
                    f"class {label!r}, expected one of {', '.join(LABELS)}"
                )
            corners = [
                float(item.findtext(f"bndbox/{side}", ""))
                for side in ("xmin", "ymin", "xmax", "ymax")
            ]
            if corners[2] < corners[0] or corners[3] < corners[1]:
                raise ValueError(
                    f"a box {corners} whose right or lower edge comes before its left "
                    "or upper one"
                )
            cells.append(corners)
            labels.append(LABELS.index(label))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch it again") from error
    return torch.tensor(cells, dtype=torch.float32).reshape(-1, 4), torch.tensor(
        labels, dtype=torch.int64
    )
