"""Chapter 1's values per profile, and the one object that its cells work with
whatever the data are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from minilib.batch import Batch, required
from minilib.claims.chapter import Chapter, Run
from minilib.datasets import CAPTION_TEMPLATES
from minilib.metrics import accuracy
from minilib.models.clip import CLIP, CLIPConfig, ResNetConfig, ViTConfig
from minilib.parameters import Parameters
from minilib.recipes.clip import recipe
from minilib.recipes.clip.experiments import Lab, class_scores, shot_pool
from minilib.recipes.shared.photographs import class_folders
from minilib.scenes import SceneConfig, names
from minilib.tokenizer import Tokenizer, vocabulary_of
from minilib.training import TrainConfig, Training


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    lab: Lab = field(default_factory=Lab)
    """The small set-up in which ways of training are compared."""
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
    combination_classes: int = 24
    """Classes of the comparison on held-out combinations."""
    controls: bool = False
    """Also train the controls that only cost time: shuffled captions, more
    fractions of the data."""


def photo_pretraining(steps: int = 500) -> recipe.Pretraining:
    """Return the training from scratch on 32 x 32 photographs and captions made of
    their class names."""
    vision = ResNetConfig(blocks=(1, 1, 1, 1), width=24, heads=8, strides=(1, 2, 2, 1))
    text = recipe.text_config(64, 2, 2)
    train = TrainConfig(
        steps=steps,
        lr=2e-3,
        warmup=100,
        weight_decay=0.2,
        evaluate_every=max(1, steps // 8),
    )
    return recipe.Pretraining(
        model=recipe.clip_config(vision, 32, 128, text), train=train
    )


PROFILES = {
    "quick": Values(
        lab=Lab(classes=48, steps=80, evaluations=4, test_images=480),
        test_images=960,
        draws=1,
    ),
    "full": Values(
        lab=Lab(classes=120, steps=260, evaluations=6, test_images=1200),
        main=recipe.Pretraining(
            model=recipe.clip_config(
                ViTConfig(
                    patch=8, width=128, layers=3, heads=4, stem="conv", pool="mean"
                ),
                48,
                128,
                recipe.text_config(128, 2, 4),
            ),
            train=TrainConfig(steps=640, lr=1.5e-3, warmup=60, evaluate_every=160),
            scenes=SceneConfig(size=48, objects=(1, 3)),
            simple_first=0.5,
        ),
        test_images=2400,
        draws=3,
        few_shot_classes=120,
        controls=True,
    ),
    "photos": Values(
        main=photo_pretraining(),
        test_images=10_000,
        draws=3,
        few_shot_classes=10,
        controls=True,
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
    """Labelled images for probes, at least as many per class as the largest shot."""
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
        pool=shot_pool(max(values.shots), size, chosen, seed),
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
        pool=train.take(train.few_shot(max(values.shots), seed)),
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


def starved_photos(run: Run[Values, Study], top1: float) -> dict[str, float]:
    """Train on an eighth of the photographs, for as many steps; return its top-1 beside
    ``top1`` on all."""
    few = photos_study(run.values, run.seed, run.device, run.data_path, 1 / 8)
    training = study_training(few, run.seed, run.device)
    training.fit(run.out / "eighth", progress="an eighth of the photographs")
    weights = recipe.classifier(training.model, few.names, few.templates)
    scores = recipe.embed_images(training.model, run.study.test.image) @ weights
    fewer = accuracy(scores, required(run.study.test.label, "label"))
    return {"an eighth of the photographs": fewer, "all photographs": top1}


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
