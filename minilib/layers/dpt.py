"""Dense prediction transformer (DPT, arXiv 2103.13413): tokens become maps, and maps
are fused, coarse to fine.

Shapes: B images, L tokens of width W, C channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Readout(nn.Module):
    """Hand what the readout (class) token knows to every patch token (DPT section 3.1).

    Args:
        width: W.
        kind: ``"project"`` concatenates patch and class token and projects them back to
            W, as LSeg does; ``"add"`` adds them; ``"ignore"`` drops the class token.
        start: number of leading tokens that are not patches; "project" reads the first,
            "add" their mean.
    """

    def __init__(self, width: int, kind: str = "project", start: int = 1) -> None:
        super().__init__()
        if kind not in ("project", "add", "ignore"):
            raise ValueError(
                f"unknown readout {kind!r}: use 'project', 'add' or 'ignore'"
            )
        self.kind, self.start = kind, start
        if kind == "project":
            self.project = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens (B, start + L, W) into patch tokens (B, L, W)."""
        patches = tokens[:, self.start :]
        if self.kind == "ignore":
            return patches
        if self.kind == "add":
            return patches + tokens[:, : self.start].mean(dim=1, keepdim=True)
        return F.gelu(
            self.project(torch.cat([patches, tokens[:, :1].expand_as(patches)], dim=-1))
        )


class Reassemble(nn.Module):
    """Lay tokens out as a map and bring it to another resolution (DPT section 3.1).

    Args:
        width: W of the tokens.
        channels: C of the map.
        scale: how many times finer than the token grid the map is: 1, a
            whole number, or 0.5.
        readout: see ``Readout``.
    """

    def __init__(
        self, width: int, channels: int, scale: float, readout: str = "project"
    ) -> None:
        super().__init__()
        self.readout = Readout(width, readout)
        self.project = nn.Conv2d(width, channels, 1)
        self.resample: nn.Module = nn.Identity()
        if scale == 0.5:
            self.resample = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        elif scale > 1 and scale == int(scale):
            self.resample = nn.ConvTranspose2d(
                channels, channels, int(scale), stride=int(scale)
            )
        elif scale != 1:
            raise ValueError(f"scale={scale}: expected 0.5, 1 or a whole number")

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Turn tokens (B, 1 + h * w, W) of a grid (h, w) into a map
        (B, C, scale * h, scale * w)."""
        cells = rearrange(
            self.readout(tokens), "b (h w) c -> b c h w", h=grid[0], w=grid[1]
        )
        return self.resample(self.project(cells))


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3 x 3 convolutions, each followed by batch
    norm if that is on."""

    def __init__(self, channels: int, batch_norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm)
        self.bn1 = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.bn2 = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (B, C, h, w) -> (B, C, h, w)."""
        y = self.bn1(self.conv1(F.relu(x)))
        return x + self.bn2(self.conv2(F.relu(y)))


class FusionBlock(nn.Module):
    """Merge a coarse path with the map of its resolution and refine both to a finer one
    (RefineNet style).

    Args:
        channels: C of path and map.
        batch_norm: on in LSeg, off in DPT's depth models.
        skip: whether there is a map to merge; the deepest block has none.
    """

    def __init__(
        self, channels: int, batch_norm: bool = True, skip: bool = True
    ) -> None:
        super().__init__()
        self.resConfUnit1 = ResidualConvUnit(channels, batch_norm) if skip else None
        self.resConfUnit2 = ResidualConvUnit(channels, batch_norm)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(
        self,
        path: Tensor,
        skip: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the refined path (B, C, *size), by default of twice the resolution.

        Args:
            path: (B, C, h, w), what comes from the coarser levels.
            skip: (B, C, h, w), the map of this level.
            size: rows and columns of the result; given where levels are not a
                factor of 2 apart.
        """
        if skip is not None:
            if self.resConfUnit1 is None:
                raise ValueError("the block was made with skip=False: it merges no map")
            path = path + self.resConfUnit1(skip)
        path = self.resConfUnit2(path)
        size = size or (2 * path.shape[-2], 2 * path.shape[-1])
        # The authors' code enlarges first. A 1 x 1 convolution and an interpolation,
        # whose weights sum to one, give the same in either order, and this one
        # convolves a quarter of the cells.
        return F.interpolate(
            self.out_conv(path), size, mode="bilinear", align_corners=True
        )


class DPTDecoder(nn.Module):
    """Fuse four maps into one of twice the finest resolution (DPT section 3.1).

    Args:
        in_channels: channels of the four maps, from fine to coarse.
        features: C of all paths.
        batch_norm: see ``FusionBlock``.
    """

    def __init__(
        self, in_channels: Sequence[int], features: int, batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.level = nn.ModuleList(
            nn.Conv2d(c, features, 3, padding=1, bias=False) for c in in_channels
        )
        last = len(self.level) - 1
        self.fuse = nn.ModuleList(
            FusionBlock(features, batch_norm, skip=number < last)
            for number in range(last + 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps (B, C_i, h_i, w_i), fine to coarse, to (B, C, 2 * h_0, 2 * w_0)."""
        return self.paths(maps)[0]

    def paths(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return each level's output, fine to coarse; the first is ``forward``'s."""
        levels = [conv(x) for conv, x in zip(self.level, maps, strict=True)]
        sizes = [None, *(tuple(level.shape[-2:]) for level in levels[:-1])]
        path = self.fuse[-1](levels[-1], size=sizes[-1])
        paths = [path]
        for number in reversed(range(len(levels) - 1)):
            path = self.fuse[number](path, levels[number], sizes[number])
            paths.insert(0, path)
        return paths
