"""CLIMS against golden tensors of the authors' code, in both published versions."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minilib.metrics import ThresholdSweep
from minilib.models.clims import (
    CLIMS,
    Evaluator,
    LossConfig,
    background_suppression,
    background_text_matching,
    class_background_suppression,
    clims_loss,
    masked_views,
    object_text_matching,
)
from minilib.models.clims.optimisation import make_sgd, poly_learning_rate
from minilib.models.clims.prompts import class_weights
from minilib.models.clims.protocol import merge_scales, predict
from minilib.models.clims.refinement import (
    affinity,
    boundary_loss,
    pair_labels,
    paths,
    random_walk,
)

PAPER = "clims"


def thresholds(case, prefix: str) -> list[tuple[str, float]]:
    """Return the thresholds that the names ``out/<prefix>_th<number>`` hold."""
    pattern = rf"{prefix}_th(-?[\d.]+)"
    found = [re.fullmatch(pattern, name) for name in case.group("out")]
    return [(match[1], float(match[1])) for match in found if match]


def resnet_cam(case) -> None:
    config, state = case.info["config"], case.group("state")
    image, pair = case.tensors["in/image"], case.tensors["in/image_flip_pair"]
    model = CLIMS.from_official(state)
    assert model.config.blocks == tuple(config["layers"])
    assert model.config.classes == config["n_classes"]
    assert model.config.stem == config["stem"]
    assert model.config.planes == config["planes"][0]
    case.compare_all(
        {
            "clims_sigmoid": model(image).activation,
            "clims_sigmoid_stride8": CLIMS.from_official(state, stride=8)(
                image
            ).activation,
            "feature": model.features(image),
            "baseline_logits": model.logits(image),
            "net_cam_logits": model.logits(image),
            "net_cam_relu_cams": model.cams(image, flip=False),
            "cam_flip_merged": model.cams(pair[:1])[0],
            "cam_separate": model.scores(image),
        }
    )
    trained = CLIMS.from_official(state).train()
    case.compare("clims_sigmoid_train_bn", trained(image).activation)
    backbone = trained.backbone
    case.compare_all(
        {
            "bn1_running_mean_after": backbone.bn1.running_mean,
            "layer4_last_bn3_running_var_after": backbone.layer4[-1].bn3.running_var,
        }
    )


def losses(case) -> None:
    similarity, weights = (
        case.tensors[f"in/{name}"].flatten() for name in ("similarity", "weights")
    )
    shape = case.tensors["in/similarity"].shape
    for name, loss in (
        ("otm", object_text_matching),
        ("btm", background_text_matching),
    ):
        given = similarity.clone().requires_grad_()
        value = loss(given)
        (gradient,) = torch.autograd.grad(value, given)
        case.compare_all({name: value, f"grad_{name}": gradient.reshape(shape)})
        case.compare(f"{name}_weighted", loss(similarity, weights))
    text = case.tensors["in/cbs_text_features"]
    for name, threshold in thresholds(case, "cbs"):
        image = case.tensors["in/cbs_image_features"].clone().requires_grad_()
        cosine = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        value = background_suppression(cosine, threshold)
        case.compare(f"cbs_th{name}", value)
        if f"out/grad_cbs_th{name}" in case.tensors:
            (gradient,) = torch.autograd.grad(value, image)
            case.compare(f"grad_cbs_th{name}", gradient)
        if f"out/cbs_num_selected_th{name}" in case.tensors:
            count = (cosine > threshold).sum()
            case.compare(f"cbs_num_selected_th{name}", count)


def losses_camera_ready(case) -> None:
    info, labels = case.info, case.tensors["in/labels"].argmax(dim=1)
    names, prompts = info["class_names"], info["prompts"]
    similarity = case.tensors["in/similarity"]
    weights = class_weights(names)[labels]
    case.compare("weights", weights.reshape(similarity.shape))
    for name, loss in (
        ("otm", object_text_matching),
        ("btm", background_text_matching),
    ):
        case.compare(name, loss(similarity.flatten(), weights, clamp=False))
    texts = case.group("in/text_features")
    text = torch.stack([texts[number] for number in prompts])
    lists = [info["background_dict"].get(name, ()) for name in names]
    own = torch.tensor([[p in own for p in prompts.values()] for own in lists])
    image = case.tensors["in/image_features"]
    cosine = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    case.compare("cbs", class_background_suppression(cosine, own[labels]))


class Projection:
    """What stands for CLIP's image encoder: flattened pixels times a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def encode_image(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.matrix


def train_step_masking(case) -> None:
    config, inputs = case.info["config"], case.group("in")
    logits = inputs["cam_logits"].clone().requires_grad_()
    present, size = inputs["labels"], config["clip_input_size"]
    text, classes = inputs["text_features"], inputs["labels"].shape[1]
    encoder = Projection(inputs["standin_image_projection"])
    evaluator = Evaluator(encoder, text[:classes], text[classes:], size)
    activation = logits.sigmoid()
    views = masked_views(inputs["image"], activation, present, size)
    seen = evaluator(inputs["image"], activation, present)
    weights = LossConfig(*config["hyper"], threshold=config["cbs_threshold"])
    parts = clims_loss(seen, activation, weights)
    (gradient,) = torch.autograd.grad(parts["loss"], logits)
    case.compare_all(
        {
            "fg_masked": views.object,
            "bg_masked": views.rest,
            "sim_fg": rearrange(seen.object, "n -> n 1 1"),
            "sim_bg": rearrange(seen.rest, "n -> n 1 1"),
            "total": parts["loss"],
            "grad_cam_logits": gradient,
        }
        | {f"L_{name.upper()}": parts[name] for name in ("otm", "btm", "cbs", "reg")}
    )


def poly_sgd(case) -> None:
    config, inputs = case.info["config"], case.group("in")
    groups = [
        {
            "params": [torch.nn.Parameter(inputs[f"p{number + 1}"].clone())],
            "lr": lr,
            "weight_decay": config["weight_decay"],
        }
        for number, lr in enumerate(config["lr"])
    ]
    optimizer = make_sgd(groups, official=True)
    momenta = [group["momentum"] for group in optimizer.param_groups]
    assert momenta == config["torch_momentum"]
    for step in range(sum(name.startswith("grad1_") for name in inputs)):
        rates = [
            poly_learning_rate(step, lr, config["max_step"], config["power"])
            for lr in config["lr"]
        ]
        for number, (group, rate) in enumerate(
            zip(optimizer.param_groups, rates, strict=True)
        ):
            group["lr"] = rate
            group["params"][0].grad = inputs[f"grad{number + 1}_{step}"]
        optimizer.step()
        case.compare(f"lr_{step}", torch.tensor(rates))
        for number, group in enumerate(optimizer.param_groups):
            case.compare(f"p{number + 1}_{step}", group["params"][0])


def cam_inference_eval(case) -> None:
    config, inputs = case.info["config"], case.group("in")
    classes, size = config["n_classes"], config["image_size"]
    scales = [inputs[f"cam_scale{i}"][None] for i in range(len(config["scales"]))]
    present, target = inputs["labels"][None] > 0, inputs["gt"][None]
    maps = merge_scales(scales, size, present)
    keys = present[0].nonzero()[:, 0]
    case.compare_all(
        {
            "strided_cam": maps.coarse[0, keys],
            "high_res": maps.full[0, keys],
            "keys": keys,
        }
    )
    named = thresholds(case, "pred")
    assert sorted(value for _, value in named) == sorted(config["thresholds"])
    sweep = ThresholdSweep(classes, [value for _, value in named])
    sweep.update(maps.full, torch.where(target < 0, sweep.ignore, target))
    for number, (name, value) in enumerate(named):
        case.compare_all(
            {
                f"pred_th{name}": predict(maps.full, value)[0],
                f"confusion_th{name}": sweep.confusion[number],
                f"miou_th{name}": sweep.mean_iou()[number],
            }
        )


def irn_random_walk(case) -> None:
    inputs = case.group("in")
    edge, cam = inputs["edge"], inputs["cam"]
    for name in case.group("out"):
        if match := re.fullmatch(r"rw_r(\d+)_b([\d.]+)_t(\d+)", name):
            radius, beta, doublings = int(match[1]), float(match[2]), int(match[3])
            walked = random_walk(cam[None], edge, radius, beta, doublings)
            case.compare(name, rearrange(walked, "1 k h w -> k 1 h w"))
        elif match := re.fullmatch(r"search_dst_r(\d+)", name):
            ends = [path[0] for path in paths(int(match[1]))]
            case.compare(name, torch.tensor(ends))
        elif match := re.fullmatch(r"affinity_sparse_r(\d+)", name):
            radius = int(match[1])
            padded = F.pad(edge, (radius, radius, 0, radius), value=1.0)
            case.compare(name, affinity(padded, radius).flatten(2))
    radius = case.info["config"]["radius_train_case"]
    pairs = pair_labels(inputs["pseudo_label"], radius)
    logits = inputs["edge_logits"]
    near = affinity(logits.sigmoid()[:, 0], radius)
    parts = boundary_loss(logits, inputs["displacement"], pairs, radius)
    case.compare_all(
        {
            "bg_pos_label": pairs.background.flatten(2),
            "fg_pos_label": pairs.foreground.flatten(2),
            "neg_label": pairs.negative.flatten(2),
            "affinity": near.flatten(2),
            "loss_pos": parts["positive"],
            "loss_neg": parts["negative"],
            "loss_disp_fg": parts["foreground"],
            "loss_disp_bg": parts["background"],
            "total": parts["loss"],
        }
    )


CHECKS = {
    check.__name__: check
    for check in (
        resnet_cam,
        losses,
        losses_camera_ready,
        train_step_masking,
        poly_sgd,
        cam_inference_eval,
        irn_random_walk,
    )
}


def test_parity(golden_case, dispatch) -> None:
    dispatch(golden_case, CHECKS)
