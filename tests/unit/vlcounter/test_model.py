"""VLCounter: what is frozen, what the words reach, and the places where the authors'
code is not what one expects."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minilib.models import vlcounter as paper
from minilib.models.clip import CLIP, ResNetConfig, ViTConfig
from minilib.models.vlcounter.prompts import (
    PLURAL_TEMPLATES,
    SINGULAR_TEMPLATES,
    plural,
    prompts_for,
)
from minilib.recipes.clip import recipe as clip_recipe
from minilib.recipes.vlcounter.protocol import cell_readout

GOLDEN = Path(__file__).parents[2] / "golden" / "vlcounter" / "full_model.safetensors"
TAPS = {
    "grid": (4, 4),
    "taps": (0, 1),
    "prompted_layers": 3,
    "prompts": 3,
    "channels": 16,
}


def tiny_clip(**vision: object) -> CLIP:
    tower = ViTConfig(patch=8, width=32, layers=3, heads=2, **vision)
    return clip_recipe.build(
        clip_recipe.clip_config(tower, 32, 24, clip_recipe.text_config(32, 1, 2)), 0
    )


def tiny(clip: CLIP | None = None, **options: object) -> paper.VLCounter:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        clip = clip or tiny_clip()
        model = paper.VLCounter.from_clip(
            clip, paper.VLCounterConfig(clip.config, **TAPS | options)
        )
        # The released initialisation starts with a density of next to nothing: louder,
        # so that tests see effects.
        for parameter in model.head.parameters():
            if parameter.ndim > 1 and parameter.shape[:2] != (1, 1):
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# --- Configuration and sizes ----------------------------------------------------------


def test_released_size_and_share_of_what_is_trained() -> None:
    with torch.device("meta"):
        model = paper.VLCounter(paper.VLCounterConfig())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # The authors' 1,441,987 include two numbers of a normalisation that is
    # never applied.
    assert trained == 1_441_987 - 2
    # without CLIP's logit scale
    everything = sum(p.numel() for p in model.parameters()) - 1
    assert everything == 151_354_563 - 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "lora"}, "'lora'"),
        ({"skip": "unet"}, "'unet'"),
        ({"taps": (8, 7, 6)}, "taps"),
        ({"taps": (10, 11, 12)}, "0 to 11"),
        ({"taps": ()}, "taps"),
        ({"prompted_layers": 13}, "1 to 12"),
        ({"channels": 20}, "multiple of 8"),
    ],
)
def test_configurations_check_themselves(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(paper.VLCounterConfig(), **change)


@pytest.mark.parametrize(
    ("layers", "taps"),
    [(3, (0, 1, 2)), (7, (2, 3, 4)), (12, (6, 7, 8)), (24, (15, 16, 17))],
)
def test_prompts_and_taps_follow_the_depth_of_the_tower(
    layers: int, taps: tuple[int, ...]
) -> None:
    tower = ViTConfig(patch=16, width=32, layers=layers, heads=2)
    clip = clip_recipe.clip_config(tower, 64, 24, clip_recipe.text_config(32, 1, 2))
    config = paper.VLCounterConfig(clip, grid=(4, 4), channels=8)
    assert config.tapped_blocks == taps
    model = paper.VLCounter(config).eval()
    assert model.prompts.embeddings.shape == (layers, 10, 32)
    density = model.predict(torch.rand(1, 3, 64, 64), ["dogs"])
    assert density.shape == (1, 64, 64)


def test_a_tower_of_two_layers_has_too_few_for_three_skips() -> None:
    tower = ViTConfig(patch=16, width=32, layers=2, heads=2)
    with pytest.raises(ValueError, match="expected rising block numbers from 0 to 1"):
        paper.VLCounterConfig(
            clip_recipe.clip_config(tower, 64, 24, clip_recipe.text_config(32, 1, 2))
        )


def test_a_resnet_has_no_tokens_to_prompt() -> None:
    with pytest.raises(ValueError, match="ResNet"):
        paper.VLCounterConfig(
            clip=replace(paper.VLCounterConfig().clip, vision=ResNetConfig())
        )


# --- What is frozen -------------------------------------------------------------------


def test_a_step_moves_prompts_and_head_and_leaves_clip_alone(images: Tensor) -> None:
    model = tiny(tiny_clip(stem="conv")).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1
    )
    output = model(model.preprocess(images), model.encode_names(["dogs", "cats"]))
    losses = paper.total_loss(
        output.density, output.similarity, torch.rand(2, 1, 32, 32), rank_weight=1.0
    )
    losses["loss"].backward()
    optimizer.step()
    changed = {
        key
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    # running statistics among them
    assert not [key for key in changed if key.startswith("clip.")]
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert changed == trained and {key.split(".")[0] for key in trained} == {
        "prompts",
        "head",
    }


def test_only_the_prompts_feel_training_mode(images: Tensor) -> None:
    text = tiny().encode_names(["dogs", "cats"])
    model = tiny(tiny_clip(stem="conv"), encoder="frozen")
    pixels = model.preprocess(images)
    torch.testing.assert_close(
        model.train()(pixels, text).density, model.eval()(pixels, text).density
    )
    prompted = tiny().train()
    # dropout
    assert not torch.allclose(
        prompted(pixels, text).patches, prompted(pixels, text).patches
    )


# --- Semantic-conditioned prompts -----------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "reached"), [("spt", True), ("vpt", False), ("frozen", False)]
)
def test_words_reach_the_encoder_only_through_semantic_prompts(
    images: Tensor, encoder: str, reached: bool
) -> None:
    model = tiny(encoder=encoder)
    pixels = model.preprocess(images)
    dogs, cats = (
        model(pixels, model.encode_names([name] * 2)) for name in ("dogs", "cats")
    )
    assert torch.allclose(dogs.patches, cats.patches) == (not reached)
    # the similarity map hears them in any case
    assert not torch.allclose(dogs.density, cats.density)


def test_class_token_gets_its_embedding_twice_where_there_are_prompts() -> None:
    visual = tiny_clip().visual
    patches = torch.zeros(1, 32, 4, 4)
    twice, once = (
        visual.tokens(patches, "bilinear", double_class=p) for p in (True, False)
    )
    torch.testing.assert_close(twice[:, 1:], once[:, 1:])
    assert not torch.allclose(twice[:, 0], once[:, 0])
    torch.testing.assert_close(once, visual.tokens(patches))


def test_positions_are_resized_bilinearly_and_the_first_one_is_kept() -> None:
    visual = tiny_clip().visual
    wide, square = (visual.tokens(torch.zeros(1, 32, 4, w), "bilinear") for w in (8, 4))
    assert wide.shape == (1, 33, 32)
    torch.testing.assert_close(wide[:, 0], square[:, 0])


def test_fresh_prompts_replace_the_changed_ones_before_each_prompted_layer(
    images: Tensor,
) -> None:
    model = tiny()
    pixels, text = model.preprocess(images), model.encode_names(["dogs"] * 2)

    def run() -> Tensor:
        tower, prompts = model.clip.visual, model.prompts
        return paper.encode_image(tower, prompts, pixels, text, (0, 1, 2))[0]

    before = run()
    with torch.no_grad():
        model.prompts.embeddings[1].normal_()
    after = run()
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


def test_prompts_beyond_the_prompted_layers_keep_their_states(images: Tensor) -> None:
    model = tiny(prompted_layers=1)
    assert model.prompts.embeddings.shape == (1, 3, 32)
    tapped, patches = paper.encode_image(
        model.clip.visual,
        model.prompts,
        model.preprocess(images),
        model.encode_names(["dogs"] * 2),
        (0, 1),
    )
    assert [t.shape for t in tapped] == [(2, 32, 4, 4)] * 2 and patches.shape == (
        2,
        24,
        4,
        4,
    )
    for features in (*tapped, patches):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(2, 4, 4))


def test_last_block_neither_mixes_nor_has_an_mlp() -> None:
    block = tiny_clip().visual.transformer.resblocks[-1]
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    y = paper.value_path(block, x)
    moved = x.clone()
    moved[:, 2] += 1
    difference = (paper.value_path(block, moved) - y).abs().amax(dim=2)[0]
    assert difference[2] > 0.1 and difference[[0, 1, 3, 4]].max() < 1e-6
    # that one, CLIP's own, keeps the MLP
    assert not torch.allclose(y, block.without_mixing(x))


# --- Similarity, affine map, skip connections -----------------------------------------


def test_affine_map_starts_as_identity_and_holds_a_pair_for_each_place() -> None:
    affine, similarity = paper.AffineMap((3, 5)), torch.randn(2, 1, 3, 5)
    torch.testing.assert_close(affine(similarity), similarity)
    assert sum(p.numel() for p in affine.parameters()) == 2 * 15
    with torch.no_grad():
        affine.weight[..., 2, 4], affine.bias[..., 0, 1] = 3, 1
    changed = affine(similarity) - similarity
    torch.testing.assert_close(changed[..., 2, 4], 2 * similarity[..., 2, 4])
    torch.testing.assert_close(changed[..., 0, 1], torch.ones(2, 1))
    assert changed.count_nonzero() == 4
    assert affine(torch.randn(1, 1, 3, 11)).shape == (1, 1, 3, 11)


@torch.no_grad()
def test_raw_similarity_is_no_cosine(images: Tensor) -> None:
    model = tiny()
    arguments = model.preprocess(images), model.encode_names(["dogs"] * 2)
    before = model(*arguments).raw_similarity
    model.head.v_proj.weight *= 3
    # a cosine would not have moved
    torch.testing.assert_close(model(*arguments).raw_similarity, 3 * before)


def test_gate_silences_the_skip_where_the_words_are_not() -> None:
    skip = paper.SkipConnection(8, 16, 2, gated=True)
    similarity = torch.zeros(1, 1, 2, 2)
    similarity[..., 0, 1] = 2.0
    features = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    added, plain = (
        skip(features, similarity),
        paper.SkipConnection.forward(_ungated(skip), features, similarity),
    )
    assert (
        added.shape == (1, 16, 4, 4)
        and added[..., :2, :2].abs().max() == 0
        and added[..., 2:, :].abs().max() == 0
    )
    torch.testing.assert_close(added[..., :2, 2:], 2 * plain[..., :2, 2:])


def _ungated(skip: paper.SkipConnection) -> paper.SkipConnection:
    other = paper.SkipConnection(8, 16, 2, gated=False)
    other.load_state_dict(skip.state_dict())
    return other


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "frozen", "affine": False, "skip": "none"},
        {"affine": False, "skip": "none"},
        {"skip": "none"},
        {"affine": False},
        {"skip": "plain"},
        {},
    ],
)
def test_arms_of_the_ablation_differ_only_in_their_parts(
    images: Tensor, options: dict
) -> None:
    model = tiny(**options)
    output = model(model.preprocess(images), model.encode_names(["dogs", "cats"]))
    assert output.density.shape == (2, 1, 32, 32) and output.similarity.shape == (
        2,
        1,
        4,
        4,
    )
    assert len(output.skips) == (0 if options.get("skip") == "none" else 2)
    assert torch.equal(output.similarity, output.raw_similarity) or options.get(
        "affine", True
    )
    full = dict(tiny().named_parameters())
    mine = {key for key, _ in model.named_parameters()}
    assert mine <= full.keys()
    gone = {key.split(".")[1] for key in full.keys() - mine if key.startswith("head.")}
    expected = set() if options.get("affine", True) else {"affine"}
    assert gone == (expected | {"skips"} if options.get("skip") == "none" else expected)


# --- Losses ---------------------------------------------------------------------------


def bump(
    place: tuple[int, int], height: float = 1.0, grid: int = 4, cell: int = 8
) -> Tensor:
    target = torch.zeros(1, 1, grid * cell, grid * cell)
    target[..., place[0], place[1]] = height
    return target


def test_an_empty_target_costs_three_ln_two_and_teaches_nothing() -> None:
    similarity = torch.randn(2, 1, 4, 4, requires_grad=True)
    loss = paper.rank_loss(similarity, torch.zeros(2, 1, 32, 32))
    loss.backward()
    assert (
        loss.item() == pytest.approx(3 * math.log(2), rel=1e-6)
        and similarity.grad.abs().max() == 0
    )


def test_rank_loss_looks_at_the_corner_of_each_cell_only() -> None:
    similarity = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    empty = paper.rank_loss(similarity, torch.zeros(1, 1, 32, 32))
    # mid-cell: not seen at all
    torch.testing.assert_close(paper.rank_loss(similarity, bump((12, 12))), empty)
    assert paper.nested_rank_loss(similarity, bump((12, 12))) > 0


def test_rank_loss_never_counts_the_peak_as_a_positive() -> None:
    target = bump((8, 8))  # the corner of cell (1, 1), the largest value: in no band
    gradients = []
    for level in (1.0, 0.9):
        similarity = torch.zeros(1, 1, 4, 4, requires_grad=True)
        paper.rank_loss(
            similarity, target * level + bump((16, 16)) * (level < 1)
        ).backward()
        gradients.append(similarity.grad[0, 0, 1, 1].item())
    assert gradients[0] == 0 and gradients[1] < 0


def test_a_middle_place_is_positive_in_one_band_and_negative_above() -> None:
    similarity = torch.zeros(1, 1, 4, 4, requires_grad=True)
    paper.rank_loss(similarity, bump((16, 16)) + bump((8, 8), 0.7)).backward()
    # so that it learns nothing at the start
    assert similarity.grad[0, 0, 1, 1].item() == pytest.approx(0, abs=1e-7)


def test_rank_loss_scales_over_the_batch_not_per_image() -> None:
    similarity = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    faint, strong = bump((8, 8), 0.3) + bump((16, 16), 0.2), bump((0, 0), 10.0)
    separate = (
        paper.rank_loss(similarity[:1], faint) + paper.rank_loss(similarity[1:], strong)
    ) / 2
    together = paper.rank_loss(similarity, torch.cat([faint, strong]))
    assert not torch.allclose(separate, together)
    separate = (
        paper.nested_rank_loss(similarity[:1], faint)
        + paper.nested_rank_loss(similarity[1:], strong)
    ) / 2
    torch.testing.assert_close(
        paper.nested_rank_loss(similarity, torch.cat([faint, strong])), separate
    )


def test_nested_rank_loss_rewards_the_right_order_and_survives_emptiness() -> None:
    target = bump((8, 8)) + bump((16, 16), 0.7)
    pooled = torch.nn.functional.max_pool2d(target, 8)
    assert paper.nested_rank_loss(5 * pooled, target) < paper.nested_rank_loss(
        -5 * pooled, target
    )
    similarity = torch.zeros(2, 1, 4, 4, requires_grad=True)
    loss = paper.nested_rank_loss(
        similarity, torch.cat([torch.zeros_like(target), torch.zeros_like(target)])
    )
    loss.backward()
    assert loss.item() == 0 and similarity.grad.isfinite().all()


def test_weight_of_the_rank_loss_is_next_to_nothing() -> None:
    parts = paper.total_loss(
        torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 4, 4), bump((8, 8), 2.0)
    )
    assert parts["loss"].item() == pytest.approx(parts["count"].item(), rel=1e-2)
    assert parts["rank"].item() * paper.RANK_WEIGHT < 1e-5


def test_read_out_of_cells_drops_what_fills_no_cell_and_takes_one_from_full_ones() -> (
    None
):
    density = torch.zeros(32, 43)
    density[4, 4] = 60 * 2.0
    density[20, 40] = 60 * 5.0  # in the last 11 columns
    read = cell_readout(density)
    assert (
        read["count"].item() == 1
        and read["plain_sum"].item() == 7
        and read["cells"].shape == (2, 2)
    )


# --- Words ----------------------------------------------------------------------------


def test_templates_and_plurals() -> None:
    assert len(set(PLURAL_TEMPLATES)) == 11 and len(set(SINGULAR_TEMPLATES)) == 15
    assert all(
        text.count("{}") == 1 and text.endswith(".")
        for text in PLURAL_TEMPLATES + SINGULAR_TEMPLATES
    )
    assert (
        plural("supermarket shelf") == "supermarket shelves"
        and plural("geese") == "geese"
    )
    assert prompts_for(" dogs ", ["a number of {} in the scene."]) == [
        "a number of dogs in the scene."
    ]


def test_texts_are_averaged_as_unit_vectors_and_equal_names_agree() -> None:
    model = tiny()
    rows = model.encode_names(["dogs", "cats", "dogs"], ["{}", "some {}"])
    single = [
        torch.nn.functional.normalize(model.encode_names(["dogs"], [t]), dim=1)
        for t in ("{}", "some {}")
    ]
    torch.testing.assert_close(
        rows[0], torch.nn.functional.normalize(sum(single)[0], dim=0)
    )
    torch.testing.assert_close(rows[0], rows[2])
    assert not torch.allclose(rows[0], rows[1])


@pytest.mark.parametrize("name", ["", "   "])
def test_an_empty_description_is_refused(name: str, images: Tensor) -> None:
    with pytest.raises(ValueError, match="name 0 is empty"):
        tiny().predict(images[:1], [name])


def test_templates_without_a_place_for_the_name_are_refused() -> None:
    for templates in ([], "a photo of {}", ["a photo"]):
        with pytest.raises(ValueError, match="template"):
            tiny().encode_names(["dogs"], templates)


def test_a_chinese_description_counts(images: Tensor) -> None:
    model = tiny()
    assert model.predict(images[:1], ["红苹果"]).isfinite().all()
    assert not torch.allclose(
        model.encode_names(["红苹果"]), model.encode_names(["狗"])
    )


# --- Images of other shapes -----------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 256), (256, 32), (9, 20), (100, 37), (32, 32)])
def test_any_shape_is_counted_through_windows(shape: tuple[int, int]) -> None:
    model = tiny()
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    density = model.density(image, "dogs")
    assert min(density.shape) == 32 and density.isfinite().all()
    assert (density.shape[0] >= density.shape[1]) == (shape[0] >= shape[1])


def test_windows_count_every_object_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    # A counter that sees one object in every bright pixel: its sum must not depend on
    # how windows overlap.
    monkeypatch.setattr(model, "predict", lambda crops, names, templates: crops[:, 0])
    image = (
        torch.rand(3, 32, 200, generator=torch.Generator().manual_seed(0)) > 0.95
    ).float()
    for stride in (8, 11, 32):
        assert model.density(
            image, "dogs", stride=stride
        ).sum().item() == pytest.approx(image[0].sum().item(), rel=1e-4)


def test_one_window_is_the_plain_prediction(images: Tensor) -> None:
    model = tiny()
    torch.testing.assert_close(
        model.density(images[0], "dogs"), model.predict(images[:1], ["dogs"])[0]
    )


def test_a_side_that_is_no_whole_number_of_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="30 x 32"):
        tiny().predict(torch.zeros(1, 3, 30, 32), ["dogs"])


def test_other_grids_than_the_trained_one_work_in_one_piece() -> None:
    assert tiny().predict(torch.rand(1, 3, 32, 72), ["dogs"]).shape == (1, 32, 72)


# --- The authors' weights -------------------------------------------------------------


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return {
        k.removeprefix("state/"): v
        for k, v in load_file(GOLDEN).items()
        if k.startswith("state/")
    }


def test_released_file_loads_with_or_without_what_it_never_uses(
    official: dict[str, Tensor],
) -> None:
    whole = paper.VLCounter.from_official(official, vision_heads=4, text_heads=4)
    without = {
        k: v
        for k, v in official.items()
        if not k.startswith(("decoder.4.gn.", "v_enc.attn."))
    }
    packed = {
        "epoch": 182,
        "state_dict": {f"module.{key}": value for key, value in without.items()},
    }
    again = paper.VLCounter.from_official(packed, vision_heads=4, text_heads=4)
    assert not whole.training
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("v_enc.conv1.weight"), "v_enc.conv1.weight"),
        (lambda s: s.pop("decoder.1.conv.bias"), "head.stages.1.conv.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "head.extra"),
        (lambda s: s.update({"proj.0.bias": torch.zeros(3)}), "head.skips.0.conv.bias"),
    ],
)
def test_other_weights_are_refused_by_name(
    official: dict[str, Tensor], change, message: str
) -> None:
    state = dict(official)
    change(state)
    with pytest.raises(ValueError, match=message):
        paper.VLCounter.from_official(state, vision_heads=4, text_heads=4)
