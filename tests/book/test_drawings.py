"""The drawings: made by their script, described for those who cannot see them, and no
word leaves its picture."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib import font_manager
from PIL import ImageFont

BOOK = Path(__file__).parents[2] / "book"
SVG = "{http://www.w3.org/2000/svg}"


def _script():
    spec = importlib.util.spec_from_file_location(
        "make_drawings", BOOK / "make_drawings.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()


@cache
def _font(bold: bool, mono: bool):
    """DejaVu, which comes with matplotlib and is wider than the fonts of most
    systems."""
    family = "DejaVu Sans Mono" if mono else "DejaVu Sans"
    path = font_manager.findfont(
        font_manager.FontProperties(family=family, weight="bold" if bold else "normal")
    )
    return ImageFont.truetype(path, 100)


def _span(element) -> tuple[float, float]:
    size = float(element.get("font-size"))
    mono = "mono" in element.get("font-family", "").lower()
    font = _font(element.get("font-weight") is not None, mono)
    wide = font.getlength(element.text) * size / 100
    x = float(element.get("x"))
    left = {"start": x, "middle": x - wide / 2, "end": x - wide}
    start = left[element.get("text-anchor", "start")]
    return start, start + wide


@pytest.mark.parametrize("name", SCRIPT.DRAWINGS)
def test_a_drawing_is_what_its_script_draws(name):
    stored = (SCRIPT.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert stored == SCRIPT.DRAWINGS[name]().svg(), "run: python book/make_drawings.py"


@pytest.mark.parametrize("name", SCRIPT.DRAWINGS)
def test_words_stay_inside(name):
    picture = ElementTree.fromstring(SCRIPT.DRAWINGS[name]().svg())
    for element in picture.iter(f"{SVG}text"):
        left, right = _span(element)
        assert left >= 3 and right <= SCRIPT.WIDTH - 3, (element.text, left, right)
        assert 0 < float(element.get("y")) < float(picture.get("viewBox").split()[3])


@pytest.mark.parametrize("name", SCRIPT.DRAWINGS)
def test_words_stay_inside_their_box(name):
    picture = ElementTree.fromstring(SCRIPT.DRAWINGS[name]().svg())
    boxes = [
        [float(r.get(key)) for key in ("x", "y", "width", "height")]
        for r in picture.iter(f"{SVG}rect")
        if r.get("rx") == "8"
    ]
    for element in picture.iter(f"{SVG}text"):
        if element.get("text-anchor") != "middle":
            continue
        x, y = float(element.get("x")), float(element.get("y"))
        around = [b for b in boxes if abs(b[0] + b[2] / 2 - x) < 0.1]
        around = [b for b in around if b[1] < y < b[1] + b[3]]
        left, right = _span(element)
        for box in around:
            assert left >= box[0] and right <= box[0] + box[2], element.text


def test_every_drawing_is_used_and_described():
    pages = [*BOOK.glob("*.md"), *(BOOK.parent / "notebooks").glob("*.ipynb")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    for name in SCRIPT.DRAWINGS:
        place = rf"drawings/{name}\.svg"
        on_a_page = re.search(rf"{place}\n:alt: .{{60}}", text)
        in_a_notebook = re.search(rf"!\[[^\]]{{60,}}\]\({place}\)", text)
        assert on_a_page or in_a_notebook, f"{name} is nowhere, or not described"
