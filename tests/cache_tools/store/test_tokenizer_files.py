"""What a tokenizer from outside may hold: real ones do, and what could run, hang or fill the memory is refused."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache_tools.errors import CometError
from cache_tools.store.tokenizer import is_charsmap, is_simple, parse_tokenizer, parse_tokenizer_config


@pytest.fixture
def state(sample_teacher: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sample_teacher / "tokenizer.json").read_bytes())
    return found


def test_the_sample_s_tokenizer_passes(sample_teacher: Path) -> None:
    assert parse_tokenizer((sample_teacher / "tokenizer.json").read_bytes(), 8000, "here")["model"]["unk_id"] == 3
    config = parse_tokenizer_config((sample_teacher / "tokenizer_config.json").read_bytes(), "here")
    assert (config["mask_token"], config["model_max_length"], len(config)) == ("<mask>", 512, 8)
    with pytest.raises(CometError, match=r"^here: added_tokens: expected different ids below 7999, found others$"):
        parse_tokenizer((sample_teacher / "tokenizer.json").read_bytes(), 7999, "here")


def test_the_real_tokenizer_passes(shared: Path) -> None:
    """XLM-R's, with its table of characters and its regular expression."""
    folder = shared / "data/xlm-roberta-tokenizer"
    data = lzma.decompress((folder / "tokenizer.json.xz").read_bytes())
    assert len(parse_tokenizer(data, 250_002, "here")["model"]["vocab"]) == 250_002
    assert parse_tokenizer_config((folder / "tokenizer_config.json").read_bytes(), "here")["mask_token"] == "<mask>"


def replace(pattern: dict[str, str], content: str = "") -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [nested(depth - 1)]} if depth else {"type": "NFC"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model"), "expected a model with a type"),
        (lambda s: s.update(added_tokens={}), "added_tokens: expected a list of tokens"),
        (lambda s: s["added_tokens"].append({"id": 3}), "added_tokens: expected a list of tokens"),
        (lambda s: s["added_tokens"][0].update(id=8000), "added_tokens: expected different ids below 8000"),
        (lambda s: s["added_tokens"][0].update(id=True), "added_tokens: expected different ids below 8000"),
        (lambda s: s["model"]["vocab"].append(["x", "y"]), "model: expected tokens with scores"),
        (lambda s: s["model"]["vocab"].extend([["x", 0.0]] * 2), "model: expected different ids below 8000"),
        (lambda s: s["model"].update(unk_id=8000), "unk_id: expected an id below"),
        (lambda s: s["model"].update(type="WordPiece", vocab=[]), "model: expected tokens with ids"),
        (lambda s: s["model"].update(type="WordPiece", vocab={"x": 2**32}), "model: expected different ids below"),
        (lambda s: s["model"].update(type="WordPiece", vocab={"x": 1, "y": 1}), "model: expected different ids below"),
        (lambda s: s["model"].update(type="BPE", vocab={"x": 1}, merges=["x"]), "merges: expected pairs of tokens"),
        (lambda s: s["model"].update(type="BPE", vocab={"x": 1}, merges=[["x", 1]]), "merges: expected pairs of tok"),
        (lambda s: s["model"].update(type="BPE", vocab={"x": 1}, merges=7), "merges: expected pairs of tokens"),
        (lambda s: s["post_processor"]["special_tokens"]["<s>"].update(ids=[8000]), "post_processor: expected ids"),
        (lambda s: s.update(post_processor={"sep": ["</s>", -1]}), "post_processor: expected ids below 8000"),
        (lambda s: s["post_processor"].update(single=[{}] * 65), "a list of 65 entries beside the vocabulary"),
        (lambda s: s.update(normalizer=nested(9)), "nested deeper than 16"),
        (lambda s: s.update(normalizer=replace({"Regex": "(a+)+"})), "a regular expression that may take for ever"),
        (lambda s: s.update(normalizer=replace({"Regex": "a"}, "b" * 1025)), "replacements that may make a text more"),
        (lambda s: s.update(decoder=[{"prepend": "b" * 33}] * 2), "replacements that may make a text more than 1024"),
        (lambda s: s.update(decoder=[{"type": "ByteLevel"}] * 4), "replacements that may make a text more than 1024"),
        (lambda s: s.update(normalizer={"precompiled_charsmap": "AAA"}), "precompiled_charsmap: expected a table"),
    ],
)
def test_a_hostile_tokenizer_is_refused(
    state: dict[str, Any], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(state)
    with pytest.raises(CometError, match=f"^here: {message}"):
        parse_tokenizer(json.dumps(state).encode(), 8000, "here")


@pytest.mark.parametrize(
    ("regex", "simple"),
    [
        (" {2,}", True),
        (r"\s{2,}|[\n\r\t]", True),
        (r"\p{L}+|\p{N}{1,3}| ?[^\s\p{P}]+", True),
        ("a|b|", True),
        (r"\(\[\*\+", True),
        (r"\\*\\*\\*", True),
        (r"\\*" * 4, False),
        ("a?" * 13, True),
        ("a?" * 14, False),
        ("a{0,99}" * 2, True),
        ("a{0,99}" * 3, False),
        (r"\p{12}" * 28 + "(", False),
        ("(a+)+$", False),
        ("(?:a|b)*", False),
        (r"(?!\S)", False),
        ("a{100}", False),
        ("a{9}{9}", False),
        ("a+*", False),
        ("a*a*a*a*", False),
        ("[a", False),
        ("a" * 201, False),
        (["a"], False),
    ],
)
def test_regular_expressions(regex: object, simple: bool) -> None:
    assert is_simple(regex) is simple


def test_tables_of_characters() -> None:
    assert is_charsmap("BAAAAAAAAAA=")  # a trie of one unit
    assert not any(map(is_charsmap, ["", "/////w==", "BAAAAA==", "AQAAAAAAAAA=", "?", 7]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"auto_map": {"AutoTokenizer": "x.Y"}}, "auto_map: a cache's tokenizer must not name code"),
        ({"chat_template": "{{ x }}"}, "chat_template: a cache's tokenizer must not name code"),
        ({"tokenizer_class": "os.system"}, "tokenizer_class: expected the name of a class of transformers"),
        ({"mask_token": 7}, "mask_token: expected a string, found '7'"),
        ({"mask_token": {"content": None}}, "mask_token: expected a string"),
        ({"model_max_length": -1}, "model_max_length: expected a number of tokens"),
    ],
)
def test_hostile_settings_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CometError, match=f"^here: {message}"):
        parse_tokenizer_config(json.dumps(config).encode(), "here")


def test_special_tokens_may_be_objects() -> None:
    config = {"mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True}, "pad_token": None}
    assert parse_tokenizer_config(json.dumps(config).encode(), "here") == {"mask_token": "<mask>"}
