"""The questions that chapter 9 puts to a trained CounTX, beside ``reading``'s. Every
function returns plain numbers or tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.batch import Batch, required
from minilib.claims import evidence
from minilib.claims.chapter import Run
from minilib.claims.evidence import Evidence
from minilib.claims.pictures import packed_densities
from minilib.metrics.counting import CountErrors, count_errors
from minilib.models.countx import CounTX
from minilib.recipes.countx import reading
from minilib.recipes.countx.chapter import FROZEN
from minilib.recipes.countx.recipe import (
    counter_of,
    counting_loss,
    interaction_blocks,
)
from minilib.recipes.shared.counting import (
    Counter,
    Questions,
    answers,
    evaluate,
    window_counter,
)
from minilib.recipes.shared.counting_scenes import Asked, DescribedScenes
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


BLIND = "blind to the text"
CONSTANT, MEAN, BLOBS = "best constant", "training mean", "similarity threshold"
LEFT = "error relative to the best constant's"
RECORDED = {
    "C1": Evidence(
        "examined/several",
        f"networks/{BLOBS}/several",
        {
            BLIND: "networks/several classes, blind/several",
            CONSTANT: f"networks/{CONSTANT}/several",
            MEAN: f"networks/{MEAN}/several",
        },
    ),
    "C2": Evidence(
        "colours/named/follows",
        "colours/absent colour/follows",
        {name: f"colours/{name}/follows" for name in ("other colour", "class name")},
    ),
    "C3": Evidence("mae/CounTX", f"mae/{FROZEN}", {}, {LEFT: "left/C3"}),
    "C5": Evidence(
        "examined/several",
        "examined/seen",
        {},
        {"follows on classes of the training": "examined/seen follows"},
    ),
    "reading": Evidence(
        "networks/several classes/several",
        "networks/several classes, blind/several",
        {},
        {LEFT: "left/several classes"},
    ),
    "blind": Evidence(
        "networks/one class/one class",
        "networks/one class, blind/one class",
        {},
        {LEFT: "left/one class"},
    ),
    "words": Evidence("networks/several classes/present", "networks/one class/present"),
    "nothing": Evidence("networks/several classes/absent", "networks/one class/absent"),
}
"""What is recorded of each claim on scenes."""
RECORDED_OF_CELLS = {
    "C1": Evidence(
        "mae/CounTX", f"mae/{CONSTANT}", {name: f"mae/{name}" for name in (BLOBS, MEAN)}
    ),
    "C3": RECORDED["C3"],
}
"""On micrographs."""


def record(
    run: Run[Any, Any],
    claim: str,
    results: Mapping[str, Any],
    *,
    n: int,
    interval: tuple[float, float] | None = None,
) -> None:
    """Record a claim from named results, see ``claims.evidence.record``; on micrographs
    by RECORDED_OF_CELLS."""
    table = RECORDED_OF_CELLS if run.photos else RECORDED
    evidence.record(run, claim, table[claim], results, n=n, interval=interval)


def left(
    rows: Mapping[str, Mapping[str, float]], mae: Mapping[str, float]
) -> dict[str, float]:
    """Return by claim or pair of arms the error of the worse network relative to the
    best constant's; below 1, both have left the trivial answer.

    Args:
        rows: of ``reading.table``.
        mae: errors on what fills the picture, of "CounTX", its control if there is one,
            and the baselines.
    """
    found = reading.left_behind(rows)
    if FROZEN in mae:
        found["C3"] = max(mae["CounTX"], mae[FROZEN]) / mae[CONSTANT]
    return found


def telling_scenes(scenes: DescribedScenes) -> list[int]:
    """Return the scenes whose picture shows that words matter: many of one class in two
    colours, some of another class, and more animals than either."""

    def tells(asked: Sequence[Asked]) -> bool:
        sizes = {a.text: len(a.objects) for a in asked}
        most = len(asked[0].objects)
        colours = [len(a.objects) for a in asked if a.kind == "colour"]
        return (
            most > 4
            and len(colours) == 2
            and min(colours) > 1
            and asked[1].kind == "class"
            and sizes.get("animals", 0) > most
        )

    return [row for row, asked in enumerate(scenes.asked) if tells(asked)]


def three_ways(asked: Sequence[Asked]) -> list[Asked]:
    """Return three of a telling scene's questions: for what fills it, for one colour of
    that, and for the animals."""
    colour = next(a for a in asked if a.kind == "colour")
    return [asked[0], colour, next(a for a in asked if a.text == "animals")]


@torch.no_grad()
def maps(model: CounTX, image: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the densities (T, H, W) of one image (3, H, W) in [0, 1] or uint8,
    for T descriptions."""
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    return model.predict(
        image.to(model.device).expand(len(texts), -1, -1, -1), list(texts)
    ).cpu()


def pictured(model: CounTX, questions: Questions, row: int) -> dict[str, Any]:
    """Return a record of one micrograph's densities, for ``figures.micrograph``.

    Args:
        model: reads the micrograph through windows.
        questions: of ``bccd_questions``, about M micrographs.
        row: 0 ... M - 1.

    Returns:
        what ``packed_densities`` returns, and "asked" and "points": what was asked for,
        and where it is, x y in pixels.
    """
    picture, about = questions.image[row], (questions.about == row).nonzero()[:, 0]
    asked = [questions.asked[i] for i in about.tolist()]
    drawn = [model.density(picture / 255, f"the {name}").cpu() for name in asked]
    true = [questions.points[i].tolist() for i in about.tolist()]
    packed = packed_densities(picture, torch.stack(drawn))
    return packed | {"asked": asked, "points": true}


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


@torch.no_grad()
def text_bias(model: CounTX, texts: Sequence[str]) -> Tensor:
    """Return what the cross-attention of every block adds at every patch for each
    text, (blocks, T, E)."""
    y = model.encode_text(model.tokenize(texts))[:, 0]
    attentions = [block.attn for block in interaction_blocks(model)]
    return torch.stack([attention.proj(attention.wv(y)) for attention in attentions])


def dead_gradients(model: CounTX, batch: Batch) -> dict[str, float]:
    """Return the largest gradient of each part of the first block's cross-attention,
    relative to ``wv``'s."""
    model.zero_grad()
    counting_loss(model, batch)["loss"].backward()
    block = interaction_blocks(model)[0]
    parts = {
        "norm1": block.norm1.weight,
        "wq": block.attn.wq.weight,
        "wk": block.attn.wk.weight,
        "wv": block.attn.wv.weight,
    }
    sizes = {
        name: 0.0 if weight.grad is None else weight.grad.abs().max().item()
        for name, weight in parts.items()
    }
    model.zero_grad()
    return {name: size / sizes["wv"] for name, size in sizes.items()}


@contextmanager
def without_text(model: CounTX, blocks: Sequence[int]) -> Iterator[None]:
    """Silence the cross-attention of some blocks: it adds nothing while this holds."""
    every = interaction_blocks(model)
    hooks = [
        every[i].attn.register_forward_hook(
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
    cases: dict[str, list[int]] = {
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
        asked = required(batch.caption, "caption")
        return model.predict(batch.image, asked).clamp_min(0).sum((1, 2))

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


def tricks_on_answers(
    predicted: Tensor, questions: Questions
) -> dict[str, CountErrors]:
    """Return the errors of answers (N,) with each trick of :func:`tricks` that needs no
    second look at the pictures."""
    variants = {
        "as it comes": predicted,
        "rounded": predicted.round(),
        "never below zero": predicted.clamp_min(0),
    }
    return {
        name: count_errors(answer, questions.counts)
        for name, answer in variants.items()
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
    "pictured",
    "rephrased",
    "telling_scenes",
    "text_bias",
    "three_ways",
    "tricks",
    "tricks_on_answers",
    "without_text",
    "wordings",
]
