"""Several processes that train one model together: their shares of a batch,
averages and trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

Loss = Callable[[Any, Any], Mapping[str, Tensor]]
"""``(model, batch) -> {"loss": scalar, ...}``."""


def cut(batch: Any, index: int, parts: int) -> Any:
    """Return the ``index``-th of ``parts`` equal runs of rows of a batch.

    A dataclass, tuple or dict is cut field by field, a tensor or list along its first
    axis; None, numbers and text are passed on unchanged.

    Raises:
        ValueError: the rows do not divide into equal parts.
    """
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(
            batch,
            **{
                f.name: cut(getattr(batch, f.name), index, parts) for f in fields(batch)
            },
        )
    if isinstance(batch, tuple):
        pieces = [cut(item, index, parts) for item in batch]
        return type(batch)(*pieces) if hasattr(batch, "_fields") else tuple(pieces)
    if isinstance(batch, Mapping):
        return {key: cut(item, index, parts) for key, item in batch.items()}
    if isinstance(batch, list) or (isinstance(batch, Tensor) and batch.ndim):
        rows, left = divmod(len(batch), parts)
        if left or not rows:
            raise ValueError(
                f"a batch of {len(batch)} rows cannot be cut into {parts} equal parts "
                "(processes x accumulate): change the number of processes, "
                "accumulate or the batch size"
            )
        return batch[index * rows : (index + 1) * rows]
    return batch


def part_of(batches: Callable[[int], Any], step: int, index: int, parts: int) -> Any:
    """Return the ``index``-th of ``parts`` equal shares of a step's batch, see
    :func:`minilib.training.fit`."""
    if parts == 1:
        return batches(step)
    made_in_parts = getattr(batches, "part", None)
    return (
        made_in_parts(step, index, parts)
        if made_in_parts
        else cut(batches(step), index, parts)
    )


class _LossOf(nn.Module):
    """A model with its loss as one module, so that a distributed wrapper sees the whole
    step as its forward."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return dict(self.loss(self.model, batch))


class Team:
    """The processes that train together; without an accelerator, just this one."""

    def __init__(self, accelerator: Accelerator | None) -> None:
        self.accelerator = accelerator
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.size = 1 if accelerator is None else accelerator.num_processes
        self.main = self.rank == 0

    def share(self, model: nn.Module, loss: Loss) -> Loss:
        """Return ``loss`` such that its gradients are averaged over the processes."""
        if self.accelerator is None or self.size == 1:
            return loss
        if next(model.parameters()).device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.wrapped = self.accelerator.prepare_model(_LossOf(model, loss))
        return lambda _, batch: self.wrapped(batch)

    def reduces_gradients(self, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients only with the last part of a batch; the other parts'
        accumulate until then."""
        if self.accelerator is None or self.size == 1 or last:
            return nullcontext()
        return self.accelerator.no_sync(self.wrapped)

    def mean(self, scalars: list[Tensor]) -> list[float]:
        """Return each scalar's mean over the processes."""
        if self.accelerator is None or self.size == 1:
            return [scalar.item() for scalar in scalars]
        joined = torch.stack([scalar.detach().float() for scalar in scalars])
        return self.accelerator.reduce(joined, "mean").tolist()

    def gather(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        """Return every process's object, in the order of the processes."""
        return [mine] if self.size == 1 else _gather_object(mine)

    def check_start(self, first: int) -> None:
        """Raise ValueError unless all processes found the same checkpoint."""
        starts = self.gather({"step": first})
        if any(start["step"] != first for start in starts):
            steps = ", ".join(str(start["step"]) for start in starts)
            raise ValueError(
                f"the processes would start at steps {steps}: out must be a folder "
                "that all of them share"
            )

    def track(self, row: dict[str, float], step: int) -> None:
        """Pass a line of metrics to the accelerator's trackers, if it has any."""
        if self.accelerator is not None:
            self.accelerator.log(
                {name: value for name, value in row.items() if name != "step"},
                step=step,
            )

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.accelerator is not None and self.size > 1:
            self.accelerator.wait_for_everyone()


def _gather_object(mine: Any) -> list[Any]:
    from accelerate.utils import (
        # imported here: it takes a second and only several processes need it
        gather_object,
    )

    return gather_object([mine])
