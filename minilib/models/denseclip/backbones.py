"""Image towers of DenseCLIP (section 3.1): pyramids of feature maps, and a map in
the space of text.

Shapes: B images, R x R' pixels, C channels, E joint dimension, h x w cells, W width
of a transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from minilib.layers.resnet import AttentionPool2d, ModifiedResNet
from minilib.models.clip import VisionTransformer
from minilib.models.clip.config import CLIPConfig, ResNetConfig, ViTConfig


class Encoded(NamedTuple):
    """What an image tower sees."""

    maps: list[Tensor]
    """Feature maps (B, C_i, h_i, w_i), from fine to coarse."""
    pooled: Tensor
    """The image in the joint space, z-bar, (B, E)."""
    dense: Tensor
    """Every cell in the joint space, z, (B, E, h, w)."""

    @property
    def context(self) -> Tensor:
        """The visual context [z-bar, z], (B, 1 + h * w, E): what prompts attend to."""
        return torch.cat(
            [self.pooled[:, None], rearrange(self.dense, "b e h w -> b (h w) e")], dim=1
        )


class DenseTower(Protocol):
    """What DenseCLIP asks of an image tower, CLIP's own or another."""

    channels: tuple[int, ...]
    """Channels of the maps, from fine to coarse."""
    strides: tuple[int, ...]
    """Pixels per cell of the maps."""
    score_level: int
    """Which map has the cells of z: the score map is concatenated to it."""

    def encode(self, pixels: Tensor) -> Encoded:
        """Encode images (B, 3, R, R') to the maps, z-bar and z."""


class DenseAttentionPool(AttentionPool2d):
    """CLIP's attention pool, keeping every output token (equation 1).

    [z-bar, z] = MHSA([mean(x4), x4]). CLIP lets the mean alone ask. The pool treats all
    tokens alike, so what the other cells would have been told lives roughly in the same
    space, though CLIP's loss never looked at it.

    Args:
        side: rows and columns of the position grid.
        channels: channels C of the map.
        heads: attention heads; 32 in all released models.
        out_channels: joint dimension E.
        crop_positions: crop the grid to smaller maps, as the authors' detection code
            does; otherwise it is resized (bilinear), as in their segmentation code.
    """

    def __init__(
        self,
        side: int,
        channels: int,
        heads: int,
        out_channels: int,
        crop_positions: bool = False,
    ) -> None:
        super().__init__(side, channels, heads, out_channels)
        self.resampling = "crop" if crop_positions else "bilinear"

    def dense(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the map x (B, C, h, w) into z-bar (B, E) and z (B, E, h, w)."""
        y = self.all_queries(x)
        return y[:, 0], rearrange(y[:, 1:], "b (h w) e -> b e h w", h=x.shape[-2])


class DenseResNet(ModifiedResNet):
    """CLIP's ResNet as a pyramid: x1 ... x4 and the dense attention pool on x4."""

    score_level = 3
    """Which map has the cells of z: the score map is concatenated to it."""
    attnpool: DenseAttentionPool

    def __init__(self, config: CLIPConfig, crop_positions: bool = False) -> None:
        vision, side = config.vision, config.image_size
        if not isinstance(vision, ResNetConfig):
            raise ValueError(
                "the image tower is a ViT: DenseViT reads it, not DenseResNet"
            )
        super().__init__(
            vision.blocks,
            vision.width,
            vision.heads,
            config.embed_dim,
            side,
            vision.strides,
        )
        self.channels = tuple(4 * vision.width * 2**stage for stage in range(4))
        self.strides = tuple(
            int(s) for s in 4 * torch.tensor(vision.strides).cumprod(0)
        )
        self.attnpool = DenseAttentionPool(
            side // self.strides[-1],
            self.channels[-1],
            vision.heads,
            config.embed_dim,
            crop_positions,
        )
        self._initialise()

    def encode(self, pixels: Tensor) -> Encoded:
        """Encode images (B, 3, R, R') to four maps, z-bar and z."""
        stages = self.stages(pixels)
        maps = [stages[f"layer{stage}"] for stage in (1, 2, 3, 4)]
        return Encoded(maps, *self.attnpool.dense(maps[-1]))


def _rescale(width: int, halvings: int) -> nn.Module:
    """Return norm and a change of size by 2**-halvings, in [1/4, 4]; the layout of the
    released models."""
    norm = nn.GroupNorm(1, width)
    if halvings == -2:
        first, second = (
            nn.ConvTranspose2d(width, width, 2, stride=2) for _ in range(2)
        )
        return nn.Sequential(norm, first, nn.BatchNorm2d(width), nn.GELU(), second)
    if halvings == -1:
        return nn.Sequential(norm, nn.ConvTranspose2d(width, width, 2, stride=2))
    return nn.Sequential(norm, nn.MaxPool2d(2**halvings)) if halvings else norm


class DenseViT(VisionTransformer):
    """CLIP's Vision Transformer as a pyramid: four blocks' patches, brought to strides
    4, 8, 16 and 32.

    Args:
        config: both towers' configuration.
        taps: the blocks whose output makes the four maps.
        drop_path: stochastic depth of the last block; earlier blocks
            have less, linearly.
        double_class_embedding: add the class embedding to the class token a second
            time, as the authors' code does. Released weights were trained with it; with
            plain CLIP weights it moves z-bar away from CLIP's image embedding.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        config: CLIPConfig,
        taps: Sequence[int],
        drop_path: float = 0.1,
        double_class_embedding: bool = False,
    ) -> None:
        vision = config.vision
        if not isinstance(vision, ViTConfig):
            raise ValueError(
                "the image tower is a ResNet: DenseResNet reads it, not DenseViT"
            )
        super().__init__(vision, config.embed_dim, config.image_size, config.quick_gelu)
        if vision.patch not in (8, 16):
            raise ValueError(
                f"patch={vision.patch} has no cell of stride 8 or 16 for the pyramid: "
                "use 8 or 16"
            )
        if len(taps) != 4 or not all(0 <= tap < vision.layers for tap in taps):
            raise ValueError(
                f"taps={tuple(taps)}: expected four block numbers below {vision.layers}"
            )
        self.taps = tuple(taps)
        self.channels = (vision.width,) * 4
        self.score_level = self.strides.index(vision.patch)
        self.double_class_embedding = double_class_embedding
        first = -self.score_level
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = (
            _rescale(vision.width, first + i) for i in range(4)
        )
        rates = torch.linspace(0, drop_path, vision.layers).tolist()
        self.drops = nn.ModuleList(StochasticDepth(rate, mode="row") for rate in rates)

    def encode(self, pixels: Tensor) -> Encoded:
        """Encode images (B, 3, R, R') to four maps, z-bar and z."""
        patches = self.conv1(pixels)
        rows = patches.shape[-2]
        x = self.tokens(patches, "bilinear", self.double_class_embedding)
        outputs = []
        for block, drop in zip(self.transformer.resblocks, self.drops, strict=True):
            x = x + drop(block.attn(block.ln_1(x)))
            x = x + drop(block.mlp(block.ln_2(x)))
            outputs.append(x)
        maps = [
            rescale(rearrange(outputs[tap][:, 1:], "b (h w) c -> b c h w", h=rows))
            for rescale, tap in zip(
                (self.fpn1, self.fpn2, self.fpn3, self.fpn4), self.taps, strict=True
            )
        ]
        z = self.ln_post(x) @ self.proj
        pooled = z[:, 1:].mean(dim=1) if self.pool == "mean" else z[:, 0]
        return Encoded(
            maps, pooled, rearrange(z[:, 1:], "b (h w) e -> b e h w", h=rows)
        )


class AnyBackbone(nn.Module):
    """Any backbone as DenseCLIP's image tower (section 3.4): its maps, and a new
    attention pool on the last one.

    Nothing in such a backbone has seen text: the pool starts at random and has to
    learn the language.

    Args:
        features: module that turns images (B, 3, R, R') into a list of maps, from fine
            to coarse; for example ``timm.create_model(name, features_only=True,
            out_indices=(1, 2, 3, 4))``.
        channels: channels of the maps.
        strides: pixels per cell of the maps.
        embed_dim: dimension E of the text features.
        image_size: side of the images that the pool's position grid is made for.
        heads: heads of the pool.
    """

    def __init__(
        self,
        features: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        embed_dim: int,
        image_size: int,
        heads: int = 8,
    ) -> None:
        super().__init__()
        if len(channels) != len(strides):
            raise ValueError(
                f"{len(channels)} channel counts for {len(strides)} strides: give one "
                "of each per map"
            )
        self.features = features
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.score_level = len(self.channels) - 1
        self.attnpool = DenseAttentionPool(
            image_size // strides[-1], channels[-1], heads, embed_dim
        )

    def encode(self, pixels: Tensor) -> Encoded:
        """Encode images (B, 3, R, R') to the backbone's maps, z-bar and z."""
        maps = list(self.features(pixels))
        return Encoded(maps, *self.attnpool.dense(maps[-1]))
