"""List a folder, or a zip file, that holds one folder of photographs per class."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

IMAGE_SUFFIXES = frozenset(
    {
        ".bmp",
        ".gif",
        ".jfif",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")


class FolderTree:
    """The photographs below a folder; paths are relative, with forward slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: list[str] = []
        self.files: list[str] = []
        for folder, subfolders, names in os.walk(root, followlinks=True):
            subfolders[:] = sorted(name for name in subfolders if _visible(name))
            here = Path(folder).relative_to(root).as_posix()
            prefix = "" if here == "." else f"{here}/"
            self.folders += [prefix + name for name in subfolders]
            self.files += [prefix + name for name in names if _is_image(name)]

    def stamp(self, path: str) -> str:
        """Return size and modification time, which change when the file does."""
        status = (self.root / path).stat()
        return f"{status.st_size}:{status.st_mtime_ns}"

    def read(self, path: str) -> bytes:
        """Return the bytes of one file."""
        return (self.root / path).read_bytes()


class ZipTree:
    """The photographs in a zip file, read in place; a single folder around
    everything is skipped."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            self._zip = zipfile.ZipFile(root)
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{root} is not a complete zip file ({error}); copy or download it "
                "again"
            ) from error
        entries = [
            info
            for info in self._zip.infolist()
            if all(map(_visible, info.filename.split("/")))
        ]
        files = [
            info for info in entries if not info.is_dir() and _is_image(info.filename)
        ]
        folders = {info.filename.rstrip("/") for info in entries if info.is_dir()}
        folders |= {
            str(parent)
            for info in files
            for parent in PurePosixPath(info.filename).parents
        }
        folders.discard(".")
        prefix = _wrapper(folders)
        self._info = {info.filename.removeprefix(prefix): info for info in files}
        self.files = list(self._info)
        self.folders = sorted(
            name.removeprefix(prefix) for name in folders if name != prefix.rstrip("/")
        )

    def stamp(self, path: str) -> str:
        """Return size and checksum, which change when the file does."""
        return f"{self._info[path].file_size}:{self._info[path].CRC}"

    def read(self, path: str) -> bytes:
        """Return the bytes of one file; several threads may read at once."""
        return self._zip.read(self._info[path])


Tree = FolderTree | ZipTree


@dataclass(frozen=True)
class Listing:
    """The photographs of one split: ``paths[i]`` belongs to the class folder
    ``classes[labels[i]]``."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]


def open_tree(root: Path) -> Tree:
    """List the photographs in a folder or a zip file.

    Raises:
        FileNotFoundError: nothing is at ``root``.
        ValueError: ``root`` is a file that is not a zip.
    """
    if root.is_dir():
        return FolderTree(root)
    if not root.exists():
        raise FileNotFoundError(
            f"no photographs at {root}: expected a folder, or a .zip, with one folder "
            "per class"
        )
    if root.suffix.lower() != ".zip":
        raise ValueError(
            f"{root} is a file: expected a folder, or a .zip, with one folder per "
            "class; unpack it first"
        )
    return ZipTree(root)


def split_folders(tree: Tree) -> list[str]:
    """Return the top folders that are splits: named like one and holding folders.

    A folder ``train`` with photographs directly in it is a class (the
    vehicle), not a split.
    """
    known = TRAIN_FOLDERS + TEST_FOLDERS
    return [
        name
        for name in _children(tree, "")
        if name.casefold() in known and _children(tree, f"{name}/")
    ]


def list_photographs(tree: Tree, split: str | None) -> Listing:
    """Return the photographs of ``split``, or of the whole tree when it has
    no split folders.

    Classes are in the order of their folder names, numeric where all names are numbers
    (as in ImageNetV2, where alphabetical order would scramble the labels).

    Raises:
        ValueError: the split or the class folders are missing, there is only one class,
            a class is empty, or the splits do not have the same classes.
    """
    base = _base(tree, split)
    where = f"{tree.root}/{base}".rstrip("/")
    classes = _children(tree, base)
    if all(name.isdecimal() for name in classes):
        classes = sorted(classes, key=int)
    photographs: dict[str, list[str]] = {name: [] for name in classes}
    for path in tree.files:
        name, below, _ = path.removeprefix(base).partition("/")
        if below and path.startswith(base):
            photographs[name].append(path)
    if not classes:
        raise ValueError(
            f"{where} has no class folders: expected one per class, {where}/"
            "<class>/*.jpg (or png, webp, ...)"
        )
    if len(classes) == 1:
        raise ValueError(
            f"{where} has only the class {classes[0]!r}: classification needs at "
            "least two class folders"
        )
    if empty := [name for name in classes if not photographs[name]]:
        raise ValueError(
            f"no photographs in {where}/{empty[0]}: expected files ending in "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}; "
            f"add some or delete the folder"
            + (f" ({len(empty)} folders are empty)" if len(empty) > 1 else "")
        )
    if split is not None:
        _check_same_classes(tree, split, classes)
    pairs = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted(photographs[name])
    ]
    return Listing(
        tuple(classes),
        tuple(path for path, _ in pairs),
        tuple(label for _, label in pairs),
    )


def _base(tree: Tree, split: str | None) -> str:
    """Return the prefix under which the class folders lie: ``"train/"``, or
    ``""`` without splits."""
    found = split_folders(tree)
    if split is None and found:
        raise ValueError(
            f"{tree.root} is divided into {', '.join(found)}: say which with "
            f"split={found[0]!r}"
        )
    if split is not None and not _children(tree, f"{split}/"):
        if found:
            raise ValueError(
                f"{tree.root} has no split {split!r} with class folders; it has "
                f"{', '.join(found)}"
            )
        raise ValueError(
            f"{tree.root} has no split folders, so there is no split {split!r}: "
            "expected "
            f"{tree.root}/{split}/<class>/; for a plain folder per class use "
            "load_photos, "
            f"which holds out a test set"
        )
    return "" if split is None else f"{split}/"


def _check_same_classes(tree: Tree, split: str, classes: list[str]) -> None:
    """Refuse splits with different classes: the same label would mean
    different things."""
    for other in split_folders(tree):
        theirs = _children(tree, f"{other}/")
        for name in sorted(set(classes) ^ set(theirs)):
            has, lacks = (split, other) if name in classes else (other, split)
            raise ValueError(
                f"{tree.root}: the class {name!r} is in {has} but not in {lacks}, so "
                f"labels would not agree; add {lacks}/{name} with photographs or "
                f"remove {has}/{name}"
            )


def _children(tree: Tree, base: str) -> list[str]:
    """Return the sorted names of the folders directly below the prefix ``base``."""
    inside = (
        folder.removeprefix(base) for folder in tree.folders if folder.startswith(base)
    )
    return sorted(name for name in inside if "/" not in name)


def _wrapper(folders: set[str]) -> str:
    """Return ``"name/"`` if one folder that is not a split is wrapped around all
    others, else ``""``."""
    top = {folder.partition("/")[0] for folder in folders}
    if (
        len(top) == 1
        and len(folders) > 1
        and not top & set(TRAIN_FOLDERS + TEST_FOLDERS)
    ):
        return f"{top.pop()}/"
    return ""


def _visible(name: str) -> bool:
    """Return whether a name is the user's, not one that the operating system left."""
    return not name.startswith(".") and name != "__MACOSX"


def _is_image(name: str) -> bool:
    return (
        _visible(name.rpartition("/")[2])
        and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    )
