"""Points become densities, and nothing gets lost on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from minilib.datasets.density import density_of_points, dot_map, points_inside, smooth
from minilib.datasets.mosaic import blend_mosaic


def some_points(n: int, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, generator=generator) * torch.tensor([shape[1], shape[0]])


@pytest.mark.parametrize("sigma", [0, 0.5, 1, 3, 20])
@pytest.mark.parametrize("shape", [(24, 24), (16, 130), (40, 7)])
def test_density_sums_to_the_points_inside(
    sigma: float, shape: tuple[int, int]
) -> None:
    points = torch.cat(
        [
            some_points(31, shape),
            torch.tensor([[-3.0, 2.0], [shape[1] + 0.5, 1.0], [2.0, -0.1]]),
        ]
    )
    assert points_inside(points, shape).sum() == 31
    torch.testing.assert_close(
        density_of_points(points, shape, sigma).sum(), torch.tensor(31.0)
    )


def test_corner_points_keep_their_mass() -> None:
    corners = torch.tensor([[0.0, 0.0], [29.9, 0.0], [0.0, 19.9], [29.9, 19.9]])
    density = density_of_points(corners, (20, 30), 4)
    torch.testing.assert_close(density.sum(), torch.tensor(4.0))
    torch.testing.assert_close(density, density.flip(0).flip(1))


def test_points_in_one_pixel_add_up_unless_merged() -> None:
    twins = torch.tensor([[5.2, 6.1], [5.9, 6.8], [1.0, 1.0]])
    assert dot_map(twins, (9, 9)).sum() == 3
    assert dot_map(twins, (9, 9), merge=True).sum() == 2


def test_points_outside_are_dropped_or_moved_to_the_border() -> None:
    outside = torch.tensor([[100.0, 3.0], [2.0, -7.0]])
    assert dot_map(outside, (9, 9)).sum() == 0
    moved = dot_map(outside, (9, 9), clamp=True)
    assert moved[3, 8] == 1 and moved[0, 2] == 1


def test_no_points_is_an_empty_map() -> None:
    assert density_of_points(torch.zeros(0, 2), (8, 8), 1).sum() == 0
    assert density_of_points([], (8, 8), 1).shape == (8, 8)


def test_a_crop_holds_the_points_inside_it() -> None:
    """The statement of the whole method: a region of the map sums to the objects in it,
    up to the bells it cuts."""
    shape = (60, 90)
    points = torch.tensor(
        [[10.0, 10.0], [20.0, 30.0], [70.0, 30.0], [80.0, 50.0], [75.0, 10.0]]
    )
    density = density_of_points(points, shape, 1)
    torch.testing.assert_close(density[:, :45].sum(), torch.tensor(2.0))
    torch.testing.assert_close(density[:, 45:].sum(), torch.tensor(3.0))


@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_blur_is_scipys(sigma: float) -> None:
    dots = dot_map(some_points(12, (21, 34)), (21, 34))
    expected = gaussian_filter(dots.numpy().astype(np.float64), sigma)
    torch.testing.assert_close(
        smooth(dots, sigma), torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(3, 3), r"shape \(3, 3\)"),
        (torch.tensor([[1.0, float("nan")]]), "point 0"),
    ],
)
def test_bad_points(points: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dot_map(points, (8, 8))


@pytest.mark.parametrize("sigma", [-1, float("nan"), float("inf")])
def test_a_sigma_that_is_no_width(sigma: float) -> None:
    with pytest.raises(ValueError, match=f"sigma={sigma}: expected 0 or more"):
        smooth(torch.zeros(4, 4), sigma)


def test_mosaic_keeps_whole_dots_and_unblended_centres() -> None:
    generator = torch.Generator().manual_seed(0)
    tiles = torch.rand(4, 3, 24, 24, generator=generator)
    dots = (torch.rand(4, 24, 24, generator=generator) < 0.05).float()
    image, joined = blend_mosaic(tiles, dots, 3)
    assert image.shape == (3, 36, 36)
    assert joined.sum() == dots[:, 3:-3, 3:-3].sum()
    torch.testing.assert_close(image[:, :14, :14], tiles[0][:, 3:17, 3:17])
    torch.testing.assert_close(image[:, 22:, :14], tiles[1][:, 7:21, 3:17])
    torch.testing.assert_close(image[:, 22:, 22:], tiles[3][:, 7:21, 7:21])


def test_mosaic_of_one_colour_has_no_seam() -> None:
    image, _ = blend_mosaic(torch.full((4, 3, 24, 24), 0.3), torch.zeros(4, 24, 24), 4)
    torch.testing.assert_close(image, torch.full_like(image, 0.3))


def test_mosaic_wants_four_tiles() -> None:
    with pytest.raises(ValueError, match="expected 4, 4"):
        blend_mosaic(torch.zeros(3, 3, 24, 24), torch.zeros(3, 24, 24), 3)
