"""What fixes the shape of a GroupViT: plain values, checked where they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minilib.models.clip.config import TextConfig


@dataclass(frozen=True)
class AssignConfig:
    """How tokens are handed to groups (section 3.2, equations 2 to 5); the defaults
    are the released model, the rest are switches of its ablations."""

    hard: bool = True
    """One group per token; False spreads each token over all groups by a softmax."""
    gumbel: bool = True
    """Draw Gumbel noise in training, where the assignment is hard."""
    gumbel_tau: float = 1.0
    """Temperature of the noisy softmax: small ones near one-hot, large ones uniform."""
    sum_assign: bool = False
    """Sum the tokens of a group instead of dividing by their count."""
    assign_eps: float = 1.0
    """Added to the count that a group's sum is divided by: 1 as released; 1e-6 is the
    average."""
    cosine_scale: float | None = None
    """None: the logits are dot products over the root of the width. A number: that
    many times the cosine, which is not in the paper."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a number that must be positive is not.
        """
        for name in ("gumbel_tau", "assign_eps", "cosine_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"{name}={value}: expected a positive number"
                    + (
                        "; an empty group would be 0 / 0"
                        if name == "assign_eps"
                        else ""
                    )
                )


@dataclass(frozen=True)
class GroupViTConfig:
    """Everything that fixes the shape of a GroupViT; the defaults are the released
    model."""

    image_size: int = 224
    """Side of the images that the position embeddings are stored for."""
    patch: int = 16
    """Side of a patch in pixels."""
    widths: tuple[int, ...] = (384, 384, 384)
    """Channels of a token in each stage."""
    depths: tuple[int, ...] = (6, 3, 3)
    """Transformer blocks of each stage."""
    heads: tuple[int, ...] = (6, 6, 6)
    """Attention heads of each stage."""
    group_tokens: tuple[int, ...] = (64, 8, 0)
    """Learned group tokens of each stage; the last stage, after the last grouping, has
    none."""
    output_groups: tuple[int, ...] = (64, 8)
    """Segments that each grouping makes."""
    drop_path: float = 0.1
    """Share of images for which the last block is skipped in training; it grows
    linearly from 0 at the first block."""
    stem: str = "patch"
    """How pixels become tokens: "patch", one convolution as released, or "conv",
    several small ones, which small data needs."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """How tokens are handed to groups."""
    text: TextConfig = field(
        default_factory=lambda: TextConfig(width=256, layers=12, heads=4)
    )
    """The text tower."""
    embed_dim: int = 256
    """Dimension E of the joint space."""
    projector_width: int = 4096
    """Channels inside the projectors."""
    projector_layers: int = 2
    """Linear layers of a projector."""
    multi_label: bool = True
    """Have a temperature for the multi-label loss."""
    vocabulary: tuple[int, ...] | None = None
    """BPE ids that the tokenizer keeps (see ``Tokenizer``); None keeps all 49,408."""
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean that ``preprocess`` subtracts, per RGB channel: ImageNet's."""
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation that ``preprocess`` divides by."""
    init_logit_scale: float = math.log(1 / 0.07)
    """Initial logarithm of both losses' multipliers."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: stages that do not belong together, or a value out of range.
        """
        stages = len(self.depths)
        for name in ("widths", "heads", "group_tokens", "output_groups"):
            value, wanted = getattr(self, name), stages - (name == "output_groups")
            if len(value) != wanted:
                raise ValueError(
                    f"{name}={value}: expected {wanted} numbers, for depths="
                    f"{self.depths} name {stages} stages"
                )
        grouping = (*self.group_tokens[:-1], *self.output_groups)
        if stages < 2 or self.group_tokens[-1] or not all(n > 0 for n in grouping):
            raise ValueError(
                f"group_tokens={self.group_tokens}, output_groups="
                f"{self.output_groups}: expected positive numbers in every stage but "
                "the last, and 0 group tokens there"
            )
        if self.image_size % self.patch:
            raise ValueError(
                f"image_size {self.image_size} is not a whole number of patches: "
                f"choose a multiple of {self.patch}"
            )
        if self.stem not in ("patch", "conv"):
            raise ValueError(f"unknown stem {self.stem!r}: use 'patch' or 'conv'")
        if self.stem == "conv" and (self.patch < 2 or self.patch & (self.patch - 1)):
            raise ValueError(
                "stem 'conv' halves images step by step: patch must be a power of "
                f"two, not {self.patch}"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(
                f"drop_path={self.drop_path}: expected a share from 0 to below 1"
            )
        if self.projector_layers < 1:
            raise ValueError(
                f"projector_layers={self.projector_layers}: expected 1 or more"
            )

    @property
    def grid(self) -> int:
        """Patches along a side of the images that positions are stored for."""
        return self.image_size // self.patch

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GroupViTConfig:
        """Rebuild a configuration from its ``dataclasses.asdict``, also after JSON."""
        entries: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
        }
        entries["assign"] = AssignConfig(**values["assign"])
        entries["text"] = TextConfig(**values["text"])
        return cls(**entries)
