"""FSC-147: a miniature in the published format, and the real text files where
``FSC147_FOLDER`` names them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minilib.datasets.fsc147 import load_fsc147, read_lists

CLASSES = {
    "2.jpg": "sea shells",
    "3.jpg": "hot air balloons",
    "7.jpg": "go game",
    "8.jpg": "go game",
    "9.jpg": "oysters",
}
SPLITS = {
    "test": ["2.jpg", "3.jpg"],
    "train": ["7.jpg", "8.jpg"],
    "val": ["9.jpg"],
    "val_coco": [],
    "test_coco": ["3.jpg"],
}
POINTS = {
    "2.jpg": [[10.5, 20.25], [11.0, 21.0], [400.0, 380.0]],
    "3.jpg": [],
    "7.jpg": [[0.0, 0.0], [383.9, 383.9], [5000.0, 3.0]],
    "8.jpg": [[100.0, 100.0]],
    "9.jpg": [[1.0, 2.0]],
}
WIDTHS = {"2.jpg": 512, "3.jpg": 384, "7.jpg": 384, "8.jpg": 683, "9.jpg": 400}


@pytest.fixture
def miniature(tmp_path: Path) -> Path:
    def put(name: str, content: object) -> None:
        (tmp_path / name).write_text(json.dumps(content, indent=4), encoding="utf-8")

    put("Train_Test_Val_FSC_147.json", SPLITS)
    lines = [f"{name}\t{label}" for name, label in CLASSES.items()] + [
        "371.jpg\tin no split",
        "",
    ]
    (tmp_path / "ImageClasses_FSC147.txt").write_text(
        "\n".join(lines), encoding="utf-8"
    )
    put(
        "annotation_FSC147_384.json",
        {
            name: {
                "H": 768,
                "W": 2 * WIDTHS[name],
                "ratio_h": 0.5,
                "ratio_w": 0.5,
                "box_examples_coordinates": [[[10, 70], [10, 90], [30, 90], [30, 70]]]
                * 3,
                "points": points,
            }
            for name, points in POINTS.items()
        },
    )
    split_of = {
        name: split for split in ("train", "val", "test") for name in SPLITS[split]
    }
    put(
        "FSC-147-D.json",
        {
            n: {"data_split": split_of[n], "text_description": f"the {label}"}
            for n, label in CLASSES.items()
        },
    )
    (tmp_path / "images_384_VarV2").mkdir()
    for name, width in WIDTHS.items():
        Image.new("RGB", (width, 384), (200, 30, 30)).save(
            tmp_path / "images_384_VarV2" / name
        )
    return tmp_path


def change(folder: Path, name: str, edit) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    edit(content)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_a_split_reads(miniature: Path) -> None:
    test = load_fsc147(miniature, "test")
    assert test.files == ("2.jpg", "3.jpg")
    assert test.names == ("sea shells", "hot air balloons")
    assert test.texts == ("the sea shells", "the hot air balloons")
    assert test.counts.tolist() == [3, 0]
    item = test.item(0)
    assert item.image.shape == (1, 3, 384, 512) and item.caption == ["the sea shells"]
    assert item.image[0, 0].mean() == pytest.approx(200 / 255, abs=0.02)
    torch.testing.assert_close(item.points[0][0], torch.tensor([10.5, 20.25]))


def test_class_names_with_spaces_are_read_up_to_the_tab(miniature: Path) -> None:
    assert load_fsc147(miniature, "train", text="class").texts == ("go game", "go game")


def test_coco_parts_are_splits(miniature: Path) -> None:
    assert load_fsc147(miniature, "test_coco").files == ("3.jpg",)
    assert len(load_fsc147(miniature, "val_coco")) == 0


def test_density_is_made_of_the_points_inside(miniature: Path) -> None:
    train = load_fsc147(miniature, "train")
    # a point outside is still counted, as the papers do
    assert train.counts.tolist() == [3, 1]
    torch.testing.assert_close(train.item(0).density.sum(), torch.tensor(2.0))
    assert load_fsc147(miniature, "test").item(1).density.sum() == 0


def test_published_density_is_used(miniature: Path) -> None:
    (miniature / "gt_density_map_adaptive_384_VarV2").mkdir()
    np.save(
        miniature / "gt_density_map_adaptive_384_VarV2" / "8.npy",
        np.full((384, 683), 1.5 / (384 * 683)),
    )
    train = load_fsc147(miniature, "train")
    torch.testing.assert_close(train.item(1).density.sum(), torch.tensor(1.5))
    torch.testing.assert_close(train.item(0).density.sum(), torch.tensor(2.0))


def test_a_density_of_the_wrong_size_is_refused(miniature: Path) -> None:
    (miniature / "gt_density_map_adaptive_384_VarV2").mkdir()
    np.save(
        miniature / "gt_density_map_adaptive_384_VarV2" / "8.npy", np.zeros((384, 384))
    )
    with pytest.raises(
        ValueError, match=r"8.npy is \(384, 384\) but its photograph \(384, 683\)"
    ):
        load_fsc147(miniature, "train").item(1)


def test_a_photograph_that_was_not_resized_is_refused(miniature: Path) -> None:
    Image.new("RGB", (800, 600)).save(miniature / "images_384_VarV2" / "8.jpg")
    with pytest.raises(ValueError, match="600 rows"):
        load_fsc147(miniature, "train").item(1)


def test_missing_files_are_named(miniature: Path) -> None:
    (miniature / "images_384_VarV2" / "7.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="7.jpg is missing: unpack"):
        load_fsc147(miniature, "train")  # at once, not when it is asked for
    shutil.rmtree(miniature / "images_384_VarV2")
    with pytest.raises(FileNotFoundError, match="7.jpg is missing: unpack"):
        load_fsc147(miniature, "train").item(0)
    (miniature / "FSC-147-D.json").unlink()
    assert load_fsc147(miniature, "train", text="class").texts == ("go game", "go game")
    with pytest.raises(FileNotFoundError, match="FSC-147-D.json"):
        load_fsc147(miniature, "train")
    (miniature / "annotation_FSC147_384.json").unlink()
    with pytest.raises(FileNotFoundError, match="annotation_FSC147_384.json"):
        load_fsc147(miniature, "train", text="class")
    with pytest.raises(FileNotFoundError, match="Train_Test_Val"):
        read_lists(miniature / "nowhere")


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "Train_Test_Val_FSC_147.json",
            lambda c: c["val"].append("7.jpg"),
            "7.jpg is in the splits train and val",
        ),
        (
            "Train_Test_Val_FSC_147.json",
            lambda c: c["val"].append("77.jpg"),
            "77.jpg of split val has no line",
        ),
        ("Train_Test_Val_FSC_147.json", lambda c: c.pop("val"), "no list 'val'"),
        (
            "Train_Test_Val_FSC_147.json",
            lambda c: c["val_coco"].append("2.jpg"),
            "2.jpg is in val_coco but not in val",
        ),
        (
            "FSC-147-D.json",
            lambda c: c["7.jpg"].update(data_split="test"),
            "described as in 'test'",
        ),
        (
            "FSC-147-D.json",
            lambda c: c["7.jpg"].update(text_description=" "),
            "7.jpg has no text_description",
        ),
        (
            "annotation_FSC147_384.json",
            lambda c: c["7.jpg"].pop("points"),
            "no list of points",
        ),
        ("annotation_FSC147_384.json", lambda c: c.pop("7.jpg"), "no list of points"),
    ],
)
def test_files_that_do_not_fit_together(
    miniature: Path, name: str, edit, message: str
) -> None:
    change(miniature, name, edit)
    with pytest.raises(ValueError, match=message):
        load_fsc147(miniature, "train")


def test_a_class_in_two_splits_is_refused(miniature: Path) -> None:
    path = miniature / "ImageClasses_FSC147.txt"
    path.write_text(path.read_text().replace("oysters", "go game"))
    with pytest.raises(
        ValueError, match="class 'go game' is in the splits train and val"
    ):
        read_lists(miniature)


def test_a_line_without_tab_is_named(miniature: Path) -> None:
    path = miniature / "ImageClasses_FSC147.txt"
    path.write_text("2.jpg sea shells\n")
    with pytest.raises(ValueError, match="line 1"):
        read_lists(miniature)


def test_half_a_file_is_named(miniature: Path) -> None:
    (miniature / "annotation_FSC147_384.json").write_text('{"7.jpg": {"points": [[1')
    with pytest.raises(ValueError, match="is incomplete"):
        load_fsc147(miniature, "train")


@pytest.mark.parametrize(("split", "text"), [("dev", "class"), ("train", "sentence")])
def test_unknown_choices(miniature: Path, split: str, text: str) -> None:
    with pytest.raises(ValueError, match="expected one of train, val"):
        load_fsc147(miniature, split, text)


@pytest.mark.skipif(
    not os.environ.get("FSC147_FOLDER"),
    reason="FSC147_FOLDER names no folder with FSC-147's text files",
)
def test_the_real_text_files() -> None:
    lists = read_lists(os.environ["FSC147_FOLDER"])
    assert {split: len(files) for split, files in lists.files.items()} == {
        "train": 3659,
        "val": 1286,
        "test": 1190,
        "val_coco": 277,
        "test_coco": 282,
    }
    parts = [set(lists.classes(split)) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [89, 29, 29]
    assert (
        not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    )
    assert len(set.union(*parts)) == 147
    everything = {
        name for split in ("train", "val", "test") for name in lists.files[split]
    }
    assert len(everything) == 6135 and len(lists.class_of) == 6146
    assert lists.description_of.keys() == everything
    bare = sum(
        lists.description_of[name] == f"the {lists.class_of[name]}"
        for name in everything
    )
    assert (bare, len(set(lists.description_of.values()))) == (5668, 197)
