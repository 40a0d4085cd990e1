"""minilib: an executable study of ten vision-language papers."""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"
__all__ = ["figure", "load_clip", "show"]

_HOMES = {
    "figure": "minilib.display",
    "show": "minilib.display",
    "load_clip": "minilib.weights",
}


def __getattr__(name: str) -> Any:
    """Import the few names of the top level when they are first used, so that
    ``import minilib`` stays light."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'minilib' has no attribute {name!r}; it offers "
            f"{', '.join(__all__)}"
        )
    return getattr(importlib.import_module(_HOMES[name]), name)


# a run of minilib.reproduce asks on which files its result depends
if os.environ.get("MINILIB_OPENED"):
    from minilib import opened

    opened.note(os.environ["MINILIB_OPENED"])
