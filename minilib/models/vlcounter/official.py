"""The authors' checkpoint layout of VLCounter, read into this package's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minilib.models.clip.config import CLIPConfig
from minilib.models.clip.official import infer_config as infer_clip
from minilib.models.loading import require, under, unwrapped
from minilib.models.vlcounter.config import VLCounterConfig

HEAD_NAMES = (
    (r"attn_(weight|bias)", r"affine.\1"),
    (r"(t_proj|v_proj)\.(.+)", r"\1.\2"),
    (r"proj\.0\.(.+)", r"skips.0.conv.\1"),
    (r"proj\.1\.(.+)", r"skips.0.norm.\1"),
    (r"proj(\d)\.0\.(.+)", r"skips.\1.conv.\2"),
    (r"proj(\d)\.1\.(.+)", r"skips.\1.norm.\2"),
)


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a released file under this package's names.

    Raises:
        ValueError: an entry that every VLCounter has is missing.
    """
    weights = unwrapped(content)
    needed = (
        "v_enc.conv1.weight",
        "t_enc.token_embedding.weight",
        "t_proj.weight",
        "attn_weight",
    )
    require(weights, needed, "a VLCounter")
    head = {
        key: value
        for key, value in weights.items()
        if not key.startswith(("v_enc.", "t_enc."))
    }
    visual, prompts = convert_tower(under(weights, "v_enc."))
    parts = {
        "clip.": under(weights, "t_enc."),
        "clip.visual.": visual,
        "prompts.": prompts,
        "head.": convert_head(head),
    }
    state = {
        prefix + key: value
        for prefix, part in parts.items()
        for key, value in part.items()
    }
    # The counter has no use for CLIP's multiplier, and the file does not hold it.
    return state | {"clip.logit_scale": torch.tensor(CLIPConfig().init_logit_scale)}


def infer_config(
    state: Mapping[str, Tensor],
    vision_heads: int | None,
    text_heads: int | None,
    taps: tuple[int, ...] | None,
) -> VLCounterConfig:
    """Infer the configuration from converted weights.

    What cannot be inferred from shapes is passed in, see ``VLCounter.from_official``.

    Raises:
        ValueError: a part of its CLIP is missing.
    """
    encoder, tokens, layers = "frozen", 1, 1
    if "prompts.embeddings" in state:
        encoder = "spt" if "prompts.text_proj.weight" in state else "vpt"
        layers, tokens, _ = state["prompts.embeddings"].shape
    rows, columns = state["head.affine.weight"].shape[-2:]
    return VLCounterConfig(
        clip=infer_clip(under(state, "clip."), vision_heads, text_heads),
        grid=(rows, columns),
        encoder=encoder,
        prompts=tokens,
        prompted_layers=layers,
        taps=taps,
        channels=len(state["head.t_proj.weight"]),
    )


def convert_tower(
    tower: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the weights of an image encoder into those of CLIP's tower and those of its
    prompts (may be none).

    The last block's attention is stored under other names than that of the
    blocks before it.
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
    """Return the usual name of a block's weight: ``attn.qkv.weight`` is
    ``attn.in_proj_weight`` in all others."""
    key = re.sub(r"\battn\.qkv\.(weight|bias)$", r"attn.in_proj_\1", key)
    return re.sub(r"\battn\.proj\.(weight|bias)$", r"attn.out_proj.\1", key)


def convert_head(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of projections, affine map, skip connections and decoder under
    this package's names."""
    last = max(
        (int(m[1]) for key in head if (m := re.match(r"decoder\.(\d+)\.", key))),
        default=0,
    )
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
