"""Pictures that records keep."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from minilib.claims import pictures

RESULTS = Path(__file__).parents[2] / "book" / "results" / "attempts" / "1"


def test_pictures_survive_the_record() -> None:
    labels = torch.randint(
        0, 28, (2, 8, 12), generator=torch.Generator().manual_seed(0)
    )
    labels[0, 0, 0] = 255
    image = torch.linspace(0, 1, 12).expand(2, 3, 8, 12)
    rows = pictures.packed(image, {"truth": labels})
    assert [list(row) for row in rows] == [["image", "truth"]] * 2
    assert (pictures.from_text(rows[0]["truth"]) == labels[0].numpy()).all(), (
        "labels are kept exactly"
    )
    found = torch.from_numpy(pictures.from_text(rows[1]["image"]) / 255).permute(
        2, 0, 1
    )
    torch.testing.assert_close(found, image[1].double(), atol=0.05, rtol=0)
    both = pictures.unpacked(json.loads(json.dumps(rows)))
    assert [list(row) for row in both] == [["image", "truth"]] * 2
    assert (both[1]["truth"] == labels[1].numpy()).all()


def test_densities_survive_the_record() -> None:
    chance = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8, generator=chance)
    densities = torch.rand(2, 8, 12, generator=chance) * 0.3
    densities[1, 0, 0] = -0.1
    record = json.loads(json.dumps(pictures.packed_densities(image, densities)))
    found, back = pictures.unpacked_densities(record)
    torch.testing.assert_close(found, image / 255)
    torch.testing.assert_close(back, densities.clamp_min(0), rtol=0, atol=0.3 / 255)
    sums = densities.sum((1, 2)).tolist()
    assert record["counts"] == pytest.approx(sums, abs=0.01), "counted before clamping"


def test_figures_become_small_and_stay_pictures() -> None:
    pixels = torch.randint(
        0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(0)
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(buffer, "PNG")
    text = pictures.packed_figure(buffer.getvalue(), colours=16)
    small = pictures.unpacked_figure(text)
    shown = Image.open(io.BytesIO(small))
    assert shown.size == (60, 40) and len(shown.getcolors()) <= 16
    assert len(small) < len(buffer.getvalue()) / 2


def kept(chapter: str, name: str) -> list:
    """Return a result of every record at profile photos that has it."""
    found = []

    def search(part: object) -> None:
        if isinstance(part, dict):
            found.extend([part[name]] if name in part else [])
            for value in part.values():
                search(value)
        elif isinstance(part, list):
            for value in part:
                search(value)

    search(json.loads((RESULTS / f"{chapter}.photos.json").read_text(encoding="utf-8")))
    return found


def test_committed_records_stay_readable() -> None:
    frames = kept("lseg", "lseg.pictures")
    assert frames and all(
        row["truth"].ndim == 2 for row in pictures.unpacked(frames[0])
    )
    cells = kept("countx", "countx.pictures")
    assert cells
    for record in cells[0]:
        image, maps = pictures.unpacked_densities(record)
        assert image.shape[0] == 3 and maps.shape[1:] == image.shape[1:]
        assert maps.sum().item() == pytest.approx(sum(record["counts"]), rel=0.2, abs=2)
    figures = kept("vlcounter", "vlcounter.micrographs")
    assert figures
    assert Image.open(io.BytesIO(pictures.unpacked_figure(figures[0]))).width > 100
