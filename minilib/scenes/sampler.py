"""What goes where: scene layouts drawn from a counter-based random stream.

Nothing is drawn from global state. Every number of scene ``index`` is a hash of
(seed, split, index, purpose), so scene 17 is the same whether it is drawn alone, in a
batch or after a resume, and splits can never share scenes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from einops import rearrange

from minilib.scenes.backgrounds import BACKGROUNDS
from minilib.scenes.vocabulary import VOCABULARY, find

VERSION = 1
"""Raised whenever the same (seed, split, index) would give a different scene."""

SPLITS = ("train", "val", "test")
TASKS = ("pairs", "classify", "segment", "detect", "count", "multilabel", "hierarchy")
STYLES = ("noto", "openmoji", "twemoji")
TINTS = {
    "red": (0.93, 0.16, 0.14),
    "green": (0.15, 0.70, 0.25),
    "blue": (0.18, 0.38, 0.95),
    "yellow": (0.98, 0.85, 0.12),
    "purple": (0.62, 0.22, 0.85),
    "pink": (1.00, 0.50, 0.75),
}
"""Named colour attributes and their RGB."""
FREQUENCY_WEIGHT = {"frequent": 30.0, "common": 6.0, "rare": 1.0}
"""How often a class of each LVIS-like frequency band is drawn when
``long_tail`` is on."""


@dataclass(frozen=True)
class SceneConfig:
    """The knobs of EmojiScenes. Probabilities are in [0, 1], lengths in fractions
    unless they say pixels."""

    size: int | tuple[int, int] = 64
    """Image side, or (height, width), in pixels."""
    styles: tuple[str, ...] = ("noto",)
    """Drawing styles; one is drawn for each scene."""
    classes: tuple[str, ...] | None = None
    """Names of the classes that may occur; None = all of the vocabulary."""
    backgrounds: tuple[str, ...] | None = None
    """Names of the backgrounds that may occur; None = all."""
    objects: tuple[int, int] = (1, 4)
    """Smallest and largest number of objects (not for ``classify``, always
    1, or ``count``)."""
    count: tuple[int, int] = (1, 60)
    """Smallest and largest number of counted objects in a ``count`` scene."""
    distractors: tuple[int, int] = (0, 6)
    """Smallest and largest number of objects of other classes in a ``count`` scene."""
    scale: tuple[float, float] = (0.6, 1.0)
    """Object side relative to its grid cell (the whole image for a single object)."""
    jitter: float = 0.8
    """0 = centred in its cell, 1 = anywhere in it; above 1 neighbours start to
    occlude each other."""
    rotation: float = 15.0
    """Largest rotation in degrees, either way."""
    flip: bool = True
    """Mirror half of the objects."""
    tint: float = 0.25
    """Probability that an object carries one of the colours of TINTS."""
    combinations: str = "all"
    """``seen`` leaves out one tint for each class (so a sixth of all pairs), ``unseen``
    shows only those."""
    repeat: float = 0.3
    """Probability that a further object is of the first object's class
    (plural captions)."""
    cooccurrence: float = 0.5
    """Probability that the background is the habitat of the first object; otherwise it
    is drawn uniformly."""
    long_tail: bool = False
    """Draw classes with LVIS-like frequencies instead of uniformly."""

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: a value is outside its range, with the range.
            KeyError: an unknown class name, with the nearest names.
        """
        height, width = self.shape
        if min(height, width) < 16:
            raise ValueError(
                f"size={self.size!r}: a scene needs at least 16 pixels per side"
            )
        for field, allowed in (("styles", STYLES), ("backgrounds", tuple(BACKGROUNDS))):
            chosen = getattr(self, field)
            if chosen is not None and (not chosen or set(chosen) - set(allowed)):
                raise ValueError(
                    f"{field}={chosen!r}: expected one or more of {', '.join(allowed)}"
                )
        if self.classes is not None and not self.classes:
            raise ValueError(
                "classes=(): expected at least one class name, or None for the whole "
                "vocabulary"
            )
        for name in self.classes or ():
            find(name)
        for field, least in (("objects", 1), ("count", 0), ("distractors", 0)):
            low, high = getattr(self, field)
            if not least <= low <= high:
                raise ValueError(
                    f"{field}={(low, high)}: expected {least} <= smallest <= largest"
                )
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale={self.scale}: expected 0 < smallest <= largest")
        if self.jitter < 0 or self.rotation < 0:
            raise ValueError(
                f"jitter={self.jitter}, rotation={self.rotation}: expected 0 or more"
            )
        if self.combinations not in ("all", "seen", "unseen"):
            raise ValueError(
                f"combinations={self.combinations!r}: expected 'all', 'seen' or "
                "'unseen'"
            )
        for field in ("tint", "repeat", "cooccurrence"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(
                    f"{field}={getattr(self, field)!r}: expected a probability in [0, "
                    "1]"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class Layout:
    """B scenes of up to S objects, as numpy arrays. Slots beyond an image's objects
    hold concept -1.

    Later slots are painted over earlier ones.
    """

    concept: np.ndarray
    """(B, S) int64 vocabulary index, -1 = empty slot."""
    center: np.ndarray
    """(B, S, 2) float, x y in pixels."""
    side: np.ndarray
    """(B, S) float, side of the drawing's square in pixels."""
    angle: np.ndarray
    """(B, S) float, radians, clockwise on the screen."""
    flipped: np.ndarray
    """(B, S) bool."""
    tint: np.ndarray
    """(B, S) int64 index into TINTS, -1 = natural colours."""
    style: np.ndarray
    """(B,) int64 index into STYLES."""
    background: np.ndarray
    """(B,) int64 index into BACKGROUNDS."""
    surface: np.ndarray
    """(B, 8) float in [0, 1): where the background is cut out, and its colour."""
    target: np.ndarray | None
    """(B,) int64 the counted class (task ``count`` only)."""


class Stream:
    """Random numbers that are a pure function of (seed, split, index, purpose).

    The mixer is SplitMix64 (Steele et al. 2014), a bijection of 64-bit integers that
    passes BigCrush.
    """

    def __init__(self, seed: int, split: str, index: np.ndarray) -> None:
        """Key one stream per scene of ``index`` (B,)."""
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
        if seed < 0:
            raise ValueError(f"seed={seed}: expected 0 or a positive integer")
        number = seed * len(SPLITS) + SPLITS.index(split)
        if number >= 2**64:
            raise ValueError(f"seed={seed}: expected less than 2**64 / {len(SPLITS)}")
        root = _mix(np.array([number], dtype=np.uint64))
        self.key = _mix(root + np.asarray(index, dtype=np.uint64))

    def uniform(self, purpose: str, *shape: int) -> np.ndarray:
        """Return (B, *shape) floats in [0, 1)."""
        start = _mix(self.key ^ np.uint64(zlib.crc32(purpose.encode())))
        counter = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
        bits = _mix(start[:, None] + counter * np.uint64(0x9E3779B97F4A7C15))
        return (bits >> np.uint64(11)).astype(np.float64).reshape(
            len(start), *shape
        ) * 2.0**-53

    def between(self, purpose: str, low: float, high: float, *shape: int) -> np.ndarray:
        """Return (B, *shape) floats in [low, high)."""
        return low + (high - low) * self.uniform(purpose, *shape)

    def integers(self, purpose: str, low: int, high: int, *shape: int) -> np.ndarray:
        """Return (B, *shape) int64 in [low, high], both included."""
        return (
            low + np.floor(self.uniform(purpose, *shape) * (high - low + 1))
        ).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function on uint64; overflow is intended."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def held_out_tint(concept: np.ndarray) -> np.ndarray:
    """Return the tint index that ``combinations='seen'`` never shows for each
    class, any shape."""
    return (np.asarray(concept) * 5 + 2) % len(TINTS)


def sample_layout(config: SceneConfig, task: str, stream: Stream) -> Layout:
    """Draw one layout per key of ``stream`` for ``task``.

    Raises:
        ValueError: unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}: expected one of {', '.join(TASKS)}")
    number, counted = _numbers(config, task, stream)
    slots = max(1, int(number.max()))
    slot = np.arange(slots)
    used = slot[None] < number[:, None]

    concept, target = _concepts(config, task, stream, slots, counted)
    concept = np.where(used, concept, -1)
    center, side = _places(config, stream, number, slots)
    tinted = stream.uniform("tinted", slots) < config.tint
    tint = np.where(tinted, stream.integers("tint", 0, len(TINTS) - 1, slots), -1)
    if config.combinations != "all":
        held_out = held_out_tint(concept)
        other = (
            held_out + 1 + stream.integers("seen tint", 0, len(TINTS) - 2, slots)
        ) % len(TINTS)
        tint = np.where(
            tint < 0, tint, held_out if config.combinations == "unseen" else other
        )
    style = stream.integers("style", 0, len(config.styles) - 1)
    return Layout(
        concept=concept,
        center=center,
        side=side,
        angle=np.deg2rad(
            stream.between("angle", -config.rotation, config.rotation, slots)
        ),
        flipped=(stream.uniform("flip", slots) < 0.5) & config.flip,
        tint=tint,
        style=np.array([STYLES.index(s) for s in config.styles])[style],
        background=_backgrounds(
            config, stream, concept[:, 0] if target is None else target
        ),
        surface=stream.uniform("surface", 8),
        target=target,
    )


def _numbers(
    config: SceneConfig, task: str, stream: Stream
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many objects each scene holds and how many of them are
    counted, both (B,)."""
    if task == "classify":
        ones = np.ones(len(stream.key), dtype=np.int64)
        return ones, ones
    if task == "count":
        counted = stream.integers("number", *config.count)
        return counted + stream.integers("distractors", *config.distractors), counted
    number = stream.integers("number", *config.objects)
    return number, number


def _concepts(
    config: SceneConfig, task: str, stream: Stream, slots: int, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the class of each slot (B, S) and, for counting, the
    counted class (B,)."""
    allowed = np.array(
        [find(name).index for name in config.classes or [c.name for c in VOCABULARY]]
    )
    bands = [VOCABULARY[i].frequency for i in allowed]
    weight = np.array(
        [FREQUENCY_WEIGHT[band] if config.long_tail else 1.0 for band in bands]
    )
    ladder = np.cumsum(weight / weight.sum())

    def draw(purpose: str, *shape: int) -> np.ndarray:
        position = np.searchsorted(
            ladder, stream.uniform(purpose, *shape), side="right"
        )
        return np.minimum(position, len(allowed) - 1)

    position = draw("concept", slots)
    first = position[:, :1]
    if task != "count":
        again = stream.uniform("repeat", slots) < config.repeat
        return allowed[np.where(again, first, position)], None
    if len(allowed) == 1 and config.distractors[1] > 0:
        raise ValueError(
            "task='count' with one class leaves nothing for distractors: set "
            "distractors=(0, 0)"
        )
    # A distractor must never be of the counted class: step away from it by
    # 1..K-1 places.
    step = 1 + np.floor(
        stream.uniform("distractor", slots) * (len(allowed) - 1)
    ).astype(np.int64)
    other = (first + np.maximum(step, 1)) % len(allowed)
    is_counted = np.arange(slots)[None] < counted[:, None]
    return allowed[np.where(is_counted, first, other)], allowed[first[:, 0]]


def _places(
    config: SceneConfig, stream: Stream, number: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give each object its own cell of a grid that has up to half as many cells again.

    Returns:
        centres (B, S, 2) and sides (B, S), float, in pixels.
    """
    height, width = config.shape
    wanted = np.where(
        number > 1, np.ceil(number * stream.between("cells wanted", 1.0, 1.5)), number
    )
    columns = np.maximum(1, np.ceil(np.sqrt(wanted * width / height)))
    rows = np.maximum(1, np.ceil(wanted / columns))
    cell = np.stack([width / columns, height / rows], axis=-1)  # (B, 2)
    side = stream.between("side", *config.scale, slots) * cell.min(
        axis=-1, keepdims=True
    )

    # A random order of the cells, with those that do not exist last.
    grid = int((columns * rows).max())
    lottery = stream.uniform("cells", max(grid, slots))
    lottery[np.arange(lottery.shape[1])[None] >= (columns * rows)[:, None]] = 2.0
    chosen = np.argsort(lottery, axis=1, kind="stable")[:, :slots]
    corner = np.stack([chosen % columns[:, None], chosen // columns[:, None]], axis=-1)
    room = rearrange(cell, "b xy -> b 1 xy")
    free = np.maximum(room - side[..., None], 0.25 * room) * config.jitter
    center = (corner + 0.5) * room + free * (stream.uniform("jitter", slots, 2) - 0.5)
    half = side[..., None] / 2
    limit = np.array([width, height], dtype=np.float64)
    return np.clip(center, half, np.maximum(limit - half, half)), side


def _backgrounds(config: SceneConfig, stream: Stream, first: np.ndarray) -> np.ndarray:
    """Return the background of each scene (B,): the first object's habitat, or any."""
    names = list(BACKGROUNDS)
    allowed = np.array([names.index(name) for name in config.backgrounds or names])
    any_of_them = allowed[stream.integers("background", 0, len(allowed) - 1)]
    habitats = np.array(
        [names.index(c.habitat) if c.habitat else -1 for c in VOCABULARY]
    )
    habitat = habitats[np.maximum(first, 0)]
    at_home = (
        (stream.uniform("at home") < config.cooccurrence)
        & np.isin(habitat, allowed)
        & (first >= 0)
    )
    return np.where(at_home, habitat, any_of_them)
