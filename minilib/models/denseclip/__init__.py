"""DenseCLIP (arXiv 2112.01518): CLIP's text guides dense prediction."""

from minilib.layers.segmentation import pixel_cross_entropy
from minilib.models.denseclip.config import GUIDANCE, DenseCLIPConfig
from minilib.models.denseclip.model import (
    ContextDecoder,
    ContextDecoderLayer,
    ContextGenerator,
    DenseCLIP,
    Segmentation,
    TextGuided,
    denseclip_loss,
    score_map,
)

__all__ = [
    "ContextDecoder",
    "ContextDecoderLayer",
    "ContextGenerator",
    "DenseCLIP",
    "DenseCLIPConfig",
    "GUIDANCE",
    "Segmentation",
    "TextGuided",
    "denseclip_loss",
    "pixel_cross_entropy",
    "score_map",
]
