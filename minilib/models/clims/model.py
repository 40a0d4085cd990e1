"""CLIMS: Cross Language Image Matching for Weakly Supervised Semantic Segmentation
(arXiv 2203.02668).

A classifier without its average pool gives every class a map of the image; text, read
by a frozen CLIP, says which part of the image the map should cover. This file has the
network, ``evaluator`` the text-driven evaluator, ``losses`` what it teaches. Shapes: B
images of H x W pixels, K classes, C channels; maps have h x w = H / 16 x W / 16 cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from minilib.layers.imagenet_resnet import ImageNetResNet
from minilib.layers.pixels import standardise, unit_images
from minilib.models.clims.config import CLIMSConfig
from minilib.models.clims.official import convert, infer_config
from minilib.models.loading import load_strictly

SHAPES = {16: ((1, 2, 2, 1), (1, 1, 1, 1)), 8: ((1, 2, 1, 1), (1, 1, 2, 2))}
"""Strides and dilations of the four stages, per stride of the maps."""


class CLIMSOutput(NamedTuple):
    """What :class:`CLIMS` returns."""

    activation: Tensor
    """P, (B, K, h, w) in (0, 1): how much of each cell belongs to each class."""
    scores: Tensor
    """(B, K, h, w), the same before the sigmoid."""


class CLIMS(nn.Module):
    """The network that makes the maps: pixels in, one map per class out.

    The same weights are three things: a classifier where scores are averaged over the
    image (``logits``, the baseline's training), CLIMS where a sigmoid makes every cell
    a decision of its own (``forward``), and class activation maps where negative scores
    are cut off (``cams``, the inference of both).

    >>> model = CLIMS(CLIMSConfig(classes=20))
    >>> activation = model(model.preprocess(image)).activation
    """

    def __init__(self, config: CLIMSConfig) -> None:
        super().__init__()
        self.config = config
        strides, dilations = SHAPES[config.stride]
        self.backbone = ImageNetResNet(
            config.blocks, config.stem, config.planes, strides, dilations
        )
        channels = self.backbone.channels
        self.head: nn.Module = nn.Identity()
        outputs = config.classes
        if config.head == "bottleneck":
            self.head = Bottleneck(channels, channels // Bottleneck.expansion)
            self.head.relu = nn.LeakyReLU(0.01, inplace=True)
            outputs += 1  # channel 0, of the background, is trained by nothing
        self.classifier = nn.Conv2d(channels, outputs, 1, bias=False)
        for part in (self.backbone.conv1, self.backbone.bn1):
            part.requires_grad_(not config.frozen_stem)

    @classmethod
    def from_official(
        cls, state_dict: Mapping[str, Tensor], *, stride: int = 16
    ) -> CLIMS:
        """Build the network from the authors' weights: of the baseline, of the improved
        version, or of the camera-ready one.

        The camera-ready head could not be compared with the authors' code: there is no
        golden case of it.

        Args:
            state_dict: the file's content, or its weights.
            stride: of the maps, which the weights do not tell.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: the weights are not those of a CLIMS; names what is missing or
                left over.
        """
        state = convert(state_dict)
        model = cls(infer_config(state, stride))
        return load_strictly(model, state, "a CLIMS").eval()

    def train(self, mode: bool = True) -> CLIMS:
        """Set the mode; norms follow it only where they use the batch's statistics."""
        super().train(mode)
        if not self.config.batch_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def preprocess(self, image: Tensor) -> Tensor:
        """Make pixels from images (B, 3, H, W), uint8 or float in [0, 1], of any size.

        Raises:
            ValueError: not images, see :func:`minilib.layers.pixels.check_images`.
        """
        config, dtype = self.config, self.classifier.weight.dtype
        image = unit_images(image, self)
        return standardise(image, config.image_mean, config.image_std, dtype)

    def features(self, pixels: Tensor) -> Tensor:
        """Return the last map (B, C, h, w) of pixels (B, 3, H, W)."""
        return self.head(self.backbone(pixels)[-1])

    def scores(self, pixels: Tensor) -> Tensor:
        """Return the classifier's score of every cell, (B, K, h, w), of
        pixels (B, 3, H, W)."""
        return self.classifier(self.features(pixels))[:, -self.config.classes :]

    def forward(self, pixels: Tensor) -> CLIMSOutput:
        """Return the maps P = sigmoid(W' Z) that the losses see, without any pool.

        Args:
            pixels: (B, 3, H, W) from ``preprocess``, of any size.
        """
        scores = self.scores(pixels)
        return CLIMSOutput(scores.sigmoid(), scores)

    def logits(self, pixels: Tensor) -> Tensor:
        """Return what the baseline is trained by, (B, K): the score of the average cell
        of pixels (B, 3, H, W), which is the average score of the cells."""
        pooled = reduce(self.features(pixels), "b c h w -> b c 1 1", "mean")
        scores = self.classifier(pooled)[:, -self.config.classes :]
        return rearrange(scores, "b k 1 1 -> b k")

    def cams(self, pixels: Tensor, flip: bool = True) -> Tensor:
        """Return the class activation maps of inference, (B, K, h, w), at least 0.

        There is no sigmoid here: scores below 0 become 0, and ``protocol`` divides each
        map by its maximum.

        Args:
            pixels: (B, 3, H, W).
            flip: add the mirrored maps of the mirrored image.
        """
        maps = F.relu(self.scores(pixels))
        return maps + F.relu(self.scores(pixels.flip(-1))).flip(-1) if flip else maps
