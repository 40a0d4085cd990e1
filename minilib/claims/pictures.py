"""Small pictures in records: a chapter shows what a long run drew, from ``book/results`` alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["from_text", "packed", "to_text"]


def to_text(pixels: Tensor, form: str = "PNG") -> str:
    """Return 8-bit pixels (H, W, 3) or a map (H, W), as text for JSON; "PNG" keeps every value, "JPEG" is smaller."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(buffer, form, quality=85, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def from_text(picture: str) -> np.ndarray:
    """Return the 8-bit pixels (H, W, 3) or map (H, W) that :func:`to_text` made a text of."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(picture))))


def packed(image: Tensor, maps: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """Return per image its pixels and its label maps, as texts.

    Args:
        image: (B, 3, H, W) in [0, 1].
        maps: label maps (B, H, W) by name, values 0 ... 255.
    """
    pixels = (255 * image.clamp(0, 1)).permute(0, 2, 3, 1).round().to(torch.uint8)
    rows = [{"image": to_text(one, "JPEG")} for one in pixels]
    for name, labels in maps.items():
        for row, one in zip(rows, labels.to(torch.uint8), strict=True):
            row[name] = to_text(one)
    return rows
