"""LSeg (arXiv 2201.03546): segmentation with a classifier written in words."""

from minilib.layers.segmentation import pixel_cross_entropy
from minilib.models.lseg.config import (
    CLIPBackbone,
    LSegConfig,
    ResNetBackbone,
    ViTBackbone,
)
from minilib.models.lseg.model import LabelBlock, LSeg, LSegOutput, embed_labels
from minilib.models.lseg.official import text_tower

__all__ = [
    "CLIPBackbone",
    "LSeg",
    "LSegConfig",
    "LSegOutput",
    "LabelBlock",
    "ResNetBackbone",
    "ViTBackbone",
    "embed_labels",
    "pixel_cross_entropy",
    "text_tower",
]
