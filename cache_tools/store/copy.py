"""Copies of caches in other folders: each is a sound cache at every moment, and nothing in it is overwritten."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from cache_tools.errors import CometError, with_short_hashes
from cache_tools.places.destinations import require_folder, writing
from cache_tools.places.foreign import is_left_by_system, named
from cache_tools.store.layout import max_file_bytes
from cache_tools.store.ledger import CARD, EXTENT, SEAL, Extent, FileRecord, ShardKey, file_record, shard_record_path
from cache_tools.store.reader import Cache, open_cache
from cache_tools.store.recipe import GROUPS
from cache_tools.store.records import (
    MAX_RECORD_BYTES,
    inside,
    read_bounded,
    rename_durably,
    with_checksum,
    write_durably,
)
from cache_tools.store.staging import STAGING, claimed_folder, exclusive

MOST_NAMED = 20  # differences in one message
Track = Callable[[Sequence[ShardKey]], Iterable[ShardKey]]
"""Yields shards one after the other, and may show a progress bar."""


def _require_destination(folder: Path, sources: Sequence[Cache]) -> None:
    """Raise CometError unless a copy can be made, or continued, in the folder: apart from its sources, and without
    unrelated files."""
    require_folder(folder, "DST", *(cache.root for cache in sources))
    own = {path.partition("/")[0] for path in (*sources[0].seal.files, SEAL, CARD)}
    found = [path.name for path in sorted(folder.iterdir())] if folder.exists() else []
    if others := [n for n in found if n not in own and not n.startswith(STAGING) and not is_left_by_system(n)]:
        raise CometError(
            f"DST {folder}: holds other files ({named(others)}); choose an empty folder, or a new one", exit_code=2
        )


def _copy_sealed(cache: Cache, folder: Path, extent: Extent) -> None:
    """Copy the sealed files and write the extent of the copy, as far as they are not there yet; the seal last.

    Raises CometError if the folder holds another cache or another part of this one, or cannot be written.
    """
    seal = read_bounded(cache.root / SEAL, MAX_RECORD_BYTES)
    wanted = {SEAL: (seal, "another cache"), EXTENT: (with_checksum(extent.to_json()), "another part of this cache")}
    with staging_in(folder) as staging, exclusive(folder):
        for path, (data, other) in wanted.items():
            if (folder / path).exists() and read_bounded(folder / path, MAX_RECORD_BYTES) != data:
                there = open_cache(folder)
                unlike = differences(there, cache) if path == SEAL else _extent_differences(there.extent, extent)
                raise CometError(f"{folder}: holds {other}; choose another folder ({unlike})", exit_code=2)
        for path, record in cache.seal.files.items():
            _publish(_sound_file(cache, path, record, record.size), record, staging, folder, path)
        for path in (EXTENT, SEAL):
            data, _ = wanted[path]
            _publish(data, file_record(data), staging, folder, path)


def _copy_shard(cache: Cache, folder: Path, group: str, shard: int, arrays: Sequence[str]) -> bool:
    """Copy the files of these arrays of a committed shard, then its record. Return whether there was anything to copy.

    A shard that the folder already has, perhaps of another builder, stays as it is. Raises CometError if a file is
    damaged or the folder cannot be written.
    """
    record = cache.record(group, shard)
    path = shard_record_path(group, shard)
    if record is None:
        return False
    with staging_in(folder) as staging, exclusive(folder):
        if (folder / path).exists():
            return False
        for name in arrays:
            spec, file = cache.specs[group][name], record.files[name]
            data = _sound_file(cache, spec.chunk_path(shard), file, max_file_bytes(spec))
            _publish(data, file, staging, folder, spec.chunk_path(shard), uncommitted=True)
        data = with_checksum(record.to_json())
        _publish(data, file_record(data), staging, folder, path)
    return True


def put_tokens(cache: Cache, group: str, shard: int, files: Mapping[str, bytes]) -> None:
    """Write recreated files of a shard's token arrays into the cache, in which the shard is not committed.

    Raises CometError if the folder cannot be written.
    """
    with staging_in(cache.root) as staging:
        for name, data in files.items():
            path = cache.specs[group][name].chunk_path(shard)
            _publish(data, file_record(data), staging, cache.root, path, uncommitted=True)


def _sound_file(cache: Cache, relative: str, record: FileRecord, limit: int) -> bytes:
    """Return the content of a file. Raises CometError unless it matches its record in the ledger."""
    path = inside(cache.root, relative)
    data = read_bounded(path, limit)
    if not record.matches(data):
        raise CometError(f"{path}: not the file that the ledger describes; the cache is damaged")
    return data


@contextmanager
def staging_in(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder for files on their way into `folder`. Errors of the disk within the block become
    CometError."""
    with writing_in(folder), claimed_folder(folder, STAGING) as staging:
        yield staging


def writing_in(folder: Path) -> AbstractContextManager[None]:
    """Turn errors of the disk within the block into CometError."""
    return writing(folder, "the source is safe. Fix the folder and run the same command again to continue")


def _publish(
    data: bytes, record: FileRecord, staging: Path, folder: Path, path: str, *, uncommitted: bool = False
) -> None:
    """Write a file durably, then give it its name. A file of that name stays if it is the same.

    `uncommitted`: an existing file belongs to a shard without a record and may be replaced. Raises CometError if there
    is another file.
    """
    final = folder / path
    if final.exists():
        if final.stat().st_size == record.size and record.matches(final.read_bytes()):
            return
        if not uncommitted:
            raise CometError(f"{folder}: {path} exists and differs; choose another folder", exit_code=2)
    write_durably(staging / "file", data)
    rename_durably(staging / "file", final)


def cut(cache: Cache, folder: Path, extent: Extent, track: Track = iter) -> Cache:
    """Copy a part of a cache into a folder of its own: the same recipe and commit records, a smaller extent.

    Run again after a stop it continues. Raises CometError if a shard of the part is missing or damaged, and as
    `_require_destination`, `_copy_sealed` and `_copy_shard` do.
    """
    _require_destination(folder, [cache])
    for group in GROUPS:
        outside = set(extent.indices(group)) - set(cache.extent.indices(group))
        lacking = sorted(outside | {shard for shard in extent.indices(group) if cache.record(group, shard) is None})
        if lacking or not set(extent.arrays) <= set(cache.extent.arrays):
            raise CometError(f"{cache.root}: does not hold shards {group} {lacking[:5]} or all of {extent.arrays}")
    _copy_sealed(cache, folder, extent)
    for key in track(extent.keys()):
        _copy_shard(cache, folder, *key, extent.arrays)
    return open_cache(folder)


def merge(caches: Sequence[Cache], folder: Path, track: Track = iter) -> Cache:
    """Merge caches of one recipe into one; of several versions of a shard, and of the sealed files, the first is taken.

    The result is as complete as they are together; run again after a stop it continues. Raises CometError for caches of
    other recipes or arrays, and as `_require_destination`, `_copy_sealed` and `_copy_shard` do.
    """
    _require_destination(folder, caches)
    first = caches[0]
    for other in caches[1:]:
        if unlike := first.recipe.differences(other.recipe):
            same_teacher = first.recipe.teacher_sha256 == other.recipe.teacher_sha256
            raise CometError(
                f"{other.root}: another recipe than {first.root} ({with_short_hashes(shortened(unlike))}); merge joins "
                "parts of one cache"
                + ("; give caches of several texts to comet-train together" if same_teacher else ""),
                exit_code=2,
            )
        if unlike := _token_differences(first, other) + _array_differences(first.extent, other.extent):
            attach = "; attach the text to both first, with comet-cache attach"
            raise CometError(
                f"{other.root}: holds other tokens or arrays than {first.root} ({shortened(unlike)})"
                f"{attach if first.extent.has_text != other.extent.has_text else ''}",
                exit_code=2,
            )
    shards = {group: ranges({s for cache in caches for s in cache.extent.indices(group)}) for group in GROUPS}
    extent = Extent(first.recipe.recipe_id, first.extent.arrays, shards)
    _copy_sealed(first, folder, extent)
    held = [set(cache.extent.keys()) for cache in caches]
    for key in track(extent.keys()):
        for cache, keys in zip(caches, held, strict=True):
            if key in keys:
                _copy_shard(cache, folder, *key, extent.arrays)
    return open_cache(folder)


def ranges(shards: set[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending half-open ranges of these numbers, with gaps between them."""
    ends = sorted(s for s in shards if s + 1 not in shards)
    starts = sorted(s for s in shards if s - 1 not in shards)
    return tuple((start, end + 1) for start, end in zip(starts, ends, strict=True))


def differences(one: Cache, other: Cache) -> str:
    """Return the values of both caches, field by field: of the recipe, else of the sealed files."""
    found = one.recipe.differences(other.recipe) or _token_differences(one, other)
    if not found:
        files = ((path, record.sha256, other.seal.files[path].sha256) for path, record in one.seal.files.items())
        found = [f"{path} sha256: {a} against {b}" for path, a, b in files if a != b]
    return shortened(found)


def _token_differences(one: Cache, other: Cache) -> list[str]:
    """Return an entry for each shard whose tokens differ between two caches of one recipe."""
    return [
        f"tokens of shard {group} {shard} sha256: {a} against {b}"
        for group in GROUPS
        for shard, (a, b) in enumerate(zip(one.seal.token_digests[group], other.seal.token_digests[group], strict=True))
        if a != b
    ]


def _array_differences(one: Extent, other: Extent) -> list[str]:
    if one.arrays == other.arrays:
        return []
    return [f"arrays: {', '.join(one.arrays)} against {', '.join(other.arrays)}"]


def _extent_differences(one: Extent, other: Extent) -> str:
    """Return the arrays and shards of both extents where they differ."""
    pairs = ((group, one.shards[group], other.shards[group]) for group in GROUPS)
    shards = [f"shards of {group}: {list(a)} against {list(b)}" for group, a, b in pairs if a != b]
    return shortened(shards + _array_differences(one, other))


def shortened(found: list[str]) -> str:
    """Join the first few, and say how many more there are."""
    more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return "; ".join(found[:MOST_NAMED]) + more
