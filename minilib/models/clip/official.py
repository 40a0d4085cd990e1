"""Reading the configuration of released CLIP weights: OpenAI's layout and
open_clip's modules."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minilib.models.clip.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from minilib.models.loading import numbered, require, unwrapped

ARCHIVE_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Entries of OpenAI's archives that are not weights."""

TEXT_KEYS = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
)

HUGGING_FACE_NAMES = (
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("text_projection.weight", "text_projection"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    (
        "vision_model.embeddings.position_embedding.weight",
        "visual.positional_embedding",
    ),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("vision_model.encoder.layers", "visual.transformer.resblocks"),
    ("visual_projection.weight", "visual.proj"),
    ("self_attn", "attn"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)
"""Parts of the names in transformers' ``CLIPModel`` (its spelling) and in
OpenAI's layout."""


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights under OpenAI's names and in float32: without prefixes, extra
    numbers and buffers."""
    state = {}
    for key, value in unwrapped(content).items():
        if key.startswith("text.") and key.removeprefix("text.").startswith(TEXT_KEYS):
            key = key.removeprefix("text.")
        if key in ARCHIVE_NUMBERS or key.endswith("attn_mask"):
            continue
        if key in ("logit_scale", "logit_bias"):
            value = value.reshape(())
        state[key] = value
    return state


def _side(positions: Tensor) -> int:
    """Return the side of the square grid that ``positions``, less the
    class position, form."""
    cells = len(positions) - 1
    side = math.isqrt(cells)
    if side * side != cells:
        raise ValueError(
            f"{cells} grid positions do not form a square: the image size cannot be "
            "inferred from them"
        )
    return side


def infer_config(
    state: Mapping[str, Tensor],
    vision_heads: int | None = None,
    text_heads: int | None = None,
    quick_gelu: bool = True,
) -> CLIPConfig:
    """Infer the configuration from the shapes of weights in OpenAI's layout.

    Shapes do not show the heads: by default there is one per 64 channels.

    Raises:
        ValueError: a part of a CLIP is missing.
    """
    require(
        state,
        ("positional_embedding", "token_embedding.weight", "text_projection"),
        "a CLIP",
    )
    context, text_width = state["positional_embedding"].shape
    text = TextConfig(
        context=context,
        vocab_size=len(state["token_embedding.weight"]),
        width=text_width,
        layers=numbered(state, r"transformer\.resblocks\.(\d+)\."),
        heads=text_heads or max(1, text_width // 64),
    )
    vision: ViTConfig | ResNetConfig
    if "visual.proj" in state:
        require(state, ("visual.conv1.weight", "visual.positional_embedding"), "a CLIP")
        width, _, patch, _ = state["visual.conv1.weight"].shape
        layers = numbered(state, r"visual\.transformer\.resblocks\.(\d+)\.")
        vision = ViTConfig(
            patch=patch,
            width=width,
            layers=layers,
            heads=vision_heads or max(1, width // 64),
        )
        image_size = patch * _side(state["visual.positional_embedding"])
    else:
        needed = (
            "visual.attnpool.positional_embedding",
            "visual.layer1.0.conv1.weight",
        )
        require(state, needed, "a CLIP")
        positions = state[needed[0]]
        blocks = tuple(
            numbered(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)
        )
        heads = vision_heads or max(1, positions.shape[1] // 64)
        vision = ResNetConfig(blocks=blocks, width=len(state[needed[1]]), heads=heads)
        image_size = 32 * _side(positions)
    return CLIPConfig(
        embed_dim=state["text_projection"].shape[1],
        image_size=image_size,
        vision=vision,
        text=text,
        quick_gelu=quick_gelu,
        init_logit_bias=float(state["logit_bias"]) if "logit_bias" in state else None,
    )


def open_clip_config(module: Any, state: Mapping[str, Tensor]) -> CLIPConfig:
    """Read the configuration of an open_clip model, an ``nn.Module`` without types,
    with the converted weights."""
    text = getattr(module, "text", module)
    visual = module.visual
    pooling = getattr(text, "pool_type", None) or getattr(
        module, "text_pool_type", "argmax"
    )
    if (
        not hasattr(text, "transformer")
        or pooling != "argmax"
        or getattr(visual, "pool_type", "tok") != "tok"
    ):
        raise ValueError(
            f"{type(visual).__name__} with {type(text).__name__} (text pooling "
            f"{pooling!r}) is not the paper's CLIP: only ViT and ModifiedResNet "
            "towers with end-of-text pooling convert"
        )
    text_heads = text.transformer.resblocks[0].attn.num_heads
    activations = {
        type(block.mlp.gelu).__name__ for block in text.transformer.resblocks
    }
    if hasattr(visual, "attnpool"):
        vision_heads = visual.attnpool.num_heads
    elif hasattr(visual, "transformer"):
        vision_heads = visual.transformer.resblocks[0].attn.num_heads
        activations |= {
            type(block.mlp.gelu).__name__ for block in visual.transformer.resblocks
        }
    else:
        raise ValueError(
            f"image tower {type(visual).__name__} does not convert: use a ViT or "
            "ModifiedResNet model"
        )
    if not activations <= {"QuickGELU"} and not activations <= {"GELU"}:
        raise ValueError(
            f"activations {sorted(activations)} do not convert: QuickGELU or GELU in "
            "both towers is needed"
        )
    config = infer_config(
        state, vision_heads, text_heads, quick_gelu=activations == {"QuickGELU"}
    )
    preprocess = getattr(visual, "preprocess_cfg", {})
    mean = (
        preprocess.get("mean")
        or getattr(visual, "image_mean", None)
        or config.image_mean
    )
    std = (
        preprocess.get("std") or getattr(visual, "image_std", None) or config.image_std
    )
    return replace(config, image_mean=tuple(mean), image_std=tuple(std))


def from_hugging_face(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename the weights of a transformers ``CLIPModel`` to OpenAI's layout;
    others pass unchanged."""
    if "visual_projection.weight" not in state:
        return state
    renamed = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.endswith("position_ids"):
            continue
        for theirs, ours in HUGGING_FACE_NAMES:
            key = key.replace(theirs, ours)
        if key in ("visual.proj", "text_projection"):
            value = value.T
        match = re.match(r"(.*\.attn)\.([qkv])_proj\.(weight|bias)$", key)
        if match:
            packed.setdefault(f"{match[1]}.in_proj_{match[3]}", {})[match[2]] = value
        else:
            renamed[key] = value
    return renamed | {
        key: torch.cat([parts[letter] for letter in "qkv"])
        for key, parts in packed.items()
    }
