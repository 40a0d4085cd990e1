"""Every chapter of the ledger offers the same things under the same names."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import types
from dataclasses import replace

import pytest
import torch

from minilib import claims, parameters
from minilib.claims.chapter import Chapter, Run, chapters, find_chapter
from minilib.training import Training

PARTS = ("Values", "PROFILES", "Study", "study", "main_training", "CHAPTER", "open")
SIGNATURES = {"study": ["run", "values"], "main_training": ["run", "values", "study"]}


def faults(paper: str, module: types.ModuleType) -> list[str]:
    """What a chapter's module lacks of the contract."""
    found = [f"no {part}" for part in PARTS if not hasattr(module, part)]
    if found:
        return found
    for name, wanted in SIGNATURES.items():
        given = list(inspect.signature(getattr(module, name)).parameters)
        if given != wanted:
            found.append(f"{name}({', '.join(given)}), expected ({', '.join(wanted)})")
    if not (
        dataclasses.is_dataclass(module.Values)
        and module.Values.__dataclass_params__.frozen
    ):
        found.append("Values is not a frozen dataclass")
    if (
        not {"quick", "full", "photos"}
        <= set(module.PROFILES)
        <= set(parameters.PROFILES)
    ):
        found.append(f"PROFILES has {', '.join(module.PROFILES)}")
    if not all(
        isinstance(values, module.Values) for values in module.PROFILES.values()
    ):
        found.append("PROFILES holds something else than Values")
    chapter = module.CHAPTER
    if not isinstance(chapter, Chapter):
        return [*found, "CHAPTER is not a Chapter"]
    parts = (chapter.paper, chapter.profiles, chapter.study, chapter.main_training)
    if parts != (paper, module.PROFILES, module.study, module.main_training):
        found.append("CHAPTER is made of other parts than the module's own")
    if module.open != chapter.open:
        found.append("open is not CHAPTER.open")
    explained = set(chapter.profiles) | set(chapter.missing)
    if explained != set(parameters.PROFILES) or set(chapter.profiles) & set(
        chapter.missing
    ):
        found.append(f"profiles with values or a reason: {sorted(explained)}")
    if "data" not in chapter.needs.get("photos", {}):
        found.append("photos does not say which data it needs")
    return found


def module_of(paper: str) -> types.ModuleType:
    return importlib.import_module(f"minilib.recipes.{paper}.chapter")


every = pytest.mark.parametrize("paper", claims.papers())


def test_chapters_and_ledgers_are_the_same_papers():
    assert chapters() == claims.papers()


@every
def test_a_chapter_keeps_the_contract(paper):
    assert faults(paper, module_of(paper)) == []


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_noticed(part, monkeypatch):
    module = module_of("clip")
    monkeypatch.delattr(module, part)
    assert faults("clip", module) == [f"no {part}"]


def test_other_breaches_are_noticed(monkeypatch):
    module = module_of("clip")
    monkeypatch.setattr(module, "study", lambda values, run: None)
    assert any(
        fault.startswith("study(values, run)") for fault in faults("clip", module)
    )
    monkeypatch.setattr(
        module, "CHAPTER", replace(module.CHAPTER, missing={}, needs={})
    )
    assert len(faults("clip", module)) >= 3


@every
def test_the_main_training_runs_from_its_arguments_alone(paper, tmp_path):
    given = parameters.check(profile="quick", seed=3, device="cpu", out=tmp_path)
    first, second = (find_chapter(paper).training(given) for _ in range(2))
    assert isinstance(first, Training)
    torch.testing.assert_close(first.model.state_dict(), second.model.state_dict())
    other = find_chapter(paper).training(replace(given, seed=4))
    states = first.model.state_dict(), other.model.state_dict()
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0]), (
        "the seed is not used"
    )
    short = replace(first, config=replace(first.config, steps=1), evaluate=None)
    history = short.fit(tmp_path / "main", progress=None)
    assert history.rows[-1]["step"] == 1


@every
def test_profiles_that_cannot_run_are_refused_by_name(paper, tmp_path):
    chapter = find_chapter(paper)
    for profile in ("photos", "paper"):
        with pytest.raises(
            ValueError, match=f"profile='{profile}' (is not run here|needs data)"
        ):
            chapter.open(profile=profile, seed=0, out=tmp_path)


@every
def test_relative_data_reach_the_study_as_an_absolute_path(
    paper, tmp_path, monkeypatch
):
    root = tmp_path / "repository"
    (root / "data" / "photos").mkdir(parents=True)
    monkeypatch.setattr(parameters, "repository", lambda: root)
    monkeypatch.chdir(tmp_path)
    seen = []
    chapter = replace(
        find_chapter(paper), study=lambda run, values: seen.append(run.data)
    )
    run = chapter.open(
        profile="photos", seed=0, device="cpu", out=tmp_path, data="data/photos"
    )
    assert run.photos and run.study is None
    assert seen == [(root / "data" / "photos").resolve()]
    # the folder is empty, and says so
    with pytest.raises((ValueError, FileNotFoundError)):
        _ = replace(run, chapter=find_chapter(paper)).study


# --- What a notebook does with its run ------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Run:
    return find_chapter("clip").open(
        profile="quick", seed=2, device="cpu", out=tmp_path
    )


@pytest.fixture
def toy_run(run, toy) -> Run:
    """A run of a chapter whose claims are those of the toy ledger."""
    return replace(run, chapter=replace(run.chapter, paper="toy"), profile="full")


def test_a_run_records_under_its_chapters_name(toy_run, toy):
    toy_run.record(
        "gain", treatment=0.8, control=0.5, n=100, controls={"shuffled text": 0.1}
    )
    learned = {"share of the mean's error": 0.5, "accuracy of the text tower": 0.9}
    toy_run.record("error", treatment=2, control=3, n=100, preconditions=learned)
    toy_run.result("top1", 0.8)
    (records,) = claims.read_records(toy_run.out / "result.json")
    assert (records.chapter, records.profile, records.seed) == ("toy", "full", 2)
    assert records.measurements["toy.gain"].treatment == 0.8
    assert records.measurements["toy.error"].preconditions == learned
    assert records.results == {"toy.top1": 0.8}
    assert "toy.gain" in claims.table(toy_run.verdicts().rows)


def test_a_claim_without_a_test_prints_the_ledgers_reason(toy_run, toy, capsys):
    quick = replace(toy_run, profile="quick")
    assert not quick.tests("error")
    quick.record("error", treatment=1.0, control=0.0, n=1)
    said = capsys.readouterr().out
    assert " ".join(said.split()).count(toy["toy.error"].tests["quick"]) == 2
    assert max(map(len, said.splitlines())) <= 88
    assert not (toy_run.out / "result.json").exists()
    assert toy_run.tests("error")
    with pytest.raises(ValueError, match="unknown claim"):
        toy_run.tests("C99")


def test_committed_records_are_read_by_name(toy_run, tmp_path, monkeypatch):
    """Of the fresh seeds; of pilots only where there is nothing else."""
    results = tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(claims.reports, "results_folder", lambda: results)
    assert toy_run.recorded("full", "top1") == []

    def commit(*seeds):
        entry = {"treatment": 2, "control": 3, "n": 9}
        runs = [
            {
                "seed": seed,
                "claims": {"toy.same": entry | {"details": {"at": seed}}},
                "results": {"toy.top1": seed / 100},
            }
            for seed in seeds
        ]
        data = {"chapter": "toy", "profile": "full", "runs": runs}
        (results / "toy.full.json").write_text(json.dumps(data))

    commit(0, 1)
    assert toy_run.recorded("full", "top1") == [0, 0.01]
    commit(0, 1, 10, 11)
    assert toy_run.recorded("full", "top1") == [0.1, 0.11]
    assert toy_run.recorded_details("full", "same") == [{"at": 10}, {"at": 11}]
    assert toy_run.recorded("full", "nothing") == []
    assert toy_run.recorded("quick", "top1") == []
    assert len(toy_run.verdicts("full", "photos").rows) == 2 * 4


# --- Where a run writes ---------------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Where relative folders for results are."""
    monkeypatch.setenv("MINILIB_OUT_ROOT", str(tmp_path))
    monkeypatch.delenv("MINILIB_OPENED", raising=False)
    return tmp_path


DEFAULT = "runs/clip/quick/seed0"


@pytest.mark.parametrize(
    ("profile", "seed", "folder"),
    [
        ("quick", 0, DEFAULT),
        ("quick", 1, "runs/clip/quick/seed1"),
        ("full", 0, "runs/clip/full/seed0"),
    ],
)
def test_the_default_out_follows_profile_and_seed(root, capsys, profile, seed, folder):
    opening = dict(profile=profile, seed=seed, device="cpu")
    run = find_chapter("clip").open(**opening, out=DEFAULT)
    assert run.out == (root / folder).resolve()
    said = capsys.readouterr().out
    moved = folder != DEFAULT
    assert said == f"profile: {profile}\n" + f"results go to {folder}\n" * moved
    elsewhere = find_chapter("clip").open(**opening, out=root / "mine")
    assert elsewhere.out == (root / "mine").resolve(), "a folder that was named stays"


def test_a_finished_runs_folder_is_not_written_to(root, capsys, monkeypatch, finish):
    opening = dict(profile="quick", seed=1, device="cpu")
    finished = root / "runs" / "clip" / "quick" / "seed1"
    finished.mkdir(parents=True)
    finish(finished)
    run = find_chapter("clip").open(**opening, out=DEFAULT)
    assert run.out == (root / "runs/clip/quick/seed1-notebook").resolve()
    said = capsys.readouterr().out
    assert "seed1-notebook, since runs/clip/quick/seed1 holds a finished run" in said
    run.result("zero_shot_top1", 0.8)
    assert [path.name for path in finished.iterdir()] == ["run.json"]
    for out in ("runs/clip/quick/seed1", finished):
        with pytest.raises(ValueError, match="holds a finished run of minilib"):
            find_chapter("clip").open(**opening, out=out)
    # minilib reproduce sets this in the kernels that it starts
    monkeypatch.setenv("MINILIB_OPENED", str(finished / "opened.txt"))
    assert find_chapter("clip").open(**opening, out=finished).out == finished.resolve()
