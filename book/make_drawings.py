"""Draw the chapters' architecture drawings: ``python book/make_drawings.py``.

One style for all: blue is the image's side, green the text's, orange what comes out; a
dashed outline is frozen, a solid one is trained. On the arrows stand the shapes of the
released model. They are drawn upright, so that a phone shows them whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks" / "drawings"
WIDTH = 440
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial"
_MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_KINDS = {  # fill, line
    "image": ("#e8f1f8", "#0072b2"),
    "text": ("#e3f3ec", "#00734f"),
    "out": ("#fdf0d9", "#b47700"),
    "plain": ("#f4f5f7", "#7b8794"),
}
_INK, _GREY = "#1f2933", "#7b8794"


class Drawing:
    """An SVG picture, built from boxes, arrows and words."""

    def __init__(self, height: int, title: str) -> None:
        self.height, self.title = height, title
        self.parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        lines: Sequence[str],
        kind: str = "plain",
        frozen: bool = False,
    ) -> None:
        """A rounded box with centred lines, the first one bold."""
        fill, line = _KINDS[kind]
        dash = ' stroke-dasharray="5 4"' if frozen else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="{fill}" '
            f'stroke="{line}" stroke-width="2"{dash}/>'
        )
        top = y + h / 2 - 17 * (len(lines) - 1) / 2 + 5
        for i, text in enumerate(lines):
            self.words(x + w / 2, top + 17 * i, text, bold=i == 0, anchor="middle")

    def words(
        self,
        x: float,
        y: float,
        text: str,
        bold: bool = False,
        anchor: str = "start",
        size: float = 14,
        colour: str = _INK,
    ) -> None:
        """A line of words."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="{colour}"{weight}>{escape(text)}</text>'
        )

    def shape(
        self, x: float, y: float, text: str, anchor: str = "start", size: float = 13
    ) -> None:
        """A tensor's shape beside an arrow."""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" '
            f'font-family="{_MONO}" fill="{_INK}">{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[float, float], kind: str = "plain") -> None:
        """An arrow along points."""
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{_KINDS[kind][1]}" '
            f'stroke-width="2" marker-end="url(#to-{kind})"/>'
        )

    def cells(
        self,
        x: float,
        y: float,
        columns: int,
        rows: int,
        size: float,
        colours: Callable[[int, int], str],
        gap: float = 2,
    ) -> None:
        """A grid of coloured squares; ``colours`` maps (row, column) to a colour."""
        for row in range(rows):
            for column in range(columns):
                self.parts.append(
                    f'<rect x="{x + column * size}" y="{y + row * size}" '
                    f'width="{size - gap}" height="{size - gap}" rx="2" '
                    f'fill="{colours(row, column)}"/>'
                )

    def key(self, y: float) -> None:
        """What a dashed and a solid outline mean."""
        for x, dash, text in ((70, "", "trained"), (190, "5 4", "frozen")):
            self.parts.append(
                f'<rect x="{x}" y="{y - 11}" width="26" height="15" rx="4" '
                f'fill="#ffffff" stroke="{_GREY}" stroke-width="2" '
                f'stroke-dasharray="{dash or "none"}"/>'
            )
            self.words(x + 34, y + 1, text, size=13)
        self.shape(300, y + 1, "3×224×224")
        self.words(380, y + 1, "shape", size=13)

    def svg(self) -> str:
        """The picture's text."""
        markers = "".join(
            f'<marker id="to-{kind}" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="5.5" markerHeight="5.5" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{line}"/></marker>'
            for kind, (_, line) in _KINDS.items()
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} '
            f'{self.height}" font-family="{_FONT}">\n'
            f"<title>{escape(self.title)}</title>\n<defs>{markers}</defs>\n"
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{self.height - 2}" '
            f'rx="14" fill="#ffffff" stroke="#d9e0e6"/>\n{body}\n</svg>\n'
        )


def clip() -> Drawing:
    """CLIP ViT-B/32: two towers and the matrix."""
    d = Drawing(690, "CLIP: two towers, one matrix of similarities")
    left, right = 112, 328
    d.words(left, 30, "N images", bold=True, anchor="middle")
    d.words(right, 30, "their N captions", bold=True, anchor="middle")
    steps = (
        (
            ("N×3×224×224", ("49 patches of 32×32", "+ [CLS], + position")),
            ("N×50×768", ("12 blocks, width 768", "each patch sees all")),
            ("[CLS]: N×768", ("W_i: 768 → 512", "then length 1")),
        ),
        (
            ("N×77", ("look up the words", "+ position")),
            ("N×77×512", ("12 blocks, width 512", "a word sees those before")),
            ("[EOT]: N×512", ("W_t: 512 → 512", "then length 1")),
        ),
    )
    for x, kind, column in zip((left, right), ("image", "text"), steps, strict=True):
        for i, (shape, lines) in enumerate(column):
            y = 38 + 92 * i
            d.arrow((x, y), (x, y + 30), kind=kind)
            d.shape(x + 8, y + 19, shape)
            d.box(x - 100, y + 34, 200, 54, lines, kind)
        d.arrow((x, 314), (x, 344), kind=kind)
    d.shape(left + 8, 333, "I: N×512")
    d.shape(right + 8, 333, "T: N×512")
    d.box(
        60, 348, 320, 54, ("similarities  s · I Tᵀ", "s = 1/t, learned as log s"), "out"
    )
    d.arrow((220, 402), (220, 432), kind="out")
    d.shape(228, 421, "N×N")

    def shade(row: int, column: int) -> str:
        return "#e69f00" if row == column else "#f1e6d2"

    d.cells(145, 438, 6, 6, 25, shade)
    d.words(138, 517, "images", anchor="end", size=13)
    d.words(219, 604, "captions", anchor="middle", size=13)
    d.words(304, 470, "each row:", size=13, bold=True)
    d.words(304, 487, "which caption is", size=13)
    d.words(304, 503, "this image's?", size=13)
    d.words(304, 535, "each column:", size=13, bold=True)
    d.words(304, 552, "which image is", size=13)
    d.words(304, 568, "this caption's?", size=13)
    d.words(
        220, 636, "Loss: cross-entropy of the rows and of the columns,",
        anchor="middle", size=13,
    )  # fmt: skip
    d.words(
        220, 653, "the diagonal being right. All is trained.", anchor="middle", size=13
    )
    return d


def lseg() -> Drawing:
    """LSeg with ViT-L/16: the word-pixel tensor."""
    d = Drawing(668, "LSeg: every pixel gets a vector that is compared with the words")
    left, right = 122, 340
    d.words(left, 30, "image", bold=True, anchor="middle")
    d.words(right, 30, "N labels", bold=True, anchor="middle")
    d.arrow((left, 38), (left, 66), kind="image")
    d.shape(left + 8, 56, "3×480×480")
    d.box(12, 70, 220, 54, ("ViT-L/16", "blocks 5, 11, 17, 23 tapped"), "image")
    d.arrow((left, 124), (left, 154), kind="image")
    d.shape(left + 8, 143, "4 × 900×1024")
    d.box(12, 158, 220, 54, ("DPT decoder", "reassemble and fuse"), "image")
    d.arrow((left, 212), (left, 242), kind="image")
    d.shape(left + 8, 231, "256×240×240")
    d.box(12, 246, 220, 54, ("1×1 convolution", "each pixel to length 1"), "image")
    d.arrow((left, 300), (left, 344), kind="image")
    d.shape(left + 8, 326, "C×H̃×W̃ = 512×240×240")
    d.arrow((right, 38), (right, 66), kind="text")
    d.shape(right + 8, 56, "N×77")
    d.box(
        252,
        70,
        176,
        142,
        (
            "CLIP's text tower",
            "“a photo of a” is not",
            "added; each label to",
            "length 1",
        ),
        "text",
        frozen=True,
    )
    d.arrow((right, 212), (right, 344), kind="text")
    d.shape(right + 8, 282, "N×512")
    d.box(
        12,
        348,
        416,
        54,
        ("inner product of every pixel with every label", "divided by t = 0.07"),
        "out",
    )
    d.arrow((120, 402), (120, 436), kind="out")
    d.shape(128, 424, "N×H̃×W̃")
    for i, colour in enumerate(("#f6d79b", "#f0bf62", "#e69f00")):
        x, y = 52 + 16 * i, 442 + 16 * i
        d.parts.append(
            f'<rect x="{x}" y="{y}" width="104" height="84" rx="4" fill="{colour}" '
            'stroke="#b47700"/>'
        )
    d.words(212, 474, "one map for each label:", size=13, bold=True)
    d.words(212, 491, "add a label, and a map", size=13)
    d.words(212, 507, "is added; nothing is", size=13)
    d.words(212, 523, "trained anew", size=13)
    d.arrow((120, 562), (120, 586), kind="out")
    d.box(12, 588, 270, 40, ("3×3 blocks, then 2× larger",), "out")
    d.arrow((282, 608), (312, 608), kind="out")
    d.shape(318, 612, "N×480×480")
    d.key(651)
    return d


def denseclip() -> Drawing:
    """DenseCLIP RN50: two ways to prompt, side by side, and the two uses of the map."""
    d = Drawing(850, "DenseCLIP: two ways to let the image change the text")
    d.box(90, 14, 260, 40, ("CLIP's ResNet-50",), "image")
    d.arrow((220, 54), (220, 82), kind="image")
    d.shape(228, 73, "x₄: 2048×16×16")
    d.box(
        90,
        86,
        260,
        54,
        ("attention pool", "each place asks, not the mean alone"),
        "image",
    )
    d.arrow((220, 140), (220, 168), kind="image")
    d.shape(228, 159, "[z̄, z]: 257×1024")
    d.words(112, 192, "pre-model prompting", bold=True, anchor="middle", size=15)
    d.words(328, 192, "post-model prompting", bold=True, anchor="middle", size=15)
    d.words(112, 210, "the text tower runs per image", anchor="middle", size=12.5)
    d.words(328, 210, "the text tower runs once", anchor="middle", size=12.5)
    d.parts.append('<path d="M220 180V470" stroke="#d9e0e6" stroke-width="2"/>')
    # pre-model
    d.box(12, 222, 94, 54, ("query", "8 learned"), "plain")
    d.box(116, 222, 94, 54, ("key, value", "[z̄, z]"), "image")
    d.arrow((59, 276), (59, 296), kind="plain")
    d.arrow((163, 276), (163, 296), kind="image")
    d.box(12, 300, 198, 40, ("cross-attention",), "plain")
    d.arrow((112, 340), (112, 368), kind="plain")
    d.shape(120, 359, "8×512")
    d.box(
        12,
        372,
        198,
        54,
        ("CLIP's text tower", "[context, class name] × K"),
        "text",
        frozen=True,
    )
    d.arrow((112, 426), (112, 474), kind="text")
    d.shape(120, 452, "K×1024")
    # post-model
    d.box(230, 222, 94, 54, ("query", "t: K×1024"), "text")
    d.box(334, 222, 94, 54, ("key, value", "[z̄, z]"), "image")
    d.arrow((277, 276), (277, 296), kind="text")
    d.arrow((381, 276), (381, 296), kind="image")
    d.box(230, 300, 198, 40, ("cross-attention",), "plain")
    d.arrow((328, 340), (328, 368), kind="plain")
    d.shape(336, 359, "v: K×1024")
    d.box(230, 372, 198, 54, ("t + γ v", "γ starts at 0.0001"), "text")
    d.arrow((328, 426), (328, 474), kind="text")
    d.shape(336, 452, "K×1024")
    d.box(
        60,
        478,
        320,
        54,
        ("score map s", "cosine of each place z with each class"),
        "out",
    )
    d.arrow((130, 532), (130, 580), kind="out")
    d.shape(138, 560, "K×16×16")
    d.arrow((310, 532), (310, 580), kind="out")
    d.shape(318, 560, "K×16×16")
    d.words(112, 600, "use 1: join the features", bold=True, anchor="middle", size=14)
    d.words(328, 600, "use 2: learn from it", bold=True, anchor="middle", size=14)
    d.box(12, 612, 198, 54, ("x₄′ = [x₄, s]", "2048 + 150 channels"), "out")
    d.box(230, 612, 198, 54, ("cross-entropy of s/τ", "weight 0.4, τ = 0.07"), "out")
    d.arrow((112, 666), (112, 696), kind="out")
    d.shape(120, 686, "2198×16×16")
    d.box(12, 700, 198, 54, ("feature pyramid, head", "as without language"), "out")
    d.arrow((112, 754), (112, 784), kind="out")
    d.shape(120, 774, "150×512×512")
    d.words(112, 802, "the answer", bold=True, anchor="middle")
    d.words(328, 690, "only in training", anchor="middle", size=13)
    d.key(833)
    return d


def countx() -> Drawing:
    """CounTX: attention with one key."""
    d = Drawing(
        760, "CounTX: a sentence is added to every patch, then a density is read"
    )
    left, right = 122, 340
    d.words(left, 30, "image", bold=True, anchor="middle")
    d.words(right, 30, "“the red beans”", bold=True, anchor="middle")
    d.arrow((left, 38), (left, 66), kind="image")
    d.shape(left + 8, 56, "3×224×224")
    d.box(
        12, 70, 220, 54, ("CLIP ViT-B/16, no pooling", "class token dropped"), "image"
    )
    d.arrow((left, 124), (left, 172), kind="image")
    d.shape(left + 8, 152, "x: 196×512")
    d.arrow((right, 38), (right, 66), kind="text")
    d.shape(right + 8, 56, "77")
    d.box(252, 70, 176, 54, ("CLIP's text tower", "one vector"), "text", frozen=True)
    d.arrow((right, 124), (right, 172), kind="text")
    d.shape(right + 8, 152, "y: 1×512")
    d.parts.append(
        '<rect x="12" y="176" width="416" height="268" rx="10" fill="#fafbfc" '
        'stroke="#d9e0e6" stroke-width="2"/>'
    )
    d.words(24, 198, "feature interaction module, twice", bold=True)
    d.box(32, 212, 180, 40, ("patches ask patches",), "image")
    d.arrow((122, 252), (122, 280), kind="image")
    d.box(
        32,
        284,
        180,
        70,
        ("patches ask the text", "query x: 196, key y: 1", "softmax over one key"),
        "plain",
    )
    d.arrow((right, 176), (right, 319), (216, 319), kind="text")
    d.words(226, 340, "key and value", size=13)
    d.box(
        252,
        212,
        166,
        88,
        ("attention = 1", "the same vector is", "added to each patch,", "whoever asks"),
        "out",
    )
    d.arrow((122, 354), (122, 382), kind="image")
    d.box(32, 386, 180, 44, ("MLP, patch by patch",), "image")
    d.words(226, 403, "here the sum of patch and", size=13)
    d.words(226, 420, "text can be selective", size=13)
    d.arrow((left, 444), (left, 480), kind="image")
    d.shape(left + 8, 467, "196×512 = 512×14×14")
    d.box(
        12,
        484,
        416,
        54,
        ("decoder", "to 24×24, then four times: 3×3 convolution, 2× larger"),
        "out",
    )
    sizes = ("512×24×24", "256×48×48", "256×96×96", "256×192×192", "1×384×384")
    for i, text in enumerate(sizes):
        side = 22 + 11 * i
        x = 38 + sum(22 + 11 * j + 24 for j in range(i))
        d.parts.append(
            f'<rect x="{x}" y="{628 - side}" width="{side}" height="{side}" rx="3" '
            f'fill="{"#e69f00" if i == 4 else "#f6d79b"}" stroke="#b47700"/>'
        )
        d.shape(x + side / 2, 645 + 15 * (i % 2), text, anchor="middle", size=12)
    d.arrow((220, 668), (220, 692), kind="out")
    d.words(220, 710, "sum over the map ÷ 60 = the count", bold=True, anchor="middle")
    d.key(741)
    return d


def vlcounter() -> Drawing:
    """VLCounter: a row of tokens in every layer, gated skips into the decoder."""
    d = Drawing(822, "VLCounter: prompts that carry the text, and skips gated by a map")
    d.words(
        220,
        26,
        "a row of 587 tokens enters each of 12 layers",
        bold=True,
        anchor="middle",
    )
    d.box(12, 38, 56, 40, ("class",), "plain", frozen=True)
    d.box(74, 38, 150, 40, ("10 prompts P + T",), "text")
    d.box(230, 38, 198, 40, ("576 patches",), "image", frozen=True)
    d.words(149, 96, "fresh in every layer", anchor="middle", size=13)
    d.box(
        12,
        126,
        200,
        54,
        ("T: mean of 11 prompts", "CLIP's text tower, 512"),
        "text",
        frozen=True,
    )
    d.arrow((130, 126), (130, 104), kind="text")
    d.box(230, 106, 198, 158, (), "image", frozen=True)
    rows = ("layers 0–5", "layer 6  → f₆", "layer 7  → f₇", "layer 8  → f₈")
    for i, text in enumerate((*rows, "layers 9–10", "layer 11: value path")):
        d.words(
            329, 129 + 25 * i, text, anchor="middle", size=13.5, bold=i in (1, 2, 3)
        )
    d.arrow((329, 78), (329, 102), kind="image")
    d.arrow((329, 264), (329, 294), kind="image")
    d.shape(337, 284, "512×24×24")
    d.box(230, 298, 198, 40, ("linear 512 → 64: V",), "image")
    d.box(12, 298, 200, 40, ("linear 512 → 64: t",), "text")
    d.arrow((112, 180), (112, 294), kind="text")
    d.arrow((112, 338), (112, 368), kind="text")
    d.arrow((329, 338), (329, 368), kind="image")
    d.box(
        12,
        372,
        416,
        54,
        (
            "S = ⟨t, V⟩ at each place,  then  Ŝ = w·S + b",
            "w and b are learned for each of the 24×24 places",
        ),
        "out",
    )
    d.arrow((80, 426), (80, 466), kind="out")
    d.shape(88, 450, "[V, Ŝ]: 65×24×24")
    d.words(428, 450, "gated by Ŝ, enlarged", size=13, anchor="end")
    stages = (
        ("64×48×48", "f₈"),
        ("64×96×96", "f₇"),
        ("64×192×192", "f₆"),
        ("64×384×384", ""),
    )
    for i, (shape, skip) in enumerate(stages):
        y = 470 + 66 * i
        d.box(12, y, 136, 40, ("3×3, 2× larger",), "out")
        d.shape(156, y + 25, shape)
        d.arrow((80, y + 40), (80, y + 62), kind="out")
        if skip:
            d.box(300, y + 36, 128, 30, (f"{skip} × Ŝ",), "image")
            d.arrow((300, y + 51), (98, y + 51), kind="image")
            d.parts.append(
                f'<circle cx="80" cy="{y + 51}" r="9" fill="#ffffff" '
                'stroke="#b47700" stroke-width="2"/>'
            )
            d.words(80, y + 56, "+", bold=True, size=16, anchor="middle")
    d.words(14, 752, "1×1: density 1×384×384, sum ÷ 60 = the count", bold=True)
    d.words(14, 772, "1.44 of 151 million parameters are trained", size=13)
    d.key(804)
    return d


MEETINGS = (  # name, first version, depth at which text and image meet, at what
    ("CLIP", "Feb 2021", (1.0,), "the whole image"),
    ("ViLD", "Apr 2021", (1.0,), "proposed regions"),
    ("DenseCLIP", "Dec 2021", (0.62, 0.72), "places of a grid, and its features"),
    ("GLIP", "Dec 2021", (0.55, 0.65, 0.75, 1.0), "places and words, layer by layer"),
    ("LSeg", "Jan 2022", (1.0,), "every pixel"),
    ("GroupViT", "Feb 2022", (1.0,), "groups of patches, or their mean"),
    ("CLIMS", "Mar 2022", (1.0,), "the image seen through a mask"),
    ("CounTX", "Jun 2023", (0.5, 0.6), "every patch, before the decoder"),
    (
        "VLCounter",
        "Dec 2023",
        (0.05, 0.15, 0.25, 0.35, 0.45, 0.6),
        "every patch, from the first layer on",
    ),
    ("DetCLIPv3", "Apr 2024", (0.5, 1.0), "queries; words are also written"),
)


def meeting() -> Drawing:
    """Where, from input to output, text and image meet in the ten papers."""
    d = Drawing(96 + 52 * len(MEETINGS), "Where text meets image in the ten papers")
    left, right = 150, 424
    d.words(16, 30, "first version", size=13, colour=_GREY)
    d.words(left, 30, "input", size=13, colour=_GREY)
    d.words(right, 30, "output", size=13, anchor="end", colour=_GREY)
    for i, (name, date, depths, at) in enumerate(MEETINGS):
        y = 58 + 52 * i
        d.words(16, y + 4, name, bold=True)
        d.words(16, y + 21, date, size=12.5, colour=_GREY)
        first = left + depths[0] * (right - left - 8)
        for offset, kind in ((-6, "image"), (6, "text")):
            line = _KINDS[kind][1]
            d.parts.append(
                f'<path d="M{left} {y + offset}L{max(left, first - 16):.0f} '
                f'{y + offset}L{first:.0f} {y}" fill="none" stroke="{line}" '
                'stroke-width="2.5"/>'
            )
        d.parts.append(
            f'<path d="M{first:.0f} {y}H{right - 8}" stroke="#b47700" '
            'stroke-width="2.5"/>'
        )
        for depth in depths:
            d.parts.append(
                f'<circle cx="{left + depth * (right - left - 8):.0f}" cy="{y}" r="6" '
                'fill="#e69f00" stroke="#b47700" stroke-width="1.5"/>'
            )
        d.words(left, y + 24, at, size=12.5)
    y = 76 + 52 * len(MEETINGS)
    for x, colour, text in (
        (24, _KINDS["image"][1], "image"),
        (134, _KINDS["text"][1], "text"),
    ):
        d.parts.append(
            f'<path d="M{x} {y - 4}h30" stroke="{colour}" stroke-width="2.5"/>'
        )
        d.words(x + 38, y, text, size=13)
    d.parts.append(
        f'<circle cx="{246}" cy="{y - 4}" r="6" fill="#e69f00" stroke="#b47700" '
        'stroke-width="1.5"/>'
    )
    d.words(260, y, "text and image meet", size=13)
    return d


def _bars(
    d: Drawing, x: float, floor: float, values: Sequence[float], high: float, kind: str
) -> None:
    """Bars of ``values``, the largest possible one ``high`` tall, numbers on top."""
    for i, value in enumerate(values):
        tall = max(2, value * high)
        d.parts.append(
            f'<rect x="{x + 34 * i}" y="{floor - tall:.1f}" width="26" '
            f'height="{tall:.1f}" rx="3" fill="{_KINDS[kind][1]}"/>'
        )
        d.shape(x + 34 * i + 13, floor - tall - 5, f"{value:.2f}", "middle", 11.5)


def softmax() -> Drawing:
    """Three cosines become probabilities, at two temperatures."""
    d = Drawing(196, "Softmax: three scores become shares of one, flat or sharp")
    cosines = (0.30, 0.25, 0.10)
    _bars(d, 22, 150, cosines, 180, "image")
    d.words(73, 172, "cosines", anchor="middle", size=13)
    for x, scale, text in (
        (176, 1, "scale 1 (t = 1)"),
        (318, 20, "scale 20 (t = 0.05)"),
    ):
        raised = [math.exp(scale * value) for value in cosines]
        _bars(d, x, 150, [value / sum(raised) for value in raised], 110, "out")
        d.words(x + 47, 172, text, anchor="middle", size=13)
        d.words(x + 47, 189, "softmax", anchor="middle", size=12.5, colour=_GREY)
    d.arrow((128, 100), (164, 100))
    return d


def convolution() -> Drawing:
    """A 3 x 3 window slides over the input; stride 2 halves the output."""
    d = Drawing(230, "Convolution: one small window, the same weights at each place")
    inside = {(r, c) for r in (2, 3, 4) for c in (2, 3, 4)}

    def at(row: int, column: int) -> str:
        return "#0072b2" if (row, column) in inside else "#cfe0ee"

    d.cells(24, 34, 8, 8, 19, at)
    d.words(100, 24, "input C×8×8", anchor="middle", size=13)
    d.arrow((184, 110), (226, 110), kind="out")
    d.words(205, 92, "9·C", anchor="middle", size=13)
    d.words(205, 132, "weights", anchor="middle", size=13)
    d.cells(
        244, 72, 4, 4, 19, lambda r, c: "#e69f00" if (r, c) == (1, 1) else "#f6e3bf"
    )
    d.words(282, 62, "output 4×4", anchor="middle", size=13)
    d.words(336, 100, "stride 2: the", size=13)
    d.words(336, 117, "window moves", size=13)
    d.words(336, 134, "two at a time", size=13)
    d.words(
        220, 214, "one such filter for each output channel", anchor="middle", size=13
    )
    return d


def attention() -> Drawing:
    """Queries ask, keys answer, values are mixed."""
    d = Drawing(318, "Attention: each query mixes the values of the keys that fit")
    d.box(12, 14, 120, 54, ("queries Q", "Lq×d"), "plain")
    d.box(160, 14, 120, 54, ("keys K", "Lk×d"), "image")
    d.box(308, 14, 120, 54, ("values V", "Lk×d"), "image")
    d.arrow((72, 68), (72, 96))
    d.arrow((220, 68), (220, 82), (140, 82), (140, 96), kind="image")
    d.box(
        12,
        100,
        268,
        54,
        ("softmax of Q Kᵀ / √d, row by row", "Lq×Lk: shares that sum to one"),
        "out",
    )
    d.arrow((146, 154), (146, 194), kind="out")
    d.parts.append('<path d="M368 68V112" stroke="#0072b2" stroke-width="2"/>')
    d.arrow((368, 156), (368, 221), (290, 221), kind="image")
    d.box(12, 198, 268, 46, ("shares × V:  Lq×d",), "out")
    d.words(292, 130, "who asks whom, and", size=13)
    d.words(292, 147, "how much each", size=13)
    d.words(12, 270, "Self-attention: Q, K, V come from the same tokens.", size=13)
    d.words(12, 288, "Cross-attention: the queries come from elsewhere.", size=13)
    d.words(
        12, 306, "Causal: a token may ask only those before it and itself.", size=13
    )
    return d


def iou() -> Drawing:
    """Intersection over union of two boxes, and of two masks class by class."""
    d = Drawing(214, "IoU: what both cover, divided by what either covers")
    d.parts += [
        '<rect x="30" y="40" width="110" height="90" fill="#0072b2" '
        'fill-opacity="0.25" stroke="#0072b2" stroke-width="2.5"/>',
        '<rect x="75" y="75" width="110" height="90" fill="#e69f00" '
        'fill-opacity="0.25" stroke="#b47700" stroke-width="2.5"/>',
        '<rect x="75" y="75" width="65" height="55" fill="#009e73" '
        'fill-opacity="0.75"/>',
    ]
    d.words(30, 32, "truth: 9,900", size=13, colour=_KINDS["image"][1])
    d.words(185, 184, "answer: 9,900", size=13, anchor="end", colour="#8a5a00")
    d.words(107, 107, "3,575", size=13, anchor="middle", bold=True, colour="#ffffff")
    d.words(208, 60, "IoU = shared / covered by either", size=12.5, bold=True)
    d.words(208, 82, "3,575 / (9,900 + 9,900 − 3,575)", size=13)
    d.words(208, 102, "= 0.22", size=13)
    d.words(208, 134, "For masks: pixels, class by class.", size=13)
    d.words(208, 152, "mIoU: the mean over the classes.", size=13)
    return d


def average_precision() -> Drawing:
    """Precision against recall as the threshold falls; AP is the area."""
    d = Drawing(250, "Average precision: the area under precision against recall")
    hits = (1, 1, 0, 1, 0, 0, 1, 0)  # detections by falling score; 5 objects in all
    found, points = 0, []
    for i, hit in enumerate(hits, start=1):
        found += hit
        points.append((found / 5, found / i))
    best = [max(p for r2, p in points if r2 >= r) for r, _ in points]
    left, floor, side = 54, 206, 168
    area = f"M{left} {floor}"
    last = 0.0
    for (recall, _), precision in zip(points, best, strict=True):
        y = floor - side * precision
        area += f"L{left + side * last:.1f} {y:.1f}L{left + side * recall:.1f} {y:.1f}"
        last = recall
    area += f"L{left + side * last:.1f} {floor}z"
    d.parts.append(f'<path d="{area}" fill="#f6e3bf" stroke="none"/>')
    line = "L".join(f"{left + side * r:.1f} {floor - side * p:.1f}" for r, p in points)
    d.parts += [
        f'<path d="M{line}" fill="none" stroke="#b47700" stroke-width="2"/>',
        f'<path d="M{left} {floor - side}V{floor}H{left + side}" fill="none" '
        f'stroke="{_GREY}" stroke-width="1.5"/>',
    ]
    for recall, precision in points:
        d.parts.append(
            f'<circle cx="{left + side * recall:.1f}" '
            f'cy="{floor - side * precision:.1f}" r="4" fill="#b47700"/>'
        )
    d.words(
        left + side / 2, 232, "recall: share of objects found", anchor="middle", size=13
    )
    d.words(20, 24, "precision: share of detections that are right", size=13)
    for value in (0, 1):
        d.shape(left - 8, floor - side * value + 4, str(value), "end", 12)
        d.shape(left + side * value, floor + 15, str(value), "middle", 12)
    d.words(250, 76, "Detections by falling score:", size=13)
    for i, hit in enumerate(hits):
        d.words(256 + 20 * i, 100, "✔" if hit else "✘", anchor="middle", size=15,
                colour="#00734f" if hit else "#a83f00")  # fmt: skip
    for i, text in enumerate(
        (
            "right: IoU ≥ 0.5 with an",
            "object of the class that",
            "no better one has (AP50)",
        )
    ):
        d.words(250, 126 + 17 * i, text, size=13)
    d.words(250, 184, "AP: the shaded area; COCO", size=13)
    d.words(250, 201, "takes IoU 0.50 … 0.95", size=13)
    return d


def errors() -> Drawing:
    """MAE and RMSE of the same counts: one large error weighs more in the second."""
    d = Drawing(204, "MAE and RMSE of five counts")
    truth, answer = (3, 12, 5, 8, 20), (4, 11, 5, 6, 11)
    for row, (name, values) in enumerate((("true", truth), ("answer", answer))):
        d.words(84, 36 + 30 * row, name, anchor="end", size=13)
        for i, value in enumerate(values):
            d.shape(120 + 64 * i, 36 + 30 * row, str(value), "middle", 15)
    off = [abs(a - t) for a, t in zip(answer, truth, strict=True)]
    d.words(84, 96, "off by", anchor="end", size=13, bold=True)
    for i, value in enumerate(off):
        d.shape(120 + 64 * i, 96, str(value), "middle", 15)
    mae = sum(off) / len(off)
    rmse = math.sqrt(sum(value * value for value in off) / len(off))
    d.words(24, 136, f"MAE = mean of these = {mae:.1f} objects", size=14)
    d.words(24, 160, f"RMSE = √ mean of their squares = {rmse:.1f} objects", size=14)
    d.words(24, 184, "RMSE ≥ MAE, always; here the error of 9 shows.", size=13)
    return d


def auc() -> Drawing:
    """Area under the ROC curve as the share of pairs in the right order."""
    d = Drawing(176, "AUC: the share of pairs that stand in the right order")
    d.words(24, 30, "scores of places with the object", size=13, colour="#8a5a00")
    d.words(24, 96, "scores of places without it", size=13, colour="#00598c")
    for y, values, colour in (
        (52, (0.35, 0.6, 0.8), "#e69f00"),
        (118, (0.1, 0.25, 0.45), "#0072b2"),
    ):
        d.parts.append(f'<path d="M24 {y}H416" stroke="#d9e0e6" stroke-width="2"/>')
        for value in values:
            d.parts.append(
                f'<circle cx="{24 + 392 * value:.0f}" cy="{y}" r="7" fill="{colour}"/>'
            )
    d.words(
        24, 154, "9 pairs; in 8 the object’s place scores higher: AUC = 8/9.", size=13
    )
    return d


def recall() -> Drawing:
    """Recall at k: is the right one among the first k?"""
    d = Drawing(190, "Recall at k: how often the right one is among the first k")
    ranks = (1, 3, 1, 7)
    for row, rank in enumerate(ranks):
        y = 36 + 30 * row
        d.words(84, y + 14, f"query {row + 1}", anchor="end", size=13)
        d.cells(
            96, y, 10, 1, 26,
            lambda r, c, rank=rank: "#e69f00" if c == rank - 1 else "#e4e7eb", 4,
        )  # fmt: skip
    d.parts += [
        '<path d="M121 24V152" stroke="#1f2933" stroke-width="1.5" '
        'stroke-dasharray="3 3"/>',
        '<path d="M225 24V152" stroke="#1f2933" stroke-width="1.5" '
        'stroke-dasharray="3 3"/>',
    ]
    d.words(121, 18, "k = 1", anchor="middle", size=12.5)
    d.words(225, 18, "k = 5", anchor="middle", size=12.5)
    d.words(96, 176, "R@1 = 2/4 = 50 %,  R@5 = 3/4 = 75 %", size=14)
    return d


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "clip": clip,
    "lseg": lseg,
    "denseclip": denseclip,
    "countx": countx,
    "vlcounter": vlcounter,
    "meeting": meeting,
    "softmax": softmax,
    "convolution": convolution,
    "attention": attention,
    "iou": iou,
    "average-precision": average_precision,
    "errors": errors,
    "auc": auc,
    "recall": recall,
}


def main() -> None:
    """Write every drawing."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
