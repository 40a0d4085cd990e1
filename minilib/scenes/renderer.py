"""Layouts to pixels: batched compositing of sprites, with exact masks and boxes.

Objects of similar size are drawn together, with ``grid_sample`` from a mip level that
fits their size, into windows that just hold them; then the windows are pasted slot by
slot. There is no Python loop over images or objects, and no image depends on the
others of its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minilib.scenes.atlas import load_atlas
from minilib.scenes.backgrounds import cut_out, cutting_table
from minilib.scenes.sampler import STYLES, TINTS, Layout
from minilib.scenes.vocabulary import VOCABULARY

MIP_LEVELS = 4
"""Sprites are kept at 64, 32, 16 and 8 pixels, so that small objects
are not aliased."""


@dataclass
class Rendering:
    """B images and, where asked for, masks and boxes of the N objects in
    the whole batch.

    Objects are ordered by image, then by slot.
    """

    image: Tensor
    """(B, 3, H, W) float in [0, 1]."""
    mask: Tensor | None
    """(B, H, W) int64: vocabulary index, or len(VOCABULARY) + background index."""
    boxes: Tensor | None
    """(N, 4) float x1 y1 x2 y2 in pixels: the whole drawing, including what
    another object hides."""
    owner: Tensor
    """(N,) int64 image of each object."""
    slot: Tensor
    """(N,) int64 slot of each object."""


@lru_cache(maxsize=4)
def sprites(styles: tuple[str, ...], device: str) -> tuple[Tensor, ...]:
    """Return the premultiplied sprites of ``styles``, (styles * K, 4, s, s) for
    s = 64, 32, 16, 8."""
    rgba = torch.cat([load_atlas(style) for style in styles]).to(device).float() / 255
    level = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
    pyramid = [level]
    for _ in range(MIP_LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return tuple(pyramid)


@lru_cache(maxsize=4)
def _table_on(height: int, width: int, device: str) -> Tensor:
    return cutting_table(height, width).to(device)


def render(
    layout: Layout,
    shape: tuple[int, int],
    device: torch.device | str = "cpu",
    masks: bool = False,
    boxes: bool = True,
) -> Rendering:
    """Draw every scene of ``layout``.

    Args:
        layout: B scenes, lengths in pixels of ``shape``.
        shape: (H, W) of the images.
        device: where to draw.
        masks: also return the label of every pixel.
        boxes: also return the extent of every object.
    """
    device = torch.device(device)
    height, width = shape
    background = torch.from_numpy(layout.background).to(device)
    surface = torch.from_numpy(layout.surface).to(device, torch.float32)
    canvas = cut_out(_table_on(height, width, str(device)), background, surface)
    label = None
    if masks:
        label = (
            (len(VOCABULARY) + background)[:, None, None]
            .expand(-1, height, width)
            .contiguous()
        )

    objects = _Objects.of(layout, shape, device)
    pyramid = sprites(objects.styles, str(device))
    windows, extents = [], []
    for group in objects.groups:
        windows.append(_draw(objects, group, pyramid))
        if boxes:
            extents.append(
                _boxes(windows[-1][:, 3] > 0.5, objects.corner[group.members])
            )
    for number, members in objects.pasting_order:
        first = objects.groups[number].members.start
        own = windows[number][members.start - first : members.stop - first]
        _paste(canvas, label, own, objects, members)
    extent = None
    if boxes:
        drawn = torch.cat([objects.square[:0], *extents])
        # A drawing so small that it covers half of no pixel still gets a box.
        drawn = torch.where(
            (drawn[:, 2:] > drawn[:, :2]).all(1, keepdim=True), drawn, objects.square
        )
        extent = torch.empty_like(drawn)
        extent[objects.rank] = drawn
    owner, slot = np.nonzero(layout.concept >= 0)
    return Rendering(
        canvas,
        label,
        extent,
        torch.from_numpy(owner).to(device),
        torch.from_numpy(slot).to(device),
    )


@dataclass(frozen=True)
class _Group:
    """Objects that are drawn together: one mip level, one size of window."""

    members: slice
    level: int
    size: tuple[int, int]
    """(height, width) of the window in pixels."""
    tinted: Tensor
    """int64, which of the members carry a colour."""


@dataclass(frozen=True)
class _Objects:
    """The N objects of a batch as flat tensors, sorted by group, then by slot.

    Grouping happens in numpy, where the layout is: nothing is copied back
    from the device.
    """

    rank: Tensor
    """(N,) int64 position of each object in the order by image and slot."""
    owner: Tensor
    concept: Tensor
    sprite: Tensor
    """(N,) int64 row in the pyramid of ``styles``."""
    tint: Tensor
    corner: Tensor
    """(N, 2) int64 top-left pixel of the window, x y; windows lie inside the canvas."""
    inverse: Tensor
    """(N, 2, 3) float, takes window pixels (x, y, 1) to sprite
    coordinates in [-1, 1]."""
    square: Tensor
    """(N, 4) float, the square of the drawing before it is rotated,
    clipped to the canvas."""
    styles: tuple[str, ...]
    groups: list[_Group]
    pasting_order: list[tuple[int, slice]]
    """(group, members) in order of slot; in each, an image owns at most one object."""

    @classmethod
    def of(
        cls, layout: Layout, shape: tuple[int, int], device: torch.device
    ) -> _Objects:
        owner, slot = np.nonzero(layout.concept >= 0)
        level, size = _levels_and_sizes(
            layout.side[owner, slot], layout.angle[owner, slot], max(shape)
        )
        rank = np.lexsort((slot, size, level))
        owner, slot, level, size = owner[rank], slot[rank], level[rank], size[rank]
        concept, tint = layout.concept[owner, slot], layout.tint[owner, slot]
        corner, inverse, square = _placement(layout, owner, slot, size, shape)
        used = np.unique(layout.style)
        sprite = np.searchsorted(used, layout.style)[owner] * len(VOCABULARY) + concept

        groups: list[_Group] = []
        group_of = np.empty(len(owner), dtype=np.int64)
        for members in _runs(level, size):
            first = members.start
            tinted = torch.from_numpy(np.flatnonzero(tint[members] >= 0)).to(device)
            window = (min(int(size[first]), shape[0]), min(int(size[first]), shape[1]))
            group_of[members] = len(groups)
            groups.append(_Group(members, int(level[first]), window, tinted))
        by_slot = sorted(_runs(level, size, slot), key=lambda run: slot[run.start])

        def on_device(array: np.ndarray, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.from_numpy(array).to(device, dtype)

        return cls(
            rank=on_device(rank),
            owner=on_device(owner),
            concept=on_device(concept),
            sprite=on_device(sprite),
            tint=on_device(tint),
            corner=on_device(corner),
            inverse=on_device(inverse, torch.float32),
            square=on_device(square, torch.float32),
            styles=tuple(STYLES[style] for style in used),
            groups=groups,
            pasting_order=[(int(group_of[run.start]), run) for run in by_slot],
        )


def _placement(
    layout: Layout,
    owner: np.ndarray,
    slot: np.ndarray,
    size: np.ndarray,
    shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``corner``, ``inverse`` and ``square`` of :class:`_Objects` for windows
    of ``size`` (N,)."""
    center, side, angle = (
        layout.center[owner, slot],
        layout.side[owner, slot],
        layout.angle[owner, slot],
    )
    limit = np.array(shape[::-1])  # x y
    window = np.minimum(size[:, None], limit)
    corner = np.clip(np.rint(center - window / 2), 0, limit - window)
    # Undo shift, rotation, mirror and scale.
    mirror, cosine, sine = (
        1 - 2 * layout.flipped[owner, slot],
        np.cos(angle),
        np.sin(angle),
    )
    turn = np.stack(
        [np.stack([mirror * cosine, mirror * sine], -1), np.stack([-sine, cosine], -1)],
        -2,
    )
    turn = turn * (2 / side)[:, None, None]
    inverse = np.concatenate([turn, turn @ (corner + 0.5 - center)[..., None]], axis=-1)
    half = side[:, None] / 2
    square = np.concatenate(
        [np.maximum(center - half, 0), np.minimum(center + half, limit)], axis=-1
    )
    return corner, inverse, square


def _levels_and_sizes(
    side: np.ndarray, angle: np.ndarray, largest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mip level and the side of the window, both (N,) int64, of drawings of
    ``side`` pixels.

    A window has room for the rotated drawing and for rounding; four sizes an octave
    keep the number of groups small.
    """
    level = np.clip(np.floor(np.log2(64 / side)), 0, MIP_LEVELS - 1)
    needed = np.ceil(side * (np.abs(np.cos(angle)) + np.abs(np.sin(angle)))) + 2
    step = 2 ** np.maximum(np.floor(np.log2(needed)) - 2, 2)
    return level.astype(np.int64), np.minimum(
        np.ceil(needed / step) * step, largest
    ).astype(np.int64)


def _runs(*keys: np.ndarray) -> list[slice]:
    """Return the stretches over which all sorted ``keys`` (N,) stay the same."""
    changes = np.flatnonzero(np.any([key[1:] != key[:-1] for key in keys], axis=0)) + 1
    edges = [0, *changes.tolist(), len(keys[0])]
    return [
        slice(start, stop)
        for start, stop in zip(edges[:-1], edges[1:], strict=True)
        if stop > start
    ]


def _draw(objects: _Objects, group: _Group, pyramid: tuple[Tensor, ...]) -> Tensor:
    """Draw n objects of a group, premultiplied RGBA (n, 4, h, w)."""
    inverse = objects.inverse[group.members]
    height, width = group.size
    y, x = (
        torch.arange(length, device=inverse.device, dtype=inverse.dtype)
        for length in group.size
    )
    # An affine map of a grid is a row plus a column; x and y are kept apart, which
    # grid_sample reads fastest.
    grid = inverse.new_empty(2, len(inverse), height, width)
    for axis in range(2):
        across = inverse[:, axis, :1] * x  # (n, w)
        down = inverse[:, axis, 1:2] * y + inverse[:, axis, 2:]  # (n, h)
        torch.add(down[:, :, None], across[:, None, :], out=grid[axis])
    sprite = pyramid[group.level].index_select(0, objects.sprite[group.members])
    windows = F.grid_sample(
        sprite,
        rearrange(grid, "xy n h w -> n h w xy"),
        mode="bilinear",
        align_corners=False,
    )
    if len(group.tinted):
        windows[group.tinted] = _tinted(
            windows[group.tinted], objects.tint[group.members][group.tinted]
        )
    return windows


def _tinted(drawing: Tensor, tint: Tensor) -> Tensor:
    """Recolour drawings (n, 4, h, w) by their ``tint`` (n,); light and dark stay."""
    palette = drawing.new_tensor(list(TINTS.values()))[tint]
    red, green, blue, alpha = drawing.unbind(1)
    shade = (
        (0.35 * alpha)
        .add_(red, alpha=0.75 * 0.299)
        .add_(green, alpha=0.75 * 0.587)
        .add_(blue, alpha=0.75 * 0.114)
    )
    colour = torch.minimum(palette[:, :, None, None] * shade[:, None], alpha[:, None])
    return torch.cat([torch.lerp(drawing[:, :3], colour, 0.88), drawing[:, 3:]], dim=1)


def _boxes(solid: Tensor, corner: Tensor) -> Tensor:
    """Return the boxes (n, 4) of the solid pixels (n, h, w) of windows at ``corner``
    (n, 2); a box may be empty."""
    edges = []
    for axis in (1, 2):  # columns give x, rows give y
        line = solid.any(dim=axis)
        place = torch.arange(line.shape[1], device=line.device)
        first = torch.where(line, place, line.shape[1]).amin(dim=1)
        last = torch.where(line, place, -1).amax(dim=1) + 1
        edges.append(torch.stack([first, last]) + corner[:, axis - 1])
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=-1).float()


def _paste(
    canvas: Tensor,
    label: Tensor | None,
    windows: Tensor,
    objects: _Objects,
    members: slice,
) -> None:
    """Blend one object per image into ``canvas`` (B, 3, H, W) and its class into
    ``label`` (B, H, W)."""
    height, width = windows.shape[-2:]
    owner, (x, y) = objects.owner[members], objects.corner[members].unbind(1)
    # A view of all places where a window can lie: so windows are copied row by row, not
    # pixel by pixel.
    places = canvas.unfold(2, height, 1).unfold(3, width, 1)  # (B, 3, Y, X, h, w)
    under = places[owner, :, y, x]
    places[owner, :, y, x] = under.mul_(1 - windows[:, 3:]).add_(windows[:, :3])
    if label is not None:
        places = label.unfold(1, height, 1).unfold(2, width, 1)
        concept = objects.concept[members, None, None]
        places[owner, y, x] = torch.where(
            windows[:, 3] > 0.5, concept, places[owner, y, x]
        )


def density_map(points: list[Tensor], shape: tuple[int, int], sigma: float) -> Tensor:
    """Spread every point as a Gaussian that sums to one inside the image.

    Args:
        points: per image (n, 2), x y in pixels.
        shape: (H, W).
        sigma: standard deviation in pixels.

    Returns:
        (B, 1, H, W) float; each map sums to its number of points.
    """
    height, width = shape
    device = points[0].device
    padded = torch.nn.utils.rnn.pad_sequence(points, batch_first=True)
    present = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(p), device=device) for p in points], batch_first=True
    )
    if padded.shape[1] == 0:
        return torch.zeros(len(points), 1, height, width, device=device)

    def bell(center: Tensor, length: int) -> Tensor:
        wave = torch.exp(
            -0.5
            * ((torch.arange(length, device=device) + 0.5 - center[..., None]) / sigma)
            ** 2
        )
        return wave / wave.sum(-1, keepdim=True).clamp_min(1e-12)

    across = bell(padded[..., 0], width)
    down = bell(padded[..., 1], height) * present[..., None]
    return torch.einsum("bnh,bnw->bhw", down, across)[:, None]
