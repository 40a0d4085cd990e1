"""The sweep of the background threshold: a known optimum, counts by hand, bad input."""

from __future__ import annotations

import pytest
import torch

from minilib.metrics import SegmentationScore, ThresholdSweep


def test_the_known_optimum_is_found() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.int64)
    mask[:, :2] = 1
    maps = torch.where(mask == 1, 0.5, 0.2)[:, None]
    sweep = ThresholdSweep(1, [0.1, 0.3, 0.4, 0.6])
    sweep.update(maps, mask)
    assert sweep.best() == (0.3, 1.0)  # the first of two that are perfect
    # too low: all is object; too high: all is background
    assert sweep.mean_iou().tolist() == pytest.approx([0.25, 1.0, 1.0, 0.25])
    assert sweep.over().tolist() == pytest.approx([0.5, 0.0, 0.0, 0.0])
    assert sweep.under().tolist() == pytest.approx([0.0, 0.0, 0.0, 1.0])


def test_every_threshold_counts_as_its_own_score_does() -> None:
    generator = torch.Generator().manual_seed(0)
    thresholds = (0.3, 0.6, 0.9)
    sweep = ThresholdSweep(3, thresholds)
    scores = [SegmentationScore(4) for _ in thresholds]
    for _ in range(2):  # added up over batches
        maps = torch.rand(2, 3, 6, 5, generator=generator)
        mask = torch.randint(0, 4, (2, 6, 5), generator=generator)
        mask[:, 0] = 255
        sweep.update(maps, mask)
        for threshold, score in zip(thresholds, scores, strict=True):
            top, label = maps.max(dim=1)
            score.update(torch.where(top > threshold, label + 1, 0), mask)
    for number, score in enumerate(scores):
        assert torch.equal(sweep.confusion[number], score.confusion)
        assert sweep.mean_iou()[number].item() == pytest.approx(score.mean_iou())


def test_a_class_that_never_occurs_is_left_out() -> None:
    sweep = ThresholdSweep(2, [0.5])
    maps = torch.zeros(1, 2, 2, 2)
    maps[:, 0, 0] = 1
    sweep.update(maps, torch.tensor([[[1, 1], [0, 0]]]))
    assert sweep.iou()[0, 2].isnan() and sweep.mean_iou().item() == 1


def test_a_map_at_the_threshold_is_background() -> None:
    sweep = ThresholdSweep(1, [0.25, 0.5])
    sweep.update(torch.full((1, 1, 1, 1), 0.5), torch.ones(1, 1, 1))
    assert sweep.confusion[:, 1].tolist() == [[0, 1], [1, 0]]


def test_bad_input_is_refused() -> None:
    for values in ({"classes": 0}, {"thresholds": []}, {"ignore": 2}):
        with pytest.raises(ValueError, match="at least one class and one threshold"):
            ThresholdSweep(**{"classes": 2, "thresholds": [0.5]} | values)
    sweep = ThresholdSweep(2, [0.5])
    with pytest.raises(ValueError, match="call update first"):
        sweep.best()
    with pytest.raises(ValueError, match="do not belong together"):
        sweep.update(torch.rand(1, 3, 2, 2), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="expected labels 0 to 2"):
        sweep.update(torch.rand(1, 2, 2, 2), torch.full((1, 2, 2), 3))
