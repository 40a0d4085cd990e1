"""GroupViT's properties: sizes, randomness, losses, loading, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.layers.transformer import SelfAttention
from minilib.models.clip.config import TextConfig
from minilib.models.groupvit import (
    AssignConfig,
    GroupViT,
    GroupViTConfig,
    Projector,
    class_vectors,
    contrastive_loss,
    embed_classes,
    multi_label_loss,
    noun_prompts,
    total_loss,
)
from minilib.models.groupvit.model import drop_path
from minilib.tokenizer import Tokenizer, vocabulary_of
from minilib.training import TrainConfig, make_optimizer

WORDS = vocabulary_of(["a photo of a dog cat tree.", "two red cars on the grass"])
CONFIG = GroupViTConfig(
    image_size=32,
    patch=8,
    widths=(32, 32, 32),
    depths=(2, 1, 1),
    heads=(2, 2, 2),
    group_tokens=(6, 3, 0),
    output_groups=(6, 3),
    drop_path=0.0,
    text=TextConfig(24, Tokenizer(24, WORDS).vocab_size, 32, 2, 2),
    embed_dim=16,
    projector_width=24,
    vocabulary=WORDS,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(**values: object) -> GroupViT:
    torch.manual_seed(0)
    return GroupViT(replace(CONFIG, **values)).eval()


@pytest.fixture(scope="module")
def model() -> GroupViT:
    return make()


CAPTIONS = ["a photo of a dog", "two red cars on the grass", "a tree"]


# --- sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "patches"), [((32, 32), 16), ((48, 64), 48), ((16, 64), 16), ((8, 8), 1)]
)
def test_any_multiple_of_the_patch(
    model: GroupViT, size: tuple[int, int], patches: int
) -> None:
    encoded = model.image_encoder(noise(2, 3, *size))
    assert encoded.segments.shape == (2, 3, 32) and encoded.pooled.shape == (2, 32)
    shapes = [assignment.share.shape for assignment in encoded.assignments]
    assert shapes == [(2, 6, patches), (2, 3, 6)]


@pytest.mark.parametrize("size", [(32, 36), (7, 32), (33, 33)])
def test_sides_that_are_no_multiples_are_refused(
    model: GroupViT, size: tuple[int, int]
) -> None:
    message = rf"{size[0]} x {size[1]} pixels .* patches of 8: resize, crop or pad"
    with pytest.raises(ValueError, match=message):
        model.encode_image(noise(1, 3, *size))


def test_positions_of_the_trained_size_are_untouched(model: GroupViT) -> None:
    """16 patches in a row are not those of the square, which also has 16."""
    encoder = model.image_encoder
    blank = torch.zeros(1, 3, 32, 32)
    content = encoder.patches(blank) - encoder.positions
    torch.testing.assert_close(content, content[:, :1].expand_as(content))
    row = encoder.patches(torch.zeros(1, 3, 8, 128)) - content
    assert (row - encoder.positions).abs().max() > 0.01
    even = F.interpolate(
        encoder.positions.T.reshape(1, 32, 4, 4), (1, 16), mode="bicubic"
    )
    torch.testing.assert_close(row, even[0, :, 0].T[None])


def test_images_do_not_see_each_other(model: GroupViT) -> None:
    pixels, tokens = noise(3, 3, 32, 32), model.tokenize(CAPTIONS)
    together = model(pixels, tokens)
    alone = model(pixels[1:2], tokens[1:2])
    torch.testing.assert_close(together.image[1:2], alone.image)
    torch.testing.assert_close(together.text[1:2], alone.text)


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("cosine_scale", [None, 12.0])
def test_every_parameter_gets_a_gradient(stem: str, cosine_scale: float | None) -> None:
    assign = AssignConfig(cosine_scale=cosine_scale)
    model = make(stem=stem, assign=assign).train()
    texts = noun_prompts(CAPTIONS, [["dog"], ["cars", "grass"], []], ["a {}."], 2)
    total_loss(model(noise(3, 3, 32, 32), model.tokenize(texts)))["loss"].backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert not without


def test_one_stage_and_another_width() -> None:
    one = make(
        widths=(32, 64), depths=(2, 1), heads=(2, 4), group_tokens=(6, 0),
        output_groups=(3,),
    )  # fmt: skip
    encoded = one.image_encoder(noise(1, 3, 32, 32))
    assert encoded.segments.shape == (1, 3, 64) and len(encoded.assignments) == 1


def test_trace_ends_where_forward_does(model: GroupViT) -> None:
    pixels = noise(2, 3, 32, 32)
    steps, encoded = model.image_encoder.trace(pixels), model.image_encoder(pixels)
    torch.testing.assert_close(steps["segments"], encoded.segments)
    shapes = [tuple(x.shape[1:]) for x in steps["mixed"]]
    assert shapes == [(16 + 6, 32), (6 + 3, 32), (3, 32)]
    assert [x.shape[1] for x in steps["outputs"]] == [6, 3, 3]


def test_the_released_size() -> None:
    with torch.device("meta"):
        model = GroupViT(GroupViTConfig())

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(model.image_encoder) == 28_837_136
    assert count(model.text_encoder) == 22_145_792
    assert count(model.image_projector) == 2_633_984
    assert count(model.text_projector) == 2_109_696
    assert count(model) == 55_726_610


def test_linear_layers_start_small_and_later_group_tokens_at_zero() -> None:
    encoder = make(widths=(64, 64, 64)).image_encoder
    for module in encoder.modules():
        if isinstance(module, nn.Linear | SelfAttention):
            weight = getattr(module, "weight", None)
            weight = module.in_proj_weight if weight is None else weight
            assert weight.std().item() == pytest.approx(0.02, rel=0.3)
    first, second = (encoder.stages[number].group_tokens for number in range(2))
    assert first.std().item() == pytest.approx(0.02, rel=0.3)
    assert encoder.positions.std().item() == pytest.approx(0.02, rel=0.3)
    assert (second == 0).all() and encoder.stages[2].group_tokens is None


# --- randomness -----------------------------------------------------------------------


def test_a_step_is_fixed_by_its_generator() -> None:
    model = make(drop_path=0.5).train()
    pixels = noise(4, 3, 32, 32)

    def segments(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.image_encoder(pixels, generator).segments

    assert torch.equal(segments(0), segments(0))
    assert not torch.equal(segments(0), segments(1))
    model.eval()
    assert torch.equal(segments(0), segments(1))


def test_noise_that_is_given_replaces_the_generator() -> None:
    model, pixels = make().train(), noise(2, 3, 32, 32)
    samples = [noise(2, 6, 16), noise(2, 3, 6)]
    first, again = (
        model.image_encoder(pixels, torch.Generator().manual_seed(seed), samples)
        for seed in (0, 1)
    )
    assert torch.equal(first.segments, again.segments)
    with pytest.raises(ValueError, match="1 Gumbel samples for 2 groupings"):
        model.image_encoder(pixels, noise=samples[:1])


def test_skipped_branches_keep_the_mean() -> None:
    ones = torch.ones(20_000, 1, 1)
    kept = drop_path(ones, 0.25, torch.Generator().manual_seed(0))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.02)
    assert drop_path(ones, 0.0) is ones


def test_later_blocks_are_skipped_more_often() -> None:
    rates = [
        rate
        for stage in make(drop_path=0.3).image_encoder.stages
        for rate in stage.drop_rates
    ]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


# --- text and projectors --------------------------------------------------------------


def test_what_follows_the_end_of_a_text_does_not_count(model: GroupViT) -> None:
    tokens = model.tokenize(CAPTIONS)
    longer = tokens.clone()
    longer[:, -3:] = torch.where(longer[:, -3:] == 0, 5, longer[:, -3:])
    torch.testing.assert_close(model.encode_text(longer), model.encode_text(tokens))


def test_all_texts_are_one_batch_of_the_norm() -> None:
    model = make().train()
    tokens = model.tokenize([[c, c + " dog"] for c in CAPTIONS])
    assert tokens.shape == (3, 2, 24)
    features = model.encode_text(tokens)
    before = model.text_projector.linear_hidden[1].num_batches_tracked.item()
    flat = model.encode_text(tokens.flatten(0, 1))
    torch.testing.assert_close(features.flatten(0, 1), flat)
    assert model.text_projector.linear_hidden[1].num_batches_tracked == before + 1


def test_a_projector_has_as_many_layers_as_asked() -> None:
    deep, flat = Projector(8, 12, 4, layers=3), Projector(8, 12, 4, layers=1)
    assert len(deep.linear_hidden) == 6 and len(flat.linear_hidden) == 0
    assert deep.eval()(noise(2, 5, 8)).shape == flat(noise(2, 5, 8)).shape == (2, 5, 4)


def test_class_vectors_weigh_templates_by_length() -> None:
    features = torch.tensor([[[3.0, 0], [0, 1]]])
    torch.testing.assert_close(
        class_vectors(features), F.normalize(torch.tensor([[3.0, 1]]), dim=-1)
    )


def test_classes_are_embedded_by_their_prompts(model: GroupViT) -> None:
    templates = ["a photo of a {}.", lambda name: f"two red {name}"]
    names = ["dog", "cat", "tree"]
    text = embed_classes(model, names, templates, batch_size=4)
    prompts = [
        [t.replace("{}", n), f"two red {n}"] for n in names for t in templates[:1]
    ]
    by_hand = class_vectors(model.encode_text(model.tokenize(prompts)))
    torch.testing.assert_close(text, by_hand)
    order = [2, 0, 1]
    permuted = embed_classes(model, [names[i] for i in order], templates)
    torch.testing.assert_close(permuted, text[order])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one class name"),
        (["dog", "Dog"], "same tokens"),
        (["dog", " "], "class name 1 is empty"),
        (["dog " * 40], "the text tower reads 24"),
    ],
)
def test_bad_class_names(model: GroupViT, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed_classes(model, names)


def test_classes_are_not_embedded_in_training_mode() -> None:
    with pytest.raises(ValueError, match="training mode"):
        embed_classes(make().train(), ["dog"])


def test_a_caption_of_a_hundred_nouns_is_cut(model: GroupViT) -> None:
    words = ["dog", "cat", "tree", "cars"] * 25
    (texts,) = noun_prompts([" ".join(words)], [words], ["a {}."], 3)
    tokens = model.tokenize([texts])
    assert tokens.shape == (1, 4, 24) and tokens[0, 0, -1] == model.tokenizer.end
    assert len(set(texts[1:])) >= 1 and all(len(text) < 10 for text in texts[1:])
    with pytest.raises(ValueError, match="does not fit the context of 24"):
        model.tokenize([texts], truncate=False)


def test_captions_and_prompts_must_belong_together(model: GroupViT) -> None:
    with pytest.raises(ValueError, match="as many prompts for every caption"):
        model.tokenize([["a dog"], ["a cat", "a cat"]])
    with pytest.raises(ValueError, match="no text"):
        model.tokenize([])
    with pytest.raises(ValueError, match="2 images with 3 captions"):
        model(noise(2, 3, 32, 32), model.tokenize(CAPTIONS))
    with pytest.raises(ValueError, match="set TextConfig"):
        make(vocabulary=None).tokenize(["a dog"])


def test_preprocess_standardises_by_imagenet(model: GroupViT) -> None:
    image = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    pixels = model.preprocess(image)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx(
        [2.2489, 2.4286, 2.64], abs=1e-3
    )
    with pytest.raises(ValueError, match="divide them by 255"):
        model.preprocess(torch.full((1, 3, 8, 8), 200.0))


# --- losses ---------------------------------------------------------------------------


def test_multi_label_loss_is_a_cross_entropy_with_several_targets() -> None:
    image, prompts, scale = noise(4, 8), noise(4, 3, 8, seed=1), torch.tensor(7.0)
    u, v = F.normalize(image, dim=-1), F.normalize(prompts, dim=-1).flatten(0, 1)
    target = torch.eye(4).repeat_interleave(3, dim=1) / 3
    images = F.cross_entropy(7 * u @ v.T, target)
    texts = F.cross_entropy(7 * v @ u.T, torch.arange(4).repeat_interleave(3))
    torch.testing.assert_close(
        multi_label_loss(image, prompts, scale), (images + texts) / 2
    )


def test_one_prompt_makes_it_the_contrastive_loss() -> None:
    image, text, scale = noise(5, 8), noise(5, 8, seed=1), torch.tensor(7.0)
    torch.testing.assert_close(
        multi_label_loss(image, text[:, None], scale),
        contrastive_loss(image, text, scale),
    )


def test_a_batch_of_one() -> None:
    image, prompts = noise(1, 8), noise(1, 1, 8, seed=1)
    scale = torch.tensor(100.0)
    assert contrastive_loss(image, prompts[:, 0], scale) == 0
    same = prompts.expand(1, 3, 8)  # nothing to choose among
    assert multi_label_loss(image, same, scale).item() == pytest.approx(
        math.log(3) / 2, abs=1e-4
    )


def test_order_of_prompts_and_lengths_of_vectors_do_not_count() -> None:
    image, prompts, scale = noise(4, 8), noise(4, 3, 8, seed=1), torch.tensor(7.0)
    loss = multi_label_loss(image, prompts, scale)
    torch.testing.assert_close(
        multi_label_loss(image, prompts[:, [2, 0, 1]], scale), loss
    )
    torch.testing.assert_close(multi_label_loss(3 * image, prompts / 2, scale), loss)
    order = [3, 1, 0, 2]
    torch.testing.assert_close(
        multi_label_loss(image[order], prompts[order], scale), loss
    )
    assert multi_label_loss(image[order], prompts, scale) > loss - 10


@pytest.mark.parametrize("shape", [(4, 8), (3, 3, 8), (4, 0, 8)])
def test_prompts_must_fit_the_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected .b, K, E. with K from 1"):
        multi_label_loss(noise(4, 8), torch.zeros(shape), torch.tensor(1.0))


def test_losses_stay_in_single_precision() -> None:
    image, prompts, scale = noise(4, 8), noise(4, 3, 8, seed=1), torch.tensor(90.0)
    plain = multi_label_loss(image, prompts, scale)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = multi_label_loss(image, prompts, scale)
    torch.testing.assert_close(mixed, plain)


def test_total_loss_adds_the_parts(model: GroupViT) -> None:
    pixels = noise(3, 3, 32, 32)
    alone = total_loss(model(pixels, model.tokenize(CAPTIONS)))
    assert set(alone) == {"loss", "contrastive"}
    texts = noun_prompts(CAPTIONS, [["dog"], ["cars"], ["tree"]], ["a {}."], 1)
    output = model(pixels, model.tokenize(texts))
    parts = total_loss(output, weight=0.5)
    torch.testing.assert_close(
        parts["loss"], parts["contrastive"] + 0.5 * parts["multi_label"]
    )
    torch.testing.assert_close(parts["contrastive"], alone["contrastive"])


def test_prompts_need_a_temperature() -> None:
    model = make(multi_label=False)
    texts = noun_prompts(CAPTIONS, [[], [], []], ["a {}."], 1)
    with pytest.raises(ValueError, match="multi_label=True"):
        total_loss(model(noise(3, 3, 32, 32), model.tokenize(texts)))


def test_multipliers_stop_at_a_hundred() -> None:
    model = make()
    assert model.multiplier.item() == pytest.approx(1 / 0.07)
    nn.init.constant_(model.logit_scale, 5.0)
    assert model.multiplier == 100 and model.prompt_multiplier < 100


def test_it_learns_a_few_pairs_by_heart() -> None:
    torch.manual_seed(0)
    model = make().train()
    pixels = noise(3, 3, 32, 32)
    texts = noun_prompts(CAPTIONS, [["dog"], ["cars"], ["tree"]], ["a {}."], 1)
    tokens = model.tokenize(texts)
    optimizer = make_optimizer(model, TrainConfig(30, lr=3e-3))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(30):
        loss = total_loss(model(pixels, tokens, generator))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# --- loading --------------------------------------------------------------------------


def test_a_configuration_survives_json() -> None:
    config = replace(CONFIG, assign=AssignConfig(cosine_scale=12.0))
    again = GroupViTConfig.from_dict(json.loads(json.dumps(asdict(config))))
    assert again == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depths": (2, 1)}, "expected 2 numbers"),
        ({"group_tokens": (6, 3, 3)}, "0 group tokens there"),
        ({"group_tokens": (6, 0, 0)}, "positive numbers in every stage but the last"),
        ({"output_groups": (6, 0)}, "positive numbers"),
        ({"image_size": 33}, "choose a multiple of 8"),
        ({"stem": "resnet"}, "unknown stem"),
        ({"patch": 6, "image_size": 36, "stem": "conv"}, "power of two"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"projector_layers": 0}, "projector_layers=0"),
    ],
)
def test_bad_configurations(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **values)


@pytest.mark.parametrize("name", ["assign_eps", "cosine_scale"])
def test_bad_assignments(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=-1: expected a positive number"):
        AssignConfig(**{name: -1})


def official(model: GroupViT) -> dict[str, Tensor]:
    """Return a model's weights under the names that they have in a released file."""
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in (
            ("image_encoder.positions", "img_encoder.pos_embed"),
            ("image_encoder.patch_embed", "img_encoder.patch_embed.proj"),
            ("image_encoder.patch_norm", "img_encoder.patch_embed.norm"),
            ("image_encoder.stages", "img_encoder.layers"),
            ("image_encoder.", "img_encoder."),
            ("image_projector.", "img_projector."),
            (".group_tokens", ".group_token"),
            (".grouping.", ".downsample."),
            ("group_projector.norm", "group_projector.0"),
            ("group_projector.mixer", "group_projector.1"),
        ):
            key = key.replace(ours, theirs)
        if ".blocks." in key:
            for ours, theirs in (
                ("attn.in_proj_", "attn.qkv."),
                ("attn.out_proj", "attn.proj"),
                ("ln_", "norm"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                key = key.replace(ours, theirs)
        if key.endswith(("pos_embed", "group_token")):
            value = value[None]
        if "_projector.linear" in key and value.ndim == 2:
            value = value[..., None]
        state[key] = value
    return state


def test_a_released_file_loads_with_all_that_is_in_it(model: GroupViT) -> None:
    file = {"model": official(model), "epoch": 30, "optimizer": {"state": {}}}
    assert "img_encoder.layers.0.downsample.assign.q_proj.weight" in file["model"]
    assert file["model"]["img_projector.linear_out.weight"].shape == (16, 24, 1)
    again = GroupViT.from_official(file, heads=2, text_heads=2, drop_path=0.0)
    assert again.config == replace(CONFIG, vocabulary=None)
    pixels, tokens = noise(2, 3, 32, 32), model.tokenize(CAPTIONS[:2])
    torch.testing.assert_close(again(pixels, tokens).image, model(pixels, tokens).image)
    torch.testing.assert_close(again(pixels, tokens).text, model(pixels, tokens).text)


def test_without_multi_label_loss_there_is_no_second_temperature() -> None:
    state = official(make(multi_label=False))
    again = GroupViT.from_official(state, heads=2, text_heads=2)
    assert not again.config.multi_label and again.prompt_multiplier is None


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("img_encoder.pos_embed", "'image_encoder.positions' is missing"),
        ("img_encoder.layers.0.group_token", "group_tokens' is missing"),
        ("img_encoder.layers.2.blocks.0.norm1.weight", "ln_1.weight' is missing"),
        ("img_encoder.norm.bias", "1 missing"),
        ("text_encoder.ln_final.bias", "1 missing"),
    ],
)
def test_missing_weights_are_named(model: GroupViT, gone: str, message: str) -> None:
    state = official(model)
    state.pop(gone)
    with pytest.raises(ValueError, match=message):
        GroupViT.from_official(state, heads=2, text_heads=2)


def test_positions_must_form_a_square(model: GroupViT) -> None:
    state = official(model)
    state["img_encoder.pos_embed"] = torch.zeros(1, 15, 32)
    with pytest.raises(ValueError, match="15 positions do not form a square"):
        GroupViT.from_official(state, heads=2)


def test_weights_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="not the weights of a GroupViT"):
        GroupViT.from_official({"visual.proj": torch.zeros(2, 2)})


# --- transformers ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GroupViTConfig(
        text_config=dict(
            vocab_size=50, hidden_size=32, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=12, bos_token_id=48,
            eos_token_id=49,
        ),
        vision_config=dict(
            hidden_size=32, intermediate_size=128, depths=[2, 1, 1],
            num_hidden_layers=4, num_group_tokens=[6, 3, 0],
            num_output_groups=[6, 3, 0], num_attention_heads=4, image_size=32,
            patch_size=8, assign_eps=0.5,
        ),
        projection_dim=16,
        projection_intermediate_dim=24,
    )  # fmt: skip
    model = transformers.GroupViTModel(config).eval()
    for parameter in model.parameters():  # biases as well
        nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
    nn.init.constant_(model.logit_scale, 2.0)
    for norm in (model.visual_projection[1], model.text_projection[1]):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.running_mean)
    return model


def test_transformers_computes_the_same(theirs: nn.Module) -> None:
    ours = GroupViT.from_transformers(theirs)
    assert ours.config.heads == (4, 4, 4) and ours.config.text.heads == 2
    assert ours.config.assign.assign_eps == 0.5 and not ours.config.multi_label
    assert ours.config.drop_path == 0  # theirs skips no blocks
    pixels = noise(3, 3, 32, 32)
    tokens = torch.randint(1, 48, (4, 12), generator=torch.Generator().manual_seed(0))
    tokens[torch.arange(4), torch.tensor([4, 11, 7, 2])] = 49
    with torch.no_grad():
        wanted = theirs(input_ids=tokens, pixel_values=pixels, output_attentions=True)
        image = ours.encode_image(pixels, normalize=True)
        text = ours.encode_text(tokens, normalize=True)
        encoded = ours.image_encoder(pixels)
    logits = ours.multiplier * image @ text.T
    torch.testing.assert_close(logits, wanted.logits_per_image, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        encoded.segments,
        wanted.vision_model_output.last_hidden_state,
        rtol=1e-4,
        atol=1e-4,
    )
    for own, other in zip(
        encoded.assignments, wanted.vision_model_output.attentions, strict=True
    ):
        torch.testing.assert_close(own.soft, other, rtol=1e-4, atol=1e-4)
        assert len(own.share.argmax(dim=1).unique()) > 1


def test_transformers_weights_load_as_a_file_too(theirs: nn.Module) -> None:
    state = theirs.state_dict()
    ours = GroupViT.from_official(
        state, heads=4, text_heads=2, assign=AssignConfig(assign_eps=0.5)
    )
    again = GroupViT.from_transformers(theirs)
    pixels = noise(1, 3, 32, 32)
    torch.testing.assert_close(ours.encode_image(pixels), again.encode_image(pixels))
    state.pop("vision_model.encoder.stages.0.layers.0.self_attn.k_proj.weight")
    with pytest.raises(ValueError, match="lacks its part k_proj"):
        GroupViT.from_official(state)


def test_options_that_it_does_not_have_are_refused(theirs: nn.Module) -> None:
    vision = theirs.config.vision_config
    before, vision.hidden_act = vision.hidden_act, "relu"
    with pytest.raises(ValueError, match="hidden_act of the image tower is 'relu'"):
        GroupViT.from_transformers(theirs)
    vision.hidden_act = before
