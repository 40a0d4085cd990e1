"""The one training loop: any device, progress, metrics on disk, atomic checkpoints, exact resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

CHECKPOINT = "last.pt"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class TrainConfig:
    """How to optimise. AdamW with linear warm-up and cosine decay, as CLIP was trained (paper Table 18)."""

    steps: int
    """Optimiser steps in all."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup: int = 50
    """Steps of linear warm-up."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine, as a share of ``lr``."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and kernels; gains, biases and scalars get none."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Adam's averaging constants."""
    eps: float = 1e-6
    """Adam's denominator constant."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm, None = do not clip."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which then replaces the weights at the end."""
    precision: str = "auto"
    """``fp32``, ``bf16`` (autocast) or ``auto``: bf16 on GPUs that have it, else fp32."""
    seed: int = 0
    """Seeds what the model itself draws (dropout); data is seeded by the caller."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    evaluate_every: int = 0
    """Steps between two evaluations, 0 = only after the last step."""
    checkpoint_every: int = 200
    """Steps between two checkpoints where there is a folder for them."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        if self.steps < 1 or self.log_every < 1 or self.checkpoint_every < 1:
            raise ValueError(f"{self}: steps, log_every and checkpoint_every must be at least 1")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r}: expected 'auto', 'fp32' or 'bf16'")


@dataclass
class History:
    """What was measured while training: one dict a logged step, evaluations among them."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Return the steps at which ``name`` was measured, and its values.

        Raises:
            KeyError: nothing of that name was measured.
        """
        pairs = [(row["step"], row[name]) for row in self.rows if name in row]
        if not pairs:
            known = sorted({key for row in self.rows for key in row} - {"step"})
            raise KeyError(f"no metric {name!r} was logged; there are {', '.join(known) or 'none'}")
        steps, values = zip(*pairs, strict=True)
        return list(steps), list(values)


class NonFiniteLoss(FloatingPointError):
    """The loss became infinite or not a number; the message says where and what to go back to."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of ``step`` (from 0): linear warm-up, then half a cosine to ``final_lr``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Build AdamW; parameters with fewer than two axes (gains, biases, logit scale) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Mapping[str, Tensor]],
    batches: Callable[[int], Any],
    config: TrainConfig,
    *,
    out: Path | str | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    progress: str | None = "training",
) -> History:
    """Train ``model`` in place.

    Where ``out`` holds the checkpoint of an earlier, interrupted call with the same ``config``, training goes
    on from there and, on CPU, ends with the very weights of an undisturbed run: the checkpoint holds model,
    optimiser, average and random state, and ``batches`` is asked by step.

    Args:
        model: on the device to train on.
        loss: ``(model, batch) -> {"loss": scalar, ...}``; the other scalars are logged too.
        batches: ``step -> batch``, a pure function of the step (this is what makes resume exact).
        config: see :class:`TrainConfig`.
        out: folder for ``metrics.jsonl`` and ``last.pt``; None keeps everything in memory.
        after_step: called after every optimiser step, for example to clamp CLIP's logit scale.
        evaluate: ``model -> {name: value}``, called in eval mode without gradients.
        progress: title of the progress bar, None = no bar.

    Raises:
        NonFiniteLoss: with the step and the last good checkpoint.
        ValueError: ``out`` holds a checkpoint of another configuration, or one that cannot be read.
        OSError: ``out`` cannot be written; nothing was trained yet.
    """
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, config)
    average = None
    if config.ema:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    journal = _Journal(out, config)
    accelerators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=accelerators):
        torch.manual_seed(config.seed)
        first = journal.restore(model, optimizer, average, device)
        seconds = journal.seconds
        model.train()
        bar = tqdm(total=config.steps, initial=first, desc=progress, disable=progress is None, leave=False)
        for step in range(first, config.steps):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            with torch.autocast(device.type, torch.bfloat16, enabled=_use_bf16(config, device)):
                losses = loss(model, batches(step))
            value = losses["loss"].item()
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"the loss is {value} at step {step} (batch {step}, seed {config.seed}); "
                    f"last good checkpoint: {journal.last_checkpoint}. {_advice(config)}"
                )
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            if config.clip_norm is not None:
                norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            if after_step is not None:
                after_step(model)
            if average is not None:
                average.update_parameters(model)
            seconds += time.perf_counter() - began

            done = step + 1
            row: dict[str, float] = {}
            if done % config.log_every == 0 or done == config.steps:
                row = {name: tensor.item() for name, tensor in losses.items()}
                row |= {"lr": optimizer.param_groups[0]["lr"], "seconds": round(seconds, 3)}
                if config.clip_norm is not None:
                    row["gradient_norm"] = norm.item()
                bar.set_postfix({"loss": f"{value:.3f}"})
            if done == config.steps and average is not None:
                model.load_state_dict(average.module.state_dict())
            if evaluate is not None and (
                done == config.steps or (config.evaluate_every and done % config.evaluate_every == 0)
            ):
                row |= _evaluate(average.module if average is not None else model, evaluate)
            if row:
                journal.log({"step": done} | row)
            if done % config.checkpoint_every == 0 or done == config.steps:
                _check_weights(model, step, config, journal)
                journal.save(done, seconds, model, optimizer, average, device)
            bar.update()
        bar.close()
    model.eval()
    return History(journal.rows)


def _check_weights(model: nn.Module, step: int, config: TrainConfig, journal: _Journal) -> None:
    """Keep a checkpoint from being overwritten by weights that the last gradient has destroyed."""
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise NonFiniteLoss(
            f"the weights are not finite after step {step} (batch {step}, seed {config.seed}), though the "
            f"loss was; last good checkpoint: {journal.last_checkpoint}. {_advice(config)}"
        )


def _advice(config: TrainConfig) -> str:
    return f"Try a lower lr than {config.lr} or precision='fp32'."


def _use_bf16(config: TrainConfig, device: torch.device) -> bool:
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.precision == "bf16"


def _evaluate(model: nn.Module, evaluate: Callable[[nn.Module], Mapping[str, float]]) -> dict[str, float]:
    training = model.training
    model.eval()
    with torch.no_grad():
        row = dict(evaluate(model))
    model.train(training)
    return row


class _Journal:
    """The files of one training: metrics as JSON lines, and the last checkpoint, both always whole."""

    def __init__(self, out: Path | str | None, config: TrainConfig) -> None:
        self.out = None if out is None else Path(out)
        self.config = json.loads(json.dumps(asdict(config)))
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self.last_checkpoint = "none was written"
        if self.out is not None:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                open(self.out / METRICS, "a").close()
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"cannot write to out={str(out)!r}: {error.strerror}; name a folder that can be written",
                ) from error

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        device: torch.device,
    ) -> int:
        """Load the last checkpoint, if there is one, and return the step to go on from."""
        if self.out is None or not (self.out / CHECKPOINT).exists():
            if self.out is not None:
                (self.out / METRICS).unlink(missing_ok=True)
            return 0
        path = self.out / CHECKPOINT
        try:
            state = torch.load(path, map_location=device, weights_only=True)
            of_this_kind = state.keys() >= set("step seconds config model optimizer average rng".split())
        except Exception as error:  # what torch.load raises on a damaged file depends on where it is damaged
            raise ValueError(f"{path} cannot be read ({error}); delete it to start anew") from error
        if not of_this_kind:
            raise ValueError(f"{path} is not a checkpoint of this training loop; choose another folder")
        if state["config"] != self.config:
            changed = sorted(k for k in self.config if state["config"].get(k) != self.config[k])
            raise ValueError(
                f"{path} belongs to a training with another configuration (changed: {', '.join(changed)}); "
                "choose another folder, or delete this file to start anew"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        torch.set_rng_state(state["rng"].cpu())
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), device)
        self.seconds, self.last_checkpoint = state["seconds"], f"step {state['step']} in {path}"
        lines = (self.out / METRICS).read_text().splitlines() if (self.out / METRICS).exists() else []
        # A kill can leave lines after the checkpoint, the last one cut short: they will be measured again.
        self.rows = [row for row in map(_parse, lines) if row is not None and row["step"] <= state["step"]]
        _write(self.out / METRICS, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        return state["step"]

    def log(self, row: dict[str, float]) -> None:
        """Keep one line of metrics, in memory and on disk."""
        self.rows.append(row)
        if self.out is not None:
            with open(self.out / METRICS, "a") as file:
                file.write(json.dumps(row) + "\n")

    def save(
        self,
        step: int,
        seconds: float,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        device: torch.device,
    ) -> None:
        """Write everything that resuming needs, under a temporary name first."""
        if self.out is None:
            return
        state = {
            "step": step,
            "seconds": seconds,
            "config": self.config,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": None if average is None else average.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        temporary = self.out / (CHECKPOINT + ".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.out / CHECKPOINT)
        self.last_checkpoint = f"step {step} in {self.out / CHECKPOINT}"


def _parse(line: str) -> dict[str, float] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
