"""What notebooks show beside numbers: the source of the code that runs, and
figures with alt text."""

from __future__ import annotations

import base64
import inspect
import io
import re
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ALT_PREFIX = "Figure: "
"""A figure's plain text is this and its alt text; ``python -m minilib publish`` finds
the alt text by it."""


def show(*objects: Any) -> Markdown:
    """Return the source of classes, functions or methods, each under its name and
    file, highlighted.

    What is shown is read from the very module that runs. Notebooks and the book
    highlight it in their own colours.

    Raises:
        ValueError: no object, or one that has no Python source
            (an instance, a built-in).
    """
    if not objects:
        raise ValueError(
            "nothing to show: pass classes, functions or methods, for example "
            "show(CLIP)"
        )
    return Markdown("\n\n".join(_section(thing) for thing in objects))


class ShownFigure:
    """A drawn figure with alt text: a PNG for eyes, words for everyone else."""

    def __init__(self, png: bytes, alt: str):
        """Keep the picture's bytes and the words that stand for it."""
        self.png = png
        self.alt = alt

    def __repr__(self) -> str:
        # Stable from run to run, so that tests of stored outputs can compare it.
        return ALT_PREFIX + self.alt

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict, dict]:
        data = {
            "image/png": base64.b64encode(self.png).decode("ascii"),
            "text/plain": repr(self),
        }
        return data, {"image/png": {"alt": self.alt}}


def figure(drawn: Figure | Axes, alt: str) -> ShownFigure:
    """Return a figure for display, at its own size, with words for those
    who cannot see it.

    Make it the last line of a cell. A figure made with pyplot is closed, so that it is
    not shown a second time.

    Args:
        drawn: a Figure, or Axes standing for theirs.
        alt: one sentence: what is drawn and what is to be seen in it.

    Raises:
        ValueError: no alt text, or not a figure.
    """
    whole = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
    if not isinstance(whole, Figure):
        raise ValueError(
            f"{type(drawn).__name__} is not a figure: expected a matplotlib Figure or "
            "Axes"
        )
    alt = " ".join(str(alt).split())
    if not alt:
        raise ValueError("alt is empty: say in one sentence what the figure shows")
    buffer = io.BytesIO()
    # Without the creation software's version the bytes depend on the picture alone.
    whole.savefig(
        buffer,
        format="png",
        dpi=whole.dpi,
        bbox_inches="tight",
        metadata={"Software": None},
    )
    if whole.canvas.manager is not None:
        from matplotlib import pyplot  # only a pyplot figure has a manager

        pyplot.close(whole)
    return ShownFigure(buffer.getvalue(), alt)


def _section(thing: Any) -> str:
    target = thing
    while isinstance(target, (property, partial, staticmethod, classmethod)):
        for inner in ("fget", "__func__", "func"):
            if hasattr(target, inner):
                target = getattr(target, inner)
                break
    target = inspect.unwrap(target) if callable(target) else target
    try:
        source = textwrap.dedent(inspect.getsource(target)).strip()
        module = inspect.getmodule(target)
        path = Path(inspect.getsourcefile(target) or "")
    except (TypeError, OSError) as error:
        raise ValueError(
            f"{thing!r} has no Python source: expected a class, a function or a "
            "method, not an instance"
        ) from error
    name = getattr(target, "__qualname__", None) or getattr(
        target, "__name__", repr(target)
    )
    package = getattr(module, "__name__", "__main__").split(".")
    # The path as it reads from the repository's root, whatever the machine.
    place = (
        "`" + "/".join(path.parts[-len(package) - (path.name == "__init__.py") :]) + "`"
    )
    if package == ["__main__"]:
        place = "this notebook"
    fence = "`" * max(
        3, 1 + max((len(run) for run in re.findall(r"`+", source)), default=0)
    )
    return f"**`{name}`** in {place}\n\n{fence}python\n{source}\n{fence}"
