"""The book's pages of claims follow the ledger and the records, and what prose quotes
is in the records."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import shutil
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from bs4 import BeautifulSoup, Tag
from sphinx.errors import ConfigError

from minilib import claims
from minilib.claims import attempts, forest, judging, pages, quoting, records, reports

Claims = Mapping[str, claims.Claim]
PILOT, FRESH = (0, 1), (10, 11, 12, 13, 14)
ORDER = (*PILOT, *FRESH)
OF_LEARNING = {"share of the mean's error": 0.5, "accuracy of the text tower": 0.9}


def put(out: Path, seed: int, profile: str = "full", error: float = -1.0) -> None:
    """Record what one run of the toy chapter measured: text gains 10 to 14 points, the
    map changes the error by ``error``, unseen words cost nothing."""
    where: dict[str, Any] = dict(profile=profile, seed=seed, out=out, n=100)
    step = 0.01 * (ORDER.index(seed) % 5)
    claims.record(
        "toy.gain",
        treatment=0.7 + step,
        control=0.6,
        controls={"shuffled text": 0.5},
        interval=(0.02, 0.3),
        **where,
    )
    del where["n"]
    claims.record_result("toy.top1", 0.9 + step, **where)
    claims.record_result("toy.shots", {"one": [0.5 + step, 0.6]}, **where)
    if profile != "full":
        return
    where["n"] = 100
    claims.record(
        "toy.error",
        treatment=5.0 + error + step,
        control=5.0,
        preconditions=OF_LEARNING,
        **where,
    )
    claims.record("toy.same", treatment=0.5 + step / 10, control=0.5005, **where)
    claims.record("toy.operations", treatment=10, control=20, **where)


@pytest.fixture
def results(toy: Claims, tmp_path: Path, finish: Callable[..., None]) -> Path:
    """Two pilots and five fresh seeds at full, one fresh seed on photographs, and an
    earlier attempt."""
    for profile, seed in [*(("full", seed) for seed in ORDER), ("photos", 10)]:
        out = tmp_path / "runs" / "toy" / profile / f"seed{seed}"
        out.mkdir(parents=True)
        put(out, seed, profile)
        about = {"wall_seconds": 160, "peak_memory_bytes": 2e9, "cores": 2}
        finish(out, **about, device={"used": "cpu", "name": "Laptop"})
    claims.merge(tmp_path / "runs", tmp_path / "results", ["full", "photos"])
    first = tmp_path / "results" / "attempts" / "1"
    (first / "ledger").mkdir(parents=True)
    (first / "ledger" / "toy.yaml").write_text(
        "claims:\n- {id: toy.gain, title: Text gains}\n- {id: toy.gone, title: It sang}"
    )
    (first / "claims.csv").write_text(
        "claim,profile,verdict,seeds,difference,low,high,unit,reason\n"
        "toy.gain,full,not reproduced,3,-0.05,-0.08,-0.02,percent,it was short\n"
        "toy.gone,photos,indicative (agrees),1,0.5,,,number,1 of at least 3 seeds\n"
    )
    return tmp_path / "results"


def rows_of(results: Path, claim: str) -> list[claims.Row]:
    return [row for row in claims.collect(results) if row.claim.id == claim]


def html_of(folder: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((folder / name).read_text(), "html.parser")


def lines_of(page: BeautifulSoup) -> dict[str, list[Tag]]:
    """The cells of a table of claims by their claim's name."""
    return {
        line.select_one("th b").text: line.select("td")
        for line in page.select(".claims-matrix tbody tr")
        if line.td
    }


def section(results: Path, claim: str, **more: Any) -> str:
    """What a chapter's page says of one claim."""
    rows = claims.collect(results)
    page = pages.chapter_page("toy", rows, claims.find_attempts(results), **more)
    _, mark, text = page.partition(f"({pages.anchor(claims.load('toy')[claim])})=")
    assert mark
    return re.split(r"^\(claim-", text, maxsplit=1, flags=re.MULTILINE)[0]


# The overview


def test_the_papers_claims_and_the_others_are_two_tables(
    results: Path, tmp_path: Path
) -> None:
    claims.write_pages(tmp_path / "claims", results)
    theirs, others = (
        lines_of(html_of(tmp_path / "claims", f"{name}.html"))
        for name in ("papers", "others")
    )
    assert list(theirs) == ["gain", "operations"] and list(others) == ["error", "same"]
    assert "reproduced" in theirs["gain"][0].text
    assert "supported" in others["error"][0].text
    for claim in claims.load("toy").values():
        assert (
            f"({pages.anchor(claim)})="
            in (tmp_path / "claims" / "11_toy.md").read_text()
        ), "a link of the table leads nowhere"


def test_a_profile_without_a_run_has_no_column(results: Path) -> None:
    rows = claims.collect(results)
    heads = {
        name: [th.text for th in BeautifulSoup(text, "html.parser").select("thead th")]
        for name, text in pages.overview(rows).items()
    }
    assert heads["papers.html"] == ["claim", "full", "photos"]
    assert heads["others.html"] == ["claim", "full"], "only gain was run at photos"
    (results / "toy.full.json").unlink()
    (results / "toy.photos.json").unlink()
    text = pages.overview(claims.collect(results))["papers.html"]
    page = BeautifulSoup(text, "html.parser")
    assert [th.text for th in page.select("thead th")] == ["claim", "to be measured at"]
    assert lines_of(page)["gain"][0].text == "full, photos"
    assert "None has been measured" in text and "quick" not in text


def test_a_row_shows_difference_smallest_effect_controls_and_preconditions(
    results: Path,
) -> None:
    parts = pages.overview(claims.collect(results))
    papers, others = (
        lines_of(BeautifulSoup(parts[f"{name}.html"], "html.parser"))
        for name in ("papers", "others")
    )
    gain = papers["gain"][0].get_text(" ")
    assert "+12.0 (+10.0 to +14.0)" in gain and "δ 5 points; 5 seeds, 2 pilots" in gain
    assert "✓ shuffled text +22.0 (+20.0 to +24.0)" in gain
    conditions = [item.text for item in others["error"][0].select("li")]
    assert conditions == [
        "✓share of the mean's error 0.5, asked at most 0.8",
        "✓accuracy of the text tower 0.9, asked at least 0.6",
    ]
    same = others["same"][0].get_text(" ")
    assert "over test images)" in same and "δ 2 points" in same
    exact = papers["operations"][0].get_text(" ")
    assert "exact (holds)" in exact and "−10" in exact
    assert " to " not in exact and "δ" not in exact and "seeds" not in exact
    assert papers["operations"][1].text == "– not run"


@pytest.mark.parametrize(
    ("value", "missing", "said"),
    [
        (0.69, False, "✗shuffled text"),
        (0.5, False, "✓shuffled text"),
        (0.5, True, "?shuffled text"),
    ],
)
def test_a_control_that_is_not_beaten_is_seen(
    results: Path, value: float, missing: bool, said: str
) -> None:
    path = results / "toy.full.json"
    data = json.loads(path.read_text())
    for run in data["runs"]:
        run["claims"]["toy.gain"]["controls"]["shuffled text"] = value + (
            run["claims"]["toy.gain"]["treatment"] - 0.69 if value == 0.69 else 0
        )
    if missing:
        data["runs"][-1]["claims"]["toy.gain"]["controls"] = {}
    path.write_text(json.dumps(data))
    text = pages.overview(claims.collect(results))["papers.html"]
    cell = lines_of(BeautifulSoup(text, "html.parser"))["gain"][0]
    assert said in cell.select_one("li").text
    assert ("inconclusive" in cell.text) == (said[0] != "✓")


def test_costs_reasons_and_what_waits(results: Path) -> None:
    parts = pages.overview(claims.collect(results), claims.find_attempts(results))
    assert "3 min" in parts["cost.html"] and "Laptop, 2 cores" in parts["cost.html"]
    not_run = BeautifulSoup(parts["not-run.html"], "html.parser").text
    assert "too short to leave the trivial answer" in not_run
    assert "quick: 3 claims could be run and have no committed record" in not_run


def test_pages_are_written_only_where_they_differ(
    results: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "claims"
    claims.write_pages(folder, results)
    (folder / "09_gone.md").write_text("a ledger that is no longer there")
    (folder / "my_notes.md").write_text("somebody's own")
    (folder / "papers.html").write_text("stale")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    claims.write_pages(folder, results)
    assert "stale" not in (folder / "papers.html").read_text()
    assert not (folder / "09_gone.md").exists() and (folder / "my_notes.md").exists()
    assert (folder / "11_toy.md").stat().st_mtime_ns == before["11_toy.md"]


def test_pages_hold_ten_chapters(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = records._LEDGER
    text = (ledger / "toy.yaml").read_text()
    for name in records._ORDER:
        renamed = text.replace("paper: toy", f"paper: {name}", 1)
        (ledger / f"{name}.yaml").write_text(
            renamed.replace("id: toy.", f"id: {name}.")
        )
    (ledger / "toy.yaml").unlink()
    for path in results.glob("*.json"):
        path.unlink()
    records._load.cache_clear()
    assert claims.papers() == records._ORDER, "the book's order, not the alphabet's"
    written = {
        path.name: path.read_text()
        for path in claims.write_pages(tmp_path / "claims", results)
    }
    assert sorted(name for name in written if name.endswith(".md")) == [
        f"{k:02}_{n}.md" for k, n in enumerate(records._ORDER, 1)
    ]
    for name in ("papers.html", "others.html"):
        page = BeautifulSoup(written[name], "html.parser")
        assert len(page.select("tbody")) == 10 and len(page.select("td")) == 20


def test_the_table_of_records_has_a_row_for_each_claim_and_profile(
    results: Path,
) -> None:
    table = list(csv.DictReader(io.StringIO(claims.summary(results))))
    assert [(row["claim"], row["profile"]) for row in table] == [
        ("toy.gain", "full"),
        ("toy.gain", "photos"),
        ("toy.error", "full"),
        ("toy.same", "full"),
        ("toy.operations", "full"),
    ]
    full, photos, error, _, exact = table
    assert (full["origin"], full["seeds"], full["pilots"]) == ("paper", "5", "2")
    assert (full["verdict"], full["effect"]) == ("reproduced", "0.05")
    assert (full["seconds_a_run"], full["device"]) == ("160", "Laptop, 2 cores")
    assert float(full["difference"]) == pytest.approx(0.12)
    low, high = float(full["low"]), float(full["high"])
    inside = (float(full["bootstrap_low"]), float(full["bootstrap_high"]))
    assert low < inside[0] < 0.12 < inside[1] < high
    assert photos["low"] == "" and float(photos["items_high"]) == 0.3
    assert full["controls"] == "shuffled text +22.0 (+20.0 to +24.0), beaten"
    assert "accuracy of the text tower 0.9, met" in error["preconditions"]
    assert exact["low"] == "" and float(exact["difference"]) == -10


# A claim's own section


def test_a_section_says_whose_claim_it_is_and_what_was_found(results: Path) -> None:
    gain = section(results, "toy.gain")
    assert "**The paper** (§3, Table 1): 0.70 with text and 0.60 without." in gain
    assert "lies beyond the smallest effect" in gain
    asked = BeautifulSoup(gain, "html.parser").select(".claims-checks tbody tr")
    assert [
        [td.get_text(" ", strip=True) for td in tr.select("td")] for tr in asked
    ] == [
        ["shuffled text full", "+22.0 (+20.0 to +24.0)", "✓ beaten above zero"],
        ["shuffled text photos", "+22.0", "✓ beaten above zero"],
    ]
    assert "Why 5 points as the smallest effect: half of the paper" in gain
    assert "**Our own claim**" in section(results, "toy.error")
    assert "**Later work**" in section(results, "toy.same")


def test_the_papers_difference_is_drawn_only_where_it_compares_the_same(
    results: Path,
) -> None:
    (row, *_) = rows_of(results, "toy.gain")
    assert 'rect class="paper"' in section(results, "toy.gain")
    assert "of other things" not in section(results, "toy.gain")
    text = (records._LEDGER / "toy.yaml").read_text()
    text = text.replace("comparable: true", "comparable: false")
    (records._LEDGER / "toy.yaml").write_text(text)
    records._load.cache_clear()
    gain = section(results, "toy.gain")
    assert 'rect class="paper"' not in gain
    assert "of other things than ours: text over none +10.0 points." in gain
    axis = forest.axis_for(claims.load("toy")["toy.gain"], [])
    assert axis.high < 0.1, "what is not drawn must not stretch the axis"


def test_a_section_names_the_claims_that_share_its_arms(results: Path) -> None:
    assert "same trained arms" not in section(results, "toy.gain")
    path = records._LEDGER / "toy.yaml"
    text = path.read_text()
    same = "        over: test images\n"
    path.write_text(text.replace(same, same + "        arms: [text, other]\n"))
    records._load.cache_clear()
    assert "same trained arms as same (text): " in section(results, "toy.gain")
    assert "same trained arms as gain (text): " in section(results, "toy.same")
    assert "same trained arms" not in section(results, "toy.error")


def test_a_section_links_to_ledger_history_and_records(results: Path) -> None:
    assert "href" not in section(results, "toy.gain")
    where = claims.Repository("https://example.org/lib", "trunk")
    page = BeautifulSoup(section(results, "toy.gain", repository=where), "html.parser")
    links = {link.text: link["href"] for link in page.select(".claim-links a")}
    root = "https://example.org/lib"
    assert links == {
        "ledger": f"{root}/blob/trunk/minilib/ledger/toy.yaml",
        "its history": f"{root}/commits/trunk/minilib/ledger/toy.yaml",
        "records of full": f"{root}/blob/trunk/book/results/toy.full.json",
        "records of photos": f"{root}/blob/trunk/book/results/toy.photos.json",
    }


# Earlier attempts


def test_an_earlier_attempt_is_folded_into_its_claims_section(results: Path) -> None:
    page = BeautifulSoup(section(results, "toy.gain"), "html.parser")
    (first,) = page.select("details.claim-first")
    assert first.summary.text == "First attempt" and not first.has_attr("open")
    cells = [td.get_text(" ") for td in first.select("tbody td")]
    assert cells == ["full", "not reproduced it was short", "−5.0 (−8.0 to −2.0)", "3"]
    assert "Text gains" in first.text
    assert "claim-first" not in section(results, "toy.error")


def test_what_is_claimed_no_more_is_listed_once(results: Path) -> None:
    found = claims.find_attempts(results)
    assert [one.claim for one in claims.retired(found)] == ["toy.gone"]
    parts = pages.overview(claims.collect(results), found)
    page = BeautifulSoup(parts["retired.html"], "html.parser")
    (line,) = page.select("tbody tr")
    assert [td.get_text(" ") for td in line.select("td")] == [
        "toy.gone  It sang", "photos", "indicative (agrees) 1 of at least 3 seeds",
        "+0.5", "1",
    ]  # fmt: skip
    assert "None" in pages.overview([], found[:1])["retired.html"]


def test_attempts_are_read_in_order_and_damage_is_named(results: Path) -> None:
    shutil.copytree(results / "attempts" / "1", results / "attempts" / "10")
    shutil.copytree(results / "attempts" / "1", results / "attempts" / "2")
    assert [one.number for one in claims.find_attempts(results)] == [1, 1, 2, 2, 10, 10]
    assert [one.number for one in attempts.find_attempts(results.parent)] == []
    text = section(results, "toy.gain")
    assert text.index("First attempt") < text.index("Second") < text.index("Attempt 10")
    (results / "attempts" / "2" / "claims.csv").write_text("claim\ntoy.gain\n")
    with pytest.raises(ValueError, match=r"2/claims.csv is not a table of an earlier"):
        claims.find_attempts(results)


def test_earlier_attempts_are_no_records(results: Path, tmp_path: Path) -> None:
    kept = results / "attempts" / "1"
    shutil.copy(results / "toy.full.json", kept)
    (results / "toy.full.json").unlink()
    assert {records.profile for records in claims.find_records(results)} == {"photos"}
    assert "not yet measured" in claims.fill(f"{TOP1}9 %{STOP}", results)


# Building the book


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_text("{"), "toy.full.json is not a record"),
        (lambda path: shutil.rmtree(path.parent), "there is no folder of records"),
        (lambda path: None, None),
        (lambda path: path.unlink(), None),
        (
            lambda path: path.write_text(
                '"c4"'.join(path.read_text().rsplit('"c3"', 1))
            ),
            "toy full is not judged: seed 10 and seed 14 were not made alike",
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
    options = {"repository_url": "https://example.org/a", "repository_branch": "b"}
    config = types.SimpleNamespace(html_theme_options=options)
    damage(results / "toy.full.json")
    if words is None:
        extension.make_pages(app, config)
        page = (results.parent / "claims" / "11_toy.md").read_text()
        assert "https://example.org/a/commits/b/minilib/ledger/toy.yaml" in page
        return
    with pytest.raises(ConfigError, match=words):
        extension.make_pages(app, config)


# The plots


def plot_of(results: Path, claim: str) -> tuple[BeautifulSoup, forest.Axis]:
    rows = rows_of(results, claim)
    known = claims.load("toy")[claim]
    shown = [row for row in rows if row.verdict.n or row.verdict.pilot]
    plot = BeautifulSoup(forest.forest(known, rows), "html.parser")
    return plot, forest.axis_for(known, shown)


def at(mark: Tag, name: str = "cx") -> float:
    return float(mark[name].rstrip("%"))


def test_a_plot_shows_ours_and_the_papers_where_they_are(results: Path) -> None:
    plot, axis = plot_of(results, "toy.gain")
    said = [svg["aria-label"] for svg in plot.select("svg[role=img]")]
    assert said[0].startswith("full, 5 seeds, 2 pilots: +12.0 (+10.0 to +14.0)")
    assert said[1].startswith("photos, 1 seed: +12.0 (+2.0 to +30.0 over test items)")
    assert said[2] == "the paper, text over none: +10.0"
    full = plot.select(".line")[0]
    assert at(full.select_one("circle.ours")) == axis.at(0.12)
    assert len(plot.select("line.interval.seeds")) == 1
    assert len(plot.select("line.interval.items")) == 1
    diamond = at(plot.select_one("rect.paper").parent, "x")
    assert diamond == axis.at(0.1) < axis.at(0.12)
    assert "verdict reproduced" in str(plot) and "indicative (agrees)" in plot.text


def test_pilot_seeds_are_hollow_and_fresh_ones_filled(results: Path) -> None:
    plot, axis = plot_of(results, "toy.gain")
    full = plot.select(".line")[0]
    pilots, fresh = (
        [at(mark) for mark in full.select(f"circle.seed.{kind}")]
        for kind in ("pilot", "fresh")
    )
    assert pilots == [axis.at(0.1), axis.at(0.11)]
    assert fresh == [axis.at(d) for d in (0.12, 0.13, 0.14, 0.1, 0.11)]
    path = results / "toy.full.json"
    data = json.loads(path.read_text())
    data["runs"][0]["claims"]["toy.gain"]["treatment"] = 0.2
    path.write_text(json.dumps(data))
    plot, axis = plot_of(results, "toy.gain")
    assert axis.low < -0.4, "a pilot far from the fresh seeds is shown at its place"
    assert at(plot.select_one("circle.seed.pilot")) == axis.at(-0.4)
    style = (Path(__file__).parents[2] / "book/_static/claims.css").read_text()
    assert ".seed.pilot { fill: var(--pst-color-background); }" in style
    assert ".seed.fresh, .forest .ours { fill: var(--v-ours); }" in style


@pytest.mark.parametrize(
    ("claim", "small", "claimed"),
    [
        ("toy.gain", (-0.05, 0.05), (0.05, None)),
        ("toy.error", (-0.5, 0.5), (None, -0.5)),
        ("toy.same", None, (-0.02, 0.02)),
    ],
)
def test_the_band_of_small_effects_and_the_claimed_side_are_drawn(
    results: Path, claim: str, small: Any, claimed: Any
) -> None:
    plot, axis = plot_of(results, claim)
    line = plot.select_one(".line")
    for kind, ends in (("small", small), ("claimed", claimed)):
        found = line.select(f"rect.{kind}")
        assert len(found) == (ends is not None)
        if ends is not None:
            low = axis.low if ends[0] is None else ends[0]
            high = axis.high if ends[1] is None else ends[1]
            assert at(found[0], "x") == axis.at(low)
            width = round(axis.at(high) - axis.at(low), 2)
            assert at(found[0], "width") == width


def test_what_is_exact_has_a_point_and_no_interval(results: Path) -> None:
    plot, _ = plot_of(results, "toy.operations")
    assert len(plot.select("circle")) == 1 and not plot.select("line.interval")
    assert "exact" in plot.select_one(".name").text and "to" not in (
        plot.select_one(".text").text
    )
    (row, *_) = [row for row in rows_of(results, "toy.operations") if row.verdict.n]
    assert reports.estimate_text(row, row.verdict.treatment, seeds=True) == "10"


def test_pilots_alone_are_shown_and_do_not_count(results: Path) -> None:
    path = results / "toy.full.json"
    data = json.loads(path.read_text())
    data["runs"] = [run for run in data["runs"] if run["seed"] in PILOT]
    path.write_text(json.dumps(data))
    plot, _ = plot_of(results, "toy.gain")
    line = plot.select(".line")[0]
    assert len(line.select("circle.seed.pilot")) == 2 and not line.select("circle.ours")
    assert "not run" in line.text and "2 pilots" in line.text
    full, photos = rows_of(results, "toy.gain")[1:3]
    assert not claims.measured(full) and claims.measured(photos)
    assert "full (no fresh seed yet" in section(results, "toy.gain")
    assert "not yet measured" in claims.fill(f"{TOP1}9 %{STOP}", results)
    board = claims.scoreboard(results)
    assert "| toy | full | – | operations (holds) |   | gain |" in board


def test_every_mark_is_within_its_plot(toy: Claims) -> None:
    """Two seeds have very wide intervals: cut at the edge with an arrow, the
    axis stays useful."""
    claim = toy["toy.same"]
    digest = claim.test("full").digest
    measured = [
        claims.Measurement("toy.same", "full", seed, 0.1 + k, 0.0, 9, test=digest)
        for k, seed in enumerate(FRESH[:2])
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


def test_nothing_measured_and_nothing_to_compare_with_has_no_plot(toy: Claims) -> None:
    assert forest.forest(toy["toy.error"], []) == ""
    assert "rect" in forest.forest(toy["toy.gain"], []), "the paper's number alone"


def test_every_kind_of_verdict_has_a_colour() -> None:
    style = (Path(__file__).parents[2] / "book/_static/claims.css").read_text()
    for kind in judging.KINDS:
        assert re.search(rf"\.{forest.css_class(kind)}\b[^{{}}]*{{ --v:", style), kind


# Scoreboard and tables


def test_the_scoreboard_has_two_tables(results: Path) -> None:
    board = claims.scoreboard(results)
    theirs, others = board.split("**What later work and we claim**, 2 claims:")
    assert "**What the papers claim**, 2 claims:" in theirs
    head, _, full, photos = theirs.strip().splitlines()[2:6]
    kinds = "✔ reproduced | ■ exact | ◐ indicative | – not run"
    assert head == f"| chapter | profile | seeds | {kinds} |"
    assert full == "| toy | full | 5 | gain | operations (holds) |   |   |"
    assert photos == "| toy | photos | 1 |   |   | gain (agrees) | operations |"
    assert "| toy | full | 5 | error, same |" in others and "photos" not in others
    for path in results.glob("*.json"):
        path.unlink()
    assert claims.scoreboard(results) == (
        "No results have been recorded yet: every claim is to be measured under "
        "version 2 of the rules. An earlier attempt is kept in "
        "`book/results/attempts`.\n"
    )


def test_a_notebooks_verdicts_hold_the_same_as_the_page(results: Path) -> None:
    shown = claims.verdicts(results, ["full", "photos"], "toy")
    page = BeautifulSoup(shown._repr_html_(), "html.parser")
    (gain, error, same, operations) = page.select("ul > li")
    text = gain.get_text(" ")
    for part in (
        "Text helps", "toy.gain", "✔ reproduced", "full, 5 seeds, 2 pilots",
        "+12.0 (+10.0 to +14.0)", "smallest effect 5 points", "with text",
        "✓ shuffled text +22.0 (+20.0 to +24.0), beaten", "The paper (§3, Table 1)",
        "indicative (agrees)",
    ):  # fmt: skip
        assert part in re.sub(r" +", " ", text), part
    assert "accuracy of the text tower 0.9, met" in error.text
    assert "over test images" in same.text and "Later work" in same.text
    assert "smallest effect" not in operations.text.replace("in every run", "")
    assert not page.select("table"), "a table with columns is too wide for a phone"
    assert all("wrap" in box["style"] for box in page.select("li > div"))


# Numbers in prose

START, END = "<!-- scoreboard:start -->", "<!-- scoreboard:end -->"
TOP1, STOP = "<!-- result toy.top1 full -->", "<!-- /result -->"


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        ("toy.top1 full", "92.0 % (90.0 to 94.0, 5 seeds)"),
        ("toy.top1 full mean", "92.0 %"),
        ("toy.top1 photos", "92.0 % (1 seed)"),
        ("toy.top1 full mean number", "0.92"),
        ("toy.shots/one/0 full mean", "52.0 %"),
        ("toy.gain:difference full", "+12.0 (+10.0 to +14.0)"),
        ("toy.gain:difference full mean", "+12.0"),
        ("toy.gain:treatment full mean", "72.0 %"),
        ("toy.gain:control full", "60.0 % (60.0 to 60.0, 5 seeds)"),
        ("toy.gain:verdict full", "reproduced"),
        ("toy.gain:seeds full", "5"),
        ("toy.operations:treatment full", "10"),
        ("toy.operations:verdict full", "exact (holds)"),
        ("toy.gain:verdict quick", "not yet measured"),
        ("toy.top5 paper", "not yet measured"),
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
        (f"<!-- result toy.top5 full -->9{STOP}", "hold no 'toy.top5'"),
        (f"<!-- result tay.top1 full -->9{STOP}", "there is no chapter 'tay'"),
        (
            f"<!-- result toy.error:difference photos -->9{STOP}",
            "records of toy at profile 'photos' do not measure toy.error",
        ),
        (f"<!-- result toy.C9:difference full -->9{STOP}", "unknown claim 'toy.C9'"),
        (
            f"<!-- result toy.gain:mean quick -->9{STOP}",
            "expected treatment, control, difference",
        ),
        (f"<!-- result toy.shots full -->9{STOP}", "is not a single number"),
        (f"<!-- result toy.shots/one/7 full -->9{STOP}", "nothing at '7'"),
        (f"<!-- result toy.top1 -->9{STOP}", "expected a name, a profile"),
        (f"<!-- result toy.top1 full short -->9{STOP}", "perhaps a style"),
        ("<!-- result toy.top1 full -->9", "is incomplete"),
        (f"<!--result toy.top1 full-->9{STOP}", "is incomplete"),
        ("no number here", "has no markers"),
    ],
)
def test_a_marked_number_that_the_records_do_not_hold_is_refused(
    results: Path, prose: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        claims.fill(prose, results, name="the page")
    assert "the page" in str(error.value)


def test_before_the_first_record_prose_says_so(results: Path) -> None:
    for path in results.glob("*.json"):
        path.unlink()
    with pytest.raises(claims.NotMeasured, match=r"no record of 'toy\.top1'"):
        claims.quote("toy.top1", sources=results)
    fresh = claims.fill(f"{TOP1}91 %{STOP}\n{START}\n{END}", results)
    assert fresh.startswith(f"{TOP1}not yet measured{STOP}\n{START}\n\nNo results")


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
        (f"kept\n<!-- result toy.top1 full\n9 %{STOP}\n", 2),
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
    page = f"1\n{START}\nstale\n{END}\n2 {TOP1}0 %{STOP} 3 {TOP1}{STOP}\n4"
    fresh = claims.fill(page, results)
    number = "92.0 % (90.0 to 94.0, 5 seeds)"
    ends = f"{END}\n2 {TOP1}{number}{STOP} 3 {TOP1}{number}{STOP}\n4"
    assert fresh.startswith(
        f"1\n{START}\n\n**What the papers claim**"
    ) and fresh.endswith(ends)
    assert "stale" not in fresh and claims.fill(fresh, results) == fresh


def test_a_scoreboard_is_not_emptied_for_want_of_records(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: .* holds no records"):
        claims.fill(f"a\n{START}\n| toy |\n{END}", tmp_path / "resluts")


def test_numbers_in_a_notebooks_prose_are_filled_in(
    results: Path, tmp_path: Path
) -> None:
    prose = "top-1 <!-- result toy.top1 full mean -->?<!-- /result -->"
    cells = [
        nbformat.v4.new_markdown_cell(prose),
        nbformat.v4.new_code_cell("# <!-- result toy.none full -->"),
    ]
    path = tmp_path / "11_toy.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    assert claims.fill_file(path, results, write=False) and path.read_bytes() == before
    assert claims.fill_file(path, results) and not claims.fill_file(path, results)
    assert nbformat.read(path, 4).cells[0].source == prose.replace("?", "92.0 %")


def test_pages_with_markers_are_found() -> None:
    assert "README.md" in [path.name for path in claims.marked_files()]
    assert not quoting.is_marked("the result of it")
