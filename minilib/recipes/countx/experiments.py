"""The questions that chapter 9 puts to a trained CounTX. Every function returns plain
numbers or tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.batch import Batch
from minilib.metrics.counting import CountErrors, count_errors
from minilib.models.countx import CounTX
from minilib.recipes.countx.recipe import counter_of, counting_loss
from minilib.recipes.shared.counting import (
    Counter,
    Questions,
    answers,
    evaluate,
    window_counter,
)
from minilib.recipes.shared.counting_scenes import DescribedScenes
from minilib.scenes import VOCABULARY

WORDINGS = {
    "the {s}": "the {s}",
    "{s}": "{s}",
    "{} (singular)": "{}",
    "a photo of {s}": "a photo of {s}",
    "some {s}": "some {s}",
    "how many {s} are there": "how many {s} are there",
}
"""Ways to ask for one class; ``{s}`` is its plural, ``{}`` its singular."""


@torch.no_grad()
def maps(model: CounTX, image: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the densities (T, H, W) of one image (3, H, W) in [0, 1] or uint8,
    for T descriptions."""
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    return model.predict(
        image.to(model.device).expand(len(texts), -1, -1, -1), list(texts)
    ).cpu()


def rephrased(questions: Questions, wording: str) -> Questions:
    """Ask the same questions, "the dogs", in one of WORDINGS."""
    singular = {concept.plural: concept.name for concept in VOCABULARY}
    plain = [text.removeprefix("the ") for text in questions.asked]
    asked = tuple(
        wording.replace("{s}", name).replace("{}", singular.get(name, name))
        for name in plain
    )
    return replace(questions, asked=asked)


def wordings(model: CounTX, questions: Questions) -> dict[str, CountErrors]:
    """Return the errors of the same questions asked in every one of WORDINGS."""
    counter = counter_of(model)
    return {
        name: evaluate(counter, rephrased(questions, wording), model.device)
        for name, wording in WORDINGS.items()
    }


def prompt_matrix(
    model: CounTX, scenes: DescribedScenes, most: int = 60
) -> dict[str, float]:
    """Return mean answers when a scene is asked for each thing it shows, and for things
    it does not show.

    Returns:
        ``asked and there``: mean |answer - truth| over the classes in the scene;
        ``other class there``: mean |answer to another class of the scene - truth of the
        first|; ``absent``: mean |answer| for a class that is not there;
        ``sensitivity``: mean |answer(A) - answer(B)| over pairs of classes in one
            scene, beside ``true sensitivity``, the same of the true counts;
            ``follows``: the share of the true differences that the answers' differences
            follow, their regression through the origin: 1 reads, 0 is deaf.
    """
    right, swapped, absent, moved, should, along = [], [], [], [], [], []
    for row in range(min(most, len(scenes))):
        asked = [a for a in scenes.asked[row] if a.kind in ("class", "absent")]
        got = (
            maps(model, scenes.image[row], [f"the {a.text}" for a in asked])
            .sum((1, 2))
            .tolist()
        )
        true = [len(a.objects) for a in asked]
        absent.append(abs(got[-1]))
        got, true = got[:-1], true[:-1]
        right += [abs(g - t) for g, t in zip(got, true, strict=True)]
        for i in range(len(got)):
            for j in range(len(got)):
                if i != j:
                    swapped.append(abs(got[j] - true[i]))
                    moved.append(abs(got[i] - got[j]))
                    should.append(abs(true[i] - true[j]))
                    along.append((got[i] - got[j]) * (true[i] - true[j]))
    series = {
        "asked and there": right,
        "other class there": swapped,
        "absent": absent,
        "sensitivity": moved,
        "true sensitivity": should,
    }
    means = {name: sum(values) / max(1, len(values)) for name, values in series.items()}
    return means | {"follows": sum(along) / max(1, sum(value**2 for value in should))}


@torch.no_grad()
def text_bias(model: CounTX, texts: Sequence[str]) -> Tensor:
    """Return what the cross-attention of every block adds at every patch for each
    text, (blocks, T, E)."""
    y = model.encode_text(model.tokenize(texts))[:, 0]
    return torch.stack(
        [block.attn.proj(block.attn.wv(y)) for block in model.fim_blocks]
    )


def dead_gradients(model: CounTX, batch: Batch) -> dict[str, float]:
    """Return the largest gradient of each part of the first block's cross-attention,
    relative to ``wv``'s."""
    model.zero_grad()
    counting_loss(model, batch)["loss"].backward()
    block = model.fim_blocks[0]
    parts = {
        "norm1": block.norm1,
        "wq": block.attn.wq,
        "wk": block.attn.wk,
        "wv": block.attn.wv,
    }
    sizes = {name: part.weight.grad.abs().max().item() for name, part in parts.items()}
    model.zero_grad()
    return {name: size / sizes["wv"] for name, size in sizes.items()}


@contextmanager
def without_text(model: CounTX, blocks: Sequence[int]) -> Iterator[None]:
    """Silence the cross-attention of some blocks: it adds nothing while this holds."""
    hooks = [
        model.fim_blocks[i].attn.register_forward_hook(
            lambda _, __, output: torch.zeros_like(output)
        )
        for i in blocks
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def knock_out(model: CounTX, questions: Questions) -> dict[str, float]:
    """Return the MAE with the cross-attention of one block or of all
    blocks silenced."""
    counter, blocks = counter_of(model), range(len(model.fim_blocks))
    cases = {
        "as trained": [],
        **{f"block {i + 1} silenced": [i] for i in blocks},
        "all silenced": list(blocks),
    }
    errors = {}
    for name, silenced in cases.items():
        with without_text(model, silenced):
            errors[name] = evaluate(counter, questions, model.device).mae
    return errors


def merging(model: CounTX, wide: Questions) -> dict[str, CountErrors]:
    """Return the errors on wide images read through windows, merged in two ways or laid
    side by side, or squeezed."""
    side = model.config.window
    uniform = partial(model.density, merge="uniform")
    apart = partial(model.density, stride=side)
    squeezed = replace(
        wide,
        image=(
            F.interpolate(
                wide.image / 255.0, (side, side), mode="bilinear", antialias=True
            )
            * 255
        ).byte(),
    )
    return {
        "windows, authors' merge": evaluate(
            window_counter(model.density), wide, model.device
        ),
        "windows, uniform merge": evaluate(window_counter(uniform), wide, model.device),
        "windows side by side": evaluate(window_counter(apart), wide, model.device),
        "squeezed to one window": evaluate(counter_of(model), squeezed, model.device),
    }


@torch.no_grad()
def tricks(model: CounTX, questions: Questions) -> dict[str, CountErrors]:
    """Return the errors of square images with each test-time trick switched on by
    itself; the paper uses none."""

    plain = counter_of(model)

    def mirrored(batch: Batch) -> Tensor:
        return (plain(batch) + plain(replace(batch, image=batch.image.flip(-1)))) / 2

    def positive(batch: Batch) -> Tensor:
        return model.predict(batch.image, batch.caption).clamp_min(0).sum((1, 2))

    counters: dict[str, Counter] = {
        "as it comes": plain,
        "rounded": lambda batch: plain(batch).round(),
        "never below zero": lambda batch: plain(batch).clamp_min(0),
        "positive pixels only": positive,
        "mean with the mirrored picture": mirrored,
    }
    return {
        name: evaluate(counter, questions, model.device)
        for name, counter in counters.items()
    }


def by_crowding(
    predicted: Tensor, questions: Questions, scenes: DescribedScenes
) -> CountErrors:
    """Split the errors by how many objects the scene holds in all, counted or not,
    instead of by the true count."""
    crowd = torch.tensor(
        [float(len(scenes.center[i])) for i in questions.about.tolist()]
    )
    return count_errors(
        predicted - questions.counts + crowd, crowd, bins=(0, 10, 20, 30, 40)
    )


def by_class(predicted: Tensor, questions: Questions) -> dict[str, CountErrors]:
    """Return the errors of every name that is asked for."""
    rows = {
        name: [i for i, asked in enumerate(questions.asked) if asked == name]
        for name in questions.names
    }
    return {
        name: count_errors(predicted[index], questions.counts[index])
        for name, index in rows.items()
    }


__all__ = [
    "WORDINGS",
    "answers",
    "by_class",
    "by_crowding",
    "dead_gradients",
    "knock_out",
    "maps",
    "merging",
    "prompt_matrix",
    "rephrased",
    "text_bias",
    "tricks",
    "without_text",
    "wordings",
]
