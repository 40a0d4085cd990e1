"""Reading the configuration of CounTX weights in the authors' layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from minilib.models.clip.official import clean_state, infer_config


def countx_values(
    state_dict: Mapping[str, Tensor],
    heads: int = 16,
    first_grid: int = 24,
    groups: int = 8,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the values of CounTXConfig that fit the weights, and the weights in float32.

    The CLIP inside stands under ``clip_model.`` with open_clip's names, which are ours.

    Raises:
        ValueError: these are not the weights of a CounTX.
    """
    state = {key.removeprefix("module."): value.float() for key, value in state_dict.items()}
    needed = ("fim_pos_embed", "fim_norm.weight", "fim_blocks.0.mlp.fc1.weight", "decode_head0.0.weight")
    if missing := [key for key in needed if key not in state]:
        hint = " Pass the entry 'model' of the file." if "model" in state_dict else ""
        raise ValueError(f"not the weights of a CounTX: {missing[0]!r} is missing.{hint}")
    clip = {key.removeprefix("clip_model."): value for key, value in state.items() if key.startswith("clip_model.")}
    config = infer_config(clean_state(clip), vision_heads, text_heads, quick_gelu=False)
    inside, dim = state["fim_blocks.0.mlp.fc1.weight"].shape
    patches = state["fim_pos_embed"].shape[1]
    if math.isqrt(patches) != config.image_size // config.vision.patch:
        raise ValueError(
            f"{patches} positions of the interaction module for {config.image_size // config.vision.patch} patches a "
            "side of the image tower: the weights belong to two different models"
        )
    values = {
        "clip": config,
        "blocks": _count(state, "fim_blocks."),
        "heads": heads,
        "mlp_ratio": inside / dim,
        "decoder_width": len(state["decode_head0.0.weight"]),
        "groups": groups,
        "first_grid": first_grid,
        "doublings": len({key.split(".")[0] for key in state if key.startswith("decode_head")}),
    }
    return values, state


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many different modules stand under ``prefix``."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})
