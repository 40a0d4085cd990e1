"""Reading the configuration of released CLIP weights: OpenAI's layout and open_clip's modules."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from minilib.models.clip.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig

ARCHIVE_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Entries of OpenAI's archives that are not weights."""

TEXT_KEYS = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")

HUGGING_FACE_NAMES = (
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("text_projection.weight", "text_projection"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
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
"""Parts of the names in transformers' ``CLIPModel`` (its spelling) and in OpenAI's layout."""


def clean_state(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under OpenAI's names and in float32: without prefixes, extra numbers and buffers."""
    state = {}
    for key, value in state_dict.items():
        key = key.removeprefix("module.")
        if key.startswith("text.") and key.removeprefix("text.").startswith(TEXT_KEYS):
            key = key.removeprefix("text.")
        if key in ARCHIVE_NUMBERS or key.endswith("attn_mask"):
            continue
        if key in ("logit_scale", "logit_bias"):
            value = value.reshape(())
        state[key] = value.float() if value.is_floating_point() else value
    return state


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many different numbers the group of ``pattern`` takes over the keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(
            f"these weights are not those of a CLIP: {key!r} is missing (first keys: {sorted(state)[:3]})"
        )
    return tuple(state[key].shape)


def _side(positions: int) -> int:
    """Return the side of the square grid that ``positions``, less the class position, form."""
    side = math.isqrt(positions - 1)
    if side * side != positions - 1:
        raise ValueError(
            f"{positions - 1} grid positions do not form a square, so the image size cannot be read off them"
        )
    return side


def infer_config(
    state: Mapping[str, Tensor],
    vision_heads: int | None = None,
    text_heads: int | None = None,
    quick_gelu: bool = True,
) -> CLIPConfig:
    """Read the configuration off the shapes of weights in OpenAI's layout; 64 channels a head unless told."""
    context, text_width = _shape(state, "positional_embedding")
    text = TextConfig(
        context=context,
        vocab_size=_shape(state, "token_embedding.weight")[0],
        width=text_width,
        layers=_count(state, r"transformer\.resblocks\.(\d+)\."),
        heads=text_heads or max(1, text_width // 64),
    )
    vision: ViTConfig | ResNetConfig
    if "visual.proj" in state:
        width, _, patch, _ = _shape(state, "visual.conv1.weight")
        layers = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
        vision = ViTConfig(patch=patch, width=width, layers=layers, heads=vision_heads or max(1, width // 64))
        image_size = patch * _side(_shape(state, "visual.positional_embedding")[0])
    else:
        positions, channels = _shape(state, "visual.attnpool.positional_embedding")
        blocks = tuple(_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        width = _shape(state, "visual.layer1.0.conv1.weight")[0]
        vision = ResNetConfig(blocks=blocks, width=width, heads=vision_heads or max(1, channels // 64))
        image_size = 32 * _side(positions)
    return CLIPConfig(
        embed_dim=_shape(state, "text_projection")[1],
        image_size=image_size,
        vision=vision,
        text=text,
        quick_gelu=quick_gelu,
        init_logit_bias=float(state["logit_bias"]) if "logit_bias" in state else None,
    )


def open_clip_config(module: nn.Module, state: Mapping[str, Tensor]) -> CLIPConfig:
    """Read the configuration of an open_clip model whose cleaned weights are ``state``."""
    text = getattr(module, "text", module)
    visual = module.visual
    pooling = getattr(text, "pool_type", None) or getattr(module, "text_pool_type", "argmax")
    if (
        not hasattr(text, "transformer")
        or pooling != "argmax"
        or getattr(visual, "pool_type", "tok") != "tok"
    ):
        raise ValueError(
            f"{type(visual).__name__} with {type(text).__name__} (text pooling {pooling!r}) is not the "
            "paper's CLIP: only ViT and ModifiedResNet towers with end-of-text pooling convert"
        )
    text_heads = text.transformer.resblocks[0].attn.num_heads
    activations = {type(block.mlp.gelu).__name__ for block in text.transformer.resblocks}
    if hasattr(visual, "attnpool"):
        vision_heads = visual.attnpool.num_heads
    elif hasattr(visual, "transformer"):
        vision_heads = visual.transformer.resblocks[0].attn.num_heads
        activations |= {type(block.mlp.gelu).__name__ for block in visual.transformer.resblocks}
    else:
        raise ValueError(
            f"image tower {type(visual).__name__} does not convert: use a ViT or ModifiedResNet model"
        )
    if not activations <= {"QuickGELU"} and not activations <= {"GELU"}:
        raise ValueError(
            f"activations {sorted(activations)} do not convert: QuickGELU or GELU in both towers is needed"
        )
    config = infer_config(state, vision_heads, text_heads, quick_gelu=activations == {"QuickGELU"})
    preprocess = getattr(visual, "preprocess_cfg", {})
    mean = preprocess.get("mean") or getattr(visual, "image_mean", None) or config.image_mean
    std = preprocess.get("std") or getattr(visual, "image_std", None) or config.image_std
    return replace(config, image_mean=tuple(mean), image_std=tuple(std))


def from_hugging_face(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename the weights of a transformers ``CLIPModel`` to OpenAI's layout; others pass unchanged."""
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
    return renamed | {key: torch.cat([parts[letter] for letter in "qkv"]) for key, parts in packed.items()}
