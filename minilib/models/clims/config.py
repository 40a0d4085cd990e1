"""What fixes the shape of a CLIMS, and how its losses are weighed."""

from __future__ import annotations

from dataclasses import dataclass

from minilib.layers.imagenet_resnet import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class CLIMSConfig:
    """Everything that fixes the shape of the network that makes the maps; the defaults
    are the released model for PASCAL VOC."""

    classes: int = 20
    """Number of classes K, without the background."""
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Bottlenecks in each of the four stages."""
    stem: int = 64
    """Channels after the first convolution."""
    planes: int = 64
    """Inner channels of the first stage; its output has four times as many, and
    each stage doubles."""
    stride: int = 16
    """Pixels along the side of a cell of the maps: 16 as trained, or 8."""
    head: str = "linear"
    """What turns features into class scores: "linear", one 1 x 1 convolution, or
    "bottleneck", a residual block before it (camera-ready)."""
    frozen_stem: bool = True
    """Keep the first convolution and the affine part of its norm as they are; only
    sensible for pretrained weights."""
    batch_statistics: bool = True
    """Let norms use and update statistics in training. False keeps the stored ones, as
    the training of the baseline does."""
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean that ``preprocess`` subtracts, per RGB channel."""
    image_std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation that ``preprocess`` divides by."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is unknown or out of range.
        """
        if self.stride not in (8, 16):
            raise ValueError(f"stride={self.stride}: expected 8 or 16")
        if self.head not in ("linear", "bottleneck"):
            raise ValueError(
                f"unknown head {self.head!r}: use 'linear' or 'bottleneck'"
            )
        if (
            len(self.blocks) != 4
            or min(*self.blocks, self.classes, self.stem, self.planes) < 1
        ):
            raise ValueError(
                f"classes={self.classes}, blocks={self.blocks}, stem={self.stem}, "
                f"planes={self.planes}: expected four numbers of blocks, and all of "
                "them 1 or more"
            )


@dataclass(frozen=True)
class LossConfig:
    """How the four losses are put together; the defaults are the improved version's,
    on PASCAL VOC."""

    otm: float = 10.0
    """Weight of L_OTM: the object shall look like its name."""
    btm: float = 24.0
    """Weight of L_BTM: what is left shall not."""
    cbs: float = 1.0
    """Weight of L_CBS: the object shall not look like its usual surroundings."""
    reg: float = 0.2
    """Weight of L_REG: the maps shall be small."""
    threshold: float = 0.26
    """Cosine above which a background prompt is punished (improved version)."""
    camera_ready: bool = False
    """Use the losses of the camera-ready code: no clamp in L_OTM and L_BTM, and in
    L_CBS the mean over each class's own prompts instead of a threshold."""


IMPROVED_VOC = LossConfig()
IMPROVED_COCO = LossConfig(otm=2.0, btm=14.0, cbs=1.25, reg=0.2, threshold=0.285)
CAMERA_READY_VOC = LossConfig(otm=10.0, btm=25.0, cbs=29.5, reg=1.15, camera_ready=True)
