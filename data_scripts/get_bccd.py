"""Fetch BCCD, micrographs of blood with a box around every cell, as published.

    python data_scripts/get_bccd.py                  # into data/bccd
    python data_scripts/get_bccd.py --out DIR        # into DIR/bccd
    python data_scripts/get_bccd.py --archive FILE   # from an archive you have

The result is ``bccd/JPEGImages/<name>.jpg`` (364 of 640 x 480),
``bccd/Annotations/<name>.xml`` (PASCAL VOC) and the lists
``bccd/ImageSets/Main/{train,val,test,trainval}.txt`` (205, 87, 72 and 292 names), the
very files that are published; ``minilib.datasets.bccd.load_bccd`` reads them. It
appears whole or not at all. Run again after an interruption: a whole archive is not
fetched twice. Run again later: a file that is missing or of another size is mended. The
archive is a snapshot of a repository, which GitHub packs on request, so it has no fixed
checksum: the script checks every file in it instead.

BCCD was put together by Shenggan from images and annotations of cosmicad and
akshaylamba; MIT licence, kept beside the data.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from minilib.datasets.annotations import BadFile, read_list
from minilib.datasets.bccd import check_annotation, read_annotation
from minilib.datasets.download import Published, Refused, run, zip_archive

URL = "https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip"
LISTS = {"train": 205, "val": 87, "test": 72, "trainval": 292}
IMAGES = 364
SIZE = (640, 480)  # columns, rows
MEMBER = re.compile(
    r"(?:.*/)?(JPEGImages/BloodImage_\d{5}\.jpg|Annotations/BloodImage_\d{5}\.xml"
    r"|ImageSets/Main/(?:train|val|test|trainval)\.txt)"
)


def lay_out(archive: Path, folder: Path) -> dict[str, int]:
    """Copy images, annotations and lists into ``folder`` and return how many
    images there are.

    Raises:
        Refused: the archive is damaged, or is not laid out as published.
    """
    with zip_archive(archive) as content:
        members = {
            match[1]: name
            for name in content.namelist()
            if (match := MEMBER.fullmatch(name))
        }
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True)
        for path, name in tqdm(
            sorted(members.items()), desc="writing micrographs", unit=""
        ):
            (folder / path).write_bytes(content.read(name))
        for name in content.namelist():
            if re.fullmatch(r"[^/]+/LICENSE", name):
                (folder / "LICENSE").write_bytes(content.read(name))
    _check(archive, folder)
    return {"JPEGImages": IMAGES}


def _check(archive: Path, folder: Path) -> None:
    """Raise Refused unless every list is complete, and everything listed is there
    and can be read."""
    lists = {}
    for name, length in LISTS.items():
        path = folder / "ImageSets" / "Main" / f"{name}.txt"
        try:
            lists[name] = list(read_list(path)) if path.is_file() else []
        except BadFile as error:
            raise Refused(f"{archive}: {error}") from error
        if len(lists[name]) != length:
            raise Refused(
                f"{archive} lists {len(lists[name])} images in {name}.txt, "
                f"expected {length}: it is another file; take the one published at "
                f"{URL}"
            )
    every = {*lists["train"], *lists["val"], *lists["test"]}
    if len(every) != IMAGES or {*lists["train"], *lists["val"]} != set(
        lists["trainval"]
    ):
        raise Refused(
            f"{archive}: an image is in two of train, val and test; take the archive "
            f"published at {URL}"
        )
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        found = {path.stem for path in (folder / kind).glob(f"*.{suffix}")}
        if lone := sorted(found ^ every):
            raise Refused(
                f"{archive}: {lone[0]} is in only one of ImageSets and {kind}; take "
                f"the one at {URL}"
            )
    for name in sorted(every):
        path = folder / "Annotations" / f"{name}.xml"
        try:
            annotation = read_annotation(path)
            check_annotation(annotation, SIZE, path)
            if not len(annotation.boxes):
                raise BadFile("no cell in its annotation")
            with Image.open(
                io.BytesIO((folder / "JPEGImages" / f"{name}.jpg").read_bytes())
            ) as image:
                size = image.size
                # reads all of the file, draws an eighth of it
                image.draft("RGB", (SIZE[0] // 8, SIZE[1] // 8))
                image.load()
        except Exception as error:  # on broken data Pillow raises nearly anything
            raise Refused(
                f"{archive}: {name} cannot be read ({type(error).__name__}: {error})"
            ) from error
        if size != SIZE:
            raise Refused(
                f"{archive}: {name} has {size[0]} x {size[1]} pixels, expected "
                f"{SIZE[0]} x {SIZE[1]}"
            )


BCCD = Published(
    folder="bccd",
    url=URL,
    archive="BCCD_Dataset-master.zip",
    md5=None,
    bytes_needed=100_000_000,  # the archive and what is in it, generously
    photographs="*.jpg",
    lay_out=lay_out,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 failed, 2 wrong use,
    130 interrupted."""
    return run(BCCD, __doc__, arguments, Path(__file__).resolve().parents[1] / "data")


if __name__ == "__main__":
    sys.exit(main())
