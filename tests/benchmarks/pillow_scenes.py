"""The same scenes composed with Pillow, one image and one object at a time, as
one would by hand.

Independent of the batched renderer: it shares the layout, the sprites and the
background textures (data), and none of the drawing. Tests hold the renderer against it;
the benchmark measures against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from minilib.scenes.atlas import load_atlas
from minilib.scenes.backgrounds import texture_bank
from minilib.scenes.sampler import STYLES, TINTS, Layout
from minilib.scenes.vocabulary import VOCABULARY

MIP_SIDES = (64, 32, 16, 8)


@dataclass
class PillowScene:
    """One image and its annotations."""

    image: np.ndarray
    """(H, W, 3) uint8."""
    mask: np.ndarray
    """(H, W) int64 label of each pixel."""
    boxes: dict[int, tuple[int, int, int, int]]
    """Slot -> x1 y1 x2 y2 of the object's solid pixels."""


@lru_cache(maxsize=8)
def _sprites(style: str) -> list[list[Image.Image]]:
    """Return per mip level the straight RGBA sprites, with a
    transparent pixel around."""
    full = [
        Image.fromarray(sprite).convert("RGBa")
        for sprite in load_atlas(style).permute(0, 2, 3, 1).numpy()
    ]
    levels = []
    for side in MIP_SIDES:
        small = [sprite.reduce(64 // side).convert("RGBA") for sprite in full]
        framed = [Image.new("RGBA", (side + 2, side + 2)) for _ in small]
        for frame, sprite in zip(framed, small, strict=True):
            frame.paste(sprite, (1, 1))
        levels.append(framed)
    return levels


@lru_cache(maxsize=8)
def _textures(height: int, width: int) -> list[list[Image.Image]]:
    return [
        [Image.fromarray(texture) for texture in variants]
        for variants in texture_bank(height, width).numpy()
    ]


@lru_cache(maxsize=8)
def _tint_tables(tint: int) -> list[int]:
    """Return the lookup tables from a drawing's grey value to the tinted
    red, green and blue."""
    grey = np.arange(256) / 255
    channels = [
        np.minimum(value * (0.35 + 0.75 * grey), 1)
        for value in list(TINTS.values())[tint]
    ]
    return np.rint(255 * np.concatenate(channels)).astype(int).tolist()


def _background(layout: Layout, b: int, shape: tuple[int, int]) -> Image.Image:
    height, width = shape
    surface = layout.surface[b]
    variants = _textures(height, width)[layout.background[b]]
    left, top = int(surface[2] * width), int(surface[1] * height)
    window = variants[int(surface[0] * len(variants))].crop(
        (left, top, left + width, top + height)
    )
    if surface[3] >= 0.5:
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    spread = 0.55 if layout.background[b] == 0 else 0.12
    light = 1 + 0.2 * (surface[4] - 0.6) - spread * surface[5:8]
    table = np.minimum(np.outer(light, np.arange(256)) + 0.5, 255).astype(np.int64)
    return window.point(table.ravel().tolist())


def _drawing(layout: Layout, b: int, slot: int) -> tuple[Image.Image, tuple[int, int]]:
    """Return one object, scaled, rotated, mirrored and tinted, and where its
    top-left corner goes."""
    side, angle = layout.side[b, slot], layout.angle[b, slot]
    cosine, sine = math.cos(angle), math.sin(angle)
    pixels = math.ceil(side * (abs(cosine) + abs(sine))) + 2
    x0, y0 = (round(value - pixels / 2) for value in layout.center[b, slot])
    level = min(3, max(0, math.floor(math.log2(64 / side))))
    sprite = _sprites(STYLES[layout.style[b]])[level][layout.concept[b, slot]]
    step = MIP_SIDES[level] / side  # sprite pixels per canvas pixel
    mirror = -1 if layout.flipped[b, slot] else 1
    rows = np.array([[mirror * cosine, mirror * sine], [-sine, cosine]]) * step
    middle = MIP_SIDES[level] / 2 + 1
    # Where the corner of the window lies in the sprite; Pillow itself adds
    # the half pixels.
    offset = middle - rows @ (layout.center[b, slot] - [x0, y0])
    matrix = (*rows[0], offset[0], *rows[1], offset[1])
    window = sprite.transform(
        (pixels, pixels), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    tint = int(layout.tint[b, slot])
    if tint >= 0:
        grey = window.convert("L")
        coloured = Image.merge("RGB", [grey] * 3).point(_tint_tables(tint))
        alpha = window.getchannel("A")
        window = Image.blend(window.convert("RGB"), coloured, 0.88)
        window.putalpha(alpha)
    return window, (x0, y0)


def compose(layout: Layout, b: int, shape: tuple[int, int]) -> Image.Image:
    """Return scene ``b`` of the layout as an RGB image."""
    canvas = _background(layout, b, shape)
    for slot in np.flatnonzero(layout.concept[b] >= 0).tolist():
        window, corner = _drawing(layout, b, slot)
        canvas.paste(window, corner, window)
    return canvas


def annotate(layout: Layout, b: int, shape: tuple[int, int]) -> PillowScene:
    """Return scene ``b`` with its mask and boxes."""
    mask = Image.new("L", shape[::-1], len(VOCABULARY) + int(layout.background[b]))
    boxes = {}
    for slot in np.flatnonzero(layout.concept[b] >= 0).tolist():
        window, (x0, y0) = _drawing(layout, b, slot)
        solid = window.getchannel("A").point(lambda alpha: 255 * (alpha > 127))
        mask.paste(int(layout.concept[b, slot]), (x0, y0), solid.convert("1"))
        alone = Image.new("L", shape[::-1])
        alone.paste(solid, (x0, y0))
        boxes[slot] = alone.getbbox()
    return PillowScene(
        np.asarray(compose(layout, b, shape)), np.asarray(mask).astype(np.int64), boxes
    )
