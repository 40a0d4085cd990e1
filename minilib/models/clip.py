"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (arXiv 2103.00020).

Two towers, one linear projection each, unit vectors, dot products times a learned multiplier. Parameter names
are those of the released checkpoints. Shapes: B images or texts, E joint dimension, W tower width, L tokens,
h x w patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minilib.layers.contrastive import clip_loss, distill_loss, siglip_loss
from minilib.layers.resampling import resize_grid_positions, resize_images
from minilib.layers.resnet import ModifiedResNet
from minilib.layers.transformer import Transformer
from minilib.tokenizer import get_tokenizer

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ResNetConfig",
    "TextConfig",
    "TextTransformer",
    "ViTConfig",
    "VisionTransformer",
    "clip_loss",
    "distill_loss",
    "prompt_ensemble",
    "siglip_loss",
    "zero_shot_weights",
]

MAX_LOGIT_SCALE = 100.0
"""Section 2.5: the multiplier of the logits is kept from growing beyond this."""


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
    """How pixels become tokens: "patch", one convolution as released, or "conv", several small ones."""
    pool: str = "token"
    """What stands for the image: the class "token" as released, or the "mean" of the patches, whose features then
    lie in the joint space themselves, as dense prediction needs."""


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
    """Stride of each stage, after the stem's 4; smaller ones keep a finer map of small images."""


@dataclass(frozen=True)
class TextConfig:
    """The text tower (section 2.4), and two towers without order or composition that serve as controls."""

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
    kind: str = "transformer"
    """"transformer"; "bag_of_words", the mean of the tokens (Figure 2); "lookup", one vector per caption."""
    lookup_size: int = 65536
    """Rows of the table of the "lookup" kind; captions are assigned by a hash."""


@dataclass(frozen=True)
class CLIPConfig:
    """Everything that fixes the shape of a CLIP."""

    embed_dim: int = 512
    """Dimension E of the joint space."""
    image_size: int = 224
    """Side of the images that ``preprocess`` makes and that the position embeddings are stored for."""
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPConfig:
        """Rebuild a configuration from ``dataclasses.asdict`` of it, also after a trip through JSON."""

        def build(kind: type, entries: Mapping[str, Any]) -> Any:
            return kind(
                **{key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}
            )

        vision = build(ResNetConfig if "blocks" in values["vision"] else ViTConfig, values["vision"])
        return build(cls, {**values, "vision": vision, "text": build(TextConfig, values["text"])})


def conv_stem(patch: int, width: int) -> nn.Sequential:
    """Replace the patch convolution by small ones of stride 2 (arXiv 2106.14881).

    Images (B, 3, R, R') -> (B, W, R / patch, R' / patch). Small data needs it: patches carry no locality.
    """
    halvings = int(math.log2(patch))
    if 2**halvings != patch or patch < 2:
        raise ValueError(
            f"stem='conv' halves the image step by step, so patch must be a power of two, not {patch}"
        )
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
    """Image tower: patches become tokens, a class token reads them, its output is the image (section 2.4)."""

    def __init__(self, config: ViTConfig, embed_dim: int, image_size: int, quick_gelu: bool = True) -> None:
        super().__init__()
        width, side = config.width, image_size // config.patch
        if config.stem not in ("patch", "conv"):
            raise ValueError(f"unknown stem {config.stem!r}: use 'patch' or 'conv'")
        if config.pool not in ("token", "mean"):
            raise ValueError(f"unknown pool {config.pool!r}: use 'token' or 'mean'")
        self.pool = config.pool
        if config.stem == "conv":
            self.conv1: nn.Module = conv_stem(config.patch, width)
        else:
            self.conv1 = nn.Conv2d(3, width, config.patch, stride=config.patch, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(1 + side * side, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.layers, config.heads, quick_gelu)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def tokens(self, patches: Tensor) -> Tensor:
        """Turn the patch map (B, W, h, w) into class token and patches with positions, (B, 1 + h * w, W)."""
        positions = resize_grid_positions(self.positional_embedding, tuple(patches.shape[-2:]))
        class_token = self.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([class_token, rearrange(patches, "b c h w -> b (h w) c")], dim=1)
        return self.ln_pre(x + positions)

    def backbone(self, pixels: Tensor) -> Tensor:
        """Return the class token, or the mean patch, after the last norm, (B, W): the feature before the projection."""
        x = self.tokens(self.conv1(pixels))
        if self.pool == "mean":
            return self.ln_post(self.transformer(x)[:, 1:]).mean(dim=1)
        class_token = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.ln_post(self.transformer(x, at=class_token))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images (B, 3, R, R') to (B, E)."""
        return self.backbone(pixels) @ self.proj

    def patches(self, pixels: Tensor, mode: str = "value") -> Tensor:
        """Return joint-space features of every patch, (B, E, h, w); see ``CLIP.encode_patches``."""
        stem = self.conv1(pixels)
        x = self.tokens(stem)
        x = self.transformer.without_last_mixing(x) if mode == "value" else self.transformer(x)
        return rearrange(self.ln_post(x[:, 1:]) @ self.proj, "b (h w) e -> b e h w", h=stem.shape[-2])

    def stages(self, pixels: Tensor) -> dict[str, Any]:
        """Return ``conv1`` (B, W, h, w), ``ln_pre`` (B, 1 + h * w, W), lists ``blocks`` and ``attention``."""
        patches = self.conv1(pixels)
        tokens = self.tokens(patches)
        return {"conv1": patches, "ln_pre": tokens, **self.transformer.intermediates(tokens)}


def caption_hash(tokens: Tensor, end: Tensor) -> Tensor:
    """Return one integer per row of tokens (B, L) that depends on the ids up to ``end`` (B,) alone."""
    value = torch.zeros_like(end)
    for position, ids in enumerate(tokens.unbind(1)):
        mixed = (value * 1_000_003 + ids + 1) % (2**31 - 1)
        value = torch.where(position <= end, mixed, value)
    return value


class TextTransformer(nn.Module):
    """Text tower: a causal transformer whose output at the end token is the text (section 2.4)."""

    def __init__(self, config: TextConfig, embed_dim: int, quick_gelu: bool = True) -> None:
        super().__init__()
        width = config.width
        if config.kind not in ("transformer", "bag_of_words", "lookup"):
            raise ValueError(
                f"unknown text tower {config.kind!r}: use 'transformer', 'bag_of_words' or 'lookup'"
            )
        self.kind = config.kind
        if config.kind == "lookup":
            self.caption_embedding = nn.Embedding(config.lookup_size, width)
            nn.init.normal_(self.caption_embedding.weight, std=0.02)
        else:
            self.token_embedding = nn.Embedding(config.vocab_size, width)
            nn.init.normal_(self.token_embedding.weight, std=0.02)
        if config.kind == "transformer":
            self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.context, width))
            self.transformer = Transformer(width, config.layers, config.heads, quick_gelu)
            self._initialise_blocks(width, config.layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))

    def _initialise_blocks(self, width: int, layers: int) -> None:
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
        return self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]

    def text_backbone(self, tokens: Tensor) -> Tensor:
        """Return one vector per text before the projection, (B, W), from ids (B, L).

        The end token has the highest id, so ``argmax`` finds it (the first one, where ids are padded with
        it). Attention is causal, so whatever follows the last end token of the batch can be dropped.
        """
        end = tokens.argmax(dim=1)
        # Trimmed before the move: of tokens on the host, the length is known without stalling the device.
        tokens = tokens[:, : int(end.max()) + 1].to(self.text_projection.device, non_blocking=True)
        end = end.to(tokens.device, non_blocking=True)
        if self.kind == "lookup":
            rows = caption_hash(tokens, end) % self.caption_embedding.num_embeddings
            return self.ln_final(self.caption_embedding(rows))
        if self.kind == "bag_of_words":
            position = torch.arange(tokens.shape[1], device=tokens.device)
            is_word = ((position > 0) & (position < end[:, None])).to(self.token_embedding.weight.dtype)
            total = torch.einsum("bl,blw->bw", is_word, self.token_embedding(tokens))
            return self.ln_final(total / is_word.sum(dim=1, keepdim=True).clamp(min=1))
        return self.ln_final(self.transformer(self.embed(tokens), causal=True, at=end))

    def encode_text(
        self, tokens: Tensor, normalize: bool = False, return_intermediates: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Encode token ids (B, L), L up to the context, to (B, E).

        Args:
            tokens: from ``tokenize``; best left on the host, the tower moves what it needs.
            normalize: return unit rows.
            return_intermediates: also return ``text_stages(tokens)``.
        """
        features = self.text_backbone(tokens) @ self.text_projection
        features = F.normalize(features, dim=-1) if normalize else features
        return (features, self.text_stages(tokens)) if return_intermediates else features

    def text_stages(self, tokens: Tensor) -> dict[str, Any]:
        """Return lists ``blocks`` (B, L, W) and ``attention`` (B, H, L, L), and ``ln_final`` (B, L, W)."""
        if self.kind != "transformer":
            return {}
        x = self.embed(tokens.to(self.text_projection.device))
        stages = self.transformer.intermediates(x, causal=True)
        return {**stages, "ln_final": self.ln_final(stages["blocks"][-1])}

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode token ids (B, L) to (B, E)."""
        return self.encode_text(tokens)


class CLIP(TextTransformer):
    """The two towers and the multiplier.

    Released checkpoints keep the text tower's parameters at the top level and the image tower's under
    ``visual``: CLIP is the text tower with an image tower beside it.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config.text, config.embed_dim, config.quick_gelu)
        self.config = config
        vision = config.vision
        self.visual: VisionTransformer | ModifiedResNet
        if isinstance(vision, ViTConfig):
            self.visual = VisionTransformer(vision, config.embed_dim, config.image_size, config.quick_gelu)
        else:
            self.visual = ModifiedResNet(
                vision.blocks, vision.width, vision.heads, config.embed_dim, config.image_size, vision.strides
            )
        self.logit_scale = nn.Parameter(torch.tensor(config.init_logit_scale))
        has_bias = config.init_logit_bias is not None
        self.logit_bias = nn.Parameter(torch.tensor(config.init_logit_bias)) if has_bias else None

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        vision_heads: int | None = None,
        text_heads: int | None = None,
        quick_gelu: bool = True,
    ) -> CLIP:
        """Build a CLIP from weights in OpenAI's layout; the configuration is read off the shapes.

        Args:
            state_dict: as released, also in half precision, with a ``module.`` prefix or with the three extra
                numbers that OpenAI's archives carry.
            vision_heads: heads of the image tower, which shapes do not tell; by default one per 64 channels.
            text_heads: likewise of the text tower.
            quick_gelu: which activation the weights were trained with.

        Returns:
            The model in float32 and in evaluation mode.

        Raises:
            ValueError: the weights are not those of a CLIP; names what is missing or left over.
        """
        from minilib.models.clip_official import clean_state, infer_config

        state = clean_state(state_dict)
        return cls.from_config(infer_config(state, vision_heads, text_heads, quick_gelu), state)

    @classmethod
    def from_open_clip(cls, module: nn.Module) -> CLIP:
        """Build a CLIP that computes what an open_clip ``CLIP`` or ``CustomTextCLIP`` computes.

        Heads, activation and preprocessing are read from the module, and one random pair goes through both
        models. Raises ValueError for towers that this class does not have (timm or Hugging Face towers,
        other pooling).
        """
        from minilib.models.clip_official import assert_same_embeddings, clean_state, open_clip_config

        state = clean_state(module.state_dict())
        model = cls.from_config(open_clip_config(module, state), state)
        assert_same_embeddings(model, module)
        return model

    @classmethod
    def from_config(cls, config: CLIPConfig, state: Mapping[str, Tensor]) -> CLIP:
        """Build a CLIP in evaluation mode with the weights ``state``; ValueError names what does not fit."""
        model = cls(config)
        wanted = model.state_dict()
        missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        misshapen = [key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape]
        if missing or unknown or misshapen:
            raise ValueError(
                f"the weights do not fit: {len(missing)} missing {missing[:3]}, {len(unknown)} not known "
                f"{unknown[:3]}, {len(misshapen)} of another shape {misshapen[:3]}"
            )
        model.load_state_dict(state)
        return model.eval()

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.logit_scale.device

    def preprocess(self, image: Tensor) -> Tensor:
        """Make pixels for the image tower from images (B, 3, H, W), float in [0, 1] or uint8.

        Shortest side to ``config.image_size`` (bicubic), centre crop, normalised; images that already have
        this size are only normalised. Returns (B, 3, R, R) float.
        """
        size, (height, width) = self.config.image_size, image.shape[-2:]
        shortest = min(height, width)
        image = resize_images(image, (size * height // shortest, size * width // shortest))
        top, left = (round((side - size) / 2) for side in image.shape[-2:])
        image = image[..., top : top + size, left : left + size]
        mean, std = image.new_tensor(self.config.image_mean), image.new_tensor(self.config.image_std)
        return (image - rearrange(mean, "c -> c 1 1")) / rearrange(std, "c -> c 1 1")

    def tokenize(self, texts: str | Sequence[str], truncate: bool = False) -> Tensor:
        """Turn texts into ids (B, context) int64 on the host.

        Raises:
            ValueError: a text is longer than the context (unless ``truncate``), there is none, or the model
                embeds other ids than its tokenizer makes.
        """
        tokenizer = get_tokenizer(self.config.text.context, self.config.vocabulary)
        if tokenizer.vocab_size != self.config.text.vocab_size:
            raise ValueError(
                f"the model has {self.config.text.vocab_size} ids but its tokenizer {tokenizer.vocab_size}: "
                "set TextConfig(vocab_size=Tokenizer(...).vocab_size) or CLIPConfig(vocabulary=...) to match"
            )
        return tokenizer(texts, truncate=truncate)

    def encode_image(
        self, pixels: Tensor, normalize: bool = False, return_intermediates: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Encode pixels (B, 3, R, R') to (B, E); any size works, positions are interpolated.

        Args:
            pixels: from ``preprocess``.
            normalize: return unit rows.
            return_intermediates: also return the tower's ``stages``, by name.
        """
        features = self.visual(pixels)
        features = F.normalize(features, dim=-1) if normalize else features
        return (features, self.visual.stages(pixels)) if return_intermediates else features

    def image_backbone(self, pixels: Tensor) -> Tensor:
        """Return image features before the projection, (B, W): what a linear probe reads (appendix A.3)."""
        return self.visual.backbone(pixels)

    def encode_patches(self, pixels: Tensor, normalize: bool = False, mode: str = "value") -> Tensor:
        """Return a map of joint-space features, (B, E, h, w), from pixels (B, 3, R, R').

        Only the pooled output was trained to agree with text. ``mode="value"`` keeps each place to itself in
        the last attention, as MaskCLIP (arXiv 2112.01071) found useful; ``mode="token"`` takes the tower's
        last layer as it is (ResNets: every cell queries the attention pool).
        """
        if mode not in ("value", "token"):
            raise ValueError(f"unknown mode {mode!r}: use 'value' or 'token'")
        features = self.visual.patches(pixels, mode)
        return F.normalize(features, dim=1) if normalize else features

    def forward(self, pixels: Tensor, tokens: Tensor) -> dict[str, Tensor | None]:
        """Encode pairs for a loss.

        Returns:
            ``image_features`` and ``text_features`` (B, E) unit rows, ``logit_scale`` the multiplier exp(t),
            and ``logit_bias`` (None unless configured).
        """
        return {
            "image_features": self.encode_image(pixels, normalize=True),
            "text_features": self.encode_text(tokens, normalize=True),
            "logit_scale": self.logit_scale.exp(),
            "logit_bias": self.logit_bias,
        }

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the multiplier within [1, 100]: call after each optimiser step.

        Clamping the parameter, not the forward pass, leaves it free to come down again.
        """
        self.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))


def prompt_ensemble(embeddings: Tensor) -> Tensor:
    """Average the embeddings (K, T, E) of K classes in T templates to a classifier (E, K) (section 3.1.4).

    Each embedding is normalised before the mean, and the mean again; the first is often forgotten.
    """
    return F.normalize(F.normalize(embeddings, dim=-1).mean(dim=1), dim=-1).T


@torch.no_grad()
def zero_shot_weights(
    model: CLIP,
    names: Sequence[str],
    templates: Sequence[str | Callable[[str], str]] = ("a photo of a {}.",),
    batch_size: int = 512,
) -> Tensor:
    """Write the classifier of K classes from their names: unit columns (E, K) (section 3.1.2).

    Scores of images are ``encode_image(pixels, normalize=True) @ weights``.

    Args:
        model: the CLIP that reads the prompts.
        names: K class names.
        templates: sentences with ``{}`` for the name, or functions of the name; their embeddings are
            averaged.
        batch_size: prompts encoded at once.

    Raises:
        ValueError: no names, no templates, or a template without ``{}``.
    """
    if isinstance(names, str) or not len(names):
        raise ValueError(f"a classifier needs a list of at least one class name, got {names!r}")
    if isinstance(templates, str) or not len(templates):
        raise ValueError(
            f"a classifier needs a list of at least one template, got {templates!r}: '{{}}' is the bare name"
        )
    for template in templates:
        if isinstance(template, str) and "{}" not in template:
            raise ValueError(
                f"template {template!r} has no place for the class name: write {{}} where it goes"
            )
    prompts = [t.replace("{}", name) if isinstance(t, str) else t(name) for name in names for t in templates]
    tokens = model.tokenize(prompts)
    embeddings = torch.cat([model.encode_text(chunk) for chunk in tokens.split(batch_size)])
    return prompt_ensemble(rearrange(embeddings, "(k t) e -> k t e", k=len(names)))
