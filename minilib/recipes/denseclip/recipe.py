"""DenseCLIP in miniature: its variants, trained and judged alike.

Everything that is compared shares data, steps, image tower, pyramid and head; what
differs is where the K channels of the score map come from, and what the image tower
has seen before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minilib.batch import Batch, required
from minilib.layers.resnet import ModifiedResNet
from minilib.metrics.segmentation import SegmentationScore
from minilib.models.clip import CLIP
from minilib.models.denseclip import DenseCLIP, DenseCLIPConfig, denseclip_loss
from minilib.models.denseclip.backbones import AnyBackbone, DenseResNet
from minilib.recipes.clip import recipe as clip_recipe
from minilib.recipes.shared.classifier import ImageClassifier
from minilib.recipes.shared.segmentation import evenly_spaced, score_masks
from minilib.scenes import BACKGROUNDS, EmojiScenes, SceneConfig, names
from minilib.training import TrainConfig, Training, fit
from minilib.weights import load_clip


@dataclass(frozen=True)
class Variant:
    """What one training switches on."""

    guidance: str
    """One of ``GUIDANCE``: where the score map comes from."""
    start: str = "clip"
    """What the image tower was before: "clip" (captions, long), "captions",
    "classifier" or "random"."""
    shuffled: bool = False
    """Give every class another class's name, as a control."""
    auxiliary: bool = True
    """Train the score map by its own loss."""
    concatenate: bool = True
    """Give the score map to the pyramid."""
    many: bool = False
    """Train on images that are never shown twice, instead of on the few labelled
    ones."""


VARIANTS = {
    "CLIP, no text": Variant("none"),
    "post-model": Variant("post"),
    "shuffled names": Variant("post", shuffled=True),
    "concatenation alone": Variant("post", auxiliary=False),
    "auxiliary loss alone": Variant("post", concatenate=False),
    "no text, many images": Variant("none", many=True),
    "post-model, many images": Variant("post", many=True),
    "random weights": Variant("none", "random"),
    "classifier": Variant("none", "classifier"),
    "captions": Variant("none", "captions"),
    "classifier, post-model": Variant("post", "classifier"),
    "free prototypes": Variant("prototypes"),
    "written prompt": Variant("template"),
    "learned contexts": Variant("contexts"),
    "pre-model": Variant("pre"),
}
"""What the paper compares, and the controls that it lacks. "classifier" and "captions"
are trained here from scratch on equally many images; the last four are for the reader
to train, no profile does."""


@dataclass(frozen=True)
class Lab:
    """One size of the miniature: the data, the model and the optimisation."""

    size: tuple[int, int] = (128, 128)
    """Rows and columns of the images in pixels; the score map has a cell for every 16
    of them."""
    objects: int = 60
    """Object classes, evenly spaced through the vocabulary (scenes)."""
    stuff: int = 4
    """Background classes, likewise; the plain background is not one (scenes)."""
    labelled: int = 64
    """Images that have masks to train on (scenes)."""
    steps: int = 160
    """Optimiser steps of each variant."""
    batch_size: int = 8
    """Images of a step."""
    lr: float = 3e-3
    """Peak learning rate of everything new."""
    tower_lr: float = 0.3
    """Multiplier of ``lr`` for the image tower; a tenth in the paper, which
    trains far longer."""
    channels: int = 64
    """Channels of the feature pyramid."""
    test_images: int = 240
    """Test images (scenes)."""
    pretraining_steps: int = 250
    """Steps of the two short pre-trainings, "classifier" and "captions"."""
    pretraining_batch: int = 64
    """Images of such a step: single objects, of 64 pixels."""

    @property
    def things(self) -> tuple[str, ...]:
        """Names of the object classes (scenes)."""
        return evenly_spaced(names(), self.objects)

    @property
    def backgrounds(self) -> tuple[str, ...]:
        """Names of the background classes (scenes)."""
        return evenly_spaced(list(BACKGROUNDS)[1:], self.stuff)

    def training(self, seed: int, tower: str = "backbone.") -> TrainConfig:
        """Return the optimisation: AdamW, a smaller learning rate for the image tower,
        whose parameters' names begin with ``tower`` (section 4.1)."""
        return TrainConfig(
            self.steps, lr=self.lr, lr_factors=((tower, self.tower_lr),),
            warmup=max(1, self.steps // 10), weight_decay=1e-4, betas=(0.9, 0.999),
            eps=1e-8, seed=seed, log_every=5, checkpoint_every=50,
        )  # fmt: skip


def scenes(lab: Lab, device: torch.device | str = "cpu") -> EmojiScenes:
    """Return the lab's scenes: one to four objects of its classes on
    its backgrounds."""
    config = SceneConfig(
        size=lab.size,
        classes=lab.things,
        backgrounds=lab.backgrounds,
        objects=(1, 4),
    )
    return EmojiScenes(config, device=device)


def shuffled(class_list: Sequence[str], seed: int) -> tuple[str, ...]:
    """Return a derangement of the names: no class keeps its own."""
    order = torch.randperm(
        len(class_list), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    # Along a random circle of all classes, each takes its neighbour's name.
    permuted = list(class_list)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        permuted[here] = class_list[there]
    return tuple(permuted)


class Stages(nn.Module):
    """The four maps of a CLIP ResNet, as any backbone would give them."""

    def __init__(self, tower: ModifiedResNet) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Turn images (B, 3, R, R') into maps, from fine to coarse."""
        stages = self.tower.stages(pixels)
        return [stages[f"layer{stage}"] for stage in (1, 2, 3, 4)]


def other_backbone(clip: CLIP, lab: Lab) -> AnyBackbone:
    """Return a copy of a tower that never saw text, with a new attention pool into the
    space of text on its last map (section 3.4)."""
    own = DenseResNet(clip.config)
    tower = copy.deepcopy(clip.visual)
    assert isinstance(tower, ModifiedResNet)  # DenseResNet has checked it
    del tower.attnpool
    side = max(lab.size)
    return AnyBackbone(
        Stages(tower), own.channels, own.strides, clip.config.embed_dim, side
    )


def build(
    variant: Variant, clip: CLIP, class_list: Sequence[str], lab: Lab, seed: int
) -> DenseCLIP:
    """Make a variant from a CLIP, whose weights it copies; for
    "random" only its shape.

    A "classifier" that is guided gets the text tower of ``clip`` and a new attention
    pool: see :func:`starting_points`.
    """
    given = shuffled(class_list, seed) if variant.shuffled else tuple(class_list)
    guided_classifier = variant.start == "classifier" and variant.guidance != "none"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = other_backbone(clip, lab) if guided_classifier else None
        model = DenseCLIP(model_config(variant, clip, lab), given, backbone)
    if variant.start != "random":
        model.load_clip(clip)
    return model.to(clip.device)


def model_config(variant: Variant, clip: CLIP, lab: Lab) -> DenseCLIPConfig:
    """Return the lab's configuration: the released one with a smaller
    decoder and pyramid."""
    return DenseCLIPConfig(
        clip.config,
        variant.guidance,
        template="a photo of {}",
        decoder_width=64,
        channels=lab.channels,
        concatenate=variant.concatenate,
    )


def loss(model: DenseCLIP, batch: Batch) -> dict[str, Tensor]:
    """Head and score map against every fourth pixel of the mask; for ``fit``.

    The head's cells are four pixels wide: to enlarge its logits to every pixel, as the
    authors do, would take half of a step and tell it little.
    """
    cell, mask = model.backbone.strides[0], required(batch.mask, "mask")
    return denseclip_loss(
        model(model.preprocess(batch.image)),
        mask[:, cell // 2 :: cell, cell // 2 :: cell],
        model.config.tau,
    )


def head_loss(model: DenseCLIP, batch: Batch) -> dict[str, Tensor]:
    """The head alone against the mask: what remains without the auxiliary loss."""
    return {"loss": loss(model, batch)["decode"]}


def training(
    name: str,
    class_list: Sequence[str],
    batches: Callable[[int], Batch],
    clip: CLIP,
    lab: Lab,
    seed: int,
) -> Training:
    """Return the training of the variant ``name``.

    Args:
        name: one of VARIANTS.
        class_list: K class names.
        batches: training images by step, masks 0 ... K - 1 or 255.
        clip: what it starts from, see :func:`starting_points`.
        lab: the size.
        seed: of the initial weights, and of shuffled names.
    """
    variant = VARIANTS[name]
    model = build(variant, clip, class_list, lab, seed)
    # a new attention pool learns at the full rate
    other = isinstance(model.backbone, AnyBackbone)
    config = lab.training(seed, "backbone.features." if other else "backbone.")
    return Training(model, loss if variant.auxiliary else head_loss, batches, config)


def evaluate(
    model: DenseCLIP, test: Batch, batch_size: int = 40
) -> dict[str, SegmentationScore]:
    """Return the score of the segmentation, ``head``, and of the raw score map's best
    class, ``scores``."""
    model.eval()

    def predict(rows: slice) -> dict[str, Tensor]:
        output = model(model.preprocess(test.image[rows]))
        maps = {"head": output.full().argmax(dim=1)}
        if output.scores is not None:
            maps["scores"] = output.full(output.scores).argmax(dim=1)
        return maps

    mask = required(test.mask, "mask")
    return score_masks(predict, mask, model.classes, batch_size)


def starting_points(
    lab: Lab, variants: Sequence[str], clip: CLIP, seed: int, out: Path | None = None
) -> dict[str, CLIP]:
    """Return what the variants start from: ``clip`` itself, and, where asked for, the
    two short pre-trainings.

    "classifier" learns to name the single object of an image among all 240 names, as on
    ImageNet; "captions" is a CLIP. Both see the same ``pretraining_batch *
    pretraining_steps`` different images, from the same random weights. The classifier
    has the text tower of ``clip``, which its image tower has never met.
    """
    points = {"clip": clip, "random": clip}
    wanted = {VARIANTS[name].start for name in variants}
    mini = clip_recipe.MINI["mini-rn"].with_steps(lab.pretraining_steps)
    single = replace(mini.scenes, objects=(1, 1))
    mini = replace(mini, scenes=single, batch_size=lab.pretraining_batch)
    config = replace(mini.training(seed), evaluate_every=0, precision="auto")
    if "captions" in wanted:
        model = clip_recipe.build(clip.config, seed).to(clip.device)
        pairs = clip_recipe.scene_pairs(mini, seed, clip.device)
        fit(
            model, captions_loss, pairs, config,
            out=out and out / "pretraining-captions",
            after_step=clip_recipe.clamp_logit_scale, progress="captions",
        )  # fmt: skip
        points["captions"] = model
    if "classifier" in wanted:
        model = clip_recipe.build(clip.config, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = ImageClassifier(model.to(clip.device), len(names()))
        source, size = EmojiScenes(mini.scenes, device=clip.device), mini.batch_size
        fit(
            classifier, classifier_loss,
            lambda step: source.batch("classify", size, "train", seed, size * step),
            config, out=out and out / "pretraining-classifier", progress="classifier",
        )  # fmt: skip
        text = {k: v for k, v in clip.state_dict().items() if "visual." not in k}
        model.load_state_dict(model.state_dict() | text)
        points["classifier"] = model
    return points


def captions_loss(model: CLIP, batch: Batch) -> dict[str, Tensor]:
    """CLIP's loss on images of any size (``preprocess`` would resize them)."""
    tokens = model.tokenize(required(batch.caption, "caption"))
    output = model(model.standardise(batch.image), tokens)
    return {"loss": clip_recipe.clip_loss(*output)}


def classifier_loss(model: ImageClassifier, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy of the single object's class."""
    label = required(batch.label, "label")
    return {"loss": nn.functional.cross_entropy(model(batch.image), label)}


def source_clip(weights: str = "", device: torch.device | str = "cpu") -> CLIP:
    """Load the CLIP to start from: "mini-rn", which is also meant by "", or open_clip's
    "name/tag" such as "RN50-quickgelu/openai"."""
    name, _, tag = (weights or "mini-rn").partition("/")
    return load_clip(name, tag or None, device)
