"""GroupViT forward and one step of training, against transformers' GroupViTModel.

The released configuration, the same weights (theirs, converted), the same batch and the
same captions with a context of 77; the logits are compared first, so that both do the
same work. Theirs skips no blocks, so ours does not. It has no multi-label loss: in the
published step, with three prompts a caption, its features go through our loss.

Most of the image tower's time goes into matrix products that both must do. What is
gained is the attention, and the text tower's places behind the last word.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from minilib.models.groupvit import (
    GroupViT,
    GroupViTOutput,
    noun_prompts,
    nouns,
    total_loss,
)
from minilib.models.groupvit.prompts import training_templates
from minilib.scenes import EmojiScenes, SceneConfig
from minilib.tokenizer import get_tokenizer

SIZE, CONTEXT = 224, 77
SHORT, LONG = "scene captions", "captions that fill the context"
PROMPTED = "scene captions and 3 prompts"


def transformers_model() -> nn.Module:
    from transformers import GroupViTConfig, GroupViTModel

    torch.manual_seed(0)
    # The ids of the start and the end are those of the tokenizer.
    text = dict(bos_token_id=49406, eos_token_id=49407)
    return GroupViTModel(GroupViTConfig(text_config=text))


def inputs(contest, captions: str) -> tuple[Tensor, Tensor]:
    """Return pixels (n, 3, H, W) and token ids (n, 77), or (n, 4, 77) with prompts."""
    n = 2 if contest.quick else 8
    batch = EmojiScenes(SceneConfig(size=32)).batch("pairs", n)
    texts, tokenizer = batch.caption, get_tokenizer(CONTEXT)
    if captions == LONG:
        texts = [" ".join(["a dog"] * 40)[i % 7 :] for i in range(n)]
    if captions == PROMPTED:
        found = nouns.of_phrases(texts, batch.phrases)
        rows = noun_prompts(texts, found, training_templates())
        texts = [text for row in rows for text in row]
    tokens = tokenizer(texts, truncate=True)
    if captions == PROMPTED:
        tokens = rearrange(tokens, "(b k) l -> b k l", b=n)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, SIZE, SIZE, generator=generator), tokens


def pair(pixels: Tensor, tokens: Tensor) -> tuple[GroupViT, nn.Module]:
    """Return ours and theirs, after checking that their logits agree."""
    theirs = transformers_model().eval()
    ours = GroupViT.from_transformers(theirs)
    tokens = tokens if tokens.ndim == 2 else tokens[:, 0]
    with torch.no_grad():
        output = ours(pixels, tokens)
        unit = [nn.functional.normalize(x, dim=1) for x in (output.image, output.text)]
        wanted = theirs(input_ids=tokens, pixel_values=pixels).logits_per_image
    logits = output.multiplier * unit[0] @ unit[1].T
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)
    return ours, theirs


@pytest.mark.parametrize("captions", [SHORT, LONG])
def test_forward(contest, threads, captions):
    pytest.importorskip("transformers")
    pixels, tokens = inputs(contest, captions)
    ours, theirs = pair(pixels, tokens)

    def forward(call: Callable[[], object]) -> Callable[[], object]:
        return torch.inference_mode()(call)

    contest.run(
        f"GroupViT forward, {captions}, {threads}",
        forward(lambda: ours(pixels, tokens)),
        {
            "transformers": forward(
                lambda: theirs(input_ids=tokens, pixel_values=pixels)
            )
        },
        len(pixels),
        aim=">= 1.5 x",
    )


def stepper(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return one training step with the optimiser that both share."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


@pytest.mark.parametrize("captions", [SHORT, LONG])
def test_training_step(contest, threads, captions):
    pytest.importorskip("transformers")
    pixels, tokens = inputs(contest, captions)
    ours, theirs = pair(pixels, tokens)

    def loss_of_theirs() -> Tensor:
        return theirs(input_ids=tokens, pixel_values=pixels, return_loss=True).loss

    contest.run(
        f"GroupViT step of {len(pixels)} pairs, {captions}, {threads}",
        stepper(ours, lambda: total_loss(ours(pixels, tokens))["loss"]),
        {"transformers": stepper(theirs, loss_of_theirs)},
        len(pixels),
        aim=">= 1.5 x",
    )


def test_published_training_step(contest, threads):
    pytest.importorskip("transformers")
    pixels, tokens = inputs(contest, PROMPTED)
    ours, theirs = pair(pixels, tokens)
    # As many temperatures as the paper has, for both.
    ours.multi_label_logit_scale = nn.Parameter(ours.logit_scale.detach().clone())
    theirs.multi_label_logit_scale = nn.Parameter(ours.logit_scale.detach().clone())

    def output_of_theirs() -> GroupViTOutput:
        image = theirs.get_image_features(pixels).pooler_output
        flat = theirs.get_text_features(tokens.flatten(0, 1)).pooler_output
        texts = rearrange(flat, "(b k) e -> b k e", b=len(pixels))
        scale, other = theirs.logit_scale.exp(), theirs.multi_label_logit_scale.exp()
        return GroupViTOutput(image, texts[:, 0], texts[:, 1:], scale, other, [])

    contest.run(
        f"GroupViT step of {len(pixels)} pairs, {PROMPTED}, {threads}",
        stepper(ours, lambda: total_loss(ours(pixels, tokens))["loss"]),
        {
            "transformers": stepper(
                theirs, lambda: total_loss(output_of_theirs())["loss"]
            )
        },
        len(pixels),
        aim=">= 1.5 x",
    )
