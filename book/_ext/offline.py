"""Keep the pages free of addresses that a script could load from.

Jupyter Book always enables sphinx-thebe, which writes the address of a remote script
into every page even where live code is switched off, as it is here. This extension
takes what it wrote out again.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def _is_thebe(tag: Any) -> bool:
    return "thebe" in f"{tag} {getattr(tag, 'attributes', '')}".lower()


def drop_tags(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Remove sphinx-thebe's script and style tags from the head of a page."""
    for kind in ("script_files", "css_files"):
        context[kind] = [tag for tag in context.get(kind, []) if not _is_thebe(tag)]


def drop_nodes(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Remove sphinx-thebe's settings from the end of a page."""
    for node in list(doctree.children):
        if isinstance(node, nodes.raw) and re.search(
            "x-thebe-config|kernelName = ", node.astext()
        ):
            doctree.remove(node)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect late, after every extension has added its own."""
    app.connect("html-page-context", drop_tags, priority=990)
    app.connect("doctree-resolved", drop_nodes, priority=990)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
