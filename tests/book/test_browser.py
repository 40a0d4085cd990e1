"""What a browser without a network makes of the pages, on a desktop and on a
phone, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from conftest import Site

DESKTOP, PHONE = 1280, 390
COLUMNS = 88  # pyproject.toml: the length of a line of code

# A line of code as the book sets it: in a cell, in a folded cell, printed by a
# cell, on a page.
BLOCK = (
    '<div class="highlight"><pre><span></span><span class="code-line">{}</span>\n'
    "</pre></div>"
)
CELL = (
    '<div class="cell docutils container">'
    f'<div class="cell_input docutils container">{BLOCK}</div></div>'
)
FOLDED = (
    '<div class="cell docutils container"><details class="admonition hide above-input">'
    '<summary><p class="admonition-title">Show code cell source</p></summary>'
    f'<div class="cell_input docutils container">{BLOCK}</div></details></div>'
)
PRINTED = (
    '<div class="cell docutils container"><div class="cell_output docutils container">'
    f'<div class="output stream highlight-myst-ansi">{BLOCK}</div></div></div>'
)
PLACES = (CELL, FOLDED, PRINTED, f'<div class="highlight-bash">{BLOCK}</div>')


@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_fits_its_window(
    site: Site, browse: Callable[..., Any], width: int
) -> None:
    for name in site.articles:
        seen = browse(name, width)
        assert abs(seen["width"] - width) <= 20, (
            f"the window is {seen['width']} wide: this test sees nothing"
        )
        assert seen["scroll"] <= seen["width"] + 1 and not seen["wide"], (
            f"{name} is too wide: {seen}"
        )
        assert not seen["loaded"], f"{name} fetched from the network: {seen['loaded']}"
        assert not seen["blank"], (
            f"{name} shows pictures that are not there: {seen['blank']}"
        )


def test_math_is_set_without_a_network(site: Site, browse: Callable[..., Any]) -> None:
    with_math = [name for name, page in site.articles.items() if page.select(".math")]
    assert with_math, "no page has any math: nothing was tested"
    for name in with_math:
        seen = browse(name, DESKTOP)
        assert seen["math"] > 0 and seen["raw"] == 0, (
            f"{name}: math was left as source: {seen}"
        )
        assert not seen["broken"], f"{name}: {seen['broken']}"


@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_are_drawn_light_and_dark(
    browse: Callable[..., Any], width: int, tmp_path: Path
) -> None:
    ground = {}
    for theme in ("light", "dark"):
        shot = tmp_path / f"{theme}.png"
        assert browse("intro.html", width, theme, shot)["theme"] == theme
        picture = np.asarray(Image.open(shot).convert("L"), dtype=float)
        assert picture.shape == (1600, width)
        assert picture.std() > 10, "nothing was drawn"
        ground[theme] = np.median(picture)
    assert ground["light"] > 200 and ground["dark"] < 60, ground


def test_no_block_of_code_needs_a_scroll_bar(
    site: Site, browse: Callable[..., Any]
) -> None:
    cut, blocks = [], 0
    for name in site.articles:
        seen = browse(name, DESKTOP)
        blocks += seen["blocks"]
        cut += [
            f"{name}: {block['line']!r} ({block['columns']} columns) needs "
            f"{block['needs']} pixels and has {block['has']}"
            for block in seen["code"]
        ]
    assert blocks > 100, f"only {blocks} blocks of code were seen"
    assert not cut, f"{len(cut)} of {blocks} blocks are cut off:\n" + "\n".join(cut)


@pytest.mark.parametrize("width", [DESKTOP, 1400, 1920])
def test_88_columns_fit_and_140_do_not(browse: Callable[..., Any], width: int) -> None:
    fits, does_not = "m" * COLUMNS, "n" * 140
    extra = "".join(place.format(line) for place in PLACES for line in (fits, does_not))
    seen = browse("notebooks/emojiscenes.html", width, extra=extra)
    cut = [
        block["line"][0]
        for block in seen["code"]
        if block["line"][:9] in (9 * "m", 9 * "n")
    ]
    assert cut == ["n"] * len(PLACES), seen["code"]
    assert seen["smallest"] >= 12.5, "the code is too small to be read"


def test_on_a_phone_code_wraps_and_printed_tables_scroll(
    browse: Callable[..., Any],
) -> None:
    long = CELL.format(" ".join(["word"] * 40)) + PRINTED.format("m" * 140)
    row = PRINTED.replace("code-line", "code-line columns").format(
        "row" + " " * 80 + "1.00"
    )
    seen = browse("notebooks/emojiscenes.html", PHONE, extra=long + row)
    scrolls = [block["line"].split()[0] for block in seen["code"]]
    assert "row" in scrolls, "the columns of a printed table were wrapped"
    assert not {"word", "m" * 60} & set(scrolls), "a long line does not wrap"
    assert seen["scroll"] <= seen["width"] + 1, "a block of code widens the page"
