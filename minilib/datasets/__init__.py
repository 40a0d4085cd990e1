"""Real data sets that give the same ``Batch`` as the embedded scenes."""

from minilib.datasets.annotations import BadFile
from minilib.datasets.augment import augment
from minilib.datasets.camvid import CamVid, load_camvid
from minilib.datasets.folder import (
    CAPTION_TEMPLATES,
    PhotoFolder,
    load_photos,
    split_holdout,
)

__all__ = [
    "CAPTION_TEMPLATES",
    "BadFile",
    "CamVid",
    "PhotoFolder",
    "augment",
    "load_camvid",
    "load_photos",
    "split_holdout",
]
