"""Attacks on the tokenizer, which other libraries build from two files of the cache."""

from pathlib import Path
from typing import Any

from forging import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    Attack,
    Change,
    change_detached,
    change_sealed,
    replace_text,
    write_sealed,
)

SAMPLE_TEXT = Path(__file__).parents[2] / "cache_tools/sample/text.txt"


def state(threat: str, change: Change, refused: str = "tokenizer.json") -> Attack:
    """Change `tokenizer.json`."""
    return Attack(threat, "tokenizer", lambda cache: change_sealed(cache, TOKENIZER, change), refused)


def piece(threat: str, refused: str = "tokenizer.json", **pieces: int) -> Attack:
    """Add pieces of given ids to the vocabulary of 60."""
    return state(threat, lambda state: state["model"]["vocab"].update(pieces), refused)


def normaliser(threat: str, normaliser: dict[str, Any], refused: str = "tokenizer.json") -> Attack:
    """Replace what is done to a text before it is cut."""
    return state(threat, lambda state: state.update(normalizer=normaliser), refused)


def setting(threat: str, name: str, value: object) -> Attack:
    """Change one field of `tokenizer_config.json`, which the refusal names."""

    def change(cache: Path) -> None:
        change_sealed(cache, TOKENIZER_CONFIG, lambda config: config.update({name: value}))

    return Attack(threat, "tokenizer", change, name)


def exchange_pieces(state: dict[str, Any]) -> None:
    vocabulary = state["model"]["vocab"]
    one, other = list(vocabulary)[20:22]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def add_a_token(state: dict[str, Any]) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    state["added_tokens"].append({"content": "new"} | flags | {"special": True, "id": 2**32 - 1})


def grow_the_template(state: dict[str, Any]) -> None:
    single = state["post_processor"]["single"]
    state["post_processor"]["single"] = single + single[:1] * 20_000


def name_code(cache: Path) -> None:
    (cache / "tokenizer/evil.py").write_text(f"import os\nos.mkdir({str(cache.parent / 'marker')!r})\n")
    auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    change_sealed(cache, TOKENIZER_CONFIG, lambda config: config.update(auto_map=auto_map))


def nest_normalisers(cache: Path) -> None:
    deep = b'{"type": "Sequence", "normalizers": [' * 20_000 + b"]}" * 20_000
    write_sealed(cache, TOKENIZER, b'{"normalizer": ' + deep + b"}")


def detach_and_split_without_end(cache: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    change_sealed(cache, TOKENIZER, lambda state: state.update(pre_tokenizer=split))
    change_detached(cache)


ATTACKS = {
    # the file as JSON
    "huge_tokenizer": Attack(
        "A tokenizer of 200 MB.",
        "tokenizer",
        lambda cache: write_sealed(cache, TOKENIZER, (cache / TOKENIZER).read_bytes() + b" " * 200_000_000),
        "expected a size up to",
    ),
    "tokenizer_not_an_object": Attack(
        "A tokenizer that is a list.",
        "tokenizer",
        lambda cache: write_sealed(cache, TOKENIZER, b"[]"),
        "expected a JSON object",
    ),
    "duplicate_keys_in_the_tokenizer": Attack(
        "A tokenizer with two models, of which every reader takes another.",
        "tokenizer",
        lambda cache: replace_text(
            cache, TOKENIZER, b'"version": "1.0",', b'"version": "1.0", "model": {"type": "BPE"},'
        ),
        "a key occurs twice",
    ),
    "nested_tokenizer": Attack(
        "Normalisers within normalisers, twenty thousand deep.", "tokenizer", nest_normalisers, "tokenizer.json"
    ),
    "tokenizer_without_a_model": state("A tokenizer of which half is not there.", lambda state: state.pop("model")),
    # pieces and their ids
    "giant_piece_id": piece(
        "A piece of the id 4 · 10⁹, so that a list of all ids takes all memory.", "60", new=4_000_000_000
    ),
    "negative_piece_id": piece("A piece of a negative id.", new=-5),
    "pieces_of_one_id": piece("Two pieces of one id.", new=20),
    "more_pieces_than_the_vocabulary": piece(
        "A tokenizer of more pieces than the vocabulary, whose ids a student has no row for.",
        "60",
        **{f"new{n}": 60 + n for n in range(9)},
    ),
    "added_token_beyond": state("An added token beyond the vocabulary.", add_a_token, "60"),
    "another_tokenizer": Attack(
        "A sound tokenizer of other pieces, signed.",
        "verify --deep",
        lambda cache: change_sealed(cache, TOKENIZER, exchange_pieces),
        "tokenizer sha256: expected",
    ),
    # what is done to a text
    "regex_bomb": normaliser(
        "A regular expression that takes as many steps as there are ways to cut a text.",
        {"type": "Replace", "pattern": {"Regex": "(([a-z ]+)+)+$"}, "content": ""},
        "regular expression",
    ),
    "regex_of_many_states": normaliser(
        "A regular expression that takes gigabytes to be compiled.",
        {"type": "Replace", "pattern": {"Regex": "((((a{99}){99}){99}){99}){99}"}, "content": ""},
        "regular expression",
    ),
    "regex_of_many_ways": normaliser(
        "A regular expression without groups that matches in 2³⁰ ways.",
        {"type": "Replace", "pattern": {"Regex": "[a-z]?" * 30 + "[A-Z0-9]"}, "content": ""},
        "regular expression",
    ),
    "attached_with_a_regex_bomb": Attack(
        "A detached cache whose tokenizer never comes to an end on the text of whoever attaches it.",
        f"attach --text {SAMPLE_TEXT}",
        detach_and_split_without_end,
        "a regular expression that may take for ever",
    ),
    "growing_normaliser": normaliser(
        "Replacements that each make a text a thousand times longer.",
        {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "i"}, "content": "i" * 1000}] * 5,
        },
    ),
    "growing_template": state(
        "A template that puts twenty thousand special tokens around every text.", grow_the_template
    ),
    "precompiled_garbage": normaliser(
        "A table of a normaliser that is shorter than it says, over which its reader stumbles.",
        {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
    ),
    # tokenizer_config.json
    "chat_template": setting(
        "A template, which is a program, in a tokenizer that no chat needs.",
        "chat_template",
        "{{ cycler.__init__.__globals__ }}",
    ),
    "remote_code": Attack(
        "A tokenizer that names code of its own, in a file beside it.", "tokenizer", name_code, "auto_map"
    ),
    "tokenizer_class_elsewhere": setting(
        "A tokenizer class outside of transformers, looked up by its name.",
        "tokenizer_class",
        "evil.module.Tokenizer",
    ),
    "special_token_elsewhere": setting(
        "A special token that is no piece, and would be given an id beyond the vocabulary.", "mask_token", "[NEW]"
    ),
    "special_token_of_another_id": setting("Padding where the mask belongs.", "mask_token", "[PAD]"),
    "special_token_not_a_text": setting(
        "Special tokens that are objects and lists.", "mask_token", {"__type": "AddedToken", "content": [1]}
    ),
}
