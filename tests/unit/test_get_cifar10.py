from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import importlib.util
import io
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
from PIL import Image

from minilib.datasets import load_photos

SCRIPT = Path(__file__).parents[2] / "data_scripts" / "get_cifar10.py"
CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
SIZES = {**{f"data_batch_{i}": 20 for i in range(1, 6)}, "test_batch": 10}


@pytest.fixture
def script() -> object:
    spec = importlib.util.spec_from_file_location("get_cifar10", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- an archive in the published format -----------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 wrote its ``str``."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_python2_str(self, value: bytes) -> None:
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    def save_text(self, value: str) -> None:
        self.save_python2_str(value.encode("ascii"))

    dispatch[bytes] = save_python2_str
    dispatch[str] = save_text


def python2_pickle(content: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )


def published_parts() -> dict[str, bytes]:
    """Return the files of the archive, with few photographs: solid but for a marked
    corner, all distinct."""
    random = np.random.default_rng(0)
    parts = {}
    for name, count in SIZES.items():
        content = {
            b"batch_label": f"batch {name}".encode(),
            b"labels": [i % 10 for i in range(count)],
            b"data": random.integers(0, 256, (count, 3072), np.uint8),
            b"filenames": [f"{i}.png".encode() for i in range(count)],
        }
        parts[name] = python2_pickle(content)
    meta = {
        b"num_cases_per_batch": 20,
        b"label_names": [name.encode() for name in CLASSES],
        b"num_vis": 3072,
    }
    parts["batches.meta"] = python2_pickle(meta)
    parts["readme.html"] = b"<html></html>"
    return parts


def pack(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        folder = tarfile.TarInfo("cifar-10-batches-py")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in parts.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """Serve ``state.body`` on the loopback; ``cut`` ends it early, ``stall`` holds
    its second half."""
    state = SimpleNamespace(
        body=pack(published_parts()), cut=None, stall=None, status=200, requests=0
    )

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests += 1
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(state.body)))
            self.end_headers()
            half = len(state.body) // 2
            self.wfile.write(state.body[: state.cut or half])
            self.wfile.flush()
            if state.stall:
                state.stall.wait(60)
            if state.cut is None:
                self.wfile.write(state.body[half:])

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that was killed

    with Quiet(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(
            target=listener.serve_forever, args=(0.02,), daemon=True
        ).start()
        state.url = f"http://127.0.0.1:{listener.server_port}/cifar-10-python.tar.gz"
        yield state
        listener.shutdown()


def arguments(
    out: Path, server: SimpleNamespace, checksum: str | None = None
) -> list[str]:
    return [
        "--out",
        str(out),
        "--url",
        server.url,
        "--md5",
        checksum or md5(server.body),
    ]


# --- the whole way --------------------------------------------------------------------


def test_the_archive_becomes_a_folder_per_class(
    script: object, server: SimpleNamespace, tmp_path: Path
) -> None:
    assert script.main(arguments(tmp_path, server)) == 0
    # no archive and no unfinished work
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10"]
    assert (
        sorted(path.name for path in (tmp_path / "cifar10" / "train").iterdir())
        == CLASSES
    )
    parts = published_parts()
    for split, number, part, row in (
        ("train", 0, "data_batch_1", 0),
        ("train", 47, "data_batch_3", 7),
        ("test", 9, "test_batch", 9),
    ):
        content = script.NumpyUnpickler(
            io.BytesIO(parts[part]), encoding="bytes"
        ).load()
        path = (
            tmp_path
            / "cifar10"
            / split
            / CLASSES[content[b"labels"][row]]
            / f"{number:05d}.png"
        )
        planes = np.asarray(Image.open(path)).transpose(2, 0, 1)
        assert np.array_equal(planes.reshape(-1), content[b"data"][row])
    record = json.loads((tmp_path / "cifar10" / "source.json").read_text())
    files = {p.relative_to(tmp_path / "cifar10") for p in tmp_path.rglob("*.png")}
    assert record.pop("files") == {
        file.as_posix(): (tmp_path / "cifar10" / file).stat().st_size for file in files
    }
    assert record == {
        "source": server.url,
        "md5": md5(server.body),
        "photographs": {"train": 100, "test": 10},
    }


def test_the_result_loads_as_photographs(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "cache"))
    script.main(arguments(tmp_path, server))
    train, test = load_photos(tmp_path / "cifar10", size=32, progress=False)
    assert (len(train), len(test)) == (100, 10) and list(
        train.names
    ) == CLASSES == list(test.names)


def test_a_second_run_does_nothing(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    script.main(arguments(tmp_path, server))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert script.main(arguments(tmp_path, server)) == 0
    assert "complete already" in capsys.readouterr().out
    assert server.requests == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_archive_at_hand_needs_no_network(
    script: object, server: SimpleNamespace, tmp_path: Path
) -> None:
    archive = tmp_path / "mine.tar.gz"
    archive.write_bytes(server.body)
    assert (
        script.main([*arguments(tmp_path / "out", server), "--archive", str(archive)])
        == 0
    )
    assert server.requests == 0 and archive.exists()
    assert len(list((tmp_path / "out" / "cifar10").rglob("*.png"))) == 110


def test_the_published_address_and_checksum_are_the_defaults(script: object) -> None:
    assert script.URL == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert script.MD5 == "c58f30108f718f92721af3b95e74349a"


# --- what goes wrong ------------------------------------------------------------------


def refused(script: object, options: list[str], capsys: pytest.CaptureFixture) -> str:
    """Run, expect a refusal without a trace of ``cifar10``, and return the message."""
    assert script.main(options) == 1
    out = Path(options[1])
    assert not (out / "cifar10").exists() and not list(out.rglob("*.png"))
    message = capsys.readouterr().err
    assert "error: " in message
    return message


def test_another_checksum_is_refused(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    message = refused(script, arguments(tmp_path, server, script.MD5), capsys)
    assert md5(server.body) in message and script.MD5 in message
    assert not list(tmp_path.rglob("*.gz"))
    archive = tmp_path / "mine.tar.gz"
    archive.write_bytes(server.body[:-100])
    message = refused(
        script,
        [*arguments(tmp_path / "out", server), "--archive", str(archive)],
        capsys,
    )
    assert f"mine.tar.gz has the MD5 {md5(server.body[:-100])}, expected" in message


def test_a_download_that_breaks_off_is_refused_and_the_next_run_succeeds(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    server.cut = 1000
    message = refused(script, arguments(tmp_path, server), capsys)
    assert f"could not download {server.url}" in message and "--archive FILE" in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    server.cut = None
    assert script.main(arguments(tmp_path, server)) == 0


def test_no_server_and_no_page_are_said_plainly(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    server.status = 404
    assert "404" in refused(script, arguments(tmp_path, server), capsys)
    server.url = "http://127.0.0.1:9/cifar-10-python.tar.gz"
    assert "check the connection" in refused(
        script, arguments(tmp_path, server), capsys
    )
    missing = [*arguments(tmp_path, server), "--archive", str(tmp_path / "nowhere")]
    with pytest.raises(SystemExit) as exit:
        script.main(missing)
    assert exit.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


class Malicious:
    """Makes a folder when it is unpickled by anything careless."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_calls_code_is_refused_before_it_runs(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    attack = python2_pickle({b"data": Malicious(tmp_path / "owned")})
    server.body = pack({**published_parts(), "data_batch_2": attack})
    message = refused(script, arguments(tmp_path, server), capsys)
    assert "refused to read data_batch_2" in message and "mkdir" in message
    assert not (tmp_path / "owned").exists()
    pickle.loads(attack)  # the attack is real
    assert (tmp_path / "owned").exists()


def cut_gzip(body: bytes) -> bytes:
    return body[: len(body) // 2]


def without(name: str) -> dict[str, bytes]:
    return {key: value for key, value in published_parts().items() if key != name}


def content(**changes: object) -> bytes:
    good = {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 20}
    return python2_pickle(
        {key.encode(): value for key, value in {**good, **changes}.items()}
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (cut_gzip(pack(published_parts())), "is damaged"),
        (b"<html>moved</html>", "is damaged"),
        (gzip.compress(b"not a tar" * 200), "is damaged"),
        (pack(without("data_batch_4")), "lacks data_batch_4"),
        (pack(without("batches.meta")), "lacks batches.meta"),
        (
            pack({**published_parts(), "data_batch_1": content(labels=[0] * 19)}),
            "100 images of uint8, 99 labels",
        ),
        (
            pack({**published_parts(), "data_batch_1": content(labels=[10] * 20)}),
            "labels 0 to 10 for 10 classes",
        ),
        (
            pack(
                {
                    **published_parts(),
                    "data_batch_1": content(data=np.zeros((20, 100), np.uint8)),
                }
            ),
            "not laid out",
        ),
        (
            pack(
                {
                    **published_parts(),
                    "data_batch_1": content(data=np.zeros((20, 3072))),
                }
            ),
            "of float64",
        ),
        (
            pack({**published_parts(), "data_batch_1": python2_pickle([1, 2])}),
            "not laid out as CIFAR-10",
        ),
        (
            pack({**published_parts(), "data_batch_1": b"junk"}),
            "refused to read data_batch_1",
        ),
        (
            pack(
                {
                    **published_parts(),
                    "batches.meta": python2_pickle({b"label_names": [b"../up"]}),
                }
            ),
            r"'\.\./up'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_foreign_and_damaged_archives_are_refused(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    body: bytes,
    message: str,
) -> None:
    server.body = body
    assert re.search(message, refused(script, arguments(tmp_path, server), capsys))


def test_a_full_disk_is_noticed_before_the_download(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000)
    )
    assert "has 10 MB free, 416 MB are needed" in refused(
        script, arguments(tmp_path, server), capsys
    )
    assert server.requests == 0


def test_a_folder_of_someone_elses_is_left_alone(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "mine.txt").write_text("mine")
    assert script.main(arguments(tmp_path, server)) == 1
    assert "was not made by this script" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == ["mine.txt"]


def test_a_result_that_lost_files_is_mended(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    script.main(arguments(tmp_path, server))
    data = tmp_path / "cifar10"
    whole = {path: path.read_bytes() for path in data.rglob("*.png")}
    deleted, emptied, cut = sorted(whole)[3], sorted(whole)[40], sorted(whole)[-1]
    (data / "notes.txt").write_text("mine")
    deleted.unlink()
    emptied.write_bytes(b"")
    cut.write_bytes(whole[cut][:-9])
    assert script.main(arguments(tmp_path, server)) == 0
    said = capsys.readouterr().out
    assert "is missing or damaged (3 in all)" in said and server.requests == 2
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == whole
    assert (data / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10"]
    assert script.main(arguments(tmp_path, server)) == 0
    assert "complete already" in capsys.readouterr().out and server.requests == 2


def test_a_result_without_recorded_sizes_is_checked_by_its_counts(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    script.main(arguments(tmp_path, server))
    record = tmp_path / "cifar10" / "source.json"
    old = {k: v for k, v in json.loads(record.read_text()).items() if k != "files"}
    record.write_text(json.dumps(old))
    mine = tmp_path / "cifar10/train/cat/mine.png"
    mine.write_bytes(b"mine")
    assert script.main(arguments(tmp_path, server)) == 1 and server.requests == 1
    assert "101 photographs, expected 100: move away" in capsys.readouterr().err
    mine.unlink()
    assert script.main(arguments(tmp_path, server)) == 0 and server.requests == 1
    next((tmp_path / "cifar10/train/cat").iterdir()).unlink()
    assert script.main(arguments(tmp_path, server)) == 0 and server.requests == 2
    assert len(list((tmp_path / "cifar10").rglob("*.png"))) == 110


def test_a_damaged_result_stays_as_it_is_while_the_archive_cannot_be_had(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    script.main(arguments(tmp_path, server))
    next((tmp_path / "cifar10/train/cat").iterdir()).unlink()
    server.status = 503
    assert script.main(arguments(tmp_path, server)) == 1
    assert "could not download" in capsys.readouterr().err
    assert len(list((tmp_path / "cifar10").rglob("*.png"))) == 109


def test_photographs_of_ones_own_in_the_result_are_named_and_kept(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    script.main(arguments(tmp_path, server))
    mine = tmp_path / "cifar10/train/cat/mine.png"
    mine.write_bytes(b"mine")
    assert script.main(arguments(tmp_path, server)) == 1
    assert "101 photographs, expected 100, such as train/cat/mine.png" in (
        capsys.readouterr().err
    )
    assert mine.read_bytes() == b"mine"


def test_an_archive_that_cannot_be_read_is_fetched_again(
    script: object, server: SimpleNamespace, tmp_path: Path
) -> None:
    """Also where its checksum is the expected one, as a mirror may say."""
    good = server.body
    server.body = pack(without("batches.meta"))
    assert script.main(arguments(tmp_path, server)) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    server.body = good
    assert script.main(arguments(tmp_path, server)) == 0 and server.requests == 2


@pytest.mark.parametrize("damage", [RuntimeError("encrypted"), struct.error("short")])
def test_whatever_an_archive_raises_is_one_line(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    damage: Exception,
) -> None:
    def read(*_: object) -> None:
        raise damage

    monkeypatch.setattr(script, "read_archive", read)
    message = refused(script, arguments(tmp_path, server), capsys)
    assert "is damaged" in message and type(damage).__name__ in message
    assert not list(tmp_path.rglob("*.gz"))


def test_a_disk_that_fills_up_leaves_no_result_and_keeps_the_archive(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save)
        message = refused(script, arguments(tmp_path, server), capsys)
    assert message.splitlines()[-1] == (
        f"error: the disk of {tmp_path} is full; make space or choose another --out"
    )
    assert script.main(arguments(tmp_path, server)) == 0 and server.requests == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--nonsense"], "--nonsense"),
        (["--md5", "abc"], "--md5 'abc': expected 32"),
        (["--url", "ftp://x/y"], "--url 'ftp://x/y': expected an address"),
        (["--url", "http://[::1"], "expected an address"),
        (["--url", ""], "expected an address"),
        (["--archive", "nowhere.tar.gz"], "--archive nowhere.tar.gz"),
        (["--out", str(SCRIPT)], "it is a file, expected a folder"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    script: object, capsys: pytest.CaptureFixture, wrong: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        script.main(wrong)
    said = capsys.readouterr().err
    assert exit.value.code == 2 and message in said and said.count("\n") == 1


def test_a_second_run_at_the_same_time_is_refused(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / ".cifar10-unfinished").mkdir()
    with filelock.FileLock(tmp_path / ".cifar10-unfinished/lock"):
        assert "another run is filling" in refused(
            script, arguments(tmp_path, server), capsys
        )
    assert server.requests == 0
    assert script.main(arguments(tmp_path, server)) == 0


def test_an_empty_folder_is_filled(
    script: object, server: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "cifar10").mkdir()
    assert script.main(arguments(tmp_path, server)) == 0
    assert len(list((tmp_path / "cifar10").rglob("*.png"))) == 110


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_output_that_cannot_be_written_is_no_traceback(
    server: SimpleNamespace, tmp_path: Path
) -> None:
    command = [sys.executable, str(SCRIPT), *arguments(tmp_path, server)]
    environment = os.environ | {
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "PYTHONIOENCODING": "ascii",
    }
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environment, text=True
        )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stderr.endswith("cifar10: 100 train, 10 test photographs\n")
    assert len(list((tmp_path / "cifar10").rglob("*.png"))) == 110


# --- interruptions --------------------------------------------------------------------


def test_an_interruption_while_writing_leaves_no_result_and_keeps_the_archive(
    script: object,
    server: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = []

    def save_a_few(image: Image.Image, path: Path) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        path.write_bytes(b"half")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save_a_few)
        assert script.main(arguments(tmp_path, server)) == 130
    assert len(written) == 5 and not (tmp_path / "cifar10").exists()
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".gz"]
    assert script.main(arguments(tmp_path, server)) == 0
    assert server.requests == 1  # the archive was kept
    assert len(list((tmp_path / "cifar10").rglob("*.png"))) == 110
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10"]


def test_a_run_killed_while_downloading_leaves_nothing_behind_after_the_next(
    script: object, server: SimpleNamespace, tmp_path: Path
) -> None:
    def files() -> list[Path]:
        found = [path for path in tmp_path.rglob("*") if path.is_file()]
        return [path for path in found if path.name != "lock"]

    server.stall = threading.Event()
    command = [sys.executable, str(SCRIPT), *arguments(tmp_path, server)]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + 60
        while (
            not any(part.stat().st_size for part in files())
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        server.stall.set()
    assert server.requests == 1 and not (tmp_path / "cifar10").exists()
    # what had come
    assert [part.stat().st_size < len(server.body) for part in files()] == [True]
    assert script.main(arguments(tmp_path, server)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10"]
