"""What fixes the shape of a CounTX: plain values, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from minilib.models.clip.config import CLIPConfig, ViTConfig


@dataclass(frozen=True)
class CounTXConfig:
    """What fixes the shape of a CounTX; the defaults are the released model's."""

    clip: CLIPConfig = field(
        default_factory=lambda: CLIPConfig(vision=ViTConfig(patch=16), quick_gelu=False)
    )
    """The towers. ``clip.image_size`` is R, the side to which a crop is resized for the
    image tower (224)."""
    blocks: int = 2
    """Blocks of the feature interaction module."""
    heads: int = 16
    """Attention heads of such a block."""
    mlp_ratio: float = 4.0
    """Width inside its MLP, relative to E."""
    decoder_width: int = 256
    """Channels of the density decoder."""
    groups: int = 8
    """Groups of its normalisations."""
    first_grid: int = 24
    """Side of the map that the decoder starts from, resized from the patches."""
    doublings: int = 4
    """Convolutions of the decoder, each followed by a doubling of the map: D =
    first_grid * 2 ** doublings (384)."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value does not fit another one.
        """
        if not isinstance(self.clip.vision, ViTConfig):
            raise ValueError(
                "CounTX reads patch tokens: give it a CLIPConfig whose vision is a "
                "ViTConfig"
            )
        if self.clip.embed_dim % 4:
            raise ValueError(
                f"embed_dim={self.clip.embed_dim}: sine and cosine of x and y need a "
                "multiple of 4"
            )
        if self.clip.embed_dim % self.heads:
            raise ValueError(
                f"heads={self.heads} do not divide embed_dim={self.clip.embed_dim}"
            )
        if self.decoder_width % self.groups:
            raise ValueError(
                f"groups={self.groups} do not divide decoder_width={self.decoder_width}"
            )
        if min(self.blocks, self.first_grid, self.doublings) < 1:
            raise ValueError(
                f"{self.blocks=}, {self.first_grid=}, {self.doublings=}: expected 1 "
                "or more"
            )

    @property
    def window(self) -> int:
        """Side D of the density map, and of the crop it belongs to, in pixels."""
        return self.first_grid * 2**self.doublings

    @property
    def grid(self) -> int:
        """Patches along a side of the image tower's crop."""
        return self.clip.image_size // self.clip.vision.reduction
