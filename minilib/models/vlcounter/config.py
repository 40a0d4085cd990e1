"""What fixes the shape of a VLCounter: plain values, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from minilib.models.clip.config import CLIPConfig, ViTConfig


@dataclass(frozen=True)
class VLCounterConfig:
    """Everything that fixes the shape of a VLCounter, and the switches of the
    paper's ablation."""

    clip: CLIPConfig = field(default_factory=lambda: CLIPConfig(image_size=384))
    """The frozen towers; the image tower must be a ViT."""
    grid: tuple[int, int] = (24, 24)
    """Rows and columns of the similarity map that the affine map is stored for."""
    encoder: str = "spt"
    """Prompts that know the text, "spt", that do not, "vpt", or none, "frozen"."""
    affine: bool = True
    """Transform the similarity map (LAT)."""
    skip: str = "gated"
    """Skip connections: "gated" by the similarity map (SaSC), "plain", or "none"."""
    prompts: int = 10
    """Prompt tokens M per layer."""
    prompted_layers: int | None = None
    """Layers that get prompts of their own, from the first on; later ones keep what
    became of the last. By default all layers of the tower."""
    taps: tuple[int, ...] | None = None
    """Blocks whose outputs the skip connections take, counted from 0; the deepest
    enters first. By default the three that end the third quarter of the tower: of 12
    layers 6, 7 and 8, as released."""
    channels: int = 64
    """Channels D of projections and decoder; a multiple of 8, the groups of
    its normalisation."""
    dropout: float = 0.1
    """Dropout of the projected prompts and of the projected text."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is unknown or out of range.
        """
        if not isinstance(self.clip.vision, ViTConfig):
            raise ValueError(
                "VLCounter prompts the tokens of a vision transformer: a ResNet tower "
                "has none"
            )
        for name, known in (
            ("encoder", ("spt", "vpt", "frozen")),
            ("skip", ("gated", "plain", "none")),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"unknown {name} {value!r}: use one of "
                    f"{', '.join(map(repr, known))}"
                )
        if self.channels % 8:
            raise ValueError(
                f"channels={self.channels}: expected a multiple of 8, the groups of "
                "the decoder's norms"
            )
        layers, taps = self.vision.layers, self.tapped_blocks
        if not 1 <= self.prompt_depth <= layers or self.prompts < 1:
            raise ValueError(
                f"prompts={self.prompts} in {self.prompt_depth} layers of {layers}: "
                f"expected 1 or more, in 1 to {layers} layers"
            )
        if (
            not taps
            or sorted(set(taps)) != list(taps)
            or taps[-1] >= layers
            or taps[0] < 0
        ):
            raise ValueError(
                f"taps={taps}: expected rising block numbers from 0 to {layers - 1}"
            )

    @property
    def vision(self) -> ViTConfig:
        """The image tower's configuration."""
        assert isinstance(self.clip.vision, ViTConfig)  # checked above
        return self.clip.vision

    @property
    def prompt_depth(self) -> int:
        """Number of prompted layers."""
        layers = self.prompted_layers
        return self.vision.layers if layers is None else layers

    @property
    def tapped_blocks(self) -> tuple[int, ...]:
        """The blocks whose outputs the skip connections take."""
        if self.taps is not None:
            return self.taps
        end = max(3, 3 * self.vision.layers // 4)
        return tuple(range(end - 3, end))

    @property
    def doublings(self) -> int:
        """How often the decoder doubles the map: once before the first skip and
        once after each."""
        return 1 + len(self.tapped_blocks)
