"""What detectors built on torchvision's share."""

from __future__ import annotations

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class UnresizedTransform(GeneralizedRCNNTransform):
    """Standardise and pad images, and leave their size alone.

    torchvision's own option to skip resizing works in training only.
    """

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the image (3, H, W) and its target as they are."""
        return image, target
