"""One rank of the distributed losses: reads FOLDER/in.safetensors, writes
FOLDER/out<rank>.safetensors.

Run as a program, once per rank, with RANK and WORLD_SIZE set.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from minilib.layers.contrastive import clip_loss, siglip_loss


def main(folder: str) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    inputs = load_file(f"{folder}/in.safetensors")
    x_image, x_text = (
        inputs[key].chunk(world_size)[rank] for key in ("x_image", "x_text")
    )
    losses = {"siglip": (siglip_loss, {})}
    for local in (False, True):
        for gather in (False, True):
            options = {"local_loss": local, "gather_with_grad": gather}
            losses[f"clip_local{local:d}_gather{gather:d}"] = (clip_loss, options)
    results = {}
    for tag, (loss, options) in losses.items():
        leaves = {
            key: inputs[key].clone().requires_grad_()
            for key in ("W_image", "W_text", "logit_scale", "bias")
        }
        image = F.normalize(x_image @ leaves["W_image"], dim=-1)
        text = F.normalize(x_text @ leaves["W_text"], dim=-1)
        value = loss(
            image, text, leaves["logit_scale"].exp(), leaves["bias"], **options
        )
        value.backward()
        results[f"{tag}/loss"] = value.detach()
        results |= {f"{tag}/grad_{key}": leaf.grad for key, leaf in leaves.items()}
    save_file(
        {key: torch.clone(value) for key, value in results.items()},
        f"{folder}/out{rank}.safetensors",
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
