"""LSeg (arXiv 2201.03546): segmentation with a classifier written in words."""

from minilib.models.lseg.config import (
    CLIPBackbone,
    LSegConfig,
    ResNetBackbone,
    ViTBackbone,
)
from minilib.models.lseg.model import (
    ACTIVATIONS,
    LabelBlock,
    LSeg,
    LSegOutput,
    embed_labels,
    pixel_cross_entropy,
)
from minilib.models.lseg.official import text_tower

__all__ = [
    "ACTIVATIONS",
    "CLIPBackbone",
    "LSeg",
    "LSegConfig",
    "LabelBlock",
    "LSegOutput",
    "ResNetBackbone",
    "ViTBackbone",
    "embed_labels",
    "pixel_cross_entropy",
    "text_tower",
]
