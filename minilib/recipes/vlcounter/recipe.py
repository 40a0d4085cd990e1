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
from minilib.models.vlcounter.prompts import PLURAL_TEMPLATES, SINGULAR_TEMPLATES
from minilib.recipes.shared.counting import Counter, Questions
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
    "plain skip": Variant("spt", affine=False, skip="plain"),
    "M4": Variant("spt", affine=False, skip="gated"),
    "M5": Variant("spt", affine=True, skip="gated"),
}
"""The ablation. M1 is the paper's VLBase, M5 its VLCounter; the rows of a claim differ
in one part: VPT and M2 in the text, M2, "plain skip" and M4 in the skip connections, M4
and M5 in the affine map."""

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
    """Make an untrained counter of a variant with the authors' initial weights.

    They depend on ``seed`` alone: parts that two variants share start from the same
    numbers, those of M5, which has all parts.

    Raises:
        KeyError: there is no such variant.
        ValueError: the image tower is not a vision transformer.
    """
    if variant not in VARIANTS:
        raise KeyError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
    vision = clip.config.vision
    if not isinstance(vision, ViTConfig):
        raise ValueError(
            f"the image tower is a {type(vision).__name__}: expected a vision "
            "transformer, whose tokens can be prompted"
        )
    doublings = vision.patch.bit_length() - 1
    # the blocks right before the last one
    middle = tuple(range(vision.layers - doublings, vision.layers - 1))

    def fresh(chosen: Variant) -> VLCounter:
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
        return VLCounter.from_clip(clip, config)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = fresh(VARIANTS["M5"]).state_dict()
        model = fresh(VARIANTS[variant])
    model.load_state_dict({name: whole[name] for name in model.state_dict()})
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
    """Every question hears the name of another one of its batch, as a control."""


RELEASED = Lesson()
"""The authors' loss, and plural words."""


@dataclass(frozen=True)
class Arm:
    """One training that the chapter compares with others."""

    variant: str
    """One of VARIANTS."""
    lesson: Lesson = RELEASED
    """What it is taught."""


ARMS = {
    **{variant: Arm(variant) for variant in VARIANTS},
    "shuffled words": Arm("M5", Lesson(shuffled=True)),
    "the paper's plural": Arm("M5", Lesson(templates=PLURAL_TEMPLATES)),
    "the paper's singular": Arm(
        "M5", Lesson(templates=SINGULAR_TEMPLATES, rename=singular)
    ),
    "no rank loss": Arm("M5", Lesson(rank_weight=0.0)),
    "the paper's rank loss": Arm("M5", Lesson(rank="paper", rank_weight=0.1)),
}
"""All arms. The last two are for readers: no profile trains them."""


def wrong_names(names: Sequence[str]) -> list[str]:
    """Return the names of a batch so permuted that no question hears its own.

    Raises:
        ValueError: more than half of the questions ask for the same.
    """
    for shift in range(1, len(names)):
        moved = [*names[shift:], *names[:shift]]
        if all(a != b for a, b in zip(names, moved, strict=True)):
            return moved
    raise ValueError(
        f"no rotation gives each of {len(names)} questions another name: ask for more "
        "different names in a batch"
    )


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
        names = required(batch.caption, "caption")
        text = words(wrong_names(names) if lesson.shuffled else names)
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
    arm: Arm,
    seed: int,
    progress: str | None = None,
) -> tuple[VLCounter, History]:
    """Build and train one arm; return its model with the history of its training.

    Args:
        clip: the frozen CLIP that it is built on.
        questions: what to learn from.
        lab: the size.
        arm: the variant, and what it is taught.
        seed: of the initial weights, of dropout and of the order of the questions.
        progress: title of the progress bar; None = no bar.
    """
    model = build(clip, lab, grid_of(clip, questions), arm.variant, seed)
    history = training(model, questions, lab, seed, arm.lesson).fit(progress=progress)
    return model, history


def counter_of(model: VLCounter, lesson: Lesson = RELEASED) -> Counter:
    """Return a trained model as a counter that hears the words of its lesson, never
    shuffled; its answers are neither rounded nor clamped at zero."""
    words = Words(model, lesson.templates, lesson.rename)

    @torch.no_grad()
    def count(batch: Batch) -> Tensor:
        text = words(required(batch.caption, "caption"))
        output = model.eval()(model.preprocess(batch.image), text)
        return output.density.sum((1, 2, 3)) / paper.DENSITY_SCALE

    return count


def trained_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
