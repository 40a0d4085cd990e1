"""Label spaces, and the one evaluation of masks."""

from __future__ import annotations

import pytest
import torch

from minilib.recipes.shared.segmentation import (
    IGNORED,
    LabelSpace,
    evenly_spaced,
    renumber,
    scene_labels,
    score_masks,
)
from minilib.scenes import BACKGROUNDS, class_names


def test_evenly_spaced_by_hand() -> None:
    assert evenly_spaced("abcdefgh", 4) == ("a", "c", "e", "g")
    assert evenly_spaced("abcde", 2) == ("a", "c")
    assert evenly_spaced("abc", 3) == ("a", "b", "c")
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"n={n}: expected 1 to 3"):
            evenly_spaced("abc", n)


def test_what_is_asked_and_what_counts() -> None:
    labels = LabelSpace(
        ("dog", "cat", "car", "other"), seen=(0, 2), unseen=(1,), other=3
    )
    assert labels.counted("seen") == (0, 2) and labels.asked("seen") == (0, 2, 3)
    assert labels.counted("unseen") == (1,) and labels.asked("unseen") == (1, 3)
    assert LabelSpace(("sky", "road"), (0, 1)).always == ()
    fewer = labels.with_seen(1)
    assert fewer.seen == (0,) and fewer.unseen == (1,) and labels.seen == (0, 2)
    with pytest.raises(ValueError, match="expected 1 to 2"):
        labels.with_seen(3)
    with pytest.raises(ValueError, match="kind='all'"):
        labels.asked("all")


@pytest.mark.parametrize("seen", [(0, 0), (0, 2), (-1,)])
def test_labels_are_checked(seen: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="each of 0 to 1 at most once"):
        LabelSpace(("dog", "cat"), seen)


def test_masks_of_scenes_are_numbered_by_name() -> None:
    every = class_names()
    words = ("sky", "dog", "cat", "grass")
    mask = torch.tensor([[*(every.index(word) for word in words), IGNORED]])
    named = LabelSpace(("dog", "sky"), seen=(0, 1))
    assert named.from_scene(mask).tolist() == [[1, 0, 255, 255, 255]]
    other = LabelSpace(("dog", "other"), seen=(0,), other=1)
    assert other.from_scene(mask).tolist() == [[1, 0, 255, 1, 255]], "backgrounds alone"
    table = scene_labels({name: 0 for name in BACKGROUNDS})
    assert (table[: len(every) - len(BACKGROUNDS)] == IGNORED).all()
    assert (table[len(every) - len(BACKGROUNDS) : len(every)] == 0).all()
    with pytest.raises(ValueError, match="'zebroid' is not a name"):
        scene_labels({"zebroid": 0})


def test_labels_are_renumbered_to_a_subset() -> None:
    mask = torch.tensor([[3, 5, 9, 255]])
    assert renumber(mask, (5, 3)).tolist() == [[1, 0, 255, 255]]


def test_scores_by_hand_whatever_the_batch() -> None:
    truth = torch.tensor([[[0, 0, 0, 1], [5, 5, 1, 1]], [[0, 255, 255, 255]] * 2])
    found = torch.tensor([[[0, 0, 1, 1], [5, 0, 1, 7]], [[0, 1, 2, 3]] * 2])
    for batch_size in (1, 2, 40):
        asked: list[slice] = []

        def predict(rows: slice, asked: list[slice] = asked) -> dict[str, torch.Tensor]:
            asked.append(rows)
            return {"found": found[rows], "all zero": torch.zeros_like(found[rows])}

        scores = score_masks(predict, truth, classes=8, batch_size=batch_size)
        assert len(asked) == -(-2 // batch_size)
        # class 0: 4 of 6, class 1: 2 of 4, class 5: 1 of 2; 7 is not in the truth
        score = scores["found"]
        assert score.occurring == [0, 1, 5]
        expected = (4 / 6 + 2 / 4 + 1 / 2) / 3
        assert score.mean_iou(score.occurring) == pytest.approx(expected)
        assert scores["all zero"].iou()[0].item() == pytest.approx(5 / 10)
