"""Pixels, masks and boxes: against the same layouts composed with Pillow, and
against each other."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minilib.scenes import BACKGROUNDS, VOCABULARY, SceneConfig, find
from minilib.scenes.backgrounds import VARIANTS, cut_out, cutting_table, texture_bank
from minilib.scenes.renderer import density_map, render, sprites
from minilib.scenes.sampler import Layout, Stream, sample_layout

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
spec = importlib.util.spec_from_file_location(
    "pillow_scenes", BENCHMARKS / "pillow_scenes.py"
)
pillow_scenes = importlib.util.module_from_spec(spec)
sys.modules["pillow_scenes"] = pillow_scenes
spec.loader.exec_module(pillow_scenes)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def draw(
    config: SceneConfig, task: str = "pairs", n: int = 24, seed: int = 0
) -> Layout:
    return sample_layout(config, task, Stream(seed, "test", np.arange(n)))


def hand_made(
    objects: list[dict], size: int | tuple[int, int] = 64, background: str = "plain"
) -> Layout:
    """Return one scene from dicts with concept, center, side and, optionally,
    angle, flipped, tint."""
    column = {
        key: np.array([[o.get(key, 0) for o in objects]])
        for key in ("angle", "flipped", "tint")
    }
    return Layout(
        concept=np.array([[find(o["concept"]).index for o in objects]]),
        center=np.array([[o["center"] for o in objects]], dtype=float),
        side=np.array([[o["side"] for o in objects]], dtype=float),
        angle=column["angle"].astype(float),
        flipped=column["flipped"].astype(bool),
        tint=np.array([[o.get("tint", -1) for o in objects]]),
        style=np.array([0]),
        background=np.array([list(BACKGROUNDS).index(background)]),
        surface=np.full((1, 8), 0.25),
        target=None,
    )


# --- Against Pillow -------------------------------------------------------------------

CONFIGS = {
    "one object": SceneConfig(objects=(1, 1)),
    "four objects": SceneConfig(objects=(4, 4)),
    "occlusion": SceneConfig(size=96, objects=(6, 6), jitter=1.6),
    "upside down": SceneConfig(objects=(2, 3), rotation=180.0, tint=1.0),
    "other styles": SceneConfig(objects=(1, 4), styles=("openmoji", "twemoji", "noto")),
    "tiny image": SceneConfig(size=32, objects=(1, 2)),
    "large image": SceneConfig(size=384, objects=(1, 3)),
    "strip": SceneConfig(size=(32, 256), objects=(3, 8), rotation=45.0),
    "tower": SceneConfig(size=(200, 48), objects=(1, 5)),
    "crowd": SceneConfig(size=128, objects=(40, 60)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_compositing_with_pillow(name, device):
    config = CONFIGS[name]
    layout = draw(config, n=6 if config.shape[0] > 200 else 16)
    drawn = render(layout, config.shape, device, masks=True)
    boxes = {
        (int(o), int(s)): box
        for o, s, box in zip(drawn.owner, drawn.slot, drawn.boxes.cpu(), strict=True)
    }
    assert drawn.image.min() >= 0 and drawn.image.max() <= 1.00001
    for b, image in enumerate(drawn.image.cpu()):
        scene = pillow_scenes.annotate(layout, b, config.shape)
        difference = (255 * image.permute(1, 2, 0).numpy() - scene.image).round(3)
        # of 255: bytes round, twice
        assert np.abs(difference).max() < 5 and np.abs(difference).mean() < 0.9
        assert (drawn.mask[b].cpu().numpy() != scene.mask).mean() < 0.002
        for slot, box in scene.boxes.items():
            if box is None:  # nothing solid
                continue
            # Half covered or not is decided on bytes there: a border pixel may fall
            # to either side.
            np.testing.assert_allclose(boxes[b, slot], box, atol=1)


def test_the_reference_can_fail():
    """A reference that would accept anything proves nothing: a mirrored
    drawing must stand out."""
    config = SceneConfig(objects=(1, 1), flip=False)
    layout = draw(config, n=8)
    wrong = render(replace(layout, flipped=~layout.flipped), config.shape).image
    right = [pillow_scenes.annotate(layout, b, config.shape).image for b in range(8)]
    far = np.abs(255 * wrong.permute(0, 2, 3, 1).numpy() - np.stack(right)).max(
        (1, 2, 3)
    )
    assert np.median(far) > 60


# --- Masks, boxes, images against each other ------------------------------------------


@pytest.mark.parametrize("size", [32, 64, 96, (64, 160)])
def test_boxes_are_the_extent_of_the_mask_where_nothing_overlaps(size):
    config = SceneConfig(
        size=size, objects=(2, 5), repeat=0.0, jitter=0.0, scale=(0.6, 0.7)
    )
    layout = draw(config, n=40)
    drawn = render(layout, config.shape, masks=True)
    checked = unseen = 0
    for owner, slot, box in zip(
        drawn.owner.tolist(), drawn.slot.tolist(), drawn.boxes, strict=True
    ):
        concept = layout.concept[owner, slot]
        if (layout.concept[owner] == concept).sum() > 1:
            continue
        y, x = (drawn.mask[owner] == concept).nonzero().unbind(1)
        if not len(y):  # so small and thin that no pixel is half covered
            unseen += 1
            continue
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        checked += 1
    assert checked > 80 and unseen <= 0.02 * checked


def test_a_later_object_hides_an_earlier_one_but_not_its_box():
    below = {"concept": "dog", "center": (32, 32), "side": 40}
    above = {"concept": "cat", "center": (36, 32), "side": 40}
    alone = render(hand_made([below]), (64, 64), masks=True)
    both = render(hand_made([below, above]), (64, 64), masks=True)
    assert both.boxes[0].tolist() == alone.boxes[0].tolist()
    dog = find("dog").index
    assert 0 < (both.mask == dog).sum() < 0.7 * (alone.mask == dog).sum()
    hidden = render(
        hand_made([below, {**above, "concept": "dog", "center": (32, 32)}]),
        (64, 64),
        masks=True,
    )
    assert (hidden.mask == dog).sum() == (alone.mask == dog).sum()


def test_mask_is_the_object_where_the_image_differs_from_its_background():
    config = SceneConfig(objects=(1, 1), tint=0.0)
    layout = draw(config, n=30)
    drawn = render(layout, config.shape, masks=True)
    empty = render(
        replace(layout, concept=np.full_like(layout.concept, -1)),
        config.shape,
        masks=True,
    )
    assert len(empty.boxes) == 0 and (empty.mask >= len(VOCABULARY)).all()
    changed = (drawn.image - empty.image).abs().amax(1) > 1e-6
    solid = drawn.mask < len(VOCABULARY)
    assert (empty.mask[~solid] == drawn.mask[~solid]).all()
    # an object may have its background's colour
    assert (solid & ~changed).sum() < 0.02 * solid.sum()
    assert (changed & ~solid).sum() < 0.35 * changed.sum()  # soft borders and shadows


def test_mask_values_are_labels_below_the_ignored_value():
    drawn = render(draw(SceneConfig(objects=(1, 6)), n=200), (64, 64), masks=True)
    assert drawn.mask.dtype == torch.int64
    assert (
        0 <= drawn.mask.min()
        and drawn.mask.max() < len(VOCABULARY) + len(BACKGROUNDS) < 255
    )


@pytest.mark.parametrize("angle", [0.0, 45.0, 90.0, 180.0])
def test_rotation_is_clockwise_about_the_centre(angle):
    """Compare with the upright drawing turned by exact quarter turns, or by its
    box at 45 degrees."""
    one = {"concept": "dog", "center": (32, 32), "side": 40}
    upright = render(hand_made([one]), (64, 64), masks=True)
    turned = render(
        hand_made([{**one, "angle": math.radians(angle)}]), (64, 64), masks=True
    )
    if angle == 45.0:
        assert (upright.mask != turned.mask).any()
        x1, y1, x2, y2 = turned.boxes[0].tolist()
        assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64
    else:
        dog = find("dog").index
        expected = torch.rot90(upright.mask[0] == dog, -int(angle // 90))
        assert ((turned.mask[0] == dog) != expected).sum() <= 4


def test_mirrored_drawing_is_the_mirror_image():
    one = {"concept": "dog", "center": (32, 32), "side": 40}
    dog = find("dog").index
    plain = render(hand_made([one]), (64, 64), masks=True).mask[0] == dog
    mirrored = (
        render(hand_made([{**one, "flipped": True}]), (64, 64), masks=True).mask[0]
        == dog
    )
    assert not torch.equal(plain, plain.flip(1))
    assert (mirrored != plain.flip(1)).sum() <= 2


def test_tint_makes_the_object_of_that_colour_and_keeps_its_outline():
    from minilib.scenes import TINTS

    one = {"concept": "dog", "center": (32, 32), "side": 48}
    solid = render(hand_made([one]), (64, 64), masks=True).mask[0] == find("dog").index
    for number, (name, colour) in enumerate(TINTS.items()):
        drawn = render(hand_made([{**one, "tint": number}]), (64, 64), masks=True)
        assert torch.equal(drawn.mask[0] == find("dog").index, solid)
        mean = drawn.image[0][:, solid].mean(1)
        nearest = min(TINTS, key=lambda other: _angle(mean, torch.tensor(TINTS[other])))
        assert nearest == name, (colour, mean)


def _angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the angle between two colours without their grey: hue counts,
    brightness does not."""
    return -torch.cosine_similarity(a - a.mean(), b - b.mean(), dim=0).item()


# --- Batches, sizes, edges ------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "config",
    [
        SceneConfig(objects=(1, 5)),
        SceneConfig(size=(48, 130), styles=("noto", "twemoji")),
    ],
)
def test_an_image_does_not_depend_on_its_batch(config, device):
    layout = draw(config, n=32)
    whole = render(layout, config.shape, device, masks=True)
    for b in (0, 13, 31):
        rows = {
            k: (None if v is None else v[b : b + 1]) for k, v in vars(layout).items()
        }
        alone = render(Layout(**rows), config.shape, device, masks=True)
        torch.testing.assert_close(
            alone.image[0], whole.image[b], rtol=0, atol=0 if device == "cpu" else 1e-5
        )
        assert torch.equal(alone.mask[0], whole.mask[b])
        assert torch.equal(alone.boxes, whole.boxes[whole.owner == b])


def test_another_process_renders_the_same_bytes():
    code = (
        "import hashlib, numpy as np; from minilib.scenes import *\n"
        "image = EmojiScenes(SceneConfig(objects=(1, 4))).batch('pairs', 8, 'val', 3, "
        "40).image\n"
        "print(hashlib.sha256(image.numpy().tobytes()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] and len(runs[0]) == 65


@pytest.mark.parametrize(
    "size", [16, 32, 33, 64, 100, 384, (32, 256), (256, 32), (17, 90)]
)
def test_sizes(size):
    config = SceneConfig(size=size, objects=(1, 5), rotation=90.0, jitter=1.5)
    drawn = render(draw(config, n=8), config.shape, masks=True)
    height, width = config.shape
    assert drawn.image.shape == (8, 3, height, width) and drawn.mask.shape == (
        8,
        height,
        width,
    )
    x1, y1, x2, y2 = drawn.boxes.unbind(1)
    assert (
        (x1 >= 0).all()
        and (y1 >= 0).all()
        and (x2 <= width).all()
        and (y2 <= height).all()
    )
    assert (x2 > x1).all() and (y2 > y1).all()


def test_objects_too_small_to_be_seen_keep_a_box_around_their_centre():
    config = SceneConfig(size=16, objects=(60, 60))
    layout = draw(config, n=40)
    drawn = render(layout, config.shape)
    side = torch.from_numpy(layout.side[drawn.owner, drawn.slot])
    extent = (drawn.boxes[:, 2:] - drawn.boxes[:, :2]).amax(1)
    assert (extent > 0).all() and (extent <= 1.42 * side + 2).all()


def test_objects_without_boxes_or_masks_unless_asked():
    layout = draw(SceneConfig())
    drawn = render(layout, (64, 64), boxes=False)
    assert drawn.boxes is None and drawn.mask is None
    assert torch.equal(drawn.image, render(layout, (64, 64), masks=True).image)


def test_small_objects_are_not_aliased():
    """A sprite shrunk eight times comes near its area mean; it does not
    pick single pixels."""
    scene = hand_made([{"concept": "dog", "center": (32, 32), "side": 8}])
    image = render(scene, (64, 64)).image[0]
    background = render(replace(scene, concept=np.full((1, 1), -1)), (64, 64)).image[0]
    sprite = sprites(("noto",), "cpu")[0][find("dog").index]  # premultiplied
    mean = torch.nn.functional.avg_pool2d(sprite, 8)
    expected = mean[:3] + (1 - mean[3:]) * background[:, 28:36, 28:36]
    torch.testing.assert_close(image[:, 28:36, 28:36], expected, rtol=0, atol=1e-4)


# --- Backgrounds ----------------------------------------------------------------------


def test_backgrounds_are_textures_of_their_own():
    bank = texture_bank(64, 64)
    assert (
        bank.shape == (len(BACKGROUNDS), VARIANTS, 128, 128, 3)
        and bank.dtype == torch.uint8
    )
    means = bank.float().mean((1, 2, 3))
    distance = torch.cdist(means, means) + 1e9 * torch.eye(len(means))
    assert distance.min() > 5  # of 255
    assert not torch.equal(bank[:, 0], bank[:, 1])
    assert torch.equal(bank, texture_bank.__wrapped__(64, 64))


def test_windows_are_cut_mirrored_and_lit():
    bank, table = texture_bank(20, 30), cutting_table(20, 30)
    grass = list(BACKGROUNDS).index("grass")
    neutral = [0.4, 0.5, 0.2, None, 0.6, 0.0, 0.0, 0.0]  # variant 1, y 10, x 6, light 1
    for mirror in (0.0, 0.5):
        surface = torch.tensor(
            [[mirror if value is None else value for value in neutral]]
        )
        cut = cut_out(table, torch.tensor([grass]), surface)[0].permute(1, 2, 0)
        window = bank[grass, 1, 10:30, 6:36].float() / 255
        torch.testing.assert_close(cut, window.flip(1) if mirror else window)
    dark = cut_out(
        table, torch.tensor([grass]), torch.tensor([[0.4, 0.5, 0.2, 0, 0.0, 0, 0, 0]])
    )
    bright = cut_out(
        table, torch.tensor([grass]), torch.tensor([[0.4, 0.5, 0.2, 0, 0.99, 0, 0, 0]])
    )
    assert bright.mean() > dark.mean() and bright.max() <= 1


def test_numbers_that_round_up_to_one_stay_inside_the_bank():
    """In single precision the largest double below one is one: variant 3 of
    3, a row too many."""
    surface = torch.full((1, 8), 1 - 2**-53, dtype=torch.float64).float()
    assert surface.max() == 1
    for mirror in (0.0, 1.0):
        surface[:, 3] = mirror
        assert cut_out(cutting_table(16, 16), torch.tensor([3]), surface).shape == (
            1,
            3,
            16,
            16,
        )


# --- Density --------------------------------------------------------------------------


def test_density_sums_to_the_number_of_points_also_at_the_border():
    points = [
        torch.tensor([[0.0, 0.0], [63.9, 31.9], [0.0, 16.0]]),
        torch.zeros(0, 2),
        torch.tensor([[20.25, 10.5]]),
    ]
    density = density_map(points, (32, 64), sigma=1.0)
    assert density.shape == (3, 1, 32, 64) and (density >= 0).all()
    torch.testing.assert_close(density.sum((1, 2, 3)), torch.tensor([3.0, 0.0, 1.0]))
    y, x = divmod(int(density[2].argmax()), 64)
    assert (x, y) == (20, 10) or (x, y) == (19, 10) or (x, y) == (20, 9)


def test_density_is_a_gaussian():
    density = density_map([torch.tensor([[16.5, 16.5]])], (33, 33), sigma=2.0)[0, 0]
    expected = math.exp(-0.5 * (3 / 2) ** 2)
    assert (density[16, 19] / density[16, 16]).item() == pytest.approx(
        expected, rel=1e-5
    )
    assert density[16, 16].item() == pytest.approx(1 / (2 * math.pi * 4), rel=0.01)


def test_density_of_nothing():
    assert density_map([torch.zeros(0, 2)] * 2, (8, 9), 1.0).shape == (2, 1, 8, 9)
    assert not density_map([torch.zeros(0, 2)], (8, 9), 1.0).any()
