"""The parity tests themselves: they must notice wrong numbers, unknown cases
and half a case."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "clip"


def copy(case: str, target: Path, name: str, /, **info: object) -> None:
    """Copy a golden case under another name, with entries of its JSON replaced."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / f"{case}.safetensors", target / f"{name}.safetensors")
    text = json.loads((GOLDEN / f"{case}.json").read_text())
    (target / f"{name}.json").write_text(json.dumps(text | info))


def run_parity(folder: Path) -> dict[str, str]:
    """Run the parity tests on ``folder`` and return each case's outcome by its
    id, "paper/case".

    Papers of which the folder holds no case are skipped by pytest under an id of its
    own, and left out.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/parity",
        "--golden",
        str(folder),
        "-v",
        "--tb=no",
        "-p",
    ]
    lines = subprocess.run(
        [*command, "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    outcomes = {}
    for test, outcome in (
        line.split()[:2] for line in lines.splitlines() if "::" in line
    ):
        name = test.rpartition("[")[2].removesuffix("]")
        if "/" in name and "[" in test:
            outcomes[name] = outcome
    return outcomes


def test_other_names_run_and_what_is_wrong_or_unknown_fails(tmp_path: Path) -> None:
    copy("block", tmp_path / "hidden", "block_9", case="block_9")
    copy(
        "zero_shot",
        tmp_path / "hidden",
        "zero_shot_large",
        case="zero_shot_large",
        seed=4,
    )
    copy("block", tmp_path / "hidden", "brick", case="brick")
    copy("pos_embed_resize", tmp_path / "other", "half", paper="Unheard-of")
    (tmp_path / "hidden" / "losses.json").write_text(
        (GOLDEN / "losses.json").read_text()
    )  # no tensors beside it
    copy("block", tmp_path / "hidden", "block_wrong")
    tensors = load_file(GOLDEN / "block.safetensors")
    save_file(
        tensors | {"out/gelu": tensors["out/gelu"] + 1e-3},
        tmp_path / "hidden" / "block_wrong.safetensors",
    )
    copy("block", tmp_path / "hidden", "block_more")
    save_file(
        tensors | {"out/unseen": torch.zeros(1)},
        tmp_path / "hidden" / "block_more.safetensors",
    )
    assert run_parity(tmp_path) == {
        "clip/block_9": "PASSED",
        "clip/zero_shot_large": "PASSED",
        "clip/brick": "FAILED",
        "clip/losses": "ERROR",
        "clip/block_wrong": "FAILED",
        "clip/block_more": "FAILED",
        "unheard-of/half": "FAILED",
    }
