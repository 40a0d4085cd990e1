"""Fetch CIFAR-10 from its home page and lay it out as one folder of PNG files per class.

    python data_scripts/get_cifar10.py                     # into data/cifar10
    python data_scripts/get_cifar10.py --out DIR           # into DIR/cifar10
    python data_scripts/get_cifar10.py --archive FILE      # from an archive that you have already

The result is ``cifar10/train/<class>/NNNNN.png`` (50,000 photographs) and ``cifar10/test/<class>/NNNNN.png``
(10,000), lossless, where NNNNN is the position in the published order; ``minilib.datasets.load_photos`` reads
it. It appears whole or not at all. Run again after an interruption: a whole archive is not fetched twice.

CIFAR-10 was collected by Alex Krizhevsky, Vinod Nair and Geoffrey Hinton; please cite A. Krizhevsky,
"Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import re
import shutil
import sys
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch
import requests
from einops import rearrange
from PIL import Image
from tqdm import tqdm

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
LAYOUT_BYTES = 60_000 * 4096  # a file of about 2.3 kB takes up a block
TIMEOUT = 30  # seconds without an answer before giving up

SPLITS = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
NAMES = "batches.meta"


class Split(NamedTuple):
    """The photographs of one split in the published order."""

    pixels: np.ndarray  # (N, 32, 32, 3) uint8
    labels: list[int]


class Refused(Exception):
    """What stopped the work, with what to do about it."""


class NumpyUnpickler(pickle.Unpickler):
    """Reads the archive's Python 2 pickles: plain values and numpy arrays, nothing that could run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the numpy function called for, and refuse all others."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it calls for {module}.{name}, which image data never needs")
        return self.ALLOWED[module, name]


def fetch(url: str, md5: str, folder: Path) -> Path:
    """Download the archive into ``folder``, unless it lies there whole already, and check its MD5.

    Raises:
        Refused: there is no connection, or the file is not the expected one.
    """
    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
    try:
        path = pooch.retrieve(url, f"md5:{md5}", "cifar-10-python.tar.gz", folder, downloader=downloader)
    except requests.RequestException as error:
        raise Refused(
            f"could not download {url} ({error}); check the connection and run again, or download the file "
            f"elsewhere and pass it with --archive FILE"
        ) from error
    except ValueError as error:  # what pooch raises for another hash and for an address it cannot read
        raise Refused(
            f"the download of {url} was not kept: {error}; run again, or try a mirror with --url"
        ) from error
    return Path(path)


def check_archive(path: Path, md5: str) -> Path:
    """Return ``path`` if it is the published archive, by its MD5.

    Raises:
        Refused: it is missing or another file.
    """
    if not path.is_file():
        raise Refused(f"no archive at {path}: expected cifar-10-python.tar.gz, as published at {URL}")
    if (found := pooch.file_hash(str(path), "md5")) != md5:
        raise Refused(
            f"{path} has the MD5 {found}, expected {md5}: it is truncated or another file; fetch it again"
        )
    return path


def read_archive(path: Path) -> tuple[list[str], dict[str, Split]]:
    """Return the class names and the splits in the archive.

    Raises:
        Refused: the archive is damaged, or holds anything but the published layout.
    """
    wanted = {NAMES, *SPLITS["train"], *SPLITS["test"]}
    parts: dict[str, dict[bytes, Any]] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:  # in the file's order: seeking back in a gzip stream is slow
                name = member.name.rpartition("/")[2]
                if name in wanted and member.isfile():
                    parts[name] = _unpickle(name, archive.extractfile(member).read())
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise Refused(f"{path} is damaged ({error}); delete it and run again") from error
    if missing := sorted(wanted - set(parts)):
        raise Refused(f"{path} lacks {', '.join(missing)}: expected the layout of cifar-10-python.tar.gz")
    try:
        names = [name.decode("ascii") for name in parts[NAMES][b"label_names"]]
        splits = {split: _join([parts[name] for name in files]) for split, files in SPLITS.items()}
        _check(names, splits)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused(f"{path} is not laid out as CIFAR-10 ({type(error).__name__}: {error})") from error
    return names, splits


def _unpickle(name: str, data: bytes) -> dict[bytes, Any]:
    """Return the content of one file of the archive, or raise Refused."""
    try:
        return NumpyUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # foreign bytes make an unpickler raise nearly anything
        raise Refused(f"refused to read {name}: {error}; use the archive published at {URL}") from error


def _join(parts: Sequence[dict[bytes, Any]]) -> Split:
    """Join a split's batches; each row is a photograph's red, then green, then blue plane."""
    pixels = np.concatenate([part[b"data"] for part in parts])
    labels = [label for part in parts for label in part[b"labels"]]
    return Split(rearrange(pixels, "n (c h w) -> n h w c", c=3, h=32, w=32), labels)


def _check(names: list[str], splits: dict[str, Split]) -> None:
    """Raise ValueError unless the content can be laid out; names become folders, so they must be plain."""
    if wrong := [name for name in names if not re.fullmatch(r"[A-Za-z0-9_ -]+", name)]:
        raise ValueError(f"class name {wrong[0]!r}")
    for split, (pixels, labels) in splits.items():
        if pixels.dtype != np.uint8 or len(pixels) != len(labels):
            raise ValueError(f"{split}: {len(pixels)} images of {pixels.dtype}, {len(labels)} labels")
        if not set(labels) <= set(range(len(names))):
            raise ValueError(f"{split}: labels {min(labels)} to {max(labels)} for {len(names)} classes")


def lay_out(names: list[str], splits: dict[str, Split], folder: Path) -> dict[str, int]:
    """Write the photographs to ``folder/<split>/<class>/NNNNN.png`` and return how many each split has."""
    with tqdm(
        total=sum(len(split.labels) for split in splits.values()), desc="writing photographs", unit=""
    ) as bar:
        for split, (pixels, labels) in splits.items():
            for name in names:
                (folder / split / name).mkdir(parents=True)
            for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                Image.fromarray(image).save(folder / split / names[label] / f"{number:05d}.png")
                bar.update()
    return {split: len(content.labels) for split, content in splits.items()}


def is_finished(folder: Path) -> bool:
    """Return whether ``folder`` holds the whole data set.

    Raises:
        Refused: something else is there.
    """
    if not folder.exists():
        return False
    try:
        expected = dict(json.loads((folder / "source.json").read_text("utf-8"))["photographs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"{folder} was not made by this script; move it away or choose another --out"
        ) from error
    for split, count in expected.items():
        if (found := sum(1 for _ in (folder / split).glob("*/*.png"))) != count:
            raise Refused(
                f"{folder}/{split} has {found} of {count} photographs; delete {folder} and run again"
            )
    return True


def get_cifar10(out: Path, url: str = URL, md5: str = MD5, archive: Path | None = None) -> Path:
    """Put CIFAR-10 into ``out/cifar10`` and return that folder; do nothing if it is there.

    Raises:
        Refused: something stands in the way; ``out/cifar10`` is then as it was.
    """
    folder, work = out / "cifar10", out / ".cifar10-unfinished"
    if is_finished(folder):
        print(f"{folder} is complete already; nothing to do")
        return folder
    work.mkdir(parents=True, exist_ok=True)
    for leftover in work.iterdir():  # of a run that was killed; a whole archive is kept, and checked again
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name != "cifar-10-python.tar.gz":
            leftover.unlink()
    needed, free = ARCHIVE_BYTES + LAYOUT_BYTES, shutil.disk_usage(work).free
    if free < needed:
        raise Refused(
            f"{out} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed; "
            f"make space or choose another --out"
        )
    source = check_archive(archive, md5) if archive else fetch(url, md5, work)
    names, splits = read_archive(source)
    try:
        counts = lay_out(names, splits, work / "cifar10")
        record = {"source": str(archive or url), "md5": md5, "photographs": counts}
        (work / "cifar10" / "source.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        (work / "cifar10").rename(folder)
    except BaseException:
        shutil.rmtree(work / "cifar10", ignore_errors=True)
        raise
    shutil.rmtree(work)
    print(f"{folder}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} photographs")
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 refused, 130 interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(__file__).resolve().parents[1] / "data"
    parser.add_argument("--out", type=Path, default=data, help="folder to put cifar10 into (default: data)")
    parser.add_argument("--url", default=URL, help="where to fetch the archive, for a mirror")
    parser.add_argument(
        "--md5", default=MD5, help="expected checksum, for a mirror that packed the files again"
    )
    parser.add_argument("--archive", type=Path, help="use this cifar-10-python.tar.gz instead of downloading")
    options = parser.parse_args(arguments)
    try:
        get_cifar10(options.out.expanduser(), options.url, options.md5, options.archive)
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
