"""The layout of the authors' DenseCLIP checkpoints, whose names are ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from minilib.models.clip.official import infer_config as infer_clip
from minilib.models.denseclip.config import DenseCLIPConfig
from minilib.models.loading import numbered, require, under

RESNET_HEADS = 32
"""Heads of the attention pool in the authors' code, whatever the width."""


def infer_config(
    state: Mapping[str, Tensor],
    vision_heads: int | None,
    text_heads: int | None,
    decoder_heads: int,
    taps: Sequence[int] | None,
    tau: float,
    quick_gelu: bool,
) -> DenseCLIPConfig:
    """Infer the configuration from the shapes of a segmentation checkpoint.

    What cannot be inferred from shapes is passed in, see ``DenseCLIP.from_official``.

    Raises:
        ValueError: a part of a DenseCLIP is missing.
    """
    memory = "context_decoder.memory_proj.1.weight"
    require(state, ("decode_head.conv_seg.weight", "contexts", memory), "a DenseCLIP")
    visual = {
        f"visual.{key}": value for key, value in under(state, "backbone.").items()
    }
    if "visual.proj" not in visual:
        vision_heads = vision_heads or RESNET_HEADS
    towers = under(state, "text_encoder.") | visual
    return DenseCLIPConfig(
        clip=infer_clip(towers, vision_heads, text_heads, quick_gelu),
        guidance="post",
        contexts=state["contexts"].shape[1],
        decoder_width=len(state[memory]),
        decoder_layers=numbered(state, r"context_decoder\.decoder\.(\d+)\."),
        decoder_heads=decoder_heads,
        channels=state["decode_head.conv_seg.weight"].shape[1],
        tau=tau,
        taps=None if taps is None else tuple(taps),
        double_class_embedding=True,
        pad=False,
    )
