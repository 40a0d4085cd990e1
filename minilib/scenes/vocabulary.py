"""The 240 object classes of EmojiScenes: their names, their taxonomy, and the
splits of the papers.

The table is ``vocabulary.tsv`` beside this file, fixed data in a fixed order. It is a
selection from Unicode's emoji list with the names edited to what a caption would say,
in lower case, as CLIP's tokenizer reads them. Each class has

* three levels of names: ``name`` ("dog"), ``category`` ("mammal") and
  ``group`` ("animal");
* a ``word`` that it may share with another class: "mouse" for "house mouse" and for
  "computer mouse". This is the polysemy of CLIP's section 3.1.4, where "crane" is a
  bird and a machine;
* a frequency band as in LVIS, and the base / novel split that ViLD makes of it: rare
  classes are novel;
* one of four folds, balanced over category and frequency, as in PASCAL-5i;
* a habitat: the background where it is usually found (a train on a railway).

240 classes and 14 backgrounds leave the label 255 free to mark pixels to ignore.
"""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Concept:
    """One object class."""

    index: int
    """Position in VOCABULARY, 0..239: the label in targets and the cell in
    the sprite sheets."""
    name: str
    """Unique plain English name ("computer mouse")."""
    plural: str
    """Plural of ``name`` ("computer mice"; equal to it for "sheep")."""
    word: str
    """What people often write ("mouse"): equal to ``name`` except for
    polysemous words."""
    category: str
    """Middle level of the taxonomy ("electronics")."""
    group: str
    """Top level of the taxonomy ("object")."""
    codepoint: str
    """The emoji's Unicode codepoint in hexadecimal, without variation
    selector ("1F5B1")."""
    frequency: str
    """One of "frequent", "common" and "rare", the bands of LVIS."""
    base: bool
    """True for base classes, False for novel ones (the rare ones, as in ViLD)."""
    fold: int
    """0..3, the fold that holds the class out (PASCAL-5i)."""
    habitat: str | None
    """Name of the background where it is usually found; None where none is natural."""


def _load() -> tuple[Concept, ...]:
    text = files(__package__).joinpath("vocabulary.tsv").read_text(encoding="utf-8")
    return tuple(
        Concept(
            index=index,
            name=row["name"],
            plural=row["plural"],
            word=row["word"],
            category=row["category"],
            group=row["group"],
            codepoint=row["codepoint"],
            frequency=row["frequency"],
            base=row["split"] == "base",
            fold=int(row["fold"]),
            habitat=None if row["habitat"] == "-" else row["habitat"],
        )
        for index, row in enumerate(csv.DictReader(text.splitlines(), delimiter="\t"))
    )


VOCABULARY: tuple[Concept, ...] = _load()
"""All classes; ``VOCABULARY[i].index == i``."""

_BY_NAME = {concept.name: concept for concept in VOCABULARY}


def names() -> list[str]:
    """Return the 240 class names, in label order."""
    return [concept.name for concept in VOCABULARY]


def polysemous() -> dict[str, tuple[Concept, ...]]:
    """Return the words that name two classes, with those classes: "mouse" ->
    (house mouse, computer mouse)."""
    by_word: dict[str, tuple[Concept, ...]] = {}
    for concept in VOCABULARY:
        by_word[concept.word] = (*by_word.get(concept.word, ()), concept)
    return {word: concepts for word, concepts in by_word.items() if len(concepts) > 1}


def find(name: str) -> Concept:
    """Return the class called ``name``.

    Raises:
        KeyError: there is no such class; the message gives the nearest names.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    senses = polysemous().get(name)
    if senses:
        hint = "the word is ambiguous, say " + " or ".join(
            repr(concept.name) for concept in senses
        )
    else:
        nearest = difflib.get_close_matches(name.lower(), _BY_NAME, n=3, cutoff=0.5)
        hint = (
            "nearest names: " + ", ".join(map(repr, nearest))
            if nearest
            else "see minilib.scenes.names()"
        )
    raise KeyError(f"no class is called {name!r}; {hint}")


_SILENT_H = ("hour", "honest", "honor", "honour", "heir")
_CONSONANT_SOUND = re.compile(
    r"uni(?![dmn])|u[bks][aiu]|use|ut[aeio]|ur[aio]|ufo|eu|ewe|(one|once)$"
)
"""Words that start with a vowel letter but with the sound of "y" or "w"."""
_LETTERS_WITH_VOWEL_SOUND = "aefhilmnorsx"


def article(noun_phrase: str) -> str:
    """Return the indefinite article for the sound a phrase starts with: an hour, a
    unicorn, an x-ray.

    Raises:
        ValueError: the phrase is empty.
    """
    phrase = noun_phrase.strip().lower()
    if not phrase:
        raise ValueError(
            "article() needs a noun phrase such as 'unicorn'; got an empty string"
        )
    first = phrase.replace("-", " ").split()[0]
    if len(first) == 1:  # a letter said by its name: x-ray, t-shirt
        return "an" if first in _LETTERS_WITH_VOWEL_SOUND else "a"
    if first.startswith(_SILENT_H):
        return "an"
    return "an" if first[0] in "aeiou" and not _CONSONANT_SOUND.match(first) else "a"
