"""Label maps: colours belong to words, and the legend names what is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minilib.claims.pictures import packed, unpacked
from minilib.plotting import new_axes
from minilib.plotting.segmentation import (
    REST,
    label_map,
    label_pictures,
    word_colours,
)


def test_words_have_their_own_colours_and_other_is_grey() -> None:
    words = [f"word {i}" for i in range(28)] + ["other"]
    colours = word_colours(words)
    assert len(set(colours)) == 29 and colours[-1] == REST
    assert word_colours([*words, "one more"])[-1] in colours


def test_the_legend_names_what_takes_up_room() -> None:
    labels = torch.zeros(20, 20, dtype=torch.long)
    labels[:10] = 2
    labels[0, 0] = 1
    labels[19] = 255
    ax = label_map(
        new_axes(), labels, ["dog", "cat", "car"], image=torch.rand(3, 20, 20)
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["dog", "car"]
    picture = label_map(new_axes(), labels, ["dog", "cat", "car"]).images[0].get_array()
    assert (picture[19] == 1).all() and (picture[5, 5] != picture[15, 5]).any()


def test_nothing_to_name_needs_no_legend() -> None:
    assert label_map(new_axes(), torch.full((4, 4), 255), ["dog"]).get_legend() is None


def test_colours_can_be_kept_between_lists_of_words() -> None:
    labels = torch.zeros(4, 4, dtype=torch.long)
    red, blue = "#ff0000", "#0000ff"
    one = (
        label_map(new_axes(), labels, ["dog", "other"], colours=[red, blue])
        .images[0]
        .get_array()
    )
    two = (
        label_map(new_axes(), 1 - labels, ["other", "pet"], colours=[blue, red])
        .images[0]
        .get_array()
    )
    assert (one == two).all() and one[0, 0].tolist() == [1, 0, 0]


def rows_of_pictures() -> list[dict[str, np.ndarray]]:
    """Two images of 10 x 20 pixels with two maps each: "dog" below, then "car" in one
    corner of one map, and one pixel of "cat"."""
    maps = torch.full((2, 10, 20), 255)
    maps[:, 5:] = 0
    other = maps.clone()
    other[1, :5, :5] = 2
    other[0, 0, 0] = 1
    images = torch.rand(2, 3, 10, 20, generator=torch.Generator().manual_seed(0))
    return unpacked(packed(images, {"truth": maps, "ours": other}))


def test_a_row_of_pictures_per_image_under_one_legend() -> None:
    rows = rows_of_pictures()
    figure = label_pictures(rows, ["dog", "cat", "car"])
    assert [ax.get_title() for ax in figure.axes] == [
        "image", "truth", "ours", "", "", ""
    ]  # fmt: skip
    drawn = [ax.images[0].get_array() for ax in figure.axes]
    assert (drawn[3] == rows[1]["image"]).all()
    one, two = drawn[1], drawn[5]
    assert (one[0] == 1).all(), "what has no label is white"
    assert (one[7, 3] == two[7, 3]).all() and (two[0, 0] != two[7, 3]).any()
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["dog", "car"], "words of any map, but not of a single pixel"


def test_columns_can_have_other_titles() -> None:
    rows = rows_of_pictures()
    titled = label_pictures(rows, ["dog", "cat", "car"], ["frame", "masks", "LSeg"])
    assert [ax.get_title() for ax in titled.axes][:3] == ["frame", "masks", "LSeg"]
    with pytest.raises(ValueError, match=r"2 titles .* 3 columns \(image, truth, ours"):
        label_pictures(rows, ["dog", "cat", "car"], ["frame", "masks"])


def test_rows_must_hold_the_same_pictures() -> None:
    first, second = rows_of_pictures()
    for rows in ([], [first, {"image": second["image"]}]):
        with pytest.raises(ValueError, match="at least one row, and the same names"):
            label_pictures(rows, ["dog", "cat", "car"])
