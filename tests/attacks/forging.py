"""An attack, and the changes that attacks are made of: each signs again whatever vouches for what it changed.

Attacks start from the golden caches of format 2, which are sound in every value.
"""

import json
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from cache_tools.store.start import start_arrays

GOLDEN = Path(__file__).parents[1] / "cache_tools" / "store" / "golden"
RECORD = "ledger/train-00000.json"
ROOT = "zarr.json"
ARRAY = "train/entropy/zarr.json"
CHUNK = "train/entropy/c/0/0/0"
TOKENIZER = "tokenizer/tokenizer.json"
TOKENIZER_CONFIG = "tokenizer/tokenizer_config.json"

Change = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Attack:
    """A hostile change to a sound cache, and the command that must withstand it.

    The command either refuses the cache in a line that contains `refused`, or succeeds and prints `shown`. To add an
    attack, add it by its name to `ATTACKS` in the module of its surface.
    """

    threat: str  # in one line
    against: str  # a command of comet-cache, or `train` or `tokenizer`
    change: Callable[[Path], object]
    refused: str = ""
    shown: str = ""
    keep: str = "threshold"  # the golden cache


def sound_cache(folder: Path, keep: str) -> Path:
    """Unpack a golden cache into a folder."""
    with tarfile.open(GOLDEN / f"{keep}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return (folder / f"{keep}.zarr").rename(folder / "kin.zarr")


def record_of(data: bytes) -> dict[str, Any]:
    """Return the ledger's description of a file."""
    return {"bytes": len(data), "sha256": file_record(data).sha256}


def change_record(cache: Path, path: str, change: Change) -> None:
    """Change the seal, the extent or a commit record, with a sound checksum."""
    change_json(cache / path, change, sign=True)


def write_sealed(cache: Path, path: str, data: bytes) -> None:
    """Replace the bytes of a file that the seal lists."""
    (cache / path).write_bytes(data)
    change_record(cache, SEAL, lambda seal: seal["files"].update({path: record_of(data)}))


def change_sealed(cache: Path, path: str, change: Change) -> None:
    """Change a JSON file that the seal lists."""
    value = json.loads((cache / path).read_bytes())
    change(value)
    write_sealed(cache, path, json.dumps(value).encode())


def change_facts(cache: Path, change: Change) -> None:
    """Change the root's attributes: the recipe, its id, the provenance. Nothing that follows from them."""
    change_sealed(cache, ROOT, lambda root: change(root["attributes"]["comet"]))


def change_recipe(cache: Path, **fields: Any) -> None:
    """Change the recipe and, as far as it can be written, everything that names it or follows from it."""
    recipe = replace(open_cache(cache).recipe, **fields)

    def retell(comet: dict[str, Any]) -> None:
        comet.update(recipe=recipe_json(recipe), recipe_id=recipe.recipe_id)

    change_facts(cache, retell)
    for path in (SEAL, EXTENT, *(f"ledger/{file.name}" for file in cache.glob("ledger/*-*.json"))):
        change_record(cache, path, lambda record: record.update(recipe_id=recipe.recipe_id))
    for spec in (spec for spec in declared(recipe) if (cache / spec.path).exists()):
        change_sealed(cache, f"{spec.path}/zarr.json", lambda array, spec=spec: array.update(metadata(spec)))


def change_detached(cache: Path) -> None:
    """Write the extent of a copy without its text; the files of the text stay."""
    arrays = without_text(open_cache(cache).extent).arrays
    change_record(cache, EXTENT, lambda extent: extent.update(arrays=list(arrays)))


def declared(recipe: Recipe) -> list[ArraySpec]:
    """Return the arrays of a recipe; none if the recipe is invalid."""
    try:
        parse_recipe(recipe_json(recipe), "forged")
        specs = [spec for group in GROUPS for spec in group_arrays(recipe, group).values()]
        return [*specs, *vocabulary_arrays(recipe).values(), *start_arrays(recipe).values()]
    except CometError:
        return []


def write_chunk(cache: Path, name: str, data: bytes) -> None:
    """Replace the bytes of an array's file in shard train 0."""
    (cache / chunk_path(cache, name)).write_bytes(data)
    change_record(cache, RECORD, lambda record: record["files"].update({name: record_of(data)}))


def chunk_path(cache: Path, name: str) -> str:
    return open_cache(cache).specs["train"][name].chunk_path(0)


def change_header(cache: Path, name: str, at: int, data: bytes) -> None:
    """Overwrite bytes of a chunk's Blosc header or body, with a sound crc32c."""
    packed = bytearray((cache / chunk_path(cache, name)).read_bytes()[:-CRC_BYTES])
    packed[at : at + len(data)] = data
    write_packed(cache, name, bytes(packed))


def write_packed(cache: Path, name: str, packed: bytes) -> None:
    """Replace a chunk's Blosc bytes, with a sound crc32c."""
    write_chunk(cache, name, with_crc(packed))


def with_crc(packed: bytes) -> bytes:
    return packed + google_crc32c.value(packed).to_bytes(CRC_BYTES, "little")


def read_array(cache: Path, name: str) -> NDArray:
    """Return a copy of an array of shard train 0."""
    spec = open_cache(cache).specs["train"][name]
    return decode_chunk(spec, (cache / spec.chunk_path(0)).read_bytes(), spec.chunk[0]).copy()


def write_array(cache: Path, name: str, array: NDArray) -> None:
    """Replace an array of shard train 0; chunk, record and, for tokens, the seal are sound."""
    write_chunk(cache, name, encode_chunk(open_cache(cache).specs["train"][name], array))
    if name in TOKEN_ARRAYS:
        digest = token_digest({name: read_array(cache, name) for name in TOKEN_ARRAYS})
        change_record(cache, SEAL, lambda seal: seal["token_digests"]["train"].__setitem__(0, digest))


def change_array(cache: Path, name: str, change: Callable[[NDArray], object]) -> None:
    """Change an array of shard train 0 in place, as `write_array`. Row 0 has a target in slot 0."""
    array = read_array(cache, name)
    change(array)
    write_array(cache, name, array)


def change_sealed_array(cache: Path, path: str, change: Callable[[NDArray], object]) -> None:
    """Change an array of the vocabulary or the start in place, in its first chunk."""
    (spec,) = (spec for spec in declared(open_cache(cache).recipe) if spec.path == path)
    array = decode_chunk(spec, (cache / spec.chunk_path(0)).read_bytes(), spec.chunk[0]).copy()
    change(array)
    write_sealed(cache, spec.chunk_path(0), encode_chunk(spec, array))


def replace_text(cache: Path, path: str, old: bytes, new: bytes) -> None:
    """Replace bytes of a sealed file, which need not stay JSON."""
    data = (cache / path).read_bytes()
    assert data.count(old) == 1, (path, old)
    write_sealed(cache, path, data.replace(old, new))
