"""GroupViT: Semantic Segmentation Emerges from Text Supervision (arXiv 2202.11094).

A Vision Transformer whose tokens are merged, stage by stage, into ever fewer segments;
their mean is compared with captions. Nobody tells it where anything is. Shapes: B
images of H x W pixels, N = h w patches, S group tokens and G segments of a stage, C
channels, K prompts of a caption, E joint dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minilib.layers.pixels import standardise, unit_images
from minilib.layers.transformer import ResidualAttentionBlock, SelfAttention
from minilib.models.clip import TextTransformer
from minilib.models.clip.config import TextConfig
from minilib.models.clip.model import MAX_LOGIT_SCALE, conv_stem
from minilib.models.groupvit.config import AssignConfig, GroupViTConfig
from minilib.models.groupvit.grouping import (
    Assignment,
    GroupingBlock,
    TokenMixer,
    change_width,
)
from minilib.models.groupvit.official import (
    convert,
    infer_config,
    transformers_options,
)
from minilib.models.loading import load_strictly
from minilib.tokenizer import Tokenizer, check_templates, check_words, get_tokenizer


class GroupProjector(nn.Module):
    """What a stage's group tokens learn from those of the stage before: a norm, a
    mixture over tokens, and a change of width where there is one."""

    def __init__(self, width: int, tokens: int, out: int, out_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = TokenMixer(tokens, width // 2, out)
        self.reduction = change_width(width, out_width)

    def forward(self, group_tokens: Tensor) -> Tensor:
        """Transform (B, S, C) -> (B, S', C')."""
        return self.reduction(self.mixer(self.norm(group_tokens)))


def drop_path(
    x: Tensor, rate: float, generator: torch.Generator | None = None
) -> Tensor:
    """Leave a residual branch (B, ...) out for a share ``rate`` of the images, and
    scale it up for the others (stochastic depth, arXiv 1603.09382)."""
    if not rate:
        return x
    kept = torch.empty(len(x), *[1] * (x.ndim - 1), device=x.device)
    return x * kept.bernoulli_(1 - rate, generator=generator).to(x.dtype) / (1 - rate)


class Stage(nn.Module):
    """Transformer blocks over tokens and group tokens together, then a grouping.

    The last stage has neither group tokens nor a grouping.

    Args:
        config: of the encoder.
        number: of the stage, from 0.
        drop_rates: of its blocks, see :func:`drop_path`.
    """

    group_tokens: nn.Parameter | None
    group_projector: GroupProjector | None
    grouping: GroupingBlock | None

    def __init__(
        self, config: GroupViTConfig, number: int, drop_rates: Sequence[float]
    ) -> None:
        super().__init__()
        width, heads = config.widths[number], config.heads[number]
        tokens = config.group_tokens[number]
        self.drop_rates = list(drop_rates)
        blocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, quick_gelu=False)
            for _ in range(config.depths[number])
        )
        # To the type checker, a ModuleList holds modules of any kind.
        self.blocks = cast("Sequence[ResidualAttentionBlock]", blocks)
        self.group_tokens, self.group_projector, self.grouping = None, None, None
        if not tokens:
            return
        self.group_tokens = nn.Parameter(torch.zeros(tokens, width))
        if number:
            self.group_projector = GroupProjector(
                config.widths[number - 1],
                config.group_tokens[number - 1],
                tokens,
                width,
            )
        self.grouping = GroupingBlock(
            width,
            heads,
            tokens,
            config.output_groups[number],
            config.assign,
            config.widths[number + 1],
        )

    def start(self, tokens: Tensor, previous: Tensor | None) -> Tensor:
        """Append the group tokens to tokens (B, N, C): (B, N + S, C).

        Args:
            tokens: (B, N, C).
            previous: the group tokens of the stage before, (B, S', C').
        """
        if self.group_tokens is None:
            return tokens
        groups = self.group_tokens.expand(len(tokens), -1, -1)
        if self.group_projector is not None:
            groups = groups + self.group_projector(previous)
        return torch.cat([tokens, groups.to(tokens.dtype)], dim=1)

    def mix(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform tokens and group tokens (B, N + S, C) by the blocks."""
        for block, rate in zip(self.blocks, self.drop_rates, strict=True):
            rate = rate if self.training else 0.0
            x = x + drop_path(block.attn(block.ln_1(x)), rate, generator)
            x = x + drop_path(block.mlp(block.ln_2(x)), rate, generator)
        return x

    def forward(
        self,
        tokens: Tensor,
        previous: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor | None, Assignment | None]:
        """Transform tokens (B, N, C) into segments (B, G, C'), or in the last stage
        into tokens (B, N, C).

        Args:
            tokens: (B, N, C).
            previous: the group tokens of the stage before, as its blocks left them.
            noise: (B, G, N) of Gumbel(0, 1) for the grouping.
            generator: of noise that is not given, and of skipped blocks.

        Returns:
            the segments; this stage's group tokens (B, S, C); who went where.
        """
        x = self.mix(self.start(tokens, previous), generator)
        if self.grouping is None:
            return x, None, None
        tokens, groups = x.split([tokens.shape[1], x.shape[1] - tokens.shape[1]], dim=1)
        segments, assignment = self.grouping(tokens, groups, noise, generator)
        return segments, groups, assignment


class EncoderOutput(NamedTuple):
    """What :class:`ImageEncoder` returns."""

    segments: Tensor
    """(B, G, C), one vector for each segment of the last stage."""
    assignments: list[Assignment]
    """For each grouping, who went where: first patches, then segments."""

    @property
    def pooled(self) -> Tensor:
        """(B, C): the mean over segments, empty ones too."""
        return self.segments.mean(dim=1)


class ImageEncoder(nn.Module):
    """Patches to segments (Figure 2 a): stages with grouping, and a last one without.

    There is no class token.
    """

    def __init__(self, config: GroupViTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch, count = config.widths[0], config.patch, len(config.depths)
        if config.stem == "conv":
            self.patch_embed: nn.Module = conv_stem(patch, width)
        else:
            self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.patch_norm = nn.LayerNorm(width)
        self.positions = nn.Parameter(torch.zeros(config.grid**2, width))
        last = max(1, sum(config.depths) - 1)
        rates = iter(config.drop_path * block / last for block in range(last + 1))
        stages = nn.ModuleList(
            Stage(config, number, list(islice(rates, config.depths[number])))
            for number in range(count)
        )
        self.stages = cast("Sequence[Stage]", stages)
        self.norm = nn.LayerNorm(config.widths[-1])
        self._initialise()

    def _initialise(self) -> None:
        """Linear layers, positions and the first stage's group tokens start small;
        later group tokens start as what the stage before says."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, SelfAttention):
                nn.init.trunc_normal_(module.in_proj_weight, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        assert self.stages[0].group_tokens is not None  # the config asks for them
        nn.init.trunc_normal_(self.stages[0].group_tokens, std=0.02)

    def patches(self, pixels: Tensor) -> Tensor:
        """Turn pixels (B, 3, H, W) into tokens with positions, (B, N, C), in row order.

        Raises:
            ValueError: a side is not a whole number of patches.
        """
        patch, side = self.config.patch, self.config.grid
        height, width = pixels.shape[-2:]
        if height % patch or width % patch or not (height and width):
            raise ValueError(
                f"an image of {height} x {width} pixels is not a whole number of "
                f"patches of {patch}: resize, crop or pad it to multiples of {patch}"
            )
        x = rearrange(self.patch_embed(pixels), "b c h w -> b (h w) c")
        grid = height // patch, width // patch
        positions: Tensor = self.positions
        if grid != (side, side):
            # Bicubic without antialiasing, as the authors do.
            cells = rearrange(positions, "(h w) c -> 1 c h w", h=side).float()
            cells = F.interpolate(cells, grid, mode="bicubic", align_corners=False)
            positions = rearrange(cells, "1 c h w -> (h w) c").to(positions.dtype)
        return self.patch_norm(x) + positions

    def forward(
        self,
        pixels: Tensor,
        generator: torch.Generator | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> EncoderOutput:
        """Encode images (B, 3, H, W) whose sides are multiples of the patch.

        Positions are interpolated for another size than ``config.image_size``.

        Args:
            pixels: from ``GroupViT.preprocess``.
            generator: draws Gumbel noise and skipped blocks in training, on the device
                of the pixels; None takes torch's own.
            noise: the Gumbel samples themselves, (B, G, N) for each grouping.

        Raises:
            ValueError: a side is not a whole number of patches, or another number of
                samples than of groupings.
        """
        groupings = len(self.stages) - 1
        if noise is not None and len(noise) != groupings:
            raise ValueError(
                f"{len(noise)} Gumbel samples for {groupings} groupings: expected one "
                "for each, in their order"
            )
        x, groups = self.patches(pixels), None
        assignments = []
        for number, stage in enumerate(self.stages):
            sample = None if noise is None or number == groupings else noise[number]
            x, groups, assignment = stage(x, groups, sample, generator)
            if assignment is not None:
                assignments.append(assignment)
        return EncoderOutput(self.norm(x), assignments)

    def trace(self, pixels: Tensor) -> dict[str, Any]:
        """Return what lies on the way from pixels (B, 3, H, W) to segments, in
        evaluation mode.

        Returns:
            ``patches`` (B, N, C); for each stage, lists ``mixed`` (B, N + S, C), what
            its blocks make, and ``outputs``, its segments (B, G, C); and ``segments``
            (B, G, C) after the last norm.
        """
        x, groups = self.patches(pixels), None
        steps: dict[str, Any] = {"patches": x, "mixed": [], "outputs": []}
        for stage in self.stages:
            steps["mixed"].append(stage.mix(stage.start(x, groups)))
            x, groups, _ = stage(x, groups)
            steps["outputs"].append(x)
        return {**steps, "segments": self.norm(x)}


class TextEncoder(TextTransformer):
    """CLIP's text tower without its projection: a network follows instead."""

    def __init__(self, config: TextConfig) -> None:
        nn.Module.__init__(self)
        self._make_reader(config, quick_gelu=True)
        self.ln_final = nn.LayerNorm(config.width)
        # Nothing is learned here, and released files hold nothing.
        identity = torch.eye(config.width)
        self.register_buffer("text_projection", identity, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the output at each text's end: ids (n, L) -> (n, W)."""
        return self.text_backbone(tokens)


class Projector(nn.Module):
    """Linear, batch norm, ReLU, linear: from a tower to the joint space.

    It is trained on whole images, and applied to single segments.
    """

    def __init__(self, width: int, hidden: int, out: int, layers: int) -> None:
        super().__init__()
        inner: list[nn.Module] = []
        for _ in range(layers - 1):
            inner += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(True)]
            width = hidden
        self.linear_hidden = nn.Sequential(*inner)
        self.linear_out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (..., W) -> (..., E); all rows are one batch of the norm."""
        rows = self.linear_out(self.linear_hidden(x.reshape(-1, x.shape[-1])))
        return rows.reshape(*x.shape[:-1], -1)


class GroupViTOutput(NamedTuple):
    """What :class:`GroupViT` returns, for ``total_loss``."""

    image: Tensor
    """(B, E), not of unit length."""
    text: Tensor
    """(B, E) of captions, not of unit length."""
    prompts: Tensor | None
    """(B, K, E) of the captions' prompts; None where there are none."""
    multiplier: Tensor
    """Of the cosines of captions, at most 100: a scalar."""
    prompt_multiplier: Tensor | None
    """The same of prompts; None in a model without multi-label loss."""
    assignments: list[Assignment]
    """For each grouping, who went where."""


class SegmentFeatures(NamedTuple):
    """An image and its segments in the joint space; unit rows."""

    image: Tensor
    """(B, E)."""
    segments: Tensor
    """(B, G, E)."""
    assignments: list[Assignment]
    """For each grouping, who went where."""


class GroupViT(nn.Module):
    """Both towers, their projectors and the temperatures.

    >>> model = GroupViT(GroupViTConfig())
    >>> output = model(model.preprocess(image), model.tokenize(captions))
    >>> total_loss(output)["loss"].backward()
    """

    def __init__(self, config: GroupViTConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config.text)
        hidden, out, layers = (
            config.projector_width,
            config.embed_dim,
            config.projector_layers,
        )
        self.image_projector = Projector(config.widths[-1], hidden, out, layers)
        self.text_projector = Projector(config.text.width, hidden, out, layers)
        self.logit_scale = nn.Parameter(torch.tensor(config.init_logit_scale))
        self.multi_label_logit_scale = (
            nn.Parameter(torch.tensor(config.init_logit_scale))
            if config.multi_label
            else None
        )

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Any],
        *,
        heads: int | Sequence[int] | None = None,
        text_heads: int | None = None,
        assign: AssignConfig | None = None,
        drop_path: float = 0.1,
    ) -> GroupViT:
        """Build a GroupViT from released weights, inferring the configuration.

        Args:
            state_dict: a released file's content or its weights, in the authors' layout
                or in transformers'.
            heads: of the image tower, which shapes do not show: one number, or one for
                each stage; by default one head per 64 channels.
            text_heads: likewise of the text tower.
            assign: how tokens are assigned; by default as released.
            drop_path: for further training.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: the weights are not those of a GroupViT; names what is missing
                or left over.
        """
        state = convert(state_dict)
        config = infer_config(state, heads, text_heads, assign, drop_path)
        return load_strictly(cls(config), state, "a GroupViT").eval()

    @classmethod
    def from_transformers(cls, module: nn.Module) -> GroupViT:
        """Build a GroupViT with the weights of transformers' ``GroupViTModel``.

        It has no temperature for the multi-label loss. Raises ValueError if it has an
        option that this class does not have.
        """
        return cls.from_official(module.state_dict(), **transformers_options(module))

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.logit_scale.device

    @property
    def multiplier(self) -> Tensor:
        """exp(logit_scale), at most 100. The clamp is on the value: once beyond, the
        parameter gets no gradient."""
        return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    @property
    def prompt_multiplier(self) -> Tensor | None:
        """The same for prompts; None in a model without multi-label loss."""
        scale = self.multi_label_logit_scale
        return None if scale is None else scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def preprocess(self, image: Tensor) -> Tensor:
        """Make pixels from images (B, 3, H, W), uint8 or float in [0, 1], at their own
        size.

        Raises:
            ValueError: not images, see :func:`minilib.layers.pixels.check_images`.
        """
        config, image = self.config, unit_images(image, self)
        dtype = self.logit_scale.dtype
        return standardise(image, config.image_mean, config.image_std, dtype)

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns texts into the ids that the text tower reads.

        Raises:
            ValueError: the model embeds other ids than its tokenizer makes.
        """
        text = self.config.text
        tokenizer = get_tokenizer(text.context, self.config.vocabulary)
        if tokenizer.vocab_size != text.vocab_size:
            raise ValueError(
                f"the model has {text.vocab_size} ids but its tokenizer "
                f"{tokenizer.vocab_size}: set "
                "TextConfig(vocab_size=Tokenizer(...).vocab_size) or "
                "GroupViTConfig(vocabulary=...) to match"
            )
        return tokenizer

    def tokenize(
        self, texts: Sequence[str] | Sequence[Sequence[str]], truncate: bool = True
    ) -> Tensor:
        """Turn captions into ids (B, L), or captions with their K prompts, each in a
        list of its own, into (B, 1 + K, L); int64 on the host.

        Args:
            texts: captions, or lists as ``noun_prompts`` makes them.
            truncate: cut long texts, as the authors do.

        Raises:
            ValueError: no texts, lists of several lengths, a text that is too long.
        """
        if not len(texts) or isinstance(texts[0], str):
            return self.tokenizer(cast("Sequence[str]", texts), truncate=truncate)
        lengths = {len(row) for row in texts}
        if len(lengths) > 1:
            raise ValueError(
                f"lists of {sorted(lengths)} texts: expected as many prompts for every "
                "caption"
            )
        flat = [text for row in texts for text in row]
        tokens = self.tokenizer(flat, truncate=truncate)
        return rearrange(tokens, "(b k) l -> b k l", b=len(texts))

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """Encode pixels (B, 3, H, W) to (B, E).

        Args:
            pixels: from ``preprocess``, sides multiples of the patch.
            normalize: return unit rows.
        """
        features = self.image_projector(self.image_encoder(pixels).pooled)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Encode token ids (..., L) to (..., E); all of them are one batch of the
        projector's norm.

        Args:
            tokens: from ``tokenize``; best left on the host.
            normalize: return unit rows.
        """
        flat = self.text_projector(
            self.text_encoder(tokens.reshape(-1, tokens.shape[-1]))
        )
        features = flat.reshape(*tokens.shape[:-1], -1)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_segments(self, pixels: Tensor) -> SegmentFeatures:
        """Encode pixels (B, 3, H, W) and their segments with the same projector."""
        encoded = self.image_encoder(pixels)
        image, segments = (
            F.normalize(self.image_projector(x), dim=-1)
            for x in (encoded.pooled, encoded.segments)
        )
        return SegmentFeatures(image, segments, encoded.assignments)

    def forward(
        self,
        pixels: Tensor,
        tokens: Tensor,
        generator: torch.Generator | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> GroupViTOutput:
        """Encode images and captions, with or without prompts, for ``total_loss``.

        Args:
            pixels: (B, 3, H, W) from ``preprocess``.
            tokens: (B, L) of captions, or (B, 1 + K, L) with their prompts behind them.
            generator: draws Gumbel noise and skipped blocks in training.
            noise: the Gumbel samples themselves, see ``ImageEncoder``.

        Raises:
            ValueError: another number of captions than of images.
        """
        if len(tokens) != len(pixels):
            raise ValueError(
                f"{len(pixels)} images with {len(tokens)} captions: expected one each"
            )
        encoded = self.image_encoder(pixels, generator, noise)
        texts = self.encode_text(tokens if tokens.ndim == 3 else tokens[:, None])
        return GroupViTOutput(
            self.image_projector(encoded.pooled),
            texts[:, 0],
            texts[:, 1:] if texts.shape[1] > 1 else None,
            self.multiplier,
            self.prompt_multiplier,
            encoded.assignments,
        )


def class_vectors(features: Tensor) -> Tensor:
    """Average the features (K, T, E) of K classes in T templates to unit rows (K, E).

    Unlike CLIP's, features are not made unit vectors before the mean: templates with
    long ones count for more.
    """
    return F.normalize(features.mean(dim=1), dim=-1)


@torch.no_grad()
def embed_classes(
    model: GroupViT,
    names: Sequence[str],
    templates: Sequence[str | Callable[[str], str]] = ("a photo of a {}.",),
    batch_size: int = 512,
    allow_duplicates: bool = False,
) -> Tensor:
    """Write the classifier of K classes from their names: unit rows (K, E).

    Args:
        model: in evaluation mode, or the projector's norm would mix the names.
        names: of the classes, without "background", which has no prompt.
        templates: sentences with ``{}`` for the name, or functions of the name.
        batch_size: prompts encoded at once.
        allow_duplicates: let two names be the same tokens; the first one wins.

    Raises:
        ValueError: no names, an empty one, or two that are the same tokens; no
            templates, or one without ``{}``; the model is in training mode.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    names = check_words(names, model.tokenizer, "class name", allow_duplicates)
    check_templates(templates)
    prompts = [
        t.replace("{}", name) if isinstance(t, str) else t(name)
        for name in names
        for t in templates
    ]
    tokens = model.tokenize(prompts, truncate=False)
    features = torch.cat([model.encode_text(part) for part in tokens.split(batch_size)])
    return class_vectors(rearrange(features, "(k t) e -> k t e", k=len(names)))
