"""The tokenizer: whole and restricted vocabularies, long and odd texts."""

from __future__ import annotations

import random

import pytest
import torch

from minilib import tokenizer as tokenizer_module
from minilib.tokenizer import (
    BYTE_IDS,
    Tokenizer,
    check_words,
    get_tokenizer,
    vocabulary_of,
)

CAPTIONS = [
    "a red dog left of a blue cat",
    "3 trees on grass, at night!",
    "a computer mouse",
]
VOCABULARY = vocabulary_of(CAPTIONS)


def test_full_vocabulary_is_clips() -> None:
    tokenizer = Tokenizer()
    assert (tokenizer.vocab_size, tokenizer.start, tokenizer.end) == (
        49408,
        49406,
        49407,
    )
    row = tokenizer("a photo of a cat")[0]
    assert row[:7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert row.shape == (77,) and not row[7:].any()


def test_restricted_vocabulary_is_compact_with_start_and_end_highest() -> None:
    tokenizer = Tokenizer(32, VOCABULARY)
    assert tokenizer.vocab_size == len(tokenizer.vocabulary) + 2 < BYTE_IDS + 30
    rows = tokenizer(CAPTIONS)
    assert rows.max() == tokenizer.end == tokenizer.vocab_size - 1
    assert (rows[:, 0] == tokenizer.vocab_size - 2).all()
    assert (
        rows.argmax(dim=1)
        == torch.tensor([len(tokenizer.encode(text)) + 1 for text in CAPTIONS])
    ).all()


def test_kept_words_stay_whole() -> None:
    full, restricted = Tokenizer(), Tokenizer(32, VOCABULARY)
    for caption in CAPTIONS:
        ids = restricted.encode(caption)
        assert [restricted.vocabulary[index] for index in ids] == full.encode(caption)


@pytest.mark.parametrize(
    "text", ["giraffe", "图像 文本", "naïve café 😀", "unbelievably 2020 !!!", "ﬁ ∞"]
)
def test_any_text_survives_a_restricted_vocabulary(text: str) -> None:
    restricted, full = Tokenizer(128, VOCABULARY), Tokenizer(128)
    ids = restricted.encode(text)
    assert max(ids) < restricted.start
    assert restricted.decode(ids) == full.decode(full.encode(text))


def test_words_that_are_not_kept_are_spelt_in_bytes_and_differ() -> None:
    restricted = Tokenizer(32, VOCABULARY)
    assert len(restricted.encode("giraffe")) == len("giraffe")
    assert restricted.encode("giraffe") != restricted.encode("giraffa")
    assert restricted.encode("dog") == [restricted.encode("a dog")[1]]


def test_vocabulary_order_and_repeats_do_not_matter() -> None:
    shuffled = Tokenizer(16, (*VOCABULARY[::-1], VOCABULARY[0]))
    assert shuffled.vocabulary == Tokenizer(16, VOCABULARY).vocabulary
    assert Tokenizer(16, shuffled.vocabulary).vocabulary == shuffled.vocabulary


def test_case_spaces_and_escapes_are_folded() -> None:
    tokenizer = Tokenizer()
    assert tokenizer.encode("  A PHOTO\n of  AT&amp;T ") == tokenizer.encode(
        "a photo of at&t"
    )


def test_special_strings_become_special_ids() -> None:
    tokenizer = Tokenizer(16, VOCABULARY)
    assert tokenizer.encode("<|startoftext|>dog<|endoftext|>")[::2] == [
        tokenizer.start,
        tokenizer.end,
    ]
    assert "<|endoftext|>" in tokenizer.decode([tokenizer.end])


def test_text_that_just_fits_and_one_that_does_not() -> None:
    tokenizer = Tokenizer(8)
    fits = "dog " * 6
    assert tokenizer(fits)[0, -1] == tokenizer.end
    with pytest.raises(
        ValueError, match=r"9 tokens.*context of 8.*'dog dog.*truncate=True"
    ):
        tokenizer(["cat", "dog " * 7])
    assert torch.equal(tokenizer("dog " * 7, truncate=True), tokenizer(fits))


def test_empty_text_is_start_and_end() -> None:
    tokenizer = Tokenizer(4)
    assert tokenizer("")[0].tolist() == [tokenizer.start, tokenizer.end, 0, 0]


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "at least one string"), ([None], "NoneType"), (["a", 3], "int: 3")],
)
def test_bad_texts(texts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer()(texts)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="context 1"):
        Tokenizer(1)
    with pytest.raises(ValueError, match="outside 0..49405"):
        Tokenizer(8, (700, 49407))
    with pytest.raises(ValueError, match="id 99999"):
        Tokenizer().decode([99999])


@pytest.mark.parametrize("seed", range(3))
def test_every_id_is_open_clips(seed: int) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    theirs, ours = SimpleTokenizer(), Tokenizer()
    generator = random.Random(seed)
    alphabet = "abcdefghijklmnopqrstuvwxyzAB '!?.,-&;0189\t\né😀图ßʼñÅﬁ\u200b\x07"
    texts = ["".join(generator.choices(alphabet, k=40)) for _ in range(200)]
    tokens = (theirs.decoder[generator.randrange(49406)] for _ in range(500))
    texts += [token.removesuffix("</w>") for token in tokens]
    texts += [
        "l'été aaaaaaaa AT&amp;amp;T &lt;b&gt; schÃ¶n",
        "",
        "  ",
        "they're I'll 's",
    ]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text), text


def test_missing_vocabulary_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer_module, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install open_clip_torch"):
        tokenizer_module._merges()


@pytest.mark.parametrize(
    "pair",
    [
        ["dog", "Dog"],
        ["dog", "dog "],
        ["dog", "dog\r"],
        ["hot dog", "hot  dog"],
        ["&amp;", "&"],
        ["cafe\u0301", "caf\u00e9"],
    ],
)
def test_two_labels_that_are_one_to_the_text_tower(pair: list[str]) -> None:
    words = ["cat", *pair]
    with pytest.raises(ValueError) as caught:
        check_words(words, get_tokenizer(), "class folder")
    for word in pair:
        assert repr(word) in str(caught.value)
    assert "class folders" in str(caught.value)
    assert check_words(words, get_tokenizer(), allow_duplicates=True) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "list of at least one label"),
        ("dog", "list of at least one label, got 'dog'"),
        ({"dog", "cat"}, "list of at least one label"),
        (None, "list of at least one label, got None"),
        (["dog", " \n"], "label 1 is empty"),
        (["dog", 3], "label 1 is of the type int"),
        (["dog", "dog"], "'dog' is given twice"),
        (["a <|endoftext|>"], "starts or ends a text"),
        (["dog", "very " * 90], "label 1 has 92 tokens, .* reads 77: shorten 'very"),
    ],
)
def test_what_is_not_a_list_of_labels(words: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_words(words, get_tokenizer())


def test_labels_are_compared_as_the_tokenizer_at_hand_spells_them() -> None:
    small = Tokenizer(context=16, vocabulary=())  # bytes alone
    assert check_words(["dog", "dogs", "Hund", "\u72d7"], small)
    with pytest.raises(ValueError, match="same tokens"):
        check_words(["Hund", "hund"], small)
