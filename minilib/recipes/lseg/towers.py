"""Where the miniature's image side starts: a classifier of other names, as the paper's
starts from ImageNet, or mini-rn's image tower, which has read captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.batch import Batch, required
from minilib.models.clip import CLIP, CLIPConfig
from minilib.recipes.clip.recipe import build as build_clip
from minilib.recipes.shared.classifier import ImageClassifier
from minilib.scenes import VOCABULARY, EmojiScenes, SceneConfig
from minilib.training import TrainConfig, fit

POOL = "attnpool."
"""Keys of a ResNet tower that begin so are its pool's, which a segmenter drops."""


@dataclass(frozen=True)
class LabelTower:
    """An image tower that was trained to name single objects by their labels, and has
    met no text."""

    weights: Mapping[str, Tensor]
    """Of its backbone, by their names in ``ModifiedResNet``."""
    names: int
    """How many names it tells apart."""
    accuracy: float
    """Share of 480 test scenes of one object that it names rightly."""


def backbone_weights(tower: nn.Module) -> dict[str, Tensor]:
    """Return copies of an image tower's weights without those of its pool."""
    state = tower.state_dict()
    return {k: v.detach().clone() for k, v in state.items() if not k.startswith(POOL)}


def caption_tower(clip: CLIP) -> dict[str, Tensor]:
    """Return the weights of a CLIP's image tower, trained on captions with all
    names."""
    return backbone_weights(clip.visual)


@lru_cache(maxsize=2)
def label_tower(
    config: CLIPConfig,
    left_out: tuple[str, ...],
    size: int,
    steps: int,
    seed: int,
    device: str = "cpu",
) -> LabelTower:
    """Pre-train the image tower of ``config`` on the names that are *not* left out.

    It is the miniature's ImageNet: single objects, one label each, cross-entropy. The
    words of the study are left out, seen and unseen ones alike, and so are their
    drawings: what such a tower finds of an unseen word, no label or caption told it.

    Args:
        config: of the CLIP whose image tower it is.
        left_out: words that it must not meet.
        size: side of the images in pixels.
        steps: of 64 images.
        seed: of weights and images.
        device: where it is trained.
    """
    met = tuple(c.name for c in VOCABULARY if c.name not in left_out)
    scenes = EmojiScenes(
        SceneConfig(size=size, objects=(1, 1), classes=met, tint=0.0), device=device
    )
    clip = build_clip(config, seed).to(device)
    with torch.random.fork_rng(devices=[]):  # the head too begins with the seed
        torch.manual_seed(seed)
        classifier = ImageClassifier(clip, len(VOCABULARY))
    classifier = classifier.to(memory_format=torch.channels_last)

    def batches(step: int) -> Batch:
        return scenes.batch("classify", 64, "train", seed, 64 * step)

    def loss(model: ImageClassifier, batch: Batch) -> dict[str, Tensor]:
        label = required(batch.label, "label")
        return {"loss": F.cross_entropy(model(batch.image), label)}

    config_ = TrainConfig(steps=steps, lr=2e-3, warmup=max(1, steps // 20), seed=seed)
    fit(classifier, loss, batches, config_, progress="labels of other names")
    test = scenes.batch("classify", 480, "test", seed)
    with torch.no_grad():
        right = classifier.eval()(test.image).argmax(1) == test.label
    return LabelTower(
        backbone_weights(classifier.visual), len(met), right.float().mean().item()
    )
