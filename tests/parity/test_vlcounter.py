"""VLCounter against the authors' code; the specification is in each case's JSON."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from minilib.layers.transformer import ResidualAttentionBlock
from minilib.models import vlcounter as paper
from minilib.models.clip import TextTransformer, VisionTransformer, prompt_ensemble
from minilib.models.clip.config import CLIPConfig, TextConfig, ViTConfig
from minilib.models.vlcounter import official
from minilib.recipes.shared.counting import validation_target
from minilib.recipes.vlcounter.protocol import cell_readout

PAPER = "vlcounter"


def batch_names(case) -> list[str]:
    """Return the names of the cases within the case "losses"."""
    return sorted(
        {
            name.removesuffix("_density")
            for name in case.group("in")
            if name.endswith("_density")
        }
    )


def full_model(case) -> None:
    config = case.info["config"]
    taps = tuple(config["out_indices"][:-1])
    model = paper.VLCounter.from_official(
        case.group("state"),
        vision_heads=config["vh"],
        text_heads=config["th"],
        taps=taps[-3:],
    )
    assert (
        model.config.grid == (config["grid"],) * 2
        and model.config.channels == config["proj"]
    )
    assert (model.config.prompts, model.config.prompted_layers) == (
        config["nt"],
        config["dl"] + 1,
    )
    assert (model.config.clip.vision.layers, model.config.clip.vision.patch) == (
        config["vl"],
        config["patch"],
    )
    pixels, tokens = case.tensors["in/image"], case.tensors["in/tokens"]
    with torch.no_grad():
        embeddings = model.clip.encode_text(rearrange(tokens, "b t l -> (b t) l"))
        text = prompt_ensemble(
            rearrange(embeddings, "(b t) e -> b t e", b=len(tokens))
        ).T
        output = model(pixels, text)
        tapped, patches = paper.encode_image(
            model.clip.visual, model.prompts, pixels, text, taps
        )
    features = [*tapped, patches]
    case.compare_all({f"feat_{i}": feature for i, feature in enumerate(features)})
    case.compare_all(
        {
            "text_embed": text,
            "density": output.density,
            "attn": output.similarity,
            "attn_up": F.interpolate(
                output.similarity, scale_factor=config["patch"], mode="nearest"
            ),
        }
    )


def counter_head(case) -> None:
    config, state = case.info["config"], case.group("state")
    clip = CLIPConfig(
        config["embed"],
        config["grid"] * config["patch"],
        ViTConfig(config["patch"], config["vw"], config["vl"], config["vh"]),
        TextConfig(
            config["ctx"], config["vocab"], config["tw"], config["tl"], config["th"]
        ),
    )
    shape = paper.VLCounterConfig(clip, (config["grid"],) * 2, channels=config["proj"])
    head = paper.CounterHead(shape)
    head.load_state_dict(official.convert_head(state))
    text = prompt_ensemble(case.tensors["in/template_embeds"]).T
    with torch.no_grad():
        output = head(
            [case.tensors[f"in/feat_{i}"] for i in (1, 2, 3)],
            case.tensors["in/feat_4"],
            text,
        )
    case.compare_all({"density": output.density, "attn": output.similarity})


def image_encoder(case) -> None:
    config = case.info["config"]
    visual_state, prompt_state = official.convert_tower(case.group("state"))
    vision = ViTConfig(config["patch"], config["vw"], config["vl"], config["vh"])
    visual = VisionTransformer(
        vision, config["embed"], config["grid"] * config["patch"]
    )
    visual.load_state_dict(visual_state)
    prompts = None
    if prompt_state:
        semantic = "text_proj.weight" in prompt_state
        prompts = paper.SemanticPrompts(
            config["vw"], config["embed"], config["nt"], config["dl"] + 1, semantic, 0.1
        )
        prompts.load_state_dict(prompt_state)
        prompts.eval()
    pixels = case.tensors["in/image"]
    text = case.tensors.get("in/text", torch.zeros(len(pixels), 1, config["embed"]))[
        :, 0
    ]
    with torch.no_grad():
        tapped, patches = paper.encode_image(
            visual, prompts, pixels, text, config["out_indices"][:-1]
        )
    case.compare_all(
        {f"feat_{i}": feature for i, feature in enumerate([*tapped, patches])}
    )


def text_encoder(case) -> None:
    config = case.info["config"]
    text = TextConfig(
        config["ctx"], config["vocab"], config["tw"], config["tl"], config["th"]
    )
    tower = TextTransformer(text, config["embed"])
    tower.load_state_dict(case.group("state"))
    case.compare("embed", tower(case.tensors["in/tokens"]))


def blocks(case) -> None:
    x = rearrange(case.tensors["in/x"], "l b c -> b l c")
    results = {}
    for name in ("last", "normal"):
        block = ResidualAttentionBlock(
            case.info["config"]["width"], case.info["config"]["heads"]
        )
        mine = {
            key.removeprefix(f"{name}."): v
            for key, v in case.group("state").items()
            if key.startswith(f"{name}.")
        }
        block.load_state_dict(
            {official.block_name(key): value for key, value in mine.items()}
        )
        y = paper.value_path(block, x) if name == "last" else block(x)
        results[name] = rearrange(y, "b l c -> l b c")
    case.compare_all(results)


def losses(case) -> None:
    thresholds, weight = case.info["config"]["thresholds"], case.info["config"]["lam"]
    assert (tuple(thresholds), weight) == (paper.THRESHOLDS, paper.RANK_WEIGHT)
    for name in batch_names(case):
        density, predicted = (
            case.tensors[f"in/{name}_density"],
            case.tensors[f"in/{name}_output"],
        )
        similarity = case.tensors[f"in/{name}_attn"].clone().requires_grad_()
        rank = paper.rank_loss(similarity, density)
        rank.backward()
        total = paper.total_loss(predicted, similarity, density, weight)
        case.compare_all(
            {
                f"{name}_rank": rank,
                f"{name}_rank_grad": similarity.grad,
                f"{name}_con": paper.object_loss(similarity, density),
                f"{name}_mse": total["count"],
                f"{name}_total": total["loss"],
            }
        )


def carpk_postprocess(case) -> None:
    config = case.info["config"]
    case.compare_all(
        cell_readout(case.tensors["in/density"], config["cell"], config["threshold"])
    )


def val_target(case) -> None:
    config = case.info["config"]
    points, before, after = (
        case.tensors["in/points"],
        (config["H"], config["W"]),
        (config["new_H"], config["new_W"]),
    )
    target = validation_target(points, before, after)
    case.compare_all({"map": target, "count": target.sum()})


def test_vlcounter(golden_case, dispatch) -> None:
    dispatch(
        golden_case,
        {
            "full_model": full_model,
            "counter_head": counter_head,
            "spt_encoder": image_encoder,
            "vpt_encoder": image_encoder,
            "plain_encoder": image_encoder,
            "text_encoder": text_encoder,
            "blocks": blocks,
            "losses": losses,
            "carpk_postprocess": carpk_postprocess,
            "val_target": val_target,
        },
    )
