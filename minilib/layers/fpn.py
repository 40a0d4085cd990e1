"""Semantic FPN (arXiv 1901.02446): a feature pyramid, and a head that
adds its levels up.

Parameter names are those of mmsegmentation, so released weights load without renaming.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def _initialise(module: nn.Module) -> None:
    """He-normal convolutions counted by outputs and zero biases.

    This is what the authors' models start from: their training script never calls
    mmsegmentation's own (Xavier) initialisation of neck and head.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _named(conv: nn.Conv2d, *after: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict([("conv", conv), *after]))


class FeaturePyramid(nn.Module):
    """Bring every level to the same width and pass coarse levels down to the finer ones
    (arXiv 1612.03144).

    Args:
        in_channels: channels of the levels, from fine to coarse.
        out_channels: channels of every level afterwards.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(
            _named(nn.Conv2d(c, out_channels, 1)) for c in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            _named(nn.Conv2d(out_channels, out_channels, 3, padding=1))
            for _ in in_channels
        )
        _initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn maps (B, C_i, h_i, w_i) into maps (B, out_channels, h_i, w_i).

        Raises:
            ValueError: another number of maps than the pyramid has levels.
        """
        if len(maps) != len(self.lateral_convs):
            raise ValueError(
                f"{len(maps)} maps for a pyramid of {len(self.lateral_convs)} levels: "
                "pass one per level"
            )
        levels = [
            lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)
        ]
        for fine in range(len(levels) - 2, -1, -1):
            levels[fine] = levels[fine] + F.interpolate(
                levels[fine + 1], levels[fine].shape[-2:], mode="nearest"
            )
        return [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=True)]


class SemanticHead(nn.Module):
    """Bring all levels to the finest one's size by 3x3 convolutions and doublings,
    add them, classify.

    Args:
        strides: pixels per cell of each level; the first one is the size of the output.
        channels: channels of every level, before and after.
        classes: number K of classes.
        dropout: share of channels that are dropped before the classifier.
    """

    def __init__(
        self, strides: Sequence[int], channels: int, classes: int, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.scale_heads = nn.ModuleList()
        for stride in strides:
            doublings = (stride // strides[0]).bit_length() - 1
            steps: list[nn.Module] = []
            for _ in range(max(1, doublings)):
                conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
                steps.append(
                    _named(
                        conv,
                        ("bn", nn.BatchNorm2d(channels)),
                        ("activate", nn.ReLU(True)),
                    )
                )
                if doublings:
                    steps.append(
                        nn.Upsample(
                            scale_factor=2, mode="bilinear", align_corners=False
                        )
                    )
            self.scale_heads.append(nn.Sequential(*steps))
        _initialise(self)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Turn levels (B, C, h_i, w_i) into logits (B, K, h_0, w_0)."""
        first = self.scale_heads[0](levels[0])
        total = first
        for head, level in zip(self.scale_heads[1:], levels[1:], strict=True):
            x = head(level)
            # image sides that are not multiples of the largest stride
            if x.shape[-2:] != first.shape[-2:]:
                x = F.interpolate(
                    x, first.shape[-2:], mode="bilinear", align_corners=False
                )
            total = total + x
        return self.conv_seg(self.dropout(total))
