"""The one training loop: any device, one process or many, metrics on disk, atomic
checkpoints, exact resume.

:func:`fit` trains; a :class:`Training` holds all that it needs, as a recipe
assembles it, so that ``python -m minilib.train`` can run on several devices what a
notebook runs on one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from minilib.training.identity import identify
from minilib.training.journal import Journal
from minilib.training.parallel import Team, part_of

if TYPE_CHECKING:
    from accelerate import Accelerator

Model = TypeVar("Model", bound=nn.Module)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Processes draw from generators that are this far apart; the first one's seed is the
# training's own.
_RANK_STRIDE = 1_000_003


@dataclass(frozen=True)
class TrainConfig:
    """How to optimise. AdamW with linear warm-up and cosine decay, as CLIP was trained
    (paper Table 18)."""

    steps: int
    """Optimiser steps in all."""
    lr: float = 1e-3
    """Peak learning rate."""
    lr_factors: tuple[tuple[str, float], ...] = ()
    """Per-parameter learning-rate multipliers: (name prefix, multiplier);
    first match wins."""
    warmup: int = 50
    """Steps of linear warm-up."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine, as a fraction of ``lr``."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and kernels; gains, biases and
    scalars get none."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Adam's averaging constants."""
    eps: float = 1e-6
    """Adam's denominator constant."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; None = do not clip."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which then replaces the
    weights at the end."""
    precision: str = "auto"
    """``fp32``, ``bf16`` or ``fp16`` (autocast; fp16 with loss scaling), or ``auto``:
    bf16 on GPUs that have it, otherwise fp32."""
    accumulate: int = 1
    """Parts into which a batch is cut to save memory; a loss that compares rows
    compares them within a part."""
    seed: int = 0
    """Seed of the model's own randomness (dropout); the caller seeds the data."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    evaluate_every: int = 0
    """Steps between two evaluations; 0 = only after the last step."""
    checkpoint_every: int = 200
    """Steps between two checkpoints, if ``out`` is given."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        if min(self.steps, self.log_every, self.checkpoint_every, self.accumulate) < 1:
            raise ValueError(
                f"{self}: steps, log_every, checkpoint_every and accumulate must be "
                "at least 1"
            )
        if self.precision not in ("auto", *_DTYPES):
            raise ValueError(
                f"precision={self.precision!r}: expected 'auto', 'fp32', 'bf16' or "
                "'fp16'"
            )


@dataclass
class History:
    """What was measured while training: one dict per logged step,
    evaluations included."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Return the steps at which ``name`` was measured, and its values.

        Raises:
            KeyError: nothing of that name was measured.
        """
        pairs = [(row["step"], row[name]) for row in self.rows if name in row]
        if not pairs:
            known = sorted({key for row in self.rows for key in row} - {"step"})
            raise KeyError(
                f"no metric {name!r} was logged; there are {', '.join(known) or 'none'}"
            )
        steps, values = zip(*pairs, strict=True)
        return list(steps), list(values)


@dataclass(frozen=True)
class Training(Generic[Model]):
    """A training run as a recipe assembles it; see :func:`fit` for the parts."""

    model: Model
    """On the device to train on."""
    loss: Callable[[Model, Any], Mapping[str, Tensor]]
    batches: Callable[[int], Any]
    config: TrainConfig
    after_step: Callable[[Model], None] | None = None
    evaluate: Callable[[Model], Mapping[str, float]] | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    """What the training is of, beside what :func:`fit` sees itself."""

    def fit(
        self,
        out: Path | str | None = None,
        progress: str | None = "training",
        accelerator: Accelerator | None = None,
    ) -> History:
        """Train the model, or resume, or just load the finished training in ``out``;
        see :func:`fit`."""
        return fit(
            self.model, self.loss, self.batches, self.config, out=out,
            after_step=self.after_step, evaluate=self.evaluate, progress=progress,
            accelerator=accelerator, identity=self.identity,
        )  # fmt: skip


class NonFiniteLoss(FloatingPointError):
    """The loss became infinite or not a number; the message says at which step and
    names the last good checkpoint."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of ``step`` (from 0): linear warm-up, then half a cosine
    to ``final_lr``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (
        config.final_lr
        + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    )


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Build AdamW; parameters with fewer than two axes (gains, biases, logit scale)
    are not decayed.

    Each group holds its ``lr_factor``; parameters that learn at ``config.lr``
    itself come first.
    """
    parts: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = next(
                (
                    factor
                    for start, factor in config.lr_factors
                    if name.startswith(start)
                ),
                1.0,
            )
            parts.setdefault(factor, []).append(parameter)
    groups = []
    for factor, trained in parts.items():
        common = {"lr_factor": factor, "lr": config.lr * factor}
        groups += [
            {
                "params": [p for p in trained if p.ndim >= 2],
                "weight_decay": config.weight_decay,
                **common,
            },
            {
                "params": [p for p in trained if p.ndim < 2],
                "weight_decay": 0.0,
                **common,
            },
        ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


def fit(
    model: Model,
    loss: Callable[[Model, Any], Mapping[str, Tensor]],
    batches: Callable[[int], Any],
    config: TrainConfig,
    *,
    out: Path | str | None = None,
    after_step: Callable[[Model], None] | None = None,
    evaluate: Callable[[Model], Mapping[str, float]] | None = None,
    progress: str | None = "training",
    accelerator: Accelerator | None = None,
    identity: Mapping[str, str] | None = None,
) -> History:
    """Train ``model`` in place, on this process or on all processes of ``accelerator``.

    Where ``out`` holds the checkpoint of an earlier, interrupted call with the same
    ``config``, model, data and code, training resumes there and, on CPU, ends with
    exactly the weights of an uninterrupted run: the checkpoint holds model, optimiser,
    average and random state, and ``batches`` is called with the step. A checkpoint of
    anything else is refused.

    Several processes share every batch: each works on its part of the rows, gradients
    and logged values are averaged, and a loss that compares rows with each other
    gathers them (:mod:`minilib.layers.contrastive`), so that the training equals that
    of a single process. Exceptions: dropout draws differ between processes, and batch
    normalisation, which takes its statistics over all processes on GPUs (SyncBatchNorm)
    but over each process's own rows on CPUs, for which PyTorch has no such layer; the
    first process's running statistics are kept. All processes evaluate, and the first
    one's numbers count; only the first one writes.

    Args:
        model: on the device to train on.
        loss: ``(model, batch) -> {"loss": scalar, ...}``; the other scalars are logged
            too. The scalars are means over the batch's rows, or gather what they need
            from the other processes.
        batches: ``step -> batch``, a pure function of the step (this is what makes
            resume exact). Where it also has ``part(step, index, parts)``, a process
            makes only its own rows; otherwise it cuts them out.
        config: see :class:`TrainConfig`.
        out: folder for ``metrics.jsonl`` and ``last.pt``, which all processes can read;
            None keeps everything in memory only.
        after_step: called after every optimiser step, for example to clamp
            CLIP's logit scale.
        evaluate: ``model -> {name: value}``, called in eval mode without gradients.
        progress: title of the progress bar; None = no bar.
        accelerator: the processes to train on, and where metrics are tracked; None =
            this process alone.
        identity: what the training is of by name, such as the digest of its data,
            beside what is seen here (:mod:`minilib.training.identity`).

    Returns:
        What was logged; complete on the first process only.

    Raises:
        NonFiniteLoss: with the step and the last good checkpoint.
        NotTheSame: ``out`` holds a checkpoint of another training, or one that cannot
            be read; nothing has been trained or overwritten. A ValueError.
        FolderInUse: another process trains in ``out``.
        ValueError: ``out`` does not hold the same checkpoint for all processes; or a
            batch cannot be cut into equal parts.
        OSError: ``out`` cannot be written; nothing has been trained yet.
    """
    device = next(model.parameters()).device
    team = Team(accelerator)
    journal = Journal(out, asdict(config), team.main)
    if out is not None:
        functions = (loss, after_step, evaluate)
        journal.identity = identify(model, batches, functions, identity or {})
    forward = team.share(model, loss)
    optimizer = make_optimizer(model, config)
    precision = _precision(config, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    average = None
    if config.ema:
        average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True
        )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler}
    parts |= {} if average is None else {"average": average}
    on_gpu = [device] if device.type == "cuda" else []
    with journal.alone(), torch.random.fork_rng(devices=on_gpu):
        torch.manual_seed(config.seed + _RANK_STRIDE * team.rank)
        first, seconds = journal.restore(
            lambda saved: _load(saved, parts, device, config, team), device
        )
        team.check_start(first)
        model.train()
        hidden = progress is None or not team.main
        bar = tqdm(
            total=config.steps,
            initial=first,
            desc=progress,
            disable=hidden,
            leave=False,
        )
        for step in range(first, config.steps):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config) * group["lr_factor"]
            optimizer.zero_grad(set_to_none=True)
            micro: list[Mapping[str, Tensor]] = []
            for k in range(config.accumulate):
                batch = part_of(
                    batches,
                    step,
                    k * team.size + team.rank,
                    config.accumulate * team.size,
                )
                with team.reduces_gradients(last=k == config.accumulate - 1):
                    with torch.autocast(
                        device.type, _DTYPES[precision], enabled=precision != "fp32"
                    ):
                        losses = forward(model, batch)
                    value = team.mean([losses["loss"]])[0]
                    if not math.isfinite(value):
                        raise NonFiniteLoss(
                            f"the loss is {value} at step {step} (batch {step}, seed "
                            f"{config.seed}); last good checkpoint: "
                            f"{journal.last_checkpoint}. {_advice(config)}"
                        )
                    share = (
                        losses["loss"]
                        if config.accumulate == 1
                        else losses["loss"] / config.accumulate
                    )
                    scaler.scale(share).backward()
                micro.append({name: tensor.detach() for name, tensor in losses.items()})
            if config.clip_norm is not None:
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            if after_step is not None:
                after_step(model)
            if average is not None:
                average.update_parameters(model)
            seconds += time.perf_counter() - began

            done = step + 1
            row: dict[str, float] = {}
            if done % config.log_every == 0 or done == config.steps:
                row = _mean_rows(
                    [
                        dict(zip(m, team.mean(list(m.values())), strict=True))
                        for m in micro
                    ]
                )
                row |= {
                    "lr": optimizer.param_groups[0]["lr"],
                    "seconds": round(seconds, 3),
                }
                # fp16 skips a step whose gradient overflows
                if config.clip_norm is not None and norm.isfinite():
                    row["gradient_norm"] = norm.item()
                bar.set_postfix({"loss": f"{row['loss']:.3f}"})
            if done == config.steps and average is not None:
                model.load_state_dict(average.module.state_dict())
            if evaluate is not None and (
                done == config.steps
                or (config.evaluate_every and done % config.evaluate_every == 0)
            ):
                row |= _evaluate(
                    model if average is None else cast("Model", average.module),
                    evaluate,
                )
            if row:
                journal.log({"step": done} | row)
                team.track(row, done)
            if done % config.checkpoint_every == 0 or done == config.steps:
                _check_weights(model, step, config, journal)
                if out is not None:
                    state = (
                        {name: part.state_dict() for name, part in parts.items()}
                        if team.main
                        else {}
                    )
                    journal.save(
                        done, seconds, state, team.gather(_random_state(device))
                    )
            bar.update()
        bar.close()
    team.wait()
    model.eval()
    return History(journal.rows)


def _random_state(device: torch.device) -> dict[str, Tensor | None]:
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": on_gpu}


def _load(
    saved: dict[str, Any],
    parts: dict[str, Any],
    device: torch.device,
    config: TrainConfig,
    team: Team,
) -> None:
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    if len(saved["rng"]) == team.size:
        mine = saved["rng"][team.rank]
        torch.set_rng_state(mine["cpu"].cpu())
        if device.type == "cuda" and mine["cuda"] is not None:
            torch.cuda.set_rng_state(mine["cuda"].cpu(), device)
    else:  # another number of processes: an exact resume is impossible, so seed afresh
        torch.manual_seed(config.seed + _RANK_STRIDE * team.rank + saved["step"])


def _mean_rows(rows: list[dict[str, float]]) -> dict[str, float]:
    return (
        rows[0]
        if len(rows) == 1
        else {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    )


def _check_weights(
    model: nn.Module, step: int, config: TrainConfig, journal: Journal
) -> None:
    """Keep a checkpoint from being overwritten by weights that the last
    gradient has destroyed."""
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise NonFiniteLoss(
            f"the weights are not finite after step {step} (batch {step}, seed "
            f"{config.seed}), though the loss was; last good checkpoint: "
            f"{journal.last_checkpoint}. {_advice(config)}"
        )


def _advice(config: TrainConfig) -> str:
    return f"Try a lower lr than {config.lr} or precision='fp32'."


def _precision(config: TrainConfig, device: torch.device) -> str:
    if config.precision != "auto":
        return config.precision
    return (
        "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    )


def _evaluate(
    model: Model, evaluate: Callable[[Model], Mapping[str, float]]
) -> dict[str, float]:
    training = model.training
    model.eval()
    with torch.no_grad():
        row = dict(evaluate(model))
    model.train(training)
    return row
