"""Every helper draws without pyplot, refuses bad input, and its colours
can be told apart."""

from __future__ import annotations

import io
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from minilib import plotting
from minilib.batch import Batch, ConceptName, Phrase

NAMES = ["dog", "tree", "cup"]


@pytest.fixture(autouse=True)
def no_leaks():
    """No helper may leave an open pyplot figure or a changed setting behind."""
    before = dict(mpl.rcParams)
    yield
    assert pyplot.get_fignums() == []
    assert {key for key in before if before[key] != mpl.rcParams[key]} == set()


def pixels(drawn: Figure | Axes) -> np.ndarray:
    """Draw with Agg and return (H, W, 3) in [0, 1]."""
    figure = drawn.figure if isinstance(drawn, Axes) else drawn
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return pyplot.imread(buffer)[..., :3]


def has_colour(image: np.ndarray, colour: str, tolerance: float = 0.02) -> bool:
    return bool(
        (np.abs(image - np.array(to_rgb(colour))).max(axis=-1) < tolerance).any()
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 32, 32, dtype=torch.long)
    mask[:, 8:20, 8:20], mask[:, 0, :] = 1, 255
    return Batch(
        image=torch.rand(2, 3, 32, 32, generator=generator),
        caption=[
            "a dog left of a tree on grass under a wide and cloudless sky",
            "a cup",
        ],
        label=torch.tensor([0, 2]),
        present=torch.tensor([[True, True, False], [False, False, True]]),
        mask=mask,
        boxes=[
            torch.tensor([[2.0, 3.0, 12.0, 14.0], [15.0, 15.0, 30.0, 30.0]]),
            torch.zeros(0, 4),
        ],
        classes=[torch.tensor([0, 1]), torch.zeros(0, dtype=torch.long)],
        phrases=[[Phrase(2, 5, 0, (0,))], []],
        points=[torch.tensor([[5.0, 5.0], [20.0, 9.0]]), torch.zeros(0, 2)],
        density=torch.rand(2, 1, 32, 32, generator=generator),
        concepts=[
            [
                ConceptName("brown dog", "dog", "animal"),
                ConceptName("tree", "tree", "plant"),
            ],
            [],
        ],
    )


# Colours


def lab(colour: str, matrix: np.ndarray) -> np.ndarray:
    """CIELAB of a colour as seen through a colour-vision matrix on linear RGB."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = (matrix @ linear).clip(0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes 2009, severity 1.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}


@pytest.mark.parametrize("vision", VISION)
def test_palette_is_distinct_for_colour_blind_readers(vision):
    def nearest(palette):
        colours = [lab(colour, VISION[vision]) for colour in palette]
        return min(np.linalg.norm(a - b) for a, b in combinations(colours, 2))

    assert nearest(plotting.PALETTE) > 10  # 2.3 is a just noticeable difference
    if vision == "deuteranopia":
        assert nearest(["#2ca02c", "#d62728"]) < nearest(plotting.PALETTE[:4]), (
            "the test cannot fail"
        )


def test_ink_and_panel_have_strong_contrast():
    def luminance(colour):
        return (lab(colour, np.eye(3))[0] + 16) ** 3 / 116**3

    high, low = (
        luminance(plotting.RC["figure.facecolor"]),
        luminance(plotting.RC["text.color"]),
    )
    assert (high + 0.05) / (low + 0.05) > 7  # WCAG AAA


def test_style_is_set_only_when_asked():
    with mpl.rc_context():
        plotting.style()
        assert mpl.rcParams["figure.facecolor"] == plotting.RC["figure.facecolor"]
        assert mpl.rcParams["figure.dpi"] == 110


def test_helpers_use_the_style_without_setting_it():
    image = pixels(plotting.new_axes())
    assert image.shape[1] == 7 * 110
    assert has_colour(image[:4, :4], plotting.RC["figure.facecolor"])


# Images


def test_image_grid_draws_every_image(batch):
    red = torch.zeros(3, 8, 8)
    red[0] = 1
    figure = plotting.image_grid(
        [red, 1 - red],
        ["a long title that has to be wrapped somewhere", "b"],
        columns=4,
    )
    image = pixels(figure)
    assert has_colour(image, "#ff0000") and has_colour(image, "#00ffff")
    assert [ax.get_title() for ax in figure.axes][1] == "b"
    assert len(plotting.image_grid(batch.image, columns=1).axes) == 2


@pytest.mark.parametrize(
    ("images", "titles", "words"),
    [
        ([], None, "0 images"),
        ([torch.zeros(1, 8, 8)], None, r"expected \(3, H, W\)"),
        ([torch.full((3, 8, 8), 2.0)], None, "preprocess"),
        ([torch.full((3, 8, 8), float("nan"))], None, "finite"),
        ([torch.zeros(3, 8, 8)], ["a", "b"], "2 titles"),
    ],
)
def test_image_grid_refuses(images, titles, words):
    with pytest.raises(ValueError, match=words):
        plotting.image_grid(images, titles)


def test_similarity_matrix_frames_each_images_best_caption(batch):
    matrix = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.8]])
    figure = plotting.similarity_matrix(
        matrix, ["a dog", "a tree", "a cup"], batch.image, title="before"
    )
    heat = figure.axes[0]
    frames = [(round(p.get_x() + 0.47), round(p.get_y() + 0.47)) for p in heat.patches]
    assert frames == [(0, 0), (1, 2)]
    assert [text.get_text() for text in heat.get_yticklabels()] == [
        "a dog",
        "a tree",
        "a cup",
    ]
    assert "0.90" in {text.get_text() for text in heat.texts}
    assert has_colour(pixels(figure), "#D55E00")


@pytest.mark.parametrize(
    ("matrix", "captions", "images"),
    [
        (torch.zeros(3), ["a"] * 3, None),
        (torch.zeros(2, 3), ["a"] * 2, None),
        (torch.zeros(2, 3), ["a"] * 3, torch.zeros(3, 3, 8, 8)),
        (torch.full((2, 3), float("inf")), ["a"] * 3, None),
    ],
)
def test_similarity_matrix_refuses(matrix, captions, images):
    with pytest.raises(ValueError):
        plotting.similarity_matrix(matrix, captions, images)


# Curves and bars


def test_curve_with_band_has_the_t_interval():
    ys = [[0.1, 0.5, 0.8], [0.2, 0.6, 0.9], [0.3, 0.4, 1.0]]
    ax = plotting.curve_with_band([1, 10, 100], ys, "ours")
    plotting.curve_with_band(
        [1, 10, 100], torch.tensor([0.1, 0.1, 0.2]), "theirs", ax=ax
    )
    means = [line for line in ax.lines if line.get_gid() == "mean"]
    assert [line.get_label() for line in means] == ["ours", "theirs"]
    assert means[0].get_ydata() == pytest.approx([0.2, 0.5, 0.9])
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert getattr(means[0], look)() != getattr(means[1], look)(), (
            "lines differ by colour alone"
        )
    (band,) = ax.collections
    low = band.get_paths()[0].get_extents().y0
    assert low == pytest.approx(0.2 - 4.303 * 0.1 / 3**0.5, abs=1e-3)
    pixels(ax)


def test_curve_refuses():
    with pytest.raises(ValueError, match="go with x"):
        plotting.curve_with_band([1, 2], [[1, 2, 3]], "a")
    with pytest.raises(ValueError, match="finite"):
        plotting.curve_with_band([1, 2], [[1, float("nan")]], "a")


def test_bars_show_every_seed():
    ax = plotting.bars(
        {"ours": [0.8, 0.9, 0.85], "theirs": [0.4]},
        "accuracy",
        reference=(0.1, "chance"),
    )
    heights = [patch.get_height() for patch in ax.patches]
    assert heights == pytest.approx([0.85, 0.4])
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [len(line.get_ydata()) for line in dots] == [3, 1]
    assert "chance" in {text.get_text() for text in ax.texts}
    pixels(ax)
    for bad in ({}, {"ours": []}):
        with pytest.raises(ValueError, match="at least one"):
            plotting.bars(bad, "accuracy")


def test_paper_vs_ours_says_what_was_not_run():
    ax = plotting.paper_vs_ours(
        {"C3": (5.0, [4.0, 4.5]), "C8": (1.0, []), "new": (None, [2.0])}, "points"
    )
    assert [text.get_text() for text in ax.texts] == ["not run"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "the paper",
        "ours",
    ]
    pixels(ax)
    with pytest.raises(ValueError, match="rows is empty"):
        plotting.paper_vs_ours({}, "points")


# Annotations


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("pairs", "a dog left of a tree"),
        ("classify", "dog"),
        ("segment", ""),
        ("detect", ""),
        ("count", "2 points"),
        ("multilabel", "dog, tree"),
        ("hierarchy", "brown dog < dog < animal"),
    ],
)
def test_every_tasks_annotation_is_drawn(batch, task, words):
    plain = plotting.new_axes(3, 3)
    plain.imshow(plotting.image_array(batch.image[0]))
    plain.set_axis_off()
    ax = plotting.draw_annotations(plotting.new_axes(3, 3), batch, 0, task, NAMES)
    assert words in ax.get_title().replace("\n", " ")
    assert not np.array_equal(pixels(ax), pixels(plain)), "nothing was drawn"
    # no objects at all
    pixels(plotting.draw_annotations(plotting.new_axes(3, 3), batch, 1, task, NAMES))


def test_boxes_and_masks_are_named_where_they_are(batch):
    ax = plotting.draw_annotations(plotting.new_axes(3, 3), batch, 0, "detect", NAMES)
    assert [(text.get_text(), text.get_position()) for text in ax.texts] == [
        ("dog", (1.5, 2.5)),
        ("tree", (14.5, 14.5)),
    ]
    ax = plotting.draw_annotations(plotting.new_axes(3, 3), batch, 0, "segment", NAMES)
    placed = {text.get_text(): text.get_position() for text in ax.texts}
    assert set(placed) == {"dog", "tree"}
    for name, (x, y) in placed.items():
        assert batch.mask[0, int(y), int(x)] == NAMES.index(name), (
            "the label stands on another class"
        )


def test_annotations_refuse(batch):
    ax = plotting.new_axes(3, 3)
    with pytest.raises(ValueError, match="task='boxes' is unknown"):
        plotting.draw_annotations(ax, batch, 0, "boxes", NAMES)
    with pytest.raises(ValueError, match="has 2 images"):
        plotting.draw_annotations(ax, batch, 2, "pairs", NAMES)
    with pytest.raises(ValueError, match="no mask"):
        plotting.draw_annotations(ax, Batch(image=batch.image), 0, "segment", NAMES)
    with pytest.raises(ValueError, match="class 2 has no name"):
        plotting.draw_annotations(ax, batch, 1, "classify", NAMES[:2])
