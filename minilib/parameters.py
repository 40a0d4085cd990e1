"""The parameters that every notebook takes, checked before anything runs."""

from __future__ import annotations

import operator
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROFILES = ("quick", "full", "photos", "paper")
"""Seconds on a laptop; the numbers that the book quotes; real photographs; the
protocol of the paper."""


@dataclass(frozen=True)
class Parameters:
    """Checked parameters of one notebook run."""

    profile: str
    """One of :data:`PROFILES`."""
    seed: int
    """Seed from which every generator of the run is made."""
    device: torch.device
    """The device that "auto" stands for."""
    out: Path
    """Absolute path of an existing, writable folder for results."""
    data: Path | None = None
    """Absolute path of an existing folder or file with real data; None = not given."""
    weights: str = ""
    """Name or file of weights, as the chapter understands it; "" = not given."""
    devices: int = 1
    """Processes of the main training, one per GPU (or CPU processes)."""

    @property
    def photos(self) -> bool:
        """Whether the run is on real photographs."""
        return self.profile == "photos"

    @property
    def data_path(self) -> Path:
        """The folder or file of real data.

        Raises:
            ValueError: none was given.
        """
        if self.data is None:
            raise ValueError("data='' names nothing: pass data='FOLDER'")
        return self.data

    @property
    def weights_file(self) -> Path:
        """Absolute path of the existing file that ``weights`` names.

        Raises:
            ValueError: no weights were given.
            FileNotFoundError: there is no such file.
        """
        if not self.weights:
            raise ValueError("weights='' names no file: pass weights='FILE'")
        path = from_repository(self.weights)
        if not os.path.isfile(path):  # False, too, where the name is too long
            raise FileNotFoundError(
                f"weights={self.weights!r}: there is no file {path}"
            )
        return path


def check(
    *,
    profile: str,
    seed: int,
    device: str | torch.device = "auto",
    out: str | os.PathLike[str],
    data: str | os.PathLike[str] = "",
    weights: str = "",
    devices: int = 1,
) -> Parameters:
    """Check a notebook's parameters and make the folder ``out``.

    Thread settings stay as they are. Relative paths are taken from the repository's
    root, so that a run does not depend on the folder it was started in (see
    :func:`from_repository`); for ``out``, the folder that the environment variable
    ``MINILIB_OUT_ROOT`` names takes precedence.

    Raises:
        ValueError: a value is unknown, of the wrong type or out of range, the device is
            not there, or ``out`` cannot be written. The message names the value, what
            was expected and how to mend it.
        FileNotFoundError: ``data`` names nothing that exists or can be read.
    """
    return Parameters(
        profile=check_profile(profile),
        seed=_check_seed(seed),
        device=resolve_device(device),
        out=writable_folder(out),
        data=_existing("data", data),
        weights=_check_text("weights", weights),
        devices=_check_devices(devices),
    )


def from_repository(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` as an absolute path: a relative one is taken from the
    repository's root.

    A notebook's kernel starts in a folder of its own, so the working directory means
    nothing to a user. Without a repository (an installed wheel) it is the working
    directory after all. ``~`` is expanded.
    """
    return (repository() or Path.cwd()) / os.path.expanduser(path)


def repository() -> Path | None:
    """Return the root of the repository that this package lies in, or None for an
    installed wheel."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "notebooks").is_dir() else None


def check_profile(profile: str) -> str:
    """Return ``profile`` if it is one of :data:`PROFILES`, else raise ValueError."""
    if profile not in PROFILES:
        raise ValueError(
            f"profile={profile!r} is unknown: expected one of {', '.join(PROFILES)}"
        )
    return profile


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that a name stands for; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: the name is unknown or this machine has no such device.
    """
    import torch  # here, so that programs that only start runs do not wait for it

    device = str(device) if isinstance(device, torch.device) else device
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
                f"device={device!r} is not there: this machine has {count} CUDA "
                "device(s); try device='auto'"
            )
    elif resolved.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(
                "device='mps' is not there: this machine has no Metal GPU; try "
                "device='auto'"
            )
    elif resolved.type != "cpu":
        raise ValueError(f"device={device!r} is not supported: {expected}")
    return resolved


def writable_folder(out: str | os.PathLike[str]) -> Path:
    """Create the folder ``out`` if needed and return its absolute path.

    Raises:
        ValueError: it cannot be created, is a file, or does not take a new file.
    """
    if not isinstance(out, (str, os.PathLike)) or not str(out).strip():
        raise ValueError(
            f"out={out!r} is not a folder's name: expected text such as out='runs/try'"
        )
    folder = results_path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"cannot write to the folder {str(out)!r} ({reason}): "
            "choose a folder that exists or can be made, with room and write permission"
        ) from error
    return folder.resolve()


def results_path(out: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder for results, which need not exist: a
    relative one is taken from the repository's root, or from the folder that the
    environment variable ``MINILIB_OUT_ROOT`` names."""
    # The tests of the notebooks set the variable, to leave alone what somebody
    # keeps in runs/.
    root = os.environ.get("MINILIB_OUT_ROOT") or repository() or Path.cwd()
    return Path(root) / os.path.expanduser(out)


def _check_seed(seed: int) -> int:
    try:
        if isinstance(seed, bool):
            raise TypeError
        value = operator.index(seed)
    except TypeError:
        kind = type(seed).__name__
        raise ValueError(
            f"seed={seed!r} is {kind}: expected a whole number such as 0"
        ) from None
    if not 0 <= value < 2**32:
        raise ValueError(f"seed={seed!r} is out of range: expected 0 to 4294967295")
    return value


def _existing(name: str, value: str | os.PathLike[str]) -> Path | None:
    text = _check_text(name, value)
    if not text:
        return None
    path = from_repository(text)
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a link loop
        if isinstance(error, FileNotFoundError):
            reason = f"there is no {path}"
        else:
            reason = f"{path} cannot be read ({getattr(error, 'strerror', error)})"
        raise FileNotFoundError(
            f"{name}={text!r}: {reason}; give an existing folder or file"
        ) from error


def _check_text(name: str, value: str | os.PathLike[str]) -> str:
    """Return the text of a path or name; what a command line makes of
    "None" is refused."""
    if not isinstance(value, (str, os.PathLike)):
        kind = type(value).__name__
        raise ValueError(f"{name}={value!r} is {kind}: expected text, or '' for none")
    text = os.fspath(value).strip()
    if text.lower() in ("none", "null"):
        raise ValueError(f"{name}={text!r} is text: for none, write {name} = ''")
    return text


def _check_devices(devices: int) -> int:
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(f"devices={devices!r}: expected a whole number, 1 or more")
    return devices
