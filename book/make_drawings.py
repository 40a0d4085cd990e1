"""Draw the chapters' architecture drawings: ``python book/make_drawings.py``.

One style for all: blue is the image's side, green the text's, orange what comes out; a
dashed outline is frozen, a solid one is trained. On the arrows stand the shapes of the
released model. They are drawn upright, so that a phone shows them whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "_static" / "drawings"
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
    d.box(60, 348, 320, 54, ("similarities  s · I Tᵀ", "s = 1/t, learned as log s"), "out")
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
    d.words(220, 653, "the diagonal being right. All is trained.", anchor="middle", size=13)
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
    d.box(252, 70, 176, 142, ("CLIP's text tower", "“a photo of a” is not", "added; each label to", "length 1"), "text", frozen=True)  # noqa: E501
    d.arrow((right, 212), (right, 344), kind="text")
    d.shape(right + 8, 282, "N×512")
    d.box(12, 348, 416, 54, ("inner product of every pixel with every label", "divided by t = 0.07"), "out")  # noqa: E501
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
    d.box(90, 86, 260, 54, ("attention pool", "each place asks, not the mean alone"), "image")  # noqa: E501
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
    d.box(12, 372, 198, 54, ("CLIP's text tower", "[context, class name] × K"), "text", frozen=True)  # noqa: E501
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
    d.box(60, 478, 320, 54, ("score map s", "cosine of each place z with each class"), "out")
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
    d = Drawing(760, "CounTX: a sentence is added to every patch, then a density is read")
    left, right = 122, 340
    d.words(left, 30, "image", bold=True, anchor="middle")
    d.words(right, 30, "“the red beans”", bold=True, anchor="middle")
    d.arrow((left, 38), (left, 66), kind="image")
    d.shape(left + 8, 56, "3×224×224")
    d.box(12, 70, 220, 54, ("CLIP ViT-B/16, no pooling", "class token dropped"), "image")
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
    d.box(32, 284, 180, 70, ("patches ask the text", "query x: 196, key y: 1", "softmax over one key"), "plain")  # noqa: E501
    d.arrow((right, 176), (right, 319), (216, 319), kind="text")
    d.words(226, 340, "key and value", size=13)
    d.box(252, 212, 166, 88, ("attention = 1", "the same vector is", "added to each patch,", "whoever asks"), "out")  # noqa: E501
    d.arrow((122, 354), (122, 382), kind="image")
    d.box(32, 386, 180, 44, ("MLP, patch by patch",), "image")
    d.words(226, 403, "here the sum of patch and", size=13)
    d.words(226, 420, "text can be selective", size=13)
    d.arrow((left, 444), (left, 480), kind="image")
    d.shape(left + 8, 467, "196×512 = 512×14×14")
    d.box(12, 484, 416, 54, ("decoder", "to 24×24, then four times: 3×3 convolution, 2× larger"), "out")  # noqa: E501
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
    d.words(220, 26, "a row of 587 tokens enters each of 12 layers", bold=True, anchor="middle")  # noqa: E501
    d.box(12, 38, 56, 40, ("class",), "plain", frozen=True)
    d.box(74, 38, 150, 40, ("10 prompts P + T",), "text")
    d.box(230, 38, 198, 40, ("576 patches",), "image", frozen=True)
    d.words(149, 96, "fresh in every layer", anchor="middle", size=13)
    d.box(12, 126, 200, 54, ("T: mean of 11 prompts", "CLIP's text tower, 512"), "text", frozen=True)  # noqa: E501
    d.arrow((130, 126), (130, 104), kind="text")
    d.box(230, 106, 198, 158, ("",), "image", frozen=True)
    rows = ("layers 0–5", "layer 6  → f₆", "layer 7  → f₇", "layer 8  → f₈")
    for i, text in enumerate((*rows, "layers 9–10", "layer 11: value path")):
        d.words(329, 129 + 25 * i, text, anchor="middle", size=13.5, bold=i in (1, 2, 3))
    d.arrow((329, 78), (329, 102), kind="image")
    d.arrow((329, 264), (329, 294), kind="image")
    d.shape(337, 284, "512×24×24")
    d.box(230, 298, 198, 40, ("linear 512 → 64: V",), "image")
    d.box(12, 298, 200, 40, ("linear 512 → 64: t",), "text")
    d.arrow((112, 180), (112, 294), kind="text")
    d.arrow((112, 338), (112, 368), kind="text")
    d.arrow((329, 338), (329, 368), kind="image")
    d.box(12, 372, 416, 54, ("S = ⟨t, V⟩ at each place,  then  Ŝ = w·S + b", "w and b are learned for each of the 24×24 places"), "out")  # noqa: E501
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


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "clip": clip,
    "lseg": lseg,
    "denseclip": denseclip,
    "countx": countx,
    "vlcounter": vlcounter,
}


def main() -> None:
    """Write every drawing."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
