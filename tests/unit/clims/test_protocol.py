"""From maps to labels, and the random walk between them, on graphs small enough to
check by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.models.clims import CLIMS, CLIMSConfig
from minilib.models.clims.protocol import merge_scales, multi_scale_cams, predict
from minilib.models.clims.refinement import (
    affinity,
    boundary_loss,
    confident_labels,
    image_edges,
    pair_labels,
    paths,
    pseudo_labels,
    random_walk,
    walked_maps,
)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# --- maps -----------------------------------------------------------------------------


def test_present_maps_peak_at_one_and_absent_ones_are_nothing() -> None:
    scales = [10 * uniform(2, 3, 3, 4), 10 * uniform(2, 3, 6, 7, seed=1)]
    present = torch.tensor([[1, 0, 1], [0, 0, 0]])
    maps = merge_scales(scales, (41, 50), present)
    assert maps.full.shape == (2, 3, 41, 50) and maps.coarse.shape == (2, 3, 11, 13)
    for each in maps:
        peaks = each.amax(dim=(2, 3))
        torch.testing.assert_close(peaks, present.float(), rtol=0, atol=1e-4)
        assert each.isfinite().all()
    assert (predict(maps.full, 0.1)[1] == 0).all()  # an image without any class


def test_maps_of_published_scales_for_any_image() -> None:
    torch.manual_seed(0)
    model = CLIMS(CLIMSConfig(2, (1, 1, 1, 1), stem=8, planes=4)).eval()
    present = torch.tensor([[True, False]])
    for size in ((37, 64), (3, 50)):
        maps = multi_scale_cams(model, uniform(1, 3, *size), present)
        assert maps.full.shape == (1, 2, *size)
    image = uniform(1, 3, 32, 48)
    pictures = (255 * image).round().to(torch.uint8)
    maps = multi_scale_cams(model, pictures, present, scales=(1.0,))
    cams = model.cams(model.preprocess(pictures)) * present[..., None, None]
    full = F.interpolate(cams, (32, 48), mode="bilinear")
    full = full / (full.amax(dim=(2, 3), keepdim=True) + 1e-5)
    torch.testing.assert_close(maps.full, full)
    with pytest.raises(ValueError, match="divide them by 255"):
        multi_scale_cams(model, 255 * image, present)


def test_scales_and_labels_that_do_not_belong_together_are_refused() -> None:
    for scales, present in (
        ([], torch.ones(1, 3)),
        ([uniform(1, 3, 2, 2)], torch.ones(1, 4)),
    ):
        with pytest.raises(ValueError, match="do not belong together"):
            merge_scales(scales, (8, 8), present)


def test_a_tie_with_the_background_is_background() -> None:
    maps = torch.tensor([[[[0.5, 0.6, 0.1]], [[0.2, 0.7, 0.1]]]])
    assert predict(maps, 0.5).tolist() == [[[0, 2, 0]]]
    assert predict(maps, 0.4).tolist() == [[[1, 2, 0]]]


def test_confident_labels_leave_out_what_lies_between() -> None:
    maps = torch.tensor([[[[0.9, 0.2, 0.05]], [[0.1, 0.25, 0.0]]]])
    assert confident_labels(maps).tolist() == [[[1, 255, 0]]]


# --- the random walk ------------------------------------------------------------------


def test_paths_are_straight_and_end_at_the_cell() -> None:
    straight, slanted = paths(2)[:2], paths(2)[2:]
    assert straight == [[(0, 1), (0, 0)], [(1, 0), (0, 0)]]
    assert [path[0] for path in slanted] == [(1, -1), (1, 1)]
    assert set(slanted[0]) == {(1, -1), (1, 0), (0, -1), (0, 0)}
    by_end = {path[0]: path for path in paths(5)}
    assert len(by_end) == 34 and all(path[-1] == (0, 0) for path in by_end.values())
    assert by_end[0, 3] == [(0, 3), (0, 2), (0, 1), (0, 0)]
    assert len(by_end[2, 2]) == 7  # the diagonal, and the cells that touch it
    with pytest.raises(ValueError, match="expected 2 or more"):
        paths(1)


def test_one_step_on_three_cells_by_hand() -> None:
    edge = torch.tensor([[[0.0, 0.5, 0.0]]])
    maps = torch.tensor([[[[1.0, 1.0, 0.0]]]])
    # affinities of neighbours 1 - 0.5, to the power 2; the start is (1, 0.5, 0)
    a = 0.25
    expected = [
        (1 + a * 0.5) / (1 + a),
        (a * 1 + 0.5 + 0) / (1 + 2 * a),
        (a * 0.5 + 0) / (1 + a),
    ]
    walked = random_walk(maps, edge, radius=2, beta=2, doublings=0)
    torch.testing.assert_close(walked[0, 0, 0], torch.tensor(expected))


def dense_walk(maps: Tensor, edge: Tensor, radius: int, beta: float, doublings: int):
    """Square the whole transition matrix, as the authors do."""
    height, width = edge.shape
    matrix = torch.eye(height * width, dtype=edge.dtype)
    for path in paths(radius):
        for y in range(height):
            for x in range(width):
                row, column = y + path[0][0], x + path[0][1]
                if row < height and 0 <= column < width:
                    crossed = max(edge[y + dy, x + dx] for dy, dx in path)
                    ends = y * width + x, row * width + column
                    matrix[ends] = matrix[ends[::-1]] = (1 - crossed) ** beta
    matrix = matrix / matrix.sum(dim=0)
    for _ in range(doublings):
        matrix = matrix @ matrix
    return ((maps * (1 - edge)).flatten(1) @ matrix).reshape(maps.shape)


@pytest.mark.parametrize("size", [(6, 7), (2, 9), (1, 1), (9, 2)])
def test_the_walk_is_the_power_of_the_transition_matrix(size) -> None:
    maps, edge = uniform(2, 3, *size), uniform(2, *size, seed=1) ** 3
    walked = random_walk(maps.double(), edge.double(), 4, 3, 5)
    for number in range(2):
        expected = dense_walk(maps[number].double(), edge[number].double(), 4, 3, 5)
        torch.testing.assert_close(walked[number], expected)


def test_rounding_stays_small_over_many_steps() -> None:
    maps, edge = uniform(1, 2, 8, 9), uniform(1, 8, 9, seed=1)
    exact = random_walk(maps.double(), edge.double())
    assert (random_walk(maps, edge) - exact).abs().max() < 1e-5


def test_a_wall_stops_the_walk() -> None:
    edge = torch.zeros(1, 5, 7)
    edge[:, :, 3] = 1
    maps = torch.zeros(1, 1, 5, 7)
    maps[..., 2, 0] = 1
    walked = random_walk(maps, edge)[0, 0]
    assert (walked[:, 3:] == 0).all()
    assert walked[:, :3].min() > 0.02  # the whole room is filled


def test_edges_and_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        random_walk(torch.ones(1, 2, 4, 4), torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
        random_walk(torch.ones(1, 2, 4, 4), torch.full((1, 4, 4), 1.5))
    with pytest.raises(ValueError, match="too small for pairs of radius 5"):
        affinity(torch.zeros(1, 4, 9), 5)


def test_pseudo_labels_are_relative_to_the_strongest_class() -> None:
    walked = torch.zeros(2, 2, 3, 3)
    walked[0, 0, :, 0], walked[0, 1, :, 2] = 0.4, 0.02
    labels = pseudo_labels(walked, (10, 12))
    assert labels.shape == (2, 10, 12)
    assert (labels[0, :, 0] == 1).all() and (labels[0, :, -1] == 0).all()
    assert (labels[1] == 0).all()  # an image without any class
    assert walked_maps(walked, (10, 12)).amax() == 1


# --- learning edges -------------------------------------------------------------------


def test_pairs_by_hand() -> None:
    labels = torch.tensor([[[9, 1, 1, 0, 0, 255, 9], [9, 0, 2, 0, 9, 9, 9]]])
    pairs = pair_labels(labels, 2)
    # from the five inner cells of the first row: right, below, below left and right
    none = [0, 0, 0, 0, 0]
    foreground = [[1, 0, 0, 0, 0], none, none, none]
    background = [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], none]
    negative = [[0, 1, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert pairs.foreground[0, :, 0].tolist() == foreground
    assert pairs.background[0, :, 0].tolist() == background
    assert pairs.negative[0, :, 0].tolist() == negative


def scene() -> tuple[Tensor, Tensor, Tensor]:
    """Return labels of a square, edges around it, and displacements to its centre."""
    labels = torch.zeros(1, 13, 13, dtype=torch.int64)
    labels[:, 4:9, 4:9] = 1
    inner = F.pad(torch.zeros(1, 3, 3), (1, 1, 1, 1), value=1.0)
    edge = F.pad(inner, (4, 4, 4, 4))
    labels[edge > 0] = 255  # no pair begins or ends on an edge
    rows, columns = torch.meshgrid(torch.arange(13), torch.arange(13), indexing="ij")
    centre = 6 - torch.stack([rows, columns])[None].float()
    return labels, edge, centre * (labels == 1)


def test_true_edges_and_displacements_have_the_smallest_loss() -> None:
    labels, edge, displacement = scene()
    pairs, logits = pair_labels(labels, 3), (20 * edge - 10)[:, None]
    assert pairs.foreground.sum() and pairs.background.sum() and pairs.negative.sum()
    true = boundary_loss(logits, displacement, pairs, 3)
    assert true["negative"] < 0.01 and true["foreground"] < 1e-5
    assert true["background"] < 1e-5
    without = boundary_loss(torch.full_like(logits, -10), displacement, pairs, 3)
    assert without["negative"] > 5
    everywhere = boundary_loss(torch.full_like(logits, 10), displacement, pairs, 3)
    assert everywhere["positive"] > 5
    still = boundary_loss(logits, torch.zeros_like(displacement), pairs, 3)
    assert still["foreground"] > 0.5 and still["loss"] > true["loss"]


def test_edges_of_an_image_surround_what_differs() -> None:
    image = torch.zeros(2, 3, 16, 16)
    image[0, :, 4:12, 4:12] = 1
    edges = image_edges(image, (8, 8))
    assert edges[0].max() == 1 and edges[0, 3:5, 3:5].max() == 0
    assert (edges[0, 2:5, 5] == 1).all() and edges[0, 0].max() == 0
    assert (edges[1] == 0).all()  # one colour
    corner = image_edges(uniform(1, 3, 1, 1), (1, 1))
    assert corner.tolist() == [[[0.0]]]
