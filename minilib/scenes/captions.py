"""What a person might write under a scene, with the character span of
every noun phrase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minilib.batch import Phrase
from minilib.scenes.backgrounds import BACKGROUNDS
from minilib.scenes.sampler import TINTS, Layout, Stream
from minilib.scenes.vocabulary import VOCABULARY, article

OPENINGS = (
    "",
    "",
    "a photo of ",
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "an icon of ",
    "a scene with ",
    "there is ",
    "here we see ",
    "look at ",
    "a close-up of ",
)
"""How a caption may begin; the empty one is listed twice, since much alt text is just
the thing's name."""
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
IRRELEVANT = (
    "what a day",
    "best holiday ever",
    "click to enlarge",
    "untitled",
    "for sale",
    "my favourite",
    "file number seven",
    "do not copy",
)

_GENERAL = {
    "accessory": ("accessory", "accessories"),
    "aircraft": ("aircraft", "aircraft"),
    "body": ("part of the body", "parts of the body"),
    "celestial body": ("celestial body", "celestial bodies"),
    "clothing": ("piece of clothing", "pieces of clothing"),
    "electronics": ("piece of electronics", "pieces of electronics"),
    "food": ("piece of food", "pieces of food"),
    "fruit": ("piece of fruit", "pieces of fruit"),
    "furniture": ("piece of furniture", "pieces of furniture"),
    "kitchenware": ("piece of kitchenware", "pieces of kitchenware"),
    "leisure": ("thing for leisure", "things for leisure"),
    "nature": ("thing in nature", "things in nature"),
    "prepared food": ("piece of prepared food", "pieces of prepared food"),
    "sports equipment": ("piece of sports equipment", "pieces of sports equipment"),
    "stationery": ("piece of stationery", "pieces of stationery"),
    "weather": ("kind of weather", "kinds of weather"),
}
"""Categories and groups that are not counted by adding an s."""


@dataclass(frozen=True)
class CaptionConfig:
    """How people write: probabilities in [0, 1]."""

    opening: float = 0.8
    """Begin with one of OPENINGS rather than with the first noun."""
    background: float = 0.4
    """Say where the objects are."""
    tint: float = 0.8
    """Say the colour of a tinted object."""
    count: float = 0.5
    """Say the exact number of several objects of one class; otherwise "some"."""
    relation: float = 0.3
    """Say how two single objects are placed; otherwise join them with "and"."""
    disambiguate: float = 0.5
    """Use the unambiguous name of a polysemous concept, "computer mouse"; otherwise
    the word, "mouse"."""
    kind: float = 0.15
    """Add what kind of thing the first object is: "a dog, a kind of mammal"."""
    general: float = 0.0
    """Call an object by its category or its group instead of its name: "a mammal", "two
    animals". What no caption ever says, a text tower does not know."""
    full_stop: float = 0.25
    """End with a full stop. What captions never contain, prompts must not contain
    either: see chapter 1."""
    missing: float = 0.0
    """Leave an object's phrase out."""
    wrong: float = 0.0
    """Call an object by a random wrong name."""
    irrelevant: float = 0.0
    """Add words that have nothing to do with the picture."""


@dataclass(frozen=True)
class Caption:
    """One caption and its noun phrases."""

    text: str
    phrases: list[Phrase]


def number_word(n: int) -> str:
    """Return "three" for 3, and digits from thirteen on."""
    return NUMBERS[n] if n < len(NUMBERS) else str(n)


def noun_phrase(
    concept: int,
    tint: int = -1,
    n: int = 1,
    exact: bool = True,
    word: bool = False,
    general: str = "",
) -> str:
    """Return the phrase for ``n`` objects of a class: "a red dog", "three red
    dogs", "some dogs".

    Args:
        concept: vocabulary index.
        tint: index into TINTS, -1 = no colour.
        n: how many.
        exact: say the number rather than "some".
        word: use the shared word of a polysemous concept instead of its
            unambiguous name.
        general: a more general word to use instead of either, "mammal".
    """
    entry = VOCABULARY[concept]
    if general:
        singular, plural = _GENERAL.get(general, (general, general + "s"))
    elif word and entry.word != entry.name:
        singular, plural = entry.word, pluralise(entry.word)
    else:
        singular, plural = entry.name, entry.plural
    colour = f"{list(TINTS)[tint]} " if tint >= 0 else ""
    if n == 1:
        return f"{article(colour + singular)} {colour}{singular}"
    number = number_word(n) if exact else "some" if n else "no"
    return f"{number} {colour}{plural}"


def pluralise(word: str) -> str:
    """Return the plural of a shared word, taken from the vocabulary
    where it is listed."""
    for entry in VOCABULARY:
        if (
            entry.word == word
            and entry.name.endswith(word)
            and entry.plural != entry.name
        ):
            return entry.plural[len(entry.name) - len(word) :]
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def relation(first: np.ndarray, second: np.ndarray) -> str:
    """Return where the object at ``first`` (x, y) is relative to the
    one at ``second``."""
    dx, dy = second - first
    if abs(dx) >= abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    return "above" if dy > 0 else "below"


def write_captions(
    layout: Layout, config: CaptionConfig, stream: Stream
) -> list[Caption]:
    """Write one caption per scene; a pure function of the layout and the stream."""
    slots = layout.concept.shape[1]
    dice = {
        name: stream.uniform(f"caption {name}", slots)
        for name in ("count", "tint", "disambiguate", "missing", "wrong", "wrong name")
        + ("general", "how general")
    }
    decisions = ["opening", "which opening", "background", "relation", "kind", "level"]
    decisions += ["irrelevant", "which words", "full stop"]
    once = {name: stream.uniform(f"caption {name}") for name in decisions}
    return [
        _write(
            layout,
            config,
            b,
            {k: v[b] for k, v in dice.items()},
            {k: v[b] for k, v in once.items()},
        )
        for b in range(len(layout.concept))
    ]


def _first(members: list[int]) -> int:
    """Return the slot whose random numbers decide how a group of objects is named."""
    return members[0] if members else 0


def _write(
    layout: Layout, config: CaptionConfig, b: int, dice: dict, once: dict
) -> Caption:
    """Write the caption of scene ``b`` from its own random numbers."""
    target = None if layout.target is None else int(layout.target[b])
    # objects of one class and colour are one phrase
    groups: dict[tuple[int, int], list[int]] = {}
    for slot, concept in enumerate(layout.concept[b]):
        if concept >= 0 and (target is None or concept == target):
            # Objects are counted together whatever their colour.
            tint = int(layout.tint[b, slot]) if target is None else -1
            groups.setdefault((int(concept), tint), []).append(slot)
    if target is not None and not groups:
        groups[target, -1] = []  # "no dogs"
    every = list(groups.items())
    said = [
        group for group in every if dice["missing"][_first(group[1])] >= config.missing
    ] or every[:1]

    text = ""
    if once["opening"] < config.opening:
        text = OPENINGS[int(once["which opening"] * len(OPENINGS))]
    phrases: list[Phrase] = []
    related = (
        len(said) == 2
        and all(len(g[1]) == 1 for g in said)
        and once["relation"] < config.relation
    )
    for i, ((concept, tint), members) in enumerate(said):
        slot = _first(members)
        if i:
            other = _first(said[0][1])
            where = (
                relation(layout.center[b, other], layout.center[b, slot])
                if related
                else "and"
            )
            text += f" {where} " if related or i == len(said) - 1 else ", "
        if dice["wrong"][slot] < config.wrong:
            # never back to the right name
            step = 1 + int(dice["wrong name"][slot] * (len(VOCABULARY) - 1))
            concept = (concept + step) % len(VOCABULARY)
        entry = VOCABULARY[concept]
        kind = entry.category if dice["how general"][slot] < 0.5 else entry.group
        phrase = noun_phrase(
            concept,
            tint if dice["tint"][slot] < config.tint else -1,
            len(members),
            exact=dice["count"][slot] < config.count,
            word=dice["disambiguate"][slot] >= config.disambiguate,
            general=kind if dice["general"][slot] < config.general else "",
        )
        phrases.append(
            Phrase(len(text), len(text) + len(phrase), concept, tuple(members))
        )
        text += phrase
    if len(said) == 1 and once["kind"] < config.kind:
        entry = VOCABULARY[said[0][0][0]]
        text += f", a type of {entry.category if once['level'] < 0.6 else entry.group}"
    if once["background"] < config.background:
        text += " " + list(BACKGROUNDS.values())[layout.background[b]]
    if once["irrelevant"] < config.irrelevant:
        text += ", " + IRRELEVANT[int(once["which words"] * len(IRRELEVANT))]
    if once["full stop"] < config.full_stop:
        text += "."
    return Caption(text, phrases)
