"""CLIP (arXiv 2103.00020): two towers, one joint space."""

from minilib.layers.contrastive import clip_loss, distill_loss, siglip_loss
from minilib.models.clip.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from minilib.models.clip.model import (
    CLIP,
    CLIPOutput,
    TextTransformer,
    VisionTransformer,
    prompt_ensemble,
    zero_shot_weights,
)
from minilib.models.clip.official import from_hugging_face

__all__ = [
    "CLIP",
    "CLIPConfig",
    "CLIPOutput",
    "ResNetConfig",
    "TextConfig",
    "TextTransformer",
    "ViTConfig",
    "VisionTransformer",
    "clip_loss",
    "distill_loss",
    "from_hugging_face",
    "prompt_ensemble",
    "siglip_loss",
    "zero_shot_weights",
]
