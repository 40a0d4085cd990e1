"""Attention of one set of tokens over another.

Shapes: B sequences, Q queries, L tokens of the memory, W width, H heads, D = W / H.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Multi-head attention of queries over a memory.

    Args:
        width: channels of queries and memory.
        heads: a divisor of the width.
        bias: of the projections of queries, keys and values; the last projection
            always has one.
        dropout: of the result.

    Raises:
        ValueError: the width is not divisible by the heads.
    """

    def __init__(
        self, width: int, heads: int, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"width {width} is not divisible by heads {heads}: choose heads that "
                "divide the width"
            )
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(width, width, bias=bias) for _ in range(3)
        )
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Let queries (B, Q, W) read the memory (B, L, W): (B, Q, W)."""
        q, k, v = self.q_proj(queries), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (
            rearrange(t, "b l (h d) -> b h l d", h=self.heads) for t in (q, k, v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.dropout(self.proj(rearrange(mixed, "b h l d -> b l (h d)")))
