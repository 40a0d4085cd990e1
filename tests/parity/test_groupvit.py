"""GroupViT against the authors' code; the specification is in each case's JSON."""

from __future__ import annotations

import json
import re

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from safetensors.torch import load_file
from torch import Tensor

from minilib.models.clip.config import TextConfig
from minilib.models.groupvit import (
    AssignAttention,
    AssignConfig,
    GroupingBlock,
    GroupViT,
    GroupViTConfig,
    ImageEncoder,
    assign,
    class_vectors,
    contrastive_loss,
    group_maps,
    multi_label_loss,
    total_loss,
    zero_shot_scores,
)
from minilib.models.groupvit.model import TextEncoder
from minilib.models.groupvit.official import convert
from minilib.models.loading import load_strictly, under

PAPER = "groupvit"


def encoder_config(official: dict) -> GroupViTConfig:
    """Return our configuration of an image encoder of theirs."""
    widths = tuple(official["embed_dim"] * f for f in official["embed_factors"])
    return GroupViTConfig(
        image_size=official["img_size"],
        patch=official["patch_size"],
        widths=widths,
        depths=tuple(official["depths"]),
        heads=tuple(official["num_heads"]),
        group_tokens=tuple(official["num_group_tokens"]),
        output_groups=tuple(official["num_output_groups"]),
        drop_path=official["drop_path_rate"],
    )


@torch.no_grad()
def vision(case) -> None:
    encoder = ImageEncoder(encoder_config(case.info["config"]))
    state = {f"img_encoder.{key}": value for key, value in case.group("state").items()}
    own = under(convert(state), "image_encoder.")
    load_strictly(encoder, own, "an image encoder").eval()
    for name in case.group("in"):
        to = f"out{end}/" if (end := name.removeprefix("image")) else ""
        output = encoder(case.tensors[f"in/{name}"])
        found = {"x": output.pooled, "feat": output.segments}
        for number, assignment in enumerate(output.assignments):
            found[f"attn{number}_hard"] = assignment.share[:, None]
            found[f"attn{number}_soft"] = assignment.soft[:, None]
        case.compare_all({to + key: value for key, value in found.items()})


VARIANTS = {
    "hard": AssignConfig(),
    "soft": AssignConfig(hard=False),
    "hard_sum": AssignConfig(sum_assign=True),
    "eps_small": AssignConfig(assign_eps=1e-6),
}


@torch.no_grad()
def grouping_block(case) -> None:
    official = case.info["config"]
    for name in case.info["variants"]:
        block = GroupingBlock(
            official["dim"],
            official["num_heads"],
            official["num_group_token"],
            official["num_output_group"],
            VARIANTS[name],
        )
        load_strictly(block, case.group("state"), "a grouping block").eval()
        segments, assignment = block(
            case.tensors["in/x"], case.tensors["in/group_tokens"]
        )
        found = {"new_x": segments, "attn_hard": assignment.share[:, None]}
        found["attn_soft"] = assignment.soft[:, None]
        case.compare_all({f"out_{name}/{key}": found[key] for key in found})


def assign_attention_train(case) -> None:
    official, inputs = case.info["config"], case.group("in")
    config = AssignConfig(
        hard=official["hard"],
        gumbel=official["gumbel"],
        gumbel_tau=official["gumbel_tau"],
        assign_eps=official["assign_eps"],
    )
    attention = AssignAttention(official["dim"], config)
    load_strictly(attention, case.group("state"), "an assignment").train()
    query, key = (inputs[name].requires_grad_() for name in ("query", "key"))
    noise = inputs["gumbel_noise"][:, 0]
    out, assignment = attention(query, key, noise)
    (out * inputs["loss_weight"]).sum().backward()
    case.compare_all(
        {
            "y": out,
            "attn_hard": assignment.share[:, None],
            "attn_soft": assignment.soft[:, None],
            "grad_query": query.grad,
            "grad_key": key.grad,
            "grad_q_proj_weight": attention.q_proj.weight.grad,
            "grad_v_proj_weight": attention.v_proj.weight.grad,
        }
    )
    for name in inputs:
        if match := re.fullmatch(r"logits_tau(.+)", name):
            tau = float(match[1])
            for kind in ("soft", "hard"):
                share = assign(inputs[name][:, 0], noise, tau, hard=kind == "hard")
                case.compare(f"gumbel_{kind}_tau{match[1]}", share[:, None])


@torch.no_grad()
def text_encoder(case) -> None:
    official = case.info["config"]
    config = TextConfig(
        official["context_length"],
        official["vocab_size"],
        official["width"],
        official["layers"],
        official["heads"],
    )
    tower = load_strictly(TextEncoder(config), case.group("state"), "a text tower")
    case.compare("text", tower(case.tensors["in/tokens"]))


def multiplier(scale: Tensor) -> Tensor:
    return scale.exp().clamp(max=100)


def losses(case) -> None:
    names = ("image", "text", "text_multi", "logit_scale", "multi_label_logit_scale")
    for name in names:
        case.tensors[f"in/{name}"].requires_grad_()
    inputs = case.group("in")
    image, text, prompts, scale, prompt_scale = (inputs[name] for name in names)
    loss = contrastive_loss(image, text, multiplier(scale))
    multi = multi_label_loss(image, prompts, multiplier(prompt_scale))
    (loss + multi).backward()
    case.compare_all({"loss": loss, "multi_label_loss": multi})
    case.compare_all({f"grad_{name}": inputs[name].grad for name in names})

    clamped = multiplier(inputs["logit_scale_clamped"])
    many = multiplier(inputs["multi_label_logit_scale_clamped"])
    assert clamped == many == 100
    twice, again = inputs["image_multi"], inputs["text_multi_duplicate"]
    with torch.no_grad():
        case.compare_all(
            {
                "loss_clamped": contrastive_loss(image, text, clamped),
                "loss_batch1": contrastive_loss(image[:1], text[:1], clamped),
                "multi_label_loss_clamped": multi_label_loss(image, prompts, many),
                "multi_label_loss_duplicate": multi_label_loss(image, again, many),
                "multi_label_loss_batch1": multi_label_loss(
                    image[:1], prompts[:1], many
                ),
                "multi_label_loss_two_image_tokens": multi_label_loss(
                    twice, prompts, many
                ),
            }
        )


def model_of(case) -> GroupViT:
    """Return the model of a case, or of the case beside it that has its weights."""
    info, state = case.info, case.group("state")
    if "same_weights_as" in info["config"]:
        other = type(case)(case.path.with_name(info["config"]["same_weights_as"]))
        assert other.path.with_suffix(".json").is_file(), f"{other.path} is missing"
        tensors = load_file(other.path.with_suffix(".safetensors"))
        state = under(tensors, "state/")
        info = json.loads(other.path.with_suffix(".json").read_text("utf-8"))
    official = info["config"]["img_encoder"]
    model = GroupViT.from_official(
        state, heads=official["num_heads"], drop_path=official["drop_path_rate"]
    )
    config, wanted = model.config, encoder_config(official)
    for name in ("image_size", "patch", "widths", "depths", "heads", "drop_path"):
        assert getattr(config, name) == getattr(wanted, name), name
    assert config.group_tokens == wanted.group_tokens
    assert config.output_groups == wanted.output_groups
    assert config.embed_dim == info["config"]["output_dim"]
    assert config.projector_width == info["config"]["proj_inner_dim"]
    assert config.projector_layers == info["config"]["proj_num_layers"]
    assert config.multi_label == bool(info["config"]["multi_label"])
    text = info["config"]["text"]
    assert (config.text.context, config.text.vocab_size) == (
        text["context_length"],
        text["vocab_size"],
    )
    assert (config.text.width, config.text.layers) == (text["width"], text["layers"])
    return model


SEGMENTED = {  # tag: (threshold, classes, whether the multiplier is the sharp one)
    "bg95": (0.95, None, False),
    "bg35": (0.35, None, False),
    "nobg": (None, None, False),
    "three_classes": (0.5, 3, False),
    "sharp_bg95": (0.95, None, True),
    "sharp_bg35": (0.35, None, True),
    "sharp_bg05": (0.05, None, True),
    "sharp_two_bg90": (0.9, 2, True),
}
"""What the tags of the case's note mean."""


@torch.no_grad()
def model_and_segmentation(case) -> None:
    model, inputs = model_of(case), case.group("in")
    output = model(inputs["image"], inputs["tokens_train"])
    parts = total_loss(output)
    features = model.encode_segments(inputs["image"])
    encoded = model.image_encoder(inputs["image"])
    text = class_vectors(model.encode_text(inputs["tokens_classes"]))
    case.compare_all(
        {
            "image_x": output.image,
            "image_feat": model.image_projector(encoded.segments),
            "text_x": output.text,
            "text_multi_label_x": output.prompts,
            "loss": parts["contrastive"],
            "multi_label_loss": parts["multi_label"],
            "text_embedding": text,
            "zero_shot": model.encode_image(inputs["image"], normalize=True) @ text.T,
        }
    )
    torch.testing.assert_close(
        features.segments,
        F.normalize(model.image_projector(encoded.segments), dim=-1),
    )
    pixels = inputs["seg_image"]
    size, patch = tuple(pixels.shape[-2:]), model.config.patch
    assignments = model.image_encoder(pixels).assignments
    maps = group_maps(assignments, (size[0] // patch, size[1] // patch), size)
    found = {
        f"attn_map_stage{number}": rearrange(one, "b g h w -> b h w g")
        for number, one in enumerate(maps)
    }
    scales = {False: model.logit_scale.clone(), True: inputs["logit_scale_sharp"]}
    for name in case.group("out/out_seg"):
        if tag := re.fullmatch(r"(.+)_logits", name):
            threshold, classes, sharp = segmented(tag[1])
            model.logit_scale.copy_(scales[sharp])
            scores = zero_shot_scores(model, pixels, text[:classes], threshold).scores
            found[name] = scores
    case.compare_all({f"out_seg/{name}": value for name, value in found.items()})


def segmented(tag: str) -> tuple[float | None, int | None, bool]:
    """Return threshold, classes and sharpness of a tag, also of new numbers."""
    if tag in SEGMENTED:
        return SEGMENTED[tag]
    match = re.fullmatch(r"(sharp_)?(?:(one|two|three|four|five)_)?(?:bg(\d\d))?", tag)
    assert match and match[3], f"the tag {tag!r} is not in the case's note"
    words = ["one", "two", "three", "four", "five"]
    classes = words.index(match[2]) + 1 if match[2] else None
    return int(match[3]) / 100, classes, bool(match[1])


def train_step(case) -> None:
    model, inputs = model_of(case), case.group("in")
    assert case.info["config"]["drop_path_rate"] == 0.0
    noise = [
        inputs[f"gumbel_noise{number}"][:, 0]
        for number in range(len(model.config.output_groups))
    ]
    model.train()
    parts = total_loss(model(inputs["image"], inputs["tokens"], noise=noise))
    parts["loss"].backward()
    case.compare_all(
        {"loss": parts["contrastive"], "multi_label_loss": parts["multi_label"]}
    )
    ours = {name: value.grad for name, value in model.named_parameters()}
    ours |= dict(model.named_buffers())
    for kind in ("grad", "bn"):
        for name, expected in case.group(f"out/{kind}").items():
            (own,) = convert({name: expected})
            case.compare(f"{kind}/{name}", ours[own].reshape(expected.shape))


@torch.no_grad()
def hf_parity(case) -> None:
    model, inputs = model_of(case), case.group("in")
    pixels = inputs["image"]
    features = model.encode_segments(pixels)
    text = model.encode_text(inputs["input_ids"], normalize=True)
    scale = model.logit_scale.exp()  # transformers does not clamp it
    patch, size = model.config.patch, pixels.shape[-2:]
    grid = size[0] // patch, size[1] // patch
    maps = group_maps(features.assignments, grid, tuple(size))[-1]
    logits = scale * einsum(features.segments, text, "b g e, k e -> b g k")
    case.compare_all(
        {
            "logits_per_image": scale * features.image @ text.T,
            # soft maps, no argmax, no top classes, and the scale a second time
            "segmentation_logits": scale
            * einsum(maps, logits, "b g h w, b g k -> b k h w"),
        }
    )


CHECKS = {
    "vision_two_stage": vision,
    "vision_one_stage": vision,
    "vision_width_change": vision,
    "grouping_block": grouping_block,
    "assign_attention_train": assign_attention_train,
    "text_encoder": text_encoder,
    "losses": losses,
    "model_and_segmentation": model_and_segmentation,
    "train_step": train_step,
    "hf_parity": hf_parity,
}


def test_groupvit(golden_case, dispatch) -> None:
    # Groups such as out_large/* are outputs too, and none may be left uncompared.
    for key in [key for key in golden_case.tensors if key.startswith("out_")]:
        golden_case.tensors[f"out/{key}"] = golden_case.tensors.pop(key)
    dispatch(golden_case, CHECKS)
