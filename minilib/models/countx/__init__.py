"""CounTX (arXiv 2306.01851): counting what a sentence names."""

from minilib.models.countx.config import CounTXConfig
from minilib.models.countx.model import (
    DENSITY_SCALE,
    CounTX,
    CounTXOutput,
    InteractionBlock,
    TextAttention,
    density_loss,
    random_pixel_mask,
    sincos_positions,
)

__all__ = [
    "CounTX",
    "CounTXConfig",
    "DENSITY_SCALE",
    "CounTXOutput",
    "InteractionBlock",
    "TextAttention",
    "density_loss",
    "random_pixel_mask",
    "sincos_positions",
]
