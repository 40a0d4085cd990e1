"""One element per line of code, so that a long line can wrap beneath its own
indentation in a narrow window.

`_static/minilib.css` does the wrapping; a wide window shows the lines as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pygments.formatters import HtmlFormatter
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge

Lines = Iterator[tuple[int, str]]


def spans(source: Lines) -> Lines:
    """Put every line of code into a span that knows how many spaces it starts with.

    Pygments hands over pairs: 1 and the HTML of one line with its newline, or 0 and
    HTML that is not code. Tags never cross the end of a line. The newline stays outside
    the span: what a reader selects and copies is the code as it was. A line with three
    spaces inside is a row of a printed table, whose columns wrapping would destroy.
    """
    for is_code, html in source:
        if not is_code:
            yield is_code, html
            continue
        line = html.removesuffix("\n")
        text = re.sub(r"<[^>]*>", "", line)
        indent = len(text) - len(text.lstrip(" "))
        style = f' style="--indent: {indent}"' if indent else ""
        kind = "code-line columns" if re.search(r"\S {3,}\S", text) else "code-line"
        yield is_code, f'<span class="{kind}"{style}>{line}</span>\n'


class LineFormatter(HtmlFormatter):
    """Sphinx's formatter of code, with a span round every line."""

    def wrap(self, source: Lines) -> Lines:
        """Put the lines into spans, then all of them into the block."""
        return super().wrap(spans(source))


def setup(app: Sphinx) -> dict[str, bool]:
    """Take the place of the formatter that every code block of the
    book goes through."""
    PygmentsBridge.html_formatter = LineFormatter
    return {"parallel_read_safe": True, "parallel_write_safe": True}
