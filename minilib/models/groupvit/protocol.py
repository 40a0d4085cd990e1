"""The authors' evaluation (section 4.1): sizes, windows, thresholds and class names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.layers.pixels import unit_images
from minilib.layers.sliding import slide
from minilib.models.groupvit.model import GroupViT
from minilib.models.groupvit.segmentation import TOP, zero_shot_scores

WINDOW, STRIDE = 448, 224
"""Side of a window, and pixels from one to the next."""
LONGEST = 2048
"""Where the longer side would be longer, the shorter one becomes shorter than a
window."""
THRESHOLDS = {"voc": 0.95, "coco": 0.95, "context": 0.35}
"""Of the background, in the released code; the paper says 0.9 for PASCAL VOC and 0.5
for PASCAL Context."""

VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "table", "dog", "horse", "motorbike", "person", "plant", "sheep", "sofa"),
    *("train", "monitor"),
)
"""PASCAL VOC's classes in the order of their labels 1 to 20; three have shorter
names than there."""
CONTEXT_NAMES = (
    *("airplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat"),
    *("book", "bottle", "building", "bus", "cabinet", "car", "cat", "ceiling"),
    *("chair", "cloth", "computer", "cow", "cup", "curtain", "dog", "door", "fence"),
    *("floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light"),
    *("motorbike", "mountain", "mouse", "person", "plate", "platform", "plant"),
    *("road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow", "sofa"),
    *("table", "track", "train", "tree", "truck", "monitor", "wall", "water"),
    *("window", "wood"),
)
"""PASCAL Context's 59 classes in the order of their labels from 1."""


def resized(image: Tensor, short: int = WINDOW, longest: int = LONGEST) -> Tensor:
    """Resize an image (3, H, W) so that its shorter side is ``short``, in proportion;
    bilinear, without antialiasing.

    Args:
        image: uint8, or float in [0, 1].
        short: wanted shorter side.
        longest: the longer side is at most that, and the shorter one then smaller.

    Returns:
        (3, H', W') float in [0, 1].

    Raises:
        ValueError: not an image, see :func:`minilib.layers.pixels.check_images`.
    """
    image = unit_images(image, axes=3)
    height, width = image.shape[-2:]
    scale = min(longest / max(height, width), short / min(height, width))
    size = int(height * scale + 0.5), int(width * scale + 0.5)
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def sliding_scores(
    model: GroupViT,
    pixels: Tensor,
    text: Tensor,
    threshold: float | None = None,
    window: int = WINDOW,
    stride: int = STRIDE,
    top: int = TOP,
) -> Tensor:
    """Return scores (B, K, H, W) averaged over windows, or (B, 1 + K, H, W) with the
    background in front.

    In each window at most ``top`` classes score; an image of several windows may show
    more.

    Args:
        model: in evaluation mode.
        pixels: (B, 3, H, W) from ``preprocess``.
        text: (K, E) from ``embed_classes``.
        threshold: of the background, see ``zero_shot_scores``.
        window: side of the windows, a multiple of the patch.
        stride: pixels from one window to the next.
        top: classes of a window.

    Raises:
        ValueError: the window is larger than the image or not a whole number of
            patches, or the stride larger than the window.
    """
    height, width = pixels.shape[-2:]
    if window > min(height, width):
        raise ValueError(
            f"a window of {window} is larger than the image of {height} x {width}: "
            "resize or pad the image first, or use smaller windows"
        )

    def scores(crop: Tensor) -> Tensor:
        return zero_shot_scores(model, crop, text, threshold, top).scores

    return slide(scores, pixels, (window, window), (stride, stride))


@torch.no_grad()
def segment(
    model: GroupViT,
    image: Tensor,
    text: Tensor,
    threshold: float | None = None,
    window: int = WINDOW,
    stride: int = STRIDE,
) -> Tensor:
    """Label the pixels of an image (3, H, W) of any size: (H, W) int64.

    The shorter side is resized to the window, and the scores back to the image.

    Args:
        model: in evaluation mode.
        image: uint8, or float in [0, 1].
        text: (K, E) from ``embed_classes``.
        threshold: of the background, which is then label 0 and the classes 1 to K; None
            for no background, and classes from 0.
        window: see :func:`sliding_scores`.
        stride: likewise.

    Raises:
        ValueError: as :func:`sliding_scores`; images more than ``LONGEST / window``
            times as wide as high hold no window.
    """
    small = model.preprocess(resized(image, window)[None].to(model.device))
    scores = sliding_scores(model, small, text, threshold, window, stride)
    size = image.shape[-2], image.shape[-1]
    full = F.interpolate(scores, size, mode="bilinear", align_corners=False)
    return full[0].argmax(dim=0)
