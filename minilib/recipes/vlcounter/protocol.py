"""VLCounter as its authors test it: on FSC-147, and counts read off cells for CARPK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from minilib.datasets.fsc147 import load_fsc147
from minilib.metrics.counting import count_errors
from minilib.models.vlcounter import DENSITY_SCALE, VLCounter
from minilib.models.vlcounter.prompts import plural
from minilib.parameters import repository
from minilib.recipes.shared.counting import validation_target


def paper_protocol(
    data: str | Path,
    weights: str | Path,
    split: str = "test",
    device: torch.device | str = "cpu",
    files: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Test a released checkpoint on FSC-147 as its authors do: plural class names,
    windows of 384 pixels, stride 128.

    Args:
        data: folder of FSC-147 as published (see ``minilib.datasets.fsc147``).
        weights: the authors' checkpoint.
        split: ``val`` or ``test``.
        device: where to compute.
        files: only these photographs of the split; None = all.

    Returns:
        "errors" against the number of points, "errors_smoothed" against what
        the authors' script takes for the truth (points that share a pixel
        merge), and "images".

    Raises:
        ValueError: no folder or no checkpoint given, or one that is not a VLCounter's.
        FileNotFoundError: a file is not there.
    """
    if not str(data).strip() or not str(weights).strip():
        raise ValueError(
            "profile='paper' needs data='FOLDER' with FSC-147 (images, "
            "annotation_FSC147_384.json, Train_Test_Val_FSC_147.json, "
            "ImageClasses_FSC147.txt) and weights='FILE', the authors' checkpoint"
        )
    root = repository() or Path.cwd()
    photographs = load_fsc147(
        root / Path(data).expanduser(), split, text="class", files=files
    )
    path = root / Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}: the authors' page links to theirs"
        )
    model = VLCounter.from_official(
        torch.load(path, map_location="cpu", weights_only=True)
    ).to(device)
    found, smoothed = [], []
    for index, name in enumerate(photographs.names):
        image = photographs.image(index).float() / 255
        density = model.density(image, plural(name))
        found.append(density.sum().item())
        shape = tuple(image.shape[-2:])
        smoothed.append(
            validation_target(photographs.points(index), shape, tuple(density.shape))
            .sum()
            .item()
        )
    return {
        "errors": count_errors(found, photographs.counts).as_dict(),
        "errors_smoothed": count_errors(found, smoothed).as_dict(),
        "images": len(photographs),
    }


def cell_readout(
    density: Tensor, cell: int = 16, threshold: float = 1.224
) -> dict[str, Tensor]:
    """Count as the authors' scripts for CARPK and PUCPR+ do: one less for every cell
    that holds more than 1.224.

    Args:
        density: (H, W), ``DENSITY_SCALE`` times objects per pixel.
        cell: side of the cells; rows and columns beyond the last whole
            cell are left out.
        threshold: a literal of those scripts, tuned by hand; it is not part of the
            test on FSC-147.

    Returns:
        ``count``, ``cells`` (H // cell, W // cell) and ``plain_sum``
        over the whole map.
    """
    objects = density / DENSITY_SCALE
    rows, columns = density.shape[0] // cell, density.shape[1] // cell
    whole = objects[: rows * cell, : columns * cell]
    cells = rearrange(whole, "(h i) (w j) -> h w i j", i=cell, j=cell).sum((-2, -1))
    return {
        "count": cells.sum() - (cells > threshold).sum(),
        "cells": cells,
        "plain_sum": objects.sum(),
    }
