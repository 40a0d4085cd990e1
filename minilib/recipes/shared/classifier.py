"""CLIP's image tower without its language: the control for what captions give."""

from __future__ import annotations

from torch import Tensor, nn

from minilib.models.clip import CLIP


class ImageClassifier(nn.Module):
    """The image tower of a CLIP with a linear head, for methods without a text tower.

    Args:
        clip: its image tower is trained on, in place; nothing else of it is.
        outputs: K classes, or words to predict.
    """

    def __init__(self, clip: CLIP, outputs: int) -> None:
        super().__init__()
        self.visual = clip.visual
        self.head = nn.Linear(clip.config.embed_dim, outputs).to(clip.device)
        self.preprocess = clip.standardise

    def forward(self, image: Tensor) -> Tensor:
        """Score images (B, 3, H, W) in [0, 1], of any size the tower reads: (B, K)."""
        return self.head(self.visual(self.preprocess(image)))
