"""FSC-147: 6,135 photographs of 147 kinds of things, a dot on every object (arXiv
2104.08391), as published.

A folder holds

- ``Train_Test_Val_FSC_147.json``: file names by split; ``val_coco``, ``test_coco`` are
  parts of ``val``, ``test``,
- ``ImageClasses_FSC147.txt``: file, tab, class name; 11 of its files are in no split,
- ``annotation_FSC147_384.json``: by file, ``points`` [[x, y], ...] in the resized image
  and three example boxes,
- ``images_384_VarV2/<file>``: the photographs, resized to 384 rows,
- optionally ``FSC-147-D.json``: the descriptions of CounTX,
- optionally ``gt_density_map_adaptive_384_VarV2/<number>.npy``: density maps; without
  them they are made of the points.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from minilib.batch import Batch
from minilib.datasets.decode import to_rgb
from minilib.datasets.density import density_of_points

SPLITS = ("train", "val", "test", "val_coco", "test_coco")
SPLIT_FILE = "Train_Test_Val_FSC_147.json"
CLASS_FILE = "ImageClasses_FSC147.txt"
ANNOTATION_FILE = "annotation_FSC147_384.json"
DESCRIPTION_FILE = "FSC-147-D.json"
IMAGE_FOLDER = "images_384_VarV2"
DENSITY_FOLDER = "gt_density_map_adaptive_384_VarV2"
HEIGHT = 384
TEXTS = ("class", "description")


@dataclass(frozen=True)
class FSC147Lists:
    """What the text files say; it needs no photographs."""

    files: Mapping[str, tuple[str, ...]]
    """File names by split, in the published order."""
    class_of: Mapping[str, str]
    """Class name of every file, also of those in no split."""
    description_of: Mapping[str, str]
    """FSC-147-D by file; empty where it is not there."""

    def classes(self, split: str) -> tuple[str, ...]:
        """Return the class names that occur in ``split``, sorted."""
        return tuple(sorted({self.class_of[name] for name in self.files[split]}))


def read_lists(folder: str | Path) -> FSC147Lists:
    """Read splits, class names and descriptions, and check that they fit together.

    Raises:
        FileNotFoundError: the split or the class file is missing.
        ValueError: a file cannot be read, is in two splits, has no class, or is
            described for another split; a class is in two splits (splits share no
            class: what is tested was never seen in training).
    """
    folder = Path(folder).expanduser()
    splits = _read_json(folder / SPLIT_FILE)
    if missing := [
        split for split in SPLITS[:3] if not isinstance(splits.get(split), list)
    ]:
        raise ValueError(
            f"{folder / SPLIT_FILE}: no list {missing[0]!r}; expected train, val and "
            "test"
        )
    files = {split: tuple(splits[split]) for split in SPLITS if split in splits}
    class_of = {}
    for number, line in enumerate(_read(folder / CLASS_FILE).splitlines(), 1):
        if line.strip():
            name, tab, label = line.partition("\t")  # class names contain spaces
            if not tab or not label.strip():
                raise ValueError(
                    f"{folder / CLASS_FILE}, line {number}: {line!r} is not '"
                    "<file>, tab, <class name>'"
                )
            class_of[name.strip()] = label.strip()

    where: dict[str, str] = {}
    home: dict[str, str] = {}
    for split in SPLITS[:3]:
        for name in files[split]:
            if name in where:
                raise ValueError(
                    f"{name} is in the splits {where[name]} and {split}: expected one"
                )
            if name not in class_of:
                raise ValueError(f"{name} of split {split} has no line in {CLASS_FILE}")
            where[name] = split
            label = class_of[name]
            if home.setdefault(label, split) != split:
                raise ValueError(
                    f"class {label!r} is in the splits {home[label]} and {split}: "
                    "expected one"
                )
    for part, whole in (("val_coco", "val"), ("test_coco", "test")):
        if strangers := set(files.get(part, ())) - set(files[whole]):
            raise ValueError(f"{min(strangers)} is in {part} but not in {whole}")

    described = {}
    if (folder / DESCRIPTION_FILE).is_file():
        for name, entry in _read_json(folder / DESCRIPTION_FILE).items():
            text = entry.get("text_description") if isinstance(entry, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{DESCRIPTION_FILE}: {name} has no text_description")
            if entry.get("data_split") != where.get(name):
                said, true = entry.get("data_split"), where.get(name)
                raise ValueError(
                    f"{DESCRIPTION_FILE}: {name} is described as in {said!r}, but it "
                    f"is in {true!r}"
                )
            described[name] = text
    return FSC147Lists(files, class_of, described)


@dataclass(frozen=True)
class FSC147:
    """One split, photographs read when they are asked for."""

    folder: Path
    split: str
    files: tuple[str, ...]
    """N file names."""
    names: tuple[str, ...]
    """N class names."""
    texts: tuple[str, ...]
    """N texts to count by: descriptions or bare class names."""
    annotations: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """The published entry of every file."""
    sigma: float = 1.0
    """Standard deviation in pixels of generated density maps."""

    def __len__(self) -> int:
        return len(self.files)

    @property
    def counts(self) -> Tensor:
        """The true counts (N,) float: the number of points, wherever they lie, as
        all papers count."""
        return torch.tensor(
            [float(len(self.annotations[name]["points"])) for name in self.files]
        )

    def points(self, index: int) -> Tensor:
        """Return the dots of photograph ``index``, (n, 2) float, x y in pixels of the
        resized photograph."""
        return torch.tensor(
            self.annotations[self.files[index]]["points"], dtype=torch.float32
        ).reshape(-1, 2)

    def image(self, index: int) -> Tensor:
        """Return photograph ``index``, (3, 384, W) uint8.

        Raises:
            FileNotFoundError: it is not in ``images_384_VarV2``.
            ValueError: it is not 384 rows high, so the points would not fit it.
        """
        path = self.folder / IMAGE_FOLDER / self.files[index]
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: unpack FSC147_384_V2.zip into {self.folder}"
            )
        with Image.open(path) as opened:
            pixels = np.array(to_rgb(opened))
        if len(pixels) != HEIGHT:
            raise ValueError(
                f"{path} has {len(pixels)} rows: expected the resized photographs of "
                f"{HEIGHT} rows"
            )
        return rearrange(torch.from_numpy(pixels), "h w c -> c h w")

    def density(self, index: int, shape: tuple[int, int]) -> Tensor:
        """Return the published density map (H, W), or one made of the points inside
        ``shape`` where there is none.

        Raises:
            ValueError: the published map has another size than the photograph.
        """
        path = self.folder / DENSITY_FOLDER / f"{Path(self.files[index]).stem}.npy"
        if not path.is_file():
            return density_of_points(self.points(index), shape, self.sigma)
        density = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        if tuple(density.shape) != tuple(shape):
            raise ValueError(
                f"{path} is {tuple(density.shape)} but its photograph {tuple(shape)}: "
                f"they belong to different versions; delete {DENSITY_FOLDER} to make "
                "densities of the points"
            )
        return density

    def item(self, index: int, device: torch.device | str = "cpu") -> Batch:
        """Return photograph ``index`` as a batch of one (widths differ) with caption,
        points and density."""
        image = self.image(index)
        height, width = image.shape[-2:]
        density = self.density(index, (height, width))
        batch = Batch(
            image[None].float() / 255, [self.texts[index]], density=density[None, None]
        )
        batch.points = [self.points(index)]
        return batch.to(device)


def load_fsc147(
    folder: str | Path,
    split: str,
    text: str = "description",
    files: Sequence[str] | None = None,
) -> FSC147:
    """Open one split of FSC-147.

    Args:
        folder: the published files, see the module.
        split: ``train``, ``val``, ``test``, ``val_coco`` or ``test_coco``.
        text: ``description`` (FSC-147-D, as CounTX) or ``class`` (the bare name).
        files: only these of the split's files.

    Raises:
        FileNotFoundError: annotations or descriptions are missing.
        ValueError: unknown split or text, a file that is not in the split, or a
            file without points.
    """
    folder = Path(folder).expanduser()
    if split not in SPLITS or text not in TEXTS:
        raise ValueError(
            f"split={split!r}, text={text!r}: expected one of {', '.join(SPLITS)}; "
            f"{' or '.join(TEXTS)}"
        )
    lists = read_lists(folder)
    if split not in lists.files:
        raise ValueError(f"{SPLIT_FILE} has no split {split!r}")
    chosen = lists.files[split] if files is None else tuple(files)
    if strangers := set(chosen) - set(lists.files[split]):
        raise ValueError(f"{min(strangers)} is not in split {split}")
    annotations = _read_json(folder / ANNOTATION_FILE)
    for name in chosen:
        points = annotations.get(name, {}).get("points")
        if not isinstance(points, list) or any(len(p) != 2 for p in points):
            raise ValueError(
                f"{ANNOTATION_FILE} has no list of points [[x, y], ...] for {name}"
            )
    if text == "description" and (
        bare := [name for name in chosen if name not in lists.description_of]
    ):
        raise FileNotFoundError(
            f"{bare[0]} has no description: put {DESCRIPTION_FILE} into {folder}, or "
            "pass text='class'"
        )
    names = tuple(lists.class_of[name] for name in chosen)
    texts = (
        names
        if text == "class"
        else tuple(lists.description_of[name] for name in chosen)
    )
    return FSC147(
        folder,
        split,
        chosen,
        names,
        texts,
        {name: annotations[name] for name in chosen},
    )


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected the text files of "
            "cvlab-stonybrook/LearningToCountEverything (data/)"
        )
    return path.read_text(encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is incomplete ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}: expected one object with file "
            "names"
        )
    return content
