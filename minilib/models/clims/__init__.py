"""CLIMS (arXiv 2203.02668): maps of classes, taught by what CLIP sees through them."""

from minilib.models.clims.config import (
    CAMERA_READY_VOC,
    IMPROVED_COCO,
    IMPROVED_VOC,
    CLIMSConfig,
    LossConfig,
)
from minilib.models.clims.evaluator import (
    Evaluator,
    Similarities,
    Views,
    masked_views,
)
from minilib.models.clims.losses import (
    area_regularisation,
    background_suppression,
    background_text_matching,
    baseline_loss,
    class_background_suppression,
    clims_loss,
    object_text_matching,
)
from minilib.models.clims.model import CLIMS, CLIMSOutput

__all__ = [
    "CAMERA_READY_VOC",
    "CLIMS",
    "CLIMSConfig",
    "CLIMSOutput",
    "Evaluator",
    "IMPROVED_COCO",
    "IMPROVED_VOC",
    "LossConfig",
    "Similarities",
    "Views",
    "area_regularisation",
    "background_suppression",
    "background_text_matching",
    "baseline_loss",
    "class_background_suppression",
    "clims_loss",
    "masked_views",
    "object_text_matching",
]
