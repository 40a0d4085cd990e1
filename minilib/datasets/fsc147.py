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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minilib.batch import Batch
from minilib.datasets.annotations import (
    BadFile,
    check_density,
    check_name,
    check_points,
    is_coordinate,
    is_file,
    list_folder,
    read_array,
    read_json,
    read_rows,
)
from minilib.datasets.decode import read_picture
from minilib.datasets.density import density_of_points, points_inside

SPLITS = ("train", "val", "test", "val_coco", "test_coco")
SPLIT_FILE = "Train_Test_Val_FSC_147.json"
CLASS_FILE = "ImageClasses_FSC147.txt"
ANNOTATION_FILE = "annotation_FSC147_384.json"
DESCRIPTION_FILE = "FSC-147-D.json"
IMAGE_FOLDER = "images_384_VarV2"
DENSITY_FOLDER = "gt_density_map_adaptive_384_VarV2"
HEIGHT = 384
SIZE_SLACK = 16
"""By how many pixels a photograph may differ from the size that its annotation states,
which was rounded."""
TEXT_FILES = (
    "expected the text files of cvlab-stonybrook/LearningToCountEverything (data/)"
)
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
        BadFile: (a ValueError) a text file cannot be read or repeats a row; a
            photograph is in two splits, has no class, or is described for another
            split; a class is in two splits (splits share no class: what is tested was
            never seen in training).
    """
    folder = Path(folder).expanduser()
    files = _read_splits(folder / SPLIT_FILE)
    class_of = _read_classes(folder / CLASS_FILE)

    where: dict[str, str] = {}
    home: dict[str, str] = {}
    for split in SPLITS[:3]:
        for name in files[split]:
            if name in where:
                raise BadFile(
                    f"{folder / SPLIT_FILE}: {name} is in the splits {where[name]} "
                    f"and {split}: expected one"
                )
            if name not in class_of:
                raise BadFile(
                    f"{folder / SPLIT_FILE}: {name} of split {split} has no line in "
                    f"{CLASS_FILE}"
                )
            where[name] = split
            label = class_of[name]
            if home.setdefault(label, split) != split:
                raise BadFile(
                    f"{folder / CLASS_FILE}: class {label!r} is in the splits "
                    f"{home[label]} and {split} of {SPLIT_FILE}: expected one"
                )
    for part, whole in (("val_coco", "val"), ("test_coco", "test")):
        if strangers := set(files.get(part, ())) - set(files[whole]):
            raise BadFile(
                f"{folder / SPLIT_FILE}: {min(strangers)} is in {part} but not in "
                f"{whole}"
            )

    described = {}
    if is_file(folder / DESCRIPTION_FILE):
        for name, entry in read_json(folder / DESCRIPTION_FILE).items():
            text = entry.get("text_description") if isinstance(entry, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise BadFile(
                    f"{folder / DESCRIPTION_FILE}: {name} has no text_description"
                )
            if entry.get("data_split") != where.get(name):
                said, true = entry.get("data_split"), where.get(name)
                raise BadFile(
                    f"{folder / DESCRIPTION_FILE}: {name} is described as in "
                    f"{said!r}, but it is in {true!r}"
                )
            described[name] = text
    return FSC147Lists(files, class_of, described)


def _read_splits(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the file names of every split."""
    splits = read_json(path, TEXT_FILES)
    files = {}
    for split in SPLITS:
        if split not in splits and split not in SPLITS[:3]:
            continue
        names = splits.get(split)
        if not isinstance(names, list):
            raise BadFile(f"{path}: no list {split!r}; expected train, val and test")
        known = set()
        for row, name in enumerate(names, 1):
            check_name(name, f"{path}, {split}, name {row}")
            if name in known:
                raise BadFile(
                    f"{path}, {split}, name {row}: {name} is in the list already; "
                    "expected every name once"
                )
            known.add(name)
        files[split] = tuple(names)
    return files


def _read_classes(path: Path) -> dict[str, str]:
    """Return the class name of every file."""
    class_of: dict[str, str] = {}
    row_of: dict[str, int] = {}
    for number, line in read_rows(path, TEXT_FILES):
        name, _, label = map(str.strip, line.partition("\t"))  # labels have spaces
        where = f"{path}, line {number}"
        if "\t" not in line or not label:
            raise BadFile(f"{where}: {line!r} is not '<file>, tab, <class name>'")
        check_name(name, where)
        if name in row_of:
            raise BadFile(
                f"{where}: {name} is in line {row_of[name]} already; expected every "
                "file once: delete one of the lines"
            )
        class_of[name], row_of[name] = label, number
    return class_of


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
            BadFile: (a ValueError) it cannot be read, is not 384 rows high, or has
                another size than its annotation states, so the points would not fit.
        """
        name = self.files[index]
        path = self.folder / IMAGE_FOLDER / name
        if not is_file(path):
            raise _missing_photograph(path)
        stated = _stated_width(self.annotations[name], name)

        def fits(size: tuple[int, int]) -> bool:
            return size[1] == HEIGHT and (
                stated is None or abs(size[0] - stated) <= SIZE_SLACK
            )

        picture = read_picture(path, fits)
        if picture.height != HEIGHT:
            raise BadFile(
                f"{path} has {picture.height} rows: expected the resized photographs "
                f"of {HEIGHT} rows"
            )
        if not fits(picture.size):
            raise BadFile(
                f"{path} has {picture.width} columns, but {ANNOTATION_FILE} is about "
                f"{stated:.0f}: they belong to different versions; fetch both again"
            )
        return rearrange(torch.from_numpy(np.array(picture)), "h w c -> c h w")

    def density(self, index: int, shape: tuple[int, int]) -> Tensor:
        """Return the published density map (H, W), or one made of the points inside
        ``shape`` where there is none.

        Raises:
            BadFile: (a ValueError) the published map cannot be read, has another size
                than the photograph, is not finite or negative, or does not sum to
                about the number of points.
        """
        points = self.points(index)
        path = self.folder / DENSITY_FOLDER / f"{Path(self.files[index]).stem}.npy"
        if not is_file(path):
            return density_of_points(points, shape, self.sigma)
        density = read_array(path)
        if density.shape != tuple(shape):
            raise BadFile(
                f"{path} is {density.shape} but its photograph {tuple(shape)}: "
                f"they belong to different versions; delete {DENSITY_FOLDER} to make "
                "densities of the points"
            )
        inside = int(points_inside(points, shape).sum())
        check_density(density, len(points), inside, path)
        return torch.from_numpy(density.astype(np.float32))

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
        FileNotFoundError: annotations or descriptions are missing, or a photograph is
            while others are there.
        ValueError: unknown split or text, or a file that is not in the split.
        BadFile: (a ValueError) a text file as in ``read_lists``, or the row of a
            photograph: points that are not finite pairs, or a size that is not one.
    """
    folder = Path(folder).expanduser()
    if split not in SPLITS or text not in TEXTS:
        raise ValueError(
            f"split={split!r}, text={text!r}: expected one of {', '.join(SPLITS)}; "
            f"{' or '.join(TEXTS)}"
        )
    lists = read_lists(folder)
    if split not in lists.files:
        raise BadFile(f"{folder / SPLIT_FILE} has no split {split!r}")
    chosen = lists.files[split] if files is None else tuple(files)
    if strangers := set(chosen) - set(lists.files[split]):
        raise ValueError(f"{min(strangers)} is not in split {split}")
    annotations = read_json(folder / ANNOTATION_FILE, TEXT_FILES)
    for name in chosen:
        entry, where = annotations.get(name), f"{folder / ANNOTATION_FILE}, {name}"
        check_points(entry.get("points") if isinstance(entry, dict) else None, where)
        _stated_width(annotations[name], where)
    photographs = folder / IMAGE_FOLDER
    if photographs.is_dir():
        there = {path.name for path in list_folder(photographs)}
        if missing := [name for name in chosen if name not in there]:
            raise _missing_photograph(photographs / missing[0])
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


def _stated_width(entry: Mapping[str, Any], where: str) -> float | None:
    """Return the width in pixels of the resized photograph, where its row states it."""
    if "W" not in entry or "ratio_w" not in entry:
        return None
    width, ratio = entry["W"], entry["ratio_w"]
    if not (is_coordinate(width) and is_coordinate(ratio) and width * ratio > 0):
        raise BadFile(
            f"{where}: W={width!r} and ratio_w={ratio!r}, expected two positive numbers"
        )
    return float(width * ratio)


def _missing_photograph(path: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{path} is missing: unpack FSC147_384_V2.zip into {path.parent.parent}"
    )
