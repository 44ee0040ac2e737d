"""Arrays of the start: their shapes and files, and that any region is read from the chunks it touches, and no other."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_caches import NO_START, change_json, make_cache, prepare_cache, random_start, small_recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache_tools import Cache, open_cache
from cache_tools.errors import CometError
from cache_tools.store.layout import encode_chunk
from cache_tools.store.ledger import SEAL, file_record
from cache_tools.store.recipe import MAX_SHARD_BYTES
from cache_tools.store.start import MOST_BLOCKS, SMALLEST_BLOCK, read_start, start_arrays, start_chunks

NARROW = small_recipe()
WIDE = small_recipe(teacher_hidden=640, start_width=512, start_neurons=1024)
"""Its matrices are in 2 × 2 blocks, unlike the others here."""
MATRICES = ("embedding", "position", "attention", "ffn", "head")

VECTORS = {
    "basis": ("float32", (12, 8)),
    "embedding": ("float16", (36, 8)),
    "position": ("float16", (16, 8)),
    "head_bias": ("float32", (2, 36)),
    "norm": ("float32", (5, 4, 8)),
    "attention": ("float16", (2, 4, 8, 8)),
    "attention_vector": ("float32", (2, 5, 8)),
    "ffn": ("float16", (2, 2, 10, 8)),
    "ffn_vector": ("float32", (2, 2, 10)),
    "ffn_output": ("float32", (2, 2, 8)),
    "head": ("float32", (3, 8, 8)),
    "head_mean": ("float32", (8,)),
    "head_order": ("int32", (2, 2)),
    "neuron_order": ("int32", (2, 10)),
}
EXACT = {"norm_weight": ("float32", (6, 2, 8)), "head_dense": ("float32", (9, 8))}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, VECTORS),
        ({"teacher_hidden": 8}, VECTORS | {"basis": ("float32", (8, 8))} | EXACT),
        (NO_START, {}),
    ],
)
def test_the_arrays_of_a_start(changes: dict[str, Any], expected: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    specs = start_arrays(small_recipe(**changes))
    assert {name: (spec.dtype.name, spec.shape) for name, spec in specs.items()} == expected
    assert all(spec.path == f"start/{name}" for name, spec in specs.items())


@pytest.mark.parametrize(
    ("width", "neurons", "chunk"),
    [
        (8, 10, (8, 10)),
        (511, 1022, (511, 1022)),
        (510, 1020, (510, 1020)),
        (512, 1024, (256, 512)),
        (512, 1023, (512, 1023)),
        (768, 3072, (384, 1536)),
        (1024, 4096, (256, 1024)),
        (2048, 2048, (256, 256)),
        (4096, 4096, (512, 512)),
    ],
)
def test_blocks_are_equal_and_neither_small_nor_many(width: int, neurons: int, chunk: tuple[int, int]) -> None:
    specs = start_arrays(small_recipe(teacher_hidden=width, teacher_heads=1, start_width=width, start_neurons=neurons))
    assert specs["attention"].chunk == (1, 4, chunk[0], chunk[0])
    assert specs["ffn"].chunk == (1, 2, chunk[1], chunk[0])
    assert specs["head"].chunk == (3, chunk[0], chunk[0])
    assert specs["embedding"].chunk == (36, chunk[0])
    blocks = width // chunk[0]
    assert width % chunk[0] == neurons % chunk[1] == 0 and neurons // chunk[1] == blocks <= MOST_BLOCKS
    assert blocks == 1 or chunk[0] >= SMALLEST_BLOCK


def test_chunks_are_each_listed_once() -> None:
    chunks = start_chunks(WIDE)
    assert len(chunks) == len(set(chunks)) == 9 + 2 + 2 + 2 * 4 + 2 * 4 + 4
    assert {f"start/attention/c/{layer}/0/{i}/{j}" for layer in (0, 1) for i in (0, 1) for j in (0, 1)} <= set(chunks)


def test_a_start_too_wide_for_memory_names_the_option() -> None:
    recipe = small_recipe(teacher_hidden=2**20, start_width=2**13)
    expected = (
        rf"^--start-width 8192: basis would take {2**35} bytes of memory, more than {MAX_SHARD_BYTES}; use a small"
    )
    with pytest.raises(CometError, match=expected) as caught:
        start_arrays(recipe)
    assert caught.value.exit_code == 2


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache, without shards, whose start is in many chunks."""
    root = tmp_path_factory.mktemp("wide") / "kin.zarr"
    prepare_cache(root, WIDE)
    return root


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray]:
    return random_start(WIDE)


@pytest.mark.parametrize("name", start_arrays(WIDE))
def test_every_array_comes_back(wide: Path, arrays: dict[str, NDArray], name: str) -> None:
    found = read_start(open_cache(wide), name)
    assert (found.dtype, found.shape) == (start_arrays(WIDE)[name].dtype, arrays[name].shape)
    np.testing.assert_array_equal(found, arrays[name])


def regions(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[slice, ...]]:
    """Slices of some of the leading axes, each not empty, with ends as Python allows them."""

    def axis(size: int) -> st.SearchStrategy[slice]:
        def ends(start: int) -> st.SearchStrategy[slice]:
            stop = st.integers(start + 1, size) | st.none() | st.just(size + 5)
            return stop.map(lambda stop: slice(start if start else None, stop))

        near = st.sampled_from([e for e in (0, 1, 255, 256, 257, size - 1) if e < size])
        return (near | st.integers(0, size - 1)).flatmap(ends)

    return st.integers(0, len(shape)).flatmap(lambda axes: st.tuples(*(axis(size) for size in shape[:axes])))


@pytest.mark.slow
@settings(deadline=None, max_examples=120)
@given(st.data())
def test_any_region_is_that_of_the_whole(wide: Path, arrays: dict[str, NDArray], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(arrays)))
    region = data.draw(regions(arrays[name].shape))
    np.testing.assert_array_equal(read_start(open_cache(wide), name, *region), arrays[name][region])


@pytest.fixture
def without_files(wide: Path) -> Iterator[Cache]:
    """The cache with no chunk of the start, whose files can be put back one by one: a read of any other fails."""
    cache = open_cache(wide)
    chunks = [wide / path for path in start_chunks(WIDE)]
    for path in chunks:
        path.rename(aside(path))
    yield cache
    for path in chunks:
        if aside(path).exists():
            aside(path).rename(path)


def aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.aside")


@pytest.mark.parametrize(
    ("name", "region", "chunks"),
    [
        ("attention", (slice(1), slice(4), slice(256), slice(256)), ["0/0/0/0"]),
        ("attention", (slice(1, 2), slice(0, 1), slice(0, 257), slice(10, 20)), ["1/0/0/0", "1/0/1/0"]),
        ("attention", (slice(0, 2), slice(4), slice(256, 512), slice(256, 300)), ["0/0/1/1", "1/0/1/1"]),
        ("ffn", (slice(1, 2), slice(2), slice(600, 700)), ["1/0/1/0", "1/0/1/1"]),
        ("embedding", (slice(None), slice(200)), ["0/0"]),
        ("embedding", (slice(3, 4),), ["0/0", "0/1"]),
        ("head", (slice(3), slice(64), slice(64)), ["0/0/0"]),
        ("norm", (slice(2, 3),), ["0/0/0"]),
    ],
)
def test_only_the_touched_chunks_are_read(
    without_files: Cache, arrays: dict[str, NDArray], name: str, region: tuple[slice, ...], chunks: list[str]
) -> None:
    with pytest.raises(CometError, match="cannot be read"):
        read_start(without_files, name, *region)
    for chunk in chunks:
        path = without_files.root / f"start/{name}/c/{chunk}"
        with pytest.raises(CometError, match="cannot be read"):  # it is needed
            read_start(without_files, name, *region)
        os.link(aside(path), path)
    try:
        np.testing.assert_array_equal(read_start(without_files, name, *region), arrays[name][region])
    finally:
        for chunk in chunks:
            (without_files.root / f"start/{name}/c/{chunk}").unlink()


def test_an_array_that_is_not_there_is_named(tmp_path: Path) -> None:
    make_cache(tmp_path / "with.zarr")
    cache = open_cache(tmp_path / "with.zarr")
    with pytest.raises(
        CometError, match=rf"^{cache.name}: has no start/norm_weight; it has basis, embedding, "
    ) as caught:
        read_start(cache, "norm_weight")
    assert caught.value.exit_code == 2
    make_cache(tmp_path / "without.zarr", small_recipe(**NO_START))
    cache = open_cache(tmp_path / "without.zarr")
    assert not (cache.root / "start").exists()
    with pytest.raises(CometError, match=rf"^{cache.name}: has no start/basis; build one with --start-layers$"):
        read_start(cache, "basis")


@pytest.mark.parametrize("name", MATRICES)
def test_a_changed_chunk_is_not_read(tmp_path: Path, name: str) -> None:
    root = tmp_path / "kin.zarr"
    prepare_cache(root, NARROW)
    path = root / start_arrays(NARROW)[name].chunk_path()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CometError, match=rf"start/{name}/c/.* bytes that do not match the ledger"):
        read_start(open_cache(root), name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_damage(tmp_path: Path, value: float) -> None:
    root = tmp_path / "kin.zarr"
    prepare_cache(root, NARROW)
    spec, layer = start_arrays(NARROW)["ffn"], random_start(NARROW)["ffn"][1:]
    layer[0, 1, 9, 7] = value
    path, data = spec.chunk_path(1), encode_chunk(spec, layer)
    (root / path).write_bytes(data)
    change_json(root / SEAL, lambda seal: seal["files"].update({path: file_record(data).to_json()}), sign=True)
    cache = open_cache(root)
    assert np.isfinite(read_start(cache, "ffn", slice(1))).all(), "the other layer is sound"
    with pytest.raises(CometError, match="start/ffn: a value is not finite; the cache is damaged"):
        read_start(cache, "ffn", slice(1, 2))
