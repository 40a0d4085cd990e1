"""Scenes with boxes, boxes that follow their image, and their scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from minilib.batch import Batch
from minilib.layers.detection import UnresizedTransform
from minilib.recipes.shared.detection import (
    boxed_scenes,
    clip_boxes,
    cropped,
    local_classes,
    score_boxes,
)
from minilib.scenes import EmojiScenes, SceneConfig, find

NAMES = ("dog", "banana", "bicycle")
NO_SHIFT = torch.zeros(1, 2, dtype=torch.int64)


def one_image(boxes: list[list[float]]) -> Batch:
    """An image of 8 x 10 pixels whose first channel is its column, with boxes."""
    image = (torch.arange(10.0) / 10).expand(1, 3, 8, 10).clone()
    return Batch(
        image,
        boxes=[torch.tensor(boxes).view(-1, 4)],
        classes=[torch.arange(len(boxes))],
    )


def test_classes_are_numbered_within_the_list() -> None:
    scenes = EmojiScenes(SceneConfig(size=32, classes=NAMES, objects=(1, 3)))
    batch, raw = boxed_scenes(scenes, 6, "val", 0), scenes.batch("detect", 6, "val", 0)
    for local, known in zip(batch.classes, raw.classes, strict=True):
        assert [find(NAMES[i]).index for i in local.tolist()] == known.tolist()
    part = boxed_scenes(scenes, 2, "val", 0, start=4)
    assert torch.equal(part.image, batch.image[4:])
    with pytest.raises(ValueError, match="image 1 shows class"):
        local_classes(
            [torch.tensor([find("dog").index]), torch.tensor([find("cat").index])],
            NAMES,
        )
    with pytest.raises(ValueError, match="classes=..."):
        boxed_scenes(EmojiScenes(SceneConfig(size=32)), 1, "val", 0)


def test_boxes_are_clipped_and_dropped_by_what_is_left() -> None:
    boxes = torch.tensor(
        [
            [1.0, 1, 3, 3],  # inside
            [-2, 0, 2, 4],  # half is left
            [-3, 0, 1, 4],  # a quarter
            [8, 6, 12, 10],  # a quarter, at the other end
            [20, 20, 22, 22],  # nothing
            [5, 5, 5, 7],  # never had an area
        ]
    )
    kept, shown = clip_boxes(boxes, (8, 10), least_visible=0.3)
    assert shown.tolist() == [True, True, False, False, False, False]
    assert kept.tolist() == [[1, 1, 3, 3], [0, 0, 2, 4]]
    kept, shown = clip_boxes(boxes, (8, 10))
    assert shown.tolist() == [True, True, True, True, False, False]
    assert kept[3].tolist() == [8, 6, 10, 8]
    assert clip_boxes(torch.empty(0, 4), (8, 10))[0].shape == (0, 4)


def test_mirroring_by_hand() -> None:
    batch = one_image([[1, 2, 4, 6]])
    found = cropped(batch, NO_SHIFT, (8, 10), torch.tensor([True]))
    assert found.boxes[0].tolist() == [[6, 2, 9, 6]]
    torch.testing.assert_close(found.image, batch.image.flip(-1))
    again = cropped(found, NO_SHIFT, (8, 10), torch.tensor([True]))
    torch.testing.assert_close(again.image, batch.image)
    torch.testing.assert_close(again.boxes[0], batch.boxes[0])


def test_crops_by_hand() -> None:
    batch = one_image([[1, 2, 4, 6], [6, 3, 9, 5], [0, 0, 2, 2]])
    found = cropped(batch, torch.tensor([[1, 3]]), (4, 5), torch.tensor([False]))
    torch.testing.assert_close(found.image, batch.image[:, :, 1:5, 3:8])
    # The first keeps 1 x 3 of 3 x 4, less than 0.3; the second 2 x 2 of 3 x 2.
    assert found.boxes[0].tolist() == [[3, 2, 5, 4]] and found.classes[0].tolist() == [
        1
    ]
    turned = cropped(
        batch, torch.tensor([[1, 3]]), (4, 5), torch.tensor([True]), least_visible=0.2
    )
    assert turned.boxes[0].tolist() == [[4, 1, 5, 4], [0, 2, 2, 4]]
    assert turned.classes[0].tolist() == [0, 1]


def test_what_lies_outside_is_filled_and_has_no_box() -> None:
    batch = one_image([[0, 0, 4, 4]])
    found = cropped(
        batch, torch.tensor([[-2, -3]]), (8, 10), torch.tensor([False]), fill=0.25
    )
    assert (found.image[:, :, :2] == 0.25).all() and (
        found.image[..., :3] == 0.25
    ).all()
    torch.testing.assert_close(found.image[:, :, 2:, 3:], batch.image[:, :, :6, :7])
    assert found.boxes[0].tolist() == [[3, 2, 7, 6]]


def test_an_object_stays_in_its_box() -> None:
    """The brightest pixel of an image that is dark elsewhere stays in the
    middle of its box."""
    chance = torch.Generator().manual_seed(0)
    image = torch.zeros(20, 1, 16, 24)
    row = torch.randint(1, 15, (20,), generator=chance)
    column = torch.randint(1, 23, (20,), generator=chance)
    image[torch.arange(20), 0, row, column] = 1
    boxes = [
        torch.tensor([[c - 1.0, r - 1.0, c + 2.0, r + 2.0]])
        for r, c in zip(row.tolist(), column.tolist(), strict=True)
    ]
    batch = Batch(image, boxes=boxes, classes=[torch.tensor([0])] * 20)
    corner = torch.randint(-4, 5, (20, 2), generator=chance)
    mirror = torch.rand(20, generator=chance) < 0.5
    found = cropped(batch, corner, (16, 24), mirror, least_visible=1.0, fill=0.0)
    kept = 0
    for pixels, there in zip(found.image, found.boxes, strict=True):
        for x1, y1, x2, y2 in there.tolist():
            (place,) = pixels[0].nonzero().tolist()
            assert place == [(y1 + y2 - 1) / 2, (x1 + x2 - 1) / 2]
            kept += 1
    assert 5 < kept < 20


def test_crops_say_what_they_need() -> None:
    batch = one_image([[1, 2, 4, 6]])
    with pytest.raises(ValueError, match="no boxes"):
        cropped(Batch(batch.image), NO_SHIFT, (8, 10), torch.tensor([True]))
    with pytest.raises(ValueError, match=r"expected \(1, 2\) and \(1,\)"):
        cropped(batch, torch.zeros(2, 2), (8, 10), torch.tensor([True]))


class Copyist(nn.Module):
    """Finds what it was told, image by image."""

    def __init__(self, boxes: list[Tensor], classes: list[Tensor]) -> None:
        super().__init__()
        self.left = list(zip(boxes, classes, strict=True))

    def forward(self, image: Tensor) -> list[dict[str, Tensor]]:
        assert not self.training
        found, self.left = self.left[: len(image)], self.left[len(image) :]
        return [
            {"boxes": b, "labels": c, "scores": torch.ones(len(c))} for b, c in found
        ]


def test_detectors_are_scored_in_batches() -> None:
    scenes = EmojiScenes(SceneConfig(size=32, classes=NAMES))
    test = boxed_scenes(scenes, 5, "test", 0)
    perfect = score_boxes(Copyist(test.boxes, test.classes).train(), test, batch_size=2)
    assert perfect == {"ap": pytest.approx(1), "ap50": pytest.approx(1)}
    elsewhere = score_boxes(Copyist([b + 40 for b in test.boxes], test.classes), test)
    assert elsewhere == {"ap": 0, "ap50": 0}


def test_images_keep_their_size_in_training_and_evaluation() -> None:
    transform = UnresizedTransform(0, 0, [0.5] * 3, [0.25] * 3, size_divisible=16)
    for mode in (True, False):
        images, _ = transform.train(mode)([torch.full((3, 20, 32), 0.75)])
        assert images.tensors.shape == (1, 3, 32, 32) and images.image_sizes == [
            (20, 32)
        ]
        torch.testing.assert_close(images.tensors[0, :, :20], torch.ones(3, 20, 32))
