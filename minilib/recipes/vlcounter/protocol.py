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
from minilib.recipes.shared.counting import validation_target
from minilib.weights import load_checkpoint


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
        weights: the authors' checkpoint, to which their page links.
        split: ``val`` or ``test``.
        device: where to compute.
        files: only these photographs of the split; None = all.

    Returns:
        "errors" against the number of points, "errors_smoothed" against what
        the authors' script takes for the truth (points that share a pixel
        merge), and "images".

    Raises:
        ValueError: the checkpoint is not a VLCounter's.
        FileNotFoundError: a file is not there.
    """
    photographs = load_fsc147(data, split, text="class", files=files)
    model = VLCounter.from_official(load_checkpoint(weights)).to(device)
    found, smoothed = [], []
    for index, name in enumerate(photographs.names):
        image = photographs.image(index).float() / 255
        density = model.density(image, plural(name))
        found.append(density.sum().item())
        (height, width), (rows, columns) = image.shape[-2:], density.shape
        target = validation_target(
            photographs.points(index), (height, width), (rows, columns)
        )
        smoothed.append(target.sum().item())
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
