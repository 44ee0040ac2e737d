"""Records, seal, extent and attributes that were edited, by accident or with a sound checksum, are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.small_caches import change_json, flip_byte, prepare_cache, shard_keys, small_recipe

from cache_tools import open_cache
from cache_tools.errors import CometError
from cache_tools.store.ledger import EXTENT, SEAL

RECIPE = small_recipe()


def read_everything(root: Path) -> None:
    found = open_cache(root)
    found.require_complete()
    for key in shard_keys(RECIPE):
        found.read_shard(*key)
    assert found.vocabulary.id.size
    assert found.tokenizer_folder.is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(recipe_id="e" * 64), f"recipe_id: expected {RECIPE.recipe_id}, found 'eeee"),
        (lambda r: r.update(group="validation"), "group: expected train, found 'validation'"),
        (lambda r: r.update(shard=1), "shard: expected 0, found '1'"),
        (lambda r: r["files"].pop("length"), "expected records of "),
        (lambda r: r["files"].update({"../../x": r["files"]["length"]}), "expected records of "),
        (lambda r: r.update(files=[]), "expected records of "),
        (lambda r: r["files"]["length"].update(bytes=2**40), "length: expected a size up to 28 and a sha256"),
        (lambda r: r["files"]["length"].update(bytes=-1), "length: expected a size up to 28 and a sha256"),
        (lambda r: r["files"]["length"].update(bytes=True), "length: expected a size up to 28 and a sha256"),
        (lambda r: r["files"]["length"].update(sha256="x"), "length: expected a size up to 28 and a sha256"),
        (lambda r: r["files"]["length"].update(more=1), "length: expected a size up to 28 and a sha256"),
        (lambda r: r.update(numerics={"device": 1}), "expected numerics as short texts"),
        (lambda r: r.update(numerics={"device": "x" * 201}), "expected numerics as short texts"),
        (lambda r: r.update(numerics={"device": "\x1b[2J"}), "expected numerics as short texts"),
        (lambda r: r.update(numerics={str(n): "" for n in range(33)}), "expected numerics as short texts"),
        (lambda r: r.update(note="more"), "expected the fields recipe_id, group, shard, files, numerics, found "),
        (lambda r: r.update(shard=False), "shard: expected 0, found 'False'"),
    ],
)
def test_a_forged_record_is_refused(cache: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    file = cache / "ledger/train-00000.json"
    change_json(file, change, sign=True)
    with pytest.raises(CometError) as caught:
        open_cache(cache).record("train", 0)
    assert str(caught.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize("path", ["ledger/train-00000.json", SEAL, EXTENT])
def test_an_edited_record_is_noticed(cache: Path, path: str) -> None:
    change_json(cache / path, lambda record: record.update(note="harmless"))
    message = rf"^{cache / path}: its checksum does not match its content; the cache is damaged$"
    with pytest.raises(CometError, match=message):
        read_everything(cache)


@pytest.mark.parametrize("path", ["ledger/train-00000.json", SEAL, EXTENT])
def test_a_record_that_is_written_otherwise_is_noticed(cache: Path, path: str) -> None:
    """The same content in other bytes: a space, another order of keys, an escaped letter."""
    sound = (cache / path).read_text()
    for other in (sound + " ", sound.replace(":", ": ", 1), sound.replace('"recipe_id"', '"recipe_i\\u0064"')):
        assert other != sound
        (cache / path).write_text(other)
        with pytest.raises(CometError, match=rf"^{cache / path}: its checksum does not match its content"):
            read_everything(cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda comet: comet["recipe"].update(format=1), "cache format '1'; this version of comet reads format 2"),
        (lambda comet: comet["recipe"].update(seed=1), f"recipe_id: expected .*, found '{RECIPE.recipe_id}'"),
        (lambda comet: comet["recipe"].update(colour=1), "recipe fields missing or unknown: colour"),
        (lambda comet: comet["recipe"].pop("keep"), "recipe fields missing or unknown: keep"),
        (lambda comet: comet["recipe"].update(seq_len=2**60), "recipe field 'seq_len': expected a whole number"),
        (lambda comet: comet["recipe"].update(mask_prob=float("nan")), "NaN is not a JSON number"),
        (lambda comet: comet["provenance"].update(language="kin"), "not the sealed file; the cache is damaged"),
        (lambda comet: comet.update(recipe_id="f" * 64), f"recipe_id: expected {RECIPE.recipe_id}, found 'ffff"),
        (lambda comet: comet.pop("recipe"), "not a cache of comet: its attributes hold no recipe"),
        (lambda comet: comet.update(colour=1), "attributes: expected "),
        (lambda comet: comet.pop("settings"), "provenance: settings: expected an object, found 'None'"),
        (lambda comet: comet["provenance"].update(teacher=7), "provenance: teacher: expected a string, found '7'"),
        (lambda comet: comet["provenance"].update(text="abc"), "provenance: text: expected a list of named sources"),
        (lambda comet: comet["provenance"].update(text=[{"name": 1}]), "provenance: text: expected a list of named"),
        (lambda comet: comet["provenance"].update(documents=-1), "provenance: documents: expected a count, found '-1'"),
        (lambda comet: comet["provenance"].update(excluded=[{}]), "provenance: documents: expected a count"),
        (lambda comet: comet["settings"].update(dtype="load"), "provenance: dtype: expected float32 or float16 or"),
        (lambda comet: comet["settings"].update(batch_size=True), "provenance: batch_size: expected a number of rows"),
    ],
)
def test_edited_attributes_are_refused(cache: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    change_json(cache / "zarr.json", lambda attributes: change(attributes["attributes"]["comet"]))
    with pytest.raises(CometError, match=message):
        open_cache(cache)


@pytest.mark.parametrize("name", ["provenance", "settings"])
def test_attributes_that_no_reader_would_accept_are_not_sealed(tmp_path: Path, name: str) -> None:
    with pytest.raises(CometError, match=r"^zarr\.json would have \d+ bytes, more than the 1048576 that reader"):
        prepare_cache(tmp_path / "kin.zarr", RECIPE, attributes={name: {"text": "x" * 2**20}})
    assert not (tmp_path / "kin.zarr" / SEAL).exists()


def test_a_key_that_occurs_twice_is_refused(cache: Path) -> None:
    text = (cache / "zarr.json").read_text()
    assert '"seed"' in text
    (cache / "zarr.json").write_text(text.replace('"seed"', '"seed": 0, "seed"', 1))
    with pytest.raises(CometError, match=r"zarr\.json: not a valid JSON record \(a key occurs twice\)"):
        open_cache(cache)


@pytest.mark.parametrize(
    "path", ["train/zarr.json", "vocabulary/zarr.json", "train/topk_id/zarr.json", "vocabulary/id/zarr.json"]
)
def test_edited_metadata_is_refused(cache: Path, path: str) -> None:
    change_json(cache / path, lambda metadata: metadata.setdefault("attributes", {}).update(extra=1))
    with pytest.raises(CometError, match=rf"^{cache / path}: not the sealed file; the cache is damaged$"):
        open_cache(cache)


@pytest.mark.parametrize("path", ["vocabulary/embedding/c/0/0", "tokenizer/tokenizer.json"])
def test_edited_sealed_files_are_noticed_when_they_are_read(cache: Path, path: str) -> None:
    flip_byte(cache / path)
    with pytest.raises(CometError, match=rf"^{cache / path}: \d+ bytes that do not match the ledger"):
        read_everything(cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(recipe_id="e" * 64), "recipe_id: expected "),
        (lambda r: r["files"].pop("vocabulary/id/c/0"), "expected records of "),
        (lambda r: r["files"].update({"/etc/passwd": {"bytes": 1, "sha256": "a" * 64}}), "expected records of "),
        (lambda r: r["token_digests"]["train"].pop(), "token_digests: expected 3 digests of train"),
        (lambda r: r["token_digests"].pop("validation"), "token_digests: expected 1 digests of validation"),
        (lambda r: r["token_digests"]["train"].__setitem__(0, 7), "token_digests: expected 3 digests of train"),
    ],
)
def test_a_forged_seal_is_refused(cache: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    change_json(cache / SEAL, change, sign=True)
    with pytest.raises(CometError) as caught:
        open_cache(cache)
    assert str(caught.value).startswith(f"{cache / SEAL}: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(arrays=["topk_id", "input_ids"]), "arrays: expected some of "),
        (lambda r: r.update(arrays=["input_ids", "input_ids"]), "arrays: expected some of "),
        (lambda r: r.update(arrays=["../x"]), "arrays: expected some of "),
        (lambda r: r["shards"].update(train=[[0, 4]]), "shards of train: expected ascending ranges up to 3"),
        (lambda r: r["shards"].update(train=[[1, 1]]), "shards of train: expected ascending ranges up to 3"),
        (lambda r: r["shards"].update(train=[[0, 2], [1, 3]]), "shards of train: expected ascending ranges up to 3"),
        (lambda r: r["shards"].update(train=None), "shards of train: expected ascending ranges up to 3"),
        (lambda r: r["shards"].update(train=[[0, True]]), "shards of train: expected ascending ranges up to 3"),
        (lambda r: r["shards"].update(train=[[0, 1], [1, 3]]), "shards of train: expected ascending ranges up to 3"),
        (lambda r: r.pop("shards"), "expected the fields recipe_id, arrays, shards, found arrays, recipe_id"),
        (lambda r: r.update(recipe_id="e" * 64), f"recipe_id: expected {RECIPE.recipe_id}, found 'eeee"),
    ],
)
def test_a_forged_extent_is_refused(cache: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    change_json(cache / EXTENT, change, sign=True)
    with pytest.raises(CometError) as caught:
        open_cache(cache)
    assert str(caught.value).startswith(f"{cache / EXTENT}: {message}")
