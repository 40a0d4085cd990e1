"""Saving, loading, and refusing: every bad file gets an error that names it and
says what to do."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors import safe_open
from safetensors.torch import save_file

from minilib import weights
from minilib.models.clip import CLIP, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from minilib.weights import load, load_checkpoint, load_clip, read_card, save

CONFIG = CLIPConfig(
    embed_dim=16,
    image_size=32,
    vision=ViTConfig(patch=8, width=32, layers=1, heads=2, stem="conv"),
    text=TextConfig(context=8, vocab_size=514, width=24, layers=1, heads=2),
    quick_gelu=False,
    vocabulary=(),
)
VIT = CLIPVisionCfg(image_size=32, layers=1, width=64, patch_size=8, head_width=64)
TEXT = CLIPTextCfg(context_length=8, vocab_size=96, width=64, heads=1, layers=1)

TOLD = {
    "vision_heads": 1,
    "text_heads": 1,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}


@pytest.fixture
def model() -> CLIP:
    torch.manual_seed(0)
    return CLIP(CONFIG).eval()


@pytest.fixture
def saved(model: CLIP, tmp_path: Path) -> Path:
    return save(model, tmp_path / "mini.safetensors", {"command": "train", "seed": 3})


@pytest.fixture
def official() -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.CLIP(16, VIT, TEXT, quick_gelu=True).eval()


def test_round_trip(model: CLIP, saved: Path) -> None:
    loaded = load_clip(saved)
    assert loaded.config == CONFIG and not loaded.training
    assert read_card(str(saved)) == {"command": "train", "seed": 3}
    pixels, tokens = torch.randn(2, 3, 32, 32), model.tokenize(["dog", "a cat"])
    for before, after in zip(
        model(pixels, tokens), loaded(pixels, tokens), strict=True
    ):
        if before is not None:
            torch.testing.assert_close(before, after, rtol=0.01, atol=0.01)


def test_matrices_are_halved_and_statistics_are_not(saved: Path, model: CLIP) -> None:
    with safe_open(saved, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            value = file.get_tensor(name)
            if value.is_floating_point():
                assert value.dtype == (
                    torch.float16 if value.ndim > 1 else torch.float32
                ), name
        assert "visual.conv1.1.running_var" in file.keys()  # noqa: SIM118
    assert {value.dtype for value in load_clip(saved).parameters()} == {torch.float32}


def test_resnet_round_trip(tmp_path: Path) -> None:
    from dataclasses import replace

    config = replace(
        CONFIG, image_size=64, vision=ResNetConfig((1, 1, 1, 1), 8, 4, (1, 2, 2, 1))
    )
    path = save(CLIP(config), tmp_path / "rn.safetensors", {})
    assert load_clip(path).config == config


def test_nothing_half_written(
    model: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(model, tmp_path / "mini.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_saved(model: CLIP, tmp_path: Path) -> None:
    model.text_projection.data[0, 0] = 1e6  # finite, but not in half precision
    with pytest.raises(ValueError, match="text_projection is not finite"):
        save(model, tmp_path / "mini.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_mini_names(
    model: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="train_mini_clip.py --model mini-vit"):
        load_clip("mini-vit")
    save(model, tmp_path / "mini-vit.safetensors", {"seed": 1})
    assert load_clip("mini-vit").config == CONFIG and read_card("mini-vit") == {
        "seed": 1
    }
    with pytest.raises(ValueError, match="leave out pretrained='openai'"):
        load_clip("mini-vit", pretrained="openai")


@pytest.mark.parametrize(
    "name", ["mini-vit", "mini-rn", "mini-countx", "mini-detector"]
)
def test_one_reader_for_every_checkpoint_that_ships(name: str) -> None:
    model = load(name)
    kinds = {"mini-countx": "CounTX", "mini-detector": "Detector"}
    assert type(model).__name__ == kinds.get(name, "CLIP")
    assert not model.training
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert read_card(name)["seed"] == 0


def test_missing_and_unknown_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        FileNotFoundError, match="one of mini-countx, mini-detector, mini-rn, mini-vit"
    ):
        load("mini-lseg")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    (tmp_path / "mini-countx.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="data_scripts/train_mini_countx.py"):
        load("mini-countx")


def test_only_a_papers_model_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Linear is not saved"):
        save(torch.nn.Linear(2, 2), tmp_path / "a.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_a_format_that_is_not_minilibs_is_refused(saved: Path, tmp_path: Path) -> None:
    for kind in ("minilib.nothing", "minilib.clip.official", "os.path", ""):
        path = tmp_path / "foreign.safetensors"
        save_file({"a": torch.zeros(1)}, path, {"format": kind, "config": "{}"})
        with pytest.raises(ValueError, match="not written by minilib.weights.save"):
            load(path)
        with pytest.raises(ValueError, match="carries no card"):
            read_card(path)
    state = load(saved).state_dict()
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    save_file({**state, "more": torch.zeros(1)}, path, metadata)
    with pytest.raises(
        ValueError, match="foreign.safetensors does not fit a CLIP.*more"
    ):
        load(path)


def test_training_checkpoints_with_a_command_line_are_read(tmp_path: Path) -> None:
    state, given = {"weight": torch.ones(2)}, argparse.Namespace(lr=0.1)
    torch.save({"state_dict": state, "hyper_parameters": given}, tmp_path / "a.ckpt")
    torch.save({"model": state, "args": given}, tmp_path / "b.pth")
    for name in ("a.ckpt", "b.pth"):
        read = load_checkpoint(tmp_path / name)
        assert read.keys() == {"weight"} and torch.equal(
            read["weight"], state["weight"]
        )


_IMPORTS = """
import sys
import minilib.weights
assert not [name for name in sys.modules if name.startswith("minilib.models")]
from minilib import load_clip
load_clip("mini-vit").tokenize(["a dog"])
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_shipped_clip_needs_no_heavy_library() -> None:
    root = Path(weights.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    heavy = {"open_clip", "transformers", "torchvision", "timm", "scipy", "matplotlib"}
    assert not heavy & set(done.stdout.split())


def same_embeddings(ours: CLIP, theirs: torch.nn.Module) -> bool:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return torch.allclose(
        ours.encode_image(pixels), theirs.encode_image(pixels), atol=1e-4
    )


def test_official_layouts(official: open_clip.CLIP, tmp_path: Path) -> None:
    state = official.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        tmp_path / "training.pt",
    )
    save_file(
        {key: value.contiguous() for key, value in state.items()},
        tmp_path / "plain.safetensors",
    )
    for name in ("plain.pt", "training.pt", "plain.safetensors"):
        loaded = load_clip(tmp_path / name, quick_gelu=True, **TOLD)
        assert same_embeddings(loaded, official), name
        assert not same_embeddings(
            load_clip(tmp_path / name, quick_gelu=False, **TOLD), official
        ), name


def test_unknown_activation_is_warned_about(
    official: open_clip.CLIP, tmp_path: Path
) -> None:
    torch.save(official.state_dict(), tmp_path / "plain.pt")
    with pytest.warns(
        UserWarning,
        match=r"plain.pt does not tell its activation \(QuickGELU assumed\).*"
        r"pass quick_gelu=False",
    ):
        assert load_clip(tmp_path / "plain.pt").config.quick_gelu
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip(tmp_path / "plain.pt", quick_gelu=False, **TOLD)


def test_torchscript_archive_needs_trust(
    official: open_clip.CLIP, tmp_path: Path
) -> None:
    path = tmp_path / "archive.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(
            torch.jit.trace(official.visual, torch.randn(1, 3, 32, 32)), path
        )
    with pytest.raises(
        ValueError, match=r"archive.pt is a TorchScript archive.*trust=True"
    ):
        load_clip(path)
    state = load_checkpoint(path, trust=True)
    assert torch.equal(state["proj"], official.visual.proj)


def test_open_clip_names() -> None:
    loaded = load_clip("RN50", pretrained="random")
    assert loaded.config.vision == ResNetConfig() and loaded.config.embed_dim == 1024
    assert not loaded.config.quick_gelu
    assert sum(parameter.numel() for parameter in loaded.parameters()) == 102_007_137


def test_activation_follows_the_weights_not_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {}

    def create_model(
        name: str, pretrained: str, force_quick_gelu: bool
    ) -> torch.nn.Module:
        asked[name, pretrained] = force_quick_gelu
        return open_clip.CLIP(16, VIT, TEXT, quick_gelu=force_quick_gelu)

    monkeypatch.setattr(open_clip, "create_model", create_model)
    assert load_clip("ViT-B-32", pretrained="openai").config.quick_gelu
    assert load_clip("ViT-B/32", pretrained="openai").config.quick_gelu
    assert not load_clip("ViT-B-32", pretrained="laion2b_s34b_b79k").config.quick_gelu
    assert asked == {
        ("ViT-B-32", "openai"): True,
        ("ViT-B-32", "laion2b_s34b_b79k"): False,
    }


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-16", None, r"ViT-B-16 is an architecture.*'openai'.*'random'"),
        ("ViT-B-16", "laion9b", r"no weights 'laion9b'.*'openai'"),
        ("ViT-B-61", "openai", r"no CLIP is called 'ViT-B-61'.*did you mean ViT-B-16"),
        ("mini-vti", None, r"did you mean mini-vit"),
    ],
)
def test_bad_names(name: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_clip(name, pretrained)


def test_no_network_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*args: object, **options: object) -> None:
        raise RuntimeError("could not reach the hub\nlong trace")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(
        ValueError,
        match=(
            "could not get ViT-B-32 'openai': could not reach the hub. Without a "
            "network"
        ),
    ):
        load_clip("ViT-B-32", pretrained="openai")


def test_missing_file(tmp_path: Path) -> None:
    for name in ("none.safetensors", "none.pt", "folder/none"):
        with pytest.raises(FileNotFoundError, match="none"):
            load_clip(tmp_path / name)


def test_truncated_files(saved: Path, model: CLIP, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    for path in (saved, tmp_path / "plain.pt"):
        whole = path.read_bytes()
        for length in (0, 10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=path.name):
                load_clip(path)


@pytest.mark.parametrize("name", ["page.safetensors", "page.pt"])
def test_foreign_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<html>404 not found</html>" * 100)
    with pytest.raises(ValueError, match=name):
        load_clip(tmp_path / name)


def test_foreign_tensors(tmp_path: Path) -> None:
    save_file({"backbone.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError,
        match=(
            r"other.safetensors does not hold a CLIP.*'positional_embedding' is "
            r"missing"
        ),
    ):
        load_clip(tmp_path / "other.safetensors", quick_gelu=True)
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt holds no weights: .* not a list"):
        load_checkpoint(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="carries no card"):
        read_card(str(tmp_path / "other.safetensors"))


def test_our_file_with_another_configuration(model: CLIP, tmp_path: Path) -> None:
    path = tmp_path / "mixed.safetensors"
    save_file(
        model.state_dict(),
        path,
        {"format": "minilib.clip", "config": json.dumps({"vision": {}}), "card": "{}"},
    )
    with pytest.raises(ValueError, match="mixed.safetensors does not fit a CLIP"):
        load_clip(path)


class Evil:
    """Unpickling this would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.target, "gotcha")


@pytest.mark.parametrize("writer", ["torch.save", "pickle"])
def test_pickle_that_runs_code_is_refused(tmp_path: Path, writer: str) -> None:
    target, path = tmp_path / "gotcha", tmp_path / "evil.pt"
    if writer == "torch.save":
        torch.save({"weight": torch.zeros(2), "more": Evil(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Evil(target)}))
    with pytest.raises(
        ValueError, match=r"evil.pt cannot be read as plain tensors.*refused"
    ):
        load_clip(path)
    assert not target.exists()
    with pytest.raises(ValueError, match="refused"):
        load_checkpoint(path, trust=True)  # trust is for TorchScript archives alone
    assert not target.exists()


def test_whole_module_is_refused(official: open_clip.CLIP, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(official, buffer)
    (tmp_path / "module.pt").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="Save the state_dict"):
        load_clip(tmp_path / "module.pt")
