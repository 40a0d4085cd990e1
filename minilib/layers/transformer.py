"""The pre-norm transformer of CLIP, batch first.

Parameter names are those of OpenAI's code, so released weights load without renaming.
Shapes: B sequences, L tokens, W width, H heads, D = W / H.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of every model that OpenAI released.

    Weights trained with it are silently wrong under the exact GELU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise, any shape."""
        # The same function written with silu: its backward keeps one tensor
        # instead of two.
        return F.silu(1.702 * x) / 1.702


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameters of ``torch.nn.MultiheadAttention``.

    ``in_proj_weight`` (3W, W) stacks the query, key and value matrices in this order.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"width {width} is not divisible by heads {heads}: choose heads that "
                "divide the width"
            )
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(
            packed, "b l (three h d) -> three b h l d", three=3, h=self.heads
        )
        return q, k, v

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """Mix the tokens of x (B, L, W); with ``causal`` a token sees itself and
        those before it."""
        q, k, v = self._queries_keys_values(x)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(rearrange(mixed, "b h l d -> b l (h d)"))

    def at(self, x: Tensor, position: Tensor, causal: bool = False) -> Tensor:
        """Return ``forward(x, causal)`` at one ``position`` (B,) of each
        sequence: (B, W).

        The other positions are not computed.
        """
        width = x.shape[-1]
        query = x[torch.arange(len(x), device=x.device), position]
        q = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
        kv = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        q = rearrange(q, "b (h d) -> b h 1 d", h=self.heads)
        k, v = rearrange(
            kv, "b l (two h d) -> two b h l d", two=2, h=self.heads
        ).unbind()
        visible = None
        if causal:
            visible = torch.arange(x.shape[1], device=x.device) <= position[:, None]
            visible = rearrange(visible, "b l -> b 1 1 l")
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.out_proj(rearrange(mixed, "b h 1 d -> b (h d)"))

    def values(self, x: Tensor) -> Tensor:
        """Return what each token of x (B, L, W) says when it attends to itself
        alone, (B, L, W)."""
        width = x.shape[-1]
        return self.out_proj(
            F.linear(
                x, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :]
            )
        )

    def weights(self, x: Tensor, causal: bool = False) -> Tensor:
        """Return the attention matrices of x (B, L, W): (B, H, L, L), rows are
        queries and sum to one."""
        q, k, _ = self._queries_keys_values(x)
        scores = einsum(q, k, "b h i d, b h j d -> b h i j") * q.shape[-1] ** -0.5
        if causal:
            future = torch.ones(
                scores.shape[-2:], dtype=torch.bool, device=x.device
            ).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        return scores.softmax(dim=-1)


class MLP(nn.Sequential):
    """Widening, activation, narrowing: the parts of a block's MLP by name."""

    c_fc: nn.Linear
    c_proj: nn.Linear


class ResidualAttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) with four times
    the width inside."""

    def __init__(
        self, width: int, heads: int, quick_gelu: bool = True, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = MLP(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )
        self.ln_2 = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """Transform x (B, L, W) -> (B, L, W)."""
        x = x + self.attn(self.ln_1(x), causal)
        return x + self.mlp(self.ln_2(x))

    def at(self, x: Tensor, position: Tensor, causal: bool = False) -> Tensor:
        """Return ``forward(x, causal)`` at ``position`` (B,) only: (B, W)."""
        pooled = x[torch.arange(len(x), device=x.device), position]
        pooled = pooled + self.attn.at(self.ln_1(x), position, causal)
        return pooled + self.mlp(self.ln_2(pooled))

    def without_mixing(self, x: Tensor) -> Tensor:
        """Transform x (B, L, W), each token attending to itself alone
        (MaskCLIP's value path)."""
        x = x + self.attn.values(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

    def attention(self, x: Tensor, causal: bool = False) -> Tensor:
        """Return the attention matrices (B, H, L, L) that the block
        applies to x (B, L, W)."""
        return self.attn.weights(self.ln_1(x), causal)


class Transformer(nn.Module):
    """A stack of residual attention blocks."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        quick_gelu: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        blocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, quick_gelu, norm_eps)
            for _ in range(layers)
        )
        # To the type checker, a ModuleList holds modules of any kind.
        self.resblocks = cast("Sequence[ResidualAttentionBlock]", blocks)

    def forward(
        self, x: Tensor, causal: bool = False, at: Tensor | None = None
    ) -> Tensor:
        """Transform x (B, L, W) -> (B, L, W).

        With ``at`` (B,) only the output at that position of each sequence is returned,
        (B, W). The last block then computes one query a sequence, which gives the same
        numbers for a fraction of its cost.
        """
        if at is None:
            for block in self.resblocks:
                x = block(x, causal)
            return x
        for block in self.resblocks[:-1]:
            x = block(x, causal)
        return self.resblocks[-1].at(x, at, causal)

    def without_last_mixing(self, x: Tensor) -> Tensor:
        """Transform x (B, L, W) with all blocks, the last one ``without_mixing``."""
        for block in self.resblocks[:-1]:
            x = block(x)
        return self.resblocks[-1].without_mixing(x)

    def intermediates(self, x: Tensor, causal: bool = False) -> dict[str, list[Tensor]]:
        """Return ``blocks``, each block's output (B, L, W), and ``attention``, its
        matrices (B, H, L, L)."""
        blocks, attention = [], []
        for block in self.resblocks:
            attention.append(block.attention(x, causal))
            x = block(x, causal)
            blocks.append(x)
        return {"blocks": blocks, "attention": attention}
