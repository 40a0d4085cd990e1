"""Reading the configuration of released CLIP weights: OpenAI's layout and
open_clip's modules."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


SIXTEEN_HEADS = (1280, 1408, 1664, 1792)
"""Widths of the published image towers whose heads are wider than 64 channels: ViT-H,
ViT-g, ViT-bigG and ViT-e all have 16."""


@dataclass(frozen=True)
class Told:
    """What shapes do not show of a CLIP; None = not known."""

    vision_heads: int | None = None
    text_heads: int | None = None
    quick_gelu: bool | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None

    def or_else(self, other: Told) -> Told:
        """Return what this one tells, and what it leaves open from ``other``."""
        mine = {key: value for key, value in vars(self).items() if value is not None}
        return replace(other, **mine)


def told_by_hugging_face(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], widths: tuple[int, int]
) -> Told | None:
    """Read Hugging Face's ``config.json`` and ``preprocessor_config.json``.

    Args:
        config: of a ``CLIPModel``; entries that are missing have the defaults there.
        preprocessor: {} if there is none.
        widths: channels of the image and of the text tower, from the weights.

    Returns:
        None if the configuration is of another kind of model or of other widths.

    Raises:
        ValueError: the model has an option that CLIP does not have.
    """
    if config.get("model_type", "clip") != "clip" or "vision_config" not in config:
        return None
    defaults = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision, text = (
        {**defaults, "hidden_size": width, "num_attention_heads": heads}
        | (config.get(f"{name}_config") or {})
        | (config.get(f"{name}_config_dict") or {})
        for name, width, heads in (("vision", 768, 12), ("text", 512, 8))
    )
    if (vision["hidden_size"], text["hidden_size"]) != widths:
        return None
    activations = {vision["hidden_act"], text["hidden_act"]}
    if activations not in ({"quick_gelu"}, {"gelu"}):
        raise ValueError(
            f"hidden_act is {' and '.join(sorted(map(str, activations)))}: expected "
            "quick_gelu or gelu in both towers"
        )
    for tower in (vision, text):
        if tower["layer_norm_eps"] != 1e-5:
            raise ValueError(
                f"layer_norm_eps is {tower['layer_norm_eps']}: CLIP's norms use 1e-05"
            )
    return Told(
        _heads(vision["num_attention_heads"]),
        _heads(text["num_attention_heads"]),
        activations == {"quick_gelu"},
        _triple(preprocessor.get("image_mean")),
        _triple(preprocessor.get("image_std")),
    )


OPEN_CLIP_OPTIONS: dict[str, dict[str, Any]] = {
    "vision_cfg": {
        "timm_model_name": None,
        "pool_type": "tok",
        "no_ln_pre": False,
        "attentional_pool": False,
        "final_ln_after_pool": False,
        "pos_embed_type": "learnable",
        "norm_kwargs": None,
        "act_kwargs": None,
    },
    "text_cfg": {
        "hf_model_name": None,
        "pool_type": "argmax",
        "no_causal_mask": False,
        "embed_cls": False,
        "norm_kwargs": None,
        "act_kwargs": None,
    },
}
"""Options of open_clip's towers, and what the paper's CLIP has; other values compute
something else with weights that look the same."""


def told_by_open_clip(
    config: Mapping[str, Any], widths: tuple[int, int]
) -> Told | None:
    """Read ``open_clip_config.json``; arguments, result and errors as above."""
    model = config.get("model_cfg") or {}
    vision, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    width, layers = vision.get("width", 768), vision.get("layers", 12)
    width *= 32 if isinstance(layers, list) else 1
    if not model or (width, text.get("width", 512)) != widths:
        return None
    for name, options in OPEN_CLIP_OPTIONS.items():
        for option, value in options.items():
            found = model[name].get(option) if model.get(name) else None
            if found is not None and found != value:
                raise ValueError(
                    f"{name} has {option} = {found!r}: the paper's CLIP has {value!r}"
                )
    pixels = config.get("preprocess_cfg") or {}
    return Told(
        _heads(width // vision.get("head_width", 64)),
        _heads(text.get("heads", 8)),
        bool(model.get("quick_gelu", False)),
        _triple(pixels.get("mean")),
        _triple(pixels.get("std")),
    )


def _heads(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} heads: expected a whole number from 1")
    return value


def _triple(value: Any) -> tuple[float, ...] | None:
    return None if value is None else tuple(float(number) for number in value)


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights under OpenAI's names and in float32: without prefixes, extra
    numbers and buffers.

    Args:
        content: weights or a whole training file, in OpenAI's, open_clip's or Hugging
            Face's layout.
    """
    state = {}
    flat = from_hugging_face(unwrapped(content, "model.", "clip."))
    for key, value in flat.items():
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
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> CLIPConfig:
    """Infer the configuration from the shapes of weights in OpenAI's layout.

    Shapes do not show the heads: by default there is one per 64 channels, but 16 in
    image towers of :data:`SIXTEEN_HEADS`. Nor do they show mean and standard deviation
    of the pixels: by default they are OpenAI's.

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
            heads=vision_heads
            or (16 if width in SIXTEEN_HEADS else max(1, width // 64)),
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
    config = CLIPConfig(
        embed_dim=state["text_projection"].shape[1],
        image_size=image_size,
        vision=vision,
        text=text,
        quick_gelu=quick_gelu,
        init_logit_bias=float(state["logit_bias"]) if "logit_bias" in state else None,
    )
    return replace(
        config,
        image_mean=tuple(config.image_mean if image_mean is None else image_mean),
        image_std=tuple(config.image_std if image_std is None else image_std),
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
    for key, parts in packed.items():
        if missing := set("qkv") - set(parts):
            raise ValueError(
                f"these are not the weights of a CLIP: {key} lacks its part "
                f"{min(missing)}_proj"
            )
        renamed[key] = torch.cat([parts[letter] for letter in "qkv"])
    return renamed
