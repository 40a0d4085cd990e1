"""GroupViT (arXiv 2202.11094): segmentation that emerges from captions."""

from minilib.models.groupvit.config import AssignConfig, GroupViTConfig
from minilib.models.groupvit.grouping import (
    AssignAttention,
    Assignment,
    CrossAttentionBlock,
    GroupingBlock,
    TokenMixer,
    assign,
    gumbel_noise,
    straight_through,
)
from minilib.models.groupvit.losses import (
    contrastive_loss,
    multi_label_loss,
    total_loss,
)
from minilib.models.groupvit.model import (
    EncoderOutput,
    GroupViT,
    GroupViTOutput,
    ImageEncoder,
    Projector,
    SegmentFeatures,
    Stage,
    class_vectors,
    embed_classes,
)
from minilib.models.groupvit.prompts import noun_prompts
from minilib.models.groupvit.segmentation import (
    WindowScores,
    add_background,
    class_affinity,
    group_maps,
    zero_shot_scores,
)

__all__ = [
    "AssignAttention",
    "AssignConfig",
    "Assignment",
    "CrossAttentionBlock",
    "EncoderOutput",
    "GroupViT",
    "GroupViTConfig",
    "GroupViTOutput",
    "GroupingBlock",
    "ImageEncoder",
    "Projector",
    "SegmentFeatures",
    "Stage",
    "TokenMixer",
    "WindowScores",
    "add_background",
    "assign",
    "class_affinity",
    "class_vectors",
    "contrastive_loss",
    "embed_classes",
    "group_maps",
    "gumbel_noise",
    "multi_label_loss",
    "noun_prompts",
    "straight_through",
    "total_loss",
    "zero_shot_scores",
]
