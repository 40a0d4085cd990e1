"""VLCounter in miniature: the variants of its ablation, their trainings, and trained
models as counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minilib.batch import Batch, required
from minilib.models import vlcounter as paper
from minilib.models.clip import CLIP, ViTConfig
from minilib.models.vlcounter import VLCounter, VLCounterConfig
from minilib.recipes.shared.counting import Counter, Questions, counted_classes
from minilib.scenes import VOCABULARY
from minilib.training import History, TrainConfig, Training


@dataclass(frozen=True)
class Variant:
    """What one training of the ablation switches on."""

    encoder: str
    """Of the images: "frozen", "vpt" (prompts without text) or "spt"
    (semantic prompts)."""
    affine: bool
    """Scale and shift the similarity map by learned numbers."""
    skip: str
    """Encoder maps in the decoder: "none", "plain" or "gated" by the similarity map."""


VARIANTS = {
    "M1": Variant("frozen", affine=False, skip="none"),
    "VPT": Variant("vpt", affine=False, skip="none"),
    "M2": Variant("spt", affine=False, skip="none"),
    "M3": Variant("spt", affine=True, skip="none"),
    "M4": Variant("spt", affine=False, skip="gated"),
    "plain skip": Variant("spt", affine=True, skip="plain"),
    "M5": Variant("spt", affine=True, skip="gated"),
}
"""The ablation. M1 is the paper's VLBase, M5 its VLCounter."""

PLURAL = (
    "some {}",
    "a photo of some {}",
    "a picture of some {}",
    "here we see some {}",
)
"""Templates in the plural that ``mini-vit``'s captions also use; it has not read the
paper's "a number of"."""
SINGULAR = ("a {}", "a photo of a {}", "a picture of a {}", "here we see a {}")
"""The same in the singular."""
INITIAL_NORM = 3.0
"""Length of the rows that both projections start with; see :func:`build`."""
_SINGULARS = {concept.plural: concept.name for concept in VOCABULARY}


def singular(name: str) -> str:
    """Return the class name of a plural of the vocabulary; other names
    stay as they are."""
    return _SINGULARS.get(name, name)


@dataclass(frozen=True)
class Lab:
    """One size of the miniature: the model and the optimisation."""

    steps: int = 150
    """Optimiser steps of each training."""
    batch_size: int = 16
    """Questions in a step."""
    lr: float = 8e-3
    """Peak learning rate."""
    channels: int = 16
    """Channels of projections and decoder (64 in the paper)."""
    prompts: int = 6
    """Prompt tokens a layer (10 in the paper)."""

    def training(self, seed: int) -> TrainConfig:
        """Return the optimisation: the authors' AdamW, with a schedule
        fit for few steps."""
        return TrainConfig(
            steps=self.steps,
            lr=self.lr,
            warmup=max(1, self.steps // 10),
            weight_decay=0.01,
            betas=(0.9, 0.999),
            log_every=max(1, self.steps // 20),
            checkpoint_every=max(1, self.steps),
            seed=seed,
        )


def grid_of(clip: CLIP, questions: Questions) -> tuple[int, int]:
    """Return rows and columns of the patches that ``clip`` cuts the
    questions' images into."""
    patch = clip.config.vision.reduction
    height, width = questions.image.shape[-2:]
    return height // patch, width // patch


def build(
    clip: CLIP, lab: Lab, grid: tuple[int, int], variant: str, seed: int
) -> VLCounter:
    """Make an untrained counter of a variant whose initial weights depend
    on ``seed`` alone.

    One thing is not the authors': they start both projections near zero and train for
    hundreds of epochs. In a few hundred steps that is too slow, so both start as the
    principal axes of the text features of the classes that scenes are trained on, and S
    starts as the cosine within those axes, times INITIAL_NORM squared.

    Raises:
        KeyError: there is no such variant.
        ValueError: the image tower is not a vision transformer.
    """
    if variant not in VARIANTS:
        raise KeyError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
    chosen, vision = VARIANTS[variant], clip.config.vision
    if not isinstance(vision, ViTConfig):
        raise ValueError(
            f"the image tower is a {type(vision).__name__}: expected a vision "
            "transformer, whose tokens can be prompted"
        )
    doublings = vision.patch.bit_length() - 1
    # the blocks right before the last one
    middle = tuple(range(vision.layers - doublings, vision.layers - 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = VLCounterConfig(
            clip.config,
            grid,
            encoder=chosen.encoder,
            affine=chosen.affine,
            skip=chosen.skip,
            taps=middle,
            prompts=lab.prompts,
            channels=lab.channels,
        )
        model = VLCounter.from_clip(clip, config)
    known = [
        concept.plural
        for concept in VOCABULARY
        if concept.name in counted_classes("train")
    ]
    text = model.encode_names(known, PLURAL)
    middle_text = text.mean(0)
    axes = torch.linalg.svd(text - middle_text, full_matrices=False).Vh[: lab.channels]
    with torch.no_grad():
        for projection in (model.head.t_proj, model.head.v_proj):
            projection.weight.copy_(INITIAL_NORM * axes)
        model.head.t_proj.bias.copy_(-INITIAL_NORM * axes @ middle_text)
    return model


class Words:
    """Text features of names, each encoded once: the text tower is frozen."""

    def __init__(
        self,
        model: VLCounter,
        templates: Sequence[str],
        rename: Callable[[str], str] = str,
    ) -> None:
        self.model, self.templates, self.rename = model, templates, rename
        self.known: dict[str, Tensor] = {}

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Return the unit rows (B, E) of ``names``."""
        if missing := [name for name in dict.fromkeys(names) if name not in self.known]:
            rows = self.model.encode_names(
                [self.rename(name) for name in missing], self.templates
            )
            self.known |= dict(zip(missing, rows, strict=True))
        return torch.stack([self.known[name] for name in names])


RANK_LOSSES = {"official": paper.rank_loss, "paper": paper.nested_rank_loss}


@dataclass(frozen=True)
class Lesson:
    """What a training teaches: its rank-aware loss, and the words that go with the
    images."""

    rank: str = "official"
    """The rank-aware loss: "official", the authors' code, or "paper", the formula."""
    rank_weight: float = paper.RANK_WEIGHT
    """Weight of that loss; 0 leaves it out."""
    templates: tuple[str, ...] = PLURAL
    """Sentences around the names."""
    rename: Callable[[str], str] = str
    """Applied to every name first."""
    shuffled: bool = False
    """Permute the names of a batch across its questions, as a control."""


RELEASED = Lesson()
"""The authors' loss, and plural words."""
CONTROLS = {
    "shuffled words": ("M2", Lesson(shuffled=True)),
    "no rank loss": ("M5", Lesson(rank_weight=0.0)),
    "the paper's rank loss, weight 0.1": ("M5", Lesson(rank="paper", rank_weight=0.1)),
    "singular words": ("M5", Lesson(templates=SINGULAR, rename=singular)),
}
"""Controls of the ablation: the variant, and what it is taught."""


def training(
    model: VLCounter,
    questions: Questions,
    lab: Lab,
    seed: int,
    lesson: Lesson = RELEASED,
) -> Training:
    """Return the training of a fresh counter.

    It logs "loss", its parts "count" and "rank", and "empty", what an empty map would
    have cost on the same questions.

    Args:
        model: from :func:`build`; trained in place.
        questions: what to learn from.
        lab: the size.
        seed: of dropout and of the order of the questions.
        lesson: loss and words.
    """
    words = Words(model, lesson.templates, lesson.rename)
    rank_loss = RANK_LOSSES[lesson.rank]

    def loss(model: VLCounter, batch: Batch) -> dict[str, Tensor]:
        text = words(required(batch.caption, "caption"))
        if lesson.shuffled:
            text = text.roll(1, 0)
        output = model(model.preprocess(batch.image), text)
        target = paper.DENSITY_SCALE * required(batch.density, "density")
        count = paper.count_loss(output.density, target)
        order = rank_loss(output.similarity, target)
        empty = paper.count_loss(torch.zeros_like(target), target)
        return {
            "loss": count + lesson.rank_weight * order,
            "count": count.detach(),
            "rank": order.detach(),
            "empty": empty,
        }

    return Training(
        model=model,
        loss=loss,
        batches=questions.stream(lab.batch_size, seed, model.clip.device),
        config=lab.training(seed),
    )


def train(
    clip: CLIP,
    questions: Questions,
    lab: Lab,
    variant: str,
    seed: int,
    lesson: Lesson = RELEASED,
    progress: str | None = None,
) -> tuple[VLCounter, History]:
    """Build and train one variant; return it with the history of its training.

    Args:
        clip: the frozen CLIP that it is built on.
        questions: what to learn from.
        lab: the size.
        variant: one of VARIANTS.
        seed: of the initial weights, of dropout and of the order of the questions.
        lesson: loss and words.
        progress: title of the progress bar; None = no bar.
    """
    model = build(clip, lab, grid_of(clip, questions), variant, seed)
    history = training(model, questions, lab, seed, lesson).fit(progress=progress)
    return model, history


def counter_of(
    model: VLCounter,
    templates: Sequence[str] = PLURAL,
    rename: Callable[[str], str] = str,
) -> Counter:
    """Return a trained model as a counter; its answers are neither rounded nor
    clamped at zero."""
    words = Words(model, templates, rename)

    @torch.no_grad()
    def count(batch: Batch) -> Tensor:
        text = words(required(batch.caption, "caption"))
        output = model.eval()(model.preprocess(batch.image), text)
        return output.density.sum((1, 2, 3)) / paper.DENSITY_SCALE

    return count


def trained_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
