"""A small detector whose classes are text vectors: the trunk of the detection chapters.

CLIP's ResNet, a feature pyramid, and at every place of three levels a vector in the
space of text and a box (FCOS, arXiv 1904.01355). A class is a text vector, so any list
of names can be asked for. Shapes: B images of R x R' pixels, C channels, L places, E
joint dimension, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minilib.layers.detection import (
    Places,
    best_detections,
    centred,
    detection_losses,
    places_of,
)
from minilib.layers.fpn import FeaturePyramid
from minilib.layers.pixels import standardise, unit_images
from minilib.layers.resnet import ModifiedResNet
from minilib.models.clip import CLIP
from minilib.models.clip.config import CLIPConfig, ResNetConfig
from minilib.models.loading import load_strictly


@dataclass(frozen=True)
class DetectorConfig:
    """Everything that fixes the shape of a :class:`Detector`."""

    clip: CLIPConfig
    """The towers; the image tower is a ResNet."""
    channels: int = 96
    """Channels of the pyramid and of the head."""
    layers: int = 2
    """3 x 3 convolutions of each branch of the head."""
    stages: tuple[int, ...] = (1, 2, 4)
    """The stages of the ResNet that make the levels; of two with one stride the
    later."""

    def __post_init__(self) -> None:
        """Check the image tower.

        Raises:
            ValueError: it is not a ResNet.
        """
        if not isinstance(self.clip.vision, ResNetConfig):
            raise ValueError("the image tower is a ViT: a detector needs a ResNet")

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of the levels."""
        assert isinstance(self.clip.vision, ResNetConfig)
        steps = self.clip.vision.strides
        return tuple(4 * math.prod(steps[:stage]) for stage in self.stages)


class Answers(NamedTuple):
    """What a :class:`Detector` says of every place."""

    places: Places
    """L places."""
    regions: Tensor
    """(B, L, E) unit vectors in the space of text."""
    sides: Tensor
    """(B, L, 4) distances to the sides of the place's box, in pixels."""
    levels: list[Tensor]
    """The pyramid, (B, C, h_i, w_i) from fine to coarse."""


class BoxHead(nn.Module):
    """Two branches over all levels: what is here, and where are its sides.

    Args:
        channels: channels C of the levels.
        outputs: dimension of what a place says about its class.
        layers: 3 x 3 convolutions of a branch.
        levels: number of levels; each has its own scale of distances.
    """

    def __init__(self, channels: int, outputs: int, layers: int, levels: int) -> None:
        super().__init__()
        self.what, self.where = (
            nn.Sequential(*(_convolution(channels) for _ in range(layers)))
            for _ in range(2)
        )
        self.region = nn.Conv2d(channels, outputs, 1)
        self.side = nn.Conv2d(channels, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.full((levels,), 2.0))
        nn.init.normal_(self.side.weight, std=0.01)
        assert self.side.bias is not None  # for the type checker
        nn.init.zeros_(self.side.bias)

    def forward(
        self, levels: Sequence[Tensor], strides: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Turn levels (B, C, h_i, w_i) into classes (B, L, outputs) and distances
        (B, L, 4) in pixels."""
        what, where = [], []
        for level, stride, scale in zip(levels, strides, self.scale, strict=True):
            what.append(_listed(self.region(self.what(level))))
            steps = F.softplus(_listed(self.side(self.where(level))))
            where.append(steps * scale * stride)
        return torch.cat(what, dim=1), torch.cat(where, dim=1)


class Detector(nn.Module):
    """Images and text vectors in, boxes with scores out.

    The batch norms of the image tower keep the statistics and gains of CLIP: batches
    of a detector are too small for new ones. The attention pool is left out.
    """

    middle: Tensor
    """(E,), the mean of the unit text vectors of the names trained on; see
    :func:`minilib.layers.detection.centred`."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config, clip = config, config.clip
        vision = clip.vision
        assert isinstance(vision, ResNetConfig)  # the config has checked it
        self.backbone = ModifiedResNet(
            vision.blocks, vision.width, vision.heads, clip.embed_dim,
            clip.image_size, vision.strides,
        )  # fmt: skip
        del self.backbone.attnpool
        widths = [4 * vision.width * 2 ** (stage - 1) for stage in config.stages]
        self.neck = FeaturePyramid(widths, config.channels)
        self.norms = nn.ModuleList(_norm(config.channels) for _ in config.stages)
        self.head = BoxHead(
            config.channels, clip.embed_dim, config.layers, len(config.stages)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        # every place begins with "nothing here", at probability 0.99
        self.bias = nn.Parameter(torch.tensor(-math.log(99.0)))
        self.register_buffer("middle", torch.zeros(clip.embed_dim))

    @classmethod
    def from_clip(
        cls, clip: CLIP, text: Tensor, config: DetectorConfig | None = None
    ) -> Detector:
        """Build a detector on a CLIP's image tower, for names with text vectors
        (K, E)."""
        model = cls(config or DetectorConfig(clip.config))
        state = {
            name: value
            for name, value in clip.visual.state_dict().items()
            if not name.startswith("attnpool.")
        }
        load_strictly(model.backbone, state, "the detector's image tower")
        model.middle.copy_(F.normalize(text, dim=-1).mean(dim=0))
        return model.to(clip.device)

    def train(self, mode: bool = True) -> Detector:
        """Set the mode; the image tower's batch norms stay as they are."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
        return self

    def preprocess(self, image: Tensor) -> Tensor:
        """Make pixels from images (B, 3, R, R'), uint8 or float in [0, 1]."""
        clip, dtype = self.config.clip, self.bias.dtype
        image = unit_images(image, self)
        return standardise(image, clip.image_mean, clip.image_std, dtype)

    def answers(self, pixels: Tensor) -> Answers:
        """Ask every place of images (B, 3, R, R'), from ``preprocess``."""
        stages = self.backbone.stages(pixels)
        maps = [stages[f"layer{stage}"] for stage in self.config.stages]
        levels = [
            F.relu(norm(x)) for norm, x in zip(self.norms, self.neck(maps), strict=True)
        ]
        strides = self.config.strides
        regions, sides = self.head(levels, strides)
        grids = [(x.shape[-2], x.shape[-1]) for x in levels]
        places = places_of(grids, strides, pixels.device)
        return Answers(places, F.normalize(regions, dim=-1), sides, levels)

    def logits(self, regions: Tensor, text: Tensor) -> Tensor:
        """Compare regions (B, L, E) with text vectors (K, E): (B, L, K)."""
        cosine = regions @ centred(text, self.middle).T
        return self.log_scale.exp() * cosine + self.bias

    def losses(
        self,
        image: Tensor,
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
        text: Tensor,
    ) -> dict[str, Tensor]:
        """Return ``loss`` and its parts ``classification`` and ``boxes``.

        Args:
            image: (B, 3, R, R') in [0, 1].
            boxes: per image (n, 4) x1 y1 x2 y2 in pixels; n may be 0.
            classes: per image (n,) int64 in 0 ... K - 1.
            text: (K, E) text vectors.
        """
        said = self.answers(self.preprocess(image))
        parts = detection_losses(
            said.places, self.logits(said.regions, text), said.sides, boxes, classes
        )
        return {"loss": parts["classification"] + parts["boxes"], **parts}

    @torch.no_grad()
    def forward(self, image: Tensor, text: Tensor) -> list[dict[str, Tensor]]:
        """Detect in images (B, 3, R, R') in [0, 1] what text vectors (K, E) name.

        Returns per image ``boxes`` (m, 4), ``scores`` (m,) and ``labels`` (m,) in
        0 ... K - 1.
        """
        said = self.answers(self.preprocess(image))
        size = (image.shape[-2], image.shape[-1])
        return best_detections(
            said.places, self.logits(said.regions, text), said.sides, size
        )


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(16, channels), channels)


def _convolution(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        _norm(channels),
        nn.ReLU(True),
    )


def _listed(level: Tensor) -> Tensor:
    """Return the cells of a map (B, C, h, w) as a list, (B, h * w, C)."""
    return rearrange(level, "b c h w -> b (h w) c")
