"""The authors' DenseCLIP: the layout of their checkpoints and their optimisation, beside ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from minilib.models.clip.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig

RESNET_HEADS = 32
"""Heads of the attention pool in the authors' code, whatever the width."""


def infer_config(
    state_dict: Mapping[str, Any],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    quick_gelu: bool = True,
    **changes: object,
) -> tuple[dict[str, Any], int, dict[str, Tensor]]:
    """Read the configuration off the shapes of a segmentation checkpoint.

    Args:
        state_dict: the checkpoint, or its ``state_dict``.
        vision_heads: heads of the image tower; 32 for ResNets, one per 64 channels for ViTs.
        text_heads: heads of the text tower, one per 64 channels.
        quick_gelu: which activation the CLIP behind it had.
        changes: values of DenseCLIPConfig, which win.

    Returns:
        Values for DenseCLIPConfig, the number K of classes, and the weights in float32.

    Raises:
        ValueError: a part of a DenseCLIP is missing.
    """
    content = state_dict.get("state_dict", state_dict)
    state = {key.removeprefix("module."): value for key, value in content.items()}
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}

    def shape(key: str) -> tuple[int, ...]:
        if key not in state:
            raise ValueError(f"these weights are not those of a DenseCLIP: {key!r} is missing ({sorted(state)[:3]})")
        return tuple(state[key].shape)

    classes, channels = shape("decode_head.conv_seg.weight")[:2]
    length, text_width = shape("text_encoder.positional_embedding")
    text = TextConfig(
        context=length,
        vocab_size=shape("text_encoder.token_embedding.weight")[0],
        width=text_width,
        layers=_count(state, r"text_encoder\.transformer\.resblocks\.(\d+)\."),
        heads=text_heads or max(1, text_width // 64),
    )
    vision: ViTConfig | ResNetConfig
    if "backbone.proj" in state:
        width, _, patch, _ = shape("backbone.conv1.weight")
        layers = _count(state, r"backbone\.transformer\.resblocks\.(\d+)\.")
        vision = ViTConfig(patch=patch, width=width, layers=layers, heads=vision_heads or max(1, width // 64))
        side = patch * math.isqrt(shape("backbone.positional_embedding")[0] - 1)
    else:
        blocks = tuple(_count(state, rf"backbone\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        width = shape("backbone.layer1.0.conv1.weight")[0]
        vision = ResNetConfig(blocks=blocks, width=width, heads=vision_heads or RESNET_HEADS)
        side = 32 * math.isqrt(shape("backbone.attnpool.positional_embedding")[0] - 1)
    config = {
        "clip": CLIPConfig(shape("text_encoder.text_projection")[1], side, vision, text, quick_gelu),
        "guidance": "post",
        "contexts": shape("contexts")[1],
        "decoder_width": shape("context_decoder.memory_proj.1.weight")[0],
        "decoder_layers": _count(state, r"context_decoder\.decoder\.(\d+)\."),
        "channels": channels,
        "double_class_embedding": True,
        "pad": False,
    }
    return config | changes, classes, state


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def parameter_groups(
    model: nn.Module, lr: float = 1e-4, weight_decay: float = 1e-4, backbone: float = 0.1, official: bool = False
) -> list[dict[str, Any]]:
    """Return AdamW's groups: the image tower at ``backbone`` times the learning rate, the text tower fixed.

    Each group also holds the ``names`` of its parameters and ``base_lr``, for :func:`poly_learning_rate`.

    Args:
        model: a DenseCLIP of any kind.
        lr: learning rate of contexts, gamma, decoders, pyramid and head.
        weight_decay: decoupled weight decay.
        backbone: factor for the image tower.
        official: False: the text tower is left out, and nothing with fewer than two axes is decayed. True: as
            the authors' configuration works out: the text tower is a group of learning rate 0 (which their
            schedule then raises), and only the norms of the context decoder's layers go without decay, since
            mmcv looks for "norm" in the names outside the two towers.
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
        empty = {"params": [], "names": [], "lr": rate, "base_lr": rate, "weight_decay": decay}
        group = groups.setdefault((rate, decay), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _optimised(model: nn.Module, official: bool) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if official:
            yield name, parameter.requires_grad_()
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
    """Return the learning rate of ``step`` (from 0): (base - min)(1 - step / steps)^power + min, after a warm-up.

    With ``official``, as in mmcv, the floor ``min_lr`` also holds for a group whose base is 0: a text tower that
    was meant to be fixed drifts at up to 1e-6. Otherwise no group's floor is above its base.
    """
    floor = min_lr if official else min(min_lr, base_lr)
    rate = (base_lr - floor) * (1 - step / steps) ** power + floor
    if step < warmup:
        rate *= 1 - (1 - step / warmup) * (1 - warmup_ratio)
    return rate
