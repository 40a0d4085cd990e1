"""What chapter 1 records for a claim is the named result that it says it is."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from minilib import claims
from minilib.claims.reports import results_folder
from minilib.recipes.clip import figures

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "01_clip.ipynb"

# claim -> (treatment, control, further controls, preconditions), each of them a named
# result and the keys that lead to a number in it
RECORDED: dict[str, tuple[str, str, dict[str, str], dict[str, str]]] = {
    "C1": (
        "race/bag",
        "race/prediction",
        {"shuffled captions": "race/bag, shuffled"},
        {"milestone": "race/milestone"},
    ),
    "C2": (
        "combinations/transformer/unseen",
        "combinations/two heads/unseen",
        {"lookup table": "combinations/lookup table/unseen"},
        {
            "seen ones, CLIP": "combinations/transformer/seen",
            "seen ones, two heads": "combinations/two heads/seen",
        },
    ),
    "supervised": (
        "top1/words",
        "top1/labels",
        {},
        {
            "late gain, words": "top1/late gain, words",
            "late gain, labels": "top1/late gain, labels",
        },
    ),
    "C3a": ("prompts/one template", "prompts/bare word", {}, {}),
    "C3b": ("prompts/ensemble", "prompts/one template", {}, {}),
    "C4": (
        "worth/zero-shot",
        "worth/one image",
        {"random-string class names": "worth/random names"},
        {"zero-shot top-1": "worth/top1"},
    ),
    "C7": (
        "robustness/zero-shot, two styles",
        "robustness/supervised",
        {"zero-shot, one style": "robustness/zero-shot, one style"},
        {"reach of the rivals": "robustness/reach"},
    ),
    "C7b": ("probe_gains/shifted", "probe_gains/reference", {}, {}),
    "C8": ("law/measured", "law/expected", {}, {}),
    "counting": ("counting/zero-shot", "counting/probe", {}, {}),
    "chance": ("counting/zero-shot", "counting/chance", {}, {}),
    "relations": (
        "relations/contrary",
        "relations/chance",
        {"one object replaced": "relations/replaced"},
        {},
    ),
    "polysemy": ("polysemy/mean/edited", "polysemy/mean/bare", {}, {}),
    "identity": ("polysemy/mean/bare", "polysemy/mean/guess", {}, {}),
    "data": (
        "top1/words, 1/64",
        "top1/words",
        {},
        {"top-1 on all pairs": "top1/words"},
    ),
    "labels": ("kept/words", "kept/labels", {}, {"top-1 that words lose": "kept/lost"}),
}


def calls(name: str) -> list[ast.Call]:
    """The notebook's calls of ``run.<name>``."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [
        node
        for source in code
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"run.{name}"
    ]


def path(node: ast.expr, results: dict[str, str]) -> str:
    """``worth["top1"]`` -> "worth/top1", where ``worth`` is kept as a result."""
    keys: list[str] = []
    while isinstance(node, ast.Subscript):
        keys.insert(0, ast.literal_eval(node.slice))
        node = node.value
    return "/".join([results[ast.unparse(node)], *keys])


def recorded_in_the_notebook() -> dict[str, Any]:
    results = {
        ast.unparse(call.args[1]): ast.literal_eval(call.args[0])
        for call in calls("result")
    }
    found = {}
    for call in calls("record"):
        words = {word.arg: word.value for word in call.keywords}
        named = {
            kind: {
                ast.literal_eval(key): path(value, results)
                for key, value in zip(words[kind].keys, words[kind].values, strict=True)
            }
            if kind in words
            else {}
            for kind in ("controls", "preconditions")
        }
        main = (path(words[kind], results) for kind in ("treatment", "control"))
        found[ast.literal_eval(call.args[0])] = (*main, *named.values())
    return found


def test_the_notebook_records_named_results() -> None:
    assert recorded_in_the_notebook() == RECORDED


def test_every_claim_of_the_ledger_is_recorded_with_what_it_names() -> None:
    ledger = claims.load("clip")
    assert {f"clip.{claim}" for claim in RECORDED} == set(ledger)
    for claim, (_, _, controls, preconditions) in RECORDED.items():
        for test in ledger[f"clip.{claim}"].tests.values():
            if not isinstance(test, str):
                assert set(test.controls) == set(controls), claim
                assert set(test.preconditions) == set(preconditions), claim


def inside(results: Any, name: str) -> float:
    first, *keys = name.split("/")
    found = results[f"clip.{first}"]
    for key in keys:
        found = found[key]
    return found


@pytest.mark.parametrize("profile", ["full", "photos"])
def test_committed_records_hold_named_results(profile: str) -> None:
    """Nothing to compare until a profile has been run."""
    file = Path(results_folder()) / f"clip.{profile}.json"
    runs = claims.read_records(file) if file.is_file() else []
    for run in runs:
        for id_, measured in run.measurements.items():
            treatment, control, controls, conditions = RECORDED[id_.partition(".")[2]]
            assert measured.treatment == inside(run.results, treatment), id_
            assert measured.control == inside(run.results, control), id_
            for named, numbers in (
                (controls, measured.controls),
                (conditions, measured.preconditions),
            ):
                found = {key: inside(run.results, name) for key, name in named.items()}
                assert dict(numbers) == found, id_


def test_what_the_seeds_say_are_named_results() -> None:
    known = {ast.literal_eval(call.args[0]) for call in calls("result")}
    assert {name.split("/")[0] for _, name, _ in figures.SEEDS_SAY} <= known
