"""What both counting chapters share: questions, scenes whose test classes were never
counted, and three baselines.

A *question* is an image and the name of what to count in it. One image can carry
several: that is what separates counting what the words say from counting what
there is most of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.batch import Batch, required
from minilib.datasets.density import dot_map, smooth
from minilib.metrics.counting import CountErrors, count_errors
from minilib.models.clip import CLIP, prompt_ensemble
from minilib.recipes.shared.randomness import seeded
from minilib.scenes import VOCABULARY, EmojiScenes, SceneConfig
from minilib.scenes.renderer import density_map

Counter = Callable[[Batch], Tensor]
"""A batch of questions (image, caption = what to count) to their counts (B,)."""


@dataclass(frozen=True)
class Questions:
    """N questions about M images of H x W pixels."""

    image: Tensor
    """(M, 3, H, W) uint8."""
    about: Tensor
    """(N,) int64, the image of each question."""
    asked: tuple[str, ...]
    """What to count, N plural names."""
    points: tuple[Tensor, ...]
    """Per question (n, 2) float centres of what is to be counted, x y in pixels."""
    sigma: float = 1.5
    """Standard deviation of the target density's bells, in pixels."""

    def __len__(self) -> int:
        return len(self.about)

    @property
    def names(self) -> tuple[str, ...]:
        """The different names asked for, sorted."""
        return tuple(sorted(set(self.asked)))

    @property
    def counts(self) -> Tensor:
        """The true answers, (N,) float."""
        return torch.tensor([float(len(points)) for points in self.points])

    def take(self, indices: Sequence[int]) -> Questions:
        """Return only the questions ``indices``, about the same images."""
        rows = torch.as_tensor(list(indices), dtype=torch.int64)
        kept = rows.tolist()
        return Questions(
            self.image, self.about[rows], tuple(self.asked[i] for i in kept),
            tuple(self.points[i] for i in kept), self.sigma,
        )  # fmt: skip

    def batch(
        self,
        indices: Sequence[int],
        device: torch.device | str = "cpu",
        mirror: Sequence[bool] | None = None,
    ) -> Batch:
        """Return the questions ``indices`` with ``caption`` = what to count, ``points``
        and ``density``.

        Args:
            indices: which questions.
            device: where the batch lives.
            mirror: which of them to show left-right reversed; None = none.
        """
        rows = [int(i) for i in indices]
        image = self.image[self.about[rows]].to(device).float() / 255
        points = [self.points[i].to(device) for i in rows]
        height, width = image.shape[-2:]
        for place, turned in enumerate(mirror or ()):
            if turned:
                image[place] = image[place].flip(-1)
                points[place] = torch.stack(
                    [width - points[place][:, 0], points[place][:, 1]], dim=1
                )
        density = density_map(points, (height, width), self.sigma)
        return Batch(
            image, caption=[self.asked[i] for i in rows], points=points, density=density
        )

    def stream(
        self, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> Callable[[int], Batch]:
        """Return ``step -> Batch``, a pure function of the step: shuffled epochs, half
        of the images mirrored."""

        def batch(step: int) -> Batch:
            places = range(step * batch_size, (step + 1) * batch_size)
            rows = [
                int(_shuffle(len(self), seed, p // len(self))[p % len(self)])
                for p in places
            ]
            mirror = seeded(seed, step, 1).random(batch_size) < 0.5
            return self.batch(rows, device, mirror.tolist())

        return batch


@lru_cache(maxsize=8)
def _shuffle(n: int, seed: int, epoch: int) -> np.ndarray:
    return seeded(seed, epoch, 0).permutation(n)


@dataclass(frozen=True)
class CountingScenes:
    """Scenes to count in: one class is asked for, others are mixed in."""

    size: int = 96
    """Image side in pixels."""
    count: tuple[int, int] = (1, 30)
    """Least and largest number of objects asked for."""
    distractors: tuple[int, int] = (0, 15)
    """Least and largest number of objects of other classes."""
    scale: tuple[float, float] = (0.55, 1.0)
    """Object side relative to its cell."""
    jitter: float = 1.2
    """Above 1 neighbours may hide a part of each other."""
    sigma: float = 1.5
    """Standard deviation of the target density's bells, in pixels."""

    def scenes(
        self,
        classes: Sequence[str],
        device: torch.device | str = "cpu",
        shape: tuple[int, int] | None = None,
    ) -> EmojiScenes:
        """Return the scenes that show ``classes`` alone.

        ``shape`` is (height, width) in pixels instead of the square of ``size``.
        """
        config = SceneConfig(
            size=shape or self.size,
            count=self.count,
            distractors=self.distractors,
            scale=self.scale,
            jitter=self.jitter,
            tint=0.0,
            classes=tuple(classes),
        )
        return EmojiScenes(config, device=device)


def counted_classes(part: str) -> tuple[str, ...]:
    """Return the class names of ``part``: every fifth class of the vocabulary is a
    "test" class, the rest "train".

    As in FSC-147, whose 29 test classes do not occur in training. The frozen CLIP has
    seen all names in captions.

    Raises:
        ValueError: another part.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part={part!r}: expected 'train' or 'test'")
    return tuple(c.name for c in VOCABULARY if (c.index % 5 == 2) == (part == "test"))


def validation_target(
    points: Tensor, size: tuple[int, int], new_size: tuple[int, int], sigma: float = 1.0
) -> Tensor:
    """Return the map whose sum VLCounter's authors take for the true count: points
    (n, 2) of an image resized.

    Points that fall on one pixel merge, so that the sum can be lower than their number;
    CounTX takes the number.

    Args:
        points: x y in pixels of the image as it was.
        size: (H, W) of the image as it was.
        new_size: (H, W) after resizing.
        sigma: standard deviation of the bells, in pixels.
    """
    scale = torch.tensor(
        [new_size[1] / size[1], new_size[0] / size[0]], dtype=torch.float64
    )
    pixels = (points.double() * scale).trunc()
    return smooth(dot_map(pixels, new_size, merge=True, clamp=True), sigma)


@torch.no_grad()
def answers(
    counter: Counter,
    questions: Questions,
    device: torch.device | str = "cpu",
    batch_size: int = 40,
) -> Tensor:
    """Return the counter's answers to all questions, (N,) on the host."""
    rows = torch.arange(len(questions)).split(batch_size)
    return torch.cat(
        [counter(questions.batch(part.tolist(), device)).float().cpu() for part in rows]
    )


def window_counter(density: Callable[[Tensor, str], Tensor]) -> Counter:
    """Return a counter of images of any shape, one at a time, such as through windows.

    Args:
        density: image (3, H, W) in [0, 1] and what to count -> density (H', W') whose
            sum is the count; a model's own ``density``, with ``functools.partial`` for
            its options.
    """

    @torch.no_grad()
    def count(batch: Batch) -> Tensor:
        pairs = zip(batch.image, required(batch.caption, "caption"), strict=True)
        return torch.stack([density(image, asked).sum() for image, asked in pairs])

    return count


def evaluate(
    counter: Counter, questions: Questions, device: torch.device | str = "cpu"
) -> CountErrors:
    """Return the counter's errors over all questions, unrounded."""
    return count_errors(answers(counter, questions, device), questions.counts)


# --- Baselines ------------------------------------------------------------------------


def training_mean(train: Questions, by_name: bool = False) -> Counter:
    """Answer every question with the mean training count; ``by_name``, with the mean of
    questions of the same name."""
    return _constant(train, Tensor.mean, by_name)


def best_constant(train: Questions, by_name: bool = False) -> Counter:
    """Answer every question with the median training count, which no other constant
    beats in mean absolute error there; ``by_name``, with that of questions of the same
    name."""
    # of an even number, torch's median is the lower middle one: as good as any between
    return _constant(train, Tensor.median, by_name)


def _constant(
    train: Questions, of: Callable[[Tensor], Tensor], by_name: bool
) -> Counter:
    overall, counts = of(train.counts), train.counts
    known = {name: of(counts[rows]) for name, rows in _by_name(train, by_name).items()}

    def count(batch: Batch) -> Tensor:
        asked = required(batch.caption, "caption")
        return torch.stack([known.get(name, overall) for name in asked])

    return count


def _by_name(questions: Questions, wanted: bool = True) -> dict[str, list[int]]:
    """Return the questions of each name, or nothing if that is not wanted."""
    names = questions.names if wanted else ()
    return {
        name: [i for i, asked in enumerate(questions.asked) if asked == name]
        for name in names
    }


@torch.no_grad()
def similarity_map(
    clip: CLIP, image: Tensor, asked: Sequence[str], template: str = "a photo of {}"
) -> Tensor:
    """Return the cosine between every patch and the words, (B, h, w): raw CLIP,
    nothing learned."""
    patches = clip.encode_patches(clip.standardise(image), normalize=True)
    tokens = clip.tokenize([template.replace("{}", name) for name in asked])
    words = prompt_ensemble(clip.encode_text(tokens)[:, None])  # (E, B)
    return torch.einsum("behw,eb->bhw", patches, words)


@torch.no_grad()
def similarity_threshold(
    clip: CLIP,
    train: Questions,
    device: torch.device | str = "cpu",
    most: int = 320,
    by_name: bool = False,
) -> tuple[Counter, dict[str, dict[str, float]]]:
    """Count without a detector: blobs of CLIP's similarity map above a threshold,
    fitted to the training questions.

    The map is enlarged to the image, cut at ``threshold`` standard deviations above
    its own mean, and its connected blobs are counted; a line, count = ``slope`` *
    blobs + ``offset``, corrects for blobs that touch. The threshold with the least
    training error wins.

    Args:
        clip: whose map is cut.
        train: what to fit to; at most ``most`` of them, spread evenly over all.
        device: where the maps are made.
        most: questions to fit to, and of each name to fit to.
        by_name: fit questions of the same name apart, for names whose usual numbers
            differ widely; other names get the common fit.

    Returns:
        the counter, and the three numbers of each fit with its training MAE, by name;
        "" names the common fit.
    """
    parts = {"": list(range(len(train))), **_by_name(train, by_name)}
    fits = {
        name: _fitted_blobs(clip, train.take(_spread(rows, most)), device)
        for name, rows in parts.items()
    }

    def counter(batch: Batch) -> Tensor:
        asked = required(batch.caption, "caption")
        chosen = [fits.get(name, fits[""]) for name in asked]
        pairs = zip(_enlarged(clip, batch), chosen, strict=True)
        counts = [
            fit["slope"] * _blobs(one[None], fit["threshold"])[0] + fit["offset"]
            for one, fit in pairs
        ]
        return torch.tensor(counts)

    return counter, fits


def _spread(rows: Sequence[int], most: int) -> list[int]:
    """Return at most ``most`` of the rows, from first to last at even distances."""
    if len(rows) <= most:
        return list(rows)
    return [rows[int(i)] for i in np.linspace(0, len(rows) - 1, most).round()]


def _fitted_blobs(
    clip: CLIP, questions: Questions, device: torch.device | str
) -> dict[str, float]:
    """Return "threshold", "slope" and "offset" with the least "mae" on questions."""
    rows = torch.arange(len(questions)).split(40)
    batches = [questions.batch(r.tolist(), device) for r in rows]
    maps = [_enlarged(clip, batch) for batch in batches]
    truth = questions.counts.double().numpy()
    best: dict[str, float] = {"mae": float("inf")}
    for threshold in np.arange(0.0, 2.6, 0.25):
        blobs = np.concatenate([_blobs(m, threshold) for m in maps])
        design = np.stack([blobs, np.ones_like(blobs)], axis=1)
        slope, offset = np.linalg.lstsq(design, truth, rcond=None)[0]
        mae = float(np.abs(slope * blobs + offset - truth).mean())
        if mae < best["mae"]:
            best = {
                "threshold": float(threshold),
                "slope": float(slope),
                "offset": float(offset),
                "mae": mae,
            }
    return best


def _enlarged(clip: CLIP, batch: Batch) -> Tensor:
    """Return the similarity map at the image's size, in its own standard
    deviations, (B, H, W)."""
    small = similarity_map(clip, batch.image, required(batch.caption, "caption"))
    large = F.interpolate(small[:, None], size=batch.image.shape[-2:], mode="bicubic")[
        :, 0
    ]
    return (large - large.mean((1, 2), keepdim=True)) / large.std(
        (1, 2), keepdim=True
    ).clamp_min(1e-6)


def _blobs(maps: Tensor, threshold: float) -> np.ndarray:
    """Return the number of connected regions above ``threshold`` in each map
    (B, H, W), as (B,) float."""
    from scipy import ndimage  # slow to import

    return np.array(
        [float(ndimage.label(m > threshold)[1]) for m in maps.cpu().numpy()]
    )
