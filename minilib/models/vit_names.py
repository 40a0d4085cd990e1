"""timm's names for the parts of a ViT's block, which many authors use, in ours."""

from __future__ import annotations

BLOCK_NAMES = (
    (r"\.attn\.qkv\.(weight|bias)$", r".attn.in_proj_\1"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
"""Patterns and what replaces them, applied in order, for
``minilib.layers.transformer.ResidualAttentionBlock``."""
