"""From segments to labels: maps, affinities, background, windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.models.clip.config import TextConfig
from minilib.models.groupvit import (
    Assignment,
    GroupViT,
    GroupViTConfig,
    add_background,
    class_affinity,
    group_maps,
    protocol,
    zero_shot_scores,
)
from minilib.models.groupvit.protocol import resized, segment, sliding_scores

CONFIG = GroupViTConfig(
    image_size=32,
    patch=8,
    widths=(32, 32, 32),
    depths=(1, 1, 1),
    heads=(2, 2, 2),
    group_tokens=(6, 3, 0),
    output_groups=(6, 3),
    text=TextConfig(8, 20, 32, 1, 2),
    embed_dim=16,
    projector_width=24,
)
SCALE = torch.tensor(10.0)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(noise(*shape, seed=seed), dim=-1)


@pytest.fixture(scope="module")
def model() -> GroupViT:
    """A model whose segments differ: with small weights they would all be alike."""
    torch.manual_seed(3)
    model = GroupViT(CONFIG).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "image_" in name:
            nn.init.normal_(parameter, std=0.4)
    return model


PIXELS = noise(2, 3, 32, 48)
TEXT = unit(7, 16, seed=1)


# --- maps -----------------------------------------------------------------------------


def test_maps_multiply_soft_assignments() -> None:
    first, second = noise(2, 6, 12), noise(2, 3, 6, seed=1)
    found = [Assignment(torch.zeros_like(logits), logits) for logits in (first, second)]
    maps = group_maps(found, (3, 4), (3, 4))
    assert [tuple(m.shape) for m in maps] == [(2, 6, 3, 4), (2, 3, 3, 4)]
    for image in range(2):
        for patch in range(12):
            p = first[image, :, patch].softmax(dim=0)
            q = second[image].softmax(dim=0) @ p
            row, column = divmod(patch, 4)
            torch.testing.assert_close(maps[0][image, :, row, column], p)
            torch.testing.assert_close(maps[1][image, :, row, column], q)


def test_maps_sum_to_one_at_any_size(model: GroupViT) -> None:
    assignments = model.image_encoder(PIXELS).assignments
    for maps in group_maps(assignments, (4, 6), (32, 48)):
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 32, 48))
    with pytest.raises(ValueError, match="a grid of 6 x 6 for 24 assigned patches"):
        group_maps(assignments, (6, 6), (32, 48))


# --- affinities -----------------------------------------------------------------------


def test_affinity_is_a_product_of_two_softmaxes() -> None:
    image, segments = unit(2, 16), unit(2, 3, 16, seed=2)
    affinity = class_affinity(image, segments, TEXT, SCALE, top=3)
    for b in range(2):
        best = (image[b] @ TEXT.T).topk(3).indices
        assert affinity.kept[b].nonzero()[:, 0].tolist() == sorted(best.tolist())
        for g in range(3):
            logits = 10 * segments[b, g] @ TEXT.T
            wanted = torch.zeros(7)
            wanted[best] = logits[best].softmax(dim=0)
            torch.testing.assert_close(
                affinity.values[b, g], wanted * logits.softmax(dim=0)
            )


@pytest.mark.parametrize("classes", [1, 3, 5])
def test_with_few_classes_all_are_kept(classes: int) -> None:
    affinity = class_affinity(unit(1, 16), unit(1, 3, 16), TEXT[:classes], SCALE)
    assert affinity.kept.all() and affinity.values.shape == (1, 3, classes)
    if classes == 1:
        assert (affinity.values == 1).all()


def test_classes_there_must_be() -> None:
    for text in (torch.zeros(0, 16), torch.zeros(3, 8), torch.zeros(16)):
        with pytest.raises(ValueError, match="expected .K, 16. with at least one"):
            class_affinity(unit(1, 16), unit(1, 3, 16), text, SCALE)
    with pytest.raises(ValueError, match="top=0"):
        class_affinity(unit(1, 16), unit(1, 3, 16), TEXT, SCALE, top=0)


# --- scores ---------------------------------------------------------------------------


def test_a_pixel_has_the_affinities_of_its_segment(model: GroupViT) -> None:
    result = zero_shot_scores(model, PIXELS, TEXT)
    assert result.scores.shape == (2, 7, 32, 48) and result.owner.unique().numel() > 1
    for b, row, column in ((0, 0, 0), (1, 20, 40), (0, 31, 47)):
        owner = result.owner[b, row, column]
        assert torch.equal(result.scores[b, :, row, column], result.affinity[b, owner])
    assert (result.kept.sum(dim=1) == 5).all()


def test_labels_are_at_most_as_many_as_segments(model: GroupViT) -> None:
    labels = zero_shot_scores(model, PIXELS, unit(50, 16, seed=4)).scores.argmax(dim=1)
    assert all(len(one.unique()) <= 3 for one in labels)


@pytest.mark.parametrize("threshold", [None, 0.3, 0.95])
def test_order_of_classes_is_the_order_of_channels(
    model: GroupViT, threshold: float | None
) -> None:
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    scores = zero_shot_scores(model, PIXELS, TEXT, threshold).scores
    permuted = zero_shot_scores(model, PIXELS, TEXT[order], threshold).scores
    first = 0 if threshold is None else 1
    torch.testing.assert_close(permuted[:, first:], scores[:, first:][:, order])
    torch.testing.assert_close(permuted[:, :first], scores[:, :first])


def test_images_do_not_see_each_other(model: GroupViT) -> None:
    together = zero_shot_scores(model, PIXELS, TEXT, 0.5).scores
    alone = zero_shot_scores(model, PIXELS[1:], TEXT, 0.5).scores
    torch.testing.assert_close(together[1:], alone)


# --- background -----------------------------------------------------------------------

AFFINITY = torch.tensor([[[0.6, 0.1], [0.2, 0.3]]])  # of two segments with two classes
SCORES = AFFINITY[0, [0, 1, 1]].T.reshape(1, 2, 1, 3)  # three pixels


@pytest.mark.parametrize(
    ("threshold", "background"),
    [
        (0.0, [0, 0, 0]),
        (0.3, [0, 0, 0]),  # reached, not missed
        (0.31, [0, 1, 1]),
        (0.6, [0, 1, 1]),
        (0.99, [0, 1, 1]),  # the most confident segment stays
    ],
)
def test_background(threshold: float, background: list[float]) -> None:
    scores = add_background(SCORES, AFFINITY, threshold)
    assert scores.shape == (1, 3, 1, 3)
    assert scores[0, 0, 0].tolist() == background
    assert torch.equal(scores[:, 1:], SCORES)


def test_all_is_background_if_the_most_confident_segment_owns_no_pixel() -> None:
    scores = add_background(SCORES[..., 1:], AFFINITY, 0.95)
    assert scores[0, 0, 0].tolist() == [1, 1]


def test_each_image_has_its_own_most_confident_segment() -> None:
    affinity = torch.cat([AFFINITY, AFFINITY / 2])
    scores = torch.cat([SCORES, SCORES / 2])
    both = add_background(scores, affinity, 0.95)
    assert both[:, 0, 0].tolist() == [[0, 1, 1], [0, 1, 1]]


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_thresholds_are_shares(threshold: float) -> None:
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        add_background(SCORES, AFFINITY, threshold)


# --- windows --------------------------------------------------------------------------


def test_windows_are_averaged(model: GroupViT) -> None:
    pixels = noise(1, 3, 32, 56)
    scores = sliding_scores(model, pixels, TEXT, 0.5, window=32, stride=16)
    crops = [
        zero_shot_scores(model, pixels[..., left : left + 32], TEXT, 0.5).scores
        for left in (0, 16, 24)
    ]
    torch.testing.assert_close(scores[..., :16], crops[0][..., :16])
    torch.testing.assert_close(scores[..., 48:], crops[2][..., 24:])
    middle = (crops[0][..., 24:] + crops[1][..., 8:16] + crops[2][..., :8]) / 3
    torch.testing.assert_close(scores[..., 24:32], middle)


def test_one_window_is_the_image(model: GroupViT) -> None:
    pixels = PIXELS[..., :32]
    torch.testing.assert_close(
        sliding_scores(model, pixels, TEXT, 0.5, window=32, stride=16),
        zero_shot_scores(model, pixels, TEXT, 0.5).scores,
    )


def test_several_windows_may_show_more_classes_than_one(model: GroupViT) -> None:
    text = unit(60, 16, seed=5)
    wide = torch.cat([noise(1, 3, 32, 32, seed=s) * (s + 1) for s in range(8)], dim=-1)
    scores = sliding_scores(model, wide, text, window=32, stride=32)
    assert len(scores.argmax(dim=1).unique()) > 3


def test_bad_windows(model: GroupViT) -> None:
    with pytest.raises(ValueError, match="window of 40 is larger than the image of 32"):
        sliding_scores(model, PIXELS, TEXT, window=40)
    with pytest.raises(ValueError, match="stride=33"):
        sliding_scores(model, PIXELS, TEXT, window=32, stride=33)
    with pytest.raises(ValueError, match="patches of 8"):
        sliding_scores(model, PIXELS, TEXT, window=20, stride=10)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((375, 500), (448, 597)), ((500, 375), (597, 448)), ((100, 1000), (205, 2048))],
)
def test_images_are_resized_in_proportion(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    assert resized(torch.zeros(3, *size)).shape == (3, *wanted)


@pytest.mark.parametrize("size", [(20, 31), (64, 50), (32, 32)])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_labels_have_the_size_of_the_image(
    model: GroupViT, size: tuple[int, int], threshold: float | None
) -> None:
    image = (255 * noise(3, *size).sigmoid()).to(torch.uint8)
    labels = segment(model, image, TEXT, threshold, window=32, stride=16)
    assert labels.shape == size and labels.dtype == torch.int64
    assert labels.min() >= 0 and labels.max() <= 7 - (threshold is None)


def test_an_image_too_wide_for_a_window_is_refused(model: GroupViT) -> None:
    with pytest.raises(ValueError, match="larger than the image"):
        segment(model, torch.zeros(3, 4, 400), TEXT, window=32, stride=16)


def test_names_of_the_data_sets() -> None:
    assert len(set(protocol.VOC_NAMES)) == 20 and protocol.VOC_NAMES[14] == "person"
    assert len(set(protocol.CONTEXT_NAMES)) == 59
    assert protocol.CONTEXT_NAMES[36] == "person"
    assert protocol.THRESHOLDS == {"voc": 0.95, "coco": 0.95, "context": 0.35}
