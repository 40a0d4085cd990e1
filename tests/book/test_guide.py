"""The skeletons of *How to add a paper* are copied off the page, and run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import minilib.models
import minilib.recipes
from minilib import claims
from minilib.claims import records

ROOT = Path(__file__).resolve().parents[2]
# Another name than the page's, for that paper is going to have a chapter.
PAPER = "sketch"
PAGE = (
    (ROOT / "book" / "howto-add-a-paper.md")
    .read_text("utf-8")
    .replace("groupvit", PAPER)
)
FILE = re.compile(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"^```python\n# notebook\n(.*?)^```", re.MULTILINE | re.DOTALL)


def module_from(path: Path) -> types.ModuleType:
    name = f"guide_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the page's files into a folder from which minilib imports them."""
    root = tmp_path_factory.mktemp("skeleton")
    files = dict(FILE.findall(PAGE))
    assert len(files) == 12, sorted(files)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    own = records._LEDGER
    (root / "minilib/ledger/schema.json").write_text(
        (own / "schema.json").read_text("utf-8")
    )
    with pytest.MonkeyPatch.context() as patch:
        for package in (minilib.models, minilib.recipes):
            folder = root.joinpath(*package.__name__.split("."))
            patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        patch.setattr(records, "_LEDGER", root / "minilib" / "ledger")
        records._load.cache_clear()
        yield root
    records._load.cache_clear()
    for name in [
        name for name in sys.modules if f".{PAPER}" in name or name.startswith("guide_")
    ]:
        del sys.modules[name]


def test_lines_fit_the_page(skeleton: Path) -> None:
    long = [
        line
        for _, text in FILE.findall(PAGE)
        for line in text.splitlines()
        if len(line) > 88
    ]
    assert not long, long


def test_the_chapter_keeps_the_contract(skeleton: Path) -> None:
    contract = module_from(ROOT / "tests" / "unit" / "test_chapters.py")
    chapter = importlib.import_module(f"minilib.recipes.{PAPER}.chapter")
    assert contract.faults(PAPER, chapter) == []


def test_its_arms_break_no_rule(
    skeleton: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "unit")  # where witness.py is
    rules = module_from(ROOT / "tests" / "unit" / "test_what_is_drawn.py")
    arms = skeleton / f"tests/unit/{PAPER}/arms.py"
    seen = {seed: rules.told(arms, tmp_path / str(seed), seed) for seed in (0, 1)}
    tests = [test for name, test in vars(rules).items() if name.startswith("test_")]
    for test in tests:
        test(seen.__getitem__)
    assert [training.arm for training in seen[0].trainings] == ["captions"]


def test_the_golden_case_is_loaded_and_compared(skeleton: Path) -> None:
    parity = module_from(skeleton / f"tests/parity/test_{PAPER}.py")
    conftest = module_from(ROOT / "tests" / "parity" / "conftest.py")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 8, 8, generator=generator)
    image = torch.rand(2, 3, 16, 16, generator=generator)
    bias, token = torch.zeros(4), torch.randn(2, 4, generator=generator)
    patches = torch.nn.functional.conv2d(image, weight, bias, stride=8).flatten(2).mT
    segments = (token @ patches.mT).softmax(dim=1) @ patches / 4
    state = {
        "patch_embed.weight": weight,
        "patch_embed.bias": bias,
        "group_token": token,
    }
    tensors = {f"state/img_encoder.{key}": value for key, value in state.items()}
    folder = skeleton / "tests" / "golden" / PAPER
    folder.mkdir(parents=True)
    save_file(
        {**tensors, "in/image": image, "out/segments": segments},
        folder / "encoder.safetensors",
    )
    info = json.loads(
        re.search(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]
    )
    (folder / "encoder.json").write_text(json.dumps(info))
    (case,) = conftest.find_cases(folder.parent)
    assert (case.paper, conftest.longest_known_prefix(case, parity.CHECKS)) == (
        PAPER,
        "encoder",
    )
    parity.encoder(case.load())
    case.finish()
    case.tensors["out/segments"] = segments + 0.1
    with pytest.raises(AssertionError, match="segments"):
        parity.encoder(case)


def test_the_cells_run_and_record_the_claim(skeleton: Path, tmp_path: Path) -> None:
    parameters, opening, rest = CELL.findall(PAGE)
    space: dict[str, object] = {}
    exec(parameters, space)
    space["out"] = str(tmp_path)
    for cell in (opening, rest):
        exec(cell, space)
    (run,) = claims.read_records(tmp_path / "result.json")
    measured, claim = run.measurements[f"{PAPER}.C1"], claims.load(PAPER)[f"{PAPER}.C1"]
    assert measured.n == 100 and measured.test == claim.test("quick").digest
    assert set(measured.preconditions) == set(claim.test("full").preconditions)
    assert run.results[f"{PAPER}.found"] == run.measurements[f"{PAPER}.C1"].treatment
