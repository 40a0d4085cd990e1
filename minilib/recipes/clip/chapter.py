"""Chapter 1's values per profile, and the one object that its cells work with
whatever the data are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.batch import Batch, required
from minilib.claims.chapter import Chapter, Run
from minilib.datasets import CAPTION_TEMPLATES
from minilib.metrics import accuracy
from minilib.models.clip import CLIP, CLIPConfig, ResNetConfig, ViTConfig
from minilib.parameters import Parameters
from minilib.recipes.clip import recipe
from minilib.recipes.clip.experiments import late_gain, shot_pool
from minilib.recipes.clip.lab import Lab, class_scores, train_tower
from minilib.recipes.shared.classifier import ImageClassifier
from minilib.recipes.shared.photographs import class_folders
from minilib.scenes import SceneConfig, names
from minilib.tokenizer import Tokenizer, vocabulary_of
from minilib.training import TrainConfig, Training


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    lab: Lab = field(default_factory=Lab)
    """The small set-up in which ways of training are compared."""
    arms: tuple[str, ...] = ("words, 1/64", "words")
    """Its arms whose final accuracies are compared."""
    styles: Lab = field(default_factory=Lab)
    """The set-up for a shift of style: more classes."""
    race: Lab = field(default_factory=Lab)
    """The set-up in which contrast and prediction are compared: watched more often."""
    combinations: Lab = field(default_factory=Lab)
    """The set-up for combinations of object and colour that are held out."""
    main: recipe.Pretraining | None = None
    """Pre-training of the model that is examined; None = the
    checkpoint ``mini-vit``."""
    test_images: int = 1200
    """Test images of the model that is examined."""
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Images per class for linear probes."""
    draws: int = 2
    """Random draws of those images."""
    few_shot_classes: int = 60
    """Classes of the few-shot comparison."""
    asked: int = 400
    """Scenes that are asked for a number, and for a relation."""
    counted: int = 1000
    """Other scenes, for the probe that counts."""
    per_concept: int = 8
    """Scenes of each thing that shares its word with another."""


def photo_pretraining(steps: int = 700) -> recipe.Pretraining:
    """Return the training from scratch on 32 x 32 photographs and captions made of
    their class names."""
    vision = ResNetConfig(blocks=(1, 1, 1, 1), width=16, heads=8, strides=(1, 2, 2, 1))
    text = recipe.text_config(64, 2, 2)
    train = TrainConfig(
        steps=steps,
        lr=1e-3,
        warmup=max(1, steps // 10),
        weight_decay=0.2,
        evaluate_every=max(1, steps // 8),
    )
    return recipe.Pretraining(
        model=recipe.clip_config(vision, 32, 128, text), train=train, batch_size=64
    )


PROFILES = {
    "quick": Values(
        lab=Lab(classes=48, steps=80, evaluations=4, test_images=480),
        race=Lab(classes=48, steps=64, evaluations=8, test_images=240),
        combinations=Lab(classes=24, steps=80, test_images=480),
        test_images=960,
        draws=1,
    ),
    "full": Values(
        lab=Lab(classes=48, steps=200, evaluations=12, test_images=1000),
        arms=(
            "words, 1/64",
            "words, a quarter as long",
            "words, half as long",
            "words",
            "words, twice as long",
            "labels, 1/64",
            "labels",
        ),
        styles=Lab(classes=80, steps=200, evaluations=12, test_images=1000),
        race=Lab(classes=48, steps=160, evaluations=20, test_images=600),
        combinations=Lab(classes=24, steps=200, test_images=1000),
        main=recipe.Pretraining(
            model=recipe.clip_config(
                ViTConfig(
                    patch=8, width=96, layers=3, heads=3, stem="conv", pool="mean"
                ),
                48,
                128,
                recipe.text_config(96, 2, 3),
            ),
            train=TrainConfig(steps=500, lr=2e-3, warmup=50, evaluate_every=125),
            scenes=SceneConfig(size=48, objects=(1, 4)),
            simple_first=0.5,
        ),
        test_images=2400,
        draws=3,
        asked=1200,
        counted=3000,
        per_concept=20,
    ),
    "photos": Values(
        main=photo_pretraining(),
        test_images=10_000,
        draws=3,
        few_shot_classes=10,
    ),
}


@dataclass
class Study:
    """A data set as chapter 1 uses it: pairs to train on, class names, test images,
    examples to probe with."""

    names: tuple[str, ...]
    """K class names."""
    templates: tuple[str, ...]
    """Prompt templates, ``{}`` for the name, ``{a}`` for the name with its article."""
    pairs: Callable[[int], Batch]
    """Training pairs by step."""
    test: Batch
    """Test images with labels 0 ... K - 1."""
    pool: Batch
    """Labelled images for probes: per class as many as the largest shot to fit them,
    and as many again (of photographs, as many as there are) to choose their C."""
    training: recipe.Pretraining
    """The training of the model that is examined."""


def study(run: Parameters, values: Values) -> Study:
    """Return the data of a run: EmojiScenes, or photographs in folders."""
    if run.photos:
        return photos_study(values, run.seed, run.device, run.data_path)
    return scenes_study(values, run.seed, run.device)


def scenes_study(
    values: Values, seed: int, device: torch.device | str = "cpu"
) -> Study:
    """Return EmojiScenes as a study: all names of the vocabulary, single-object test
    scenes, no colour tints."""
    training = values.main or recipe.MINI["mini-vit"]
    size = training.model.image_size
    test = recipe.single_objects(values.test_images, "noto", size, "test", None, seed)
    chosen = Lab(classes=values.few_shot_classes).names
    return Study(
        names=tuple(names()),
        templates=recipe.TEMPLATES,
        pairs=recipe.scene_pairs(training, seed, device),
        test=test.to(device),
        pool=shot_pool(2 * max(values.shots), size, chosen, seed),
        training=training,
    )


def photos_study(
    values: Values,
    seed: int,
    device: torch.device | str,
    data: Path,
    fraction: float = 1.0,
) -> Study:
    """Return a folder per class (or a zip of it) as a study; captions are templates
    filled with class names.

    ``fraction`` keeps only that share of the training photographs.

    Raises:
        ValueError: the folder is not a data set (see ``minilib.datasets``).
    """
    training = values.main or photo_pretraining()
    train, test = class_folders(data, training.model.image_size, seed, device)
    most, fewest = max(values.shots), int(train.labels.bincount().min())
    enough = max(most + 1, min(2 * most, fewest))  # to fit, and some to validate
    pool = train.take(train.few_shot(enough, seed))
    generator = torch.Generator().manual_seed(seed)
    if fraction < 1:
        keep = torch.randperm(len(train), generator=generator)[
            : max(1, int(fraction * len(train)))
        ]
        train = train.subset(keep.sort().values.tolist())
    training = replace(training, model=_reading(training.model, train.names))
    held = (
        torch.randperm(len(test), generator=generator)[: values.test_images]
        .sort()
        .values
    )

    batch_size = training.batch_size
    return Study(
        names=tuple(train.names),
        templates=CAPTION_TEMPLATES,
        pairs=lambda step: train.batch(
            "pairs", batch_size, start=step * batch_size, seed=seed, augment=True
        ),
        test=test.take(held.tolist()),
        pool=pool,
        training=training,
    )


def _reading(config: CLIPConfig, class_list: tuple[str, ...]) -> CLIPConfig:
    """Return ``config`` with a vocabulary that also holds the words
    of ``class_list``."""
    vocabulary = tuple(
        sorted(
            set(config.vocabulary or ())
            | set(vocabulary_of([*class_list, *CAPTION_TEMPLATES]))
        )
    )
    text = replace(
        config.text, vocab_size=Tokenizer(config.text.context, vocabulary).vocab_size
    )
    return replace(config, vocabulary=vocabulary, text=text)


def main_training(run: Parameters, values: Values, study: Study) -> Training[CLIP]:
    """Return the pre-training of the model that is examined; at ``quick``, which loads
    it, the live one."""
    if values.main is None:
        lab = values.lab
        study = replace(
            study,
            names=lab.names,
            test=lab.test(seed=run.seed).to(run.device),
            pairs=recipe.scene_pairs(lab.pretraining(), run.seed, run.device),
            training=lab.pretraining(),
        )
    return study_training(study, run.seed, run.device)


def study_training(
    study: Study, seed: int, device: torch.device | str
) -> Training[CLIP]:
    """Return the pre-training of the model that is examined; zero-shot top-1 is watched
    on 1,000 test images."""
    watched = study.test.image[:1000], required(study.test.label, "label")[:1000]

    def evaluate(model: CLIP) -> dict[str, float]:
        return {
            "top1": accuracy(class_scores(model, study.names, watched[0]), watched[1])
        }

    return Training(
        model=recipe.build(study.training.model, seed).to(device),
        loss=recipe.contrastive_loss,
        batches=study.pairs,
        config=study.training.training(seed),
        after_step=recipe.clamp_logit_scale,
        evaluate=evaluate,
    )


def few_shot_test(
    study: Study, values: Values, run: Parameters
) -> tuple[tuple[str, ...], Batch]:
    """Return names and test images of the few-shot comparison; on scenes,
    of fewer classes."""
    if run.photos:
        return study.names, study.test
    size = study.training.model.image_size
    lab = replace(values.lab, classes=values.few_shot_classes, image_size=size)
    return lab.names, lab.test(seed=run.seed)


def photo_arms(run: Run[Values, Study], top1: float) -> dict[str, float]:
    """Return the arms that are compared on photographs, as ``experiments.reached``.

    Each has as many steps and the same images: "words" is the model that is examined,
    "words, 1/64" sees a sixty-fourth of the photographs again and again, "labels" is
    the same image tower taught with class ids.

    Args:
        run: the run, whose main training is finished.
        top1: zero-shot top-1 of the model that is examined.
    """
    few = photos_study(run.values, run.seed, run.device, run.data_path, 1 / 64)
    starved = study_training(few, run.seed, run.device)
    starved.fit(run.out / "sixty-fourth", progress="1/64 of the photographs")
    weights = recipe.classifier(starved.model.eval(), few.names, few.templates)
    label = required(run.study.test.label, "label")
    image = recipe.embed_images(starved.model, run.study.test.image)
    labels, along = labelled_photos(run)
    words = [row["top1"] for row in run.train("CLIP")[1].rows if "top1" in row]
    return {
        "words": top1,
        "labels": labels,
        "words, 1/64": accuracy(image @ weights, label),
        "late gain, words": late_gain(words),
        "late gain, labels": late_gain(along),
    }


def labelled_photos(run: Run[Values, Study]) -> tuple[float, list[float]]:
    """Train the same image tower on the same photographs with class ids; return its
    top-1, and that on 1,000 photographs along the training."""
    study = run.study
    label = required(study.test.label, "label")

    def loss(scores: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(scores, required(batch.label, "label"))

    @torch.no_grad()
    def top1(tower: ImageClassifier, n: int) -> float:
        parts = [tower(part) for part in study.test.image[:n].split(500)]
        return accuracy(torch.cat(parts), label[:n])

    tower, history = train_tower(
        study.training, loss, len(study.names), run.seed, run.device,
        lambda tower: {"top1": top1(tower, 1000)}, pairs=study.pairs,
    )  # fmt: skip
    return top1(tower, len(label)), history.column("top1")[1]


def photo_rows(
    zero_shot: Sequence[float],
    ladders: Sequence[Mapping[str, float]],
    probes: Sequence[Mapping[str, Sequence[float]]],
) -> dict[str, list[float]]:
    """Return the rows of the table of photographs, over seeds, from the committed
    results of that profile."""
    if not ladders:
        return {}
    rows = {"zero-shot, ensemble of all templates": list(zero_shot)}
    for key in ladders[0]:
        if "{" in key or key == "bare word":
            rows[f"zero-shot, {key}"] = [ladder[key] for ladder in ladders]
    for i, count in enumerate(probes[0]["shots"]):
        rows[f"linear probe, {count} per class"] = [
            probe["probe"][i] for probe in probes
        ]
    return rows


def floor_of_loss(captions: list[str]) -> float:
    """Return the least value that InfoNCE can reach on these captions: equal ones
    cannot be distinguished."""
    sizes = torch.tensor(
        [captions.count(caption) for caption in captions], dtype=torch.float64
    )
    return sizes.log().mean().item()


def gap(model: CLIP, batch: Batch) -> dict[str, Tensor]:
    """Return cosines of ``matched`` (B,) and ``unmatched`` (B * (B - 1),) pairs, and
    both features, for pictures."""
    image, text = (
        recipe.embed_images(model, batch.image),
        recipe.embed_texts(model, required(batch.caption, "caption")),
    )
    cosine = image @ text.T
    own = torch.eye(len(batch), dtype=torch.bool, device=cosine.device)
    return {
        "image": image,
        "text": text,
        "matched": cosine[own],
        "unmatched": cosine[~own],
    }


CHAPTER = Chapter(
    "clip",
    PROFILES,
    study,
    main_training,
    needs={
        "photos": {
            "data": "a folder with train/<class>/ and test/<class>/, or a zip of it "
            "(python data_scripts/get_cifar10.py makes one)"
        }
    },
    missing={
        "paper": (
            "it needs ImageNet and OpenAI's weights, see 'At paper scale' in the "
            "chapter"
        )
    },
)
open = CHAPTER.open
