"""Random shifts and mirror images, for a whole batch at once on its device."""

from __future__ import annotations

import torch
from torch import Tensor


def augment(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Mirror half of the images and crop each at a random place after
    padding by reflection.

    Args:
        images: (B, C, H, W), any type and device.
        generator: where the chance comes from; the same state gives the same result.
        padding: largest shift in pixels, each way along both axes.

    Returns:
        (B, C, H, W), like ``images``.
    """
    shift = torch.randint(
        -padding,
        padding + 1,
        (len(images), 2),
        generator=generator,
        device=generator.device,
    )
    mirror = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
    return shift_and_mirror(images, shift, mirror)


def shift_and_mirror(images: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Return the images moved by whole pixels, edges filled by reflection, then
    mirrored left to right.

    Equal to padding by reflection, cropping and flipping, as one look-up of rows
    and one of columns.

    Args:
        images: (B, C, H, W).
        shift: (B, 2) int64, place of the crop (down, right) relative to the image.
        mirror: (B,) bool.

    Raises:
        ValueError: a shift is not smaller than the image.
    """
    channels, height, width = images.shape[1:]
    reach = int(shift.abs().max()) if len(shift) else 0
    if reach >= min(height, width):
        raise ValueError(
            f"shift of {reach} pixels in a {height}x{width} image: expected less than "
            "its shorter side"
        )
    shift, mirror = shift.to(images.device), mirror.to(images.device)
    # (B, H)
    rows = _reflect(torch.arange(height, device=images.device) + shift[:, :1], height)
    # (B, W)
    columns = _reflect(torch.arange(width, device=images.device) + shift[:, 1:], width)
    columns = torch.where(mirror[:, None], columns.flip(1), columns)
    images = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    return images.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))


def _reflect(position: Tensor, size: int) -> Tensor:
    """Fold positions in (-size, 2 * size - 1) back into [0, size): -1 becomes 1, size
    becomes size - 2."""
    return (size - 1) - ((size - 1) - position.abs()).abs()
