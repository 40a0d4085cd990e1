"""DenseCLIP on scenes and on street photographs: the ladder of variants, trained and judged alike.

Everything that is compared shares data, steps, image tower, pyramid and head; what differs is where the K channels of
the score map come from, and what the image tower has seen before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minilib.batch import Batch
from minilib.datasets.camvid import load_camvid
from minilib.metrics.segmentation import SegmentationScore
from minilib.models.clip import CLIP
from minilib.models.denseclip import DenseCLIP, DenseCLIPConfig, denseclip_loss
from minilib.models.denseclip.backbones import AnyBackbone
from minilib.recipes.clip import recipe as clip_recipe
from minilib.scenes import BACKGROUNDS, EmojiScenes, SceneConfig, class_names, names
from minilib.training import History, TrainConfig, Training, fit
from minilib.weights import load_clip


@dataclass(frozen=True)
class Variant:
    """One rung of the ladder."""

    guidance: str
    """One of ``GUIDANCE``: where the score map comes from."""
    start: str = "clip"
    """What the image tower was before: "clip" (captions, long), "captions", "classifier" or "random"."""
    shuffled: bool = False
    """Give every class another class's name."""
    auxiliary: bool = True
    """Train the score map by its own loss."""


LADDER = {
    "random weights": Variant("none", "random"),
    "classifier": Variant("none", "classifier"),
    "captions": Variant("none", "captions"),
    "CLIP, no text": Variant("none"),
    "written prompt": Variant("template"),
    "learned contexts": Variant("contexts"),
    "pre-model": Variant("pre"),
    "post-model": Variant("post"),
    "no auxiliary loss": Variant("post", auxiliary=False),
    "shuffled names": Variant("post", shuffled=True),
    "free prototypes": Variant("prototypes"),
}
"""The paper's Table 2 and the two controls that it lacks. "classifier" and "captions" are trained here from scratch on
equally many images; "CLIP, no text" and all below start from the same CLIP."""


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    size: tuple[int, int] = (64, 64)
    """Rows and columns of the images in pixels."""
    objects: int = 24
    """Object classes, evenly spaced through the vocabulary (scenes)."""
    stuff: int = 4
    """Background classes (scenes)."""
    variants: tuple[str, ...] = ("CLIP, no text", "post-model", "shuffled names")
    """The rungs of ``LADDER`` that are trained."""
    steps: int = 80
    """Optimiser steps of each rung."""
    batch_size: int = 16
    """Images of a step."""
    lr: float = 3e-3
    """Peak learning rate of everything new."""
    tower_lr: float = 0.3
    """Learning rate of the image tower as a share of ``lr``; a tenth in the paper, which trains far longer."""
    channels: int = 64
    """Channels of the feature pyramid."""
    test_images: int = 160
    """Test images (scenes)."""
    pretraining_steps: int = 200
    """Steps of the two short pre-trainings, "classifier" and "captions", of 32 images each."""
    detection: tuple[str, ...] = ()
    """The rungs that are trained as detectors."""
    detection_steps: int = 200
    """Steps of each detector."""
    other_steps: int = 0
    """Steps of another backbone, without and with text; 0 = not trained."""

    def training(self, seed: int, steps: int | None = None) -> TrainConfig:
        """Return the optimisation: AdamW, a smaller learning rate for the image tower (section 4.1)."""
        steps = self.steps if steps is None else steps
        factors = (("backbone.", self.tower_lr), ("detector.backbone.backbone.", self.tower_lr))
        return TrainConfig(
            steps, lr=self.lr, lr_factors=factors, warmup=max(1, steps // 10), weight_decay=1e-4, betas=(0.9, 0.999),
            eps=1e-8, seed=seed, log_every=5, checkpoint_every=50,
        )  # fmt: skip


@dataclass
class Study:
    """A data set as the chapter uses it."""

    names: tuple[str, ...]
    """K class names."""
    batches: Callable[[int], Batch]
    """Training batches by step, mask values 0 ... K - 1 or 255."""
    test: Batch
    """Test images with masks."""
    things: tuple[str, ...] = field(default=())
    """The classes that are objects, first in ``names`` (scenes)."""


def relabel(mask: Tensor, classes: Sequence[str]) -> Tensor:
    """Turn a scene's mask into positions in ``classes``; what is not among them becomes 255."""
    table = torch.full((256,), 255, device=mask.device)
    every = class_names()
    for number, name in enumerate(classes):
        table[every.index(name)] = number
    return table[mask]


def scenes(values: Values, device: torch.device | str = "cpu") -> EmojiScenes:
    """Return the chapter's scenes: one to four objects of its classes on its backgrounds."""
    every, stuff = names(), list(BACKGROUNDS)
    classes = tuple(every[i * len(every) // values.objects] for i in range(values.objects))
    chosen = tuple(stuff[1 + i * (len(stuff) - 1) // values.stuff] for i in range(values.stuff))
    config = SceneConfig(size=values.size, classes=classes, backgrounds=chosen, objects=(1, 4))
    return EmojiScenes(config, device=device)


def scenes_study(values: Values, seed: int, device: torch.device | str = "cpu") -> Study:
    """Return EmojiScenes as a study."""
    source = scenes(values, device)
    classes = (*source.config.classes, *source.config.backgrounds)

    def batch(n: int, split: str, start: int) -> Batch:
        drawn = source.batch("segment", n, split, seed, start)
        return replace(drawn, mask=relabel(drawn.mask, classes))

    return Study(
        names=classes,
        batches=lambda step: batch(values.batch_size, "train", step * values.batch_size),
        test=batch(values.test_images, "test", 0),
        things=source.config.classes,
    )


def photos_study(values: Values, folder: str | Path, seed: int, device: torch.device | str = "cpu") -> Study:
    """Return CamVid as a study: 367 street scenes to train on, mirrored at random, and all 233 test images.

    Raises:
        ValueError: no folder given.
        FileNotFoundError: CamVid is not in it.
    """
    if not str(folder).strip():
        raise ValueError(
            "profile='photos' needs data='FOLDER' with CamVid in it (python data_scripts/get_camvid.py makes one)"
        )
    train, test = (load_camvid(folder, split, values.size) for split in ("train", "test"))

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(len(train), (values.batch_size,), generator=generator)
        drawn = train.batch(chosen, device)
        mirrored = (torch.rand(values.batch_size, generator=generator) < 0.5).to(drawn.image.device)
        image = torch.where(mirrored[:, None, None, None], drawn.image.flip(-1), drawn.image)
        return replace(drawn, image=image, mask=torch.where(mirrored[:, None, None], drawn.mask.flip(-1), drawn.mask))

    return Study(tuple(train.names), batch, test.batch(range(len(test)), device))


def shuffled(class_list: Sequence[str], seed: int) -> tuple[str, ...]:
    """Return the names dealt out anew so that no class keeps its own."""
    order = torch.randperm(len(class_list), generator=torch.Generator().manual_seed(seed)).tolist()
    # Along a random circle of all classes, each takes its neighbour's name.
    dealt = list(class_list)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        dealt[here] = class_list[there]
    return tuple(dealt)


def build(
    variant: Variant,
    clip: CLIP,
    class_list: Sequence[str],
    values: Values,
    seed: int,
    backbone: AnyBackbone | None = None,
) -> DenseCLIP:
    """Make one rung of the ladder from a CLIP, whose weights it copies; for "random" only its shape."""
    given = shuffled(class_list, seed) if variant.shuffled else tuple(class_list)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DenseCLIP(model_config(variant, clip, values), given, backbone)
    if variant.start != "random":
        model.load_clip(clip)
    return model.to(clip.device)


def model_config(variant: Variant, clip: CLIP, values: Values) -> DenseCLIPConfig:
    """Return the chapter's configuration: the released one with a smaller decoder and pyramid."""
    return DenseCLIPConfig(
        clip.config, variant.guidance, template="a photo of {}", decoder_width=64, channels=values.channels
    )


def loss(model: DenseCLIP, batch: Batch) -> dict[str, Tensor]:
    """Head and score map against the mask; for ``fit``."""
    return denseclip_loss(model(model.preprocess(batch.image)), batch.mask, model.config.tau)


def head_loss(model: DenseCLIP, batch: Batch) -> dict[str, Tensor]:
    """The head alone against the mask: what remains without the auxiliary loss."""
    return {"loss": loss(model, batch)["decode"]}


@torch.no_grad()
def evaluate(model: DenseCLIP, test: Batch, batch_size: int = 40) -> dict[str, SegmentationScore]:
    """Return the score of the segmentation, ``head``, and of the raw score map's best class, ``scores``."""
    model.eval()
    results = {"head": SegmentationScore(model.classes)}
    if model.config.guidance != "none":
        results["scores"] = SegmentationScore(model.classes)
    for image, mask in zip(test.image.split(batch_size), test.mask.split(batch_size), strict=True):
        output = model(model.preprocess(image))
        results["head"].update(output.full().argmax(dim=1), mask)
        if output.scores is not None:
            results["scores"].update(output.full(output.scores).argmax(dim=1), mask)
    return results


@dataclass
class Rung:
    """A trained variant."""

    model: DenseCLIP
    history: History
    score: dict[str, SegmentationScore]


def training(name: str, study: Study, clip: CLIP, values: Values, seed: int, steps: int | None = None) -> Training:
    """Return the training of the rung ``name``, which starts from ``clip`` (see :func:`starting_points`)."""
    model = build(LADDER[name], clip, study.names, values, seed)
    return Training(model, loss if LADDER[name].auxiliary else head_loss, study.batches, values.training(seed, steps))


def train(
    name: str, study: Study, clip: CLIP, values: Values, seed: int, out: Path | None = None, steps: int | None = None
) -> Rung:
    """Train the rung ``name`` and judge it; an interrupted training in ``out`` goes on where it stopped."""
    prepared = training(name, study, clip, values, seed, steps)
    folder = None if out is None else out / name.replace(",", "").replace(" ", "-")
    history = prepared.fit(folder, progress=name)
    return Rung(prepared.model, history, evaluate(prepared.model, study.test))


def starting_points(values: Values, clip: CLIP, seed: int, out: Path | None = None) -> dict[str, CLIP]:
    """Return what the rungs start from: ``clip`` itself, and, where asked for, the two short pre-trainings.

    "classifier" learns to name the single object of an image among all 240 names, as on ImageNet; "captions" is a CLIP.
    Both see ``32 * pretraining_steps`` images of 32 pixels, from the same random weights.
    """
    points = {"clip": clip, "random": clip}
    wanted = {LADDER[name].start for name in values.variants}
    if "captions" in wanted:
        mini = clip_recipe.MINI["mini-rn"].but_steps(values.pretraining_steps)
        mini = replace(mini, scenes=replace(mini.scenes, size=32), batch_size=32)
        model = clip_recipe.build(clip.config, seed).to(clip.device)
        pairs = clip_recipe.scene_pairs(mini, seed, clip.device)
        fit(
            model, captions_loss, pairs, mini.training(seed), out=out and out / "pretraining-captions",
            after_step=clip_recipe.clamp_logit_scale, progress="captions",
        )  # fmt: skip
        points["captions"] = model
    if "classifier" in wanted:
        model = clip_recipe.build(clip.config, seed).to(clip.device)
        classifier = Classifier(model, len(names()))
        source = EmojiScenes(SceneConfig(size=32), device=clip.device)
        config = clip_recipe.MINI["mini-rn"].but_steps(values.pretraining_steps).training(seed)
        fit(
            classifier, classifier_loss, lambda step: source.batch("classify", 32, "train", seed, 32 * step), config,
            out=out and out / "pretraining-classifier", progress="classifier",
        )  # fmt: skip
        points["classifier"] = model
    return points


def captions_loss(model: CLIP, batch: Batch) -> dict[str, Tensor]:
    """CLIP's loss on images of any size (``preprocess`` would resize them)."""
    output = model(model.standardise(batch.image), model.tokenize(batch.caption))
    return {"loss": clip_recipe.clip_loss(*output)}


class Classifier(nn.Module):
    """CLIP's image tower with a linear layer instead of a language: ImageNet-style pre-training."""

    def __init__(self, clip: CLIP, classes: int) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.clip.visual.requires_grad_(True)
        self.linear = nn.Linear(clip.config.embed_dim, classes).to(clip.device)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, 3, R, R') in [0, 1]."""
        return self.linear(self.clip.visual(self.clip.standardise(image)))


def classifier_loss(model: Classifier, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy of the single object's class."""
    scores = model(batch.image)
    return {"loss": nn.functional.cross_entropy(scores, batch.label)}


def source_clip(weights: str, device: torch.device | str = "cpu") -> CLIP:
    """Load the CLIP to start from: "mini-rn", or open_clip's "name/tag" such as "RN50-quickgelu/openai"."""
    name, _, tag = weights.partition("/")
    return load_clip(name, tag or None, device)
