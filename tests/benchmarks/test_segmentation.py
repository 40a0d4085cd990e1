"""LSeg forward and backward, against transformers' DPT with the same backbone, decoder
and number of classes.

Our weights are transformers' DPT, converted, and the decoders' outputs are compared
first, so that the two do the same work up to the head. The heads differ as the papers
do: a 3 x 3 convolution and a classifier there, 512-dimensional pixel embeddings and
their products with words here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.models.lseg import LSeg, LSegConfig, ViTBackbone, pixel_cross_entropy

SIZE, CLASSES = 128, 20
BACKBONE = ViTBackbone(16, 192, 4, 3, SIZE // 16, (0, 1, 2, 3), (48, 96, 192, 192))
FEATURES = 64

LEVELS = "0123"
NAMES = (
    (r"dpt\.embeddings\.cls_token", "backbone.class_token"),
    (r"dpt\.embeddings\.position_embeddings", "backbone.positions"),
    (r"dpt\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed"),
    (r"dpt\.encoder\.layer\.", "backbone.transformer.resblocks."),
    (r"attention\.output\.dense", "attn.out_proj"),
    (r"intermediate\.dense", "mlp.c_fc"),
    (r"output\.dense", "mlp.c_proj"),
    (r"layernorm_before", "ln_1"),
    (r"layernorm_after", "ln_2"),
    (
        r"neck\.reassemble_stage\.readout_projects\.(\d)\.0",
        r"backbone.reassemble.\1.readout.project",
    ),
    (
        r"neck\.reassemble_stage\.layers\.(\d)\.projection",
        r"backbone.reassemble.\1.project",
    ),
    (
        r"neck\.reassemble_stage\.layers\.(\d)\.resize",
        r"backbone.reassemble.\1.resample",
    ),
    (r"neck\.convs\.(\d)", r"decoder.level.\1"),
    (
        r"neck\.fusion_stage\.layers\.(\d)",
        lambda match: f"decoder.fuse.{LEVELS[::-1][int(match[1])]}",
    ),
    (r"projection", "out_conv"),
    (r"residual_layer", "resConfUnit"),
    (r"convolution", "conv"),
    (r"batch_norm", "bn"),
)


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of transformers' DPT that LSeg has too, under our names."""
    ours, packed = {}, {}
    for key, value in state.items():
        if part := re.fullmatch(
            r"(.*)\.attention\.attention\.(query|key|value)\.(weight|bias)", key
        ):
            packed.setdefault((part[1], part[3]), {})[part[2]] = value
            continue
        for theirs, name in NAMES:
            key = re.sub(theirs, name, key)
        ours[key] = value
    for (layer, kind), values in packed.items():
        name = layer.replace("dpt.encoder.layer.", "backbone.transformer.resblocks.")
        ours[f"{name}.attn.in_proj_{kind}"] = torch.cat(
            [values[part] for part in ("query", "key", "value")]
        )
    ours["backbone.class_token"] = ours["backbone.class_token"][0, 0]
    ours["backbone.positions"] = ours["backbone.positions"][0]
    unused = ("head.", "dpt.", f"decoder.fuse.{LEVELS[-1]}.resConfUnit1")
    return {key: value for key, value in ours.items() if not key.startswith(unused)}


def transformers_model() -> nn.Module:
    from transformers import DPTConfig, DPTForSemanticSegmentation

    torch.manual_seed(0)
    return DPTForSemanticSegmentation(
        DPTConfig(
            hidden_size=BACKBONE.width,
            num_hidden_layers=BACKBONE.layers,
            num_attention_heads=BACKBONE.heads,
            intermediate_size=4 * BACKBONE.width,
            image_size=SIZE,
            patch_size=BACKBONE.patch,
            layer_norm_eps=1e-6,
            backbone_out_indices=list(BACKBONE.hooks),
            neck_hidden_sizes=list(BACKBONE.channels),
            reassemble_factors=[4, 2, 1, 0.5],
            readout_type="project",
            fusion_hidden_size=FEATURES,
            use_batch_norm_in_fusion_residual=True,
            use_auxiliary_head=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=CLASSES,
        )
    )


def our_model(theirs: nn.Module) -> LSeg:
    """Return LSeg with the weights of transformers' DPT, after checking that both
    decode the same map."""
    torch.manual_seed(0)
    model = LSeg(LSegConfig(BACKBONE, FEATURES))
    missing = model.load_state_dict(converted(theirs.state_dict()), strict=False)
    assert not missing.unexpected_keys and {
        key.split(".")[0] for key in missing.missing_keys
    } == {"head"}
    pixels = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    captured = []
    hook = theirs.neck.register_forward_hook(
        lambda module, inputs, outputs: captured.append(outputs[-1])
    )
    with torch.no_grad():
        theirs.eval()(pixels)
        ours = model.eval().decoder(model.backbone(pixels))
    hook.remove()
    torch.testing.assert_close(ours, captured[0], rtol=1e-3, atol=1e-3)
    return model


def stepper(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    model.train()

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return value

    return step


def test_lseg_forward_backward(contest, threads):
    pytest.importorskip("transformers")
    n = 2 if contest.quick else 8
    theirs = transformers_model()
    ours = our_model(theirs)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(n, 3, SIZE, SIZE, generator=generator)
    mask = torch.randint(CLASSES, (n, SIZE, SIZE), generator=generator)
    text = F.normalize(
        torch.randn(CLASSES, ours.config.embed_dim, generator=generator), dim=1
    )
    contest.run(
        f"LSeg {SIZE}x{SIZE}, {CLASSES} labels, forward + backward, {threads}",
        stepper(ours, lambda: pixel_cross_entropy(ours(pixels, text).scores, mask)),
        {
            "transformers' DPT": stepper(
                theirs, lambda: F.cross_entropy(theirs(pixels).logits, mask)
            )
        },
        n,
        aim=">= 1 x",
    )
