"""Make the pages of claims from the ledger and the records before the book
reads its sources."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ConfigError

# The book shows the ledger of the repository that it lies in, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from minilib.claims import Repository, write_pages  # noqa: E402


def make_pages(app: Sphinx, config: Any) -> None:
    """Write ``claims/`` beside the sources; it is not under version control.

    Raises:
        ConfigError: the ledger or a record is damaged, records do not belong together,
            or there are none.
    """
    source = Path(app.srcdir)
    results = source / "results"
    try:
        if not results.is_dir():
            raise ValueError(f"there is no folder of records {results}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # what is not judged, and why
            write_pages(source / "claims", results, _repository(config))
    except (OSError, ValueError, UserWarning) as error:
        raise ConfigError(f"no pages of claims: {error}") from error


def _repository(config: Any) -> Repository | None:
    """Return where the pages link to: the repository that `_config.yml` names."""
    options = getattr(config, "html_theme_options", None) or {}
    url = options.get("repository_url")
    return Repository(url, options.get("repository_branch") or "main") if url else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before the table of contents is read."""
    app.connect("config-inited", make_pages, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
