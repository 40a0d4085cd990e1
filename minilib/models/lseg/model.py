"""LSeg: Language-driven Semantic Segmentation (arXiv 2201.03546).

An ordinary supervised segmenter whose classifier is written in words: each pixel gets a vector in CLIP's joint
space, each label a vector from CLIP's frozen text tower, and their dot products are the logits.
Shapes: B images of H x W pixels, N labels, C joint dimension; embeddings have h x w = H / 2 x W / 2 places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minilib.layers.dpt import DPTDecoder
from minilib.models.clip import TextTransformer
from minilib.models.lseg.backbones import make_backbone
from minilib.models.lseg.config import CLIPBackbone, LSegConfig, ResNetBackbone, ViTBackbone
from minilib.models.lseg.official import convert, infer_config

__all__ = [
    "CLIPBackbone",
    "LSeg",
    "LSegConfig",
    "LabelBlock",
    "ResNetBackbone",
    "ViTBackbone",
    "embed_labels",
    "pixel_cross_entropy",
]

ACTIVATIONS = {"lrelu": F.leaky_relu, "tanh": torch.tanh, "relu": F.relu}


class LabelBlock(nn.Module):
    """Spatial regularisation that takes any number of labels in any order (section 4.1, "block").

    One 3 x 3 convolution from one channel to one, d, is applied to the map of every label alike:
    "depthwise" is act(d(F)), "bottleneck" is act(d(F) + max over the labels of F). Both commute with
    permutations of the labels, but the maximum lets a new label change the scores of the others.
    The block is applied ``depth`` times with the same weights, the last time without activation.
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


class LSeg(nn.Module):
    """The image side: pixels and label vectors in, scores of every label at every pixel out.

    The text tower is not part of it: it is frozen, so ``embed_labels`` calls it once per set of labels.

    >>> model, clip = LSeg(LSegConfig()), load_clip("ViT-B-32", pretrained="openai")
    >>> scores = model(model.preprocess(image), embed_labels(clip, ["dog", "grass", "other"]))
    """

    def __init__(self, config: LSegConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config.backbone)
        self.decoder = DPTDecoder(config.backbone.channels, config.features)
        self.head = nn.Conv2d(config.features, config.embed_dim, 1)
        has_block = config.block != "none"
        self.block = LabelBlock(config.block, config.block_depth, config.activation) if has_block else None

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
        """Build an LSeg from the authors' weights; the configuration is read off the shapes where it shows.

        Args:
            state_dict: the ``state_dict`` of a released checkpoint, with or without the prefix ``net.``; the
                copy of CLIP in it is not read (see ``minilib.models.lseg.official.text_tower``).
            heads: heads of a ViT, which shapes do not tell; by default one per 64 channels.
            hooks: the blocks of a ViT that are tapped; by default the last of each quarter, as released.
            block: which kind of block the weights belong to, if they hold one: both kinds have the same.
            block_depth: how often it is applied; their 0 means 1.
            activation: of that block.
            half_product: round as the released models do.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: the weights are not those of an LSeg; names what is missing or left over.
        """
        state = convert(state_dict)
        config = infer_config(
            state,
            heads=heads,
            hooks=hooks,
            block=block,
            block_depth=max(1, block_depth),
            activation=activation,
            half_product=half_product,
        )
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

    def preprocess(self, image: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W), float in [0, 1], of any size."""
        mean, std = image.new_tensor(self.config.image_mean), image.new_tensor(self.config.image_std)
        return (image - rearrange(mean, "c -> c 1 1")) / rearrange(std, "c -> c 1 1")

    def encode_pixels(
        self, pixels: Tensor, return_intermediates: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Return the embeddings I of images (B, 3, H, W), not yet of unit length: (B, C, h, w).

        Sides must be multiples of ``backbone.stride``; ``forward`` takes any.
        """
        maps, taps = self.backbone(pixels, return_intermediates=True)
        path, paths = self.decoder(maps, return_intermediates=True)
        embeddings = self.head(path)
        return (embeddings, {"maps": maps, **taps, **paths}) if return_intermediates else embeddings

    def correlate(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """Return the word-pixel correlation F = <I, T> / t of unit vectors (section 4.1): (B, N, h, w).

        Args:
            embeddings: (B, C, h, w), of any length.
            text: (N, C) the same labels for all images, or (B, N, C) labels of each image; of any length.
        """
        words = F.normalize(text, dim=-1)
        pixels = rearrange(embeddings, "b c h w -> b c (h w)")
        if self.config.half_product:
            product = words.half() @ F.normalize(pixels, dim=1).half()
        else:  # dividing the N products is the same and cheaper than dividing the C channels
            product = (words @ pixels) / pixels.norm(dim=1, keepdim=True).clamp(min=1e-12)
        scores = rearrange(product / self.config.temperature, "b n (h w) -> b n h w", h=embeddings.shape[-2])
        return scores.to(embeddings.dtype)

    def correlate_path(self, path: Tensor, text: Tensor) -> Tensor:
        """Return what ``correlate(head(path), text)`` gives, without ever making the C channels of the embeddings.

        The head is linear, I = W x + b, so <T, I> = (T W) x + T b and |I|^2 = x'(W'W)x + 2 (W'b)'x + b'b: matrices of
        the decoder's few channels do, and what is kept for the backward pass is smaller by their ratio to C.

        Args:
            path: the decoder's map (B, F, h, w).
            text: as in ``correlate``.
        """
        # |I|^2 is a sum with differences in it: never in half precision.
        with torch.autocast(path.device.type, enabled=False):
            dtype = torch.promote_types(path.dtype, torch.float32)
            words, x = F.normalize(text.to(dtype), dim=-1), rearrange(path.to(dtype), "b f h w -> b f (h w)")
            weight, bias = self.head.weight[:, :, 0, 0].to(dtype), self.head.bias.to(dtype)
            product = (words @ weight) @ x + (words @ bias)[..., None]
            squares = (x * (weight.T @ weight @ x + 2 * (bias @ weight)[:, None])).sum(dim=1, keepdim=True)
            lengths = (squares + bias @ bias).clamp(min=1e-12).sqrt()
            scores = product / lengths / self.config.temperature
        return rearrange(scores, "b n (h w) -> b n h w", h=path.shape[-2]).to(path.dtype)

    def forward(
        self, pixels: Tensor, text: Tensor, return_intermediates: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Return the scores (B, N, H, W) of labels at pixels; their softmax over N is equation 2.

        Images whose sides are no multiples of the backbone's stride are padded with the mean colour on the
        right and below, and the scores cropped again.

        Args:
            pixels: (B, 3, H, W) from ``preprocess``.
            text: from ``embed_labels``: (N, C) or (B, N, C).
            return_intermediates: also return ``maps`` of the backbone, ``paths`` of the decoder,
                ``embeddings`` (B, C, h, w), ``correlation`` and ``scores`` (B, N, h, w) before enlarging.

        Raises:
            ValueError: there is no label, or label vectors have another dimension than the pixels'.
        """
        if not text.shape[-2]:
            raise ValueError("no labels: a pixel needs at least one word to be scored against")
        if text.shape[-1] != self.config.embed_dim:
            raise ValueError(
                f"label vectors have {text.shape[-1]} dimensions and pixels {self.config.embed_dim}: "
                "use the text tower that the model was trained with"
            )
        height, width = pixels.shape[-2:]
        stride = self.backbone.stride
        pixels = F.pad(pixels, (0, -width % stride, 0, -height % stride))
        if return_intermediates or self.config.half_product:
            embeddings, stages = self.encode_pixels(pixels, return_intermediates=True)
            correlation = self.correlate(embeddings, text)
        else:
            correlation = self.correlate_path(self.decoder(self.backbone(pixels)), text)
        scores = correlation if self.block is None else self.block(correlation)
        enlarged = F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=True)
        enlarged = enlarged[..., :height, :width]
        if not return_intermediates:
            return enlarged
        return enlarged, {**stages, "embeddings": embeddings, "correlation": correlation, "scores": scores}


@torch.no_grad()
def embed_labels(
    clip: TextTransformer, labels: Sequence[str], template: str = "{}", allow_duplicates: bool = False
) -> Tensor:
    """Write the classifier: unit label vectors (N, C) from the frozen text tower, in the order of the labels.

    The paper feeds the bare words, without a sentence around them.

    Args:
        clip: the CLIP whose text tower reads them.
        labels: any words; "other" is one like any other, nothing else stands for "none of these".
        template: sentence with ``{}`` for the label.
        allow_duplicates: of two equal labels the first wins every pixel, so they are refused unless that is
            wanted (the authors' ADE20K words have "screen" twice).

    Raises:
        ValueError: no labels, a label is empty, repeated or longer than the tower's context, or the template
            has no ``{}``.
    """
    if isinstance(labels, str) or not len(labels):
        raise ValueError(f"labels={labels!r}: expected a list of at least one word")
    if empty := [position for position, label in enumerate(labels) if not label.strip()]:
        raise ValueError(f"label {empty[0]} is empty: expected a word or a phrase")
    if not allow_duplicates and (twice := sorted({label for label in labels if list(labels).count(label) > 1})):
        raise ValueError(f"label {twice[0]!r} is given twice: its second channel could never win; say it once")
    if "{}" not in template:
        raise ValueError(f"template {template!r} has no place for the label: write {{}} where it goes")
    tokens = clip.tokenize([template.replace("{}", label) for label in labels])
    return clip.encode_text(tokens, normalize=True)


def pixel_cross_entropy(logits: Tensor, target: Tensor, ignore: int = 255) -> Tensor:
    """Return the mean over labelled pixels of -log softmax(F)_y, scalar (equation 2).

    The paper maximises the sum of the probabilities of the true labels as written, and describes it as
    cross-entropy; the code minimises this mean. F already carries 1 / t. A batch in which every pixel is
    ignored gives 0 with a gradient of 0 (``F.cross_entropy`` and the authors' loss give nan).

    Args:
        logits: (B, N, H, W).
        target: (B, H, W) int64 label of each pixel, or ``ignore``.
        ignore: the value of unlabelled pixels.

    Raises:
        ValueError: shapes that do not belong together, or a target that is no label.
    """
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"target {tuple(target.shape)} does not fit logits {tuple(logits.shape)}")
    labelled = target != ignore
    wrong = labelled & ((target < 0) | (target >= logits.shape[1]))
    if wrong.any():
        raise ValueError(
            f"the mask has the value {int(target[wrong][0])}: expected 0 to {logits.shape[1] - 1} for the "
            f"{logits.shape[1]} labels, or {ignore} for unlabelled pixels"
        )
    total = F.cross_entropy(logits, target, ignore_index=ignore, reduction="sum")
    return total / labelled.sum().clamp(min=1)
