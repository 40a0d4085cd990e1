"""The loss of a segmenter: cross-entropy over labelled pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pixel_cross_entropy(
    logits: Tensor, target: Tensor, ignore: int = 255, over: str = "valid"
) -> Tensor:
    """Return the mean over labelled pixels of -log softmax(logits)_target, a scalar.

    This is equation 2 of LSeg as its code has it; as written, the paper maximises the
    sum of the probabilities of the true labels, and calls it cross-entropy. A batch in
    which every pixel is ignored gives 0 with a gradient of 0, where ``F.cross_entropy``
    and the authors of LSeg give nan.

    Args:
        logits: (B, N, H, W).
        target: (B, H, W) int64, 0 ... N - 1 or ``ignore``.
        ignore: the value of unlabelled pixels.
        over: "valid" divides by the labelled pixels; "all" by all pixels, as
            mmsegmentation 0.19 does, and so the authors of DenseCLIP, which weakens
            images with many unlabelled pixels.

    Raises:
        ValueError: shapes that do not belong together, a target that is not a label,
            or another ``over``.
    """
    if over not in ("valid", "all"):
        raise ValueError(f"over={over!r}: expected 'valid' or 'all'")
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"a mask {tuple(target.shape)} does not fit logits {tuple(logits.shape)}: "
            "expected (B, H, W)"
        )
    labelled = target != ignore
    wrong = labelled & ((target < 0) | (target >= logits.shape[1]))
    if wrong.any():
        raise ValueError(
            f"the mask has the value {int(target[wrong][0])}: expected 0 to "
            f"{logits.shape[1] - 1} for the classes, or {ignore} for unlabelled pixels"
        )
    total = F.cross_entropy(logits, target, ignore_index=ignore, reduction="sum")
    return total / (target.numel() if over == "all" else labelled.sum().clamp(min=1))
