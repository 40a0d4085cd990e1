"""Building blocks that several papers share: transformer, CLIP's ResNet,
position resampling."""

from minilib.layers.pixels import check_images, standardise, unit_images
from minilib.layers.resampling import (
    resize_grid_positions,
    resize_images,
    resize_sequence_positions,
)
from minilib.layers.resnet import AttentionPool2d, Bottleneck, ModifiedResNet
from minilib.layers.transformer import (
    QuickGELU,
    ResidualAttentionBlock,
    SelfAttention,
    Transformer,
)

__all__ = [
    "AttentionPool2d",
    "Bottleneck",
    "ModifiedResNet",
    "QuickGELU",
    "ResidualAttentionBlock",
    "SelfAttention",
    "Transformer",
    "check_images",
    "resize_grid_positions",
    "resize_images",
    "resize_sequence_positions",
    "standardise",
    "unit_images",
]
