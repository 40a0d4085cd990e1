"""Chapter 2's values per profile, CamVid as a study, and the trainings that
its claims compare."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from minilib.claims.chapter import Chapter, Run
from minilib.parameters import Parameters
from minilib.recipes.lseg import recipe
from minilib.recipes.lseg.recipe import Lab, Segmenter, Study
from minilib.recipes.shared.photographs import CamVidStream, camvid
from minilib.recipes.shared.segmentation import LabelSpace
from minilib.training import Training


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


def study(run: Parameters, values: Values) -> Study:
    """Return what a run trains and tests on: one fold of EmojiScenes, or of CamVid."""
    if run.photos:
        return photos_study(values, run.seed, run.device, run.data_path)
    return scenes_study(values, run.seed, run.device)


def scenes_study(
    values: Values,
    seed: int,
    device: torch.device | str = "cpu",
    seen_classes: int | None = None,
) -> Study:
    """Return EmojiScenes with the words of one fold unseen; see
    ``recipe.scenes_study``."""
    return recipe.scenes_study(values.lab, seed, device, fold(seed), seen_classes)


def photos_study(
    values: Values,
    seed: int,
    device: torch.device | str,
    data: Path,
    held_out: tuple[str, ...] | None = None,
) -> Study:
    """Return CamVid with the classes of one fold unseen; ``held_out=()``
    trains on all eleven.

    Pixels of unseen classes are in the training frames, without a label.
    There is no "other".

    Raises:
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
        batches=CamVidStream(train, values.lab.batch_size, seed, device),
        test={"seen": frames, "unseen": frames} if unseen else {"seen": frames},
    )


def main_training(run: Parameters, values: Values, study: Study) -> Training:
    """Return the training that the chapter examines: the words of the text tower, one
    fold unseen, seen and unseen mIoU watched along the way."""
    model = recipe.build(values.lab, study, "words", run.seed, run.device)
    return recipe.make_training(
        model, study, values.lab, run.seed, values.lab.evaluations
    )


def control(
    run: Run[Values, Study],
    study: Study,
    kind: str = "words",
    *,
    block: str = "none",
    block_depth: int = 1,
    out: Path | None = None,
) -> Segmenter:
    """Train the same network with other label vectors, another head or on another
    study, at the same cost.

    Args:
        run: with the size, the seed and the device.
        study: what to train on, such as the run's own.
        kind: of the labels' vectors, see ``recipe.EMBEDDINGS``.
        block: after the correlation, see LSegConfig.
        block_depth: how often it is applied.
        out: where the training gets a folder, named for kind, block and number of seen
            words; by default the run's.
    """
    head = [] if block == "none" else [block, str(block_depth)]
    name = "-".join([kind, *head, str(len(study.labels.seen))])
    model, _ = recipe.train(
        run.values.lab,
        study,
        kind,
        run.seed,
        run.device,
        progress=name,
        out=(out or run.out) / name,
        block=block,
        block_depth=block_depth,
    )
    return model.eval()


def fewer_words(run: Run[Values, Study], count: int) -> Study:
    """Return the run's fold of EmojiScenes with ``count`` seen words; what is tested
    does not change."""
    return scenes_study(run.values, run.seed, run.device, count)


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


def all_classes(run: Run[Values, Study]) -> Study:
    """Return CamVid with all eleven classes seen."""
    return photos_study(run.values, run.seed, run.device, run.data_path, held_out=())


CHAPTER = Chapter(
    "lseg",
    PROFILES,
    study,
    main_training,
    needs={
        "photos": {
            "data": "the folder with CamVid (python data_scripts/get_camvid.py fetches "
            "one)"
        }
    },
    missing={
        "paper": "it needs the authors' checkpoints and their data, see 'At paper "
        "scale' in this chapter"
    },
)

open = CHAPTER.open
