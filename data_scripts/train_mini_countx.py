"""Train the CounTX checkpoint that minilib ships.

    python data_scripts/train_mini_countx.py

Restartable: the same command goes on from the last checkpoint in --work, and ends with
the same weights on CPU. The finished model is written to
minilib/weights/mini-countx.safetensors with its card, mini-countx.json, beside it.
"""

from __future__ import annotations

import sys

from minilib.files import FolderInUse, NotTheSame
from minilib.recipes.countx import mini as recipe
from minilib.weights import load, shipping


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate, ship; return the exit status."""
    parser = shipping.options(__doc__)
    given = shipping.parse(parser, arguments, "mini-countx")
    prepared = recipe.prepare(given.seed, given.device, given.steps)
    shipping.begin(prepared.model, given, prepared.config.steps)
    try:
        history = prepared.fit(given.work, progress=given.model)
    except (FolderInUse, NotTheSame) as error:
        parser.error(str(error))
    about = {
        "starts_from": "mini-vit",
        "steps": prepared.config.steps,
        "images_in_a_step": recipe.SCHEDULE.images,
        "questions_about_each": recipe.SCHEDULE.each,
    }
    shipping.ship(
        prepared.model,
        given,
        "train_mini_countx.py",
        history.rows[-1]["seconds"],
        about,
        lambda path: recipe.report(load(path, given.device), given.device),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
