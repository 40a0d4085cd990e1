"""The rivals of chapter 2's central claim: CLIP's own map without a mask, and answers
that do not look at the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from minilib.batch import required
from minilib.layers.resampling import resize_images
from minilib.metrics.segmentation import SegmentationScore
from minilib.models.clip import CLIP
from minilib.recipes.clip.recipe import classifier
from minilib.recipes.lseg.recipe import OTHER, Study, mean_ious
from minilib.recipes.shared.segmentation import IGNORED, renumber
from minilib.scenes import BACKGROUNDS

SIDES = (32, 48, 64, 96)
"""Sides in pixels to which images are enlarged for CLIP's map; the best is taken."""
BIASES = tuple(step / 50 for step in range(-10, 11))
"""What may be added to the cosine of "other"; the best is taken."""


class MaskFree(nn.Module):
    """CLIP's map of patches scored against words, without any mask (MaskCLIP, arXiv
    2112.01071).

    "Other" is whatever is called a background or "other" best, plus ``bias``.
    """

    words: Tensor
    """(N, C), a unit vector for each label."""
    rest: Tensor
    """(M, C), unit vectors of what "other" may be."""

    def __init__(
        self, clip: CLIP, study: Study, side: int = 64, bias: float = 0.0
    ) -> None:
        super().__init__()
        self.clip, self.side, self.bias = clip, side, bias
        self.other = study.labels.other
        self.register_buffer("words", classifier(clip, study.labels.names).T)
        self.register_buffer("rest", classifier(clip, [*BACKGROUNDS, OTHER]).T)

    def forward(self, image: Tensor, labels: Sequence[int] | Tensor) -> Tensor:
        """Score images (B, 3, H, W) in [0, 1] against labels, N of them or (B, N):
        (B, N, H, W)."""
        enlarged = resize_images(image, (self.side, self.side))
        patches = self.clip.encode_patches(
            self.clip.standardise(enlarged), normalize=True
        )
        asked = torch.as_tensor(labels, device=image.device)
        if asked.ndim == 1:
            asked = repeat(asked, "n -> b n", b=len(image))
        scores = einsum(patches, self.words[asked], "b c h w, b n c -> b n h w")
        if self.other is not None:
            rest = einsum(patches, self.rest, "b c h w, m c -> b m h w")
            rest = rest.amax(dim=1, keepdim=True) + self.bias
            is_other = rearrange(asked == self.other, "b n -> b n 1 1")
            scores = torch.where(is_other, rest, scores)
        return F.interpolate(scores, size=image.shape[-2:], mode="bilinear")


@torch.no_grad()
def fit_mask_free(clip: CLIP, study: Study, batches: int = 5) -> MaskFree:
    """Return the mask-free CLIP at its best: the size of the images and the bias of
    "other" are chosen on training scenes, by the mIoU of the seen words."""
    labels = study.labels.asked("seen")
    shown = [study.batches(step) for step in range(batches)]
    image = torch.cat([batch.image for batch in shown])
    mask = torch.cat([required(batch.mask, "mask") for batch in shown])
    target = renumber(mask, labels)
    best, chosen = -1.0, (SIDES[0], 0.0)
    for side in SIDES:
        scores = MaskFree(clip, study, side)(image, labels)
        for bias in BIASES:
            moved = torch.cat([scores[:, :-1], scores[:, -1:] + bias], dim=1)
            counts = SegmentationScore(len(labels), IGNORED)
            counts.update(moved.argmax(dim=1), target)
            if (found := counts.mean_iou(range(len(labels) - 1))) > best:
                best, chosen = found, (side, bias)
    return MaskFree(clip, study, *chosen).eval()


def mask_free(clip: CLIP, study: Study) -> dict[str, float]:
    """Return the mIoU of seen and of unseen words by :func:`fit_mask_free`."""
    return mean_ious(fit_mask_free(clip, study), study)


def blind(study: Study) -> dict[str, float]:
    """Return the mIoU of seen and of unseen words by the best answer that does not
    look: every pixel of every test image is called the same word, the largest one."""
    found = {}
    for kind in ("seen", "unseen"):
        labels = study.labels.asked(kind)
        mask = renumber(required(study.test[kind].mask, "mask"), labels)
        pixels = torch.bincount(mask[mask != IGNORED], minlength=len(labels))
        words = pixels[: len(study.labels.counted(kind))]
        occurring = int((words > 0).sum())
        found[kind] = (words.max() / pixels.sum() / max(1, occurring)).item()
    return found
