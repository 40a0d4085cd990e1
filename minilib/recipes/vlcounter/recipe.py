"""VLCounter's ablation on scenes and on micrographs: arms, trainings, counters, and what its maps show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilib.batch import Batch
from minilib.datasets.bccd import load_bccd
from minilib.models import vlcounter as paper
from minilib.models.clip import CLIP
from minilib.models.vlcounter import VLCounter, VLCounterConfig
from minilib.parameters import repository
from minilib.recipes.shared.counting import (
    Counter,
    CountingScenes,
    Questions,
    bccd_questions,
    counted_classes,
)
from minilib.recipes.shared.counting_scenes import scenes_of
from minilib.scenes import VOCABULARY
from minilib.training import History, TrainConfig, fit
from minilib.weights import load_clip

ARMS: dict[str, dict[str, Any]] = {
    "M1": {"encoder": "frozen", "affine": False, "skip": "none"},
    "VPT": {"encoder": "vpt", "affine": False, "skip": "none"},
    "M2": {"encoder": "spt", "affine": False, "skip": "none"},
    "M3": {"encoder": "spt", "affine": True, "skip": "none"},
    "M4": {"encoder": "spt", "affine": False, "skip": "gated"},
    "plain skip": {"encoder": "spt", "affine": True, "skip": "plain"},
    "M5": {"encoder": "spt", "affine": True, "skip": "gated"},
}
"""What each arm of the ablation switches on. M1 is the paper's VLBase, M5 its VLCounter."""

PLURAL = ("some {}", "a photo of some {}", "a picture of some {}", "here we see some {}")
"""Templates in the plural that ``mini-vit``'s captions also use; it has not read the paper's "a number of"."""
SINGULAR = ("a {}", "a photo of a {}", "a picture of a {}", "here we see a {}")
"""The same in the singular."""
START = 3.0
"""Length of the rows that both projections start with; see :func:`build`."""
_SINGULARS = {concept.plural: concept.name for concept in VOCABULARY}


def singular(name: str) -> str:
    """Return the class name of a plural of the vocabulary; other names stay as they are."""
    return _SINGULARS.get(name, name)


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    scenes: CountingScenes = field(
        default_factory=lambda: CountingScenes(count=(1, 12), distractors=(2, 12), train=400, test=100)
    )
    """Scenes to count in; ``train`` and ``test`` are numbers of scenes, each with several questions."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Arms of the ablation that are trained."""
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
    variants: bool = True
    """Also train what the controls need: other rank losses, wrong words, singular templates, and CounTX."""
    micrograph: tuple[int, int] = (96, 128)
    """Height and width of the micrographs of profile ``photos``."""

    def training(self, seed: int) -> TrainConfig:
        """Return the optimisation: the authors' AdamW, with a schedule fit for few steps."""
        return TrainConfig(
            steps=self.steps, lr=self.lr, warmup=max(1, self.steps // 10), weight_decay=0.01, betas=(0.9, 0.999),
            log_every=max(1, self.steps // 20), checkpoint_every=max(1, self.steps), seed=seed,
        )  # fmt: skip


PROFILES = {
    "quick": Values(arms=("M1", "M2", "M5"), steps=100, variants=False),
    "full": Values(scenes=CountingScenes(count=(1, 60), distractors=(2, 12), train=600, test=100), steps=110),
    "photos": Values(arms=("M1", "VPT", "M2", "M5"), steps=200, variants=False),
}


@dataclass
class Study:
    """Questions to learn from and to be tested on, and the frozen CLIP; the chapter's cells work with nothing else."""

    clip: CLIP
    train: Questions
    test: Questions
    """Scenes: classes that were never counted in training. Micrographs: the published test split."""
    seen: Questions
    """Scenes: new scenes of the training classes. Micrographs: the published validation split."""
    values: Values

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        patch = self.clip.config.vision.patch
        return self.train.image.shape[-2] // patch, self.train.image.shape[-1] // patch


def scenes_study(values: Values, seed: int, device: torch.device | str = "cpu") -> Study:
    """Return scenes of several classes; each scene is asked for every class in it and for one that is absent."""

    def ask(part: str, split: str, n: int) -> Questions:
        scenes = scenes_of(values.scenes, n, part, split, seed, coloured=0.0)
        return scenes.questions(("class", "absent"), plain=True, article=False)

    return Study(
        load_clip("mini-vit", device=device),
        ask("train", "train", values.scenes.train),
        ask("test", "test", values.scenes.test),
        ask("train", "test", values.scenes.test),
        values,
    )


def micrographs_study(values: Values, data: str | Path, device: torch.device | str = "cpu") -> Study:
    """Return BCCD: each micrograph is asked for red cells, white cells and platelets, in the published splits.

    Raises:
        ValueError: no folder given.
        FileNotFoundError: the folder is not BCCD.
    """
    if not str(data).strip():
        raise ValueError("profile='photos' needs data='FOLDER' with BCCD (python data_scripts/get_bccd.py makes one)")
    # A relative path is meant from the repository's root: a notebook's kernel starts in another folder.
    root = (repository() or Path.cwd()) / Path(data).expanduser()
    train, val, test = (bccd_questions(load_bccd(root, s, values.micrograph)) for s in ("train", "val", "test"))
    return Study(load_clip("mini-vit", device=device), train, test, val, values)


def build(study: Study, arm: str, seed: int) -> VLCounter:
    """Make an untrained counter of an arm whose initial weights depend on ``seed`` alone.

    One thing is not the authors': they start both projections near zero and train for hundreds of epochs. In a few
    hundred steps that is too slow, so both start as the principal axes of the text features of the classes that scenes
    are trained on, and S starts as the cosine within those axes, times START squared.

    Raises:
        KeyError: no such arm.
    """
    if arm not in ARMS:
        raise KeyError(f"no arm {arm!r}: there are {', '.join(ARMS)}")
    vision = study.clip.config.vision
    doublings = vision.patch.bit_length() - 1
    middle = tuple(range(vision.layers - doublings, vision.layers - 1))  # the blocks right before the last one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = VLCounterConfig(
            study.clip.config,
            study.grid,
            taps=middle,
            prompts=study.values.prompts,
            channels=study.values.channels,
            **ARMS[arm],
        )
        model = VLCounter.from_clip(study.clip, config)
    known = [concept.plural for concept in VOCABULARY if concept.name in counted_classes("train")]
    text = model.encode_names(known, PLURAL)
    middle_text = text.mean(0)
    axes = torch.linalg.svd(text - middle_text, full_matrices=False).Vh[: study.values.channels]
    with torch.no_grad():
        for projection in (model.head.t_proj, model.head.v_proj):
            projection.weight.copy_(START * axes)
        model.head.t_proj.bias.copy_(-START * axes @ middle_text)
    return model


class Words:
    """Text features of names, each encoded once: the text tower is frozen."""

    def __init__(self, model: VLCounter, templates: Sequence[str], rename: Callable[[str], str] = str) -> None:
        self.model, self.templates, self.rename = model, templates, rename
        self.known: dict[str, Tensor] = {}

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Return the unit rows (B, E) of ``names``."""
        if missing := [name for name in dict.fromkeys(names) if name not in self.known]:
            rows = self.model.encode_names([self.rename(name) for name in missing], self.templates)
            self.known |= dict(zip(missing, rows, strict=True))
        return torch.stack([self.known[name] for name in names])


RANK_LOSSES = {"official": paper.rank_loss, "paper": paper.nested_rank_loss}


def train(
    study: Study,
    arm: str,
    seed: int,
    *,
    rank: str = "official",
    rank_weight: float = paper.RANK_WEIGHT,
    templates: Sequence[str] = PLURAL,
    rename: Callable[[str], str] = str,
    shuffled: bool = False,
    progress: str | None = None,
    out: Path | None = None,
) -> tuple[VLCounter, History]:
    """Train one arm.

    Args:
        study: what to learn from.
        arm: one of ARMS.
        seed: of the initial weights, of dropout and of the order of the questions.
        rank: "official", the authors' code, or "paper", the formula.
        rank_weight: the weight of that loss; 0 leaves it out.
        templates: sentences around the names.
        rename: applied to every name first.
        shuffled: as a control, deal the names of a batch to the wrong questions.
        progress: title of the progress bar.
        out: folder for checkpoint and metrics.

    Returns:
        the trained model, and its history with "loss", its parts "count" and "rank", and "empty", what an empty map
        would have cost on the same questions.
    """
    model = build(study, arm, seed)
    words, rank_loss = Words(model, templates, rename), RANK_LOSSES[rank]
    batches = study.train.stream(study.values.batch_size, seed, model.clip.device)

    def loss(model: VLCounter, batch: Batch) -> dict[str, Tensor]:
        text = words(batch.caption)
        if shuffled:
            text = text.roll(1, 0)
        output = model(model.preprocess(batch.image), text)
        target = paper.DENSITY_SCALE * batch.density
        count = paper.count_loss(output.density, target)
        order = rank_loss(output.similarity, target)
        empty = paper.count_loss(torch.zeros_like(target), target)
        return {"loss": count + rank_weight * order, "count": count.detach(), "rank": order.detach(), "empty": empty}

    return model, fit(model, loss, batches, study.values.training(seed), out=out, progress=progress)


def counter_of(model: VLCounter, templates: Sequence[str] = PLURAL, rename: Callable[[str], str] = str) -> Counter:
    """Return a trained model as a counter; its answers are neither rounded nor kept from falling below zero."""
    words = Words(model, templates, rename)

    @torch.no_grad()
    def count(batch: Batch) -> Tensor:
        output = model.eval()(model.preprocess(batch.image), words(batch.caption))
        return output.density.sum((1, 2, 3)) / paper.DENSITY_SCALE

    return count


def trained_parameters(model: torch.nn.Module) -> int:
    """Return how many numbers training may change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
