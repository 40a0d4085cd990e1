"""What a browser without a network makes of the pages, on a desktop and on a phone, light and dark."""

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


@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_fits_its_window(site: Site, browse: Callable[..., Any], width: int) -> None:
    for name in site.articles:
        seen = browse(name, width)
        assert abs(seen["width"] - width) <= 20, f"the window is {seen['width']} wide: this test sees nothing"
        assert seen["scroll"] <= seen["width"] + 1 and not seen["wide"], f"{name} is too wide: {seen}"
        assert not seen["loaded"], f"{name} fetched from the network: {seen['loaded']}"
        assert not seen["blank"], f"{name} shows pictures that are not there: {seen['blank']}"


def test_math_is_set_without_a_network(site: Site, browse: Callable[..., Any]) -> None:
    with_math = [name for name, page in site.articles.items() if page.select(".math")]
    assert with_math, "no page has any math: nothing was tested"
    for name in with_math:
        seen = browse(name, DESKTOP)
        assert seen["math"] > 0 and seen["raw"] == 0, f"{name}: math was left as source: {seen}"
        assert not seen["broken"], f"{name}: {seen['broken']}"


@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_are_drawn_light_and_dark(browse: Callable[..., Any], width: int, tmp_path: Path) -> None:
    ground = {}
    for theme in ("light", "dark"):
        shot = tmp_path / f"{theme}.png"
        assert browse("intro.html", width, theme, shot)["theme"] == theme
        picture = np.asarray(Image.open(shot).convert("L"), dtype=float)
        assert picture.shape == (1600, width)
        assert picture.std() > 10, "nothing was drawn"
        ground[theme] = np.median(picture)
    assert ground["light"] > 200 and ground["dark"] < 60, ground
