"""GroupViT's two losses: captions against images, and their nouns against images
(section 3.3).

Shapes: b pairs on this process, N over all processes, K prompts of a caption, E joint
dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from minilib.layers.contrastive import clip_loss, gather_features
from minilib.models.groupvit.model import GroupViTOutput


def contrastive_loss(image: Tensor, text: Tensor, multiplier: Tensor) -> Tensor:
    """Return the symmetric InfoNCE between images and captions (equations 6 and 7).

    A batch of one gives 0. Over several processes, negatives come from all of them.

    Args:
        image: (b, E), of any length.
        text: (b, E), of any length; row i belongs to image i.
        multiplier: of the cosines, the inverse temperature.
    """
    return clip_loss(F.normalize(image, dim=-1), F.normalize(text, dim=-1), multiplier)


def multi_label_loss(image: Tensor, prompts: Tensor, multiplier: Tensor) -> Tensor:
    """Return the contrastive loss with K positives for each image (equations 8 and 9).

    Half of the mean over images of -1/K sum_k log softmax(s I_i T)_ik, the softmax over
    the N K prompts of the batch, and half of the mean over prompts of the cross-entropy
    with their image among all N. This is the code's; the paper writes the logarithm of
    the sum over positives. A noun in two captions makes its prompts negatives of each
    other's images. A batch of one still has its own K prompts to spread over: not 0.

    Args:
        image: (b, E), or (b, L, E) for L vectors of an image; of any length.
        prompts: (b, K, E), of any length.
        multiplier: of the cosines; its own, not that of the captions.

    Raises:
        ValueError: another number of images than of rows of prompts, or no prompt.
    """
    image = image if image.ndim == 3 else rearrange(image, "b e -> b 1 e")
    if prompts.ndim != 3 or len(prompts) != len(image) or not prompts.shape[1]:
        raise ValueError(
            f"prompts {tuple(prompts.shape)} do not fit {len(image)} images: expected "
            "(b, K, E) with K from 1, the prompts of each image in its row"
        )
    # Near 50, half-precision numbers lie too far apart for logits.
    with torch.autocast(image.device.type, enabled=False):
        image, prompts = (
            F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
            for x in (image, prompts)
        )
        rows = rearrange(image, "b l e -> (b l) e")
        columns = rearrange(prompts, "b k e -> (b k) e")
        per_image = multiplier * rows @ gather_features(columns).T
        per_prompt = multiplier * columns @ gather_features(rows).T
        own = multiplier * einsum(image, prompts, "b l e, b k e -> b l k").mean()
    # With uniform targets, -sum t log softmax = logsumexp - mean of the positives.
    images, texts = (x.logsumexp(dim=1).mean() for x in (per_image, per_prompt))
    return (images + texts) / 2 - own


def total_loss(output: GroupViTOutput, weight: float = 1.0) -> dict[str, Tensor]:
    """Return ``loss``, the sum of both, and its parts ``contrastive`` and, where there
    are prompts, ``multi_label``.

    Args:
        output: of the model, for captions alone or with their prompts.
        weight: of the multi-label loss; 1 as published.

    Raises:
        ValueError: there are prompts, but the model has no temperature for them.
    """
    loss = contrastive_loss(output.image, output.text, output.multiplier)
    parts = {"contrastive": loss.detach()}
    if output.prompts is not None:
        if output.prompt_multiplier is None:
            raise ValueError(
                "the model has no temperature for prompts: build it with "
                "multi_label=True, or pass captions alone"
            )
        more = multi_label_loss(output.image, output.prompts, output.prompt_multiplier)
        loss, parts["multi_label"] = loss + weight * more, more.detach()
    return {"loss": loss, **parts}
