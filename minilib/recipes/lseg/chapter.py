"""Chapter 2's values per profile, CamVid as a study, and the trainings that its claims compare."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilib.batch import Batch
from minilib.datasets.augment import shift_and_mirror
from minilib.datasets.camvid import CamVid, load_camvid
from minilib.parameters import repository
from minilib.recipes.lseg import recipe
from minilib.recipes.lseg.recipe import Lab, Segmenter, Study
from minilib.training import History, Training


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    lab: Lab = field(default_factory=Lab)
    """The size of everything."""
    fewer: tuple[int, ...] = (9,)
    """Numbers of seen words to compare with all of them; the first one is the control of C3."""
    blocks: tuple[tuple[str, int], ...] = ()
    """Blocks after the correlation to compare with none: (kind, depth)."""
    centred: bool = False
    """Also train with the words' vectors less what all words have in common."""
    share: float = 1.0
    """Also train with so many of the masks."""
    frame: tuple[int, int] = (64, 80)
    """Rows and columns of CamVid's frames."""


PROFILES = {
    "quick": Values(),
    "full": Values(
        lab=Lab(classes=56, steps=160, evaluations=5, test_images=240),
        fewer=(8, 20),
        blocks=(("bottleneck", 2), ("depthwise", 4)),
        centred=True,
        share=0.1,
    ),
    "photos": Values(lab=Lab(steps=200, evaluations=2, lr=3e-3)),
}

HELD_OUT = (
    ("sidewalk", "tree", "car"),
    ("building", "sign", "pedestrian"),
    ("road", "fence", "bicyclist"),
    ("sky", "pole"),
)
"""The four folds of CamVid: classes whose masks are not trained on."""


def fold(seed: int) -> int:
    """Return the fold that a seed holds out: three seeds are three folds."""
    return seed % recipe.FOLDS


def study_of(values: Values, profile: str, seed: int, device: torch.device | str = "cpu", data: str = "") -> Study:
    """Return what a profile trains and tests on.

    Raises:
        ValueError: profile ``photos`` without ``data``.
    """
    if profile == "photos":
        return camvid_study(values, data, seed, device)
    return recipe.scenes_study(values.lab, seed, device, fold(seed))


@lru_cache(maxsize=4)
def _camvid(folder: Path, split: str, size: tuple[int, int]) -> CamVid:
    return load_camvid(folder, split, size)


def camvid_study(
    values: Values,
    folder: str | Path,
    seed: int,
    device: torch.device | str = "cpu",
    held_out: tuple[str, ...] | None = None,
) -> Study:
    """Return CamVid with the classes of one fold unseen; ``held_out=()`` trains on all eleven.

    Pixels of unseen classes are in the training frames, without a label. There is no "other".

    Raises:
        ValueError: no folder given.
        FileNotFoundError: the folder is not CamVid as ``data_scripts/get_camvid.py`` lays it out.
    """
    if not str(folder).strip():
        raise ValueError(
            "profile='photos' needs data='FOLDER' with CamVid in it "
            "(python data_scripts/get_camvid.py makes data/camvid)"
        )
    # A relative path is meant from the repository's root: a notebook's kernel starts in another folder.
    root = (repository() or Path.cwd()) / Path(folder).expanduser()
    train, test = (_camvid(root, split, values.frame) for split in ("train", "test"))
    held_out = HELD_OUT[fold(seed)] if held_out is None else held_out
    unseen = tuple(train.names.index(name) for name in held_out)
    frames = test.batch(range(len(test)), device)
    return Study(
        words=train.names,
        seen=tuple(i for i in range(len(train.names)) if i not in unseen),
        unseen=unseen,
        always=(),
        batches=lambda step: _frames(train, values.lab.batch_size, step, seed, device),
        test={"seen": frames, "unseen": frames} if unseen else {"seen": frames},
    )


def _frames(data: CamVid, size: int, step: int, seed: int, device: torch.device | str) -> Batch:
    """Return the batch of ``step``: frames of an endless shuffle, moved by up to an eighth and mirrored."""
    position = torch.arange(step * size, (step + 1) * size)
    epochs = (position // len(data)).unique().tolist()
    order = torch.cat([torch.randperm(len(data), generator=_generator(seed, epoch)) for epoch in epochs])
    batch = data.batch(order[position - epochs[0] * len(data)], device)
    chance = _generator(seed, step, 1)
    reach = min(batch.image.shape[-2:]) // 8
    shift = torch.randint(-reach, reach + 1, (size, 2), generator=chance)
    mirror = torch.rand(size, generator=chance) < 0.5
    mask = shift_and_mirror(batch.mask[:, None], shift, mirror)[:, 0]
    return Batch(image=shift_and_mirror(batch.image, shift, mirror), mask=mask)


def _generator(*numbers: int) -> torch.Generator:
    """Return a generator seeded by all of the numbers."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 1) % (2**62)
    return torch.Generator().manual_seed(state)


def main_training(profile: str, seed: int, device: torch.device | str = "cpu", *, data: str = "") -> Training:
    """Return the chapter's main training for ``minilib.train``: the words of the text tower, one fold unseen.

    Raises:
        ValueError: the profile trains nothing here, or ``photos`` without ``data``.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile={profile!r} trains nothing here: expected one of {', '.join(PROFILES)}")
    values = PROFILES[profile]
    study = study_of(values, profile, seed, device, data)
    return study_training(values, study, seed, device)


def study_training(values: Values, study: Study, seed: int, device: torch.device | str = "cpu") -> Training:
    """Return the training that is watched: seen and unseen mIoU along the way."""
    model = recipe.build(values.lab, study, "words", seed, device)
    return recipe.make_training(model, study, values.lab, seed, values.lab.evaluations)


def main_model(
    values: Values, study: Study, seed: int, device: torch.device | str, out: Path
) -> tuple[Segmenter, History]:
    """Train the segmenter with words; an interrupted training goes on where it stopped."""
    training = study_training(values, study, seed, device)
    history = training.fit(out / "main", progress="LSeg")
    return training.model.eval(), history


def control(
    values: Values, study: Study, kind: str, seed: int, device: torch.device | str, out: Path, **head: Any
) -> Segmenter:
    """Train the same network with other label vectors or another head, at the same cost."""
    name = "-".join([kind, *(str(value) for value in head.values()), str(len(study.seen))])
    model, _ = recipe.train(values.lab, study, kind, seed, device, out=out / name, progress=name, **head)
    return model.eval()


def by_class(model: Segmenter, study: Study) -> dict[str, float]:
    """Return the IoU of every word of CamVid, all words being asked for, seen or not."""
    labels = tuple(range(len(study.words)))
    result = recipe.score(model, study, "seen", labels=labels)
    return dict(zip(study.words, result.iou().tolist(), strict=True))


def fewer_words(values: Values, seed: int, device: torch.device | str, count: int) -> Study:
    """Return the fold of ``seed`` with ``count`` seen words; what is tested does not change."""
    return recipe.scenes_study(values.lab, seed, device, fold(seed), count)


def fewer_masks(values: Values, study: Study, share: float) -> Study:
    """Return the study with only the first ``share`` of its training batches, again and again.

    Raises:
        ValueError: a share that leaves no batch, or more than all.
    """
    batches = int(share * values.lab.steps)
    if not 1 <= batches <= values.lab.steps:
        raise ValueError(f"share={share}: expected at least one of {values.lab.steps} batches and at most all of them")
    return replace(study, batches=lambda step: study.batches(step % batches))


def all_classes(values: Values, folder: str | Path, seed: int, device: torch.device | str) -> Study:
    """Return CamVid with all eleven classes seen."""
    return camvid_study(values, folder, seed, device, held_out=())


def text_cosines(words: tuple[str, ...]) -> Tensor:
    """Return the cosines (N, N) between the words' vectors."""
    vectors = recipe.label_vectors(recipe.text_tower(), words)
    return vectors @ vectors.T
