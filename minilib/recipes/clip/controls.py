"""CLIPs whose text tower lacks what is tested: word order, or composition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minilib.models.clip import CLIP, TextConfig

LOOKUP_SIZE = 65_536
"""Rows of the lookup table; captions are assigned to them by a hash."""


class BagOfWords(CLIP):
    """A text is the mean of its words' embeddings, in whatever order (Figure 2)."""

    def _make_reader(self, config: TextConfig, quick_gelu: bool) -> None:
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def text_backbone(self, tokens: Tensor) -> Tensor:
        """Return the mean word of each text, (B, W), start and end left out."""
        tokens, end = self.trim(tokens)
        position = torch.arange(tokens.shape[1], device=tokens.device)
        is_word = (position > 0) & (position < end[:, None])
        is_word = is_word.to(self.token_embedding.weight.dtype)
        total = torch.einsum("bl,blw->bw", is_word, self.token_embedding(tokens))
        return self.ln_final(total / is_word.sum(dim=1, keepdim=True).clamp(min=1))


class LookupTable(CLIP):
    """A text is a free vector of its own: nothing is shared between two captions."""

    def _make_reader(self, config: TextConfig, quick_gelu: bool) -> None:
        self.caption_embedding = nn.Embedding(LOOKUP_SIZE, config.width)
        nn.init.normal_(self.caption_embedding.weight, std=0.02)

    def text_backbone(self, tokens: Tensor) -> Tensor:
        """Return the vector of each caption, (B, W)."""
        rows = caption_hash(*self.trim(tokens)) % LOOKUP_SIZE
        return self.ln_final(self.caption_embedding(rows))


def caption_hash(tokens: Tensor, end: Tensor) -> Tensor:
    """Return one integer per row of tokens (B, L) that depends on the ids up to
    ``end`` (B,) alone."""
    value = torch.zeros_like(end)
    for position, ids in enumerate(tokens.unbind(1)):
        mixed = (value * 1_000_003 + ids + 1) % (2**31 - 1)
        value = torch.where(position <= end, mixed, value)
    return value
