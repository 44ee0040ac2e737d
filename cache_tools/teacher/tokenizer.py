"""The teacher's tokenizer, set up so that a text is a text."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cache_tools.errors import CometError
from cache_tools.teacher.model import loading_errors, teacher_folder


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The teacher's tokenizer, from a folder or the hub, without truncation and padding.

    Raises CometError when there is none, when it is not a fast one, or when it lacks a special token that rows need.
    """
    folder = teacher_folder(name)
    with loading_errors(name, "tokenizer"):
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
