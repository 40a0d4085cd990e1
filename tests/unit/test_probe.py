"""The linear probe, the search of its penalty, and the retrieval measures."""

from __future__ import annotations

import pytest
import torch

from minilib.metrics import LinearProbe, accuracy, recall_at_k, sweep_C


def blobs(
    n: int = 120, dims: int = 6, classes: int = 3, spread: float = 1.0, seed: int = 0
):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dims, generator=torch.Generator().manual_seed(7)) * 2
    y = torch.arange(n) % classes
    return centres[y] + spread * torch.randn(n, dims, generator=generator), y


@pytest.mark.parametrize("C", [0.01, 1.0, 50.0])
def test_same_optimum_as_scikit_learn(C: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs()
    theirs = linear_model.LogisticRegression(C=C, max_iter=10000, tol=1e-9).fit(
        x.double().numpy(), y.numpy()
    )
    ours = LinearProbe.fit(x, y, C)
    torch.testing.assert_close(
        ours.weight, torch.tensor(theirs.coef_), rtol=1e-3, atol=1e-3
    )
    probabilities = torch.tensor(theirs.predict_proba(x.double().numpy()))
    torch.testing.assert_close(
        ours.probabilities(x), probabilities, rtol=1e-3, atol=1e-3
    )


def test_optimum_has_no_gradient_and_its_objective_is_reported() -> None:
    x, y = blobs()
    probe = LinearProbe.fit(x, y, C=2.0)
    weight, bias = (
        tensor.clone().requires_grad_() for tensor in (probe.weight, probe.bias)
    )
    cross_entropy = torch.nn.functional.cross_entropy(
        x.double() @ weight.T + bias, y, reduction="sum"
    )
    objective = 2.0 * cross_entropy + 0.5 * weight.square().sum()
    objective.backward()
    assert objective.item() == pytest.approx(probe.objective)
    assert weight.grad.abs().max() < 1e-3 and bias.grad.abs().max() < 1e-3


def test_start_does_not_change_the_optimum_but_a_short_fit() -> None:
    x, y = blobs()
    start = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    zero, other = LinearProbe.fit(x, y), LinearProbe.fit(x, y, init=start)
    torch.testing.assert_close(zero.weight, other.weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        LinearProbe.fit(x, y, init=start, max_iter=0).weight, start.double()
    )


def test_pull_reaches_its_target_under_a_strong_penalty() -> None:
    x, y = blobs()
    target = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    strong = LinearProbe.fit(x, y, C=1e-8, pull_to=target)
    torch.testing.assert_close(strong.weight, target.double(), rtol=1e-3, atol=1e-3)
    weak = LinearProbe.fit(x, y, C=1e4, pull_to=target)
    assert (weak.weight - target).norm() > 1


def test_classes_without_an_example_can_be_scored() -> None:
    x, y = blobs()
    probe = LinearProbe.fit(x, y, classes=5)
    assert probe.logits(x).shape == (120, 5) and probe.predict(x).max() < 3


def test_predictions_agree_with_accuracy() -> None:
    x, y = blobs(spread=2.5)
    probe = LinearProbe.fit(x, y)
    assert probe.accuracy(x, y) == (probe.predict(x) == y).double().mean().item() < 1


def test_sweep_finds_the_best_of_the_paper_grid() -> None:
    train, validation = (
        blobs(24, dims=20, spread=4.0, seed=1),
        blobs(200, dims=20, spread=4.0, seed=2),
    )
    best, scores = sweep_C(train, validation)
    assert len(scores) <= 7 + 2 * 4
    assert scores[best] == max(scores.values())
    assert {1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6} <= {float(f"{C:.6g}") for C in scores}
    nearest = sorted(scores, key=lambda C: abs(torch.tensor(C / best).log10()))[1]
    assert abs(torch.tensor(nearest / best).log10().item()) == pytest.approx(
        1 / 8, abs=1e-3
    )
    cold = LinearProbe.fit(*train, C=best)
    assert cold.accuracy(*validation) == pytest.approx(scores[best], abs=0.011)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), {}, r"\(3, 2\), \(2,\)"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), {}, r"\(0, 2\)"),
        (torch.full((2, 2), torch.nan), torch.tensor([0, 1]), {}, "not finite"),
        (torch.zeros(2, 2), torch.tensor([0, 1]), {"C": 0.0}, "C must be positive"),
    ],
)
def test_bad_probes(
    x: torch.Tensor, y: torch.Tensor, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LinearProbe.fit(x, y, **options)


def test_accuracy_counts_the_k_best() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    labels = torch.tensor([0, 1, 2])
    assert [accuracy(logits, labels, k) for k in (1, 2, 3)] == pytest.approx(
        [1 / 3, 2 / 3, 1.0]
    )


def test_recall_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.2, 0.1], [0.5, 0.4, 0.3]])
    assert recall_at_k(similarity, (1, 2, 3)) == pytest.approx(
        {1: 1 / 3, 2: 2 / 3, 3: 1.0}
    )
    assert recall_at_k(similarity.T, (1,)) == pytest.approx({1: 2 / 3})


def test_an_equal_caption_counts_as_right() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.2], [0.9, 0.1, 0.2], [0.0, 0.1, 0.9]])
    assert recall_at_k(similarity, (1,))[1] == pytest.approx(1 / 3)
    assert recall_at_k(similarity, (1,), groups=["a dog", "a dog", "a cat"])[1] == 1.0


def test_constant_features_find_nothing() -> None:
    assert recall_at_k(torch.ones(10, 10), (1, 5)) == {1: 0.0, 5: 0.0}


def test_recall_needs_a_square() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        recall_at_k(torch.zeros(2, 3))
