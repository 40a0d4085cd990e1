"""The four losses of CLIMS, in the improved and in the camera-ready version.

n is the number of pairs of an image and a class that is present in it, L of background
prompts. Similarities are plain cosines, neither scaled nor softmaxed, so with a real
CLIP they lie between 0.1 and 0.35 and the losses fall little while the maps change a
lot. Losses of no pairs at all are 0, with a gradient of 0; the authors' loop stops
there.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from minilib.models.clims.config import IMPROVED_VOC, LossConfig
from minilib.models.clims.evaluator import Similarities

CLAMP = (1e-4, 0.9999)
"""Range of a cosine before its logarithm: outside it there is no gradient."""


def object_text_matching(
    similarity: Tensor, weight: Tensor | None = None, clamp: bool = True
) -> Tensor:
    """Return L_OTM, the mean of -log s_oo: the object's view shall match its name.

    The paper sums over classes; both versions of the code take the mean over pairs.

    Args:
        similarity: s_oo (n,), between the view X P_k and the name of class k.
        weight: (n,) of each pair (camera-ready), 1 by default.
        clamp: to :data:`CLAMP`, as the improved version does. Without it a cosine of
            0 or less gives infinity or nan.
    """
    similarity = similarity.clamp(*CLAMP) if clamp else similarity
    return _mean(-similarity.log(), weight)


def background_text_matching(
    similarity: Tensor, weight: Tensor | None = None, clamp: bool = True
) -> Tensor:
    """Return L_BTM, the mean of -log(1 - s_bo): what is left of the image shall not
    match the object's name, so that the map becomes complete.

    Args:
        similarity: s_bo (n,), between the view X (1 - P_k) and the name of class k.
        weight: as in :func:`object_text_matching`.
        clamp: likewise.
    """
    similarity = similarity.clamp(*CLAMP) if clamp else similarity
    return _mean(-(1 - similarity).log(), weight)


def background_suppression(similarity: Tensor, threshold: float) -> Tensor:
    """Return L_CBS of the improved version, the *sum* of -log(1 - s_ob) over the pairs
    and prompts whose cosine is above the threshold.

    A sum grows with the batch, and the hard threshold leaves no gradient to prompts
    below it: only what is visible is punished.

    Args:
        similarity: s_ob (n, L), between the views X P_k and all background prompts.
        threshold: a cosine; 0.26 on PASCAL VOC, 0.285 on COCO.
    """
    return -(1 - similarity[similarity > threshold]).log().sum()


def class_background_suppression(similarity: Tensor, own: Tensor) -> Tensor:
    """Return L_CBS of the camera-ready version: the mean of -log(1 - s_ob) over the
    prompts of the pair's own class, summed over pairs.

    Args:
        similarity: s_ob (n, L), between the views X P_k and all background prompts.
        own: (n, L) bool, which prompts belong to the pair's class; a class without any
            adds nothing.
    """
    missing = -(1 - similarity.masked_fill(~own, 0)).log()
    return (missing.sum(dim=1) / own.sum(dim=1).clamp(min=1)).sum()


def area_regularisation(activation: Tensor) -> Tensor:
    """Return L_REG, the mean of the maps P (B, K, h, w), those of absent classes
    included."""
    return activation.mean()


def clims_loss(
    similarities: Similarities,
    activation: Tensor,
    config: LossConfig = IMPROVED_VOC,
    class_weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return ``loss``, the weighted sum, and its parts ``otm``, ``btm``, ``cbs`` and
    ``reg`` before they are weighed.

    Args:
        similarities: from the evaluator.
        activation: P (B, K, h, w) from the network.
        config: weights, and which version.
        class_weight: (K,) of each class in L_OTM and L_BTM; in the camera-ready code 3
            for three classes, see ``prompts.class_weights``.
    """
    seen, clamp = similarities, not config.camera_ready
    weight = None if class_weight is None else class_weight[seen.label]
    parts = {
        "otm": object_text_matching(seen.object, weight, clamp),
        "btm": background_text_matching(seen.rest, weight, clamp),
        "cbs": class_background_suppression(seen.background, seen.own)
        if config.camera_ready
        else background_suppression(seen.background, config.threshold),
        "reg": area_regularisation(activation),
    }
    total = (
        config.otm * parts["otm"]
        + config.btm * parts["btm"]
        + config.cbs * parts["cbs"]
        + config.reg * parts["reg"]
    )
    return {"loss": total} | {name: value.detach() for name, value in parts.items()}


def baseline_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Return what the baseline is trained by: binary cross-entropy, mean over classes
    and images.

    Args:
        logits: (B, K) from ``CLIMS.logits``.
        present: (B, K) bool or 0 / 1, which classes are in each image.
    """
    return F.multilabel_soft_margin_loss(logits, present.to(logits.dtype))


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    values = values if weight is None else values * weight
    return values.sum() / max(len(values), 1)
