"""Randomness by seed and step: a training that resumes draws what it
would have drawn."""

from __future__ import annotations

import numpy as np
import torch


def seeded(seed: int, step: int, purpose: int) -> np.random.Generator:
    """Return a numpy generator that depends on these three numbers alone.

    All new code draws from here or from :func:`seeded_torch`. Older streams of torch
    mix seed and step by formulas of their own (CamVid's frames, CounTX's pixel mask);
    they stay, because every recorded number depends on them.

    Args:
        seed: of the run, 0 or more.
        step: of the training, or another counter such as an epoch, 0 or more.
        purpose: tells apart what is drawn at one step, 0 or more. Taken: 0 the order
            of questions, 1 their mirroring, 3 CounTX's scenes, 5 its micrographs, 6 the
            order of DenseCLIP's labelled images, 7 their mirroring, 8 which they are.

    Raises:
        ValueError: a negative number.
    """
    if min(seed, step, purpose) < 0:
        raise ValueError(
            f"seed={seed}, step={step}, purpose={purpose}: expected 0 or more of each"
        )
    return np.random.default_rng([seed, step, purpose])


def seeded_torch(seed: int, step: int, purpose: int) -> torch.Generator:
    """Return a torch generator on the CPU; arguments and errors as :func:`seeded`."""
    state = seeded(seed, step, purpose).integers(2**63)
    return torch.Generator().manual_seed(int(state))


def derangement(n: int, generator: torch.Generator) -> torch.Tensor:
    """Return a permutation (n,) that leaves nothing at its place: along a random circle
    of all, each goes to its neighbour.

    Raises:
        ValueError: n < 2, of which there is none.
    """
    if n < 2:
        raise ValueError(f"n={n}: a derangement needs at least 2 things")
    circle = torch.randperm(n, generator=generator)
    order = torch.empty(n, dtype=torch.int64)
    order[circle] = circle.roll(-1)
    return order
