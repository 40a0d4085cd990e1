"""LSeg in miniature: which words, which masks, how it is trained and how unseen
words are judged.

Classes are numbered within a study: first the words that have masks, then "other" where
the study has it. Only masks of *seen* words are ever trained on; the text tower, which
is frozen, has read captions about all of them, as CLIP has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minilib.batch import Batch, required
from minilib.metrics.segmentation import EpisodeScore, SegmentationScore
from minilib.models.clip import CLIP, ResNetConfig
from minilib.models.lseg import (
    CLIPBackbone,
    LSeg,
    LSegConfig,
    embed_labels,
    pixel_cross_entropy,
)
from minilib.recipes.shared.segmentation import (
    LabelSpace,
    evenly_spaced,
    renumber,
    score_masks,
)
from minilib.scenes import VOCABULARY, EmojiScenes, SceneConfig, find
from minilib.training import History, TrainConfig, Training
from minilib.weights import load_clip

FOLDS = 4
OTHER = "other"
EMBEDDINGS = ("words", "centred", "random", "shuffled", "learned")
"""Vectors of the labels: of the frozen text tower; the same less the mean over
the vocabulary, which all words share; random ones; the text tower's vectors,
permuted across words; and free ones, trained with the rest, which make LSeg an
ordinary segmenter."""


@dataclass(frozen=True)
class Lab:
    """One size of the miniature: the data, the model and the optimisation."""

    image_size: int = 48
    """Side of the scenes in pixels."""
    classes: int = 48
    """Words with masks, evenly spaced through the vocabulary; a quarter of them, one
    fold, is never trained on."""
    objects: tuple[int, int] = (1, 2)
    """Least and largest number of objects in a scene."""
    features: int = 32
    """Channels of the decoder."""
    batch_size: int = 12
    """Images in a batch."""
    steps: int = 140
    """Optimiser steps of each training."""
    lr: float = 4e-3
    """Peak learning rate of decoder and head."""
    backbone_factor: float = 0.1
    """Multiplier of ``lr`` for the backbone; a tenth in the paper too."""
    evaluations: int = 4
    """Evaluations along the main training."""
    test_images: int = 120
    """Test scenes of seen, and as many of unseen words."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words with masks."""
        return evenly_spaced([concept.name for concept in VOCABULARY], self.classes)

    def training(self, seed: int, evaluations: int = 1) -> TrainConfig:
        """Return the optimisation with its seed."""
        return TrainConfig(
            steps=self.steps,
            lr=self.lr,
            lr_factors=(("lseg.backbone.", self.backbone_factor),),
            warmup=max(1, self.steps // 10),
            evaluate_every=max(1, self.steps // evaluations),
            log_every=max(1, self.steps // 40),
            seed=seed,
        )


@dataclass(frozen=True)
class Study:
    """What there is to learn and to ask, whatever the images are."""

    labels: LabelSpace
    """All words; a mask's values are labels of it."""
    batches: Callable[[int], Batch]
    """Training images by step; masks hold seen labels, "other" where there
    is one, and 255."""
    test: Mapping[str, Batch]
    """Test images, ``"seen"`` and ``"unseen"``."""


@lru_cache(maxsize=4)
def text_tower(name: str = "mini-rn", device: str = "cpu") -> CLIP:
    """Return the frozen CLIP that reads the labels."""
    clip = load_clip(name, device=device).eval()
    return clip.requires_grad_(False)


def scenes_study(
    lab: Lab,
    seed: int,
    device: torch.device | str = "cpu",
    fold: int = 0,
    seen_classes: int | None = None,
) -> Study:
    """Return the study of one fold of EmojiScenes: its words are unseen, those of the
    other folds are seen.

    Args:
        lab: the size.
        seed: seed of the training images, and of the test images.
        device: where images are drawn.
        fold: 0 to 3.
        seen_classes: train on only this many of the seen words, evenly spaced; the
            number of images stays.

    Raises:
        ValueError: an unknown fold, or more words asked for than the fold leaves.
    """
    if fold not in range(FOLDS):
        raise ValueError(f"fold={fold}: expected 0 to {FOLDS - 1}")
    words = lab.words
    labels = LabelSpace(
        names=(*words, OTHER),
        seen=tuple(i for i, word in enumerate(words) if find(word).fold != fold),
        unseen=tuple(i for i, word in enumerate(words) if find(word).fold == fold),
        other=len(words),
    )
    labels = labels if seen_classes is None else labels.with_seen(seen_classes)

    def scenes(classes: Sequence[int]) -> EmojiScenes:
        names = tuple(words[i] for i in classes)
        return EmojiScenes(
            SceneConfig(
                size=lab.image_size, objects=lab.objects, classes=names, tint=0.0
            ),
            device=device,
        )

    def numbered(batch: Batch) -> Batch:
        return replace(batch, mask=labels.from_scene(required(batch.mask, "mask")))

    training = scenes(labels.seen)
    return Study(
        labels=labels,
        batches=lambda step: numbered(
            training.batch(
                "segment", lab.batch_size, "train", seed, step * lab.batch_size
            )
        ),
        test={
            kind: numbered(
                scenes(labels.counted(kind)).batch(
                    "segment", lab.test_images, "test", seed
                )
            )
            for kind in ("seen", "unseen")
        },
    )


class Segmenter(nn.Module):
    """An LSeg together with a vector for each label of a study, fixed or, for an
    ordinary segmenter, learned."""

    vectors: Tensor
    """(N, C)."""

    def __init__(self, lseg: LSeg, vectors: Tensor, learned: bool = False) -> None:
        super().__init__()
        self.lseg = lseg
        if learned:
            self.vectors = nn.Parameter(vectors.clone())
        else:
            self.register_buffer("vectors", vectors, persistent=False)

    def forward(self, image: Tensor, labels: Sequence[int]) -> Tensor:
        """Score images (B, 3, H, W) in [0, 1] against N labels of the
        study: (B, N, H, W)."""
        return self.lseg(self.lseg.preprocess(image), self.vectors[list(labels)]).scores


def label_vectors(
    clip: CLIP, words: Sequence[str], kind: str = "words", seed: int = 0
) -> Tensor:
    """Return unit vectors (N, C) for the words; see EMBEDDINGS.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in EMBEDDINGS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(EMBEDDINGS)}")
    vectors = embed_labels(clip, words)
    generator = torch.Generator().manual_seed(seed)
    if kind == "words":
        return vectors
    if kind == "centred":
        return F.normalize(
            vectors
            - embed_labels(clip, [concept.name for concept in VOCABULARY]).mean(dim=0),
            dim=1,
        )
    if kind == "shuffled":
        objects = [i for i, word in enumerate(words) if word != OTHER]
        order = torch.randperm(len(objects), generator=generator)
        vectors = vectors.clone()
        vectors[objects] = vectors[[objects[i] for i in order.tolist()]]
        return vectors
    random = torch.randn(vectors.shape, generator=generator).to(vectors)
    return F.normalize(random, dim=1)


def build(
    lab: Lab,
    study: Study,
    kind: str = "words",
    seed: int = 0,
    device: torch.device | str = "cpu",
    text: str = "mini-rn",
    *,
    block: str = "none",
    block_depth: int = 1,
    temperature: float = 0.07,
) -> Segmenter:
    """Return an untrained segmenter whose backbone starts from
    ``mini-rn``'s image tower.

    The paper starts from a ViT or ResNet trained on ImageNet. The miniature has no
    ImageNet: its stand-in is a tower trained on captions, without masks. All kinds of
    label vectors start from it alike.

    Args:
        lab: the size.
        study: the labels.
        kind: of the labels' vectors, see EMBEDDINGS.
        seed: of decoder, head and random vectors.
        device: where to put it.
        text: the CLIP that reads the labels.
        block: after the correlation, see LSegConfig.
        block_depth: how often it is applied.
        temperature: t of the correlation.
    """
    clip, tower = text_tower(text), text_tower("mini-rn")
    vision = tower.config.vision
    assert isinstance(vision, ResNetConfig)  # that is what mini-rn is
    config = LSegConfig(
        backbone=CLIPBackbone(vision),
        features=lab.features,
        embed_dim=clip.config.embed_dim,
        image_mean=tower.config.image_mean,
        image_std=tower.config.image_std,
        block=block,
        block_depth=block_depth,
        temperature=temperature,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lseg = LSeg(config)
    state = {
        key: value
        for key, value in tower.visual.state_dict().items()
        if not key.startswith("attnpool.")
    }
    lseg.backbone.load_state_dict(state)
    vectors = label_vectors(clip, study.labels.names, kind, seed)
    segmenter = Segmenter(lseg, vectors, learned=kind == "learned")
    # a fifth faster on CPUs, the same numbers
    return segmenter.to(device).to(memory_format=torch.channels_last)


def make_training(
    segmenter: Segmenter,
    study: Study,
    lab: Lab,
    seed: int,
    evaluations: int = 0,
    watched: int = 96,
) -> Training:
    """Return the training of a segmenter on the seen labels: equation 2 over all of
    them at every labelled pixel.

    Seen and unseen mIoU are logged ``evaluations`` times, on
    ``watched`` images of each.
    """
    labels = study.labels.asked("seen")

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        target = renumber(required(batch.mask, "mask"), labels)
        return {"loss": pixel_cross_entropy(model(batch.image, labels), target)}

    def evaluate(model: nn.Module) -> dict[str, float]:
        return mean_ious(model, study, watched)

    return Training(
        model=segmenter,
        loss=loss,
        batches=study.batches,
        config=lab.training(seed, max(1, evaluations)),
        evaluate=evaluate if evaluations else None,
    )


def train(
    lab: Lab,
    study: Study,
    kind: str = "words",
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: str | None = None,
    evaluations: int = 0,
    out: Path | None = None,
    *,
    block: str = "none",
    block_depth: int = 1,
    temperature: float = 0.07,
) -> tuple[Segmenter, History]:
    """Build and train a segmenter; arguments as in ``build`` and ``make_training``."""
    segmenter = build(
        lab,
        study,
        kind,
        seed,
        device,
        block=block,
        block_depth=block_depth,
        temperature=temperature,
    )
    training = make_training(segmenter, study, lab, seed, evaluations)
    return segmenter, training.fit(out, progress)


@torch.no_grad()
def predict(
    model: nn.Module, image: Tensor, labels: Sequence[int], batch_size: int = 24
) -> Tensor:
    """Return the place in ``labels`` of the best label of each pixel, (N, H, W), for
    images (N, 3, H, W) in [0, 1]."""
    return torch.cat(
        [model(chunk, labels).argmax(dim=1) for chunk in image.split(batch_size)]
    )


def score(
    model: nn.Module,
    study: Study,
    kind: str,
    n: int | None = None,
    labels: Sequence[int] | None = None,
) -> SegmentationScore:
    """Count right and wrong pixels of the test images of ``kind``.

    Args:
        model: a Segmenter, or whatever scores images against labels as one does; in
            evaluation mode.
        study: the data.
        kind: ``"seen"`` or ``"unseen"``.
        n: number of test images, all by default.
        labels: what to choose from, by default ``study.labels.asked(kind)``; classes
            count in this order.
    """
    labels = labels or study.labels.asked(kind)
    return score_labels(model, study.test[kind], labels, n)


def score_labels(
    model: nn.Module, batch: Batch, labels: Sequence[int], n: int | None = None
) -> SegmentationScore:
    """Count right and wrong pixels of the first ``n`` images (all by default), each
    pixel given one of ``labels``."""
    image = batch.image[:n]
    mask = renumber(required(batch.mask, "mask")[:n], labels)

    def predict_rows(rows: slice) -> dict[str, Tensor]:
        return {"labels": predict(model, image[rows], labels)}

    return score_masks(predict_rows, mask, len(labels), batch_size=24)["labels"]


def mean_iou(model: nn.Module, study: Study, kind: str, n: int | None = None) -> float:
    """Return the mean IoU over the seen or unseen words on ``n`` of their test images,
    "other" not counted."""
    return score(model, study, kind, n).mean_iou(range(len(study.labels.counted(kind))))


def mean_ious(model: nn.Module, study: Study, n: int | None = None) -> dict[str, float]:
    """Return ``mean_iou`` of each kind of words that the study tests, "seen" and
    "unseen"."""
    return {kind: mean_iou(model, study, kind, n) for kind in study.test}


@torch.no_grad()
def episodes(
    model: Segmenter | None, study: Study, kind: str = "unseen", batch_size: int = 24
) -> EpisodeScore:
    """Score the few-shot protocol with no shots: each image asks for one class that is
    in it, against "other".

    Without a model, every pixel is labelled with the class: what the protocol
    gives for nothing.

    Raises:
        ValueError: the study has no label "other" to tell the class from.
    """
    batch, other = study.test[kind], study.labels.other
    if other is None:
        raise ValueError(
            "these labels have no 'other' to tell a class from: score episodes on "
            "scenes"
        )
    result = EpisodeScore(study.labels.counted(kind))
    images, masks = batch.image, required(batch.mask, "mask")
    for image, mask in zip(
        images.split(batch_size), masks.split(batch_size), strict=True
    ):
        asked = torch.stack(
            [
                m[m != other].mode().values
                if (m != other).any()
                else m.new_tensor(other)
                for m in mask
            ]
        )
        kept = asked != other
        image, mask, asked = image[kept], mask[kept], asked[kept]
        target = (mask == rearrange(asked, "b -> b 1 1")).long()
        if model is None:
            prediction = torch.ones_like(target)
        else:
            pairs = torch.stack(
                [model.vectors[other].expand(len(asked), -1), model.vectors[asked]],
                dim=1,
            )
            prediction = model.lseg(model.lseg.preprocess(image), pairs).scores.argmax(
                dim=1
            )
        result.update(prediction, target, asked)
    return result


def independence(model: Segmenter, study: Study, n: int = 4) -> float:
    """Return by how much scores of the unseen labels change, at most, when the seen
    ones are asked for as well."""
    image = study.test["unseen"].image[:n]
    alone = study.labels.asked("unseen")
    among = alone + study.labels.seen
    with torch.no_grad():
        few, many = model(image, alone), model(image, among)[:, : len(alone)]
    return (few - many).abs().max().item()
