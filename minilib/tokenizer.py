"""CLIP's byte-pair encoding, whole or restricted to the ids that a small model needs.

The list of merges is the file that open_clip ships, read without importing open_clip,
which would take longer than importing torch. The treatment of long texts and of
special strings is OpenAI's.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import regex
import torch
from torch import Tensor

BYTE_IDS = 512
"""Ids 0-255 are single bytes, 256-511 single bytes that end a word."""

_WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
    r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 48894  # the file lists more than CLIP uses
_END = "</w>"


def _merges() -> list[tuple[str, str]]:
    """Return CLIP's merges, the most frequent pair first.

    Raises:
        FileNotFoundError: open_clip is not installed, or has no such file.
    """
    spec = find_spec("open_clip")
    folders = [] if spec is None else spec.submodule_search_locations or []
    for path in (Path(folder) / _VOCABULARY_FILE for folder in folders):
        if path.is_file():
            lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
            pairs = (line.split() for line in lines[1 : 1 + _MERGES])
            return [(first, second) for first, second in pairs]
    raise FileNotFoundError(
        f"CLIP's vocabulary {_VOCABULARY_FILE} was not found beside open_clip: "
        "pip install open_clip_torch"
    )


def _printable_bytes() -> dict[int, str]:
    """Map every byte to a character that can be printed, in the order of their ids."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    shown += range(ord("®"), ord("ÿ") + 1)
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {
        byte: chr(256 + number) for number, byte in enumerate(hidden)
    }


class _BytePairs:
    """CLIP's byte-pair encoding: 256 bytes, 256 bytes that end a word, 48894 merges.

    Attributes:
        ids: id of each token; a token that ends a word ends in ``</w>``.
        tokens: the same as a list, by id.
        characters: a printable character for each byte; bytes: the reverse.
    """

    def __init__(self) -> None:
        merges = _merges()
        self.characters = _printable_bytes()
        self.bytes = {character: byte for byte, character in self.characters.items()}
        single = list(self.bytes)
        self.tokens = [*single, *(character + _END for character in single)]
        self.tokens += map("".join, merges)
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}

    def split(self, word: str) -> list[str]:
        """Return the tokens of one word: its bytes, merged while a merge applies."""
        characters = [self.characters[byte] for byte in word.encode("utf-8")]
        parts = [*characters[:-1], characters[-1] + _END]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged: list[str] = []
            position = 0
            while position < len(parts):
                here = pairs[position] if position < len(pairs) else None
                merged.append("".join(best) if here == best else parts[position])
                position += 2 if here == best else 1
            parts = merged
        return parts


@lru_cache(maxsize=1)
def _bpe() -> _BytePairs:
    """Return the full byte-pair encoder, built once (a tenth of a second)."""
    return _BytePairs()


def _clean(text: str) -> str:
    """Repair broken Unicode and HTML escapes, collapse spaces, fold case."""
    plain = text.replace("\n", " ").replace("\t", " ")
    if not plain.isascii() or not plain.isprintable() or "&" in plain:
        import ftfy  # slow, and most texts need no repair

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class Tokenizer:
    """Texts to token ids and back.

    Digits are single tokens; upper case is folded; there is no padding id of its own,
    rows are filled with 0.

    Args:
        context: length of a row, start and end token included.
        vocabulary: BPE ids to keep (see ``vocabulary_of``). They get compact ids in
            ascending order; the 512 byte ids are always kept, and a BPE token that is
            not kept is spelt in bytes, so that any text in any script still encodes.
            The start and end token stay the two highest ids, as pooling by ``argmax``
            needs. None keeps all.

    Raises:
        ValueError: ``context`` has no room for a start and an end, or an id
            is not a BPE id.
    """

    def __init__(
        self, context: int = 77, vocabulary: Sequence[int] | None = None
    ) -> None:
        if context < 2:
            raise ValueError(
                f"context {context} has no room for the start and the end of a text: "
                "use at least 2"
            )
        bpe = _bpe()
        full = len(bpe.tokens)
        kept = (
            range(full)
            if vocabulary is None
            else sorted({*range(BYTE_IDS), *vocabulary})
        )
        if kept[0] < 0 or kept[-1] >= full:
            raise ValueError(
                f"vocabulary holds ids outside 0..{full - 1}: build it with "
                "vocabulary_of(texts)"
            )
        self.context = context
        self.vocabulary = None if vocabulary is None else tuple(kept)
        self.start = len(kept)
        self.end = len(kept) + 1
        self.vocab_size = len(kept) + 2
        self._bpe_ids = kept
        self._compact = {bpe_id: index for index, bpe_id in enumerate(kept)}
        self._special = {"<|startoftext|>": self.start, "<|endoftext|>": self.end}
        self._cache: dict[str, list[int]] = {}

    def _encode_word(self, word: str) -> list[int]:
        """Return the ids of one word, merging its bytes; merges that are not kept fall
        apart into bytes."""
        if word in self._special:
            return [self._special[word]]
        bpe = _bpe()
        ids = []
        for token in bpe.split(word):
            bpe_id = bpe.ids[token]
            if bpe_id in self._compact:
                ids.append(self._compact[bpe_id])
                continue
            stem = token.removesuffix(_END)
            spelling = [*stem[:-1], stem[-1] + token[len(stem) :]]
            ids += [self._compact[bpe.ids[byte]] for byte in spelling]
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` without start and end."""
        ids: list[int] = []
        for word in _WORDS.findall(_clean(text)):
            if word not in self._cache:
                self._cache[word] = self._encode_word(word)
            ids += self._cache[word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids`` (lower case, spaces between words), start and
        end shown as such."""
        bpe = _bpe()
        special = {index: text for text, index in self._special.items()}
        parts: list[bytes] = []
        for index in map(int, ids):
            if index in special:
                parts.append(special[index].encode())
            elif 0 <= index < self.start:
                parts.append(_token_to_bytes(bpe.tokens[self._bpe_ids[index]]))
            else:
                raise ValueError(
                    f"id {index} is outside the vocabulary of {self.vocab_size}"
                )
        return b"".join(parts).decode("utf-8", errors="replace")

    def __call__(self, texts: str | Sequence[str], truncate: bool = False) -> Tensor:
        """Return ids (B, context) int64: start, text, end, zeros.

        Raises:
            ValueError: no text at all, or a text that does not fit; with ``truncate``
                it is cut and ended instead.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("no text to tokenize: pass at least one string")
        rows = torch.zeros(len(texts), self.context, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(
                    f"a text must be a string, got {type(text).__name__}: {text!r:.80}"
                )
            ids = [self.start, *self.encode(text), self.end]
            if len(ids) > self.context:
                if not truncate:
                    raise ValueError(
                        f"text of {len(ids)} tokens, start and end included, does not "
                        f"fit the context of {self.context}: {text!r:.80} - shorten "
                        "it or pass truncate=True"
                    )
                ids = [*ids[: self.context - 1], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def check_words(
    words: Sequence[str],
    tokenizer: Tokenizer,
    what: str = "label",
    allow_duplicates: bool = False,
) -> list[str]:
    """Return the words of a classifier or of questions, once they are known to be so.

    What tells two labels apart is what the text tower reads of them: "Dog" and "dog",
    "&amp;" and "&" or two spellings of one accent are the same tokens, and of two equal
    labels the second could never win.

    Args:
        words: names, labels or descriptions.
        tokenizer: the text tower's.
        what: what they are, for the message.
        allow_duplicates: let the same tokens come twice.

    Raises:
        ValueError: not a list, none at all, one that is not a string, is empty, longer
            than the context or holds a token that starts or ends a text; or two that
            are the same tokens.
    """
    if isinstance(words, str | bytes | set | frozenset) or not _listed(words):
        raise ValueError(f"expected a list of at least one {what}, got {words!r:.80}")
    words = list(words)
    seen: dict[tuple[int, ...], str] = {}
    for number, word in enumerate(words):
        if not isinstance(word, str):
            raise ValueError(
                f"{what} {number} is of the type {type(word).__name__}: expected a "
                f"string, got {word!r:.80}"
            )
        ids = tuple(tokenizer.encode(word))
        if not ids:
            raise ValueError(
                f"{what} {number} is empty ({word!r:.80}): expected a word or a phrase"
            )
        if max(ids) >= tokenizer.start:
            raise ValueError(
                f"{what} {word!r:.80} holds a token that starts or ends a text: "
                "leave it out"
            )
        if len(ids) + 2 > tokenizer.context:
            raise ValueError(
                f"{what} {number} has {len(ids) + 2} tokens, start and end included, "
                f"but the text tower reads {tokenizer.context}: shorten {word!r:.80}"
            )
        if ids in seen and not allow_duplicates:
            first = seen[ids]
            raise ValueError(
                f"{what} {word!r:.80} is given twice: say it once"
                if first == word
                else f"{what}s {first!r:.80} and {word!r:.80} are the same tokens to "
                "the text tower: merge them or rename one"
            )
        seen.setdefault(ids, word)
    return words


def _listed(words: Sequence[str]) -> bool:
    try:
        return len(words) > 0
    except TypeError:
        return False


def check_templates(templates: Sequence[object]) -> None:
    """Raise ValueError unless there is a list of templates, each a function of the name
    or a sentence with ``{}`` for it."""
    if isinstance(templates, str) or not len(templates):
        raise ValueError(
            f"expected a list of at least one template, got {templates!r}: '{{}}' is "
            "the bare name"
        )
    for template in templates:
        if isinstance(template, str) and "{}" not in template:
            raise ValueError(
                f"template {template!r} has no place for the name: write {{}} where "
                "it goes"
            )


def _token_to_bytes(token: str) -> bytes:
    """Undo the printable spelling of a BPE token; the end of a word becomes a space."""
    stem = token.removesuffix(_END)
    spelt = bytes(_bpe().bytes[character] for character in stem)
    return spelt + (b" " if stem != token else b"")


@lru_cache(maxsize=16)
def get_tokenizer(
    context: int = 77, vocabulary: tuple[int, ...] | None = None
) -> Tokenizer:
    """Return a shared ``Tokenizer``, so that its word cache is shared too."""
    return Tokenizer(context, vocabulary)


def vocabulary_of(texts: Iterable[str]) -> tuple[int, ...]:
    """Return the BPE ids that occur in ``texts``, ascending: a ``vocabulary``
    for ``Tokenizer``."""
    full = get_tokenizer()
    return tuple(
        sorted(
            {
                index
                for text in texts
                for index in full.encode(text)
                if index < full.start
            }
        )
    )
