"""The grouping block's properties, and its numbers where they can be had by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.models.groupvit import (
    AssignAttention,
    AssignConfig,
    Assignment,
    GroupingBlock,
    TokenMixer,
    assign,
    gumbel_noise,
    straight_through,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(width: int, **values: object) -> AssignAttention:
    """Return an assignment whose four projections do nothing."""
    attention = AssignAttention(width, AssignConfig(**values))
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.proj):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return attention.eval()


def block(**values: object) -> GroupingBlock:
    torch.manual_seed(0)
    return GroupingBlock(16, 2, 6, 4, AssignConfig(**values)).eval()


# --- two groups, three tokens, by hand ------------------------------------------------

# Tokens 1 and 3 go to the second group, token 2 to the first.
TOKENS = torch.tensor([[[1.0, 10, 0, 3], [5, 0, 2, 1], [2, 20, 0, 4]]])
GROUPS = torch.tensor([[[1.0, 0, 9, 0], [0, 1, 0, 0]]])
FIRST, SECOND = TOKENS[0, 1], TOKENS[0, 0] + TOKENS[0, 2]


@pytest.mark.parametrize(
    ("values", "divisors"),
    [
        ({}, (2, 3)),
        ({"assign_eps": 1e-9}, (1, 2)),
        ({"sum_assign": True}, (1, 1)),
    ],
)
def test_two_groups_of_three_tokens(
    values: dict[str, object], divisors: tuple[int, int]
) -> None:
    out, assignment = plain(4, **values)(GROUPS, TOKENS)
    assert assignment.share.tolist() == [[[0, 1, 0], [1, 0, 1]]]
    assert assignment.counts.tolist() == [[1, 2]]
    wanted = torch.stack([FIRST / divisors[0], SECOND / divisors[1]])
    torch.testing.assert_close(out[0], wanted)


def test_logits_are_dot_products_over_the_root_of_the_width() -> None:
    _, assignment = plain(4)(GROUPS, TOKENS)
    torch.testing.assert_close(assignment.logits[0], GROUPS[0] @ TOKENS[0].T / 2)
    torch.testing.assert_close(assignment.soft, assignment.logits.softmax(dim=1))


def test_cosine_logits_do_not_depend_on_lengths() -> None:
    attention = plain(4, cosine_scale=12.0)
    _, assignment = attention(GROUPS, TOKENS)
    wanted = 12 * F.normalize(GROUPS[0], dim=-1) @ F.normalize(TOKENS[0], dim=-1).T
    torch.testing.assert_close(assignment.logits[0], wanted)
    torch.testing.assert_close(
        attention(7 * GROUPS, TOKENS / 3)[1].logits, assignment.logits
    )


def test_a_soft_assignment_gives_every_group_a_share_of_every_token() -> None:
    out, assignment = plain(4, hard=False)(GROUPS, TOKENS)
    share = (GROUPS[0] @ TOKENS[0].T / 2).softmax(dim=0)
    torch.testing.assert_close(assignment.share[0], share)
    wanted = share @ TOKENS[0] / (share.sum(dim=1, keepdim=True) + 1)
    torch.testing.assert_close(out[0], wanted)


# --- one-hot forward, soft backward ---------------------------------------------------


def test_straight_through_is_one_hot_to_the_last_bit() -> None:
    soft = noise(2, 5, 9).softmax(dim=1).requires_grad_()
    hard = straight_through(soft)
    assert hard.unique().tolist() == [0, 1] and (hard.sum(dim=1) == 1).all()
    assert (hard.argmax(dim=1) == soft.argmax(dim=1)).all()


def test_gradient_is_that_of_the_softmax_of_noisy_logits() -> None:
    """d loss / d z_g = p_g (w_g - sum_h p_h w_h) / tau, p the softmax of (z + n) / tau,
    for the loss sum_g w_g hard_g."""
    logits, gumbel, weight = (noise(1, 3, 2, seed=seed) for seed in range(3))
    tau = 0.5
    logits.requires_grad_()
    share = assign(logits, gumbel, tau)
    (weight * share).sum().backward()
    p = ((logits.detach() + gumbel) / tau).softmax(dim=1)
    by_hand = p * (weight - (p * weight).sum(dim=1, keepdim=True)) / tau
    torch.testing.assert_close(logits.grad, by_hand)


def test_gradient_passes_through_the_count_too() -> None:
    """With one channel a group's output is sum(A v) / (sum(A) + 1), so a token's share
    has the gradient (v_n - out) / (count + 1) on it."""
    attention = plain(1)
    tokens = torch.tensor([[[1.0], [2.0], [-1.0]]], requires_grad=True)
    groups = torch.tensor([[[3.0], [-2.0]]])
    caught = []
    attention.logits, logits = (
        lambda g, t: caught.append(logits(g, t)) or caught[-1],
        attention.logits,
    )
    out, assignment = attention(groups, tokens)
    caught[0].retain_grad()
    out[0, 0, 0].backward()
    p, v = caught[0].softmax(dim=1)[0].detach(), tokens.detach()[0, :, 0]
    count, value = assignment.counts[0, 0].detach(), out[0, 0, 0].detach()
    on_share = (v - value) / (count + 1)
    by_hand = torch.stack([p[0] * p[1] * on_share, -p[0] * p[1] * on_share])
    torch.testing.assert_close(caught[0].grad[0], by_hand)


def test_a_small_divisor_makes_large_gradients() -> None:
    """Of an empty group: its output is 0, but tokens that it does not own pull it."""
    norms = {}
    for eps in (1.0, 1e-6):
        attention = plain(4, assign_eps=eps)
        groups = torch.cat([GROUPS, -torch.ones(1, 1, 4)], dim=1).requires_grad_()
        out, assignment = attention(groups, TOKENS)
        assert assignment.counts[0, 2] == 0
        out[0, 2].sum().backward()
        norms[eps] = groups.grad.norm().item()
    assert norms[1e-6] > 1e5 * norms[1.0] > 0


# --- noise ----------------------------------------------------------------------------


def test_noise_is_drawn_from_the_generator_in_training_alone() -> None:
    attention = plain(4)
    groups, tokens = noise(2, 3, 4), noise(2, 50, 4, seed=1)

    def share(seed: int, training: bool = True) -> Tensor:
        attention.train(training)
        generator = torch.Generator().manual_seed(seed)
        return attention(groups, tokens, generator=generator)[1].share

    assert (share(0) == share(0)).all() and (share(0) != share(1)).any()
    assert (share(0, training=False) == share(1, training=False)).all()


@pytest.mark.parametrize("values", [{"hard": False}, {"gumbel": False}])
def test_without_noise_training_assigns_as_evaluation_does(
    values: dict[str, object],
) -> None:
    attention = plain(4, **values)
    groups, tokens = noise(2, 3, 4), noise(2, 50, 4, seed=1)
    assert (
        attention.train()(groups, tokens)[1].share
        == attention.eval()(groups, tokens)[1].share
    ).all()


def test_noise_that_is_given_is_used() -> None:
    attention = plain(4).train()
    bias = torch.zeros(1, 2, 3)
    bias[:, 0] = 1e4
    assert attention(GROUPS, TOKENS, noise=bias)[1].share[:, 0].eq(1).all()


def test_noise_is_gumbel() -> None:
    """Mean Euler's constant, variance pi^2 / 6; and with it, the winner is distributed
    as the softmax."""
    generator = torch.Generator().manual_seed(0)
    draws = gumbel_noise(torch.empty(200_000), generator)
    assert draws.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert draws.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)
    logits = torch.tensor([1.0, 0.0, -1.0])[:, None].expand(3, 100_000)
    won = assign(logits, gumbel_noise(logits, generator)).mean(dim=-1)
    torch.testing.assert_close(won, logits[:, 0].softmax(0), atol=0.01, rtol=0)


def test_temperature_goes_from_one_hot_to_uniform() -> None:
    logits, gumbel = noise(1, 4, 200), gumbel_noise(noise(1, 4, 200))
    largest = [
        assign(logits, gumbel, tau, hard=False).amax(dim=1).mean().item()
        for tau in (0.01, 1.0, 100.0)
    ]
    assert largest[0] > 0.97 > largest[1] > 0.5 > largest[2] > 0.25
    with pytest.raises(ValueError, match="gumbel_tau=0"):
        AssignConfig(gumbel_tau=0)


# --- the block ------------------------------------------------------------------------


def test_a_group_without_tokens_still_is_a_segment() -> None:
    model = block()
    nn.init.constant_(model.assign.proj.bias, 0.3)
    tokens, groups = noise(1, 1, 16), noise(1, 6, 16, seed=1)
    segments, assignment = model(tokens, groups)
    empty = assignment.counts[0] == 0
    assert empty.sum() == 3 and segments.isfinite().all()
    queries = model.pre_assign_attn(
        model.norm_post_tokens(model.mlp_inter(model.norm_tokens(groups))),
        model.norm_x(tokens),
    )
    x = queries + 0.3  # the projection of nothing is its bias
    wanted = x + model.mlp_channels(model.norm_new_x(x))
    torch.testing.assert_close(segments[0, empty], wanted[0, empty])


def test_order_of_tokens_does_not_count() -> None:
    model, tokens, groups = block(), noise(2, 20, 16), noise(2, 6, 16, seed=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    segments, assignment = model(tokens, groups)
    permuted, again = model(tokens[:, order], groups)
    torch.testing.assert_close(permuted, segments)
    assert (again.share == assignment.share[:, :, order]).all()


def test_images_do_not_see_each_other() -> None:
    model, tokens, groups = block(), noise(3, 20, 16), noise(3, 6, 16, seed=1)
    segments, _ = model(tokens, groups)
    torch.testing.assert_close(model(tokens[1:2], groups[1:2])[0], segments[1:2])


def test_every_token_goes_somewhere() -> None:
    _, assignment = block()(noise(2, 20, 16), noise(2, 6, 16, seed=1))
    assert (assignment.share.sum(dim=1) == 1).all()
    assert (assignment.counts.sum(dim=1) == 20).all()


def test_mixer_mixes_tokens_alike_in_all_channels() -> None:
    mixer, x = TokenMixer(6, 8, 4), noise(2, 6, 16)
    out = mixer(x)
    assert out.shape == (2, 4, 16)
    channels = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixer(x[..., channels]), out[..., channels])


def test_width_changes() -> None:
    torch.manual_seed(0)
    model = GroupingBlock(16, 2, 6, 4, out_width=24)
    segments, _ = model(noise(1, 20, 16), noise(1, 6, 16, seed=1))
    assert segments.shape == (1, 4, 24)


def test_every_parameter_gets_a_gradient() -> None:
    model = block().train()
    segments, _ = model(noise(2, 20, 16), noise(2, 6, 16, seed=1))
    (segments * noise(2, 4, 16, seed=2)).sum().backward()
    without = {
        name
        for name, value in model.named_parameters()
        if value.grad is None or not value.grad.abs().max() > 1e-6
    }
    # Of a softmax over tokens, what all tokens have in common falls out; of one over
    # groups, what all groups have.
    assert without == {"pre_assign_attn.attn.k_proj.bias", "assign.q_proj.bias"}


def test_soft_of_an_assignment() -> None:
    assignment = Assignment(torch.eye(2)[None], torch.tensor([[[0.0, 2], [0, 0]]]))
    assert assignment.soft[0, 0].tolist() == pytest.approx([0.5, 0.8808], abs=1e-4)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 16 is not divisible by heads 3"):
        GroupingBlock(16, 3, 6, 4)
