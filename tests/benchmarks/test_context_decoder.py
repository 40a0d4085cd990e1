"""DenseCLIP's context decoder, forward and backward, against ``nn.TransformerDecoder``
with the same weights.

PyTorch's decoder differs in three things, which are set so that both compute the same
function: its projections have biases (zero here), it keeps query, key and value of
self-attention in one matrix, and the projections in and out are added around it.
Outputs are compared before anything is timed.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from minilib.models.denseclip import ContextDecoder

DIM, WIDTH, LAYERS, HEADS = 512, 256, 3, 4


class Equivalent(nn.Module):
    """The same decoder made of PyTorch's layers."""

    def __init__(self, ours: ContextDecoder) -> None:
        super().__init__()
        self.memory_proj, self.text_proj, self.out_proj = (
            ours.memory_proj,
            ours.text_proj,
            ours.out_proj,
        )
        layer = nn.TransformerDecoderLayer(
            WIDTH,
            HEADS,
            4 * WIDTH,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(layer, LAYERS)
        with torch.no_grad():
            for mine, theirs in zip(ours.decoder, self.decoder.layers, strict=True):
                for attention, target in (
                    (mine.self_attn, theirs.self_attn),
                    (mine.cross_attn, theirs.multihead_attn),
                ):
                    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
                    target.in_proj_weight.copy_(
                        torch.cat([p.weight for p in projections])
                    )
                    target.in_proj_bias.zero_()
                    target.out_proj.load_state_dict(attention.proj.state_dict())
                theirs.linear1.load_state_dict(mine.mlp[0].state_dict())
                theirs.linear2.load_state_dict(mine.mlp[3].state_dict())
                for number in (1, 2, 3):
                    getattr(theirs, f"norm{number}").load_state_dict(
                        getattr(mine, f"norm{number}").state_dict()
                    )

    def forward(self, text: Tensor, context: Tensor) -> Tensor:
        return self.out_proj(
            self.decoder(self.text_proj(text), self.memory_proj(context))
        )


@pytest.mark.parametrize("classes", [20, 150])
def test_context_decoder(contest, threads: str, classes: int) -> None:
    batch, cells = (2, 64) if contest.quick else (4, 256)
    torch.manual_seed(0)
    ours = ContextDecoder(DIM, WIDTH, LAYERS, HEADS, dropout=0.0)
    theirs = Equivalent(ours)
    text, context = torch.randn(batch, classes, DIM), torch.randn(batch, 1 + cells, DIM)
    torch.testing.assert_close(
        ours(text, context), theirs(text, context), rtol=1e-3, atol=1e-4
    )

    def step(model: nn.Module) -> None:
        model(text, context).square().mean().backward()

    title = f"context decoder, {classes} classes, {threads}"
    contest.run(
        title,
        lambda: step(ours),
        {"nn.TransformerDecoder": lambda: step(theirs)},
        batch,
        "not slower: >= 1 x",
    )
