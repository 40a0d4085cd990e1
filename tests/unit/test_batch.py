"""The batch: what it holds, what it says when it does not."""

import pytest
import torch

from minilib.batch import Batch, required


def test_to_moves_tensors_and_lists_of_tensors_and_keeps_the_rest():
    batch = Batch(
        torch.zeros(1, 3, 4, 4), caption=["a dog"], boxes=[torch.ones(2, 4)], points=[]
    )
    moved = batch.to("meta")
    assert moved.image.device.type == moved.boxes[0].device.type == "meta"
    assert moved.caption == ["a dog"] and moved.points == [] and moved.mask is None


def test_required_returns_what_is_there_and_names_what_is_missing():
    batch = Batch(torch.zeros(1, 3, 4, 4), label=torch.tensor([7]))
    assert required(batch.label, "label") is batch.label
    with pytest.raises(ValueError, match="the batch has no mask: make it with a task"):
        required(batch.mask, "mask")
