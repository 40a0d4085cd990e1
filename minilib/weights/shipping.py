"""What the scripts that train the shipped checkpoints have in common: their options,
and how a finished training becomes a checkpoint with its card."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minilib import scenes
from minilib.files import write_atomically
from minilib.parameters import writable_folder
from minilib.weights import save

ROOT = Path(__file__).resolve().parents[2]


def options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every such script has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
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
        help="folder for the running training (default: runs/weights/<model>)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "minilib" / "weights",
        help="where the checkpoint goes",
    )
    return parser


def parse(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    model: str | None = None,
) -> argparse.Namespace:
    """Return the options given; a folder that cannot be used ends the script now, not
    after the training.

    Args:
        parser: from :func:`options`.
        arguments: the command's; None = the process's own.
        model: what is trained, where no option ``--model`` says it.
    """
    given = parser.parse_args(arguments)
    given.model = model or given.model
    given.work = given.work or ROOT / "runs" / "weights" / given.model
    if not given.out.is_dir():
        parser.error(f"--out {given.out}: there is no such folder; make it first")
    try:
        writable_folder(given.work.resolve())
    except ValueError as error:
        parser.error(str(error))
    return given


def begin(model: nn.Module, given: argparse.Namespace, steps: int) -> None:
    """Say what is going to be trained."""
    print(
        f"{given.model}: {_size(model):,} parameters, {steps} steps on {given.device}; "
        f"working in {given.work}",
        flush=True,
    )


def ship(
    model: nn.Module,
    given: argparse.Namespace,
    command: str,
    seconds: float,
    about: Mapping[str, Any],
    report: Callable[[Path], Mapping[str, Any]],
) -> None:
    """Write ``<out>/<model>.safetensors`` and its card, and print the card.

    Args:
        model: what was trained.
        given: from :func:`parse`.
        command: the script and its own options: "train_mini_clip.py --model mini-vit".
        seconds: how long the training took.
        about: what else the card says of the training.
        report: measures the checkpoint at a path, which is in half precision.
    """
    path = given.out / f"{given.model}.safetensors"
    save(model, path, {})
    options_said = f" --seed {given.seed}" + (
        f" --steps {given.steps}" if given.steps else ""
    )
    on_cpu = f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"
    card = {
        "model": given.model,
        "command": f"python data_scripts/{command}{options_said}",
        "seed": given.seed,
        **about,
        "scenes_version": scenes.VERSION,
        "parameters": _size(model),
        "hardware": on_cpu if given.device == "cpu" else torch.cuda.get_device_name(),
        "torch": torch.__version__.split("+")[0],
        "training_seconds": round(seconds),
        "metrics": dict(report(path)),
    }
    save(model, path, card)
    card |= {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    text = json.dumps(card, indent=2)
    write_atomically(path.with_suffix(".json"), text + "\n")
    print(text)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps from 1")
    return int(text)
