"""Write a cache: seal a new one, and commit shards so that a crash at any moment loses at most one."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import zarr
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.layout import ArraySpec, declare_array, encode_chunk, group_arrays, vocabulary_arrays
from cache_tools.store.ledger import (
    EXTENT,
    LEDGER,
    LOCK,
    SEAL,
    FileRecord,
    Seal,
    ShardRecord,
    file_record,
    group_names,
    sealed_limits,
    shard_record_path,
    token_digest,
    whole_extent,
)
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import GROUPS, Recipe
from cache_tools.store.records import (
    MAX_RECORD_BYTES,
    inside,
    rename_durably,
    sync_file,
    sync_folder,
    with_checksum,
    write_durably,
)
from cache_tools.store.staging import exclusive
from cache_tools.store.start import start_arrays


def write_token_shard(root: Path, specs: Mapping[str, ArraySpec], shard: int, arrays: Mapping[str, NDArray]) -> str:
    """Write the token arrays of one shard into a cache that is not sealed yet. Return their `token_digest`."""
    for name in TOKEN_ARRAYS:
        write_durably(root / specs[name].chunk_path(shard), encode_chunk(specs[name], arrays[name]))
    return token_digest(arrays)


def drop_shard(cache: Cache, group: str, shard: int) -> None:
    """Remove a shard from a cache, its record first, as if it had never been committed. Sound tokens stay.

    Raises CometError if the disk refuses.
    """
    try:
        tokens = set(cache.read_tokens(group, shard)[0]) & set(cache.extent.arrays)
    except CometError:  # damaged or gone: drop them too
        tokens = set()
    try:
        with exclusive(cache.root):
            record = cache.root / shard_record_path(group, shard)
            record.unlink(missing_ok=True)
            sync_folder(record.parent)
            for name, spec in cache.specs[group].items():
                if name not in tokens:
                    inside(cache.root, spec.chunk_path(shard)).unlink(missing_ok=True)
    except OSError as error:
        raise CometError(f"{cache.root}: shard {group} {shard} cannot be dropped ({error.strerror})") from error


def seal(
    root: Path,
    recipe: Recipe,
    attributes: dict[str, object],
    vocabulary: Mapping[str, NDArray],
    start: Mapping[str, NDArray],
    token_digests: dict[str, tuple[str, ...]],
) -> None:
    """Complete a prepared folder: metadata, vocabulary, start, extent, and last the seal that lists them.

    The tokenizer and the token arrays must already be there. Raises CometError if a file would be too large to read.
    """
    zarr.create_group(root, attributes={"comet": attributes})
    for group in group_names(recipe):
        zarr.create_group(root, path=group)
    for group in GROUPS:
        for spec in group_arrays(recipe, group).values():
            declare_array(root, spec)
    for specs, arrays in ((vocabulary_arrays(recipe), vocabulary), (start_arrays(recipe), start)):
        for name, spec in specs.items():
            declare_array(root, spec)
            for index in spec.chunks():
                write_durably(root / spec.chunk_path(*index), encode_chunk(spec, arrays[name][spec.region(index)]))

    write_durably(root / EXTENT, with_checksum(whole_extent(recipe).to_json()))
    write_durably(root / LOCK, b"")
    files = {path: file_record((root / path).read_bytes()) for path in sorted(_sealed_files(root))}
    for path in files:  # zarr and the tokenizer's library do not wait for the disk
        sync_file(root / path)
    record = with_checksum(Seal(recipe.recipe_id, files, token_digests).to_json())
    _require_readable({path: file.size for path, file in files.items()}, sealed_limits(recipe))
    _require_readable({SEAL: len(record)}, {SEAL: MAX_RECORD_BYTES})
    write_durably(root / SEAL, record)


def _require_readable(found: dict[str, int], limit: dict[str, int]) -> None:
    """Raise CometError if a file is larger than readers accept."""
    for path, size in found.items():
        if size > limit[path]:
            raise CometError(
                f"{path} would have {size} bytes, more than the {limit[path]} that readers accept; use more "
                "--rows-per-shard, or fewer and larger --text files",
                exit_code=2,
            )


def _sealed_files(root: Path) -> Iterator[str]:
    """Yield every file that is neither a shard's nor the ledger's own, relative to the cache."""
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        is_chunk = relative.parts[0] in GROUPS and relative.name != "zarr.json"
        if path.is_file() and not is_chunk and relative.parts[0] != LEDGER:
            yield relative.as_posix()


def commit_shard(
    root: Path,
    staging: Path,
    recipe: Recipe,
    group: str,
    shard: int,
    teacher_arrays: Mapping[str, NDArray],
    token_files: Mapping[str, FileRecord],
    numerics: dict[str, str],
) -> None:
    """Encode and publish one shard: its files first, its commit record last, each on disk before the next.

    A shard that another process has committed meanwhile stays as it is. Raises CometError if the disk refuses (full,
    read-only, gone).
    """
    specs = group_arrays(recipe, group)
    expected = set(specs) - set(TOKEN_ARRAYS)
    if set(teacher_arrays) != expected:
        raise ValueError(f"shard {group} {shard}: expected arrays {sorted(expected)}, found {sorted(teacher_arrays)}")
    try:
        files = dict(token_files)
        for name, rows in teacher_arrays.items():
            data = encode_chunk(specs[name], rows)
            files[name] = file_record(data)
            write_durably(staging / name, data)
        record = ShardRecord(recipe.recipe_id, group, shard, files, numerics)
        write_durably(staging / "record.json", with_checksum(record.to_json()))
        published = root / shard_record_path(group, shard)
        with exclusive(root):
            if published.exists():
                for name in [*teacher_arrays, "record.json"]:
                    (staging / name).unlink()
                return
            for name in teacher_arrays:
                final = inside(root, specs[name].chunk_path(shard))
                rename_durably(staging / name, final)
            rename_durably(staging / "record.json", published)
    except OSError as error:
        raise CometError(
            f"shard {group} {shard} of {root}: cannot be written ({error.strerror or error}); shards committed before "
            "are safe. Fix the disk and run the same command again to continue"
        ) from error
