"""The ledger's data, what notebooks may record, and the verdicts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from minilib import claims
from minilib.claims import judging, records, reports
from minilib.parameters import PROFILES

WHERE = {"profile": "full", "n": 100}


def measure(differences, claim="clip.C1", profile="full", **controls):
    """Measurements with the given differences treatment - control, one a seed."""
    test = claims.load("clip")[claim].test(profile)
    values = {name: controls.get(name, 0.0) for name in test.controls}
    return [
        claims.Measurement(claim, profile, seed, 0.5 + d, 0.5, 100, controls=values)
        for seed, d in enumerate(differences)
    ]


# The ledger


def test_every_ledger_is_valid_and_covers_every_profile():
    assert "clip" in claims.papers()
    for paper in claims.papers():
        for claim in claims.load(paper).values():
            assert set(claim.tests) == set(PROFILES)
            assert claim.paper == paper


def test_clip_ledger_has_the_chapters_claims():
    expected = "C1 C2 C3 C4 C7 counting relations polysemy data".split()
    assert [id_.removeprefix("clip.") for id_ in claims.load("clip")] == expected


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("direction: greater", "direction: bigger", "bigger"),
        ("margin: 0.05", "margin: -0.05", "minimum"),
        ("margin: 0.05", "margin: small", "small"),
        ("min_seeds: 3", "min_seeds: 1", "minimum"),
        ("    unit: percent", "    units: percent", "unit"),
        ("id: clip.C2", "id: clip.C1", "repeated"),
        ("id: clip.C2", "id: lseg.C2", "lseg.C2"),
        ("where: §2.3, Figure 2", "where: ''", "short|non-empty"),
        ("where: §2.3, Figure 2", "where: '  '", "where: '  ' does not match"),
        ("where: §2.3, Figure 2", "where: 2021-02-26", "where: .* 'string'"),
        ("min_seeds: 3", "min_seeds: 3.5", "min_seeds: 3.5 is not of type 'integer'"),
        ("margin: 0.05", "margin: true", "margin: True is not of type 'number'"),
        ("      photos: {not_run:", "      fotos: {not_run:", "photos|fotos"),
    ],
)
def test_ledger_that_breaks_the_schema_is_refused(old, new, words):
    text = (records._LEDGER / "clip.yaml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(ValueError, match=words):
        records.parse(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("margin: 0.05", "margin: .nan", ".nan is not a plain finite number"),
        ("margin: 0.05", "margin: .inf", ".inf is not a plain finite number"),
        ("margin: 0.05", "margin: 1.0e+400", "1.0e+400 is not a plain finite number"),
        ("margin: 0.05", "margin: 1:30", "1:30 is not a plain finite number"),
        ("min_seeds: 3", "min_seeds: 010", "010 is not a plain finite number"),
        (
            "margin: 0.05",
            "margin: 0.05\n        margin: 0.5",
            "'margin' is given twice",
        ),
        ("margin: 0.05", "margin: 0.05\n        7: x", "the key '7' is not text"),
        ("margin: 0.05", "margin: [0.05", "expected ',' or ']'"),
    ],
)
def test_what_yaml_lets_through_is_refused_with_its_line(old, new, words):
    text = (records._LEDGER / "clip.yaml").read_text(encoding="utf-8")
    line = text[: text.index(old)].count("\n") + 1
    found = text.replace(old, new, 1)
    with pytest.raises(ValueError) as error:
        records.parse(found, source="ledger/clip.yaml")
    message = str(error.value)
    assert words in message and message.startswith("ledger/clip.yaml, line ")
    named = int(message.split("line ")[1].split(":")[0])
    assert line <= named <= line + 1 and "\n" not in message


def test_merged_keys_may_be_overridden():
    """``<<`` brings keys in that the mapping gives again, in whatever order they are
    read."""
    text = (records._LEDGER / "clip.yaml").read_text(encoding="utf-8")
    assert text.count("<<: *") > 3
    claim = records.parse(text)["clip.C1"]
    assert claim.test("full").budget != claim.test("quick").budget
    assert claim.test("full").margin == claim.test("quick").margin == 0.05


def test_unknown_names_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="no ledger for paper 'clap'"):
        claims.load("clap")
    with pytest.raises(ValueError, match="clip.polysemy"):
        claims.record(
            "clip.polysemi", treatment=1, control=0, seed=0, out=tmp_path, **WHERE
        )
    with pytest.raises(ValueError, match="clip.C1"):
        claims.record("C1", treatment=1, control=0, seed=0, out=tmp_path, **WHERE)
    assert not list(tmp_path.iterdir())


# Recording


def record(out, claim="clip.C3", seed=0, treatment=0.9, control=0.8, **more):
    arguments = {"controls": {"one template": 0.85}, **WHERE, **more}
    return claims.record(
        claim, treatment=treatment, control=control, seed=seed, out=out, **arguments
    )


def test_record_writes_and_reads_back(tmp_path):
    given = record(
        tmp_path,
        treatment=torch.tensor(0.75),
        control=np.float32(0.5),
        interval=(0.2, 0.3),
        details={"curve": torch.tensor([0.5, 1.0]), "templates": 7},
    )
    (run,) = claims.read_records(tmp_path / "result.json")
    assert (run.chapter, run.profile, run.seed) == ("clip", "full", 0)
    assert run.measurements == {"clip.C3": given}
    assert given.treatment == 0.75 and given.interval == (0.2, 0.3)
    assert given.details == {"curve": [0.5, 1.0], "templates": 7}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"], (
        "a temporary file was left"
    )


def test_recording_again_replaces_and_keeps_the_others(tmp_path):
    record(tmp_path)
    record(tmp_path, "clip.polysemy", controls=None)
    claims.record_result(
        "clip.top1", torch.tensor(0.9), profile="full", seed=0, out=tmp_path
    )
    record(tmp_path, treatment=0.95)
    (run,) = claims.read_records(tmp_path / "result.json")
    assert run.measurements["clip.C3"].treatment == 0.95
    assert set(run.measurements) == {"clip.C3", "clip.polysemy"}
    assert run.results["clip.top1"] == pytest.approx(0.9)


def test_another_run_does_not_mix_with_the_old(tmp_path):
    record(tmp_path)
    record(tmp_path, "clip.polysemy", controls=None, seed=1)
    (run,) = claims.read_records(tmp_path / "result.json")
    assert run.seed == 1 and set(run.measurements) == {"clip.polysemy"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"treatment": float("nan")}, "treatment is nan"),
        ({"control": float("inf")}, "control is inf"),
        ({"controls": {"one template": float("nan")}}, "one template"),
        ({"controls": None}, "controls are 'one template'"),
        (
            {"controls": {"one template": 0.1, "two": 0.1}},
            "controls are 'one template'",
        ),
        ({"details": {"loss": float("nan")}}, "loss"),
        ({"n": 0}, "n=0"),
        ({"profile": "ful"}, "profile='ful'"),
        ({"profile": "paper"}, "not tested at profile 'paper'"),
    ],
)
def test_bad_measurement_is_refused_and_writes_nothing(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        record(tmp_path, **change)
    assert not list(tmp_path.iterdir())


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


# Verdicts


@pytest.mark.parametrize(
    ("claim", "differences", "kind"),
    [
        ("clip.C1", [0.30, 0.31, 0.32], "reproduced"),  # greater, margin 0.05
        ("clip.C1", [0.01, 0.02, 0.03], "not reproduced"),
        ("clip.C1", [0.02, 0.10, 0.30], "inconclusive"),
        ("clip.C1", [0.06, 0.06, 0.06], "reproduced"),  # no spread at all
        ("clip.counting", [-0.30, -0.31, -0.32], "reproduced"),  # smaller, margin 0.1
        ("clip.counting", [0.30, 0.31, 0.32], "not reproduced"),
        ("clip.relations", [0.00, 0.01, -0.01], "reproduced"),  # equal, margin 0.1
        ("clip.relations", [0.30, 0.31, 0.32], "not reproduced"),
        ("clip.relations", [-0.30, -0.31, -0.32], "not reproduced"),
        ("clip.relations", [0.0, 0.1, 0.2], "inconclusive"),
    ],
)
def test_verdict_by_the_rule(claim, differences, kind):
    well_behaved = {
        "one object replaced": 1.0,
        "chance": 0.5 + float(np.mean(differences)),
    }
    verdict = claims.judge(
        claims.load("clip")[claim], measure(differences, claim, **well_behaved)
    )
    assert verdict.kind == kind, verdict
    assert verdict.n == 3 and verdict.mean == pytest.approx(np.mean(differences))
    assert verdict.low <= verdict.mean <= verdict.high
    assert verdict.agrees is None


def test_few_seeds_are_only_indicative():
    claim = claims.load("clip")["clip.C1"]
    for differences, agrees in ([0.3], True), ([0.04], False), ([0.3, 0.4], True):
        verdict = claims.judge(claim, measure(differences))
        assert verdict.kind == "indicative" and verdict.agrees is agrees
    assert (
        verdict.text == "indicative (agrees)"
        and "2 of at least 3 seeds" in verdict.reason
    )
    assert claims.judge(claim, measure([0.3])).low is None, (
        "one seed has no interval over seeds"
    )


def test_a_control_that_fails_takes_the_verdict_away():
    claim = claims.load("clip")["clip.C1"]
    differences = [0.30, 0.31, 0.32]
    verdict = claims.judge(claim, measure(differences, **{"shuffled captions": 0.8}))
    assert verdict.kind == "inconclusive" and "shuffled captions" in verdict.reason
    assert (
        claims.judge(claim, measure([0.3], **{"shuffled captions": 0.8})).agrees
        is False
    )


def test_reproduced_needs_every_control_decided_and_in_every_seed():
    claim = claims.load("clip")["clip.C1"]
    runs = measure([0.3, 0.31, 0.29])
    assert claims.judge(claim, runs).kind == "reproduced"
    spread = [
        replace(run, controls={"shuffled captions": value})
        for run, value in zip(runs, (0.0, 0.9, 0.5), strict=True)
    ]
    verdict = claims.judge(claim, spread)
    assert verdict.kind == "inconclusive"
    assert "shuffled captions is undecided" in verdict.reason
    gap = [*runs[:2], replace(runs[2], controls={})]
    verdict = claims.judge(claim, gap)
    assert verdict.kind == "inconclusive"
    assert "shuffled captions is missing in a seed" in verdict.reason
    # a claim that fails fails, whatever its controls do
    lost = [replace(run, treatment=0.1, controls={}) for run in runs]
    assert claims.judge(claim, lost).kind == "not reproduced"


def test_nothing_measured_is_not_run_with_the_reason():
    claim = claims.load("clip")["clip.C1"]
    assert claims.judge(claim, [], "full").kind == "not run"
    assert "GPUs" in claims.judge(claim, [], "paper").reason


def test_measurements_that_do_not_belong_together_are_refused():
    claim = claims.load("clip")["clip.C1"]
    one = measure([0.3, 0.3])
    for bad in (
        measure([0.3], "clip.C7"),
        [one[0], replace(one[1], profile="quick")],
        [one[0], one[0]],
    ):
        with pytest.raises(ValueError):
            claims.judge(claim, bad)


def test_t_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    for seeds in (3, 5):
        hits = 0
        for values in generator.normal(0.2, 0.05, size=(4000, seeds)):
            low, high = claims.t_interval(values)
            hits += low <= 0.2 <= high
        assert abs(hits / 4000 - 0.95) < 0.012, (
            "more than three standard errors from 95 %"
        )
    with pytest.raises(ValueError, match="at least 2"):
        claims.t_interval([1.0])


def test_wrong_verdicts_are_rare_when_the_effect_is_at_the_margin():
    claim = claims.load("clip")["clip.C1"]
    generator = np.random.default_rng(1)
    kinds = [
        claims.judge(claim, measure(d)).kind
        for d in generator.normal(0.05, 0.02, size=(1500, 3))
    ]
    # The interval misses the margin in 5 % of batches, half of them on each side.
    assert abs(np.mean([kind == "reproduced" for kind in kinds]) - 0.025) < 0.013
    assert abs(np.mean([kind == "not reproduced" for kind in kinds]) - 0.025) < 0.013


def test_bootstrap_covers_the_mean_and_follows_its_seed():
    generator = np.random.default_rng(2)
    hits = 0
    for seed in range(400):
        correct = generator.random(200) < 0.8
        low, high = claims.bootstrap_interval(correct, seed=seed, resamples=400)
        hits += low <= 0.8 <= high
    assert abs(hits / 400 - 0.95) < 0.035
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert claims.bootstrap_interval(values, seed=1) == claims.bootstrap_interval(
        values, seed=1
    )
    assert claims.bootstrap_interval(values, seed=1) != claims.bootstrap_interval(
        values, seed=2
    )
    low, high = claims.bootstrap_interval(values, resamples=20000)
    spread = values.std(correction=0).item() / 50**0.5
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.05)


@pytest.mark.parametrize("items", [[], [[1.0, 2.0]], [1.0, float("nan")]])
def test_bootstrap_refuses_what_is_not_a_row_of_numbers(items):
    with pytest.raises(ValueError, match="per_item"):
        claims.bootstrap_interval(items)


# Reports


@pytest.fixture
def runs(tmp_path, finish):
    """Three finished full runs of C3 and one unfinished, and one quick run."""
    for profile, seed in [
        ("full", 0),
        ("full", 1),
        ("full", 2),
        ("full", 3),
        ("quick", 0),
    ]:
        out = tmp_path / "runs" / "clip" / profile / f"seed{seed}"
        out.mkdir(parents=True)
        record(
            out,
            profile=profile,
            seed=seed,
            treatment=0.9 + 0.001 * seed,
            interval=(0.05, 0.15),
        )
        claims.record_result(
            "clip.top1", 0.9 + 0.001 * seed, profile=profile, seed=seed, out=out
        )
        if seed < 3:
            finish(out)
    return tmp_path / "runs"


def test_collect_takes_finished_runs_only_and_shows_the_rest_as_not_run(runs):
    rows = {(row.claim.id, row.profile): row.verdict for row in claims.collect(runs)}
    assert len(rows) == len(claims.load("clip")) * len(PROFILES) + sum(
        len(claims.load(paper)) * len(PROFILES)
        for paper in claims.papers()
        if paper != "clip"
    )
    assert (
        rows["clip.C3", "full"].kind == "reproduced" and rows["clip.C3", "full"].n == 3
    )
    assert rows["clip.C3", "quick"].text == "indicative (agrees)"
    assert rows["clip.C3", "quick"].items == (0.05, 0.15)
    assert rows["clip.C1", "full"].kind == "not run"


def test_collect_of_nothing(tmp_path):
    assert {row.verdict.kind for row in claims.collect(tmp_path / "nowhere")} == {
        "not run"
    }


def test_collect_refuses_an_unknown_claim(runs):
    path = runs / "clip" / "full" / "seed0" / "result.json"
    path.write_text(path.read_text().replace("clip.C3", "clip.C33"))
    with pytest.raises(ValueError, match="clip.C33"):
        claims.collect(runs)


def test_merge_keeps_other_seeds_and_is_read_back_equal(runs, tmp_path):
    results = tmp_path / "results"
    assert [path.name for path in claims.merge(runs, results, ["full"])] == [
        "clip.full.json"
    ]
    before = claims.collect(runs, ["full"])
    assert [row.verdict for row in claims.collect(results, ["full"])] == [
        row.verdict for row in before
    ]
    # One seed again, the others' runs gone: the merged file keeps them.
    for seed in (1, 2):
        (runs / "clip" / "full" / f"seed{seed}" / "run.json").unlink()
    record(runs / "clip" / "full" / "seed0", treatment=0.99)
    claims.merge(runs, results, ["full"])
    merged = json.loads((results / "clip.full.json").read_text())
    values = {
        run["seed"]: run["claims"]["clip.C3"]["treatment"] for run in merged["runs"]
    }
    assert values == pytest.approx({0: 0.99, 1: 0.901, 2: 0.902})


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
            "result.json is of clip full seed 7, run.json of clip full seed 1",
        ),
        (
            lambda run: change(run / "result.json", profile="photos"),
            "result.json is of clip photos seed 1, run.json of clip full seed 1",
        ),
        (
            lambda run: [
                change(run / name, seed=7) for name in ("result.json", "run.json")
            ],
            "holds clip full seed 7, which belongs into a folder clip/full/seed7",
        ),
        (lambda run: change(run / "result.json", claims=[]), "not a record of results"),
        (lambda run: change(run / "result.json", results=3), "results and environment"),
        (lambda run: change(run / "result.json", seed=-1), "seed=-1"),
        (lambda run: edit(run, "0.901", "NaN"), "treatment is nan"),
        (lambda run: edit(run, "0.901", '"high"'), "treatment is 'high'"),
        (lambda run: edit(run, '"n": 100', '"n": 0'), "n=0"),
        (lambda run: edit(run, "clip.C3", "clip.C33"), "unknown claim 'clip.C33'"),
        (lambda run: edit(run, '"n": 100', '"n": 9, "n": 100'), "'n' is given twice"),
    ],
)
def test_one_bad_record_is_named_and_the_others_are_merged(
    runs, tmp_path, damage, words
):
    bad, results = runs / "clip" / "full" / "seed1", tmp_path / "results"
    damage(bad)
    written, said = told(runs, results)
    assert written == ["clip.full.json"] and len(said) == 1
    assert words in said[0] and str(bad) in said[0] and "\n" not in said[0]
    assert seeds(results / "clip.full.json") == [0, 2]
    (row,) = [r for r in claims.collect(results, ["full"]) if r.verdict.n]
    assert row.verdict.n == 2


def edit(run, old, new):
    path = run / "result.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_a_stale_run_is_named_and_left_out(runs, tmp_path):
    results = tmp_path / "results"
    old = runs / "clip" / "full" / "seed2"
    written, said = told(
        runs,
        results,
        stale=lambda run: ["code cell 3 of the notebook"] if run == old else [],
    )
    assert seeds(results / written[0]) == [0, 1]
    assert len(said) == 1 and str(old) in said[0]
    assert "stale (code cell 3 of the notebook)" in said[0]


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        (
            "parameters",
            {"profile": "full", "seed": 2, "device": "cuda", "lr": 77.0},
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
    results, other = tmp_path / "results", runs / "clip" / "full" / "seed2"
    about = json.loads((other / "run.json").read_text())
    change(other / "run.json", inputs={**about["inputs"], part: value})
    written, said = told(runs, results)
    assert written == [] and list(results.iterdir()) == []
    assert len(said) == 1 and said[0].startswith("clip.full.json: not merged: ")
    assert "seed 0 and seed 2 were not made alike" in said[0] and words in said[0]
    with pytest.warns(UserWarning, match="clip full is not judged: seed 0 and seed 2"):
        rows = claims.collect(runs, ["full"], ["clip"])
    assert {row.verdict.n for row in rows} == {0}
    # The other runs alone are a claim, and the odd one cannot join them later.
    (other / "run.json").rename(tmp_path / "run.json")
    assert told(runs, results) == (["clip.full.json"], [])
    before = (results / "clip.full.json").read_bytes()
    (tmp_path / "run.json").rename(other / "run.json")
    for seed in (0, 1):
        (runs / "clip" / "full" / f"seed{seed}" / "run.json").unlink()
    written, said = told(runs, results)
    assert written == [] and words in said[0]
    assert (results / "clip.full.json").read_bytes() == before


def test_a_record_says_what_its_run_depended_on(runs, tmp_path, finish):
    results = tmp_path / "results"
    for seed in range(3):
        folder = runs / "clip" / "full" / f"seed{seed}"
        inputs = json.loads((folder / "run.json").read_text())["inputs"]
        inputs["parameters"] |= {"lr": 0.1, "data": str(tmp_path), "weights": "/a/b.pt"}
        finish(folder, inputs={**inputs, "data": {"data": "d4"}}, threads="1")
    assert told(runs, results) == (["clip.full.json"], [])
    text = (results / "clip.full.json").read_text()
    environment = json.loads(text)["runs"][2]["environment"]
    assert environment["parameters"] == {"lr": 0.1, "weights": "b.pt"}
    assert environment["data"] == {"data": "d4"} and environment["threads"] == "1"
    assert environment["library"] == {"minilib/batch.py": "c3"}
    assert str(tmp_path) not in text and "/a/" not in text


def test_records_of_before_are_not_mixed_with_new_ones(runs, tmp_path):
    results = tmp_path / "results"
    told(runs, results)
    path = results / "clip.full.json"
    data = json.loads(path.read_text())
    for run in data["runs"]:
        run["environment"] = {"commit": "abc"}
    path.write_text(json.dumps(data))
    assert claims.collect(results, ["full"], ["clip"])[2].verdict.n == 3
    (runs / "clip" / "full" / "seed1" / "run.json").unlink()
    written, said = told(runs, results)
    assert written == [] and "does not say with which parameters" in said[0]
    assert json.loads(path.read_text()) == data


def test_a_copy_of_a_run_is_not_another_seed(runs, tmp_path):
    run, results = runs / "clip" / "full" / "seed0", tmp_path / "results"
    shutil.copytree(run, runs / "old" / "clip" / "full" / "seed0")
    edit(runs / "old" / "clip" / "full" / "seed0", "0.9", "0.1")
    shutil.copytree(run, run.with_name("seed0-mine"))
    _, said = told(runs, results)
    assert len(said) == 2
    assert "belongs into a folder" in said[0] and "seed0-mine" in said[0]
    assert "holds clip full seed 0, too" in said[1]
    (kept, *_) = claims.read_records(results / "clip.full.json")
    assert kept.measurements["clip.C3"].treatment == 0.9


def test_broken_results_are_named_before_anything_is_written(runs, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for name, text, words in [
        ("lseg.full.json", "{", "lseg.full.json is not a record"),
        (
            "lseg.full.json",
            json.dumps(
                {
                    "chapter": "clip",
                    "profile": "full",
                    "runs": [{"seed": 0, "claims": {}, "results": {}}],
                }
            ),
            "holds clip full seed 0, which belongs into a file clip.full.json",
        ),
    ]:
        (results / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            told(runs, results)
        assert [path.name for path in results.iterdir()] == [name]


def test_another_chapters_damaged_run_does_not_matter(runs):
    run = runs / "lseg" / "full" / "seed0"
    run.mkdir(parents=True)
    (run / "run.json").write_text("")
    (run / "result.json").write_text("")
    assert claims.collect(runs, ["full"], ["clip"])[2].verdict.n == 3


def test_a_finished_runs_result_is_not_overwritten_by_another(runs):
    finished = runs / "clip" / "full" / "seed0"
    before = (finished / "result.json").read_bytes()
    for other in ({"seed": 1}, {"profile": "quick"}):
        with pytest.raises(
            ValueError, match="holds the finished run of clip full seed 0"
        ):
            record(finished, **other)
        with pytest.raises(ValueError, match="into another folder"):
            claims.record_result(
                "clip.top1", 1.0, **{"profile": "full", "seed": 0, **other},
                out=finished,
            )  # fmt: skip
    assert (finished / "result.json").read_bytes() == before


def test_quote_needs_a_record(runs, tmp_path):
    claims.merge(runs, tmp_path / "results", ["full"])
    assert (
        claims.quote("clip.top1", sources=tmp_path / "results")
        == "90.1 % (89.9 to 90.3, 3 seeds)"
    )
    with pytest.raises(ValueError, match="clip.top5"):
        claims.quote("clip.top5", sources=tmp_path / "results")


def test_tables_say_verdicts_in_words(runs):
    rows = claims.collect(runs, ["full", "quick"], ["clip"])
    markdown = claims.table(rows)
    assert (
        "| clip.C3: Prompts and their ensemble help | full | ✔ reproduced | 90.1 %"
        in markdown
    )
    assert "+10.1 (+9.9 to +10.3)" in markdown and "over test items" in markdown
    assert len({line.count("|") for line in markdown.strip().splitlines()}) == 1, (
        "rows of unequal width"
    )
    shown = claims.verdicts(runs, ["full"], "clip")
    assert repr(shown) == "Verdicts on 9 claims"
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
        if line.startswith("| clip | full")
    ]
    assert line.split("|")[3].strip() == "3" and line.split("|")[4].strip() == "C3"


def test_numbers_have_no_minus_zero():
    assert reports.number_text(-0.0001, "percent", sign=True) == "0.0"
    assert reports.number_text(-0.5, "percent", sign=True) == "−50.0"
    assert reports.number_text(0.5, "percent", sign=True) == "+50.0"
