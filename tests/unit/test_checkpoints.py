"""Other people's checkpoints: every layout, what lies beside them, and damage."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file, save_file
from torch import Tensor

from minilib import weights
from minilib.models.clip import CLIP, CLIPConfig, TextConfig, ViTConfig
from minilib.models.clip.official import infer_config
from minilib.models.countx import CounTX, CounTXConfig
from minilib.models.loading import load_strictly
from minilib.weights import CheckpointError, load, load_checkpoint, load_clip, read_card

SHAPE = CLIPConfig(
    embed_dim=16,
    image_size=16,
    vision=ViTConfig(patch=8, width=128, layers=1, heads=8),
    text=TextConfig(context=8, vocab_size=96, width=64, layers=1, heads=4),
    quick_gelu=False,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.4, 0.3),
)
HUB = {
    "model_type": "clip",
    "vision_config": {
        "hidden_size": 128,
        "num_attention_heads": 8,
        "hidden_act": "gelu",
    },
    "text_config": {"hidden_size": 64, "num_attention_heads": 4, "hidden_act": "gelu"},
}
PREPROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.4, 0.3]}
OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"width": 128, "head_width": 16, "layers": 1},
        "text_cfg": {"width": 64, "heads": 4},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.4, 0.3]},
}


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(SHAPE).eval()


def told(path: Path, **arguments: Any) -> CLIPConfig:
    """Load without a warning; return the configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_clip(path, **arguments).config


# --- layouts --------------------------------------------------------------------------


def test_every_layout_holds_the_same_weights(clip: CLIP, tmp_path: Path) -> None:
    state, given = clip.state_dict(), argparse.Namespace(lr=0.1)
    lightning = {f"model.{key}": value for key, value in state.items()}
    compiled = {f"module._orig_mod.{key}": value for key, value in state.items()}
    files: dict[str, dict[str, Any]] = {
        "plain.pt": state,
        "nested.pth": {"model": {"state_dict": state}, "epoch": 3, "args": given},
        "trained.pt": {"model_state_dict": state, "optimizer": {"state": {0: {}}}},
        "lightning.ckpt": {"state_dict": lightning, "hyper_parameters": given},
        "compiled.bin": {"model": compiled, "model_ema": state},
        "deepspeed.pt": {"module": state, "step": torch.tensor(1)},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    save_file(state, tmp_path / "plain.safetensors")
    facts = {"vision_heads": 8, "text_heads": 4, "quick_gelu": False}
    facts |= PREPROCESSOR
    for name in (*files, "plain.safetensors"):
        loaded = load_clip(tmp_path / name, **facts)
        assert loaded.config == SHAPE, name
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, state[key]), (name, key)
    for content in files.values():  # also without a file
        config = CLIP.from_official(content, **facts).config
        assert config == SHAPE


def hub_folder(folder: Path, shards: int = 1) -> tuple[Any, Path]:
    """Write a transformers model as the hub stores it: a folder."""
    from transformers import CLIPConfig as HubConfig
    from transformers import CLIPModel

    common = {"hidden_act": "gelu", "num_hidden_layers": 2}
    config = HubConfig(
        text_config={
            **common, "hidden_size": 64, "intermediate_size": 256,
            "num_attention_heads": 4, "vocab_size": 96, "eos_token_id": 95,
            "max_position_embeddings": 8,
        },
        vision_config={
            **common, "hidden_size": 128, "intermediate_size": 512,
            "num_attention_heads": 8, "patch_size": 8, "image_size": 16,
        },
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = CLIPModel(config).eval()
    size = "5GB" if shards == 1 else "400KB"
    theirs.save_pretrained(folder, max_shard_size=size)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return theirs, folder


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_the_hub_is_read_with_its_configuration(
    tmp_path: Path, shards: int
) -> None:
    theirs, folder = hub_folder(tmp_path / "hub", shards)
    assert len(list(folder.glob("*.safetensors"))) >= min(shards, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load_clip(folder)
    assert (ours.config.vision.heads, ours.config.text.heads) == (8, 4)
    assert not ours.config.quick_gelu
    assert ours.config.image_std == (0.5, 0.4, 0.3)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = theirs.vision_model(pixels).pooler_output
        expected = theirs.visual_projection(pooled)
        torch.testing.assert_close(
            ours.encode_image(pixels), expected, atol=1e-4, rtol=1e-4
        )
    if shards > 1:
        assert told(folder / "model.safetensors.index.json") == ours.config
        next(folder.glob("*-of-*.safetensors")).unlink()
        with pytest.raises(CheckpointError, match="index.json names .* missing"):
            load_clip(folder)


def test_a_folder_without_one_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder with 0 files of weights"):
        load_checkpoint(tmp_path)
    for name in ("a.pt", "b.pt"):
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 files of weights \(a.pt, b.pt\)"):
        load_checkpoint(tmp_path)
    (tmp_path / "b.pt").unlink()
    assert load_checkpoint(tmp_path).keys() == {"w"}


def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for name in ("../other.safetensors", "/etc/passwd", index.name):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(CheckpointError, match="expected a file beside it"):
            load_checkpoint(index)


# --- what shapes do not show ----------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 1408, 1664, 1792, 1024, 768])
def test_heads_of_the_published_large_towers(width: int) -> None:
    with torch.device("meta"):
        state = {
            "positional_embedding": torch.empty(77, 1024),
            "token_embedding.weight": torch.empty(49408, 1024),
            "text_projection": torch.empty(1024, 1024),
            "visual.proj": torch.empty(width, 1024),
            "visual.conv1.weight": torch.empty(width, 3, 14, 14),
            "visual.positional_embedding": torch.empty(257, width),
        }
    config = infer_config(state)
    assert config.text.heads == 16
    expected = {1024: 16, 768: 12}.get(width, 16)
    assert config.vision.heads == expected
    assert infer_config(state, vision_heads=8).vision.heads == 8


def test_heads_are_those_of_open_clips_architectures() -> None:
    for name in ("ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-L-14", "ViT-B-32"):
        vision = open_clip.get_model_config(name)["vision_cfg"]
        width = vision["width"]
        with torch.device("meta"):
            state = {
                "positional_embedding": torch.empty(77, 512),
                "token_embedding.weight": torch.empty(49408, 512),
                "text_projection": torch.empty(512, 512),
                "visual.proj": torch.empty(width, 512),
                "visual.conv1.weight": torch.empty(width, 3, 14, 14),
                "visual.positional_embedding": torch.empty(257, width),
            }
        heads = width // vision.get("head_width", 64)
        assert infer_config(state).vision.heads == heads, name


def test_one_warning_names_what_is_guessed_and_its_argument(
    clip: CLIP, tmp_path: Path
) -> None:
    path = tmp_path / "vit.pt"
    torch.save(clip.state_dict(), path)
    with pytest.warns(UserWarning) as caught:
        config = load_clip(path).config
    assert len(caught) == 1 and caught[0].filename == __file__
    message = str(caught[0].message)
    for name in ("quick_gelu", "vision_heads", "text_heads", "image_mean", "image_std"):
        assert name in message
    assert "vit.pt" in message and "heads (2 assumed)" in message
    assert config.vision.heads == 2 and config.quick_gelu  # wrong, and said
    with pytest.warns(UserWarning, match="pass image_mean, image_std, or put"):
        load_clip(path, vision_heads=8, text_heads=4, quick_gelu=False)
    assert told(path, vision_heads=8, text_heads=4, quick_gelu=False, **PREPROCESSOR)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (
            {"config.json": HUB, "preprocessor_config.json": PREPROCESSOR},
            "model.safetensors",
        ),
        ({"open_clip_config.json": OPEN_CLIP}, "open_clip_pytorch_model.bin"),
        ({"open_clip_config.json": OPEN_CLIP}, "epoch_3.pt"),
        ({"config.json": HUB, "open_clip_config.json": OPEN_CLIP}, "vit.pt"),
    ],
)
def test_a_configuration_beside_the_file_is_followed(
    clip: CLIP, tmp_path: Path, files: Mapping[str, Any], name: str
) -> None:
    path, state = tmp_path / name, clip.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    for file, content in files.items():
        (tmp_path / file).write_text(json.dumps(content))
    assert told(path) == SHAPE
    if name != "epoch_3.pt":
        assert told(tmp_path) == SHAPE
    assert told(path, vision_heads=2).vision.heads == 2  # arguments come first


@pytest.mark.filterwarnings("ignore:.*does not tell:UserWarning")
def test_a_configuration_of_other_weights_is_not_followed(
    clip: CLIP, tmp_path: Path
) -> None:
    torch.save(clip.state_dict(), tmp_path / "vit.pt")
    other = {**HUB, "vision_config": {"hidden_size": 1024, "num_attention_heads": 16}}
    for content in (other, {"model_type": "bert"}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.warns(UserWarning, match="config.json describes another model"):
            load_clip(tmp_path / "vit.pt", vision_heads=8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json is not readable as JSON"),
        ("config.json", "[1]", "config.json holds a list"),
        (
            "config.json",
            {**HUB, "vision_config": HUB["vision_config"] | {"hidden_act": "relu"}},
            "hidden_act is gelu and relu",
        ),
        (
            "config.json",
            {**HUB, "text_config": HUB["text_config"] | {"num_attention_heads": "4"}},
            "'4' heads: expected a whole number",
        ),
        (
            "open_clip_config.json",
            {
                "model_cfg": {
                    "vision_cfg": {"width": 128, "pool_type": "avg"},
                    "text_cfg": {"width": 64},
                }
            },
            "vision_cfg has pool_type = 'avg'",
        ),
        (
            "open_clip_config.json",
            {"model_cfg": {"vision_cfg": 3, "text_cfg": {}}},
            "does not describe a CLIP",
        ),
    ],
)
def test_a_configuration_that_cannot_be_followed(
    clip: CLIP, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    torch.save(clip.state_dict(), tmp_path / "vit.pt")
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_clip(tmp_path / "vit.pt")
    assert name in str(caught.value)


def test_arguments_that_a_file_tells_itself(tmp_path: Path) -> None:
    for name in ("mini-vit", "mini-rn"):
        with pytest.raises(ValueError, match="carries its configuration"):
            load_clip(name, vision_heads=3)
    with pytest.raises(ValueError, match="open_clip knows"):
        load_clip("ViT-B-16", "openai", image_mean=(0.5, 0.5, 0.5))


@pytest.mark.parametrize("std", [(0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.5, float("nan"))])
def test_a_standard_deviation_is_three_positive_numbers(
    std: tuple[float, ...],
) -> None:
    with pytest.raises(ValueError, match="image_std"):
        CLIPConfig(image_std=std)


# --- numbers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.fill_(torch.nan), "text_projection has 1,024 of 1,024 values"),
        (lambda w: w.index_fill(0, torch.tensor(3), torch.inf), "16 of 1,024"),
        (lambda w: (w * 100).int(), "text_projection is of the type torch.int32"),
        (lambda w: w + 1j, "of the type torch.complex64"),
        (lambda w: w.bool(), "of the type torch.bool"),
        (lambda w: w.to_sparse(), "is not a plain tensor"),
    ],
)
def test_weights_that_are_not_finite_real_numbers(
    clip: CLIP, tmp_path: Path, change: Any, message: str
) -> None:
    state = {key: value.clone() for key, value in clip.state_dict().items()}
    state["text_projection"] = change(state["text_projection"])
    with pytest.raises(ValueError, match=message):
        CLIP.from_official(state)
    path = tmp_path / "vit.pt"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=f"vit.pt does not hold .*{message}"):
        load_clip(path, vision_heads=8, text_heads=4, quick_gelu=False, **PREPROCESSOR)


def test_every_papers_weights_are_looked_at() -> None:
    config = CounTXConfig(
        CLIPConfig(
            embed_dim=16,
            image_size=16,
            vision=ViTConfig(patch=8, width=16, layers=1, heads=2),
            text=TextConfig(context=8, vocab_size=514, width=16, layers=1, heads=2),
            vocabulary=(),
        ),
        heads=2, decoder_width=8, groups=2, first_grid=2, doublings=1,
    )  # fmt: skip
    state = CounTX(config).state_dict()
    state["fim_norm.bias"] = torch.full_like(state["fim_norm.bias"], torch.inf)
    with pytest.raises(ValueError, match="fim_norm.bias has 16 of 16 values"):
        load_strictly(CounTX(config), state, "a CounTX")


def test_a_file_of_ours_with_other_numbers(tmp_path: Path) -> None:
    from safetensors import safe_open

    source = weights.FOLDER / "mini-vit.safetensors"
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    state = load_file(source)
    state["visual.proj"] = state["visual.proj"].fill_(torch.nan)
    save_file(state, tmp_path / "mine.safetensors", metadata)
    for reader in (load, load_clip):
        with pytest.raises(CheckpointError, match="visual.proj has .* nan"):
            reader(tmp_path / "mine.safetensors")


# --- files that ship ------------------------------------------------------------------


def test_a_shipped_file_is_the_one_of_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mini-vit.safetensors", "mini-vit.json"):
        shutil.copy(weights.FOLDER / name, tmp_path)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    load_clip("mini-vit")
    path = tmp_path / "mini-vit.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1  # one bit of one weight
    path.write_bytes(content)
    for reader in (load_clip, load, read_card):
        with pytest.raises(
            CheckpointError, match="not the file that its card mini-vit"
        ):
            reader("mini-vit")
    load_clip(path)  # a path is a file of one's own


# --- damage ---------------------------------------------------------------------------


ROUNDS = 250
"""Damaged copies of every kind of file."""


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Cut a file, change a few of its bytes or bits, or lose a part of it."""
    data, kind = bytearray(content), generator.randrange(4)
    front = min(len(data), 4096)  # headers and pickles lie at both ends
    if kind == 0:
        return bytes(data[: generator.randrange(len(data))])
    if kind == 1:
        start = generator.randrange(len(data))
        return bytes(data[:start] + data[start + generator.randrange(1, 200) :])
    for _ in range(generator.randrange(1, 6)):
        place = generator.randrange(front)
        place = place if generator.random() < 0.5 else len(data) - 1 - place
        if kind == 2:
            data[place] ^= 1 << generator.randrange(8)
        else:
            data[place] = generator.randrange(256)
    return bytes(data)


def foreign(folder: Path) -> list[Path]:
    """Write files that are something else."""
    made = {
        "empty": b"",
        "page": b"<!doctype html><html>Repository not found</html>",
        "words": b"Repository not found",
        "json": b'{"error": "Repository not found"}',
        "gzip": b"\x1f\x8b\x08" + bytes(40),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(40),
        "numpy": b"\x93NUMPY\x01\x00v\x00" + bytes(60),
        "header": struct.pack("<Q", 2**40) + b"{}",
        "nothing": struct.pack("<Q", 2) + b"{}",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    }
    paths = []
    for name, content in made.items():
        for suffix in (".pt", ".safetensors", ".bin", ".ckpt", ".index.json"):
            paths.append(folder / f"{name}{suffix}")
            paths[-1].write_bytes(content)
    with zipfile.ZipFile(folder / "photos.pt", "w") as archive:
        archive.writestr("cats/1.jpg", b"x")
    return [*paths, folder / "photos.pt"]


def refuses_or_loads(path: Path) -> bool:
    """Return whether a file loads; anything but the two errors is a fault."""
    fine = True
    for reader in (load_checkpoint, load_clip, load, read_card):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader(path)
        except CheckpointError as error:
            fine = False
            assert path.parent.name in str(error), error
        except FileNotFoundError:
            fine = False
    return fine


def test_foreign_files_give_one_kind_of_error(tmp_path: Path) -> None:
    for path in foreign(tmp_path):
        assert not refuses_or_loads(path), path
    assert not refuses_or_loads(tmp_path / "none.pt")
    assert not refuses_or_loads(Path("/dev/null"))


def test_damaged_files_give_one_kind_of_error(clip: CLIP, tmp_path: Path) -> None:
    small = {key: value for key, value in clip.state_dict().items() if value.ndim < 2}
    whole: dict[str, bytes] = {}
    for name, protocol in (("zip.pt", True), ("legacy.pt", False)):
        torch.save(
            {"model": small, "args": argparse.Namespace(lr=1)},
            tmp_path / name,
            _use_new_zipfile_serialization=protocol,
        )
    save_file(small, tmp_path / "plain.safetensors")
    weights.save(CLIP(TINY), tmp_path / "ours.safetensors", {"seed": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "code.pt")
    for path in list(tmp_path.iterdir()):
        whole[path.name] = path.read_bytes()
    generator, loaded = random.Random(0), 0
    for name, content in whole.items():
        for _ in range(ROUNDS):
            path = tmp_path / f"damaged {name}"
            path.write_bytes(damaged(content, generator))
            loaded += refuses_or_loads(path)
    # Most are noticed: what is not changed a number, which no format can tell.
    assert loaded < ROUNDS * len(whole) // 3


TINY = CLIPConfig(
    embed_dim=4,
    image_size=8,
    vision=ViTConfig(patch=8, width=8, layers=1, heads=1),
    text=TextConfig(context=4, vocab_size=514, width=8, layers=1, heads=1),
    vocabulary=(),
)


def test_a_pickle_that_contains_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": {}}
    content["model"]["model"] = content["model"]
    torch.save(content, tmp_path / "loop.pt")
    with pytest.raises(CheckpointError, match="loop.pt holds no weights"):
        load_checkpoint(tmp_path / "loop.pt")
    weight: Tensor = torch.ones(1)
    content["model"]["w"] = weight
    torch.save(content, tmp_path / "loop.pt")
    assert load_checkpoint(tmp_path / "loop.pt").keys() == {"w"}


def test_open_clip_agrees_with_what_is_told(tmp_path: Path) -> None:
    vision = CLIPVisionCfg(
        image_size=16, layers=2, width=128, patch_size=8, head_width=16
    )
    text = CLIPTextCfg(context_length=8, vocab_size=96, width=64, heads=4, layers=1)
    torch.manual_seed(0)
    theirs = open_clip.CLIP(16, vision, text).eval()
    with torch.no_grad():  # trained towers attend sharply
        for block in theirs.visual.transformer.resblocks:
            block.attn.in_proj_weight *= 4
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load_clip(tmp_path)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            ours.encode_image(pixels), theirs.encode_image(pixels), atol=1e-4, rtol=1e-4
        )
