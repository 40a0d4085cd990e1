"""Pictures that records keep."""

from __future__ import annotations

import torch

from minilib.claims import pictures


def test_pictures_survive_the_record() -> None:
    labels = torch.randint(0, 28, (2, 8, 12), generator=torch.Generator().manual_seed(0))
    labels[0, 0, 0] = 255
    image = torch.linspace(0, 1, 12).expand(2, 3, 8, 12)
    rows = pictures.packed(image, {"truth": labels})
    assert [list(row) for row in rows] == [["image", "truth"]] * 2
    assert (pictures.from_text(rows[0]["truth"]) == labels[0].numpy()).all(), "labels are kept exactly"
    found = torch.from_numpy(pictures.from_text(rows[1]["image"]) / 255).permute(2, 0, 1)
    torch.testing.assert_close(found, image[1].double(), atol=0.05, rtol=0)
