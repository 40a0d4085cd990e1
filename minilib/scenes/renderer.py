"""Layouts to pixels: batched compositing of sprites, with exact masks and boxes.

All objects of a batch are drawn at once into small windows (``affine_grid`` + ``grid_sample`` from a mip level that
fits their size) and then pasted slot by slot; there is no Python loop over images or objects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minilib.scenes.atlas import load_atlas
from minilib.scenes.backgrounds import cut_out, texture_bank
from minilib.scenes.sampler import STYLES, TINTS, Layout
from minilib.scenes.vocabulary import VOCABULARY

MIP_LEVELS = 4
"""Sprites are kept at 64, 32, 16 and 8 pixels, so that small objects are not aliased."""


@dataclass
class Rendering:
    """B images and, where asked, what is where. N objects in the whole batch, ordered by slot."""

    image: Tensor
    """(B, 3, H, W) float in [0, 1]."""
    mask: Tensor | None
    """(B, H, W) int64: vocabulary index, or len(VOCABULARY) + background index."""
    boxes: Tensor
    """(N, 4) float x1 y1 x2 y2 in pixels: the whole drawing, also where another object hides a part of it."""
    owner: Tensor
    """(N,) int64 image of each object."""
    slot: Tensor
    """(N,) int64 slot of each object."""


@lru_cache(maxsize=4)
def sprites(styles: tuple[str, ...], device: str) -> tuple[Tensor, ...]:
    """Return the mip pyramid of premultiplied sprites of ``styles``: (styles * K, 4, s, s) for s = 64, 32, 16, 8."""
    rgba = torch.cat([load_atlas(style) for style in styles]).to(device).float() / 255
    level = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
    pyramid = [level]
    for _ in range(MIP_LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return tuple(pyramid)


@lru_cache(maxsize=4)
def _bank_on(height: int, width: int, device: str) -> Tensor:
    return texture_bank(height, width).to(device)


def render(layout: Layout, shape: tuple[int, int], device: torch.device | str = "cpu", masks: bool = False) -> Rendering:
    """Draw every scene of ``layout``.

    Args:
        layout: B scenes, lengths in pixels of ``shape``.
        shape: (H, W) of the images.
        device: where to draw.
        masks: also return the label of every pixel.
    """
    device = torch.device(device)
    height, width = shape
    objects = _Objects.of(layout, device)
    windows, corner = _draw_windows(objects, shape, layout.style, device)
    background = torch.from_numpy(layout.background).to(device)
    surface = torch.from_numpy(layout.surface).to(device, torch.float32)
    canvas = cut_out(_bank_on(height, width, str(device)), background, surface)
    label = None
    if masks:
        label = (len(VOCABULARY) + background)[:, None, None].expand(-1, height, width).contiguous()

    solid = windows[..., 3] > 0.5  # (N, P, P)
    boxes = _boxes(solid, corner, shape)
    for chosen in objects.by_slot:
        _paste(canvas, label, windows[chosen], solid[chosen], corner[chosen], objects.owner[chosen], objects.concept[chosen])
    return Rendering(rearrange(canvas, "b h w c -> b c h w"), label, boxes, objects.owner, objects.slot)


@dataclass
class _Objects:
    """The N objects of a batch as flat tensors, ordered by slot, so that a slot is one slice."""

    owner: Tensor
    slot: Tensor
    concept: Tensor
    center: Tensor
    side: Tensor
    angle: Tensor
    flipped: Tensor
    tint: Tensor
    by_slot: list[slice]

    @classmethod
    def of(cls, layout: Layout, device: torch.device) -> _Objects:
        slot, owner = np.nonzero(layout.concept.T >= 0)

        def flat(array: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array[owner, slot])).to(device, dtype)

        ends = np.searchsorted(slot, np.arange(layout.concept.shape[1] + 1))
        return cls(
            owner=torch.from_numpy(owner).to(device),
            slot=torch.from_numpy(slot).to(device),
            concept=flat(layout.concept, torch.int64),
            center=flat(layout.center, torch.float32),
            side=flat(layout.side, torch.float32),
            angle=flat(layout.angle, torch.float32),
            flipped=flat(layout.flipped, torch.float32),
            tint=flat(layout.tint, torch.int64),
            by_slot=[slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True) if b > a],
        )


def _draw_windows(
    objects: _Objects, shape: tuple[int, int], style: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw each object into its own square window of P pixels.

    Returns:
        premultiplied RGBA (N, P, P, 4) and the window's top-left corner (N, 2), x y in whole pixels of the canvas.
    """
    cosine, sine = objects.angle.cos(), objects.angle.sin()
    reach = objects.side * (cosine.abs() + sine.abs())
    pixels = int(math.ceil(reach.max().item())) + 2 if len(reach) else 2
    if pixels >= 0.7 * max(shape) and shape[0] == shape[1]:  # large objects: the window is the canvas, pasting is a blend
        pixels = shape[0]
        corner = torch.zeros_like(objects.center)
    else:
        corner = (objects.center - pixels / 2).round()

    # Window coordinates in [-1, 1] -> sprite coordinates in [-1, 1]: undo shift, rotation, scale and mirror.
    shift = corner + pixels / 2 - objects.center
    mirror = 1 - 2 * objects.flipped
    rotation = torch.stack([torch.stack([mirror * cosine, mirror * sine], -1), torch.stack([-sine, cosine], -1)], -2)
    inverse = rotation * (2 / objects.side)[:, None, None]
    theta = torch.cat([inverse * (pixels / 2), inverse @ shift[..., None]], dim=-1)

    used = sorted(set(style.tolist()))
    pyramid = sprites(tuple(STYLES[s] for s in used), str(device))
    row = torch.from_numpy(np.searchsorted(used, style)).to(device)[objects.owner] * len(VOCABULARY) + objects.concept
    level = (64 / objects.side).log2().floor().clamp(0, MIP_LEVELS - 1).long()
    windows = torch.empty(len(row), 4, pixels, pixels, device=device)
    for i, mip in enumerate(pyramid):
        chosen = (level == i).nonzero()[:, 0]
        if len(chosen):
            grid = F.affine_grid(theta[chosen], [len(chosen), 4, pixels, pixels], align_corners=False)
            windows[chosen] = F.grid_sample(mip[row[chosen]], grid, mode="bilinear", align_corners=False)
    _tint(windows, objects.tint)
    return rearrange(windows, "n c h w -> n h w c").contiguous(), corner.long()


def _tint(windows: Tensor, tint: Tensor) -> None:
    """Recolour, in place, the windows (N, 4, P, P) whose ``tint`` is not -1; light and dark of the drawing stay."""
    chosen = (tint >= 0).nonzero()[:, 0]
    if not len(chosen):
        return
    palette = torch.tensor(list(TINTS.values()), device=windows.device)[tint[chosen]]
    drawing = windows[chosen]
    luminance = (drawing[:, :3] * drawing.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    shade = 0.35 * drawing[:, 3:] + 0.75 * luminance
    colour = torch.minimum(palette[:, :, None, None] * shade, drawing[:, 3:])
    windows[chosen, :3] = 0.12 * drawing[:, :3] + 0.88 * colour


def _boxes(solid: Tensor, corner: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the boxes (N, 4) of the solid pixels (N, P, P), clipped to the canvas."""
    boxes = []
    for axis, limit in ((1, shape[1]), (2, shape[0])):  # columns give x, rows give y
        line = solid.any(dim=axis).int()
        first = line.argmax(dim=1)
        last = line.shape[1] - line.flip(1).argmax(dim=1)
        start = corner[:, axis - 1]
        boxes += [(start + first).clamp(0, limit), (start + last).clamp(0, limit)]
    return torch.stack([boxes[0], boxes[2], boxes[1], boxes[3]], dim=-1).float()


def _paste(
    canvas: Tensor, label: Tensor | None, window: Tensor, solid: Tensor, corner: Tensor, owner: Tensor, concept: Tensor
) -> None:
    """Blend one object per image into ``canvas`` (B, H, W, 3), in place, and its class into ``label`` (B, H, W)."""
    height, width = canvas.shape[1:3]
    if window.shape[1] == height == width and not corner.any():
        canvas[owner] = window[..., :3] + (1 - window[..., 3:]) * canvas[owner]
        if label is not None:
            label[owner] = torch.where(solid, concept[:, None, None], label[owner])
        return
    pixels = torch.arange(window.shape[1], device=canvas.device)
    y = corner[:, 1:] + pixels  # (n, P)
    x = corner[:, :1] + pixels
    keep = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    place = (owner[:, None, None] * height + y[:, :, None]) * width + x[:, None, :]
    place, chosen = place[keep], window[keep]
    flat = canvas.view(-1, 3)
    flat[place] = chosen[:, :3] + (1 - chosen[:, 3:]) * flat[place]
    if label is not None:
        where = solid[keep]
        label.view(-1)[place[where]] = concept[:, None, None].expand_as(keep)[keep][where]


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
    present = torch.nn.utils.rnn.pad_sequence([torch.ones(len(p), device=device) for p in points], batch_first=True)
    if padded.shape[1] == 0:
        return torch.zeros(len(points), 1, height, width, device=device)

    def bell(center: Tensor, length: int) -> Tensor:
        wave = torch.exp(-0.5 * ((torch.arange(length, device=device) + 0.5 - center[..., None]) / sigma) ** 2)
        return wave / wave.sum(-1, keepdim=True).clamp_min(1e-12)

    across = bell(padded[..., 0], width)
    down = bell(padded[..., 1], height) * present[..., None]
    return torch.einsum("bnh,bnw->bhw", down, across)[:, None]
