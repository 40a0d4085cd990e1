"""The sprite sheets that ship with the package, and the script that builds them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minilib.scenes import atlas
from minilib.scenes.atlas import (
    CELL,
    COLUMNS,
    STYLES,
    codepoint_hash,
    load_atlas,
    split_sheet,
)
from minilib.scenes.vocabulary import VOCABULARY, names

ROOT = Path(__file__).resolve().parents[2]
ASSETS = Path(atlas.__file__).parent / "assets"
RECORD = json.loads((ASSETS / "atlas.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def build_atlas():
    """The script data_scripts/build_atlas.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "build_atlas", ROOT / "data_scripts" / "build_atlas.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("style", STYLES)
def test_shape_and_type(style: str):
    sprites = load_atlas(style)
    assert sprites.shape == (240, 4, 64, 64) and sprites.dtype == torch.uint8
    assert load_atlas(style) is sprites  # cached


@pytest.mark.parametrize("style", STYLES)
def test_every_sprite_fills_62_pixels_and_leaves_a_transparent_margin(style: str):
    visible = load_atlas(style)[:, 3] > 0
    assert not visible[:, [0, -1], :].any() and not visible[:, :, [0, -1]].any()
    # heights, widths
    extent = torch.stack([visible.any(2).sum(1), visible.any(1).sum(1)])
    touches_top_and_bottom = visible[:, 1].any(1) & visible[:, -2].any(1)
    touches_left_and_right = visible[:, :, 1].any(1) & visible[:, :, -2].any(1)
    assert (touches_top_and_bottom | touches_left_and_right).all()
    assert extent.amax() == 62 and extent.amin() >= 10
    covered = (load_atlas(style)[:, 3] > 127).float().mean(dim=(1, 2))
    assert covered.min() > 0.05, names()[int(covered.argmin())]


@pytest.mark.parametrize("style", STYLES)
def test_every_sprite_is_centred(style: str):
    visible = load_atlas(style)[:, 3] > 0
    for side in (visible.any(2).int(), visible.any(1).int()):
        before, after = side.argmax(1), side.flip(1).argmax(1)
        assert ((before - after).abs() <= 2).all()  # odd sides, and faint first rows


@pytest.mark.parametrize("style", STYLES)
def test_transparent_pixels_are_black(style: str):
    sprites = load_atlas(style)
    hidden = sprites[:, 3:] == 0
    assert (sprites[:, :3] * hidden).sum() == 0


def test_styles_differ_in_every_drawing():
    for first, second in (
        ("noto", "openmoji"),
        ("noto", "twemoji"),
        ("openmoji", "twemoji"),
    ):
        difference = (
            (load_atlas(first).float() - load_atlas(second).float())
            .abs()
            .mean(dim=(1, 2, 3))
        )
        assert difference.min() > 3, names()[int(difference.argmin())]


def test_no_two_classes_look_alike_in_the_training_style():
    """Pairs (mirrored too) on light, grey and dark ground stay apart: root mean
    square over 16x16 RGB."""
    sprites = load_atlas("noto").float() / 255
    squared = 0
    for ground in (0.1, 0.5, 0.9):
        picture = sprites[:, :3] * sprites[:, 3:] + ground * (1 - sprites[:, 3:])
        small = torch.nn.functional.avg_pool2d(picture, 4)
        plain, mirrored = small.flatten(1), small.flip(-1).flatten(1)
        nearest = torch.minimum(torch.cdist(plain, plain), torch.cdist(plain, mirrored))
        squared = squared + nearest.square() / plain.shape[1] / 3
    distance = squared.sqrt() + 9 * torch.eye(240)
    first, second = divmod(int(distance.argmin()), 240)
    assert distance.min() > 0.12, (names()[first], names()[second])


@pytest.mark.parametrize("style", STYLES)
def test_sheet_is_the_recorded_file(style: str):
    record = RECORD["sheets"][style]
    assert (
        hashlib.sha256((ASSETS / f"{style}.webp").read_bytes()).hexdigest()
        == record["sha256"]
    )
    assert record["codepoints_sha256"] == codepoint_hash()
    assert record["package"] and record["version"]
    assert (RECORD["cell"], RECORD["columns"]) == (CELL, COLUMNS)


def test_sheets_are_at_most_6_megabytes():
    assert (
        sum((ASSETS / f"{style}.webp").stat().st_size for style in STYLES) <= 6_000_000
    )


def test_licences_and_attribution_stand_beside_the_sheets():
    expected = {
        "noto": "SIL OPEN FONT LICENSE Version 1.1",
        "openmoji": "Attribution-ShareAlike 4.0 International",
        "twemoji": "Attribution 4.0 International",
    }
    attribution = (ASSETS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for style, title in expected.items():
        text = (ASSETS / f"LICENSE-{style}.txt").read_text(encoding="utf-8")
        assert title in text and len(text) > 4000
        record = RECORD["sheets"][style]
        assert f"{record['package']} {record['version']}" in attribution
    assert all(
        term in attribution
        for term in ("SIL Open Font License 1.1", "CC BY-SA 4.0", "CC BY 4.0")
    )


def test_unknown_style_is_refused():
    with pytest.raises(ValueError, match="'emoji'.*noto, openmoji, twemoji"):
        load_atlas("emoji")


@pytest.fixture
def assets_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of the assets that load_atlas reads instead of the shipped ones."""
    shutil.copytree(ASSETS, tmp_path / "assets")
    monkeypatch.setattr(atlas, "files", lambda package: tmp_path)
    load_atlas.cache_clear()
    yield tmp_path / "assets"
    load_atlas.cache_clear()


def test_a_sheet_for_another_vocabulary_is_refused(
    assets_copy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(atlas, "VOCABULARY", VOCABULARY[::-1])
    with pytest.raises(ValueError, match="different vocabulary.*build_atlas.py"):
        load_atlas("noto")


def test_a_damaged_sheet_is_refused(assets_copy: Path):
    sheet = assets_copy / "twemoji.webp"
    sheet.write_bytes(sheet.read_bytes()[:-100])
    with pytest.raises(ValueError, match="twemoji.webp.*SHA-256"):
        load_atlas("twemoji")
    assert load_atlas("noto").shape == (240, 4, 64, 64)


def test_sheet_cells_follow_the_label_order(build_atlas):
    """Each class drawn in a colour that tells its index comes back at that index."""

    def draw(concept):
        return Image.new("RGBA", (10, 10), (concept.index, 255 - concept.index, 7, 255))

    sprites = split_sheet(build_atlas.build_sheet("test", draw))
    assert sprites.shape == (240, 4, 64, 64)
    assert sprites[:, 0, 32, 32].tolist() == list(range(240))


def test_sprite_edges_take_no_colour_from_transparent_pixels(build_atlas):
    rgba = np.zeros((100, 100, 4), dtype=np.uint8)
    rgba[..., 1] = 255  # green, but transparent
    rows, columns = np.mgrid[:100, :100]
    rgba[(rows - 50) ** 2 + (columns - 50) ** 2 < 40**2] = (255, 0, 0, 255)
    sprite = np.array(build_atlas.make_sprite(Image.fromarray(rgba)))
    edge = (sprite[..., 3] > 0) & (sprite[..., 3] < 255)
    assert edge.sum() > 50
    assert sprite[..., 1].max() == 0 and sprite[edge][:, 0].min() > 230


def test_sprite_keeps_the_proportions(build_atlas):
    drawing = Image.new("RGBA", (200, 200))
    drawing.paste((0, 0, 255, 255), (20, 90, 180, 130))  # 160 x 40
    alpha = build_atlas.make_sprite(drawing).getchannel("A")
    assert alpha.getbbox() == (1, 24, 63, 40)


def test_an_empty_drawing_is_refused(build_atlas):
    with pytest.raises(ValueError, match="empty"):
        build_atlas.make_sprite(Image.new("RGBA", (20, 20)))


def test_webp_round_trip_is_exact(build_atlas):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    data = build_atlas.encode_webp(Image.fromarray(pixels))
    assert (np.array(Image.open(BytesIO(data)).convert("RGBA")) == pixels).all()


@pytest.mark.parametrize(
    ("style", "option", "hint"),
    [
        ("noto", "--noto-font", "apt-get install fonts-noto-color-emoji"),
        ("openmoji", "--openmoji", "no drawing of 'dog'|pip install resvg-py"),
        ("twemoji", "--twemoji", "npm pack @discordapp/twemoji"),
    ],
)
def test_missing_source_is_named_and_nothing_is_written(
    build_atlas, tmp_path, monkeypatch, capsys, style, option, hint
):
    out = tmp_path / "out"
    missing = str(tmp_path / "missing")
    monkeypatch.setattr(
        sys,
        "argv",
        ["build_atlas", "--styles", style, option, missing, "--out", str(out)],
    )
    assert build_atlas.main() == 1
    message = capsys.readouterr().err
    assert any(part in message for part in hint.split("|")), message
    assert not out.exists()


@pytest.mark.parametrize("style", STYLES)
def test_rebuild_reproduces_the_sheet(build_atlas, tmp_path: Path, style: str):
    """The same source version gives the same drawings; the same tools give
    the same pixels."""
    try:
        if style == "noto":
            draw, source = build_atlas.noto_source()
        elif style == "openmoji":
            draw, source = build_atlas.openmoji_source()
        elif place := os.environ.get("MINILIB_TWEMOJI"):
            draw, source = build_atlas.twemoji_source(Path(place), tmp_path)
        else:
            # The drawings are published on npm alone: nothing that the Python package
            # index has can bring them.
            pytest.skip(
                "Twemoji is not on PyPI: set MINILIB_TWEMOJI to a folder or .tgz of "
                "npm's @discordapp/twemoji"
            )
    except build_atlas.SourceMissing as error:
        # Only whoever rebuilds the atlas needs the drawings' sources; the tests'
        # packages leave them out.
        pytest.skip(
            f"cannot rebuild the {style} sheet without the drawings that it was made "
            f"from: {error}"
        )
    record = RECORD["sheets"][style]
    if source["version"] != record["version"]:
        pytest.skip(
            f"{source['package']} {source['version']}, but the sheet is from "
            f"{record['version']}"
        )
    rebuilt = split_sheet(build_atlas.build_sheet(style, draw))
    difference = (rebuilt.int() - load_atlas(style).int()).abs()
    if build_atlas.tool_versions(style) == record["tools"]:
        # room for another processor's rounding
        assert (difference > 0).float().mean() < 1e-3
    assert difference.float().mean() < 0.5
