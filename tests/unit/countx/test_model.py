"""CounTX: what it does with text, with images of any shape, and with bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minilib.models.clip import CLIP, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from minilib.models.countx import (
    CounTX,
    CounTXConfig,
    density_loss,
    random_pixel_mask,
    sincos_positions,
)
from minilib.weights import load_clip

CLIP_CONFIG = CLIPConfig(
    32,
    24,
    ViTConfig(patch=4, width=32, layers=2, heads=2),
    TextConfig(8, 49408, 16, 1, 2),
    quick_gelu=False,
)
CONFIG = CounTXConfig(
    clip=CLIP_CONFIG, heads=4, decoder_width=16, first_grid=6, doublings=3
)


def build(config: CounTXConfig = CONFIG, seed: int = 0) -> CounTX:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CounTX(config).eval()


@pytest.fixture(scope="module")
def model() -> CounTX:
    return build()


def crops(n: int, side: int = 48, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_shapes(model: CounTX) -> None:
    assert model.config.window == 48 and model.config.grid == 6
    pixels, tokens = (
        model.preprocess(crops(2)),
        model.tokenize(["the cats", "the red apples"]),
    )
    output = model(pixels, tokens)
    assert output.density.shape == (2, 48, 48)
    assert output.patches.shape == output.interaction.shape == (2, 32, 6, 6)
    assert output.text.shape == (2, 1, 32)
    torch.testing.assert_close(model.decode(output.interaction), output.density)


def test_the_released_size() -> None:
    with torch.device("meta"):
        model = CounTX(CounTXConfig())
    assert model.config.window == 384 and model.config.grid == 14
    assert sum(p.numel() for p in model.parameters()) == 161_082_626
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 97_554_177
    assert len(model.state_dict()) == 367


def test_the_text_adds_the_same_vector_everywhere(model: CounTX) -> None:
    """One sentence is one key: the softmax over it is 1, whatever a patch asks."""
    x, y = (
        torch.randn(2, 2, 9, 32, generator=torch.Generator().manual_seed(0)),
        torch.randn(2, 1, 32),
    )
    attention = model.fim_blocks[0].attn
    read = attention(x[0], y)
    torch.testing.assert_close(read, attention.proj(attention.wv(y)).expand_as(read))
    torch.testing.assert_close(read, attention(x[1], y))
    torch.testing.assert_close(attention.weights(x[0], y), torch.ones(2, 4, 9, 1))
    two = torch.cat([y, -y], dim=1)
    assert not torch.allclose(attention(x[0], two), attention(x[1], two), atol=1e-4)


def test_what_never_learns() -> None:
    """No gradient reaches ln_post, the queries and keys of the cross-attention,
    or the text tower."""
    model = build().train()
    output = model(model.preprocess(crops(2)), model.tokenize(["the cats", "the dogs"]))
    output.density.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name in ("attn.wq.weight", "attn.wk.weight", "norm1.weight"):
        gradient = gradients[f"fim_blocks.0.{name}"]
        assert (
            gradient is None
            or gradient.abs().max()
            < 1e-5 * gradients["fim_blocks.0.attn.wv.weight"].abs().max()
        )
    assert gradients["clip_model.visual.ln_post.weight"] is None
    assert gradients["clip_model.token_embedding.weight"] is None
    assert gradients["clip_model.visual.conv1.weight"].abs().max() > 0
    assert gradients["fim_pos_embed"] is None


def test_freezing_the_image_tower_leaves_the_head() -> None:
    model = build().freeze(image_tower=True)
    trained = {
        name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad
    }
    assert trained == {"fim_blocks", "fim_norm", *(f"decode_head{i}" for i in range(3))}


def test_one_by_one_commutes_with_the_last_doubling(model: CounTX) -> None:
    """The paper doubles and then convolves 1 x 1, the code the other way
    round: the same map."""
    features = torch.randn(1, 16, 5, 7, generator=torch.Generator().manual_seed(0))
    last = model.decode_head2[3]
    assert isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1)
    code = F.interpolate(last(features), scale_factor=2, mode="bilinear")
    paper = last(F.interpolate(features, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(code, paper, rtol=1e-4, atol=1e-5)


def test_positions_tell_column_first() -> None:
    table = sincos_positions(16, 5).reshape(5, 5, 16)
    # one row: the second half stands still
    assert torch.equal(table[0, :, 8:], table[0, :1, 8:].expand(5, 8))
    assert torch.equal(table[:, 0, :8], table[:1, 0, :8].expand(5, 8))
    assert table.flatten(0, 1).unique(dim=0).shape[0] == 25


def test_tokens_skip_the_last_norm(model: CounTX) -> None:
    """Changing ln_post must not change anything: the released weights
    of it are unused."""
    pixels = model.preprocess(crops(1))
    before = model.encode_image(pixels)
    with torch.no_grad():
        model.clip_model.visual.ln_post.weight.mul_(3)
    torch.testing.assert_close(model.encode_image(pixels), before)


def test_several_sentences_are_several_keys(model: CounTX) -> None:
    pixels, tokens = (
        model.preprocess(crops(1)),
        model.tokenize(["the cats", "the dogs"]),
    )
    once = model(pixels, tokens[None, :1]).density
    torch.testing.assert_close(once, model(pixels, tokens[:1]).density)
    torch.testing.assert_close(
        model(pixels, tokens[[0, 0]][None]).density, once, rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(model(pixels, tokens[None]).density, once, atol=1e-4)


def test_any_image_shape_is_counted(model: CounTX) -> None:
    for shape in ((48, 48), (48, 96), (20, 30), (24, 192), (192, 24), (5, 40)):
        density = model.density(
            torch.rand(3, *shape, generator=torch.Generator().manual_seed(1)),
            "the cats",
        )
        assert min(density.shape) == 48 and density.isfinite().all()
        assert (density.shape[0] > density.shape[1]) == (
            shape[0] > shape[1]
        ) or density.shape == (48, 48)


def test_one_window_is_the_forward_pass(model: CounTX) -> None:
    image = crops(1)
    expected = model.predict(image, "the cats")[0]
    torch.testing.assert_close(
        model.density(image[0], "the cats"), expected, rtol=1e-4, atol=1e-6
    )
    assert model.count(image[0], "the cats") == pytest.approx(
        expected.sum().item(), rel=1e-3, abs=1e-4
    )


def test_windows_in_chunks_change_nothing(model: CounTX) -> None:
    image = torch.rand(3, 48, 130, generator=torch.Generator().manual_seed(2))
    whole, parts = (model.density(image, "the cats", at_once=k) for k in (100, 1))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_larger_crops_resample_the_positions(model: CounTX) -> None:
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert model(pixels, model.tokenize("the cats")).density.shape == (1, 64, 96)


@pytest.mark.parametrize("description", ["", "   ", "\n"])
def test_an_empty_description(model: CounTX, description: str) -> None:
    with pytest.raises(ValueError, match="description 0 is empty"):
        model.count(crops(1)[0], description)


def test_a_chinese_description_counts_something_finite() -> None:
    clip = load_clip("mini-vit")
    model = CounTX.from_clip(
        clip, CounTXConfig(clip.config, decoder_width=16, first_grid=8, doublings=2)
    )
    assert torch.tensor(model.count(crops(1, 64)[0], "红苹果")).isfinite()


def test_from_clip_copies_the_towers() -> None:
    clip = load_clip("mini-vit")
    model = CounTX.from_clip(
        clip, CounTXConfig(clip.config, decoder_width=16, first_grid=12)
    )
    with torch.no_grad():
        model.clip_model.visual.proj.zero_()
    assert clip.visual.proj.abs().sum() > 0
    tokens = clip.tokenize(["the dogs"])
    torch.testing.assert_close(
        model.encode_text(tokens)[:, 0], clip.encode_text(tokens)
    )
    with pytest.raises(ValueError, match="do not fit the config's CLIP"):
        CounTX.from_clip(clip, CONFIG)


def test_official_weights_must_fit() -> None:
    state = build().state_dict()
    read = dict(heads=4, first_grid=6, vision_heads=2, text_heads=2)
    again = CounTX.from_official(
        {f"module.{key}": value for key, value in state.items()}, **read
    )
    assert again.config == CONFIG
    assert CounTX.from_official({"model": state, "epoch": 999}, **read).config == CONFIG
    with pytest.raises(ValueError, match="missing"):
        CounTX.from_official(
            {k: v for k, v in state.items() if k != "fim_norm.bias"}, **read
        )
    with pytest.raises(ValueError, match="unknown"):
        CounTX.from_official(state | {"stray": torch.zeros(1)}, **read)
    with pytest.raises(ValueError, match="'fim_pos_embed' is missing"):
        CounTX.from_official({"model": torch.zeros(1)})
    with pytest.raises(ValueError, match="no weights among .'args', 'epoch'.*'model'"):
        CounTX.from_official({"epoch": 3, "args": {}})
    with pytest.raises(ValueError, match="two different models"):
        CounTX.from_official(state | {"fim_pos_embed": torch.zeros(1, 49, 32)}, **read)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "heads=5"),
        ({"decoder_width": 12}, "groups=8"),
        ({"blocks": 0}, "expected 1 or more"),
        (
            {
                "clip": CLIPConfig(
                    32,
                    32,
                    ResNetConfig((1, 1, 1, 1), 8, 4),
                    TextConfig(8, 64, 16, 1, 2),
                )
            },
            "ViTConfig",
        ),
    ],
)
def test_configurations_check_themselves(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CounTXConfig(**{"clip": CLIP_CONFIG, "heads": 4, "decoder_width": 16} | changes)


def test_the_loss_divides_by_all_pixels() -> None:
    output, target = torch.full((2, 4, 4), 3.0), torch.ones(2, 4, 4)
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    assert density_loss(output, target).item() == 4
    # not 4: half of the pixels, all of them in the denominator
    assert density_loss(output, target, mask).item() == 2
    assert density_loss(output.half(), target.half()).dtype == torch.float32
    with pytest.raises(ValueError, match="expected the same shape"):
        density_loss(output, target[:1])


def test_small_errors_survive_half_precision() -> None:
    """In half precision the authors' division by 147,456 rounds errors like
    this one to nothing."""
    output = torch.full((1, 384, 384), 0.05, dtype=torch.float16)
    assert density_loss(output, torch.zeros_like(output)).item() == pytest.approx(
        0.0025, rel=0.01
    )
    assert ((output**2) / (384 * 384)).sum().item() == 0


def test_the_mask_keeps_its_share_and_repeats() -> None:
    masks = [
        random_pixel_mask((100, 100), torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert torch.equal(*masks)
    assert masks[0].mean().item() == pytest.approx(0.8, abs=0.02)
    assert set(masks[0].unique().tolist()) == {0.0, 1.0}


def test_preprocess_needs_antialiasing(model: CounTX) -> None:
    crop = crops(1)
    assert model.preprocess(crop).shape == (1, 3, 24, 24)
    assert (
        model.preprocess(crop) - model.preprocess(crop, antialias=False)
    ).abs().mean() > 0.1


def test_learns_to_count_by_text() -> None:
    """Two colours in one picture, two sentences: after a few steps the sentence decides
    what is counted."""
    model = build(replace(CONFIG, doublings=2), seed=1)
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(6, 3, 24, 24)
    target = torch.zeros(2, 6, 24, 24)
    for b in range(6):
        for i, place in enumerate(
            torch.randperm(36, generator=generator)[: 4 + 2 * b].tolist()
        ):
            colour = int(i >= 2)  # always two red ones, the rest is blue
            window = (
                slice(4 * (place // 6), 4 * (place // 6) + 3),
                slice(4 * (place % 6), 4 * (place % 6) + 3),
            )
            image[b, 2 * colour][window] = 1
            target[colour, b][window] = 60 / 9
    pixels = model.preprocess(image).repeat(2, 1, 1, 1)
    text = model.encode_text(
        model.tokenize(["the red squares"] * 6 + ["the blue squares"] * 6)
    )
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=3e-3
    )
    truth = target.flatten(0, 1)
    for _ in range(40):
        optimizer.zero_grad()
        density_loss(
            model.decode(model.interact(model.encode_image(pixels), text)), truth
        ).backward()
        optimizer.step()
    with torch.no_grad():
        density = model.decode(model.interact(model.encode_image(pixels), text))
    counts, true = density.sum((1, 2)) / 60, truth.sum((1, 2)) / 60
    error = (counts - true).abs().mean()
    # the same answer to both sentences, however good
    blind = (true[:6] - true[6:]).abs().mean() / 2
    assert error < 0.5 * blind, (
        f"mean error {error:.2f}; a model blind to the text has {blind:.2f} at best"
    )


def test_clip_class_is_untouched() -> None:
    """CounTX reads CLIP's towers without changing what CLIP itself says."""
    clip = CLIP(CLIP_CONFIG).eval()
    model = CounTX(CONFIG)
    model.clip_model.load_state_dict(clip.state_dict())
    pixels = torch.randn(1, 3, 24, 24)
    torch.testing.assert_close(
        model.clip_model.encode_image(pixels), clip.encode_image(pixels)
    )
