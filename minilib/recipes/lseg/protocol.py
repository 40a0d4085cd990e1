"""The authors' released models on FSS-1000, by the paper's protocol (Table 3). Needs
their weights and the data::

    checkpoint = load_checkpoint("fss_l16.ckpt")
    model, clip = LSeg.from_official(checkpoint), text_tower(checkpoint)
    classes = read_classes("fss/test.txt")
    score = evaluate_fss(model, clip, "FSS-1000", classes, device="cuda")
    print(100 * score.mean_iou())  # the paper: 87.8
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minilib import weights
from minilib.datasets.decode import read_picture, read_stored
from minilib.metrics.segmentation import EpisodeScore
from minilib.models.clip import CLIP
from minilib.models.lseg import LSeg, embed_labels

SIDE = 480
"""Side in pixels to which images and masks are resized, whatever their shape."""
OTHERS = "others"


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a released Lightning checkpoint, without running any code
    that it may carry.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, or holds more than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}: the authors link theirs from "
            "github.com/isl-org/lang-seg (Google Drive)"
        )
    return weights.load_checkpoint(path)


def read_classes(path: str | Path) -> list[str]:
    """Return the class names of a split file, one a line (the published ones end lines
    with CR LF), sorted."""
    return sorted(
        line.strip()
        for line in Path(path).read_text("utf-8").splitlines()
        if line.strip()
    )


def read_pair(folder: Path, number: int) -> tuple[Tensor, Tensor]:
    """Return image (3, SIDE, SIDE) in [0, 1] and mask (SIDE, SIDE) 0 / 1 of one
    example of a class.

    The image is resized bilinearly and the mask by the nearest pixel; grey of 128 and
    above is the object.

    Raises:
        FileNotFoundError: a picture is not there.
        BadFile: it cannot be read.
    """
    mask = read_stored(folder / f"{number}.png")
    image = read_picture(folder / f"{number}.jpg", mask.size.__eq__)
    resized = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized))
    grey = torch.from_numpy(np.array(mask.convert("L")))
    target = F.interpolate(grey[None, None].float(), (SIDE, SIDE), mode="nearest")[0, 0]
    return rearrange(pixels, "h w c -> c h w").float() / 255, (target >= 128).long()


@torch.no_grad()
def evaluate_fss(
    model: LSeg,
    clip: CLIP,
    folder: str | Path,
    classes: Sequence[str],
    device: torch.device | str = "cpu",
    examples: Sequence[int] = range(1, 11),
) -> EpisodeScore:
    """Score every example of the test classes: is each pixel the class, or "others"?

    Args:
        model: from the authors' weights.
        clip: the text tower that they were trained with.
        folder: FSS-1000, with ``<class>/<number>.jpg`` and ``.png``.
        classes: the test classes; their names are fed as they are, underscores and
            spelling mistakes included.
        device: where to compute.
        examples: numbers of the examples; all ten with no shots.

    Raises:
        FileNotFoundError: a class or an example is missing.
    """
    folder = Path(folder).expanduser()
    model, clip = model.to(device).eval(), clip.to(device).eval()
    score = EpisodeScore(range(len(classes)))
    for number, name in enumerate(tqdm(classes, desc="FSS-1000", unit="class")):
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f"no folder {folder / name}: expected FSS-1000's, one for each class"
            )
        text = embed_labels(clip, [OTHERS, name])
        for example in examples:
            image, target = read_pair(folder / name, example)
            scores = model(model.preprocess(image[None].to(device)), text).scores
            prediction = scores.argmax(dim=1)
            score.update(prediction, target[None], torch.tensor([number]))
    return score
