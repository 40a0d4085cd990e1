"""VLCounter: Text-aware Visual Representation for Zero-Shot Object Counting (AAAI 2024, arXiv 2312.16580).

A frozen CLIP, prompts in its image tower that know what to count (SPT), a similarity map with a learned affine map per
place (LAT), and a decoder whose skip connections that map gates (SaSC). Where the authors' code and their formulas
differ, this is the code. Shapes: B images of H x W pixels, h x w patches, width C of the tower, joint dimension E,
D channels of the decoder, M prompts, T templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from minilib.layers.transformer import ResidualAttentionBlock
from minilib.layers.windows import fit_to_windows, over_windows
from minilib.models.clip import CLIP, VisionTransformer, prompt_ensemble
from minilib.models.clip.config import CLIPConfig, ViTConfig
from minilib.models.vlcounter.official import convert
from minilib.models.vlcounter.prompts import PLURAL_TEMPLATES, prompts_for

DENSITY_SCALE = 60.0
"""Densities are this much larger than objects per pixel, for the loss's sake."""
RANK_WEIGHT = 1e-6
"""Weight of the rank-aware loss in the released training script."""
THRESHOLDS = (1.0, 0.8, 0.6, 0.4)
"""Borders of the bands of the rank-aware loss."""


@dataclass(frozen=True)
class VLCounterConfig:
    """Everything that fixes the shape of a VLCounter, and the switches of the paper's ablation."""

    clip: CLIPConfig = field(default_factory=lambda: CLIPConfig(image_size=384))
    """The frozen towers; the image tower must be a ViT."""
    grid: tuple[int, int] = (24, 24)
    """Rows and columns of the similarity map that the affine map is stored for."""
    encoder: str = "spt"
    """"spt" prompts that know the text, "vpt" prompts that do not, "frozen" no prompts."""
    affine: bool = True
    """Transform the similarity map (LAT)."""
    skip: str = "gated"
    """Skip connections: "gated" by the similarity map (SaSC), "plain", or "none"."""
    prompts: int = 10
    """Prompt tokens M in a layer."""
    prompted_layers: int = 12
    """Layers that get prompts of their own, from the first on; later ones keep what became of the last."""
    taps: tuple[int, ...] = (6, 7, 8)
    """Blocks whose outputs the skip connections take, counted from 0; the deepest enters first."""
    channels: int = 64
    """Channels D of projections and decoder; a multiple of 8, the groups of its normalisation."""
    dropout: float = 0.1
    """Dropout of the projected prompts and of the projected text."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is unknown or out of range.
        """
        if not isinstance(self.clip.vision, ViTConfig):
            raise ValueError("VLCounter prompts the tokens of a vision transformer: a ResNet tower has none")
        for name, known in (("encoder", ("spt", "vpt", "frozen")), ("skip", ("gated", "plain", "none"))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"unknown {name} {value!r}: use one of {', '.join(map(repr, known))}")
        if self.channels % 8:
            raise ValueError(f"channels={self.channels}: expected a multiple of 8, the groups of the decoder's norms")
        layers = self.clip.vision.layers
        if not 1 <= self.prompted_layers <= layers or self.prompts < 1:
            raise ValueError(
                f"prompts={self.prompts} in {self.prompted_layers} layers of {layers}: expected 1 or more, in 1 to "
                f"{layers} layers"
            )
        if not self.taps or sorted(set(self.taps)) != list(self.taps) or self.taps[-1] >= layers or self.taps[0] < 0:
            raise ValueError(f"taps={self.taps}: expected rising block numbers from 0 to {layers - 1}")

    @property
    def doublings(self) -> int:
        """How often the decoder doubles the map: once before the first skip and once after each."""
        return 1 + len(self.taps)


# --- The image encoder: semantic-conditioned prompt tuning -----------------------------------------------------------


class SemanticPrompts(nn.Module):
    """Prompt tokens for every layer, shifted by what is to be counted (SPT).

    The paper adds the projected text to the prompts, P_l = [p_1 + T, ..., p_M + T]; the code first passes the prompts
    through a projection of their own. Both projections are shared by all layers.
    """

    def __init__(self, width: int, embed_dim: int, tokens: int, layers: int, semantic: bool, dropout: float) -> None:
        super().__init__()
        bound = (6 / (3 * 16 * 16 + width)) ** 0.5
        self.embeddings = nn.Parameter(torch.empty(layers, tokens, width).uniform_(-bound, bound))
        self.prompt_proj = nn.Linear(width, width)
        nn.init.kaiming_normal_(self.prompt_proj.weight, a=0, mode="fan_out")
        self.text_proj = nn.Linear(embed_dim, width) if semantic else None
        if self.text_proj is not None:
            nn.init.kaiming_normal_(self.text_proj.weight, a=0, mode="fan_out")
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, layer: int, text: Tensor) -> Tensor:
        """Return the prompts of ``layer`` for texts (B, E): (B, M, C)."""
        tokens = self.dropout(repeat(self.prompt_proj(self.embeddings[layer]), "m c -> b m c", b=len(text)))
        if self.text_proj is None:
            return tokens
        return tokens + self.dropout(rearrange(self.text_proj(text), "b c -> b 1 c"))


def value_path(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Apply the altered last block to x (B, L, C): x + values(norm(x)), without mixing and without its MLP.

    MaskCLIP's idea: what a patch says of itself lies nearer to the words than what it gathered from everywhere.
    """
    return x + block.attn.values(block.ln_1(x))


def with_positions(visual: VisionTransformer, patches: Tensor, prompted: bool) -> Tensor:
    """Turn the patch map (B, C, h, w) into class token and patches with positions, (B, 1 + h * w, C).

    The stored positions are resized to the grid (bilinear). In the authors' prompted encoders the class token gets its
    embedding twice, which is kept, since the released weights were trained so.
    """
    positions = visual.positional_embedding
    cells = rearrange(positions[1:], "(h w) c -> 1 c h w", h=int((len(positions) - 1) ** 0.5))
    if cells.shape[-2:] != patches.shape[-2:]:
        cells = F.interpolate(cells, size=patches.shape[-2:], mode="bilinear", align_corners=False)
    first = visual.class_embedding * (2 if prompted else 1) + positions[0]
    x = rearrange(patches + cells, "b c h w -> b (h w) c")
    return visual.ln_pre(torch.cat([repeat(first, "c -> b 1 c", b=len(x)), x], dim=1))


def encode_image(
    visual: VisionTransformer, prompts: SemanticPrompts | None, pixels: Tensor, text: Tensor, taps: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """Run the frozen image tower, with prompts where there are any (section on SPT).

    Prompts stand between the class token and the patches; before each prompted layer, fresh ones replace those that
    the layer before has changed.

    Args:
        visual: CLIP's image tower.
        prompts: of :class:`SemanticPrompts`; None leaves the tower as it is, but for its last block.
        pixels: (B, 3, H, W), normalised.
        text: (B, E) unit rows.
        taps: blocks whose outputs are wanted.

    Returns:
        the outputs of the blocks ``taps``, (B, C, h, w) each, and the joint-space features (B, E, h, w); all of unit
        length in every patch.
    """
    patches = visual.conv1(pixels)
    x, rows = with_positions(visual, patches, prompted=prompts is not None), patches.shape[-2]
    layers = 0 if prompts is None else len(prompts.embeddings)
    tokens = 0 if prompts is None else prompts.embeddings.shape[1]
    tapped = {}

    def as_map(x: Tensor) -> Tensor:
        return F.normalize(rearrange(x[:, 1 + tokens :], "b (h w) c -> b c h w", h=rows), dim=1)

    for number, block in enumerate(visual.transformer.resblocks):
        if number < layers:
            rest = x[:, 1:] if number == 0 else x[:, 1 + tokens :]
            x = torch.cat([x[:, :1], prompts(number, text), rest], dim=1)
        last = number == len(visual.transformer.resblocks) - 1
        x = value_path(block, x) if last else block(x)
        if number in taps:
            tapped[number] = as_map(x)
    x = x if prompts is None else prompts.norm(x)
    return [tapped[number] for number in taps], as_map(visual.ln_post(x) @ visual.proj)


# --- The counter: similarity, affine map, skip connections, decoder --------------------------------------------------


class AffineMap(nn.Module):
    """Learnable affine transformation (LAT): S' = W * S + B, one pair of numbers for each place of the grid."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, *grid))
        self.bias = nn.Parameter(torch.zeros(1, 1, *grid))

    def forward(self, similarity: Tensor) -> Tensor:
        """Transform (B, 1, h, w); on another grid than the stored one, both are resized to it (bilinear)."""
        weight, bias = self.weight, self.bias
        if weight.shape[-2:] != similarity.shape[-2:]:
            size = tuple(similarity.shape[-2:])
            weight, bias = (F.interpolate(p, size=size, mode="bilinear", align_corners=False) for p in (weight, bias))
        return weight * similarity + bias


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Enlarge maps (B, D, h, w) by a whole factor, bilinearly, corner pixels on corner pixels."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)


class SkipConnection(nn.Module):
    """Segment-aware skip connection (SaSC): features of the encoder, where the words say that they matter."""

    def __init__(self, width: int, channels: int, factor: int, gated: bool) -> None:
        super().__init__()
        self.factor, self.gated = factor, gated
        self.conv = nn.Conv2d(width, channels, 1)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, features: Tensor, similarity: Tensor) -> Tensor:
        """Return what is added to the decoder's map: features (B, C, h, w) -> (B, D, factor * h, factor * w)."""
        projected = enlarge(F.gelu(self.norm(self.conv(features))), self.factor)
        if not self.gated:
            return projected
        return projected * F.interpolate(similarity, scale_factor=self.factor, mode="nearest")


class DecoderStage(nn.Module):
    """Convolution, group normalisation, GELU; a doubling of the map follows."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, D', h, w) -> (B, D, h, w); the doubling is left to the caller."""
        return F.gelu(self.norm(self.conv(x)))


class CounterHead(nn.Module):
    """From patch features and a text to a density map."""

    def __init__(self, config: VLCounterConfig) -> None:
        super().__init__()
        embed_dim, width, channels = config.clip.embed_dim, config.clip.vision.width, config.channels
        self.t_proj = nn.Linear(embed_dim, channels)
        self.v_proj = nn.Linear(embed_dim, channels)
        self.affine = AffineMap(config.grid) if config.affine else None
        factors = [2**i for i in range(1, config.doublings)]
        self.skips = nn.ModuleList(
            SkipConnection(width, channels, factor, config.skip == "gated")
            for factor in (factors if config.skip != "none" else ())
        )
        self.stages = nn.ModuleList(
            DecoderStage(channels + 1 if i == 0 else channels, channels) for i in range(config.doublings)
        )
        self.density = nn.Conv2d(channels, 1, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-2, b=2)
            elif isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.zeros_(module.bias)

    def forward(self, tapped: Sequence[Tensor], patches: Tensor, text: Tensor) -> dict[str, Any]:
        """Count in features.

        Args:
            tapped: outputs of the tapped blocks, rising, (B, C, h, w) each.
            patches: (B, E, h, w) joint-space features.
            text: (B, E) unit rows.

        Returns:
            ``density`` (B, 1, 2^n h, 2^n w), ``similarity`` after the affine map (B, 1, h, w), ``raw_similarity``
            before it, and ``skips``, what each connection added.
        """
        visual = rearrange(self.v_proj(rearrange(patches, "b e h w -> b h w e")), "b h w d -> b d h w")
        raw = einsum(visual, self.t_proj(text), "b d h w, b d -> b h w")[:, None]
        similarity = raw if self.affine is None else self.affine(raw)
        x = self.stages[0](torch.cat([visual, similarity], dim=1))
        added = []
        for number, stage in enumerate(self.stages[1:]):
            x = enlarge(x, 2)
            if self.skips:  # the deepest features enter first, where the map is smallest
                added.append(self.skips[number](tapped[-1 - number], similarity))
                x = x + added[-1]
            x = stage(x)
        # A 1 x 1 convolution and a bilinear enlargement can change places: one channel is cheaper to enlarge than D.
        density = enlarge(self.density(x), 2)
        return {"density": density, "similarity": similarity, "raw_similarity": raw, "skips": added}


class VLCounter(nn.Module):
    """Counts whatever is named. Only prompts, projections and decoder are trained: CLIP stays frozen."""

    def __init__(self, config: VLCounterConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = CLIP(config.clip).requires_grad_(False)
        self.prompts = None
        if config.encoder != "frozen":
            self.prompts = SemanticPrompts(
                config.clip.vision.width, config.clip.embed_dim, config.prompts, config.prompted_layers,
                semantic=config.encoder == "spt", dropout=config.dropout,
            )  # fmt: skip
        self.head = CounterHead(config)
        self.train(self.training)

    @classmethod
    def from_clip(cls, clip: CLIP, **options: Any) -> VLCounter:
        """Build an untrained VLCounter around a copy of ``clip``'s weights; ``options`` are to VLCounterConfig."""
        model = cls(VLCounterConfig(clip=clip.config, **options))
        model.clip.load_state_dict(clip.state_dict())
        return model.to(clip.device)

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Any],
        *,
        vision_heads: int | None = None,
        text_heads: int | None = None,
        taps: tuple[int, ...] = (6, 7, 8),
    ) -> VLCounter:
        """Build a VLCounter from the authors' weights; sizes are read off the shapes.

        Args:
            state_dict: the released file's content, or its entry ``state_dict``.
            vision_heads: heads of the image tower, which shapes do not tell; by default one per 64 channels.
            text_heads: likewise of the text tower.
            taps: the blocks whose outputs feed the skip connections.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: names what is missing, left over or of another shape.
        """
        values, state = convert(state_dict, vision_heads, text_heads)
        model = cls(VLCounterConfig(**values, taps=taps))
        wanted = model.state_dict()
        wrong = sorted(wanted.keys() ^ state.keys())
        wrong += [key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape]
        if wrong:
            raise ValueError(
                f"these are not the weights of a VLCounter: {len(wrong)} entries are missing, unknown or of another "
                f"shape, such as {wrong[:3]}"
            )
        model.load_state_dict(state)
        return model.eval()

    def train(self, mode: bool = True) -> VLCounter:
        """Switch dropout on or off; the frozen CLIP, with its running statistics, always stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def preprocess(self, image: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W) in [0, 1] for CLIP; nothing is resized, since size is what counting lives on.

        Raises:
            ValueError: a side is not a whole number of patches.
        """
        patch = self.config.clip.vision.patch
        if image.shape[-2] % patch or image.shape[-1] % patch or 0 in image.shape[-2:]:
            raise ValueError(
                f"an image of {image.shape[-2]} x {image.shape[-1]} pixels is not a whole number of {patch}-pixel "
                "patches: resize it, or count with density(), which does"
            )
        mean, std = (image.new_tensor(v) for v in (self.config.clip.image_mean, self.config.clip.image_std))
        return (image - rearrange(mean, "c -> c 1 1")) / rearrange(std, "c -> c 1 1")

    @torch.no_grad()
    def encode_names(self, names: Sequence[str], templates: Sequence[str] = PLURAL_TEMPLATES) -> Tensor:
        """Return one unit row per name, (B, E): the mean over templates, normalised before and after.

        Equal names are encoded once. Raises ValueError for no names, an empty name, or a template without ``{}``.
        """
        different = list(dict.fromkeys(names))
        tokens = self.clip.tokenize([text for name in different for text in prompts_for(name, templates)])
        embeddings = torch.cat([self.clip.encode_text(chunk) for chunk in tokens.split(512)])
        rows = prompt_ensemble(rearrange(embeddings, "(k t) e -> k t e", k=len(different))).T
        return rows[[different.index(name) for name in names]]

    def forward(self, pixels: Tensor, text: Tensor) -> dict[str, Any]:
        """Count in images.

        Args:
            pixels: (B, 3, H, W) from ``preprocess``.
            text: (B, E) from ``encode_names``.

        Returns:
            what :class:`CounterHead` returns, with ``tapped`` and ``patches``, the features that it was given.
        """
        tapped, patches = encode_image(self.clip.visual, self.prompts, pixels, text, self.config.taps)
        return self.head(tapped, patches, text) | {"tapped": tapped, "patches": patches}

    def predict(self, image: Tensor, names: Sequence[str], templates: Sequence[str] = PLURAL_TEMPLATES) -> Tensor:
        """Return the density of ``names[i]`` in image i (B, 3, H, W) in [0, 1]: (B, H, W), which sums to the count."""
        output = self(self.preprocess(image), self.encode_names(names, templates))
        return output["density"][:, 0] / DENSITY_SCALE

    @torch.no_grad()
    def density(
        self,
        image: Tensor,
        name: str,
        stride: int | None = None,
        merge: str = "recursive",
        templates: Sequence[str] = PLURAL_TEMPLATES,
    ) -> Tensor:
        """Return the density (H', W') of one image of any size and shape (authors' test protocol).

        The shorter side is resized to the window, then square windows step along the longer one, and their maps are
        merged. ``density(...).sum()`` is the count; it is neither rounded nor kept from falling below zero.

        Args:
            image: (3, H, W) in [0, 1].
            name: what to count.
            stride: pixels between windows; a third of the window by default, 128 of 384.
            merge: "recursive" as the authors', or "uniform" (see ``minilib.layers.windows``).
            templates: sentences around the name.

        Raises:
            ValueError: an empty name, or not an image.
        """
        patch = self.config.clip.vision.patch
        window = patch * min(self.config.grid)
        fitted, _ = fit_to_windows(image.to(self.clip.device), window, patch)

        def crops_to_maps(crops: Tensor) -> Tensor:
            return self.predict(crops, [name] * len(crops), templates)

        return over_windows(crops_to_maps, fitted, window, stride or max(1, window // 3), merge)


# --- Losses ----------------------------------------------------------------------------------------------------------


def count_loss(density: Tensor, target: Tensor) -> Tensor:
    """L_count: mean squared error of density maps (B, 1, H, W), both ``DENSITY_SCALE`` times objects per pixel."""
    return F.mse_loss(density, target)


def sampled_target(target: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the target (B, 1, H, W) at the top-left pixel of every cell, scaled to [0, 1] over the whole batch.

    A batch without any object gives NaN, of which every comparison is false.
    """
    rows, columns = target.shape[-2] // grid[0], target.shape[-1] // grid[1]
    sampled = target[..., ::rows, ::columns]
    return (sampled - sampled.min()) / (sampled.max() - sampled.min())


def rank_loss(similarity: Tensor, target: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """L_rank as the authors' code has it: places of high density shall score higher than those of low density.

    The paper: -sum_k log(sum_pos exp(S / tau) / sum_all exp(S / tau)). The code: no temperature, bands between
    neighbouring thresholds, and places outside a set count as exp(0) = 1 in its sum.

    Args:
        similarity: (B, 1, h, w) after the affine map.
        target: (B, 1, H, W) density.
        thresholds: falling; each neighbouring pair bounds the positives of one band.
    """
    level = sampled_target(target, tuple(similarity.shape[-2:]))
    loss = similarity.new_zeros(())
    for upper, lower in zip(thresholds, thresholds[1:], strict=False):
        positive = (similarity * ((level > lower) & (level < upper))).exp().sum((1, 2, 3))
        negative = (similarity * (level < lower)).exp().sum((1, 2, 3))
        loss = loss - (positive / (positive + negative)).log().mean()
    return loss


def object_loss(similarity: Tensor, target: Tensor) -> Tensor:
    """The code's alternative to ``rank_loss``: places with objects against all places."""
    positive = (similarity * (sampled_target(target, tuple(similarity.shape[-2:])) > 0)).exp().sum((1, 2, 3))
    return -(positive / (positive + similarity.exp().sum((1, 2, 3)))).log().mean()


def nested_rank_loss(
    similarity: Tensor, target: Tensor, thresholds: Sequence[float] = THRESHOLDS, temperature: float = 1.0
) -> Tensor:
    """L_rank as the paper writes it, for comparison: nested sets, true InfoNCE, the largest density of each cell.

    Densities are scaled to [0, 1] in each image; an image without objects adds nothing.
    """
    pooled = F.adaptive_max_pool2d(target, tuple(similarity.shape[-2:]))
    level = pooled / pooled.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    scores = rearrange(similarity / temperature, "b 1 h w -> b (h w)")
    level = rearrange(level, "b 1 h w -> b (h w)")
    loss = similarity.new_zeros(())
    for lower in thresholds[1:]:
        inside = level > lower
        positive = scores.masked_fill(~inside, -torch.inf).logsumexp(1)
        missing = scores.logsumexp(1) - positive
        loss = loss + torch.where(inside.any(1), missing, torch.zeros_like(missing)).mean()
    return loss


def total_loss(output: Mapping[str, Tensor], target: Tensor, rank_weight: float = RANK_WEIGHT) -> dict[str, Tensor]:
    """Return ``loss`` = L_count + rank_weight * L_rank and both parts, of a model's output and a scaled target."""
    count, rank = count_loss(output["density"], target), rank_loss(output["similarity"], target)
    return {"loss": count + rank_weight * rank, "count": count.detach(), "rank": rank.detach()}


# --- Reading counts off ----------------------------------------------------------------------------------------------


def cell_readout(density: Tensor, cell: int = 16, threshold: float = 1.224) -> dict[str, Tensor]:
    """Count as the authors' scripts for CARPK and PUCPR+ do: one less for every cell that holds more than 1.224.

    Args:
        density: (H, W), ``DENSITY_SCALE`` times objects per pixel.
        cell: side of the cells; rows and columns beyond the last whole cell are left out.
        threshold: a literal of those scripts, tuned by hand; it is not part of the test on FSC-147.

    Returns:
        ``count``, ``cells`` (H // cell, W // cell) and ``plain_sum`` over the whole map.
    """
    objects = density / DENSITY_SCALE
    rows, columns = density.shape[0] // cell, density.shape[1] // cell
    whole = objects[: rows * cell, : columns * cell]
    cells = rearrange(whole, "(h i) (w j) -> h w i j", i=cell, j=cell).sum((-2, -1))
    return {"count": cells.sum() - (cells > threshold).sum(), "cells": cells, "plain_sum": objects.sum()}
