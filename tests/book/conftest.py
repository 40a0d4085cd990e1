"""The built book, made once, and a browser to look at it with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Site:
    """A built book: where it lies, what the build said, and its pages."""

    root: Path
    returncode: int
    log: str

    @cached_property
    def pages(self) -> dict[str, BeautifulSoup]:
        """Parsed pages by path within the site."""
        paths = [
            p for p in sorted(self.root.rglob("*.html")) if "_static" not in p.parts
        ]
        texts = {str(p.relative_to(self.root)): p.read_text("utf-8") for p in paths}
        return {
            name: BeautifulSoup(text, "html.parser") for name, text in texts.items()
        }

    @property
    def articles(self) -> dict[str, BeautifulSoup]:
        """The pages that somebody wrote: not the index, the search
        page or a redirect."""
        return {
            name: page
            for name, page in self.pages.items()
            if page.select_one("article h1")
        }


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Build the book as `make book` does, into a folder of its own."""
    out = tmp_path_factory.mktemp("book")
    program = Path(sys.executable).with_name("jupyter-book")
    command = [
        program,
        "build",
        ROOT / "book",
        "-n",
        "-W",
        "--keep-going",
        "--path-output",
        out,
    ]
    build = subprocess.run(command, capture_output=True, text=True, cwd=out)
    made = Site(out / "_build" / "html", build.returncode, build.stdout + build.stderr)
    assert "intro.html" in made.articles, (
        f"there is no book to test:\n{made.log[-4000:]}"
    )
    return made


@pytest.fixture(scope="session")
def chromium() -> str:
    """A headless browser's path; tests that need one are skipped
    where there is none."""
    names = [
        os.environ.get("CHROMIUM", ""),
        "chromium",
        "chromium-browser",
        "google-chrome",
        "chrome",
    ]
    found = next(
        (path for name in names if name and (path := shutil.which(name))), None
    )
    if not found:
        pytest.skip(
            "layout and math can only be judged in a browser: apt install chromium, "
            "or set CHROMIUM to one"
        )
    return found


# Runs in the page once it is loaded and its math is set, and tells the frame around it
# what it saw. Cells that are folded are opened first: their code is read too.
PROBE = """
<script>
addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  document.querySelectorAll("details").forEach(e => e.open = true);
  const root = document.documentElement, wide = [];
  for (const e of document.querySelectorAll(".bd-article *"))
    if (e.getBoundingClientRect().right > root.clientWidth + 1) {
      let box = e;  // what scrolls by itself may be wider
      const open = () => !/auto|scroll|hidden/.test(getComputedStyle(box).overflowX);
      while (box !== root && open()) box = box.parentElement;
      if ([root, document.body].includes(box)) wide.push(e.tagName + "." + e.className);
    }
  const code = [];  // blocks of code and of printed text that need a scroll bar
  for (const e of document.querySelectorAll(".bd-article pre"))
    if (e.scrollWidth > e.clientWidth) {
      const lines = e.textContent.split("\\n");
      const longest = lines.reduce((a, b) => b.length > a.length ? b : a);
      code.push({line: longest.trim().slice(0, 60), columns: longest.length,
                 needs: e.scrollWidth, has: e.clientWidth});
    }
  const sizes = [...document.querySelectorAll(".bd-article pre")].map(
    e => parseFloat(getComputedStyle(e).fontSize));
  const seen = {
    code, blocks: sizes.length, smallest: Math.min(...sizes),
    theme: root.dataset.theme, width: root.clientWidth, scroll: root.scrollWidth,
    wide: wide.slice(0, 5),
    math: document.querySelectorAll("mjx-container").length,
    broken: [...document.querySelectorAll("mjx-merror, [data-mjx-error]")].map(
      e => e.textContent),
    raw: document.querySelectorAll(".math:not(:has(mjx-container))").length,
    blank: [...document.images].filter(i => i.complete && !i.naturalWidth).map(
      i => i.getAttribute("src")),
    loaded: performance.getEntriesByType("resource").map(r => r.name).filter(
      n => /^(http|ws|ftp)/.test(n)),
  };
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>
"""
# Chromium's own windows are never narrower than 500 pixels; a frame inside one may be.
FRAME = """<!doctype html><title>frame</title>
<script>
addEventListener("message", e => document.querySelector("#probe").textContent = e.data);
</script>
<iframe src="{page}" style="width: {width}px; height: 1600px; border: 0"></iframe>
<pre id="probe"></pre>
"""


@pytest.fixture(scope="session")
def browse(
    site: Site, chromium: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """``browse(page, width, theme)`` returns what a browser saw.

    ``shot=path`` also takes a picture; ``extra=html`` is put at the end of the article.
    """
    profile = tmp_path_factory.mktemp("browser")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-sync "
    )
    flags += (
        "--disable-background-networking --disable-component-update "
        "--disable-dev-shm-usage "
    )
    flags += "--virtual-time-budget=10000 --hide-scrollbars"
    base = [chromium, *flags.split(), f"--user-data-dir={profile}"]

    def look(
        name: str,
        width: int,
        theme: str = "light",
        shot: Path | None = None,
        extra: str = "",
    ) -> dict[str, Any]:
        source = (site.root / name).read_text("utf-8")
        choice = "".join(
            f'localStorage.setItem("{key}", "{theme}");' for key in ("mode", "theme")
        )
        source = source.replace("<head>", f"<head><script>{choice}</script>", 1)
        source = source.replace("</article>", extra + "</article>", 1)
        # Beside the page itself, so that every relative address means the same.
        page = (site.root / name).with_suffix(f".probe-{width}-{theme}.html")
        page.write_text(source.replace("</body>", PROBE + "</body>", 1), "utf-8")
        frame = page.with_suffix(".frame.html")
        frame.write_text(FRAME.format(page=page.name, width=width), "utf-8")
        try:
            dump = [*base, "--window-size=1400,1700", "--dump-dom", frame.as_uri()]
            run = subprocess.run(dump, capture_output=True, text=True, timeout=120)
            note = BeautifulSoup(run.stdout, "html.parser").select_one("pre#probe")
            assert note and note.text, (
                f"the browser did not get through {name}: {run.stderr[-500:]}"
            )
            if shot:
                take = [
                    *base,
                    f"--window-size={width},1600",
                    f"--screenshot={shot}",
                    page.as_uri(),
                ]
                subprocess.run(take, capture_output=True, timeout=120, check=True)
        finally:
            page.unlink()
            frame.unlink()
        return json.loads(note.text)

    return look
