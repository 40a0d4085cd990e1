"""Drawing scenes, against composing the same layouts with Pillow.

The product is the same: a float tensor (B, 3, H, W) and, where asked, masks and boxes.
Both start from a layout. The unit tests hold the two sets of pixels together.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minilib.scenes import EmojiScenes, SceneConfig
from minilib.scenes.renderer import render

spec = importlib.util.spec_from_file_location(
    "pillow_scenes", Path(__file__).with_name("pillow_scenes.py")
)
pillow_scenes = importlib.util.module_from_spec(spec)
sys.modules["pillow_scenes"] = pillow_scenes
spec.loader.exec_module(pillow_scenes)

CONFIGS = {
    "64x64, one object": SceneConfig(size=64, objects=(1, 1)),
    "64x64, four objects": SceneConfig(size=64, objects=(4, 4)),
    "96x96, six objects": SceneConfig(size=96, objects=(6, 6)),
}


@pytest.mark.parametrize(
    "annotated", [False, True], ids=["image", "image, mask, boxes"]
)
@pytest.mark.parametrize("scene", CONFIGS)
def test_rendering(contest, threads, scene, annotated):
    config, n = CONFIGS[scene], 32 if contest.quick else 128
    layout, _ = EmojiScenes(config).layout("pairs", n)

    def ours() -> object:
        return render(layout, config.shape, masks=annotated, boxes=annotated)

    def pillow() -> object:
        if annotated:
            scenes = [pillow_scenes.annotate(layout, b, config.shape) for b in range(n)]
            masks = torch.from_numpy(np.stack([scene.mask for scene in scenes]))
            return to_tensor([scene.image for scene in scenes]), masks
        return to_tensor(
            [
                np.asarray(pillow_scenes.compose(layout, b, config.shape))
                for b in range(n)
            ]
        )

    what = "annotated scene" if annotated else "scene"
    contest.run(
        f"{what} {scene}, {threads}", ours, {"Pillow": pillow}, n, aim=">= 20 x"
    )


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """Return (B, 3, H, W) float in [0, 1], as models take it."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
