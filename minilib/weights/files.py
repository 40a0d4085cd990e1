"""Reading files of weights: one reader for all that carries tensors, one error for all
that does not.

Nothing here unpickles more than plain tensors unless the caller says that a file is to
be trusted.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What a folder of Hugging Face's hub calls its weights; the first that is there is
read."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""How files of weights end."""
_INDEX = ".index.json"


class CheckpointError(ValueError):
    """A file is not a checkpoint, or not one of the kind that was asked for.

    The message starts with its path and says what to do.
    """


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that holds the weights: ``path``, or the one in the folder
    ``path``.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        CheckpointError: the folder holds no file of weights, or several.
    """
    path = Path(path).expanduser()
    with _named(path):
        if not path.exists():
            raise FileNotFoundError(f"no checkpoint at {path}")
        if path.is_file():
            return path
        if not path.is_dir():
            raise CheckpointError(f"{path} is neither a file nor a folder")
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    with _named(path):
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(found) != 1:
        listed = ", ".join(file.name for file in found[:5]) or "none"
        raise CheckpointError(
            f"{path} is a folder with {len(found)} files of weights ({listed}): pass "
            "the file"
        )
    return found[0]


def read(
    path: str | os.PathLike[str], trust: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a checkpoint, on the CPU, and the metadata of a safetensors
    file, without running anything that the file contains.

    A training file's tensors are looked for where trainings keep them, see
    :func:`minilib.models.loading.entries`; beside tensors it may hold the
    ``argparse.Namespace`` of a command line.

    Args:
        path: .safetensors, a file of ``torch.save``, the index of a checkpoint in
            several files, or a folder with one of them; ``~`` is the home folder.
        trust: also accept a TorchScript archive, whose code torch may run.

    Raises:
        CheckpointError: the file is truncated, foreign, or holds more than tensors; the
            message says which.
        FileNotFoundError: the file does not exist.
    """
    from minilib.models.loading import entries  # importing this module imports no model

    path = weights_file(path)
    if path.name.endswith(_INDEX):
        return _read_shards(path), {}
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if is_torchscript(path):
        if not trust:
            raise CheckpointError(
                f"{path} is a TorchScript archive, a program rather than plain "
                "tensors: pass trust=True if you trust where it comes from, or use "
                "open_clip's tag 'openai' (safetensors)"
            )
        with _named(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out
            return dict(torch.jit.load(path, map_location="cpu").state_dict()), {}
    with _named(path):
        with warnings.catch_warnings():
            # about pickles that are about to be refused
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    try:
        return entries(content), {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no weights: {error}") from error


def is_torchscript(path: Path) -> bool:
    """Tell a TorchScript archive from a state dict: only the former carries code."""
    with _named(path):
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or {} where there is no such file.

    Raises:
        CheckpointError: the file is something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable as JSON: {first_line(error)}. Fetch it again, or "
            "move it away"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}: expected a JSON object"
        )
    return content


def first_line(error: Exception) -> str:
    """Return what an error says, in short."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    # safetensors opens files unseen by Python: see minilib.opened
    sys.audit("open", str(path), "rb", 0)
    with _named(path), safe_open(path, framework="pt") as file:
        names = file.keys()
        return {key: file.get_tensor(key) for key in names}, file.metadata() or {}


def _read_shards(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint in several files, of which ``path`` is the
    index."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} lists no files: expected a 'weight_map'")
    state: dict[str, Tensor] = {}
    for name in sorted({str(place) for place in places.values()}):
        if Path(name).name != name or name.endswith(_INDEX):
            raise CheckpointError(f"{path} names {name!r}: expected a file beside it")
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path} names {name}, which is missing: fetch it")
        state |= read(path.parent / name)[0]
    if missing := sorted(set(places) - set(state)):
        raise CheckpointError(f"{path} lists {missing[0]!r}, which is in no file")
    return state


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn whatever a parser trips over into a :class:`CheckpointError` with the path.

    Damaged pickles and archives make torch, pickle and zipfile raise nearly anything:
    KeyError, IndexError, struct.error, BadZipFile, MemoryError and more.
    """
    try:
        yield
    except (CheckpointError, FileNotFoundError):
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be read as plain tensors: either it is not a checkpoint, "
            "or it is a pickle that could run code, which is refused. Save the "
            f"state_dict as safetensors. ({first_line(error)})"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or first_line(error)}"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is truncated or is not a checkpoint: {first_line(error)}. Fetch "
            "or save it again"
        ) from error
