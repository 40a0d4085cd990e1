"""CLIP's ResNet: three-convolution stem, average pools for strides, attention pooling
(paper section 2.4).

Parameter names are those of OpenAI's code. Shapes: B images, C channels, h x w cells, E
joint dimension.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from minilib.layers.resampling import resize_grid_positions


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut; a stride is an average pool
    before the last one."""

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        out = planes * self.expansion
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or channels != out:
            shortcut = [
                ("-1", nn.AvgPool2d(stride) if stride > 1 else nn.Identity()),
                ("0", nn.Conv2d(channels, out, 1, bias=False)),
                ("1", nn.BatchNorm2d(out)),
            ]
            self.downsample = nn.Sequential(OrderedDict(shortcut))

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (B, C, h, w) -> (B, 4 * planes, h / stride, w / stride)."""
        y = F.relu_(self.bn1(self.conv1(x)))
        y = F.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.avgpool(y)))
        return F.relu_(y + (x if self.downsample is None else self.downsample(x)))


class AttentionPool2d(nn.Module):
    """Pool a feature map by one attention query, its mean, and project it into
    the joint space."""

    resampling = "bicubic"
    """How positions are fitted to another grid, see ``resize_grid_positions``."""

    def __init__(self, side: int, channels: int, heads: int, out_channels: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"{channels} channels are not divisible by {heads} heads: choose "
                "heads that divide them"
            )
        self.heads = heads
        self.positional_embedding = nn.Parameter(
            torch.randn(side**2 + 1, channels) / channels**0.5
        )
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, out_channels)

    def tokens(self, x: Tensor) -> Tensor:
        """Turn the map x (B, C, h, w) into its mean and its cells with positions:
        (B, 1 + h * w, C)."""
        grid = (x.shape[-2], x.shape[-1])
        positions = resize_grid_positions(
            self.positional_embedding, grid, mode=self.resampling
        )
        cells = rearrange(x, "b c h w -> b (h w) c")
        return (
            torch.cat([reduce(cells, "b l c -> b 1 c", "mean"), cells], dim=1)
            + positions
        )

    def attend(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Let queries (B, Q, C) read the tokens (B, L, C): (B, Q, C),
        before the projection."""
        q, k, v = self.q_proj(queries), self.k_proj(tokens), self.v_proj(tokens)
        q, k, v = (
            rearrange(t, "b l (h d) -> b h l d", h=self.heads) for t in (q, k, v)
        )
        return rearrange(
            F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)"
        )

    def pool(self, x: Tensor) -> Tensor:
        """Pool the map x (B, C, h, w) to (B, C), the feature before the joint space."""
        tokens = self.tokens(x)
        return self.attend(tokens[:, :1], tokens)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Pool and project the map x (B, C, h, w) to (B, E)."""
        return self.c_proj(self.pool(x))

    def all_queries(self, x: Tensor) -> Tensor:
        """Let the mean and every cell of x (B, C, h, w) query: (B, 1 + h * w, E); index
        0 is ``forward``."""
        tokens = self.tokens(x)
        return self.c_proj(self.attend(tokens, tokens))

    def values(self, x: Tensor) -> Tensor:
        """Project every cell of x (B, C, h, w) by its value alone
        (MaskCLIP): (B, E, h, w)."""
        cells = rearrange(x, "b c h w -> b (h w) c")
        return rearrange(
            self.c_proj(self.v_proj(cells)), "b (h w) e -> b e h w", h=x.shape[-2]
        )


class ModifiedResNet(nn.Module):
    """The image tower of CLIP's RN models: images (B, 3, R, R') -> (B, E).

    Args:
        blocks: number of bottlenecks in each of the four stages.
        width: channels after the stem; the last stage has 32 times as many.
        heads: heads of the attention pool.
        embed_dim: joint dimension E.
        image_size: side of the images that the pool's positions are made for.
        strides: stride of each stage after the stem's 4; (1, 2, 2, 2) in the paper.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        blocks: Sequence[int],
        width: int,
        heads: int,
        embed_dim: int,
        image_size: int,
        strides: Sequence[int] = (1, 2, 2, 2),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        channels = width
        reduction = 4
        for stage, (count, stride) in enumerate(zip(blocks, strides, strict=True)):
            planes = width * 2**stage
            layer = [Bottleneck(channels, planes, stride)]
            channels = planes * Bottleneck.expansion
            layer += [Bottleneck(channels, planes) for _ in range(count - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
            reduction *= stride
        self.attnpool = AttentionPool2d(
            image_size // reduction, channels, heads, embed_dim
        )
        self._initialise()

    def _initialise(self) -> None:
        pool = self.attnpool
        for projection in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                # every residual branch starts at zero
                nn.init.zeros_(module.bn3.weight)

    def stem(self, x: Tensor) -> Tensor:
        """Reduce images (B, 3, R, R') to (B, width, R / 4, R' / 4)."""
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return self.avgpool(F.relu_(self.bn3(self.conv3(x))))

    def stages(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the maps ``stem``, ``layer1`` ... ``layer4`` of
        images (B, 3, R, R')."""
        maps = {"stem": self.stem(pixels)}
        x = maps["stem"]
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = maps[name] = getattr(self, name)(x)
        return maps

    def features(self, pixels: Tensor) -> Tensor:
        """Return the last map (B, 32 * width, R / 32, R' / 32) (at the
        paper's strides)."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(pixels)))))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images (B, 3, R, R') to (B, E)."""
        return self.attnpool(self.features(pixels))

    def backbone(self, pixels: Tensor) -> Tensor:
        """Return the pooled feature before the projection, (B, 32 * width)."""
        return self.attnpool.pool(self.features(pixels))

    def patches(self, pixels: Tensor, mode: str = "value") -> Tensor:
        """Return joint-space features of every cell, (B, E, h, w); see
        ``CLIP.encode_patches``."""
        x = self.features(pixels)
        if mode == "value":
            return self.attnpool.values(x)
        return rearrange(
            self.attnpool.all_queries(x)[:, 1:], "b (h w) e -> b e h w", h=x.shape[-2]
        )
