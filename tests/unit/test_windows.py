"""Windows over wide images: every object is counted once, whatever the shape."""

from __future__ import annotations

import pytest
import torch

from minilib.layers.windows import (
    fit_to_windows,
    merge_windows,
    over_windows,
    window_starts,
    window_weights,
)


@pytest.mark.parametrize("merge", ["recursive", "uniform"])
@pytest.mark.parametrize("width", [24, 25, 31, 32, 40, 63, 192])
def test_weights_of_a_column_sum_to_one(width: int, merge: str) -> None:
    starts = window_starts(width, 24, 8)
    weights = window_weights(starts, 24, width, merge)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(width))
    assert starts[0] == 0 and starts[-1] == width - 24
    outside = torch.ones(len(starts), width)
    for k, start in enumerate(starts):
        outside[k, start : start + 24] = 0
    assert (weights * outside == 0).all()


def test_three_windows_weigh_a_quarter_a_quarter_a_half() -> None:
    weights = window_weights(window_starts(48, 24, 8), 24, 48)
    assert weights[:3, 20].tolist() == [0.25, 0.25, 0.5]
    uniform = window_weights(window_starts(48, 24, 8), 24, 48, "uniform")
    torch.testing.assert_close(uniform[:3, 20], torch.full((3,), 1 / 3))


def test_a_narrow_image_has_no_window() -> None:
    """The authors' loop makes no window here and reports a count of 0."""
    with pytest.raises(ValueError, match="a width of 20 holds no window of 24"):
        window_starts(20, 24, 8)


@pytest.mark.parametrize("stride", [0, 25])
def test_strides_that_leave_columns_out(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride={stride}"):
        window_starts(48, 24, stride)


def test_unknown_merge() -> None:
    with pytest.raises(ValueError, match="'recursive' or 'uniform'"):
        window_weights([0], 24, 24, "mean")


@pytest.mark.parametrize("merge", ["recursive", "uniform"])
@pytest.mark.parametrize("shape", [(24, 24), (24, 192), (24, 100), (192, 24), (70, 24)])
def test_an_object_is_counted_once(shape: tuple[int, int], merge: str) -> None:
    """A predictor that sees exactly the density in its crop gives the whole
    image's density back."""
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(shape, generator=generator)
    image = density.expand(3, *shape)
    merged = over_windows(lambda crops: crops[:, 0], image, 24, 8, merge, at_once=3)
    torch.testing.assert_close(merged, density)


def test_crops_of_tall_images_stay_upright() -> None:
    image = torch.arange(72.0)[:, None].expand(72, 24).expand(3, 72, 24)
    seen = []

    def predict(crops: torch.Tensor) -> torch.Tensor:
        seen.append(crops)
        return crops[:, 0]

    over_windows(predict, image, 24, 24)
    crops = torch.cat(seen)
    assert (crops[:, 0, 0, :] == crops[:, 0, 0, :1]).all()  # rows are still rows
    assert crops[:, 0, 0, 0].tolist() == [0, 24, 48]


def test_cost_grows_linearly_with_the_width() -> None:
    calls = []

    def predict(crops: torch.Tensor) -> torch.Tensor:
        calls.append(len(crops))
        return crops[:, 0]

    for width in (24, 48, 96, 192):
        over_windows(predict, torch.zeros(3, 24, width), 24, 8, at_once=1000)
    assert calls == [1, 4, 10, 22]


@pytest.mark.parametrize(
    ("shape", "fitted"),
    [
        ((48, 48), (48, 48)),
        ((48, 400), (48, 400)),
        ((48, 401), (48, 400)),
        ((48, 413), (48, 400)),  # down, although 416 is nearer
        ((10, 80), (48, 384)),
        ((80, 10), (384, 48)),
        ((20, 19), (48, 48)),
        ((96, 97), (48, 48)),
        ((1, 8), (48, 384)),
    ],
)
def test_any_image_is_fitted(shape: tuple[int, int], fitted: tuple[int, int]) -> None:
    image, size = fit_to_windows(torch.full((3, *shape), 0.4), 48)
    assert size == fitted == tuple(image.shape[-2:])
    torch.testing.assert_close(image, torch.full_like(image, 0.4))


def test_an_image_that_fits_keeps_its_pixels() -> None:
    image = torch.rand(3, 48, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fit_to_windows(image, 48)[0], image)


@pytest.mark.parametrize("shape", [(48, 48), (1, 48, 48), (3, 0, 48), (2, 3, 48, 48)])
def test_what_is_not_an_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(3, H, W\)"):
        fit_to_windows(torch.zeros(shape), 48)


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="predict made maps"):
        over_windows(lambda crops: crops[:, 0, ::2, ::2], torch.zeros(3, 24, 48), 24, 8)
    with pytest.raises(ValueError, match="shorter side should be the window"):
        over_windows(lambda crops: crops[:, 0], torch.zeros(3, 30, 48), 24, 8)


def test_merge_keeps_leading_axes() -> None:
    maps = torch.rand(3, 2, 5, 24, generator=torch.Generator().manual_seed(0))
    assert merge_windows(maps, [0, 8, 16], 40).shape == (2, 5, 40)
