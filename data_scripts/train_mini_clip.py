"""Train one of the CLIP checkpoints that minilib ships.

    python data_scripts/train_mini_clip.py --model mini-vit

Restartable: the same command goes on from the last checkpoint in --work, and ends with
the same weights on CPU. The finished model is written to
minilib/weights/<model>.safetensors with its card, <model>.json, beside it.
"""

from __future__ import annotations

import sys

from minilib.files import FolderInUse, NotTheSame
from minilib.recipes.clip import recipe
from minilib.training import fit
from minilib.weights import load_clip, shipping


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate, ship; return the exit status."""
    parser = shipping.options(__doc__)
    parser.add_argument("--model", choices=sorted(recipe.MINI), required=True)
    given = shipping.parse(parser, arguments)
    mini = recipe.MINI[given.model].with_steps(given.steps)
    model = recipe.build(mini.model, given.seed).to(given.device)
    shipping.begin(model, given, mini.train.steps)
    try:
        history = fit(
            model,
            recipe.contrastive_loss,
            recipe.scene_pairs(mini, given.seed, given.device),
            mini.training(given.seed),
            out=given.work,
            after_step=recipe.clamp_logit_scale,
            evaluate=lambda m: recipe.zero_shot_report(m, n=480, split="val"),
            progress=given.model,
        )
    except (FolderInUse, NotTheSame) as error:
        parser.error(str(error))
    about = {
        "steps": mini.train.steps,
        "batch_size": mini.batch_size,
        "scenes_seen": mini.train.steps * mini.batch_size,
    }
    shipping.ship(
        model,
        given,
        f"train_mini_clip.py --model {given.model}",
        history.rows[-1]["seconds"],
        about,
        lambda path: recipe.full_report(load_clip(path, device=given.device)),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
