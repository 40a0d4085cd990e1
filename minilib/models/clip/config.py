"""What fixes the shape of a CLIP: plain values, checked where they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ViTConfig:
    """The Vision Transformer image tower (section 2.4)."""

    patch: int = 16
    """Side of a patch in pixels."""
    width: int = 768
    """Channels of a token."""
    layers: int = 12
    """Number of residual attention blocks."""
    heads: int = 12
    """Attention heads of a block."""
    stem: str = "patch"
    """How pixels become tokens: "patch", one convolution as released, or "conv",
    several small ones."""
    pool: str = "token"
    """What represents the image: the class "token" as released, or the "mean" of the
    patches, whose features then lie in the joint space, as dense prediction needs."""

    def __post_init__(self) -> None:
        for name, known in (("stem", ("patch", "conv")), ("pool", ("token", "mean"))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"unknown {name} {value!r}: use {known[0]!r} or {known[1]!r}"
                )
        if self.stem == "conv" and (self.patch < 2 or self.patch & (self.patch - 1)):
            raise ValueError(
                "stem 'conv' halves images step by step: patch must be a power of "
                f"two, not {self.patch}"
            )

    @property
    def reduction(self) -> int:
        """Pixels per cell of the last map, along a side."""
        return self.patch


@dataclass(frozen=True)
class ResNetConfig:
    """The ResNet image tower (section 2.4)."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Bottlenecks in each of the four stages."""
    width: int = 64
    """Channels after the stem; the last stage has 32 times as many."""
    heads: int = 32
    """Heads of the attention pool."""
    strides: tuple[int, ...] = (1, 2, 2, 2)
    """Stride of each stage, after the stem's 4; smaller ones keep a finer map
    of small images."""

    @property
    def reduction(self) -> int:
        """Pixels per cell of the last map, along a side."""
        return 4 * math.prod(self.strides)


@dataclass(frozen=True)
class TextConfig:
    """The text tower (section 2.4)."""

    context: int = 77
    """Longest text in tokens, start and end included."""
    vocab_size: int = 49408
    """Number of token ids; the two highest are the start and the end of a text."""
    width: int = 512
    """Channels of a token."""
    layers: int = 12
    """Number of residual attention blocks."""
    heads: int = 8
    """Attention heads of a block."""


@dataclass(frozen=True)
class CLIPConfig:
    """Everything that fixes the shape of a CLIP."""

    embed_dim: int = 512
    """Dimension E of the joint space."""
    image_size: int = 224
    """Side of the images that ``preprocess`` makes and that the position
    embeddings are stored for."""
    vision: ViTConfig | ResNetConfig = field(default_factory=ViTConfig)
    """The image tower."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text tower."""
    quick_gelu: bool = True
    """x * sigmoid(1.702 x) as in OpenAI's models; False is the exact GELU."""
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    """Mean that ``preprocess`` subtracts, per RGB channel."""
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation that ``preprocess`` divides by."""
    vocabulary: tuple[int, ...] | None = None
    """BPE ids that the tokenizer keeps (see ``Tokenizer``); None keeps all 49,408."""
    init_logit_scale: float = math.log(1 / 0.07)
    """Initial logarithm of the multiplier (section 2.5); SigLIP starts at ln 10."""
    init_logit_bias: float | None = None
    """Initial bias of the logits for SigLIP (-10); None for CLIP, which has none."""

    def __post_init__(self) -> None:
        if self.image_size % self.vision.reduction:
            raise ValueError(
                f"image_size {self.image_size} is not a whole number of "
                f"{self.vision.reduction}-pixel cells: choose a multiple of "
                f"{self.vision.reduction}"
            )
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            finite = len(values) == 3 and all(map(math.isfinite, values))
            if not finite or (name == "image_std" and min(values) <= 0):
                raise ValueError(
                    f"{name}={values}: expected three finite numbers, red, green and "
                    "blue, those of image_std above 0"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPConfig:
        """Rebuild a configuration from its ``dataclasses.asdict``, also after JSON.

        Raises:
            ValueError: a text tower of an older minilib that is not a transformer.
        """

        def build(kind: type, entries: Mapping[str, Any]) -> Any:
            return kind(
                **{
                    key: tuple(value) if isinstance(value, list) else value
                    for key, value in entries.items()
                }
            )

        vision = build(
            ResNetConfig if "blocks" in values["vision"] else ViTConfig,
            values["vision"],
        )
        text = dict(values["text"])
        # Older files also say which kind of text tower theirs is.
        text.pop("lookup_size", None)
        if (kind := text.pop("kind", "transformer")) != "transformer":
            raise ValueError(
                f"the text tower {kind!r} is a control of chapter 1, not a CLIP: "
                "train it again with minilib.recipes.clip.controls"
            )
        return build(cls, {**values, "vision": vision, "text": build(TextConfig, text)})
