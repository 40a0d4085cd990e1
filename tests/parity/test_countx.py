"""CounTX against the authors' code; the specification is in each case's JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from minilib.datasets.density import dot_map, smooth
from minilib.datasets.mosaic import blend_mosaic
from minilib.layers.windows import merge_windows, window_starts, window_weights
from minilib.models.clip import CLIPConfig, TextConfig, ViTConfig
from minilib.models.countx import (
    CounTX,
    CounTXConfig,
    InteractionBlock,
    density_loss,
    sincos_positions,
)
from minilib.recipes.countx.recipe import paper_learning_rate

PAPER = "countx"


def official_model(case, state: dict[str, Tensor], config: dict) -> CounTX:
    model = CounTX.from_official(
        state,
        heads=config["fh"],
        first_grid=config["grid_up"],
        groups=config.get("groups", 8),
        vision_heads=config["vw"] // config["vhw"],
        text_heads=config["th"],
    )
    assert model.state_dict().keys() == state.keys()
    clip = model.config.clip
    assert clip.image_size == config["img"] and clip.embed_dim == config["embed"]
    expected = ViTConfig(
        config["patch"], config["vw"], config["vl"], config["vw"] // config["vhw"]
    )
    assert clip.vision == expected
    assert clip.text == TextConfig(
        config["ctx"], config["vocab"], config["tw"], config["tl"], config["th"]
    )
    return model


def full_model(case) -> None:
    model = official_model(case, case.group("state"), case.info["config"])
    output = model(case.tensors["in/imgs"], case.tensors["in/tokens"])
    case.compare_all(
        {
            "img_tokens": rearrange(output.patches, "b e h w -> b (h w) e"),
            "txt_embed": output.text[:, 0],
            "fim": rearrange(output.interaction, "b e h w -> b (h w) e"),
            "density": output.density,
        }
    )


def multi_query(case) -> None:
    """Several descriptions in a row; the weights are those of the case full_model of
    the same folder."""
    state = case.group("state")
    if not state:
        neighbour = case.path.with_name(
            case.name.replace("multi_query", "full_model") + ".safetensors"
        )
        neighbour = (
            neighbour
            if neighbour.is_file()
            else case.path.with_name("full_model.safetensors")
        )
        assert neighbour.is_file(), f"{case.path} needs the weights of {neighbour}"
        state = {
            k.removeprefix("state/"): v
            for k, v in load_file(neighbour).items()
            if k.startswith("state/")
        }
    model = multi_query_model(case, state)
    imgs, tokens = case.tensors["in/imgs"], case.tensors["in/tokens"]
    case.compare("density_all", model(imgs, tokens).density)
    case.compare("density_first", model(imgs, tokens[:, :1]).density)
    first = model(imgs, tokens[:, 0]).density
    torch.testing.assert_close(
        first, case.tensors["out/density_first"], rtol=1e-4, atol=1e-4
    )


def multi_query_model(case, state: dict[str, Tensor]) -> CounTX:
    config = dict(case.info["config"])
    if "fh" not in config:
        info = case.path.with_name(
            case.name.replace("multi_query", "full_model") + ".json"
        )
        info = info if info.is_file() else case.path.with_name("full_model.json")
        config |= json.loads(Path(info).read_text(encoding="utf-8"))["config"]
    return official_model(case, state, config)


def fim_block(case) -> None:
    config = case.info["config"]
    block = InteractionBlock(config["dim"], config["heads"], config["mlp_ratio"])
    assert block.norm1.eps == config["norm_eps"]
    block.load_state_dict(case.group("state"))
    x = case.tensors["in/x"]
    results = {"selfattn": block.selfattn(block.norm0(x))}
    for name, y in case.group("in").items():
        if match := re.fullmatch(r"y(\d+)", name):
            results |= {
                f"crossattn_{match[1]}": block.attn(block.norm1(x), y),
                f"block_{match[1]}": block(x, y),
            }
            assert y.shape[1] == int(match[1])
    case.compare_all(results)
    first = case.tensors["out/crossattn_1"]
    torch.testing.assert_close(first, first[:, :1].expand_as(first))


def pos_embed(case) -> None:
    for name in case.group("out"):
        dim, grid = map(int, re.fullmatch(r"pos_(\d+)_(\d+)", name).groups())
        case.compare(name, sincos_positions(dim, grid))


def decoder_native(case) -> None:
    config, state = case.info["config"], case.group("state")
    side = int(config["tokens"] ** 0.5)
    clip = CLIPConfig(
        config["embed"], 2 * side, ViTConfig(2, 8, 1, 1), TextConfig(4, 8, 8, 1, 1)
    )
    model = CounTX(
        CounTXConfig(
            clip,
            heads=1,
            decoder_width=config["decoder_width"],
            groups=config["groups"],
            first_grid=config["first_grid"],
        )
    )
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and not [
        key for key in left.missing_keys if key.startswith("decode_head")
    ]
    tokens = rearrange(case.tensors["in/fim_tokens"], "b (h w) e -> b e h w", h=side)
    case.compare("density", model.decode(tokens))


def sliding_window(case) -> None:
    config = case.info["config"]
    window, stride = config["window"], config["stride"]
    for name in case.group("out"):
        if match := re.fullmatch(r"coef_(\d+)", name):
            width = int(match[1])
            case.compare(
                name,
                window_weights(window_starts(width, window, stride), window, width),
            )
    width = config["random_case_width"]
    merged = merge_windows(
        case.tensors["in/windows"], window_starts(width, window, stride), width
    )
    case.compare("density", merged)
    case.compare("count", merged.sum() / 60)


def loss(case) -> None:
    inputs = case.group("in")
    output = inputs["output"].clone().requires_grad_()
    value = density_loss(output, inputs["gt"], inputs["mask"])
    value.backward()
    case.compare_all(
        {
            "loss": value,
            "grad": output.grad,
            "loss_mask_zero": density_loss(
                output, inputs["gt"], torch.zeros_like(inputs["mask"])
            ),
            "loss_gt_zero": density_loss(
                output, torch.zeros_like(inputs["gt"]), inputs["mask"]
            ),
            "loss_mask_one": density_loss(output, inputs["gt"]),
            "loss_mask_one_b1": density_loss(output[:1], inputs["gt"][:1]),
        }
    )


def density_target(case) -> None:
    config = case.info["config"]
    points = case.tensors["in/points"] * torch.tensor([config["scale_factor_x"], 1.0])
    dots = dot_map(points, (config["H"], config["W"]), merge=True, clamp=True)
    case.compare("dots", dots)
    for name in case.group("out"):
        if match := re.fullmatch(r"sigma(\d+)_x(\d+)", name):
            case.compare(
                name,
                int(match[2])
                * smooth(dots, int(match[1]), config.get("truncate", 4.0)),
            )


def mosaic_blend(case) -> None:
    image, dots = blend_mosaic(
        case.tensors["in/tiles"],
        case.tensors["in/maps"],
        case.info["config"]["blending_l"],
    )
    case.compare_all({"image": image, "dots": dots})


def preprocess(case) -> None:
    size = case.info["config"]["size"]
    clip = CLIPConfig(8, size, ViTConfig(size, 8, 1, 1), TextConfig(4, 8, 8, 1, 1))
    model = CounTX(CounTXConfig(clip, heads=1, decoder_width=8, first_grid=1))
    for name in case.group("out"):
        case.compare(
            name,
            model.preprocess(case.tensors["in/crop"], antialias=name == "antialias"),
        )


def lr_schedule(case) -> None:
    config = case.info["config"]
    values = [
        paper_learning_rate(
            epoch,
            config["lr"],
            config["warmup_epochs"],
            config["epochs"],
            config["min_lr"],
        )
        for epoch in case.tensors["in/epoch"].tolist()
    ]
    expected = case.tensors["out/lr"]
    if torch.equal(expected, expected.float().double()):
        # The case says 1e-9, but its values were rounded to single precision before
        # they were stored.
        case.info["tolerance"] = {"rtol": 2.0**-23, "atol": 1e-20}
    case.compare("lr", torch.tensor(values, dtype=torch.float64))


CHECKS = {
    check.__name__: check
    for check in (
        full_model,
        multi_query,
        fim_block,
        pos_embed,
        decoder_native,
        sliding_window,
        loss,
        density_target,
        mosaic_blend,
        preprocess,
        lr_schedule,
    )
}


def test_golden(golden_case, dispatch) -> None:
    dispatch(golden_case, CHECKS)
