"""LSeg's properties: what labels may do to scores, sizes, losses, and where ours
differs from the authors'."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.layers.dpt import DPTDecoder, FusionBlock, Readout, Reassemble
from minilib.models.clip.config import ResNetConfig
from minilib.models.lseg import (
    CLIPBackbone,
    LabelBlock,
    LSeg,
    LSegConfig,
    ResNetBackbone,
    ViTBackbone,
    embed_labels,
    pixel_cross_entropy,
)
from minilib.models.lseg.protocol import multi_scale_scores, objectinfo_words
from minilib.weights import load_clip

VIT = ViTBackbone(
    patch=16,
    width=16,
    layers=4,
    heads=4,
    grid=3,
    hooks=(0, 1, 2, 3),
    channels=(8, 8, 8, 8),
)
RESNET = ResNetBackbone(blocks=(1, 1, 1, 1), stem=8, planes=4)
CLIP_RESNET = CLIPBackbone(
    ResNetConfig(blocks=(1, 1, 1, 1), width=4, heads=4, strides=(1, 2, 2, 1))
)
BACKBONES = {"vit": VIT, "resnet": RESNET, "clip": CLIP_RESNET}


def make(backbone: object = VIT, **values: object) -> LSeg:
    torch.manual_seed(0)
    return LSeg(
        LSegConfig(backbone=backbone, features=8, embed_dim=12, **values)
    ).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini-rn")


# --- the set of labels ----------------------------------------------------------------


@pytest.mark.parametrize("block", ["none", "bottleneck", "depthwise"])
@pytest.mark.parametrize("seed", range(3))
def test_order_of_labels_is_the_order_of_channels(block: str, seed: int) -> None:
    model, pixels, text = (
        make(block=block, block_depth=2),
        noise(2, 3, 32, 64),
        noise(6, 12, seed=seed),
    )
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        torch.testing.assert_close(
            model(pixels, text[order]).scores, model(pixels, text).scores[:, order]
        )


@pytest.mark.parametrize(
    ("block", "independent"),
    [("none", True), ("depthwise", True), ("bottleneck", False)],
)
def test_a_further_label_changes_the_others_only_through_the_bottleneck(
    block: str, independent: bool
) -> None:
    model, pixels, text = (
        make(block=block, block_depth=2),
        noise(2, 3, 32, 64),
        noise(6, 12),
    )
    with torch.no_grad():
        text[5] = model.encode_pixels(pixels).mean(dim=(0, 2, 3))  # a word that wins
        few, many = model(pixels, text[:5]).scores, model(pixels, text).scores[:, :5]
    if independent:
        torch.testing.assert_close(few, many)
    else:
        assert (few - many).abs().max() > 0.01


def test_one_label_and_hundreds() -> None:
    model, pixels = make(), noise(1, 3, 32, 32)
    for labels in (1, 300):
        assert model(pixels, noise(labels, 12)).scores.shape == (1, labels, 32, 32)


def test_labels_of_each_image_are_what_they_are_for_it_alone() -> None:
    model, pixels, text = make(), noise(3, 3, 32, 32), noise(3, 2, 12)
    with torch.no_grad():
        together = model(pixels, text).scores
        for i in range(3):
            torch.testing.assert_close(
                model(pixels[i : i + 1], text[i]).scores[0], together[i]
            )


def test_length_of_the_vectors_does_not_count() -> None:
    model, pixels, text = make(), noise(1, 3, 32, 32), noise(4, 12)
    with torch.no_grad():
        scores = model(pixels, text).scores
        torch.testing.assert_close(model(pixels, text * 7).scores, scores)
    assert scores.abs().max() <= 1 / 0.07 + 1e-4


# --- sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("size", [(32, 32), (37, 50), (7, 100), (48, 64)])
def test_any_size_is_handled(kind: str, size: tuple[int, int]) -> None:
    scores = make(BACKBONES[kind])(noise(2, 3, *size), noise(3, 12)).scores
    assert scores.shape == (2, 3, *size) and scores.isfinite().all()


@pytest.mark.parametrize("kind", BACKBONES)
def test_scores_of_a_padded_image_are_those_of_the_padded_image(kind: str) -> None:
    model, pixels, text = make(BACKBONES[kind]), noise(1, 3, 40, 50), noise(3, 12)
    with torch.no_grad():
        stride = model.backbone.stride
        whole = model(F.pad(pixels, (0, -50 % stride, 0, -40 % stride)), text)
        torch.testing.assert_close(
            model(pixels, text).scores, whole.scores[..., :40, :50]
        )


@pytest.mark.parametrize("kind", BACKBONES)
def test_maps_have_the_strides_of_the_paper(kind: str) -> None:
    config = BACKBONES[kind]
    maps = make(config).backbone(noise(1, 3, 64, 96))
    strides = (4, 8, 16, 16) if kind == "clip" else (4, 8, 16, 32)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(config.channels, strides, strict=True)
    ]


def test_the_released_shapes() -> None:
    """Parameter counts of the sheet: ViT-L/16 without its 1000-way head and final norm,
    decoder with its head."""
    with torch.device("meta"):
        large = LSeg(LSegConfig(block="bottleneck"))
        small = LSeg(
            LSegConfig(
                ViTBackbone(32, 768, 12, 12, 12, (2, 5, 8, 11), (96, 192, 384, 768)),
                block="bottleneck",
            )
        )

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    unused = 2 * 256 * 256 * 9 + 4 * 256  # the first unit of the deepest fusion block
    for model, reassemble, rest, width, backbone in (
        (large, 22_815_232, 16_328_202, 1024, 304_715_752),
        (small, 7_599_168, 13_157_898, 768, 88_297_192),
    ):
        assert count(model.backbone.reassemble) == reassemble
        assert (
            count(model.decoder) + count(model.head) + count(model.block)
            == rest - unused
        )
        head = 1001 * width - width + 1000 + 2 * width
        assert count(model.backbone) - reassemble == backbone - head


# --- what the released models do and ours need not ------------------------------------


def test_pixels_without_any_direction_do_not_spread_nan() -> None:
    embeddings, text = torch.zeros(1, 12, 2, 2), noise(3, 12)
    theirs = embeddings / embeddings.norm(dim=1, keepdim=True)
    assert theirs.isnan().all()
    assert (make().correlate(embeddings, text) == 0).all()

    path, silent = torch.zeros(1, 8, 2, 2, requires_grad=True), make()
    torch.nn.init.zeros_(silent.head.bias)
    scores = silent.correlate_path(path, text)
    scores.sum().backward()
    assert (scores == 0).all() and path.grad.isfinite().all()


@pytest.mark.parametrize(
    "labels", [(5, 12), (2, 3, 12)], ids=["same labels", "labels of each image"]
)
def test_scores_without_the_embeddings_are_those_with_them(
    labels: tuple[int, ...],
) -> None:
    """Also their gradients, in double precision, and also where there are far more
    channels than labels."""
    model, text, path = (
        make().double(),
        noise(*labels).double(),
        noise(2, 8, 6, 5).double().requires_grad_(),
    )
    weights = noise(2, labels[-2], 6, 5, seed=1).double()
    gradients = []
    for scores in (
        model.correlate_path(path, text),
        model.correlate(model.head(path), text),
    ):
        gradients.append(
            torch.autograd.grad(
                (scores * weights).sum(), [path, *model.head.parameters()]
            )
        )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    pixels = noise(2, 3, 32, 32)
    alone, stages = make()(pixels, text.float()), make().stages(pixels, text.float())
    torch.testing.assert_close(alone.coarse, stages["scores"], rtol=1e-4, atol=1e-4)
    enlarged = F.interpolate(
        stages["scores"], scale_factor=2, mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(alone.scores, enlarged, rtol=1e-4, atol=1e-4)


def test_rounding_of_the_released_models_is_a_switch() -> None:
    pixels, text = noise(1, 3, 32, 32), noise(4, 12)
    exact, rounded = (
        make()(pixels, text).scores,
        make(half_product=True)(pixels, text).scores,
    )
    assert rounded.dtype == torch.float32
    assert 1e-5 < (exact - rounded).abs().max() < 0.05


def test_temperature_is_a_constant_that_nothing_trains() -> None:
    model = make()
    assert not [
        name
        for name, _ in model.named_parameters()
        if "scale" in name or "temp" in name
    ]
    embeddings = noise(1, 12, 1, 1)
    score = model.correlate(embeddings, embeddings[:, :, 0, 0])
    assert score.item() == pytest.approx(1 / 0.07, rel=1e-5)


def test_deepest_block_has_nothing_that_never_learns() -> None:
    model = make().train()
    model(noise(2, 3, 64, 64), noise(3, 12)).scores.square().mean().backward()
    idle = [
        name for name, parameter in model.named_parameters() if parameter.grad is None
    ]
    assert idle == []
    theirs = FusionBlock(4)
    theirs(noise(1, 4, 3, 3)).sum().backward()
    # in the authors' checkpoints, and never run
    assert theirs.resConfUnit1.conv1.weight.grad is None


def test_odd_token_grids_fuse_where_the_authors_addition_fails() -> None:
    """Their deepest path is twice as fine as half an odd grid rounded up, one cell more
    than the level above."""
    maps = [noise(1, 4, side, side) for side in (12, 6, 3, 2)]
    decoder = DPTDecoder([4] * 4, 8).eval()
    assert decoder(maps).shape[-2:] == (24, 24)
    fuse = FusionBlock(8).eval()
    # which their 3 x 3 level cannot be added to
    assert fuse(noise(1, 8, 2, 2)).shape[-2:] == (4, 4)


def test_enlarging_after_or_before_the_last_convolution_is_the_same() -> None:
    block, path = FusionBlock(6, batch_norm=False, skip=False), noise(1, 6, 5, 4)
    refined = block.resConfUnit2(path)
    theirs = block.out_conv(
        F.interpolate(refined, scale_factor=2, mode="bilinear", align_corners=True)
    )
    torch.testing.assert_close(block(path), theirs)


def test_depth_zero_still_runs_the_block_once() -> None:
    scores = noise(1, 3, 4, 4)
    block = LabelBlock("depthwise", depth=1)
    torch.testing.assert_close(block(scores), block.once(scores, activate=False))
    with pytest.raises(
        ValueError,
        match="block_depth=0: expected 1 or more; for no block, block='none'",
    ):
        LSegConfig(block="depthwise", block_depth=0)


def test_depthwise_blocks_squeeze_labels_and_the_bottleneck_keeps_the_maximum() -> None:
    scores = noise(1, 5, 8, 8) * 10
    with torch.no_grad():
        spread = {}
        for kind in ("depthwise", "bottleneck"):
            torch.manual_seed(0)
            block = LabelBlock(kind, depth=4)
            block.depthwise.weight.mul_(0.3)
            spread[kind] = block(scores)
    assert spread["depthwise"].abs().max() < 0.1 * scores.abs().max()
    assert spread["bottleneck"].max() > 0.5 * scores.max()


def test_damaged_words_of_ade20k() -> None:
    lines = [
        "Idx,Ratio,Train,Val,Stuff,Name",
        "45,0.004,500,50,0,chest;of;drawers;chest;bureau",
        "59,0.003,100,10,0,screen;door;screen",
        "131,0.001,100,10,0,screen",
    ]
    assert objectinfo_words(lines, damaged=True) == ["chest", "screen", "screen"]
    assert objectinfo_words(lines)[1:] == ["screen door screen", "screen"]


def test_of_two_equal_labels_the_second_never_wins(clip) -> None:
    text = embed_labels(clip, ["screen", "dog", "screen"], allow_duplicates=True)
    model = LSeg(LSegConfig(backbone=VIT, features=8, embed_dim=128)).eval()
    with torch.no_grad():
        winners = model(noise(2, 3, 64, 64), text).scores.argmax(dim=1)
    assert set(winners.unique().tolist()) <= {0, 1}
    with pytest.raises(ValueError, match="'screen' is given twice"):
        embed_labels(clip, ["screen", "dog", "screen"])


# --- labels ---------------------------------------------------------------------------


def test_labels_become_unit_vectors_in_their_order(clip) -> None:
    text = embed_labels(clip, ["dog", "other", "slice of pizza"])
    torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
    assert not text.requires_grad
    expected = clip.encode_text(clip.tokenize(["other"]), normalize=True)
    torch.testing.assert_close(text[1:2], expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "at least one label"),
        ("dog", "expected a list"),
        (["dog", " "], "label 1 is empty"),
        (["dog", "cat", "dog"], "'dog' is given twice"),
        (["dog", "cat", "Dog"], "'dog' and 'Dog' are the same tokens"),
        (["very " * 100 + "long"], "48"),
    ],
)
def test_refused_labels(clip, labels: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed_labels(clip, labels)


def test_refused_label_vectors() -> None:
    model, pixels = make(), noise(1, 3, 32, 32)
    with pytest.raises(ValueError, match="no labels"):
        model(pixels, torch.zeros(0, 12))
    with pytest.raises(ValueError, match="have 10 dimensions and pixels 12"):
        model(pixels, noise(3, 10))


# --- the loss -------------------------------------------------------------------------


def test_loss_is_the_mean_over_labelled_pixels() -> None:
    logits = noise(2, 3, 4, 5)
    target = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    target[0, :2] = 255
    probability = logits.softmax(dim=1).movedim(1, -1)[target != 255]
    by_hand = (
        -probability[torch.arange(len(probability)), target[target != 255]].log().mean()
    )
    torch.testing.assert_close(pixel_cross_entropy(logits, target), by_hand)


def test_gradient_pulls_to_the_true_word_and_pushes_by_softmax() -> None:
    logits = noise(1, 4, 1, 1).requires_grad_()
    pixel_cross_entropy(logits, torch.tensor([[[2]]])).backward()
    expected = logits.detach().softmax(dim=1)[0, :, 0, 0] - F.one_hot(
        torch.tensor(2), 4
    )
    torch.testing.assert_close(logits.grad[0, :, 0, 0], expected)


def test_a_batch_without_a_labelled_pixel_is_zero_where_the_official_loss_is_nan() -> (
    None
):
    logits, target = noise(2, 3, 4, 4).requires_grad_(), torch.full((2, 4, 4), 255)
    loss = pixel_cross_entropy(logits, target)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
    assert F.cross_entropy(logits, target, ignore_index=255).isnan()


def test_void_pixels_are_left_out_and_not_called_background() -> None:
    """Its zero-shot modules set 255 to 0, "others", and take the mean
    over all pixels."""
    logits = torch.tensor([[0.0, 0.0, 4.0], [2.0, 2.0, 0.0]])[None, :, None]
    target = torch.tensor([[[1, 1, 255]]])
    theirs = F.cross_entropy(logits, target.where(target != 255, 0))
    torch.testing.assert_close(
        pixel_cross_entropy(logits, target),
        F.cross_entropy(logits[..., :2], target[..., :2]),
    )
    assert theirs < pixel_cross_entropy(logits, target), "an easy background pixel more"


@pytest.mark.parametrize("value", [3, -1, 254])
def test_mask_values_out_of_range_are_named(value: int) -> None:
    target = torch.zeros(1, 2, 2, dtype=torch.int64)
    target[0, 0, 0] = value
    with pytest.raises(
        ValueError, match=f"the mask has the value {value}: expected 0 to 2"
    ):
        pixel_cross_entropy(noise(1, 3, 2, 2), target)
    with pytest.raises(ValueError, match="does not fit"):
        pixel_cross_entropy(noise(1, 3, 2, 3), target)


# --- layers and weights ---------------------------------------------------------------


@pytest.mark.parametrize(("scale", "side"), [(4, 12), (2, 6), (1, 3), (0.5, 2)])
def test_reassembled_sizes(scale: float, side: int) -> None:
    layer = Reassemble(16, 5, scale)
    assert layer(noise(2, 10, 16), (3, 3)).shape == (2, 5, side, side)


def test_tokens_are_laid_out_in_rows() -> None:
    layer = Reassemble(4, 4, 1, "ignore")
    torch.nn.init.dirac_(layer.project.weight)
    torch.nn.init.zeros_(layer.project.bias)
    tokens = noise(1, 7, 4)
    torch.testing.assert_close(layer(tokens, (2, 3))[0, :, 1, 0], tokens[0, 4])


def test_refused_configurations() -> None:
    for wrong in (
        lambda: ViTBackbone(patch=14),
        lambda: ViTBackbone(hooks=(1, 2, 3, 24)),
        lambda: ViTBackbone(hooks=(5, 4, 6, 7)),
        lambda: LSegConfig(block="deep"),
        lambda: LSegConfig(activation="gelu"),
        lambda: LSegConfig(temperature=0.0),
        lambda: Readout(8, "mean"),
        lambda: Reassemble(8, 8, 1.5),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_foreign_weights_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="not the weights of an LSeg"):
        LSeg.from_official({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="no backbone"):
        LSeg.from_official({"net.scratch.head1.weight": torch.zeros(12, 8, 1, 1)})


@pytest.mark.parametrize("kind", BACKBONES)
def test_stages_are_what_the_scores_come_from(kind: str) -> None:
    model, pixels, text = (
        make(BACKBONES[kind], block="depthwise"),
        noise(1, 3, 40, 50),
        noise(3, 12),
    )
    with torch.no_grad():
        stages = model.stages(pixels, text)
        torch.testing.assert_close(model.block(stages["correlation"]), stages["scores"])
        torch.testing.assert_close(
            model(pixels, text).coarse, stages["scores"], rtol=1e-4, atol=1e-4
        )
    assert ("taps" in stages) == (kind == "vit")
    assert [path.shape[1] for path in stages["paths"]] == [8] * 4
    assert stages["embeddings"].shape[1] == 12 and len(stages["maps"]) == 4
    with pytest.raises(ValueError, match="no labels"):
        model.stages(pixels, noise(0, 12))


def test_a_window_that_sees_everything_equals_one_forward() -> None:
    def network(pixels: Tensor) -> Tensor:
        return pixels.mean(dim=1, keepdim=True)

    image = noise(1, 3, 24, 24)
    scores = multi_scale_scores(
        network, image, base_size=24, crop_size=24, scales=(1.0,), flip=False
    )
    torch.testing.assert_close(scores, network(image))
    wide = noise(1, 3, 20, 90)
    slid = multi_scale_scores(
        network, wide, base_size=90, crop_size=24, scales=(1.0,), flip=True
    )
    torch.testing.assert_close(slid, 2 * network(wide), rtol=1e-4, atol=1e-5)
