"""Golden cases: tensors computed with the authors' code, found at collection time and
compared one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass
class GoldenCase:
    """One case: its .json says what it is, its .safetensors holds ``state/*``,
    ``in/*`` and ``out/*``."""

    path: Path
    """The case's files, without suffix."""
    info: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why the case cannot be used at all; its test fails with this."""
    compared: set[str] = field(default_factory=set)
    largest_error: float = 0.0

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def paper(self) -> str:
        return str(self.info.get("paper") or self.path.parent.name).lower()

    def load(self) -> GoldenCase:
        if self.problem:
            pytest.fail(f"{self.path}: {self.problem}")
        self.tensors = load_file(self.path.with_name(f"{self.name}.safetensors"))
        return self

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below ``prefix``, such as "state" or
        "out/grad", without it."""
        start = f"{prefix}/"
        return {
            key.removeprefix(start): value
            for key, value in self.tensors.items()
            if key.startswith(start)
        }

    def compare(self, name: str, actual: Tensor | float) -> None:
        """Assert that ``actual`` is the tensor ``out/<name>``, within the tolerance
        that the case states.

        A tolerance may hold another one for some of the tensors, under their names. A
        nan must be a nan.
        """
        expected = self.tensors[f"out/{name}"]
        actual = torch.as_tensor(actual).detach()
        tolerance = self.info["tolerance"]
        if not isinstance(tolerance, dict):
            tolerance = {"rtol": float(tolerance), "atol": float(tolerance)}
        tolerance = {
            key: tolerance.get(name, tolerance)[key] for key in ("rtol", "atol")
        }
        assert actual.shape == expected.shape, (
            f"{name}: shape {actual.shape}, expected {expected.shape}"
        )
        error = (actual.double() - expected.double()).abs()
        error = error[error.isfinite()]
        if error.numel():
            self.largest_error = max(self.largest_error, error.max().item())
        torch.testing.assert_close(
            actual.double(),
            expected.double(),
            **tolerance,
            equal_nan=True,
            msg=lambda text: f"{name}: {text}",
        )
        self.compared.add(name)

    def compare_all(self, results: Mapping[str, Tensor | float]) -> None:
        for name, actual in results.items():
            self.compare(name, actual)

    def finish(self) -> None:
        """Assert that no ``out/*`` was left uncompared."""
        left = sorted(set(self.group("out")) - self.compared)
        assert not left, f"{self.name}: no check for {left}"
        assert self.compared, f"{self.name}: holds nothing to compare"


def find_cases(folder: Path) -> list[GoldenCase]:
    """Return every case in ``folder`` and one level below it, complete or not."""
    files = [*folder.glob("*.*"), *folder.glob("*/*.*")]
    stems = sorted(
        {
            path.with_suffix("")
            for path in files
            if path.suffix in (".json", ".safetensors")
        }
    )
    cases = []
    for stem in stems:
        case = GoldenCase(stem)
        try:
            case.info = json.loads(
                stem.with_name(f"{stem.name}.json").read_text(encoding="utf-8")
            )
            if not stem.with_name(f"{stem.name}.safetensors").is_file():
                case.problem = "has no .safetensors"
        except (OSError, ValueError) as error:
            case.problem = f"has no readable .json: {error}"
        cases.append(case)
    return cases


def longest_known_prefix(case: GoldenCase, known: Iterable[str]) -> str | None:
    """Return which of the ``known`` cases this one is: full_vit_2 and
    full_vit2 are a full_vit."""
    for name in (str(case.info.get("case", "")), case.name):
        matches = [
            candidate
            for candidate in known
            if re.match(rf"{re.escape(candidate)}(?![a-z])", name)
        ]
        if matches:
            return max(matches, key=len)
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``golden_case`` to tests: the cases of the module's PAPER, or those of
    papers without a module."""
    if "golden_case" not in metafunc.fixturenames:
        return
    cases = find_cases(Path(metafunc.config.getoption("--golden")))
    tested = {
        path.stem.removeprefix("test_")
        for path in Path(__file__).parent.glob("test_*.py")
    }
    paper = getattr(metafunc.module, "PAPER", None)
    if paper is None:
        wanted = [case for case in cases if case.paper not in tested] or [None]
    else:
        wanted = [case for case in cases if case.paper == paper]
    metafunc.parametrize(
        "golden_case",
        wanted,
        ids=[f"{case.paper}/{case.name}" if case else "none" for case in wanted],
        indirect=True,
    )


@pytest.fixture
def golden_case(request: pytest.FixtureRequest) -> Any:
    case = request.param
    if case is None:
        yield None
        return
    yield case.load()
    print(f"largest error {case.largest_error:.1e}, tolerance {case.info['tolerance']}")


@pytest.fixture
def dispatch() -> Any:
    """Run the check that belongs to a case, and see that it compared everything."""

    def run(case: GoldenCase, checks: Mapping[str, Any]) -> None:
        known = longest_known_prefix(case, checks)
        if known is None:
            pytest.fail(
                f"{case.path}: no test knows the case {case.info.get('case')!r}; "
                f"known: {sorted(checks)}"
            )
        checks[known](case)
        case.finish()

    return run
