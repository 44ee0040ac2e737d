"""Cache format 2: arrays, shapes, codecs and file paths, as specified in FORMAT.md."""

import math
import struct
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numcodecs.blosc
import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.signals import AXES, declared_arrays
from cache_tools.store.recipe import MAX_SHARD_BYTES, Recipe
from cache_tools.store.records import canonical, parse_json, read_bounded

if TYPE_CHECKING:
    import zarr

VOCABULARY = "vocabulary"
MAX_METADATA_BYTES = 64 * 2**10
BLOSC_HEADER_BYTES = 16
BLOSC_VERSIONS = bytes([2, 1])  # of Blosc's frame, and of zstd in it
BLOSC_FLAGS = 0b1000_0001  # zstd, bytes shuffled
BLOSC_FREE_FLAGS = 0b0001_0010  # blocks that are not split, and a plain copy where nothing is saved
SMALLEST_BLOCK = 4096  # of a chunk that is larger
CRC_BYTES = 4
ZSTD_LEVEL = 6  # against 5, 2 % fewer bytes for a microsecond a token; 7 would save 1 % more for another two

# Blosc's own threads change the bytes from run to run; a cache's bytes are its identity.
numcodecs.blosc.use_threads = False


@dataclass(frozen=True)
class ArraySpec:
    """One array of the hierarchy, `shape` and `chunk` in elements.

    In the arrays of a group axis 0 of `chunk` is the rows of one shard, and its other axes are whole.
    """

    path: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype
    fill: int | float
    dimensions: tuple[str, ...]

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunk) * self.dtype.itemsize

    def chunk_path(self, *index: int) -> str:
        """Return the file of one chunk, relative to the cache, given its number along each axis, 0 if omitted."""
        numbers = (*index, *(0 for _ in self.shape[len(index) :]))
        return "/".join([self.path, "c", *map(str, numbers)])

    def chunks(self, region: tuple[slice, ...] | None = None) -> list[tuple[int, ...]]:
        """Return the number along each axis of all chunks, or of those that a region without steps touches."""
        region = region or tuple(slice(0, size) for size in self.shape)
        axes = (range(r.start // c, -(-r.stop // c)) for r, c in zip(region, self.chunk, strict=True))
        return list(product(*axes))

    def region(self, index: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the region of one chunk, given its number along each axis."""
        ends = zip(index, self.chunk, self.shape, strict=True)
        return tuple(slice(i * c, min((i + 1) * c, size)) for i, c, size in ends)

    def chunk_paths(self) -> list[str]:
        """Return the files of all chunks, relative to the cache."""
        return [self.chunk_path(*index) for index in self.chunks()]


def group_arrays(recipe: Recipe, group: str) -> dict[str, ArraySpec]:
    """Return the arrays of `train` or `validation`, by name. Raises CometError if a shard would not fit in memory."""
    specs = {}
    for name, array in declared_arrays(recipe).items():
        sizes = tuple(AXES[axis](recipe) for axis in array.axes)
        shape, chunk = (recipe.rows(group), *sizes), (recipe.rows_per_shard, *sizes)
        dimensions = ("row", *array.axes)
        specs[name] = ArraySpec(f"{group}/{name}", shape, chunk, np.dtype(array.dtype), array.fill, dimensions)
    shard_bytes = sum(spec.chunk_bytes for spec in specs.values())
    if shard_bytes > MAX_SHARD_BYTES:
        largest = max(specs, key=lambda name: specs[name].chunk_bytes)
        raise CometError(
            f"a shard of {recipe.rows_per_shard} rows would take {shard_bytes} bytes of memory, most of them for "
            f"{largest}, more than {MAX_SHARD_BYTES}; use fewer --rows-per-shard",
            exit_code=2,
        )
    return specs


def vocabulary_arrays(recipe: Recipe) -> dict[str, ArraySpec]:
    """Return the arrays about the ids that occur in the corpus, each in one chunk.

    Raises CometError if they would not fit in memory.
    """
    seen, width = recipe.seen_size, recipe.embedding_width
    vector, matrix = (seen,), (seen, width)
    specs = {
        "id": ArraySpec(f"{VOCABULARY}/id", vector, vector, np.dtype("int32"), -1, ("seen",)),
        "count": ArraySpec(f"{VOCABULARY}/count", vector, vector, np.dtype("int64"), -1, ("seen",)),
        "embedding": ArraySpec(
            f"{VOCABULARY}/embedding", matrix, matrix, np.dtype("float16"), math.nan, ("seen", "component")
        ),
        "head_bias": ArraySpec(f"{VOCABULARY}/head_bias", vector, vector, np.dtype("float32"), math.nan, ("seen",)),
    }
    if sum(spec.chunk_bytes for spec in specs.values()) > MAX_SHARD_BYTES:
        raise CometError(f"a vocabulary of {seen} × {width} would take more than {MAX_SHARD_BYTES} bytes of memory")
    return specs


def widest_embedding(seen: int) -> int:
    """Return the largest width of the embeddings of `seen` ids within MAX_SHARD_BYTES; an id's other arrays take 16."""
    return max((MAX_SHARD_BYTES // seen - 16) // 2, 1)


def declare_array(store: Path | dict[str, Any], spec: ArraySpec) -> "zarr.Array":
    """Create the array without data: byte-shuffled zstd in Blosc, then a crc32c on every chunk."""
    import zarr  # here: it is slow to import, and reading does not need it
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

    blosc = BloscCodec(cname="zstd", clevel=ZSTD_LEVEL, shuffle="shuffle", typesize=spec.dtype.itemsize, blocksize=0)
    return zarr.create_array(
        store,
        name=spec.path,
        shape=spec.shape,
        chunks=spec.chunk,
        dtype=spec.dtype,
        fill_value=spec.fill,
        serializer=BytesCodec(endian="little"),
        compressors=[blosc, Crc32cCodec()],
        dimension_names=spec.dimensions,
        config={"write_empty_chunks": True},
    )


def check_array(root: Path, spec: ArraySpec) -> None:
    """Raise CometError unless the array is declared on disk exactly as the recipe demands.

    Zarr itself never reads metadata from outside: it would look up codecs by name, which are not to be trusted.
    """
    _check_metadata(root / spec.path / "zarr.json", metadata(spec))


def metadata(spec: ArraySpec) -> dict[str, Any]:
    """Return the metadata that `declare_array` writes for an array."""
    endian = {"configuration": {"endian": "little"}} if spec.dtype.itemsize > 1 else {}
    blosc = {"cname": "zstd", "clevel": ZSTD_LEVEL, "shuffle": "shuffle", "typesize": spec.dtype.itemsize}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(spec.shape),
        "data_type": spec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(spec.chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if math.isnan(spec.fill) else spec.fill,
        "codecs": [
            {"name": "bytes", **endian},
            {"name": "blosc", "configuration": blosc | {"blocksize": 0}},
            {"name": "crc32c"},
        ],
        "dimension_names": list(spec.dimensions),
    }


def check_group(root: Path, name: str) -> None:
    """Raise CometError unless there is a group of this name without attributes."""
    _check_metadata(root / name / "zarr.json", {"zarr_format": 3, "node_type": "group"})


def _check_metadata(file: Path, expected: dict[str, Any]) -> None:
    """Raise CometError unless the file holds the expected metadata."""
    compare_metadata(parse_json(read_bounded(file, MAX_METADATA_BYTES), str(file)), expected, file)


def compare_metadata(found: dict[str, Any], expected: dict[str, Any], file: Path) -> None:
    """Raise CometError unless metadata is as expected; fields that some Zarr versions omit must be empty."""
    for name in expected | found:
        mine, theirs = expected.get(name), found.get(name)
        if (mine or theirs) and canonical(mine) != canonical(theirs):
            raise CometError(f"{file}: {name[:80]}: expected {str(mine)[:400]}, found {str(theirs)[:200]}")


def encode_chunk(spec: ArraySpec, rows: NDArray) -> bytes:
    """Return one chunk as Zarr stores it; a last chunk with fewer rows is padded with the fill value."""
    if rows.dtype != spec.dtype or rows.shape[1:] != spec.chunk[1:] or not 0 < len(rows) <= spec.chunk[0]:
        raise ValueError(f"{spec.path}: expected {spec.dtype}{list(spec.chunk)}, found {rows.dtype}{list(rows.shape)}")
    whole = rows
    if len(rows) < spec.chunk[0]:
        whole = np.full(spec.chunk, spec.fill, dtype=spec.dtype)
        whole[: len(rows)] = rows
    little = np.ascontiguousarray(whole, dtype=spec.dtype.newbyteorder("<"))
    packed: bytes = Blosc(cname="zstd", clevel=ZSTD_LEVEL, shuffle=Blosc.SHUFFLE).encode(little)
    return packed + google_crc32c.value(packed).to_bytes(CRC_BYTES, "little")


def decode_chunk(spec: ArraySpec, data: bytes, rows: int, out: NDArray | None = None) -> NDArray:
    """Return the first `rows` rows of a chunk, read into `out` [rows, …] of the array's dtype if given.

    Raises CometError if the chunk's checksum, its declared sizes or its codec is not as expected.
    """
    packed, crc = data[:-CRC_BYTES], int.from_bytes(data[-CRC_BYTES:], "little")
    if len(packed) < BLOSC_HEADER_BYTES or google_crc32c.value(packed) != crc:
        raise CometError(f"{spec.path}: a chunk does not match its crc32c; the cache is damaged")
    declared, block, compressed = struct.unpack("<3I", packed[4:16])
    if declared != spec.chunk_bytes:
        raise CometError(f"{spec.path}: a chunk declares {declared} bytes, expected {spec.chunk_bytes}")
    if compressed != len(packed):  # Blosc trusts this number and would read beyond the end
        raise CometError(f"{spec.path}: a chunk declares {compressed} compressed bytes, found {len(packed)}")
    as_written = packed[:2] == BLOSC_VERSIONS and packed[2] & ~BLOSC_FREE_FLAGS == BLOSC_FLAGS
    if not as_written or packed[3] != spec.dtype.itemsize or not min(declared, SMALLEST_BLOCK) <= block <= declared:
        raise CometError(f"{spec.path}: a chunk that is not zstd in Blosc as the format has it; the cache is damaged")
    dtype = spec.dtype.newbyteorder("<")
    direct = out is not None and rows == spec.chunk[0] and out.dtype == dtype and out.flags.c_contiguous
    try:
        raw = Blosc().decode(packed, out if direct else None)
    except (RuntimeError, ValueError) as error:
        raise CometError(f"{spec.path}: a chunk cannot be decompressed ({error}); the cache is damaged") from None
    if out is None:
        return np.frombuffer(raw, dtype).reshape(spec.chunk)[:rows]
    if not direct:
        out[:] = np.frombuffer(raw, dtype).reshape(spec.chunk)[:rows]
    return out


def max_file_bytes(spec: ArraySpec) -> int:
    """Return the largest possible file of a chunk of this array: Blosc grows data by its header at most."""
    return spec.chunk_bytes + BLOSC_HEADER_BYTES + CRC_BYTES
