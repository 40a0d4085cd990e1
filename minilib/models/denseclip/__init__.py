"""DenseCLIP (arXiv 2112.01518): CLIP's text guides dense prediction."""

from minilib.models.denseclip.config import (
    GUIDANCE,
    DenseCLIPConfig,
    check_names,
    class_tokens,
)
from minilib.models.denseclip.model import (
    Attention,
    ContextDecoder,
    ContextDecoderLayer,
    ContextGenerator,
    DenseCLIP,
    Segmentation,
    TextGuided,
    denseclip_loss,
    score_map,
    segmentation_loss,
)
from minilib.models.denseclip.official import RESNET_HEADS

__all__ = [
    "Attention",
    "ContextDecoder",
    "ContextDecoderLayer",
    "ContextGenerator",
    "DenseCLIP",
    "DenseCLIPConfig",
    "GUIDANCE",
    "RESNET_HEADS",
    "Segmentation",
    "TextGuided",
    "check_names",
    "class_tokens",
    "denseclip_loss",
    "score_map",
    "segmentation_loss",
]
