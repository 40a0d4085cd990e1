"""LSeg: Language-driven Semantic Segmentation (arXiv 2201.03546).

An ordinary supervised segmenter whose classifier is written in words: each pixel gets a
vector in CLIP's joint space, each label a vector from CLIP's frozen text tower, and
their dot products are the logits. Shapes: B images of H x W pixels, N labels, C joint
dimension; embeddings have h x w = H / 2 x W / 2 places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minilib.layers.dpt import DPTDecoder
from minilib.layers.pixels import standardise, unit_images
from minilib.models.clip import CLIP
from minilib.models.loading import load_strictly
from minilib.models.lseg.backbones import make_backbone
from minilib.models.lseg.config import LSegConfig
from minilib.models.lseg.official import convert, infer_config
from minilib.tokenizer import check_templates, check_words

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lrelu": F.leaky_relu,
    "tanh": torch.tanh,
    "relu": F.relu,
}


class LabelBlock(nn.Module):
    """Spatial regularisation that takes any number of labels in any order
    (section 4.1, "block").

    One 3 x 3 convolution from one channel to one, d, is applied to the map of every
    label alike: "depthwise" is act(d(F)), "bottleneck" is act(d(F) + max over the
    labels of F). Both commute with permutations of the labels, but the maximum lets a
    new label change the scores of the others. The block is applied ``depth`` times with
    the same weights, the last time without activation.
    """

    def __init__(self, kind: str, depth: int = 1, activation: str = "lrelu") -> None:
        super().__init__()
        self.kind, self.depth = kind, depth
        self.activation = ACTIVATIONS[activation]
        self.depthwise = nn.Conv2d(1, 1, 3, padding=1)

    def once(self, scores: Tensor, activate: bool = True) -> Tensor:
        """Apply the block one time to scores (B, N, h, w)."""
        labels = scores.shape[1]
        y = self.depthwise(rearrange(scores, "b n h w -> (b n) 1 h w"))
        y = rearrange(y, "(b n) 1 h w -> b n h w", n=labels)
        if self.kind == "bottleneck":
            y = y + scores.amax(dim=1, keepdim=True)
        return self.activation(y) if activate else y

    def forward(self, scores: Tensor) -> Tensor:
        """Transform scores (B, N, h, w) -> (B, N, h, w)."""
        for number in range(self.depth):
            scores = self.once(scores, activate=number < self.depth - 1)
        return scores


class LSegOutput(NamedTuple):
    """What :class:`LSeg` returns."""

    scores: Tensor
    """(B, N, H, W), of labels at pixels; their softmax over N is equation 2."""
    coarse: Tensor
    """(B, N, h, w), the same before they are enlarged, of the image after padding."""


class LSeg(nn.Module):
    """The image side: pixels and label vectors in, scores of every label at
    every pixel out.

    The text tower is not part of it: it is frozen, so ``embed_labels`` calls it once
    per set of labels.

    >>> model, clip = LSeg(LSegConfig()), load_clip("ViT-B-32", pretrained="openai")
    >>> text = embed_labels(clip, ["dog", "grass", "other"])
    >>> scores = model(model.preprocess(image), text).scores
    """

    def __init__(self, config: LSegConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config.backbone)
        self.decoder = DPTDecoder(config.backbone.channels, config.features)
        self.head = nn.Conv2d(config.features, config.embed_dim, 1)
        has_block = config.block != "none"
        self.block = (
            LabelBlock(config.block, config.block_depth, config.activation)
            if has_block
            else None
        )

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        heads: int | None = None,
        hooks: Sequence[int] | None = None,
        block: str = "bottleneck",
        block_depth: int = 1,
        activation: str = "lrelu",
        half_product: bool = True,
    ) -> LSeg:
        """Build an LSeg from the authors' weights, inferring what shapes show.

        Args:
            state_dict: a released checkpoint or its ``state_dict``, with or without the
                prefix ``net.``; the copy of CLIP in it is not read (see
                ``minilib.models.lseg.official.text_tower``).
            heads: heads of a ViT, which cannot be inferred from shapes; by default one
                per 64 channels.
            hooks: the blocks of a ViT that are tapped; by default the last of each
                quarter, as released.
            block: which kind of block the weights belong to, if they hold one: both
                kinds have the same.
            block_depth: number of its applications; their 0 means 1.
            activation: of that block.
            half_product: round as the released models do.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: the weights are not those of an LSeg; names what is
                missing or left over.
        """
        state = convert(state_dict)
        depth = max(1, block_depth)
        config = infer_config(
            state, heads, hooks, block, depth, activation, half_product
        )
        return load_strictly(cls(config), state, "an LSeg").eval()

    def preprocess(self, image: Tensor) -> Tensor:
        """Make pixels from images (B, 3, H, W), uint8 or float in [0, 1], of any size.

        Raises:
            ValueError: not images, see :func:`minilib.layers.pixels.check_images`.
        """
        config, dtype = self.config, self.head.weight.dtype
        image = unit_images(image, self)
        return standardise(image, config.image_mean, config.image_std, dtype)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Return the embeddings I of images (B, 3, H, W), not yet of unit
        length: (B, C, h, w).

        Sides must be multiples of ``backbone.stride``; ``forward`` takes any.
        """
        return self.head(self.decoder(self.backbone(pixels)))

    def correlate(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """Return the word-pixel correlation F = <I, T> / t of unit vectors (section
        4.1): (B, N, h, w).

        ``forward`` computes the same scores without the embeddings, by
        ``correlate_path``, unless it rounds them as the released models do.

        Args:
            embeddings: (B, C, h, w), of any length.
            text: (N, C) the same labels for all images, or (B, N, C) labels of each
                image; of any length.
        """
        words = F.normalize(text, dim=-1)
        pixels = rearrange(embeddings, "b c h w -> b c (h w)")
        if self.config.half_product:
            product = words.half() @ F.normalize(pixels, dim=1).half()
        else:
            # dividing the N products is the same and cheaper than dividing
            # the C channels
            product = (words @ pixels) / pixels.norm(dim=1, keepdim=True).clamp(
                min=1e-12
            )
        scores = rearrange(
            product / self.config.temperature,
            "b n (h w) -> b n h w",
            h=embeddings.shape[-2],
        )
        return scores.to(embeddings.dtype)

    def correlate_path(self, path: Tensor, text: Tensor) -> Tensor:
        """Return what ``correlate(head(path), text)`` gives, without ever making the C
        channels of the embeddings.

        The head is linear, I = W x + b, so <T, I> = (T W) x + T b and |I|^2 =
        x'(W'W)x + 2 (W'b)'x + b'b: matrices of the decoder's few channels do, and what
        is kept for the backward pass is smaller by their ratio to C.

        Args:
            path: the decoder's map (B, F, h, w).
            text: as in ``correlate``.
        """
        head_bias = self.head.bias
        assert head_bias is not None  # made with one
        # |I|^2 is a sum with differences in it: never in half precision.
        with torch.autocast(path.device.type, enabled=False):
            dtype = torch.promote_types(path.dtype, torch.float32)
            words, x = (
                F.normalize(text.to(dtype), dim=-1),
                rearrange(path.to(dtype), "b f h w -> b f (h w)"),
            )
            weight, bias = (
                self.head.weight[:, :, 0, 0].to(dtype),
                head_bias.to(dtype),
            )
            product = (words @ weight) @ x + (words @ bias)[..., None]
            squares = (x * (weight.T @ weight @ x + 2 * (bias @ weight)[:, None])).sum(
                dim=1, keepdim=True
            )
            lengths = (squares + bias @ bias).clamp(min=1e-12).sqrt()
            scores = product / lengths / self.config.temperature
        return rearrange(scores, "b n (h w) -> b n h w", h=path.shape[-2]).to(
            path.dtype
        )

    def forward(self, pixels: Tensor, text: Tensor) -> LSegOutput:
        """Score labels at pixels.

        Images whose sides are not multiples of the backbone's stride are padded with
        the mean colour on the right and below, and the scores cropped again.

        Args:
            pixels: (B, 3, H, W) from ``preprocess``.
            text: from ``embed_labels``: (N, C) or (B, N, C).

        Raises:
            ValueError: there is no label, or label vectors have another dimension
                than the pixels'.
        """
        self._check(text)
        height, width = pixels.shape[-2:]
        pixels = self._padded(pixels)
        if self.config.half_product:
            correlation = self.correlate(self.encode_pixels(pixels), text)
        else:
            correlation = self.correlate_path(self.decoder(self.backbone(pixels)), text)
        coarse = correlation if self.block is None else self.block(correlation)
        scores = F.interpolate(
            coarse, scale_factor=2, mode="bilinear", align_corners=True
        )
        return LSegOutput(scores[..., :height, :width], coarse)

    def stages(self, pixels: Tensor, text: Tensor) -> dict[str, Any]:
        """Return what lies on the way from pixels (B, 3, H, W) to scores, step by step.

        Returns:
            ``taps`` (of a ViT) and ``maps`` of the backbone, ``paths`` of the decoder,
            ``embeddings`` (B, C, h, w), ``correlation`` and ``scores`` (B, N, h, w),
            the ``coarse`` ones of ``forward``.
        """
        self._check(text)
        stages: dict[str, Any] = self.backbone.stages(self._padded(pixels))
        stages["paths"] = self.decoder.paths(stages["maps"])
        stages["embeddings"] = self.head(stages["paths"][0])
        stages["correlation"] = self.correlate(stages["embeddings"], text)
        scores = stages["correlation"]
        stages["scores"] = scores if self.block is None else self.block(scores)
        return stages

    def _padded(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        stride = self.backbone.stride
        return F.pad(pixels, (0, -width % stride, 0, -height % stride))

    def _check(self, text: Tensor) -> None:
        if not text.shape[-2]:
            raise ValueError(
                "no labels: a pixel needs at least one word to be scored against"
            )
        if text.shape[-1] != self.config.embed_dim:
            raise ValueError(
                f"label vectors have {text.shape[-1]} dimensions and pixels "
                f"{self.config.embed_dim}: use the text tower that the model was "
                "trained with"
            )


@torch.no_grad()
def embed_labels(
    clip: CLIP,
    labels: Sequence[str],
    template: str = "{}",
    allow_duplicates: bool = False,
) -> Tensor:
    """Write the classifier: unit label vectors (N, C) from the frozen text tower, in
    the order of the labels.

    The paper feeds the bare words, without a sentence around them.

    Args:
        clip: the CLIP whose text tower reads them.
        labels: any words; "other" is one like any other, nothing else means "none of
            these".
        template: sentence with ``{}`` for the label.
        allow_duplicates: of two equal labels the first wins every pixel, so they
            are refused unless that is wanted (the authors' ADE20K words have
            "screen" twice).

    Raises:
        ValueError: no labels, a label is empty or longer than the tower's context, two
            are the same tokens, or the template has no ``{}``.
    """
    labels = check_words(labels, clip.tokenizer, "label", allow_duplicates)
    check_templates([template])
    tokens = clip.tokenize([template.replace("{}", label) for label in labels])
    return clip.encode_text(tokens, normalize=True)
