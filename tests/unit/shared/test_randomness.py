"""Randomness by seed, step and purpose."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from minilib.recipes.shared.randomness import seeded, seeded_torch


def test_every_triple_has_its_own_stream() -> None:
    triples = list(product(range(3), repeat=3))
    drawn = {tuple(seeded(*triple).integers(1 << 30, size=3)) for triple in triples}
    torches = {seeded_torch(*triple).initial_seed() for triple in triples}
    assert len(drawn) == len(torches) == 27


def test_streams_repeat() -> None:
    assert seeded(3, 1, 4).random() == seeded(3, 1, 4).random()
    first, again = (torch.rand(4, generator=seeded_torch(3, 1, 4)) for _ in range(2))
    assert torch.equal(first, again)


def test_negative_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="step=-1"):
        seeded(0, -1, 0)
