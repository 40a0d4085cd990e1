"""What fixes the shape of an LSeg: plain values, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from minilib.models.clip.config import ResNetConfig as CLIPResNetConfig


@dataclass(frozen=True)
class ViTBackbone:
    """An ImageNet Vision Transformer, tapped at four blocks (section 4.1); as
    released: ViT-L/16."""

    patch: int = 16
    """Side of a patch in pixels: 4, 8, 16 or 32."""
    width: int = 1024
    """Channels of a token."""
    layers: int = 24
    """Number of blocks."""
    heads: int = 16
    """Attention heads of a block."""
    grid: int = 24
    """Patches along a side of the images that the position
    embeddings are stored for."""
    hooks: tuple[int, ...] = (5, 11, 17, 23)
    """The four blocks whose outputs are read, from 0."""
    channels: tuple[int, ...] = (256, 512, 1024, 1024)
    """Channels of the four maps, at strides 4, 8, 16 and 32."""
    readout: str = "project"
    """What becomes of the class token, see ``minilib.layers.dpt.Readout``."""

    def __post_init__(self) -> None:
        if self.patch not in (4, 8, 16, 32):
            raise ValueError(
                f"patch={self.patch}: expected 4, 8, 16 or 32, of which maps can be "
                "made"
            )
        if (
            len(self.hooks) != 4
            or sorted(set(self.hooks)) != list(self.hooks)
            or self.hooks[-1] >= self.layers
        ):
            raise ValueError(
                f"hooks={self.hooks}: expected four rising numbers below "
                f"layers={self.layers}"
            )
        if len(self.channels) != 4:
            raise ValueError(
                f"channels={self.channels}: expected one number for each of the four "
                "maps"
            )


@dataclass(frozen=True)
class ResNetBackbone:
    """An ImageNet ResNet with bottlenecks (the zero-shot models of section 5.1); as
    released: ResNet-101."""

    blocks: tuple[int, ...] = (3, 4, 23, 3)
    """Bottlenecks in each of the four stages."""
    stem: int = 64
    """Channels after the first convolution."""
    planes: int = 64
    """Inner channels of the first stage; its output has four times as many, and
    each stage doubles."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four maps."""
        return tuple(4 * self.planes * 2**stage for stage in range(4))


@dataclass(frozen=True)
class CLIPBackbone:
    """The image tower of a CLIP ResNet. Not in the paper; it lets a miniature start
    from the mini checkpoint."""

    vision: CLIPResNetConfig = field(default_factory=CLIPResNetConfig)
    """The tower's shape."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four maps."""
        return tuple(4 * self.vision.width * 2**stage for stage in range(4))


@dataclass(frozen=True)
class LSegConfig:
    """Everything that fixes the shape of an LSeg."""

    backbone: ViTBackbone | ResNetBackbone | CLIPBackbone = field(
        default_factory=ViTBackbone
    )
    """What turns pixels into four maps."""
    features: int = 256
    """Channels of the decoder's paths."""
    embed_dim: int = 512
    """Dimension C of pixel and word embeddings."""
    temperature: float = 0.07
    """t of equation 2; constant, never trained."""
    block: str = "none"
    """Spatial regularisation after the correlation: "none", "bottleneck" or
    "depthwise" (section 4.1)."""
    block_depth: int = 1
    """How often the block is applied; all applications share one set of weights."""
    activation: str = "lrelu"
    """Between applications of the block: "lrelu" (slope 0.01), "tanh" or "relu"."""
    half_product: bool = False
    """Round embeddings and correlation to float16, as the released models do."""
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean that ``preprocess`` subtracts, per RGB channel."""
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation that ``preprocess`` divides by."""

    def __post_init__(self) -> None:
        for name, known in (
            ("block", ("none", "bottleneck", "depthwise")),
            ("activation", ("lrelu", "tanh", "relu")),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"unknown {name} {value!r}: use one of "
                    f"{', '.join(map(repr, known))}"
                )
        if self.block_depth < 1:
            raise ValueError(
                f"block_depth={self.block_depth}: expected 1 or more; for no block, "
                "block='none'"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature}: expected a positive number"
            )
