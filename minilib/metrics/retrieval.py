"""Top-k accuracy of a classifier and recall of a retrieval."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Return the share of rows of logits (n, K) whose label (n,) is among the
    k highest scores."""
    hits = logits.topk(k, dim=1).indices == labels.to(logits.device)[:, None]
    return hits.any(dim=1).double().mean().item()


def recall_at_k(
    similarity: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    groups: Sequence[Hashable] | None = None,
) -> dict[int, float]:
    """Return R@k, the share of queries that find a right item among their k best.

    Args:
        similarity: (n, n), row i the scores of query i for all items; transpose it for
            the other direction.
        ks: the k wanted.
        groups: n labels, such as the captions: any item with the query's label is
            right. Without it only item i is, which under-reports where captions repeat.

    An item that ties with the best right one counts as ranked before it, so constant
    features find nothing.
    """
    n = len(similarity)
    if similarity.shape != (n, n) or (groups is not None and len(groups) != n):
        raise ValueError(
            f"similarity must be (n, n) with n groups, got {tuple(similarity.shape)}"
        )
    index = {
        label: number
        for number, label in enumerate(dict.fromkeys(groups if groups else range(n)))
    }
    label = torch.tensor(
        [index[g] for g in (groups if groups else range(n))], device=similarity.device
    )
    right = label[:, None] == label[None, :]
    best = similarity.masked_fill(~right, float("-inf")).amax(dim=1, keepdim=True)
    rank = ((similarity >= best) & ~right).sum(dim=1)
    return {k: (rank < k).double().mean().item() for k in ks}
