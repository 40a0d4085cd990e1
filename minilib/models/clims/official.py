"""The authors' checkpoints: from their parameter names and shapes to ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from minilib.models.clims.config import CLIMSConfig
from minilib.models.clip.config import CLIPConfig
from minilib.models.loading import numbered, require, under, unwrapped

STAGES = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
"""What a backbone's names start with."""


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights under our names, in float32.

    ``res50_cam.pth`` (the baseline) and ``res50_clims.pth`` keep the backbone under
    ``resnet50.``, and every tensor a second time under ``stage1.`` ... ``stage4.``,
    ``backbone.`` and ``newly_added.``, which are not read. The camera-ready model keeps
    the backbone at the top, beside ``cam_head.``.
    """
    state = unwrapped(content)
    if "cam_head.1.weight" in state:
        backbone = {k: v for k, v in state.items() if k.startswith(STAGES)}
        head = {
            f"head.{name}": value for name, value in under(state, "cam_head.0.").items()
        }
        classifier = {"classifier.weight": state["cam_head.1.weight"]}
    else:
        backbone, head = under(state, "resnet50."), {}
        classifier = {k: v for k, v in state.items() if k == "classifier.weight"}
    return {f"backbone.{k}": v for k, v in backbone.items()} | head | classifier


def infer_config(state: Mapping[str, Tensor], stride: int) -> CLIMSConfig:
    """Infer the configuration from the shapes of converted weights.

    Raises:
        ValueError: these are not the weights of a CLIMS.
    """
    names = ("classifier.weight", "backbone.conv1.weight")
    require(state, (*names, "backbone.layer1.0.conv1.weight"), "a CLIMS")
    bottleneck = "head.conv1.weight" in state
    config = CLIMSConfig(
        classes=len(state["classifier.weight"]) - bottleneck,
        blocks=tuple(
            numbered(state, rf"backbone\.layer{stage}\.(\d+)\.")
            for stage in (1, 2, 3, 4)
        ),
        stem=len(state["backbone.conv1.weight"]),
        planes=len(state["backbone.layer1.0.conv1.weight"]),
        stride=stride,
        head="bottleneck" if bottleneck else "linear",
    )
    if not bottleneck:
        return config
    return replace(
        config, image_mean=CLIPConfig.image_mean, image_std=CLIPConfig.image_std
    )
