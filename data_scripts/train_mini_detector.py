"""Train the detector that minilib ships, the trunk of the detection chapters.

    python data_scripts/train_mini_detector.py

Restartable: the same command goes on from the last checkpoint in --work, and ends with
the same weights on CPU. The finished model is written to
minilib/weights/mini-detector.safetensors with its card, mini-detector.json, beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from pathlib import Path

import torch

from minilib import scenes
from minilib.files import FolderInUse, NotTheSame, write_atomically
from minilib.models.detector import Detector
from minilib.parameters import writable_folder
from minilib.recipes.shared import mini_detector as recipe
from minilib.weights import load, load_clip, save

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate, ship; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        default=ROOT / "runs" / "weights" / "mini-detector",
        help="running training",
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

    try:
        writable_folder(given.work.resolve())
    except ValueError as error:
        parser.error(str(error))
    prepared = recipe.prepare(given.seed, given.device, given.steps)
    size = sum(p.numel() for p in prepared.model.parameters())
    steps = prepared.config.steps
    print(
        f"mini-detector: {size:,} parameters, {steps} steps on {given.device}; working "
        f"in {given.work}",
        flush=True,
    )
    try:
        history = prepared.fit(given.work, progress="mini-detector")
    except (FolderInUse, NotTheSame) as error:
        parser.error(str(error))
    path = given.out / "mini-detector.safetensors"
    save(prepared.model, path, {})
    shipped = load(path, given.device)
    assert isinstance(shipped, Detector)  # for the type checker
    card = {
        "model": "mini-detector",
        "command": f"python data_scripts/train_mini_detector.py --seed {given.seed}"
        + (f" --steps {given.steps}" if given.steps else ""),
        "starts_from": "mini-rn",
        "seed": given.seed,
        "steps": steps,
        "batch_size": recipe.BATCH,
        "scenes_seen": steps * recipe.BATCH,
        "scenes_version": scenes.VERSION,
        "parameters": size,
        "hardware": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"
        if given.device == "cpu"
        else torch.cuda.get_device_name(),
        "torch": torch.__version__.split("+")[0],
        "training_seconds": round(history.rows[-1]["seconds"]),
        # of what ships: half precision
        "metrics": recipe.report(shipped, load_clip("mini-rn", device=given.device)),
    }
    save(prepared.model, path, card)
    card |= {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    write_atomically(path.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))
    return 0


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
