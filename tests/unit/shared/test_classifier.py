"""CLIP's image tower with a linear head."""

from __future__ import annotations

import torch

from minilib.models.clip import CLIP
from minilib.recipes.shared.classifier import ImageClassifier
from minilib.weights import load_clip


def test_only_tower_and_head_are_trained() -> None:
    clip = load_clip("mini-rn")
    model = ImageClassifier(clip, 5)
    tower = {f"visual.{name}" for name, _ in clip.visual.named_parameters()}
    assert {name for name, _ in model.named_parameters()} == tower | {
        "head.weight",
        "head.bias",
    }
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model.head(clip.encode_image(clip.standardise(image)))
    torch.testing.assert_close(model(image), expected)
    assert model.visual is clip.visual, "in place: what it learns stays in the CLIP"


def test_images_keep_their_size() -> None:
    clip: CLIP = load_clip("mini-rn")
    seen: list[tuple[int, ...]] = []
    clip.visual.register_forward_pre_hook(
        lambda _, given: seen.append(tuple(given[0].shape))
    )
    ImageClassifier(clip, 3)(torch.rand(1, 3, 32, 32))
    assert seen == [(1, 3, 32, 32)]
