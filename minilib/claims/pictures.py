"""Small pictures in records: a chapter shows what a long run drew, from
``book/results`` alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = [
    "from_text",
    "packed",
    "packed_densities",
    "packed_figure",
    "to_text",
    "unpacked",
    "unpacked_densities",
    "unpacked_figure",
]


def to_text(pixels: Tensor, form: str = "PNG") -> str:
    """Return 8-bit pixels (H, W, 3) or a map (H, W), as text for JSON; "PNG" keeps
    every value, "JPEG" is smaller."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(buffer, form, quality=85, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def from_text(picture: str) -> np.ndarray:
    """Return the 8-bit pixels (H, W, 3) or map (H, W) that
    :func:`to_text` made a text of."""
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


def unpacked(rows: Sequence[Mapping[str, str]]) -> list[dict[str, np.ndarray]]:
    """Return per image what :func:`packed` stored, 8-bit arrays by name.

    "image" (H, W, 3), and the label maps (H, W).
    """
    return [{name: from_text(text) for name, text in row.items()} for row in rows]


def packed_densities(image: Tensor, densities: Tensor) -> dict[str, Any]:
    """Return an image and T densities of it, for a record; negative values become 0.

    Args:
        image: (3, H, W) uint8.
        densities: (T, H, W), each of which sums to a count.

    Returns:
        "image" and "densities" as texts, "peak", the largest value, and "counts", the
        sums of the T densities as they came.
    """
    peak = max(densities.max().item(), 1e-9)
    pixels = (densities.cpu().clamp_min(0) / peak * 255).round().byte()
    return {
        "image": to_text(image.permute(1, 2, 0)),
        "densities": [to_text(one) for one in pixels],
        "peak": round(peak, 6),
        "counts": [round(one.sum().item(), 2) for one in densities],
    }


def unpacked_densities(record: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return what :func:`packed_densities` stored.

    The image (3, H, W) in [0, 1], and the densities (T, H, W) to 1 / 255 of the peak.
    """
    image, *densities = (
        torch.from_numpy(from_text(one))
        for one in (record["image"], *record["densities"])
    )
    maps = torch.stack(densities) / 255 * record["peak"]
    return image.permute(2, 0, 1) / 255, maps


def packed_figure(png: bytes, colours: int = 96) -> str:
    """Return a figure's PNG, reduced to a few colours to be small, as text for JSON."""
    buffer = io.BytesIO()
    small = Image.open(io.BytesIO(png)).quantize(colours)
    small.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def unpacked_figure(text: str) -> bytes:
    """Return the PNG that :func:`packed_figure` made a text of."""
    return base64.b64decode(text)
