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
from minilib.recipes.lseg.towers import LabelTower, caption_tower, label_tower
from minilib.recipes.shared.randomness import derangement
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
EMBEDDINGS = ("words", "centred", "random", "deranged", "learned")
"""Vectors of the labels: of the frozen text tower; the same less the mean over
the vocabulary, which all words share; random ones; the text tower's vectors,
each of another word; and free ones, trained with the rest, which make LSeg an
ordinary segmenter."""
TOWERS = ("labels", "captions")
"""Where the image backbone starts: a classifier of names that the study does not
contain, trained on labels, the miniature's ImageNet; or ``mini-rn``'s image tower,
which has read captions with every name."""


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
    tower_steps: int = 300
    """Optimiser steps of the pre-training on labels of other names."""
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
class Arm:
    """What is trained in one training, where claims compare several."""

    vectors: str = "words"
    """Of the labels, see EMBEDDINGS."""
    tower: str = "labels"
    """Where the image backbone starts, see TOWERS."""
    block: str = "none"
    """After the correlation, see LSegConfig."""
    block_depth: int = 1
    """How often it is applied."""
    temperature: float = 0.07
    """t of the correlation."""


@dataclass(frozen=True)
class Study:
    """What there is to learn and to ask, whatever the images are."""

    labels: LabelSpace
    """All words; a mask's values are labels of it."""
    batches: Callable[[int], Batch]
    """Training images by step; masks hold seen labels, "other" where there
    is one, and 255."""
    test: Mapping[str, Batch]
    """Test images, ``"seen"`` and ``"unseen"``; of EmojiScenes also ``"both"``, scenes
    of seen and unseen words together."""


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

    def numbered(classes: Sequence[int], n: int, split: str, start: int = 0) -> Batch:
        names = tuple(words[i] for i in classes)
        batch = scenes_of(lab, names, device).batch("segment", n, split, seed, start)
        return replace(batch, mask=labels.from_scene(required(batch.mask, "mask")))

    size = lab.batch_size
    tested = {kind: labels.counted(kind) for kind in ("seen", "unseen")}
    tested["both"] = labels.seen + labels.unseen
    return Study(
        labels=labels,
        batches=lambda step: numbered(labels.seen, size, "train", step * size),
        test={
            kind: numbered(classes, lab.test_images, "test")
            for kind, classes in tested.items()
        },
    )


def scenes_of(
    lab: Lab, names: tuple[str, ...], device: torch.device | str = "cpu"
) -> EmojiScenes:
    """Return the scenes of a lab with objects of these names only."""
    config = SceneConfig(
        size=lab.image_size, objects=lab.objects, classes=names, tint=0.0
    )
    return EmojiScenes(config, device=device)


def repeated(study: Study, batches: int) -> Study:
    """Return the study with only its first training batches, again and again."""
    return replace(study, batches=lambda step: study.batches(step % batches))


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

    def forward(self, image: Tensor, labels: Sequence[int] | Tensor) -> Tensor:
        """Score images (B, 3, H, W) in [0, 1] against labels of the study, N of them
        for all images or (B, N) for each: (B, N, H, W)."""
        asked = torch.as_tensor(labels, device=self.vectors.device)
        return self.lseg(self.lseg.preprocess(image), self.vectors[asked]).scores


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
    if kind == "deranged":
        objects = torch.tensor([i for i, word in enumerate(words) if word != OTHER])
        vectors = vectors.clone()
        vectors[objects] = vectors[objects[derangement(len(objects), generator)]]
        return vectors
    random = torch.randn(vectors.shape, generator=generator).to(vectors)
    return F.normalize(random, dim=1)


def build(
    lab: Lab,
    study: Study,
    arm: Arm | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Segmenter:
    """Return an untrained segmenter whose backbone is pre-trained.

    The paper starts from a ViT or ResNet trained on ImageNet's labels. The miniature's
    ImageNet are the names of the vocabulary that its lab does not use. The text tower
    and all label vectors meet the same backbone, whatever they mean.

    Args:
        lab: the size.
        study: the labels.
        arm: what is trained; by default LSeg as it is.
        seed: of the pre-training on labels, of decoder, head and random vectors.
        device: where to put it.

    Raises:
        ValueError: an unknown tower or kind of vectors.
    """
    arm = arm or Arm()
    if arm.tower not in TOWERS:
        raise ValueError(f"tower={arm.tower!r}: expected one of {', '.join(TOWERS)}")
    clip = text_tower()
    vision = clip.config.vision
    assert isinstance(vision, ResNetConfig)  # that is what mini-rn is
    config = LSegConfig(
        backbone=CLIPBackbone(vision),
        features=lab.features,
        embed_dim=clip.config.embed_dim,
        image_mean=clip.config.image_mean,
        image_std=clip.config.image_std,
        block=arm.block,
        block_depth=arm.block_depth,
        temperature=arm.temperature,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lseg = LSeg(config)
    if arm.tower == "labels":
        lseg.backbone.load_state_dict(pretrained(lab, seed, device).weights)
    else:
        lseg.backbone.load_state_dict(caption_tower(clip))
    vectors = label_vectors(clip, study.labels.names, arm.vectors, seed)
    segmenter = Segmenter(lseg, vectors, learned=arm.vectors == "learned")
    # a fifth faster on CPUs, the same numbers
    return segmenter.to(device).to(memory_format=torch.channels_last)


def pretrained(lab: Lab, seed: int, device: torch.device | str = "cpu") -> LabelTower:
    """Return the image tower that has been trained on labels of all names but the
    lab's; once a process and seed."""
    config = text_tower().config
    return label_tower(
        config, lab.words, lab.image_size, lab.tower_steps, seed, str(device)
    )


def make_training(
    segmenter: Segmenter,
    study: Study,
    lab: Lab,
    seed: int,
    evaluations: int = 0,
) -> Training:
    """Return the training of a segmenter on the seen labels: equation 2 over all of
    them at every labelled pixel.

    Seen and unseen mIoU are logged ``evaluations`` times.
    """
    labels = study.labels.asked("seen")

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        target = renumber(required(batch.mask, "mask"), labels)
        return {"loss": pixel_cross_entropy(model(batch.image, labels), target)}

    def evaluate(model: nn.Module) -> dict[str, float]:
        return mean_ious(model, study)

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
    arm: Arm | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: str | None = None,
    evaluations: int = 0,
    out: Path | None = None,
) -> tuple[Segmenter, History]:
    """Build and train a segmenter; arguments as in ``build`` and ``make_training``."""
    segmenter = build(lab, study, arm, seed, device)
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
    kinds = [kind for kind in study.test if kind != "both"]
    return {kind: mean_iou(model, study, kind, n) for kind in kinds}


def generalised(model: nn.Module, study: Study) -> dict[str, float]:
    """Ask for seen and unseen words together, on scenes of both: the mIoU over each
    kind, and the harmonic mean of the two, by which zero-shot papers judge it
    (SPNet, CVPR 2019)."""
    labels = study.labels.seen + study.labels.unseen + study.labels.always
    counts = score_labels(model, study.test["both"], labels)
    places = range(len(labels))
    kinds = {"seen": study.labels.seen, "unseen": study.labels.unseen}
    found = {
        kind: counts.mean_iou(i for i in places if labels[i] in words)
        for kind, words in kinds.items()
    }
    both = found["seen"] + found["unseen"]
    harmonic = 2 * found["seen"] * found["unseen"] / both if both else 0.0
    return found | {"harmonic": harmonic}


@torch.no_grad()
def episodes(
    model: nn.Module | None, study: Study, kind: str = "unseen", batch_size: int = 24
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
            pairs = torch.stack([torch.full_like(asked, other), asked], dim=1)
            prediction = model(image, pairs).argmax(dim=1)
        result.update(prediction, target, asked)
    return result


def protocol(model: nn.Module | None, study: Study) -> dict[str, float]:
    """Return "mIoU" and "FB-IoU" of :func:`episodes` over the unseen words."""
    result = episodes(model, study)
    return {"mIoU": result.mean_iou(), "FB-IoU": result.fb_iou()}


def independence(model: Segmenter, study: Study, n: int = 4) -> float:
    """Return by how much scores of three labels change, at most, when the other trained
    ones are asked for as well."""
    image = study.test["seen"].image[:n]
    among = study.labels.asked("seen")
    alone = among[:3]
    with torch.no_grad():
        few, many = model(image, alone), model(image, among)[:, : len(alone)]
    return (few - many).abs().max().item()
