"""What CLIMS tells CLIP: names of classes, and what co-occurs with them. Data, not
learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IMPROVED_TEMPLATE = "a photo of {}."
CAMERA_READY_TEMPLATE = "a photo of {}"

VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
"""The 20 classes of PASCAL VOC, as the camera-ready version puts them into prompts."""

RENAMED = {
    "diningtable": "dining table",
    "person": "player",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
}
"""Names that the improved version replaces in prompts, on PASCAL VOC and on COCO; the
authors do not say why "person" became "player"."""

IMPROVED_VOC_BACKGROUNDS = (
    *("tree", "river", "sea", "lake", "water", "railway", "railroad", "track"),
    *("stone", "rocks"),
)
"""One list for all classes of PASCAL VOC."""

CAMERA_READY_BACKGROUNDS = {
    "boat": ("river", "water", "lake", "sea", "building"),
    "train": ("railroad", "railway", "branches", "tree"),
}
"""Lists of their own; the other 18 classes have none, and no L_CBS."""

IMPROVED_COCO_BACKGROUNDS = (
    *("street sign", "mountain", "video game", "men", "track", "bus stop", "cabinet"),
    *("tray", "plate", "shirt", "city street", "runway", "tower", "ramp", "grass"),
    *("pillow", "urinal", "lake", "brick", "fence", "shower", "airport", "animal"),
    *("shower curtain", "road", "mirror", "jacket", "church", "snow", "fruit", "hay"),
    *("floor", "field", "street", "mouth", "steam engine", "cheese", "river"),
    *("tree branch", "suit", "child", "soup", "desk", "tub", "tennis court", "teeth"),
    *("bridge", "sky", "officer", "sidewalk", "dock", "tree", "court", "rock"),
    *("board", "branch", "pan", "box", "body", "salad", "dirt", "leaf", "hand"),
    *("highway", "vegetable", "computer monitor", "door", "meat", "pair", "beach"),
    *("harbor", "ocean", "baseball player", "girl", "market", "window", "blanket"),
    *("boy", "woman", "bat", "baby", "flower", "wall", "bath tub", "tarmac"),
    *("tennis ball", "roll", "park"),
)
"""One list for all classes of COCO."""

HEAVY = ("chair", "diningtable", "sofa")
"""Classes that the camera-ready version counts three times in L_OTM and L_BTM."""


def prompt_names(names: Sequence[str]) -> list[str]:
    """Return the words that stand for class names in the improved version's prompts."""
    return [RENAMED.get(name, name) for name in names]


def class_weights(names: Sequence[str], heavy: Sequence[str] = HEAVY) -> Tensor:
    """Return the camera-ready weights (K,) of classes in L_OTM and L_BTM: 3 for
    ``heavy`` ones, else 1."""
    return torch.tensor([3.0 if name in heavy else 1.0 for name in names])
