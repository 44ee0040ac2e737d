"""A cache's or a student's tokenizer, from two checked files, and the ids that it gives to texts."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, TokenizersBackend

from cache_tools.errors import CometError
from cache_tools.store.ledger import TOKENIZER_FILES, max_tokenizer_bytes
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import INTEGER_BOUNDS
from cache_tools.store.records import read_bounded
from cache_tools.store.tokenizer import ROLES, parse_tokenizer, parse_tokenizer_config

TOKENIZER_FILE, CONFIG_FILE = TOKENIZER_FILES
LONG = 2**18  # characters
WORD_BOUNDARY = re.compile(r"(?<=[^\s]) (?=[^\s])")
PROBE = "Umunsi mwiza , abantu bose baje 12.5 km ( kuri 1994 ) - n’uko ẹ̀kọ́ ሰላም 孩子 ! Nuko"
UNUSABLE = "a text cannot be tokenised", "is tokenizer.json damaged, or of another version of tokenizers?"
MAX_CONFIG_BYTES = 2**20
MAX_VOCAB_SIZE = INTEGER_BOUNDS["vocab_size"][1]


def load_cache_tokenizer(cache: Cache) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a cache, set up as a teacher's.

    Raises CometError if it is damaged or not the one of the recipe.
    """
    recipe = cache.recipe
    tokenizer = load_tokenizer(cache.tokenizer_folder, recipe.vocab_size)
    if others := sorted(set(recipe.special_ids) - set(tokenizer.all_special_ids)):  # with no role of their own
        tokenizer.add_special_tokens({"extra_special_tokens": tokenizer.convert_ids_to_tokens(others)})
    tokenizer.backend_tokenizer.encode_special_tokens = True
    ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    found = (tokenizer_sha256(tokenizer), *ids, *sorted(tokenizer.all_special_ids))
    expected = (recipe.tokenizer_sha256, recipe.bos_id, recipe.eos_id, recipe.pad_id, *sorted(recipe.special_ids))
    if found != expected:
        raise CometError(
            f"{cache.root}: its tokenizer is not that of its recipe: expected sha256 and special ids {expected}, found "
            f"{found}; the cache is damaged"
        )
    return tokenizer


def load_tokenizer(folder: Path, vocab_size: int = MAX_VOCAB_SIZE) -> TokenizersBackend:
    """Build a fast tokenizer of at most `vocab_size` tokens from the two files in a folder, and nothing else there.

    Raises CometError as `parse_tokenizer`, `parse_tokenizer_config` and `build_tokenizer` do.
    """
    settings = read_settings(folder)
    data, _ = read_tokenizer_file(folder, vocab_size)
    return build_tokenizer(data, settings, vocab_size, str(folder))


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the checked content of a tokenizer_config.json. Raises CometError as `parse_tokenizer_config` does."""
    return parse_tokenizer_config(read_bounded(folder / CONFIG_FILE, MAX_CONFIG_BYTES), str(folder / CONFIG_FILE))


def read_tokenizer_file(folder: Path, vocab_size: int) -> tuple[bytes, dict[str, Any]]:
    """Return a tokenizer.json as bytes and parsed. Raises CometError as `parse_tokenizer` does."""
    file = folder / TOKENIZER_FILE
    data = read_bounded(file, max_tokenizer_bytes(vocab_size))
    return data, parse_tokenizer(data, vocab_size, str(file))


def build_tokenizer(data: bytes, settings: dict[str, Any], vocab_size: int, where: str) -> TokenizersBackend:
    """Build a fast tokenizer from a checked tokenizer.json and the settings of `parse_tokenizer_config`.

    No class is looked up by name. Raises CometError if the library cannot read it, a special token is not in the
    vocabulary, or an id is `vocab_size` or more.
    """
    backend = read_backend(data, f"{where}: {TOKENIZER_FILE}")
    for role in ROLES:
        if role in settings and backend.token_to_id(settings[role]) is None:
            raise CometError(
                f"{where}: {role}: expected a token of the vocabulary, found {settings[role][:80]!r}; the cache is "
                "damaged"
            )
    backend.no_truncation()
    backend.no_padding()
    tokenizer = TokenizersBackend(tokenizer_object=backend, **settings)
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= vocab_size:
        raise CometError(f"{where}: a token has id {largest}, expected ids below {vocab_size}; the cache is damaged")
    return tokenizer


def read_backend(data: bytes, where: str, advice: str = "the cache is damaged") -> Tokenizer:
    """Build the library's tokenizer from a tokenizer.json. Raises CometError if the library cannot read it."""
    with _errors_as(f"{where}: not a tokenizer", advice):
        return Tokenizer.from_buffer(data)


@contextmanager
def _errors_as(message: str, advice: str) -> Iterator[None]:
    """Raise whatever the tokenizers library raises as a CometError: its panics are not Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, CometError):
        raise
    except BaseException as error:
        raise CometError(f"{message} ({str(error)[:200]}); {advice}") from None


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return one more than the largest id, which is more than there are tokens if some ids are not used."""
    return max(tokenizer.get_vocab().values()) + 1


def encode_texts(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], most: int | None = None
) -> list[NDArray[np.int32]]:
    """Return the ids of each text, in which no special token but the unknown one occurs.

    A long text ends with the piece that reaches `most` tokens.
    Where a text spells a special token, such as `<s>`, and the spelling is itself in the vocabulary, its id becomes
    that of the unknown token, which is never masked: otherwise a text could end rows or mask words.
    Raises CometError if the library fails.
    """
    special = np.array(sorted(tokenizer.all_special_ids), dtype=np.int32)
    unknown = np.int32(tokenizer.unk_token_id)
    backend = tokenizer.backend_tokenizer
    if sum(map(len, texts)) <= LONG:
        with _errors_as(*UNUSABLE):
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
    else:  # one after another, long ones in pieces: what the library returns takes hundreds of bytes for each token
        split = LONG if reads_in_pieces(backend) else None
        ids = [_encode_pieces(backend, pieces(text, split), most) for text in texts]
    return [np.where(np.isin(i, special), unknown, i) for i in ids]


def _encode(backend: Tokenizer, text: str) -> NDArray[np.int32]:
    with _errors_as(*UNUSABLE):
        return np.array(backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)


def _encode_pieces(backend: Tokenizer, texts: Iterable[str], most: int | None) -> NDArray[np.int32]:
    parts: list[NDArray[np.int32]] = []
    for text in texts:
        parts.append(_encode(backend, text))
        if most is not None and sum(map(len, parts)) >= most:
            break
    return np.concatenate(parts)


def pieces(text: str, size: int | None) -> Iterator[str]:
    """Yield a text in pieces that begin with a single space between two words, each of at least `size` characters but
    the last; None for the whole text."""
    start = 0
    if size is not None:
        while found := WORD_BOUNDARY.search(text, start + size):
            yield text[start : found.start()]
            start = found.start()
    yield text[start:]


def reads_in_pieces(backend: Tokenizer) -> bool:
    """Return whether pieces give the tokens of the whole, tried at every space of a line."""
    words = PROBE.split()
    whole = _encode(backend, " ".join(words)).tolist()
    return all(
        _encode(backend, " ".join(words[:i])).tolist() + _encode(backend, " " + " ".join(words[i:])).tolist() == whole
        for i in range(1, len(words))
    )


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the `backend_sha256` of a tokenizer."""
    return backend_sha256(tokenizer.backend_tokenizer)


def backend_sha256(backend: Tokenizer) -> str:
    """Return SHA-256 over what turns text into ids: vocabulary with scores, normaliser, pre-tokeniser."""
    state = json.loads(backend.to_str())
    parts = {name: state.get(name) for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
