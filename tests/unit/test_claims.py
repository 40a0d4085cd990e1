"""The ledger's data, what notebooks may record, and which runs are collected."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from minilib import claims
from minilib.claims import judging, records, reports
from minilib.parameters import PROFILES

TOY = Path(__file__).with_name("toy_ledger.yaml").read_text("utf-8")
FRESH = (10, 11, 12, 13, 14)


# The ledger


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("direction: greater", "direction: bigger", "bigger"),
        ("effect: 0.05", "effect: -0.05", "minimum"),
        ("effect: 0.05", "effect: 0", "minimum"),
        ("effect: 0.05", "effect: small", "small"),
        ("effect: 0.05", "effect: true", "effect: True is not of type 'number'"),
        ("effect: 0.05", "margin: 0.05", "margin"),
        ("        why: half of the paper's gain\n", "", "'why' is a required property"),
        ("    unit: percent", "    units: percent", "unit"),
        ("    origin: ours\n", "", "'origin' is a required property"),
        ("origin: ours", "origin: mine", "'mine' is not one of"),
        ("id: toy.error", "id: toy.gain", "repeated"),
        ("id: toy.error", "id: lseg.C2", "lseg.C2"),
        ("where: §3, Table 1", "where: ''", "short|non-empty"),
        ("where: §3, Table 1", "where: '  '", "where: '  ' does not match"),
        ("where: §3, Table 1", "where: 2021-02-26", "where: .* 'string'"),
        ("      photos: {not_run:", "      fotos: {not_run:", "photos|fotos"),
        ("needs: gpu", "needs: luck", "'luck' is not one of"),
        ("at_most: 0.8", "at_most: 0.8\n            at_least: 0.1", "valid under each"),
        ("            at_most: 0.8\n", "", "not valid under any"),
        ("over: test images", "over: images", "'images' is not one of"),
        ("sd: 0.02", "sd: -0.02", "minimum"),
        ("arms: [text, none", "arms: [text, text", "non-unique"),
        # the seeds
        ("fresh: [10, 11, 12, 13, 14]", "fresh: [10, 11, 12, 13]", "too short"),
        ("fresh: [10, 11, 12, 13, 14]", "fresh: [10, 11, 12, 13, 13]", "non-unique"),
        ("fresh: [10, 11, 12, 13, 14]", "fresh: [10, 11, 12, 13, 1.5]", "integer"),
        ("fresh: [10, 11, 12, 13, 14]", f"fresh: {list(range(10, 21))}", "too long"),
        ("pilot: [0, 1]", "pilot: [0, 10]", r"\[10\] are both pilot and fresh"),
        ("  full: {pilot", "  quick: {pilot", "quick"),
        (
            "  photos: {pilot: [0], fresh: [10, 11, 12, 13, 14]}\n",
            "",
            "toy.gain is tested at profile 'photos', for which no seeds are named",
        ),
    ],
)
def test_ledger_that_breaks_the_schema_is_refused(old, new, words):
    assert old in TOY
    with pytest.raises(ValueError, match=words):
        records.parse(TOY.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("effect: 0.05", "effect: .nan", ".nan is not a plain finite number"),
        ("effect: 0.05", "effect: .inf", ".inf is not a plain finite number"),
        ("effect: 0.05", "effect: 1.0e+400", "1.0e+400 is not a plain finite number"),
        ("effect: 0.05", "effect: 1:30", "1:30 is not a plain finite number"),
        ("[0, 1]", "[0, 010]", "010 is not a plain finite number"),
        (
            "effect: 0.05",
            "effect: 0.05\n        effect: 0.5",
            "'effect' is given twice",
        ),
        ("effect: 0.05", "effect: 0.05\n        7: x", "the key '7' is not text"),
        ("effect: 0.05", "effect: [0.05", "expected ',' or ']'"),
    ],
)
def test_what_yaml_lets_through_is_refused_with_its_line(old, new, words):
    line = TOY[: TOY.index(old)].count("\n") + 1
    found = TOY.replace(old, new, 1)
    with pytest.raises(ValueError) as error:
        records.parse(found, source="ledger/toy.yaml")
    message = str(error.value)
    assert words in message and message.startswith("ledger/toy.yaml, line ")
    named = int(message.split("line ")[1].split(":")[0])
    assert line <= named <= line + 1 and "\n" not in message


def test_merged_keys_may_be_overridden():
    """``<<`` brings keys in that the mapping gives again, in whatever order they are
    read."""
    claim = records.parse(TOY)["toy.gain"]
    assert claim.test("full").budget != claim.test("quick").budget
    assert claim.test("full").effect == claim.test("quick").effect == 0.05


def test_a_ledger_says_all_that_a_verdict_needs():
    found = records.parse(TOY)
    gain, error = found["toy.gain"], found["toy.error"].test("full")
    assert (gain.origin, gain.comparable) == ("paper", True)
    assert not found["toy.error"].comparable and found["toy.error"].origin == "ours"
    assert gain.tests["paper"].needs == "gpu" and gain.tests["paper"].startswith("need")
    assert found["toy.error"].tests["quick"].needs is None
    test = gain.test("full")
    assert test.seeds == records.Seeds((0, 1), FRESH)
    assert gain.test("quick").seeds == records.Seeds()
    assert test.controls["shuffled text"].effect == 0
    assert test.spread == records.Spread(0.02, "pilot seeds 0 and 1")
    assert test.arms == ("text", "none", "shuffled") and not test.exact
    assert found["toy.operations"].test("full").exact
    assert found["toy.same"].test("full").over == "test images"
    mean, words = error.preconditions.values()
    assert mean.met(0.8) and not mean.met(0.81) and mean.bound == 0.8
    assert words.met(0.6) and not words.met(0.59) and words.bound == 0.6


# The digest


def entry_of(data, claim="toy.error"):
    (entry,) = (entry for entry in data["claims"] if entry["id"] == claim)
    return entry["tests"]["full"]


def digest(data, claim="toy.error"):
    return records.parse(yaml.safe_dump(data))[claim].test("full").digest


FULL = {
    "spread": {"sd": 0.1, "from": "pilots"},
    "over": "seeds",
    "exact": False,
    "arms": ["one", "two"],
    "controls": {"mean": {"direction": "smaller", "effect": 0.0, "why": "trivial"}},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("how",), "in other words"),
        (("treatment",), "another"),
        (("control",), "another"),
        (("metric",), "another"),
        (("direction",), "greater"),
        (("effect",), 0.4),
        (("why",), "because"),
        (("budget",), "more"),
        (("spread", "sd"), 0.2),
        (("spread", "from"), "elsewhere"),
        (("over",), "test images"),
        (("exact",), True),
        (("arms",), ["one"]),
        (("controls", "mean", "direction"), "equal"),
        (("controls", "mean", "effect"), 0.1),
        (("controls", "mean", "why"), "because"),
        (("controls",), {}),
        (("preconditions", "accuracy of the text tower", "at_least"), 0.5),
        (("preconditions", "accuracy of the text tower", "why"), "because"),
        (("preconditions",), {}),
        (("seeds", "fresh"), [10, 11, 12, 13, 14, 15]),
        (("seeds", "fresh"), [10, 11, 12, 13, 15]),
        (("seeds", "pilot"), []),
    ],
)
def test_whatever_changes_in_a_test_changes_its_digest(path, value):
    data = yaml.safe_load(TOY)
    entry_of(data).update(deepcopy(FULL))
    before = digest(data)
    place = data["seeds"]["full"] if path[0] == "seeds" else entry_of(data)
    path = path[1:] if path[0] == "seeds" else path
    for key in path[:-1]:
        place = place[key]
    if place[path[-1]] == "equal" or value == "equal":
        place["effect"] = 0.1  # equal within nothing is refused
        before = digest(data)
    assert place[path[-1]] != value
    place[path[-1]] = value
    assert digest(data) != before


def test_what_is_not_of_the_test_does_not_change_its_digest():
    data = yaml.safe_load(TOY)
    before = digest(data)
    assert records.parse(TOY)["toy.error"].test("full").digest == before
    entry_of(data, "toy.gain")["effect"] = 0.06
    data["claims"][1]["title"] = "Another title"
    data["seeds"]["photos"]["pilot"] = [3]
    assert digest(data) == before
    comment = TOY.replace("title: Toy\n", "title: Toy  # a comment\n\n")
    assert records.parse(comment)["toy.error"].test("full").digest == before


def test_unknown_names_are_refused_with_the_nearest(toy, tmp_path):
    with pytest.raises(ValueError, match="no ledger for paper 'tox'"):
        claims.load("tox")
    with pytest.raises(ValueError, match="toy.operations"):
        record(tmp_path, "toy.operation")
    with pytest.raises(ValueError, match="toy.gain"):
        record(tmp_path, "gain")
    assert not list(tmp_path.iterdir())


# Recording


def record(out, claim="toy.gain", seed=10, treatment=0.9, control=0.8, **more):
    arguments = {
        "controls": {"shuffled text": 0.85} if claim == "toy.gain" else None,
        "profile": "full",
        "n": 100,
        **more,
    }
    return claims.record(
        claim, treatment=treatment, control=control, seed=seed, out=out, **arguments
    )


def test_record_writes_and_reads_back(toy, tmp_path):
    given = record(
        tmp_path,
        treatment=torch.tensor(0.75),
        control=np.float32(0.5),
        interval=(0.2, 0.3),
        details={"curve": torch.tensor([0.5, 1.0]), "templates": 7},
    )
    learned = {"share of the mean's error": 0.5, "accuracy of the text tower": 0.9}
    other = record(tmp_path, "toy.error", preconditions=learned)
    (run,) = claims.read_records(tmp_path / "result.json")
    assert (run.chapter, run.profile, run.seed) == ("toy", "full", 10)
    assert run.measurements == {"toy.gain": given, "toy.error": other}
    assert given.treatment == 0.75 and given.interval == (0.2, 0.3)
    assert given.details == {"curve": [0.5, 1.0], "templates": 7}
    assert given.test == toy["toy.gain"].test("full").digest
    assert other.preconditions == learned
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"], (
        "a temporary file was left"
    )


def test_recording_again_replaces_and_keeps_the_others(toy, tmp_path):
    record(tmp_path)
    record(tmp_path, "toy.same")
    claims.record_result(
        "toy.top1", torch.tensor(0.9), profile="full", seed=10, out=tmp_path
    )
    record(tmp_path, treatment=0.95)
    (run,) = claims.read_records(tmp_path / "result.json")
    assert run.measurements["toy.gain"].treatment == 0.95
    assert set(run.measurements) == {"toy.gain", "toy.same"}
    assert run.results["toy.top1"] == pytest.approx(0.9)


def test_another_run_does_not_mix_with_the_old(toy, tmp_path):
    record(tmp_path)
    record(tmp_path, "toy.same", seed=11)
    (run,) = claims.read_records(tmp_path / "result.json")
    assert run.seed == 11 and set(run.measurements) == {"toy.same"}


LEARNED = {"share of the mean's error": 0.5, "accuracy of the text tower": 0.9}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"treatment": float("nan")}, "treatment is nan"),
        ({"control": float("inf")}, "control is inf"),
        ({"controls": {"shuffled text": float("nan")}}, "shuffled text"),
        ({"controls": None}, "controls are 'shuffled text', got none"),
        (
            {"controls": {"shuffled text": 0.1, "two": 0.1}},
            "controls are 'shuffled text'",
        ),
        ({"preconditions": {"two": 0.1}}, "preconditions are none, got"),
        ({"claim": "toy.error"}, 'preconditions are "share .*, got none'),
        (
            {"claim": "toy.error", "preconditions": dict(list(LEARNED.items())[:1])},
            "preconditions are .*, 'accuracy of the text tower', got",
        ),
        (
            {
                "claim": "toy.error",
                "preconditions": LEARNED | {"accuracy of the text tower": np.nan},
            },
            "precondition 'accuracy of the text tower' is nan",
        ),
        ({"details": {"loss": float("nan")}}, "loss"),
        ({"n": 0}, "n=0"),
        ({"profile": "ful"}, "profile='ful'"),
        ({"profile": "paper"}, "not tested at profile 'paper'"),
        # ties
        ({"control": 0.9}, "treatment and the control are both 0.9"),
        ({"control": 0.9, "interval": (0.0, 0.0)}, "both 0.9, to the last bit"),
        (
            {"controls": {"shuffled text": 0.9}},
            "treatment and control 'shuffled text' are both 0.9",
        ),
        ({"claim": "toy.same", "control": 0.9}, "are both 0.9"),
    ],
)
def test_bad_measurement_is_refused_and_writes_nothing(toy, tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        record(tmp_path, **change)
    assert not list(tmp_path.iterdir())


def test_honest_ties_are_taken(toy, tmp_path):
    """Of an exact test, and where the answers to single test items differ."""
    record(tmp_path, "toy.operations", treatment=10, control=10)
    record(tmp_path, control=0.9, interval=(-0.02, 0.02))
    (run,) = claims.read_records(tmp_path / "result.json")
    assert len(run.measurements) == 2


def test_bad_results_are_refused(tmp_path):
    with pytest.raises(ValueError, match="clip.zero_shot_top1"):
        claims.record_result("top1", 0.5, profile="full", seed=0, out=tmp_path)
    with pytest.raises(ValueError, match="nan"):
        claims.record_result(
            "clip.curve", [0.5, float("nan")], profile="full", seed=0, out=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_reading_what_is_not_a_record(tmp_path):
    (tmp_path / "result.json").write_text('{"chapter": "clip"')
    with pytest.raises(ValueError, match="not a record"):
        claims.read_records(tmp_path / "result.json")
    (tmp_path / "result.json").write_text('{"chapter": "clip"}')
    with pytest.raises(ValueError, match="not a record"):
        claims.read_records(tmp_path / "result.json")


def test_records_of_before_are_read_and_decide_nothing(toy, tmp_path):
    """They hold no digest of the test, and some the rule in an older form."""
    entry = {"treatment": 0.9, "control": 0.5, "n": 9, "controls": {"other": 0.1}}
    entry |= {"interval": None, "details": {}, "rule": {"margin": 0.1}}
    runs = [
        {"seed": seed, "claims": {"toy.gain": entry}, "results": {}} for seed in (0, 5)
    ]
    data = {"chapter": "toy", "profile": "full", "runs": runs}
    (tmp_path / "toy.full.json").write_text(json.dumps(data))
    found = claims.find_records(tmp_path)
    assert [run.seed for run in found] == [0, 5]
    assert found[0].measurements["toy.gain"].test is None
    (row,) = [row for row in claims.collect(tmp_path, ["full"]) if row.verdict.n]
    assert row.verdict.kind == judging.RULE_CHANGED and row.verdict.n == 2
    assert row.verdict.mean == pytest.approx(0.4)


# Reports


@pytest.fixture
def runs(toy, tmp_path, finish):
    """Five finished full runs, of the fresh seeds, and a pilot that is not finished;
    one quick run."""
    for profile, seed in [*(("full", seed) for seed in (*FRESH, 0)), ("quick", 10)]:
        out = tmp_path / "runs" / "toy" / profile / f"seed{seed}"
        out.mkdir(parents=True)
        treatment = round(0.89 + 0.001 * seed, 3)
        record(
            out, profile=profile, seed=seed, treatment=treatment, interval=(0.05, 0.15)
        )
        claims.record_result("toy.top1", treatment, profile=profile, seed=seed, out=out)
        if seed:
            finish(out)
    return tmp_path / "runs"


def test_collect_takes_finished_runs_only_and_shows_the_rest_as_not_run(runs):
    rows = {(row.claim.id, row.profile): row.verdict for row in claims.collect(runs)}
    assert len(rows) == len(claims.load("toy")) * len(PROFILES)
    full = rows["toy.gain", "full"]
    assert (full.kind, full.n, full.planned) == ("reproduced", 5, 5)
    assert full.pilot == ()
    assert rows["toy.gain", "quick"].text == "indicative (agrees)"
    assert rows["toy.gain", "quick"].items == (0.05, 0.15)
    assert rows["toy.same", "full"].kind == "not run"


def test_collect_of_nothing(toy, tmp_path):
    assert {row.verdict.kind for row in claims.collect(tmp_path / "nowhere")} == {
        "not run"
    }


def test_collect_refuses_an_unknown_claim(runs):
    path = runs / "toy" / "full" / "seed10" / "result.json"
    path.write_text(path.read_text().replace("toy.gain", "toy.gain3"))
    with pytest.raises(ValueError, match="toy.gain3"):
        claims.collect(runs)


def test_merge_keeps_other_seeds_and_is_read_back_equal(runs, tmp_path):
    results = tmp_path / "results"
    assert [path.name for path in claims.merge(runs, results, ["full"])] == [
        "toy.full.json"
    ]
    before = claims.collect(runs, ["full"])
    assert [row.verdict for row in claims.collect(results, ["full"])] == [
        row.verdict for row in before
    ]
    # One seed again, the others' runs gone: the merged file keeps them.
    for seed in (11, 12):
        (runs / "toy" / "full" / f"seed{seed}" / "run.json").unlink()
    record(runs / "toy" / "full" / "seed10", treatment=0.99)
    claims.merge(runs, results, ["full"])
    merged = json.loads((results / "toy.full.json").read_text())
    values = {
        run["seed"]: run["claims"]["toy.gain"]["treatment"] for run in merged["runs"]
    }
    assert values == pytest.approx(
        {10: 0.99, 11: 0.901, 12: 0.902, 13: 0.903, 14: 0.904}
    )


# What is not merged, and named


def told(runs, results, profiles=("full",), **more):
    """Merge; return the files written and what was said."""
    said = []
    written = claims.merge(runs, results, profiles, say=said.append, **more)
    return [path.name for path in written], said


def change(path, **values):
    """Change values at the top of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def seeds(path):
    return [run["seed"] for run in json.loads(path.read_text())["runs"]]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "run.json").write_text("{}"), "run.json is damaged"),
        (lambda run: (run / "run.json").write_text("[1]"), "run.json is damaged"),
        (lambda run: (run / "run.json").write_text(""), "run.json is not a record"),
        (lambda run: (run / "result.json").write_text("{"), "not a record of results"),
        (lambda run: (run / "result.json").unlink(), "FileNotFoundError"),
        (lambda run: (run / "result.json").write_bytes(b"\xff"), "UnicodeDecodeError"),
        (
            lambda run: change(run / "result.json", seed=7),
            "result.json is of toy full seed 7, run.json of toy full seed 11",
        ),
        (
            lambda run: change(run / "result.json", profile="photos"),
            "result.json is of toy photos seed 11, run.json of toy full seed 11",
        ),
        (
            lambda run: [
                change(run / name, seed=7) for name in ("result.json", "run.json")
            ],
            "holds toy full seed 7, which belongs into a folder toy/full/seed7",
        ),
        (lambda run: change(run / "result.json", claims=[]), "not a record of results"),
        (lambda run: change(run / "result.json", results=3), "results and environment"),
        (lambda run: change(run / "result.json", seed=-1), "seed=-1"),
        (lambda run: edit(run, "0.901", "NaN"), "treatment is nan"),
        (lambda run: edit(run, "0.901", '"high"'), "treatment is 'high'"),
        (lambda run: edit(run, '"n": 100', '"n": 0'), "n=0"),
        (lambda run: edit(run, "toy.gain", "toy.gain3"), "unknown claim 'toy.gain3'"),
        (lambda run: edit(run, '"n": 100', '"n": 9, "n": 100'), "'n' is given twice"),
    ],
)
def test_one_bad_record_is_named_and_the_others_are_merged(
    runs, tmp_path, damage, words
):
    bad, results = runs / "toy" / "full" / "seed11", tmp_path / "results"
    damage(bad)
    written, said = told(runs, results)
    assert written == ["toy.full.json"] and len(said) == 1
    assert words in said[0] and str(bad) in said[0] and "\n" not in said[0]
    assert seeds(results / "toy.full.json") == [10, 12, 13, 14]
    (row,) = [r for r in claims.collect(results, ["full"]) if r.verdict.n]
    assert row.verdict.n == 4 and row.verdict.kind == judging.INDICATIVE


def edit(run, old, new):
    path = run / "result.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_a_stale_run_is_named_and_left_out(runs, tmp_path):
    results = tmp_path / "results"
    old = runs / "toy" / "full" / "seed12"
    written, said = told(
        runs,
        results,
        stale=lambda run: ["code cell 3 of the notebook"] if run == old else [],
    )
    assert seeds(results / written[0]) == [10, 11, 13, 14]
    assert len(said) == 1 and str(old) in said[0]
    assert "stale (code cell 3 of the notebook)" in said[0]


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        (
            "parameters",
            {"profile": "full", "seed": 12, "device": "cuda", "lr": 77.0},
            "parameter lr: not given and 77.0",
        ),
        ("notebook", ["a1", "b3"], "the notebook's code"),
        ("data", {"data": "d4"}, "data in data"),
        ("library", {"minilib/batch.py": "c4"}, "minilib/batch.py"),
    ],
)
def test_seeds_that_were_not_made_alike_are_not_one_claim(
    runs, tmp_path, part, value, words
):
    results, other = tmp_path / "results", runs / "toy" / "full" / "seed12"
    about = json.loads((other / "run.json").read_text())
    change(other / "run.json", inputs={**about["inputs"], part: value})
    written, said = told(runs, results)
    assert written == [] and list(results.iterdir()) == []
    assert len(said) == 1 and said[0].startswith("toy.full.json: not merged: ")
    assert "seed 10 and seed 12 were not made alike" in said[0] and words in said[0]
    with pytest.warns(UserWarning, match="toy full is not judged: seed 10 and seed 12"):
        rows = claims.collect(runs, ["full"], ["toy"])
    assert {row.verdict.n for row in rows} == {0}
    # The other runs alone are a claim, and the odd one cannot join them later.
    (other / "run.json").rename(tmp_path / "run.json")
    assert told(runs, results) == (["toy.full.json"], [])
    before = (results / "toy.full.json").read_bytes()
    (tmp_path / "run.json").rename(other / "run.json")
    for seed in (10, 11, 13, 14):
        (runs / "toy" / "full" / f"seed{seed}" / "run.json").unlink()
    written, said = told(runs, results)
    assert written == [] and words in said[0]
    assert (results / "toy.full.json").read_bytes() == before


def test_a_record_says_what_its_run_depended_on(runs, tmp_path, finish):
    results = tmp_path / "results"
    for seed in FRESH:
        folder = runs / "toy" / "full" / f"seed{seed}"
        inputs = json.loads((folder / "run.json").read_text())["inputs"]
        inputs["parameters"] |= {"lr": 0.1, "data": str(tmp_path), "weights": "/a/b.pt"}
        finish(folder, inputs={**inputs, "data": {"data": "d4"}}, threads="1")
    assert told(runs, results) == (["toy.full.json"], [])
    text = (results / "toy.full.json").read_text()
    environment = json.loads(text)["runs"][2]["environment"]
    assert environment["parameters"] == {"lr": 0.1, "weights": "b.pt"}
    assert environment["data"] == {"data": "d4"} and environment["threads"] == "1"
    assert environment["library"] == {"minilib/batch.py": "c3"}
    assert str(tmp_path) not in text and "/a/" not in text


def test_records_of_before_are_not_mixed_with_new_ones(runs, tmp_path):
    results = tmp_path / "results"
    told(runs, results)
    path = results / "toy.full.json"
    data = json.loads(path.read_text())
    for run in data["runs"]:
        run["environment"] = {"commit": "abc"}
    path.write_text(json.dumps(data))
    assert claims.collect(results, ["full"], ["toy"])[0].verdict.n == 5
    (runs / "toy" / "full" / "seed11" / "run.json").unlink()
    written, said = told(runs, results)
    assert written == [] and "does not say with which parameters" in said[0]
    assert json.loads(path.read_text()) == data


# Which runs may become records


def about(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            {"uncommitted": ["minilib/train.py", "notebooks/01_clip.ipynb"]},
            "uncommitted changes (minilib/train.py, notebooks/01_clip.ipynb)",
        ),
        ({"commit": None, "uncommitted": None}, "did not run from a checkout"),
        (
            {"changed_meanwhile": "commit c0ffee became facade"},
            "commit c0ffee became facade while it ran",
        ),
    ],
)
def test_a_run_without_a_clean_commit_is_not_collected(runs, tmp_path, made, words):
    run, results = runs / "toy" / "full" / "seed11", tmp_path / "results"
    change(run / "run.json", **made)
    written, said = told(runs, results)
    assert len(said) == 1 and said[0].startswith(f"{run}: left out: toy full seed 11: ")
    assert words in said[0]
    assert seeds(results / written[0]) == [10, 12, 13, 14]


def test_a_run_stamped_at_its_end_is_not_collected(runs, tmp_path):
    run = runs / "toy" / "full" / "seed11"
    old = about(run)
    del old["uncommitted"], old["changed_meanwhile"]
    (run / "run.json").write_text(json.dumps(old | {"uncommitted_changes": False}))
    _, (said,) = told(runs, tmp_path / "results")
    assert str(run) in said and "run.json is of an older form" in said
    assert claims.collect(runs, ["full"])[0].verdict.n == 5, "it is still read"


def test_a_run_that_does_not_hold_its_test_is_not_collected(runs, tmp_path):
    run = runs / "toy" / "full" / "seed11"
    data = json.loads((run / "result.json").read_text())
    del data["claims"]["toy.gain"]["test"]
    (run / "result.json").write_text(json.dumps(data))
    _, (said,) = told(runs, tmp_path / "results")
    assert "does not hold the test that it made (toy.gain)" in said and str(run) in said


def test_a_seed_that_the_ledger_does_not_name_is_not_collected(runs, tmp_path, finish):
    for profile, seed in (("full", 2), ("quick", 2)):
        out = runs / "toy" / profile / f"seed{seed}"
        out.mkdir()
        record(out, profile=profile, seed=seed)
        finish(out)
    written, (said,) = told(runs, tmp_path / "results", ("full", "quick"))
    assert "full/seed2: left out" in said and "seeds 0, 1, 10, 11, 12, 13, 14" in said
    assert seeds(tmp_path / "results" / "toy.full.json") == list(FRESH)
    assert seeds(tmp_path / "results" / "toy.quick.json") == [2, 10]
    assert len(written) == 2


def test_fresh_seeds_of_several_commits_are_not_collected(runs, tmp_path, finish):
    results, run = tmp_path / "results", runs / "toy" / "full" / "seed12"
    change(run / "run.json", commit="facade" * 6)
    written, (said,) = told(runs, results)
    assert written == [] and said.startswith("toy.full.json: not merged: ")
    assert "c0ffeec0 (seed 10, 11, 13, 14); facadefa (seed 12)" in said
    # nor one after the other
    place = run.rename(tmp_path / "seed12")
    assert told(runs, results)[0] == ["toy.full.json"]
    for seed in (10, 11, 13, 14):
        shutil.rmtree(runs / "toy" / "full" / f"seed{seed}")
    place.rename(run)
    assert told(runs, results)[0] == []
    # A pilot is of an earlier commit.
    change(run / "run.json", commit="c0ffee" * 6)
    finish(runs / "toy" / "full" / "seed0", commit="facade" * 6)
    assert told(runs, results) == (["toy.full.json"], [])
    (row,) = [r for r in claims.collect(results, ["full"]) if r.verdict.n]
    assert row.verdict.kind == "reproduced" and len(row.verdict.pilot) == 1


def test_a_pilot_unlike_the_fresh_seeds_is_left_out_and_costs_nothing(
    runs, tmp_path, finish
):
    pilot = runs / "toy" / "full" / "seed0"
    finish(pilot)
    inputs = about(pilot)["inputs"]
    change(pilot / "run.json", inputs={**inputs, "notebook": ["a0"]})
    written, (said,) = told(runs, tmp_path / "results")
    assert said.startswith("toy.full.json: left out: seed 0")
    assert seeds(tmp_path / "results" / written[0]) == list(FRESH)
    (row,) = [r for r in claims.collect(runs, ["full"]) if r.verdict.n]
    assert row.verdict.kind == "reproduced" and row.verdict.pilot == ()


def test_a_copy_of_a_run_is_not_another_seed(runs, tmp_path):
    run, results = runs / "toy" / "full" / "seed10", tmp_path / "results"
    shutil.copytree(run, runs / "old" / "toy" / "full" / "seed10")
    edit(runs / "old" / "toy" / "full" / "seed10", "0.9", "0.1")
    shutil.copytree(run, run.with_name("seed10-mine"))
    _, said = told(runs, results)
    assert len(said) == 2
    assert "belongs into a folder" in said[0] and "seed10-mine" in said[0]
    assert "holds toy full seed 10, too" in said[1]
    (kept, *_) = claims.read_records(results / "toy.full.json")
    assert kept.measurements["toy.gain"].treatment == 0.9


def test_broken_results_are_named_before_anything_is_written(runs, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for name, text, words in [
        ("lseg.full.json", "{", "lseg.full.json is not a record"),
        (
            "lseg.full.json",
            json.dumps(
                {
                    "chapter": "toy",
                    "profile": "full",
                    "runs": [{"seed": 10, "claims": {}, "results": {}}],
                }
            ),
            "holds toy full seed 10, which belongs into a file toy.full.json",
        ),
    ]:
        (results / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            told(runs, results)
        assert [path.name for path in results.iterdir()] == [name]


def test_another_chapters_damaged_run_does_not_matter(runs):
    run = runs / "lseg" / "full" / "seed10"
    run.mkdir(parents=True)
    (run / "run.json").write_text("")
    (run / "result.json").write_text("")
    assert claims.collect(runs, ["full"], ["toy"])[0].verdict.n == 5


def test_a_finished_runs_result_is_not_overwritten_by_another(runs):
    finished = runs / "toy" / "full" / "seed10"
    before = (finished / "result.json").read_bytes()
    for other in ({"seed": 11}, {"profile": "quick"}):
        with pytest.raises(
            ValueError, match="holds the finished run of toy full seed 10"
        ):
            record(finished, **other)
        with pytest.raises(ValueError, match="into another folder"):
            claims.record_result(
                "toy.top1", 1.0, **{"profile": "full", "seed": 10, **other},
                out=finished,
            )  # fmt: skip
    assert (finished / "result.json").read_bytes() == before


def test_quote_needs_a_record(runs, tmp_path):
    claims.merge(runs, tmp_path / "results", ["full"])
    assert (
        claims.quote("toy.top1", sources=tmp_path / "results")
        == "90.2 % (90.0 to 90.4, 5 seeds)"
    )
    with pytest.raises(ValueError, match="toy.top5"):
        claims.quote("toy.top5", sources=tmp_path / "results")


def test_tables_say_verdicts_in_words(runs):
    rows = claims.collect(runs, ["full", "quick"], ["toy"])
    markdown = claims.table(rows)
    assert "| toy.gain: Text helps | full | ✔ reproduced | 90.2 %" in markdown
    assert "+10.2 (+10.0 to +10.4)" in markdown and "over test items" in markdown
    assert len({line.count("|") for line in markdown.strip().splitlines()}) == 1, (
        "rows of unequal width"
    )
    shown = claims.verdicts(runs, ["full"], "toy")
    assert repr(shown) == "Verdicts on 4 claims"
    page = shown._repr_html_()
    assert "✔</span> reproduced" in page and "–</span> not run" in page
    assert "background" not in page and "color:" not in page.replace(
        "color:inherit", ""
    )
    assert len(set(judging.ICONS.values())) == len(judging.KINDS)


def test_scoreboard_follows_the_records(runs, tmp_path):
    results = tmp_path / "results"
    assert "No results" in claims.scoreboard(tmp_path / "empty")
    claims.merge(runs, results, ["full"])
    (line,) = [
        line
        for line in claims.scoreboard(results).splitlines()
        if line.startswith("| toy | full")
    ]
    assert line.split("|")[3].strip() == "5" and line.split("|")[4].strip() == "gain"


def test_numbers_have_no_minus_zero():
    assert reports.number_text(-0.0001, "percent", sign=True) == "0.0"
    assert reports.number_text(-0.5, "percent", sign=True) == "−50.0"
    assert reports.number_text(0.5, "percent", sign=True) == "+50.0"
