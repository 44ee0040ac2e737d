"""Tokenizers: the teacher's, and those that a cache or a student holds as two files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TokenizersBackend

from cache_tools.errors import CometError
from cache_tools.models import loading_errors
from cache_tools.store.ledger import TOKENIZER_FILES, max_tokenizer_bytes
from cache_tools.store.recipe import INTEGER_BOUNDS
from cache_tools.store.records import read_bounded
from cache_tools.store.tokenizer import ROLES, parse_tokenizer, parse_tokenizer_config
from cache_tools.text.hub import model_folder

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


def load_teacher_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The teacher's tokenizer, from a folder or the hub, without truncation and padding.

    Raises CometError when there is none, when it is not a fast one, or when it lacks a special token that rows need.
    """
    folder = model_folder(name, f"teacher {name}", "give --teacher FOLDER")
    with loading_errors(f"teacher {name}: its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CometError(f"teacher {name}: {type(tokenizer).__name__} has no fast version, which packing needs")
    roles = ("mask", "cls", "sep", "pad", "unk")
    for role in roles:
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise CometError(
                f"teacher {name}: its tokenizer has no {role} token, so it cannot teach masked words; "
                "choose a masked LM such as Davlan/afro-xlmr-large"
            )
    for name in ("is_local", "local_files_only"):  # how it was loaded, which would be saved with it
        tokenizer.init_kwargs.pop(name, None)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return tokenizer


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[NDArray[np.int32]]:
    """The ids of each text, in which no special token but the unknown one occurs.

    Where a text spells a special token, such as `<s>`, and the spelling is itself a piece of the vocabulary, the
    piece becomes the unknown token, which is never masked: else a text could end rows or mask words.
    """
    special = np.array(sorted(tokenizer.all_special_ids), dtype=np.int32)
    unknown = np.int32(tokenizer.unk_token_id)
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
    return [np.where(np.isin(i, special), unknown, i) for i in ids]


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    return backend_sha256(tokenizer.backend_tokenizer)


def read_backend(data: bytes, where: str) -> Tokenizer:
    """A tokenizer.json. Raises CometError when it is none."""
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing more special, whatever is wrong with the file
        raise CometError(f"{where}: not a tokenizer ({error})") from None


def backend_sha256(backend: Tokenizer) -> str:
    """SHA-256 over what decides how text becomes ids: pieces with their scores, normaliser, pre-tokeniser."""
    state = json.loads(backend.to_str())
    parts = {name: state.get(name) for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
