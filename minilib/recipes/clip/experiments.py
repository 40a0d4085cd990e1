"""The experiments behind chapter 1's claims: ways of training compared at equal cost,
and questions put to a trained CLIP.

Every experiment returns plain numbers; the chapter draws and records them. Which claim
an experiment tests, and the rule that judges it, are in ``minilib/ledger/clip.yaml``.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.batch import Batch, required
from minilib.metrics import LinearProbe, accuracy
from minilib.models.clip import CLIP
from minilib.recipes.clip.controls import LookupTable
from minilib.recipes.clip.lab import (
    REFERENCE,
    SHIFTED,
    Arms,
    Lab,
    Score,
    train_clip,
    train_tower,
)
from minilib.recipes.clip.recipe import (
    TEMPLATES,
    Pretraining,
    classifier,
    embed_images,
    embed_texts,
    scene_pairs,
)
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

NUMBERS_ASKED = 4
"""Counting is asked for one to four objects, the numbers that captions say."""
DECADES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the probes' penalty that are tried."""
OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
"""The relation words of captions, each with the one that says the contrary."""


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


RACE = ("bag", "prediction", "bag, shuffled")
"""The arms that claim C1 compares."""


def images_needed(arms: Arms) -> dict[str, float]:
    """Return log2 of the images that each arm of :data:`RACE` had seen when it reached
    nine tenths of the zero-shot top-1 with which prediction ends (Figure 2).

    Interpolated along its training, in the logarithm of the images. An arm that never
    gets there counts as if it did with its last image. "milestone" is the top-1 in
    question.
    """
    milestone = 0.9 * arms.top1("prediction")
    report = {"milestone": milestone}
    for name in RACE:
        steps, along = arms[name].history.column(REFERENCE)
        seen = [arms.lab.batch_size * step for step in steps]
        report[name] = math.log2(crossing(seen, along, milestone) or seen[-1])
    return report


def curves(arms: Arms, names: Sequence[str] = RACE) -> dict[str, list[float]]:
    """Return the images "seen" and, for each arm, its top-1 along the training."""
    steps = arms[names[0]].history.column(REFERENCE)[0]
    return {"seen": [arms.lab.batch_size * step for step in steps]} | {
        name: arms[name].history.column(REFERENCE)[1] for name in names
    }


# --- C2: combinations nobody labelled -------------------------------------------------


def combination_recipe(lab: Lab) -> Pretraining:
    """Return a pre-training on single coloured objects that leaves out one colour of
    every object, with bare captions ("a red dog")."""
    plain = CaptionConfig(
        opening=0, background=0, tint=1, full_stop=0, kind=0, disambiguate=1, relation=0
    )
    scenes = SceneConfig(
        size=lab.image_size,
        objects=(1, 1),
        classes=lab.names,
        tint=1.0,
        combinations="seen",
    )
    return lab.pretraining(scenes=scenes, captions=plain)


def held_out_phrases(lab: Lab) -> list[str]:
    """Return the combinations that :func:`combination_recipe` leaves out."""
    indices = [find(name).index for name in lab.names]
    return [noun_phrase(i, int(held_out_tint(np.asarray(i)))) for i in indices]


def held_out_shown(lab: Lab, seed: int) -> int:
    """Return how many training captions are one of the held-out phrases: none."""
    held_out, recipe = set(held_out_phrases(lab)), combination_recipe(lab)
    pairs = scene_pairs(recipe, seed)
    captions = (required(pairs(step).caption, "caption") for step in range(lab.steps))
    return sum(caption in held_out for batch in captions for caption in batch)


def combinations(
    lab: Lab, seed: int, device: torch.device | str = "cpu"
) -> dict[str, dict[str, float]]:
    """Train without one colour of every object; then ask for exactly those
    combinations.

    Captions are bare, so that the lookup-table text encoder, which has one free vector
    per caption, lacks nothing but composition. The classifier with two heads, one for
    the object and one for its colour, is told by its labels what a caption must teach:
    that they are two things.

    Returns:
        for "transformer", "lookup table" and "two heads": top-1 among all classes x
        colours on ``seen`` and ``unseen`` combinations.
    """
    recipe = combination_recipe(lab)
    indices = [find(name).index for name in lab.names]
    phrases = [noun_phrase(i, tint) for i in indices for tint in range(len(TINTS))]
    place = {phrase: i for i, phrase in enumerate(phrases)}

    def labels(batch: Batch) -> Tensor:
        captions = required(batch.caption, "caption")
        return torch.tensor([place[caption] for caption in captions])

    def loss(scores: Tensor, batch: Batch) -> Tensor:
        objects, colours = scores.split((lab.classes, len(TINTS)), dim=1)
        label = labels(batch).to(scores.device)
        return F.cross_entropy(objects, label // len(TINTS)) + F.cross_entropy(
            colours, label % len(TINTS)
        )

    tests = {
        kind: EmojiScenes(
            replace(recipe.scenes, combinations=kind), recipe.captions, device
        ).batch("pairs", lab.test_images, "test", seed)
        for kind in ("seen", "unseen")
    }

    @torch.no_grad()
    def judge(score: Score) -> dict[str, float]:
        return {
            kind: accuracy(score(batch.image), labels(batch))
            for kind, batch in tests.items()
        }

    report = {}
    for name, kind in (("transformer", CLIP), ("lookup table", LookupTable)):
        model, _ = train_clip(recipe, seed, device, kind=kind)
        weights = embed_texts(model, phrases).T
        report[name] = judge(partial(_image_scores, model, weights))
    tower, _ = train_tower(recipe, loss, lab.classes + len(TINTS), seed, device)

    def two_heads(image: Tensor) -> Tensor:
        objects, colours = tower(image).split((lab.classes, len(TINTS)), dim=1)
        joint = objects.log_softmax(1)[:, :, None] + colours.log_softmax(1)[:, None]
        return joint.flatten(1)

    report["two heads"] = judge(two_heads)
    return report


def _image_scores(model: CLIP, weights: Tensor, image: Tensor) -> Tensor:
    return embed_images(model, image) @ weights


# --- C3 and C4: prompts, and zero-shot against a probe --------------------------------


def prompt_ladder(
    model: CLIP,
    test: Batch,
    class_list: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> dict[str, float]:
    """Return top-1 of the bare word, each single template (its text is the key), their
    mean "one template", and ensembles of 2, 3, ... of them; "ensemble" is that of all.

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
    report["one template"] = sum(report[t] for t in templates) / len(templates)
    for count in range(2, len(templates) + 1):
        report["ensemble"] = report[f"ensemble of {count}"] = accuracy(
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


def template_gains(
    model: CLIP,
    test: Batch,
    class_list: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> dict[str, Tensor]:
    """Return what prompts change for each test image (N,): the share of single
    "templates" by which it is right, less 1 where the bare word is right; and 1 where
    the "ensemble" is right, less that share."""
    image = embed_images(model, test.image.to(model.device))
    label = required(test.label, "label")

    def right(texts: Sequence[str]) -> Tensor:
        answer = (image @ classifier(model, class_list, texts)).argmax(1)
        return (answer == label).double()

    share = torch.stack([right([template]) for template in templates]).mean(0)
    return {"templates": share - right(["{}"]), "ensemble": right(templates) - share}


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
) -> dict[str, list[float]]:
    """Compare zero-shot with linear probes of k images per class (Figure 6).

    The first ``max(shots)`` of ``train``'s images of every class are for fitting. The
    others are the validation set on which the probe's C is chosen anew for every k, as
    in the paper's appendix A.3, by the probes of the first draw.

    Args:
        model: the CLIP.
        train: more than ``max(shots)`` images of every class.
        test: test images with labels.
        class_list: K names.
        templates: of the prompts.
        shots: k, the numbers of images per class.
        draws: random draws of those images.
        seed: of the draws, and of the random names.

    Returns:
        "shots"; per k the mean over draws of "probe", and the "C" chosen; and
        one-element lists "zero-shot" and "random names".
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
        "C": [],
    }
    x, y = probe_features(model, train.image), required(train.label, "label")
    x_test = probe_features(model, test.image)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - mean) / std, (x_test - mean) / std
    fitting = first_of_each(y, max(shots))
    validation = x[~fitting], y[~fitting]
    x, y = x[fitting], y[fitting]
    generator = torch.Generator().manual_seed(seed)
    for k in shots:
        rows = [draw_shots(y, k, generator) for _ in range(draws)]
        first = x[rows[0]], y[rows[0]]
        C = chosen_C(first, validation)
        probes = [LinearProbe.fit(x[r], y[r], C, tolerance=1e-5) for r in rows]
        hits = [probe.accuracy(x_test, label) for probe in probes]
        report["probe"].append(sum(hits) / len(hits))
        report["C"].append(C)
    return report


def chosen_C(train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> float:
    """Return the best C for a probe among the decades of :data:`DECADES`, judged on
    held-out examples; of equal ones the strongest penalty.

    Coarser than the paper's search (``minilib.metrics.sweep_C``), and a third of its
    cost.

    Args:
        train: features (n, D) and labels (n,).
        validation: the same of other examples.
    """
    best, found, init = -1.0, DECADES[0], None
    for C in DECADES:
        probe = LinearProbe.fit(
            *train, C, classes=int(validation[1].max()) + 1, init=init, max_iter=100,
            tolerance=1e-4,
        )  # fmt: skip
        init, score = probe.weight, probe.accuracy(*validation)
        if score > best:
            best, found = score, C
    return found


def worth(shots: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return log2 of the labelled images per class at which probes equal "zero-shot",
    and "random names"; "one image" is 0, and "top1" the zero-shot accuracy.

    Where probes never get there it is the largest number tried, so at least that.

    Args:
        shots: what :func:`few_shot` returned.
    """
    report = {"one image": 0.0, "top1": shots["zero-shot"][0]}
    for name in ("zero-shot", "random names"):
        images = crossing(shots["shots"], shots["probe"], shots[name][0])
        report[name] = math.log2(images or shots["shots"][-1])
    return report


def first_of_each(label: Tensor, k: int) -> Tensor:
    """Return which examples (N,) are among the first k of their class.

    Raises:
        ValueError: a class has none beyond them.
    """
    chosen = torch.zeros(len(label), dtype=torch.bool)
    for c in label.unique().tolist():
        own = (label == c).nonzero()[:, 0]
        if len(own) <= k:
            raise ValueError(
                f"class {c} has {len(own)} examples: give more than {k}, to have some "
                "to validate with"
            )
        chosen[own[:k]] = True
    return chosen


def in_common(some: Batch, others: Batch) -> int:
    """Return how many images of one batch are also in another."""
    known = {image.cpu().numpy().tobytes() for image in others.image}
    return sum(image.cpu().numpy().tobytes() in known for image in some.image)


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
    shots: Sequence[float], probe: Sequence[float], zero_shot: float
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


def shifted_at(points: Sequence[tuple[float, float]], reference: float) -> float:
    """Return the accuracy under shift at a given accuracy on the reference style.

    Accuracies without and with a shift lie on a line in logit axes (Taori et al. 2020).

    Args:
        points: (reference accuracy, shifted accuracy) of one model at several stages.
        reference: the reference accuracy to read the line at.

    Raises:
        ValueError: fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"a line needs at least two points, not {len(points)}")
    x = torch.tensor([[logit(a), 1.0] for a, _ in points], dtype=torch.float64)
    y = torch.tensor([[logit(b)] for _, b in points], dtype=torch.float64)
    slope, offset = torch.linalg.lstsq(x, y).solution.flatten().tolist()
    return torch.sigmoid(torch.tensor(slope * logit(reference) + offset)).item()


def style_shift(
    arms: Arms, shots: Sequence[int] = (1, 2, 4, 8, 16)
) -> dict[str, list[tuple[float, float]]]:
    """Compare zero-shot, probe and supervised learning when the drawing style changes
    from Noto to Twemoji (Figure 13).

    CLIP's web data hold many styles, ImageNet one. So one CLIP sees Noto and OpenMoji,
    another Noto alone (the control that separates the diversity of the data from the
    objective); nobody sees Twemoji.

    Returns:
        (Noto accuracy, Twemoji accuracy): of "zero-shot, two styles"; and, each at
        several stages, of "supervised" and "zero-shot, one style" along their trainings
        on Noto, and of "probe, two styles" with 1, 2, ... Noto images a class.
    """

    def along(name: str) -> list[tuple[float, float]]:
        history = arms[name].history
        pair = (history.column(style)[1] for style in (REFERENCE, SHIFTED))
        return list(zip(*pair, strict=True))

    two = arms.clip("two styles")
    lab = arms.lab
    pool = shot_pool(max(shots), lab.image_size, lab.names, arms.seed)
    label = required(pool.label, "label")
    features = probe_features(two, pool.image)
    mean, std = features.mean(0), features.std(0) + 1e-6
    generator = torch.Generator().manual_seed(arms.seed)
    tests = [lab.test(style, arms.seed) for style in (REFERENCE, SHIFTED)]
    seen = [(probe_features(two, test.image) - mean) / std for test in tests]
    probed = []
    for k in shots:
        rows = draw_shots(label, k, generator)
        probe = LinearProbe.fit(
            (features[rows] - mean) / std, label[rows], 1.0, tolerance=1e-5
        )
        first, second = (
            probe.accuracy(x, required(test.label, "label"))
            for x, test in zip(seen, tests, strict=True)
        )
        probed.append((first, second))
    own = arms.top1("two styles", REFERENCE), arms.top1("two styles", SHIFTED)
    return {
        "zero-shot, two styles": [own],
        "supervised": along("labels"),
        "probe, two styles": probed,
        "zero-shot, one style": along("words"),
    }


def at_equal_accuracy(
    points: Mapping[str, Sequence[tuple[float, float]]],
) -> dict[str, float]:
    """Return the Twemoji accuracy of each row of :func:`style_shift` at the Noto
    accuracy of zero-shot with two styles.

    Under "reach" is by how much the best Noto accuracies of "supervised" and of
    "zero-shot, one style" exceed it, at least: below 0 a line would be read where
    nothing was measured.
    """
    reference, _ = points["zero-shot, two styles"][0]
    rivals = {name: row for name, row in points.items() if len(row) > 1}
    trained = [points["supervised"], points["zero-shot, one style"]]
    best = min(max(noto for noto, _ in row) for row in trained)
    return {
        "zero-shot, two styles": points["zero-shot, two styles"][0][1],
        **{name: shifted_at(row, reference) for name, row in rivals.items()},
        "reach": best - reference,
    }


def gains_of_a_probe(
    points: Mapping[str, Sequence[tuple[float, float]]],
) -> dict[str, float]:
    """Return what the probe with the most images per class gains over zero-shot on the
    "reference" style, to which it is fitted, and on the "shifted" one.

    Args:
        points: what :func:`style_shift` returned.
    """
    (zero,), probe = points["zero-shot, two styles"], points["probe, two styles"][-1]
    return {"reference": probe[0] - zero[0], "shifted": probe[1] - zero[1]}


# --- What CLIP cannot do --------------------------------------------------------------


def counting(
    model: CLIP, n: int = 600, seed: int = 0, fitted: int = 3000
) -> dict[str, object]:
    """Ask for the number of one to four like objects, by text and by a probe on
    the same features.

    Args:
        model: the CLIP.
        n: test scenes, as many of each number.
        seed: of the scenes.
        fitted: other scenes, to which the probe is fitted; its C is chosen on a fifth
            of them that it is not fitted to.

    Returns:
        "zero-shot", "probe" and "chance" accuracies, "error" the mean absolute error of
        zero-shot, and "confusion" (asked, answered) as nested lists of shares.
    """
    test, concept, number = _counted(model, n, "test", seed)
    image = embed_images(model, test)
    scores = torch.empty(len(image), NUMBERS_ASKED, device=model.device)
    for k in range(NUMBERS_ASKED):
        texts = [noun_phrase(c, n=k + 1) for c in concept]
        scores[:, k] = (image * embed_texts(model, texts)).sum(1)
    answer = scores.argmax(1).cpu()
    shown, _, label = _counted(model, fitted, "val", seed)
    x, x_test = probe_features(model, shown), probe_features(model, test)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - mean) / std, (x_test - mean) / std
    held = torch.arange(len(x)) % 5 == 0
    C = chosen_C((x[~held], label[~held]), (x[held], label[held]))
    probe = LinearProbe.fit(x[~held], label[~held], C, tolerance=1e-5)
    confusion = torch.zeros(NUMBERS_ASKED, NUMBERS_ASKED)
    confusion.index_put_((number, answer), torch.ones(len(answer)), accumulate=True)
    return {
        "zero-shot": (answer == number).double().mean().item(),
        "probe": probe.accuracy(x_test, number),
        "chance": 1 / NUMBERS_ASKED,
        "error": (answer - number).abs().double().mean().item(),
        "confusion": (confusion / confusion.sum(1, keepdim=True)).tolist(),
    }


def _counted(
    model: CLIP, n: int, split: str, seed: int
) -> tuple[Tensor, list[int], Tensor]:
    """Return scenes of like objects, which class each shows (a vocabulary index), and
    how many less one."""
    each = n // NUMBERS_ASKED
    batches = []
    for number in range(1, NUMBERS_ASKED + 1):
        config = SceneConfig(
            size=model.config.image_size,
            count=(number, number),
            distractors=(0, 0),
            tint=0.0,
            scale=(0.7, 1.0),
        )
        scenes = EmojiScenes(config, device=model.device)
        # other scenes for every number
        batches.append(scenes.batch("count", each, split, seed, start=number * each))
    concept = [c for b in batches for c in required(b.label, "label").tolist()]
    less_one = torch.arange(NUMBERS_ASKED).repeat_interleave(each)
    return torch.cat([batch.image for batch in batches]), concept, less_one


def relations(model: CLIP, n: int = 600, seed: int = 0) -> dict[str, float]:
    """Score two-object scenes against true captions and wrong ones of two kinds.

    Returns:
        the share of scenes whose true caption scores higher than the one with the
        "contrary" relation ("a dog below a cat" for "a dog above a cat": only the word
        between them changes), than the one with its objects "swapped", and than the
        one with an object "replaced"; and "chance", one half.
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
    texts: dict[str, list[str]] = {
        "true": [], "contrary": [], "swapped": [], "replaced": []
    }  # fmt: skip
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
        texts["true"].append(caption)
        texts["contrary"].append(f"{first} {OPPOSITE[joint.strip()]} {second}")
        texts["swapped"].append(f"{second}{joint}{first}")
        texts["replaced"].append(f"{first}{joint}{noun_phrase(stranger)}")
    image = embed_images(model, batch.image[keep])
    score = {
        kind: (image * embed_texts(model, captions)).sum(1)
        for kind, captions in texts.items()
    }
    preferred = {
        kind: (score["true"] > score[kind]).double().mean().item()
        for kind in ("contrary", "swapped", "replaced")
    }
    return preferred | {"chance": 0.5}


def polysemy(
    model: CLIP, per_concept: int = 20, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Classify scenes among the concepts that share a word, by the word and by
    their edited names.

    Returns:
        per word "bare" and "edited" accuracies, a tie counting as a guess; under "mean"
        their means, and what a "guess" among the things of a word gets.
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
    means = {
        kind: sum(row[kind] for row in report.values()) / len(report)
        for kind in ("bare", "edited")
    }
    guess = sum(1 / len(concepts) for concepts in polysemous_words().values())
    report["mean"] = means | {"guess": guess / len(polysemous_words())}
    return report


def tie_accuracy(scores: Tensor, label: Tensor, tolerance: float = 1e-5) -> float:
    """Return top-1 accuracy where an answer tied among m classes, the right one
    included, counts 1 / m."""
    best = scores >= scores.max(dim=1, keepdim=True).values - tolerance
    right = best[torch.arange(len(label)), label.to(scores.device)]
    return (right / best.sum(dim=1)).double().mean().item()


# --- Hunger for data, labels, and the law of scale ------------------------------------

LENGTHS = {
    "words, a quarter as long": 1 / 4,
    "words, half as long": 1 / 2,
    "words": 1.0,
    "words, twice as long": 2.0,
}
"""CLIP's arms that see more and more pairs, none of them twice."""


def reached(arms: Arms, names: Sequence[str]) -> dict[str, float]:
    """Return the final top-1 of arms, and :func:`late_gain` of those that are watched
    under "late gain, ..."."""
    report = {name: arms.top1(name) for name in names}
    for name in names:
        along = [row[REFERENCE] for row in arms[name].history.rows if REFERENCE in row]
        if along:
            report[f"late gain, {name}"] = late_gain(along)
    return report


def late_gain(along: Sequence[float]) -> float:
    """Return what the last quarter of a training gained, from what was measured along
    it at equal distances."""
    return along[-1] - along[max(0, math.ceil(0.75 * len(along)) - 1)]


def kept(top1: Mapping[str, float]) -> dict[str, float]:
    """Return which share of their top-1 "words" and "labels" keep when they are taught
    with 1/64 of the images; and under "lost" the top-1 that words lose.

    Args:
        top1: what :func:`reached` returned.
    """
    shares = {name: top1[f"{name}, 1/64"] / top1[name] for name in ("words", "labels")}
    return shares | {"lost": top1["words"] - top1["words, 1/64"]}


def off_the_line(
    top1: Mapping[str, float], sizes: Mapping[str, float] = LENGTHS
) -> dict[str, float]:
    """Predict the error of the largest training from those of smaller ones (Figure 9).

    Where error falls as a power of the pairs seen, it is a line in logarithms.

    Args:
        top1: accuracy by arm.
        sizes: of those arms, what is seen, in any unit; the last one is predicted.

    Returns:
        the error "expected" from the line through all arms but the last, and the
        error "measured" there.
    """
    x = torch.tensor([[math.log(n), 1.0] for n in sizes.values()], dtype=torch.float64)
    error = 1 - torch.tensor([[top1[name]] for name in sizes], dtype=torch.float64)
    law = torch.linalg.lstsq(x[:-1], error[:-1].clamp(min=1e-3).log()).solution
    return {"expected": (x[-1] @ law).exp().item(), "measured": error[-1].item()}
