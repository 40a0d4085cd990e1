"""The layout of the authors' CounTX checkpoints, whose names are ours."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from minilib.models.clip.official import infer_config as infer_clip
from minilib.models.countx.config import CounTXConfig
from minilib.models.loading import numbered, require, under


def infer_config(
    state: Mapping[str, Tensor],
    heads: int,
    first_grid: int,
    groups: int,
    vision_heads: int | None,
    text_heads: int | None,
) -> CounTXConfig:
    """Infer the configuration from the shapes of a checkpoint.

    The CLIP inside is named ``clip_model`` and has open_clip's names, which are ours.
    What cannot be inferred from shapes is passed in, see ``CounTX.from_official``.

    Raises:
        ValueError: these are not the weights of a CounTX.
    """
    inside, decoder = "fim_blocks.0.mlp.fc1.weight", "decode_head0.0.weight"
    require(state, ("fim_pos_embed", "fim_norm.weight", inside, decoder), "a CounTX")
    towers = infer_clip(
        under(state, "clip_model."), vision_heads, text_heads, quick_gelu=False
    )
    hidden, dim = state[inside].shape
    patches, side = (
        state["fim_pos_embed"].shape[1],
        towers.image_size // towers.vision.reduction,
    )
    if math.isqrt(patches) != side:
        raise ValueError(
            f"{patches} positions of the interaction module for {side} patches a side "
            "of the image tower: the weights belong to two different models"
        )
    return CounTXConfig(
        clip=towers,
        blocks=numbered(state, r"fim_blocks\.(\d+)\."),
        heads=heads,
        mlp_ratio=hidden / dim,
        decoder_width=len(state[decoder]),
        groups=groups,
        first_grid=first_grid,
        doublings=numbered(state, r"decode_head(\d+)\."),
    )
