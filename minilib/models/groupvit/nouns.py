"""The nouns of captions, from which the multi-label loss makes prompts.

Either the spans of a caption's phrases are known, as of EmojiScenes, or a tagger finds
them. The authors' tagger, NLTK's, downloads its model at run time. TextBlob carries one
in its package (``pip install textblob``; it is not among minilib's requirements).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol

from minilib.batch import Phrase

NOUNS = ("NN", "NNS", "NNP")
"""Penn Treebank tags of nouns that the authors keep; NNPS is not among them."""
VERBS = ("VB", "VBD", "VBG", "VBN", "VBP", "VBZ")
"""Tags of verbs, which their code keeps too; the paper speaks of nouns."""

_DETERMINERS = (
    "a an the some no any this that these those its his her their my your our one two "
    "three four five six seven eight nine ten eleven twelve several many few"
).split()


def of_phrases(
    captions: Sequence[str], phrases: Sequence[Sequence[Phrase]]
) -> list[list[str]]:
    """Return for each caption the phrases that are known to be in it, without articles
    and numbers in front: "three red dogs" is "red dogs".

    A phrase that comes twice in a caption is listed once.

    Args:
        captions: B texts.
        phrases: for each caption its phrases, such as ``batch.phrases``.

    Raises:
        ValueError: another number of lists than of captions, or a span outside its
            caption.
    """
    if len(captions) != len(phrases):
        raise ValueError(
            f"{len(captions)} captions with {len(phrases)} lists of phrases: expected "
            "one each"
        )
    return [
        _unique(_bare(_span(caption, phrase)) for phrase in found)
        for caption, found in zip(captions, phrases, strict=True)
    ]


def tagged(captions: Sequence[str], verbs: bool = False) -> list[list[str]]:
    """Return the nouns that a tagger finds in each caption, in lower case, each once.

    A caption may have none ("so beautiful!").

    Args:
        captions: B texts.
        verbs: keep verbs too, as the authors' code does.

    Raises:
        ImportError: TextBlob is not installed.
    """
    tags, tagger = NOUNS + (VERBS if verbs else ()), _tagger()
    return [
        _unique(word.lower() for word, tag in tagger.tag(caption) if tag in tags)
        for caption in captions
    ]


class _Tagger(Protocol):
    def tag(self, text: str) -> list[tuple[str, str]]: ...


@lru_cache(maxsize=1)
def _tagger() -> _Tagger:
    try:
        from textblob.en.taggers import PatternTagger
    except ImportError as error:
        raise ImportError(
            "finding the nouns of captions needs TextBlob, whose package has a tagger "
            "in it: pip install textblob; where the captions' phrases are known, use "
            "nouns.of_phrases"
        ) from error
    return PatternTagger()


def _span(caption: str, phrase: Phrase) -> str:
    if not 0 <= phrase.start < phrase.end <= len(caption):
        raise ValueError(
            f"a phrase from {phrase.start} to {phrase.end} is not in the caption of "
            f"{len(caption)} characters: {caption!r:.80}"
        )
    return caption[phrase.start : phrase.end]


def _bare(phrase: str) -> str:
    words = phrase.split()
    while len(words) > 1 and (
        words[0].lower() in _DETERMINERS or re.fullmatch(r"\d+", words[0])
    ):
        words = words[1:]
    return " ".join(words)


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(word for word in words if word.strip()))
