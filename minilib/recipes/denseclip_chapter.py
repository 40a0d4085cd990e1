"""Chapter 6's values per profile, and the steps that its cells call by name."""

from __future__ import annotations

from pathlib import Path

import torch

from minilib.models.clip import CLIP
from minilib.recipes import denseclip as recipe
from minilib.recipes.denseclip import LADDER, Rung, Study, Values

PROFILES = {
    "quick": Values(),
    "full": Values(
        variants=tuple(LADDER), steps=90, test_images=240, detection_steps=110,
        detection=("CLIP, no text", "post-model"), other_steps=90,
    ),
    "photos": Values(
        size=(72, 96), steps=200, batch_size=12, variants=("CLIP, no text", "post-model", "shuffled names"),
        detection_steps=0, detection=(),
    ),
}  # fmt: skip
"""``paper`` has no values here: see the chapter's section on the paper's scale."""


def study_of(profile: str, values: Values, data: str | Path, seed: int, device: torch.device | str) -> Study:
    """Return the data of a profile: EmojiScenes, or CamVid in the folder ``data``."""
    if profile == "photos":
        return recipe.photos_study(values, data, seed, device)
    return recipe.scenes_study(values, seed, device)


def climb(study: Study, values: Values, clip: CLIP, seed: int, out: Path) -> dict[str, Rung]:
    """Train every rung that ``values`` names; interrupted trainings in ``out`` go on where they stopped."""
    points = recipe.starting_points(values, clip, seed, out)
    return {name: recipe.train(name, study, points[LADDER[name].start], values, seed, out) for name in values.variants}
