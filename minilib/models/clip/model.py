"""CLIP: Learning Transferable Visual Models From Natural Language Supervision
(arXiv 2103.00020).

Two towers, one linear projection each, unit vectors, dot products times a learned
multiplier. Parameter names are those of the released checkpoints. Shapes: B images or
texts, E joint dimension, W tower width, L tokens, h x w patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minilib.layers.pixels import check_images, standardise, unit_images
from minilib.layers.resampling import resize_grid_positions, resize_images
from minilib.layers.resnet import ModifiedResNet
from minilib.layers.transformer import Transformer
from minilib.models.clip.config import CLIPConfig, TextConfig, ViTConfig
from minilib.models.clip.official import convert, infer_config, open_clip_config
from minilib.models.loading import load_strictly
from minilib.tokenizer import (
    Tokenizer,
    check_templates,
    check_words,
    get_tokenizer,
)

MAX_LOGIT_SCALE = 100.0
"""Section 2.5: the multiplier of the logits is kept from growing beyond this."""


def conv_stem(patch: int, width: int) -> nn.Sequential:
    """Replace the patch convolution by small ones of stride 2 (arXiv 2106.14881).

    Images (B, 3, R, R') -> (B, W, R / patch, R' / patch). Small data needs it: patches
    carry no locality.
    """
    halvings = patch.bit_length() - 1
    steps: list[nn.Module] = []
    channels = 3
    for step in range(halvings):
        out = max(16, width >> (halvings - 1 - step))
        steps += [
            nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(True),
        ]
        channels = out
    return nn.Sequential(*steps, nn.Conv2d(channels, width, 1))


class VisionTransformer(nn.Module):
    """Image tower: patches become tokens, a class token reads them, its output is the
    image (section 2.4)."""

    def __init__(
        self,
        config: ViTConfig,
        embed_dim: int,
        image_size: int,
        quick_gelu: bool = True,
    ) -> None:
        super().__init__()
        width, side = config.width, image_size // config.patch
        self.pool = config.pool
        if config.stem == "conv":
            self.conv1: nn.Module = conv_stem(config.patch, width)
        else:
            self.conv1 = nn.Conv2d(
                3, width, config.patch, stride=config.patch, bias=False
            )
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(
            scale * torch.randn(1 + side * side, width)
        )
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.layers, config.heads, quick_gelu)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def tokens(
        self, patches: Tensor, resampling: str = "bicubic", double_class: bool = False
    ) -> Tensor:
        """Turn the patch map (B, W, h, w) into tokens with positions (B, 1 + h * w, W).

        The class token comes first, then the patches in row order.

        Args:
            patches: from ``conv1``.
            resampling: how positions are fitted to another grid than the stored one,
                see ``resize_grid_positions``.
            double_class: add the class embedding twice, as the code of DenseCLIP's and
                of VLCounter's authors does.
        """
        grid = (patches.shape[-2], patches.shape[-1])
        positions = resize_grid_positions(
            self.positional_embedding, grid, mode=resampling
        )
        first = self.class_embedding * (2 if double_class else 1)
        class_token = first.expand(len(patches), 1, -1)
        x = torch.cat([class_token, rearrange(patches, "b c h w -> b (h w) c")], dim=1)
        return self.ln_pre(x + positions)

    def backbone(self, pixels: Tensor) -> Tensor:
        """Return the image before the projection, (B, W): the class token or mean patch
        after ``ln_post``."""
        x = self.tokens(self.conv1(pixels))
        if self.pool == "mean":
            return self.ln_post(self.transformer(x)[:, 1:]).mean(dim=1)
        class_token = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.ln_post(self.transformer(x, at=class_token))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images (B, 3, R, R') to (B, E)."""
        return self.backbone(pixels) @ self.proj

    def patches(self, pixels: Tensor, mode: str = "value") -> Tensor:
        """Return joint-space features of every patch, (B, E, h, w); see
        ``CLIP.encode_patches``."""
        stem = self.conv1(pixels)
        x = self.tokens(stem)
        x = (
            self.transformer.without_last_mixing(x)
            if mode == "value"
            else self.transformer(x)
        )
        return rearrange(
            self.ln_post(x[:, 1:]) @ self.proj, "b (h w) e -> b e h w", h=stem.shape[-2]
        )

    def stages(self, pixels: Tensor) -> dict[str, Any]:
        """Return ``conv1`` (B, W, h, w), ``ln_pre`` (B, 1 + h * w, W), lists ``blocks``
        and ``attention``."""
        patches = self.conv1(pixels)
        tokens = self.tokens(patches)
        return {
            "conv1": patches,
            "ln_pre": tokens,
            **self.transformer.intermediates(tokens),
        }


class TextTransformer(nn.Module):
    """Text tower: a causal transformer whose output at the end token is the
    text (section 2.4)."""

    def __init__(
        self, config: TextConfig, embed_dim: int, quick_gelu: bool = True
    ) -> None:
        super().__init__()
        self._make_reader(config, quick_gelu)
        self.ln_final = nn.LayerNorm(config.width)
        scale = config.width**-0.5
        self.text_projection = nn.Parameter(
            scale * torch.randn(config.width, embed_dim)
        )

    def _make_reader(self, config: TextConfig, quick_gelu: bool) -> None:
        """Make what turns ids into one vector; chapter 1's controls have another."""
        width, layers = config.width, config.layers
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.positional_embedding = nn.Parameter(
            0.01 * torch.randn(config.context, width)
        )
        self.transformer = Transformer(width, layers, config.heads, quick_gelu)
        into_residual = width**-0.5 * (2 * layers) ** -0.5
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=into_residual)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=into_residual)

    def embed(self, tokens: Tensor) -> Tensor:
        """Turn ids (B, L) into embeddings with positions, (B, L, W)."""
        context = len(self.positional_embedding)
        if tokens.shape[1] > context:
            raise ValueError(
                f"texts of {tokens.shape[1]} tokens do not fit a context of {context}: "
                "shorten them, or tokenize with truncate=True"
            )
        return (
            self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        )

    def text_backbone(self, tokens: Tensor) -> Tensor:
        """Return the output at each text's end, not projected: ids (B, L) -> (B, W)."""
        tokens, end = self.trim(tokens)
        return self.ln_final(self.transformer(self.embed(tokens), causal=True, at=end))

    def trim(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids (B, L') up to the batch's last end, and where each text ends (B,).

        The end token has the highest id, so ``argmax`` finds it (the first one, where
        ids are padded with it). Attention is causal, so whatever follows the last end
        token of the batch can be dropped.
        """
        end = tokens.argmax(dim=1)
        # Trimmed before the move: of tokens on the host, the length is known without
        # stalling the device. A program that is exported has one length for all.
        if not torch.compiler.is_exporting():
            tokens = tokens[:, : int(end.max()) + 1]
        tokens = tokens.to(self.text_projection.device, non_blocking=True)
        return tokens, end.to(tokens.device, non_blocking=True)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Encode token ids (B, L), L up to the context, to (B, E).

        Args:
            tokens: from ``tokenize``; best left on the host, the tower
                moves what it needs.
            normalize: return unit rows.
        """
        features = self.text_backbone(tokens) @ self.text_projection
        return F.normalize(features, dim=-1) if normalize else features

    def text_stages(self, tokens: Tensor) -> dict[str, Any]:
        """Return lists ``blocks`` (B, L, W) and ``attention`` (B, H, L, L), and
        ``ln_final`` (B, L, W)."""
        x = self.embed(tokens.to(self.text_projection.device))
        stages = self.transformer.intermediates(x, causal=True)
        return {**stages, "ln_final": self.ln_final(stages["blocks"][-1])}

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode token ids (B, L) to (B, E)."""
        return self.encode_text(tokens)


class CLIPOutput(NamedTuple):
    """What :class:`CLIP` returns, in the order in which its losses take it."""

    image_features: Tensor
    """(B, E) unit rows."""
    text_features: Tensor
    """(B, E) unit rows."""
    logit_scale: Tensor
    """The multiplier exp(t), a scalar."""
    logit_bias: Tensor | None = None
    """A scalar for SigLIP's loss; None unless configured."""


class CLIP(TextTransformer):
    """The two towers and the multiplier.

    Released checkpoints keep the text tower's parameters at the top level and the image
    tower's under ``visual``: CLIP is the text tower with an image tower beside it.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config.text, config.embed_dim, config.quick_gelu)
        self.config = config
        vision = config.vision
        self.visual: VisionTransformer | ModifiedResNet
        if isinstance(vision, ViTConfig):
            self.visual = VisionTransformer(
                vision, config.embed_dim, config.image_size, config.quick_gelu
            )
        else:
            self.visual = ModifiedResNet(
                vision.blocks,
                vision.width,
                vision.heads,
                config.embed_dim,
                config.image_size,
                vision.strides,
            )
        self.logit_scale = nn.Parameter(torch.tensor(config.init_logit_scale))
        has_bias = config.init_logit_bias is not None
        self.logit_bias = (
            nn.Parameter(torch.tensor(config.init_logit_bias)) if has_bias else None
        )

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        vision_heads: int | None = None,
        text_heads: int | None = None,
        quick_gelu: bool = True,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> CLIP:
        """Build a CLIP from weights in OpenAI's layout, inferring the configuration.

        Args:
            state_dict: as released, or a whole training file; also in half precision,
                with a ``module.`` prefix, with the three extra numbers that OpenAI's
                archives carry, or in Hugging Face's layout.
            vision_heads: heads of the image tower, which cannot be inferred from
                shapes; by default one per 64 channels, 16 in ViT-H and larger.
            text_heads: likewise of the text tower; by default one per 64 channels.
            quick_gelu: which activation the weights were trained with.
            image_mean: of the pixels they were trained with, by default OpenAI's.
            image_std: likewise.

        Returns:
            The model in float32 and in evaluation mode.

        Raises:
            ValueError: the weights are not those of a CLIP; names what is
                missing or left over.
        """
        state = convert(state_dict)
        config = infer_config(
            state, vision_heads, text_heads, quick_gelu, image_mean, image_std
        )
        return cls.from_config(config, state)

    @classmethod
    def from_open_clip(cls, module: nn.Module) -> CLIP:
        """Build a CLIP that computes what an open_clip ``CLIP`` or
        ``CustomTextCLIP`` computes.

        Heads, activation and preprocessing are read from the module, and one random
        pair goes through both models. Raises ValueError for towers that this class does
        not have (timm or Hugging Face towers, other pooling).
        """
        state = convert(module.state_dict())
        model = cls.from_config(open_clip_config(module, state), state)
        _assert_same_embeddings(model, module)
        return model

    @classmethod
    def from_config(cls, config: CLIPConfig, state: Mapping[str, Tensor]) -> CLIP:
        """Build a CLIP in evaluation mode with the weights ``state``; ValueError names
        what does not fit."""
        return load_strictly(cls(config), state, "a CLIP").eval()

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.logit_scale.device

    def preprocess(self, image: Tensor) -> Tensor:
        """Make pixels for the image tower from images (B, 3, H, W), float in
        [0, 1] or uint8.

        Shortest side to ``config.image_size`` (bicubic), centre crop, normalised;
        images that already have this size are only normalised. Returns
        (B, 3, R, R) float.

        Raises:
            ValueError: not images, see :func:`minilib.layers.pixels.check_images`.
        """
        check_images(image, self)
        size, (height, width) = self.config.image_size, image.shape[-2:]
        shortest = min(height, width)
        image = resize_images(
            image, (size * height // shortest, size * width // shortest)
        )
        top, left = (round((side - size) / 2) for side in image.shape[-2:])
        return self._standardised(image[..., top : top + size, left : left + size])

    def standardise(self, image: Tensor) -> Tensor:
        """Make pixels from images (B, 3, R, R'), uint8 or float in [0, 1], at their own
        size.

        Larger images give finer maps. Raises ValueError as ``preprocess`` does.
        """
        return self._standardised(unit_images(image, self))

    def _standardised(self, image: Tensor) -> Tensor:
        config, dtype = self.config, self.logit_scale.dtype
        return standardise(image, config.image_mean, config.image_std, dtype)

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns texts into the ids that the text tower reads.

        Raises:
            ValueError: the model embeds other ids than its tokenizer makes.
        """
        tokenizer = get_tokenizer(self.config.text.context, self.config.vocabulary)
        if tokenizer.vocab_size != self.config.text.vocab_size:
            raise ValueError(
                f"the model has {self.config.text.vocab_size} ids but its tokenizer "
                f"{tokenizer.vocab_size}: set "
                "TextConfig(vocab_size=Tokenizer(...).vocab_size) or "
                "CLIPConfig(vocabulary=...) to match"
            )
        return tokenizer

    def tokenize(self, texts: str | Sequence[str], truncate: bool = False) -> Tensor:
        """Turn texts into ids (B, context) int64 on the host.

        Raises:
            ValueError: a text is longer than the context (unless ``truncate``), there
                is none, or the model embeds other ids than its tokenizer makes.
        """
        return self.tokenizer(texts, truncate=truncate)

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """Encode pixels (B, 3, R, R') to (B, E); any size works, positions
        are interpolated.

        Args:
            pixels: from ``preprocess``.
            normalize: return unit rows.
        """
        features = self.visual(pixels)
        return F.normalize(features, dim=-1) if normalize else features

    def image_backbone(self, pixels: Tensor) -> Tensor:
        """Return image features before the projection, (B, W): what a linear probe
        reads (appendix A.3)."""
        return self.visual.backbone(pixels)

    def encode_patches(
        self, pixels: Tensor, normalize: bool = False, mode: str = "value"
    ) -> Tensor:
        """Return a map of joint-space features, (B, E, h, w), from
        pixels (B, 3, R, R').

        Mostly, only the pooled output was trained to agree with text. ``mode="value"``
        keeps each place to itself in the last attention, as MaskCLIP (arXiv 2112.01071)
        found useful; ``mode="token"`` takes the tower's last layer as it is (ResNets:
        every cell queries the attention pool).
        """
        if mode not in ("value", "token"):
            raise ValueError(f"unknown mode {mode!r}: use 'value' or 'token'")
        features = self.visual.patches(pixels, mode)
        return F.normalize(features, dim=1) if normalize else features

    def forward(  # type: ignore[override]  # the text tower's takes texts alone
        self, pixels: Tensor, tokens: Tensor
    ) -> CLIPOutput:
        """Encode pairs of pixels (B, 3, R, R') and ids (B, L) for a loss.

        The losses take the fields in order: ``clip_loss(*model(pixels, tokens))``.
        """
        return CLIPOutput(
            self.encode_image(pixels, normalize=True),
            self.encode_text(tokens, normalize=True),
            self.logit_scale.exp(),
            self.logit_bias,
        )

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the multiplier within [1, 100]: call after each optimiser step.

        Clamping the parameter, not the forward pass, leaves it free to come down again.
        """
        self.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))


@torch.no_grad()
def _assert_same_embeddings(model: CLIP, module: Any) -> None:
    """Send one random pair through a converted model and its origin; ValueError
    if they disagree.

    open_clip has many switches that leave no trace in the weights
    (masks, norms, pooling): this catches them all.
    """
    generator = torch.Generator().manual_seed(0)
    size, text = model.config.image_size, model.config.text
    pixels = torch.randn(1, 3, size, size, generator=generator)
    tokens = torch.zeros(1, text.context, dtype=torch.long)
    tokens[0, :3] = torch.tensor([text.vocab_size - 2, 1, text.vocab_size - 1])
    first, training = next(module.parameters()), module.training
    module.eval()
    theirs = {
        "image": module.encode_image(pixels.to(first)),
        "text": module.encode_text(tokens.to(first.device)),
    }
    module.train(training)
    ours = {"image": model.encode_image(pixels), "text": model.encode_text(tokens)}
    for tower in ours:
        difference = (
            (ours[tower] - theirs[tower].float().cpu()).norm() / ours[tower].norm()
        ).item()
        if not difference < 0.01:
            raise ValueError(
                f"the {tower} tower of this {type(module).__name__} computes "
                f"something else than the paper's ({difference:.0%} difference after "
                "conversion): it has an option that CLIP does not have"
            )


def prompt_ensemble(embeddings: Tensor) -> Tensor:
    """Average the embeddings (K, T, E) of K classes in T templates to a classifier
    (E, K) (section 3.1.4).

    Each embedding is normalised before the mean, and the mean again; the first is
    often forgotten.
    """
    return F.normalize(F.normalize(embeddings, dim=-1).mean(dim=1), dim=-1).T


@torch.no_grad()
def zero_shot_weights(
    model: CLIP,
    names: Sequence[str],
    templates: Sequence[str | Callable[[str], str]] = ("a photo of a {}.",),
    batch_size: int = 512,
    allow_duplicates: bool = False,
) -> Tensor:
    """Write the classifier of K classes from their names: unit columns (E, K)
    (section 3.1.2).

    Scores of images are ``encode_image(pixels, normalize=True) @ weights``.

    Args:
        model: the CLIP that reads the prompts.
        names: K class names.
        templates: sentences with ``{}`` for the name, or functions of the name; their
            embeddings are averaged.
        batch_size: prompts encoded at once.
        allow_duplicates: let two names be the same tokens; the first one wins.

    Raises:
        ValueError: no names, an empty one, or two that are the same tokens; no
            templates, or one without ``{}``.
    """
    names = check_words(names, model.tokenizer, "class name", allow_duplicates)
    check_templates(templates)
    prompts = [
        t.replace("{}", name) if isinstance(t, str) else t(name)
        for name in names
        for t in templates
    ]
    tokens = model.tokenize(prompts)
    embeddings = torch.cat(
        [model.encode_text(chunk) for chunk in tokens.split(batch_size)]
    )
    return prompt_ensemble(rearrange(embeddings, "(k t) e -> k t e", k=len(names)))
