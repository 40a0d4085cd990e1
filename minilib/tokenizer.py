"""CLIP's byte-pair encoding, whole or restricted to the ids that a small model needs.

The merges and their vocabulary file are open_clip's; the treatment of long texts and of special strings is
OpenAI's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import regex
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

BYTE_IDS = 512
"""Ids 0-255 are single bytes, 256-511 single bytes that end a word."""

_WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


@lru_cache(maxsize=1)
def _bpe() -> SimpleTokenizer:
    """Return the full byte-pair encoder, built once (a quarter of a second)."""
    return SimpleTokenizer()


def _clean(text: str) -> str:
    """Repair broken Unicode and HTML escapes, collapse spaces, fold case."""
    if text.isascii() and text.isprintable() and "&" not in text:  # nothing to repair; ftfy is slow
        return " ".join(text.lower().split())
    return _bpe().clean_fn(text)


class Tokenizer:
    """Texts to token ids and back.

    Digits are single tokens; upper case is folded; there is no padding id of its own, rows are filled with 0.

    Args:
        context: length of a row, start and end token included.
        vocabulary: BPE ids to keep (see ``vocabulary_of``). They get compact ids in ascending order; the 512
            byte ids are always kept, and a BPE token that is not kept is spelt in bytes, so that any text in
            any script still encodes. The start and end token stay the two highest ids, as pooling by
            ``argmax`` needs. None keeps all.

    Raises:
        ValueError: ``context`` has no room for a start and an end, or an id is not a BPE id.
    """

    def __init__(self, context: int = 77, vocabulary: Sequence[int] | None = None) -> None:
        if context < 2:
            raise ValueError(
                f"context {context} has no room for the start and the end of a text: use at least 2"
            )
        bpe = _bpe()
        full = bpe.sot_token_id
        kept = range(full) if vocabulary is None else sorted({*range(BYTE_IDS), *vocabulary})
        if kept[0] < 0 or kept[-1] >= full:
            raise ValueError(
                f"vocabulary holds ids outside 0..{full - 1}: build it with vocabulary_of(texts)"
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
        """Return the ids of one word, merging its bytes; merges that are not kept fall apart into bytes."""
        if word in self._special:
            return [self._special[word]]
        bpe = _bpe()
        printable = "".join(bpe.byte_encoder[byte] for byte in word.encode("utf-8"))
        ids = []
        for token in bpe.bpe(printable).split(" "):
            bpe_id = bpe.encoder[token]
            if bpe_id in self._compact:
                ids.append(self._compact[bpe_id])
                continue
            stem = token.removesuffix("</w>")
            spelling = [*stem[:-1], stem[-1] + token[len(stem) :]]
            ids += [self._compact[bpe.encoder[byte]] for byte in spelling]
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
        """Return the text of ``ids`` (lower case, spaces between words), start and end shown as such."""
        bpe = _bpe()
        special = {index: text for text, index in self._special.items()}
        parts: list[bytes] = []
        for index in map(int, ids):
            if index in special:
                parts.append(special[index].encode())
            elif 0 <= index < self.start:
                symbols = bpe.decoder[self._bpe_ids[index]]
                parts.append(_symbols_to_bytes(symbols))
            else:
                raise ValueError(f"id {index} is outside the vocabulary of {self.vocab_size}")
        return b"".join(parts).decode("utf-8", errors="replace")

    def __call__(self, texts: str | Sequence[str], truncate: bool = False) -> Tensor:
        """Return ids (B, context) int64: start, text, end, zeros.

        Raises:
            ValueError: no text at all, or a text that does not fit; with ``truncate`` it is cut and ended
            instead.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("no text to tokenize: pass at least one string")
        rows = torch.zeros(len(texts), self.context, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"a text must be a string, got {type(text).__name__}: {text!r:.80}")
            ids = [self.start, *self.encode(text), self.end]
            if len(ids) > self.context:
                if not truncate:
                    raise ValueError(
                        f"text of {len(ids)} tokens, start and end included, does not fit the context of "
                        f"{self.context}: {text!r:.80} - shorten it or pass truncate=True"
                    )
                ids = [*ids[: self.context - 1], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def _symbols_to_bytes(symbols: str) -> bytes:
    """Undo the printable spelling of a BPE token; the end of a word becomes a space."""
    decoder = _bpe().byte_decoder
    stem = symbols.removesuffix("</w>")
    return bytes(decoder[symbol] for symbol in stem) + (b" " if stem != symbols else b"")


@lru_cache(maxsize=16)
def get_tokenizer(context: int = 77, vocabulary: tuple[int, ...] | None = None) -> Tokenizer:
    """Return a shared ``Tokenizer``, so that its word cache is shared too."""
    return Tokenizer(context, vocabulary)


def vocabulary_of(texts: Iterable[str]) -> tuple[int, ...]:
    """Return the BPE ids that occur in ``texts``, ascending: a ``vocabulary`` for ``Tokenizer``."""
    full = get_tokenizer()
    return tuple(sorted({index for text in texts for index in full.encode(text) if index < full.start}))
