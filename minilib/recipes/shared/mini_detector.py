"""The mini detector that ships: the trunk from which detection chapters start.

It is trained on boxes of the vocabulary's base names alone; the others are never in
its pictures, and are asked for by their text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from minilib.batch import Batch, required
from minilib.models.clip import CLIP
from minilib.models.detector import Detector
from minilib.recipes.clip import recipe as clip_recipe
from minilib.recipes.shared.detection import boxed_scenes, score_boxes
from minilib.scenes import VOCABULARY, EmojiScenes, SceneConfig
from minilib.training import TrainConfig, Training
from minilib.weights import FOLDER, load_clip

BASE = tuple(concept.name for concept in VOCABULARY if concept.base)
"""The names that it sees boxes of."""
NOVEL = tuple(concept.name for concept in VOCABULARY if not concept.base)
"""The names that it never does."""
SCENES = SceneConfig(size=96, objects=(1, 5))
"""What it detects in."""
BATCH = 16
"""Scenes of a step."""
SCHEDULE = TrainConfig(
    steps=1200, lr=2e-3, lr_factors=(("backbone.", 0.2),), warmup=60,
    weight_decay=1e-4, betas=(0.9, 0.999), eps=1e-8, checkpoint_every=50,
)  # fmt: skip
"""How it is trained: 19,200 scenes."""
TEMPLATE = clip_recipe.TEMPLATES[0]
"""The sentence around a name."""


def ships() -> bool:
    """Return whether the trained detector is there; ``train_mini_detector.py`` makes
    it."""
    return (FOLDER / "mini-detector.safetensors").is_file()


def scenes(
    class_list: Sequence[str] = BASE, device: torch.device | str = "cpu"
) -> EmojiScenes:
    """Return scenes that show these names only."""
    return EmojiScenes(replace(SCENES, classes=tuple(class_list)), device=device)


def text_vectors(clip: CLIP, class_list: Sequence[str] = BASE) -> Tensor:
    """Return a unit text vector of each name, (K, E)."""
    return clip_recipe.embed_texts(clip, clip_recipe.prompts(TEMPLATE, class_list))


def detection_loss(model: Detector, batch: Batch, text: Tensor) -> dict[str, Tensor]:
    """The detector's losses on scenes with boxes; with the text bound, for ``fit``."""
    boxes, classes = required(batch.boxes, "boxes"), required(batch.classes, "classes")
    return model.losses(batch.image, boxes, classes, text)


def prepare(
    seed: int, device: torch.device | str = "cpu", steps: int | None = None
) -> Training[Detector]:
    """Return the training: :data:`SCHEDULE` on :func:`scenes`, starting from
    ``mini-rn``."""
    clip = load_clip("mini-rn", device=device)
    text, source = text_vectors(clip), scenes(BASE, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Detector.from_clip(clip, text)
    return Training(
        model,
        partial(detection_loss, text=text),
        lambda step: boxed_scenes(source, BATCH, "train", seed, BATCH * step),
        replace(SCHEDULE, steps=steps or SCHEDULE.steps, seed=seed),
    )


def report(
    model: Detector, clip: CLIP, images: int = 300, seed: int = 1
) -> dict[str, float]:
    """Return AP and AP50 on new scenes of the base names, and of names that it was
    never shown a box of."""
    found: dict[str, float] = {}
    for kind, class_list in (("base", BASE), ("novel", NOVEL)):
        test = boxed_scenes(scenes(class_list, clip.device), images, "test", seed)
        detect = partial(model.eval(), text=text_vectors(clip, class_list))
        for name, value in score_boxes(detect, test).items():
            found[f"{name}_{kind}"] = round(value, 4)
    return found
