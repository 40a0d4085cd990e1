"""The authors' checkpoints and transformers' copies: from their parameter names and
shapes to ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minilib.models.clip.config import TextConfig
from minilib.models.groupvit.config import AssignConfig, GroupViTConfig
from minilib.models.loading import numbered, require, unwrapped
from minilib.models.vit_names import BLOCK_NAMES

RENAMED = (
    (r"^img_encoder\.pos_embed$", "image_encoder.positions"),
    (r"^img_encoder\.patch_embed\.proj\.", "image_encoder.patch_embed."),
    (r"^img_encoder\.patch_embed\.norm\.", "image_encoder.patch_norm."),
    (r"^img_encoder\.layers\.", "image_encoder.stages."),
    (r"^img_encoder\.", "image_encoder."),
    (r"\.group_token$", ".group_tokens"),
    (r"\.downsample\.", ".grouping."),
    # Where the width changes, norm and mixer lie one level deeper.
    (r"\.group_projector\.0\.([01])\.", r".group_projector.\1."),
    (r"\.group_projector\.1\.(weight|bias)$", r".group_projector.reduction.0.\1"),
    (r"\.group_projector\.2\.", ".group_projector.reduction.1."),
    (r"\.group_projector\.0\.(weight|bias)$", r".group_projector.norm.\1"),
    (r"\.group_projector\.1\.fc", ".group_projector.mixer.fc"),
    (r"^img_projector\.", "image_projector."),
)
"""Patterns of the authors' names and ours, applied in order."""

TRANSFORMERS_NAMES = (
    (r"^text_model\.embeddings\.token_embedding", "text_encoder.token_embedding"),
    (
        r"^text_model\.embeddings\.position_embedding\.weight$",
        "text_encoder.positional_embedding",
    ),
    (r"^text_model\.final_layer_norm", "text_encoder.ln_final"),
    (r"^text_model\.encoder\.layers", "text_encoder.transformer.resblocks"),
    (r"^vision_model\.embeddings\.position_embeddings$", "img_encoder.pos_embed"),
    (
        r"^vision_model\.embeddings\.patch_embeddings\.projection",
        "img_encoder.patch_embed.proj",
    ),
    (r"^vision_model\.embeddings\.layernorm", "img_encoder.patch_embed.norm"),
    (r"^vision_model\.layernorm", "img_encoder.norm"),
    (r"^vision_model\.encoder\.stages\.(\d+)\.layers", r"img_encoder.layers.\1.blocks"),
    (r"^vision_model\.encoder\.stages", "img_encoder.layers"),
    (r"(\.pre_assign_attn\.attn\.)out_proj", r"\1proj"),
    (r"^visual_projection\.3\.", "img_projector.linear_out."),
    (r"^text_projection\.3\.", "text_projector.linear_out."),
    (r"^visual_projection\.", "img_projector.linear_hidden."),
    (r"^text_projection\.", "text_projector.linear_hidden."),
    (r"(resblocks\.\d+|blocks\.\d+)\.self_attn\.", r"\1.attn."),
    (r"(resblocks\.\d+)\.layer_norm([12])\.", r"\1.ln_\2."),
    (r"(blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
    (r"(resblocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.c_fc."),
    (r"(resblocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.c_proj."),
)
"""Patterns of the names in transformers' ``GroupViTModel`` and the authors'."""


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a released file under our names and in float32.

    Args:
        content: weights or a whole training file, in the authors' layout or in that of
            transformers' ``GroupViTModel``; also some of the entries alone.
    """
    state = {}
    for key, value in from_transformers_names(unwrapped(content)).items():
        if ".blocks." in key:
            key = _renamed(key, BLOCK_NAMES)
        key = _renamed(key, RENAMED)
        if key.endswith((".positions", ".group_tokens")):
            value = value.reshape(value.shape[-2:])
        elif key.startswith(("image_projector.", "text_projector.")):
            # A convolution over one place is a linear layer.
            value = value.reshape(value.shape[:2]) if value.ndim == 3 else value
        state[key] = value
    return state


def _renamed(key: str, patterns: Sequence[tuple[str, str]]) -> str:
    for pattern, ours in patterns:
        key = re.sub(pattern, ours, key)
    return key


def from_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' ``GroupViTModel`` to the authors' layout;
    others pass unchanged.

    Raises:
        ValueError: of a block's queries, keys and values one is missing.
    """
    if not any(key.startswith(("vision_model.", "text_model.")) for key in state):
        return dict(state)
    renamed: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.endswith("position_ids"):
            continue
        key = _renamed(key, TRANSFORMERS_NAMES)
        part = re.fullmatch(r"(.*blocks\.\d+\.attn)\.([qkv])_proj\.(weight|bias)", key)
        if part:
            name = "qkv." if ".resblocks." not in key else "in_proj_"
            packed.setdefault(f"{part[1]}.{name}{part[3]}", {})[part[2]] = value
        else:
            renamed[key] = value
    for key, parts in packed.items():
        if missing := set("qkv") - set(parts):
            raise ValueError(
                f"these are not the weights of a GroupViT: {key} lacks its part "
                f"{min(missing)}_proj"
            )
        renamed[key] = torch.cat([parts[letter] for letter in "qkv"])
    return renamed


def infer_config(
    state: Mapping[str, Tensor],
    heads: int | Sequence[int] | None = None,
    text_heads: int | None = None,
    assign: AssignConfig | None = None,
    drop_path: float = 0.1,
) -> GroupViTConfig:
    """Infer the configuration from the shapes of converted weights.

    What cannot be inferred from shapes is passed in, see ``GroupViT.from_official``.

    Raises:
        ValueError: a part of a GroupViT is missing, or its positions form no square.
    """
    encoder, text = "image_encoder.", "text_encoder."
    needed = [encoder + name for name in ("positions", "patch_embed.weight")]
    needed += [encoder + "stages.0.group_tokens", text + "positional_embedding"]
    needed += [text + "token_embedding.weight", "image_projector.linear_out.weight"]
    require(state, needed, "a GroupViT")
    _, _, patch, _ = state[encoder + "patch_embed.weight"].shape
    cells = len(state[encoder + "positions"])
    side = math.isqrt(cells)
    if side * side != cells:
        raise ValueError(
            f"{cells} positions do not form a square: the image size cannot be "
            "inferred from them"
        )
    stages = numbered(state, r"image_encoder\.stages\.(\d+)\.")
    at = [f"{encoder}stages.{stage}." for stage in range(stages)]
    first = [stage + "blocks.0.ln_1.weight" for stage in at]
    mixers = [stage + "grouping.mlp_inter.fc2.weight" for stage in at[:-1]]
    require(state, [*first, *mixers], "a GroupViT")
    widths = tuple(len(state[name]) for name in first)
    if isinstance(heads, int):
        heads = (heads,) * stages
    tokens = (state.get(stage + "group_tokens") for stage in at)
    context, text_width = state[text + "positional_embedding"].shape
    out = state["image_projector.linear_out.weight"]
    hidden = numbered(state, r"image_projector\.linear_hidden\.(\d+)\.") // 2
    return GroupViTConfig(
        image_size=side * patch,
        patch=patch,
        widths=widths,
        depths=tuple(
            numbered(state, re.escape(stage) + r"blocks\.(\d+)\.") for stage in at
        ),
        heads=tuple(heads or (max(1, width // 64) for width in widths)),
        group_tokens=tuple(0 if t is None else len(t) for t in tokens),
        output_groups=tuple(len(state[name]) for name in mixers),
        drop_path=drop_path,
        assign=assign or AssignConfig(),
        text=TextConfig(
            context=context,
            vocab_size=len(state[text + "token_embedding.weight"]),
            width=text_width,
            layers=numbered(state, r"text_encoder\.transformer\.resblocks\.(\d+)\."),
            heads=text_heads or max(1, text_width // 64),
        ),
        embed_dim=out.shape[0],
        projector_width=out.shape[1] if hidden else GroupViTConfig.projector_width,
        projector_layers=1 + hidden,
        multi_label="multi_label_logit_scale" in state,
    )


def transformers_options(module: nn.Module) -> dict[str, Any]:
    """Read from transformers' ``GroupViTModel`` what the shapes of its weights do not
    show: the keywords of :func:`infer_config`.

    Raises:
        ValueError: it has an option that GroupViT does not have.
    """
    config: Any = module.config
    vision, text = config.vision_config, config.text_config
    for name, found, wanted in (
        ("hidden_act of the image tower", vision.hidden_act, "gelu"),
        ("hidden_act of the text tower", text.hidden_act, "quick_gelu"),
        ("layer_norm_eps", vision.layer_norm_eps, 1e-5),
        ("layer_norm_eps of the text tower", text.layer_norm_eps, 1e-5),
        ("dropout", vision.dropout or text.dropout, 0.0),
        ("attention_dropout", vision.attention_dropout or text.attention_dropout, 0.0),
    ):
        if found != wanted:
            raise ValueError(f"{name} is {found!r}: GroupViT has {wanted!r}")
    return {
        "heads": vision.num_attention_heads,
        "text_heads": text.num_attention_heads,
        "assign": AssignConfig(assign_eps=vision.assign_eps),
        "drop_path": 0.0,
    }
