"""Losses that pull matching rows of two feature matrices together, on one
process or many.

Shapes: b pairs on this process, R processes, N = R * b pairs in all, E joint
dimension. Rows are unit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def _world() -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) when
    torch.distributed is not in use."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _GatherRows(torch.autograd.Function):
    """Join equal-sized rows of all processes; backward sums what all processes ask of
    this process's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_features(
    features: Tensor, with_grad: bool = True, keep_local_grad: bool = True
) -> Tensor:
    """Join the rows (b, E) of all processes to (N, E), in rank order; every process
    must hold the same b.

    Args:
        features: rows of this process.
        with_grad: gradients flow back to the process that owns the row; else remote
            rows are constants.
        keep_local_grad: without ``with_grad``, let this process's own rows
            keep their gradient.
    """
    rank, world_size = _world()
    if world_size == 1:
        return features
    if with_grad:
        return _GatherRows.apply(features)
    rows = list(_GatherRows.apply(features.detach()).chunk(world_size))
    if keep_local_grad:
        rows[rank] = features
    return torch.cat(rows)


def _dot_products(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """Return scale * rows (n, E) @ columns (m, E).T, in float32 also under autocast.

    Near 50, bfloat16 numbers lie 0.25 apart: too coarse for logits.
    """
    with torch.autocast(rows.device.type, enabled=False):
        if rows.dtype in (torch.float16, torch.bfloat16):
            rows, columns, scale = rows.float(), columns.float(), scale.float()
        return scale * rows @ columns.T


def _pair_logits(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    local_loss: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits per image and per text, (b, N) each (or (N, N)), and the column of
    each row's partner."""
    rank, world_size = _world()
    all_image, all_text = image, text
    if world_size > 1:
        keep_local_grad = not local_loss
        all_image = gather_features(image, with_grad, keep_local_grad)
        all_text = gather_features(text, with_grad, keep_local_grad)
    if world_size > 1 and local_loss:
        per_image = _dot_products(image, all_text, scale)
        per_text = _dot_products(text, all_image, scale)
        first = rank * len(image)
    else:
        per_image = _dot_products(all_image, all_text, scale)
        per_text = per_image.T
        first = 0
    if bias is not None:
        per_image, per_text = per_image + bias, per_text + bias
    return (
        per_image,
        per_text,
        torch.arange(first, first + len(per_image), device=image.device),
    )


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    local_loss: bool = True,
    gather_with_grad: bool = True,
) -> Tensor:
    """Symmetric InfoNCE, the loss of CLIP (paper Figure 3).

    1/2 [ mean_i CE(s I_i T^T, i) + mean_j CE(s T_j I^T, j) ]: every image picks its
    text among all N texts and every text its image among all N images. Chance is ln
    N; N = 1 gives 0.

    Args:
        image_features: (b, E) unit rows I.
        text_features: (b, E) unit rows T; row i belongs to image i.
        logit_scale: the multiplier s itself, not its logarithm.
        logit_bias: added to every logit; the softmax ignores it.
        local_loss: over several processes, score only this process's rows against all
            columns, (b, N) instead of (N, N). Values then differ by process; their mean
            is the loss of the joined batch.
        gather_with_grad: let gradients flow to the other processes' features. Only this
            gives, averaged over processes, the gradient of the joined batch; without it
            encoder gradients are 1/R of it (``local_loss=False``) or biased
            (``local_loss=True``).

    Returns:
        Scalar loss.
    """
    per_image, per_text, partner = _pair_logits(
        image_features,
        text_features,
        logit_scale,
        logit_bias,
        local_loss,
        gather_with_grad,
    )
    return (
        F.cross_entropy(per_image, partner) + F.cross_entropy(per_text, partner)
    ) / 2


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    negative_only: bool = False,
) -> Tensor:
    """Sigmoid loss (SigLIP, arXiv 2303.15343, equation 1): every pair is its own
    yes-or-no question.

    -1/b sum_ij log sigmoid(z_ij (s I_i . T_j + c)), z = +1 for matching pairs and -1
    for all others: a sum over the pairs divided by b, not by b^2. Over several
    processes each scores its images against all N texts; the mean of the values and of
    the gradients over processes are those of the joined batch. Checked by parity with
    open_clip, not run here; an exercise of chapter 1 trains with it.

    Args:
        image_features: (b, E) unit rows I.
        text_features: (b, E) unit rows T.
        logit_scale: the multiplier s; SigLIP starts at 10.
        logit_bias: the bias c; SigLIP starts at -10, since almost all
            pairs are negatives.
        negative_only: treat every pair of the given rows as a negative,
            and gather nothing.

    Returns:
        Scalar loss.
    """
    rank, _ = _world()
    texts = text_features if negative_only else gather_features(text_features)
    logits = _dot_products(image_features, texts, logit_scale)
    if logit_bias is not None:
        logits = logits + logit_bias
    sign = -torch.ones_like(logits)
    if not negative_only:
        sign.diagonal(rank * len(image_features)).fill_(1)
    return -F.logsigmoid(sign * logits).sum() / len(image_features)


def distill_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    teacher_logit_scale: Tensor,
    *,
    local_loss: bool = True,
    gather_with_grad: bool = True,
) -> Tensor:
    """Cross entropy between a teacher's and the student's matching distributions, mean
    over both directions.

    Added to ``clip_loss`` in open_clip's distillation. Teacher features (b, E') may
    have another dimension and use the teacher's own multiplier. Checked by parity with
    open_clip, not run here.
    """
    student = _pair_logits(
        image_features, text_features, logit_scale, None, local_loss, gather_with_grad
    )
    teacher = _pair_logits(
        teacher_image_features,
        teacher_text_features,
        teacher_logit_scale,
        None,
        local_loss,
        gather_with_grad,
    )
    directions = [
        F.cross_entropy(student_logits, teacher_logits.softmax(dim=1))
        for student_logits, teacher_logits in zip(student[:2], teacher[:2], strict=True)
    ]
    return (directions[0] + directions[1]) / 2
