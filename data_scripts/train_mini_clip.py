"""Train one of the CLIP checkpoints that minilib ships.

    python data_scripts/train_mini_clip.py --model mini-vit

Restartable: the same command goes on from the last checkpoint in --work, and ends with
the same weights on CPU. The finished model is written to
minilib/weights/<model>.safetensors with its card, <model>.json, beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from pathlib import Path

import torch

from minilib import scenes
from minilib.files import FolderInUse, NotTheSame
from minilib.parameters import writable_folder
from minilib.recipes.clip import recipe
from minilib.training import fit
from minilib.weights import load_clip, save

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate, ship; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(recipe.MINI), required=True)
    parser.add_argument(
        "--steps", type=_steps, help="optimiser steps (default: the recipe's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for the running training (default: runs/weights/<model>)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "minilib" / "weights",
        help="where the checkpoint goes",
    )
    given = parser.parse_args(arguments)
    if not given.out.is_dir():  # said now, not after the training
        parser.error(f"--out {given.out}: there is no such folder; make it first")

    mini = recipe.MINI[given.model].with_steps(given.steps)
    work = given.work or ROOT / "runs" / "weights" / given.model
    model = recipe.build(mini.model, given.seed).to(given.device)
    try:
        writable_folder(work.resolve())
    except ValueError as error:
        parser.error(str(error))
    print(
        f"{given.model}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{mini.train.steps} steps of {mini.batch_size} scenes on {given.device}; "
        f"working in {work}",
        flush=True,
    )
    try:
        history = fit(
            model,
            recipe.contrastive_loss,
            recipe.scene_pairs(mini, given.seed, given.device),
            mini.training(given.seed),
            out=work,
            after_step=recipe.clamp_logit_scale,
            evaluate=lambda m: recipe.zero_shot_report(m, n=480, split="val"),
            progress=given.model,
        )
    except (FolderInUse, NotTheSame) as error:
        parser.error(str(error))
    path = given.out / f"{given.model}.safetensors"
    save(model, path, {})
    # of what ships: half precision
    metrics = recipe.full_report(load_clip(path, device=given.device))
    card = {
        "model": given.model,
        "command": (
            f"python data_scripts/train_mini_clip.py --model {given.model} --seed "
            f"{given.seed}"
        )
        + (f" --steps {given.steps}" if given.steps else ""),
        "seed": given.seed,
        "steps": mini.train.steps,
        "batch_size": mini.batch_size,
        "scenes_seen": mini.train.steps * mini.batch_size,
        "scenes_version": scenes.VERSION,
        "parameters": sum(p.numel() for p in model.parameters()),
        "hardware": (
            f"{given.device}, {torch.get_num_threads()} threads, {platform.machine()}"
        )
        if given.device == "cpu"
        else torch.cuda.get_device_name(),
        "torch": torch.__version__.split("+")[0],
        "training_seconds": round(history.rows[-1]["seconds"]),
        "metrics": metrics,
    }
    save(model, path, card)
    card |= {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(card, indent=2) + "\n")
    os.replace(temporary, path.with_suffix(".json"))
    print(json.dumps(card, indent=2))
    return 0


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
