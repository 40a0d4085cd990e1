"""Saving and loading models: mini checkpoints, open_clip's names, local files.

Every mini checkpoint is one safetensors file that says in its ``format`` which model it
holds: "minilib.countx" is the CounTX of ``minilib.models.countx``. So :func:`save` and
:func:`load` serve every paper.

Nothing here unpickles more than plain tensors unless the caller says that a file
is to be trusted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import json
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

if TYPE_CHECKING:  # importing this module imports no model
    from minilib.models.clip import CLIP

__all__ = ["MINI", "load", "load_checkpoint", "load_clip", "read_card", "save"]

FOLDER = Path(__file__).parent
MINI = ("mini-vit", "mini-rn")
"""Names of the CLIPs that ship with the package."""
_CLIP = "minilib.clip"


def save(
    model: nn.Module, path: str | os.PathLike[str], card: Mapping[str, Any]
) -> Path:
    """Write ``model`` with its configuration and card to one file, atomically.

    Matrices and convolutions are stored in half precision; vectors and running
    statistics stay in float32.

    Args:
        model: a paper's model, such as CLIP or CounTX, made from a dataclass that it
            keeps as ``config``.
        path: where to (.safetensors); the folder must exist.
        card: how the weights were made (command, seed, steps, metrics, ...), anything
            JSON can hold.

    Returns:
        ``path``.

    Raises:
        ValueError: not a paper's model; or a weight is not finite, or too large for
            half precision.
    """
    path, kind = Path(path), f"minilib.{type(model).__name__.lower()}"
    if _model_class(kind) is not type(model):
        raise ValueError(
            f"{type(model).__name__} is not saved to {path}: expected the model of a "
            "paper, such as CLIP or CounTX"
        )
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        if value.is_floating_point() and value.ndim > 1:
            value = value.half()
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{name} is not finite in the precision it is stored in: not saved to "
                f"{path}"
            )
        tensors[name] = value.contiguous()
    config: Any = model.config
    metadata = {
        "format": kind,
        "config": json.dumps(asdict(config)),
        "card": json.dumps(dict(card)),
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, unfinished, metadata)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def load(name: str | os.PathLike[str], device: torch.device | str = "cpu") -> nn.Module:
    """Load a model that :func:`save` wrote, in evaluation mode and float32.

    Args:
        name: of a checkpoint that ships, such as "mini-countx", or a file.
        device: where to put the model.

    Raises:
        FileNotFoundError: no checkpoint has this name, or the file does not exist.
        ValueError: the file is truncated, or was not written by :func:`save`.
    """
    path = _path_of(name)
    state, metadata = _read_file(path)
    return _build(path, state, metadata).to(device)


def read_card(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the card that :func:`save` stored: how a model was made, what it reaches.

    Raises:
        FileNotFoundError: no checkpoint has this name, or the file does not exist.
        ValueError: the file is truncated, or was not written by :func:`save`.
    """
    _, metadata = _read_file(_path_of(name))
    if "card" not in metadata or _model_class(metadata.get("format", "")) is None:
        raise ValueError(
            f"{name} carries no card: it was not written by minilib.weights.save"
        )
    return json.loads(metadata["card"])


def load_clip(
    name: str | os.PathLike[str],
    pretrained: str | None = None,
    device: torch.device | str = "cpu",
    *,
    quick_gelu: bool | None = None,
    trust: bool = False,
) -> CLIP:
    """Load a CLIP in evaluation mode and float32; whatever the source, the
    class is the same.

    Args:
        name: "mini-vit" or "mini-rn"; a model name of open_clip, such as "ViT-B-16"; or
            a file: one that :func:`save` wrote, a state dict or training checkpoint in
            OpenAI's, open_clip's or Hugging Face's layout (.pt, .safetensors), or, with
            ``trust``, OpenAI's TorchScript archive.
        pretrained: for open_clip names, the tag of the weights ("openai",
            "laion2b_s34b_b79k", ...), fetched on first use; "random" for untrained
            weights.
        device: where to put the model.
        quick_gelu: for files that carry no configuration, the activation they were
            trained with. OpenAI's layout does not tell; True is assumed with a warning.
        trust: allow a TorchScript archive, which is a program and not only data.

    Raises:
        ValueError: unknown name or tag, or a file that is truncated, foreign, or holds
            more than tensors.
        FileNotFoundError: the file does not exist.
    """
    text = os.fspath(name)
    if text in MINI:
        if pretrained is not None:
            raise ValueError(
                f"{text} has one set of weights: leave out pretrained={pretrained!r}"
            )
        return _load_file(_path_of(text), quick_gelu, trust).to(device)
    if Path(text).suffix in (".safetensors", ".pt", ".pth", ".bin"):
        return _load_file(Path(text), quick_gelu, trust).to(device)
    import open_clip  # here: it takes longer to import than torch

    names, open_clip_name = open_clip.list_models(), text.replace("/", "-")
    if open_clip_name in names:
        return _load_open_clip(open_clip_name, pretrained).to(device)
    if Path(text).exists() or os.sep in text:
        return _load_file(Path(text), quick_gelu, trust).to(device)
    near = difflib.get_close_matches(text, [*MINI, *names])
    hint = "see open_clip.list_models()"
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    raise ValueError(f"no CLIP is called {text!r} and no such file exists: {hint}")


def load_checkpoint(
    path: str | os.PathLike[str], trust: bool = False
) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, on the CPU, without running anything that
    the file contains.

    A training checkpoint's tensors are looked for under ``state_dict`` (Lightning) or
    ``model``; beside tensors it may hold the ``argparse.Namespace`` of a command line.

    Args:
        path: .safetensors, or a file of ``torch.save``; ``~`` is the home folder.
        trust: also accept a TorchScript archive, whose code torch may run.

    Raises:
        ValueError: the file is truncated, foreign, or holds more than tensors; the
            message says which.
        FileNotFoundError: the file does not exist.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _read_file(path)[0]
    if _is_torchscript(path):
        if not trust:
            raise ValueError(
                f"{path} is a TorchScript archive, a program rather than plain "
                "tensors: pass trust=True if you trust where it comes from, or use "
                "open_clip's tag 'openai' (safetensors)"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    try:
        with warnings.catch_warnings():
            # about pickles that are about to be refused
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} cannot be read as plain tensors: either it is not a checkpoint, "
            "or it is a pickle that could run code, which is refused. Save the "
            f"state_dict as safetensors. ({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is truncated or is not a checkpoint: {_first_line(error)}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = dict(content) if isinstance(content, Mapping) else {}
    tensors = {
        key: value for key, value in tensors.items() if isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError(
            f"{path} holds a {type(content).__name__} without tensors: a state dict "
            "was expected"
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


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is truncated, or is no safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    # safetensors opens files unseen by Python: see minilib.opened
    sys.audit("open", str(path), "rb", 0)
    try:
        with safe_open(path, framework="pt") as file:
            return {
                key: file.get_tensor(key) for key in file.keys()
            }, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or is not a safetensors file: {_first_line(error)}"
        ) from error


def _path_of(name: str | os.PathLike[str]) -> Path:
    """Return the file of a checkpoint that ships, by name, or of any other, by path."""
    path = Path(name).expanduser()
    if isinstance(name, os.PathLike) or path.suffix or len(path.parts) > 1:
        return path
    path = FOLDER / f"{name}.safetensors"
    if path.is_file():
        return path
    if name in MINI or path.with_suffix(".json").is_file():
        script = f"train_{name.replace('-', '_')}.py"
        if name in MINI:
            script = f"train_mini_clip.py --model {name}"
        raise FileNotFoundError(
            f"{path} is missing: train it with `python data_scripts/{script}`"
        )
    shipped = ", ".join(sorted(file.stem for file in FOLDER.glob("*.safetensors")))
    raise FileNotFoundError(
        f"no checkpoint is called {name!r}: expected one of {shipped}, or a file"
    )


def _model_class(kind: str) -> type[nn.Module] | None:
    """Return the model that a ``format`` means, None if it is not minilib's.

    "minilib.countx" is the class in ``minilib.models.countx`` that is called like it,
    whatever the case of its letters.
    """
    if not (match := re.fullmatch(r"minilib\.([a-z0-9_]+)", kind)):
        return None
    module = f"minilib.models.{match[1]}"
    if importlib.util.find_spec(module) is None:
        return None
    found = vars(importlib.import_module(module)).values()
    return next(
        (
            thing
            for thing in found
            if isinstance(thing, type)
            and issubclass(thing, nn.Module)
            and thing.__name__.lower() == match[1]
        ),
        None,
    )


def _build(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> nn.Module:
    """Return the model of a file that :func:`save` wrote, in evaluation mode."""
    found = _model_class(metadata.get("format", ""))
    if found is None:
        raise ValueError(
            f"{path} was not written by minilib.weights.save: "
            f"its format is {metadata.get('format')!r}"
        )
    try:
        hint = get_type_hints(found.__init__)["config"]
        model = found(_rebuilt(hint, json.loads(metadata["config"])))
        model.load_state_dict(state)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit a {found.__name__}: {said}") from error
    return model.eval()


def _rebuilt(hint: Any, values: Mapping[str, Any]) -> Any:
    """Return the dataclass of which ``values`` is ``asdict``, read from JSON.

    Where ``hint`` allows several dataclasses, the names of the fields tell which.
    """
    options: list[Any] = list(filter(is_dataclass, get_args(hint) or (hint,)))
    fitting = (k for k in options if {f.name for f in fields(k)} >= set(values))
    if (kind := next(fitting, None)) is None:
        raise ValueError(f"{hint} has no fields {', '.join(values)}")
    if hasattr(kind, "from_dict"):  # knows what older files say besides
        return kind.from_dict(values)
    hints, given = get_type_hints(kind), {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = _rebuilt(hints[name], value)
        given[name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)


def _load_file(path: Path, quick_gelu: bool | None, trust: bool) -> CLIP:
    from minilib.models.clip import CLIP
    from minilib.models.clip.official import from_hugging_face

    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        state, metadata = _read_file(path)
    else:
        state = load_checkpoint(path, trust)
    kind = metadata.get("format", "")
    if kind != _CLIP and _model_class(kind) is not None:
        raise ValueError(
            f"{path} does not hold a CLIP but a {kind}: "
            "load it with minilib.weights.load"
        )
    if kind == _CLIP:
        model = _build(path, state, metadata)
        assert isinstance(model, CLIP)  # for the type checker: the format says so
        return model
    try:
        if quick_gelu is None:
            quick_gelu = True
            # archives are OpenAI's own
            if not (path.suffix != ".safetensors" and _is_torchscript(path)):
                warnings.warn(
                    f"{path} does not tell its activation; QuickGELU is assumed, as "
                    "in OpenAI's models. Pass quick_gelu=False for weights trained "
                    "with GELU (LAION-2B, DataComp), True to confirm",
                    stacklevel=3,
                )
        return CLIP.from_official(from_hugging_face(state), quick_gelu=quick_gelu)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold a CLIP: {error}") from error


def _load_open_clip(name: str, pretrained: str | None) -> CLIP:
    import open_clip

    from minilib.models.clip import CLIP

    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"{name} is an architecture: choose its weights with pretrained=, one of "
            f"{tags}, or 'random'"
        )
    if pretrained == "random":
        return CLIP.from_open_clip(open_clip.create_model(name))
    if pretrained not in tags:
        raise ValueError(
            f"{name} has no weights {pretrained!r}: use one of {tags}, or 'random'"
        )
    # The architecture's name does not decide the activation, the weights do;
    # open_clip only warns.
    quick_gelu = bool(
        open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False)
    )
    try:
        module = open_clip.create_model(
            name, pretrained=pretrained, force_quick_gelu=quick_gelu
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"could not get {name} {pretrained!r}: {_first_line(error)}. Without a "
            "network, fetch the file elsewhere and pass its path as the name"
        ) from error
    return CLIP.from_open_clip(module)
