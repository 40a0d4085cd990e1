"""DenseCLIP's optimisation (section 4.1), as meant and as the authors' code has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module,
    lr: float = 1e-4,
    weight_decay: float = 1e-4,
    backbone: float = 0.1,
    official: bool = False,
) -> list[dict[str, Any]]:
    """Return AdamW's groups: the image tower at ``backbone`` times the learning rate,
    the text tower fixed.

    Each group also holds the ``names`` of its parameters and ``base_lr``, for
    :func:`poly_learning_rate`.

    Args:
        model: a DenseCLIP of any kind.
        lr: learning rate of contexts, gamma, decoders, pyramid and head.
        weight_decay: decoupled weight decay.
        backbone: multiplier for the image tower.
        official: False: the text tower is left out, and nothing with fewer than two
            axes is decayed. True: as the authors' configuration works out: the text
            tower is a group of learning rate 0 (which their schedule then raises), and
            only the norms of the context decoder's layers go without decay, since mmcv
            looks for "norm" in the names outside the two towers.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in _optimised(model, official):
        tower = name.split(".")[0]
        rate = lr * {"backbone": backbone, "text_encoder": 0.0}.get(tower, 1.0)
        if official:
            free = "norm" in name and tower not in ("backbone", "text_encoder")
        else:
            free = parameter.ndim < 2
        decay = 0.0 if free else weight_decay
        empty = {
            "params": [],
            "names": [],
            "lr": rate,
            "base_lr": rate,
            "weight_decay": decay,
        }
        group = groups.setdefault((rate, decay), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _optimised(model: nn.Module, official: bool) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if official:
            parameter.requires_grad_()
            yield name, parameter
        elif parameter.requires_grad and not name.startswith("text_encoder."):
            yield name, parameter


def poly_learning_rate(
    step: int,
    base_lr: float,
    steps: int,
    *,
    power: float = 0.9,
    min_lr: float = 1e-6,
    warmup: int = 1500,
    warmup_ratio: float = 1e-6,
    official: bool = False,
) -> float:
    """Return the learning rate of ``step`` (from 0): (base - min)(1 - step /
    steps)^power + min, after a warm-up.

    With ``official``, as in mmcv, the floor ``min_lr`` also holds for a group whose
    base is 0: a text tower that was meant to be fixed drifts at up to 1e-6. Otherwise
    no group's floor is above its base.
    """
    floor = min_lr if official else min(min_lr, base_lr)
    rate = (base_lr - floor) * (1 - step / steps) ** power + floor
    if step < warmup:
        rate *= 1 - (1 - step / warmup) * (1 - warmup_ratio)
    return rate
