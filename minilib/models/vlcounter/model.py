"""VLCounter: Text-aware Visual Representation for Zero-Shot Object Counting
(AAAI 2024, arXiv 2312.16580).

A frozen CLIP, prompts in its image tower that know what to count (SPT), a similarity
map with a learned affine map per place (LAT), and a decoder whose skip connections that
map gates (SaSC). Where the authors' code and their formulas differ, this is the code.
Shapes: B images of H x W pixels, h x w patches, width C of the tower, joint dimension
E, D channels of the decoder, M prompts, T templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from minilib.layers.pixels import standardise, unit_images
from minilib.layers.windows import fit_to_windows, over_windows
from minilib.models.clip import CLIP, VisionTransformer, prompt_ensemble
from minilib.models.loading import load_strictly
from minilib.models.vlcounter.config import VLCounterConfig
from minilib.models.vlcounter.encoder import SemanticPrompts, encode_image
from minilib.models.vlcounter.official import convert, infer_config
from minilib.models.vlcounter.prompts import PLURAL_TEMPLATES, prompts_for
from minilib.tokenizer import check_words

DENSITY_SCALE = 60.0
"""Densities are this much larger than objects per pixel, for the loss's sake."""


class AffineMap(nn.Module):
    """Learnable affine transformation (LAT): S' = W * S + B, one pair of numbers for
    each place of the grid."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, *grid))
        self.bias = nn.Parameter(torch.zeros(1, 1, *grid))

    def forward(self, similarity: Tensor) -> Tensor:
        """Transform (B, 1, h, w); on another grid than the stored one, both are resized
        to it (bilinear)."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if weight.shape[-2:] != similarity.shape[-2:]:
            size = tuple(similarity.shape[-2:])
            weight, bias = (
                F.interpolate(p, size=size, mode="bilinear", align_corners=False)
                for p in (weight, bias)
            )
        return weight * similarity + bias


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Enlarge maps (B, D, h, w) by a whole factor, bilinearly, corner pixels
    on corner pixels."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)


class SkipConnection(nn.Module):
    """Segment-aware skip connection (SaSC): features of the encoder, where the words
    say that they matter."""

    def __init__(self, width: int, channels: int, factor: int, gated: bool) -> None:
        super().__init__()
        self.factor, self.gated = factor, gated
        self.conv = nn.Conv2d(width, channels, 1)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, features: Tensor, similarity: Tensor) -> Tensor:
        """Return what is added to the decoder's map: features (B, C, h, w) ->
        (B, D, factor * h, factor * w)."""
        projected = enlarge(F.gelu(self.norm(self.conv(features))), self.factor)
        if not self.gated:
            return projected
        return projected * F.interpolate(
            similarity, scale_factor=self.factor, mode="nearest"
        )


class DecoderStage(nn.Module):
    """Convolution, group normalisation, GELU; a doubling of the map follows."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, D', h, w) -> (B, D, h, w); the doubling is
        left to the caller."""
        return F.gelu(self.norm(self.conv(x)))


class VLCounterOutput(NamedTuple):
    """What :class:`VLCounter` returns: the density, and the maps on the way to it."""

    density: Tensor
    """(B, 1, H, W), 60 times objects per pixel."""
    similarity: Tensor
    """(B, 1, h, w), after the affine map."""
    raw_similarity: Tensor
    """(B, 1, h, w), before it."""
    skips: list[Tensor]
    """What each skip connection added to the decoder's map."""
    tapped: Sequence[Tensor]
    """Outputs of the tapped blocks, rising, (B, C, h, w) each."""
    patches: Tensor
    """(B, E, h, w), the patches in the joint space."""


class CounterHead(nn.Module):
    """From patch features and a text to a density map."""

    def __init__(self, config: VLCounterConfig) -> None:
        super().__init__()
        embed_dim, width, channels = (
            config.clip.embed_dim,
            config.clip.vision.width,
            config.channels,
        )
        self.t_proj = nn.Linear(embed_dim, channels)
        self.v_proj = nn.Linear(embed_dim, channels)
        self.affine = AffineMap(config.grid) if config.affine else None
        factors = [2**i for i in range(1, config.doublings)]
        self.skips = nn.ModuleList(
            SkipConnection(width, channels, factor, config.skip == "gated")
            for factor in (factors if config.skip != "none" else ())
        )
        self.stages = nn.ModuleList(
            DecoderStage(channels + 1 if i == 0 else channels, channels)
            for i in range(config.doublings)
        )
        self.density = nn.Conv2d(channels, 1, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-2, b=2)
            elif isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self, tapped: Sequence[Tensor], patches: Tensor, text: Tensor
    ) -> VLCounterOutput:
        """Count in features.

        Args:
            tapped: outputs of the tapped blocks, rising, (B, C, h, w) each.
            patches: (B, E, h, w) joint-space features.
            text: (B, E) unit rows.

        Returns:
            density and maps; n doublings make the density (B, 1, 2^n h, 2^n w).
        """
        visual = rearrange(
            self.v_proj(rearrange(patches, "b e h w -> b h w e")), "b h w d -> b d h w"
        )
        raw = einsum(visual, self.t_proj(text), "b d h w, b d -> b h w")[:, None]
        similarity = raw if self.affine is None else self.affine(raw)
        x = self.stages[0](torch.cat([visual, similarity], dim=1))
        added = []
        for number, stage in enumerate(self.stages[1:]):
            x = enlarge(x, 2)
            # the deepest features enter first, where the map is smallest
            if self.skips:
                added.append(self.skips[number](tapped[-1 - number], similarity))
                x = x + added[-1]
            x = stage(x)
        # A 1 x 1 convolution and a bilinear enlargement can change places: one channel
        # is cheaper to enlarge than D.
        density = enlarge(self.density(x), 2)
        return VLCounterOutput(density, similarity, raw, added, tapped, patches)


class VLCounter(nn.Module):
    """Counts whatever is named. Only prompts, projections and decoder are trained:
    CLIP stays frozen."""

    def __init__(self, config: VLCounterConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = CLIP(config.clip).requires_grad_(False)
        self.prompts = None
        if config.encoder != "frozen":
            self.prompts = SemanticPrompts(
                config.clip.vision.width, config.clip.embed_dim, config.prompts,
                config.prompt_depth, semantic=config.encoder == "spt",
                dropout=config.dropout,
            )  # fmt: skip
        self.head = CounterHead(config)
        self.train(self.training)

    @classmethod
    def from_clip(cls, clip: CLIP, config: VLCounterConfig | None = None) -> VLCounter:
        """Put a fresh counter on a copy of ``clip``; ``config`` must fit its towers."""
        model = cls(config or VLCounterConfig(clip=clip.config))
        load_strictly(model.clip, clip.state_dict(), "the config's CLIP")
        return model.to(clip.device)

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Any],
        *,
        vision_heads: int | None = None,
        text_heads: int | None = None,
        taps: tuple[int, ...] | None = None,
    ) -> VLCounter:
        """Build a VLCounter from the authors' weights; sizes are inferred from shapes.

        Args:
            state_dict: the released file's content, or its entry ``state_dict``.
            vision_heads: heads of the image tower, which cannot be inferred from
                shapes; by default one per 64 channels.
            text_heads: likewise of the text tower.
            taps: the blocks whose outputs feed the skip connections, see
                ``VLCounterConfig``.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: names what is missing, left over or of another shape.
        """
        state = convert(state_dict)
        config = infer_config(state, vision_heads, text_heads, taps)
        return load_strictly(cls(config), state, "a VLCounter").eval()

    def train(self, mode: bool = True) -> VLCounter:
        """Switch dropout on or off; the frozen CLIP, with its running statistics,
        always stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def preprocess(self, image: Tensor) -> Tensor:
        """Make pixels from images (B, 3, H, W), uint8 or float in [0, 1].

        Nothing is resized, since size is what counting lives on.

        Raises:
            ValueError: a side is not a whole number of patches; or not images, see
                :func:`minilib.layers.pixels.check_images`.
        """
        image = unit_images(image, self)
        patch = self.config.clip.vision.reduction
        if image.shape[-2] % patch or image.shape[-1] % patch:
            raise ValueError(
                f"an image of {image.shape[-2]} x {image.shape[-1]} pixels is not a "
                f"whole number of {patch}-pixel patches: resize it, or count with "
                "density(), which does"
            )
        clip, dtype = self.config.clip, self.head.density.weight.dtype
        return standardise(image, clip.image_mean, clip.image_std, dtype)

    @torch.no_grad()
    def encode_names(
        self, names: Sequence[str], templates: Sequence[str] = PLURAL_TEMPLATES
    ) -> Tensor:
        """Return one unit row per name, (B, E): the mean over templates, normalised
        before and after.

        Equal names are encoded once. Raises ValueError for no names, an empty name, or
        a template without ``{}``.
        """
        names = check_words(names, self.clip.tokenizer, "name", allow_duplicates=True)
        different = list(dict.fromkeys(names))
        tokens = self.clip.tokenize(
            [text for name in different for text in prompts_for(name, templates)]
        )
        embeddings = torch.cat(
            [self.clip.encode_text(chunk) for chunk in tokens.split(512)]
        )
        rows = prompt_ensemble(
            rearrange(embeddings, "(k t) e -> k t e", k=len(different))
        ).T
        return rows[[different.index(name) for name in names]]

    def forward(self, pixels: Tensor, text: Tensor) -> VLCounterOutput:
        """Count in images.

        Args:
            pixels: (B, 3, H, W) from ``preprocess``.
            text: (B, E) from ``encode_names``.
        """
        visual = self.clip.visual
        assert isinstance(visual, VisionTransformer)  # the config allows no other
        tapped, patches = encode_image(
            visual, self.prompts, pixels, text, self.config.tapped_blocks
        )
        return self.head(tapped, patches, text)

    def predict(
        self,
        image: Tensor,
        names: Sequence[str],
        templates: Sequence[str] = PLURAL_TEMPLATES,
    ) -> Tensor:
        """Return the density of ``names[i]`` in image i (B, 3, H, W) in [0, 1]:
        (B, H, W), which sums to the count."""
        output: VLCounterOutput = self(
            self.preprocess(image), self.encode_names(names, templates)
        )
        return output.density[:, 0] / DENSITY_SCALE

    @torch.no_grad()
    def density(
        self,
        image: Tensor,
        name: str,
        stride: int | None = None,
        merge: str = "recursive",
        templates: Sequence[str] = PLURAL_TEMPLATES,
    ) -> Tensor:
        """Return the density (H', W') of one image of any size and shape
        (authors' test protocol).

        The shorter side is resized to the window, then square windows step along the
        longer one, and their maps are merged. ``density(...).sum()`` is the count; it
        is neither rounded nor kept from falling below zero.

        Args:
            image: (3, H, W), uint8 or float in [0, 1].
            name: what to count.
            stride: pixels between windows; a third of the window by
                default, 128 of 384.
            merge: "recursive" as the authors', or "uniform" (see
                ``minilib.layers.windows``).
            templates: sentences around the name.

        Raises:
            ValueError: an empty name, or not an image.
        """
        patch = self.config.clip.vision.reduction
        window = patch * min(self.config.grid)
        fitted, _ = fit_to_windows(image.to(self.clip.device), window, patch)

        def crops_to_maps(crops: Tensor) -> Tensor:
            return self.predict(crops, [name] * len(crops), templates)

        return over_windows(
            crops_to_maps, fitted, window, stride or max(1, window // 3), merge
        )
