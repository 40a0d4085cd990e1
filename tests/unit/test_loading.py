"""Weights of other people: unwrapped, their names counted, refused if
they do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minilib.layers.pixels import standardise
from minilib.models.loading import load_strictly, numbered, require, under, unwrapped


def layer() -> nn.Linear:
    return nn.Linear(3, 2)


def test_every_wrapping_gives_the_same_weights() -> None:
    state = layer().state_dict()
    files = [
        state,
        {"state_dict": state, "epoch": 3},
        {"model": state, "optimizer": {"state": {}}},
        {"model": {"state_dict": state}},
        {f"module.{key}": value for key, value in state.items()},
        {f"_orig_mod.module.{key}": value for key, value in state.items()},
        {"state_dict": {f"module.net.{key}": value for key, value in state.items()}},
        state | {"epoch": 3},
    ]
    for file in files:
        found = unwrapped(file, "net.")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_compiled_part_is_unwrapped_and_further_prefixes_are_not_guessed() -> None:
    weight = torch.zeros(1)
    assert list(unwrapped({"tower._orig_mod.weight": weight})) == ["tower.weight"]
    assert list(unwrapped({"net.weight": weight})) == ["net.weight"]


def test_floats_become_single_precision_and_counters_stay() -> None:
    found = unwrapped({"a": torch.zeros(2).half(), "steps": torch.tensor(7)})
    assert found["a"].dtype == torch.float32 and found["steps"].dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no weights among"),
        (
            {"epoch": 3, "args": {}},
            r"no weights among \['args', 'epoch'\].*'state_dict' or 'model'",
        ),
        ([torch.zeros(1)], "not a list"),
        (nn.Linear(2, 2), "not a Linear"),
    ],
)
def test_content_without_weights(content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unwrapped(content)


def test_names() -> None:
    state = {f"blocks.{i}.{part}": torch.zeros(1) for i in (0, 1, 10) for part in "ab"}
    state["head.blocks.7.a"] = torch.zeros(1)
    assert numbered(state, r"blocks\.(\d+)\.") == 3
    assert list(under(state, "head.blocks.")) == ["7.a"]
    require(state, ["blocks.0.a"], "a thing")
    with pytest.raises(
        ValueError, match="not the weights of a thing: 'tail' is missing"
    ):
        require(state, ["blocks.0.a", "tail"], "a thing")


def test_strict_loading_copies_or_names_every_fault() -> None:
    model, source = layer(), layer()
    assert load_strictly(model, source.state_dict(), "a layer") is model
    assert torch.equal(model.weight, source.weight)
    before = model.weight.clone()
    wrong = {"weight": torch.zeros(2, 4), "scale": torch.zeros(1)}
    message = (
        r"do not fit a layer: 1 missing \(bias\); 1 unknown \(scale\); "
        r"1 of another shape \(weight is \(2, 4\), expected \(2, 3\)\)"
    )
    with pytest.raises(ValueError, match=message):
        load_strictly(model, wrong, "a layer")
    assert torch.equal(model.weight, before)
    many = source.state_dict() | {name: torch.zeros(1) for name in "vwxyz"}
    with pytest.raises(ValueError, match=r"5 unknown \(v, w, x, \.\.\.\)"):
        load_strictly(model, many, "a layer")


def test_pixels_are_standardised_per_channel() -> None:
    image = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    pixels = standardise(image, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    torch.testing.assert_close(pixels[:, 1], (image[:, 1] - 0.2) / 2)
    torch.testing.assert_close(
        standardise(image[0], (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)), pixels[0]
    )
