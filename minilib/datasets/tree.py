"""List a folder, or a zip file, that holds one folder of photographs per class."""

from __future__ import annotations

import itertools
import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from minilib.datasets.annotations import BadFile

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
        """List the folder.

        A link to a folder is never followed: one to a folder that is listed anyway is
        left out with a warning, since its photographs would count twice, perhaps in
        another class.

        Raises:
            BadFile: (a ValueError) a folder below it cannot be listed, or a link leads
                to a folder that is not listed.
        """
        self.root = root
        self.folders: list[str] = []
        self.files: list[str] = []
        links: list[Path] = []
        listed: set[Path] = set()
        for folder, subfolders, names in os.walk(root, onerror=_unlistable):
            listed.add(Path(folder).resolve())
            visible = [Path(folder, name) for name in sorted(subfolders)]
            visible = [path for path in visible if _visible(path.name)]
            links += [path for path in visible if path.is_symlink()]
            subfolders[:] = [path.name for path in visible if not path.is_symlink()]
            here = Path(folder).relative_to(root).as_posix()
            prefix = "" if here == "." else f"{here}/"
            self.folders += [prefix + name for name in subfolders]
            self.files += [prefix + name for name in names if is_image(name)]
        for link in links:
            if (target := link.resolve()) not in listed:
                raise BadFile(
                    f"{link} is a link to {target}, which is not one of the folders "
                    f"below {root}: put the photographs themselves there"
                )
            warnings.warn(
                f"{link} is a link to {target}, whose photographs are listed there; "
                "the link is left out",
                stacklevel=2,
            )

    def stamp(self, path: str) -> str:
        """Return size and modification time, which change when the file does."""
        try:
            status = (self.root / path).stat()
        except OSError as error:  # a link to nothing: reading it says so
            return f"unreadable: {error.errno}"
        return f"{status.st_size}:{status.st_mtime_ns}"

    def read(self, path: str) -> bytes:
        """Return the bytes of one file."""
        return (self.root / path).read_bytes()


class ZipTree:
    """The photographs in a zip file, read in place; a single folder around
    everything is skipped."""

    def __init__(self, root: Path) -> None:
        """List the file; separators may be ``/`` or ``\\``, and ``./`` may lead.

        Raises:
            BadFile: (a ValueError) it is not a zip file, or it names a file twice or
                one outside.
        """
        self.root = root
        try:
            self._zip = zipfile.ZipFile(root)
        except Exception as error:  # on broken data zipfile raises nearly anything
            raise BadFile(
                f"{root} is not a complete zip file ({error}); copy or download it "
                "again"
            ) from error
        files: dict[str, zipfile.ZipInfo] = {}
        folders: set[str] = set()
        for info in self._zip.infolist():
            parts = info.filename.replace("\\", "/").split("/")
            is_folder = not parts[-1]
            parts = [part for part in parts if part not in ("", ".")]
            if ".." in parts:
                raise BadFile(
                    f"{root}: {info.filename!r} leads out of the zip file; pack it "
                    "again without '..'"
                )
            name = "/".join(parts)
            if not name or not all(map(_visible, parts)):
                continue
            if is_folder:
                folders.add(name)
            elif is_image(name):
                if name in files:
                    raise BadFile(f"{root} has two files {name!r}; pack it again")
                files[name] = info
        folders |= {
            str(parent) for name in files for parent in PurePosixPath(name).parents
        }
        folders.discard(".")
        prefix = _wrapper(folders)
        self._info = {name.removeprefix(prefix): info for name, info in files.items()}
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
        ValueError: ``root`` is a file that is not a zip, or cannot be listed as
            ``FolderTree`` and ``ZipTree`` say.
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

    Raises:
        ValueError: two of them differ in case alone.
    """
    known = TRAIN_FOLDERS + TEST_FOLDERS
    splits = [
        name
        for name in _children(tree, "")
        if name.casefold() in known and _children(tree, f"{name}/")
    ]
    for name, other in itertools.pairwise(sorted(splits, key=str.casefold)):
        if name.casefold() == other.casefold():
            raise ValueError(
                f"{tree.root} has the splits {name} and {other}: join them, or rename "
                "one"
            )
    return splits


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


def _unlistable(error: OSError) -> None:
    """Refuse a folder whose photographs would otherwise vanish."""
    raise BadFile(
        f"{error.filename} cannot be listed ({error.strerror}): see to its "
        "permissions, or move it away"
    ) from error


def _visible(name: str) -> bool:
    """Return whether a name is the user's, not one that the operating system left."""
    return not name.startswith(".") and name != "__MACOSX"


def is_image(name: str) -> bool:
    """Return whether a file's name is that of a photograph."""
    return (
        _visible(name.rpartition("/")[2])
        and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    )
