"""Pixels of another kind: one gate for every model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minilib.layers.pixels import check_images, unit_images
from minilib.layers.windows import fit_to_windows
from minilib.models.clip import CLIP, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from minilib.models.countx import CounTX, CounTXConfig
from minilib.models.denseclip import DenseCLIP, DenseCLIPConfig
from minilib.models.lseg import CLIPBackbone, LSeg, LSegConfig
from minilib.models.vlcounter import VLCounter, VLCounterConfig

TEXT = TextConfig(context=48, vocab_size=514, width=16, layers=1, heads=2)
VIT = CLIPConfig(
    embed_dim=16,
    image_size=32,
    vision=ViTConfig(patch=8, width=16, layers=3, heads=2),
    text=TEXT,
    vocabulary=(),
)
RN = CLIPConfig(
    embed_dim=16,
    image_size=32,
    vision=ResNetConfig((1, 1, 1, 1), 4, 2, (1, 1, 2, 2)),
    text=TEXT,
    vocabulary=(),
)


def countx() -> CounTX:
    return CounTX(
        CounTXConfig(VIT, heads=2, decoder_width=8, groups=2, first_grid=8, doublings=2)
    )


def vlcounter() -> VLCounter:
    return VLCounter(
        VLCounterConfig(VIT, grid=(4, 4), channels=8, prompts=1, taps=(0, 1))
    )


def denseclip() -> DenseCLIP:
    config = DenseCLIPConfig(
        RN, contexts=2, channels=8, decoder_width=8, decoder_heads=2, decoder_layers=1
    )
    return DenseCLIP(config, ["dog"])


def lseg() -> LSeg:
    return LSeg(
        LSegConfig(CLIPBackbone(RN.vision), features=8, embed_dim=16, block="none")
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "clip": lambda: CLIP(VIT),
    "countx": countx,
    "vlcounter": vlcounter,
    "denseclip": denseclip,
    "lseg": lseg,
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def photograph(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_bytes_and_floats_are_one_picture(model: nn.Module) -> None:
    image = photograph(2, 3, 32, 32)
    pixels = model.preprocess(image)
    torch.testing.assert_close(pixels, model.preprocess(image / 255))
    torch.testing.assert_close(pixels, model.preprocess((image / 255).double()))
    assert pixels.dtype == torch.float32 and pixels.isfinite().all()
    assert pixels.std() > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 255, r"from 0 to 255: .* divide them by 255"),
        (lambda x: (x - 0.5) / 0.25, "from -2 to 2: .* standardised already"),
        (lambda x: x / (x > 0.001), "not finite"),
        (lambda x: torch.where(x > 0.9, torch.nan, x), "not finite"),
        (lambda x: (x * 255).long(), r"type torch.int64: expected torch.uint8"),
        (lambda x: x > 0.5, "type torch.bool"),
        (lambda x: x[0], r"shape \(3, 32, 32\).*a batch of one, image\[None\]"),
        (lambda x: x[:, :1], r"shape \(2, 1, 32, 32\).*red, green and blue"),
        (lambda x: x.permute(0, 2, 3, 1), r"shape \(2, 32, 32, 3\).*permute"),
        (lambda x: x[..., :0], r"no pixels"),
        (lambda x: x.numpy(), "a ndarray: expected a tensor"),
    ],
)
def test_other_pixels_are_refused_by_name(
    model: nn.Module, change: Callable[[Tensor], object], message: str
) -> None:
    image = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with pytest.raises(ValueError, match=message):
        model.preprocess(change(image))
    if isinstance(model, CLIP):
        with pytest.raises(ValueError, match=message):
            model.standardise(change(image))


def test_what_a_resize_overshoots_is_let_through(model: nn.Module) -> None:
    image = torch.full((1, 3, 32, 32), 1.005)
    image[..., 0] = -0.005
    assert model.preprocess(image).isfinite().all()


def test_values_are_not_read_in_the_steps_of_a_training() -> None:
    model, wrong = CLIP(VIT).train(), torch.full((1, 3, 32, 32), 7.0)
    model.preprocess(wrong)
    with pytest.raises(ValueError, match="from 7 to 7"), torch.no_grad():
        model.preprocess(wrong)
    with pytest.raises(ValueError, match="expected \\(B, 3, H, W\\)"):
        model.preprocess(wrong[0])  # a shape costs nothing to read


def test_an_empty_batch_is_a_batch(model: nn.Module) -> None:
    check_images(torch.zeros(0, 3, 32, 32))
    assert unit_images(
        torch.zeros(0, 3, 4, 4, dtype=torch.uint8)
    ).dtype.is_floating_point


@pytest.mark.parametrize("make", [countx, vlcounter])
def test_counts_of_a_photograph_in_bytes(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, image = make().eval(), photograph(3, 40, 70)
    counts = [
        model.density(image, "dogs").sum().item(),
        model.density(image / 255, "dogs").sum().item(),
    ]
    assert counts[0] == pytest.approx(counts[1], rel=1e-5) and np.isfinite(counts[0])
    with pytest.raises(ValueError, match="divide them by 255"):
        model.density(image.float(), "dogs")
    with pytest.raises(ValueError, match="one by one"):
        model.density(image[None], "dogs")


def test_a_photograph_of_fsc147_is_fitted_to_windows() -> None:
    image = photograph(3, 40, 70)  # as FSC147.image returns it
    fitted, size = fit_to_windows(image, 32, 8)
    assert fitted.shape == (3, *size) and 0 <= fitted.min() <= fitted.max() <= 1
    torch.testing.assert_close(fitted, fit_to_windows(image / 255, 32, 8)[0])
