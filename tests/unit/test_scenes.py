"""One call per task: every annotation is there and agrees with the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from minilib.batch import Batch
from minilib.scenes import (
    BACKGROUNDS,
    SPLITS,
    TASKS,
    VOCABULARY,
    CaptionConfig,
    EmojiScenes,
    SceneConfig,
    class_names,
    names,
)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
FIELDS = {
    "pairs": {"phrases"},
    "classify": {"label"},
    "segment": {"mask", "present"},
    "detect": {"boxes", "classes", "phrases"},
    "count": {"label", "boxes", "classes", "points", "density"},
    "multilabel": {"present"},
    "hierarchy": {"boxes", "classes", "concepts"},
}


def tensors(batch: Batch) -> list[torch.Tensor]:
    flat = []
    for value in vars(batch).values():
        if isinstance(value, torch.Tensor):
            flat.append(value)
        elif isinstance(value, list) and isinstance(value[0], torch.Tensor):
            flat += value
    return flat


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("task", TASKS)
def test_one_call_gives_the_batch_of_a_task(task, device):
    scenes = EmojiScenes(SceneConfig(size=(48, 64), count=(1, 12)), device=device)
    batch = scenes.batch(task, n=6, split="val", seed=1)
    filled = {name for name, value in vars(batch).items() if value is not None}
    assert filled == {"image", "caption"} | FIELDS[task]
    assert (
        len(batch) == 6
        and batch.image.shape == (6, 3, 48, 64)
        and batch.image.dtype == torch.float32
    )
    assert len(batch.caption) == 6 and all(batch.caption)
    assert {tensor.device.type for tensor in tensors(batch)} == {device}
    assert batch.image.is_contiguous()


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_is_made_of_the_scenes_of_its_indices(task):
    scenes = EmojiScenes(SceneConfig(size=32, count=(1, 8)))
    whole, part = scenes.batch(task, 12, seed=2), scenes.batch(task, 4, seed=2, start=5)
    assert (
        torch.equal(part.image, whole.image[5:9]) and part.caption == whole.caption[5:9]
    )
    for name in FIELDS[task]:
        one, other = getattr(part, name), getattr(whole, name)[5:9]
        if isinstance(one, list) and isinstance(one[0], torch.Tensor):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), name
        else:
            assert (
                torch.equal(one, other)
                if isinstance(one, torch.Tensor)
                else one == other
            ), name


def test_tasks_that_share_layouts_share_images():
    scenes = EmojiScenes(SceneConfig(size=32))
    first = scenes.batch("pairs", 5).image
    for task in ("segment", "detect", "multilabel", "hierarchy"):
        assert torch.equal(scenes.batch(task, 5).image, first)


def test_splits_and_seeds_show_other_scenes():
    scenes = EmojiScenes(SceneConfig(size=16, objects=(1, 2)))
    seen = Counter()
    for split in SPLITS:
        for seed in (0, 1):
            seen.update(
                image.numpy().tobytes()
                for image in scenes.batch("pairs", 200, split, seed).image
            )
    assert max(seen.values()) == 1


# --- Annotations agree ----------------------------------------------------------------


def test_classify_label_is_what_the_caption_names():
    batch = EmojiScenes(SceneConfig(), CaptionConfig(disambiguate=1, kind=0)).batch(
        "classify", 100
    )
    assert batch.label.shape == (100,) and batch.label.dtype == torch.int64
    assert all(
        names()[label] in caption
        for label, caption in zip(batch.label.tolist(), batch.caption, strict=True)
    )


def test_segment_mask_and_present_agree():
    config = SceneConfig(size=96, objects=(1, 4), jitter=0.0, scale=(0.6, 0.7))
    batch = EmojiScenes(config).batch("segment", 100)
    assert batch.mask.shape == (100, 96, 96) and batch.mask.dtype == torch.int64
    assert (
        batch.present.shape == (100, len(VOCABULARY))
        and batch.present.dtype == torch.bool
    )
    for mask, present in zip(batch.mask, batch.present, strict=True):
        values = set(mask.unique().tolist())
        shown = {value for value in values if value < len(VOCABULARY)}
        assert shown == set(present.nonzero()[:, 0].tolist())
        # one background, nothing ignored
        assert len(values - shown) == 1 and max(values) < len(class_names())


def test_occlusion_can_hide_an_object_but_present_knows_it():
    config = SceneConfig(size=64, objects=(8, 8), jitter=3.0, repeat=0.0)
    batch = EmojiScenes(config).batch("segment", 100)
    hidden = 0
    for mask, present in zip(batch.mask, batch.present, strict=True):
        shown = {value for value in mask.unique().tolist() if value < len(VOCABULARY)}
        assert shown <= set(present.nonzero()[:, 0].tolist())
        hidden += int(present.sum()) - len(shown)
    assert hidden >= 0


def test_multilabel_present_is_the_classes_of_detect():
    scenes = EmojiScenes(SceneConfig(size=32))
    present, classes = (
        scenes.batch("multilabel", 50).present,
        scenes.batch("detect", 50).classes,
    )
    for row, own in zip(present, classes, strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == set(own.tolist())


def test_detect_phrases_point_at_boxes_of_their_class():
    batch = EmojiScenes(SceneConfig(objects=(1, 6))).batch("detect", 100)
    for boxes, classes, phrases, caption in zip(
        batch.boxes, batch.classes, batch.phrases, batch.caption, strict=True
    ):
        assert boxes.shape == (len(classes), 4) and boxes.dtype == torch.float32
        assert sorted(o for phrase in phrases for o in phrase.objects) == list(
            range(len(classes))
        )
        for phrase in phrases:
            assert (classes[list(phrase.objects)] == phrase.concept).all()
            assert 0 <= phrase.start < phrase.end <= len(caption)


def test_boxes_hold_the_pixels_of_their_class():
    scenes = EmojiScenes(SceneConfig(objects=(1, 4)))
    segment, detect = scenes.batch("segment", 60), scenes.batch("detect", 60)
    for mask, boxes, classes in zip(
        segment.mask, detect.boxes, detect.classes, strict=True
    ):
        inside = torch.zeros_like(mask, dtype=torch.bool)
        for (x1, y1, x2, y2), concept in zip(
            boxes.long().tolist(), classes.tolist(), strict=True
        ):
            inside[y1:y2, x1:x2] |= mask[y1:y2, x1:x2] == concept
        assert torch.equal(inside, mask < len(VOCABULARY))


def test_hierarchy_gives_three_names_per_object():
    batch = EmojiScenes().batch("hierarchy", 50)
    for classes, concepts, boxes in zip(
        batch.classes, batch.concepts, batch.boxes, strict=True
    ):
        assert len(classes) == len(concepts) == len(boxes)
        for index, concept in zip(classes.tolist(), concepts, strict=True):
            entry = VOCABULARY[index]
            assert concept.phrase.endswith(entry.name) and concept.phrase.split()[
                0
            ] in ("a", "an")
            assert (concept.category, concept.parent) == (entry.category, entry.group)


@pytest.mark.parametrize("size", [64, 160, (64, 192)])
def test_count_points_boxes_density_and_caption_agree(size):
    captions = CaptionConfig(count=1.0, disambiguate=1.0)
    config = SceneConfig(size=size, count=(1, 30))
    batch = EmojiScenes(config, captions).batch("count", 60)
    height, width = config.shape
    torch.testing.assert_close(
        batch.density.sum((1, 2, 3)),
        torch.tensor([float(len(points)) for points in batch.points]),
        rtol=1e-4,
        atol=0,
    )
    for b, points in enumerate(batch.points):
        counted = batch.classes[b] == batch.label[b]
        assert 1 <= len(points) == int(counted.sum()) <= 30
        boxes = batch.boxes[b][counted]
        assert ((points >= boxes[:, :2]) & (points <= boxes[:, 2:])).all()
        assert (points >= 0).all() and (points <= torch.tensor([width, height])).all()
        entry = VOCABULARY[batch.label[b]]
        assert (entry.name if len(points) == 1 else entry.plural) in batch.caption[b]
        assert all(concept == batch.label[b] for concept in batch.classes[b][counted])


def test_count_of_sixty_with_distractors():
    config = SceneConfig(size=128, count=(60, 60), distractors=(6, 6))
    batch = EmojiScenes(config).batch("count", 10)
    for b in range(10):
        assert len(batch.points[b]) == 60 and len(batch.classes[b]) == 66
        assert (batch.classes[b] == batch.label[b]).sum() == 60
        assert batch.density[b].sum().item() == pytest.approx(60, rel=1e-4)


def test_nothing_to_count_gives_empty_annotations():
    batch = EmojiScenes(SceneConfig(size=32, count=(0, 0), distractors=(0, 0))).batch(
        "count", 4
    )
    assert [len(points) for points in batch.points] == [0] * 4
    assert [tuple(boxes.shape) for boxes in batch.boxes] == [(0, 4)] * 4
    assert not batch.density.any() and batch.density.shape == (4, 1, 32, 32)


# --- The rest of the interface --------------------------------------------------------


def test_class_names_are_the_mask_values():
    assert class_names() == names() + list(BACKGROUNDS)
    assert (
        len(set(class_names())) == len(class_names())
        and len(names()) >= 240
        and len(BACKGROUNDS) >= 12
    )


def test_with_config_keeps_the_captions_and_leaves_the_original():
    scenes = EmojiScenes(SceneConfig(size=32), CaptionConfig(opening=0))
    other = scenes.with_config(replace(scenes.config, objects=(2, 2)))
    assert (
        other.config == SceneConfig(size=32, objects=(2, 2))
        and other.captions == scenes.captions
    )
    assert scenes.config.objects == (1, 4)


def test_statistics_need_no_pixels():
    """What the data-set page shows comes from layouts, a hundred thousand scenes
    in a few seconds."""
    layout, _ = EmojiScenes(SceneConfig(long_tail=True)).layout("pairs", 5000)
    objects = (layout.concept >= 0).sum(1)
    per_class = np.bincount(
        layout.concept[layout.concept >= 0], minlength=len(VOCABULARY)
    )
    assert objects.sum() == per_class.sum() and 2.3 < objects.mean() < 2.7
    assert len(layout.background) == 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(task="caption", n=1),
            "task='caption': expected one of pairs, classify, segment",
        ),
        (dict(task="pairs", n=0), "n=0, start=0: expected n >= 1"),
        (dict(task="pairs", n=2, start=-1), "start=-1"),
        (
            dict(task="pairs", n=1, split="dev"),
            "split='dev': expected one of train, val, test",
        ),
        (dict(task="pairs", n=1, seed=-3), "seed=-3"),
    ],
)
def test_batch_refuses(arguments, message):
    with pytest.raises(ValueError) as error:
        EmojiScenes(SceneConfig(size=16)).batch(**arguments)
    assert message in str(error.value)
