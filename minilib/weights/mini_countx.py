"""Saving and loading the mini CounTX that ships with the package."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minilib.models.clip import CLIPConfig
from minilib.models.countx import CounTX, CounTXConfig

MINI_COUNTX = Path(__file__).with_name("mini-countx.safetensors")
"""Where the shipped checkpoint lies."""
FORMAT = "minilib.countx"


def save_countx(model: CounTX, path: str | os.PathLike[str], card: Mapping[str, Any]) -> Path:
    """Write ``model`` with its configuration and card to one safetensors file, atomically; matrices in half precision.

    Raises:
        ValueError: a weight is not finite, or too large for half precision.
    """
    path = Path(path)
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        value = value.half() if value.is_floating_point() and value.ndim > 1 else value
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} is not finite in the precision it is stored in: not saved to {path}")
        tensors[name] = value.contiguous()
    metadata = {"format": FORMAT, "config": json.dumps(asdict(model.config)), "card": json.dumps(dict(card))}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, unfinished, metadata)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def load_countx(path: str | os.PathLike[str] = MINI_COUNTX, device: torch.device | str = "cpu") -> CounTX:
    """Return a CounTX that :func:`save_countx` wrote, by default the shipped one, in evaluation mode and float32.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is truncated, or is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train it with `python data_scripts/train_mini_countx.py`")
    sys.audit("open", str(path), "rb", 0)  # safetensors opens files unseen by Python: see minilib.opened
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or is not a safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} holds no CounTX of minilib's: the format is {metadata.get('format')!r}")
    values = json.loads(metadata["config"])
    model = CounTX(CounTXConfig(**{**values, "clip": CLIPConfig.from_dict(values["clip"])}))
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.eval().to(device)


def read_card(path: str | os.PathLike[str] = MINI_COUNTX) -> dict[str, Any]:
    """Return the card that :func:`save_countx` stored with a checkpoint: how it was made, and what it reaches."""
    with safe_open(Path(path), framework="pt") as file:
        return json.loads((file.metadata() or {})["card"])
