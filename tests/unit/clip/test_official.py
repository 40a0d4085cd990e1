"""Other people's CLIPs, with random weights, converted: the same
embeddings must come out."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

from minilib.models.clip import CLIP, ResNetConfig, ViTConfig
from minilib.models.clip.official import from_hugging_face

VIT = {"image_size": 32, "layers": 2, "width": 48, "patch_size": 8, "head_width": 12}
RESNET = {"image_size": 64, "layers": [2, 1, 1, 2], "width": 16, "head_width": 32}
TEXT = {"context_length": 12, "vocab_size": 96, "width": 40, "heads": 5, "layers": 2}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Overwrite every weight, also those that start at zero or one, so that none can be
    left out unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(
                    torch.randn(value.shape, generator=generator) * 0.2
                    + 0.1 * (value.ndim == 1)
                )
        for name, value in module.named_buffers():
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return module.eval()


def inputs(image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, image_size, image_size, generator=generator)
    tokens = torch.zeros(3, 12, dtype=torch.long)
    for row, length in enumerate((12, 5, 2)):
        tokens[row, :length] = torch.randint(1, 94, (length,), generator=generator)
        tokens[row, 0], tokens[row, length - 1] = 94, 95
    return pixels, tokens


def assert_same_embeddings(
    ours: CLIP, theirs: torch.nn.Module, image_size: int
) -> None:
    pixels, tokens = inputs(image_size)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.encode_image(pixels), theirs.encode_image(pixels), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            ours.encode_text(tokens), theirs.encode_text(tokens), rtol=1e-4, atol=1e-5
        )
        expected = theirs(pixels, tokens)
        output = ours(pixels, tokens)
    for actual, wanted in zip(output[:2], expected[:2], strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.logit_scale, expected[2])


@pytest.mark.parametrize("kind", [open_clip.CLIP, CustomTextCLIP])
@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_open_clip(kind: type, quick_gelu: bool, vision: dict) -> None:
    theirs = kind(
        24, CLIPVisionCfg(**vision), CLIPTextCfg(**TEXT), quick_gelu=quick_gelu
    )
    ours = CLIP.from_open_clip(randomised(theirs))
    assert ours.config.quick_gelu is quick_gelu and not ours.training
    if vision is VIT:
        assert ours.config.vision == ViTConfig(patch=8, width=48, layers=2, heads=4)
    else:
        assert ours.config.vision == ResNetConfig(
            blocks=(2, 1, 1, 2), width=16, heads=16
        )
    assert_same_embeddings(ours, theirs, vision["image_size"])


def test_open_clip_named_model_with_its_preprocessing(tmp_path) -> None:
    config = tmp_path / "minilib-test-vit.json"
    config.write_text(
        json.dumps({"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT})
    )
    open_clip.add_model_config(config)
    statistics = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.25, 0.25, 0.25)}
    theirs, _, _ = open_clip.create_model_and_transforms(
        "minilib-test-vit", **statistics
    )
    ours = CLIP.from_open_clip(randomised(theirs))
    assert ours.config.image_mean == (0.5, 0.5, 0.5) and ours.config.image_std == (
        0.25,
        0.25,
        0.25,
    )
    assert_same_embeddings(ours, theirs, 32)


def test_siglip_bias_converts() -> None:
    theirs = open_clip.CLIP(
        24, CLIPVisionCfg(**VIT), CLIPTextCfg(**TEXT), init_logit_bias=-10.0
    )
    ours = CLIP.from_open_clip(theirs.eval())
    assert ours.logit_bias.item() == -10


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        (VIT, TEXT | {"pool_type": "last"}),
        (VIT | {"pool_type": "avg"}, TEXT),
        (VIT | {"ls_init_value": 0.1}, TEXT),
        (VIT, TEXT | {"no_causal_mask": True}),
        (VIT | {"no_ln_pre": True}, TEXT),
        (VIT | {"final_ln_after_pool": True, "pool_type": "avg"}, TEXT),
    ],
)
def test_other_architectures_are_refused(vision: dict, text: dict) -> None:
    theirs = randomised(
        open_clip.CLIP(24, CLIPVisionCfg(**vision), CLIPTextCfg(**text))
    )
    with pytest.raises(
        ValueError, match="not the paper's CLIP|do not fit|computes something else"
    ):
        CLIP.from_open_clip(theirs)


def test_hugging_face() -> None:
    from transformers import CLIPConfig, CLIPModel

    same = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
    }
    vision = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 48,
        "intermediate_size": 192,
        **same,
    }
    text = {
        "max_position_embeddings": 12,
        "vocab_size": 96,
        "hidden_size": 40,
        "intermediate_size": 160,
        **same,
    }
    text |= {"eos_token_id": 95, "bos_token_id": 94}
    theirs = randomised(
        CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24))
    )
    ours = CLIP.from_official(
        from_hugging_face(theirs.state_dict()), vision_heads=4, text_heads=4
    )
    pixels, tokens = inputs(32)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, pixel_values=pixels).logits_per_image
        output = ours(pixels, tokens)
    logits = output.logit_scale * output.image_features @ output.text_features.T
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def official_state() -> dict[str, torch.Tensor]:
    theirs = open_clip.CLIP(
        24, CLIPVisionCfg(**VIT), CLIPTextCfg(**TEXT), quick_gelu=True
    )
    return dict(randomised(theirs).state_dict())


def test_released_dressings_are_taken_off() -> None:
    """Half precision, a DistributedDataParallel prefix, the archive's three numbers."""
    plain = CLIP.from_official(official_state(), vision_heads=4, text_heads=5)
    dressed = {f"module.{key}": value.half() for key, value in official_state().items()}
    dressed |= {
        key: torch.tensor(7)
        for key in ("input_resolution", "context_length", "vocab_size")
    }
    model = CLIP.from_official(dressed, vision_heads=4, text_heads=5)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    pixels, _ = inputs(32)
    torch.testing.assert_close(
        model.encode_image(pixels), plain.encode_image(pixels), rtol=0.05, atol=0.05
    )


def test_a_whole_training_file_is_read() -> None:
    plain, state = (
        CLIP.from_official(official_state(), vision_heads=4, text_heads=5),
        official_state(),
    )
    for file in (
        {
            "epoch": 3,
            "state_dict": {f"module.{key}": value for key, value in state.items()},
        },
        {
            "model": {f"_orig_mod.{key}": value for key, value in state.items()},
            "optimizer": {},
        },
    ):
        model = CLIP.from_official(file, vision_heads=4, text_heads=5)
        assert all(
            torch.equal(value, plain.state_dict()[key])
            for key, value in model.state_dict().items()
        )


def test_weights_that_do_not_fit_are_named() -> None:
    state = official_state()
    del state["visual.ln_post.weight"]
    state["visual.extra"] = torch.zeros(1)
    with pytest.raises(
        ValueError,
        match=(
            r"a CLIP: 1 missing \(visual.ln_post.weight\); 1 unknown "
            r"\(visual.extra\)"
        ),
    ):
        CLIP.from_official(state, vision_heads=4, text_heads=5)
    with pytest.raises(ValueError, match="'positional_embedding' is missing"):
        CLIP.from_official({"backbone.weight": torch.zeros(3)})
    state = official_state() | {"visual.proj": torch.zeros(48, 7)}
    with pytest.raises(
        ValueError,
        match=r"1 of another shape \(visual.proj is \(48, 7\), expected \(48, 24\)\)",
    ):
        CLIP.from_official(state, vision_heads=4, text_heads=5)
