"""torchvision's ResNet with bottlenecks, without its classifier.

Shapes: B images of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What its pixels are standardised with, per RGB channel."""


class ImageNetResNet(nn.Module):
    """Four stages of bottlenecks after a 7 x 7 convolution and a pool; the names and
    weights are torchvision's, less ``fc``.

    Args:
        blocks: bottlenecks in each of the four stages; (3, 4, 6, 3) in ResNet-50.
        stem: channels after the first convolution; 64.
        planes: inner channels of the first stage; its output has four times as many,
            and each stage doubles; 64.
        strides: of each stage, after the stem's 4.
        dilations: of each stage. As in the code of IRNet and CLIMS, the first block of
            a stage is never dilated.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        blocks: Sequence[int],
        stem: int,
        planes: int,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        for stage, (count, stride, dilation) in enumerate(
            zip(blocks, strides, dilations, strict=True)
        ):
            inner = planes * 2**stage
            out = inner * Bottleneck.expansion
            shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out),
            )
            layers = [Bottleneck(channels, inner, stride, shortcut)]
            layers += [
                Bottleneck(out, inner, dilation=dilation) for _ in range(count - 1)
            ]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            channels = out
        self.channels = channels

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Turn images (B, 3, H, W) into the maps of the four stages, the last of
        ``channels`` channels."""
        x = F.max_pool2d(F.relu_(self.bn1(self.conv1(pixels))), 3, stride=2, padding=1)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps
