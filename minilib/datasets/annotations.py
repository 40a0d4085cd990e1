"""One reader for what data sets say about their pictures: lists, XML, JSON and arrays.

Whatever is wrong in such a file is a ``BadFile``, whose message names the file and the
row, object or key. A file that is not there is a ``FileNotFoundError``, as everywhere.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
LARGEST = 1e6
"""No coordinate lies this many pixels from the origin."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class BadFile(ValueError):
    """A file of a data set that cannot be used; the message names it and the place
    in it, and says what to do."""


def read_text(path: Path, hint: str = "") -> str:
    """Return a text file's content: UTF-8, with or without a byte order mark, or
    UTF-16 with one, as Windows writes.

    Args:
        path: the file.
        hint: what to add where it is missing.

    Raises:
        FileNotFoundError: it is not there.
        BadFile: it cannot be read, or is not text.
    """
    data = _read_bytes(path, hint)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadFile(
            f"{path} is not text in UTF-8 (byte {error.start}): save it as UTF-8, or "
            "fetch it again"
        ) from error
    if "\0" in text:
        raise BadFile(
            f"{path} holds zero bytes: it is damaged, or UTF-16 without a byte order "
            "mark; save it as UTF-8, or fetch it again"
        )
    return text


def read_rows(path: Path, hint: str = "") -> Iterator[tuple[int, str]]:
    """Yield (row number from 1, row) of a text file, without empty rows; line ends of
    any system.

    Raises:
        FileNotFoundError, BadFile: as ``read_text``.
    """
    for number, row in enumerate(re.split(r"\r\n|\r|\n", read_text(path, hint)), 1):
        if row.strip():
            yield number, row


def read_list(path: Path, hint: str = "") -> dict[str, int]:
    """Return the names in a list with one name a row, in its order, with their rows.

    Spaces within a name belong to it.

    Raises:
        FileNotFoundError: the list is not there.
        BadFile: it cannot be read, is empty, or a row repeats a name or is a path.
    """
    rows: dict[str, int] = {}
    for number, row in read_rows(path, hint):
        name = row.strip()
        if name in rows:
            raise BadFile(
                f"{path}, row {number}: {name!r} is in row {rows[name]} already; "
                "expected every name once: delete one of the rows"
            )
        check_name(name, f"{path}, row {number}")
        rows[name] = number
    if not rows:
        raise BadFile(f"{path} is empty: expected one file name per line")
    return rows


def check_name(name: object, where: str) -> None:
    """Check that ``name`` is the bare name of a file.

    Raises:
        BadFile: it is not text, is empty, or leads into another folder.
    """
    if not isinstance(name, str) or not name.strip():
        raise BadFile(f"{where}: {name!r} is not a file name")
    if re.search(r"[/\\\0]", name) or name in (".", ".."):
        raise BadFile(f"{where}: {name!r} is a path; expected a bare file name")


def missing_file(path: Path, where: str, name: str) -> OSError | BadFile:
    """Return the error for a file that a list names but that is not there.

    Args:
        path: where it should be.
        where: the list and the row.
        name: the row.
    """
    if re.search(r"\s[+-]?[01]$", name):
        return BadFile(
            f"{where}: {name!r} is a row of a list for one class (1, 0 or -1 behind "
            "the name); expected the name alone"
        )
    if (suffix := Path(name).suffix.lower()) in (".jpg", ".jpeg", ".png", ".xml"):
        return BadFile(
            f"{where}: {name!r} ends in {suffix}; expected the name without it"
        )
    return FileNotFoundError(
        f"{path} is missing, which {where} names: fetch it again or delete the row"
    )


def is_file(path: Path) -> bool:
    """Return whether a file is there; a name that no system takes is not."""
    return os.path.isfile(path)


def list_folder(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted.

    Raises:
        BadFile: it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise BadFile(
            f"{folder} cannot be listed ({error.strerror}): see to its permissions"
        ) from error


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        FileNotFoundError: it is not there.
        BadFile: it is incomplete, not one object, or has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BadFile(
                f"{path} has the key {twice!r} twice: delete the one that is wrong"
            )
        return content

    text = read_text(path, hint)
    try:
        content = json.loads(text, object_pairs_hook=unique)
    except BadFile:
        raise
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path} is incomplete ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise BadFile(
            f"{path} holds a {type(content).__name__}: expected one object with file "
            "names"
        )
    return content


def check_points(points: object, where: str) -> None:
    """Check a list of points [[x, y], ...].

    Raises:
        BadFile: it is not one, or a coordinate is not a finite number of pixels.
    """
    if not isinstance(points, list):
        raise BadFile(f"{where}: no list of points [[x, y], ...]")
    for number, point in enumerate(points):
        if not (
            isinstance(point, list)
            and len(point) == 2
            and all(map(is_coordinate, point))
        ):
            raise BadFile(
                f"{where}, point {number}: {str(point)[:60]} is not [x, y] in pixels"
            )


def is_coordinate(value: object) -> bool:
    """Return whether ``value`` is a number that can be a place in a picture."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= LARGEST  # false for nan
    )


def read_xml(path: Path, root: str, hint: str = "") -> Element:
    """Return the root element of an XML file in any encoding that it declares.

    Raises:
        FileNotFoundError: it is not there.
        BadFile: it is not XML, or its root is not ``<root>``, as of a web page that
            was saved in its place.
    """
    data = _read_bytes(path, hint)
    try:
        element = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        page = re.match(rb"\W*(<!doctype html|<html)", data[:200], re.IGNORECASE)
        what = "it is a web page" if page else str(error)
        raise BadFile(f"{path} cannot be read ({what}); fetch it again") from error
    if element.tag != root:
        raise BadFile(
            f"{path} cannot be read (its root is <{element.tag}>, expected <{root}>); "
            "fetch it again"
        )
    return element


def text_of(element: Element, path: str, where: str) -> str:
    """Return the text of the one element at ``path`` below ``element``.

    Raises:
        BadFile: there is none, or there are several.
    """
    for tag in path.split("/"):
        if len(found := element.findall(tag)) != 1:
            raise BadFile(
                f"{where} cannot be read ({len(found)} times <{tag}>, expected 1); "
                "correct it or fetch it again"
            )
        element = found[0]
    return (element.text or "").strip()


def number_of(element: Element, path: str, where: str) -> float:
    """Return the finite number at ``path`` below ``element``.

    Raises:
        BadFile: it is missing, or not such a number.
    """
    text = text_of(element, path, where)
    if not NUMBER.fullmatch(text) or not is_coordinate(float(text)):
        raise BadFile(
            f"{where} cannot be read (<{path.rpartition('/')[2]}> is {text!r}, "
            "expected a finite number of pixels); correct it or fetch it again"
        )
    return float(text)


def read_array(path: Path) -> np.ndarray:
    """Return the array of real numbers in a ``.npy`` file; nothing in it is run.

    Raises:
        FileNotFoundError: it is not there.
        BadFile: it is damaged or cut short, or holds anything else.
    """
    if not is_file(path):
        raise FileNotFoundError(f"{path} is missing")
    try:
        # mapped first: a damaged header cannot ask for memory that the file has not
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        kind = array.dtype.kind if isinstance(array, np.ndarray) else "?"
    except Exception as error:  # on broken data numpy raises nearly anything
        raise BadFile(
            f"{path} cannot be read ({type(error).__name__}: {error}); fetch it again"
        ) from error
    if kind not in "fiu":
        raise BadFile(f"{path} does not hold one array of real numbers; fetch it again")
    return np.array(array)


def check_density(density: np.ndarray, count: int, inside: int, path: Path) -> None:
    """Check that a density map (H, W) belongs to its dots.

    Published maps merge dots that share a pixel and drop some at the edge, so the sum
    may differ from the number of dots by a quarter, and by 1.

    Args:
        density: the map.
        count: the number of dots.
        inside: how many of them lie in the picture.
        path: the map's file, for the message.

    Raises:
        BadFile: a value is not finite or negative, or the sum is another.
    """
    lowest, total = float(density.min()), float(density.sum(dtype=np.float64))
    if not math.isfinite(total) or lowest < -1e-6:
        bad = "values that are not finite" if not math.isfinite(total) else str(lowest)
        raise BadFile(
            f"{path} holds {bad}: expected densities of 0 or more; fetch it again, or "
            "delete it to make the density of the points"
        )
    if not 0.75 * inside - 1 <= total <= 1.25 * count + 1:
        raise BadFile(
            f"{path} sums to {total:.1f} for {count} points: it belongs to another "
            "photograph or version; fetch it again, or delete it to make the density "
            "of the points"
        )


def _read_bytes(path: Path, hint: str) -> bytes:
    if not is_file(path):
        raise FileNotFoundError(f"{path} is missing{'; ' * bool(hint)}{hint}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFile(
            f"{path} cannot be read ({error.strerror}): see to its permissions, or "
            "fetch it again"
        ) from error
