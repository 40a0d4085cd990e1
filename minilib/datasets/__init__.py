"""Real data sets that give the same ``Batch`` as the embedded scenes."""

from minilib.datasets.augment import augment
from minilib.datasets.folder import CAPTION_TEMPLATES, PhotoFolder, load_photos, split_holdout

__all__ = ["CAPTION_TEMPLATES", "PhotoFolder", "augment", "load_photos", "split_holdout"]
