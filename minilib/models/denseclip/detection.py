"""DenseCLIP for detection (section 3.4): the score map guides torchvision's RetinaNet
and is trained by boxes.

Shapes: B images of R x R' pixels, K classes, n boxes in one image.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from minilib.layers.detection import UnresizedTransform
from minilib.layers.fpn import FeaturePyramid
from minilib.models.clip import CLIP
from minilib.models.denseclip.backbones import DenseTower
from minilib.models.denseclip.config import DenseCLIPConfig
from minilib.models.denseclip.model import TextGuided


def box_targets(
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    count: int,
    grid: tuple[int, int],
    stride: int = 4,
    official: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw boxes on the grid of the score map: which class is where, and
    where any box is.

    Args:
        boxes: per image (n, 4), x1 y1 x2 y2 in pixels; n may be 0.
        classes: per image (n,) int64.
        count: number K of classes.
        grid: rows and columns.
        stride: pixels per cell.
        official: False: a box takes every cell that it touches. True: as the authors'
            code rounds, where boxes thinner than a cell vanish and the last row and
            column stay empty.

    Returns:
        Target (B, K, rows, columns) in {0, 1}; where boxes overlap, several classes are
        true. Region (B, 1, rows, columns) in {0, 1}, the union of the boxes.

    Raises:
        ValueError: a class out of range, or not one class per box.
    """
    rows, columns = grid
    first = boxes[0] if len(boxes) else torch.empty(0)
    target = torch.zeros(len(boxes), count, rows, columns, device=first.device)
    region = torch.zeros(len(boxes), 1, rows, columns, device=first.device)
    for image, (corners, labels) in enumerate(zip(boxes, classes, strict=True)):
        if len(corners) != len(labels):
            raise ValueError(
                f"image {image} has {len(corners)} boxes but {len(labels)} classes: "
                "give one per box"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            raise ValueError(
                f"image {image} has classes {labels.tolist()[:8]}: expected 0 to "
                f"{count - 1}"
            )
        scaled = corners / stride
        start, end = (
            (scaled.trunc(), scaled.trunc())
            if official
            else (scaled.floor(), scaled.ceil())
        )
        limit = scaled.new_tensor([columns, rows]) - (1 if official else 0)
        start, end = (
            start[:, :2].clamp(min=0).minimum(limit),
            end[:, 2:].clamp(min=0).minimum(limit),
        )
        for (x1, y1), (x2, y2), label in zip(
            start.int().tolist(), end.int().tolist(), labels.tolist(), strict=True
        ):
            target[image, label, y1:y2, x1:x2] = 1
            region[image, 0, y1:y2, x1:x2] = 1
    return target, region


def box_score_loss(logits: Tensor, target: Tensor, region: Tensor) -> Tensor:
    """Binary cross-entropy of s / tau (B, K, rows, columns) with the boxes, inside
    their union (equation 6).

    What lies outside all boxes is not trained, neither as background nor otherwise. A
    batch without boxes gives 0 (the authors' code divides 0 by 0).
    """
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    cells = (region.sum() * logits.shape[1]).clamp(min=1)
    return (each * region).sum() / cells


class GuidedPyramid(TextGuided):
    """Text-guided maps and a feature pyramid: a backbone for torchvision's detectors.

    Args:
        config: see :class:`DenseCLIPConfig`.
        names: K class names.
        first: index of the finest map that detection uses; the paper's RetinaNet
            begins at stride 8.
        backbone: another image tower than CLIP's.
    """

    def __init__(
        self,
        config: DenseCLIPConfig,
        names: Sequence[str],
        first: int = 1,
        backbone: DenseTower | None = None,
    ) -> None:
        super().__init__(config, names, backbone)
        self.first, self.out_channels = first, config.channels
        self.neck = FeaturePyramid(self.guided_channels[first:], config.channels)
        self.score_logits: Tensor | None = None

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return the pyramid's levels (B, C, h_i, w_i) of pixels
        (B, 3, R, R'), by number.

        ``score_logits`` keeps s / tau at stride 4, (B, K, R / 4, R' / 4): torchvision's
        detectors pass on nothing but the levels.
        """
        # Unlike in segmentation, the authors concatenate s / tau here, not s: 1 / tau
        # times as large.
        maps, scores, _ = self.guided_maps(pixels, divide_by_tau=True)
        grid = maps[0].shape[-2:]
        self.score_logits = None
        if scores is not None:
            self.score_logits = F.interpolate(
                scores, grid, mode="bilinear", align_corners=False
            )
        return OrderedDict(
            (str(i), level) for i, level in enumerate(self.neck(maps[self.first :]))
        )


class DenseCLIPDetector(nn.Module):
    """RetinaNet on text-guided maps, with the auxiliary box loss on the score map.

    Args:
        pyramid: the guided backbone.
        anchor_sizes: sides of the anchors on each level, in pixels; three
            aspect ratios of each.
        score_threshold: least score of a detection.
        detections: most detections of an image.
        candidates: most boxes of a level that compete for them; many are slow.
    """

    def __init__(
        self,
        pyramid: GuidedPyramid,
        anchor_sizes: Sequence[tuple[int, ...]],
        score_threshold: float = 0.05,
        detections: int = 100,
        candidates: int = 1000,
    ) -> None:
        super().__init__()
        anchors = AnchorGenerator(
            tuple(anchor_sizes), ((0.5, 1.0, 2.0),) * len(anchor_sizes)
        )
        self.classes, self.stride = pyramid.classes, max(pyramid.backbone.strides)
        # Normalised heads, as in torchvision's second version of RetinaNet: without,
        # they need thousands of steps.
        head = RetinaNetHead(
            pyramid.out_channels,
            anchors.num_anchors_per_location()[0],
            self.classes,
            norm_layer=partial(nn.GroupNorm, math.gcd(16, pyramid.out_channels)),
        )
        self.detector = RetinaNet(
            pyramid,
            self.classes,
            anchor_generator=anchors,
            head=head,
            score_thresh=score_threshold,
            nms_thresh=0.5,
            detections_per_img=detections,
            topk_candidates=candidates,
        )
        # Pixels are standardised before: nothing is left to torchvision
        # but to pad them.
        self.detector.transform = UnresizedTransform(
            0, 0, [0.0] * 3, [1.0] * 3, size_divisible=self.stride
        )

    @classmethod
    def from_clip(
        cls,
        clip: CLIP,
        names: Sequence[str],
        anchor_sizes: Sequence[tuple[int, ...]],
        config: DenseCLIPConfig | None = None,
    ) -> DenseCLIPDetector:
        """Build a detector from a CLIP's weights; ``config`` must fit its towers."""
        pyramid = GuidedPyramid(config or DenseCLIPConfig(clip.config), names)
        pyramid.load_clip(clip)
        return cls(pyramid, anchor_sizes)

    def losses(
        self, image: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Return ``loss`` and its parts ``classification``, ``box_regression`` and
        ``scores``; in training mode.

        Args:
            image: (B, 3, R, R') in [0, 1].
            boxes: per image (n, 4) x1 y1 x2 y2 in pixels; n may be 0,
                also for all images.
            classes: per image (n,) int64 in 0 ... K - 1.
        """
        targets = [
            {"boxes": b, "labels": c} for b, c in zip(boxes, classes, strict=True)
        ]
        found = self.detector(list(self.preprocess(image)), targets)
        losses = {
            "classification": found["classification"],
            "box_regression": found["bbox_regression"],
        }
        logits = self.detector.backbone.score_logits
        if logits is not None:
            stride = self.detector.backbone.backbone.strides[0]
            target, region = box_targets(
                boxes, classes, self.classes, tuple(logits.shape[-2:]), stride
            )
            losses["scores"] = box_score_loss(logits, target, region)
        return {"loss": sum(losses.values()), **losses}

    def forward(self, image: Tensor) -> list[dict[str, Tensor]]:
        """Detect in images (B, 3, R, R') in [0, 1]; in evaluation mode.

        Returns per image ``boxes`` (m, 4), ``scores`` (m,) and ``labels``
        (m,) in 0 ... K - 1.
        """
        return self.detector(list(self.preprocess(image)))

    def preprocess(self, image: Tensor) -> Tensor:
        """Make pixels from images (B, 3, R, R') in [0, 1]."""
        return self.detector.backbone.preprocess(image)
