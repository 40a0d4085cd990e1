"""Counters at 384 pixels, and what a wide picture costs: ratios of things
measured in turns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minilib.layers.windows import over_windows, window_starts
from minilib.models.clip import CLIPConfig, TextConfig, ViTConfig
from minilib.models.countx import CounTX, CounTXConfig
from minilib.models.vlcounter import VLCounter, VLCounterConfig

SIDE = 384
TEXT = TextConfig(width=64, layers=1, heads=1)


def towers(image_size: int, quick: bool) -> CLIPConfig:
    """Return ViT-B/16 as released, or a quarter of its width and depth
    where time is short."""
    vision = ViTConfig(16, 192, 3, 3) if quick else ViTConfig(16, 768, 12, 12)
    return CLIPConfig(128 if quick else 512, image_size, vision, TEXT)


def counters(quick: bool) -> dict[str, nn.Module]:
    width = 64 if quick else 256
    countx = CounTX(CounTXConfig(towers(224, quick), heads=8, decoder_width=width))
    few = dict(prompted_layers=3, taps=(0, 1, 2), channels=16) if quick else {}
    vlcounter = VLCounter(VLCounterConfig(towers(SIDE, quick), **few))
    return {"CounTX": countx.eval(), "VLCounter": vlcounter.eval()}


@torch.no_grad()
def test_images_a_second(contest) -> None:
    """Both draw 384 x 384 densities of 384 x 384 crops; CounTX's tower sees 196 patches
    of each, VLCounter's 576."""
    models = counters(contest.quick)
    crops = torch.rand(2, 3, SIDE, SIDE)
    names = ["the apples", "the dogs"]
    for model in models.values():
        assert model.predict(crops, names).shape == (2, SIDE, SIDE)
    contest.run(
        "density of a 384 x 384 crop, CounTX",
        lambda: models["CounTX"].predict(crops, names),
        {"VLCounter": lambda: models["VLCounter"].predict(crops, names)},
        len(crops),
    )


@pytest.mark.parametrize("name", ["CounTX", "VLCounter"])
@torch.no_grad()
def test_wide_pictures(contest, name: str) -> None:
    """1, 4 and 7 windows for widths of 1, 2 and 3 windows: the cost of a window should
    not depend on their number."""
    model = counters(contest.quick)[name]
    wide = {times: torch.rand(3, SIDE, times * SIDE) for times in (1, 2, 3)}
    number = {
        times: len(window_starts(times * SIDE, SIDE, SIDE // 3)) for times in wide
    }
    assert list(number.values()) == [1, 4, 7]
    spent: dict[int, list[float]] = {times: [] for times in wide}

    def in_turns() -> None:
        for times, image in wide.items():
            began = contest.clock()
            model.density(image, "the apples")
            spent[times].append(contest.clock() - began)

    contest.benchmark.pedantic(
        in_turns, rounds=3 if contest.quick else 5, warmup_rounds=1
    )
    each = {
        times: sorted(s[1:])[len(s[1:]) // 2] / number[times]
        for times, s in spent.items()
    }
    for times in (2, 3):
        ratio = each[times] / each[1]
        contest.benchmark.extra_info[f"a window of {number[times]} / a single one"] = (
            ratio
        )
        contest.report(
            f"{name}, {times * SIDE} columns: one of {number[times]} windows",
            f"{1e3 * each[times]:.0f} ms",
            "a single window",
            f"{1e3 * each[1]:.0f} ms",
            f"{ratio:.2f} x",
            "about 1 x: linear",
        )


@torch.no_grad()
def test_merging_costs_little(contest) -> None:
    """The merge beside the forward pass, at 8 : 1."""
    image = torch.rand(3, SIDE, 8 * SIDE)
    model = counters(contest.quick)["CounTX"]
    contest.run(
        "8 : 1 picture, merging alone",
        lambda: over_windows(lambda crops: crops[:, 0], image, SIDE, SIDE // 3),
        {"with the network": lambda: model.density(image, "the apples")},
        1,
        "much more than 1 x",
    )
