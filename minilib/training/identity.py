"""What a training is of, so that a checkpoint of one is not taken for another's.

The optimiser's values say little: the same ones train on other data. :func:`identify`
therefore looks at what really goes in: the model's class, configuration, shapes and
initial weights, the first batch, and the code. Nobody has to remember to say it.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minilib.files import differences, digest

_SAMPLES = 64  # values of each tensor that are compared
_TOLERANCE = 1e-3  # devices and numbers of threads differ by far less, others by more


@dataclass(frozen=True)
class Identity:
    """What a training is of."""

    words: Mapping[str, str] = field(default_factory=dict)
    """By name what must be equal."""
    numbers: Mapping[str, list[float]] = field(default_factory=dict)
    """By name samples that must be equal but for rounding: another device or number of
    threads changes their last digits."""

    def differing(self, other: Identity) -> list[str]:
        """Return the names, sorted, in which the other training is another."""
        names = set(differences(self.words, other.words))
        for name in set(self.numbers) | set(other.numbers):
            if not _alike(self.numbers.get(name, []), other.numbers.get(name, [])):
                names.add(name)
        return sorted(names)

    def to_data(self) -> dict[str, Any]:
        """Return the identity as a checkpoint keeps it."""
        return {"words": dict(self.words), "numbers": dict(self.numbers)}


def identify(
    model: nn.Module,
    batches: Callable[[int], Any],
    functions: Iterable[Callable[..., Any] | None],
    told: Mapping[str, str],
) -> Identity:
    """Return what a training is of.

    Args:
        model: as it is before the first step.
        batches: step -> batch; the first batch is made, and the random state is left
            as it was.
        functions: the other functions that decide the result, such as the loss.
        told: what the caller knows besides: paper, profile, seed, data, weights.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        words, numbers = _contents(batches(0))
    state = model.state_dict()
    shapes = [[name, list(t.shape), str(t.dtype)] for name, t in state.items()]
    kind = type(model)
    about = [kind.__module__, kind.__qualname__, shapes]
    about.append(repr(getattr(model, "config", None)))
    weights = [value for tensor in state.values() for value in _samples(tensor)]
    return Identity(
        {
            **told,
            "model": digest(about),
            "first batch": digest(words),
            "code": digest(_sources([kind, batches, *functions])),
        },
        {"initial weights": weights, "first batch": numbers},
    )


def weights_digest(model: nn.Module) -> str:
    """Return a digest of a model's class and of every bit of its state: for
    :func:`minilib.files.kept_rows` and the like."""
    kind = type(model)
    parts = hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}".encode())
    for name, tensor in model.state_dict().items():
        parts.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        parts.update(plain.view(torch.uint8).numpy().tobytes())
    return parts.hexdigest()[:16]


def _contents(batch: Any) -> tuple[list[Any], list[float]]:
    """Return the words, whole numbers and shapes in a batch, and samples of its
    tensors."""
    if batch is None or isinstance(batch, (str, int)):
        return [batch], []
    if isinstance(batch, float):
        return [], [batch]
    if isinstance(batch, Tensor):
        return [list(batch.shape), str(batch.dtype)], _samples(batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        parts = [getattr(batch, part.name) for part in fields(batch)]
    elif isinstance(batch, Mapping):
        parts = [part for pair in batch.items() for part in pair]
    elif isinstance(batch, (list, tuple)):
        parts = list(batch)
    else:
        return [type(batch).__qualname__], []
    words: list[Any] = [len(parts)]
    numbers: list[float] = []
    for part in parts:
        more_words, more_numbers = _contents(part)
        words += more_words
        numbers += more_numbers
    return words, numbers


def _samples(tensor: Tensor) -> list[float]:
    """Return values from all over a tensor, to six digits."""
    flat = tensor.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLES)
    values = flat[::step][:_SAMPLES].double().cpu() if flat.numel() else flat
    return [float(f"{value:.6g}") for value in values.tolist()]


def _alike(one: list[float], other: list[float]) -> bool:
    if len(one) != len(other):
        return False
    pairs = [
        (a, b)
        for a, b in zip(one, other, strict=True)
        if not (a == b or math.isnan(a) and math.isnan(b))
    ]
    if not pairs:
        return True
    apart = math.fsum(abs(a - b) for a, b in pairs)
    size = math.fsum(abs(a) for a in one if math.isfinite(a))
    return math.isfinite(apart) and apart <= _TOLERANCE * size


def _sources(things: Iterable[Any]) -> list[str]:
    """Return a digest of each source file in which something is defined, formatting and
    comments aside; what was typed into a notebook has none, and installed packages do
    not count."""
    paths = set()
    for thing in things:
        try:
            found = inspect.getsourcefile(inspect.unwrap(thing))
        except TypeError:  # an object that is called, such as a stream of batches
            try:
                found = inspect.getsourcefile(type(thing))
            except TypeError:
                continue
        installed = "site-packages" in Path(found or "").parts
        if found and not installed and Path(found).is_file():
            paths.add(Path(found))
    texts = (path.read_text(encoding="utf-8") for path in sorted(paths))
    return [digest(ast.dump(ast.parse(text))) for text in texts]
