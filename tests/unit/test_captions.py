"""Captions: spans, words and noise are true to the layout."""

from __future__ import annotations

import re

import numpy as np
import pytest

from minilib.scenes import (
    BACKGROUNDS,
    TINTS,
    VOCABULARY,
    CaptionConfig,
    SceneConfig,
    find,
    noun_phrase,
    polysemous,
)
from minilib.scenes.captions import (
    IRRELEVANT,
    NUMBERS,
    OPENINGS,
    number_word,
    pluralise,
    relation,
    write_captions,
)
from minilib.scenes.sampler import Stream, sample_layout

BARE = dict(
    opening=0,
    background=0,
    tint=1,
    count=1,
    relation=0,
    disambiguate=1,
    kind=0,
    full_stop=0,
)


def write(
    scenes: SceneConfig | None = None,
    task: str = "pairs",
    n: int = 600,
    seed: int = 0,
    **how,
):
    stream = Stream(seed, "train", np.arange(n))
    layout = sample_layout(scenes or SceneConfig(), task, stream)
    return layout, write_captions(layout, CaptionConfig(**how), stream)


def forms(concept: int) -> set[str]:
    """Return every singular and plural by which a class may be called."""
    entry = VOCABULARY[concept]
    return {entry.name, entry.plural, entry.word, pluralise(entry.word)}


# --- Words ----------------------------------------------------------------------------


def test_noun_phrases():
    dog, mouse = find("dog").index, find("computer mouse").index
    red = list(TINTS).index("red")
    assert noun_phrase(dog) == "a dog"
    assert noun_phrase(dog, red) == "a red dog"
    assert noun_phrase(dog, red, 3) == "three red dogs"
    assert noun_phrase(dog, n=3, exact=False) == "some dogs"
    assert noun_phrase(dog, n=60) == "60 dogs"
    assert (
        noun_phrase(dog, n=0) == "zero dogs"
        and noun_phrase(dog, n=0, exact=False) == "no dogs"
    )
    assert (
        noun_phrase(mouse) == "a computer mouse"
        and noun_phrase(mouse, word=True) == "a mouse"
    )
    assert noun_phrase(mouse, n=2, word=True) == "two mice"
    assert noun_phrase(find("elephant").index) == "an elephant"
    # the article follows the word after it
    assert noun_phrase(find("elephant").index, red) == "a red elephant"


def test_number_words():
    assert [number_word(n) for n in (0, 1, 12, 13, 60)] == [
        "zero",
        "one",
        "twelve",
        "13",
        "60",
    ]


def test_plurals_of_shared_words():
    for word, concepts in polysemous().items():
        plural = pluralise(word)
        assert plural and (
            plural != word or any(c.plural == c.name for c in concepts)
        ), word
    assert (
        pluralise("mouse") == "mice"
        and pluralise("watch") == "watches"
        and pluralise("zorp") == "zorps"
    )


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((9, 5), "to the left of"),
        ((1, 5), "to the right of"),
        ((5, 9), "above"),
        ((5, 1), "below"),
    ],
)
def test_relation_of_two_points(second, expected):
    assert relation(np.array([5, 5]), np.array(second)) == expected


# --- Captions against layouts ---------------------------------------------------------


def test_spans_name_their_concept_and_hold_all_objects():
    layout, captions = write(n=1500)
    several = 0
    for b, caption in enumerate(captions):
        told = sorted(slot for phrase in caption.phrases for slot in phrase.objects)
        assert told == np.flatnonzero(layout.concept[b] >= 0).tolist()
        for phrase in caption.phrases:
            said = caption.text[phrase.start : phrase.end]
            assert any(
                re.search(rf"\b{re.escape(form)}$", said)
                for form in forms(phrase.concept)
            ), said
            assert (layout.concept[b, list(phrase.objects)] == phrase.concept).all()
            assert len(set(layout.tint[b, list(phrase.objects)].tolist())) == 1
            colours = [
                c for i, c in enumerate(TINTS) if i == layout.tint[b, phrase.objects[0]]
            ]
            spoken = [word for word in TINTS if said.split()[1] == word]
            assert not spoken or spoken == colours
            first = said.split()[0]
            if len(phrase.objects) == 1:
                assert first in ("a", "an")
            else:
                several += 1
                assert first in ("some", number_word(len(phrase.objects)))
    assert several > 100


def test_spans_do_not_overlap_and_rise():
    _, captions = write()
    for caption in captions:
        edges = [
            edge for phrase in caption.phrases for edge in (phrase.start, phrase.end)
        ]
        assert edges == sorted(edges) and edges[-1] <= len(caption.text)


def test_relation_words_are_true_to_the_centres():
    scenes = SceneConfig(objects=(2, 2), repeat=0.0)
    layout, captions = write(scenes, n=800, **BARE | {"relation": 1})
    seen = set()
    for b, caption in enumerate(captions):
        if len(caption.phrases) < 2:
            continue
        one, two = caption.phrases
        word = caption.text[one.end : two.start].strip()
        seen.add(word)
        (x1, y1), (x2, y2) = (
            layout.center[b, one.objects[0]],
            layout.center[b, two.objects[0]],
        )
        true = {
            "to the left of": x1 < x2,
            "to the right of": x1 > x2,
            "above": y1 < y2,
            "below": y1 > y2,
        }
        assert true[word], caption.text
    assert seen == {"to the left of", "to the right of", "above", "below"}


def test_objects_are_joined_by_commas_and_and():
    _, captions = write(
        SceneConfig(objects=(3, 3), repeat=0, tint=0, classes=("dog", "cat", "cow")),
        **BARE,
    )
    joints = {
        re.sub(r"\b(an?|two|three|dogs?|cats?|cows?)\b", "X", caption.text)
        for caption in captions
    }
    assert joints == {"X X", "X X and X X", "X X, X X and X X"}


def test_counted_objects_are_said_together_and_distractors_not_at_all():
    layout, captions = write(SceneConfig(count=(1, 20), tint=0.5), "count", **BARE)
    for b, caption in enumerate(captions):
        (phrase,) = caption.phrases
        n = int((layout.concept[b] == layout.target[b]).sum())
        assert phrase.concept == layout.target[b] and len(phrase.objects) == n
        assert caption.text == noun_phrase(phrase.concept, n=n)


def test_nothing_to_count_is_said_too():
    layout, captions = write(SceneConfig(count=(0, 0)), "count", **BARE | {"count": 0})
    for b, caption in enumerate(captions):
        assert caption.text == f"no {VOCABULARY[layout.target[b]].plural}"
        assert caption.phrases[0].objects == ()


# --- Every probability does what it says ----------------------------------------------


def share(captions, test) -> float:
    return float(np.mean([bool(test(caption)) for caption in captions]))


def starts_with_opening(caption) -> bool:
    return any(opening and caption.text.startswith(opening) for opening in OPENINGS)


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    ("knob", "test", "most"),
    [
        ("opening", starts_with_opening, sum(map(bool, OPENINGS)) / len(OPENINGS)),
        (
            "background",
            lambda c: any(c.text.endswith(where) for where in BACKGROUNDS.values()),
            1,
        ),
        ("kind", lambda c: ", a type of " in c.text, 1),
        (
            "irrelevant",
            lambda c: any(c.text.endswith(", " + words) for words in IRRELEVANT),
            1,
        ),
        ("full_stop", lambda c: c.text.endswith("."), 1),
        ("tint", lambda c: any(f" {colour} " in c.text for colour in TINTS), 1),
    ],
)
def test_share_of_captions(knob, test, most, p):
    scenes = SceneConfig(objects=(1, 1), tint=1.0)
    _, captions = write(scenes, n=1500, **BARE | {"tint": 0.0} | {knob: p})
    assert share(captions, test) == pytest.approx(p * most, abs=0.04)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_share_of_exact_numbers(p):
    scenes = SceneConfig(objects=(3, 3), repeat=1.0, tint=0)
    _, captions = write(scenes, n=1500, **BARE | {"count": p})
    assert share(captions, lambda c: c.text.startswith("three ")) == pytest.approx(
        p, abs=0.04
    )
    assert share(captions, lambda c: c.text.startswith("some ")) == pytest.approx(
        1 - p, abs=0.04
    )


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_share_of_unambiguous_names(p):
    scenes = SceneConfig(objects=(1, 1), tint=0, classes=("computer mouse",))
    _, captions = write(scenes, n=1500, **BARE | {"disambiguate": p})
    assert share(captions, lambda c: c.text == "a computer mouse") == pytest.approx(
        p, abs=0.04
    )
    assert share(captions, lambda c: c.text == "a mouse") == pytest.approx(
        1 - p, abs=0.04
    )


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_share_of_related_pairs(p):
    scenes = SceneConfig(objects=(2, 2), repeat=0, tint=0)
    _, captions = write(scenes, n=1500, **BARE | {"relation": p})
    assert share(
        captions, lambda c: " and " not in c.text and len(c.phrases) == 2
    ) == pytest.approx(p, abs=0.04)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_missing_phrases(p):
    scenes = SceneConfig(objects=(4, 4), repeat=0, tint=0)
    layout, captions = write(scenes, n=1500, **BARE | {"missing": p})
    said = np.array(
        [sum(len(phrase.objects) for phrase in c.phrases) for c in captions]
    )
    assert said.min() >= 1  # a caption always says something
    expected = 4 * (1 - p) + p**4
    assert said.mean() == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_wrong_names(p):
    scenes = SceneConfig(objects=(1, 1), tint=0)
    layout, captions = write(scenes, n=2000, **BARE | {"wrong": p})
    right = np.array([c.phrases[0].concept for c in captions]) == layout.concept[:, 0]
    assert right.mean() == pytest.approx(1 - p, abs=0.03) and (p < 1 or not right.any())
    for caption in captions:  # the span tells what the words say, right or wrong
        assert caption.text == noun_phrase(caption.phrases[0].concept)


def test_kind_is_true():
    layout, captions = write(SceneConfig(objects=(1, 1), tint=0), **BARE | {"kind": 1})
    kinds = {"category": 0, "group": 0}
    for concept, caption in zip(layout.concept[:, 0], captions, strict=True):
        entry = VOCABULARY[concept]
        said = caption.text.partition(", a type of ")[2]
        assert said in (entry.category, entry.group)
        kinds["category" if said == entry.category else "group"] += 1
    assert min(kinds.values()) > 100


def test_background_is_true():
    layout, captions = write(**BARE | {"background": 1})
    for background, caption in zip(layout.background, captions, strict=True):
        assert caption.text.endswith(" " + list(BACKGROUNDS.values())[background])


def test_a_caption_does_not_depend_on_its_batch():
    _, many = write(n=40)
    stream = Stream(0, "train", np.arange(17, 18))
    (alone,) = write_captions(
        sample_layout(SceneConfig(), "pairs", stream), CaptionConfig(), stream
    )
    assert alone == many[17]


def test_numbers_cover_the_small_counts():
    assert NUMBERS[:4] == ["zero", "one", "two", "three"] and len(NUMBERS) == 13


def test_general_words_stand_for_names():
    layout, captions = write(general=1.0, **BARE)
    for caption in captions:
        for phrase in caption.phrases:
            entry = VOCABULARY[phrase.concept]
            said = caption.text[phrase.start : phrase.end]
            words = [word.removesuffix("y") for word in (entry.category, entry.group)]
            assert any(word in said for word in words), said
    whole = " ".join(caption.text for caption in captions)
    assert " animal" in whole and " mammal" in whole and "piece of furniture" in whole
    assert "bodys" not in whole and "a furniture" not in whole


def test_general_words_change_nothing_else():
    _, names = write()
    _, some = write(general=0.3)
    assert [c.text for c in write(general=0.0)[1]] == [c.text for c in names]
    same = sum(a.text == b.text for a, b in zip(names, some, strict=True))
    assert 0.2 * len(names) < same < 0.8 * len(names)
    for one, other in zip(names, some, strict=True):
        assert [p.concept for p in one.phrases] == [p.concept for p in other.phrases]
