"""Two processes that hold half the batch each learn what one process with the
whole batch learns."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from minilib.models.clip import (
    CLIP,
    CLIPConfig,
    TextConfig,
    ViTConfig,
    clip_loss,
    siglip_loss,
)

CONFIG = CLIPConfig(
    embed_dim=16,
    image_size=32,
    vision=ViTConfig(patch=8, width=32, layers=2, heads=2),
    text=TextConfig(context=12, vocab_size=64, width=32, layers=2, heads=2),
    init_logit_bias=-2.0,
)
ROOT = Path(__file__).parents[3]


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Six pairs, the longest caption in the second half: the ranks trim to
    different lengths."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(6, 12, dtype=torch.long)
    for row, length in zip(tokens, (4, 5, 6, 12, 3, 7), strict=True):
        row[:length] = torch.randint(1, 62, (length,), generator=generator)
        row[0], row[length - 1] = 62, 63
    return torch.randn(6, 3, 32, 32, generator=generator), tokens


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    pixels, tokens = pairs()
    job = {
        "config": asdict(CONFIG),
        "state": CLIP(CONFIG).state_dict(),
        "pixels": pixels,
        "tokens": tokens,
    }
    torch.save(job, folder / "in.pt")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    worker = Path(__file__).parents[2] / "workers" / "clip_rank.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, worker, folder], env=environment | {"RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    return {"job": job, **torch.load(folder / "out.pt", weights_only=True)}


@pytest.mark.parametrize(
    ("name", "loss_of"), [("clip", clip_loss), ("siglip", siglip_loss)]
)
def test_loss_and_gradients_equal_one_process(
    two_processes: dict, name: str, loss_of
) -> None:
    job = two_processes["job"]
    model = CLIP.from_config(CONFIG, job["state"])
    loss = loss_of(*model(job["pixels"], job["tokens"]))
    loss.backward()
    torch.testing.assert_close(
        two_processes[name]["loss"], loss.detach(), rtol=1e-5, atol=1e-5
    )
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(
            two_processes[name][key],
            parameter.grad,
            rtol=1e-4,
            atol=1e-5,
            msg=lambda m, k=key: f"{k}: {m}",
        )
    assert two_processes[name]["visual.proj"].abs().max() > 1e-3
