"""One rank of a distributed CLIP step: averages the gradients of the contrastive
loss over the ranks.

Run as a program, once per rank, with RANK and WORLD_SIZE set: ``clip_rank.py FOLDER``.
Reads FOLDER/in.pt, rank 0 writes FOLDER/out.pt.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist

from minilib.models.clip import CLIP, CLIPConfig, clip_loss, siglip_loss

LOSSES = {"clip": clip_loss, "siglip": siglip_loss}


def main(folder: str) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    job = torch.load(f"{folder}/in.pt", weights_only=True)
    results = {}
    for name, loss_of in LOSSES.items():
        model = CLIP.from_config(CLIPConfig.from_dict(job["config"]), job["state"])
        pixels, tokens = (
            job[key].chunk(world_size)[rank] for key in ("pixels", "tokens")
        )
        loss = loss_of(*model(pixels, tokens))
        loss.backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        results[name] = {
            "loss": loss.detach(),
            **{key: g for key, g in gradients.items() if g is not None},
        }
        for value in results[name].values():
            dist.all_reduce(value)
            value /= world_size
    if rank == 0:
        torch.save(results, f"{folder}/out.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
