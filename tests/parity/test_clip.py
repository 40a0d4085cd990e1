"""CLIP against OpenAI's and open_clip's code; the specification is in
each case's JSON."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from minilib.layers import (
    ResidualAttentionBlock,
    resize_grid_positions,
    resize_sequence_positions,
)
from minilib.metrics import LinearProbe, accuracy
from minilib.models.clip import (
    CLIP,
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
    clip_loss,
    distill_loss,
    prompt_ensemble,
    siglip_loss,
)
from minilib.tokenizer import Tokenizer

PAPER = "clip"
WORKER = Path(__file__).parents[1] / "workers" / "distributed_losses.py"


def check_text_config(model: CLIP, official: dict) -> None:
    text = model.config.text
    assert model.config.embed_dim == official["embed_dim"]
    assert (text.context, text.vocab_size) == (
        official["context_length"],
        official["vocab_size"],
    )
    assert (text.width, text.layers) == (
        official["transformer_width"],
        official["transformer_layers"],
    )


def check_loss_and_gradients(case, model: CLIP, loss: Tensor) -> None:
    case.compare("loss", loss)
    loss.backward()
    parameters = dict(model.named_parameters())
    for name in case.group("out/grad"):
        case.compare(f"grad/{name}", parameters[name].grad)


def full_vit(case) -> None:
    official = case.info["config"]
    vision = case.info.get("vision_config") or {
        "heads": official["vision_width"] // 64,
        "width": official["vision_width"],
        "layers": official["vision_layers"],
        "patch_size": official["vision_patch_size"],
        "input_resolution": official["image_resolution"],
    }
    state = case.group("state")
    model = CLIP.from_official(
        state,
        vision_heads=vision["heads"],
        text_heads=official["transformer_heads"],
        quick_gelu=case.info.get("activation", "QuickGELU") == "QuickGELU",
    )
    assert model.state_dict().keys() == state.keys()
    check_text_config(model, official)
    expected = ViTConfig(
        vision["patch_size"], vision["width"], vision["layers"], vision["heads"]
    )
    assert (
        model.config.vision == expected
        and model.config.image_size == vision["input_resolution"]
    )

    pixels, tokens = case.tensors["in/image"], case.tensors["in/tokens"]
    image, text = model.visual.stages(pixels), model.text_stages(tokens)
    output = model(pixels, tokens)
    logits = output.logit_scale * output.image_features @ output.text_features.T
    case.compare_all(
        {
            "visual_conv1": image["conv1"],
            "visual_ln_pre": image["ln_pre"],
            "visual_tokens": image["blocks"][-1],
            "text_tokens_ln": text["ln_final"],
            "image_features": model.encode_image(pixels),
            "text_features": model.encode_text(tokens),
            "logits_per_image": logits,
            "logits_per_text": logits.T,
        }
    )
    for name in case.group("out"):
        if match := re.fullmatch(r"(visual|text)_block(\d+)", name):
            case.compare(
                name, (image if match[1] == "visual" else text)["blocks"][int(match[2])]
            )
    check_loss_and_gradients(case, model, clip_loss(*output))


def full_rn(case) -> None:
    official = case.info["config"]
    state = case.group("state")
    heads = case.info.get("attnpool_heads") or official["vision_width"] * 32 // 64
    model = CLIP.from_official(
        state, vision_heads=heads, text_heads=official["transformer_heads"]
    )
    assert model.state_dict().keys() == state.keys()
    check_text_config(model, official)
    expected = ResNetConfig(
        tuple(official["vision_layers"]), official["vision_width"], heads
    )
    assert (
        model.config.vision == expected
        and model.config.image_size == official["image_resolution"]
    )

    pixels, tokens = case.tensors["in/image"], case.tensors["in/tokens"]
    maps = model.visual.stages(pixels)
    output = model(pixels, tokens)
    pool = model.visual.attnpool
    case.compare_all(maps)
    case.compare_all(
        {
            "attnpool": pool(maps["layer4"]),
            "attnpool_all_queries": rearrange(
                pool.all_queries(maps["layer4"]), "b l e -> l b e"
            ),
            "image_features": model.encode_image(pixels),
            "text_features": model.encode_text(tokens),
            "logits_per_image": output.logit_scale
            * output.image_features
            @ output.text_features.T,
        }
    )
    for name in case.group("out"):
        if match := re.fullmatch(r"layer(\d)_(\d+)_downsample", name):
            before = maps["stem" if match[1] == "1" else f"layer{int(match[1]) - 1}"]
            assert match[2] == "0", (
                f"only the first block of a stage has a shortcut, not {name}"
            )
            case.compare(
                name, getattr(model.visual, f"layer{match[1]}")[0].downsample(before)
            )
    dense = model.encode_patches(pixels, mode="token")
    torch.testing.assert_close(
        rearrange(dense, "b e h w -> (h w) b e"),
        case.tensors["out/attnpool_all_queries"][1:],
    )
    check_loss_and_gradients(case, model, clip_loss(*output))

    model.train()
    case.compare("train_image_features", model.encode_image(pixels))
    for name in case.group("out"):
        if match := re.fullmatch(r"train_(bn\d)_(running_mean|running_var)", name):
            case.compare(name, getattr(getattr(model.visual, match[1]), match[2]))


def block(case) -> None:
    config = case.info["config"]
    exact = ResidualAttentionBlock(
        config["d_model"], config["n_head"], quick_gelu=False
    )
    module = ResidualAttentionBlock(config["d_model"], config["n_head"])
    module.load_state_dict(case.group("state"))
    x = rearrange(case.tensors["in/x"], "l n d -> n l d")
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    assert torch.equal(case.tensors["in/mask"].isneginf(), future), (
        "the mask of this case is not causal"
    )
    case.compare_all(
        {
            "y_causal": rearrange(module(x, causal=True), "n l d -> l n d"),
            "y_full": rearrange(module(x), "n l d -> l n d"),
            "attn_weights_causal": module.attention(x, causal=True).mean(dim=1),
            "quickgelu": module.mlp.gelu(case.tensors["in/q"]),
            "gelu": exact.mlp.gelu(case.tensors["in/q"]),
            "ln_2": module.ln_2(case.tensors["in/ln_x"]),
        }
    )


def losses(case) -> None:
    inputs = case.group("in")
    image, text = inputs["image_features"], inputs["text_features"]
    scale, bias = inputs["logit_scale_exp"], inputs["logit_bias"]
    for prefix, loss in (("clip", clip_loss), ("siglip", siglip_loss)):
        leaves = [
            tensor.clone().requires_grad_() for tensor in (image, text, scale, bias)
        ]
        value = loss(*leaves)
        value.backward()
        for name, leaf in zip(("image", "text", "scale", "bias"), leaves, strict=True):
            case.compare(f"{prefix}_grad_{name}", leaf.grad)
        case.compare("clip_loss_bias" if prefix == "clip" else "siglip_loss", value)
    teacher = (
        inputs["teacher_image_features"],
        inputs["teacher_text_features"],
        inputs["teacher_scale_exp"],
    )
    case.compare_all(
        {
            "clip_loss": clip_loss(image, text, scale),
            "clip_loss_dup": clip_loss(image, inputs["text_features_dup"], scale),
            "clip_loss_perfect": clip_loss(image, image, torch.tensor(100.0)),
            "clip_loss_n1": clip_loss(image[:1], text[:1], scale),
            "siglip_loss_n1": siglip_loss(image[:1], text[:1], scale, bias),
            "siglip_negative_only": siglip_loss(
                image, text, scale, bias, negative_only=True
            ),
            "distill_contrastive": clip_loss(image, text, scale),
            "distill_loss": distill_loss(image, text, scale, *teacher),
        }
    )


def losses_distributed(case) -> None:
    """Every rank is a real process of its own, joined by gloo."""
    world_size, bias = (
        case.info["config"]["world_size"],
        case.info["config"]["siglip_bias"],
    )
    with tempfile.TemporaryDirectory() as folder:
        save_file(
            case.group("in") | {"bias": torch.tensor(float(bias))},
            f"{folder}/in.safetensors",
        )
        root = str(Path(__file__).parents[2])
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(world_size),
        }
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [root, os.environ.get("PYTHONPATH")])
        )
        ranks = [
            subprocess.Popen(
                [sys.executable, WORKER, folder], env=environment | {"RANK": str(rank)}
            )
            for rank in range(world_size)
        ]
        codes = [process.wait(timeout=120) for process in ranks]
        assert codes == [0] * world_size, f"exit codes of the ranks: {codes}"
        results = [
            load_file(f"{folder}/out{rank}.safetensors") for rank in range(world_size)
        ]

    for name in case.group("out"):
        tag, quantity = name.split("/", 1)
        # one exchange stands for open_clip's four
        tag = "siglip" if tag.startswith("siglip") else tag
        if quantity == "loss_per_rank":
            case.compare(name, torch.stack([rank[f"{tag}/loss"] for rank in results]))
        elif tag != "single":
            key = f"{tag}/{quantity.removeprefix('avg_')}"
            case.compare(name, torch.stack([rank[key] for rank in results]).mean(dim=0))
        else:
            case.compare(name, single_process(case, bias)[quantity])


def single_process(case, bias: float) -> dict[str, Tensor]:
    """Return both losses of the joined batch and their gradients, computed in
    this one process."""
    results = {}
    for name, loss in (("clip", clip_loss), ("siglip", siglip_loss)):
        leaves = {
            key: case.tensors[f"in/{key}"].clone().requires_grad_()
            for key in ("W_image", "W_text", "logit_scale")
        }
        leaves["bias"] = torch.tensor(float(bias), requires_grad=True)
        image = F.normalize(case.tensors["in/x_image"] @ leaves["W_image"], dim=-1)
        text = F.normalize(case.tensors["in/x_text"] @ leaves["W_text"], dim=-1)
        value = loss(image, text, leaves["logit_scale"].exp(), leaves["bias"])
        value.backward()
        results[f"{name}_loss"] = value.detach()
        results |= {f"{name}_grad_{key}": leaf.grad for key, leaf in leaves.items()}
    return results


def zero_shot(case) -> None:
    text, targets = case.tensors["in/text_embeddings"], case.tensors["in/targets"]
    image = F.normalize(case.tensors["in/image_embeddings"], dim=-1)
    weights = prompt_ensemble(text)
    logits = 100 * image @ weights
    per_template = torch.einsum("ne,kte->tnk", 100 * image, F.normalize(text, dim=-1))
    case.compare_all(
        {
            "weights": weights,
            "logits": logits,
            "probs": logits.softmax(dim=-1),
            "probs_probability_space_ensemble": per_template.softmax(dim=-1).mean(
                dim=0
            ),
        }
    )
    for name in case.group("out"):
        if match := re.fullmatch(r"top(\d+)_correct", name):
            case.compare(
                name, accuracy(logits, targets, k=int(match[1])) * len(targets)
            )
    wrong = F.normalize(text.mean(dim=1), dim=-1).T
    case.compare("weights_wrong_no_inner_norm", wrong)
    assert not torch.allclose(weights, wrong, atol=1e-3), (
        "the ensemble must normalise before the mean"
    )


def pos_embed_resize(case) -> None:
    for name in case.group("out"):
        if match := re.fullmatch(r"visual_(\d+)x(\d+)", name):
            grid = int(match[1]), int(match[2])
            case.compare(name, resize_grid_positions(case.tensors["in/visual"], grid))
        elif match := re.fullmatch(r"text_(\d+)", name):
            case.compare(
                name, resize_sequence_positions(case.tensors["in/text"], int(match[1]))
            )


def preprocess(case) -> None:
    config = case.info["config"]
    model = CLIP(
        CLIPConfig(
            embed_dim=8,
            image_size=config["n_px"],
            vision=ViTConfig(patch=config["n_px"], width=8, layers=1, heads=1),
            text=TextConfig(context=4, vocab_size=8, width=8, layers=1, heads=1),
            image_mean=tuple(config["mean"]),
            image_std=tuple(config["std"]),
        )
    )

    def pixels(image: Tensor) -> Tensor:
        return model.preprocess(rearrange(image, "h w c -> 1 c h w"))[0]

    image = case.tensors["in/image"]
    case.compare("pixels", pixels(image))
    case.compare("small_pixels", pixels(case.tensors["in/small"]))
    case.compare("gray_pixels", pixels(image[..., :1].expand(-1, -1, 3)))


def linear_probe(case) -> None:
    inputs = case.group("in")
    for index, C in enumerate(inputs["C"].tolist()):
        probe = LinearProbe.fit(inputs["train_x"], inputs["train_y"], C)
        # Intercepts are determined up to a common constant: compare those of mean zero.
        name = f"out/intercept_{index}"
        case.tensors[name] = case.tensors[name] - case.tensors[name].mean()
        case.compare_all(
            {
                f"coef_{index}": probe.weight,
                f"intercept_{index}": probe.bias - probe.bias.mean(),
                f"prob_{index}": probe.probabilities(inputs["test_x"]),
                f"objective_{index}": probe.objective,
                f"accuracy_{index}": probe.accuracy(inputs["test_x"], inputs["test_y"]),
            }
        )


def tokenizer(case) -> None:
    texts, config = case.info["inputs"], case.info["config"]
    whole = Tokenizer(config["context_length"])
    assert (whole.vocab_size, whole.start, whole.end) == (
        config["vocab_size"],
        config["sot"],
        config["eot"],
    )
    case.compare("tokens", whole(texts, truncate=True))
    case.compare("lengths", torch.tensor([len(whole.encode(text)) for text in texts]))
    for name in case.group("out"):
        if match := re.fullmatch(r"tokens_ctx(\d+)", name):
            case.compare(name, Tokenizer(int(match[1]))(texts, truncate=True))
    assert [whole.decode(whole.encode(text)) for text in texts] == case.info["decoded"]
    theirs = SimpleTokenizer()(texts, context_length=config["context_length"])
    case.compare("open_clip_tokens", theirs)
    differ = [
        text
        for text, a, b in zip(texts, whole(texts, truncate=True), theirs, strict=True)
        if not torch.equal(a, b)
    ]
    assert differ == case.info["differs_between_openai_and_open_clip"]


CHECKS = {
    check.__name__: check
    for check in (
        full_vit,
        full_rn,
        block,
        losses,
        losses_distributed,
        zero_shot,
        pos_embed_resize,
        preprocess,
        linear_probe,
        tokenizer,
    )
}


def test_parity(golden_case, dispatch) -> None:
    dispatch(golden_case, CHECKS)
