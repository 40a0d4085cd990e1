"""Fetch CIFAR-10 from its home page and lay it out as one folder of PNG
files per class.

    python data_scripts/get_cifar10.py                  # into data/cifar10
    python data_scripts/get_cifar10.py --out DIR        # into DIR/cifar10
    python data_scripts/get_cifar10.py --archive FILE   # from an archive you have

The result is ``cifar10/train/<class>/NNNNN.png`` (50,000 photographs) and
``cifar10/test/<class>/NNNNN.png`` (10,000), lossless, where NNNNN is the position in
the published order; ``minilib.datasets.load_photos`` reads it. It appears whole or not
at all. Run again after an interruption: a whole archive is not fetched twice. Run again
later: a file that is missing or of another size is mended.

CIFAR-10 was collected by Alex Krizhevsky, Vinod Nair and Geoffrey Hinton; please cite
A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image
from tqdm import tqdm

from minilib.datasets.download import Published, Refused, run

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
LAYOUT_BYTES = 60_000 * 4096  # a file of about 2.3 kB takes up a block

SPLITS = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
NAMES = "batches.meta"


class Split(NamedTuple):
    """The photographs of one split in the published order."""

    pixels: np.ndarray  # (N, 32, 32, 3) uint8
    labels: list[int]


class NumpyUnpickler(pickle.Unpickler):
    """Reads the archive's Python 2 pickles: plain values and numpy arrays, nothing
    that could run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the numpy function called for, and refuse all others."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(
                f"it calls for {module}.{name}, which image data never needs"
            )
        return self.ALLOWED[module, name]


def read_archive(path: Path) -> tuple[list[str], dict[str, Split]]:
    """Return the class names and the splits in the archive.

    Raises:
        Refused: the archive is damaged, or holds anything but the published layout.
    """
    wanted = {NAMES, *SPLITS["train"], *SPLITS["test"]}
    parts: dict[str, dict[bytes, Any]] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            # in the file's order: seeking back in a gzip stream is slow
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in wanted and member.isfile():
                    parts[name] = _unpickle(name, archive.extractfile(member).read())
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise Refused(
            f"{path} is damaged ({error}); delete it and run again"
        ) from error
    if missing := sorted(wanted - set(parts)):
        raise Refused(
            f"{path} lacks {', '.join(missing)}: expected the layout of "
            "cifar-10-python.tar.gz"
        )
    try:
        names = [name.decode("ascii") for name in parts[NAMES][b"label_names"]]
        splits = {
            split: _join([parts[name] for name in files])
            for split, files in SPLITS.items()
        }
        _check(names, splits)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused(
            f"{path} is not laid out as CIFAR-10 ({type(error).__name__}: {error})"
        ) from error
    return names, splits


def _unpickle(name: str, data: bytes) -> dict[bytes, Any]:
    """Return the content of one file of the archive, or raise Refused."""
    try:
        return NumpyUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # foreign bytes make an unpickler raise nearly anything
        raise Refused(
            f"refused to read {name}: {error}; use the archive published at {URL}"
        ) from error


def _join(parts: Sequence[dict[bytes, Any]]) -> Split:
    """Join a split's batches; each row is a photograph's red, then green,
    then blue plane."""
    pixels = np.concatenate([part[b"data"] for part in parts])
    labels = [label for part in parts for label in part[b"labels"]]
    return Split(rearrange(pixels, "n (c h w) -> n h w c", c=3, h=32, w=32), labels)


def _check(names: list[str], splits: dict[str, Split]) -> None:
    """Raise ValueError unless the content can be laid out; names become folders, so
    they must be plain."""
    if wrong := [name for name in names if not re.fullmatch(r"[A-Za-z0-9_ -]+", name)]:
        raise ValueError(f"class name {wrong[0]!r}")
    for split, (pixels, labels) in splits.items():
        if pixels.dtype != np.uint8 or len(pixels) != len(labels):
            raise ValueError(
                f"{split}: {len(pixels)} images of {pixels.dtype}, {len(labels)} labels"
            )
        if not set(labels) <= set(range(len(names))):
            raise ValueError(
                f"{split}: labels {min(labels)} to {max(labels)} for {len(names)} "
                "classes"
            )


def lay_out(archive: Path, folder: Path) -> dict[str, int]:
    """Write the photographs to ``folder/<split>/<class>/NNNNN.png`` and return how
    many each split has."""
    names, splits = read_archive(archive)
    with tqdm(
        total=sum(len(split.labels) for split in splits.values()),
        desc="writing photographs",
        unit="",
    ) as bar:
        for split, (pixels, labels) in splits.items():
            for name in names:
                (folder / split / name).mkdir(parents=True)
            for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                Image.fromarray(image).save(
                    folder / split / names[label] / f"{number:05d}.png"
                )
                bar.update()
    return {split: len(content.labels) for split, content in splits.items()}


CIFAR10 = Published(
    folder="cifar10",
    url=URL,
    archive="cifar-10-python.tar.gz",
    md5=MD5,
    bytes_needed=ARCHIVE_BYTES + LAYOUT_BYTES,
    photographs="*/*.png",
    lay_out=lay_out,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 failed, 2 wrong use,
    130 interrupted."""
    return run(
        CIFAR10, __doc__, arguments, Path(__file__).resolve().parents[1] / "data"
    )


if __name__ == "__main__":
    sys.exit(main())
