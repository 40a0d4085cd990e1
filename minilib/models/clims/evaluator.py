"""The text-driven evaluator: a frozen CLIP says what a map shows, and what it leaves.

B images of H x W pixels, K classes, L background prompts, E the joint dimension, S the
side of CLIP's images. A *pair* is an image and a class that is present in it; there are
n of them, ordered by image, then by class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.layers.pixels import standardise, unit_images
from minilib.models.clip import CLIP
from minilib.tokenizer import check_templates, check_words

TEMPLATE = "a photo of {}."
"""The prompt of the improved version; the camera-ready one has no full stop."""


class ImageEncoder(Protocol):
    """What looks at the views: CLIP, or anything that encodes images."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode pixels (n, 3, S, S) to (n, E), of any length."""
        ...


class Views(NamedTuple):
    """What is shown to CLIP."""

    object: Tensor
    """X P_k, (n, 3, S, S): the image where the map of the class is."""
    rest: Tensor
    """X (1 - P_k), (n, 3, S, S): the image where it is not."""
    image: Tensor
    """(n,) int64, the image of each pair."""
    label: Tensor
    """(n,) int64, the class of each pair."""


class Similarities(NamedTuple):
    """What CLIP says of the views, as cosines."""

    object: Tensor
    """s_oo (n,): of the object's view and the class's name."""
    rest: Tensor
    """s_bo (n,): of the rest and the class's name."""
    background: Tensor
    """s_ob (n, L): of the object's view and the background prompts."""
    label: Tensor
    """(n,) int64, the class of each pair."""
    own: Tensor
    """(n, L) bool, which prompts are for the pair's class; all of a shared list."""


def masked_views(
    pixels: Tensor, activation: Tensor, present: Tensor, size: int
) -> Views:
    """Mask images with the maps of their present classes.

    Both are resized first (bilinear, corners aligned). Masking multiplies standardised
    pixels, so what is masked out has the mean colour; it is not black.

    Args:
        pixels: (B, 3, H, W), standardised.
        activation: P (B, K, h, w) in [0, 1].
        present: (B, K) bool or 0 / 1, which classes are in each image; an image may
            have none, it makes no pair.
        size: S, the side of the views in pixels.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if present.shape != activation.shape[:2] or len(pixels) != len(activation):
        raise ValueError(
            f"images {tuple(pixels.shape)}, maps {tuple(activation.shape)} and image "
            f"labels {tuple(present.shape)} do not belong together: expected "
            "(B, 3, H, W), (B, K, h, w) and (B, K)"
        )
    image, label = present.nonzero(as_tuple=True)
    shown = _resized(pixels, size)[image]
    # Only the maps of present classes: the others are never looked at.
    mask = activation[image, label][:, None]
    # None at all cannot be resized; a slice of them stays tied to the maps.
    mask = _resized(mask, size) if len(image) else mask[..., :1, :1]
    return Views(shown * mask, shown * (1 - mask), image, label)


def _resized(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=True)


class Evaluator(nn.Module):
    """Frozen judge of maps: masked images against texts, embedded once.

    Nothing of it is trained; gradients pass through the image encoder into the maps.

    >>> evaluator = Evaluator.from_clip(clip, ["train", "boat"], ["railway", "water"])
    >>> pixels = evaluator.preprocess(batch.image)
    >>> seen = evaluator(pixels, activation, batch.present)

    Args:
        encoder: encodes the views.
        text: (K, E), the names' features.
        background: (L, E), the background prompts' features; L may be 0.
        size: S, the side of the views in pixels.
        own: (K, L) bool, which prompts belong to which class; by default all to all.
        image_mean: what ``preprocess`` subtracts, per RGB channel.
        image_std: what it divides by.
    """

    text: Tensor
    background: Tensor
    own: Tensor

    def __init__(
        self,
        encoder: ImageEncoder,
        text: Tensor,
        background: Tensor,
        size: int,
        own: Tensor | None = None,
        image_mean: Sequence[float] = (0.0, 0.0, 0.0),
        image_std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if own is None:
            own = torch.ones(len(text), len(background), dtype=torch.bool)
        if own.shape != (len(text), len(background)):
            raise ValueError(
                f"own is {tuple(own.shape)}: expected ({len(text)}, "
                f"{len(background)}), classes by background prompts"
            )
        if isinstance(encoder, nn.Module):
            encoder.requires_grad_(False).eval()
        self.encoder, self.size = encoder, size
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.register_buffer("text", F.normalize(text, dim=-1))
        self.register_buffer("background", F.normalize(background, dim=-1))
        self.register_buffer("own", own)

    @classmethod
    @torch.no_grad()
    def from_clip(
        cls,
        clip: CLIP,
        names: Sequence[str],
        backgrounds: Sequence[str] | Mapping[str, Sequence[str]] = (),
        template: str = TEMPLATE,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> Evaluator:
        """Build the evaluator of a CLIP, which is frozen by it.

        Args:
            clip: judges the views, at its own image size.
            names: of the K classes.
            backgrounds: what co-occurs with them: one list for all classes (improved
                version), or lists under some of the names (camera-ready).
            template: sentence with ``{}`` for a name.
            image_mean: by default CLIP's own; the improved version's code shows CLIP
                images that were standardised for ImageNet.
            image_std: likewise.

        Raises:
            ValueError: no names, one is empty or given twice, backgrounds for what is
                not a class, or the template has no ``{}``.
        """
        names = check_words(names, clip.tokenizer, "class name")
        check_templates([template])
        lists = backgrounds if isinstance(backgrounds, Mapping) else {}
        if unknown := sorted(lists.keys() - set(names)):
            raise ValueError(
                f"there are backgrounds for {unknown}, which are not among the class "
                f"names {names}"
            )
        prompts: Sequence[str] = (
            list(dict.fromkeys(p for prompts in lists.values() for p in prompts))
            if isinstance(backgrounds, Mapping)
            else backgrounds
        )
        if prompts:
            prompts = check_words(prompts, clip.tokenizer, "background prompt")
        own = None
        if isinstance(backgrounds, Mapping):
            rows = [[p in lists.get(name, ()) for p in prompts] for name in names]
            own = torch.tensor(rows, dtype=torch.bool).reshape(len(names), len(prompts))

        def embed(words: Sequence[str]) -> Tensor:
            if not words:
                return torch.zeros(0, clip.config.embed_dim, device=clip.device)
            return clip.encode_text(
                clip.tokenize([template.replace("{}", word) for word in words])
            )

        config = clip.config
        return cls(
            clip,
            embed(names),
            embed(prompts),
            config.image_size,
            None if own is None else own.to(clip.device),
            config.image_mean if image_mean is None else image_mean,
            config.image_std if image_std is None else image_std,
        )

    def train(self, mode: bool = True) -> Evaluator:
        """Set the mode, except the encoder's: a frozen judge keeps its statistics."""
        super().train(mode)
        if isinstance(self.encoder, nn.Module):
            self.encoder.eval()
        return self

    def preprocess(self, image: Tensor) -> Tensor:
        """Make pixels from images (B, 3, H, W), uint8 or float in [0, 1], of any size.

        Raises:
            ValueError: not images, see :func:`minilib.layers.pixels.check_images`.
        """
        image = unit_images(image, self)
        return standardise(image, self.image_mean, self.image_std, self.text.dtype)

    def judge(self, views: Views) -> Similarities:
        """Compare views with texts."""
        label, own = views.label, self.own[views.label]
        if not len(label):
            nothing = views.object.sum((1, 2, 3))  # empty, but tied to the maps
            none = self.background.new_zeros(0, len(self.background))
            return Similarities(nothing, nothing, none, label, own)
        both = self.encoder.encode_image(torch.cat([views.object, views.rest]))
        shown, rest = F.normalize(both, dim=-1).chunk(2)
        name = self.text[label]
        return Similarities(
            (shown * name).sum(dim=-1),
            (rest * name).sum(dim=-1),
            shown @ self.background.T,
            label,
            own,
        )

    def forward(
        self, pixels: Tensor, activation: Tensor, present: Tensor
    ) -> Similarities:
        """Say how much the maps of present classes, and what they leave, look like the
        texts.

        Args:
            pixels: (B, 3, H, W) from ``preprocess``.
            activation: P (B, K, h, w) in [0, 1].
            present: (B, K) bool or 0 / 1; where no class is present, all is empty.

        Raises:
            ValueError: the shapes do not belong together.
        """
        if activation.shape[1] != len(self.text):
            raise ValueError(
                f"maps of {activation.shape[1]} classes, but names of "
                f"{len(self.text)}: the evaluator and the network must have the same "
                "classes"
            )
        return self.judge(masked_views(pixels, activation, present, self.size))
