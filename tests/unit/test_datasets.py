from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from minilib.datasets import PhotoFolder, augment, load_photos, split_holdout
from minilib.datasets.augment import shift_and_mirror
from minilib.datasets.decode import decode

SIZE = 8


@pytest.fixture(autouse=True)
def _own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(
    path: Path,
    colour: tuple[int, int, int] = (10, 20, 30),
    shape: tuple[int, int] = (SIZE, SIZE),
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", shape, colour).save(path)


def tree(root: Path, counts: dict[str, int], first: int = 0) -> Path:
    """Write solid images whose red value tells which image it is, and
    green which class."""
    for label, (folder, count) in enumerate(sorted(counts.items())):
        for number in range(count):
            write(
                root / folder / f"{number:03d}.png",
                (first + 10 * number, 50 * label, 0),
            )
    return root


def photos(root: Path, split: str | None = None, **options: object) -> PhotoFolder:
    return PhotoFolder(root, split, SIZE, progress=False, **options)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


# --- layout ---------------------------------------------------------------------------


def test_labels_names_and_pixels_follow_the_folders(tmp_path: Path) -> None:
    data = photos(tree(tmp_path, {"fire_truck": 2, "ant": 3}))
    assert data.names == ("ant", "fire truck")
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    batch = data.take([1, 4])
    assert (
        batch.image.shape == (2, 3, SIZE, SIZE) and batch.image.dtype == torch.float32
    )
    assert torch.equal(
        (batch.image[:, :, 0, 0] * 255).round(),
        torch.tensor([[10.0, 0, 0], [10, 50, 0]]),
    )
    assert batch.label.tolist() == [0, 1]


def test_splits_are_read_apart_and_must_be_named(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a": 3, "b": 3})
    tree(tmp_path / "test", {"a": 1, "b": 2}, first=200)
    assert (len(photos(tmp_path, "train")), len(photos(tmp_path, "test"))) == (6, 3)
    assert photos(tmp_path, "test").take([0]).image[0, 0, 0, 0] == pytest.approx(
        200 / 255
    )
    with pytest.raises(
        ValueError, match=r"divided into test, train: say which with split='test'"
    ):
        photos(tmp_path)
    with pytest.raises(
        ValueError, match=r"no split 'val' with class folders; it has test, train"
    ):
        photos(tmp_path, "val")


def test_a_class_called_train_is_not_a_split(tmp_path: Path) -> None:
    assert photos(tree(tmp_path, {"train": 2, "boat": 2})).names == ("boat", "train")


def test_numbered_folders_are_in_numeric_order(tmp_path: Path) -> None:
    assert photos(
        tree(tmp_path, {str(number): 1 for number in (0, 2, 10, 1)})
    ).names == ("0", "1", "2", "10")


def test_nested_folders_count_to_their_class_and_litter_to_none(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 1, "b": 1})
    write(tmp_path / "a" / "monday" / "x.JPG")
    write(tmp_path / "preview.png")
    write(tmp_path / ".hidden" / "x.png")
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "b" / "._000.png").write_bytes(b"resource fork")
    assert photos(tmp_path).paths == ("a/000.png", "a/monday/x.JPG", "b/000.png")


def test_names_may_be_given(tmp_path: Path) -> None:
    tree(tmp_path, {"n01": 1, "n02": 1})
    assert photos(tmp_path, names={"n01": "tench"}).names == ("tench", "n02")
    with pytest.raises(
        ValueError, match="'n03', which is not a class folder; the folders are n01, n02"
    ):
        photos(tmp_path, names={"n03": "shark"})


@pytest.mark.parametrize("wrapper", ["", "cifar/"])
def test_a_zip_gives_the_same_as_its_folder(tmp_path: Path, wrapper: str) -> None:
    tree(tmp_path / "data" / "train", {"a": 3, "b": 2})
    tree(tmp_path / "data" / "test", {"a": 1, "b": 1})
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in sorted((tmp_path / "data").rglob("*.png")):
            archive.write(
                path, wrapper + path.relative_to(tmp_path / "data").as_posix()
            )
        archive.writestr("__MACOSX/train/a/._000.png", b"litter")
    packed, plain = (
        photos(tmp_path / "data.zip", "train"),
        photos(tmp_path / "data", "train"),
    )
    assert packed.names == plain.names and packed.paths == plain.paths
    assert torch.equal(packed.take(range(5)).image, plain.take(range(5)).image)


@pytest.mark.parametrize(
    "written", ["{}", "./{}", "photos\\{}", ".\\{}", "/{}", "photos//{}"]
)
def test_a_zip_of_any_system_is_read(tmp_path: Path, written: str) -> None:
    tree(tmp_path / "data", {"a": 3, "b": 2})
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in sorted((tmp_path / "data").rglob("*.png")):
            name = written.format(path.relative_to(tmp_path / "data").as_posix())
            if "\\" in written:
                name = name.replace("/", "\\")
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    packed, plain = photos(tmp_path / "data.zip"), photos(tmp_path / "data")
    assert packed.names == plain.names and packed.paths == plain.paths
    assert torch.equal(packed.take(range(5)).image, plain.take(range(5)).image)


def test_a_zip_that_leads_out_or_names_a_file_twice_is_refused(tmp_path: Path) -> None:
    for names, message in (
        (("a/1.png", "../b/1.png"), r"'\.\./b/1\.png' leads out"),
        (("a/1.png", "..\\b\\1.png"), "leads out"),
        (("a/1.png", "./a/1.png", "b/1.png"), r"two files 'a/1\.png'"),
    ):
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for name in names:
                archive.writestr(zipfile.ZipInfo(name), b"")
        with pytest.raises(ValueError, match=rf"data\.zip.*{message}"):
            photos(tmp_path / "data.zip")


# --- links ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["..", "../dogs", ".", "../cats", "../.."])
def test_a_link_does_not_count_photographs_twice(tmp_path: Path, target: str) -> None:
    root = tree(tmp_path / "photos", {"cats": 4, "dogs": 4})
    (root / "cats" / "all").symlink_to(target)
    if target == "../..":
        with pytest.raises(ValueError, match=rf"cats/all is a link to {tmp_path},"):
            photos(root)
        return
    with pytest.warns(UserWarning, match=r"cats/all is a link to .* is left out"):
        data = photos(root)
    assert data.labels.tolist() == [0] * 4 + [1] * 4
    assert not any("all" in path for path in data.paths)


def test_a_link_in_place_of_a_class_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", {"cats": 4, "dogs": 4})
    (root / "hounds").symlink_to("dogs")
    with pytest.warns(UserWarning, match="hounds is a link to .*dogs"):
        assert photos(root).names == ("cats", "dogs")
    (root / "hounds").unlink()
    tree(tmp_path / "elsewhere", {"foxes": 2})
    (root / "foxes").symlink_to(tmp_path / "elsewhere" / "foxes")
    with pytest.raises(ValueError, match=r"foxes is a link to .*elsewhere/foxes, whi"):
        photos(root)


def test_linked_files_and_a_linked_root_are_read(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", {"cats": 2, "dogs": 2})
    write(tmp_path / "store.png")
    (root / "cats" / "x.png").symlink_to(tmp_path / "store.png")
    (tmp_path / "link").symlink_to(root)
    assert len(photos(tmp_path / "link")) == 5


def test_a_link_to_nothing_is_an_unreadable_photograph(tmp_path: Path) -> None:
    root = tree(tmp_path, {"cats": 2, "dogs": 2})
    (root / "cats" / "x.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"cats/x\.png .*FileNotFoundError"):
        photos(root)
    assert set(photos(root, skip_unreadable=True).skipped) == {"cats/x.png"}


@pytest.mark.parametrize("below", ["cats/sub", "cats", ""])
def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    """As for a user without permission; root has it always."""
    tree(tmp_path, {"cats": 2, "cats/sub": 2, "dogs": 2})
    closed, scandir = tmp_path / below, os.scandir

    def refuse(path: str | Path) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=rf"{closed} cannot be listed \(Permission"):
        photos(tmp_path)


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Dog", "dog"),
        ("hot dog", "hot  dog"),
        ("hot_dog", "Hot dog"),
        ("caf\u00e9", "cafe\u0301"),
        ("STRASSE", "stra\u00dfe"),
    ],
)
def test_classes_that_read_alike_are_refused_by_name(
    tmp_path: Path, first: str, second: str
) -> None:
    tree(tmp_path, {first: 2, second: 2, "cat": 2})
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this disk takes both names for one")
    with pytest.raises(ValueError, match="two class folders are called") as raised:
        photos(tmp_path)
    assert first in str(raised.value) and second in str(raised.value)
    assert photos(tmp_path, names={first: "beagle"}).names.count("beagle") == 1
    with pytest.raises(ValueError, match="two class folders are called"):
        photos(tmp_path, names={first: "beagle", second: "Beagle"})


def test_splits_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    for split in ("train", "Train", "test"):
        tree(tmp_path / split, {"a": 2, "b": 2})
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this disk takes both names for one")
    with pytest.raises(ValueError, match="has the splits Train and train"):
        load_photos(tmp_path, SIZE, progress=False)


def test_errors_of_layout_name_the_folder_and_the_mend(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"no photographs at .*nowhere: expected a folder, or a \.zip",
    ):
        photos(tmp_path / "nowhere")
    (tmp_path / "data.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data\.tar is a file: .*unpack it first"):
        photos(tmp_path / "data.tar")
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(ValueError, match=r"broken\.zip is not a complete zip file"):
        photos(tmp_path / "broken.zip")
    write(tmp_path / "flat" / "photo.png")
    with pytest.raises(
        ValueError,
        match=r"flat has no class folders: expected one per class, .*flat/<class>/",
    ):
        photos(tmp_path / "flat")
    with pytest.raises(
        ValueError, match=r"single has only the class 'a': .*at least two"
    ):
        photos(tree(tmp_path / "single", {"a": 3}))
    (tree(tmp_path / "gap", {"a": 1, "b": 1}) / "c").mkdir()
    with pytest.raises(
        ValueError, match=r"no photographs in .*gap/c: expected files ending in .*\.png"
    ):
        photos(tmp_path / "gap")
    with pytest.raises(
        ValueError, match=r"no split folders, so there is no split 'train'.*load_photos"
    ):
        photos(tree(tmp_path / "plain", {"a": 1, "b": 1}), "train")
    with pytest.raises(ValueError, match=r"two class folders are called 'a b'"):
        photos(tree(tmp_path / "twins", {"a_b": 1, "a b": 1}))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_missing_from_one_split_is_refused_from_either_side(
    tmp_path: Path, split: str
) -> None:
    tree(tmp_path / "train", {"a": 1, "b": 1, "c": 1})
    tree(tmp_path / "test", {"a": 1, "c": 1})
    with pytest.raises(
        ValueError,
        match=r"class 'b' is in train but not in test.*add test/b .*remove train/b",
    ):
        photos(tmp_path, split)


def test_a_truncated_photograph_is_named(tmp_path: Path) -> None:
    damage(tree(tmp_path, {"a": 2, "b": 2}) / "b" / "001.png")
    with pytest.raises(
        ValueError,
        match=r"cannot read the photograph .*b/001\.png .*skip_unreadable=True",
    ):
        photos(tmp_path)


def test_unreadable_photographs_can_be_left_out_and_are_reported(
    tmp_path: Path,
) -> None:
    damage(tree(tmp_path, {"a": 2, "b": 2}) / "a" / "000.png")
    (tmp_path / "b" / "text.jpg").write_text("<html>not found</html>")
    for _ in ("decoded", "from the cache"):
        data = photos(tmp_path, skip_unreadable=True)
        assert data.paths == ("a/001.png", "b/000.png", "b/001.png")
        assert set(data.skipped) == {"a/000.png", "b/text.jpg"}
        assert "2 unreadable left out" in repr(data)
        assert (data.take([0]).image[0, 0] * 255).round().unique().tolist() == [10]
    # also when the cache knows already
    with pytest.raises(ValueError, match="cannot read the photograph"):
        photos(tmp_path)
    damage(tmp_path / "a" / "001.png")
    with pytest.raises(ValueError, match="no readable photograph of 'a'"):
        photos(tmp_path, skip_unreadable=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: data.batch("detect", 1), r"task='detect': .*pairs and classify"),
        (lambda data: data.batch("pairs", 0), r"n=0, .*expected n of 1 or more"),
        (lambda data: data.batch("pairs", 1, seed=-1), r"seed=-1"),
        (
            lambda data: data.few_shot(9),
            r"asked for 9 photographs of each class, but .* has 3 of 'a'",
        ),
        (lambda data: data.few_shot(0), r"k=0: expected"),
        (lambda data: split_holdout(data, 1.5), r"fraction=1\.5: .*between 0 and 1"),
    ],
)
def test_impossible_values_are_refused(
    tmp_path: Path, call: object, message: str
) -> None:
    data = photos(tree(tmp_path, {"a": 3, "b": 3}))
    with pytest.raises(ValueError, match=message):
        call(data)


def test_templates_and_size_are_checked(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=r"expected one \{\} in each"):
        photos(tmp_path, templates=["a photo of a {}.", "a photo"])
    with pytest.raises(ValueError, match="expected one"):
        photos(tmp_path, templates=[])
    with pytest.raises(ValueError, match="size=0"):
        PhotoFolder(tmp_path, size=0)


# --- decoding -------------------------------------------------------------------------


def test_decoding_is_clips_preprocessing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    clip = transforms.Compose(
        [
            transforms.Resize(16, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(16),
        ]
    )
    expected = np.asarray(clip(Image.fromarray(pixels))).transpose(2, 0, 1)
    assert np.array_equal(decode((tmp_path / "x.png").read_bytes(), 16), expected)


def test_a_photograph_of_the_right_size_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(
        decode((tmp_path / "x.png").read_bytes(), 32), pixels.transpose(2, 0, 1)
    )


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((SIZE, SIZE), value, np.uint16))


def palette() -> Image.Image:
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("L", (SIZE, SIZE), 77), "png", (77, 77, 77)),
        (Image.new("1", (SIZE, SIZE), 1), "png", (255, 255, 255)),
        (palette(), "png", (200, 100, 50)),
        (palette(), "gif", (200, 100, 50)),
        (Image.new("RGBA", (SIZE, SIZE), (200, 100, 50, 255)), "png", (200, 100, 50)),
        (
            Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0)),
            "png",
            (255, 255, 255),
        ),  # transparent stands on white
        (Image.new("LA", (SIZE, SIZE), (0, 0)), "png", (255, 255, 255)),
        (Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)), "tif", (255, 0, 0)),
        (grey16(65535), "png", (255, 255, 255)),
        (grey16(128 * 257), "png", (128, 128, 128)),  # clipping would give 255
        (grey16(128 * 257), "tif", (128, 128, 128)),
        (Image.new("RGB", (SIZE, SIZE), (200, 100, 50)), "webp", (200, 100, 50)),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, image: Image.Image, suffix: str, expected: tuple[int, ...]
) -> None:
    path = tmp_path / f"x.{suffix}"
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    colours = decode(path.read_bytes(), SIZE).reshape(3, -1)
    assert np.array_equal(
        colours, np.repeat(np.array(expected, np.uint8)[:, None], SIZE * SIZE, 1)
    )


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[0] = 255  # a bright top row
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    upright = decode((tmp_path / "x.png").read_bytes(), SIZE)
    assert (upright[:, :, -1] == 255).all() and not upright[:, :, :-1].any()


# --- cache ----------------------------------------------------------------------------


def test_the_second_start_does_not_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = photos(tree(tmp_path, {"a": 3, "b": 3}))
    monkeypatch.setattr(
        "minilib.datasets.decode.decode", lambda *_: pytest.fail("decoded again")
    )
    again = photos(tmp_path)
    assert torch.equal(first.take(range(6)).image, again.take(range(6)).image)
    assert torch.equal(first.labels, again.labels)


def test_a_changed_added_or_removed_file_is_noticed(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 2, "b": 2})
    assert photos(tmp_path).take([0]).image.max() == 0
    before = os.stat(tmp_path / "a" / "000.png")
    write(tmp_path / "a" / "000.png", (0, 255, 0))
    os.utime(
        tmp_path / "a" / "000.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1)
    )
    assert photos(tmp_path).take([0]).image.max() == 1
    write(tmp_path / "a" / "new.png")
    assert len(photos(tmp_path)) == 5
    (tmp_path / "b" / "000.png").unlink()
    assert len(photos(tmp_path)) == 4


def test_a_damaged_cache_entry_is_built_again(tmp_path: Path) -> None:
    expected = (
        photos(tree(tmp_path / "data", {"a": 2, "b": 2}), cache=tmp_path / "cache")
        .take(range(4))
        .image
    )
    (stored,) = (tmp_path / "cache").glob("*/pixels.npy")
    stored.write_bytes(stored.read_bytes()[:-10])
    assert torch.equal(
        photos(tmp_path / "data", cache=tmp_path / "cache").take(range(4)).image,
        expected,
    )
    assert stored.stat().st_size > 4 * 3 * SIZE * SIZE


def test_nothing_is_left_in_the_cache_after_a_failure(tmp_path: Path) -> None:
    damage(tree(tmp_path / "data", {"a": 2, "b": 2}) / "b" / "001.png")
    with pytest.raises(ValueError):
        photos(tmp_path / "data", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_writable_cache_the_pixels_stay_in_memory(tmp_path: Path) -> None:
    tree(tmp_path / "data", {"a": 2, "b": 2})
    expected = photos(tmp_path / "data").take(range(4)).image
    (tmp_path / "file").write_text("a file where the cache folder should be")
    with pytest.warns(
        UserWarning, match="cannot keep decoded photographs.*MINILIB_CACHE"
    ):
        data = photos(tmp_path / "data", cache=tmp_path / "file")
    assert torch.equal(data.take(range(4)).image, expected)


def test_the_users_folder_is_never_written_to(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 2, "b": 2})
    before = sorted(tmp_path.rglob("*"))
    photos(tmp_path).batch("pairs", 2)
    assert sorted(tmp_path.rglob("*")) == before


def test_many_photographs_keep_their_order_over_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minilib.datasets.decode.CHUNK", 4)
    data = photos(tree(tmp_path, {"a": 9, "b": 5}))
    reds = (data.take(range(14)).image[:, 0, 0, 0] * 255).round().int().tolist()
    assert reds == [10 * number for number in (*range(9), *range(5))]


# --- the stream -----------------------------------------------------------------------


def indices(
    data: PhotoFolder, n: int, start: int, seed: int = 0
) -> list[tuple[int, int]]:
    """Return (red, label), which identify a photograph of ``tree``."""
    batch = data.batch("classify", n, start, seed)
    return list(
        zip(
            (batch.image[:, 0, 0, 0] * 255).round().int().tolist(),
            batch.label.tolist(),
            strict=True,
        )
    )


def test_every_epoch_shows_every_photograph_once_in_its_own_order(
    tmp_path: Path,
) -> None:
    data = photos(tree(tmp_path, {"a": 6, "b": 5}))
    epochs = [indices(data, 11, 11 * epoch) for epoch in range(3)]
    assert all(len(set(epoch)) == 11 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != indices(data, 11, 0, seed=1)


@pytest.mark.parametrize("step", [1, 3, 4, 11, 30])
def test_the_stream_does_not_depend_on_how_it_is_cut(tmp_path: Path, step: int) -> None:
    data = photos(tree(tmp_path, {"a": 6, "b": 5}))
    whole = data.batch("pairs", 30, seed=7, augment=True)
    parts = [
        data.batch("pairs", step, start, seed=7, augment=True)
        for start in range(0, 30, step)
    ]
    assert torch.equal(torch.cat([part.image for part in parts])[:30], whole.image)
    assert sum((part.caption for part in parts), [])[:30] == whole.caption


def test_resuming_at_a_step_needs_no_history(tmp_path: Path) -> None:
    from minilib.datasets import folder

    data = photos(tree(tmp_path, {"a": 6, "b": 5}))
    straight = [data.batch("pairs", 4, 4 * step, augment=True) for step in range(12)]
    folder._draw_epoch.cache_clear()
    resumed = photos(tmp_path).batch("pairs", 4, 44, augment=True)
    assert (
        torch.equal(resumed.image, straight[11].image)
        and resumed.caption == straight[11].caption
    )


def test_a_pair_says_the_class_in_one_of_the_templates(tmp_path: Path) -> None:
    data = photos(
        tree(tmp_path, {"sea_lion": 8, "dog": 8}),
        templates=["one {}", "{} here", "{odd} {}"],
    )
    batch = data.batch("pairs", 64)
    allowed = {
        name: {f"one {name}", f"{name} here", f"{{odd}} {name}"} for name in data.names
    }
    for caption, label in zip(batch.caption, batch.label.tolist(), strict=True):
        assert caption in allowed[data.names[label]]
    assert set(batch.caption) == set.union(*allowed.values())
    assert data.batch("classify", 4).caption is None


def test_in_order_visits_everything_once(tmp_path: Path) -> None:
    data = photos(tree(tmp_path, {"a": 6, "b": 5}))
    batches = list(data.in_order(4))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert torch.equal(torch.cat([batch.label for batch in batches]), data.labels)
    assert torch.equal(
        torch.cat([batch.image for batch in batches]), data.take(range(11)).image
    )


def test_few_shot_is_balanced_seeded_and_nested(tmp_path: Path) -> None:
    data = photos(tree(tmp_path, {"a": 6, "b": 9, "c": 5}))
    chosen = data.few_shot(4, seed=1)
    assert (
        data.labels[chosen].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        and len(set(chosen.tolist())) == 12
    )
    assert torch.equal(chosen, data.few_shot(4, seed=1)) and not torch.equal(
        chosen, data.few_shot(4, seed=2)
    )
    assert set(data.few_shot(2, seed=1).tolist()) < set(chosen.tolist())


def test_a_subset_keeps_pixels_labels_and_paths_together(tmp_path: Path) -> None:
    data = photos(tree(tmp_path, {"a": 6, "b": 5}))
    part = data.subset([10, 2, 7]).subset([2, 0])
    assert part.paths == (data.paths[7], data.paths[10]) and len(part) == 2
    assert torch.equal(part.take([0, 1]).image, data.take([7, 10]).image)
    assert sorted(indices(part, 2, 0)) == [(10, 1), (40, 1)]
    assert len(data) == 11


# --- holding out ----------------------------------------------------------------------


def test_holdout_is_stratified_disjoint_and_seeded(tmp_path: Path) -> None:
    data = photos(tree(tmp_path, {"a": 10, "b": 20, "c": 2}))
    kept, held_out = split_holdout(data, 0.2, seed=3)
    assert held_out.labels.bincount().tolist() == [
        2,
        4,
        1,
    ] and kept.labels.bincount().tolist() == [8, 16, 1]
    assert set(kept.paths) | set(held_out.paths) == set(data.paths)
    assert not set(kept.paths) & set(held_out.paths)
    assert split_holdout(data, 0.2, seed=3)[1].paths == held_out.paths
    assert split_holdout(data, 0.2, seed=4)[1].paths != held_out.paths


def test_holdout_needs_two_of_each_class(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="asked for 2 photographs of each class, but .* has 1 of 'b'"
    ):
        split_holdout(photos(tree(tmp_path, {"a": 3, "b": 1})))


@pytest.mark.parametrize(
    ("test_folder", "train_folder"),
    [("test", "train"), ("val", "Train"), ("valid", "training")],
)
def test_load_photos_finds_the_splits(
    tmp_path: Path, test_folder: str, train_folder: str
) -> None:
    tree(tmp_path / train_folder, {"a": 4, "b": 4})
    tree(tmp_path / test_folder, {"a": 1, "b": 1}, first=200)
    train, test = load_photos(tmp_path, SIZE, progress=False)
    assert (train.split, len(train), test.split, len(test)) == (
        train_folder,
        8,
        test_folder,
        2,
    )
    shutil.rmtree(tmp_path / train_folder)
    with pytest.raises(
        ValueError, match="but no train folder: expected .*/train/<class>/"
    ):
        load_photos(tmp_path, SIZE, progress=False)


def test_load_photos_holds_out_where_there_is_no_test_folder(tmp_path: Path) -> None:
    tree(tmp_path / "plain", {"a": 10, "b": 10})
    train, test = load_photos(tmp_path / "plain", SIZE, holdout=0.3, progress=False)
    assert (len(train), len(test)) == (14, 6)
    tree(tmp_path / "half" / "train", {"a": 10, "b": 10})
    train, test = load_photos(tmp_path / "half", SIZE, holdout=0.3, progress=False)
    assert (len(train), len(test)) == (14, 6)


# --- augmentation ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_is_pad_crop_and_flip(dtype: torch.dtype) -> None:
    images = torch.arange(5 * 3 * 6 * 7).reshape(5, 3, 6, 7).remainder(251).to(dtype)
    shift = torch.tensor([[0, 0], [2, -3], [-1, 1], [3, 3], [-3, 0]])
    mirror = torch.tensor([False, True, False, True, True])
    padded = torch.nn.functional.pad(images.float(), (3, 3, 3, 3), mode="reflect").to(
        dtype
    )
    result = shift_and_mirror(images, shift, mirror)
    for i, (down, right) in enumerate(shift.tolist()):
        expected = padded[i, :, 3 + down : 9 + down, 3 + right : 10 + right]
        assert torch.equal(result[i], expected.flip(-1) if mirror[i] else expected)


def test_augment_is_a_function_of_the_generator() -> None:
    images = torch.rand(64, 3, 8, 8)
    first, again, other = (
        augment(images, torch.Generator().manual_seed(seed), 2) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == images.shape and not torch.equal(first, images)
    with pytest.raises(ValueError, match="shift of .* in a 8x8 image"):
        augment(images, torch.Generator().manual_seed(0), 8)


def test_augmentation_changes_training_batches_only_when_asked(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 2, "b": 2})
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(pixels).save(path)
    data = photos(tmp_path)
    original = torch.from_numpy(pixels.transpose(2, 0, 1)).float() / 255
    assert all(
        torch.equal(image, original) for image in data.batch("classify", 16).image
    )
    augmented = data.batch("classify", 16, augment=True).image
    assert len({image.numpy().tobytes() for image in augmented}) > 4
