"""How CLIMS is optimised, as meant and as the authors' code has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from minilib.models.clims.model import CLIMS


def parameter_groups(
    model: CLIMS, lr: float = 2.5e-4, weight_decay: float = 1e-4, head: float = 10.0
) -> list[dict[str, Any]]:
    """Return the two groups of SGD: the backbone, and the classifier at ``head`` times
    its learning rate; what is frozen is in neither.

    Each group also holds ``base_lr``, for :func:`poly_learning_rate`. The defaults are
    those of CLIMS on PASCAL VOC; its baseline is trained with ``lr=0.1``.
    """
    parts = (([model.backbone], lr), ([model.head, model.classifier], lr * head))
    groups = []
    for modules, rate in parts:
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        groups.append(
            {
                "params": parameters,
                "lr": rate,
                "base_lr": rate,
                "weight_decay": weight_decay,
            }
        )
    return groups


def make_sgd(
    groups: Sequence[dict[str, Any]], momentum: float = 0.9, official: bool = False
) -> torch.optim.SGD:
    """Return the optimiser of some parameter groups.

    Args:
        groups: from :func:`parameter_groups`.
        momentum: as meant.
        official: as the authors' code works out: the weight decay is passed where SGD
            expects its momentum, so a group's momentum is its weight decay, 1e-4, which
            is next to none. The 0.9 that their code calls momentum is the power of the
            schedule.
    """
    return torch.optim.SGD(
        [
            group | {"momentum": group["weight_decay"] if official else momentum}
            for group in groups
        ]
    )


def poly_learning_rate(
    step: int, base_lr: float, steps: int, power: float = 0.9
) -> float:
    """Return the learning rate of ``step`` (from 0): base (1 - step / steps)^power; a
    step beyond the last has the last one's."""
    return base_lr * (1 - min(step, steps - 1) / steps) ** power
