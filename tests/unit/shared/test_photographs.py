"""The small sets of photographs: where they are, and how they come in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minilib.datasets.bccd import Bccd
from minilib.datasets.camvid import NAMES, CamVid
from minilib.recipes.shared import photographs
from minilib.recipes.shared.photographs import (
    CamVidStream,
    bccd_crops,
    bccd_questions,
)


@pytest.fixture
def frames() -> CamVid:
    """Seven frames of 16 x 24 pixels; each is of one brightness, its
    mask of one class."""
    image = torch.arange(7, dtype=torch.uint8)[:, None, None, None] * 30
    mask = torch.arange(7, dtype=torch.uint8)[:, None, None]
    return CamVid(
        NAMES, image.expand(7, 3, 16, 24), mask.expand(7, 16, 24), tuple("abcdefg")
    )


@pytest.fixture
def micrographs() -> Bccd:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [10.0, 4.0, 20.0, 8.0]])
    return Bccd(
        torch.zeros(2, 3, 16, 24, dtype=torch.uint8),
        [boxes, boxes[:1]],
        [torch.tensor([0, 2]), torch.tensor([1])],
        ("a", "b"),
    )


def test_frames_come_once_an_epoch(frames: CamVid) -> None:
    stream = CamVidStream(frames, 3, seed=1)
    drawn = [int(one[0, 0]) for step in range(14) for one in stream(step).mask]
    epochs = [sorted(drawn[i : i + 7]) for i in range(0, 42, 7)]
    assert all(epoch == list(range(7)) for epoch in epochs)
    again = CamVidStream(frames, 3, seed=1)
    assert torch.equal(again(9).image, stream(9).image), "by the step alone"
    other = CamVidStream(frames, 3, seed=2)
    assert [int(m[0, 0]) for s in range(14) for m in other(s).mask] != drawn


def test_frame_and_mask_move_alike() -> None:
    chance = np.random.default_rng(0)
    mask = torch.from_numpy(chance.integers(0, 11, (5, 16, 24)).astype(np.uint8))
    image = (mask * 20)[:, None].expand(5, 3, 16, 24)
    frames = CamVid(NAMES, image, mask, tuple("abcde"))
    moved = 0
    for step in range(4):
        batch = CamVidStream(frames, 4, seed=0)(step)
        torch.testing.assert_close(batch.image[:, 0], batch.mask * 20 / 255)
        for found in batch.mask:
            moved += not any(torch.equal(found, whole.long()) for whole in mask)
    assert moved > 4


def test_camvid_is_read_once_a_process(tmp_path: Path) -> None:
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (48, 36), (10, 90, 10)).save(tmp_path / "train" / "0.png")
    Image.new("L", (48, 36), 1).save(tmp_path / "trainannot" / "0.png")
    first = photographs.camvid(tmp_path, "train", (18, 24))
    assert first is photographs.camvid(tmp_path, "train", (18, 24))
    assert photographs.camvid(tmp_path, "train", (9, 12)).image.shape[-2:] == (9, 12)


def test_micrographs_are_asked_for_every_class(micrographs: Bccd) -> None:
    questions = bccd_questions(micrographs)
    assert questions.counts.tolist() == [1, 0, 0, 1, 1, 0]
    assert questions.about.tolist() == [0, 1] * 3
    assert questions.points[4].tolist() == [[15, 6]]
    assert questions.asked[0] == "red blood cells"


def test_crops_of_micrographs_keep_the_points_inside(micrographs: Bccd) -> None:
    batches = bccd_crops(micrographs, images=4, sigma=1.5, seed=0)
    for step in range(3):
        batch = batches(step)
        assert batch.image.shape == (4, 3, 16, 16) and len(batch.caption) == 12
        assert [c.removeprefix("the ") for c in batch.caption[:3]] == list(
            micrographs.names
        )
        true = torch.tensor([float(len(p)) for p in batch.points])
        torch.testing.assert_close(
            batch.density.sum((1, 2, 3)), true, atol=1e-4, rtol=0
        )
        assert all(((p >= 0) & (p <= 16)).all() for p in batch.points)
        assert batches(step).caption == batch.caption
    assert batches(0).caption != batches(1).caption
