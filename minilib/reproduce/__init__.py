"""Run chapters in batches, each run in a process of its own, and run again
only what changed.

``runs/<chapter>/<profile>/seed<k>/`` holds the executed ``notebook.ipynb``,
``result.json`` and ``metrics.jsonl``, what else the notebook wrote (checkpoints), and
last of all ``run.json``: its presence means that the run finished. It says how the run
was made and holds digests of all that went in (the notebook's code, the files of the
library that it opened, parameters, data), so that a later call can tell whether the
result still stands. An unfinished run leaves ``attempt.json`` (its inputs),
``progress.json`` (how far it was) or ``failure.json`` (what went wrong).

``jobs`` says what is to be run, ``inputs`` what a result depends on, ``running`` makes
one run, ``batch`` many, ``executors`` where, ``costs`` what to expect, ``views`` what
is seen of it, ``commands`` the command line.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "Job",
    "Outcome",
    "execute",
    "library_digests",
    "plan",
    "run",
    "what_changed",
]

_HOMES = {
    "Job": "jobs",
    "Outcome": "running",
    "execute": "batch",
    "library_digests": "inputs",
    "plan": "jobs",
    "run": "running",
    "what_changed": "jobs",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the process of a single run needs
    few of the modules."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'minilib.reproduce' has no attribute {name!r}; it offers "
            f"{', '.join(__all__)}"
        )
    return getattr(importlib.import_module(f"minilib.reproduce.{_HOMES[name]}"), name)
