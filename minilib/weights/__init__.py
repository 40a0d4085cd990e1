"""Saving and loading CLIP weights: the shipped mini checkpoints, open_clip's names, local files.

Nothing here unpickles more than plain tensors unless the caller says that a file is to be trusted.
"""

from __future__ import annotations

import difflib
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minilib.models.clip import CLIP, CLIPConfig
from minilib.models.clip.official import from_hugging_face

__all__ = ["MINI", "load_checkpoint", "load_clip", "read_card", "save_clip"]

FOLDER = Path(__file__).parent
MINI = ("mini-vit", "mini-rn")
"""Names of the checkpoints that ship with the package."""
FORMAT = "minilib.clip"


def save_clip(model: CLIP, path: str | os.PathLike[str], card: Mapping[str, Any]) -> Path:
    """Write ``model`` with its configuration and card to one safetensors file, atomically.

    Matrices and convolutions are stored in half precision; vectors and running statistics stay in float32.

    Args:
        model: the model to store.
        path: where to; the folder must exist.
        card: how the weights were made (command, seed, steps, metrics, ...), anything JSON can hold.

    Returns:
        ``path``.

    Raises:
        ValueError: a weight is not finite, or too large for half precision.
    """
    return write_weights(model, path, FORMAT, asdict(model.config), card)


def write_weights(
    model: nn.Module, path: str | os.PathLike[str], kind: str, config: Mapping[str, Any], card: Mapping[str, Any]
) -> Path:
    """Write the tensors of any ``model`` with ``config`` and ``card``; ``kind`` says which class reads them.

    Raises:
        ValueError: a weight is not finite, or too large for half precision.
    """
    path = Path(path)
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        if value.is_floating_point() and value.ndim > 1:
            value = value.half()
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} is not finite in the precision it is stored in: not saved to {path}")
        tensors[name] = value.contiguous()
    metadata = {"format": kind, "config": json.dumps(dict(config)), "card": json.dumps(dict(card))}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, unfinished, metadata)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read_card(name: str) -> dict[str, Any]:
    """Return the card of a mini checkpoint, by name, or of a file that ``save_clip`` wrote."""
    _, metadata = read_weights(_mini_path(name) if name in MINI else Path(name))
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{name} carries no card: it was not written by save_clip")
    return json.loads(metadata["card"])


def load_clip(
    name: str | os.PathLike[str],
    pretrained: str | None = None,
    device: torch.device | str = "cpu",
    *,
    quick_gelu: bool | None = None,
    trust: bool = False,
) -> CLIP:
    """Load a CLIP in evaluation mode and float32; whatever the source, the class is the same.

    Args:
        name: "mini-vit" or "mini-rn"; a model name of open_clip, such as "ViT-B-16"; or a file: from
        ``save_clip``,
            a state dict or training checkpoint in OpenAI's, open_clip's or Hugging Face's layout (.pt,
            .safetensors), or, with ``trust``, OpenAI's TorchScript archive.
        pretrained: for open_clip names, the tag of the weights ("openai", "laion2b_s34b_b79k", ...),
        fetched on first
            use; "random" for untrained weights.
        device: where to put the model.
        quick_gelu: for files that carry no configuration, the activation they were trained with. OpenAI's
        layout does
            not tell; True is assumed with a warning.
        trust: allow a TorchScript archive, which is a program and not only data.

    Raises:
        ValueError: unknown name or tag, or a file that is truncated, foreign, or holds more than tensors.
        FileNotFoundError: the file does not exist.
    """
    text = os.fspath(name)
    open_clip_name = text.replace("/", "-")
    if text in MINI:
        if pretrained is not None:
            raise ValueError(f"{text} has one set of weights: leave out pretrained={pretrained!r}")
        model = _load_file(_mini_path(text), quick_gelu, trust)
    elif open_clip_name in open_clip.list_models():
        model = _load_open_clip(open_clip_name, pretrained)
    elif (
        Path(text).exists() or os.sep in text or Path(text).suffix in (".safetensors", ".pt", ".pth", ".bin")
    ):
        model = _load_file(Path(text), quick_gelu, trust)
    else:
        near = difflib.get_close_matches(text, [*MINI, *open_clip.list_models()])
        hint = f"did you mean {' or '.join(near)}?" if near else "see open_clip.list_models()"
        raise ValueError(f"no CLIP is called {text!r} and no such file exists: {hint}")
    return model.to(device)


def load_checkpoint(path: str | os.PathLike[str], trust: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, on the CPU, without running anything that the file contains.

    A training checkpoint's tensors are looked for under ``state_dict`` or ``model``.

    Args:
        path: .safetensors, or a file of ``torch.save``.
        trust: also accept a TorchScript archive, whose code torch may run.

    Raises:
        ValueError: the file is truncated, foreign, or holds more than tensors; the message says which.
        FileNotFoundError: the file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return read_weights(path)[0]
    if _is_torchscript(path):
        if not trust:
            raise ValueError(
                f"{path} is a TorchScript archive, a program rather than plain tensors: pass trust=True if "
                "you trust where it comes from, or use open_clip's tag 'openai' (safetensors)"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are about to be refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} cannot be read as plain tensors: either it is no checkpoint, or it is a pickle that "
            f"could run code, which is refused. Save the state_dict as safetensors. ({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is truncated or is no checkpoint: {_first_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = dict(content) if isinstance(content, Mapping) else {}
    tensors = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{path} holds a {type(content).__name__} without tensors: a state dict was expected"
        )
    return tensors


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _is_torchscript(path: Path) -> bool:
    """Tell a TorchScript archive from a state dict: only the former carries code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is truncated, or is no safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    sys.audit("open", str(path), "rb", 0)  # safetensors opens files unseen by Python: see minilib.opened
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or is not a safetensors file: {_first_line(error)}") from error


def _mini_path(name: str) -> Path:
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: train it with `python data_scripts/train_mini_clip.py --model {name}`"
        )
    return path


def _load_file(path: Path, quick_gelu: bool | None, trust: bool) -> CLIP:
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        state, metadata = read_weights(path)
    else:
        state = load_checkpoint(path, trust)
    try:
        if metadata.get("format") == FORMAT:
            config = CLIPConfig.from_dict(json.loads(metadata["config"]))
            return CLIP.from_config(config, state)
        if quick_gelu is None:
            quick_gelu = True
            if not (path.suffix != ".safetensors" and _is_torchscript(path)):  # archives are OpenAI's own
                warnings.warn(
                    f"{path} does not tell its activation; QuickGELU is assumed, as in OpenAI's models. Pass "
                    "quick_gelu=False for weights trained with GELU (LAION-2B, DataComp), True to confirm",
                    stacklevel=3,
                )
        return CLIP.from_official(from_hugging_face(state), quick_gelu=quick_gelu)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no CLIP: {error}") from error


def _load_open_clip(name: str, pretrained: str | None) -> CLIP:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"{name} is an architecture: choose its weights with pretrained=, one of {tags}, or 'random'"
        )
    if pretrained == "random":
        return CLIP.from_open_clip(open_clip.create_model(name))
    if pretrained not in tags:
        raise ValueError(f"{name} has no weights {pretrained!r}: use one of {tags}, or 'random'")
    # The architecture's name does not decide the activation, the weights do; open_clip only warns.
    quick_gelu = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False))
    try:
        module = open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=quick_gelu)
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"could not get {name} {pretrained!r}: {_first_line(error)}. Without a network, fetch the file "
            "elsewhere and pass its path as the name"
        ) from error
    return CLIP.from_open_clip(module)
