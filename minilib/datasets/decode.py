"""Decode photographs once, in parallel threads, into one uint8 array that
is kept on disk."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from minilib.datasets.annotations import BadFile, is_file
from minilib.datasets.tree import Tree

CACHE_VERSION = 1  # raise when the same files would decode to different pixels
CHUNK = 1024  # photographs decoded before they are written

ORIENTATION = 0x0112
"""The EXIF tag that says how stored pixels are to be turned."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns stored pixels upright, by the value of ``ORIENTATION``."""
_BACK = UPRIGHT | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """Convert any mode to 8-bit RGB: transparency on white, 16-bit grey scaled rather
    than clipped.

    Args:
        image: the picture as opened.
        upright: turn it as its EXIF orientation says; a picture with annotations is
            read by ``read_picture`` instead.

    Raises:
        ValueError: floating-point pixels, whose range is not defined.
    """
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError(
            "floating-point pixels have no defined range; save it with 8 or 16 bits "
            "per channel"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64) / 257  # 65535 / 257 = 255
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return image.convert("RGB")


def read_picture(
    path: Path, fits: Callable[[tuple[int, int]], bool] | None = None
) -> Image.Image:
    """Return a picture that has annotations, in RGB.

    Boxes, masks and dots are positions in the *stored* pixels, whatever EXIF
    orientation a camera or an editor wrote beside them. So the pixels come as they are
    stored, with one exception: where the annotations state a size that only the upright
    picture has, they were made on that one, and it is returned. (Photographs in class
    folders have no positions and are always turned upright.)

    Args:
        path: the picture.
        fits: whether (width, height) is the size that the annotations state; None where
            they state none.

    Raises:
        FileNotFoundError: it is not there.
        BadFile: it cannot be read.
    """
    image, orientation = _open_stored(path)
    if fits and not fits(image.size) and orientation in UPRIGHT:
        upright = image.transpose(UPRIGHT[orientation])
        image = upright if fits(upright.size) else image
    try:
        return to_rgb(image, upright=False)
    except ValueError as error:
        raise _bad_picture(path, error) from error


def read_stored(path: Path) -> Image.Image:
    """Return a picture in its own mode, its pixels as they are stored: a mask.

    Raises:
        FileNotFoundError: it is not there.
        BadFile: it cannot be read.
    """
    return _open_stored(path)[0]


def _open_stored(path: Path) -> tuple[Image.Image, int]:
    """Return a picture as stored, and its EXIF orientation (1 where it has none)."""
    if not is_file(path):
        raise FileNotFoundError(f"{path} is missing")
    try:
        # from memory: from a mapped file Pillow 13 scrambles a grey TIFF to be turned
        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            orientation = opened.getexif().get(ORIENTATION, 1)
            image = opened.copy()
            if opened.format == "TIFF" and orientation in _BACK:
                image = image.transpose(_BACK[orientation])  # Pillow has turned it
        return image, orientation
    except Exception as error:  # on broken data Pillow raises nearly anything
        raise _bad_picture(path, error) from error


def _bad_picture(path: Path, error: Exception) -> BadFile:
    return BadFile(
        f"{path} cannot be read ({_reason(error)}); expected a complete image file: "
        "fetch it again"
    )


def _reason(error: Exception) -> str:
    """Return why a picture cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"  # Pillow names an object in memory
    return f"{type(error).__name__}: {error}"


def decode(data: bytes, size: int) -> np.ndarray:
    """Decode one photograph to (3, size, size) uint8, as CLIP does up to normalisation.

    The shortest side is resized to ``size`` (bicubic, antialiased) and the centre
    cropped; a photograph that has this size already keeps its pixels.
    """
    # Here: torchvision takes as long to import as torch.
    from torchvision.transforms.functional import InterpolationMode, center_crop, resize

    with Image.open(io.BytesIO(data)) as image:
        rgb = to_rgb(image)
    square = center_crop(resize(rgb, size, InterpolationMode.BICUBIC), size)
    return rearrange(np.asarray(square), "h w c -> c h w")


def cache_folder() -> Path:
    """Return the folder for decoded photographs: ``$MINILIB_CACHE``, else the
    platform's cache folder."""
    import pooch

    return (
        Path(os.environ.get("MINILIB_CACHE") or pooch.os_cache("minilib")).expanduser()
        / "photographs"
    )


def load_pixels(
    tree: Tree,
    paths: Sequence[str],
    size: int,
    *,
    cache: Path | None,
    skip_unreadable: bool,
    progress: bool,
) -> tuple[np.ndarray, dict[str, str]]:
    """Return the pixels (N, 3, size, size) uint8 of all paths, and the unreadable paths
    with the reason.

    The first call decodes and writes a cache entry, named by the paths, sizes and times
    of the files; later calls map that file into memory. Where the cache cannot be
    written, a warning says so.

    Raises:
        BadFile: (a ValueError) a photograph cannot be read and ``skip_unreadable`` is
            false.
    """
    entry = (cache or cache_folder()) / _key(tree, paths, size)
    loaded = _read_entry(entry, (len(paths), 3, size, size))
    if loaded is None:
        skipped: dict[str, str] = {}
        chunks = _decode_chunks(
            tree, paths, size, skipped if skip_unreadable else None, progress
        )
        try:
            _write_entry(entry, chunks, (len(paths), 3, size, size), skipped)
            loaded = _read_entry(entry, (len(paths), 3, size, size))
        except OSError as error:
            warnings.warn(
                f"cannot keep decoded photographs in {entry.parent} ({error}), so "
                "each start decodes them; set MINILIB_CACHE to a folder with space",
                stacklevel=3,
            )
    if loaded is None:
        skipped = {}
        chunks = _decode_chunks(
            tree, paths, size, skipped if skip_unreadable else None, progress
        )
        loaded = np.concatenate(list(chunks)), skipped
    pixels, skipped = loaded
    if skipped and not skip_unreadable:
        raise _unreadable(tree, *next(iter(skipped.items())))
    return pixels, skipped


def _decode_chunks(
    tree: Tree,
    paths: Sequence[str],
    size: int,
    skipped: dict[str, str] | None,
    progress: bool,
) -> Iterator[np.ndarray]:
    """Yield (n, 3, size, size) uint8 in order; note what is unreadable in ``skipped``,
    or raise if None."""

    def one(path: str) -> np.ndarray | str:
        try:
            return decode(tree.read(path), size)
        # On broken data Pillow and zipfile raise nearly anything: OSError, SyntaxError,
        # struct.error, ...
        except Exception as error:
            return _reason(error)

    workers = min(16, os.cpu_count() or 1)  # Pillow releases the GIL while it decodes
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(
            total=len(paths),
            desc="decoding photographs",
            unit="",
            leave=False,
            disable=not progress,
        ) as bar,
    ):
        for begin in range(0, len(paths), CHUNK):
            part = paths[begin : begin + CHUNK]
            pixels = np.zeros((len(part), 3, size, size), np.uint8)
            for position, result in enumerate(pool.map(one, part)):
                if not isinstance(result, str):
                    pixels[position] = result
                elif skipped is None:
                    raise _unreadable(tree, part[position], result)
                else:
                    skipped[part[position]] = result
            bar.update(len(part))
            yield pixels


def _unreadable(tree: Tree, path: str, reason: str) -> BadFile:
    return BadFile(
        f"cannot read the photograph {tree.root}/{path} ({reason}); expected a "
        "complete image file: replace or delete it, or pass skip_unreadable=True to "
        "leave such files out"
    )


def _key(tree: Tree, paths: Sequence[str], size: int) -> str:
    """Return a name that changes with the list of files, with any file, and
    with the decoding."""
    digest = hashlib.sha256(
        json.dumps([CACHE_VERSION, size, Image.__version__]).encode()
    )
    for path in paths:
        digest.update(
            f"{path}\0{tree.stamp(path)}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()[:32]


def _read_entry(
    entry: Path, shape: tuple[int, ...]
) -> tuple[np.ndarray, dict[str, str]] | None:
    """Map a cache entry into memory, or return None if it is missing or damaged."""
    try:
        skipped = json.loads((entry / "index.json").read_text("utf-8"))["skipped"]
        # Copy on write: the tensor may be written to in memory, the file never changes.
        pixels = np.load(entry / "pixels.npy", mmap_mode="c")
    except (OSError, ValueError, KeyError):
        return None
    return (
        (pixels, skipped)
        if pixels.shape == shape and pixels.dtype == np.uint8
        else None
    )


def _write_entry(
    entry: Path,
    chunks: Iterator[np.ndarray],
    shape: tuple[int, ...],
    skipped: dict[str, str],
) -> None:
    """Write a cache entry under a temporary name, then rename it: it is
    complete or absent."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=entry.parent, prefix="unfinished-", ignore_cleanup_errors=True
    ) as folder:
        partial = Path(folder) / entry.name
        partial.mkdir()
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with open(partial / "pixels.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for pixels in chunks:
                file.write(pixels.data)
        (partial / "index.json").write_text(json.dumps({"skipped": skipped}), "utf-8")
        if entry.exists() and _read_entry(entry, shape) is None:
            shutil.rmtree(entry)
        try:
            partial.rename(entry)
        except OSError:
            # otherwise another process was faster: use its entry
            if _read_entry(entry, shape) is None:
                raise
