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
    embed_labels,
    pixel_cross_entropy,
)
from minilib.models.lseg.official import (
    objectinfo_words,
    text_tower,
)

__all__ = [
    "ACTIVATIONS",
    "CLIPBackbone",
    "LSeg",
    "LSegConfig",
    "LabelBlock",
    "ResNetBackbone",
    "ViTBackbone",
    "embed_labels",
    "objectinfo_words",
    "pixel_cross_entropy",
    "text_tower",
]
