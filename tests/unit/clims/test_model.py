"""CLIMS's network, evaluator, losses and optimiser: small cases by hand, and what may
not stop or train what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from minilib.models.clims import (
    CAMERA_READY_VOC,
    CLIMS,
    IMPROVED_VOC,
    CLIMSConfig,
    Evaluator,
    LossConfig,
    Similarities,
    area_regularisation,
    background_suppression,
    background_text_matching,
    baseline_loss,
    class_background_suppression,
    clims_loss,
    masked_views,
    object_text_matching,
)
from minilib.models.clims.optimisation import (
    make_sgd,
    parameter_groups,
    poly_learning_rate,
)
from minilib.models.clims.prompts import (
    CAMERA_READY_BACKGROUNDS,
    IMPROVED_COCO_BACKGROUNDS,
    IMPROVED_VOC_BACKGROUNDS,
    VOC_NAMES,
    class_weights,
    prompt_names,
)
from minilib.weights import load_clip

SMALL = CLIMSConfig(3, (1, 1, 1, 2), stem=8, planes=4)
NAMES = ["train", "boat", "dog"]


def make(**changes: object) -> CLIMS:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIMS(replace(SMALL, **changes)).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini-rn")


# --- losses ---------------------------------------------------------------------------


def test_matching_losses_are_means_of_logarithms() -> None:
    similarity = torch.tensor([0.5, 0.25])
    assert object_text_matching(similarity).item() == pytest.approx(
        (math.log(2) + math.log(4)) / 2
    )
    assert background_text_matching(similarity).item() == pytest.approx(
        (math.log(2) + math.log(4 / 3)) / 2
    )
    weight = torch.tensor([3.0, 1.0])
    assert object_text_matching(similarity, weight).item() == pytest.approx(
        (3 * math.log(2) + math.log(4)) / 2
    )


@pytest.mark.parametrize("loss", [object_text_matching, background_text_matching])
def test_the_clamp_makes_extreme_cosines_finite_and_flat(loss) -> None:
    similarity = torch.tensor([-0.3, 0.3, 1.0], requires_grad=True)
    value = loss(similarity)
    value.backward()
    assert value.isfinite()
    assert (similarity.grad != 0).tolist() == [False, True, False]
    assert object_text_matching(similarity.detach(), clamp=False).isnan()


def test_background_suppression_is_a_sum_over_what_is_above_the_threshold() -> None:
    similarity = torch.tensor([[0.5, 0.2], [0.26, 0.75]], requires_grad=True)
    value = background_suppression(similarity, 0.26)
    assert value.item() == pytest.approx(math.log(2) + math.log(4))
    twice = background_suppression(similarity.repeat(2, 1), 0.26)
    assert twice.item() == pytest.approx(2 * value.item())
    value.backward()
    torch.testing.assert_close(similarity.grad, torch.tensor([[2.0, 0.0], [0.0, 4.0]]))


def test_nothing_above_the_threshold_is_no_loss_even_at_a_cosine_of_one() -> None:
    similarity = torch.ones(2, 3, requires_grad=True)
    value = background_suppression(similarity, 2.0)
    value.backward()
    assert value == 0 and (similarity.grad == 0).all()


def test_camera_ready_suppression_averages_the_prompts_of_the_class() -> None:
    similarity = torch.tensor([[0.5, 0.75, 0.9], [0.5, 0.9, 0.9], [0.9, 0.9, 0.9]])
    own = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    value = class_background_suppression(similarity, own)
    # mean over two prompts, plus one prompt, plus a class without any
    assert value.item() == pytest.approx((math.log(2) + math.log(4)) / 2 + math.log(2))


def test_regularisation_counts_absent_classes() -> None:
    activation = torch.zeros(1, 4, 2, 2)
    activation[:, 0] = 1
    assert area_regularisation(activation) == 0.25


def similar(**changes: Tensor) -> Similarities:
    values = {
        "object": torch.tensor([0.5]),
        "rest": torch.tensor([0.5]),
        "background": torch.tensor([[0.75, 0.5]]),
        "label": torch.tensor([1]),
        "own": torch.tensor([[True, False]]),
    }
    return Similarities(**values | changes)


def test_total_weighs_the_parts_of_either_version() -> None:
    activation = torch.full((1, 2, 2, 2), 0.5)
    two, four = math.log(2), math.log(4)
    improved = clims_loss(similar(), activation, IMPROVED_VOC)
    assert improved["loss"].item() == pytest.approx(
        10 * two + 24 * two + (two + four) + 0.2 * 0.5
    )
    weights = torch.tensor([1.0, 3.0])
    ready = clims_loss(similar(), activation, CAMERA_READY_VOC, weights)
    assert ready["loss"].item() == pytest.approx(
        3 * 10 * two + 3 * 25 * two + 29.5 * four + 1.15 * 0.5
    )
    assert ready["otm"].item() == pytest.approx(3 * two)


def test_baseline_loss_is_the_mean_binary_cross_entropy() -> None:
    logits, present = noise(4, 3), noise(4, 3, seed=1) > 0
    expected = F.binary_cross_entropy_with_logits(logits, present.float())
    torch.testing.assert_close(baseline_loss(logits, present), expected)


# --- views and evaluator --------------------------------------------------------------


def test_views_are_ordered_by_image_then_class_and_add_up_to_the_image() -> None:
    pixels, activation = noise(3, 3, 10, 14), noise(3, 4, 3, 5).sigmoid()
    present = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    views = masked_views(pixels, activation, present, 8)
    assert views.image.tolist() == [0, 0, 2] and views.label.tolist() == [1, 3, 0]
    whole = F.interpolate(pixels, (8, 8), mode="bilinear", align_corners=True)
    torch.testing.assert_close(views.object + views.rest, whole[[0, 0, 2]])
    # aligned corners: those of the image times those of the map
    torch.testing.assert_close(
        views.object[1, :, 0, -1], pixels[0, :, 0, -1] * activation[0, 3, 0, -1]
    )


def test_what_is_masked_out_has_the_mean_colour() -> None:
    views = masked_views(
        noise(1, 3, 8, 8), torch.zeros(1, 1, 2, 2), torch.ones(1, 1), 8
    )
    assert (views.object == 0).all()


def test_shapes_that_do_not_belong_together_are_refused(clip) -> None:
    pixels, activation = noise(2, 3, 8, 8), torch.zeros(2, 3, 2, 2)
    for wrong in (torch.ones(2, 4), torch.ones(1, 3)):
        with pytest.raises(ValueError, match="do not belong together"):
            masked_views(pixels, activation, wrong, 8)
    with pytest.raises(ValueError, match="do not belong together"):
        masked_views(pixels[:1], activation, torch.ones(2, 3), 8)
    evaluator = Evaluator.from_clip(clip, NAMES[:2])
    with pytest.raises(ValueError, match="maps of 3 classes, but names of 2"):
        evaluator(pixels, activation, torch.ones(2, 3))


def test_gradients_reach_the_maps_of_present_classes_only(clip) -> None:
    evaluator = Evaluator.from_clip(clip, NAMES, ["railway", "water"]).train()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    image = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    logits = noise(2, 3, 6, 5).requires_grad_()
    present = torch.tensor([[True, False, True], [False, False, False]])
    activation = logits.sigmoid()
    seen = evaluator(evaluator.preprocess(image), activation, present)
    assert seen.object.shape == (2,) and seen.background.shape == (2, 2)
    weights = LossConfig(reg=0.0, threshold=-1.0)
    clims_loss(seen, activation, weights)["loss"].backward()
    reached = logits.grad.abs().amax(dim=(2, 3)) > 0
    assert torch.equal(reached, present)
    assert all(p.grad is None and not p.requires_grad for p in clip.parameters())
    # nor do its norms take statistics of masked images
    after = clip.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_similarities_are_the_cosines_of_clip(clip) -> None:
    evaluator = Evaluator.from_clip(clip, NAMES, ["water"], template="{}")
    size = clip.config.image_size
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    present, full = torch.tensor([[False, True, False]]), torch.ones(1, 3, 4, 4)
    seen = evaluator(evaluator.preprocess(image), full, present)
    words = clip.encode_text(clip.tokenize(["boat", "water"]), normalize=True)
    expected = clip.encode_image(clip.preprocess(image), normalize=True) @ words.T
    torch.testing.assert_close(seen.object, expected[:, 0])
    torch.testing.assert_close(seen.background, expected[:, 1:])


def test_backgrounds_of_single_classes_are_their_own(clip) -> None:
    lists = {"boat": ["water", "sand"], "train": ["railway", "sand"]}
    evaluator = Evaluator.from_clip(clip, NAMES, lists)
    assert len(evaluator.background) == 3
    assert evaluator.own.tolist() == [
        [False, True, True],
        [True, True, False],
        [False, False, False],
    ]
    assert Evaluator.from_clip(clip, NAMES, ["water"]).own.all()
    assert Evaluator.from_clip(clip, NAMES, {}).own.shape == (3, 0)


def test_bad_words_are_refused(clip) -> None:
    with pytest.raises(ValueError, match="same"):
        Evaluator.from_clip(clip, ["dog", "Dog"])
    with pytest.raises(ValueError, match="not among the class names"):
        Evaluator.from_clip(clip, NAMES, {"ship": ["water"]})
    with pytest.raises(ValueError, match="no place for the name"):
        Evaluator.from_clip(clip, NAMES, template="a photo")
    with pytest.raises(ValueError, match="class name"):
        Evaluator.from_clip(clip, [])
    with pytest.raises(ValueError, match="background prompt 0 is empty"):
        Evaluator.from_clip(clip, NAMES, [" "])
    with pytest.raises(ValueError, match="list of at least one background prompt"):
        Evaluator.from_clip(clip, NAMES, "water")
    with pytest.raises(ValueError, match="classes by background prompts"):
        Evaluator(clip, torch.ones(2, 4), torch.ones(3, 4), 8, torch.ones(3, 2))


class Refuses:
    """An encoder that must not be asked."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        raise AssertionError("there is nothing to encode")


@pytest.mark.parametrize("config", [IMPROVED_VOC, CAMERA_READY_VOC])
def test_images_without_any_class_leave_the_regularisation_alone(config) -> None:
    evaluator = Evaluator(Refuses(), torch.ones(3, 4), torch.ones(2, 4), 8)
    activation = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    seen = evaluator(noise(2, 3, 16, 16), activation, torch.zeros(2, 3))
    parts = clims_loss(seen, activation, config, class_weights(NAMES))
    parts["loss"].backward()
    assert seen.object.requires_grad  # empty, but tied to the maps
    assert parts["otm"] == parts["btm"] == parts["cbs"] == 0
    share = torch.full_like(activation, config.reg / activation.numel())
    torch.testing.assert_close(activation.grad, share)


def test_one_pair_and_one_class_are_enough(clip) -> None:
    evaluator = Evaluator.from_clip(clip, ["dog"])
    activation = noise(1, 1, 2, 3).sigmoid().requires_grad_()
    seen = evaluator(noise(1, 3, 32, 48), activation, torch.ones(1, 1))
    clims_loss(seen, activation)["loss"].backward()
    assert seen.object.shape == (1,) and seen.background.shape == (1, 0)
    assert activation.grad.isfinite().all() and activation.grad.abs().sum() > 0


# --- network --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 80), (33, 47), (16, 100), (5, 7), (1, 1)])
@pytest.mark.parametrize("stride", [16, 8])
def test_maps_of_any_image(size: tuple[int, int], stride: int) -> None:
    model = make(stride=stride)
    cells = tuple(math.ceil(side / stride) for side in size)
    with torch.no_grad():
        output = model(model.preprocess(torch.rand(2, 3, *size)))
    assert output.activation.shape == (2, 3, *cells)
    torch.testing.assert_close(output.activation, output.scores.sigmoid())


def test_what_is_not_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="expected \\(B, 3, H, W\\)"):
        make().preprocess(torch.rand(3, 8, 8))


def test_a_model_of_one_class() -> None:
    assert make(classes=1).cams(noise(1, 3, 32, 32)).shape == (1, 1, 2, 2)


def test_cams_follow_a_mirrored_image_and_have_no_sigmoid() -> None:
    model, pixels = make(), noise(2, 3, 48, 64)
    with torch.no_grad():
        cams = model.cams(pixels)
        torch.testing.assert_close(model.cams(pixels.flip(-1)), cams.flip(-1))
        raw = model.scores(pixels)
    assert torch.equal(model.cams(pixels, flip=False), raw.clamp(min=0))
    assert (raw < 0).any() and cams.min() >= 0


def test_the_classifier_is_the_average_of_the_maps() -> None:
    model, pixels = make(), noise(2, 3, 48, 64)
    torch.testing.assert_close(
        model.logits(pixels), model.scores(pixels).mean(dim=(2, 3))
    )


def test_the_backbone_is_torchvisions_with_an_unstrided_last_stage() -> None:
    theirs = ResNet(Bottleneck, [1, 1, 1, 2]).eval()
    del theirs.fc
    theirs.layer4[0].conv2.stride = theirs.layer4[0].downsample[0].stride = (1, 1)
    model = CLIMS(CLIMSConfig(blocks=(1, 1, 1, 2))).eval()
    model.backbone.load_state_dict(theirs.state_dict())
    pixels = noise(1, 3, 48, 64)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(pixels))))
    x = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    torch.testing.assert_close(model.features(pixels), x)


def test_a_frozen_stem_still_takes_statistics() -> None:
    model = make().train()
    before = model.backbone.bn1.running_mean.clone()
    model(noise(2, 3, 64, 64)).activation.sum().backward()
    assert model.backbone.conv1.weight.grad is None
    assert model.backbone.bn1.weight.grad is None
    assert model.backbone.layer1[0].conv1.weight.grad is not None
    assert not torch.equal(before, model.backbone.bn1.running_mean)
    assert make(frozen_stem=False).backbone.conv1.weight.requires_grad


def test_the_baselines_norms_keep_their_statistics_and_learn_their_scale() -> None:
    model = make(batch_statistics=False).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.logits(noise(2, 3, 64, 64)).sum().backward()
    after = dict(model.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.backbone.layer4[0].bn1.weight.grad.abs().sum() > 0
    assert model.training


def official(model: CLIMS) -> dict[str, Tensor]:
    """Return weights in the layout of the released files, aliases included."""
    state = model.state_dict()
    theirs = {k.replace("backbone.", "resnet50."): v for k, v in state.items()}
    theirs["newly_added.0.weight"] = state["classifier.weight"]
    theirs["stage1.0.weight"] = state["backbone.conv1.weight"]
    theirs["backbone.0.0.weight"] = state["backbone.conv1.weight"]
    return theirs


def test_released_layouts_load_strictly() -> None:
    model, pixels = make(), noise(1, 3, 32, 48)
    theirs = official(model)
    loaded = CLIMS.from_official({"state_dict": theirs})
    assert loaded.config == SMALL and not loaded.training
    assert torch.equal(loaded.scores(pixels), model.scores(pixels))
    del theirs["resnet50.layer2.0.bn1.weight"]
    with pytest.raises(ValueError, match="1 missing .*layer2.0.bn1.weight"):
        CLIMS.from_official(theirs)
    with pytest.raises(ValueError, match="not the weights of a CLIMS"):
        CLIMS.from_official({"fc.weight": torch.ones(2, 2)})


def test_the_camera_ready_layout_has_a_channel_for_the_background() -> None:
    model, pixels = make(head="bottleneck"), noise(1, 3, 32, 48)
    names = {"head.": "cam_head.0.", "classifier.": "cam_head.1.", "backbone.": ""}
    theirs = {}
    for key, value in model.state_dict().items():
        prefix = next(name for name in names if key.startswith(name))
        theirs[key.replace(prefix, names[prefix], 1)] = value
    assert len(theirs["cam_head.1.weight"]) == 4
    loaded = CLIMS.from_official(theirs)
    assert loaded.config.classes == 3 and loaded.config.head == "bottleneck"
    assert loaded.config.image_mean[0] == pytest.approx(0.48145466)
    every = loaded.classifier(loaded.features(pixels))
    assert torch.equal(loaded(pixels).scores, every[:, 1:])


def test_bad_configurations_are_refused() -> None:
    for changes, message in (
        ({"stride": 32}, "expected 8 or 16"),
        ({"head": "deep"}, "unknown head"),
        ({"classes": 0}, "1 or more"),
        ({"blocks": (1, 1, 1)}, "four numbers of blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SMALL, **changes)


# --- optimisation and prompts ---------------------------------------------------------


def test_groups_hold_every_trained_parameter_once() -> None:
    model = make(head="bottleneck")
    backbone, head = parameter_groups(model, lr=0.1)
    assert (backbone["lr"], head["lr"]) == (0.1, 1.0)
    grouped = [id(p) for group in (backbone, head) for p in group["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trained)
    assert id(model.backbone.conv1.weight) not in grouped


def test_the_slip_turns_the_weight_decay_into_the_momentum() -> None:
    def second_step(official: bool) -> float:
        weight = nn.Parameter(torch.tensor([1.0]))
        group = {"params": [weight], "lr": 0.1, "weight_decay": 0.01}
        optimizer = make_sgd([group], official=official)
        weights = [weight.item()]
        for _ in range(2):
            weight.grad = torch.ones(1)
            optimizer.step()
            weights.append(weight.item())
        return weights[1] - weights[2]

    # the step is lr (g + decay w) plus momentum times the one before
    first, later = 0.1 * 1.01, 0.1 * (1 + 0.01 * (1 - 0.1 * 1.01))
    assert second_step(official=True) == pytest.approx(later + 0.01 * first, rel=1e-4)
    assert second_step(official=False) == pytest.approx(later + 0.9 * first, rel=1e-4)


def test_the_learning_rate_stays_at_its_last_value() -> None:
    rates = [poly_learning_rate(step, 2.0, 4) for step in range(6)]
    assert rates[0] == 2 and rates[2] == pytest.approx(2 * 0.5**0.9)
    assert rates[3] == rates[4] == rates[5] == pytest.approx(2 * 0.25**0.9)


def test_prompts_are_the_published_ones() -> None:
    assert len(VOC_NAMES) == 20 and prompt_names(VOC_NAMES)[14] == "player"
    assert prompt_names(["dog", "tvmonitor"]) == ["dog", "tv monitor"]
    assert len(IMPROVED_VOC_BACKGROUNDS) == 10 and len(IMPROVED_COCO_BACKGROUNDS) == 88
    assert set(CAMERA_READY_BACKGROUNDS) <= set(VOC_NAMES)
    heavy = class_weights(VOC_NAMES)
    assert heavy.sum() == 26 and heavy[VOC_NAMES.index("sofa")] == 3
