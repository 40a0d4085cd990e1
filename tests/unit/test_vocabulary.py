"""The vocabulary of EmojiScenes: names, taxonomy, splits, polysemy."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from minilib.scenes.vocabulary import VOCABULARY, article, find, names, polysemous

BACKGROUNDS = {
    "plain", "sky", "night sky", "grass", "flower field", "water", "sand", "snow",
    "road", "railway", "wood floor", "brick wall", "stone floor", "forest",
}  # fmt: skip
UNCOUNTED_PLURAL = {"sheep", "fish", "jellyfish", "pufferfish"}


def test_240_unique_names_in_label_order():
    assert len(VOCABULARY) == 240
    assert [concept.index for concept in VOCABULARY] == list(range(240))
    assert len(set(names())) == 240
    assert names() == [concept.name for concept in VOCABULARY]


def test_objects_and_backgrounds_stay_below_the_ignore_index():
    assert len(VOCABULARY) + len(BACKGROUNDS) < 255


def test_names_are_plain_lower_case_words():
    for concept in VOCABULARY:
        for text in (
            concept.name,
            concept.plural,
            concept.word,
            concept.category,
            concept.group,
        ):
            assert text == text.strip().lower() and text
            assert all(c.isalpha() or c in " -" for c in text), text


def test_no_name_is_the_plural_of_another():
    plurals = {concept.plural: concept.name for concept in VOCABULARY}
    assert len(plurals) == 240
    for name in names():
        assert plurals.get(name, name) == name


def test_plurals():
    for concept in VOCABULARY:
        assert (concept.plural == concept.name) == (concept.name in UNCOUNTED_PLURAL)
    irregular = {
        "computer mouse": "computer mice",
        "kitchen knife": "kitchen knives",
        "loaf of bread": "loaves of bread",
        "pair of scissors": "pairs of scissors",
        "die": "dice",
        "snowman": "snowmen",
        "strawberry": "strawberries",
        "bus": "buses",
    }
    assert {name: find(name).plural for name in irregular} == irregular


def test_regular_plurals_obey_english_spelling():
    for concept in VOCABULARY:
        if concept.plural == concept.name + "s":
            assert not concept.name.endswith(("s", "x", "ch", "sh")), concept.name
            assert not (
                concept.name.endswith("y") and concept.name[-2] not in "aeiou"
            ), concept.name


def test_codepoints_are_unique_single_characters():
    points = [concept.codepoint for concept in VOCABULARY]
    assert len(set(points)) == 240
    assert all(f"{ord(chr(int(point, 16))):X}" == point for point in points)


def test_three_level_taxonomy_is_a_tree():
    groups = defaultdict(set)
    for concept in VOCABULARY:
        groups[concept.category].add(concept.group)
    assert all(len(parents) == 1 for parents in groups.values())
    assert len(groups) >= 30 and len({concept.group for concept in VOCABULARY}) >= 8


def test_frequency_bands_and_the_base_novel_split():
    bands = Counter(concept.frequency for concept in VOCABULARY)
    assert bands == {"frequent": 84, "common": 96, "rare": 60}
    assert all(concept.base == (concept.frequency != "rare") for concept in VOCABULARY)


def test_novel_classes_are_spread_over_the_taxonomy():
    novel = Counter(concept.group for concept in VOCABULARY if not concept.base)
    assert len(novel) >= 10
    assert max(novel.values()) < 60 / 2


def test_folds_are_balanced_over_classes_groups_and_bands():
    assert Counter(concept.fold for concept in VOCABULARY) == {
        0: 60,
        1: 60,
        2: 60,
        3: 60,
    }
    for attribute in ("category", "group"):
        per_key: dict[str, Counter[int]] = defaultdict(Counter)
        for concept in VOCABULARY:
            per_key[getattr(concept, attribute)][concept.fold] += 1
        for key, counts in per_key.items():
            spread = [counts[fold] for fold in range(4)]
            assert max(spread) - min(spread) <= 1, (key, spread)
    novel = Counter(concept.fold for concept in VOCABULARY if not concept.base)
    assert min(novel.values()) >= 10


def test_habitats_are_backgrounds_and_seldom_missing():
    assert {concept.habitat for concept in VOCABULARY} - {None} <= BACKGROUNDS
    assert sum(concept.habitat is None for concept in VOCABULARY) <= 8
    expected = {
        "train": "railway",
        "sailboat": "water",
        "car": "road",
        "dog": "grass",
        "airplane": "sky",
    }
    assert {name: find(name).habitat for name in expected} == expected


def test_polysemous_words_have_two_senses_that_differ_in_category():
    senses = polysemous()
    assert len(senses) >= 10
    for word, concepts in senses.items():
        assert len(concepts) == 2
        assert all(
            concept.word == word and concept.name != word for concept in concepts
        )
        assert concepts[0].category != concepts[1].category or word == "football"
    assert {c.name for c in senses["mouse"]} == {"house mouse", "computer mouse"}
    assert {"mouse", "bow", "nut", "bat"} <= set(senses)


def test_all_other_words_are_the_names():
    ambiguous = polysemous()
    assert all(
        concept.word == concept.name
        for concept in VOCABULARY
        if concept.word not in ambiguous
    )
    assert not set(ambiguous) & set(names())


def test_find():
    assert find("dog") is VOCABULARY[find("dog").index]
    with pytest.raises(KeyError, match="'elefant'.*'elephant'"):
        find("elefant")
    with pytest.raises(KeyError, match="ambiguous.*'house mouse' or 'computer mouse'"):
        find("mouse")
    with pytest.raises(KeyError, match="names()"):
        find("qqqqqq")


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("dog", "a"),
        ("elephant", "an"),
        ("hour", "an"),
        ("honest dog", "an"),
        ("house", "a"),
        ("unicorn", "a"),
        ("uniform", "a"),
        ("unidentified object", "an"),
        ("umbrella", "an"),
        ("used car", "a"),
        ("usher", "an"),
        ("utensil", "a"),
        ("utter mess", "an"),
        ("euro", "a"),
        ("one-piece suit", "a"),
        ("onion", "an"),
        ("x-ray", "an"),
        ("t-shirt", "a"),
        ("u-turn", "a"),
        ("yo-yo", "a"),
        ("ear of corn", "an"),
        ("Orange car", "an"),
    ],
)
def test_article(phrase: str, expected: str):
    assert article(phrase) == expected


def test_article_of_every_class_name():
    with_an = {name for name in names() if article(name) == "an"}
    assert with_an == {name for name in names() if name[0] in "aeiou"} - {"unicorn"}


def test_article_refuses_an_empty_phrase():
    with pytest.raises(ValueError, match="empty"):
        article("  ")
