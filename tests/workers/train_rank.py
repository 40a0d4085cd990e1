"""Tiny trainings on as many processes as torchrun started: ``train_rank.py OUT
name=value[,name=value] ...``.

Each argument after OUT is one training, into the folder of that name under OUT.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import nn

from minilib.layers.contrastive import clip_loss
from minilib.training import TrainConfig, Training
from minilib.training.launch import end_with_the_launcher, processes


class Pairs:
    """Pairs that belong together, by step; a process makes only its own rows."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause, self.asked = pause, set()

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        time.sleep(self.pause)
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 6, generator=generator)
        return {
            "x": x,
            "y": x[:, :4].tanh() + 0.1 * torch.randn(16, 4, generator=generator),
        }

    def part(self, step: int, index: int, parts: int) -> dict[str, torch.Tensor]:
        self.asked.add((index, parts))
        rows = 16 // parts
        return {
            name: rows_of[index * rows : (index + 1) * rows]
            for name, rows_of in self(step).items()
        }


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 8))
        self.right = nn.Linear(4, 8)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.unused = nn.Linear(3, 3)


def loss(model: TwoTowers, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    one, two = (
        nn.functional.normalize(f, dim=1)
        for f in (model.left(batch["x"]), model.right(batch["y"]))
    )
    return {
        "loss": clip_loss(one, two, model.scale.exp()),
        "scale": model.scale.detach(),
    }


def training(
    pause: float = 0.0, steps: float = 30, accumulate: float = 1, dropout: float = 0.0
) -> Training:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoTowers()
        if dropout:
            model.left.insert(2, nn.Dropout(dropout))
    config = TrainConfig(
        int(steps), lr=0.02, warmup=3, log_every=1, checkpoint_every=7,
        evaluate_every=10, ema=0.9, accumulate=int(accumulate),
    )  # fmt: skip
    return Training(
        model,
        loss,
        Pairs(pause),
        config,
        evaluate=lambda m: {"norm": m.right.weight.norm().item()},
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    end_with_the_launcher()
    accelerator = processes(cpu=True)
    for job in sys.argv[2:]:
        task = training(
            **{
                name: float(value)
                for name, value in (text.split("=") for text in job.split(","))
            }
        )
        task.fit(f"{sys.argv[1]}/{job}", progress=None, accelerator=accelerator)
        for index, parts in task.batches.asked:
            assert parts == accelerator.num_processes * task.config.accumulate
            assert index % accelerator.num_processes == accelerator.process_index
