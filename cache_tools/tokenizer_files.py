"""A tokenizer from the two files that a cache, or a student, holds of one: checked, bounded, and no class looked up."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import TokenizersBackend

from cache_tools.errors import CometError
from cache_tools.store.ledger import TOKENIZER_FILES, max_tokenizer_bytes
from cache_tools.store.recipe import INTEGER_BOUNDS
from cache_tools.store.records import read_bounded
from cache_tools.store.tokenizer import ROLES, parse_tokenizer, parse_tokenizer_config

PIECES, CONFIG = TOKENIZER_FILES
MAX_CONFIG_BYTES = 2**20
MOST_PIECES = INTEGER_BOUNDS["vocab_size"][1]


def load_tokenizer(folder: Path, vocab_size: int = MOST_PIECES) -> TokenizersBackend:
    """A fast tokenizer of at most `vocab_size` pieces from the two files in a folder, and from nothing else there.

    Raises CometError as `parse_tokenizer`, `parse_tokenizer_config` and `build_tokenizer` do.
    """
    settings = read_settings(folder)
    data, _ = read_tokenizer_file(folder, vocab_size)
    return build_tokenizer(data, settings, vocab_size, str(folder))


def build_tokenizer(data: bytes, settings: dict[str, Any], vocab_size: int, where: str) -> TokenizersBackend:
    """A fast tokenizer from a checked tokenizer.json and `parse_tokenizer_config`'s settings. No class is looked up.

    Raises CometError when the library cannot read it, a special token is no piece, or an id is `vocab_size` or more.
    """
    try:
        backend = Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library's panics are no Exception
        raise CometError(f"{where}: tokenizer.json: not a tokenizer ({error}); the cache is damaged") from None
    for role in ROLES:
        if role in settings and backend.token_to_id(settings[role]) is None:
            raise CometError(f"{where}: {role}: expected a piece, found {settings[role][:80]!r}; the cache is damaged")
    backend.no_truncation()
    backend.no_padding()
    tokenizer = TokenizersBackend(tokenizer_object=backend, **settings)
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= vocab_size:
        raise CometError(f"{where}: a piece has id {largest}, expected ids below {vocab_size}; the cache is damaged")
    return tokenizer


def read_tokenizer_file(folder: Path, vocab_size: int) -> tuple[bytes, dict[str, Any]]:
    """A tokenizer.json as bytes and as what they say. Raises CometError as `parse_tokenizer` does."""
    file = folder / PIECES
    data = read_bounded(file, max_tokenizer_bytes(vocab_size))
    return data, parse_tokenizer(data, vocab_size, str(file))


def read_settings(folder: Path) -> dict[str, Any]:
    """What a tokenizer_config.json says. Raises CometError as `parse_tokenizer_config` does."""
    return parse_tokenizer_config(read_bounded(folder / CONFIG, MAX_CONFIG_BYTES), str(folder / CONFIG))
