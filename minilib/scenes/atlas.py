"""The sprite atlas: every object class drawn in three styles, 64x64 pixels each.

The sheets ``assets/{noto,openmoji,twemoji}.webp`` are built by
``data_scripts/build_atlas.py``. Each drawing fills the inner 62x62 pixels along its
longer side, with one transparent pixel around. The licences of the drawings differ from
that of the code: see ``assets/ATTRIBUTION.md``.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from io import BytesIO

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from minilib.scenes.vocabulary import VOCABULARY

STYLES = ("noto", "openmoji", "twemoji")
"""Drawing styles. The convention of the chapters: train on the first, test transfer
on the other two."""
CELL = 64
"""Side of a sprite in pixels."""
COLUMNS = 16
"""Sprites in a row of a sheet; class ``i`` is in row ``i // 16``, column ``i % 16``."""


def codepoint_hash() -> str:
    """Return the SHA-256 of the codepoints in order: it ties a sheet
    to its vocabulary."""
    return hashlib.sha256(
        " ".join(concept.codepoint for concept in VOCABULARY).encode()
    ).hexdigest()


@cache
def load_atlas(style: str) -> Tensor:
    """Return all sprites of one drawing style.

    Args:
        style: "noto", "openmoji" or "twemoji".

    Returns:
        uint8 (K, 4, 64, 64), straight (not premultiplied) RGBA, in label order.
        Transparent pixels are black, so multiply the colours by alpha before
        interpolating. All callers share the tensor: do not write to it.

    Raises:
        ValueError: the style is unknown, or the sheets were drawn for a different
            vocabulary or are damaged.
    """
    if style not in STYLES:
        raise ValueError(
            f"unknown drawing style {style!r}; expected one of {', '.join(STYLES)}"
        )
    assets = files(__package__).joinpath("assets")
    record = json.loads(assets.joinpath("atlas.json").read_text(encoding="utf-8"))[
        "sheets"
    ][style]
    if record["codepoints_sha256"] != codepoint_hash():
        raise ValueError(
            f"assets/{style}.webp was drawn for a different vocabulary.tsv; "
            "rebuild it with: python data_scripts/build_atlas.py"
        )
    data = assets.joinpath(f"{style}.webp").read_bytes()
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise ValueError(
            f"assets/{style}.webp is not the sheet that atlas.json describes (its "
            "SHA-256 differs); restore the file or rebuild it with: python "
            "data_scripts/build_atlas.py"
        )
    return split_sheet(Image.open(BytesIO(data)))


def split_sheet(sheet: Image.Image) -> Tensor:
    """Cut a sheet into its sprites: uint8 (K, 4, 64, 64), RGBA."""
    pixels = torch.from_numpy(np.array(sheet.convert("RGBA")))
    cells = rearrange(
        pixels, "(row h) (column w) rgba -> (row column) rgba h w", h=CELL, w=CELL
    )
    return cells[: len(VOCABULARY)].contiguous()
