"""What chapter 6 compares and measures: pairs of its variants, a detector, the cost of
prompting, maps of prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minilib.batch import Batch, required
from minilib.claims.chapter import Run
from minilib.claims.records import find
from minilib.models.clip import CLIP
from minilib.models.denseclip import DenseCLIP, score_map
from minilib.models.denseclip.backbones import DenseResNet
from minilib.models.denseclip.detection import DenseCLIPDetector, GuidedPyramid
from minilib.recipes.denseclip import recipe
from minilib.recipes.denseclip.chapter import Study
from minilib.recipes.denseclip.recipe import Lab, Variant
from minilib.recipes.shared.detection import SCENE_ANCHORS, boxed_scenes, score_boxes
from minilib.scenes import EmojiScenes, SceneConfig, names
from minilib.training import History, fit


def one_class_miou(mask: Tensor, classes: int) -> float:
    """Return the mIoU of calling every pixel of masks (B, H, W) by the commonest of the
    classes, counting absent classes as 0; 255 is void."""
    known = (mask != 255).sum()
    shares = [((mask == k).sum() / known).item() for k in range(classes)]
    return max(shares) / classes


def scene_of(
    classes: tuple[str, ...],
    background: str,
    size: int = 160,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the first test scene (3, size, size) that shows all of the classes, each
    once, on a background.

    Raises:
        ValueError: none of the first 60 scenes shows them all.
    """
    config = SceneConfig(
        size=size,
        objects=(len(classes),) * 2,
        repeat=0.0,
        tint=0.0,
        classes=classes,
        backgrounds=(background,),
    )
    drawn = EmojiScenes(config, device=device).batch("segment", 60, "test")
    complete = required(drawn.present, "present").sum(1) == len(classes)
    if not complete.any():
        raise ValueError(
            f"no scene of the first {len(drawn)} shows all of {', '.join(classes)}: "
            "ask for fewer classes"
        )
    return drawn.image[int(complete.nonzero()[0])]


# --- Claims ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Which variants a claim compares, and by which output."""

    treatment: str
    control: str
    controls: tuple[str, ...] = ()
    """Further controls, by the ledger's names, which are the variants'."""
    output: str = "miou"
    """"miou" of the final output, or "score_map_miou"; the name of the result too."""
    better_than_random: tuple[str, ...] = ()
    """Variants that must all beat random weights for the test to see anything."""


PAIRS = {
    "C1": Pair("post-model", "CLIP, no text", ("shuffled names",)),
    "names": Pair("post-model", "shuffled names", output="score_map_miou"),
    "meaning": Pair("post-model", "shuffled names"),
    "C2": Pair("captions", "classifier", better_than_random=("captions", "classifier")),
    "C5": Pair("post-model", "concatenation alone"),
    "concatenation": Pair("concatenation alone", "CLIP, no text"),
    "auxiliary": Pair("auxiliary loss alone", "CLIP, no text"),
    "C7": Pair(
        "classifier, post-model", "classifier", better_than_random=("classifier",)
    ),
}
"""The claims that compare two variants of one run."""


def measured(
    claim: str,
    results: Mapping[str, Mapping[str, float]],
    asked: Collection[str],
) -> dict[str, Any]:
    """Return what ``run.record`` is told about one of :data:`PAIRS`.

    Args:
        claim: its key there.
        results: the run's results by name: "miou", "score_map_miou" and "fitted" (see
            :func:`fitted`), each by variant.
        asked: the preconditions that the ledger has, of "training loss", the larger one
            of the two arms, and "gain over random weights", in mIoU.
    """
    pair = PAIRS[claim]
    values = results[pair.output]
    conditions = {}
    if "training loss" in asked:
        arms = (pair.treatment, pair.control)
        conditions["training loss"] = max(results["fitted"][arm] for arm in arms)
    if "gain over random weights" in asked:
        worst = min(values[name] for name in pair.better_than_random)
        conditions["gain over random weights"] = worst - values["random weights"]
    return {
        "treatment": values[pair.treatment],
        "control": values[pair.control],
        "controls": {name: values[name] for name in pair.controls},
        "preconditions": conditions,
    }


def record_pairs(
    run: Run[Any, Study], results: Mapping[str, Mapping[str, float]], *claims: str
) -> None:
    """Record some of :data:`PAIRS`; where the ledger does not test one at the run's
    profile, print why.

    Args:
        run: the notebook's.
        results: see :func:`measured`.
        claims: keys of :data:`PAIRS`.
    """
    for claim in claims:
        if run.tests(claim):
            test = find(f"denseclip.{claim}").test(run.profile)
            told = measured(claim, results, test.preconditions)
            run.record(claim, **told, n=len(run.study.test))


def gains(miou: Mapping[str, float]) -> dict[str, float]:
    """Return what text gains with "few" labelled images and with "many", relative to
    the same tower without text."""
    return {
        "few": miou["post-model"] / miou["CLIP, no text"] - 1,
        "many": miou["post-model, many images"] / miou["no text, many images"] - 1,
    }


def fitted(history: History, share: float = 0.1) -> float:
    """Return the mean cross-entropy of the head over the last ``share`` of a
    training."""
    guided = any("scores" in row for row in history.rows)
    _, losses = history.column("decode" if guided else "loss")
    last = losses[-max(1, round(share * len(losses))) :]
    return sum(last) / len(last)


# --- Detection ------------------------------------------------------------------------


@dataclass
class Detection:
    """A trained detector."""

    model: DenseCLIPDetector
    history: History
    score: dict[str, float]
    """``ap`` and ``ap50`` on the test scenes."""


def detection_loss(model: DenseCLIPDetector, batch: Batch) -> dict[str, Tensor]:
    """RetinaNet's losses and the score map's; for ``fit``."""
    boxes, classes = required(batch.boxes, "boxes"), required(batch.classes, "classes")
    return model.losses(batch.image, boxes, classes)


def train_detector(
    name: str, clip: CLIP, lab: Lab, seed: int, out: Path | None = None
) -> Detection:
    """Train the variant ``name`` as a RetinaNet on scenes that never come twice, and
    judge it: the paper's comparison (C6), for which a few hundred steps are far too
    short."""
    variant = recipe.VARIANTS[name]
    source = recipe.scenes(lab, clip.device)
    config = replace(recipe.model_config(variant, clip, lab), dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pyramid = GuidedPyramid(
            config,
            recipe.shuffled(lab.things, seed) if variant.shuffled else lab.things,
            first=0,
        )
        pyramid.load_clip(clip)
        model = DenseCLIPDetector(
            pyramid, SCENE_ANCHORS, 0.01, detections=20, candidates=100
        ).to(clip.device)
    size = lab.batch_size
    history = fit(
        model,
        detection_loss,
        lambda step: boxed_scenes(source, size, "train", seed, step * size),
        lab.training(seed, "detector.backbone.backbone."),
        out=out and out / f"detector-{variant.guidance}",
        progress=f"detector, {name}",
    )
    test = boxed_scenes(source, lab.test_images, "test", seed)
    return Detection(model, history, score_boxes(model, test))


def listed_boxes(found: Sequence[Mapping[str, Tensor]]) -> list[dict[str, list[float]]]:
    """Return per image what a detector found ("boxes" (m, 4), "scores" and "labels"
    (m,)) as flat lists of rounded numbers, for a record."""
    return [
        {
            key: [round(x, 2) for x in value.flatten().tolist()]
            for key, value in one.items()
        }
        for one in found
    ]


def boxes_of(
    record: Sequence[Mapping[str, Sequence[float]]],
) -> list[dict[str, Tensor]]:
    """Return what :func:`listed_boxes` made lists of."""
    return [
        {
            "boxes": torch.tensor(one["boxes"]).view(-1, 4),
            "labels": torch.tensor(one["labels"]).long(),
            "scores": torch.tensor(one["scores"]),
        }
        for one in record
    ]


# --- Prompts --------------------------------------------------------------------------


@torch.no_grad()
def prompting_cost(
    clip: CLIP, class_counts: Sequence[int], lab: Lab, seconds: bool = True
) -> dict[str, dict[str, list[float]]]:
    """Return what one image costs at inference, by the number of classes.

    Returns:
        For "no text", "post-model" (its text stored) and "pre-model": ``gflop``,
        billions of floating-point operations as counted by PyTorch, and ``seconds``,
        the median of five single-image passes.
    """
    image = torch.zeros(1, 3, *lab.size, device=clip.device)
    costs: dict[str, dict[str, list[float]]] = {}
    for name, guidance in (
        ("no text", "none"),
        ("post-model", "post"),
        ("pre-model", "pre"),
    ):
        costs[name] = {"gflop": [], "seconds": []}
        for count in class_counts:
            model = (
                recipe.build(Variant(guidance), clip, names()[:count], lab, seed=0)
                .eval()
                .requires_grad_(False)
            )
            if guidance == "post":
                model.store_text()
            with FlopCounterMode(display=False) as counter:
                model(image)
            costs[name]["gflop"].append(counter.get_total_flops() / 1e9)
            if seconds:
                costs[name]["seconds"].append(median_seconds(partial(model, image)))
    return costs


def median_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the median duration of ``call`` in seconds, after one call
    that does not count."""
    durations = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - began)
    return sorted(durations[1:])[repeats // 2]


@torch.no_grad()
def prompt_maps(
    clip: CLIP,
    image: Tensor,
    prompts: Sequence[str],
    tower: DenseResNet | None = None,
    values: bool = False,
) -> Tensor:
    """Return the cosine of every pixel of one image (3, R, R') with each
    prompt, (P, R, R').

    Args:
        clip: reads the prompts.
        image: in [0, 1].
        prompts: P texts.
        tower: another state of the image tower, for example a fine-tuned one; by
            default the CLIP's own.
        values: do not let the places ask each other: every cell answers with its own
            value (MaskCLIP).
    """
    if tower is None:
        tower = DenseResNet(clip.config).to(clip.device).eval()
        tower.load_state_dict(clip.visual.state_dict())
    pixels = clip.standardise(image[None])
    dense = tower.patches(pixels, "value") if values else tower.encode(pixels).dense
    scores = score_map(dense, clip.encode_text(clip.tokenize(list(prompts)))[None])
    return F.interpolate(
        scores, image.shape[-2:], mode="bilinear", align_corners=False
    )[0]


@torch.no_grad()
def compared_maps(
    written: DenseCLIP, guided: DenseCLIP, plain: DenseCLIP, image: Tensor
) -> dict[str, Tensor]:
    """Return label maps (B, R, R') of images (B, 3, R, R') in [0, 1].

    Args:
        written: an untrained model with a score map.
        guided: a trained one.
        plain: one that was trained without text.
        image: what they label.
    """
    before, after, without = (
        model.eval()(model.preprocess(image)) for model in (written, guided, plain)
    )
    maps = {
        "score map,\nbefore": before.full(before.scores),
        "score map,\nafter": after.full(after.scores),
        "without text": without.full(),
        "DenseCLIP": after.full(),
    }
    return {name: scores.argmax(1) for name, scores in maps.items()}


@torch.no_grad()
def cells_of(model: DenseCLIP, image: Tensor) -> Tensor:
    """Return the cells (B, E, h, w) of images (B, 3, R, R') in [0, 1], which the score
    map compares with the text."""
    return model.eval().backbone.encode(model.preprocess(image)).dense


@torch.no_grad()
def spread(dense: Tensor) -> float:
    """Return how much the cells (B, E, h, w) of an image differ: 1 - their mean cosine
    with the image's mean cell."""
    cells = F.normalize(dense, dim=1)
    middle = F.normalize(cells.mean(dim=(2, 3), keepdim=True), dim=1)
    return 1 - (cells * middle).sum(dim=1).mean().item()


@torch.no_grad()
def moved_text(model: DenseCLIP, image: Tensor) -> dict[str, Tensor]:
    """Return how far each image (B, 3, R, R') moves each class's text: ``angle``
    (B, K) in degrees.

    Also ``gamma`` (E,), the learned weight of the prompt in each dimension.
    """
    model.eval()
    before = F.normalize(model.text_features(), dim=-1)
    after = F.normalize(model(model.preprocess(image)).text, dim=-1)
    cosine = (before * after).sum(dim=-1).clamp(-1, 1)
    return {"angle": torch.rad2deg(torch.arccos(cosine)), "gamma": model.gamma}
