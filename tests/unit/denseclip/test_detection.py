"""DenseCLIP's detector: box targets, their loss, and torchvision's
RetinaNet on guided maps."""

from __future__ import annotations

import pytest
import torch

from minilib.models.clip import CLIP, CLIPConfig, ResNetConfig, TextConfig
from minilib.models.denseclip.config import DenseCLIPConfig
from minilib.models.denseclip.detection import (
    DenseCLIPDetector,
    box_score_loss,
    box_targets,
)
from minilib.tokenizer import Tokenizer, vocabulary_of

NAMES = ("dog", "cat", "bus")
VOCABULARY = vocabulary_of(NAMES)
TEXT = TextConfig(12, Tokenizer(12, VOCABULARY).vocab_size, 16, 1, 2)
CONFIG = CLIPConfig(
    12, 64, ResNetConfig((1, 1, 1, 1), 4, 4, (1, 2, 2, 1)), TEXT, vocabulary=VOCABULARY
)
ANCHORS = ((12,), (24,), (40,))
EMPTY = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)


def make(**changes) -> DenseCLIPDetector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {
            "decoder_width": 16,
            "decoder_layers": 1,
            "channels": 16,
            "contexts": 3,
        }
        config = DenseCLIPConfig(CONFIG, **small | changes)
        return DenseCLIPDetector.from_clip(CLIP(CONFIG), NAMES, ANCHORS, config)


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def cells(target: torch.Tensor) -> list[tuple[int, int]]:
    return [tuple(place) for place in target.nonzero().tolist()]


def draw(box: list[float], official: bool) -> torch.Tensor:
    return box_targets(
        [torch.tensor([box])], [torch.tensor([0])], 1, (4, 4), official=official
    )[0][0, 0]


def test_a_thin_box_vanishes_in_the_authors_code_and_not_in_ours() -> None:
    thin = [5.0, 0.0, 7.0, 16.0]
    assert not draw(thin, official=True).any()
    assert draw(thin, official=False).sum(dim=0).tolist() == [0, 4, 0, 0]


def test_the_last_row_and_column_stay_empty_in_the_authors_code_and_not_in_ours() -> (
    None
):
    whole = [0.0, 0.0, 16.0, 16.0]
    theirs, ours = draw(whole, official=True), draw(whole, official=False)
    assert ours.all()
    assert theirs[:3, :3].all() and not theirs[3].any() and not theirs[:, 3].any()


def test_boxes_beyond_the_image_are_cut() -> None:
    for official in (True, False):
        assert draw([-20.0, -20.0, 4.0, 4.0], official)[0, 0] == 1
        assert draw([40.0, 40.0, 60.0, 60.0], official).sum() == 0


def test_overlaps_make_several_classes_true_and_the_region_their_union() -> None:
    boxes = [torch.tensor([[0.0, 0, 8, 8], [4.0, 4, 12, 12]])]
    target, region = box_targets(boxes, [torch.tensor([0, 2])], 3, (4, 4))
    assert target[0, :, 1, 1].tolist() == [1, 0, 1]
    assert cells(region[0, 0]) == sorted(
        set(cells(target[0, 0])) | set(cells(target[0, 2]))
    )


def test_background_is_not_trained() -> None:
    """Outside all boxes the loss is blind, whatever the authors answered in public."""
    boxes = [torch.tensor([[0.0, 0, 8, 8]])]
    target, region = box_targets(boxes, [torch.tensor([1])], 3, (4, 4))
    logits = torch.randn(
        1, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    box_score_loss(logits, target, region).backward()
    outside = region.expand_as(logits) == 0
    assert (
        logits.grad[outside].abs().max() == 0 and logits.grad[~outside].abs().min() > 0
    )


def test_a_batch_without_boxes_costs_nothing() -> None:
    target, region = box_targets([EMPTY[0]] * 2, [EMPTY[1]] * 2, 3, (4, 4))
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = box_score_loss(logits, target, region)
    loss.backward()
    assert loss == 0 and logits.grad.abs().max() == 0


def test_bad_boxes() -> None:
    box = torch.tensor([[0.0, 0, 8, 8]])
    with pytest.raises(ValueError, match="1 boxes but 2 classes"):
        box_targets([box], [torch.tensor([0, 1])], 3, (4, 4))
    for wrong in (3, -1):
        with pytest.raises(ValueError, match="expected 0 to 2"):
            box_targets([box], [torch.tensor([wrong])], 3, (4, 4))


def test_detection_concatenates_the_sharpened_map() -> None:
    """The authors' detection code feeds s / tau to the pyramid, their
    segmentation code s."""
    pyramid = make().detector.backbone.eval()
    plain, scores, _ = pyramid.guided_maps(images())
    sharp, logits, _ = pyramid.guided_maps(images(), divide_by_tau=True)
    torch.testing.assert_close(logits, scores / 0.07)
    torch.testing.assert_close(sharp[3][:, -3:], logits)
    torch.testing.assert_close(plain[3][:, -3:], scores)
    levels = pyramid(images())
    assert [tuple(x.shape) for x in levels.values()] == [
        (2, 16, 8, 8),
        (2, 16, 4, 4),
        (2, 16, 4, 4),
    ]
    assert pyramid.score_logits.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("guidance", ["none", "prototypes", "post"])
def test_losses_are_finite_with_and_without_boxes(guidance: str) -> None:
    detector = make(guidance=guidance).train()
    boxes, classes = torch.tensor([[4.0, 4, 40, 40]]), torch.tensor([1])
    for targets in ([(boxes, classes), EMPTY], [EMPTY, EMPTY]):
        losses = detector.losses(
            images(), [b for b, _ in targets], [c for _, c in targets]
        )
        assert losses["loss"].isfinite() and ("scores" in losses) == (
            guidance != "none"
        )
        detector.zero_grad()
        losses["loss"].backward()
        assert all(
            p.grad is None or p.grad.isfinite().all() for p in detector.parameters()
        )
    if guidance != "none":
        assert losses["scores"] == 0


def test_images_keep_their_size_in_training_and_evaluation() -> None:
    """torchvision's detectors would enlarge them to 800 pixels when they evaluate."""
    detector = make()
    for training in (True, False):
        seen, _ = detector.detector.transform.train(training)(list(images()))
        assert seen.tensors.shape == (2, 3, 64, 64)


def test_the_tower_sees_pixels_standardised_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector, seen = make().eval(), []
    pyramid = detector.detector.backbone
    encode = pyramid.backbone.encode
    monkeypatch.setattr(
        pyramid.backbone, "encode", lambda x: seen.append(x) or encode(x)
    )
    detector(images())
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (CONFIG.image_mean, CONFIG.image_std)
    )
    assert torch.equal(seen[0], (images() - mean) / std)


def test_detections_are_boxes_in_the_image() -> None:
    detector = make().eval()
    with torch.no_grad():
        for found in detector(
            torch.rand(2, 3, 60, 50, generator=torch.Generator().manual_seed(1))
        ):
            assert found["boxes"].shape == (len(found["scores"]), 4)
            assert found["labels"].lt(len(NAMES)).all()
            assert (
                found["boxes"][:, 0::2].le(50).all()
                and found["boxes"][:, 1::2].le(60).all()
            )
