"""Label maps: colours belong to words, and the legend names what is there."""

from __future__ import annotations

import torch

from minilib.plotting import new_axes
from minilib.plotting.segmentation import REST, label_map, word_colours


def test_words_have_their_own_colours_and_other_is_grey() -> None:
    words = [f"word {i}" for i in range(20)] + ["other"]
    colours = word_colours(words)
    assert len(set(colours)) == 21 and colours[-1] == REST


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
