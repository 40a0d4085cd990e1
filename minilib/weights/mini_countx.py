"""Saving and loading the mini CounTX that ships with the package."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from minilib.models.clip import CLIPConfig
from minilib.models.countx import CounTX, CounTXConfig
from minilib.weights import read_weights, write_weights

MINI_COUNTX = Path(__file__).with_name("mini-countx.safetensors")
"""Where the shipped checkpoint lies."""
FORMAT = "minilib.countx"


def save_countx(model: CounTX, path: str | os.PathLike[str], card: Mapping[str, Any]) -> Path:
    """Write ``model`` with its configuration and card to one safetensors file, atomically; matrices in half precision.

    Raises:
        ValueError: a weight is not finite, or too large for half precision.
    """
    return write_weights(model, path, FORMAT, asdict(model.config), card)


def load_countx(path: str | os.PathLike[str] = MINI_COUNTX, device: torch.device | str = "cpu") -> CounTX:
    """Return a CounTX that :func:`save_countx` wrote, by default the shipped one, in evaluation mode and float32.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is truncated, or is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train it with `python data_scripts/train_mini_countx.py`")
    state, metadata = read_weights(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} holds no CounTX of minilib's: the format is {metadata.get('format')!r}")
    values = json.loads(metadata["config"])
    model = CounTX(CounTXConfig(**{**values, "clip": CLIPConfig.from_dict(values["clip"])}))
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.eval().to(device)


def read_card(path: str | os.PathLike[str] = MINI_COUNTX) -> dict[str, Any]:
    """Return the card that :func:`save_countx` stored with a checkpoint: how it was made, and what it reaches."""
    return json.loads(read_weights(Path(path))[1]["card"])
