"""The authors' checkpoint layout of VLCounter, read into this package's names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minilib.models.clip.config import CLIPConfig, TextConfig, ViTConfig

HEAD_NAMES = (
    (r"attn_(weight|bias)", r"affine.\1"),
    (r"(t_proj|v_proj)\.(.+)", r"\1.\2"),
    (r"proj\.0\.(.+)", r"skips.0.conv.\1"),
    (r"proj\.1\.(.+)", r"skips.0.norm.\1"),
    (r"proj(\d)\.0\.(.+)", r"skips.\1.conv.\2"),
    (r"proj(\d)\.1\.(.+)", r"skips.\1.norm.\2"),
)


def convert(
    official: Mapping[str, Any], vision_heads: int | None = None, text_heads: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration's values and the weights under this package's names.

    Args:
        official: the released file's content, or its entry ``state_dict``.
        vision_heads: heads of the image tower, which shapes do not tell; by default one per 64 channels.
        text_heads: likewise of the text tower.

    Raises:
        ValueError: an entry that every VLCounter has is missing.
    """
    weights = official.get("state_dict", official)
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    for key in ("v_enc.conv1.weight", "t_enc.token_embedding.weight", "t_proj.weight", "attn_weight"):
        if key not in weights:
            raise ValueError(f"these are not the weights of a VLCounter: {key!r} is missing")
    tower = {key.removeprefix("v_enc."): value for key, value in weights.items() if key.startswith("v_enc.")}
    text = {key.removeprefix("t_enc."): value for key, value in weights.items() if key.startswith("t_enc.")}
    head = {key: value for key, value in weights.items() if not key.startswith(("v_enc.", "t_enc."))}
    visual, prompts = convert_tower(tower)
    config = {
        "clip": clip_config(visual, text, vision_heads, text_heads),
        "grid": tuple(weights["attn_weight"].shape[-2:]),
        "channels": len(weights["t_proj.weight"]),
        **prompt_values(prompts),
    }
    state = {f"clip.{key}": value for key, value in text.items()}
    state |= {f"clip.visual.{key}": value for key, value in visual.items()}
    state["clip.logit_scale"] = torch.tensor(config["clip"].init_logit_scale)  # the counter has no use for it
    state |= {f"prompts.{key}": value for key, value in prompts.items()}
    state |= {f"head.{key}": value for key, value in convert_head(head).items()}
    return config, {key: value.float() for key, value in state.items()}


def convert_tower(tower: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the weights of an image encoder into those of CLIP's tower and those of its prompts (may be none).

    The last block's attention is stored under other names than that of the blocks before it.
    """
    visual: dict[str, Tensor] = {}
    prompts: dict[str, Tensor] = {}
    for key, value in tower.items():
        if key.startswith("attn."):
            continue
        if key.startswith(("prompt_proj.", "text_proj.")):
            prompts[key] = value
        elif key.startswith("prompt_norm."):
            prompts[key.replace("prompt_norm", "norm")] = value
        elif not key.endswith("prompt_embeddings"):
            visual[block_name(key)] = value
    if "prompt_embeddings" in tower:
        deep = tower.get("deep_prompt_embeddings", tower["prompt_embeddings"][:0])
        prompts["embeddings"] = torch.cat([tower["prompt_embeddings"], deep])
    return visual, prompts


def block_name(key: str) -> str:
    """Return the usual name of a block's weight: ``attn.qkv.weight`` is ``attn.in_proj_weight`` in all others."""
    key = re.sub(r"\battn\.qkv\.(weight|bias)$", r"attn.in_proj_\1", key)
    return re.sub(r"\battn\.proj\.(weight|bias)$", r"attn.out_proj.\1", key)


def convert_head(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of projections, affine map, skip connections and decoder under this package's names."""
    last = max((int(m[1]) for key in head if (m := re.match(r"decoder\.(\d+)\.", key))), default=0)
    renamed = {}
    for key, value in head.items():
        if key.startswith(f"decoder.{last}.gn."):  # stored, but never applied
            continue
        new = key
        for pattern, replacement in HEAD_NAMES:
            if re.fullmatch(pattern, key):
                new = re.sub(pattern, replacement, key)
                break
        new = re.sub(rf"decoder\.{last}\.conv\.", "density.", new)
        new = re.sub(r"decoder\.(\d+)\.conv\.", r"stages.\1.conv.", new)
        renamed[re.sub(r"decoder\.(\d+)\.gn\.", r"stages.\1.norm.", new)] = value
    return renamed


def prompt_values(prompts: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration's values that prompts' shapes tell."""
    if "embeddings" not in prompts:
        return {"encoder": "frozen", "prompts": 1, "prompted_layers": 1}
    layers, tokens, _ = prompts["embeddings"].shape
    return {
        "encoder": "spt" if "text_proj.weight" in prompts else "vpt",
        "prompts": tokens,
        "prompted_layers": layers,
    }


def clip_config(
    visual: Mapping[str, Tensor],
    text: Mapping[str, Tensor],
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> CLIPConfig:
    """Return the configuration of the frozen CLIP, from its shapes."""
    width, _, patch, _ = visual["conv1.weight"].shape
    context, text_width = text["positional_embedding"].shape
    side = math.isqrt(len(visual["positional_embedding"]) - 1)
    return CLIPConfig(
        embed_dim=text["text_projection"].shape[1],
        image_size=side * patch,
        vision=ViTConfig(patch, width, count_blocks(visual), vision_heads or max(1, width // 64)),
        text=TextConfig(
            context, len(text["token_embedding.weight"]), text_width, count_blocks(text),
            text_heads or max(1, text_width // 64),
        ),
    )  # fmt: skip


def count_blocks(state: Mapping[str, Tensor]) -> int:
    """Return how many blocks the transformer of a tower has."""
    return len({m[1] for key in state if (m := re.match(r"transformer\.resblocks\.(\d+)\.", key))})
