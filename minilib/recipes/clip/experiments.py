"""The experiments behind chapter 1's claims: small trainings at equal cost, and
questions put to a trained CLIP.

Every experiment returns plain numbers; the chapter draws and records them. Which claim
an experiment tests, and the rule that judges it, are in ``minilib/ledger/clip.yaml``.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.batch import Batch, required
from minilib.metrics import LinearProbe, accuracy
from minilib.models.clip import CLIP, ViTConfig
from minilib.recipes.clip.controls import BagOfWords, LookupTable
from minilib.recipes.clip.recipe import (
    TEMPLATES,
    Pretraining,
    build,
    clamp_logit_scale,
    classifier,
    clip_config,
    contrastive_loss,
    embed_images,
    embed_texts,
    scene_pairs,
    single_objects,
    text_config,
)
from minilib.recipes.shared.classifier import ImageClassifier
from minilib.recipes.shared.segmentation import evenly_spaced
from minilib.scenes import (
    BACKGROUNDS,
    TINTS,
    CaptionConfig,
    EmojiScenes,
    SceneConfig,
    find,
    held_out_tint,
    names,
    noun_phrase,
)
from minilib.scenes import polysemous as polysemous_words
from minilib.training import History, TrainConfig, fit

NUMBERS_ASKED = 6
"""Counting is asked for one to six objects."""


@dataclass(frozen=True)
class Lab:
    """A small, fast set-up for comparing ways of training: one tower, one
    budget, one test."""

    image_size: int = 32
    """Side of the images in pixels."""
    classes: int = 80
    """Number of classes, evenly spaced through the vocabulary."""
    steps: int = 150
    """Optimiser steps of each training."""
    evaluations: int = 5
    """Evaluations along a training."""
    test_images: int = 800
    """Single-object test scenes."""
    width: int = 96
    """Width of both towers."""
    lr: float = 2e-3
    """Peak learning rate."""

    @property
    def names(self) -> tuple[str, ...]:
        """The class names of the lab."""
        return evenly_spaced(names(), self.classes)

    @property
    def evaluation_steps(self) -> list[int]:
        """The steps after which a training is evaluated, the last one among them."""
        every = max(1, self.steps // self.evaluations)
        return sorted({*range(every, self.steps + 1, every), self.steps})

    def pretraining(
        self,
        scenes: SceneConfig | None = None,
        captions: CaptionConfig | None = None,
        pairs: int | None = None,
    ) -> Pretraining:
        """Return the lab's pre-training.

        Args:
            scenes: what images show; by default one object of the lab's classes.
            captions: how they are described; by default with precise names.
            pairs: number of distinct pairs, None = never the same twice.
        """
        text = text_config(self.width, 2, self.width // 32)
        vision = ViTConfig(
            patch=8, width=self.width, layers=3, heads=self.width // 32, stem="conv"
        )
        train = TrainConfig(
            steps=self.steps,
            lr=self.lr,
            warmup=max(1, self.steps // 10),
            evaluate_every=max(1, self.steps // self.evaluations),
            log_every=10,
        )
        single = SceneConfig(
            size=self.image_size, objects=(1, 1), classes=self.names, tint=0.25
        )
        return Pretraining(
            model=clip_config(vision, self.image_size, 96, text),
            train=train,
            scenes=scenes or single,
            captions=captions or CaptionConfig(kind=0.0, disambiguate=1.0),
            pairs=pairs,
        )

    def test(self, style: str = "noto", seed: int = 0) -> Batch:
        """Return the lab's test scenes; labels count within ``names``."""
        batch = single_objects(
            self.test_images, style, self.image_size, "test", self.names, seed
        )
        place = {find(name).index: i for i, name in enumerate(self.names)}
        label = required(batch.label, "label")
        return replace(batch, label=torch.tensor([place[i] for i in label.tolist()]))


def train_clip(
    recipe: Pretraining,
    seed: int,
    device: torch.device | str = "cpu",
    evaluate: Callable[[CLIP], dict[str, float]] | None = None,
    shuffled: bool = False,
    progress: str | None = None,
    kind: type[CLIP] = CLIP,
) -> tuple[CLIP, History]:
    """Pre-train a CLIP from scratch.

    Controls: ``shuffled`` permutes the captions of a batch; ``kind`` is one of
    ``minilib.recipes.clip.controls``.
    """
    model = build(recipe.model, seed, kind).to(device)
    pairs = scene_pairs(recipe, seed, device)

    def wrong_pairs(step: int) -> Batch:
        batch = pairs(step)
        captions = required(batch.caption, "caption")
        permuted = random.Random(f"{seed} {step}").sample(captions, len(batch))
        return replace(batch, caption=permuted)

    batches = wrong_pairs if shuffled else pairs
    history = fit(
        model, contrastive_loss, batches, recipe.training(seed),
        after_step=clamp_logit_scale, evaluate=evaluate, progress=progress,
    )  # fmt: skip
    return model, history


def live_training(
    lab: Lab, seed: int, device: torch.device | str = "cpu"
) -> tuple[CLIP, History]:
    """Pre-train the lab's CLIP with a progress bar; zero-shot ``top1`` is
    logged along the way."""
    test = lab.test(seed=seed).to(device)
    label = required(test.label, "label")

    def watch(model: CLIP) -> dict[str, float]:
        return {"top1": accuracy(class_scores(model, lab.names, test.image), label)}

    return train_clip(lab.pretraining(), seed, device, watch, progress="live CLIP")


def _image_classifier(
    recipe: Pretraining,
    outputs: int,
    seed: int,
    device: torch.device | str,
    kind: type[CLIP] = CLIP,
) -> ImageClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageClassifier(kind(recipe.model), outputs).to(device)


def train_classifier(
    recipe: Pretraining,
    labels: Callable[[Batch], Tensor],
    outputs: int,
    seed: int,
    device: torch.device | str = "cpu",
    evaluate: Callable[[ImageClassifier], dict[str, float]] | None = None,
) -> tuple[ImageClassifier, History]:
    """Train the same image tower on the same images with class ids
    instead of captions."""
    scenes = EmojiScenes(recipe.scenes, recipe.captions, device)
    size = recipe.batch_size

    def batches(step: int) -> Batch:
        start = step * size if recipe.pairs is None else step * size % recipe.pairs
        return scenes.batch("detect", size, "train", seed, start)

    def loss(model: ImageClassifier, batch: Batch) -> dict[str, Tensor]:
        return {
            "loss": F.cross_entropy(
                model(batch.image), labels(batch).to(batch.image.device)
            )
        }

    model = _image_classifier(recipe, outputs, seed, device)
    return model, fit(
        model, loss, batches, recipe.training(seed), evaluate=evaluate, progress=None
    )


def class_scores(model: CLIP, class_list: Sequence[str], image: Tensor) -> Tensor:
    """Score images (N, 3, H, W) against class names in the first template, (N, K)."""
    return embed_images(model, image.to(model.device)) @ classifier(model, class_list)


@torch.no_grad()
def nearest_words(model: CLIP, batch: Batch) -> tuple[list[list[str]], list[Tensor]]:
    """Return per scene of a batch its words, objects and background, and the nearest
    word of every patch.

    Returns:
        the words of each scene, and maps (h, w) of positions among them.
    """
    places = model.encode_patches(model.standardise(batch.image), normalize=True)
    words, maps = [], []
    scenes = required(batch.present, "present"), required(batch.mask, "mask"), places
    for present, mask, place in zip(*scenes, strict=True):
        objects = [names()[i] for i in present.nonzero()[:, 0].tolist()]
        stuff = list(BACKGROUNDS)[int(mask.max()) - len(names())]
        background = embed_texts(model, [BACKGROUNDS[stuff]]).T
        query = torch.cat([classifier(model, objects), background], dim=1)
        words.append([*objects, stuff])
        maps.append(torch.einsum("ehw,ek->khw", place, query).argmax(0))
    return words, maps


# --- C1: contrast against prediction --------------------------------------------------


def contrast_or_predict(
    lab: Lab,
    seed: int,
    device: torch.device | str = "cpu",
    control: bool = True,
    contrast: History | None = None,
) -> dict[str, History]:
    """Train the same image tower on the same pairs by four objectives; ``top1`` is
    logged along the way (Figure 2).

    ``contrast`` is the history of ``train_clip(lab.pretraining(), seed)`` with ``top1``
    logged, if that has been run.

    Returns:
        histories of "contrast, transformer", "contrast, bag of words", "predict the
        words" and, where ``control``, "contrast, shuffled captions".
    """
    test = lab.test(seed=seed).to(device)
    label = required(test.label, "label")

    def zero_shot(model: CLIP) -> dict[str, float]:
        return {"top1": accuracy(class_scores(model, lab.names, test.image), label)}

    runs = {
        "contrast, transformer": contrast
        or train_clip(lab.pretraining(), seed, device, zero_shot)[1],
        "contrast, bag of words": train_clip(
            lab.pretraining(), seed, device, zero_shot, kind=BagOfWords
        )[1],
        "predict the words": _predict_words(lab, seed, device, test),
    }
    if control:
        runs["contrast, shuffled captions"] = train_clip(
            lab.pretraining(), seed, device, zero_shot, shuffled=True
        )[1]
    return runs


def _predict_words(
    lab: Lab, seed: int, device: torch.device | str, test: Batch
) -> History:
    """Train the image tower to predict which BPE tokens the caption contains; classes
    are ranked by their words."""
    recipe = lab.pretraining()
    reader = build(recipe.model, seed, BagOfWords)
    vocab_size = recipe.model.text.vocab_size

    def words(texts: Sequence[str]) -> Tensor:
        tokens = reader.tokenize(list(texts))
        bag = torch.zeros(len(texts), vocab_size)
        bag.scatter_(1, tokens, 1.0)
        # padding, start and end are not words
        bag[:, [0, vocab_size - 2, vocab_size - 1]] = 0
        return bag.to(device)

    def loss(model: ImageClassifier, batch: Batch) -> dict[str, Tensor]:
        captions = required(batch.caption, "caption")
        bce = F.binary_cross_entropy_with_logits(
            model(batch.image), words(captions), reduction="none"
        )
        return {"loss": bce.sum(dim=1).mean()}

    name_words, label = words(lab.names), required(test.label, "label")

    def zero_shot(model: ImageClassifier) -> dict[str, float]:
        # The mean over a name's words, not their sum: long names would
        # otherwise never win.
        scores = F.logsigmoid(model(test.image)) @ name_words.T / name_words.sum(dim=1)
        return {"top1": accuracy(scores, label)}

    # Its towers are those of the bag of words: both start from the same image tower.
    model = _image_classifier(recipe, vocab_size, seed, device, BagOfWords)
    return fit(
        model,
        loss,
        scene_pairs(recipe, seed, device),
        recipe.training(seed),
        evaluate=zero_shot,
        progress=None,
    )


# --- C2: combinations nobody labelled -------------------------------------------------


def combinations(
    lab: Lab, seed: int, device: torch.device | str = "cpu", classes: int = 24
) -> dict[str, dict[str, float]]:
    """Hold out one colour of every object while training; then ask for exactly
    those combinations.

    Captions are bare ("a red dog"), so that the lookup-table text encoder, which has
    one free vector per caption, lacks nothing but composition.

    Returns:
        for "transformer", "lookup table" and "supervised": top-1 among all classes x
        colours on ``seen`` and ``unseen`` combinations.
    """
    chosen = replace(lab, classes=classes).names
    indices = [find(name).index for name in chosen]
    plain = CaptionConfig(
        opening=0, background=0, tint=1, full_stop=0, kind=0, disambiguate=1, relation=0
    )
    scenes = SceneConfig(
        size=lab.image_size,
        objects=(1, 1),
        classes=chosen,
        tint=1.0,
        combinations="seen",
    )
    phrases = [noun_phrase(i, tint) for i in indices for tint in range(len(TINTS))]

    def labels(batch: Batch) -> Tensor:
        captions = required(batch.caption, "caption")
        return torch.tensor([place[caption] for caption in captions])

    place = {phrase: i for i, phrase in enumerate(phrases)}
    tests = {
        kind: EmojiScenes(replace(scenes, combinations=kind), plain, device).batch(
            "pairs", lab.test_images, "test", seed
        )
        for kind in ("seen", "unseen")
    }

    def judge(score: Callable[[Tensor], Tensor]) -> dict[str, float]:
        return {
            kind: accuracy(score(batch.image), labels(batch))
            for kind, batch in tests.items()
        }

    report = {}
    for name, kind in (("transformer", CLIP), ("lookup table", LookupTable)):
        pretraining = lab.pretraining(scenes=scenes, captions=plain)
        model, _ = train_clip(pretraining, seed, device, kind=kind)
        weights = embed_texts(model, phrases).T
        report[name] = judge(partial(_image_scores, model, weights))
    supervised, _ = train_classifier(
        lab.pretraining(scenes=scenes, captions=plain),
        labels,
        len(phrases),
        seed,
        device,
    )
    with torch.no_grad():
        report["supervised"] = judge(supervised)
    return report


def _image_scores(model: CLIP, weights: Tensor, image: Tensor) -> Tensor:
    return embed_images(model, image) @ weights


def held_out_phrases(count: int = 6) -> list[str]:
    """Return some of the combinations that ``combinations`` never shows."""
    every = range(0, len(names()), max(1, len(names()) // count))
    return [
        noun_phrase(i, int(held_out_tint(np.asarray(i)))) for i in list(every)[:count]
    ]


# --- C3 and C4: prompts, and zero-shot against a probe --------------------------------


def prompt_ladder(
    model: CLIP,
    test: Batch,
    class_list: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> dict[str, float]:
    """Return top-1 of the bare word, each single template (its text is the key), and
    ensembles of 2, 3, ... of them.

    "probabilities" averages softmax probabilities over templates instead of embeddings.
    """
    image = embed_images(model, test.image.to(model.device))
    label = required(test.label, "label")
    report = {
        "bare word": accuracy(image @ classifier(model, class_list, ["{}"]), label)
    }
    single = [
        image @ classifier(model, class_list, [template]) for template in templates
    ]
    report |= {
        template: accuracy(scores, label)
        for template, scores in zip(templates, single, strict=True)
    }
    for count in range(2, len(templates) + 1):
        report[f"ensemble of {count}"] = accuracy(
            image @ classifier(model, class_list, templates[:count]), label
        )
    scale = model.logit_scale.detach().exp()
    report["probabilities"] = accuracy(
        torch.stack([(scale * s).softmax(1) for s in single]).mean(0), label
    )
    return report


def unseen_endings(
    model: CLIP,
    test: Batch,
    class_list: Sequence[str],
    template: str,
    endings: Sequence[str] = ("", ".", "!", " ???"),
) -> dict[str, float]:
    """Return top-1 of one template with several endings; captions end without anything
    or with a full stop."""
    image = embed_images(model, test.image.to(model.device))
    label = required(test.label, "label")
    bare = template.rstrip(".")
    return {
        end: accuracy(image @ classifier(model, class_list, [bare + end]), label)
        for end in endings
    }


def ensemble_gain(
    model: CLIP,
    test: Batch,
    class_list: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Tensor:
    """Return, per test image, 1 where only the ensemble is right, -1 where only the
    bare word is, else 0 (N,)."""
    image = embed_images(model, test.image.to(model.device))
    label = required(test.label, "label")
    right = [
        (image @ classifier(model, class_list, list(texts))).argmax(1) == label
        for texts in (templates, ["{}"])
    ]
    return right[0].double() - right[1].double()


@torch.no_grad()
def probe_features(model: CLIP, image: Tensor, batch_size: int = 256) -> Tensor:
    """Return features before the projection (N, W), what the paper's probe
    reads (appendix A.3)."""
    chunks = image.to(model.device).split(batch_size)
    return torch.cat(
        [model.image_backbone(model.preprocess(chunk)) for chunk in chunks]
    )


def few_shot(
    model: CLIP,
    train: Batch,
    test: Batch,
    class_list: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    draws: int = 3,
    seed: int = 0,
    C: float = 1.0,
) -> dict[str, list[float]]:
    """Compare zero-shot with linear probes of k images per class (Figure 6).

    ``train`` must hold at least ``max(shots)`` images of every class.

    Returns:
        "shots"; per k the mean over draws of "probe"; and one-element lists "zero-shot"
        and "random names".
    """
    text = classifier(model, class_list, templates)
    image = embed_images(model, test.image.to(model.device))
    label = required(test.label, "label")
    gibberish = random.Random(seed)
    nonsense = [
        "".join(gibberish.choices(string.ascii_lowercase, k=7)) for _ in class_list
    ]
    report: dict[str, list[float]] = {
        "shots": list(shots),
        "zero-shot": [accuracy(image @ text, label)],
        "random names": [
            accuracy(image @ classifier(model, nonsense, templates), label)
        ],
        "probe": [],
    }
    x, y = probe_features(model, train.image), required(train.label, "label")
    x_test = probe_features(model, test.image)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - mean) / std, (x_test - mean) / std
    generator = torch.Generator().manual_seed(seed)
    for k in shots:
        hits = []
        for _ in range(draws):
            rows = draw_shots(y, k, generator)
            hits.append(
                LinearProbe.fit(x[rows], y[rows], C, tolerance=1e-5).accuracy(
                    x_test, label
                )
            )
        report["probe"].append(sum(hits) / len(hits))
    return report


def draw_shots(label: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return the rows of k random examples of every class.

    Raises:
        ValueError: a class has fewer than k examples.
    """
    rows = []
    for c in label.unique().tolist():
        own = (label == c).nonzero()[:, 0]
        if len(own) < k:
            raise ValueError(
                f"class {c} has {len(own)} examples, fewer than k={k}: give more "
                "training images"
            )
        rows.append(own[torch.randperm(len(own), generator=generator)[:k]])
    return torch.cat(rows)


def crossing(
    shots: Sequence[int], probe: Sequence[float], zero_shot: float
) -> float | None:
    """Return how many labelled images per class the probe needs to equal zero-shot,
    interpolated in log k.

    None where the probe never gets there; the first k where it is above from the start.
    """
    points = list(zip(shots, probe, strict=True))
    if points[0][1] >= zero_shot:
        return float(points[0][0])
    for (k0, a0), (k1, a1) in zip(points, points[1:], strict=False):
        if a1 >= zero_shot:
            share = (zero_shot - a0) / (a1 - a0)
            return float(k0 * (k1 / k0) ** share)
    return None


@lru_cache(maxsize=64)
def shot_pool(
    per_class: int,
    size: int,
    classes: tuple[str, ...],
    seed: int = 0,
    split: str = "val",
) -> Batch:
    """Return ``per_class`` labelled scenes of every class, labels
    within ``classes``."""
    images = []
    for name in classes:
        config = SceneConfig(size=size, classes=(name,), tint=0.0)
        images.append(
            EmojiScenes(config).batch("classify", per_class, split, seed).image
        )
    return Batch(
        torch.cat(images), label=torch.arange(len(classes)).repeat_interleave(per_class)
    )


# --- C7: robustness to a change of style ----------------------------------------------


def logit(p: float) -> float:
    """Return log(p / (1 - p)), with p kept off 0 and 1."""
    p = min(max(p, 1e-3), 1 - 1e-3)
    return float(torch.logit(torch.tensor(p, dtype=torch.float64)))


def effective_robustness(
    baseline: Sequence[tuple[float, float]], model: tuple[float, float]
) -> float:
    """Return accuracy under shift beyond what the baseline's line predicts
    (Taori et al. 2020).

    Args:
        baseline: (reference accuracy, shifted accuracy) of supervised models; a line is
            fitted in logit axes.
        model: the same pair for the model in question.

    Raises:
        ValueError: fewer than two baseline models.
    """
    if len(baseline) < 2:
        raise ValueError(
            f"a line needs at least two supervised models, not {len(baseline)}"
        )
    x = torch.tensor([[logit(a), 1.0] for a, _ in baseline], dtype=torch.float64)
    y = torch.tensor([[logit(b)] for _, b in baseline], dtype=torch.float64)
    slope, offset = torch.linalg.lstsq(x, y).solution.flatten().tolist()
    expected = torch.sigmoid(torch.tensor(slope * logit(model[0]) + offset)).item()
    return model[1] - expected


def style_shift(
    lab: Lab,
    seed: int,
    device: torch.device | str = "cpu",
    one_style: CLIP | None = None,
) -> dict[str, list[tuple[float, float]]]:
    """Compare zero-shot, probe and supervised learning when the drawing style changes
    from Noto to Twemoji (Figure 13).

    CLIP's web data hold many styles, ImageNet one. So one CLIP sees Noto and OpenMoji,
    another Noto alone (the control that separates the diversity of the data from the
    objective); nobody sees Twemoji. ``one_style`` is the model of
    ``train_clip(lab.pretraining(), seed)``, if that has been run.

    Returns:
        (Noto accuracy, Twemoji accuracy): "supervised" along a training on Noto, and
        one pair each for "zero-shot, two styles", "zero-shot, one style" and "probe,
        two styles" (the probe is fitted to Noto images).
    """
    tests = [lab.test("noto", seed).to(device), lab.test("twemoji", seed).to(device)]
    place = {find(name).index: i for i, name in enumerate(lab.names)}

    def labels(batch: Batch) -> Tensor:
        classes = required(batch.classes, "classes")
        return torch.tensor([place[int(c[0])] for c in classes])

    def both(score: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        first, second = (
            accuracy(score(test.image), required(test.label, "label")) for test in tests
        )
        return first, second

    def along(model: ImageClassifier) -> dict[str, float]:
        pair = both(model)
        return {"noto": pair[0], "twemoji": pair[1]}

    noto = lab.pretraining()
    _, history = train_classifier(noto, labels, len(lab.names), seed, device, along)
    report = {
        "supervised": list(
            zip(history.column("noto")[1], history.column("twemoji")[1], strict=True)
        )
    }
    mixed = replace(noto, scenes=replace(noto.scenes, styles=("noto", "openmoji")))
    models = {"two styles": train_clip(mixed, seed, device)[0]}
    models["one style"] = one_style or train_clip(noto, seed, device)[0]
    for name, model in models.items():
        report[f"zero-shot, {name}"] = [both(partial(class_scores, model, lab.names))]
    pool = shot_pool(16, lab.image_size, lab.names, seed)
    features = probe_features(models["two styles"], pool.image)
    mean, std = features.mean(0), features.std(0) + 1e-6
    label = required(pool.label, "label")
    probe = LinearProbe.fit((features - mean) / std, label, 1.0, tolerance=1e-5)
    report["probe, two styles"] = [
        both(
            lambda image: probe.logits(
                (probe_features(models["two styles"], image) - mean) / std
            )
        )
    ]
    return report


# --- What CLIP cannot do --------------------------------------------------------------


def counting(model: CLIP, n: int = 600, seed: int = 0) -> dict[str, object]:
    """Ask for the number of one to six like objects, by text and by a probe on
    the same features.

    Returns:
        "zero-shot", "probe" and "chance" accuracies, "error" the mean absolute error of
        zero-shot, and "confusion" (asked, answered) as nested lists of shares.
    """

    def scenes(split: str) -> tuple[Batch, Tensor]:
        parts = []
        for number in range(1, NUMBERS_ASKED + 1):
            config = SceneConfig(
                size=model.config.image_size,
                count=(number, number),
                distractors=(0, 0),
                tint=0.0,
                scale=(0.7, 1.0),
            )
            parts.append(
                EmojiScenes(config, device=model.device).batch(
                    "count", n // NUMBERS_ASKED, split, seed + number
                )
            )
        label = torch.arange(NUMBERS_ASKED).repeat_interleave(n // NUMBERS_ASKED)
        return Batch(torch.cat([p.image for p in parts])), torch.cat(
            [required(p.label, "label") for p in parts]
        ).cpu() * 10 + label

    test, code = scenes("test")
    concept, number = code // 10, code % 10
    image = embed_images(model, test.image)
    scores = torch.empty(len(image), NUMBERS_ASKED, device=model.device)
    for k in range(NUMBERS_ASKED):
        texts = [noun_phrase(int(c), n=k + 1) for c in concept]
        scores[:, k] = (image * embed_texts(model, texts)).sum(1)
    answer = scores.argmax(1).cpu()
    train, train_code = scenes("val")
    x, x_test = probe_features(model, train.image), probe_features(model, test.image)
    mean, std = x.mean(0), x.std(0) + 1e-6
    probe = LinearProbe.fit((x - mean) / std, train_code % 10, 0.1)
    confusion = torch.zeros(NUMBERS_ASKED, NUMBERS_ASKED)
    confusion.index_put_((number, answer), torch.ones(len(answer)), accumulate=True)
    return {
        "zero-shot": (answer == number).double().mean().item(),
        "probe": (probe.predict((x_test - mean) / std).cpu() == number)
        .double()
        .mean()
        .item(),
        "chance": 1 / NUMBERS_ASKED,
        "error": (answer - number).abs().double().mean().item(),
        "confusion": (confusion / confusion.sum(1, keepdim=True)).tolist(),
    }


def relations(model: CLIP, n: int = 600, seed: int = 0) -> dict[str, float]:
    """Score two-object scenes against true captions and wrong ones of two kinds.

    Returns:
        the share of scenes whose true caption scores higher than the "swapped"
        one ("a dog above a cat" for "a cat above a dog") and than one with an
        object "replaced".
    """
    config = SceneConfig(
        size=model.config.image_size, objects=(2, 2), repeat=0.0, tint=0.0
    )
    always = CaptionConfig(
        opening=0, background=0, relation=1, full_stop=0, kind=0, disambiguate=1
    )
    batch = EmojiScenes(config, always, model.device).batch("pairs", n, "test", seed)
    captions = required(batch.caption, "caption")
    nouns = required(batch.phrases, "phrases")
    keep = [i for i, phrases in enumerate(nouns) if len(phrases) == 2]
    true, swapped, replaced = [], [], []
    others = random.Random(seed)
    for i in keep:
        caption, (a, b) = captions[i], nouns[i]
        first, second, joint = (
            caption[a.start : a.end],
            caption[b.start : b.end],
            caption[a.end : b.start],
        )
        stranger = others.choice(
            [c for c in range(len(names())) if c not in (a.concept, b.concept)]
        )
        true.append(caption)
        swapped.append(f"{second}{joint}{first}")
        replaced.append(f"{first}{joint}{noun_phrase(stranger)}")
    image = embed_images(model, batch.image[keep])
    score = {
        kind: (image * embed_texts(model, texts)).sum(1)
        for kind, texts in (
            ("true", true),
            ("swapped", swapped),
            ("replaced", replaced),
        )
    }
    return {
        kind: (score["true"] > score[kind]).double().mean().item()
        for kind in ("swapped", "replaced")
    }


def polysemy(
    model: CLIP, per_concept: int = 20, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Classify scenes among the concepts that share a word, by the word and by
    their edited names.

    Returns:
        per word "bare" and "edited" accuracies, a tie counting as a guess; and their
        means under "mean".
    """
    report: dict[str, dict[str, float]] = {}
    for word, concepts in polysemous_words().items():
        pool = shot_pool(
            per_concept,
            model.config.image_size,
            tuple(c.name for c in concepts),
            seed,
            "test",
        )
        image = embed_images(model, pool.image.to(model.device))
        label = required(pool.label, "label")
        texts = {"bare": [word] * len(concepts), "edited": [c.name for c in concepts]}
        report[word] = {
            kind: tie_accuracy(
                image @ classifier(model, labels, TEMPLATES, kind == "bare"), label
            )
            for kind, labels in texts.items()
        }
    report["mean"] = {
        kind: sum(row[kind] for row in report.values()) / len(report)
        for kind in ("bare", "edited")
    }
    return report


def tie_accuracy(scores: Tensor, label: Tensor, tolerance: float = 1e-5) -> float:
    """Return top-1 accuracy where an answer tied among m classes, the right one
    included, counts 1 / m."""
    best = scores >= scores.max(dim=1, keepdim=True).values - tolerance
    right = best[torch.arange(len(label)), label.to(scores.device)]
    return (right / best.sum(dim=1)).double().mean().item()


# --- Data efficiency ------------------------------------------------------------------


def distinct_pairs(lab: Lab, many: bool) -> tuple[int | None, ...]:
    """Return the numbers of distinct pairs to compare, in whole batches; None stands
    for ever new ones.

    ``many`` adds a sixty-fourth of all pairs to an eighth of them.
    """
    size = lab.pretraining().batch_size
    total = lab.steps * size
    shares = (64, 8) if many else (8,)
    return (*(total // share // size * size for share in shares), None)


def data_efficiency(
    lab: Lab,
    seed: int,
    device: torch.device | str = "cpu",
    pairs: Sequence[int | None] = (256, 2048, None),
    supervised: bool = True,
    all_pairs: CLIP | None = None,
) -> dict[str, list[float]]:
    """Train on few distinct pairs, seen again and again, and on ever new ones, with the
    same number of steps.

    ``all_pairs`` is the model of ``train_clip(lab.pretraining(), seed)``, if
    that has been run.

    Returns:
        "pairs" (the number of distinct pairs; None in the argument stands for all) and,
        for each, zero-shot top-1 "CLIP" and, where asked for, top-1 "supervised" of the
        same tower trained with class ids on the same images.
    """
    test = lab.test(seed=seed).to(device)
    place = {find(name).index: i for i, name in enumerate(lab.names)}
    label = required(test.label, "label")

    def classes(batch: Batch) -> Tensor:
        first = (int(c[0]) for c in required(batch.classes, "classes"))
        return torch.tensor([place[concept] for concept in first])

    report: dict[str, list[float]] = {"pairs": [], "CLIP": [], "supervised": []}
    for count in pairs:
        recipe = lab.pretraining(pairs=count)
        model = (
            all_pairs
            if count is None and all_pairs
            else train_clip(recipe, seed, device)[0]
        )
        report["pairs"].append(count or lab.steps * recipe.batch_size)
        report["CLIP"].append(
            accuracy(class_scores(model, lab.names, test.image), label)
        )
        if supervised:
            taught, _ = train_classifier(recipe, classes, len(lab.names), seed, device)
            with torch.no_grad():
                report["supervised"].append(accuracy(taught(test.image), label))
    return report
