"""The linear probe of the paper (appendix A.3): logistic regression on frozen features.

Shapes: n examples, D feature dimensions, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.metrics.retrieval import accuracy

EIGHTHS_OF_A_DECADE = 48
"""The sweep covers lambda = 10^-6 ... 10^6 in eighths of a decade: 48
on each side of 1."""


@dataclass
class LinearProbe:
    """A fitted classifier, logits = x @ weight.T + bias."""

    weight: Tensor
    """(K, D) float64."""
    bias: Tensor
    """(K,) float64."""
    objective: float
    """C * sum of cross entropies + 1/2 |weight - pull_to|^2 where the fit ended."""

    @classmethod
    def fit(
        cls,
        x: Tensor,
        y: Tensor,
        C: float = 1.0,
        *,
        classes: int | None = None,
        init: Tensor | None = None,
        pull_to: Tensor | None = None,
        max_iter: int = 1000,
        tolerance: float = 1e-7,
    ) -> LinearProbe:
        """Minimise C * sum_i CE(x_i W^T + b, y_i) + 1/2 |W - W_0|^2 with full-batch
        L-BFGS in float64.

        The same problem as scikit-learn's ``LogisticRegression(C=C)``, which the paper
        used; b is not penalised.

        Args:
            x: (n, D) features.
            y: (n,) int64 labels.
            C: inverse strength of the penalty, 1 / lambda in the paper.
            classes: K; one more than the highest label when left out.
            init: (K, D) weights to start from, else zeros. The optimum does not depend
                on it; a fit cut short by ``max_iter`` does.
            pull_to: (K, D) weights W_0 that the penalty pulls towards, such as
                zero-shot weights; else zeros.
            max_iter: steps at most.
            tolerance: stop when no entry of the gradient of the mean
                objective is larger.

        Raises:
            ValueError: no examples, shapes that do not fit, or features
                that are not finite.
        """
        if x.ndim != 2 or len(x) != len(y) or not len(x):
            raise ValueError(
                "a probe needs features (n, D) and labels (n,), got "
                f"{tuple(x.shape)}, {tuple(y.shape)}"
            )
        if not torch.isfinite(x).all():
            raise ValueError(
                "features are not finite: a probe cannot be fitted to them"
            )
        if C <= 0:
            raise ValueError(
                f"C must be positive, got {C}: it is the inverse of the penalty's "
                "strength"
            )
        x, y = _to_float64(x), y.to(_compute_device(x))
        classes = classes or int(y.max()) + 1
        target = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device)
        weight = (
            (target if init is None else _to_float64(init)).clone().requires_grad_()
        )
        target = target if pull_to is None else _to_float64(pull_to)
        bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [weight, bias],
            max_iter=max_iter,
            tolerance_grad=tolerance,
            tolerance_change=1e-14,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def mean_objective() -> Tensor:
            """The objective divided by C n, so that one tolerance
            suits every C and n."""
            penalty = 0.5 * (weight - target).square().sum()
            return F.cross_entropy(x @ weight.T + bias, y) + penalty / (C * len(x))

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = mean_objective()
            loss.backward()
            return loss

        optimiser.step(closure)
        with torch.no_grad():
            objective = mean_objective().item() * C * len(x)
        return cls(weight.detach(), bias.detach(), objective)

    def logits(self, x: Tensor) -> Tensor:
        """Score features (n, D): (n, K) float64."""
        return _to_float64(x).to(self.weight.device) @ self.weight.T + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """Return the most likely class of features (n, D): (n,) int64."""
        return self.logits(x).argmax(dim=1)

    def probabilities(self, x: Tensor) -> Tensor:
        """Return class probabilities of features (n, D): (n, K) float64."""
        return self.logits(x).softmax(dim=1)

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """Return the share of features (n, D) whose predicted class is y (n,)."""
        return accuracy(self.logits(x), y)


def sweep_C(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    *,
    classes: int | None = None,
    max_iter: int = 1000,
    tolerance: float = 1e-7,
) -> tuple[float, dict[float, float]]:
    """Find C by the paper's search on held-out examples (appendix A.3).

    lambda = 1 / C is tried at 10^-6, 10^-4, ..., 10^6; then the steps around the best
    are halved until they are an eighth of a decade. Of equal accuracies the strongest
    penalty wins (the paper does not say).

    Args:
        train: features (n, D) and labels (n,) to fit.
        validation: features and labels to score on.
        classes: K; one more than the highest training label when left out.
        max_iter: see ``LinearProbe.fit``.
        tolerance: see ``LinearProbe.fit``.

    Returns:
        The best C, and the validation accuracy at every C that was tried.
    """
    fits: dict[int, tuple[float, LinearProbe]] = {}

    def score(step: int) -> float:
        if step not in fits:
            nearest = min(fits, key=lambda other: abs(other - step), default=None)
            # only saves iterations
            init = None if nearest is None else fits[nearest][1].weight
            probe = LinearProbe.fit(
                *train, C=10 ** (-step / 8), classes=classes, init=init,
                max_iter=max_iter, tolerance=tolerance,
            )  # fmt: skip
            fits[step] = probe.accuracy(*validation), probe
        return fits[step][0]

    stride = 16
    steps = range(EIGHTHS_OF_A_DECADE, -EIGHTHS_OF_A_DECADE - 1, -stride)
    best = max(steps, key=score)
    while stride > 1:
        stride //= 2
        around = [
            s
            for s in (best + stride, best, best - stride)
            if abs(s) <= EIGHTHS_OF_A_DECADE
        ]
        best = max(around, key=score)
    scores = {10 ** (-step / 8): fits[step][0] for step in sorted(fits, reverse=True)}
    return 10 ** (-best / 8), scores


def _compute_device(x: Tensor) -> torch.device:
    """Return the device of x, or the CPU where the device has no float64."""
    return torch.device("cpu") if x.device.type == "mps" else x.device


def _to_float64(x: Tensor) -> Tensor:
    return x.detach().to(_compute_device(x)).double()
