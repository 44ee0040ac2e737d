"""A model's tokenizer as its own tokenizer.json says, for teachers and for models to be evaluated or exported.

transformers from 5 on builds a tokenizer from its class and the vocabulary, and drops what else tokenizer.json says:
normaliser, pre-tokeniser, the kind of model (https://github.com/huggingface/transformers/issues/45701). The model was
trained on what that file says.
"""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, TokenizersBackend

from cache_tools.errors import CometError
from cache_tools.models import loading_errors
from cache_tools.store.ledger import TOKENIZER_FILES
from cache_tools.store.tokenizer import ROLES
from cache_tools.text.hub import model_folder
from cache_tools.text.tokenizer import backend_sha256, read_backend

COMPARED = 1000  # lines
ONLY_IN_5, PORTABLE = "TokenizersBackend", "PreTrainedTokenizerFast"  # names of one class; 4 has the second
LOADED_FROM = ("is_local", "local_files_only")  # how it was loaded, which would be saved with it


def load_model_tokenizer(folder: Path, where: str, lines: Iterable[str] = ()) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a model's folder, a fast one if there is one for its class.

    Prints how many of the first `lines` transformers itself would read differently, if any.
    Raises CometError, from `where` on, if the folder holds none of its files or they contradict each other, and
    whatever transformers raises.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    file = folder / TOKENIZER_FILES[0]
    parts = [name for name in tokenizer.vocab_files_names.values() if name != file.name]
    missing = [name for name in parts if not (folder / name).is_file()]
    if not file.is_file() and (missing or not parts):
        expected = " or ".join(filter(None, (file.name, " and ".join(parts))))
        found = ", ".join(name for name in parts if name not in missing) or "none"
        raise CometError(
            f"{where} has no tokenizer: expected {expected}, found {found}; copy the files of the model that it was "
            "trained from"
        )
    for name in LOADED_FROM:
        tokenizer.init_kwargs.pop(name, None)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or not file.is_file():
        return tokenizer
    own = read_backend(file.read_bytes(), str(file), "get the file again")
    if backend_sha256(own) == backend_sha256(tokenizer.backend_tokenizer):
        return tokenizer
    as_written = _with_backend(tokenizer, own, where)
    compared = list(islice(lines, COMPARED))
    if others := _read_otherwise(tokenizer, as_written, compared):
        tqdm.write(
            f"{where}: {others:,} of the first {len(compared):,} lines are read as its tokenizer.json says, but "
            f"differently by transformers' {type(tokenizer).__name__}; to make both agree, set tokenizer_class to "
            "PreTrainedTokenizerFast in a copy of its tokenizer_config.json"
        )
    return as_written


def load_teacher_tokenizer(name: str, lines: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Load a teacher's tokenizer from a folder or the hub, without truncation and padding.

    For `lines` see `load_model_tokenizer`. Raises CometError if there is none, if it is not a fast one, or if it lacks
    a special token that rows need.
    """
    folder = model_folder(name, f"teacher {name}", "give --teacher FOLDER")
    with loading_errors(f"teacher {name}: its tokenizer"):
        tokenizer = load_model_tokenizer(folder, f"teacher {name}", lines)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CometError(f"teacher {name}: {type(tokenizer).__name__} has no fast version, which packing needs")
    for role in ("mask", "cls", "sep", "pad", "unk"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            why = ", so it cannot teach masked words" if role == "mask" else ", which rows of a cache need"
            raise CometError(
                f"teacher {name}: its tokenizer has no {role} token{why}; choose a masked LM such as "
                "Davlan/afro-xlmr-large"
            )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    _require_its_own_ends(tokenizer, name)
    tokenizer.backend_tokenizer.encode_special_tokens = True
    return tokenizer


def _require_its_own_ends(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Raise CometError if the tokenizer puts other tokens around a text than its cls and sep, which rows get."""
    plain, whole = (tokenizer.backend_tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    before = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), None)
    if before is None:
        return
    ends = {"cls": whole[:before][:1], "sep": whole[before + len(plain) :][-1:]}
    for role, found in ends.items():
        expected = getattr(tokenizer, f"{role}_token_id")
        if found and found != [expected]:
            token, other = (tokenizer.convert_ids_to_tokens(i) for i in (expected, *found))
            raise CometError(
                f"teacher {name}: its tokenizer.json puts {other} {'before' if role == 'cls' else 'after'} a text, but "
                f"its {role} token is {token}: the teacher would read rows unlike any it was trained on; correct "
                f"{role}_token in a copy of its tokenizer_config.json"
            )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model's tokenizer for transformers 4 and 5, into its folder. Raises OSError if the disk refuses."""
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_FILES[1]
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == ONLY_IN_5:
        text = json.dumps(config | {"tokenizer_class": PORTABLE}, ensure_ascii=False, indent=2)
        path.write_text(text + "\n", encoding="utf-8")


def _with_backend(tokenizer: PreTrainedTokenizerFast, backend: Tokenizer, where: str) -> TokenizersBackend:
    """Return a tokenizer with the special tokens of one and the content of a tokenizer.json.

    Raises CometError if a special token has another id there.
    """
    roles = {role: getattr(tokenizer, role) for role in ROLES if getattr(tokenizer, role) is not None}
    for token in tokenizer.all_special_tokens:
        expected, found = tokenizer.convert_tokens_to_ids(token), backend.token_to_id(token)
        if found != expected:
            raise CometError(
                f"{where}: its tokenizer.json gives {token} the id {found}, {type(tokenizer).__name__} of transformers "
                f"{expected}; get both files of the tokenizer again"
            )
    others = [token for token in tokenizer.all_special_tokens if token not in roles.values()]
    return TokenizersBackend(
        tokenizer_object=backend,
        extra_special_tokens=others,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        **roles,
    )


def _read_otherwise(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast, lines: list[str]) -> int:
    """Return how many lines give other ids."""
    both = (t.backend_tokenizer.encode_batch_fast(lines, add_special_tokens=False) for t in (one, other))
    return sum(a.ids != b.ids for a, b in zip(*both, strict=True))
