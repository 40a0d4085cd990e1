"""Intersection over union against torchmetrics and by hand, and what the
measures refuse."""

from __future__ import annotations

import math

import pytest
import torch

from minilib.metrics.segmentation import EpisodeScore, SegmentationScore, episode_areas


def random_masks(classes: int, seed: int = 0, ignored: float = 0.1):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (3, 12, 9), generator=generator)
    noise = torch.randint(classes, target.shape, generator=generator)
    prediction = torch.where(
        torch.rand(target.shape, generator=generator) < 0.6, target, noise
    )
    target[torch.rand(target.shape, generator=generator) < ignored] = 255
    return prediction, target


def test_agrees_with_torchmetrics_over_batches() -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    ours = SegmentationScore(6)
    jaccard = classification.MulticlassJaccardIndex(6, average=None, ignore_index=255)
    accuracy = classification.MulticlassAccuracy(6, average="micro", ignore_index=255)
    for seed in range(3):
        prediction, target = random_masks(6, seed)
        ours.update(prediction, target)
        jaccard.update(prediction, target)
        accuracy.update(prediction, target)
    torch.testing.assert_close(ours.iou(), jaccard.compute())
    assert ours.mean_iou() == pytest.approx(jaccard.compute().mean().item())
    assert ours.pixel_accuracy() == pytest.approx(accuracy.compute().item())


def test_counts_of_a_picture_that_can_be_counted_by_hand() -> None:
    score = SegmentationScore(4)
    score.update(
        torch.tensor([[[0, 0, 1], [1, 1, 2]]]), torch.tensor([[[0, 1, 1], [1, 255, 1]]])
    )
    torch.testing.assert_close(
        score.iou(), torch.tensor([1 / 2, 2 / 4, 0.0, math.nan]), equal_nan=True
    )
    assert score.mean_iou() == pytest.approx(1 / 3)
    assert score.mean_iou(absent=0.0) == pytest.approx(1 / 4)
    assert score.mean_iou(of=[0, 1]) == pytest.approx(1 / 2)
    assert math.isnan(score.mean_iou(of=[3]))
    assert score.pixel_accuracy() == pytest.approx(3 / 5)


def test_a_data_set_is_not_the_mean_of_its_batches() -> None:
    whole, means = SegmentationScore(3), []
    for prediction, target in [
        (torch.zeros(1, 1, 4).long(), torch.tensor([[[0, 1, 1, 1]]])),
        (torch.ones(1, 1, 4).long(), torch.ones(1, 1, 4).long()),
    ]:
        part = SegmentationScore(3)
        for score in (whole, part):
            score.update(prediction, target)
        means.append(part.mean_iou())
    assert whole.iou()[1].item() == pytest.approx(4 / 7)
    assert whole.mean_iou() != pytest.approx(sum(means) / 2)


def test_only_ignored_pixels_give_nan_not_an_error() -> None:
    score = SegmentationScore(3)
    score.update(torch.full((1, 2, 2), 7), torch.full((1, 2, 2), 255))
    assert math.isnan(score.mean_iou()) and math.isnan(score.pixel_accuracy())


def test_small_integer_masks_do_not_overflow() -> None:
    score = SegmentationScore(200)
    masks = torch.full((1, 2, 2), 199, dtype=torch.uint8)
    score.update(masks, masks)
    assert score.iou()[199] == 1


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), "differ in shape"),
        (
            torch.zeros(1, 2, 2),
            torch.full((1, 2, 2), 3),
            "target has the value 3: expected classes 0 to 2, or 255",
        ),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), -1), "target has the value -1"),
        (torch.full((1, 2, 2), 5), torch.zeros(1, 2, 2), "prediction has the value 5"),
    ],
)
def test_refused(prediction: torch.Tensor, target: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationScore(3).update(prediction.long(), target.long())


@pytest.mark.parametrize(("classes", "ignore"), [(0, 255), (3, 2)])
def test_refused_configuration(classes: int, ignore: int) -> None:
    with pytest.raises(ValueError, match="classes"):
        SegmentationScore(classes, ignore)


def test_negative_ignore_as_in_ade20k() -> None:
    score = SegmentationScore(2, ignore=-1)
    score.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, -1]]]))
    assert score.confusion.tolist() == [[1, 1], [0, 0]]


def episodes():
    prediction = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [0, 0]], [[1, 1], [1, 1]]])
    target = torch.tensor([[[1, 0], [0, 255]], [[1, 1], [0, 0]], [[0, 0], [0, 1]]])
    return prediction, target, torch.tensor([5, 5, 7])


def test_episodes_by_hand() -> None:
    prediction, target, class_id = episodes()
    score = EpisodeScore([5, 6, 7])
    score.update(prediction, target, class_id)
    # Class 5: 1 + 1 of 2 + 2 pixels; class 6 had no episode and counts 0;
    # class 7: 1 of 4.
    torch.testing.assert_close(score.iou(), torch.tensor([1 / 2, 0.0, 1 / 4]))
    assert score.mean_iou() == pytest.approx(1 / 4)
    # Foreground: 3 of 8. Background: 1 of 2, 2 of 3, 0 of 3.
    assert score.fb_iou() == pytest.approx((3 / 8 + 3 / 8) / 2)


def test_episodes_add_up_in_any_batching() -> None:
    prediction, target, class_id = episodes()
    together, apart = EpisodeScore([5, 7]), EpisodeScore([5, 7])
    together.update(prediction, target, class_id)
    for i in range(3):
        apart.update(
            prediction[i : i + 1].bool(), target[i : i + 1], class_id[i : i + 1]
        )
    torch.testing.assert_close(together.union, apart.union)
    assert together.fb_iou() == apart.fb_iou()


def test_union_is_the_sum_less_the_intersection() -> None:
    prediction, target = random_masks(2, seed=4)
    intersection, union = episode_areas(prediction, target)
    counted = target != 255
    for row in (0, 1):
        sizes = [
            ((mask == row) & counted).sum(dim=(1, 2)) for mask in (prediction, target)
        ]
        torch.testing.assert_close(union[row], sizes[0] + sizes[1] - intersection[row])


def test_refused_episodes() -> None:
    prediction, target, class_id = episodes()
    with pytest.raises(ValueError, match="class 7, which is not in"):
        EpisodeScore([5, 6]).update(prediction, target, class_id)
    with pytest.raises(ValueError, match="target has the value 2"):
        episode_areas(prediction, target + 1, ignore=256)
    with pytest.raises(ValueError, match="prediction has the value 3"):
        episode_areas(prediction * 3, target)
    with pytest.raises(ValueError, match="each once"):
        EpisodeScore([5, 5])
