"""Chapter 2's values per profile, CamVid as a study, and the trainings that
its claims compare."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from minilib.recipes.lseg import recipe
from minilib.recipes.lseg.recipe import Lab, Segmenter, Study
from minilib.recipes.shared.photographs import CamVidStream, camvid
from minilib.recipes.shared.segmentation import LabelSpace
from minilib.training import History, Training


@dataclass(frozen=True)
class Values:
    """What differs between profiles; everything else is the same code."""

    lab: Lab = field(default_factory=Lab)
    """The size of everything."""
    fewer: tuple[int, ...] = (9,)
    """Numbers of seen words to compare with all of them; the first one is
    the control of C3."""
    blocks: tuple[tuple[str, int], ...] = ()
    """Blocks after the correlation to compare with none: (kind, depth)."""
    centred: bool = False
    """Also train with the words' vectors less what all words have in common."""
    share: float = 1.0
    """Also train with only this share of the masks."""
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


def scenes_study(
    values: Values,
    seed: int,
    device: torch.device | str = "cpu",
    seen_classes: int | None = None,
) -> Study:
    """Return EmojiScenes with the words of one fold unseen; see
    ``recipe.scenes_study``."""
    return recipe.scenes_study(values.lab, seed, device, fold(seed), seen_classes)


def study_of(
    values: Values,
    seed: int,
    device: torch.device | str = "cpu",
    data: str | Path = "",
    *,
    profile: str,
) -> Study:
    """Return what a profile trains and tests on.

    Raises:
        ValueError: profile ``photos`` without ``data``.
    """
    if profile == "photos":
        return photos_study(values, seed, device, data)
    return scenes_study(values, seed, device)


def photos_study(
    values: Values,
    seed: int,
    device: torch.device | str = "cpu",
    data: str | Path = "",
    held_out: tuple[str, ...] | None = None,
) -> Study:
    """Return CamVid with the classes of one fold unseen; ``held_out=()``
    trains on all eleven.

    Pixels of unseen classes are in the training frames, without a label.
    There is no "other".

    Raises:
        ValueError: no folder given.
        FileNotFoundError: the folder is not CamVid as
            ``data_scripts/get_camvid.py`` lays it out.
    """
    train, test = (camvid(data, split, values.frame) for split in ("train", "test"))
    held_out = HELD_OUT[fold(seed)] if held_out is None else held_out
    unseen = tuple(train.names.index(name) for name in held_out)
    seen = tuple(i for i in range(len(train.names)) if i not in unseen)
    frames = test.batch(range(len(test)), device)
    return Study(
        labels=LabelSpace(train.names, seen, unseen),
        batches=CamVidStream(train, values.lab.batch_size, seed, "shift", device),
        test={"seen": frames, "unseen": frames} if unseen else {"seen": frames},
    )


def main_training(
    profile: str, seed: int, device: torch.device | str = "cpu", *, data: str = ""
) -> Training:
    """Return the chapter's main training for ``minilib.train``: the words of the text
    tower, one fold unseen.

    Raises:
        ValueError: the profile trains nothing here, or ``photos`` without ``data``.
    """
    if profile not in PROFILES:
        raise ValueError(
            f"profile={profile!r} trains nothing here: expected one of "
            f"{', '.join(PROFILES)}"
        )
    values = PROFILES[profile]
    study = study_of(values, seed, device, data, profile=profile)
    return study_training(values, study, seed, device)


def study_training(
    values: Values, study: Study, seed: int, device: torch.device | str = "cpu"
) -> Training:
    """Return the training that is watched: seen and unseen mIoU along the way."""
    model = recipe.build(values.lab, study, "words", seed, device)
    return recipe.make_training(model, study, values.lab, seed, values.lab.evaluations)


def main_model(
    values: Values, study: Study, seed: int, device: torch.device | str, out: Path
) -> tuple[Segmenter, History]:
    """Train the segmenter with words; an interrupted training resumes."""
    training = study_training(values, study, seed, device)
    history = training.fit(out / "main", progress="LSeg")
    return training.model.eval(), history


def control(
    values: Values,
    study: Study,
    kind: str,
    seed: int,
    device: torch.device | str,
    out: Path,
    block: str = "none",
    block_depth: int = 1,
) -> Segmenter:
    """Train the same network with other label vectors or another head,
    at the same cost."""
    head = [] if block == "none" else [block, str(block_depth)]
    name = "-".join([kind, *head, str(len(study.labels.seen))])
    model, _ = recipe.train(
        values.lab,
        study,
        kind,
        seed,
        device,
        progress=name,
        out=out / name,
        block=block,
        block_depth=block_depth,
    )
    return model.eval()


def by_class(model: Segmenter, study: Study) -> dict[str, float]:
    """Return the IoU of every word of CamVid, all words being asked
    for, seen or not."""
    names = study.labels.names
    result = recipe.score(model, study, "seen", labels=tuple(range(len(names))))
    return dict(zip(names, result.iou().tolist(), strict=True))


def fewer_words(
    values: Values, seed: int, device: torch.device | str, count: int
) -> Study:
    """Return the fold of ``seed`` with ``count`` seen words; what is tested
    does not change."""
    return scenes_study(values, seed, device, count)


def fewer_masks(values: Values, study: Study, share: float) -> Study:
    """Return the study with only the first ``share`` of its training batches,
    again and again.

    Raises:
        ValueError: a share that leaves no batch, or more than all.
    """
    batches = int(share * values.lab.steps)
    if not 1 <= batches <= values.lab.steps:
        raise ValueError(
            f"share={share}: expected at least one of {values.lab.steps} batches and "
            "at most all of them"
        )
    return replace(study, batches=lambda step: study.batches(step % batches))


def all_classes(
    values: Values, seed: int, device: torch.device | str, data: str | Path
) -> Study:
    """Return CamVid with all eleven classes seen."""
    return photos_study(values, seed, device, data, held_out=())


def text_cosines(words: tuple[str, ...]) -> Tensor:
    """Return the cosines (N, N) between the words' vectors."""
    vectors = recipe.label_vectors(recipe.text_tower(), words)
    return vectors @ vectors.T
