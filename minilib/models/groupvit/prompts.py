"""What GroupViT says to its text tower: prompts of nouns in training, of class names in
testing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from minilib.tokenizer import check_templates

SEGMENTATION_TEMPLATES = ("a photo of a {}.",)
"""Of class names in segmentation."""
CLASSIFICATION_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""Of ImageNet's class names."""
PROMPTS = 3
"""Prompts K of a caption, as published."""


def training_templates() -> list[Callable[[str], str]]:
    """Return the 80 templates that nouns are put into in training: those of CLIP for
    ImageNet."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return list(OPENAI_IMAGENET_TEMPLATES)


def noun_prompts(
    captions: Sequence[str],
    nouns: Sequence[Sequence[str]],
    templates: Sequence[str | Callable[[str], str]],
    count: int = PROMPTS,
    generator: torch.Generator | None = None,
) -> list[list[str]]:
    """Return each caption with ``count`` prompts of its nouns behind it, for
    ``GroupViT.tokenize``: B lists of 1 + K texts.

    Nouns are drawn without replacement, each with a template of its own. A caption that
    has fewer, or none, stands in for those that are missing, as in the authors' code.

    Args:
        captions: B texts.
        nouns: of each caption, see ``minilib.models.groupvit.nouns``.
        templates: sentences with ``{}`` for the noun, or functions of it.
        count: K.
        generator: on the CPU; None takes torch's own.

    Raises:
        ValueError: no captions or an empty one, another number of lists of nouns, an
            empty noun, a count below 1, no templates or one without ``{}``.
    """
    check_templates(templates)
    if isinstance(captions, str) or not len(captions) or len(captions) != len(nouns):
        raise ValueError(
            f"{len(captions)} captions with {len(nouns)} lists of nouns: expected one "
            "list for each caption, and at least one"
        )
    if count < 1:
        raise ValueError(
            f"count={count}: expected 1 or more; without prompts, pass captions alone"
        )
    texts = []
    for number, (caption, found) in enumerate(zip(captions, nouns, strict=True)):
        if isinstance(found, str) or not all(noun.strip() for noun in found):
            raise ValueError(
                f"the nouns of caption {number} are {found!r:.80}: expected a list of "
                "words, or an empty one"
            )
        if not caption.strip():
            raise ValueError(f"caption {number} is empty: expected a text")
        order = torch.randperm(len(found), generator=generator)[:count].tolist()
        drawn = torch.randint(len(templates), (len(order),), generator=generator)
        prompts = [
            _filled(templates[which], found[noun])
            for noun, which in zip(order, drawn.tolist(), strict=True)
        ]
        texts.append([caption, *prompts, *[caption] * (count - len(prompts))])
    return texts


def _filled(template: str | Callable[[str], str], noun: str) -> str:
    if isinstance(template, str):
        return template.replace("{}", noun)
    return template(noun)
