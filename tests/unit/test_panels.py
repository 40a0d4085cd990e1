"""Rows of pictures and tables, as notebooks use them."""

from __future__ import annotations

import pytest
import torch

from minilib import plotting


def test_panels_come_row_by_row_and_bare():
    figure, axes = plotting.panels(3, rows=2)
    assert len(axes) == 6 and figure.get_size_inches()[0] == plotting.WIDTH
    assert [ax.get_subplotspec().colspan.start for ax in axes] == [0, 1, 2, 0, 1, 2]
    assert all(
        len(ax.get_xticks()) == 0 and not ax.spines["left"].get_visible() for ax in axes
    )
    _, charts = plotting.panels(2, ticks=True)
    assert all(len(ax.get_xticks()) for ax in charts)


def test_an_overlay_covers_its_image():
    _, (ax,) = plotting.panels(1)
    plotting.overlay(
        ax, torch.rand(3, 32, 48), torch.linspace(0, 1, 24).view(4, 6), "dogs"
    )
    image, values = ax.images
    assert (
        image.get_extent() == list(values.get_extent())
        or tuple(image.get_extent()) == values.get_extent()
    )
    assert values.get_clim() == (0.0, 1.0) and ax.get_title() == "dogs"


def test_a_table_formats_numbers_and_says_when_there_are_none():
    text = plotting.table(["", "MAE"], [("M5", 1.234), ("mean", "–")]).data
    assert text.splitlines() == [
        "|  | MAE |",
        "|---|---|",
        "| M5 | 1.23 |",
        "| mean | – |",
    ]
    assert plotting.table(["", "MAE"], []).data.startswith("No record")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([1.0, 2.0, 3.0], "2.00 (1.00 to 3.00)"),
        ([1.5], "1.50"),
        ([None, 2.0], "2.00"),
        ([], "–"),
        ([None], "–"),
    ],
)
def test_numbers_over_seeds(numbers, text):
    assert plotting.over_seeds(numbers) == text


def test_rows_over_seeds():
    runs = [
        {"M1": {"mae": 1.0}, "M5": {"mae": 3.0}},
        {"M1": {"mae": 2.0}, "M5": {"mae": 3.0}},
    ]
    rows = plotting.columns_over_seeds(runs, ["mae"])
    assert rows == [["M1", "1.50 (1.00 to 2.00)"], ["M5", "3.00 (3.00 to 3.00)"]]
    assert plotting.columns_over_seeds([], ["mae"]) == []
