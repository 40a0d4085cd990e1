"""Shown source and shown figures, in a notebook and in a book page built from it."""

from __future__ import annotations

import base64
import functools
import inspect
import io
import json
import re

import pytest
from matplotlib import pyplot
from PIL import Image

from minilib import display, plotting
from minilib.batch import Batch


def fence_of(markdown: str) -> str:
    return re.search(r"^(`{3,})python\n(.*?)\n\1$", markdown, re.M | re.S).group(2)


def test_show_holds_the_very_source_and_where_it_is():
    shown = display.show(Batch, Batch.to).data
    assert (
        "**`Batch`** in `minilib/batch.py`" in shown
        and "**`Batch.to`** in `minilib/batch.py`" in shown
    )
    assert fence_of(shown) == inspect.getsource(Batch).strip()
    method = fence_of(display.show(Batch.to).data)
    assert method.startswith("def to(self") and "\n    moved: dict" in method, (
        "a method is dedented"
    )


def test_show_sees_through_wrappers():
    plain = fence_of(display.show(plotting.new_axes).data)
    assert plain.startswith("@styled\ndef new_axes")
    assert "def new_axes" in display.show(functools.partial(plotting.new_axes, 3)).data
    assert "def icon" in display.show(_verdict().icon_property).data


def _verdict():
    from minilib.claims import Verdict

    class Holder:
        icon_property = Verdict.__dict__["icon"]

    return Holder


def test_show_of_source_with_fences_stays_one_block():
    assert display.show(fence_of).data.count("python\n") >= 1
    assert (
        fence_of(display.show(_with_fence).data)
        == inspect.getsource(_with_fence).strip()
    )


def _with_fence() -> str:
    return """
```python
not the end
```
"""


@pytest.mark.parametrize("thing", [3, "text", len, Batch(image=None)])
def test_show_refuses_what_has_no_source(thing):
    with pytest.raises(ValueError, match="no Python source"):
        display.show(thing)


def test_show_needs_an_object():
    with pytest.raises(ValueError, match="nothing to show"):
        display.show()


def test_figure_holds_a_png_and_its_words():
    ax = plotting.bars({"a": [0.5, 0.6]}, "accuracy")
    shown = display.figure(ax, alt="Two bars,\n  one of them higher.")
    assert repr(shown) == "Figure: Two bars, one of them higher."
    data, metadata = shown._repr_mimebundle_()
    assert (
        data["text/plain"] == repr(shown) and metadata["image/png"]["alt"] == shown.alt
    )
    size = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size
    assert 700 < size[0] < 820, "seven inches at 110 dots"
    assert display.figure(ax, alt="again").png == shown.png, (
        "the same figure gives the same bytes"
    )


def test_pyplot_figure_is_closed_once_shown():
    figure, _ = pyplot.subplots()
    display.figure(figure, alt="empty axes")
    assert pyplot.get_fignums() == []


def test_figure_refuses():
    ax = plotting.new_axes()
    with pytest.raises(ValueError, match="alt is empty"):
        display.figure(ax, alt=" ")
    with pytest.raises(ValueError, match="int is not a figure"):
        display.figure(3, alt="three")


def test_alt_text_reaches_the_book(tmp_path):
    """A published notebook's figure becomes an <img> with its alt text; shown
    source is highlighted."""
    from docutils.core import publish_string

    pytest.importorskip("myst_nb")
    from myst_nb.docutils_ import Parser

    from minilib.notebooks import add_alt_texts

    def output(thing):
        if hasattr(thing, "_repr_mimebundle_") and not hasattr(thing, "data"):
            data, metadata = thing._repr_mimebundle_()
        else:
            data, metadata = (
                {"text/markdown": thing.data, "text/plain": repr(thing)},
                {},
            )
        return {"output_type": "display_data", "data": data, "metadata": metadata}

    def cell(thing):
        return {
            "cell_type": "code", "execution_count": 1, "id": f"c{id(thing)}",
            "metadata": {}, "source": "x", "outputs": [output(thing)],
        }  # fmt: skip

    shown = display.figure(
        plotting.new_axes(2, 2), alt='Empty axes, "quoted" & <angled>.'
    )
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": [cell(shown), cell(display.show(fence_of))],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    add_alt_texts(notebook)
    settings = {
        "nb_execution_mode": "off",
        "nb_output_folder": str(tmp_path / "out"),
        "report_level": 2,
    }
    page = publish_string(
        json.dumps(notebook),
        parser=Parser(),
        writer_name="html5",
        settings_overrides={**settings, "halt_level": 2},
    ).decode()
    (image,) = re.findall(r"<img[^>]*>", page)
    assert 'alt="Empty axes, &quot;quoted&quot; &amp; &lt;angled&gt;."' in image
    assert re.search(r'<span class="k\w*">def</span>', page)
