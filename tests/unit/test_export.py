"""Models as programs of their own, and in half precision."""

from __future__ import annotations

import pytest
import torch

from minilib.batch import required
from minilib.scenes import EmojiScenes, SceneConfig
from minilib.weights import load, load_clip


def test_an_exported_clip_computes_the_same() -> None:
    clip = load_clip("mini-vit")
    pixels = clip.preprocess(torch.rand(2, 3, 64, 64))
    program = torch.export.export(
        clip, (pixels, clip.tokenize(["a dog", "two cats on the grass"]))
    ).module()
    others = clip.tokenize(["a red car", "a tree"])  # of another length
    with torch.no_grad():
        torch.testing.assert_close(
            tuple(program(pixels, others))[:3], tuple(clip(pixels, others))[:3]
        )


def test_an_exported_countx_computes_the_same() -> None:
    model = load("mini-countx")
    size = model.config.window
    pixels = model.preprocess(torch.rand(1, 3, size, size))
    program = torch.export.export(model, (pixels, model.tokenize("the dogs"))).module()
    other = model.tokenize("the small red cars in the snow")
    with torch.no_grad():
        density = program(pixels, other)[0]
        torch.testing.assert_close(density, model(pixels, other).density)


def test_preprocessing_is_exported_too() -> None:
    clip = load_clip("mini-vit")

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = clip

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.clip.encode_image(self.clip.standardise(image))

    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    program = torch.export.export(Encoder(), (image,)).module()
    with torch.no_grad():
        expected = clip.encode_image(clip.standardise(image))
        torch.testing.assert_close(program(image), expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 0.01), (torch.bfloat16, 0.1), (torch.float64, 1e-4)],
)
def test_counting_in_other_precisions(dtype: torch.dtype, tolerance: float) -> None:
    scenes = EmojiScenes(SceneConfig(size=96, count=(8, 8), distractors=(0, 0)))
    batch = scenes.batch("count", 1, "test", seed=0)
    question, model = required(batch.caption, "caption")[0], load("mini-countx")
    expected = model.count(batch.image[0], question)
    found = model.to(dtype).density(batch.image[0], question)
    assert found.dtype == dtype and expected > 2
    assert found.sum().item() == pytest.approx(expected, rel=tolerance)


def test_features_in_half_precision() -> None:
    torch.manual_seed(0)
    for name in ("mini-vit", "mini-rn"):
        clip, image = load_clip(name), torch.rand(2, 3, 80, 64)
        with torch.no_grad():
            expected = clip.encode_image(clip.preprocess(image), normalize=True)
            clip = clip.half()
            found = clip.encode_image(clip.preprocess(image), normalize=True)
        assert (found.float() * expected).sum(dim=1).min() > 0.999
