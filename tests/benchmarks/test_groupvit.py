"""GroupViT forward and one step of training, against transformers' GroupViTModel.

The released configuration, the same weights (theirs, converted), the same batch and the
same captions with a context of 77; the logits are compared first, so that both do the
same work. Theirs has no multi-label loss and skips no blocks, so ours does neither.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from minilib.models.groupvit import GroupViT, total_loss
from minilib.scenes import EmojiScenes, SceneConfig
from minilib.tokenizer import get_tokenizer

SIZE, CONTEXT = 224, 77


def transformers_model() -> nn.Module:
    from transformers import GroupViTConfig, GroupViTModel

    torch.manual_seed(0)
    # The ids of the start and the end are those of the tokenizer.
    text = dict(bos_token_id=49406, eos_token_id=49407)
    return GroupViTModel(GroupViTConfig(text_config=text))


def inputs(contest, captions: str) -> tuple[Tensor, Tensor]:
    """Return pixels (n, 3, H, W) and token ids (n, 77)."""
    n = 2 if contest.quick else 8
    texts = EmojiScenes(SceneConfig(size=32)).batch("pairs", n).caption
    if captions != "scene captions":
        texts = [" ".join(["a dog"] * 40)[i % 7 :] for i in range(n)]
    tokens = get_tokenizer(CONTEXT)(texts, truncate=True)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, SIZE, SIZE, generator=generator), tokens


def pair(pixels: Tensor, tokens: Tensor) -> tuple[GroupViT, nn.Module]:
    """Return ours and theirs, after checking that their logits agree."""
    theirs = transformers_model().eval()
    ours = GroupViT.from_transformers(theirs)
    with torch.no_grad():
        output = ours(pixels, tokens)
        unit = [nn.functional.normalize(x, dim=1) for x in (output.image, output.text)]
        wanted = theirs(input_ids=tokens, pixel_values=pixels).logits_per_image
    logits = output.multiplier * unit[0] @ unit[1].T
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)
    return ours, theirs


CAPTIONS = pytest.mark.parametrize(
    "captions", ["scene captions", "captions that fill the context"]
)


@CAPTIONS
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


@CAPTIONS
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
