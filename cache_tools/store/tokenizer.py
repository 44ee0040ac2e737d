"""Limits on a cache's tokenizer: plain data of unknown origin, from which a fast tokenizer is built.

Checked on the JSON before a library loads it, since loading compiles regular expressions and allocates room for ids. A
text may grow only by a bounded factor, and no code may be named.
"""

import base64
import math
import re
from collections.abc import Iterator
from typing import Any

from cache_tools.errors import CometError
from cache_tools.store.records import parse_json

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NAMING_CODE = ("auto_map", "custom_pipelines", "chat_template")
MAX_DEPTH = 16
MAX_STEPS = 64  # entries of a list of normalisers, of a template, …
MAX_GROWTH = 1024  # factor by which all replacements together may lengthen a text
MAX_BYTE_LEVELS = 3  # one each for pre-tokeniser, post-processor and decoder; each may double a text

REGEX_PART = re.compile(
    r"""(?: \\[pP]\{\w{1,20}\} | \\[^pP] | \[(?:\\.|[^\[\]\\])+\] | [^\\()\[\]{}*+?|] )  # one character of some kind
        (?P<often> [*+?] | \{ (?P<least>\d{1,2}) (?P<range>,(?P<most>\d{0,2}))? \} )?
      | \|""",
    re.VERBOSE | re.DOTALL,
)
"""There are no groups, so no repetition is nested. Steps of a match are at most the product of the lengths that each
repetition may have: a power of the text's length times MAX_CHOICES."""
MAX_UNBOUNDED = 3  # this power
MAX_CHOICES = 10_000
LONGEST_REGEX = 200

Json = dict[str, Any]


def parse_tokenizer(data: bytes, vocab_size: int, where: str) -> Json:
    """Parse a tokenizer.json with all ids below `vocab_size`. Raises CometError naming `where` and what is wrong."""
    state = parse_json(data, where)
    model, added = state.get("model"), state.get("added_tokens", [])
    if not isinstance(model, dict) or not isinstance(model.get("type"), str):
        raise CometError(f"{where}: expected a model with a type, found {str(model)[:80]!r}")
    if not isinstance(added, list) or not all(isinstance(a, dict) and isinstance(a.get("content"), str) for a in added):
        raise CometError(f"{where}: added_tokens: expected a list of tokens, found {str(added)[:80]!r}")
    known = list(_model_ids(model, where))
    for name, ids in (("model", known), ("added_tokens", [token.get("id") for token in added])):
        if not all(type(i) is int and 0 <= i < vocab_size for i in ids) or len(set(ids)) != len(ids):
            raise CometError(f"{where}: {name}: expected different ids below {vocab_size}, found others")
    merges = model.get("merges", [])
    if model["type"] == "BPE" and not (isinstance(merges, list) and all(map(_is_merge, merges))):
        raise CometError(f"{where}: merges: expected pairs of tokens, found others")
    unknown = model.get("unk_id")
    if unknown is not None and not (type(unknown) is int and 0 <= unknown < len(known)):
        raise CometError(f"{where}: unk_id: expected an id below {len(known)}, found {str(unknown)[:80]!r}")
    parts = [part for name in state if name not in ("model", "added_tokens") for part in _parts_of(state[name], where)]
    _check_parts(parts, where)
    for part in parts:
        template = part.get("ids", [])
        named = [part[name][-1:] for name in ("sep", "cls") if isinstance(part.get(name), list)]
        for ids in (template, *named):
            if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < vocab_size for i in ids):
                raise CometError(f"{where}: post_processor: expected ids below {vocab_size}, found {str(ids)[:80]!r}")
    return state


def _model_ids(model: Json, where: str) -> Iterator[Any]:
    """Yield the ids of a model's vocabulary."""
    vocabulary = model.get("vocab")
    if model["type"] == "Unigram":
        if not isinstance(vocabulary, list) or not all(map(_is_scored, vocabulary)):
            raise CometError(f"{where}: model: expected tokens with scores, found {str(vocabulary)[:80]!r}")
        yield from range(len(vocabulary))
    elif isinstance(vocabulary, dict):
        yield from vocabulary.values()
    else:
        raise CometError(f"{where}: model: expected tokens with ids, found {str(vocabulary)[:80]!r}")


def _is_scored(entry: Any) -> bool:
    return isinstance(entry, list) and [type(part) for part in entry] in ([str, int], [str, float])


def _is_merge(entry: Any) -> bool:
    pair = entry.split(" ") if isinstance(entry, str) else entry
    return isinstance(pair, list) and [type(part) for part in pair] == [str, str]


def _parts_of(value: Any, where: str, depth: int = 0) -> Iterator[Json]:
    """Yield every object in a value. Raises CometError for lists that are too long and for too deep nesting."""
    if depth > MAX_DEPTH:
        raise CometError(f"{where}: nested deeper than {MAX_DEPTH}")
    if isinstance(value, list) and len(value) > MAX_STEPS:
        raise CometError(f"{where}: a list of {len(value)} entries beside the vocabulary, expected at most {MAX_STEPS}")
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _parts_of(part, where, depth + 1)


def _check_parts(parts: list[Json], where: str) -> None:
    """Raise CometError for regular expressions that may run for ever, and for unbounded growth of a text."""
    for part in parts:
        if "Regex" in part and not is_simple(part["Regex"]):
            raise CometError(
                f"{where}: a regular expression that may take for ever, {str(part['Regex'])[:80]!r}; expected one "
                f"without groups, at most {MAX_UNBOUNDED} unbounded repetitions, and few of others"
            )
        if part.get("precompiled_charsmap") is not None and not is_charsmap(part["precompiled_charsmap"]):
            raise CometError(f"{where}: precompiled_charsmap: expected a table of characters, found other bytes")
    inserted = [part[name] for part in parts for name in ("content", "prepend") if isinstance(part.get(name), str)]
    growth = math.prod(max(1, len(text)) for text in inserted)
    byte_levels = sum(part.get("type") == "ByteLevel" for part in parts)
    if growth > MAX_GROWTH or byte_levels > MAX_BYTE_LEVELS:
        raise CometError(f"{where}: replacements that may make a text more than {MAX_GROWTH} times longer")


def is_simple(regex: Any) -> bool:
    """Return whether matching takes a bounded power of the text's length in steps."""
    if not isinstance(regex, str) or len(regex) > LONGEST_REGEX:
        return False
    at, unbounded, choices = 0, 0, 1
    while at < len(regex):
        part = REGEX_PART.match(regex, at)
        if part is None:
            return False
        at = part.end()
        if part["often"] in ("*", "+") or part["most"] == "":
            unbounded += 1
        elif part["often"] == "?":
            choices *= 2
        elif part["range"]:
            choices *= max(int(part["most"]) - int(part["least"]) + 1, 1)
    return unbounded <= MAX_UNBOUNDED and choices <= MAX_CHOICES


def is_charsmap(value: Any) -> bool:
    """Return whether this is a SentencePiece table in base64: 4 bytes give the bytes of its trie, a multiple of 4."""
    try:
        table = base64.b64decode(value, validate=True)
    except (TypeError, ValueError):
        return False
    size = int.from_bytes(table[:4], "little")
    return len(table) >= 4 and size % 4 == 0 and size <= len(table) - 4


def parse_tokenizer_config(data: bytes, where: str) -> Json:
    """Return the special tokens of a tokenizer_config.json as strings, by role, and `model_max_length`, in tokens.

    All other fields would set up a class, and no class is looked up by a name in a file. Raises CometError if code is
    named, and for special tokens that are not strings.
    """
    config = parse_json(data, where)
    for name in NAMING_CODE:
        if config.get(name):
            raise CometError(f"{where}: {name}: a cache's tokenizer must not name code; do not trust the cache")
    named = config.get("tokenizer_class")
    if named is not None and not (isinstance(named, str) and named.isidentifier()):
        raise CometError(f"{where}: tokenizer_class: expected the name of a class of transformers, found {named!r:.80}")
    found: Json = {}
    for role in ROLES:
        token = config.get(role)
        text = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(text, str):
            raise CometError(f"{where}: {role}: expected a string, found {str(token)[:80]!r}")
        if text is not None:
            found[role] = text
    longest = config.get("model_max_length")
    if longest is not None:
        if type(longest) not in (int, float) or not longest > 0:
            raise CometError(f"{where}: model_max_length: expected a number of tokens, found {str(longest)[:80]!r}")
        found["model_max_length"] = longest
    return found
