"""CLIP's pre-training on EmojiScenes, and how its models are judged.

Three sizes of the same thing: ``mini-vit`` and ``mini-rn``, the checkpoints that ship;
``live``, what chapter 1 trains before the reader's eyes; and ``lab``, a small one to
compare ways of training at equal cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.batch import Batch, required
from minilib.metrics import accuracy, recall_at_k
from minilib.models.clip import (
    CLIP,
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
    clip_loss,
    zero_shot_weights,
)
from minilib.recipes.shared.segmentation import score_masks
from minilib.scenes import (
    BACKGROUNDS,
    TINTS,
    VOCABULARY,
    CaptionConfig,
    EmojiScenes,
    SceneConfig,
    article,
    class_names,
    find,
    names,
)
from minilib.scenes.captions import IRRELEVANT, NUMBERS, OPENINGS, pluralise
from minilib.tokenizer import Tokenizer, vocabulary_of
from minilib.training import TrainConfig

TEMPLATES = (
    "a photo of {a}",
    "a picture of {a}",
    "an image of {a}",
    "a drawing of {a}",
    "an icon of {a}",
    "a close-up of {a}",
    "here we see {a}",
    "there is {a}",
)
"""Prompt templates; ``{a}`` stands for the class name with its article."""
EXTRA_WORDS = """
a an the some and of with in on , to the left of, to the right of, above, below, type
kind kinds types . thing pet animal food white black brown grey orange many several no
none not photos blurry bright dark small large good
"""
"""Words of captions' grammar, and some that readers will try."""
CONTEXT = 48
"""Longest caption in tokens."""
PLAIN_GROUPS = ("animal", "food", "vehicle", "clothing", "plant")
"""The top-level groups whose words people use for a thing that they see; nobody calls a
chair "an object" or a football "a thing for leisure"."""
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)


def prompts(template: str, class_list: Sequence[str]) -> list[str]:
    """Fill one of TEMPLATES (or a bare "{}") for every class name."""
    return [
        template.replace("{a}", f"{article(name)} {name}").replace("{}", name)
        for name in class_list
    ]


@lru_cache(maxsize=1)
def lexicon() -> tuple[int, ...]:
    """Return the BPE ids that captions and prompts of EmojiScenes use; all other text
    still encodes, as bytes.

    So do a few words that carry a general name, such as "parts" in "parts of the body":
    the vocabulary is the width of every text tower, and has not grown for them.
    """
    words = [
        word
        for c in VOCABULARY
        for word in (c.name, c.plural, c.word, pluralise(c.word), c.category, c.group)
    ]
    words += [
        *BACKGROUNDS,
        *BACKGROUNDS.values(),
        *TINTS,
        *NUMBERS,
        *OPENINGS,
        *IRRELEVANT,
        *TEMPLATES,
    ]
    return vocabulary_of([*words, EXTRA_WORDS])


def text_config(width: int, layers: int, heads: int) -> TextConfig:
    """Return a text tower that reads :func:`lexicon`."""
    vocab_size = Tokenizer(CONTEXT, lexicon()).vocab_size
    return TextConfig(CONTEXT, vocab_size, width, layers, heads)


def clip_config(
    vision: ViTConfig | ResNetConfig, image_size: int, embed_dim: int, text: TextConfig
) -> CLIPConfig:
    """Return a CLIP for scenes: restricted vocabulary, image statistics
    around one half."""
    return CLIPConfig(
        embed_dim,
        image_size,
        vision,
        text,
        image_mean=MEAN,
        image_std=STD,
        vocabulary=lexicon(),
    )


@dataclass(frozen=True)
class Pretraining:
    """One pre-training on image-caption pairs."""

    model: CLIPConfig
    """The towers."""
    train: TrainConfig
    """The optimisation."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    """What the images show."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    """What people write under them."""
    batch_size: int = 128
    """Pairs in a batch; each image is contrasted with this many captions."""
    simple_first: float = 0.0
    """Share of the steps at the start that show scenes of one or two objects only."""
    pairs: int | None = None
    """Number of distinct pairs, shown again and again; None = never the
    same pair twice."""

    def with_steps(self, steps: int | None) -> Pretraining:
        """Return the same training with another number of steps (None = unchanged)."""
        return (
            self
            if steps is None
            else replace(self, train=replace(self.train, steps=steps))
        )

    def training(self, seed: int) -> TrainConfig:
        """Return the optimisation with its seed."""
        return replace(self.train, seed=seed)


def _mini(
    vision: ViTConfig | ResNetConfig,
    steps: int,
    lr: float,
    precision: str = "fp32",
    general: float = 0.0,
) -> Pretraining:
    return Pretraining(
        model=clip_config(vision, 64, 128, text_config(width=128, layers=2, heads=4)),
        train=TrainConfig(
            steps=steps,
            lr=lr,
            warmup=100,
            weight_decay=0.1,
            precision=precision,
            checkpoint_every=100,
            evaluate_every=250,
        ),
        scenes=SceneConfig(size=64, objects=(1, 4)),
        captions=CaptionConfig(general=general, missing=0.1, irrelevant=0.05),
        batch_size=128,
        simple_first=0.3,
    )


MINI = {
    "mini-vit": _mini(
        ViTConfig(patch=8, width=128, layers=3, heads=4, stem="conv", pool="mean"),
        steps=3500,
        lr=1.5e-3,
    ),
    "mini-rn": _mini(
        ResNetConfig(blocks=(1, 1, 1, 1), width=16, heads=8, strides=(1, 2, 2, 1)),
        steps=6000,
        lr=1.5e-3,
        precision="bf16",
        general=0.2,
    ),
}
"""The checkpoints that ship; see ``data_scripts/train_mini_clip.py``."""


def build(config: CLIPConfig, seed: int, kind: type[CLIP] = CLIP) -> CLIP:
    """Make a CLIP, or a control, whose initial weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config)


class ScenePairs:
    """``step -> Batch``, a pure function of the step: image-caption pairs of
    the training split."""

    def __init__(
        self, recipe: Pretraining, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.recipe, self.seed = recipe, seed
        self.everything = EmojiScenes(recipe.scenes, recipe.captions, device)
        few = replace(recipe.scenes, objects=(1, min(2, recipe.scenes.objects[1])))
        self.few = self.everything.with_config(few)

    def __call__(self, step: int) -> Batch:
        """Return the batch of ``step``."""
        return self.part(step, 0, 1)

    def part(self, step: int, index: int, parts: int) -> Batch:
        """Return the ``index``-th of ``parts`` equal shares of the batch; only its
        scenes are drawn."""
        size, start = self.recipe.batch_size, step * self.recipe.batch_size
        if size % parts:
            raise ValueError(
                f"a batch of {size} pairs cannot be cut into {parts} equal parts"
            )
        if self.recipe.pairs is not None:
            start %= self.recipe.pairs
        scenes = (
            self.few
            if step < self.recipe.simple_first * self.recipe.train.steps
            else self.everything
        )
        return scenes.batch(
            "pairs", size // parts, "train", self.seed, start + index * (size // parts)
        )


def scene_pairs(
    recipe: Pretraining, seed: int, device: torch.device | str = "cpu"
) -> ScenePairs:
    """Return the training pairs of a recipe by step."""
    return ScenePairs(recipe, seed, device)


def contrastive_loss(model: CLIP, batch: Batch) -> dict[str, Tensor]:
    """Symmetric InfoNCE of a batch of pairs (paper Figure 3), and the
    multiplier it used."""
    captions = required(batch.caption, "caption")
    output = model(model.preprocess(batch.image), model.tokenize(captions))
    return {"loss": clip_loss(*output), "logit_scale": output.logit_scale.detach()}


def clamp_logit_scale(model: CLIP) -> None:
    """Keep the multiplier at most 100 (section 2.5); for ``fit(after_step=...)``."""
    model.clamp_logit_scale()


@torch.no_grad()
def embed_images(model: CLIP, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return unit image features (N, E) of images (N, 3, H, W) in [0, 1]."""
    chunks = (
        model.encode_image(model.preprocess(chunk), normalize=True)
        for chunk in images.split(batch_size)
    )
    return torch.cat(list(chunks))


@torch.no_grad()
def embed_texts(model: CLIP, texts: Sequence[str], batch_size: int = 512) -> Tensor:
    """Return unit text features (N, E)."""
    tokens = model.tokenize(list(texts))
    return torch.cat(
        [model.encode_text(chunk, normalize=True) for chunk in tokens.split(batch_size)]
    )


def classifier(
    model: CLIP,
    class_list: Sequence[str],
    templates: Sequence[str] = TEMPLATES[:1],
    allow_duplicates: bool = False,
) -> Tensor:
    """Return the zero-shot classifier (E, K) of class names, averaged over
    templates; ``allow_duplicates`` as in ``zero_shot_weights``."""
    functions = [
        lambda name, template=template: prompts(template, [name])[0]
        for template in templates
    ]
    return zero_shot_weights(
        model, class_list, functions, allow_duplicates=allow_duplicates
    )


@lru_cache(maxsize=16)
def single_objects(
    n: int,
    style: str = "noto",
    size: int = 64,
    split: str = "test",
    classes: tuple[str, ...] | None = None,
    seed: int = 0,
) -> Batch:
    """Return ``n`` single-object scenes with labels (vocabulary indices), the
    zero-shot test set."""
    config = SceneConfig(size=size, styles=(style,), classes=classes, tint=0.0)
    return EmojiScenes(config).batch("classify", n, split, seed)


def zero_shot_report(
    model: CLIP, n: int = 2400, split: str = "test", style: str = "noto", seed: int = 0
) -> dict[str, float]:
    """Return zero-shot top-1 over all names of the vocabulary on single-object scenes
    of one drawing style."""
    batch = single_objects(n, style, model.config.image_size, split, seed=seed).to(
        model.device
    )
    scores = embed_images(model, batch.image) @ classifier(model, names())
    top1 = accuracy(scores, required(batch.label, "label"))
    return {f"top1_{style}": round(top1, 4)}


def retrieval_report(model: CLIP, n: int = 1000, seed: int = 0) -> dict[str, float]:
    """Return recall@1 and @5 in both directions on multi-object scenes; equal
    captions count as one."""
    config = SceneConfig(size=model.config.image_size, objects=(2, 4))
    batch = EmojiScenes(config, device=model.device).batch("pairs", n, "test", seed)
    captions = required(batch.caption, "caption")
    similarity = embed_images(model, batch.image) @ embed_texts(model, captions).T
    report: dict[str, float] = {}
    for direction, scores in (
        ("image_to_text", similarity),
        ("text_to_image", similarity.T),
    ):
        recall = recall_at_k(scores, (1, 5), groups=captions)
        report |= {f"{direction}_r{k}": round(value, 4) for k, value in recall.items()}
    return report


@torch.no_grad()
def patch_report(
    model: CLIP, n: int = 300, size: int = 64, seed: int = 0, mode: str = "value"
) -> dict[str, float]:
    """Return the mean IoU of labelling every patch with its nearest name, among the
    names present in each image.

    The patch map is upsampled to the pixels; candidates are the objects and the
    background of the image, so that this measures where the names are, not whether they
    occur. ``patch_miou_one_label`` is the control that labels all pixels with the
    image's best single name.
    """
    scenes = EmojiScenes(
        SceneConfig(size=size, objects=(1, 3), tint=0.0, cooccurrence=0.0),
        device=model.device,
    )
    batch = scenes.batch("segment", n, "test", seed)
    masks = required(batch.mask, "mask")
    stuff = embed_texts(model, list(BACKGROUNDS.values())).T
    weights = torch.cat([classifier(model, names()), stuff], dim=1)
    present = torch.stack(
        [
            torch.bincount(mask.flatten(), minlength=len(class_names())) > 0
            for mask in masks
        ]
    )

    def labelled(rows: slice) -> dict[str, Tensor]:
        pixels = model.standardise(batch.image[rows])
        dense = model.encode_patches(pixels, normalize=True, mode=mode)
        pooled = model.encode_image(pixels, normalize=True)[:, :, None, None]
        return {
            "patch_miou": best_label(dense, rows),
            "patch_miou_one_label": best_label(pooled, rows),
        }

    def best_label(features: Tensor, rows: slice) -> Tensor:
        scores = torch.einsum("behw,ek->bkhw", features, weights)
        scores = scores.masked_fill(~present[rows, :, None, None], -2)
        if scores.shape[-1] > 1:
            scores = F.interpolate(scores, masks.shape[-2:], mode="bilinear")
        return scores.argmax(1).expand_as(masks[rows])

    found = score_masks(labelled, masks, len(class_names()), batch_size=100)
    return {
        name: round(score.mean_iou(score.occurring), 4) for name, score in found.items()
    }


@torch.no_grad()
def hypernyms_of_text(
    model: CLIP, words: Sequence[str], groups: Sequence[str] | None = None
) -> tuple[float, float]:
    """Return how often a word's nearest group, by the text tower alone, is its own, and
    what chance gives.

    Args:
        model: its text tower reads bare words.
        words: names of the vocabulary.
        groups: top-level groups to choose from, the words' own by default; words of
            others are left out.
    """
    own = {word: find(word).group for word in words}
    groups = list(dict.fromkeys(own.values())) if groups is None else list(groups)
    asked = [word for word in words if own[word] in groups]
    scores = embed_texts(model, asked) @ embed_texts(model, groups).T
    nearest = [groups[i] for i in scores.argmax(dim=1).tolist()]
    right = [group == own[word] for group, word in zip(nearest, asked, strict=True)]
    return sum(right) / len(right), 1 / len(groups)


def hypernym_report(model: CLIP) -> dict[str, float]:
    """Return the share of names that the text tower alone puts nearest to their own
    group: of all eleven, and of PLAIN_GROUPS."""
    among = {"eleven": None, "five": PLAIN_GROUPS}
    return {
        f"hypernyms_of_{n}_groups": round(hypernyms_of_text(model, names(), g)[0], 4)
        for n, g in among.items()
    }


def full_report(model: CLIP) -> dict[str, float]:
    """Return all that a checkpoint's card states; the patch maps also at twice the size
    that it was trained at."""
    model.eval()
    report: dict[str, float] = {}
    for style in ("noto", "openmoji", "twemoji"):
        report |= zero_shot_report(model, style=style)
    report |= retrieval_report(model) | patch_report(
        model, size=model.config.image_size
    )
    larger = patch_report(model, size=2 * model.config.image_size)
    report |= {f"{name}_at_double_size": value for name, value in larger.items()}
    return report | hypernym_report(model)
