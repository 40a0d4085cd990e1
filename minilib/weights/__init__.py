"""Saving and loading models: mini checkpoints, open_clip's names, local files.

Every mini checkpoint is one safetensors file that says in its ``format`` which model it
holds: "minilib.countx" is the CounTX of ``minilib.models.countx``. So :func:`save` and
:func:`load` serve every paper.

Files are read by :mod:`minilib.weights.files`; what is not a checkpoint is a
:class:`CheckpointError`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minilib.weights.files import (
    SUFFIXES,
    CheckpointError,
    first_line,
    is_torchscript,
    read,
    read_json,
    weights_file,
)

if TYPE_CHECKING:  # importing this module imports no model
    from minilib.models.clip import CLIP
    from minilib.models.clip.official import Told

__all__ = [
    "MINI",
    "CheckpointError",
    "load",
    "load_checkpoint",
    "load_clip",
    "read_card",
    "save",
]

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
        CheckpointError: the file is truncated, was not written by :func:`save`, or is
            not the one that ships.
    """
    path = _path_of(name)
    state, metadata = read(path)
    return _build(path, state, metadata).to(device)


def read_card(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the card that :func:`save` stored: how a model was made, what it reaches.

    Raises:
        FileNotFoundError: no checkpoint has this name, or the file does not exist.
        CheckpointError: the file is truncated, was not written by :func:`save`, or is
            not the one that ships.
    """
    path = _path_of(name)
    _, metadata = read(path)
    if "card" not in metadata or _model_class(metadata.get("format", "")) is None:
        raise CheckpointError(
            f"{path} carries no card: it was not written by minilib.weights.save"
        )
    try:
        return dict(json.loads(metadata["card"]))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} carries a damaged card: {first_line(error)}"
        ) from error


def load_clip(
    name: str | os.PathLike[str],
    pretrained: str | None = None,
    device: torch.device | str = "cpu",
    *,
    quick_gelu: bool | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    trust: bool = False,
) -> CLIP:
    """Load a CLIP in evaluation mode and float32; whatever the source, the
    class is the same.

    Args:
        name: "mini-vit" or "mini-rn"; a model name of open_clip, such as "ViT-B-16"; or
            a file or folder: one that :func:`save` wrote, a state dict or training
            checkpoint in OpenAI's, open_clip's or Hugging Face's layout (.pt,
            .safetensors, also in several files), or, with ``trust``, OpenAI's
            TorchScript archive. ``config.json``, ``preprocessor_config.json`` and
            ``open_clip_config.json`` beside it are read.
        pretrained: for open_clip names, the tag of the weights ("openai",
            "laion2b_s34b_b79k", ...), fetched on first use; "random" for untrained
            weights.
        device: where to put the model.
        quick_gelu: for files that carry no configuration, the activation they were
            trained with. What neither this nor the next arguments nor a configuration
            beside the file tell is assumed with a warning: True.
        vision_heads: heads of the image tower; one per 64 channels, 16 in ViT-H and
            larger.
        text_heads: heads of the text tower; one per 64 channels.
        image_mean: of the pixels, per RGB channel; OpenAI's.
        image_std: likewise.
        trust: allow a TorchScript archive, which is a program and not only data.

    Raises:
        CheckpointError: a file that is truncated, foreign, or holds more than tensors.
        ValueError: unknown name or tag, or arguments that what is loaded tells itself.
        FileNotFoundError: the file does not exist.
    """
    from minilib.models.clip.official import Told

    text = os.fspath(name)
    mean, std = (None if v is None else tuple(v) for v in (image_mean, image_std))
    given = Told(vision_heads, text_heads, quick_gelu, mean, std)
    if text in MINI:
        if pretrained is not None:
            raise ValueError(
                f"{text} has one set of weights: leave out pretrained={pretrained!r}"
            )
        return _load_file(_path_of(text), given, trust).to(device)
    if Path(text).suffix in (*SUFFIXES, ".json"):
        return _load_file(Path(text), given, trust).to(device)
    import open_clip  # here: it takes longer to import than torch

    names, open_clip_name = open_clip.list_models(), text.replace("/", "-")
    if open_clip_name in names:
        if given != Told():
            raise ValueError(
                f"open_clip knows heads, activation, mean and std of {text}: leave "
                "them out"
            )
        return _load_open_clip(open_clip_name, pretrained).to(device)
    if Path(text).exists() or os.sep in text:
        return _load_file(Path(text), given, trust).to(device)
    near = difflib.get_close_matches(text, [*MINI, *names])
    hint = "see open_clip.list_models()"
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    raise ValueError(f"no CLIP is called {text!r} and no such file exists: {hint}")


def load_checkpoint(
    path: str | os.PathLike[str], trust: bool = False
) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, on the CPU, without running anything that
    the file contains; see :func:`minilib.weights.files.read`.

    Args:
        path: .safetensors, a file of ``torch.save`` (also a whole training file), the
            index of a checkpoint in several files, or a folder with one of them.
        trust: also accept a TorchScript archive, whose code torch may run.

    Raises:
        CheckpointError: the file is truncated, foreign, or holds more than tensors; the
            message says which.
        FileNotFoundError: the file does not exist.
    """
    return read(path, trust)[0]


def _path_of(name: str | os.PathLike[str]) -> Path:
    """Return the file of a checkpoint that ships, by name, or of any other, by path."""
    path = Path(name).expanduser()
    if isinstance(name, os.PathLike) or path.suffix or len(path.parts) > 1:
        return path
    path = FOLDER / f"{name}.safetensors"
    if path.is_file():
        status = path.stat()
        _check_against_card(path, status.st_size, status.st_mtime_ns)
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


@lru_cache
def _check_against_card(path: Path, size: int, changed: int) -> None:
    """Raise CheckpointError if a file that ships is not the one that its card is of.

    Asked once a process, as long as the file's size and time of change are the same.
    """
    expected = read_json(path.with_suffix(".json")).get("sha256")
    if expected is None:
        return
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{path} is not the file that its card {path.stem}.json is of (SHA-256 "
            f"{found[:12]}..., expected {expected[:12]}...): restore what the "
            "package ships, or load your own file by its path"
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
    from minilib.models.loading import load_strictly

    found = _model_class(metadata.get("format", ""))
    if found is None:
        raise CheckpointError(
            f"{path} was not written by minilib.weights.save: "
            f"its format is {metadata.get('format')!r}"
        )
    try:
        hint = get_type_hints(found.__init__)["config"]
        model = found(_rebuilt(hint, json.loads(metadata["config"])))
        return load_strictly(model, state, "its configuration").eval()
    except Exception as error:  # a damaged configuration fails anywhere
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{path} does not fit a {found.__name__}: {said}"
        ) from error


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


def _load_file(path: Path, given: Told, trust: bool) -> CLIP:
    """Return the CLIP in a file or folder.

    ``given`` takes precedence over what is told beside the file.
    """
    from minilib.models.clip import CLIP
    from minilib.models.clip.official import convert, infer_config

    path = weights_file(path)
    state, metadata = read(path, trust)
    kind = metadata.get("format", "")
    if kind != _CLIP and _model_class(kind) is not None:
        raise CheckpointError(
            f"{path} does not hold a CLIP but a {kind}: "
            "load it with minilib.weights.load"
        )
    if kind == _CLIP:
        if any(value is not None for value in vars(given).values()):
            raise ValueError(
                f"{path} carries its configuration: leave out heads, activation, mean "
                "and std"
            )
        model = _build(path, state, metadata)
        assert isinstance(model, CLIP)  # for the type checker: the format says so
        return model
    try:
        state = convert(state)
        widths = (_width(state, "visual."), _width(state, ""))
        told = given.or_else(_told_beside(path, widths))
        if path.suffix == ".safetensors" or not is_torchscript(path):
            _warn_of_guesses(path, told, state)  # archives are OpenAI's own
        config = infer_config(
            state, told.vision_heads, told.text_heads, told.quick_gelu is not False,
            told.image_mean, told.image_std,
        )  # fmt: skip
        return CLIP.from_config(config, state)
    except CheckpointError:
        raise
    except Exception as error:  # tensors of any shape may be called like CLIP's
        said = f"{type(error).__name__}: " * (not isinstance(error, ValueError))
        raise CheckpointError(
            f"{path} does not hold a CLIP: {said}{first_line(error)}"
        ) from error


def _width(state: Mapping[str, Tensor], tower: str) -> int:
    """Return the channels of a tower, 0 if the weights have none of it."""
    for name in ("positional_embedding", "attnpool.positional_embedding"):
        if tower + name in state:
            return state[tower + name].shape[-1]
    return 0


def _told_beside(path: Path, widths: tuple[int, int]) -> Told:
    """Return what the published configuration beside a file of weights tells."""
    from minilib.models.clip.official import (
        Told,
        told_by_hugging_face,
        told_by_open_clip,
    )

    hub, own = path.with_name("config.json"), path.with_name("open_clip_config.json")
    told: dict[Path, Told | None] = {}
    for file in (own, hub) if path.name.startswith("open_clip") else (hub, own):
        if not (content := read_json(file)):
            continue
        try:
            if file == own:
                told[file] = told_by_open_clip(content, widths)
            else:
                preprocessor = read_json(path.with_name("preprocessor_config.json"))
                told[file] = told_by_hugging_face(content, preprocessor, widths)
        except CheckpointError:
            raise
        except Exception as error:  # JSON of any shape
            raise CheckpointError(
                f"{file} does not describe a CLIP that {path.name} could be: "
                f"{first_line(error)}. Move it away if it belongs to other weights"
            ) from error
        if told[file] is None:
            warnings.warn(
                f"{file} describes another model than {path.name} holds: it is not "
                "followed",
                stacklevel=5,
            )
    known = Told()
    for found in told.values():
        known = known if found is None else known.or_else(found)
    return known


def _warn_of_guesses(path: Path, told: Told, state: Mapping[str, Tensor]) -> None:
    """Warn of what neither arguments, file nor files beside it tell."""
    from minilib.models.clip.official import infer_config

    guess = infer_config(state, told.vision_heads, told.text_heads)
    rows = (
        (told.quick_gelu, "its activation", "QuickGELU", "quick_gelu=False (or True)"),
        (
            told.vision_heads,
            "its image tower's heads",
            f"{guess.vision.heads}",
            "vision_heads",
        ),
        (
            told.text_heads,
            "its text tower's heads",
            f"{guess.text.heads}",
            "text_heads",
        ),
        (told.image_mean, "the mean of its pixels", "OpenAI's", "image_mean"),
        (told.image_std, "their standard deviation", "OpenAI's", "image_std"),
    )
    open_rows = [row[1:] for row in rows if row[0] is None]
    if open_rows:
        listed = ", ".join(f"{what} ({value} assumed)" for what, value, _ in open_rows)
        warnings.warn(
            f"{path} does not tell {listed}. Another value than the one that the "
            "weights were trained with gives wrong features without an error: pass "
            f"{', '.join(argument for _, _, argument in open_rows)}, or put the "
            "configuration that they were published with beside them",
            stacklevel=4,
        )


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
            f"could not get {name} {pretrained!r}: {first_line(error)}. Without a "
            "network, fetch the file elsewhere and pass its path as the name"
        ) from error
    return CLIP.from_open_clip(module)
