"""Stuff: procedural backgrounds with names.

A bank of textures, twice the scene's side, is painted once per size from a fixed seed;
every scene cuts its own window out of it. The bank is data, like the atlas: it does not
depend on a scene's seed.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

BACKGROUNDS = {
    "plain": "on a plain background",
    "sky": "in the sky",
    "night sky": "in the night sky",
    "grass": "on the grass",
    "flower field": "in a field of flowers",
    "water": "in the water",
    "sand": "on the sand",
    "snow": "in the snow",
    "road": "on the road",
    "railway": "on the railway",
    "wood floor": "on a wood floor",
    "brick wall": "in front of a brick wall",
    "stone floor": "on a stone floor",
    "forest": "in the forest",
}
"""Background name -> the phrase with which a caption places something there."""

VARIANTS = 3
"""Independent textures per background."""


@lru_cache(maxsize=4)
def texture_bank(height: int, width: int) -> Tensor:
    """Paint all backgrounds for scenes of ``height`` x ``width`` pixels.

    Returns:
        uint8 (len(BACKGROUNDS), VARIANTS, 2 * height, 2 * width, 3).
    """
    bank = []
    for number, name in enumerate(BACKGROUNDS):
        for variant in range(VARIANTS):
            brush = _Brush(
                2 * height, 2 * width, min(height, width), seed=1000 * number + variant
            )
            bank.append(getattr(brush, name.replace(" ", "_"))())
    pixels = (torch.stack(bank).clamp(0, 1) * 255).round().to(torch.uint8)
    return rearrange(pixels, "(k v) c h w -> k v h w c", v=VARIANTS).contiguous()


def cutting_table(height: int, width: int) -> Tensor:
    """Return the textures of :func:`texture_bank`, as they are and mirrored, for
    :func:`cut_out`.

    Returns:
        uint8 (2, len(BACKGROUNDS), VARIANTS, 3, 2 * height, 2 * width).
    """
    bank = rearrange(texture_bank(height, width), "k v h w c -> k v c h w")
    return torch.stack([bank, bank.flip(-1)])


def cut_out(table: Tensor, background: Tensor, surface: Tensor) -> Tensor:
    """Cut one window per scene out of the table, mirrored at random and
    slightly recoloured.

    Args:
        table: uint8 (2, K, V, 3, 2H, 2W) from :func:`cutting_table`, on the
            device to render on.
        background: int64 (B,) index into BACKGROUNDS.
        surface: float (B, 8) in [0, 1): variant, y, x, mirror, brightness,
            red, green, blue.

    Returns:
        float (B, 3, H, W) in [0, 1].
    """
    variants, height, width = table.shape[2], table.shape[4] // 2, table.shape[5] // 2
    # numbers just below 1 become 1 in single precision
    surface = surface.clamp(max=1 - 2**-24)
    variant, top, left = (
        (surface[:, :3] * surface.new_tensor([variants, height, width]))
        .long()
        .unbind(1)
    )
    mirrored = surface[:, 3] >= 0.5
    left = torch.where(mirrored, width - left, left)
    # A view of all windows, so that a window is copied row by row and not
    # pixel by pixel.
    windows = table.unfold(4, height, 1).unfold(5, width, 1)
    window = windows[mirrored.long(), background, variant, :, top, left]
    # "plain" may have any colour; the others keep theirs, under varying light.
    spread = torch.where(background == 0, 0.55, 0.12)[:, None]
    light = 1 + 0.2 * (surface[:, 4:5] - 0.6) - spread * surface[:, 5:8]
    return (window.float() * rearrange(light / 255, "b c -> b c 1 1")).clamp_(0, 1)


class _Brush:
    """One painter per texture: coordinates in units of the scene's side, and noise from
    its own generator."""

    def __init__(self, height: int, width: int, unit: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.size = (height, width)
        self.unit = unit
        self.y = (torch.arange(height) / unit)[:, None].expand(height, width)
        self.x = (torch.arange(width) / unit)[None].expand(height, width)

    def noise(self, cells_y: float, cells_x: float | None = None) -> Tensor:
        """Smooth noise in [0, 1], (H, W), with the given number of
        cells per scene side."""
        height, width = self.size
        rows = max(2, round(cells_y * height / self.unit))
        columns = max(
            2, round((cells_y if cells_x is None else cells_x) * width / self.unit)
        )
        grid = torch.rand(
            1, 1, min(rows, height), min(columns, width), generator=self.generator
        )
        return F.interpolate(grid, self.size, mode="bicubic", align_corners=False)[
            0, 0
        ].clamp(0, 1)

    def mix(
        self, low: tuple[float, ...], high: tuple[float, ...], amount: Tensor
    ) -> Tensor:
        """Blend two colours by ``amount`` (H, W) in [0, 1] -> (3, H, W)."""
        a, b = torch.tensor(low)[:, None, None], torch.tensor(high)[:, None, None]
        return a + (b - a) * amount

    def over(self, base: Tensor, colour: tuple[float, ...], where: Tensor) -> Tensor:
        """Paint ``colour`` over ``base`` with the opacity ``where``
        (H, W) in [0, 1]."""
        return base + (torch.tensor(colour)[:, None, None] - base) * where

    def cell_values(self, rows: Tensor, columns: Tensor) -> Tensor:
        """One random value per integer cell (rows, columns) -> (H, W)."""
        table = torch.rand(64, 64, generator=self.generator)
        return table[rows.long() % 64, columns.long() % 64]

    def plain(self) -> Tensor:
        return self.mix((0.97, 0.97, 0.97), (1.0, 1.0, 1.0), self.noise(1.5))

    def sky(self) -> Tensor:
        cloud = (0.6 * self.noise(2, 1.2) + 0.4 * self.noise(6, 4) - 0.5).clamp(
            0, 0.3
        ) / 0.3
        return self.over(
            self.mix((0.36, 0.62, 0.93), (0.70, 0.87, 0.98), self.y / 2),
            (1, 1, 1),
            0.9 * cloud,
        )

    def night_sky(self) -> Tensor:
        sky = self.mix(
            (0.04, 0.05, 0.16),
            (0.12, 0.10, 0.32),
            0.5 * self.y / 2 + 0.5 * self.noise(2),
        )
        star = (torch.rand(self.size, generator=self.generator) < 0.006).float()
        return self.over(sky, (1.0, 0.97, 0.85), star)

    def grass(self) -> Tensor:
        blades = (
            0.5 * self.noise(8, 24) + 0.3 * self.noise(3) + 0.2 * self.noise(20, 32)
        )
        return self.mix((0.14, 0.38, 0.08), (0.50, 0.76, 0.27), blades)

    def flower_field(self) -> Tensor:
        field = self.grass() * 0.9
        step = 0.16
        for colour in ((0.98, 0.85, 0.20), (0.95, 0.45, 0.65), (0.98, 0.98, 0.98)):
            rows, columns = torch.floor(self.y / step), torch.floor(self.x / step)
            dy = self.y / step - rows - 0.25 - 0.5 * self.cell_values(rows, columns)
            dx = self.x / step - columns - 0.25 - 0.5 * self.cell_values(rows, columns)
            grows = (self.cell_values(rows, columns) < 0.35).float()
            field = self.over(
                field, colour, ((dy**2 + dx**2).sqrt() < 0.2).float() * grows
            )
        return field

    def water(self) -> Tensor:
        wave = 0.5 + 0.5 * torch.sin(
            2 * torch.pi * (9 * self.y + 0.8 * self.noise(3, 2) * 3)
        )
        return self.mix(
            (0.05, 0.30, 0.55),
            (0.35, 0.68, 0.84),
            0.55 * wave * self.noise(8, 3) + 0.45 * self.noise(3, 1.5),
        )

    def sand(self) -> Tensor:
        ripple = 0.5 + 0.5 * torch.sin(
            2 * torch.pi * (5 * self.y + 1.5 * self.noise(2))
        )
        return self.mix(
            (0.80, 0.66, 0.42), (0.96, 0.87, 0.66), 0.5 * ripple + 0.5 * self.noise(30)
        )

    def snow(self) -> Tensor:
        return self.mix(
            (0.82, 0.89, 0.97),
            (1.0, 1.0, 1.0),
            0.7 * self.noise(2.5) + 0.3 * self.noise(24),
        )

    def road(self) -> Tensor:
        asphalt = self.mix((0.27, 0.27, 0.29), (0.42, 0.42, 0.43), self.noise(32))
        line = ((self.y % 0.8 - 0.4).abs() < 0.025) & (self.x % 0.5 < 0.3)
        return self.over(asphalt, (0.96, 0.93, 0.75), line.float())

    def railway(self) -> Tensor:
        ballast = self.mix((0.40, 0.36, 0.33), (0.66, 0.62, 0.57), self.noise(26))
        track = (self.y + 0.13) % 1.0
        sleeper = (self.x % 0.22 < 0.09) & (track > 0.18) & (track < 0.82)
        bed = self.over(ballast, (0.34, 0.22, 0.13), sleeper.float())
        rail = ((track - 0.32).abs() < 0.025) | ((track - 0.68).abs() < 0.025)
        return self.over(bed, (0.74, 0.77, 0.82), rail.float())

    def wood_floor(self) -> Tensor:
        rows = torch.floor(self.y / 0.16)
        columns = torch.floor(self.x / 0.75 + 0.37 * rows)
        plank = 0.45 * self.cell_values(rows, columns) + 0.55 * self.noise(28, 4)
        seam = ((self.y / 0.16 - rows) < 0.09) | (
            (self.x / 0.75 + 0.37 * rows - columns) < 0.02
        )
        return self.over(
            self.mix((0.50, 0.31, 0.15), (0.80, 0.58, 0.34), plank),
            (0.30, 0.17, 0.08),
            seam.float(),
        )

    def brick_wall(self) -> Tensor:
        rows = torch.floor(self.y / 0.125)
        columns = torch.floor(self.x / 0.28 + 0.5 * (rows % 2))
        mortar = ((self.y / 0.125 - rows) < 0.15) | (
            (self.x / 0.28 + 0.5 * (rows % 2) - columns) < 0.07
        )
        brick = self.mix(
            (0.55, 0.20, 0.14),
            (0.78, 0.38, 0.27),
            0.7 * self.cell_values(rows, columns) + 0.3 * self.noise(30),
        )
        return self.over(brick, (0.83, 0.79, 0.74), mortar.float())

    def stone_floor(self) -> Tensor:
        rows, columns = torch.floor(self.y / 0.3), torch.floor(self.x / 0.3)
        slab = 0.6 * self.cell_values(rows, columns) + 0.4 * self.noise(14)
        seam = ((self.y / 0.3 - rows) < 0.06) | ((self.x / 0.3 - columns) < 0.06)
        return self.over(
            self.mix((0.50, 0.52, 0.55), (0.76, 0.77, 0.77), slab),
            (0.36, 0.37, 0.38),
            seam.float(),
        )

    def forest(self) -> Tensor:
        leaves = self.mix(
            (0.03, 0.17, 0.07),
            (0.22, 0.45, 0.17),
            0.6 * self.noise(9) + 0.4 * self.noise(22),
        )
        column = torch.floor(self.x / 0.21)
        centre = 0.3 + 0.4 * self.cell_values(torch.zeros_like(column), column)
        trunk = (
            self.x / 0.21 - column - centre
        ).abs() < 0.09 + 0.05 * self.cell_values(torch.ones_like(column), column)
        return self.over(leaves, (0.30, 0.20, 0.13), 0.9 * trunk.float())
