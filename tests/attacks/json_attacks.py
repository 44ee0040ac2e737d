"""Attacks on the sealed JSON: metadata, recipe and provenance."""

import json
from pathlib import Path
from typing import Any

from forging import (
    ARRAY,
    ROOT,
    Attack,
    Change,
    change_detached,
    change_facts,
    change_recipe,
    change_record,
    change_sealed,
    replace_text,
    write_sealed,
)

from cache_tools.store.ledger import EXTENT


def text(threat: str, old: bytes, new: bytes, refused: str, path: str = ROOT) -> Attack:
    """Replace bytes of a sealed JSON file."""
    return Attack(threat, "info", lambda cache: replace_text(cache, path, old, new), refused)


def metadata(threat: str, change: Change, refused: str, path: str = ARRAY, against: str = "train") -> Attack:
    """Change the metadata of an array, of a group or of the root."""
    return Attack(threat, against, lambda cache: change_sealed(cache, path, change), refused)


def facts(threat: str, change: Change, refused: str) -> Attack:
    """Change the recipe and what stands beside it, and nothing that follows from them."""
    return Attack(threat, "info", lambda cache: change_facts(cache, change), refused)


def recipe(threat: str, refused: str, against: str = "info", **fields: Any) -> Attack:
    """Change fields of the recipe, and everything that follows from them."""
    return Attack(threat, against, lambda cache: change_recipe(cache, **fields), refused)


def provenance(threat: str, refused: str = "", shown: str = "", against: str = "info", **fields: Any) -> Attack:
    """Change fields of the provenance."""

    def change(cache: Path) -> None:
        change_facts(cache, lambda comet: comet["provenance"].update(fields))

    return Attack(threat, against, change, refused, shown)


def shard_chunks(array: dict[str, Any]) -> None:
    inner = {"chunk_shape": [1, 2, 2], "codecs": array["codecs"], "index_codecs": [{"name": "bytes"}]}
    array["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]


def claim_billions_of_shards(cache: Path) -> None:
    change_recipe(cache, train_rows=2**40, rows_per_shard=1)
    change_record(cache, EXTENT, lambda extent: extent["shards"].update(train=[[0, 2**40]]))


def name_the_text_and_detach(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(text=[{"name": "$(rm -rf ~); x"}]))
    change_detached(cache)


ATTACKS = {
    # what is no strict JSON, or too much of it
    "duplicate_keys": text(
        "A key twice in one object: two readers may each believe another.",
        b'"views": 1',
        b'"views": 2, "views": 1',
        "a key occurs twice",
    ),
    "nan_in_json": text("NaN, which is no JSON, in the recipe.", b"0.15", b"NaN", "NaN is not a JSON number"),
    "float_beyond_range": text(
        "A number that becomes infinite when it is read.", b"0.15", b"1e999", "1e999 is beyond floating point"
    ),
    "invalid_utf8": text("Bytes that are no UTF-8.", b"Kinyarwanda", b"Kinya\xffrwanda", "not a valid JSON record"),
    "giant_integer": text(
        "A whole number of 60,000 digits, which takes a parser minutes where it is quadratic.",
        b"[\n    13,",
        b"[\n    " + b"9" * 60_000 + b",",
        "not a valid JSON record",
        ARRAY,
    ),
    "deep_nesting": Attack(
        "Lists in lists, half a million deep, to overflow the stack of a parser.",
        "info",
        lambda cache: write_sealed(cache, ROOT, b'{"attributes": ' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
        "not a valid JSON record",
    ),
    "nesting_at_the_limit": metadata(
        "Lists in lists, as deep as a parser takes them, to overflow the stack of whoever shows or writes them.",
        lambda array: array.update(fill_value=json.loads("[" * 700 + "0" + "]" * 700)),
        "nested deeper than",
        against="info",
    ),
    "millions_of_attributes": Attack(
        "Two million attributes on an array.",
        "info",
        lambda cache: write_sealed(
            cache, ARRAY, b'{"attributes":{' + b",".join(b'"%d":0' % number for number in range(2_000_000)) + b"}}"
        ),
        "a size up to 65536",
    ),
    # metadata of Zarr
    "attributes_of_the_root": metadata(
        "Attributes beside ours, as many as the root has room for.",
        lambda root: root["attributes"].update({str(n): n for n in range(50_000)}),
        "attributes: expected",
        ROOT,
        "info",
    ),
    "attributes_of_a_group": metadata(
        "Attributes of a group, which a reader of Zarr hands on.",
        lambda group: group.update(attributes={"comet": {}}),
        "train/zarr.json: attributes: expected",
        "train/zarr.json",
    ),
    "consolidated_metadata": metadata(
        "Consolidated metadata, by which Zarr would read other arrays than the files say.",
        lambda root: root.update(consolidated_metadata={"kind": "inline", "must_understand": False, "metadata": {}}),
        "consolidated_metadata: expected",
        ROOT,
        "info",
    ),
    "chunk_grid": metadata(
        "Chunks of one row, so that there are more of them than the ledger knows.",
        lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=[1, 2, 2]),
        "chunk_grid: expected",
    ),
    "chunk_keys": metadata(
        "Chunks under other names, which the ledger does not list.",
        lambda array: array.update(chunk_key_encoding={"name": "v2", "configuration": {"separator": "."}}),
        "chunk_key_encoding: expected",
    ),
    "codec_by_name": metadata(
        "A codec of its own, looked up by its name among installed packages.",
        lambda array: array["codecs"].append({"name": "evil.codec"}),
        "codecs: expected",
    ),
    "sharding_codec": metadata(
        "The sharding codec, whose index says where in a file a chunk lies.", shard_chunks, "codecs: expected"
    ),
    "storage_transformer": metadata(
        "A storage transformer, looked up by its name.",
        lambda array: array.update(storage_transformers=[{"name": "evil"}]),
        "storage_transformers: expected",
    ),
    "object_array": metadata(
        "An array of Python objects.",
        lambda array: array.update(data_type="object", fill_value=None),
        "data_type: expected float32, found object",
    ),
    "huge_shape": metadata(
        "An array that is declared 2⁶⁰ rows long, so that a reader makes room for them.",
        lambda array: array.update(shape=[2**60, 2, 2]),
        "shape: expected [13, 2, 2], found [1152921504606846976, 2, 2]",
    ),
    # the recipe
    "negative_rows": recipe(
        "A recipe of fewer than no rows.",
        "recipe field 'train_rows': expected a whole number from 1 to",
        train_rows=-(2**40),
    ),
    "true_as_a_number": recipe(
        "A truth value where the recipe has a whole number; Python counts with it.",
        "recipe field 'views': expected a whole number",
        views=True,
    ),
    "architecture_of_escape_codes": recipe(
        "Escape codes in the name of the teacher's architecture.",
        "recipe field 'teacher_architecture'",
        teacher_architecture="\x1b[2JBert",
    ),
    "huge_recipe": recipe(
        "A recipe whose numbers are all allowed, and whose shards would take terabytes.",
        "bytes of memory, most of them for sample_id",
        "train",
        rows_per_shard=2**20,
        seq_len=2**15,
        max_targets=2**15,
        train_rows=2**40,
    ),
    "billions_of_shards": Attack(
        "A recipe of 2⁴⁰ shards, with an extent that claims them all.",
        "info",
        claim_billions_of_shards,
        "token_digests: expected 1099511627776 digests of train",
    ),
    "forged_seed": recipe(
        "Another seed in the recipe, everything signed again: masks that are not the seed's.",
        "differs from the masking of view 0",
        "verify --deep",
        seed=1,
    ),
    "forged_recipe_id": facts(
        "A recipe id that is not the one of the recipe, by which two caches would be taken for one.",
        lambda comet: comet.update(recipe_id="0" * 64),
        "recipe_id: expected",
    ),
    "key_of_escape_codes": facts(
        "Escape codes in the name of a field that does not belong.",
        lambda comet: comet["recipe"].update({"\x1b[2J": 1}),
        "recipe fields missing or unknown",
    ),
    "escape_codes_in_an_error": facts(
        "A recipe that is refused, with escape codes where the refusal quotes it.",
        lambda comet: comet["recipe"].update(keep="\x1b[2J\nsound and complete"),
        "recipe field 'keep': expected threshold or topk",
    ),
    # the provenance
    "escape_codes": provenance(
        "Provenance that clears the screen, renames the window and writes what it likes.",
        shown="\\x1b[2J\\x1b]0;owned\\x07sound",
        teacher="\x1b[2J\x1b]0;owned\x07sound",
    ),
    "escape_codes_as_toml": provenance(
        "The same in the options that `info --toml` prints, with an option of its own.",
        shown='teacher = "',
        against="info --toml",
        teacher='"\npush-to = "/tmp\x1b[2J',
    ),
    "bidirectional_text": provenance(
        "Provenance that turns the direction of the text around, so that a line reads otherwise.",
        shown="Kinya\\u202edrawn\\u2066 (kin)",
        language_name="Kinya\u202edrawn\u2066",
    ),
    "lines_in_provenance": provenance(
        "Provenance with a line of its own, which claims a state.",
        shown="kin\\n  cache id  forged\\r (kin)",
        language_name="kin\n  cache id  forged\r",
    ),
    "endless_provenance": provenance(
        "Provenance of half a megabyte in one line.", shown="teacher            aaaaaaaa", teacher="a" * 500_000
    ),
    "markup_as_language": provenance(
        "A language that puts fields of its own into the header of a student's card.",
        "provenance: language: expected a code of two or three letters",
        language="kin]\nlicense: [mit",
    ),
    "provenance_of_other_types": provenance(
        "Provenance whose texts are numbers, and whose lists are texts.", "provenance", text=7, excluded="abc"
    ),
    "sources_of_other_types": provenance(
        "Sources in the provenance that are no objects.", "provenance", against="info --toml", text=[["name", 1]]
    ),
    "text_tokens_of_other_types": provenance(
        "Counts in the provenance that cannot be counted with.", "text_tokens", text_tokens=[1]
    ),
    "shell_in_a_name": Attack(
        "A text's name that is a command of a shell, in the call that the cache asks a person to copy.",
        "train",
        name_the_text_and_detach,
        "--text '$(rm -rf ~); x'",
    ),
}
