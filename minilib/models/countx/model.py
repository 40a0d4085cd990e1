"""CounTX: Open-world Text-specified Object Counting (arXiv 2306.01851).

CLIP's patches ask, one sentence answers, convolutions draw a density map whose sum is
the count. Parameter names are those of the released checkpoints. Shapes: B images, R
side of the crop that the image tower sees, h x w patches, N = h * w, L text tokens, S
sentences, E joint dimension, D side of the density map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minilib.layers.pixels import standardise, unit_images
from minilib.layers.resampling import resize_grid_positions
from minilib.layers.windows import fit_to_windows, over_windows
from minilib.models.clip import CLIP, VisionTransformer
from minilib.models.countx.config import CounTXConfig
from minilib.models.countx.official import infer_config
from minilib.models.loading import load_strictly, unwrapped
from minilib.tokenizer import check_words

DENSITY_SCALE = 60.0
"""The network is trained to say 60 times the density (authors' code; the paper does
not mention it)."""
KEPT_PIXELS = 0.8
"""Share of the pixels that the authors' loss looks at in one step."""


def sincos_positions(dim: int, grid: int) -> Tensor:
    """Return fixed position embeddings (grid * grid, dim), patches in row order.

    The first half of the channels encodes the column, the second the row; each is
    [sin(p w_i), cos(p w_i)] with w_i = 10000 ** (-4 i / dim), i = 0 ... dim / 4 - 1.
    """
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, dim / 2)
    column, row = wave.repeat(grid, 1), wave.repeat_interleave(grid, dim=0)
    return torch.cat([column, row], dim=1).float()


class PatchAttention(nn.Module):
    """Self-attention among the patches: tokens (B, N, E) -> (B, N, E)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the patches."""
        q, k, v = rearrange(
            self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads
        )
        return self.proj(
            rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        )


class TextAttention(nn.Module):
    """Cross-attention: patches ask, sentences answer.

    With one sentence the softmax runs over one key and is the constant 1, so every
    patch gets the same vector ``proj(wv(y))`` whatever it asked: a bias made of text.
    ``wq``, ``wk`` and the norm before them never learn.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv = (
            nn.Linear(dim, dim),
            nn.Linear(dim, dim),
            nn.Linear(dim, dim),
        )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Read the sentences y (B, S, E) at the patches x (B, N, E) -> (B, N, E)."""
        q, k, v = (
            rearrange(t, "b n (h d) -> b h n d", h=self.heads)
            for t in (self.wq(x), self.wk(y), self.wv(y))
        )
        return self.proj(
            rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        )

    def weights(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the attention (B, H, N, S) of patches to sentences;
        rows sum to one."""
        q, k = (
            rearrange(t, "b n (h d) -> b h n d", h=self.heads)
            for t in (self.wq(x), self.wk(y))
        )
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)


class InteractionBlock(nn.Module):
    """One block of the feature interaction module: self-attention, cross-attention to
    the text, MLP; all pre-norm."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm0, self.norm1, self.norm2 = (
            nn.LayerNorm(dim, eps=1e-6) for _ in range(3)
        )
        self.selfattn = PatchAttention(dim, heads)
        self.attn = TextAttention(dim, heads)
        inside = int(dim * mlp_ratio)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(dim, inside), "fc2": nn.Linear(inside, dim)}
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Transform patches x (B, N, E) with sentences y (B, S, E), which
        are not normalised."""
        x = x + self.selfattn(self.norm0(x))
        x = x + self.attn(self.norm1(x), y)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class CounTXOutput(NamedTuple):
    """What :class:`CounTX` returns: the density, and the steps on the way to it."""

    density: Tensor
    """(B, D, D), 60 times objects per pixel."""
    patches: Tensor
    """(B, E, h, w), the image in the joint space."""
    text: Tensor
    """(B, S, E), the sentences in the joint space."""
    interaction: Tensor
    """(B, E, h, w), the patches after they have read the sentences."""


class CounTX(nn.Module):
    """From an image and a sentence to a density map."""

    def __init__(self, config: CounTXConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CounTXConfig()
        dim, width = config.clip.embed_dim, config.decoder_width
        self.fim_pos_embed = nn.Parameter(
            sincos_positions(dim, config.grid)[None], requires_grad=False
        )
        blocks = (
            InteractionBlock(dim, config.heads, config.mlp_ratio)
            for _ in range(config.blocks)
        )
        self.fim_blocks = nn.ModuleList(blocks)
        self.fim_norm = nn.LayerNorm(dim, eps=1e-6)
        for module in self.fim_blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for step in range(config.doublings):
            layers = [
                nn.Conv2d(width if step else dim, width, 3, padding=1),
                nn.GroupNorm(config.groups, width),
            ]
            layers.append(nn.ReLU())
            if step == config.doublings - 1:
                layers.append(nn.Conv2d(width, 1, 1))  # commutes with the last doubling
            setattr(self, f"decode_head{step}", nn.Sequential(*layers))
        self.clip_model = CLIP(config.clip)
        self.freeze()

    @classmethod
    def from_clip(cls, clip: CLIP, config: CounTXConfig | None = None) -> CounTX:
        """Put a fresh head on a copy of ``clip``; ``config`` must fit its towers."""
        model = cls(config or CounTXConfig(clip=clip.config))
        load_strictly(model.clip_model, clip.state_dict(), "the config's CLIP")
        return model.to(clip.device)

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Any],
        *,
        heads: int = 16,
        first_grid: int = 24,
        groups: int = 8,
        vision_heads: int | None = None,
        text_heads: int | None = None,
    ) -> CounTX:
        """Build a CounTX from the authors' weights, in evaluation mode.

        What cannot be inferred from shapes is passed in where it differs from the
        released model.

        Args:
            state_dict: the authors' file or its entry ``model``: 367 names in the
                released size.
            heads: heads of an interaction block.
            first_grid: side of the map that the decoder starts from.
            groups: groups of the decoder's normalisations.
            vision_heads: heads of the image tower; by default one per 64 channels.
            text_heads: likewise of the text tower.

        Raises:
            ValueError: weights are missing, left over, or of another shape.
        """
        state = unwrapped(state_dict)
        config = infer_config(
            state, heads, first_grid, groups, vision_heads, text_heads
        )
        return load_strictly(cls(config), state, "a CounTX").eval()

    def freeze(self, image_tower: bool = False) -> CounTX:
        """Freeze the text tower, as the paper does; with ``image_tower`` that tower
        too, as an ablation."""
        for name, parameter in self.clip_model.named_parameters():
            parameter.requires_grad_(name.startswith("visual.") and not image_tower)
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.fim_norm.weight.device

    def preprocess(self, crop: Tensor, antialias: bool = True) -> Tensor:
        """Make pixels for the image tower from square crops (B, 3, D, D), uint8 or
        float in [0, 1] -> (B, 3, R, R).

        Bicubic without clamping. ``antialias=False`` is what the authors' very line
        does under torchvision 0.15 and 0.16; it costs accuracy in silence.

        Raises:
            ValueError: not images, see :func:`minilib.layers.pixels.check_images`.
        """
        crop, clip = unit_images(crop, self), self.config.clip
        size = clip.image_size
        if crop.shape[-2:] != (size, size):
            crop = F.interpolate(
                crop, size=(size, size), mode="bicubic", antialias=antialias
            )
        dtype = self.fim_norm.weight.dtype
        return standardise(crop, clip.image_mean, clip.image_std, dtype)

    def tokenize(self, descriptions: str | Sequence[str]) -> Tensor:
        """Turn descriptions into ids (B, L). Raises ValueError for an empty one: there
        would be nothing to count."""
        texts = [descriptions] if isinstance(descriptions, str) else descriptions
        tokenizer = self.clip_model.tokenizer
        return tokenizer(check_words(texts, tokenizer, "description", True))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the patches of pixels (B, 3, R, R') in the joint space, (B, E, h, w).

        The class token is dropped, and CLIP's last norm ``ln_post`` is skipped
        (authors' code): its parameters ride along in the checkpoint but never get a
        gradient. Nothing is scaled to unit length.
        """
        tower = self.clip_model.visual
        assert isinstance(tower, VisionTransformer)  # the config allows no other
        stem = tower.conv1(pixels)
        patches = tower.transformer(tower.tokens(stem))[:, 1:] @ tower.proj
        return rearrange(patches, "b (h w) e -> b e h w", h=stem.shape[-2])

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return one vector a sentence, (B, S, E), from ids (B, L) or (B, S, L); not
        scaled to unit length."""
        tokens = tokens[:, None] if tokens.ndim == 2 else tokens
        features = self.clip_model.encode_text(rearrange(tokens, "b s l -> (b s) l"))
        return rearrange(features, "(b s) e -> b s e", b=len(tokens))

    def interact(self, patches: Tensor, text: Tensor) -> Tensor:
        """Tell the patches (B, E, h, w) what to look for, text
        (B, S, E) -> (B, E, h, w)."""
        h, w = patches.shape[-2:]
        # resampling keeps the first row: give it one
        no_class = F.pad(self.fim_pos_embed[0], (0, 0, 1, 0))
        positions = resize_grid_positions(no_class, (h, w))[1:]
        x = rearrange(patches, "b e h w -> b (h w) e") + positions
        for block in self.fim_blocks:
            x = block(x, text)
        return rearrange(self.fim_norm(x), "b (h w) e -> b e h w", h=h)

    def decode(self, features: Tensor) -> Tensor:
        """Draw the density (B, D, D') from the map (B, E, h, w); it may be negative,
        there is no last activation."""
        first = [
            round(self.config.first_grid * side / self.config.grid)
            for side in features.shape[-2:]
        ]
        x = F.interpolate(features, size=first, mode="bilinear")
        for step in range(self.config.doublings):
            x = F.interpolate(
                getattr(self, f"decode_head{step}")(x), scale_factor=2, mode="bilinear"
            )
        return x[:, 0]

    def forward(self, pixels: Tensor, tokens: Tensor) -> CounTXOutput:
        """Draw the density of what the texts name in the images.

        Args:
            pixels: (B, 3, R, R) from ``preprocess``.
            tokens: (B, L) from ``tokenize``; several sentences a row, (B, S, L), become
                several keys of the cross-attention.
        """
        patches, text = self.encode_image(pixels), self.encode_text(tokens)
        interaction = self.interact(patches, text)
        return CounTXOutput(self.decode(interaction), patches, text, interaction)

    def predict(self, crops: Tensor, descriptions: str | Sequence[str]) -> Tensor:
        """Return the density (B, D, D) of square crops (B, 3, D, D) in [0, 1]; it
        sums to the count."""
        texts = (
            [descriptions] * len(crops)
            if isinstance(descriptions, str)
            else descriptions
        )
        output: CounTXOutput = self(self.preprocess(crops), self.tokenize(texts))
        return output.density / DENSITY_SCALE

    @torch.no_grad()
    def density(
        self,
        image: Tensor,
        description: str,
        stride: int | None = None,
        merge: str = "recursive",
        at_once: int = 8,
    ) -> Tensor:
        """Return the density (H', W') of one image of any size and shape
        (authors' test protocol).

        The image's shorter side is resized to the window D, then square windows step
        along the longer side, ``stride`` apart (a third of D by default, 128 of 384),
        and their maps are merged. ``density(...).sum()`` is the count.

        Args:
            image: (3, H, W), uint8 or float in [0, 1].
            description: what to count.
            stride: pixels between windows.
            merge: "recursive" as the authors', or "uniform" (see
                ``minilib.layers.windows``).
            at_once: windows per forward pass.

        Raises:
            ValueError: an empty description, or not an image.
        """
        window = self.config.window
        patch = self.config.clip.vision.reduction
        fitted, _ = fit_to_windows(image.to(self.device), window, patch)
        text = self.encode_text(self.tokenize(description))

        def crops_to_maps(crops: Tensor) -> Tensor:
            patches = self.encode_image(self.preprocess(crops))
            return (
                self.decode(self.interact(patches, text.expand(len(crops), -1, -1)))
                / DENSITY_SCALE
            )

        return over_windows(
            crops_to_maps, fitted, window, stride or max(1, window // 3), merge, at_once
        )

    def count(
        self,
        image: Tensor,
        description: str,
        stride: int | None = None,
        merge: str = "recursive",
        at_once: int = 8,
    ) -> float:
        """Return how many objects of one image (3, H, W) the description means.

        Neither rounded nor kept from falling below zero. Arguments as in
        :meth:`density`.
        """
        return self.density(image, description, stride, merge, at_once).sum().item()


def density_loss(output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over images and pixels of mask * (output - target)^2, in float32.

    The paper's loss is the plain mean squared error. The authors' code leaves a random
    fifth of the pixels out but still divides by all of them, so its expectation is 0.8
    times the paper's.

    Args:
        output: (B, H, W) densities times 60.
        target: (B, H, W) likewise.
        mask: (H, W) of zeros and ones, one for the whole batch; None = all ones.

    Raises:
        ValueError: output and target differ in shape.
    """
    if output.shape != target.shape:
        raise ValueError(
            f"output {tuple(output.shape)}, target {tuple(target.shape)}: expected "
            "the same shape"
        )
    squared = (output.float() - target.float()).square()
    return (squared if mask is None else squared * mask).mean()


def random_pixel_mask(
    shape: tuple[int, int], generator: torch.Generator, keep: float = KEPT_PIXELS
) -> Tensor:
    """Draw the mask of one step, (H, W) of zeros and ones, on the
    generator's device."""
    return (
        torch.rand(shape, generator=generator, device=generator.device) < keep
    ).float()
