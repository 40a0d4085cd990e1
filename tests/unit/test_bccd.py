"""BCCD: the reader on a miniature, and the script against a server on this machine with
the published layout."""

from __future__ import annotations

import http.server
import importlib.util
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from minilib.datasets.annotations import BadFile
from minilib.datasets.bccd import NAMES, load_bccd, read_annotation

BCCD = "BCCD_Dataset-master/BCCD"
SCRIPT = Path(__file__).parents[2] / "data_scripts" / "get_bccd.py"


def annotation(*cells: tuple[str, int, int, int, int]) -> str:
    objects = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
        "<difficult>0</difficult><bndbox>"
        f"<xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, a, b, c, d in cells
    )
    return (
        "<annotation><folder>JPEGImages</folder><size><width>640</width><height>480"
        "</height></size>"
        f"<segmented>0</segmented>{objects}</annotation>"
    )


def picture(size: tuple[int, int] = (640, 480), colour: str = "pink") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=40)
    return buffer.getvalue()


# --- The reader -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three micrographs: two for training, one of them without a cell,
    one for testing."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text(
        "BloodImage_00007\nBloodImage_00001\n"
    )
    (tmp_path / "ImageSets/Main/test.txt").write_text("BloodImage_00003\n")
    cells = [
        ("WBC", 260, 177, 491, 376),
        ("RBC", 0, 0, 100, 100),
        ("RBC", 504, 336, 504, 336),
    ]
    for name, inside in (
        ("00007", cells),
        ("00001", []),
        ("00003", [("Platelets", 600, 440, 640, 480)]),
    ):
        (tmp_path / f"Annotations/BloodImage_{name}.xml").write_text(
            annotation(*inside)
        )
        (tmp_path / f"JPEGImages/BloodImage_{name}.jpg").write_bytes(picture())
    return tmp_path


def test_reader_keeps_the_published_order_and_counts_every_box(folder: Path) -> None:
    train = load_bccd(folder, "train")
    assert train.files == (
        "BloodImage_00007",
        "BloodImage_00001",
    ) and train.image.shape == (2, 3, 480, 640)
    # a box without area is a counted cell as well
    assert train.counts.tolist() == [[2, 1, 0], [0, 0, 0]]
    assert train.points(0, 0).tolist() == [[50, 50], [504, 336]] and train.points(
        1, 2
    ).shape == (0, 2)


def test_boxes_follow_the_resized_image(folder: Path) -> None:
    small = load_bccd(folder, "train", size=(48, 128))
    assert small.image.shape == (2, 3, 48, 128)
    assert small.boxes[0][1].tolist() == [0, 0, 20, 10]
    batch = small.batch([0, 0, 1], [1, 0, 0])
    assert batch.caption == [NAMES[1], NAMES[0], NAMES[0]] and batch.label.tolist() == [
        1,
        0,
        0,
    ]
    assert [len(points) for points in batch.points] == [
        1,
        2,
        0,
    ] and 0 <= batch.image.min() <= batch.image.max() <= 1


def test_a_folder_around_everything_is_looked_through(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    around = tmp_path_factory.mktemp("around")
    (around / "BCCD").symlink_to(folder)
    assert len(load_bccd(around, "test")) == 1


def test_reader_refuses_and_says_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'testing'.*train, val, test"):
        load_bccd(folder, "testing")
    with pytest.raises(ValueError, match="size="):
        load_bccd(folder, "train", size=(0, 10))
    with pytest.raises(FileNotFoundError, match="get_bccd.py"):
        load_bccd(tmp_path / "nothing", "train")
    with pytest.raises(FileNotFoundError, match="val.txt"):
        load_bccd(folder, "val")
    path = folder / "Annotations/BloodImage_00003.xml"
    for text, message in (
        (annotation(("RBC", 10, 10, 900, 20)), "outside the 640 x 480"),
        (annotation(("RBD", 10, 10, 20, 20)), "'RBD'"),
        (annotation(("RBC", 30, 10, 20, 20)), "before"),
        ("<annotation><object>", "cannot be read"),
        (annotation(("RBC", "", 10, 20, 20)), "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_bccd(folder, "test")
    (folder / "JPEGImages/BloodImage_00001.jpg").write_bytes(picture((320, 240)))
    with pytest.raises(BadFile, match="about a picture of 640 x 480 .* is 320 x 240"):
        load_bccd(folder, "train")
    path = folder / "Annotations/BloodImage_00001.xml"
    path.write_text(annotation().replace("640", "320").replace("480", "240"))
    with pytest.raises(ValueError, match="00001.jpg is 320 x 240 .* pass size"):
        load_bccd(folder, "train")


def test_an_image_without_cells_has_empty_tensors(folder: Path) -> None:
    read = read_annotation(folder / "Annotations/BloodImage_00001.xml")
    boxes, classes = read.boxes, read.classes
    assert (
        boxes.shape == (0, 4) and classes.shape == (0,) and classes.dtype == torch.int64
    )
    assert read.size == (640, 480)


# --- The script -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> object:
    spec = importlib.util.spec_from_file_location("get_bccd", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _published() -> dict[str, bytes]:
    """Return the archive's files: 364 images, annotations and four lists below a
    folder, and what else lies there."""
    names = [f"BloodImage_{number:05d}" for number in range(364)]
    parts = {
        "train": names[::2] + names[1:46:2],
        "val": names[47:220:2],
        "test": names[221::2],
    }
    parts["trainval"] = parts["train"] + parts["val"]
    top, image = "BCCD_Dataset-master", picture()
    files = {
        f"{top}/LICENSE": b"MIT",
        f"{top}/README.md": b"",
        f"{top}/BCCD/.DS_Store": b"\0",
    }
    files |= {
        f"{top}/BCCD/ImageSets/Main/{k}.txt": ("\n".join(v) + "\n").encode()
        for k, v in parts.items()
    }
    for name in names:
        files[f"{top}/BCCD/JPEGImages/{name}.jpg"] = image
        files[f"{top}/BCCD/Annotations/{name}.xml"] = annotation(
            ("RBC", 10, 10, 50, 60)
        ).encode()
    files[f"{top}/dataset/mxnet/train.rec"] = b"\1" * 100
    return files


def published() -> dict[str, bytes]:
    return dict(_published())


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """Serve ``state.body`` on the loopback."""
    state = SimpleNamespace(body=pack(published()), requests=0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.body)))
            self.end_headers()
            self.wfile.write(state.body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(
            target=listener.serve_forever, args=(0.02,), daemon=True
        ).start()
        state.url = f"http://127.0.0.1:{listener.server_port}/master.zip"
        yield state
        listener.shutdown()


def test_the_archive_becomes_the_published_folder(
    script: object, server: SimpleNamespace, tmp_path: Path
) -> None:
    assert script.main(["--out", str(tmp_path), "--url", server.url]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bccd"]
    for split, length in (("train", 205), ("val", 87), ("test", 72)):
        names = (tmp_path / f"bccd/ImageSets/Main/{split}.txt").read_text().split()
        assert len(names) == length
    assert (
        load_bccd(tmp_path / "bccd", "test", size=(24, 32)).counts.tolist()
        == [[1, 0, 0]] * 72
    )
    assert (tmp_path / "bccd/LICENSE").read_bytes() == b"MIT"
    assert (
        json.loads((tmp_path / "bccd/source.json").read_text())["source"] == server.url
    )
    before = server.requests
    assert (
        script.main(["--out", str(tmp_path), "--url", server.url]) == 0
        and server.requests == before
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: f.pop("BCCD_Dataset-master/BCCD/JPEGImages/BloodImage_00100.jpg"),
            "BloodImage_00100",
        ),
        (
            lambda f: f.update(
                {f"{BCCD}/ImageSets/Main/val.txt": b"BloodImage_00001\n"}
            ),
            "1 images in",
        ),
        (
            lambda f: f.update(
                {
                    "BCCD_Dataset-master/BCCD/JPEGImages/BloodImage_00100.jpg": picture(
                        (64, 48)
                    )
                }
            ),
            "64 x 48",
        ),
        (
            lambda f: f.update(
                {f"{BCCD}/JPEGImages/BloodImage_00100.jpg": b"\xff\xd8no"}
            ),
            "00100 cannot",
        ),
        (
            lambda f: f.update(
                {"BCCD_Dataset-master/BCCD/Annotations/BloodImage_00100.xml": b"<annot"}
            ),
            "00100 cannot",
        ),
        *[
            (
                lambda f, page=page: f.update(
                    {f"{BCCD}/Annotations/BloodImage_00100.xml": page}
                ),
                message,
            )
            for page, message in (
                (b"<html><body>quota exceeded</body></html>", "root is <html>"),
                (b"<!DOCTYPE html><html><br></html>", "it is a web page"),
                (b"<annotation/>", "no cell in its annotation"),
                (annotation(("RBC", 1, 1, 700, 9)).encode(), "outside the 640 x 480"),
            )
        ],
        (
            lambda f: f.update(
                {
                    f"{BCCD}/ImageSets/Main/val.txt": f[
                        f"{BCCD}/ImageSets/Main/val.txt"
                    ]
                    + b"BloodImage_00047\n"
                }
            ),
            "'BloodImage_00047' is in row 1 already",
        ),
    ],
)
def test_anything_but_the_published_content_leaves_nothing_behind(
    script: object, tmp_path: Path, capsys: pytest.CaptureFixture, spoil, message: str
) -> None:
    files = published()
    spoil(files)
    (tmp_path / "mine.zip").write_bytes(pack(files))
    assert (
        script.main(
            ["--out", str(tmp_path / "out"), "--archive", str(tmp_path / "mine.zip")]
        )
        == 1
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "bccd").exists()


def test_annotations_and_lists_of_a_finished_set_are_mended(
    script: object, server: SimpleNamespace, tmp_path: Path
) -> None:
    """What is not a photograph counts as well."""
    options = ["--out", str(tmp_path), "--url", server.url]
    assert script.main(options) == 0
    data = tmp_path / "bccd"
    lost = [data / "Annotations/BloodImage_00007.xml", data / "ImageSets/Main/val.txt"]
    whole = [path.read_bytes() for path in lost]
    lost[0].unlink()
    lost[1].write_bytes(b"")
    assert script.main(options) == 0 and server.requests == 2
    assert [path.read_bytes() for path in lost] == whole


def test_a_truncated_archive_is_refused(
    script: object, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    body = pack(published())
    (tmp_path / "mine.zip").write_bytes(body[: len(body) // 2])
    assert (
        script.main(
            ["--out", str(tmp_path / "out"), "--archive", str(tmp_path / "mine.zip")]
        )
        == 1
    )
    assert "damaged" in capsys.readouterr().err
