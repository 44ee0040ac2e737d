"""What a clever attacker does after every change: sign again whatever vouches for it.

The attacks are made on the golden caches of format 1, which are sound in every value.
"""

import json
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))

from helpers.small_caches import change_json, recipe_json

from cache_tools import open_cache
from cache_tools.errors import CometError
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.layout import (
    CRC_BYTES,
    ArraySpec,
    decode_chunk,
    encode_chunk,
    group_arrays,
    metadata,
    vocabulary_arrays,
)
from cache_tools.store.ledger import EXTENT, SEAL, file_record, token_digest, without_text
from cache_tools.store.recipe import GROUPS, Recipe, parse_recipe

GOLDEN = Path(__file__).parents[1] / "cache_tools" / "store" / "golden"
RECORD = "ledger/train-00000.json"
ROOT = "zarr.json"
ARRAY = "train/entropy/zarr.json"
TOKENIZER = "tokenizer/tokenizer.json"
TOKENIZER_CONFIG = "tokenizer/tokenizer_config.json"

Change = Callable[[dict[str, Any]], object]


def sound_cache(folder: Path, keep: str) -> Path:
    """A sound cache in a new folder."""
    with tarfile.open(GOLDEN / f"{keep}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return (folder / f"{keep}.zarr").rename(folder / "kin.zarr")


def record_of(data: bytes) -> dict[str, Any]:
    """How the ledger describes a file."""
    return {"bytes": len(data), "sha256": file_record(data).sha256}


def change_record(cache: Path, path: str, change: Change) -> None:
    """Changes the seal, the extent or a commit record, with a sound checksum."""
    change_json(cache / path, change, sign=True)


def write_sealed(cache: Path, path: str, data: bytes) -> None:
    """Puts other bytes into a file that the seal lists."""
    (cache / path).write_bytes(data)
    change_record(cache, SEAL, lambda seal: seal["files"].update({path: record_of(data)}))


def change_sealed(cache: Path, path: str, change: Change) -> None:
    """Changes a JSON file that the seal lists."""
    value = json.loads((cache / path).read_bytes())
    change(value)
    write_sealed(cache, path, json.dumps(value).encode())


def change_facts(cache: Path, change: Change) -> None:
    """Changes what the cache says of itself, outside its recipe."""
    change_sealed(cache, ROOT, lambda root: change(root["attributes"]["comet"]))


def change_recipe(cache: Path, **fields: Any) -> None:
    """Another recipe, and everything that names it or follows from it, as far as it can be written."""
    recipe = replace(open_cache(cache).recipe, **fields)

    def retell(comet: dict[str, Any]) -> None:
        comet.update(recipe=recipe_json(recipe), recipe_id=recipe.recipe_id)

    change_facts(cache, retell)
    for path in (SEAL, EXTENT, *(f"ledger/{file.name}" for file in cache.glob("ledger/*-*.json"))):
        change_record(cache, path, lambda record: record.update(recipe_id=recipe.recipe_id))
    for spec in declared(recipe):
        change_sealed(cache, f"{spec.path}/zarr.json", lambda array, spec=spec: array.update(metadata(spec)))


def change_detached(cache: Path) -> None:
    """The extent of a copy without its text; the files of the text stay."""
    arrays = without_text(open_cache(cache).extent).arrays
    change_record(cache, EXTENT, lambda extent: extent.update(arrays=list(arrays)))


def declared(recipe: Recipe) -> list[ArraySpec]:
    """The arrays of a recipe; none of one that nobody reads."""
    try:
        parse_recipe(recipe_json(recipe), "forged")
        return [spec for group in GROUPS for spec in group_arrays(recipe, group).values()]
    except CometError:
        return []


def write_chunk(cache: Path, name: str, data: bytes) -> None:
    """Puts other bytes into the file of an array in shard train 0."""
    (cache / chunk_path(cache, name)).write_bytes(data)
    change_record(cache, RECORD, lambda record: record["files"].update({name: record_of(data)}))


def chunk_path(cache: Path, name: str) -> str:
    return open_cache(cache).specs["train"][name].chunk_path(0)


def change_header(cache: Path, name: str, at: int, data: bytes) -> None:
    """Writes into a chunk's Blosc header or body, with a sound crc32c."""
    packed = bytearray((cache / chunk_path(cache, name)).read_bytes()[:-CRC_BYTES])
    packed[at : at + len(data)] = data
    write_packed(cache, name, bytes(packed))


def write_packed(cache: Path, name: str, packed: bytes) -> None:
    """Other Blosc bytes, with a sound crc32c."""
    write_chunk(cache, name, packed + google_crc32c.value(packed).to_bytes(CRC_BYTES, "little"))


def read_array(cache: Path, name: str) -> NDArray:
    """An array of shard train 0, to be changed."""
    spec = open_cache(cache).specs["train"][name]
    return decode_chunk(spec, (cache / spec.chunk_path(0)).read_bytes(), spec.chunk[0]).copy()


def write_array(cache: Path, name: str, array: NDArray) -> None:
    """Other values in shard train 0, chunk, record and, for tokens, seal being sound."""
    write_chunk(cache, name, encode_chunk(open_cache(cache).specs["train"][name], array))
    if name in TOKEN_ARRAYS:
        digest = token_digest({name: read_array(cache, name) for name in TOKEN_ARRAYS})
        change_record(cache, SEAL, lambda seal: seal["token_digests"]["train"].__setitem__(0, digest))


def change_array(cache: Path, name: str, change: Callable[[NDArray], None]) -> None:
    """Changes values of shard train 0 in place, as `write_array`. Row 0 has a target in slot 0."""
    array = read_array(cache, name)
    change(array)
    write_array(cache, name, array)


def change_vocabulary(cache: Path, name: str, change: Callable[[NDArray], None]) -> None:
    """Other values in an array of the vocabulary."""
    spec = vocabulary_arrays(open_cache(cache).recipe)[name]
    array = decode_chunk(spec, (cache / spec.chunk_path(0)).read_bytes(), spec.shape[0]).copy()
    change(array)
    write_sealed(cache, spec.chunk_path(0), encode_chunk(spec, array))


def replace_text(cache: Path, path: str, old: bytes, new: bytes) -> None:
    """Replaces bytes in a sealed file that need not stay JSON."""
    data = (cache / path).read_bytes()
    assert data.count(old) == 1, (path, old)
    write_sealed(cache, path, data.replace(old, new))
