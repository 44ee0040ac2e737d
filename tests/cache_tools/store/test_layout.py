"""Chunks as bytes: the same as Zarr's own, and every damage to them noticed."""

import json
import math
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from helpers.small_caches import small_recipe
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.store.layout import (
    MAX_METADATA_BYTES,
    ArraySpec,
    check_array,
    declare_array,
    decode_chunk,
    encode_chunk,
    group_arrays,
    max_file_bytes,
    vocabulary_arrays,
)
from cache_tools.store.recipe import Recipe

RECIPE = small_recipe()
SAMPLED = small_recipe(keep="threshold")
SPECS = group_arrays(RECIPE, "train") | group_arrays(SAMPLED, "train") | vocabulary_arrays(RECIPE)


def random_rows(spec: ArraySpec, rows: int, seed: int = 0) -> NDArray:
    generator = np.random.default_rng(seed)
    shape = (rows, *spec.shape[1:])
    if spec.dtype.kind == "f":
        return generator.normal(size=shape).astype(spec.dtype)
    return generator.integers(0, np.iinfo(spec.dtype).max, shape, dtype=spec.dtype, endpoint=True)


def with_crc(packed: bytes) -> bytes:
    return packed + google_crc32c.value(packed).to_bytes(4, "little")


TOKENS = {
    "input_ids": ("int32", (10, 16)),
    "length": ("uint16", (10,)),
    "target_position": ("uint16", (10, 3)),
    "target_id": ("int32", (10, 3)),
    "row_key": ("uint64", (10,)),
}
BEST = {
    "topk_id": ("int32", (10, 3, 4)),
    "topk_logprob": ("float16", (10, 3, 4)),
    "tail_logmass": ("float32", (10, 3, 2)),
    "tail_logmass_seen": ("float32", (10, 3, 2)),
}
SAMPLE = {
    "sample_id": ("int32", (10, 3, 2, 4)),
    "sample_logweight": ("float16", (10, 3, 2, 4)),
    "entropy": ("float32", (10, 3, 2)),
    "entropy_seen": ("float32", (10, 3, 2)),
}
ATTENTION = {"attention_gap": ("uint16", (10, 2, 4, 5)), "attention_weight": ("uint8", (10, 2, 4, 5))}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (RECIPE, TOKENS | BEST | ATTENTION),
        (SAMPLED, TOKENS | SAMPLE | ATTENTION),
        (small_recipe(attention_layers=()), TOKENS | BEST),
    ],
)
def test_the_arrays_of_a_group(recipe: Recipe, expected: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    shapes = {name: (spec.dtype.name, spec.shape) for name, spec in group_arrays(recipe, "train").items()}
    assert shapes == expected


def test_one_file_for_each_array_and_shard() -> None:
    assert group_arrays(RECIPE, "validation")["topk_id"].chunk_path(12) == "validation/topk_id/c/12/0/0"
    assert group_arrays(RECIPE, "train")["length"].chunk_path(0) == "train/length/c/0"


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("fills", [False, True], ids=["random", "all fill values"])
def test_our_chunks_are_the_bytes_that_zarr_writes(tmp_path: Path, name: str, fills: bool) -> None:
    spec = SPECS[name]
    data = random_rows(spec, spec.shape[0])
    if fills:
        data = np.full_like(data, spec.fill)
    declare_array(tmp_path, spec)[...] = data
    step = spec.chunk[0]
    for shard in range(math.ceil(len(data) / step)):
        rows = data[shard * step : (shard + 1) * step]
        file = (tmp_path / spec.chunk_path(shard)).read_bytes()
        assert encode_chunk(spec, rows) == file
        assert len(file) <= max_file_bytes(spec)
        np.testing.assert_array_equal(decode_chunk(spec, file, len(rows)), rows)


def test_a_chunk_of_real_size_is_the_bytes_that_zarr_writes(tmp_path: Path) -> None:
    """Several Blosc blocks, compressed, which small chunks never are."""
    spec = ArraySpec("ids", (1500, 19, 64), (1024, 19, 64), np.dtype("int32"), -1, ("row", "target", "k"))
    data = np.random.default_rng(0).integers(0, 8000, spec.shape, dtype=np.int32)
    declare_array(tmp_path, spec)[...] = data
    for shard, rows in enumerate((data[:1024], data[1024:])):
        file = (tmp_path / spec.chunk_path(shard)).read_bytes()
        assert encode_chunk(spec, rows) == file
        assert len(file) < 0.6 * spec.chunk_bytes
        np.testing.assert_array_equal(decode_chunk(spec, file, len(rows)), rows)


@pytest.mark.parametrize("name", SPECS)
def test_zarr_reads_our_chunks(tmp_path: Path, name: str) -> None:
    spec = SPECS[name]
    data = random_rows(spec, spec.shape[0])
    declare_array(tmp_path, spec)
    step = spec.chunk[0]
    for shard in range(math.ceil(len(data) / step)):
        file = tmp_path / spec.chunk_path(shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_chunk(spec, data[shard * step : (shard + 1) * step]))
    found = zarr.open_array(tmp_path, path=spec.path, mode="r")
    assert found.dtype == spec.dtype
    np.testing.assert_array_equal(found[...], data)


def test_a_last_shard_is_filled_up_with_fill_values() -> None:
    spec = SPECS["topk_id"]
    whole = decode_chunk(spec, encode_chunk(spec, random_rows(spec, 3)), 4)
    assert (whole[:3] >= 0).all()
    assert (whole[3] == -1).all()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("strided", [False, True])
def test_a_chunk_is_decoded_into_the_middle_of_a_buffer(name: str, rows: int, strided: bool) -> None:
    spec = SPECS[name]
    data = random_rows(spec, rows)
    buffer = np.zeros((20, *spec.chunk[1:]), spec.dtype)
    inside = buffer[::2][3 : 3 + rows] if strided else buffer[3 : 3 + rows]
    assert decode_chunk(spec, encode_chunk(spec, data), rows, inside) is inside
    np.testing.assert_array_equal(inside, data)
    inside[:] = 0
    assert not buffer.any(), "and nowhere else"


def test_incompressible_chunks_stay_within_their_bound() -> None:
    spec = ArraySpec("noise", (4096,), (4096,), np.dtype("uint64"), 0, ("row",))
    data = encode_chunk(spec, random_rows(spec, 4096))
    assert len(data) <= max_file_bytes(spec)
    np.testing.assert_array_equal(decode_chunk(spec, data, 4096), random_rows(spec, 4096))


@pytest.mark.parametrize(
    "rows", [np.zeros((4, 3), np.int32), np.zeros((4, 3, 4)), np.zeros((0, 3, 4), np.int32), np.zeros((5, 3, 4), "i4")]
)
def test_rows_of_another_shape_or_dtype_are_not_encoded(rows: NDArray) -> None:
    with pytest.raises(ValueError, match=r"^train/topk_id: expected int32\[4, 3, 4\], found "):
        encode_chunk(SPECS["topk_id"], rows)


@pytest.mark.parametrize("name", ["topk_logprob", "topk_id", "length", "row_key"])
def test_every_flipped_bit_is_noticed(name: str) -> None:
    """Header, payload and checksum: each single bit of the file."""
    spec = SPECS[name]
    good = encode_chunk(spec, random_rows(spec, 4))
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CometError, match="does not match its crc32c; the cache is damaged"):
            decode_chunk(spec, bytes(bad), 4)


def test_every_truncation_and_any_extra_byte_is_noticed() -> None:
    spec = SPECS["topk_logprob"]
    good = encode_chunk(spec, random_rows(spec, 4))
    for bad in [good[:n] for n in range(len(good))] + [good + b"\0", b"\0" + good]:
        with pytest.raises(CometError, match="crc32c"):
            decode_chunk(spec, bad, 4)


def test_swapped_blocks_of_bytes_are_noticed() -> None:
    spec = SPECS["row_key"]
    good = encode_chunk(spec, random_rows(spec, 4))
    with pytest.raises(CometError, match="crc32c"):
        decode_chunk(spec, good[:20] + good[24:28] + good[20:24] + good[28:], 4)


@pytest.mark.parametrize("size", [0, 8, 95, 97, 2**31 - 1])
def test_a_chunk_of_another_size_is_not_decompressed(size: int) -> None:
    spec = SPECS["topk_logprob"]  # 4 × 3 × 4 float16 = 96 bytes
    packed = bytearray(encode_chunk(spec, random_rows(spec, 4))[:-4])
    packed[4:8] = size.to_bytes(4, "little")
    with pytest.raises(CometError, match=rf"^train/topk_logprob: a chunk declares {size} bytes, expected 96$"):
        decode_chunk(spec, with_crc(bytes(packed)), 4)


@pytest.mark.parametrize("more", [-1, 1, 2**30])
def test_a_chunk_of_another_compressed_size_is_not_decompressed(more: int) -> None:
    """Blosc trusts this number: beyond the end of the chunk it reads memory that is not its own."""
    spec = SPECS["attention_weight"]
    packed = bytearray(encode_chunk(spec, np.zeros(spec.chunk, np.uint8))[:-4])
    packed[12:16] = (len(packed) + more).to_bytes(4, "little")
    with pytest.raises(CometError, match=r"^train/attention_weight: a chunk "):
        decode_chunk(spec, with_crc(bytes(packed)), 4)


def test_a_sound_chunk_of_another_array_is_not_taken() -> None:
    other = SPECS["topk_id"]
    with pytest.raises(CometError, match="declares 192 bytes, expected 96"):
        decode_chunk(SPECS["topk_logprob"], encode_chunk(other, random_rows(other, 4)), 4)


def test_a_payload_that_blosc_cannot_read_is_damage() -> None:
    spec = SPECS["attention_weight"]
    packed = bytearray(encode_chunk(spec, np.zeros(spec.chunk, np.uint8))[:-4])
    assert len(packed) < spec.chunk_bytes
    packed[16:] = b"\xff" * (len(packed) - 16)
    with pytest.raises(CometError, match="cannot be decompressed"):
        decode_chunk(spec, with_crc(bytes(packed)), 4)


def test_an_array_as_declared_passes(tmp_path: Path) -> None:
    for spec in SPECS.values():
        declare_array(tmp_path, spec)
        check_array(tmp_path, spec)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [11, 3, 4]),
        ("data_type", "int64"),
        ("fill_value", 0),
        ("codecs", [{"name": "bytes", "configuration": {"endian": "little"}}]),
        ("dimension_names", ["row", "target", "best"]),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [5, 3, 4]}}),
        ("chunk_key_encoding", {"name": "v2", "configuration": {"separator": "."}}),
        ("zarr_format", 2),
        ("node_type", "group"),
    ],
)
def test_an_array_declared_otherwise_is_refused(tmp_path: Path, field: str, value: object) -> None:
    spec = SPECS["topk_id"]
    declare_array(tmp_path, spec)
    file = tmp_path / spec.path / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(CometError, match=rf"^{file}: "):
        check_array(tmp_path, spec)


def test_metadata_is_read_up_to_a_bound(tmp_path: Path) -> None:
    spec = SPECS["topk_id"]
    declare_array(tmp_path, spec)
    file = tmp_path / spec.path / "zarr.json"
    file.write_text(file.read_text() + " " * MAX_METADATA_BYTES)
    with pytest.raises(CometError, match="larger than the 65536 bytes"):
        check_array(tmp_path, spec)


def test_a_shard_too_large_for_one_chunk_names_the_option() -> None:
    recipe = small_recipe(rows_per_shard=2**20, seq_len=2**13, attention_queries=1, attention_layers=(0, 1, 2))
    with pytest.raises(CometError, match="use fewer --rows-per-shard") as caught:
        group_arrays(recipe, "train")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("at", "value"), [(0, 3), (1, 2), (2, 0b1001_0101), (2, 0b0011_0001), (2, 0b1001_0000), (3, 2), (8, 0), (9, 16)]
)
def test_a_chunk_of_another_blosc_header_is_not_decompressed(at: int, value: int) -> None:
    """Versions, bit shuffle, another compressor, no shuffle, item size, blocks of no or of more than all bytes."""
    spec = SPECS["topk_id"]  # 4 × 3 × 4 int32 = 192 bytes
    packed = bytearray(encode_chunk(spec, random_rows(spec, 4))[:-4])
    packed[at] = value
    with pytest.raises(CometError, match=r"^train/topk_id: a chunk that is not zstd in Blosc as the format has it; "):
        decode_chunk(spec, with_crc(bytes(packed)), 4)
