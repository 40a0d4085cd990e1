"""DenseCLIP's blocks: what each must do, and where ours and the
authors' code part ways."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minilib.layers.fpn import FeaturePyramid, SemanticHead
from minilib.layers.prompt import encode_prompted, learned_contexts
from minilib.layers.resampling import resize_grid_positions
from minilib.layers.segmentation import pixel_cross_entropy
from minilib.models.clip import CLIP, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from minilib.models.denseclip import (
    ContextDecoder,
    DenseCLIP,
    denseclip_loss,
    score_map,
)
from minilib.models.denseclip.backbones import (
    AnyBackbone,
    DenseAttentionPool,
    DenseViT,
    Encoded,
)
from minilib.models.denseclip.config import GUIDANCE, DenseCLIPConfig
from minilib.models.denseclip.optimisation import parameter_groups, poly_learning_rate
from minilib.models.denseclip.protocol import sliding_logits
from minilib.tokenizer import Tokenizer, vocabulary_of

NAMES = ("dog", "cat", "traffic light", "sky")
VOCABULARY = vocabulary_of([*NAMES, "a photo of a ."])
TEXT = TextConfig(16, Tokenizer(16, VOCABULARY).vocab_size, 16, 2, 2)
RESNET = CLIPConfig(
    12, 64, ResNetConfig((1, 1, 1, 1), 4, 4), TEXT, vocabulary=VOCABULARY
)
VIT = CLIPConfig(12, 64, ViTConfig(16, 16, 4, 2), TEXT, vocabulary=VOCABULARY)
SMALL = {"decoder_width": 16, "decoder_layers": 1, "channels": 8, "contexts": 3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_clip(config: CLIPConfig = RESNET, seed: int = 0) -> CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIP(config).eval()


def make(clip: CLIP | None = None, names=NAMES, **changes) -> DenseCLIP:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        clip = clip or random_clip()
        return DenseCLIP.from_clip(
            clip, names, DenseCLIPConfig(clip.config, **SMALL | changes)
        ).eval()


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


# --- the image towers


def test_pool_keeps_clips_own_output_and_adds_one_per_cell() -> None:
    clip = random_clip()
    model = make(clip)
    pixels = image(2, 3, 64, 64)
    encoded = model.backbone.encode(pixels)
    torch.testing.assert_close(encoded.pooled, clip.encode_image(pixels))
    assert [tuple(x.shape[1:]) for x in encoded.maps] == [
        (16, 16, 16),
        (32, 8, 8),
        (64, 4, 4),
        (128, 2, 2),
    ]
    assert encoded.dense.shape == (2, 12, 2, 2)
    assert encoded.context.shape == (2, 5, 12)
    torch.testing.assert_close(
        encoded.context[:, 1:], rearrange(encoded.dense, "b e h w -> b (h w) e")
    )


def test_positions_are_resized_for_segmentation_and_cropped_by_the_detection_code() -> (
    None
):
    grid = rearrange(torch.arange(17.0), "n -> n 1")
    assert resize_grid_positions(grid, (2, 3), mode="crop")[1:, 0].tolist() == [
        1,
        2,
        3,
        5,
        6,
        7,
    ]
    resized = resize_grid_positions(grid, (2, 2), mode="bilinear")
    torch.testing.assert_close(resized[1:, 0], torch.tensor([3.5, 5.5, 11.5, 13.5]))
    assert resized[0] == 0, "the first row belongs to the mean, not to a place"
    with pytest.raises(ValueError, match="4 x 4"):
        resize_grid_positions(grid, (2, 5), mode="crop")
    with pytest.raises(ValueError, match="unknown mode 'linear'"):
        resize_grid_positions(grid, (2, 5), mode="linear")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole, cropped = (
            DenseAttentionPool(4, 8, 2, 3, crop_positions=crop)
            for crop in (False, True)
        )
    cropped.load_state_dict(whole.state_dict())
    x = image(1, 8, 3, 3)
    assert not torch.allclose(whole.dense(x)[1], cropped.dense(x)[1], atol=1e-3)
    torch.testing.assert_close(
        whole.dense(image(1, 8, 4, 4)), cropped.dense(image(1, 8, 4, 4))
    )


def test_vit_class_embedding_once_is_clip_and_twice_is_the_authors() -> None:
    clip = random_clip(VIT)
    with torch.no_grad():
        clip.visual.class_embedding.normal_(generator=generator(3))
    pixels = image(1, 3, 64, 64)
    ours, theirs = make(clip), make(clip, double_class_embedding=True)
    torch.testing.assert_close(
        ours.backbone.encode(pixels).pooled, clip.encode_image(pixels)
    )
    assert not torch.allclose(
        theirs.backbone.encode(pixels).pooled, clip.encode_image(pixels), atol=1e-3
    )


def test_vit_pyramid_has_four_strides_and_scores_at_its_patch() -> None:
    model = make(random_clip(VIT))
    output = model(image(1, 3, 64, 96))
    sizes = [tuple(x.shape[1:]) for x in output.maps]
    assert sizes == [(16, 16, 24), (16, 8, 12), (16 + len(NAMES), 4, 6), (16, 2, 3)]
    assert model.backbone.taps == (0, 1, 2, 3)
    twelve = CLIPConfig(12, 64, ViTConfig(16, 8, 12, 2), TEXT, vocabulary=VOCABULARY)
    assert make(random_clip(twelve)).backbone.taps == (3, 5, 7, 11)
    eight = DenseViT(
        CLIPConfig(12, 64, ViTConfig(8, 16, 4, 2, "conv", "mean"), TEXT), (0, 1, 2, 3)
    ).eval()
    assert [x.shape[-1] for x in eight.encode(image(1, 3, 64, 64)).maps] == [
        16,
        8,
        4,
        2,
    ]
    assert eight.score_level == 1
    for wrong in ((0, 1, 2), (0, 1, 2, 4)):
        with pytest.raises(ValueError, match="taps"):
            DenseViT(VIT, wrong)


def test_stochastic_depth_acts_in_training_only() -> None:
    tower = make(random_clip(VIT), drop_path=0.9).backbone
    pixels = image(1, 3, 64, 64)
    torch.testing.assert_close(tower.encode(pixels).dense, tower.encode(pixels).dense)
    tower.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = [tower.encode(pixels).dense for _ in range(4)]
    assert any(not torch.allclose(draws[0], other) for other in draws[1:])


def test_any_backbone_is_guided_and_trains() -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 4, 4)
            self.last = nn.Conv2d(6, 8, 2, 2)

        def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
            x = self.stem(pixels).relu()
            return [x, self.last(x)]

    tower = AnyBackbone(Stages(), (6, 8), (4, 8), embed_dim=12, image_size=32, heads=2)
    model = DenseCLIP(DenseCLIPConfig(RESNET, **SMALL), NAMES, tower)
    model.load_clip(random_clip())  # takes the text tower, leaves the backbone
    output = model(image(2, 3, 32, 32))
    assert output.scores.shape == (2, 4, 4, 4) and output.logits.shape == (2, 4, 8, 8)
    denseclip_loss(output, torch.zeros(2, 32, 32, dtype=torch.long))["loss"].backward()
    assert tower.features.stem.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="strides"):
        AnyBackbone(Stages(), (6, 8), (4,), 12, 32)


# --- the text


def test_contexts_stand_between_start_and_name() -> None:
    """Written word by word, the prompt must be the one that the tower reads as text."""
    clip = random_clip()
    tokens = clip.tokenize(["dog", "traffic light"])[:, :4]
    words = clip.tokenize("photo of")[0, 1:3]
    contexts = clip.token_embedding(words)[None]
    written = clip.encode_text(
        clip.tokenize(["photo of dog", "photo of traffic light"])
    )
    torch.testing.assert_close(
        encode_prompted(clip, tokens, contexts)[0], written, rtol=1e-4, atol=1e-5
    )


def test_a_prompt_per_image_equals_prompts_one_by_one() -> None:
    clip = random_clip()
    tokens = clip.tokenize(list(NAMES))[:, :5]
    contexts = image(3, 2, 16)
    together = encode_prompted(clip, tokens, contexts)
    assert together.shape == (3, 4, 12)
    for number in range(3):
        alone = encode_prompted(clip, tokens, contexts[number : number + 1])[0]
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_contexts_through_the_fixed_text_tower() -> None:
    model = make()
    output = model(image(1, 3, 64, 64))
    denseclip_loss(output, torch.zeros(1, 64, 64, dtype=torch.long))["loss"].backward()
    assert model.contexts.grad.abs().sum() > 0
    assert all(
        p.grad is None and not p.requires_grad for p in model.text_encoder.parameters()
    )


def test_contexts_are_cut_normals() -> None:
    contexts = learned_contexts(64, 64)
    assert contexts.shape == (1, 64, 64) and contexts.abs().max() <= 2
    # a normal cut at two standard deviations has 0.88
    assert 0.8 < contexts.std() < 0.95


def test_names_choose_their_own_length_where_the_authors_have_five_tokens() -> None:
    # six words: the authors' fixed length refuses it
    long = "a photo of a traffic light"
    assert make(names=("dog", long)).tokens.shape == (2, 8)
    with pytest.raises(ValueError, match="room for 5"):
        make(names=("dog", long), contexts=11)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one class name"),
        ("dog", "at least one class name"),
        (["dog", "cat", " Dog "], "'dog' and ' Dog ' are the same tokens"),
        (["dog", " "], "class name 1 is empty"),
        (["dog", "dog " * 12], "room for 13"),
        (["dog", "dog " * 20], "class name 1 has 22 tokens"),
    ],
)
def test_bad_names(names, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(names=names)


def test_too_long_for_the_tower_in_the_layer_itself() -> None:
    clip = random_clip()
    tokens = clip.tokenize(["dog"])
    with pytest.raises(ValueError, match="make 17, but the text tower reads 16"):
        encode_prompted(clip, tokens, image(1, 1, 16))
    with pytest.raises(ValueError, match="width 8"):
        encode_prompted(clip, tokens, image(1, 1, 8))


# --- prompting


def test_zero_gamma_is_no_prompting_but_still_learns() -> None:
    prompted = make()
    with torch.no_grad():
        prompted.gamma.zero_()
    pixels = image(2, 3, 64, 64)
    text = prompted.text_embeddings(prompted.backbone.encode(pixels))
    torch.testing.assert_close(text, prompted.text_features().expand(2, -1, -1))
    text.square().sum().backward()
    assert prompted.gamma.grad.abs().sum() > 0
    assert all(p.grad.abs().max() == 0 for p in prompted.context_decoder.parameters())


def test_gamma_starts_small_and_moves_the_text_of_every_image_differently() -> None:
    model = make()
    assert torch.equal(model.gamma, torch.full((12,), 1e-4)), (
        "1e-3 in the paper's first version is a misprint"
    )
    with torch.no_grad():
        model.gamma.fill_(1.0)
        text = model.text_embeddings(Encoded([], image(2, 12), image(2, 12, 2, 2)))
    assert not torch.allclose(text[0], text[1], atol=1e-3)


def test_pre_model_prompts_depend_on_the_image_and_learn() -> None:
    model = make(guidance="pre")
    text = model.text_embeddings(Encoded([], image(2, 12), image(2, 12, 2, 2)))
    assert text.shape == (2, 4, 12) and not torch.allclose(text[0], text[1], atol=1e-3)
    output = model(image(2, 3, 64, 64))
    denseclip_loss(output, torch.zeros(2, 64, 64, dtype=torch.long))["loss"].backward()
    assert model.context_generator.queries.grad.abs().sum() > 0


def test_decoder_treats_classes_and_cells_as_sets() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = ContextDecoder(12, 16, 2, 4).eval()
        for p in decoder.parameters():
            nn.init.normal_(p, std=0.3)
    text, visual = image(2, 5, 12), image(2, 7, 12, seed=1)
    order = torch.tensor([3, 0, 4, 2, 1])
    expected = decoder(text, visual)
    torch.testing.assert_close(
        decoder(text[:, order], visual), expected[:, order], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        decoder(text, visual.flip(1)), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_every_guidance_segments(guidance: str) -> None:
    model = make(guidance=guidance)
    output = model(image(1, 3, 64, 64))
    assert output.logits.shape == (1, 4, 16, 16) and output.full().shape == (
        1,
        4,
        64,
        64,
    )
    losses = denseclip_loss(output, torch.zeros(1, 64, 64, dtype=torch.long))
    assert losses["loss"].isfinite() and ("scores" in losses) == (guidance != "none")
    extra = 0 if guidance == "none" else len(NAMES)
    assert model.neck.lateral_convs[3].conv.in_channels == 128 + extra, (
        "K is built into the pyramid"
    )


def test_written_prompts_are_clips() -> None:
    clip = random_clip()
    model = make(clip, guidance="template")
    written = clip.encode_text(
        clip.tokenize([f"a photo of a {name}." for name in NAMES])
    )
    torch.testing.assert_close(model.text_features()[0], written, rtol=1e-4, atol=1e-5)


def test_stored_text_needs_no_tower() -> None:
    model = make()
    with torch.no_grad():
        model.gamma.fill_(0.5)
        before = model(image(1, 3, 64, 64)).logits
        model.store_text()
        assert not hasattr(model, "text_encoder")
        torch.testing.assert_close(model(image(1, 3, 64, 64)).logits, before)
    for guidance in ("pre", "none"):
        with pytest.raises(ValueError, match="same for every image"):
            make(guidance=guidance).store_text()


# --- score map and losses


def test_score_map_is_a_cosine_and_is_concatenated_undivided() -> None:
    dense, text = image(2, 12, 3, 5), image(2, 4, 12, seed=1)
    scores = score_map(dense, text)
    one = F.cosine_similarity(dense[1, :, 2, 4], text[1, 3], dim=0)
    torch.testing.assert_close(scores[1, 3, 2, 4], one)
    torch.testing.assert_close(score_map(7 * dense, text / 3), scores)
    output = make()(image(2, 3, 64, 64))
    torch.testing.assert_close(output.maps[3][:, -4:], output.scores)
    assert output.scores.abs().max() <= 1 + 1e-5


def test_the_score_map_may_stay_in_its_loss_alone() -> None:
    """An ablation: the pyramid then sees what it would see without text."""
    apart, plain = make(concatenate=False), make(guidance="none")
    plain.load_state_dict(
        {k: v for k, v in apart.state_dict().items() if k in plain.state_dict()}
    )
    pixels = image(1, 3, 64, 64)
    output = apart(pixels)
    torch.testing.assert_close(output.logits, plain(pixels).logits)
    assert output.scores.shape == (1, 4, 2, 2)
    assert output.maps[3].shape == plain(pixels).maps[3].shape
    losses = denseclip_loss(output, torch.zeros(1, 64, 64, dtype=torch.long))
    losses["scores"].backward()
    assert apart.contexts.grad.abs().max() > 0


def test_a_smaller_mask_is_compared_at_its_own_size() -> None:
    output, tau = make()(image(2, 3, 64, 64)), 0.07
    mask = torch.randint(4, (2, 16, 16), generator=generator())
    losses = denseclip_loss(output, mask)
    assert output.logits.shape[-2:] == (16, 16)
    torch.testing.assert_close(losses["decode"], F.cross_entropy(output.logits, mask))
    scores = F.interpolate(output.scores / tau, (16, 16), mode="bilinear")
    torch.testing.assert_close(losses["scores"], 0.4 * F.cross_entropy(scores, mask))


def test_loss_averages_over_valid_pixels_where_mmsegmentation_counts_all() -> None:
    logits, mask = image(1, 3, 4, 4), torch.full((1, 4, 4), 255)
    mask[:, 0] = 1
    ours, theirs = (
        pixel_cross_entropy(logits, mask, over=over) for over in ("valid", "all")
    )
    torch.testing.assert_close(ours, F.cross_entropy(logits, mask, ignore_index=255))
    torch.testing.assert_close(theirs, ours * 4 / 16)


@pytest.mark.parametrize("over", ["valid", "all"])
def test_a_batch_of_ignored_pixels_costs_nothing_and_hurts_nothing(over: str) -> None:
    model = make()
    losses = denseclip_loss(
        model(image(1, 3, 64, 64)), torch.full((1, 64, 64), 255), over=over
    )
    assert losses["loss"] == 0
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_bad_masks() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    for value in (3, -1, 254):
        with pytest.raises(
            ValueError, match=rf"the value {value}: expected 0 to 2 .*, or 255"
        ):
            pixel_cross_entropy(logits, torch.full((1, 4, 4), value))
    with pytest.raises(ValueError, match="does not fit"):
        pixel_cross_entropy(logits, torch.zeros(1, 4, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="over='mean'"):
        pixel_cross_entropy(logits, torch.zeros(1, 4, 4, dtype=torch.long), over="mean")


def test_auxiliary_loss_is_softened_and_weighted() -> None:
    output = make()(image(1, 3, 64, 64))
    mask = torch.randint(0, 4, (1, 64, 64), generator=generator())
    enlarged = F.interpolate(output.scores / 0.07, (64, 64), mode="bilinear")
    expected = 0.4 * F.cross_entropy(enlarged, mask)
    torch.testing.assert_close(denseclip_loss(output, mask)["scores"], expected)


# --- any size


@pytest.mark.parametrize("clip", [RESNET, VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize("size", [(50, 70), (33, 64), (20, 20)])
def test_sides_need_not_be_multiples_of_the_stride(
    clip: CLIPConfig, size: tuple[int, int]
) -> None:
    model = make(random_clip(clip))
    output = model(image(1, 3, *size))
    assert output.full().shape == (1, 4, *size) and output.full(
        output.scores
    ).shape == (1, 4, *size)
    padded = F.pad(image(1, 3, *size), (0, -size[1] % 32, 0, -size[0] % 32))
    torch.testing.assert_close(
        output.full(), model(padded).full()[..., : size[0], : size[1]]
    )


def test_the_authors_code_stretches_what_ours_pads() -> None:
    """A ViT drops the pixels behind the last whole patch, so the map is enlarged over
    more than it saw."""
    clip = random_clip(VIT)
    ours, theirs = make(clip), make(clip, pad=False)
    theirs.load_state_dict(ours.state_dict())
    pixels = image(1, 3, 64, 76)
    assert theirs(pixels).maps[2].shape[-1] == 4 and ours(pixels).maps[2].shape[-1] == 6
    assert theirs(pixels).full().shape == ours(pixels).full().shape
    changed = pixels.clone()
    changed[..., 64:] += 1
    torch.testing.assert_close(theirs(changed).logits, theirs(pixels).logits)
    assert not torch.allclose(ours(changed).logits, ours(pixels).logits, atol=1e-4)
    whole = image(1, 3, 64, 96)
    torch.testing.assert_close(theirs(whole).logits, ours(whole).logits)


def test_windows_at_the_border_move_inwards() -> None:
    model = make()
    pixels = image(1, 3, 64, 100)
    logits = sliding_logits(model, pixels, (64, 64), (48, 48))
    first, last = (model(pixels[..., left : left + 64]).full() for left in (0, 36))
    torch.testing.assert_close(logits[..., :36], first[..., :36])
    torch.testing.assert_close(logits[..., 64:], last[..., 28:])
    torch.testing.assert_close(
        logits[..., 36:64], (first[..., 36:] + last[..., :28]) / 2
    )
    small = image(1, 3, 40, 50)
    torch.testing.assert_close(
        sliding_logits(model, small, (64, 64), (48, 48)), model(small).full()
    )


# --- pyramid and head


def test_pyramid_passes_coarse_levels_down() -> None:
    pyramid = FeaturePyramid((2, 3), 4)
    for conv in pyramid.fpn_convs:
        nn.init.dirac_(conv.conv.weight)
    maps = [image(1, 2, 4, 6), image(1, 3, 2, 3)]
    fine, coarse = pyramid(maps)
    torch.testing.assert_close(coarse, pyramid.lateral_convs[1](maps[1]))
    lifted = F.interpolate(coarse, scale_factor=2, mode="nearest")
    torch.testing.assert_close(fine, pyramid.lateral_convs[0](maps[0]) + lifted)
    with pytest.raises(ValueError, match="3 maps for a pyramid of 2"):
        pyramid([*maps, maps[1]])


def test_head_adds_levels_of_any_stride() -> None:
    head = SemanticHead((4, 8, 16, 16), 6, 3).eval()
    assert [len(steps) for steps in head.scale_heads] == [1, 2, 4, 4]
    levels = [image(1, 6, side, side) for side in (8, 4, 2, 2)]
    total = sum(
        steps(level) for steps, level in zip(head.scale_heads, levels, strict=True)
    )
    torch.testing.assert_close(head(levels), head.conv_seg(total))


def test_pyramid_starts_as_the_authors_trained_it() -> None:
    """Their script never calls mmsegmentation's init_weights on neck and head:
    He-normal, not Xavier."""
    weight = FeaturePyramid((256,), 256).fpn_convs[0].conv.weight
    assert math.isclose(weight.std().item(), math.sqrt(2 / (256 * 9)), rel_tol=0.02)


# --- optimisation


def test_schedule_keeps_a_fixed_tower_fixed_where_mmcv_lets_it_drift() -> None:
    last = 79_999
    assert poly_learning_rate(last, 0.0, 80_000) == 0
    assert poly_learning_rate(last, 0.0, 80_000, official=True) == pytest.approx(
        1e-6, rel=1e-3
    )
    for base in (1e-4, 1e-5):
        ours, theirs = (
            poly_learning_rate(20_000, base, 80_000, official=flag)
            for flag in (False, True)
        )
        assert ours == pytest.approx(theirs)
    warm = [poly_learning_rate(step, 1e-4, 100, warmup=10) for step in range(12)]
    assert (
        warm[0] < 1e-9 and warm == sorted(warm[:11]) + warm[11:] and warm[11] < warm[10]
    )


def test_groups() -> None:
    model = make(random_clip(VIT))
    ours = {name: group for group in parameter_groups(model) for name in group["names"]}
    assert not any(name.startswith("text_encoder") for name in ours)
    assert ours["backbone.conv1.weight"]["lr"] == pytest.approx(1e-5)
    assert ours["contexts"]["lr"] == ours["decode_head.conv_seg.weight"]["lr"] == 1e-4
    assert (
        ours["gamma"]["weight_decay"]
        == ours["context_decoder.memory_proj.0.weight"]["weight_decay"]
        == 0
    )
    assert ours["contexts"]["weight_decay"] > 0

    theirs = {
        name: group
        for group in parameter_groups(model, official=True)
        for name in group["names"]
    }
    assert theirs.keys() == {name for name, _ in model.named_parameters()}
    assert theirs["text_encoder.ln_final.weight"]["lr"] == 0
    undecayed = {name for name, group in theirs.items() if not group["weight_decay"]}
    assert undecayed and all(
        "context_decoder.decoder" in name and "norm" in name for name in undecayed
    )
    assert theirs["context_decoder.memory_proj.0.weight"]["weight_decay"] > 0, (
        "a norm by kind, not by name"
    )


# --- weights


@pytest.mark.parametrize("clip", [RESNET, VIT], ids=["resnet", "vit"])
def test_official_layout_round_trip(clip: CLIPConfig) -> None:
    text = replace(TEXT, vocab_size=40)
    config = replace(clip, text=text, vocabulary=None)
    tokens = torch.tensor([[38, 1, 39], [38, 2, 39], [38, 3, 39]])
    model = DenseCLIP(
        DenseCLIPConfig(config, double_class_embedding=True, pad=False, **SMALL), tokens
    ).eval()
    heads = {"vision_heads": clip.vision.heads, "text_heads": 2}
    state = {f"module.{key}": value.half() for key, value in model.state_dict().items()}
    again = DenseCLIP.from_official({"state_dict": state, "meta": {}}, tokens, **heads)
    assert again.config == replace(model.config, contexts=3)
    pixels = image(1, 3, 64, 64)
    torch.testing.assert_close(
        again(pixels).logits, model(pixels).logits, rtol=0.05, atol=0.05
    )


def test_weights_that_do_not_fit() -> None:
    tokens = torch.tensor([[38, 1, 39], [38, 2, 39]])
    config = replace(RESNET, text=replace(TEXT, vocab_size=40), vocabulary=None)
    state = DenseCLIP(DenseCLIPConfig(config, **SMALL), tokens).state_dict()
    with pytest.raises(ValueError, match="1 names for weights with 2 classes"):
        DenseCLIP.from_official(state, tokens[:1], vision_heads=4, text_heads=2)
    with pytest.raises(ValueError, match="'contexts' is missing"):
        DenseCLIP.from_official(
            {k: v for k, v in state.items() if k != "contexts"}, tokens
        )
    # Loaded without a check, a missing block would stay at random, as in the authors'
    # RN101 baseline.
    with pytest.raises(ValueError, match="layer3.0.conv1.weight"):
        partial = {
            k: v for k, v in state.items() if k != "backbone.layer3.0.conv1.weight"
        }
        DenseCLIP.from_official(partial, tokens, vision_heads=4, text_heads=2)
    # A wrong width is said by name and shape too, not by torch's own error.
    with pytest.raises(
        ValueError,
        match=r"decode_head.scale_heads.0.0.bn.bias is \(7,\), expected \(8,\)",
    ):
        wrong = state | {"decode_head.scale_heads.0.0.bn.bias": torch.zeros(7)}
        DenseCLIP.from_official(wrong, tokens, vision_heads=4, text_heads=2)
    with pytest.raises(ValueError, match="other towers"):
        make().load_clip(random_clip(VIT))
    with pytest.raises(ValueError, match="1 unknown .extra"):
        clip = random_clip()
        clip.visual.extra = nn.Parameter(torch.zeros(1))
        make().load_clip(clip)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": "words"}, "unknown guidance 'words'"),
        ({"guidance": "template", "template": "a photo"}, "no place for the name"),
        ({"contexts": 0}, "contexts >= 1"),
        ({"tau": 0.0}, "tau > 0"),
        ({"decoder_width": 10}, "not divisible"),
    ],
)
def test_bad_configuration(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        DenseCLIPConfig(RESNET, **changes)


def test_it_learns_to_tell_two_colours() -> None:
    model = make(names=("dog", "cat"), dropout=0.0).train()
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[0, 0, :, :16], pixels[1, 0, :, 16:] = 2.0, 2.0
    mask = (pixels[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=3e-3, backbone=1.0))
    for _ in range(40):
        losses = denseclip_loss(model(pixels), mask)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert (model(pixels).full().argmax(1) == mask).float().mean() > 0.9
