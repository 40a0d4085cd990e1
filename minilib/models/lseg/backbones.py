"""Image backbones of LSeg: each turns pixels into four maps of falling resolution.

Shapes: B images, R x R' pixels, W width of a transformer, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from minilib.layers.dpt import Reassemble
from minilib.layers.imagenet_resnet import ImageNetResNet
from minilib.layers.resampling import resize_grid_positions
from minilib.layers.resnet import ModifiedResNet
from minilib.layers.transformer import Transformer
from minilib.models.lseg.config import CLIPBackbone, ResNetBackbone, ViTBackbone


class ViTMaps(nn.Module):
    """An ImageNet ViT whose tokens after four of its blocks become maps at strides 4,
    8, 16 and 32 (DPT).

    Not CLIP's tower: pixels are only normalised by 0.5, patches have a bias, there is
    no norm before the blocks, the activation is the exact GELU and norms use 1e-6.
    """

    stride = 32

    def __init__(self, config: ViTBackbone) -> None:
        super().__init__()
        self.hooks = config.hooks
        self.patch = config.patch
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.zeros(config.width))
        self.positions = nn.Parameter(
            0.02 * torch.randn(1 + config.grid**2, config.width)
        )
        self.transformer = Transformer(
            config.width, config.layers, config.heads, quick_gelu=False, norm_eps=1e-6
        )
        self.reassemble = nn.ModuleList(
            Reassemble(config.width, channels, config.patch / stride, config.readout)
            for channels, stride in zip(config.channels, (4, 8, 16, 32), strict=True)
        )

    def taps(self, pixels: Tensor) -> list[Tensor]:
        """Return the tokens (B, 1 + h * w, W) after each tapped block;
        images (B, 3, R, R')."""
        patches = self.patch_embed(pixels)
        positions = resize_grid_positions(
            self.positions, tuple(patches.shape[-2:]), mode="bilinear"
        )
        class_token = self.class_token.expand(len(pixels), 1, -1)
        x = (
            torch.cat([class_token, rearrange(patches, "b c h w -> b (h w) c")], dim=1)
            + positions
        )
        tapped = []
        for number, block in enumerate(
            self.transformer.resblocks[: self.hooks[-1] + 1]
        ):
            x = block(x)
            if number in self.hooks:
                tapped.append(x)
        return tapped

    def stages(self, pixels: Tensor) -> dict[str, Any]:
        """Return the ``maps`` of images (B, 3, R, R') and the ``taps`` behind them."""
        grid = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        taps = self.taps(pixels)
        maps = [
            layer(tokens, grid)
            for layer, tokens in zip(self.reassemble, taps, strict=True)
        ]
        return {"taps": taps, "maps": maps}

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Turn images (B, 3, R, R') into four maps
        (B, C_i, R / stride_i, R' / stride_i)."""
        return self.stages(pixels)["maps"]


class ResNetMaps(ImageNetResNet):
    """torchvision's ResNet without its classifier: maps at strides 4, 8, 16 and 32."""

    stride = 32

    def __init__(self, config: ResNetBackbone) -> None:
        super().__init__(config.blocks, config.stem, config.planes)

    def stages(self, pixels: Tensor) -> dict[str, Any]:
        """Return the four ``maps`` of images (B, 3, R, R')."""
        return {"maps": self(pixels)}


class CLIPMaps(ModifiedResNet):
    """The image tower of a CLIP ResNet up to its last map, without
    the attention pool."""

    def __init__(self, config: CLIPBackbone) -> None:
        vision = config.vision
        size = vision.reduction  # only the pool, which is dropped, depends on it
        super().__init__(
            vision.blocks, vision.width, vision.heads, 1, size, vision.strides
        )
        del self.attnpool
        self.stride = vision.reduction

    def forward(  # type: ignore[override]  # maps instead of CLIP's one vector
        self, pixels: Tensor
    ) -> list[Tensor]:
        """Turn images (B, 3, R, R') into the maps of the four stages,
        (B, C_i, R / stride_i, R' / stride_i)."""
        return self.stages(pixels)["maps"]

    def stages(self, pixels: Tensor) -> dict[str, Any]:
        """Return ``stem`` and the four stages' ``maps`` of images (B, 3, R, R')."""
        stages = super().stages(pixels)
        maps = [stages[f"layer{number}"] for number in (1, 2, 3, 4)]
        return {"stem": stages["stem"], "maps": maps}


def make_backbone(
    config: ViTBackbone | ResNetBackbone | CLIPBackbone,
) -> ViTMaps | ResNetMaps | CLIPMaps:
    """Build the backbone that a configuration describes."""
    if isinstance(config, ViTBackbone):
        return ViTMaps(config)
    return (
        ResNetMaps(config) if isinstance(config, ResNetBackbone) else CLIPMaps(config)
    )
