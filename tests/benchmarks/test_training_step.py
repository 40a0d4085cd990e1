"""One step of training (forward, loss, backward, AdamW), against open_clip's and
transformers' CLIP.

Same towers, same batch, same captions with a context of 77, same fused AdamW, float32.
Our weights are open_clip's, converted, and the losses are compared first, so that the
three do the same work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import open_clip
import pytest
import torch
from torch import nn

from minilib.models.clip import CLIP, clip_loss
from minilib.recipes.clip.recipe import (
    MINI,
    build,
    clamp_logit_scale,
    contrastive_loss,
    scene_pairs,
)
from minilib.scenes import EmojiScenes, SceneConfig
from minilib.tokenizer import get_tokenizer
from minilib.training import make_optimizer

SIZE, PATCH, EMBED, CONTEXT, VOCABULARY = 64, 8, 128, 77, 49408
IMAGE = dict(width=192, layers=4, heads=3)
TEXT = dict(width=128, layers=4, heads=2)


def open_clip_model() -> nn.Module:
    torch.manual_seed(0)
    vision = dict(
        image_size=SIZE,
        patch_size=PATCH,
        width=IMAGE["width"],
        layers=IMAGE["layers"],
        head_width=64,
    )
    text = dict(context_length=CONTEXT, vocab_size=VOCABULARY, **TEXT)
    return open_clip.model.CLIP(EMBED, vision, text, quick_gelu=True)


def transformers_model() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    def tower(values: dict[str, int], **more: object) -> dict[str, object]:
        return dict(
            hidden_size=values["width"],
            intermediate_size=4 * values["width"],
            num_hidden_layers=values["layers"],
            num_attention_heads=values["heads"],
            **more,
        )

    text = tower(
        TEXT,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        eos_token_id=49407,
        bos_token_id=49406,
    )
    vision = tower(IMAGE, image_size=SIZE, patch_size=PATCH)
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED)
    )


def stepper(
    model: nn.Module, loss: Callable[[], torch.Tensor]
) -> Callable[[], torch.Tensor]:
    """Return one training step with the optimiser that they all share."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> torch.Tensor:
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


@pytest.mark.parametrize(
    "captions", ["scene captions", "captions that fill the context"]
)
def test_training_step(contest, captions):
    n = 16 if contest.quick else 64
    batch = EmojiScenes(SceneConfig(size=SIZE)).batch("pairs", n)
    texts = batch.caption
    if captions != "scene captions":
        texts = [" ".join(["a dog"] * 40)[i % 7 :] for i in range(n)]
    tokens = get_tokenizer(CONTEXT)(texts, truncate=True)
    pixels = (batch.image - 0.45) / 0.27

    theirs = open_clip_model()
    ours = CLIP.from_open_clip(theirs)
    hugging = transformers_model()
    their_loss = open_clip.ClipLoss()

    def loss_of_ours() -> torch.Tensor:
        return clip_loss(*ours(pixels, tokens))

    def loss_of_theirs() -> torch.Tensor:
        image, text, scale = theirs(pixels, tokens)
        return their_loss(image, text, scale)

    def loss_of_hugging() -> torch.Tensor:
        return hugging(input_ids=tokens, pixel_values=pixels, return_loss=True).loss

    torch.testing.assert_close(loss_of_ours(), loss_of_theirs(), rtol=1e-4, atol=1e-4)
    sizes = [
        sum(p.numel() for p in model.parameters()) for model in (ours, theirs, hugging)
    ]
    # transformers keeps no bias where the others keep one
    assert max(sizes) - min(sizes) < 0.001 * max(sizes)
    others = {
        "open_clip": stepper(theirs, loss_of_theirs),
        "transformers": stepper(hugging, loss_of_hugging),
    }
    contest.run(
        f"step of {n} pairs, {captions}",
        stepper(ours, loss_of_ours),
        others,
        n,
        aim=">= 1 x",
    )


@pytest.mark.parametrize("name", MINI)
def test_where_a_step_goes(contest, name):
    """The recipe that trains the shipped checkpoint, phase by phase,
    rendering included."""
    recipe = MINI[name]
    model = build(recipe.model, 0).train()
    optimizer = make_optimizer(model, recipe.train)
    batches = scene_pairs(recipe, 0)
    spent: dict[str, list[float]] = defaultdict(list)
    state = {"step": recipe.train.steps // 2}  # past the simple scenes at the start

    def phase(title: str, work: Callable[[], object]) -> object:
        began = contest.clock()
        result = work()
        spent[title].append(contest.clock() - began)
        return result

    def step() -> None:
        batch = phase("scenes and captions", lambda: batches(state["step"]))
        tokens = phase("tokenizer", lambda: model.tokenize(batch.caption))
        image = phase(
            "image tower",
            lambda: model.encode_image(model.preprocess(batch.image), normalize=True),
        )
        text = phase("text tower", lambda: model.encode_text(tokens, normalize=True))
        loss = phase("loss", lambda: clip_loss(image, text, model.logit_scale.exp()))
        optimizer.zero_grad(set_to_none=True)
        phase("backward", loss.backward)
        phase(
            "AdamW and clipping",
            lambda: (
                nn.utils.clip_grad_norm_(model.parameters(), 1.0),
                optimizer.step(),
            ),
        )
        clamp_logit_scale(model)
        state["step"] += 1

    contest.benchmark.pedantic(step, rounds=3 if contest.quick else 12, warmup_rounds=1)
    assert contrastive_loss(model, batches(0))["loss"].isfinite()
    median = {
        title: sorted(times[1:])[len(times[1:]) // 2] for title, times in spent.items()
    }
    whole = sum(median.values())
    for title, seconds in median.items():
        contest.benchmark.extra_info[f"share of {title}"] = seconds / whole
        aim = "<= 15 %" if title == "scenes and captions" else ""
        cost = f"{1e3 * seconds:.1f} ms"
        contest.report(
            f"{name}, a step of {recipe.batch_size}: {title}",
            cost,
            "whole step",
            f"{1e3 * whole:.1f} ms",
            f"{100 * seconds / whole:.1f} %",
            aim,
        )


def test_tokenizer(contest):
    texts = (
        EmojiScenes(SceneConfig(size=16))
        .batch("pairs", 256 if contest.quick else 1000)
        .caption
    )
    ours, theirs = get_tokenizer(CONTEXT), open_clip.get_tokenizer("ViT-B-32")
    assert torch.equal(ours(texts), theirs(texts))
    contest.run(
        "tokenizer, a caption",
        lambda: ours(texts),
        {"open_clip": lambda: theirs(texts)},
        len(texts),
        "",
    )
