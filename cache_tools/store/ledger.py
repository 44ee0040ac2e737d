"""The ledger of a cache: the seal, the extent, and one commit record for each shard.

A shard exists if its record does. Records name arrays, never paths, so no record can point outside the cache.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.places.destinations import SEAL as SEAL
from cache_tools.signals import TEXT_ARRAYS, TOKEN_ARRAYS
from cache_tools.store.layout import MAX_METADATA_BYTES, VOCABULARY, group_arrays, max_file_bytes, vocabulary_arrays
from cache_tools.store.recipe import GROUPS, Recipe, is_digest
from cache_tools.store.records import MAX_RECORD_BYTES, canonical, checked, inside, read_bounded, read_checked, sha256
from cache_tools.store.start import START, start_arrays

LEDGER = "ledger"
EXTENT = f"{LEDGER}/extent.json"
LOCK = f"{LEDGER}/lock"
CARD = "README.md"  # for people
TOKENIZER = "tokenizer"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
MAX_ATTRIBUTES_BYTES = 2**20
MAX_NUMERICS = 32


class ShardKey(NamedTuple):
    """One shard of a cache: its group, train or validation, and its number in the group."""

    group: str
    shard: int

    def __str__(self) -> str:
        return f"{self.group} {self.shard}"


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str

    def matches(self, data: bytes) -> bool:
        return len(data) == self.size and sha256(data) == self.sha256

    def to_json(self) -> dict[str, Any]:
        return {"bytes": self.size, "sha256": self.sha256}


def file_record(data: bytes) -> FileRecord:
    return FileRecord(len(data), sha256(data))


@dataclass(frozen=True)
class ShardRecord:
    """The commit record of one shard: a file for each array, and the device and versions that decide its last bits."""

    recipe_id: str
    group: str
    shard: int
    files: dict[str, FileRecord]
    numerics: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"files": {name: file.to_json() for name, file in self.files.items()}}


@dataclass(frozen=True)
class Seal:
    """Written once, when the rows are fixed: every file outside the shards, and a digest of each shard's tokens."""

    recipe_id: str
    files: dict[str, FileRecord]
    token_digests: dict[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"files": {path: file.to_json() for path, file in self.files.items()}}


@dataclass(frozen=True)
class Extent:
    """The arrays and shards that this copy is meant to hold; `shards` as half-open ranges for each group."""

    recipe_id: str
    arrays: tuple[str, ...]
    shards: dict[str, tuple[tuple[int, int], ...]]

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def keys(self) -> list[ShardKey]:
        """Return the key of every shard, train first."""
        return [ShardKey(group, shard) for group in GROUPS for shard in self.indices(group)]

    def indices(self, group: str) -> list[int]:
        return [shard for start, stop in self.shards[group] for shard in range(start, stop)]

    @property
    def has_text(self) -> bool:
        """Whether it holds all of TEXT_ARRAYS; without them nothing can be trained."""
        return set(TEXT_ARRAYS) <= set(self.arrays)


def whole_extent(recipe: Recipe) -> Extent:
    """Return the extent of all arrays and all shards."""
    shards: dict[str, tuple[tuple[int, int], ...]] = {
        group: ((0, recipe.shards(group)),) if recipe.rows(group) else () for group in GROUPS
    }
    return Extent(recipe.recipe_id, tuple(group_arrays(recipe, "train")), shards)


def without_text(extent: Extent) -> Extent:
    """Return the same extent without the arrays of the text."""
    return replace(extent, arrays=tuple(name for name in extent.arrays if name not in TEXT_ARRAYS))


def with_tokens(extent: Extent, recipe: Recipe) -> Extent:
    """Return the same extent with all token arrays."""
    names = tuple(name for name in group_arrays(recipe, "train") if name in (*TOKEN_ARRAYS, *extent.arrays))
    return replace(extent, arrays=names)


def token_digest(arrays: Mapping[str, NDArray]) -> str:
    """Return SHA-256 over the token arrays of one shard, little-endian, in the order of TOKEN_ARRAYS."""
    digest = hashlib.sha256()
    for name in TOKEN_ARRAYS:
        digest.update(np.ascontiguousarray(arrays[name], dtype=arrays[name].dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def group_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the groups of the hierarchy below the root."""
    return (*GROUPS, VOCABULARY, *((START,) if recipe.start_layers else ()))


def sealed_limits(recipe: Recipe) -> dict[str, int]:
    """Return every file that the seal lists, relative to the cache, with its largest allowed size in bytes."""
    specs = [spec for group in GROUPS for spec in group_arrays(recipe, group).values()]
    sealed = [*vocabulary_arrays(recipe).values(), *start_arrays(recipe).values()]
    return (
        {"zarr.json": MAX_ATTRIBUTES_BYTES}
        | {f"{name}/zarr.json": MAX_METADATA_BYTES for name in group_names(recipe)}
        | {f"{spec.path}/zarr.json": MAX_METADATA_BYTES for spec in specs + sealed}
        | {path: max_file_bytes(spec) for spec in sealed for path in spec.chunk_paths()}
        | {f"{TOKENIZER}/{name}": max_tokenizer_bytes(recipe.vocab_size) for name in TOKENIZER_FILES}
    )


def max_tokenizer_bytes(vocab_size: int) -> int:
    """Return the largest allowed size of a tokenizer's file in bytes."""
    return 2**20 + 256 * vocab_size


def shard_record_path(group: str, shard: int) -> str:
    """Return the path of a shard's commit record, relative to the cache."""
    return f"{LEDGER}/{group}-{shard:05d}.json"


def _read_file_records(value: Any, names: set[str], limit: dict[str, int], where: Path | str) -> dict[str, FileRecord]:
    """Parse file records for exactly these names, none larger than its limit. Raises CometError otherwise."""
    if not isinstance(value, dict) or set(value) != names:
        found = sorted(value) if isinstance(value, dict) else value
        raise CometError(f"{where}: expected records of {sorted(names)}, found {str(found)[:300]}")
    records = {}
    for name, entry in value.items():
        ok = isinstance(entry, dict) and set(entry) == {"bytes", "sha256"} and is_digest(entry["sha256"])
        if not ok or type(entry["bytes"]) is not int or not 0 <= entry["bytes"] <= limit[name]:
            raise CometError(f"{where}: {name}: expected a size up to {limit[name]} and a sha256, found {entry!r:.200}")
        records[name] = FileRecord(entry["bytes"], entry["sha256"])
    return records


def read_shard_record(root: Path, recipe: Recipe, group: str, shard: int, limit: dict[str, int]) -> ShardRecord | None:
    """Return the commit record of one shard, None if the shard is not committed.

    `limit` gives the largest file of each array. Raises CometError for a damaged record or one of another cache.
    """
    path = inside(root, shard_record_path(group, shard))
    if not os.path.lexists(path):
        return None
    return parse_shard_record(read_bounded(path, MAX_RECORD_BYTES), path, recipe, group, shard, limit)


def parse_shard_record(
    data: bytes, path: Path | str, recipe: Recipe, group: str, shard: int, limit: dict[str, int]
) -> ShardRecord:
    """Parse the commit record of one shard; `path` is where the bytes are from.

    Raises CometError for a damaged record or one of another cache.
    """
    record = _with_fields(checked(data, path), path, ("recipe_id", "group", "shard", "files", "numerics"))
    expected = {"recipe_id": recipe.recipe_id, "group": group, "shard": shard}
    for name, value in expected.items():
        if record[name] != value or type(record[name]) is not type(value):
            raise CometError(
                f"{path}: {name}: expected {value}, found {str(record[name])[:80]!r}; "
                "the record belongs to another cache or shard"
            )
    numerics = record["numerics"]
    texts = [*numerics, *numerics.values()] if isinstance(numerics, dict) else [None]
    if len(texts) > 2 * MAX_NUMERICS or not all(map(_is_short, texts)):
        raise CometError(f"{path}: expected numerics as short texts, found {str(numerics)[:200]!r}")
    files = _read_file_records(record.get("files"), set(limit), limit, path)
    return ShardRecord(recipe.recipe_id, group, shard, files, numerics)


def _with_fields(record: dict[str, Any], path: Path | str, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the record if it has exactly these fields. Raises CometError otherwise."""
    if set(record) != set(names):
        raise CometError(f"{path}: expected the fields {', '.join(names)}, found {', '.join(sorted(record))[:200]}")
    return record


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200 and value.isprintable()


def read_seal(root: Path, recipe: Recipe) -> Seal:
    """Read the seal of a cache. Raises CometError unless it lists exactly the files that its recipe demands."""
    path = inside(root, SEAL)
    record = _with_fields(read_checked(path), path, ("recipe_id", "files", "token_digests"))
    _require_recipe(record, recipe, path)
    limit = sealed_limits(recipe)
    files = _read_file_records(record["files"], set(limit), limit, path)
    given = record["token_digests"]
    digests = {}
    for group in GROUPS:
        found = given.get(group) if isinstance(given, dict) else None
        if not isinstance(found, list) or len(found) != recipe.shards(group) or not all(map(is_digest, found)):
            raise CometError(f"{path}: token_digests: expected {recipe.shards(group)} digests of {group}")
        digests[group] = tuple(found)
    return Seal(recipe.recipe_id, files, digests)


def _require_recipe(record: Mapping[str, Any], recipe: Recipe, path: Path | str) -> None:
    if record["recipe_id"] != recipe.recipe_id:
        raise CometError(f"{path}: recipe_id: expected {recipe.recipe_id}, found {str(record['recipe_id'])[:80]!r}")


def read_extent(root: Path, recipe: Recipe, arrays: tuple[str, ...]) -> Extent:
    """Read the extent of this copy. Raises CometError for unknown arrays or ranges outside the recipe's shards."""
    path = inside(root, EXTENT)
    return parse_extent(read_bounded(path, MAX_RECORD_BYTES), path, recipe, arrays)


def parse_extent(data: bytes, path: Path | str, recipe: Recipe, arrays: tuple[str, ...]) -> Extent:
    """Parse the extent; `path` is where the bytes are from. Raises CometError as `read_extent` does."""
    record = _with_fields(checked(data, path), path, ("recipe_id", "arrays", "shards"))
    _require_recipe(record, recipe, path)
    names, shards = record["arrays"], record["shards"]
    if not isinstance(names, list) or names != [a for a in arrays if a in names]:
        raise CometError(f"{path}: arrays: expected some of {list(arrays)} in this order, found {str(names)[:200]}")
    ranges = {}
    for group in GROUPS:
        found = shards.get(group) if isinstance(shards, dict) else None
        pairs: list[Any] = found if isinstance(found, list) else [found]
        last = -1
        for pair in pairs:
            ok = isinstance(pair, list) and len(pair) == 2 and all(type(x) is int for x in pair)
            if not ok or not last < pair[0] < pair[1] <= recipe.shards(group):
                raise CometError(
                    f"{path}: shards of {group}: expected ascending ranges up to {recipe.shards(group)} with gaps "
                    f"between them, found {str(found)[:200]}"
                )
            last = pair[1]
        ranges[group] = tuple((start, stop) for start, stop in pairs)
    return Extent(recipe.recipe_id, tuple(names), ranges)


def cache_id(recipe: Recipe, seal: Seal, extent: Extent, records: Mapping[ShardKey, ShardRecord]) -> str:
    """Return the cache id: SHA-256 over the recipe id, the seal, the extent and every commit record in it, as JSON.

    `records` must hold every shard of the extent.
    """
    parts: list[Any] = [recipe.recipe_id, sha256(canonical(seal.to_json())), extent.to_json()]
    return sha256(canonical(parts + [sha256(canonical(records[key].to_json())) for key in extent.keys()]))
