"""Train the detector that minilib ships, the trunk of the detection chapters.

    python data_scripts/train_mini_detector.py

Restartable: the same command goes on from the last checkpoint in --work, and ends with
the same weights on CPU. The finished model is written to
minilib/weights/mini-detector.safetensors with its card, mini-detector.json, beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from minilib.files import FolderInUse, NotTheSame
from minilib.models.detector import Detector
from minilib.recipes.shared import mini_detector as recipe
from minilib.weights import load, load_clip, shipping


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate, ship; return the exit status."""
    parser = shipping.options(__doc__)
    given = shipping.parse(parser, arguments, "mini-detector")
    prepared = recipe.prepare(given.seed, given.device, given.steps)
    steps = prepared.config.steps
    shipping.begin(prepared.model, given, steps)
    try:
        history = prepared.fit(given.work, progress=given.model)
    except (FolderInUse, NotTheSame) as error:
        parser.error(str(error))
    about = {
        "starts_from": "mini-rn",
        "steps": steps,
        "batch_size": recipe.BATCH,
        "scenes_seen": steps * recipe.BATCH,
    }

    def report(path: Path) -> dict[str, float]:
        shipped = load(path, given.device)
        assert isinstance(shipped, Detector)  # for the type checker
        return recipe.report(shipped, load_clip("mini-rn", device=given.device))

    shipping.ship(
        prepared.model,
        given,
        "train_mini_detector.py",
        history.rows[-1]["seconds"],
        about,
        report,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
