"""Prompts that are learned: vectors in the place of words, between the start of a text
and a class name.

Shapes: C prompts (1, or one per image), N learned vectors, K class names, L tokens, W
width, E joint dimension.
"""

from __future__ import annotations

from typing import Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from minilib.layers.transformer import Transformer


def learned_contexts(length: int, width: int) -> nn.Parameter:
    """Return N = ``length`` context vectors shared by all classes, (1, N, W), as
    DenseCLIP initialises them.

    A standard normal cut at +-2. That is large beside CLIP's word vectors: at the
    start, a learned prompt speaks louder than the name behind it.
    """
    return nn.Parameter(
        nn.init.trunc_normal_(torch.empty(1, length, width), std=1.0, a=-2.0, b=2.0)
    )


class TextTower(Protocol):
    """The parts that CLIP's text tower has."""

    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    transformer: Transformer
    ln_final: nn.LayerNorm
    text_projection: nn.Parameter


def encode_prompted(tower: TextTower, tokens: Tensor, contexts: Tensor) -> Tensor:
    """Encode K names behind learned contexts (CoOp, arXiv 2109.01134):
    ``[start, p_1 ... p_N, name, end]``.

    The feature is read at the end token, which the contexts moved N places to the
    right. Gradients reach the contexts through the tower, also where the tower
    itself is frozen.

    Args:
        tower: a CLIP, or another module with the parts of its text tower.
        tokens: (K, L) ids ``[start, name, end, padding]``; the end has the highest id.
        contexts: (C, N, W); C = 1 for one prompt, C = B for a prompt per image.

    Returns:
        (C, K, E), not normalised.

    Raises:
        ValueError: names and contexts together are longer than the tower's context, or
            of another width.
    """
    positions = tower.positional_embedding
    prompts, added, width = contexts.shape
    length = added + tokens.shape[1]
    if width != positions.shape[1]:
        raise ValueError(
            f"contexts of width {width} do not fit a text tower of width "
            f"{positions.shape[1]}: make them that wide"
        )
    if length > len(positions):
        raise ValueError(
            f"names of {tokens.shape[1]} tokens behind {added} contexts make "
            f"{length}, but the text tower reads {len(positions)}: shorten the names "
            "or take fewer contexts"
        )
    words = repeat(tower.token_embedding(tokens), "k l w -> c k l w", c=prompts)
    learned = repeat(contexts, "c n w -> c k n w", k=len(tokens))
    x = (
        torch.cat([words[:, :, :1], learned, words[:, :, 1:]], dim=2)
        + positions[:length]
    )
    end = repeat(tokens.argmax(dim=1) + added, "k -> (c k)", c=prompts)
    pooled = tower.transformer(
        rearrange(x, "c k l w -> (c k) l w"), causal=True, at=end
    )
    features = tower.ln_final(pooled) @ tower.text_projection
    return rearrange(features, "(c k) e -> c k e", c=prompts)
