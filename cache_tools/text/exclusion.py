"""Find the documents that repeat part of an evaluation item, by hashes of word n-grams.

A corpus comes from the same news sites and tweets as the test sets on which a student is later measured. Documents that
share an n-gram with any item are excluded. The search is exact, unlike libraries for near-duplicates (MinHash), which
compare whole documents. Pure functions; `files/items.py` reads the items.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat

import numpy as np
import regex
from numpy.typing import NDArray

from cache_tools.text.packing import document_hash

NGRAM_WORDS = 8  # two texts that share this many words in a row share more than the language
FEWEST_WORDS = 5  # shorter items are phrases like `àti bẹ́ẹ̀ bẹ́ẹ̀ lọ` (and so on), which any document may contain

EDGE = document_hash("")  # the beginning and end of a document; no word is empty
UNKNOWN = document_hash(" ")  # any word that no item has; no word is a space
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
FILTER_BITS = 22

WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")
NOT_WORDS = regex.compile(r"https?://\S+|@[\p{L}\p{N}_]+|[_ʼʻ]")


@dataclass(frozen=True)
class NgramIndex:
    """The n-grams that no document may contain.

    In memory: 8 bytes for each, about 150 for each different word of the items, and the 4 MiB of `likely`.
    """

    codes: dict[str, int]  # 64 bits for each word of the items
    lengths: tuple[int, ...]  # ascending, in words; an edge of a document counts as a word
    hashes: NDArray[np.uint64]  # ascending
    likely: NDArray[np.bool_]  # [2^22] whether any of `hashes` begins with these bits


def words(text: str) -> list[str]:
    """Return the words of a text; case and punctuation make no difference, the diacritics of Yorùbá do.

    A word is letters, digits and combining marks of any script. An apostrophe separates, since annotated corpora have
    `n'ime` as well as `n’ ime` for the same text. Links and @mentions are not words: published tweets have `@user` for
    all of them, and eight of those in a row mean nothing.
    """
    return list(chain.from_iterable(map(_token_words, text.split())))


@lru_cache(maxsize=2**18)  # most of a text is the same few thousand words
def _token_words(token: str) -> tuple[str, ...]:
    """Return the words of a text that has no white space."""
    return tuple(WORD.findall(NOT_WORDS.sub(" ", unicodedata.normalize("NFKC", token).casefold())))


def index_ngrams(items: Iterable[list[str]]) -> NgramIndex:
    """Index the n-grams of all items, each given by its words: every eight in a row, or all words of a shorter item.

    An item of fewer than five words must fill a whole document: its n-gram includes both edges.
    """
    codes: dict[str, int] = {}
    lengths: set[int] = set()
    parts = [np.zeros(0, dtype=np.uint64)]
    for item in items:
        for word in item:
            if word not in codes:
                codes[word] = document_hash(word)
        sequence = [codes[word] for word in item]
        if len(item) < FEWEST_WORDS:
            sequence = [EDGE, *sequence, EDGE]
        length = min(len(sequence), NGRAM_WORDS)
        lengths.add(length)
        parts.append(_ngram_hashes(np.array(sequence, dtype=np.uint64), length))
    hashes = np.unique(np.concatenate(parts))
    likely = np.zeros(2**FILTER_BITS, dtype=np.bool_)
    likely[_leading_bits(hashes)] = True
    return NgramIndex(codes, tuple(sorted(lengths)), hashes, likely)


def contain_ngram(documents: list[str], ngrams: NgramIndex) -> NDArray[np.bool_]:
    """Return [D] which of the documents contain an n-gram. Two different n-grams have the same hash once in 10^18
    pairs.
    """
    shared = np.zeros(len(documents), dtype=np.bool_)
    if not ngrams.lengths:
        return shared
    stream: list[int] = [EDGE]
    begins = []
    for text in documents:
        begins.append(len(stream) - 1)
        stream.extend(map(ngrams.codes.get, words(text), repeat(UNKNOWN)))
        stream.append(EDGE)
    codes = np.array(stream, dtype=np.uint64)
    for length in ngrams.lengths:
        hashes = _ngram_hashes(codes, length)
        found = np.flatnonzero(ngrams.likely[_leading_bits(hashes)])  # spares most positions the search below
        place = np.minimum(np.searchsorted(ngrams.hashes, hashes[found]), len(ngrams.hashes) - 1)
        found = found[ngrams.hashes[place] == hashes[found]]
        shared[np.searchsorted(begins, found, side="right") - 1] = True
    return shared


def _ngram_hashes(codes: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Return a hash of every `length` of the N codes in a row, [N - length + 1]; none if there are fewer."""
    hashes = np.zeros(max(0, len(codes) - length + 1), dtype=np.uint64)
    for offset in range(length):
        hashes = hashes * MULTIPLIER + codes[offset : offset + len(hashes)]
    return hashes


def _leading_bits(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return hashes >> np.uint64(64 - FILTER_BITS)
