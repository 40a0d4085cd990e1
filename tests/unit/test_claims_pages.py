"""The book's pages of claims follow the ledger and the records, and what prose quotes
is in the records."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
import shutil
import types
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from sphinx.errors import ConfigError

from minilib import claims
from minilib.claims import forest, pages, quoting, records
from minilib.parameters import PROFILES

CLIP = claims.load("clip")


@pytest.fixture
def results(tmp_path: Path, finish: Callable[..., None]) -> Path:
    """Three seeds of C3 and C1 at full, with what they cost; one seed of
    C3 on photographs."""
    for profile, seed in [("full", 0), ("full", 1), ("full", 2), ("photos", 0)]:
        out = tmp_path / "runs" / "clip" / profile / f"seed{seed}"
        out.mkdir(parents=True)
        where = dict(profile=profile, seed=seed, out=out, n=100)
        gain = 0.1 + 0.01 * seed if profile == "full" else 0.003
        interval = None if profile == "full" else (-0.001, 0.007)
        controls = {"one template": 0.7}
        claims.record(
            "clip.C3",
            treatment=0.8 + gain,
            control=0.8,
            controls=controls,
            interval=interval,
            **where,
        )
        if profile == "full":
            claims.record(
                "clip.C1",
                treatment=0.5,
                control=0.6,
                controls={"shuffled captions": 0.01},
                **where,
            )
        few = {"shots": [1, 2], "probe": [0.5 + 0.1 * seed, 0.6]}
        claims.record_result("clip.few_shot", few, profile=profile, seed=seed, out=out)
        claims.record_result(
            "clip.top1", 0.9 + 0.01 * seed, profile=profile, seed=seed, out=out
        )
        about = {"wall_seconds": 100 + 60 * seed, "peak_memory_bytes": 2e9, "cores": 2}
        finish(out, **about, device={"used": "cpu", "name": "Laptop"})
    claims.merge(tmp_path / "runs", tmp_path / "results", ["full", "photos"])
    return tmp_path / "results"


def rows_of(results: Path, claim: str) -> list[claims.Row]:
    return [row for row in claims.collect(results) if row.claim.id == claim]


# The pages


def test_pages_hold_every_claim_and_follow_the_records(
    results: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "claims"
    written = {
        path.name: path.read_text() for path in claims.write_pages(folder, results)
    }
    assert {"matrix.html", "cost.html", "not-run.html", "01_clip.md"} <= set(written)
    page = written["01_clip.md"]
    for claim in CLIP.values():
        assert (
            f"({pages.anchor(claim)})=" in page
            and claim.statement in page
            and claim.numbers.rstrip(".") in page
        )
    matrix = BeautifulSoup(written["matrix.html"], "html.parser")
    lines = {
        tr.a["href"].partition("#")[2]: [td.text for td in tr.select("td")]
        for tr in matrix.select("tr")
        if tr.td
    }
    everything = [
        claim for paper in claims.papers() for claim in claims.load(paper).values()
    ]
    assert list(lines) == [pages.anchor(claim) for claim in everything]
    assert [len(cells) for cells in lines.values()] == [len(PROFILES)] * len(lines)
    full, photos = lines["claim-clip-c3"][1:3]
    assert "reproduced" in full and "3 seeds" in full and "indicative: agrees" in photos
    assert (
        "not reproduced" in lines["claim-clip-c1"][1]
        and "not run" in lines["claim-clip-c1"][3]
    )
    for link in matrix.select("a[href*='#']"):
        name, _, place = link["href"].removeprefix("claims/").partition("#")
        assert f"({place})=" in written[name.replace(".html", ".md")]
    assert "3 min" in written["cost.html"] and "Laptop, 2 cores" in written["cost.html"]
    assert "400 million pairs" in written["not-run.html"]


def test_pages_are_written_only_where_they_differ(
    results: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "claims"
    claims.write_pages(folder, results)
    (folder / "09_gone.md").write_text("a ledger that is no longer there")
    (folder / "my_notes.md").write_text("somebody's own")
    (folder / "matrix.html").write_text("stale")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    claims.write_pages(folder, results)
    assert (
        "At a glance" not in (folder / "matrix.html").read_text()
        and "stale" not in (folder / "matrix.html").read_text()
    )
    assert not (folder / "09_gone.md").exists() and (folder / "my_notes.md").exists()
    assert (folder / "01_clip.md").stat().st_mtime_ns == before["01_clip.md"]


def test_pages_hold_ten_chapters(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    own = records._LEDGER
    (ledger / "schema.json").write_text((own / "schema.json").read_text())
    text = (own / "clip.yaml").read_text()
    for name in records._ORDER:
        (ledger / f"{name}.yaml").write_text(
            text.replace("paper: clip", f"paper: {name}").replace(
                "id: clip.", f"id: {name}."
            )
        )
    monkeypatch.setattr(records, "_LEDGER", ledger)
    records._load.cache_clear()
    try:
        assert claims.papers() == records._ORDER, "the book's order, not the alphabet's"
        written = {
            path.name: path.read_text()
            for path in claims.write_pages(tmp_path / "claims", results)
        }
    finally:
        records._load.cache_clear()
    assert sorted(name for name in written if name.endswith(".md")) == [
        f"{k:02}_{n}.md" for k, n in enumerate(records._ORDER, 1)
    ]
    matrix = BeautifulSoup(written["matrix.html"], "html.parser")
    assert len(matrix.select("tbody")) == 10 and len(matrix.select("td")) == 10 * len(
        CLIP
    ) * len(PROFILES)
    assert len(written["matrix.html"]) < 120_000


def test_the_table_of_records_has_a_row_for_each_claim_and_profile(
    results: Path,
) -> None:
    table = list(csv.DictReader(io.StringIO(claims.summary(results))))
    assert [(row["claim"], row["profile"]) for row in table] == [
        ("clip.C1", "full"), ("clip.C3", "full"), ("clip.C3", "photos"),
    ]  # fmt: skip
    full, photos = table[1], table[2]
    assert (full["seeds"], full["verdict"], full["seconds_a_seed"], full["device"]) == (
        "3",
        "reproduced",
        "160",
        "Laptop, 2 cores",
    )
    assert float(full["difference"]) == pytest.approx(0.11)
    assert (
        float(full["low"])
        < float(full["bootstrap_low"])
        < 0.11
        < float(full["bootstrap_high"])
        < float(full["high"])
    )
    assert photos["low"] == "" and float(photos["items_high"]) == 0.007


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_text("{"), "clip.full.json is not a record"),
        (lambda path: shutil.rmtree(path.parent), "there is no folder of records"),
        (lambda path: None, None),
        (
            lambda path: path.write_text(path.read_text().replace('"c3"', '"c4"', 1)),
            "clip full is not judged: seed 0 and seed 1 were not made alike",
        ),
    ],
)
def test_the_book_is_not_built_from_damaged_records(
    results: Path, damage: Callable[[Path], None], words: str | None
) -> None:
    path = Path(__file__).parents[2] / "book" / "_ext" / "ledger.py"
    spec = importlib.util.spec_from_file_location("ledger_extension", path)
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    app = types.SimpleNamespace(srcdir=results.parent)
    damage(results / "clip.full.json")
    if words is None:
        extension.make_pages(app, None)
        assert (results.parent / "claims" / "matrix.html").is_file()
        return
    with pytest.raises(ConfigError, match=words):
        extension.make_pages(app, None)


# The plots


def test_a_plot_shows_ours_and_the_papers_where_they_are(results: Path) -> None:
    rows = rows_of(results, "clip.C3")
    plot = BeautifulSoup(forest.forest(CLIP["clip.C3"], rows), "html.parser")
    said = [svg["aria-label"] for svg in plot.select("svg[role=img]")]
    assert (
        said[0].startswith("full, 3 seeds: +11.0")
        and "photos, 1 seed" in said[1]
        and "+4.8" in said[2]
    )
    axis = forest.axis_for(CLIP["clip.C3"], [row for row in rows if row.verdict.n])
    centres = [float(circle["cx"].rstrip("%")) for circle in plot.select("circle.ours")]
    assert (
        centres == [axis.at(rows[1].verdict.mean), axis.at(0.003)]
        and centres[0] > centres[1]
    )
    diamond = float(plot.select_one("rect.paper").parent["x"].rstrip("%"))
    assert centres[1] < diamond < centres[0]
    assert (
        len(plot.select("line.seed")) == 3
        and len(plot.select("line.interval.items")) == 1
    )
    assert "verdict reproduced" in str(plot) and "indicative: agrees" in plot.text


def test_every_mark_is_within_its_plot() -> None:
    """Two seeds have very wide intervals: cut at the edge with an arrow, the
    axis stays useful."""
    claim = CLIP["clip.C2"]
    measured = [
        claims.Measurement(
            "clip.C2",
            "full",
            seed,
            0.1 + seed,
            0.0,
            9,
            controls={"supervised classifier": 0},
        )
        for seed in (0, 1)
    ]
    row = claims.Row(claim, "full", claims.judge(claim, measured))
    assert row.verdict.high > 5
    axis, plot = forest.axis_for(claim, [row]), forest.forest(claim, [row])
    assert axis.high < 2 and "›" in plot and "‹" in plot
    for share in re.findall(r'(?:x|x1|x2|cx)="([\d.]+)%"', plot):
        assert 0 <= float(share) <= 100


@pytest.mark.parametrize(
    ("low", "high"), [(-0.1, 0.7), (-0.0123, 0.0031), (-40.0, 900.0), (0.0, 1e-6)]
)
def test_an_axis_has_round_ticks(low: float, high: float) -> None:
    ticks = forest.Axis(low, high).ticks()
    assert 3 <= len(ticks) <= 7 and low <= ticks[0] and ticks[-1] <= high
    assert low > 0 or high < 0 or any(tick == 0 for tick in ticks)


def test_nothing_measured_and_nothing_to_compare_with_has_no_plot() -> None:
    assert forest.forest(CLIP["clip.data"], []) == ""
    assert "rect" in forest.forest(CLIP["clip.C3"], []), "the paper's number alone"


# Numbers in prose


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        ("clip.top1 full", "91.0 % (88.5 to 93.5, 3 seeds)"),
        ("clip.top1 full mean", "91.0 %"),
        ("clip.top1 photos", "90.0 % (1 seed)"),
        ("clip.top1 full mean number", "0.91"),
        ("clip.few_shot/probe/0 full mean", "60.0 %"),
        ("clip.C3:difference full", "+11.0 (+8.5 to +13.5)"),
        ("clip.C3:difference full mean", "+11.0"),
        ("clip.C3:treatment full mean", "91.0 %"),
        ("clip.C3:control full", "80.0 % (80.0 to 80.0, 3 seeds)"),
        ("clip.C3:verdict full", "reproduced"),
        ("clip.C3:seeds full", "3"),
    ],
)
def test_a_marked_number_is_filled_in_from_the_records(
    results: Path, mark: str, text: str
) -> None:
    prose = f"It reaches <!-- result {mark} -->12 %<!-- /result -->, as you see."
    fresh = claims.fill(prose, results)
    assert (
        fresh == f"It reaches <!-- result {mark} -->{text}<!-- /result -->, as you see."
    )
    assert claims.fill(fresh, results) == fresh


@pytest.mark.parametrize(
    ("prose", "words"),
    [
        (
            "<!-- result clip.top5 full -->91 %<!-- /result -->",
            "no record of 'clip.top5' at profile 'full'",
        ),
        (
            "<!-- result clip.top1 quick -->91 %<!-- /result -->",
            "no record of 'clip.top1' at profile 'quick'",
        ),
        (
            "<!-- result clip.C7:difference full -->9<!-- /result -->",
            "no record of clip.C7 at profile 'full'",
        ),
        (
            "<!-- result clip.C9:difference full -->9<!-- /result -->",
            "unknown claim 'clip.C9'",
        ),
        (
            "<!-- result clip.C3:mean full -->9<!-- /result -->",
            "expected treatment, control, difference",
        ),
        (
            "<!-- result clip.few_shot full -->9<!-- /result -->",
            "is not a single number",
        ),
        (
            "<!-- result clip.few_shot/probe/7 full -->9<!-- /result -->",
            "nothing at '7'",
        ),
        ("<!-- result clip.top1 -->9<!-- /result -->", "expected a name, a profile"),
        ("<!-- result clip.top1 full short -->9<!-- /result -->", "perhaps a style"),
        ("<!-- result clip.top1 full -->9", "is incomplete"),
        ("<!--result clip.top1 full-->9<!-- /result -->", "is incomplete"),
        ("no number here", "has no markers"),
    ],
)
def test_a_marked_number_without_a_record_is_refused(
    results: Path, prose: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        claims.fill(prose, results, name="the page")
    assert "the page" in str(error.value)


START, END = "<!-- scoreboard:start -->", "<!-- scoreboard:end -->"
TOP1, STOP = "<!-- result clip.top1 full -->", "<!-- /result -->"


@pytest.mark.parametrize(
    ("page", "line"),
    [
        (f"a\n{START}\nkept\n{START}\n{END}\n", 2),
        (f"a\n{START}\nkept\n", 2),
        (f"a\n\n{END}\nkept\n{START}\n{END}\n", 3),
        (f"{START}\n{END}\nkept\n{END}\n", 4),
        (f"{START}\nkept\n{TOP1}1{STOP}\n{END}\n", 1),
        (f"{TOP1}9 %\nkept\n{TOP1}9 %{STOP}\n", 1),
        (f"{TOP1}9 %\nkept {START}\n{END}\n", 1),
        (f"kept {STOP}\n", 1),
        (f"{START}\n<!-- scoreboard:ende -->\nkept\n{END}\n", 1),
        (f"<!-- scoreboard: start -->\nkept\n{END}\n", 1),
        (f"{START}\nkept\n<!-- scoreboard:end\n", 1),
        (f"kept\n<!-- result clip.top1 full\n9 %{STOP}\n", 2),
    ],
)
def test_damaged_markers_are_refused_with_their_line(
    results: Path, tmp_path: Path, page: str, line: int
) -> None:
    path = tmp_path / "page.md"
    path.write_text(page)
    assert quoting.is_marked(page)
    with pytest.raises(ValueError, match=rf"^page\.md, line {line}: .* is incomplete"):
        claims.fill_file(path, results)
    assert path.read_text() == page


def test_whole_markers_keep_all_around_them(results: Path) -> None:
    page = f"1\n{START}\nold\n{END}\n2 {TOP1}0 %{STOP} 3 {TOP1}{STOP}\n4"
    fresh = claims.fill(page, results)
    number = "91.0 % (88.5 to 93.5, 3 seeds)"
    ends = f"{END}\n2 {TOP1}{number}{STOP} 3 {TOP1}{number}{STOP}\n4"
    assert fresh.startswith(f"1\n{START}\n\n| chapter |") and fresh.endswith(ends)
    assert "old" not in fresh and claims.fill(fresh, results) == fresh


def test_a_scoreboard_is_not_emptied_for_want_of_records(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: .* holds no records"):
        claims.fill(f"a\n{START}\n| clip |\n{END}", tmp_path / "resluts")


def test_numbers_in_a_notebooks_prose_are_filled_in(
    results: Path, tmp_path: Path
) -> None:
    prose = "top-1 <!-- result clip.top1 full mean -->?<!-- /result -->"
    cells = [
        nbformat.v4.new_markdown_cell(prose),
        nbformat.v4.new_code_cell("# <!-- result clip.none full -->"),
    ]
    path = tmp_path / "01_clip.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    assert claims.fill_file(path, results, write=False) and path.read_bytes() == before
    assert claims.fill_file(path, results) and not claims.fill_file(path, results)
    assert nbformat.read(path, 4).cells[0].source == prose.replace("?", "91.0 %")


def test_pages_with_markers_are_found() -> None:
    assert "README.md" in [path.name for path in claims.marked_files()]
    assert not quoting.is_marked("the result of it")
