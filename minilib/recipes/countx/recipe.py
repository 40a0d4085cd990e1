"""CounTX's training and evaluation, on scenes and on photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minilib.batch import Batch, required
from minilib.layers.resampling import resize_grid_positions
from minilib.models.clip import CLIP, VisionTransformer
from minilib.models.countx import (
    DENSITY_SCALE,
    CounTX,
    CounTXConfig,
    InteractionBlock,
    density_loss,
    random_pixel_mask,
)
from minilib.recipes.shared.counting import Counter
from minilib.recipes.shared.counting_scenes import Asked, DescribedScenes
from minilib.recipes.shared.randomness import seeded
from minilib.scenes.renderer import density_map
from minilib.training import History, TrainConfig, Training


@dataclass(frozen=True)
class Schedule:
    """One training of CounTX: how long, on how much, with what switched off."""

    steps: int = 200
    """Optimiser steps."""
    images: int = 12
    """Images in a step."""
    each: int = 1
    """Questions about each image; the image tower sees it once, since the text
    enters behind it."""
    everything: bool = False
    """Ask for everything in a picture and for things that are not in it, instead of
    only for what fills it."""
    lr: float = 3e-3
    """Peak learning rate."""
    tower_lr: float = 0.2
    """Multiplier of ``lr`` for the image tower; the paper has one rate for all."""
    frozen: bool = False
    """Leave CLIP's image tower untrained (ablation)."""
    blind: bool = False
    """Give the network the same text whatever is asked (control)."""

    def config(self, seed: int) -> TrainConfig:
        """Return the optimisation; momentum constants and weight decay
        are the authors'."""
        return TrainConfig(
            steps=self.steps,
            lr=self.lr,
            lr_factors=(("clip_model.visual.", self.tower_lr),),
            warmup=max(1, self.steps // 10),
            weight_decay=0.05,
            betas=(0.9, 0.95),
            # the loss is a mean over mostly empty pixels: its gradients are small
            eps=1e-8,
            log_every=max(1, self.steps // 40),
            checkpoint_every=self.steps,
            seed=seed,
        )


BLIND_TEXT = "the things"
"""The text that a blind network gets instead of the description."""


def build(
    clip: CLIP,
    size: int,
    decoder_width: int = 32,
    seed: int = 0,
    images: Tensor | None = None,
    names: Sequence[str] = (),
) -> CounTX:
    """Put CounTX on the towers of ``clip`` for crops of ``size`` pixels, which the
    image tower sees at full size.

    The image tower's position embeddings are interpolated to the larger grid and
    trained on. The density map is as large as the crop: patches of 8 pixels are
    doubled three times.

    Args:
        clip: the towers.
        size: side of a crop in pixels.
        decoder_width: channels of the density decoder.
        seed: seeds the fresh weights.
        images: (M, 3, size, W) uint8, some training pictures; with ``names``, see
            :func:`start_centred`.
        names: what training counts.
    """
    patch = clip.config.vision.reduction
    config = CounTXConfig(
        clip=replace(clip.config, image_size=size),
        heads=8,
        decoder_width=decoder_width,
        first_grid=size // patch,
        doublings=patch.bit_length() - 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CounTX(config)
    state = clip.state_dict()
    positions = "visual.positional_embedding"
    state[positions] = resize_grid_positions(
        state[positions], (config.grid, config.grid)
    )
    model.clip_model.load_state_dict(state)
    model.to(clip.device)
    return model if images is None else start_centred(model, images, names)


def at_size(model: CounTX, size: int) -> CounTX:
    """Return a copy of a trained model for crops of another ``size`` in pixels.

    CLIP's position embeddings are interpolated to the new grid, those of the feature
    interaction are a formula, and no other weight depends on it.
    """
    config = model.config
    patch = config.clip.vision.reduction
    other = CounTX(
        replace(
            config,
            clip=replace(config.clip, image_size=size),
            first_grid=size // patch,
        )
    )
    state = model.state_dict()
    positions = "clip_model.visual.positional_embedding"
    grid = other.config.grid
    state[positions] = resize_grid_positions(state[positions], (grid, grid))
    state["fim_pos_embed"] = other.fim_pos_embed.detach()
    other.load_state_dict(state)
    return other.to(model.device)


@torch.no_grad()
def start_centred(model: CounTX, images: Tensor, names: Sequence[str]) -> CounTX:
    """Let a fresh model start with patches and texts of mean zero and unit
    deviation; in place.

    CLIP learned directions, not lengths or means, and CounTX normalises neither patches
    nor text. Those of ``mini-vit`` are long beside what a fresh block adds, and share a
    mean longer than what tells them apart. The authors' training of 457,000 steps finds
    its way from anywhere; one of a few hundred does not. So the projection of the image
    tower is shortened, the first text bias starts by taking the mean patch off, and
    ``wv`` by taking the mean text off. Neither shapes nor the method change.

    Args:
        model: fresh.
        images: (M, 3, size, W) uint8, some training pictures; their left
            squares are looked at.
        names: what training counts, "dogs".
    """
    pixels = model.preprocess(
        images[..., : model.config.window].to(model.device).float() / 255
    )
    patches = torch.cat([model.encode_image(part) for part in pixels.split(100)])
    texts = model.encode_text(
        model.tokenize([f"the {name.removeprefix('the ')}" for name in names])
    )[:, 0]
    length, mean, spread = patches.std(), texts.mean(0), (texts - texts.mean(0)).std()
    tower, blocks = model.clip_model.visual, interaction_blocks(model)
    assert isinstance(tower, VisionTransformer)  # CounTXConfig allows no other
    tower.proj.div_(length)
    for block in blocks:
        block.attn.wv.weight.div_(spread)
        block.attn.wv.bias.sub_(block.attn.wv.weight @ mean)
    blocks[0].attn.proj.bias.sub_(patches.mean((0, 2, 3)) / length)
    return model


def interaction_blocks(model: CounTX) -> list[InteractionBlock]:
    """Return the blocks in which the patches read the text, first to last."""
    return [block for block in model.fim_blocks if isinstance(block, InteractionBlock)]


def scene_batches(
    scenes: DescribedScenes,
    schedule: Schedule,
    seed: int,
    device: torch.device | str = "cpu",
) -> Callable[[int], Batch]:
    """Return ``step -> Batch``, a pure function of the step: images, and ``each``
    questions about every one.

    Questions 0 ... each - 1 are about the first image and so on. Half of the images are
    mirrored, half of the questions lack the article: FSC-147-D's "the dogs" and the
    bare "dogs" are both learned.
    """
    images = scenes.image.to(device)

    def batch(step: int) -> Batch:
        drawn = seeded(seed, step, 3)
        rows = drawn.choice(
            len(scenes), schedule.images, replace=len(scenes) < schedule.images
        )
        image = images[torch.as_tensor(rows, device=device)].float() / 255
        mirrored = drawn.random(len(rows)) < 0.5
        image[torch.as_tensor(mirrored)] = image[torch.as_tensor(mirrored)].flip(-1)
        height, width = image.shape[-2:]
        texts, points = [], []
        for row, turned in zip(rows.tolist(), mirrored, strict=True):
            for question in _pick(scenes.asked[row], schedule, drawn):
                texts.append(("the " if drawn.random() < 0.5 else "") + question.text)
                there = scenes.center[row][list(question.objects)]
                points.append(
                    torch.stack([width - there[:, 0], there[:, 1]], dim=1)
                    if turned
                    else there
                )
        points = [there.to(device) for there in points]
        return Batch(
            image,
            texts,
            points=points,
            density=density_map(points, (height, width), scenes.sigma),
        )

    return batch


def _pick(
    asked: Sequence[Asked], schedule: Schedule, drawn: np.random.Generator
) -> list[Asked]:
    """Draw the questions of a scene, the kinds alike; where there are fewer than asked
    for, some twice.

    Unless ``schedule.everything``, only for what fills the picture, as FSC-147 does: by
    its name or by name and colour.
    """
    options = [a for a in asked if schedule.everything or a.plain == asked[0].plain]
    weights = np.array(
        [1.0 / sum(other.kind == a.kind for other in options) for a in options]
    )
    number = min(schedule.each, len(options))
    chosen = drawn.choice(
        len(options), number, replace=False, p=weights / weights.sum()
    )
    return [options[chosen[i % number]] for i in range(schedule.each)]


def counting_loss(model: CounTX, batch: Batch) -> dict[str, Tensor]:
    """Return the density loss of a batch whose questions come in equal numbers per
    image; ``mask`` 255, the same for all images, is left out."""
    asked = required(batch.caption, "caption")
    density = required(batch.density, "density")[:, 0]
    patches = model.encode_image(model.preprocess(batch.image))
    patches = patches.repeat_interleave(len(asked) // len(batch), dim=0)
    text = model.encode_text(model.tokenize(asked))
    output = model.decode(model.interact(patches, text))
    kept = None if batch.mask is None else (batch.mask[0] != 255).float()
    loss = density_loss(output, DENSITY_SCALE * density, kept)
    counts = output.detach().sum((1, 2)) / DENSITY_SCALE
    error = (counts - density.sum((1, 2))).abs().mean()
    return {"loss": loss, "count_error": error}


def training(
    model: CounTX, batches: Callable[[int], Batch], schedule: Schedule, seed: int
) -> Training:
    """Return the training of a model, whose towers are frozen at once as ``schedule``
    says.

    As in the authors' loss, a random fifth of the pixels is left out in every step.
    """
    model.freeze(image_tower=schedule.frozen)

    def masked(step: int) -> Batch:
        batch = batches(step)
        height, width = batch.image.shape[-2:]
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        kept = random_pixel_mask((height, width), generator).to(batch.image.device)
        # one mask for all images, said per image: processes share a batch by rows
        mask = torch.where(kept > 0, 0, 255).expand(len(batch), -1, -1)
        asked = required(batch.caption, "caption")
        asked = [BLIND_TEXT] * len(asked) if schedule.blind else asked
        return replace(batch, caption=asked, mask=mask)

    return Training(model, counting_loss, masked, schedule.config(seed))


def train(
    model: CounTX,
    batches: Callable[[int], Batch],
    schedule: Schedule,
    seed: int,
    progress: str | None = None,
    out: Path | None = None,
) -> History:
    """Train in place, as :func:`training` says."""
    return training(model, batches, schedule, seed).fit(out, progress)


def counter_of(model: CounTX, text: str | None = None) -> Counter:
    """Return the model as a counter of square images; ``text`` replaces
    whatever is asked."""

    @torch.no_grad()
    def count(batch: Batch) -> Tensor:
        asked = required(batch.caption, "caption")
        asked = asked if text is None else [text] * len(asked)
        return model.predict(batch.image, asked).sum((1, 2))

    return count


def paper_learning_rate(
    epoch: float,
    lr: float = 6.25e-6,
    warmup: float = 10,
    epochs: float = 1000,
    least: float = 0.0,
) -> float:
    """Return the authors' learning rate at a fractional ``epoch``: linear from 0, then
    half a cosine to ``least``."""
    if epoch < warmup:
        return lr * epoch / warmup
    return least + (lr - least) * 0.5 * (
        1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))
    )
