"""Chapter 6's values per profile, and the steps that its cells call by name."""

from __future__ import annotations

from pathlib import Path

import torch

from minilib.models.clip import CLIP
from minilib.recipes.denseclip import recipe
from minilib.recipes.denseclip.recipe import LADDER, Rung, Study, Values
from minilib.training import Training

PROFILES = {
    "quick": Values(),
    "full": Values(
        variants=tuple(LADDER), steps=100, test_images=320, other_steps=60,
        detection=("CLIP, no text", "post-model"),
    ),
    "photos": Values(
        size=(96, 128), steps=110, batch_size=12, variants=("CLIP, no text", "post-model", "shuffled names"),
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


def main_training(
    profile: str, seed: int, device: torch.device | str = "cpu", *, data: str = "", weights: str = "mini-rn"
) -> Training:
    """Return the chapter's main training, post-model prompting: for ``python -m minilib.train denseclip``.

    Raises:
        ValueError: profile "paper", which has no values here.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile={profile!r} is not trained here: expected one of {', '.join(PROFILES)}")
    values = PROFILES[profile]
    study = study_of(profile, values, data, seed, device)
    return recipe.training("post-model", study, recipe.source_clip(weights, device), values, seed)
