"""Average precision of detections, as COCO measures it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def average_precision(
    found: Sequence[dict[str, Tensor]],
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
) -> dict[str, float]:
    """Return COCO's mean average precision of detections against the truth.

    Args:
        found: per image ``boxes`` (m, 4) x1 y1 x2 y2 in pixels, ``scores`` (m,) and
            ``labels`` (m,); m may be 0.
        boxes: per image the true boxes (n, 4); n may be 0.
        classes: per image their classes (n,).

    Returns:
        ``ap``, the mean over classes and the overlaps 0.50, 0.55, ..., 0.95, and
        ``ap50``, at 0.50 alone, in [0, 1]; nan where there is no true box at all.

    Raises:
        ValueError: not one truth per image.
    """
    if not len(found) == len(boxes) == len(classes):
        raise ValueError(
            f"{len(found)} images, {len(boxes)} lists of boxes, {len(classes)} of "
            "classes: give one each"
        )
    # Here: it imports torchvision, which takes as long as torch.
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(backend="faster_coco_eval")
    metric.warn_on_many_detections = False
    metric.update(
        [{key: value.cpu() for key, value in image.items()} for image in found],
        [
            {"boxes": b.cpu(), "labels": c.cpu()}
            for b, c in zip(boxes, classes, strict=True)
        ],
    )
    result = metric.compute()
    values = {"ap": result["map"].item(), "ap50": result["map_50"].item()}
    return {
        name: float("nan") if value < 0 else value for name, value in values.items()
    }
