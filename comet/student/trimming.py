"""A tokenizer with fewer tokens that reads every text of kept tokens as before.

Unigram takes the best of all segmentations and WordPiece the longest token at each place: the best or longest of all
tokens is still that among fewer. BPE joins symbols by the first of its merges that applies, so merges that are never
applied can go, but every symbol on the way to a kept token has to stay.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import Any

import numpy as np

Json = dict[str, Any]
Merge = tuple[str, str]

TRIMMED_EXACTLY = ("Unigram", "WordPiece", "BPE")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
CONTINUATION = "##"  # WordPiece's mark of a token inside a word


def required_ids(model: Json, kept: Iterable[int]) -> list[int]:
    """Return the ids that the model of a tokenizer.json needs beside `kept`.

    These are its tokens of a single character or byte, which spell all other text. A Unigram model also needs its least
    likely token, which sets the cost of an unknown character; BPE the symbols that kept tokens are joined from, but no
    single characters if it spells in bytes those that it lacks.
    """
    vocabulary = model["vocab"]
    if model["type"] == "Unigram":
        single = [i for i, (token, _) in enumerate(vocabulary) if len(token) == 1 or BYTE.fullmatch(token)]
        return [*single, int(np.argmin([score for _, score in vocabulary]))]
    if model["type"] == "WordPiece":
        return [i for token, i in vocabulary.items() if len(token.removeprefix(CONTINUATION)) == 1]
    merging = Merging(model)
    token_of = {i: token for token, i in vocabulary.items()}
    symbols = {symbol for i in kept if i in token_of for symbol in merging.symbols_of(token_of[i])}
    return [i for token, i in vocabulary.items() if token in symbols or merging.spells_with(token)]


@dataclass(frozen=True)
class Merging:
    """How the BPE model of a tokenizer.json joins the symbols of a word."""

    model: Json

    @cached_property
    def rank(self) -> dict[Merge, int]:
        """The place of each merge; the last one counts if it is listed twice, as in the library."""
        merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in self.model.get("merges", []))
        return {(left, right): place for place, (left, right) in enumerate(merges)}

    @cached_property
    def affixes(self) -> Merge:
        """The marks of a symbol inside a word and of one that ends it."""
        return self.model.get("continuing_subword_prefix") or "", self.model.get("end_of_word_suffix") or ""

    def spells_with(self, token: str) -> bool:
        """Return whether this token spells text of no kept tokens: a byte, or a character that no bytes spell."""
        if not self.model.get("byte_fallback"):
            prefix, suffix = self.affixes
            return len(token.removeprefix(prefix).removesuffix(suffix)) == 1
        in_bytes = all(f"<0x{byte:02X}>" in self.model["vocab"] for byte in token.encode(errors="surrogatepass"))
        return BYTE.fullmatch(token) is not None or (len(token) == 1 and not in_bytes)

    def joined(self, merge: Merge) -> str:
        return merge[0] + merge[1][len(self.affixes[0]) :]

    def symbols_of(self, token: str) -> set[str]:
        """Return the symbols on the way to a token, itself included."""
        used = self.merges_of(token)
        return {token, *(symbol for merge in used for symbol in (*merge, self.joined(merge)))}

    def merges_of(self, token: str) -> set[Merge]:
        """Return the merges that join a token from its characters; none if merges do not lead to it.

        In the order of the library (`merge_all` in `tokenizers/src/models/bpe/word.rs`): one pair at a time, that of
        the lowest rank, of equal ones the leftmost.
        """
        symbols: list[str | None] = [*self._characters(token)]
        before, after = [i - 1 for i in range(len(symbols))], [i + 1 for i in range(len(symbols))]
        waiting: list[tuple[int, int, Merge]] = []  # rank, place of the left symbol, pair

        def add(left: int, right: int) -> None:
            if left >= 0 and right < len(symbols) and (pair := (symbols[left], symbols[right])) in self.rank:
                heappush(waiting, (self.rank[pair], left, pair))

        for place in range(len(symbols)):
            add(place, place + 1)
        used: set[Merge] = set()
        while waiting:
            _, left, pair = heappop(waiting)
            right = after[left]
            if right == len(symbols) or (symbols[left], symbols[right]) != pair:
                continue  # one of them has been joined to another symbol since
            used.add(pair)
            symbols[left], symbols[right] = self.joined(pair), None
            after[left] = after[right]
            if after[left] < len(symbols):
                before[after[left]] = left
            add(before[left], left)
            add(left, after[left])
        return used if symbols[:1] == [token] else set()

    def _characters(self, token: str) -> list[str]:
        """Return the first symbols of a token: its characters with their marks."""
        prefix, suffix = self.affixes
        begins = prefix if token.startswith(prefix) else ""
        ends = suffix if token.endswith(suffix) else ""
        characters = [prefix + character for character in token[len(begins) : len(token) - len(ends)]]
        if characters:
            characters[0] = begins + characters[0].removeprefix(prefix)
            characters[-1] += ends
        return characters


def trimmed_state(state: Json, student_id: list[int]) -> Json:
    """Return a tokenizer.json with the kept tokens under their new ids. `student_id` is −1 for the others."""

    def moved(ids: list[int]) -> list[int]:
        return [student_id[i] for i in ids]

    model = dict(state["model"])
    added = [
        token | {"id": student_id[token["id"]]}
        for token in state.get("added_tokens", [])
        if student_id[token["id"]] >= 0
    ]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if student_id[i] >= 0]
        model["unk_id"] = None if model.get("unk_id") is None else student_id[model["unk_id"]]
    else:
        model["vocab"] = {token: student_id[i] for token, i in model["vocab"].items() if student_id[i] >= 0}
    if model["type"] == "BPE":
        merging = Merging(state["model"])
        used = {merge for token in model["vocab"] for merge in merging.merges_of(token)}
        model["merges"] = [list(merge) for merge in sorted(used, key=merging.rank.__getitem__)]
    return state | {
        "model": model,
        "added_tokens": added,
        "post_processor": moved_ids(state.get("post_processor"), moved),
    }


def moved_ids(processor: Any, moved: Callable[[list[int]], list[int]]) -> Any:
    """Return a post-processor of a tokenizer.json, itself or one of a sequence, with its ids moved."""
    if not isinstance(processor, dict):
        return processor
    changed = dict(processor)
    if "processors" in processor:
        changed["processors"] = [moved_ids(one, moved) for one in processor["processors"]]
    if "special_tokens" in processor:
        tokens = {name: token | {"ids": moved(token["ids"])} for name, token in processor["special_tokens"].items()}
        changed["special_tokens"] = tokens
    return changed | {n: [processor[n][0], *moved(processor[n][1:])] for n in ("sep", "cls") if n in processor}
