"""Other people's weights: what a file holds, what its names say, and strict loading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
SHOWN = 3
"""Names that an error lists of each kind."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Entries under which trainings keep the weights, in files of their own making."""


def unwrapped(content: Mapping[str, Any], *prefixes: str) -> dict[str, Tensor]:
    """Return the flat weights, in float32, of whatever a training file holds.

    Such files keep the weights under one of :data:`WRAPPERS`, beside the epoch and the
    optimiser. Parallel training, ``torch.compile`` and Lightning put ``module.``,
    ``_orig_mod.`` and a name of their own in front of every weight.

    Args:
        content: names to tensors, or the file that has them as an entry.
        prefixes: further ones to remove, such as Lightning's ``net.``.

    Raises:
        ValueError: there is not a single tensor in it.
    """
    state = {}
    for key, value in entries(content).items():
        name = _bare(key, ("module.", *prefixes))
        state[name] = value.float() if value.is_floating_point() else value
    return state


def entries(content: Any) -> dict[str, Tensor]:
    """Return the weights in whatever a training file holds, under the file's own names.

    Raises:
        ValueError: there is not a single tensor in it.
    """
    inside = content
    for _ in WRAPPERS:  # however they are nested
        inner = _wrapped(inside)
        inside = inside if inner is None else inner
    if not isinstance(inside, Mapping):
        kind = type(inside).__name__
        raise ValueError(f"weights are a mapping of names to tensors, not a {kind}")
    state = {
        key: value
        for key, value in inside.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not state:
        raise ValueError(
            f"there are no weights among {sorted(map(str, inside))[:SHOWN]}: pass the "
            "file's content, or its entry 'state_dict' or 'model'"
        )
    return state


def _wrapped(content: Any) -> Mapping[str, Any] | None:
    """Return the mapping with weights inside a training file, None if there is none."""
    for name in WRAPPERS:
        inner = content.get(name) if isinstance(content, Mapping) else None
        if isinstance(inner, Mapping) and (
            any(isinstance(value, Tensor) for value in inner.values())
            or _wrapped(inner) is not None
        ):
            return inner
    return None


def _bare(key: str, prefixes: tuple[str, ...]) -> str:
    """Remove all prefixes, however they are nested."""
    key = key.replace("_orig_mod.", "")
    while key.startswith(prefixes):
        key = key[len(next(p for p in prefixes if key.startswith(p))) :]
    return key


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose names start with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def numbered(state: Iterable[str], pattern: str) -> int:
    """Count the distinct values of the group of ``pattern`` at the names' start.

    >>> numbered(["blocks.0.bias", "blocks.0.weight", "blocks.1.bias"], r"blocks\\.(.)")
    2
    """
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def require(state: Mapping[str, Tensor], names: Iterable[str], what: str) -> None:
    """Raise ValueError for the first of ``names`` that the weights lack.

    Args:
        state: the weights.
        names: entries that the configuration is read from.
        what: the model that they should be of: "a CLIP".
    """
    for name in names:
        if name not in state:
            raise ValueError(
                f"these are not the weights of {what}: {name!r} is missing "
                f"(the first names are {sorted(state)[:SHOWN]})"
            )


def load_strictly(model: Model, state: Mapping[str, Tensor], what: str) -> Model:
    """Copy ``state`` into ``model`` and return it; every entry must have its place.

    Args:
        model: takes the weights.
        state: names to tensors.
        what: what the model is, for the message: "a CLIP".

    Raises:
        ValueError: names what is missing, unknown or of another shape, and what is not
            made of finite real numbers.
    """
    wanted = model.state_dict()
    misshapen = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if wanted[key].shape != state[key].shape
    ]
    faults = {
        "missing": sorted(wanted.keys() - state.keys()),
        "unknown": sorted(state.keys() - wanted.keys()),
        "of another shape": misshapen,
    }
    if any(faults.values()):
        listed = []
        for fault, names in faults.items():
            shown = ", ".join(names[:SHOWN] + ["..."] * (len(names) > SHOWN))
            listed += [f"{len(names)} {fault} ({shown})"] if names else []
        raise ValueError(f"the weights do not fit {what}: {'; '.join(listed)}")
    for key, value in wanted.items():
        if value.is_floating_point() and (fault := _unreal(state[key])):
            raise ValueError(f"the weights do not fit {what}: {key} {fault}")
    model.load_state_dict(dict(state))
    return model


def _unreal(value: Tensor) -> str:
    """Say why a tensor is not a weight; "" if it is one."""
    if not value.is_floating_point():
        return f"is of the type {value.dtype}, expected floating-point numbers"
    if value.layout is not torch.strided or value.is_meta:
        return f"is not a plain tensor but {value.layout} on {value.device}"
    if not value.isfinite().all():
        count = int((~value.isfinite()).sum())
        return f"has {count:,} of {value.numel():,} values that are nan or infinite"
    return ""
