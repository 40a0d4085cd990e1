"""The parameters that every notebook takes, checked before anything runs."""

from __future__ import annotations

import math
import operator
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

PROFILES = ("quick", "full", "photos", "paper")
"""Seconds on a laptop; the numbers that the book quotes; real photographs; the protocol of the paper."""


@dataclass(frozen=True)
class Run:
    """Checked parameters of one notebook run."""

    profile: str
    """One of :data:`PROFILES`."""
    seed: int
    """Seed from which every generator of the run is made."""
    device: torch.device
    """The device that "auto" stood for."""
    out: Path
    """Absolute path of an existing, writable folder for results."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """The chapter's own parameters, read-only."""


def check(*, profile: str, seed: int, device: str = "auto", out: str | os.PathLike[str], **own: Any) -> Run:
    """Check a notebook's parameters and make the folder ``out``; thread settings stay as they are.

    A relative ``out`` is taken from the folder that the environment variable ``MINILIB_OUT_ROOT`` names, else from the
    repository's root, so that a run does not depend on the folder it was started in; without a repository (an installed
    wheel) it is taken from the working directory.

    Raises:
        ValueError: a value is unknown, of the wrong type or out of range, the device is not there, or ``out``
            cannot be written. The message names the value, what was expected and how to mend it.
    """
    return Run(
        profile=check_profile(profile),
        seed=_check_seed(seed),
        device=resolve_device(device),
        out=writable_folder(out),
        own=MappingProxyType({name: _check_own(name, value) for name, value in own.items()}),
    )


def repository() -> Path | None:
    """Return the root of the repository that this package lies in, or None for an installed wheel."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "notebooks").is_dir() else None


def check_profile(profile: str) -> str:
    """Return ``profile`` if it is one of :data:`PROFILES`, else raise ValueError."""
    if profile not in PROFILES:
        raise ValueError(f"profile={profile!r} is unknown: expected one of {', '.join(PROFILES)}")
    return profile


def resolve_device(device: str) -> torch.device:
    """Return the device that a name stands for; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: the name is unknown or this machine has no such device.
    """
    import torch  # here, so that programs that only start runs do not wait for it

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    expected = "expected auto, cpu, cuda, cuda:<number> or mps"
    if not isinstance(device, str):
        raise ValueError(f"device={device!r} is {type(device).__name__}: {expected}")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is unknown: {expected}") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise ValueError(
                f"device={device!r} is not there: this machine has {count} CUDA device(s); try device='auto'"
            )
    elif resolved.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("device='mps' is not there: this machine has no Metal GPU; try device='auto'")
    elif resolved.type != "cpu":
        raise ValueError(f"device={device!r} is not supported: {expected}")
    return resolved


def writable_folder(out: str | os.PathLike[str]) -> Path:
    """Create the folder ``out`` if needed and return its absolute path.

    Raises:
        ValueError: it cannot be created, is a file, or does not take a new file.
    """
    if not isinstance(out, (str, os.PathLike)) or not str(out).strip():
        raise ValueError(f"out={out!r} is not a folder's name: expected text such as out='runs/try'")
    path = Path(out).expanduser()
    # The tests of the notebooks set the variable, to leave alone what somebody keeps in runs/.
    folder = Path(os.environ.get("MINILIB_OUT_ROOT") or repository() or Path.cwd()) / path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"cannot write to the folder {str(out)!r} ({reason}): "
            "choose a folder that exists or can be made, with room and write permission"
        ) from error
    return folder.resolve()


def _check_seed(seed: int) -> int:
    try:
        if isinstance(seed, bool):
            raise TypeError
        value = operator.index(seed)
    except TypeError:
        kind = type(seed).__name__
        raise ValueError(f"seed={seed!r} is {kind}: expected a whole number such as 0") from None
    if not 0 <= value < 2**32:
        raise ValueError(f"seed={seed!r} is out of range: expected 0 to 4294967295")
    return value


def _check_own(name: str, value: Any) -> Any:
    """Refuse what a command line may make of a number: text (YAML reads 1e-4 so) or a non-finite float."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r} is not finite: expected an ordinary number")
    if isinstance(value, str):
        text = value.strip().lower()
        if text in ("true", "false"):
            raise ValueError(f"{name}={value!r} is text: expected {text.title()} without quotes")
        if text in ("none", "null"):
            raise ValueError(f"{name}={value!r} is text: expected None without quotes")
        try:
            number = float(text)
        except ValueError:
            return value
        plain = np.format_float_positional(number, trim="-")
        raise ValueError(
            f"{name}={value!r} is text: expected a number. Write {name} = {plain} without quotes, "
            f"or `papermill -p {name} {plain}` (papermill's -y reads 1e-4 as text)"
        )
    return value
