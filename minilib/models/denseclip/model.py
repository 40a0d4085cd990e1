"""DenseCLIP: Language-Guided Dense Prediction with Context-Aware Prompting
(arXiv 2112.01518).

CLIP's image tower is fine-tuned for dense prediction while its language stays in play:
cosines of every cell with the class names make a score map, which is concatenated to
the features and supervised by itself. Parameter names are those of the released
checkpoints. Shapes: B images of R x R' pixels, K classes, E joint dimension, h x w
cells, N contexts, W width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor, nn

from minilib.layers.cross_attention import CrossAttention
from minilib.layers.fpn import FeaturePyramid, SemanticHead
from minilib.layers.pixels import standardise, unit_images
from minilib.layers.prompt import encode_prompted, learned_contexts
from minilib.layers.segmentation import pixel_cross_entropy
from minilib.models.clip import CLIP, TextTransformer
from minilib.models.clip.config import ViTConfig
from minilib.models.denseclip.backbones import (
    DenseResNet,
    DenseTower,
    DenseViT,
    Encoded,
)
from minilib.models.denseclip.config import DenseCLIPConfig, class_tokens
from minilib.models.denseclip.official import infer_config
from minilib.models.loading import load_strictly, under, unwrapped


class ContextDecoderLayer(nn.Module):
    """Pre-norm: queries attend to each other, then to the image, then pass an MLP."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = CrossAttention(width, heads, bias=False, dropout=dropout)
        self.cross_attn = CrossAttention(width, heads, bias=False, dropout=dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Transform queries x (B, Q, W) by the memory (B, L, W)."""
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed)
        x = x + self.cross_attn(self.norm2(x), memory)
        return x + self.dropout(self.mlp(self.norm3(x)))


class ContextDecoder(nn.Module):
    """Read the visual context with text-sized queries (section 3.3, Figure 4).

    Neither queries nor memory carry positions: the image tower's features have
    them in already.

    Args:
        dim: dimension of queries and memory, E.
        width: channels inside.
        layers: number of layers.
        heads: attention heads.
        dropout: rate after attention and MLP.
    """

    def __init__(
        self, dim: int, width: int, layers: int, heads: int, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.memory_proj = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, width), nn.LayerNorm(width)
        )
        self.text_proj = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.decoder = nn.ModuleList(
            ContextDecoderLayer(width, heads, dropout) for _ in range(layers)
        )
        self.out_proj = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Let queries (B, Q, E) read the visual context
        (B, 1 + h * w, E): (B, Q, E)."""
        memory = self.memory_proj(context)
        x = self.text_proj(queries)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.out_proj(x)


class ContextGenerator(nn.Module):
    """Pre-model prompting (equation 3): learned queries read the image and become the
    contexts of its prompt.

    Described in the paper, absent from the authors' code; the last projection, to the
    width of tokens, is ours.
    """

    def __init__(
        self, contexts: int, token_width: int, decoder: ContextDecoder, dim: int
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1, contexts, dim), std=0.02)
        )
        self.decoder = decoder
        self.to_tokens = nn.Linear(dim, token_width)

    def forward(self, context: Tensor) -> Tensor:
        """Turn the visual context (B, 1 + h * w, E) into prompts (B, N, W)."""
        return self.to_tokens(
            self.decoder(self.queries.expand(len(context), -1, -1), context)
        )


def score_map(dense: Tensor, text: Tensor) -> Tensor:
    """Return the cosine of every cell (B, E, h, w) with every class (B, K, E):
    (B, K, h, w) (equation 2)."""
    return einsum(
        F.normalize(dense, dim=1),
        F.normalize(text, dim=-1),
        "b e h w, b k e -> b k h w",
    )


class TextGuided(nn.Module):
    """What every DenseCLIP shares, whatever head follows: the image tower and its text.

    Args:
        config: see :class:`DenseCLIPConfig`.
        names: K class names, all different, or their token ids (K, L).
        backbone: another image tower than CLIP's (section 3.4).

    Raises:
        ValueError: no names, equal names, or a name that does not fit the text tower.
    """

    tokens: Tensor
    prototypes: nn.Parameter
    contexts: nn.Parameter
    stored_text: Tensor

    def __init__(
        self,
        config: DenseCLIPConfig,
        names: Sequence[str] | Tensor,
        backbone: DenseTower | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone or _clip_backbone(config)
        dim, clip = config.clip.embed_dim, config.clip
        self.classes = len(names)
        if config.guidance == "none":
            return
        if config.guidance == "prototypes":
            self.prototypes = nn.Parameter(torch.randn(1, self.classes, dim))
            return
        self.register_buffer("tokens", class_tokens(config, names), persistent=False)
        self.text_encoder = TextTransformer(
            clip.text, dim, clip.quick_gelu
        ).requires_grad_(False)
        if config.guidance in ("contexts", "post"):
            self.contexts = learned_contexts(config.contexts, clip.text.width)
        if config.guidance in ("pre", "post"):
            decoder = ContextDecoder(
                dim,
                config.decoder_width,
                config.decoder_layers,
                config.decoder_heads,
                config.dropout,
            )
        if config.guidance == "post":
            self.context_decoder = decoder
            self.gamma = nn.Parameter(torch.full((dim,), 1e-4))
        if config.guidance == "pre":
            self.context_generator = ContextGenerator(
                config.contexts, clip.text.width, decoder, dim
            )

    def load_clip(self, clip: CLIP) -> None:
        """Take the weights of a CLIP's two towers; what CLIP does not
        have starts fresh.

        Raises:
            ValueError: the towers have other shapes than ``config.clip`` says.
        """
        if (
            clip.config.text != self.config.clip.text
            or clip.config.vision != self.config.clip.vision
        ):
            raise ValueError(
                "the CLIP has other towers than this model's config.clip: build the "
                "config from clip.config"
            )
        state = clip.state_dict()
        if isinstance(self.backbone, DenseResNet | DenseViT):
            fresh = {
                k: v
                for k, v in self.backbone.state_dict().items()
                if k.startswith("fpn")
            }
            load_strictly(
                self.backbone,
                fresh | under(state, "visual."),
                "DenseCLIP's image tower",
            )
        if hasattr(self, "text_encoder"):
            text = {
                k: v
                for k, v in state.items()
                if not k.startswith(("visual.", "logit_"))
            }
            load_strictly(self.text_encoder, text, "DenseCLIP's text tower")

    def preprocess(self, image: Tensor) -> Tensor:
        """Make pixels from images (B, 3, R, R'), uint8 or float in [0, 1], of any size.

        Raises:
            ValueError: not images, see :func:`minilib.layers.pixels.check_images`.
        """
        clip, dtype = self.config.clip, next(self.parameters()).dtype
        image = unit_images(image, self)
        return standardise(image, clip.image_mean, clip.image_std, dtype)

    def text_features(self, context: Tensor | None = None) -> Tensor:
        """Return the text before it is refined by the image: (1, K, E), or (B, K, E)
        for guidance "pre"."""
        guidance = self.config.guidance
        if hasattr(self, "stored_text"):
            return self.stored_text
        if guidance == "prototypes":
            return self.prototypes
        if guidance == "template":
            return self.text_encoder(self.tokens)[None]
        prompt = self.context_generator(context) if guidance == "pre" else self.contexts
        return encode_prompted(self.text_encoder, self.tokens, prompt)

    def text_embeddings(self, encoded: Encoded) -> Tensor:
        """Return the text as each image is compared with it, (B, K, E).

        Post-model prompting (equation 4): t + gamma * v, where v =
        ContextDecoder(t, [z-bar, z]).
        """
        context = encoded.context
        text = self.text_features(context).expand(len(context), -1, -1)
        if self.config.guidance == "post":
            text = text + self.gamma * self.context_decoder(text, context)
        return text

    @torch.no_grad()
    def store_text(self) -> None:
        """Keep the text features and drop the text tower, for inference: its work was
        the same for every image.

        Raises:
            ValueError: guidance "pre", whose text depends on the image, or none.
        """
        if self.config.guidance in ("pre", "none"):
            raise ValueError(
                f"guidance {self.config.guidance!r} has no text that is the same for "
                "every image"
            )
        self.register_buffer(
            "stored_text", self.text_features().detach().clone(), persistent=False
        )
        if hasattr(self, "text_encoder"):
            del self.text_encoder

    def guided_maps(
        self, pixels: Tensor, divide_by_tau: bool = False
    ) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """Return the maps, one of them with the score map's K channels (unless the
        config says otherwise), the score map (B, K, h, w) and the text.

        Score map and text are None for guidance "none". ``divide_by_tau`` makes the
        score map the one of the authors' detection code, 1 / tau times as large.
        """
        encoded = self.backbone.encode(pixels)
        if self.config.guidance == "none":
            return encoded.maps, None, None
        text = self.text_embeddings(encoded)
        scores = score_map(encoded.dense, text)
        if divide_by_tau:
            scores = scores / self.config.tau
        maps, level = list(encoded.maps), self.backbone.score_level
        if self.config.concatenate:
            maps[level] = torch.cat([maps[level], scores], dim=1)
        return maps, scores, text

    @property
    def guided_channels(self) -> list[int]:
        """Channels of the maps that :meth:`guided_maps` returns: K is built into the
        layer that follows."""
        channels = list(self.backbone.channels)
        if self.config.guidance != "none" and self.config.concatenate:
            channels[self.backbone.score_level] += self.classes
        return channels


class Segmentation(NamedTuple):
    """What :class:`DenseCLIP` returns; ``full`` brings its maps to the image's size."""

    logits: Tensor
    """(B, K, h, w) at the finest map's size."""
    scores: Tensor | None
    """(B, K, h', w') cosines in [-1, 1]; None without text."""
    text: Tensor | None
    """(B, K, E) text embeddings, refined by the image."""
    maps: list[Tensor]
    """The backbone's maps, one of them with the score map."""
    pyramid: list[Tensor]
    """The levels of the feature pyramid."""
    size: tuple[int, int]
    """Rows and columns of the images."""
    padded: tuple[int, int]
    """Rows and columns after padding."""

    def full(self, small: Tensor | None = None) -> Tensor:
        """Enlarge a map (B, K, h, w), by default the logits, to the image's
        size: (B, K, R, R')."""
        large = F.interpolate(
            self.logits if small is None else small,
            self.padded,
            mode="bilinear",
            align_corners=False,
        )
        return large[..., : self.size[0], : self.size[1]]


class DenseCLIP(TextGuided):
    """Semantic segmentation: text-guided maps, feature pyramid, Semantic FPN head
    (section 3.2, Figure 3).

    The K classes are built in: the score map's channels are an input of the pyramid.
    This is not an open-vocabulary model.
    """

    def __init__(
        self,
        config: DenseCLIPConfig,
        names: Sequence[str] | Tensor,
        backbone: DenseTower | None = None,
    ) -> None:
        super().__init__(config, names, backbone)
        self.neck = FeaturePyramid(self.guided_channels, config.channels)
        self.decode_head = SemanticHead(
            self.backbone.strides, config.channels, self.classes, config.dropout
        )

    @classmethod
    def from_clip(
        cls, clip: CLIP, names: Sequence[str], config: DenseCLIPConfig | None = None
    ) -> DenseCLIP:
        """Build a DenseCLIP from a CLIP's weights; ``config`` must fit its towers."""
        model = cls(config or DenseCLIPConfig(clip.config), names)
        model.load_clip(clip)
        return model

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Any],
        names: Sequence[str] | Tensor,
        *,
        vision_heads: int | None = None,
        text_heads: int | None = None,
        decoder_heads: int = 4,
        taps: Sequence[int] | None = None,
        tau: float = 0.07,
        quick_gelu: bool = True,
    ) -> DenseCLIP:
        """Build a DenseCLIP from the authors' segmentation weights, in evaluation mode,
        with their quirks.

        What cannot be inferred from shapes is passed in where it differs from the
        released models.

        Args:
            state_dict: a checkpoint or its ``state_dict``; its own text tower is used
                (it differs from CLIP's).
            names: the K class names in the order of training (checkpoints do not hold
                them), or their tokens.
            vision_heads: heads of the image tower; by default 32, of a ViT one per 64
                channels.
            text_heads: heads of the text tower; by default one per 64 channels.
            decoder_heads: heads of the context decoder.
            taps: the blocks of a ViT that make the pyramid, see ``DenseCLIPConfig``.
            tau: temperature of the score map's own loss.
            quick_gelu: which activation the CLIP behind it had.

        Raises:
            ValueError: the weights are not those of a DenseCLIP, or there
                are not K names.
        """
        state = unwrapped(state_dict)
        config = infer_config(
            state, vision_heads, text_heads, decoder_heads, taps, tau, quick_gelu
        )
        classes = len(state["decode_head.conv_seg.weight"])
        if len(names) != classes:
            raise ValueError(
                f"{len(names)} names for weights with {classes} classes: pass them all"
            )
        return load_strictly(cls(config, names), state, "a DenseCLIP").eval()

    def forward(self, pixels: Tensor) -> Segmentation:
        """Segment pixels (B, 3, R, R') of any size, from ``preprocess``."""
        size = (pixels.shape[-2], pixels.shape[-1])
        if self.config.pad:
            stride = max(self.backbone.strides)
            pixels = F.pad(pixels, (0, -size[1] % stride, 0, -size[0] % stride))
        maps, scores, text = self.guided_maps(pixels)
        pyramid = self.neck(maps)
        logits = self.decode_head(pyramid)
        padded = (pixels.shape[-2], pixels.shape[-1])
        return Segmentation(logits, scores, text, maps, pyramid, size, padded)


def _clip_backbone(config: DenseCLIPConfig) -> DenseResNet | DenseViT:
    vision = config.clip.vision
    if not isinstance(vision, ViTConfig):
        return DenseResNet(config.clip)
    quarters = tuple(max(0, -(-vision.layers * i // 4) - 1) for i in (1, 2, 3, 4))
    taps = config.taps or ((3, 5, 7, 11) if vision.layers == 12 else quarters)
    return DenseViT(config.clip, taps, config.drop_path, config.double_class_embedding)


def denseclip_loss(
    output: Segmentation,
    mask: Tensor,
    tau: float = 0.07,
    score_weight: float = 0.4,
    over: str = "valid",
) -> dict[str, Tensor]:
    """Return the losses of a batch: ``decode`` (the head), ``scores``
    (equation 5, section 3.4) and their ``loss``.

    The auxiliary loss is cross-entropy(softmax(s / tau), y): it keeps the score map in
    its place.

    Args:
        output: of the model.
        mask: (B, R, R') int64 at the images' size, as in the authors' code; or smaller,
            for images that needed no padding: both maps are then compared at its size,
            which costs less.
        tau: temperature of the score map.
        score_weight: 0.4 in the authors' code.
        over: as in ``pixel_cross_entropy``.
    """

    def enlarged(small: Tensor) -> Tensor:
        if mask.shape[-2:] == output.size:
            return output.full(small)
        size = (mask.shape[-2], mask.shape[-1])
        return F.interpolate(small, size, mode="bilinear", align_corners=False)

    decode = pixel_cross_entropy(enlarged(output.logits), mask, over=over)
    if output.scores is None:
        return {"loss": decode, "decode": decode}
    scores = score_weight * pixel_cross_entropy(
        enlarged(output.scores / tau), mask, over=over
    )
    return {"loss": decode + scores, "decode": decode, "scores": scores}
