"""The authors' checkpoints: from their parameter names and shapes to ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from minilib.layers.imagenet_resnet import IMAGENET_MEAN, IMAGENET_STD
from minilib.models.clip import CLIP
from minilib.models.loading import numbered, under, unwrapped
from minilib.models.lseg.config import LSegConfig, ResNetBackbone, ViTBackbone
from minilib.models.vit_names import BLOCK_NAMES

RENAMED = (
    (r"^pretrained\.model\.cls_token$", "backbone.class_token"),
    (r"^pretrained\.model\.pos_embed$", "backbone.positions"),
    (r"^pretrained\.model\.patch_embed\.proj\.", "backbone.patch_embed."),
    (r"^pretrained\.model\.blocks\.", "backbone.transformer.resblocks."),
    *BLOCK_NAMES,
    (
        r"^pretrained\.act_postprocess(\d)\.0\.project\.0\.",
        r"backbone.reassemble.{\1}.readout.project.",
    ),
    (r"^pretrained\.act_postprocess(\d)\.3\.", r"backbone.reassemble.{\1}.project."),
    (r"^pretrained\.act_postprocess(\d)\.4\.", r"backbone.reassemble.{\1}.resample."),
    (r"^pretrained\.layer1\.0\.", "backbone.conv1."),
    (r"^pretrained\.layer1\.1\.", "backbone.bn1."),
    (r"^pretrained\.layer1\.4\.", "backbone.layer1."),
    (r"^pretrained\.layer", "backbone.layer"),
    (r"^scratch\.layer(\d)_rn\.", r"decoder.level.{\1}."),
    (r"^scratch\.refinenet(\d)\.", r"decoder.fuse.{\1}."),
    (r"^scratch\.head1\.", "head."),
    (r"^scratch\.head_block\.depthwise\.depthwise\.", "block.depthwise."),
)
"""Patterns of their names and ours, applied in order; {k} becomes k - 1, for
they count from one."""

UNUSED = re.compile(
    r"^(clip_pretrained|auxlayer)\."  # the copy of CLIP, see text_tower
    # computed or not, nothing reads their output
    r"|^pretrained\.model\.(norm|fc_norm|head)\."
    r"|^scratch\.refinenet4\.resConfUnit1\."  # the deepest level has nothing to merge
)


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights that LSeg uses, under our names and in float32."""
    state = {}
    for key, value in unwrapped(content, "net.").items():
        if UNUSED.match(key):
            continue
        for pattern, ours in RENAMED:
            key = re.sub(pattern, ours, key)
        key = re.sub(r"\{(\d)\}", lambda match: str(int(match[1]) - 1), key)
        if key in ("backbone.class_token", "backbone.positions"):
            value = value.reshape(
                value.shape[-1] if key.endswith("token") else value.shape[-2:]
            )
        state[key] = value
    return state


def infer_config(
    state: Mapping[str, Tensor],
    heads: int | None,
    hooks: Sequence[int] | None,
    block: str,
    block_depth: int,
    activation: str,
    half_product: bool,
) -> LSegConfig:
    """Infer the configuration from converted weights.

    What cannot be inferred from shapes is passed in, see ``LSeg.from_official``.

    Raises:
        ValueError: there is neither a ViT nor a ResNet in the weights.
    """
    if "head.weight" not in state:
        raise ValueError(
            "these are not the weights of an LSeg: 'scratch.head1.weight' is missing"
        )
    backbone: ViTBackbone | ResNetBackbone
    if "backbone.patch_embed.weight" in state:
        backbone, mean, std = _vit(state, heads, hooks), (0.5,) * 3, (0.5,) * 3
    elif "backbone.conv1.weight" in state:
        backbone, mean, std = _resnet(state), IMAGENET_MEAN, IMAGENET_STD
    else:
        raise ValueError(
            "no backbone in the weights: expected pretrained.model.* (ViT) or "
            "pretrained.layer1.*"
        )
    embed_dim, features = state["head.weight"].shape[:2]
    has_block = "block.depthwise.weight" in state
    return LSegConfig(
        backbone=backbone,
        features=features,
        embed_dim=embed_dim,
        block=block if has_block else "none",
        block_depth=block_depth if has_block else 1,
        activation=activation,
        half_product=half_product,
        image_mean=mean,
        image_std=std,
    )


def text_tower(content: Mapping[str, Any]) -> CLIP:
    """Return the copy of CLIP that a released checkpoint carries, to embed labels with.

    Its ``logit_scale`` is CLIP's own and has no place in LSeg, whose
    temperature is a constant.

    Raises:
        ValueError: the checkpoint has no CLIP in it; take the public one, it has
            the same weights.
    """
    clip = under(unwrapped(content, "net."), "clip_pretrained.")
    if not clip:
        raise ValueError(
            'no CLIP among the weights: use load_clip("ViT-B-32", '
            'pretrained="openai"), the tower they used'
        )
    return CLIP.from_official(clip)


def _vit(
    state: Mapping[str, Tensor], heads: int | None, hooks: Sequence[int] | None
) -> ViTBackbone:
    width, _, patch, _ = state["backbone.patch_embed.weight"].shape
    layers = numbered(state, r"backbone\.transformer\.resblocks\.(\d+)\.")
    return ViTBackbone(
        patch=patch,
        width=width,
        layers=layers,
        heads=heads or max(1, width // 64),
        grid=math.isqrt(len(state["backbone.positions"]) - 1),
        hooks=tuple(hooks or ((quarter + 1) * layers // 4 - 1 for quarter in range(4))),
        channels=tuple(
            len(state[f"backbone.reassemble.{level}.project.weight"])
            for level in range(4)
        ),
        readout="project"
        if "backbone.reassemble.0.readout.project.weight" in state
        else "ignore",
    )


def _resnet(state: Mapping[str, Tensor]) -> ResNetBackbone:
    return ResNetBackbone(
        blocks=tuple(
            numbered(state, rf"backbone\.layer{stage}\.(\d+)\.")
            for stage in (1, 2, 3, 4)
        ),
        stem=len(state["backbone.conv1.weight"]),
        planes=len(state["backbone.layer1.0.conv1.weight"]),
    )
