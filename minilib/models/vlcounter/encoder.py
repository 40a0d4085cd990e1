"""VLCounter's encoder: CLIP's frozen tower, prompted with what to count (SPT).

Shapes: B images of H x W pixels, h x w patches, L tokens, width C, joint dimension E, M
prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from minilib.layers.transformer import ResidualAttentionBlock
from minilib.models.clip import VisionTransformer


class SemanticPrompts(nn.Module):
    """Prompt tokens for every layer, shifted by the name of what is counted (SPT).

    The paper adds the projected text to the prompts, P_l = [p_1 + T, ..., p_M + T]; the
    code first passes the prompts through a projection of their own. Both projections
    are shared by all layers.
    """

    def __init__(
        self,
        width: int,
        embed_dim: int,
        tokens: int,
        layers: int,
        semantic: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        bound = (6 / (3 * 16 * 16 + width)) ** 0.5
        self.embeddings = nn.Parameter(
            torch.empty(layers, tokens, width).uniform_(-bound, bound)
        )
        self.prompt_proj = nn.Linear(width, width)
        nn.init.kaiming_normal_(self.prompt_proj.weight, a=0, mode="fan_out")
        self.text_proj = nn.Linear(embed_dim, width) if semantic else None
        if self.text_proj is not None:
            nn.init.kaiming_normal_(self.text_proj.weight, a=0, mode="fan_out")
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, layer: int, text: Tensor) -> Tensor:
        """Return the prompts of ``layer`` for texts (B, E): (B, M, C)."""
        tokens = self.dropout(
            repeat(
                self.prompt_proj(self.embeddings[layer]), "m c -> b m c", b=len(text)
            )
        )
        if self.text_proj is None:
            return tokens
        return tokens + self.dropout(rearrange(self.text_proj(text), "b c -> b 1 c"))


def value_path(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Apply the altered last block to x (B, L, C): x + values(norm(x)), without mixing
    and without its MLP.

    MaskCLIP's idea: what a patch says of itself lies nearer to the words than what it
    gathered from everywhere.
    """
    return x + block.attn.values(block.ln_1(x))


def encode_image(
    visual: VisionTransformer,
    prompts: SemanticPrompts | None,
    pixels: Tensor,
    text: Tensor,
    taps: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    """Run the frozen image tower, with prompts where there are any (section on SPT).

    Prompts are placed between the class token and the patches; before each prompted
    layer, fresh ones replace those that the layer before has changed. The stored
    positions are resized to the grid (bilinear). In the authors' prompted encoders the
    class token gets its embedding twice, which is kept, since the released weights were
    trained so.

    Args:
        visual: CLIP's image tower.
        prompts: of :class:`SemanticPrompts`; None leaves the tower as it is, but
            for its last block.
        pixels: (B, 3, H, W), normalised.
        text: (B, E) unit rows.
        taps: blocks whose outputs are wanted.

    Returns:
        the outputs of the blocks ``taps``, (B, C, h, w) each, and the joint-space
        features (B, E, h, w); all of unit length in every patch.
    """
    patches = visual.conv1(pixels)
    x, rows = visual.tokens(patches, "bilinear", prompts is not None), patches.shape[-2]
    layers = 0 if prompts is None else len(prompts.embeddings)
    tokens = 0 if prompts is None else prompts.embeddings.shape[1]
    tapped = {}

    def as_map(x: Tensor) -> Tensor:
        return F.normalize(
            rearrange(x[:, 1 + tokens :], "b (h w) c -> b c h w", h=rows), dim=1
        )

    for number, block in enumerate(visual.transformer.resblocks):
        if prompts is not None and number < layers:
            rest = x[:, 1:] if number == 0 else x[:, 1 + tokens :]
            x = torch.cat([x[:, :1], prompts(number, text), rest], dim=1)
        last = number == len(visual.transformer.resblocks) - 1
        x = value_path(block, x) if last else block(x)
        if number in taps:
            tapped[number] = as_map(x)
    x = x if prompts is None else prompts.norm(x)
    return [tapped[number] for number in taps], as_map(visual.ln_post(x) @ visual.proj)
