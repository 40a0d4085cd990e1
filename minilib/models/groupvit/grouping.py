"""The grouping block: learned group tokens gather the tokens of a stage into segments
(section 3.2 of GroupViT).

Parameter names are those of the released checkpoints. Shapes: B images, N tokens,
S group tokens, G groups that come out, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor, nn

from minilib.layers.cross_attention import CrossAttention
from minilib.models.groupvit.config import AssignConfig


class Assignment(NamedTuple):
    """Which token goes to which group."""

    share: Tensor
    """(B, G, N): how much of each token goes to each group, as used: one-hot over the
    groups if the assignment is hard. Its columns sum to 1."""
    logits: Tensor
    """(B, G, N), before noise and softmax."""

    @property
    def soft(self) -> Tensor:
        """(B, G, N): the softmax over groups without noise, what segmentation reads."""
        return self.logits.softmax(dim=-2)

    @property
    def counts(self) -> Tensor:
        """(B, G): tokens in each group; 0 for one that is empty."""
        return self.share.sum(dim=-1)


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw from Gumbel(0, 1) in the shape of ``like``, on its device, in float32.

    The maximum of logits with this noise falls on a group with the probability that
    the softmax gives it (equation 2).

    Args:
        like: gives shape and device.
        generator: of that device; None takes torch's own.
    """
    draws = torch.empty(like.shape, dtype=torch.float32, device=like.device)
    return -draws.exponential_(generator=generator).log()


def straight_through(soft: Tensor) -> Tensor:
    """Return exactly one-hot columns whose gradient is that of ``soft`` (B, G, N)
    (equation 4).

    The difference of ``soft`` and its copy is 0 going forward; going backward the copy
    and the one-hot are constants.
    """
    winner = soft.argmax(dim=-2, keepdim=True)
    hard = torch.zeros_like(soft).scatter_(-2, winner, 1.0)
    return hard + (soft - soft.detach()) if soft.requires_grad else hard


def assign(
    logits: Tensor, noise: Tensor | None = None, tau: float = 1.0, hard: bool = True
) -> Tensor:
    """Return the share (B, G, N) of each token that each group gets (equations 2, 4).

    Args:
        logits: (B, G, N).
        noise: of Gumbel(0, 1), in training; None for none, and then without ``tau``.
        tau: temperature of the noisy softmax.
        hard: one group a token.
    """
    noisy = logits if noise is None else (logits + noise) / tau
    soft = noisy.softmax(dim=-2)
    return straight_through(soft) if hard else soft


class AssignAttention(nn.Module):
    """Attention the other way round: not each query shares out its attention over the
    tokens, but each token is given to one query (equations 2 to 5).

    A single head. What a group gets is divided by the number of its tokens plus
    ``assign_eps``, inside the graph: the paper divides by the count, the code adds 1.
    """

    def __init__(self, width: int, config: AssignConfig) -> None:
        super().__init__()
        self.config, self.scale = config, width**-0.5
        self.q_proj, self.k_proj, self.v_proj, self.proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def logits(self, groups: Tensor, tokens: Tensor) -> Tensor:
        """Return how well groups (B, G, C) and tokens (B, N, C) agree: (B, G, N)."""
        q, k, scale = self.q_proj(groups), self.k_proj(tokens), self.scale
        if self.config.cosine_scale is not None:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            scale = self.config.cosine_scale
        return einsum(scale * q, k, "b g c, b n c -> b g n")

    def noise(
        self, logits: Tensor, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Draw the noise of a training step; None in evaluation, or if there is no
        noise in this kind of assignment."""
        noisy = self.training and self.config.hard and self.config.gumbel
        return gumbel_noise(logits, generator) if noisy else None

    def forward(
        self,
        groups: Tensor,
        tokens: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Assignment]:
        """Gather tokens (B, N, C) into groups: (B, G, C), and who went where.

        Args:
            groups: (B, G, C), one query a group.
            tokens: (B, N, C).
            noise: (B, G, N) of Gumbel(0, 1); None draws it in training.
            generator: what it is drawn from.
        """
        config, logits = self.config, self.logits(groups, tokens)
        noise = self.noise(logits, generator) if noise is None else noise
        share = assign(logits, noise, config.gumbel_tau, config.hard)
        share = share.to(logits.dtype)
        weights = share
        if not config.sum_assign:
            weights = share / (share.sum(dim=-1, keepdim=True) + config.assign_eps)
        gathered = weights @ self.v_proj(tokens)
        return self.proj(gathered), Assignment(share, logits)


class Perceptron(nn.Module):
    """Linear, exact GELU, linear, over the last axis."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (..., width) -> (..., out)."""
        return self.fc2(F.gelu(self.fc1(x)))


class TokenMixer(Perceptron):
    """The same over the tokens (MLP-Mixer): every new token is a mixture of all, alike
    in all channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (B, S, C) -> (B, G, C)."""
        return super().forward(x.mT).mT


class CrossAttentionBlock(nn.Module):
    """Queries read the tokens, then pass an MLP; the norm comes last, and there is none
    before the attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, 4 * width, width)
        self.norm_post = nn.LayerNorm(width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Let queries (B, G, C) read tokens (B, N, C): (B, G, C)."""
        x = queries + self.attn(queries, tokens)
        return self.norm_post(x + self.mlp(self.norm2(x)))


def change_width(width: int, out: int) -> nn.Module:
    """Return what brings a residual to another width; nothing where it stays."""
    if width == out:
        return nn.Identity()
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out, bias=False))


class GroupingBlock(nn.Module):
    """Merge N tokens into G segments (Figure 2 b).

    The query of a segment is not the group token itself: the S group tokens are mixed
    into G, and read the tokens once more, before the tokens are shared out among them.

    Args:
        width: channels C of tokens and group tokens.
        heads: of the cross-attention; the assignment has a single one.
        group_tokens: S.
        groups: G.
        config: how tokens are assigned.
        out_width: channels of the segments, by default C.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        group_tokens: int,
        groups: int,
        config: AssignConfig | None = None,
        out_width: int | None = None,
    ) -> None:
        super().__init__()
        out_width = out_width or width
        self.norm_tokens, self.norm_post_tokens = (
            nn.LayerNorm(width) for _ in range(2)
        )
        self.norm_x, self.norm_new_x = (nn.LayerNorm(width) for _ in range(2))
        self.mlp_inter = TokenMixer(group_tokens, width // 2, groups)
        self.pre_assign_attn = CrossAttentionBlock(width, heads)
        self.assign = AssignAttention(width, config or AssignConfig())
        self.mlp_channels = Perceptron(width, 4 * width, out_width)
        self.reduction = change_width(width, out_width)

    def forward(
        self,
        tokens: Tensor,
        group_tokens: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Assignment]:
        """Return segments (B, G, C') of tokens (B, N, C), and who went where.

        Args:
            tokens: (B, N, C).
            group_tokens: (B, S, C), as the stage's blocks left them.
            noise: (B, G, N) of Gumbel(0, 1); None draws it in training.
            generator: what it is drawn from.
        """
        tokens = self.norm_x(tokens)
        queries = self.mlp_inter(self.norm_tokens(group_tokens))
        queries = self.pre_assign_attn(self.norm_post_tokens(queries), tokens)
        gathered, assignment = self.assign(queries, tokens, noise, generator)
        x = gathered + queries
        return self.reduction(x) + self.mlp_channels(self.norm_new_x(x)), assignment
