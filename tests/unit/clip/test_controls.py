"""CLIP's controls: what each of them cannot do."""

from __future__ import annotations

import pytest
import torch

from minilib.models.clip import CLIP, CLIPConfig, TextConfig, ViTConfig
from minilib.models.denseclip import DenseCLIP
from minilib.recipes.clip.controls import BagOfWords, LookupTable
from minilib.recipes.clip.recipe import build
from minilib.tokenizer import Tokenizer, vocabulary_of

TEXTS = [
    "a red dog left of a blue cat",
    "a blue dog left of a red cat",
    "two trees",
    "grass",
]
VOCABULARY = vocabulary_of(TEXTS)
CONFIG = CLIPConfig(
    embed_dim=24,
    image_size=32,
    vision=ViTConfig(patch=8, width=32, layers=2, heads=2),
    text=TextConfig(16, Tokenizer(16, VOCABULARY).vocab_size, 32, 2, 2),
    vocabulary=VOCABULARY,
)


def test_word_order_matters_to_the_transformer_and_not_to_the_bag() -> None:
    ordered, bag = build(CONFIG, 0), build(CONFIG, 0, BagOfWords)
    tokens = ordered.tokenize(TEXTS[:2])  # the same words, two objects swapped
    assert (
        ordered.encode_text(tokens)[0] - ordered.encode_text(tokens)[1]
    ).abs().max() > 1e-3
    features = bag.encode_text(tokens)
    torch.testing.assert_close(features[0], features[1])
    assert not torch.allclose(*bag.encode_text(bag.tokenize(["two trees", "grass"])))


def test_bag_of_words_is_the_mean_of_the_words_alone() -> None:
    bag = build(CONFIG, 0, BagOfWords)
    tokenizer = Tokenizer(16, VOCABULARY)
    mean = bag.token_embedding(torch.tensor(tokenizer.encode("two trees"))).mean(dim=0)
    expected = bag.ln_final(mean) @ bag.text_projection
    torch.testing.assert_close(bag.encode_text(bag.tokenize("two trees"))[0], expected)
    assert torch.isfinite(bag.encode_text(bag.tokenize(""))).all()


def test_lookup_gives_each_caption_its_own_vector() -> None:
    model = build(CONFIG, 0, LookupTable)
    features = model.encode_text(model.tokenize([*TEXTS, TEXTS[0]]))
    # Rows of one product may round apart.
    torch.testing.assert_close(features[0], features[4], rtol=1e-5, atol=1e-6)
    distances = torch.cdist(features[:4], features[:4]) + torch.eye(4)
    assert distances.min() > 1e-2
    alone = model.encode_text(model.tokenize(TEXTS[2]))[0]  # another padding beside it
    torch.testing.assert_close(alone, features[2])


@pytest.mark.parametrize("kind", [BagOfWords, LookupTable])
def test_a_control_is_a_clip_with_nothing_else_in_its_text_tower(
    kind: type[CLIP],
) -> None:
    model = build(CONFIG, 0, kind)
    output = model(torch.rand(4, 3, 32, 32), model.tokenize(TEXTS))
    assert output.text_features.shape == output.image_features.shape == (4, 24)
    names = {
        name for name, _ in model.named_parameters() if not name.startswith("visual.")
    }
    table = "token_embedding" if kind is BagOfWords else "caption_embedding"
    shared = {"ln_final.weight", "ln_final.bias", "text_projection", "logit_scale"}
    assert names == {f"{table}.weight"} | shared


@pytest.mark.parametrize("kind", [BagOfWords, LookupTable])
def test_a_text_tower_without_places_cannot_be_prompted(kind: type[CLIP]) -> None:
    config = CLIPConfig(
        24, 32, ViTConfig(8, 32, 4, 2), CONFIG.text, vocabulary=VOCABULARY
    )
    with pytest.raises(ValueError, match="text tower.*missing.*positional_embedding"):
        DenseCLIP.from_clip(build(config, 0, kind), ["dog", "cat"])
