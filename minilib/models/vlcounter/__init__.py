"""VLCounter (arXiv 2312.16580): counting with a prompted, frozen CLIP."""

from minilib.models.vlcounter.config import VLCounterConfig
from minilib.models.vlcounter.encoder import SemanticPrompts, encode_image, value_path
from minilib.models.vlcounter.losses import (
    RANK_WEIGHT,
    THRESHOLDS,
    count_loss,
    nested_rank_loss,
    object_loss,
    rank_loss,
    sampled_target,
    total_loss,
)
from minilib.models.vlcounter.model import (
    DENSITY_SCALE,
    AffineMap,
    CounterHead,
    DecoderStage,
    SkipConnection,
    VLCounter,
    VLCounterOutput,
)

__all__ = [
    "AffineMap",
    "CounterHead",
    "DENSITY_SCALE",
    "DecoderStage",
    "RANK_WEIGHT",
    "SemanticPrompts",
    "SkipConnection",
    "THRESHOLDS",
    "VLCounter",
    "VLCounterConfig",
    "VLCounterOutput",
    "count_loss",
    "encode_image",
    "nested_rank_loss",
    "object_loss",
    "rank_loss",
    "sampled_target",
    "total_loss",
    "value_path",
]
