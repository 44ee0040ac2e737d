"""Read a cache. Nothing is returned that does not match its record."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from os.path import isdir  # unlike that of Path it takes names that no disk has
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cache_tools.checks import shown
from cache_tools.errors import CometError
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.bounds import check_ranges, check_signals
from cache_tools.store.layout import (
    check_array,
    check_group,
    compare_metadata,
    decode_chunk,
    group_arrays,
    max_file_bytes,
    vocabulary_arrays,
)
from cache_tools.store.ledger import (
    EXTENT,
    MAX_ATTRIBUTES_BYTES,
    SEAL,
    TOKENIZER,
    TOKENIZER_FILES,
    Extent,
    FileRecord,
    Seal,
    ShardKey,
    ShardRecord,
    cache_id,
    file_record,
    group_names,
    read_extent,
    read_seal,
    read_shard_record,
    token_digest,
)
from cache_tools.store.provenance import attach_command, check_provenance
from cache_tools.store.recipe import GROUPS, Recipe, parse_recipe
from cache_tools.store.records import inside, parse_json, read_bounded
from cache_tools.store.start import start_arrays


@dataclass(frozen=True)
class Vocabulary:
    """The ids that occur in the corpus, ascending, and the cache's arrays about each.

    id [V_seen] int32; count [V_seen] int64; embedding [V_seen, w] float16, principal components of the teacher's input
    embeddings, leading first; head_bias [V_seen] float32, of the teacher's masked-LM head.
    """

    id: NDArray[np.int32]
    count: NDArray[np.int64]
    embedding: NDArray[np.float16]
    head_bias: NDArray[np.float32]


class ShardFiles(Protocol):
    """The files of committed shards, if they are not in the folder of the cache."""

    described: str
    """Description of how they are read."""

    def read(self, files: Mapping[str, FileRecord]) -> Mapping[str, bytes]:
        """Return the content of each file by its path in the cache. Raises CometError if one cannot be read."""
        ...

    def close(self) -> None:
        """Stop all waiting: `read` raises CometError from now on, also in other threads."""
        ...


class Cache:
    """An opened cache: its recipe, and its shards as numpy arrays, each file checked when it is first read.

    `name` is for messages: its folder, or its location if the folder holds only the files outside the shards.
    """

    def __init__(
        self,
        root: Path,
        recipe: Recipe,
        attributes: dict[str, Any],
        seal: Seal,
        extent: Extent,
        name: str | None = None,
        shard_files: ShardFiles | None = None,
    ) -> None:
        self.root = root
        self.name = name or str(root)
        self.recipe = recipe
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.settings: dict[str, Any] = attributes["settings"]
        self.seal = seal
        self.extent = extent
        self.specs = {group: group_arrays(recipe, group) for group in GROUPS}
        self.shard_files = shard_files
        self._records: dict[tuple[str, int], ShardRecord] = {}
        self._verified: set[str] = set()
        self._checked: dict[tuple[str, int], set[str]] = {}  # arrays of which every value was checked

    def __repr__(self) -> str:
        return f"Cache({self.name!r}, recipe_id={self.recipe.recipe_id[:12]!r})"

    def close(self) -> None:
        """Stop waiting for remote files; reading them raises CometError from now on."""
        if self.shard_files is not None:
            self.shard_files.close()

    @property
    def cache_id(self) -> str:
        """Identity of exactly this content. Raises CometError while shards are missing."""
        self.require_complete()
        return cache_id(self.recipe, self.seal, self.extent, self.records())

    def record(self, group: str, shard: int) -> ShardRecord | None:
        """Return the commit record of a shard, None if it is not committed. Raises CometError if it is damaged, or if
        the cache has no shard of this group and number."""
        self._require_shard(group, shard)
        key = (group, shard)
        if key not in self._records:
            limit = {name: max_file_bytes(spec) for name, spec in self.specs[group].items()}
            record = read_shard_record(self.root, self.recipe, group, shard, limit)
            if record is None:
                return None
            self._records[key] = record
        return self._records[key]

    def records(self) -> dict[ShardKey, ShardRecord]:
        """Return the commit records of the extent's committed shards, train first. Raises CometError if one is
        damaged."""
        found = {key: self.record(*key) for key in self.extent.keys()}
        return {key: record for key, record in found.items() if record is not None}

    def _require_shard(self, group: str, shard: int) -> None:
        if group not in GROUPS:
            raise CometError(f"{self.name}: no group {shown(group)}; expected {' or '.join(GROUPS)}", exit_code=2)
        if shard not in range(self.recipe.shards(group)):
            last = self.recipe.shards(group) - 1
            raise CometError(f"{self.name}: no shard {group} {shown(shard)}; expected 0 to {last}", exit_code=2)

    def missing(self, group: str) -> list[int]:
        """Return the shards of the extent that are not committed yet."""
        return [shard for shard in self.extent.indices(group) if self.record(group, shard) is None]

    def require_complete(self) -> None:
        """Raise CometError if a shard of the extent is missing."""
        missing = {group: len(self.missing(group)) for group in GROUPS}
        if any(missing.values()):
            of = {group: len(self.extent.indices(group)) for group in GROUPS}
            can_train = not missing["validation"] and missing["train"] < of["train"]
            part = "subset" if self.shard_files is None else "pull"
            take = f", or take those that are there: comet-cache {part} {shlex.quote(self.name)} part.zarr --fraction 1"
            raise CometError(
                f"{self.name}: the cache is incomplete: {sum(missing.values())} of {sum(of.values())} shards are "
                f"missing. Run the same `comet-cache build` again to finish it{take if can_train else ''}"
            )

    def require_text(self) -> None:
        """Raise CometError, with the command to run, if this copy is detached from its text."""
        if not self.extent.has_text:
            raise CometError(
                f"{self.root}: holds no text; attach the text first: {attach_command(self.root, self.provenance)}",
                exit_code=2,
            )

    def read_tokens(self, group: str, shard: int) -> tuple[dict[str, NDArray], dict[str, FileRecord]]:
        """Return the token arrays of a shard, committed or not, checked against the seal, and their file records.

        Raises CometError if they are not the sealed ones, or the cache has no shard of this group and number.
        """
        self._require_shard(group, shard)
        arrays, files = {}, {}
        for name in TOKEN_ARRAYS:
            spec = self.specs[group][name]
            data = read_bounded(inside(self.root, spec.chunk_path(shard)), max_file_bytes(spec))
            files[name] = file_record(data)
            arrays[name] = decode_chunk(spec, data, self.recipe.shard_rows(group, shard))
        if token_digest(arrays) != self.seal.token_digests[group][shard]:
            raise CometError(
                f"{self.root}: the tokens of shard {group} {shard} are not the sealed ones; "
                "`comet-cache repair` drops them, and `comet-cache build` rebuilds them, or `comet-cache pull` brings "
                "them from a sound copy"
            )
        return arrays, files

    def read_shard(
        self,
        group: str,
        shard: int,
        names: Iterable[str] | None = None,
        out: Mapping[str, NDArray] | None = None,
    ) -> dict[str, NDArray]:
        """Return arrays of one committed shard by name, by default all of the extent; axis 0 is the rows of the shard.

        With `out`, an array for each name, they are read into these. Raises CometError if the shard is missing, a file
        does not match its record, or a value is out of bounds (`bounds`).
        """
        record = self.record(group, shard)
        if record is None:
            raise CometError(f"{self.name}: shard {group} {shard} is not committed; run `comet-cache build` again")
        names = self.extent.arrays if names is None else tuple(names)
        if unheld := set(names) - set(self.extent.arrays):
            raise CometError(f"{self.name}: this copy does not hold {', '.join(sorted(unheld))}")
        rows, specs = self.recipe.shard_rows(group, shard), self.specs[group]
        paths = {name: specs[name].chunk_path(shard) for name in names}
        limits = {path: max_file_bytes(specs[name]) for name, path in paths.items()}
        files = self.read_files({path: record.files[name] for name, path in paths.items()}, limits)
        into = dict.fromkeys(names) if out is None else out
        arrays = {name: decode_chunk(specs[name], files[path], rows, into[name]) for name, path in paths.items()}
        where = f"{self.name}: shard {group} {shard}"
        check_ranges(arrays, self.recipe, where)
        checked = self._checked.setdefault((group, shard), set())
        if "target_position" in arrays and not checked >= arrays.keys():
            check_signals(arrays, where)
            checked.update(arrays)
        return arrays

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary arrays. Raises CometError if a file is not the sealed one."""
        arrays = {}
        for name, spec in vocabulary_arrays(self.recipe).items():
            path = spec.chunk_path(0)
            data = self._read_file(path, self.seal.files[path], max_file_bytes(spec))
            arrays[name] = decode_chunk(spec, data, spec.shape[0])
        ids = arrays["id"]
        if ids[0] < 0 or ids[-1] >= self.recipe.vocab_size or np.any(np.diff(ids) <= 0):
            raise CometError(f"{self.name}: vocabulary/id: expected ascending ids below {self.recipe.vocab_size}")
        if arrays["count"].min() < 1:
            raise CometError(f"{self.name}: vocabulary/count: expected at least 1 of each; the cache is damaged")
        for name in ("embedding", "head_bias"):
            if not np.isfinite(arrays[name]).all():
                raise CometError(f"{self.name}: vocabulary/{name}: a value is not finite; the cache is damaged")
        return Vocabulary(**arrays)

    @cached_property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer, its files checked against the seal."""
        for name in TOKENIZER_FILES:
            path = f"{TOKENIZER}/{name}"
            self._read_file(path, self.seal.files[path], self.seal.files[path].size)
        return self.root / TOKENIZER

    def read_files(self, files: Mapping[str, FileRecord], limits: Mapping[str, int]) -> Mapping[str, bytes]:
        """Return files by their paths, each compared with its record when it is first read. `limits` are the largest
        sizes."""
        if self.shard_files is None:
            return {path: self._read_file(path, record, limits[path]) for path, record in files.items()}
        found = self.shard_files.read(files)
        for path, data in found.items():
            self._compare(self.name, path, data, files[path])
        return found

    def _read_file(self, path: str, record: FileRecord, limit: int) -> bytes:
        data = read_bounded(inside(self.root, path), limit)
        self._compare(str(self.root), path, data, record)
        return data

    def _compare(self, where: str, path: str, data: bytes, record: FileRecord) -> None:
        if path in self._verified:
            return
        if not record.matches(data):
            raise CometError(
                f"{where}/{path}: {len(data)} bytes that do not match the ledger (expected {record.size} bytes, "
                f"sha256 {record.sha256[:12]}…); the file is damaged or belongs to another shard"
            )
        self._verified.add(path)


def open_cache(path: str | Path, name: str | None = None, shard_files: ShardFiles | None = None) -> Cache:
    """Open a cache, finished or not, and check its metadata against its recipe and its seal.

    With `name` and `shard_files` the folder holds everything but the files of shards, which `shard_files` reads. Raises
    CometError if there is no cache, or it is of another format version, unsealed or damaged.
    """
    if not isinstance(path, str | Path):
        raise CometError(f"expected the path of a cache, found {path!r:.80}", exit_code=2)
    root = Path(path)
    if not isdir(root):
        raise CometError(f"{root}: no such cache; expected a folder that `comet-cache build` made", exit_code=2)
    recipe, comet = read_attributes(root)
    if not (root / SEAL).is_file() or not (root / EXTENT).is_file():
        raise CometError(f"{root}: the cache was never sealed or its ledger is gone; build, copy or pull it again")
    seal = read_seal(root, recipe)
    for relative, record in seal.files.items():
        path = inside(root, relative)
        if relative.endswith("zarr.json") and not record.matches(read_bounded(path, MAX_ATTRIBUTES_BYTES)):
            raise CometError(f"{path}: not the sealed file; the cache is damaged")
    for group in group_names(recipe):
        check_group(root, group)
    arrays = [spec for group in GROUPS for spec in group_arrays(recipe, group).values()]
    for spec in (*arrays, *vocabulary_arrays(recipe).values(), *start_arrays(recipe).values()):
        check_array(root, spec)
    extent = read_extent(root, recipe, tuple(group_arrays(recipe, "train")))
    return Cache(root, recipe, comet, seal, extent, name, shard_files)


def read_attributes(root: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe of a cache and the attributes of its root group, with the dicts `provenance` and `settings`.

    Raises CometError if they are not a cache's, damaged if there is a seal, or of another format version.
    """
    file, exit_code = root / "zarr.json", 1 if (root / SEAL).is_file() else 2
    if not file.is_file():
        message = f"{root}: not a cache: it has no zarr.json; expected a folder that `comet-cache build` made"
        raise CometError(message, exit_code=exit_code)
    found = parse_json(read_bounded(file, MAX_ATTRIBUTES_BYTES), str(file))
    attributes = found.get("attributes")
    comet = attributes.get("comet") if isinstance(attributes, dict) else None
    if not isinstance(comet, dict) or not isinstance(comet.get("recipe"), dict):
        message = f"{root}: a Zarr hierarchy, but not a cache of comet: its attributes hold no recipe"
        raise CometError(message, exit_code=exit_code)
    recipe = parse_recipe(comet["recipe"], str(root))
    if comet.get("recipe_id") != recipe.recipe_id:
        raise CometError(f"{file}: recipe_id: expected {recipe.recipe_id}, found {str(comet.get('recipe_id'))[:80]!r}")
    check_provenance(comet.get("provenance"), comet.get("settings"), str(file))
    expected = {name: comet.get(name) for name in ("recipe", "recipe_id", "provenance", "settings")}
    compare_metadata(found, {"zarr_format": 3, "node_type": "group", "attributes": {"comet": expected}}, file)
    return recipe, comet
