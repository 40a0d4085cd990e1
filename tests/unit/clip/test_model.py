"""The CLIP model: properties that the paper's design promises,
controls, and bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from minilib.models.clip import (
    CLIP,
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
    clip_loss,
    prompt_ensemble,
    siglip_loss,
    zero_shot_weights,
)
from minilib.tokenizer import Tokenizer, vocabulary_of

TEXTS = [
    "a red dog left of a blue cat",
    "a blue dog left of a red cat",
    "two trees",
    "grass",
]
VOCABULARY = vocabulary_of([*TEXTS, "a photo of a"])
TEXT = TextConfig(
    context=16,
    vocab_size=Tokenizer(16, VOCABULARY).vocab_size,
    width=32,
    layers=2,
    heads=2,
)
VIT = CLIPConfig(
    embed_dim=24,
    image_size=32,
    vision=ViTConfig(patch=8, width=32, layers=2, heads=2),
    text=TEXT,
    vocabulary=VOCABULARY,
)
CONV = replace(VIT, vision=ViTConfig(patch=8, width=32, layers=2, heads=2, stem="conv"))
RESNET = replace(
    VIT, image_size=64, vision=ResNetConfig(blocks=(1, 1, 1, 1), width=8, heads=4)
)
TOWERS = {"vit": VIT, "conv": CONV, "resnet": RESNET}


def build(config: CLIPConfig, seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(config).eval()


@pytest.fixture(params=TOWERS)
def any_tower(request: pytest.FixtureRequest) -> CLIP:
    return build(TOWERS[request.param])


def pixels(
    config: CLIPConfig, n: int = 2, size: tuple[int, int] | None = None
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, *(size or (config.image_size,) * 2), generator=generator)


def test_forward_returns_unit_rows_and_the_multiplier(any_tower: CLIP) -> None:
    output = any_tower(pixels(any_tower.config, 4), any_tower.tokenize(TEXTS))
    for features in (output.image_features, output.text_features):
        assert features.shape == (4, 24)
        torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    assert output.logit_scale.item() == pytest.approx(1 / 0.07)
    assert output.logit_bias is None


def test_batched_equals_single(any_tower: CLIP) -> None:
    batch = pixels(any_tower.config, 3)
    tokens = any_tower.tokenize(TEXTS[:3])
    together = any_tower(batch, tokens)
    for index in range(3):
        alone = any_tower(batch[index : index + 1], tokens[index : index + 1])
        for one, many in zip(alone[:2], together[:2], strict=True):
            torch.testing.assert_close(many[index], one[0], rtol=1e-4, atol=1e-5)


def test_pooling_shortcut_equals_the_whole_transformer(any_tower: CLIP) -> None:
    tokens = any_tower.tokenize(TEXTS)
    end = tokens.argmax(dim=1)
    stages = any_tower.text_stages(tokens)
    pooled = stages["ln_final"][torch.arange(4), end] @ any_tower.text_projection
    torch.testing.assert_close(
        any_tower.encode_text(tokens), pooled, rtol=1e-4, atol=1e-5
    )
    image = pixels(any_tower.config)
    if "blocks" in (stages := any_tower.visual.stages(image)):
        whole = (
            any_tower.visual.ln_post(stages["blocks"][-1][:, 0]) @ any_tower.visual.proj
        )
        torch.testing.assert_close(
            any_tower.encode_image(image), whole, rtol=1e-4, atol=1e-5
        )


def test_intermediate_attention_is_causal_and_sums_to_one() -> None:
    model = build(VIT)
    for attention in model.text_stages(model.tokenize(TEXTS))["attention"]:
        assert attention.shape == (4, 2, 16, 16)
        assert torch.equal(attention, attention.tril())
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(4, 2, 16))


def test_what_follows_the_end_token_never_matters() -> None:
    model = build(VIT)
    tokens = model.tokenize(TEXTS)
    changed = tokens.clone()
    end = tokens.argmax(dim=1)
    for row, position in zip(changed, end, strict=True):
        row[position + 1 :] = torch.randint(
            1, TEXT.vocab_size - 2, (len(row) - position - 1,)
        )
    torch.testing.assert_close(model.encode_text(tokens), model.encode_text(changed))
    changed[:, -1] = TEXT.vocab_size - 1  # a second end token: the first one counts
    torch.testing.assert_close(model.encode_text(tokens), model.encode_text(changed))
    longest = int(end.max()) + 1
    torch.testing.assert_close(
        model.encode_text(tokens), model.encode_text(tokens[:, :longest])
    )


@pytest.mark.parametrize("size", [(32, 48), (64, 32), (40, 40)])
@pytest.mark.parametrize("config", [VIT, CONV], ids=["patch", "conv"])
def test_vit_takes_images_of_other_sizes(
    config: CLIPConfig, size: tuple[int, int]
) -> None:
    model = build(config)
    image = pixels(config, size=size)
    assert model.encode_image(image).shape == (2, 24)
    assert model.encode_patches(image).shape == (2, 24, size[0] // 8, size[1] // 8)


def test_resnet_takes_images_of_other_sizes() -> None:
    model = build(RESNET)
    image = pixels(RESNET, size=(64, 128))
    assert model.encode_image(image).shape == (2, 24)
    assert model.encode_patches(image, mode="token").shape == (2, 24, 2, 4)


def test_smaller_strides_keep_a_finer_map() -> None:
    config = replace(RESNET, vision=replace(RESNET.vision, strides=(1, 2, 2, 1)))
    assert build(config).encode_patches(pixels(config)).shape == (2, 24, 4, 4)


@pytest.mark.parametrize("mode", ["value", "token"])
def test_patches_lie_in_the_joint_space(any_tower: CLIP, mode: str) -> None:
    features = any_tower.encode_patches(
        pixels(any_tower.config), normalize=True, mode=mode
    )
    side = features.shape[-1]
    assert features.shape == (2, 24, side, side)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, side, side))


def test_value_patches_see_no_other_patch_in_the_last_block() -> None:
    """With a single block, a patch's value path depends on its own pixels alone;
    its token does not."""
    config = replace(VIT, vision=replace(VIT.vision, layers=1))
    model = build(config)
    image = pixels(config, 1)
    changed = image.clone()
    changed[..., 8:, :] += 1.0  # all but the first row of patches
    for mode, alike in (("value", True), ("token", False)):
        before, after = (
            model.encode_patches(x, mode=mode)[..., 0, :] for x in (image, changed)
        )
        assert torch.allclose(before, after, atol=1e-5) is alike


def test_unknown_patch_mode() -> None:
    with pytest.raises(ValueError, match="'values'.*'value' or 'token'"):
        build(VIT).encode_patches(pixels(VIT), mode="values")


def test_backbone_is_the_feature_before_the_projection(any_tower: CLIP) -> None:
    image = pixels(any_tower.config)
    features = any_tower.image_backbone(image)
    visual = any_tower.visual
    project = (
        visual.attnpool.c_proj
        if hasattr(visual, "attnpool")
        else lambda x: x @ visual.proj
    )
    torch.testing.assert_close(project(features), any_tower.encode_image(image))


def test_preprocess_takes_floats_bytes_and_any_shape() -> None:
    model = build(VIT)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (VIT.image_mean, VIT.image_std)
    )
    torch.testing.assert_close(model.preprocess(image), (image - mean) / std)
    torch.testing.assert_close(model.standardise(image), model.preprocess(image))
    assert model.standardise(torch.rand(1, 3, 40, 70)).shape == (1, 3, 40, 70)
    as_bytes = (image * 255).round().to(torch.uint8)
    torch.testing.assert_close(
        model.preprocess(as_bytes), model.preprocess(as_bytes / 255)
    )
    assert model.preprocess(torch.rand(1, 3, 20, 57)).shape == (1, 3, 32, 32)
    assert model.preprocess(torch.rand(1, 3, 90, 33)).shape == (1, 3, 32, 32)


def test_text_longer_than_the_context() -> None:
    model = build(VIT)
    long = "dog " * 40
    with pytest.raises(
        ValueError, match=r"42 tokens.*context of 16.*dog.*truncate=True"
    ):
        model.tokenize([TEXTS[0], long])
    truncated = model.tokenize(long, truncate=True)
    assert truncated[0, -1] == TEXT.vocab_size - 1
    with pytest.raises(ValueError, match="17 tokens do not fit a context of 16"):
        model.encode_text(torch.arange(17)[None])


def test_tokenizer_must_fit_the_embedding() -> None:
    with pytest.raises(ValueError, match="49408"):
        build(replace(VIT, vocabulary=None)).tokenize("dog")


def test_initialisation_is_the_official_one() -> None:
    torch.manual_seed(0)
    text = TextConfig(context=77, vocab_size=2000, width=256, layers=3, heads=4)
    model = CLIP(replace(VIT, text=text, vocabulary=None))
    block = model.transformer.resblocks[0]
    expected = {
        model.token_embedding.weight: 0.02,
        model.positional_embedding: 0.01,
        model.text_projection: 256**-0.5,
        block.attn.in_proj_weight: 256**-0.5,
        block.attn.out_proj.weight: 256**-0.5 * 6**-0.5,
        block.mlp.c_fc.weight: 512**-0.5,
        block.mlp.c_proj.weight: 256**-0.5 * 6**-0.5,
    }
    for weight, std in expected.items():
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    resnet = build(RESNET)
    assert all(
        stage[0].bn3.weight.eq(0).all()
        for stage in (resnet.visual.layer1, resnet.visual.layer4)
    )


def test_multiplier_is_clamped_after_the_step() -> None:
    model = build(VIT)
    for start, end in ((7.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        model.logit_scale.data.fill_(start)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(end)


def test_siglip_model_has_a_bias() -> None:
    model = build(replace(VIT, init_logit_scale=math.log(10), init_logit_bias=-10.0))
    output = model(pixels(VIT, 4), model.tokenize(TEXTS))
    siglip_loss(*output).backward()
    assert model.logit_bias.item() == -10 and model.logit_bias.grad is not None


@pytest.mark.parametrize("config", [CONV, RESNET], ids=["conv", "resnet"])
def test_training_matches_the_pairs(config: CLIPConfig) -> None:
    model = build(config).train()
    image, tokens = pixels(config, 4), model.tokenize(TEXTS)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        loss = clip_loss(*model(image, tokens))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1 < math.log(4)


def test_config_survives_json() -> None:
    for config in TOWERS.values():
        assert CLIPConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config


def test_configurations_of_older_files_are_read() -> None:
    """Checkpoints that ship still say which kind of text tower theirs is."""
    old = asdict(VIT)
    old["text"] |= {"kind": "transformer", "lookup_size": 65536}
    assert CLIPConfig.from_dict(old) == VIT
    old["text"]["kind"] = "bag_of_words"
    with pytest.raises(ValueError, match="'bag_of_words' is a control of chapter 1"):
        CLIPConfig.from_dict(old)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ViTConfig(stem="convolution"),
            "stem 'convolution'.*'patch' or 'conv'",
        ),
        (lambda: ViTConfig(pool="max"), "pool 'max'.*'token' or 'mean'"),
        (lambda: ViTConfig(patch=12, stem="conv"), "power of two, not 12"),
        (
            lambda: replace(VIT, image_size=36),
            "36 is not a whole number of 8-pixel cells",
        ),
        (lambda: replace(RESNET, image_size=48), "choose a multiple of 32"),
        (
            lambda: CLIP(replace(VIT, vision=replace(VIT.vision, heads=3))),
            "width 32 is not divisible by heads 3",
        ),
    ],
)
def test_bad_configurations(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_mean_pool_is_the_mean_of_the_patches() -> None:
    """What makes patch features useful: they average to the image feature
    that was trained."""
    config = replace(VIT, vision=replace(VIT.vision, pool="mean"))
    model = build(config)
    image = pixels(config)
    dense = model.encode_patches(image, mode="token")
    torch.testing.assert_close(
        dense.mean(dim=(2, 3)), model.encode_image(image), rtol=1e-4, atol=1e-5
    )


def test_loss_is_exact_under_autocast() -> None:
    features = F.normalize(
        torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    scale = torch.tensor(100.0)
    for loss in (clip_loss, siglip_loss):
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = loss(*features, scale)
        assert torch.equal(under_autocast, loss(*features, scale))


def test_zero_shot_weights_average_normalised_prompts() -> None:
    model = build(VIT)
    names, templates = (
        ["dog", "cat", "grass"],
        ["a photo of a {}", lambda name: f"two {name}"],
    )
    weights = zero_shot_weights(model, names, templates, batch_size=4)
    assert weights.shape == (24, 3) and not weights.requires_grad
    prompts = F.normalize(
        model.encode_text(model.tokenize(["a photo of a cat", "two cat"])), dim=-1
    )
    torch.testing.assert_close(weights[:, 1], F.normalize(prompts.mean(dim=0), dim=0))
    torch.testing.assert_close(weights, prompt_ensemble(weights.T[:, None]))


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["a {}"], "at least one class name"),
        ("dog", ["a {}"], "list of at least one class name"),
        (["dog"], [], "at least one template"),
        (["dog"], ["a photo"], "'a photo' has no place"),
    ],
)
def test_bad_zero_shot_classifiers(
    names: list[str], templates: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        zero_shot_weights(build(VIT), names, templates)
