"""Average precision over overlaps, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from minilib.metrics.detection import average_precision


@pytest.mark.parametrize(
    ("right", "ap"),
    [(100, 1.0), (97, 1.0), (72, 0.5), (52, 0.1), (40, 0.0)],
)
def test_ap_is_the_mean_over_ten_overlaps(right: float, ap: float) -> None:
    """A box of overlap 0.72 is right at 0.50, 0.55, ..., 0.70: five of ten."""
    truth, classes = [torch.tensor([[0.0, 0, 100, 100]])], [torch.tensor([3])]
    box = torch.tensor([[0.0, 0, right, 100]])
    found = [{"boxes": box, "scores": torch.tensor([0.9]), "labels": classes[0]}]
    score = average_precision(found, truth, classes)
    assert score["ap"] == pytest.approx(ap)
    assert score["ap50"] == pytest.approx(float(ap > 0))
