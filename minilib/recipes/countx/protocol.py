"""The paper's protocol: the released CounTX on FSC-147, sentence by sentence, through
sliding windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minilib.datasets.fsc147 import FSC147, load_fsc147
from minilib.files import digest, keep_rows, kept_rows
from minilib.metrics.counting import CountErrors, count_errors
from minilib.models.countx import CounTX
from minilib.training.identity import weights_digest
from minilib.weights import load_checkpoint

PUBLISHED = {
    ("val", "description"): {"mae": 17.10, "rmse": 65.61},
    ("test", "description"): {"mae": 15.88, "rmse": 106.29},
}
"""As later papers quote the paper's table; we could not compare with
the paper itself."""
WINDOW_STRIDE = 128


def count_all(
    model: CounTX, split: FSC147, out: Path | None = None, merge: str = "recursive"
) -> torch.Tensor:
    """Return the predicted counts (N,) of a split, in evaluation mode and
    single precision.

    With ``out`` every count is kept as it is made, and an interrupted run resumes.

    Raises:
        NotTheSame: the counts in ``out`` are of another model, split or merge.
    """
    identity = {
        "weights": weights_digest(model),
        "split": digest([split.split, list(split.files), list(split.texts)]),
        "stride": str(WINDOW_STRIDE),
        "merge": merge,
    }
    known = {} if out is None else kept_rows(out, identity)
    for index in tqdm(range(len(split)), desc=f"FSC-147 {split.split}", leave=False):
        name = split.files[index]
        if name not in known:
            image = split.image(index).float() / 255
            known[name] = model.count(
                image, split.texts[index], stride=WINDOW_STRIDE, merge=merge
            )
            if out is not None and index % 50 == 0:
                keep_rows(out, identity, known)
    if out is not None:
        keep_rows(out, identity, known)
    return torch.tensor([known[name] for name in split.files])


def evaluate_released(
    data: Path,
    weights: Path,
    device: torch.device | str = "cpu",
    out: Path | None = None,
) -> dict[tuple[str, str], CountErrors]:
    """Evaluate the released weights on val and test, by description and by bare class
    name (claim C2).

    Args:
        data: FSC-147's folder, see ``minilib.datasets.fsc147``.
        weights: the authors' file (``paper-model.pth``), or a safetensors file. Nothing
            in it is run: beside tensors, only the type of the command line,
            ``argparse.Namespace``, is let in.
        device: where to evaluate.
        out: folder in which every count is kept as it is made.

    Returns:
        errors by (split, text).

    Raises:
        FileNotFoundError: annotations or weights are not there.
        ValueError: a file holds something else, or asks to run code.
    """
    model = CounTX.from_official(load_checkpoint(weights)).to(device)
    table = {}
    for split in ("val", "test"):
        for text in ("description", "class"):
            part = load_fsc147(data, split, text)
            file = None if out is None else out / f"counts_{split}_{text}.json"
            table[split, text] = count_errors(count_all(model, part, file), part.counts)
    return table


def as_data(table: dict[tuple[str, str], CountErrors]) -> dict[str, Any]:
    """Return the table for a record, with the published numbers beside."""
    return {
        f"{split} by {text}": {
            **errors.as_dict(),
            "published": PUBLISHED.get((split, text)),
        }
        for (split, text), errors in table.items()
    }
