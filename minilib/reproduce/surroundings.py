"""What a result may owe to its surroundings: commit, versions, machine, caches."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from minilib import __version__
from minilib.parameters import resolve_device
from minilib.reproduce.inputs import PACKAGE

_CONTROL_GROUP = Path("/sys/fs/cgroup")  # limits of a container, in version 2
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "open_clip_torch": "open_clip",
    "matplotlib": "matplotlib",
    "papermill": "papermill",
}
"""The packages whose versions are noted, and the names that import them."""


def source() -> dict[str, Any]:
    """Return where the code that runs comes from: "commit", and "uncommitted", the
    files of library and notebooks that are not as they were committed.

    Both are None where this package is not a checkout of its repository, but, say, an
    installed wheel: a folder that happens to lie in some other repository says nothing.
    """
    ours = _git("ls-files", "--error-unmatch", "minilib/__init__.py")
    commit = _git("rev-parse", "HEAD") if ours else None
    changed = _git("status", "--porcelain", "--", "minilib", "notebooks")
    if commit is None or changed is None:
        return {"commit": None, "uncommitted": None}
    # "XY name", or "XY old -> new"
    names = [line.strip().partition(" ")[2].strip() for line in changed.splitlines()]
    return {"commit": commit, "uncommitted": names}


def moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return in words how :func:`source` changed between two times; "" where it did
    not."""
    if before["commit"] != after["commit"]:
        return f"commit {_short(before['commit'])} became {_short(after['commit'])}"
    if before["uncommitted"] != after["uncommitted"]:
        return "files were changed in the working tree"
    return ""


def _short(commit: str | None) -> str:
    return commit[:8] if commit else "none"


def environment(
    device: str,
    described: Mapping[str, Any] | None = None,
    kernel: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return versions and machine as ``run.json`` keeps them.

    Args:
        device: the device that was asked for.
        described: what :func:`describe_device` says of it, if that is known.
        kernel: what the kernel said of itself (``minilib.reproduce.kernel``), whose
            versions are the ones that count.
    """
    versions = _versions() | _versions_of(kernel)
    return {
        "versions": versions,
        "kernel": None if kernel is None else kernel.get("executable"),
        "device": dict(describe_device(device) if described is None else described),
        "platform": platform.platform(),
        "cores": cores(),
    }


def foreign_kernel(kernel: Mapping[str, Any] | None) -> str:
    """Return in words how the kernel's environment differs from this one; "" where it
    does not."""
    if kernel is None:
        return "its kernel did not say which Python and packages it ran with"
    here, there = _versions(), _versions_of(kernel)
    other = [
        f"{name} {there[name]}, here {here[name]}"
        for name in there
        if there[name] != here.get(name)
    ]
    if kernel.get("prefix") == sys.prefix and not other:
        return ""
    return (
        f"its kernel is of another environment than this one, "
        f"{kernel.get('executable')}" + (f" ({'; '.join(other)})" if other else "")
    )


def fixed_threads() -> str:
    """Return the threads of each process of a run: what OMP_NUM_THREADS says, or Slurm;
    else one, so that a result does not depend on the machine or on other runs."""
    return (
        os.environ.get("OMP_NUM_THREADS")
        or os.environ.get("SLURM_CPUS_PER_TASK")
        or "1"
    )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "minilib": __version__,
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _versions_of(kernel: Mapping[str, Any] | None) -> dict[str, str | None]:
    said = {} if kernel is None else kernel
    return dict(said.get("versions") or {}) | (
        {"python": said["python"]} if "python" in said else {}
    )


def describe_device(device: str) -> dict[str, Any]:
    """Return which device was asked for, which one that is here, and its name.

    Raises:
        ValueError: the device is unknown or this machine has none such.
    """
    used = resolve_device(device)
    return {"asked": device, "used": str(used), "name": _device_name(used.type)}


def cores(control_group: Path = _CONTROL_GROUP) -> int:
    """Return how many processor cores this process, and its container, may use."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    quota, _, period = _read(control_group / "cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        count = min(count, max(1, int(quota) // int(period)))
    return count


def free_memory(control_group: Path = _CONTROL_GROUP) -> int:
    """Return the bytes of memory that are free, within a container's limit."""
    free = psutil.virtual_memory().available
    limit = _read(control_group / "memory.max")
    used = _read(control_group / "memory.current")
    if limit.isdecimal() and used.isdecimal():
        free = min(free, max(0, int(limit) - int(used)))
    return free


def cached_bytes() -> int:
    """Return the size of the folders into which torch, Hugging Face and
    open_clip download."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folders = {
        Path(os.environ.get("HF_HOME", home / "huggingface")),
        Path(os.environ.get("TORCH_HOME", home / "torch")),
        home / "clip",
    }
    return sum(bytes_under(folder) for folder in folders)


def bytes_under(folder: Path) -> int:
    """Return the size of all files under a folder, links not followed; 0
    if there is none."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue  # it was removed meanwhile
    return total


def _read(path: Path) -> str:
    """Return a file's text without the line's end; "" where there is no such file."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(PACKAGE.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _device_name(kind: str) -> str:
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name()
    if sys.platform == "linux":
        for line in (
            Path("/proc/cpuinfo")
            .read_text(encoding="utf-8", errors="replace")
            .splitlines()
        ):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
