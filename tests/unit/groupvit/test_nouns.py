"""Nouns of captions, and the prompts that are made of them."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch

from minilib.batch import Phrase
from minilib.models.groupvit import noun_prompts, nouns, prompts
from minilib.scenes import CaptionConfig, EmojiScenes, SceneConfig
from minilib.scenes.vocabulary import VOCABULARY

TEMPLATES = ("a photo of a {}.", "art of the {}.")


def phrase(caption: str, words: str) -> Phrase:
    start = caption.index(words)
    return Phrase(start, start + len(words), 0, (0,))


# --- spans ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "noun"),
    [
        ("a red dog", "red dog"),
        ("an apple", "apple"),
        ("three red dogs", "red dogs"),
        ("some people", "people"),
        ("15 hot dogs", "hot dogs"),
        ("the", "the"),
        ("A Tree", "Tree"),
    ],
)
def test_articles_and_numbers_are_left_out(said: str, noun: str) -> None:
    caption = f"look at {said} there"
    assert nouns.of_phrases([caption], [[phrase(caption, said)]]) == [[noun]]


def test_a_noun_that_comes_twice_counts_once() -> None:
    caption = "a dog, two cats and a dog"
    found = [
        phrase(caption, "a dog"),
        phrase(caption, "two cats"),
        Phrase(20, 25, 0, (1,)),
    ]
    assert nouns.of_phrases([caption], [found]) == [["dog", "cats"]]


def test_a_caption_may_have_none() -> None:
    assert nouns.of_phrases(["what a day"], [[]]) == [[]]


@pytest.mark.parametrize("span", [(-1, 3), (3, 3), (0, 99), (5, 2)])
def test_spans_lie_in_the_caption(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is not in the caption of 5 characters"):
        nouns.of_phrases(["a dog"], [[Phrase(*span, 0, ())]])


def test_every_caption_needs_its_list() -> None:
    with pytest.raises(ValueError, match="2 captions with 1 lists of phrases"):
        nouns.of_phrases(["a dog", "a cat"], [[]])


def test_spans_of_scenes_are_names_of_what_is_there() -> None:
    scenes = EmojiScenes(SceneConfig(size=32), CaptionConfig(tint=0.0))
    batch = scenes.batch("pairs", 20)
    found = nouns.of_phrases(batch.caption, batch.phrases)
    known = {name for c in VOCABULARY for name in (c.name, c.plural, c.word)}
    assert all(found)
    share = sum(noun in known for row in found for noun in row)
    assert share > 0.8 * sum(map(len, found))


# --- the tagger -----------------------------------------------------------------------


def test_a_tagger_finds_nouns() -> None:
    pytest.importorskip("textblob")
    captions = ["A man riding a wave on a surfboard.", "So beautiful!", "dog " * 100]
    assert nouns.tagged(captions) == [["man", "wave", "surfboard"], [], ["dog"]]
    assert "riding" in nouns.tagged(captions, verbs=True)[0]


def test_which_tags_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tagger:
        def tag(self, text: str) -> list[tuple[str, str]]:
            tags = {"Dogs": "NNS", "run": "VBP", "fast": "RB", "London": "NNP"}
            return [(word, tags.get(word, "IN")) for word in text.split()]

    monkeypatch.setattr(nouns, "_tagger", Tagger)
    caption = ["Dogs run fast in London Dogs"]
    assert nouns.tagged(caption) == [["dogs", "london"]]
    assert nouns.tagged(caption, verbs=True) == [["dogs", "run", "london"]]


def test_without_the_library_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "textblob", None)
    monkeypatch.setitem(sys.modules, "textblob.en.taggers", None)
    nouns._tagger.cache_clear()
    with pytest.raises(ImportError, match="pip install textblob.*nouns.of_phrases"):
        nouns.tagged(["a dog"])
    nouns._tagger.cache_clear()


# --- prompts --------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_caption_comes_with_its_prompts() -> None:
    captions = ["a dog and a cat", "a tree", "so beautiful!"]
    rows = noun_prompts(captions, [["dog", "cat"], ["tree"], []], TEMPLATES, 2)
    assert [row[0] for row in rows] == captions
    assert {text.split()[-1] for text in rows[0][1:]} == {"dog.", "cat."}
    assert rows[1][1].endswith("tree.") and rows[1][2] == "a tree"
    assert rows[2] == ["so beautiful!"] * 3


def test_prompts_are_fixed_by_the_generator() -> None:
    words = [[f"thing{i}" for i in range(100)]]

    def rows(seed: int) -> list[list[str]]:
        return noun_prompts(["things"], words, TEMPLATES, 3, generator(seed))

    assert rows(0) == rows(0) != rows(1)


def test_nouns_and_templates_are_drawn_evenly() -> None:
    words, draw = [["dog", "cat", "tree"]], generator()
    drawn = [noun_prompts(["x"], words, TEMPLATES, 2, draw)[0][1:] for _ in range(600)]
    assert all(len({text.split()[-1] for text in row}) == 2 for row in drawn)
    counts = Counter(text for row in drawn for text in row)
    assert len(counts) == 6 and min(counts.values()) > 0.75 * max(counts.values())


def test_templates_may_be_functions() -> None:
    (row,) = noun_prompts(["a dog"], [["dog"]], [lambda noun: f"two {noun}s"], 1)
    assert row == ["a dog", "two dogs"]


def test_the_authors_templates() -> None:
    templates = prompts.training_templates()
    assert len(templates) == 80
    assert templates[0]("dog") == "a bad photo of a dog."
    assert len(prompts.CLASSIFICATION_TEMPLATES) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], TEMPLATES), "0 captions with 0 lists"),
        ((["a dog"], [], TEMPLATES), "1 captions with 0 lists of nouns"),
        (("a dog", [["dog"]] * 5, TEMPLATES), "5 captions with 5 lists"),
        (([" "], [[]], TEMPLATES), "caption 0 is empty"),
        ((["a dog"], [["dog", " "]], TEMPLATES), "the nouns of caption 0"),
        ((["a dog"], ["dog"], TEMPLATES), "the nouns of caption 0"),
        ((["a dog"], [["dog"]], []), "at least one template"),
        ((["a dog"], [["dog"]], ["a photo"]), "no place for the name"),
        ((["a dog"], [["dog"]], TEMPLATES, 0), "count=0: expected 1 or more"),
    ],
)
def test_bad_input(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noun_prompts(*arguments)
