"""DenseCLIP against golden tensors of the authors' code, mmsegmentation and mmcv."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minilib.layers.prompt import encode_prompted
from minilib.layers.segmentation import pixel_cross_entropy
from minilib.models.clip import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    TextTransformer,
    ViTConfig,
)
from minilib.models.denseclip import (
    ContextDecoder,
    DenseCLIP,
    denseclip_loss,
    score_map,
)
from minilib.models.denseclip.backbones import DenseAttentionPool, DenseResNet, DenseViT
from minilib.models.denseclip.config import DenseCLIPConfig
from minilib.models.denseclip.detection import box_score_loss, box_targets
from minilib.models.denseclip.official import RESNET_HEADS
from minilib.models.denseclip.optimisation import parameter_groups, poly_learning_rate
from minilib.models.denseclip.protocol import sliding_logits

PAPER = "denseclip"
TEXT = TextConfig(context=4, vocab_size=8, width=8, layers=1, heads=1)


def attention_pool(case) -> None:
    config = case.info["config"]
    shape = (
        config["spacial_dim"],
        config["embed_dim"],
        config["num_heads"],
        config["output_dim"],
    )
    for name, x in case.group("in").items():
        size = name.removeprefix("x_")
        for prefix, crop in (("", False), ("det_", True)):
            if f"out/{prefix}global_{size}" not in case.tensors:
                continue
            pool = DenseAttentionPool(*shape, crop_positions=crop).eval()
            pool.load_state_dict(case.group("state"))
            pooled, dense = pool.dense(x)
            case.compare_all(
                {f"{prefix}global_{size}": pooled, f"{prefix}spatial_{size}": dense}
            )


def clip_resnet_attention(case) -> None:
    config = case.info["config"]
    heads = config.get("attnpool_heads", RESNET_HEADS)
    vision = ResNetConfig(tuple(config["layers"]), config["width"], heads)
    backbone = DenseResNet(
        CLIPConfig(config["output_dim"], config["input_resolution"], vision, TEXT)
    ).eval()
    backbone.load_state_dict(case.group("state"))
    encoded = backbone.encode(case.tensors["in/image"])
    case.compare_all({f"x{i + 1}": x for i, x in enumerate(encoded.maps)})
    case.compare_all({"global": encoded.pooled, "spatial": encoded.dense})


def clip_vit(case) -> None:
    config = case.info["config"]
    vision = ViTConfig(
        config["patch_size"], config["width"], config["layers"], config["heads"]
    )
    clip = CLIPConfig(config["output_dim"], config["input_resolution"], vision, TEXT)
    backbone = DenseViT(clip, config["out_indices"], double_class_embedding=True).eval()
    backbone.load_state_dict(case.group("state"))
    for name, image in case.group("in").items():
        size = name.removeprefix("image_")
        encoded = backbone.encode(image)
        case.compare_all({f"x{i + 1}_{size}": x for i, x in enumerate(encoded.maps)})
        case.compare_all(
            {f"global_{size}": encoded.pooled, f"spatial_{size}": encoded.dense}
        )


def text_context_encoder(case) -> None:
    config = case.info["config"]
    encoded = {}
    for kind, context in (
        ("context", config["context_length"]),
        ("plain", config["name_length"]),
    ):
        text = TextConfig(
            context,
            config["vocab_size"],
            config["transformer_width"],
            config["layers"],
            config["heads"],
        )
        tower = TextTransformer(text, config["embed_dim"]).eval()
        tower.load_state_dict(
            case.group(f"state/{kind}") or split(case.group("state"), f"{kind}.")
        )
        if kind == "context":
            encoded[kind] = encode_prompted(
                tower, case.tensors["in/tokens"], case.tensors["in/contexts"]
            )
        else:
            encoded[kind] = tower(case.tensors["in/tokens"])
    case.compare_all({f"{kind}_embeddings": value for kind, value in encoded.items()})


def split(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix)
    }


def context_decoder(case) -> None:
    config = case.info["config"]
    width, layers = config["transformer_width"], config["transformer_layers"]
    decoder = ContextDecoder(
        config["visual_dim"],
        width,
        layers,
        config["transformer_heads"],
        config["dropout"],
    )
    decoder.eval().load_state_dict(case.group("state"))
    text, visual = case.tensors["in/text"], case.tensors["in/visual"]
    memory, queries = decoder.memory_proj(visual), decoder.text_proj(text)
    first = decoder.decoder[0](queries, memory)
    case.compare_all(
        {
            "diff": decoder(text, visual),
            "memory": memory,
            "query0": queries,
            "layer0": first,
        }
    )


def build(case) -> DenseCLIP:
    config = case.info["config"]
    backbone, text, decoder = (
        config["backbone"],
        config["text_encoder"],
        config["context_decoder"],
    )
    vit = backbone["type"] == "CLIPVisionTransformer"
    model = DenseCLIP.from_official(
        case.group("state"),
        case.tensors["in/tokens"],
        text_heads=text["transformer_heads"],
        decoder_heads=decoder["transformer_heads"],
        tau=config["tau"],
        taps=backbone["out_indices"] if vit else None,
        vision_heads=backbone["heads"] if vit else None,
    )
    assert model.state_dict().keys() == case.group("state").keys()
    assert model.backbone.score_level == config["score_concat_index"]
    assert model.config.decoder_layers == decoder["transformer_layers"]
    assert model.config.clip.image_size == backbone["input_resolution"]
    return model


def segmentor(case) -> None:
    config = case.info["config"]
    model = build(case)
    output = model(case.tensors["in/image"])
    mask = case.tensors["in/gt"][:, 0]
    losses = denseclip_loss(
        output,
        mask,
        config["tau"],
        config["identity_head"]["loss_decode"]["loss_weight"],
        over="all",
    )
    case.compare_all(
        {
            "text_embeddings": output.text,
            "score_map": output.scores,
            "concat": output.maps[config["score_concat_index"]],
            "decode_logits": output.logits,
            "loss_decode": losses["decode"],
            "loss_identity": losses["scores"],
            "acc_decode": accuracy_over_all(output.full(), mask),
            "acc_identity": accuracy_over_all(output.full(output.scores), mask),
        }
    )
    step = mask.shape[-1] // case.tensors["out/logits_sub"].shape[-1]
    case.compare("logits_sub", output.full()[..., ::step, ::step])
    for level, x in enumerate(output.pyramid):
        case.compare(f"neck{level}", x)
    test = config["test_cfg"]
    logits = sliding_logits(
        model,
        case.tensors["in/image_big"],
        tuple(test["crop_size"]),
        tuple(test["stride"]),
    )
    size = tuple(case.tensors["out/slide_logits"].shape[-2:])
    case.compare(
        "slide_logits",
        F.interpolate(logits, size, mode="bilinear", align_corners=False),
    )


def accuracy_over_all(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the authors' logged accuracy in percent: ignored pixels count as wrong."""
    return 100 * (logits.argmax(dim=1) == mask).float().mean()


def segmentor_rn(case) -> None:
    segmentor(case)


def segmentor_vit(case) -> None:
    segmentor(case)


def detection_aux_loss(case) -> None:
    info, inputs = case.info["config"], case.group("in")
    logits = inputs["score_map"]
    boxes = [inputs.get(f"boxes{i}", torch.zeros(0, 4)) for i in range(len(logits))]
    labels = [
        inputs.get(f"labels{i}", torch.zeros(0, dtype=torch.long))
        for i in range(len(logits))
    ]
    grid = tuple(logits.shape[-2:])
    target, region = box_targets(
        boxes, labels, info["num_classes"], grid, official=True
    )
    coarse = score_map(inputs["visual"], inputs["text"]) / info["tau"]
    fine = F.interpolate(coarse, grid, mode="bilinear", align_corners=False)
    case.compare_all(
        {
            "target": target,
            "mask": region,
            "loss": box_score_loss(logits, target, region),
            "score_map3": coarse,
            "score_map0": fine,
            "loss_end_to_end": box_score_loss(fine, target, region),
        }
    )
    # The authors divide 0 by 0 here; ours is 0.
    assert case.tensors["out/loss_empty"].isnan()
    assert (
        box_score_loss(logits, torch.zeros_like(target), torch.zeros_like(region)) == 0
    )
    case.compared.add("loss_empty")


def mmseg_ce(case) -> None:
    config = case.info["config"]
    logits, label = case.tensors["in/logits"], case.tensors["in/label"]
    weight, ignore = config["loss_weight"], config["ignore_index"]
    nothing = torch.full_like(label, ignore)
    case.compare_all(
        {
            "loss": weight * pixel_cross_entropy(logits, label, ignore, over="all"),
            "mean_valid": weight
            * pixel_cross_entropy(logits, label, ignore, over="valid"),
            "loss_all_ignored": weight
            * pixel_cross_entropy(logits, nothing, ignore, over="all"),
            "acc": accuracy_over_all(logits, label),
        }
    )


def optimizer_schedule(case) -> None:
    config = case.info["config"]
    steps = case.tensors["in/iters"].tolist()
    rates = [
        [
            poly_learning_rate(
                step,
                config["base_lr"] * factor,
                config["max_iters"],
                power=config["power"],
                min_lr=config["min_lr"],
                warmup=config["warmup_iters"],
                warmup_ratio=config["warmup_ratio"],
                official=True,
            )
            for factor in (1.0, 0.1, 0.0)
        ]
        for step in steps
    ]
    case.compare("lr", torch.tensor(rates, dtype=torch.float64))

    model = small_model(case.info["param_groups"])
    groups = parameter_groups(
        model, config["base_lr"], config["weight_decay"], official=True
    )
    ours = {name: group for group in groups for name in group["names"]}
    theirs = case.info["param_groups"]
    assert ours.keys() == theirs.keys()
    for name, group in theirs.items():
        assert abs(ours[name]["lr"] - group["lr"]) < 1e-12, name
        assert abs(ours[name]["weight_decay"] - group["weight_decay"]) < 1e-12, name


def small_model(names: dict) -> DenseCLIP:
    """Return a model with the blocks that the parameters' names tell; only the
    names matter here."""

    def count(prefix: str) -> int:
        return len(
            {
                name.removeprefix(prefix).split(".")[0]
                for name in names
                if name.startswith(prefix)
            }
        )

    text = TextConfig(16, 8, 8, count("text_encoder.transformer.resblocks."), 2)
    blocks = tuple(count(f"backbone.layer{stage}.") for stage in (1, 2, 3, 4))
    clip = CLIPConfig(8, 64, ResNetConfig(blocks, 4, 4), text)
    layers = count("context_decoder.decoder.")
    config = DenseCLIPConfig(
        clip, decoder_width=8, decoder_layers=layers, decoder_heads=2, channels=4
    )
    return DenseCLIP(config, torch.tensor([[6, 1, 7], [6, 2, 7]]))


CHECKS = {
    check.__name__: check
    for check in (
        attention_pool,
        clip_resnet_attention,
        clip_vit,
        text_context_encoder,
        context_decoder,
        segmentor_rn,
        segmentor_vit,
        detection_aux_loss,
        mmseg_ce,
        optimizer_schedule,
    )
}


def test_parity(golden_case, dispatch) -> None:
    with torch.no_grad():
        dispatch(golden_case, CHECKS)
