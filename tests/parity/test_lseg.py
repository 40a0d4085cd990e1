"""LSeg against the authors' code; the specification is in each case's JSON."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.layers.dpt import FusionBlock, Readout
from minilib.metrics.segmentation import EpisodeScore, SegmentationScore, episode_areas
from minilib.models.lseg import LabelBlock, LSeg, pixel_cross_entropy
from minilib.models.lseg.config import ResNetBackbone, ViTBackbone
from minilib.models.lseg.protocol import ADE20K_SCALES, multi_scale_scores

PAPER = "lseg"


def readout(case) -> None:
    state, tokens = case.group("state"), case.tensors["in/tokens"]
    width = case.info["config"]["in_features"]
    for name in case.group("out"):
        kind, start = re.fullmatch(r"(project|add|ignore)_start(\d)", name).groups()
        layer = Readout(width, kind, int(start))
        if kind == "project":
            parts = ("weight", "bias")
            layer.load_state_dict(
                {f"project.{p}": state[f"project{start}.project.0.{p}"] for p in parts}
            )
        case.compare(name, layer(tokens))


def fusion_block(case) -> None:
    state, path, skip = (
        case.group("state"),
        case.tensors["in/path"],
        case.tensors["in/skip"],
    )
    blocks = {}
    for kind in ("bn", "nobn"):
        blocks[kind] = FusionBlock(
            case.info["config"]["features"], batch_norm=kind == "bn"
        ).eval()
        own = {
            key.removeprefix(f"{kind}."): value
            for key, value in state.items()
            if key.startswith(f"{kind}.")
        }
        blocks[kind].load_state_dict(own)
    case.compare_all(
        {
            "bn_two": blocks["bn"](path, skip),
            "bn_one": blocks["bn"](path),
            "rcu1_bn": blocks["bn"].resConfUnit1(skip),
            "nobn_two": blocks["nobn"](path, skip),
        }
    )


def label_block(
    case, kind: str, activation: str = "lrelu", depth: int = 1
) -> LabelBlock:
    block = LabelBlock(kind, depth, activation)
    state = case.group("state")
    block.depthwise.load_state_dict(
        {
            part: state[f"{kind}.depthwise.depthwise.{part}"]
            for part in ("weight", "bias")
        }
    )
    return block


def head_blocks(case) -> None:
    scores = case.tensors["in/corr"]
    for name in case.group("out"):
        kind, activation, what = re.fullmatch(
            r"(bottleneck|depthwise)_(relu|lrelu|tanh)_(\w+)", name
        ).groups()
        block = label_block(case, kind, activation)
        if depth := re.fullmatch(r"depth(\d+)", what):
            case.compare(
                name, label_block(case, kind, activation, int(depth[1]))(scores)
            )
        elif what == "permuted":
            order = case.tensors[f"in/{kind}_perm"]
            case.compare(name, block.once(scores[:, order]))
            case.compare(name, block.once(scores)[:, order])
        else:
            case.compare(name, block.once(scores, activate=what == "act"))


def from_case(case, half_product: bool) -> LSeg:
    official = case.info["config"]
    return LSeg.from_official(
        case.group("state"),
        heads=official.get("heads"),
        hooks=official.get("hooks"),
        block={2: "depthwise"}.get(official.get("arch_option"), "bottleneck"),
        block_depth=official.get("block_depth", 0),
        activation=official.get("activation", "lrelu"),
        half_product=half_product,
    )


def compare_half_product(case, pixels: Tensor, text: Tensor) -> None:
    rounded = from_case(case, half_product=True)(pixels, text).scores
    case.compare("logits_fp16path", rounded)
    assert (rounded - case.tensors["out/logits"]).abs().max() > 1e-4, (
        "nothing was rounded"
    )


@torch.no_grad()
def full_model(case) -> None:
    official, pixels, text = (
        case.info["config"],
        case.tensors["in/image"],
        case.tensors["in/text_features"],
    )
    model = from_case(case, half_product=False)
    assert model.config.backbone == ViTBackbone(
        official["patch"],
        official["embed_dim"],
        official["depth"],
        official["heads"],
        official["pos_embed_grid"],
        tuple(official["hooks"]),
        tuple(official["reassemble_channels"]),
        official["readout"],
    )
    assert (model.config.features, model.config.embed_dim) == (
        official["features"],
        official["out_c"],
    )
    assert (
        model.config.block
        == ("none", "bottleneck", "depthwise")[official["arch_option"]]
    )
    stages = model.stages(pixels, text)
    case.compare_all(
        {
            "logits": model(pixels, text).scores,
            "logit_scale": torch.tensor(1 / model.config.temperature),
            "prehead": stages["scores"],
            "path_1": stages["paths"][0],
            "path_4": stages["paths"][3],
            "feat_sub": stages["embeddings"][:, ::8, ::2, ::2],
        }
    )
    for level in range(4):
        case.compare(f"layer_{level + 1}", stages["maps"][level])
        case.compare(f"hook_{level + 1}", stages["taps"][level])
    compare_half_product(case, pixels, text)


@torch.no_grad()
def zs_resnet(case) -> None:
    pixels, text, asked = (
        case.tensors[f"in/{name}"] for name in ("image", "text_features", "class_id")
    )
    model = from_case(case, half_product=False)
    assert isinstance(model.config.backbone, ResNetBackbone) and model.block is None
    assert model.config.image_mean == pytest.approx((0.485, 0.456, 0.406))
    # row 0 is "others"
    pairs = text[torch.stack([torch.zeros_like(asked), 1 + asked], dim=1)]
    case.compare("logits", model(pixels, pairs).scores)
    compare_half_product(case, pixels, pairs)


def losses_metrics(case) -> None:
    inputs, ignore = case.group("in"), case.info["config"]["ignore_index"]
    classes = case.info["config"]["nclass"]
    logits, target = inputs["logits"], inputs["target"]
    case.compare("loss", pixel_cross_entropy(logits, target, ignore))
    nothing = torch.full_like(target, ignore)
    case.compare(
        "loss_all_ignored", F.cross_entropy(logits, nothing, ignore_index=ignore)
    )
    # ours, where theirs is nan
    assert pixel_cross_entropy(logits, nothing, ignore) == 0

    score = SegmentationScore(classes, ignore)
    score.update(logits.argmax(dim=1), target)
    case.compare_all(
        {"pixacc": score.pixel_accuracy(), "miou": score.mean_iou(absent=0.0)}
    )
    case.compare_all({"inter": score.intersection, "union": score.union})
    score.update(inputs["logits2"].argmax(dim=1), inputs["target2"])
    case.compare_all(
        {"pixacc_two": score.pixel_accuracy(), "miou_two": score.mean_iou(absent=0.0)}
    )
    case.compare(
        "zs_loss", pixel_cross_entropy(inputs["zs_logits"], inputs["zs_mask"].long())
    )


def fewshot_metrics(case) -> None:
    prediction, target, asked = (
        case.tensors[f"in/{name}"].long() for name in ("pred", "gt", "class_id")
    )
    void = torch.where(case.tensors["in/ignore"] == 1, 255, target)
    intersection, union = episode_areas(prediction, void)
    case.compare_all({"area_inter": intersection, "area_union": union})
    classes = case.info["config"]["class_ids"]
    for ending, truth in (("", void), ("_noignore", target)):
        score = EpisodeScore(classes)
        score.update(prediction, truth, asked)
        case.compare(f"miou{ending}", torch.tensor(100 * score.mean_iou()))
        case.compare(f"fb_iou{ending}", torch.tensor(100 * score.fb_iou()))
        if not ending:
            for name, counts in (
                ("inter_buf", score.intersection),
                ("union_buf", score.union),
            ):
                whole = torch.zeros(
                    2, case.info["config"]["nclass"], dtype=torch.float64
                )
                whole[:, classes] = counts
                case.compare(name, whole)


def multiscale(case) -> None:
    official, image = case.info["config"], case.tensors["in/image"]
    state = case.group("state")

    def network(pixels: Tensor) -> Tensor:
        return F.conv2d(pixels, state["conv.weight"], state["conv.bias"], padding=1)

    black = -official["mean"] / official["std"]
    for name in case.group("out"):
        digits = name.removeprefix("scores_")
        scales = ADE20K_SCALES
        if digits != "all":
            number = digits.removeprefix("s")
            scales = (float(f"{number[0]}.{number[1:] or 0}"),)
        scores = multi_scale_scores(
            network,
            image,
            official["base_size"],
            official["crop_size"],
            scales,
            official["flip"],
            black,
        )
        case.compare(name, scores)


CHECKS = {
    "readout": readout,
    "fusion_block": fusion_block,
    "head_blocks": head_blocks,
    "lseg_full": full_model,
    "lseg_full_b16": full_model,
    "lseg_full_b32_bottleneck": full_model,
    "lseg_full_b16_depthwise": full_model,
    "lseg_zs_resnet": zs_resnet,
    "losses_metrics_ade": losses_metrics,
    "fewshot_metrics": fewshot_metrics,
    "multiscale_eval": multiscale,
}


def test_lseg(golden_case, dispatch) -> None:
    dispatch(golden_case, CHECKS)
