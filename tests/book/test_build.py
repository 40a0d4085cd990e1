"""The built pages: no warning, nothing from other hosts, no dead link, no picture
without a description."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup

if TYPE_CHECKING:
    from conftest import Site

ROOT = Path(__file__).resolve().parents[2]

REMOTE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
LOADING_RELS = {
    "stylesheet",
    "preload",
    "prefetch",
    "modulepreload",
    "icon",
    "manifest",
}
LOADING_RELS |= {"preconnect", "dns-prefetch"}


def loaded(page: BeautifulSoup) -> list[str]:
    """Addresses that a browser fetches by itself when it shows the page."""
    found = []
    for tag in page.select(
        "script, img, iframe, source, video, audio, embed, object, input, track"
    ):
        found += [tag.get(key, "") for key in ("src", "data", "poster")]
        found += [
            part.split()[0] for part in tag.get("srcset", "").split(",") if part.strip()
        ]
    for tag in page.select("link[href]"):
        if LOADING_RELS & set(tag.get("rel", [])):
            found.append(tag["href"])
    return [address for address in found if address]


def test_the_build_is_free_of_warnings(site: Site) -> None:
    assert site.returncode == 0, site.log[-4000:]
    assert (site.root / "index.html").is_file()


def test_every_notebook_and_every_page_is_in_the_book(site: Site) -> None:
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    listed = {toc["root"]} | {
        entry["file"] for part in toc["parts"] for entry in part["chapters"]
    }
    there = {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    there |= {path.stem for path in (ROOT / "book").glob("*.md")}
    assert listed == there
    assert {f"{name}.html" for name in listed} <= set(site.pages)


def test_pages_load_nothing_from_other_hosts(site: Site) -> None:
    for name, page in site.pages.items():
        remote = [address for address in loaded(page) if REMOTE.match(address)]
        assert not remote, f"{name} loads {remote}"
        for script in page.select("script:not([src])"):
            assert not re.search(r"https?://", script.text), (
                f"{name} holds {script.text[:200]}"
            )


def test_styles_load_nothing_from_other_hosts(site: Site) -> None:
    styles = {
        str(p.relative_to(site.root)): p.read_text("utf-8")
        for p in site.root.rglob("*.css")
    }
    assert "_static/minilib.css" in styles
    for name, page in site.pages.items():
        styles[name] = "\n".join(tag.text for tag in page.select("style"))
        styles[name] += "\n".join(tag["style"] for tag in page.select("[style]"))
    remote = re.compile(r"(?:url\(|@import)\s*(?:url\()?\s*['\"]?(?:https?:)?//")
    for name, text in styles.items():
        assert not remote.search(text), f"{name} loads {remote.search(text)}"


def test_what_pages_load_is_there(site: Site) -> None:
    for name, page in site.pages.items():
        for address in loaded(page):
            if not address.startswith("data:"):
                file = (site.root / name).parent / unquote(urlsplit(address).path)
                assert file.is_file(), f"{name} loads {address}, which was not built"


def test_every_internal_link_and_anchor_resolves(site: Site) -> None:
    anchors = {
        (site.root / name).resolve(): {
            tag[key] for key in ("id", "name") for tag in page.select(f"[{key}]")
        }
        for name, page in site.pages.items()
    }
    dead = []
    for name, page in site.pages.items():
        here = (site.root / name).resolve()
        for link in page.select("a[href]"):
            parts = urlsplit(link["href"])
            if parts.scheme or parts.netloc or link["href"] in ("", "#"):
                continue
            target = (
                (here.parent / unquote(parts.path)).resolve() if parts.path else here
            )
            if not target.is_file():
                dead.append(f"{name}: {link['href']} is not there")
            elif (
                parts.fragment
                and target in anchors
                and unquote(parts.fragment) not in anchors[target]
            ):
                dead.append(f"{name}: {link['href']} has no such place")
    assert not dead, "\n".join(dead)


def test_external_links_are_links_only_and_secure(site: Site) -> None:
    for name, page in site.pages.items():
        plain = [link["href"] for link in page.select("a[href^='http:']")]
        assert not plain, f"{name} links without encryption: {plain}"


def test_pictures_have_alternative_text(site: Site) -> None:
    for name, page in site.articles.items():
        for picture in page.select("article img"):
            alt = picture.get("alt", "").strip()
            source = Path(picture["src"]).stem
            assert alt and alt not in (picture["src"], source), (
                f"{name}: {picture['src']} is not described"
            )


def test_tables_that_cells_show_are_set_as_tables(site: Site) -> None:
    """A rule of dashes in running text is a table's second line: dashes may have
    become one long dash."""
    rule = re.compile(r"\|\s*(-{3,}|\u2014|\u2013)\s*\|")
    for name, page in site.articles.items():
        raw = [
            p.get_text()[:80]
            for p in page.select("article p")
            if rule.search(p.get_text())
        ]
        assert not raw, f"{name}: {raw[0]!r}"


def test_the_code_on_a_page_is_the_notebook_s_letter_by_letter(site: Site) -> None:
    """Every line is set as an element of its own: nothing may be added
    to what is copied."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        page = site.pages[f"notebooks/{path.stem}.html"]
        shown = {
            block.get_text().rstrip("\n") for block in page.select(".cell_input pre")
        }
        cells = [
            cell
            for cell in json.loads(path.read_text("utf-8"))["cells"]
            if cell["cell_type"] == "code"
        ]
        assert (
            cells and {"".join(cell["source"]).rstrip("\n") for cell in cells} == shown
        ), path.name


def test_lines_know_their_indentation_and_tables_their_columns(site: Site) -> None:
    lines = [
        line for page in site.pages.values() for line in page.select("pre .code-line")
    ]
    assert len(lines) > 1000
    for line in lines:
        text = line.get_text()
        indent = len(text) - len(text.lstrip(" "))
        assert line.get("style") == (f"--indent: {indent}" if indent else None), text
        assert ("columns" in line["class"]) == bool(re.search(r"\S {3,}\S", text)), text


def test_every_page_has_one_title_and_a_language(site: Site) -> None:
    for name, page in site.articles.items():
        assert len(page.select("article h1")) == 1, name
        assert page.html.get("lang") == "en", name
        assert page.select_one('meta[name="viewport"]'), (
            f"{name} would be shown shrunken on phones"
        )


def test_notebook_pages_can_be_downloaded_and_launched(site: Site) -> None:
    notebooks = [name for name in site.articles if name.startswith("notebooks/")]
    assert notebooks, "no notebook is in the book"
    for name in notebooks:
        page, stem = site.pages[name], name.removesuffix(".html")
        links = [link["href"] for link in page.select("a[href]")]
        assert any(link.endswith(f"_sources/{stem}.ipynb") for link in links), (
            f"{name}: no download"
        )
        for host in ("mybinder.org", "colab.research.google.com"):
            launch = [link for link in links if host in link]
            assert launch and stem in unquote(launch[0]), (
                f"{name}: button for {host}: {launch}"
            )


def test_chinese_stands_beside_every_term_of_the_glossary(site: Site) -> None:
    tables = site.pages["glossary.html"].select("article table")
    terms = [table for table in tables if "中文" in table.text]
    assert len(tables) - len(terms) <= 1, "only the symbols need no Chinese"
    rows = [row for table in terms for row in table.select("tbody tr")]
    assert len(rows) >= 60
    for row in rows:
        english, chinese = (cell.text for cell in row.select("td")[:2])
        assert re.search(r"[\u4e00-\u9fff]", chinese), english
        assert row.select_one("td a[href^='#term-']"), (
            f"{english} leads to no definition"
        )
