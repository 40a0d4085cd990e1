"""Files that say what is in a picture: whatever is wrong in them is named by file and
row, and a picture and its annotations stay together."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from minilib.datasets.annotations import (
    BadFile,
    check_density,
    check_points,
    read_array,
    read_json,
    read_list,
    read_text,
    read_xml,
)
from minilib.datasets.bccd import load_bccd, read_annotation
from minilib.datasets.camvid import load_camvid
from minilib.datasets.decode import ORIENTATION, read_picture
from minilib.datasets.fsc147 import (
    ANNOTATION_FILE,
    CLASS_FILE,
    DENSITY_FOLDER,
    IMAGE_FOLDER,
    SPLIT_FILE,
    load_fsc147,
    read_lists,
)

BOX = (3, 8, 15, 24)  # of the white rectangle, in stored pixels
TURNS = {  # the EXIF standard, as numpy: rows and columns of stored -> upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


# --- miniatures -----------------------------------------------------------------------


def voc(*boxes: tuple, size: tuple[int, int] | None = None, name: str = "RBC") -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    stated = ""
    if size:
        stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>{stated}{objects}</annotation>"


def scene(size: tuple[int, int], box: tuple[int, int, int, int] = BOX) -> Image.Image:
    """Return a black picture with a white box, right and lower edge excluded."""
    image = Image.new("RGB", size, "black")
    left, top, right, bottom = box
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill="white")
    return image


def save(image: Image.Image, path: Path, orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    image.save(path, exif=exif, **options)


@pytest.fixture
def bccd(tmp_path: Path) -> Path:
    """Two micrographs of 64 x 48, one cell each."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    for name in ("cell_0", "cell_1"):
        save(scene((64, 48)), tmp_path / f"JPEGImages/{name}.jpg")
        (tmp_path / f"Annotations/{name}.xml").write_text(voc(BOX, size=(64, 48)))
    (tmp_path / "ImageSets/Main/train.txt").write_text("cell_0\ncell_1\n")
    return tmp_path


@pytest.fixture
def fsc(tmp_path: Path) -> Path:
    """One test photograph of 384 rows and 400 columns, two dots."""
    put = {
        SPLIT_FILE: {"train": [], "val": [], "test": ["1.jpg"]},
        ANNOTATION_FILE: {"1.jpg": {"points": [[40, 60], [50.5, 70]]}},
    }
    for name, content in put.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / CLASS_FILE).write_text("1.jpg\tapples\n")
    save(scene((400, 384)), tmp_path / IMAGE_FOLDER / "1.jpg")
    return tmp_path


# --- lists ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"cell_0\r\ncell_1\r\n",
        b"\xef\xbb\xbfcell_0\ncell_1\n",
        "cell_0\r\ncell_1\r\n".encode("utf-16"),
        b"\xfe\xff" + "cell_0\ncell_1".encode("utf-16-be"),
        b"\n  cell_0 \r\rcell_1",
    ],
    ids=["Windows", "BOM", "UTF-16", "UTF-16 BE", "old Mac"],
)
def test_lists_of_any_editor_are_read(bccd: Path, data: bytes) -> None:
    (bccd / "ImageSets/Main/train.txt").write_bytes(data)
    assert load_bccd(bccd, "train").files == ("cell_0", "cell_1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cell_0\ncell_1\n\ncell_0\n", "row 4: 'cell_0' is in row 1 already"),
        (b"cell_0  1\ncell_1 -1\n", "row 1: 'cell_0  1' is a row of a list for one"),
        (b"cell_0\ncell_1 -1\n", "row 2: 'cell_1 -1' is a row of a list for one class"),
        (b"cell_0.jpg\n", "row 1: 'cell_0.jpg' ends in .jpg; expected the name"),
        (b"/x/JPEGImages/cell_0\n", "row 1: .* is a path; expected a bare file name"),
        (b"..\n", "row 1: '..' is a path"),
        (b"\n \n", "train.txt is empty"),
        (b"", "train.txt is empty"),
        (b"cell_0\n\xff\xfe\xfd", r"train.txt is not text in UTF-8 \(byte 7\)"),
        ("cell_0\n".encode("utf-16-le"), "train.txt holds zero bytes"),
    ],
)
def test_rows_that_are_no_names_are_named(
    bccd: Path, data: bytes, message: str
) -> None:
    (bccd / "JPEGImages/cell_0.jpg.jpg").write_bytes(b"")  # not a trap for a suffix
    (bccd / "ImageSets/Main/train.txt").write_bytes(data)
    with pytest.raises(BadFile, match=message):
        load_bccd(bccd, "train")


def test_a_file_that_a_list_names_and_that_is_missing_is_named_with_its_row(
    bccd: Path,
) -> None:
    (bccd / "JPEGImages/cell_1.jpg").rename(bccd / "JPEGImages/cell_1.JPG")
    with pytest.raises(
        FileNotFoundError, match=r"cell_1.jpg is missing, .*train.txt, row 2 names"
    ):
        load_bccd(bccd, "train")
    (bccd / "ImageSets/Main/train.txt").write_text("x" * 300)
    with pytest.raises(FileNotFoundError, match="row 1 names"):
        load_bccd(bccd, "train")


def test_spaces_within_a_name_belong_to_it(bccd: Path) -> None:
    for part, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (bccd / part / f"cell_0.{suffix}").rename(
            bccd / part / f"blood cell 1.{suffix}"
        )
    (bccd / "ImageSets/Main/train.txt").write_text("blood cell 1\ncell_1\n")
    assert load_bccd(bccd, "train").files == ("blood cell 1", "cell_1")


# --- XML ------------------------------------------------------------------------------


@pytest.mark.parametrize("corner", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "value", ["nan", "-inf", "1e999", "1,5", "1_0", "", "0x9", "\u0663", "1e30"]
)
def test_a_coordinate_that_is_no_finite_number_is_named(
    bccd: Path, corner: int, value: str
) -> None:
    box = [*BOX]
    box[corner] = value
    (bccd / "Annotations/cell_1.xml").write_text(voc(BOX, box), "utf-8")
    side = ("xmin", "ymin", "xmax", "ymax")[corner]
    with pytest.raises(
        BadFile, match=rf"cell_1.xml, object 2 .*<{side}> is {value!r}, expected a fini"
    ):
        load_bccd(bccd, "train")


def test_numbers_may_be_written_in_any_usual_way(bccd: Path) -> None:
    path = bccd / "Annotations/cell_0.xml"
    path.write_text(voc((" 7 ", "1.5", "+1e1", "20.")))
    assert read_annotation(path).boxes.tolist() == [[7, 1.5, 10, 20]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc((20, 2, 4, 30)), "object 1: a box .* comes before"),
        (voc(BOX, (1, 2, 65, 30)), "object 2: a box .* outside the 64 x 48 image"),
        (voc((-1, 2, 5, 30)), "object 1: a box .* outside"),
        (voc(BOX, name="rbc"), "object 1: class 'rbc', expected one of RBC, WBC"),
        (voc(BOX, size=(640, 480)), "is about a picture of 640 x 480 .* is 64 x 48"),
        (voc(BOX, size=(48, 64)), "is about a picture of 48 x 64"),
        (voc(BOX, size=("wide", 48)), "<width> is 'wide'"),
        (voc(BOX).replace("<ymin>8</ymin>", ""), "object 1 .*0 times <ymin>"),
        (voc(BOX).replace("</bndbox>", "</bndbox><bndbox/>"), "2 times <bndbox>"),
        (
            voc(BOX).replace("<xmax>", "<xmin>9</xmin><xmax>"),
            "object 1 .*2 times <xmin>, expected 1",
        ),
        ("<html><body/></html>", "root is <html>, expected <annotation>"),
        ("<!DOCTYPE html>\n<html><br></html>", "it is a web page"),
        ("", "cannot be read"),
        (voc(BOX)[:-30], "cell_1.xml cannot be read"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "cannot be read"),
    ],
)
def test_an_annotation_that_cannot_be_right_is_named(
    bccd: Path, text: str, message: str
) -> None:
    (bccd / "Annotations/cell_1.xml").write_text(text)
    with pytest.raises(BadFile, match=rf"cell_1\.xml.*{message}|{message}") as raised:
        load_bccd(bccd, "train")
    assert "cell_1.xml" in str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_xml_in_any_encoding(bccd: Path, encoding: str) -> None:
    declared = "utf-8" if "8" in encoding else "utf-16"
    text = f'<?xml version="1.0" encoding="{declared}"?>' + voc(BOX)
    path = bccd / "Annotations/cell_0.xml"
    path.write_bytes(text.encode(encoding))
    assert read_annotation(path).boxes.tolist() == [list(BOX)]


# --- pictures -------------------------------------------------------------------------


def cut(path: Path) -> None:
    """Cut a file short, as a broken download does."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def web_page(path: Path) -> None:
    path.write_bytes(b"<html>quota exceeded</html>")


@pytest.mark.parametrize("damage", [cut, web_page])
def test_a_damaged_picture_is_named_in_one_kind_of_error(
    bccd: Path, fsc: Path, damage: Callable[[Path], None]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (384, 400, 3), dtype=np.uint8)
    save(Image.fromarray(noise), fsc / IMAGE_FOLDER / "1.jpg")
    damage(fsc / IMAGE_FOLDER / "1.jpg")
    with pytest.raises(BadFile, match=r"1\.jpg cannot be read .*complete image file"):
        load_fsc147(fsc, "test", text="class").image(0)
    damage(bccd / "JPEGImages/cell_1.jpg")
    with pytest.raises(BadFile, match=r"cell_1\.jpg cannot be read"):
        load_bccd(bccd, "train")
    for broken, name in (("train", "a.jpg"), ("trainannot", "a.png")):
        save(scene((64, 48)), bccd / "train/a.jpg")
        save(Image.new("L", (64, 48), 3), bccd / "trainannot/a.png")
        damage(bccd / broken / name)
        with pytest.raises(BadFile, match=rf"{broken}/{name} cannot be read"):
            load_camvid(bccd, "train")


def test_two_images_of_one_name_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        save(scene((64, 48)), tmp_path / "train" / name)
    save(Image.new("L", (64, 48), 3), tmp_path / "trainannot/a.png")
    with pytest.raises(BadFile, match=r"train has a\.jpg and a\.png"):
        load_camvid(tmp_path, "train")


def test_litter_of_the_system_is_not_a_frame(tmp_path: Path) -> None:
    save(scene((64, 48)), tmp_path / "train/a.png")
    save(Image.new("L", (64, 48), 3), tmp_path / "trainannot/a.png")
    (tmp_path / "train/._a.png").write_bytes(b"resource fork")
    assert load_camvid(tmp_path, "train").frames == ("a",)


def test_a_wrong_class_in_a_mask_is_found_at_any_size(tmp_path: Path) -> None:
    save(scene((64, 48)), tmp_path / "train/a.png")
    mask = Image.new("L", (64, 48), 3)
    mask.putpixel((1, 1), 40)  # lost when the mask is made smaller
    save(mask, tmp_path / "trainannot/a.png")
    with pytest.raises(BadFile, match="a.png has the value 40"):
        load_camvid(tmp_path, "train", size=(6, 8))


# --- orientation ----------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pixels_are_read_as_stored_whatever_the_orientation(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    stored, path = scene((64, 48)), tmp_path / f"x.{suffix}"
    save(stored, path, orientation)
    assert np.abs(np.asarray(stored, int) - np.asarray(read_picture(path))).max() < 40
    read = read_picture(path, (64, 48).__eq__)
    assert read.size == (64, 48)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_size_that_only_the_upright_picture_has_makes_it_upright(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    stored, path = scene((64, 48)), tmp_path / f"x.{suffix}"
    save(stored, path, orientation)
    read = read_picture(path, (48, 64).__eq__)
    expected = TURNS[orientation](np.asarray(stored, int))
    assert read.size == (48, 64) and np.abs(expected - np.asarray(read)).max() < 40


def upright_box(size: tuple[int, int], orientation: int) -> list[int]:
    """Return the white box of the upright picture."""
    bright = TURNS[orientation](np.asarray(scene(size).convert("L"))) > 0
    rows, columns = bright.any(1).nonzero()[0], bright.any(0).nonzero()[0]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(64, 48), (64, 64)])
def test_boxes_stay_on_their_cells(
    bccd: Path, orientation: int, size: tuple[int, int]
) -> None:
    save(scene(size), bccd / "JPEGImages/cell_0.jpg", orientation)
    (bccd / "ImageSets/Main/train.txt").write_text("cell_0\n")
    path = bccd / "Annotations/cell_0.xml"
    annotations = [voc(BOX, size=size), voc(BOX)]
    if size[0] != size[1] and orientation > 4:
        box = upright_box(size, orientation)
        annotations.append(voc(box, size=size[::-1]))
    for text in annotations:
        path.write_text(text)
        for resized in (None, (96, 96)):
            read = load_bccd(bccd, "train", resized)
            left, top, right, bottom = read.boxes[0][0].round().int().tolist()
            pixels = read.image[0].float().mean(0) / 255
            assert pixels[top:bottom, left:right].mean() > 0.9
            pixels[top:bottom, left:right] = 0
            assert pixels.mean() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_masks_stay_on_their_frames(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    stored = np.where(np.asarray(scene((64, 48)).convert("L")) > 0, 8, 11)
    masks = [stored]
    if orientation > 4:
        masks.append(TURNS[orientation](stored))
    for mask in masks:
        save(scene((64, 48)), tmp_path / f"train/a.{suffix}", orientation)
        save(
            Image.fromarray(np.ascontiguousarray(mask, np.uint8)),
            tmp_path / "trainannot/a.png",
        )
        read = load_camvid(tmp_path, "train")
        bright = read.image[0].float().mean(0) / 255
        assert read.mask.shape[1:] == mask.shape
        assert bright[read.mask[0] == 8].mean() > 0.9
        assert bright[read.mask[0] == 255].mean() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_with_the_orientation_of_its_frame_stays_on_it(
    tmp_path: Path, orientation: int
) -> None:
    mask = scene((64, 48)).convert("L").point(lambda value: 8 if value else 11)
    save(scene((64, 48)), tmp_path / "train/a.png", orientation)
    save(mask, tmp_path / "trainannot/a.tif", orientation)
    read = load_camvid(tmp_path, "train")
    assert torch.equal(read.image[0, 0] == 255, read.mask[0] == 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_dots_stay_on_their_objects(fsc: Path, orientation: int) -> None:
    def check(size: tuple[int, int], dot: list[float], row: dict) -> None:
        save(scene(size, (20, 40, 60, 80)), fsc / IMAGE_FOLDER / "1.jpg", orientation)
        entry = {"1.jpg": {"points": [dot], **row}}
        (fsc / ANNOTATION_FILE).write_text(json.dumps(entry))
        item = load_fsc147(fsc, "test", text="class").item(0)
        x, y = item.points[0][0].long().tolist()
        assert item.image[0, :, y, x].mean() > 0.9
        assert item.image.mean() < 0.1

    check((384, 384), [40, 60], {})
    check((500, 384), [40, 60], {"H": 768, "W": 1000, "ratio_h": 0.5, "ratio_w": 0.5})
    if orientation > 4:  # resized upright, stored sideways
        stored = np.zeros((500, 384), np.uint8)
        stored[40:80, 20:60] = 1
        rows, columns = TURNS[orientation](stored).nonzero()
        check((384, 500), [float(columns.mean()), float(rows.mean())], {})


# --- FSC-147 --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("[[1, 2], [NaN, 2]]", "point 1: .nan, 2. is not"),
        ("[[1, 2], [Infinity, 2]]", "point 1"),
        ("[[1e999, 2]]", "point 0"),
        ("[[1e30, 2]]", "point 0"),
        ("[[1, 2, 3]]", "point 0"),
        ('[["1", 2]]', "point 0"),
        ("[[true, 2]]", "point 0"),
        ("[7]", "point 0: 7"),
        ("[null]", "point 0: None"),
        ("{}", "no list of points"),
        ("null", "no list of points"),
    ],
)
def test_rows_are_checked_when_the_split_is_opened(
    fsc: Path, points: str, message: str
) -> None:
    (fsc / ANNOTATION_FILE).write_text(f'{{"1.jpg": {{"points": {points}}}}}')
    with pytest.raises(BadFile, match=rf"{ANNOTATION_FILE}, 1\.jpg.*{message}"):
        load_fsc147(fsc, "test", text="class")


def test_a_row_that_states_another_size_is_named(fsc: Path) -> None:
    row = {"points": [], "W": 1000, "ratio_w": 0.5}
    (fsc / ANNOTATION_FILE).write_text(json.dumps({"1.jpg": row}))
    with pytest.raises(BadFile, match=r"1\.jpg has 400 columns, but .* is about 500"):
        load_fsc147(fsc, "test", text="class").image(0)
    (fsc / ANNOTATION_FILE).write_text(json.dumps({"1.jpg": {**row, "W": 0}}))
    with pytest.raises(BadFile, match=r"1\.jpg: W=0 and ratio_w=0.5"):
        load_fsc147(fsc, "test", text="class")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (CLASS_FILE, "1.jpg\tapples\n2.jpg\tx\n1.jpg\tpears\n", "line 3: 1.jpg is in"),
        (CLASS_FILE, "1.jpg\t \n", "line 1: .* is not '<file>, tab"),
        (CLASS_FILE, "\tapples\n", "line 1: '' is not a file name"),
        (CLASS_FILE, "1.jpg\0\tapples\n", "zero bytes"),
        (SPLIT_FILE, '{"train": [], "val": [], "test": ["1.jpg", "1.jpg"]}', "name 2"),
        (SPLIT_FILE, '{"train": [], "val": [], "test": [7]}', "test, name 1: 7 is not"),
        (SPLIT_FILE, '{"train": [], "val": [], "test": ["../1.jpg"]}', "is a path"),
        (SPLIT_FILE, '{"train": [], "val": {}, "test": []}', "no list 'val'"),
        (
            SPLIT_FILE,
            '{"train": [], "val": [], "test": ["1.jpg"], "test_coco": 3}',
            "no list 'test_coco'",
        ),
        (SPLIT_FILE, '{"train": [], "train": [], "val": [], "test": []}', "'train' tw"),
        (SPLIT_FILE, "[]", "holds a list"),
        (SPLIT_FILE, "[" * 100_000, "is incomplete"),
        (ANNOTATION_FILE, '{"1.jpg": {"points": []}, "1.jpg": {}}', "'1.jpg' twice"),
        (ANNOTATION_FILE, '{"1.jpg": []}', "no list of points"),
        (ANNOTATION_FILE, "<html>", "is incomplete"),
    ],
)
def test_text_files_are_named_with_the_row(
    fsc: Path, name: str, text: str, message: str
) -> None:
    (fsc / name).write_text(text)
    with pytest.raises(BadFile, match=message) as raised:
        load_fsc147(fsc, "test", text="class")
    assert name in str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_text_files_of_windows_are_read(fsc: Path, encoding: str) -> None:
    for name in (CLASS_FILE, SPLIT_FILE, ANNOTATION_FILE):
        text = (fsc / name).read_text().replace("\n", "\r\n")
        (fsc / name).write_bytes(text.encode(encoding))
    read = load_fsc147(fsc, "test", text="class")
    assert (read.files, read.names) == (("1.jpg",), ("apples",))
    assert read.points(0).tolist() == [[40, 60], [50.5, 70]]


def flat(total: float) -> np.ndarray:
    return np.full((384, 400), total / (384 * 400))


def with_one(value: float) -> np.ndarray:
    density = flat(2)
    density[5, 5] = value
    return density


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (with_one(np.nan), "not finite"),
        (with_one(np.inf), "not finite"),
        (with_one(-0.5), "holds -0.5"),
        (flat(99), "sums to 99.0 for 2 points"),
        (flat(120), "sums to 120.0 for 2 points"),
        (flat(0), "sums to 0.0 for 2 points"),
        (flat(2).astype(complex), "real numbers"),
        (np.zeros((384, 400), bool), "real numbers"),
        (np.array([["x"]]), "real numbers"),
        (np.array([{"a": 1}], dtype=object), "cannot be read"),
        (flat(2)[None], r"is \(1, 384, 400\)"),
    ],
)
def test_densities_that_cannot_be_of_the_dots_are_refused(
    fsc: Path, density: np.ndarray, message: str
) -> None:
    (fsc / DENSITY_FOLDER).mkdir()
    path = fsc / DENSITY_FOLDER / "1.npy"
    np.save(path, density, allow_pickle=True)
    split = load_fsc147(fsc, "test", text="class")
    with pytest.raises(BadFile, match=message) as raised:
        split.item(0)
    assert "1.npy" in str(raised.value)
    path.unlink()
    assert split.item(0).density.sum() == pytest.approx(2)


def test_a_density_may_lack_or_exceed_a_little(fsc: Path) -> None:
    path = fsc / "x.npy"
    for total in (1.0, 2.0, 3.0):
        check_density(flat(total), 2, 2, path)
    check_density(flat(70), 90, 90, path)  # dots merged where they share a pixel
    check_density(flat(40), 90, 50, path)  # 40 dots outside the picture
    for total, count in ((0.4, 2), (4, 2), (66, 90), (115, 90)):
        with pytest.raises(BadFile, match="sums to"):
            check_density(flat(total), count, count, path)


@pytest.mark.parametrize("kept", [0, 5, 60, 128, 5000, -1])
def test_half_a_density_is_named(fsc: Path, kept: int) -> None:
    (fsc / DENSITY_FOLDER).mkdir()
    path = fsc / DENSITY_FOLDER / "1.npy"
    np.save(path, flat(2))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadFile, match=r"1\.npy cannot be read"):
        load_fsc147(fsc, "test", text="class").item(0)


# --- any damage at all ----------------------------------------------------------------


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return ``data`` with one to three faults as disks, editors and transfers make."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(out) + 1)
        kind = chance.randrange(8)
        if kind == 0:
            del out[place:]
        elif kind == 1:
            del out[place : place + chance.randint(1, 40)]
        elif kind == 2 and out:
            out[place % len(out)] ^= 1 << chance.randrange(8)
        elif kind == 3:
            out[place:place] = chance.randbytes(chance.randint(1, 9))
        elif kind == 4:
            words = (
                b"nan",
                b"-1",
                b"1e999",
                b"null",
                b"[]",
                b"<x>",
                b"\0",
                b"\r",
                b"{",
            )
            out[place:place] = chance.choice(words)
        elif kind == 5:
            out[place:place] = out[place : place + chance.randint(1, 60)]
        elif kind == 6:
            out = bytearray(out.decode("latin-1").encode("utf-16"))
        else:
            out[:0] = b"\xef\xbb\xbf"
    return bytes(out)


def finite_boxes(path: Path) -> None:
    read = read_annotation(path)
    left, top, right, bottom = read.boxes.unbind(1)
    assert read.boxes.isfinite().all() and (read.boxes >= 0).all()
    assert (left <= right).all() and (top <= bottom).all()
    assert len(read.classes) == len(read.boxes)


def plain_names(path: Path) -> None:
    names = list(read_list(path))
    assert names == [name.strip() for name in names] and len(names) == len({*names})
    assert all(names) and not any("/" in name or "\0" in name for name in names)


def finite_points(path: Path) -> None:
    for name, entry in read_json(path).items():
        points = entry.get("points") if isinstance(entry, dict) else None
        check_points(points, f"{path}, {name}")
        tensor = torch.tensor(points, dtype=torch.float32).reshape(-1, 2)
        assert tensor.isfinite().all()


def real_array(path: Path) -> None:
    assert read_array(path).dtype.kind in "fiu"


def finite_lists(path: Path) -> None:
    lists = read_lists(path.parent)
    assert all(label.strip() for label in lists.class_of.values())


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("a.xml", finite_boxes),
        ("train.txt", plain_names),
        ("points.json", finite_points),
        ("density.npy", real_array),
        (CLASS_FILE, finite_lists),
        (SPLIT_FILE, finite_lists),
    ],
)
def test_a_damaged_file_is_read_right_or_named(
    fsc: Path, name: str, check: Callable[[Path], None]
) -> None:
    """Never another error, never a value that cannot be: seeded, 300 damages a file."""
    (fsc / "a.xml").write_text(voc(BOX, (1, 2, 3.5, 4), BOX, size=(64, 48)))
    (fsc / "train.txt").write_text("\n".join(f"cell_{i}" for i in range(9)))
    rows = {f"{i}.jpg": {"points": [[i, 2.5], [3, 4]]} for i in range(5)}
    (fsc / "points.json").write_text(json.dumps(rows))
    np.save(fsc / "density.npy", np.linspace(0, 1, 30, dtype=np.float32).reshape(5, 6))
    path = fsc / name
    whole = path.read_bytes()
    check(path)
    chance, refused = random.Random(9), 0
    for _ in range(300):
        path.write_bytes(damaged(whole, chance))
        try:
            check(path)
        except BadFile as error:
            assert path.name in str(error), error
            refused += 1
    assert 75 < refused < 300


def test_a_file_that_may_not_be_read_is_named(
    bccd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user without permission; root has it always."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BadFile, match=r"train\.txt cannot be read \(Permission denied"):
        load_bccd(bccd, "train")
    with pytest.raises(
        BadFile, match=r"cell_0\.xml cannot be read \(Permission denied"
    ):
        read_annotation(bccd / "Annotations/cell_0.xml")
    with pytest.raises(
        BadFile, match=r"cell_0\.jpg cannot be read .*Permission denied"
    ):
        read_picture(bccd / "JPEGImages/cell_0.jpg")


def test_what_is_not_there_is_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    for name in ("x", "folder.txt", "y" * 300):
        path = tmp_path / name
        for read in (read_text, read_list, read_json, read_array, read_picture):
            with pytest.raises(FileNotFoundError, match="is missing"):
                read(path)
        with pytest.raises(FileNotFoundError, match="is missing"):
            read_xml(path, "annotation")
