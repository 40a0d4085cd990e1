"""Make the pages of claims from the ledger and the records before the book
reads its sources."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

# The book shows the ledger of the repository that it lies in, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from minilib.claims import write_pages  # noqa: E402


def make_pages(app: Sphinx, config: Any) -> None:
    """Write ``claims/`` beside the sources; it is not under version control."""
    source = Path(app.srcdir)
    write_pages(source / "claims", source / "results")


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before the table of contents is read."""
    app.connect("config-inited", make_pages, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
