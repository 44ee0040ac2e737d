"""Random changes to what a cache says of itself in JSON: of bytes and of structure, as they are or signed again."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from cache_tools import open_cache
from cache_tools.cli.facts import describe, options_of_build
from cache_tools.errors import CometError
from cache_tools.store.ledger import EXTENT, SEAL, file_record
from cache_tools.store.records import canonical, sha256, with_checksum

FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | FINITE | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ROOT = "zarr.json"
RECORDS = (SEAL, EXTENT, "ledger/train-00000.json", "ledger/validation-00000.json")
METADATA = (ROOT, "train/zarr.json", "train/entropy/zarr.json", "vocabulary/id/zarr.json")
SCALARS = (
    None, True, False, 0, -1, 1, 65_536, 2**31, 2**63, 2**64 + 5, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "0", "a" * 64, "A" * 64, "x" * 5_000, "\x1b[2J", "\u202e", "\ud800", "\x00", "a\nb",
    "../../etc/passwd", "/dev/zero", "NaN", "__class__",
)  # fmt: skip
BYTES = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"{",
    b"}",
    b"[" * 3_000,
    b'"',
    b"\\u0000",
    b"NaN",
    b"-",
    b"9" * 5_000,
    b"e999",
    b",",
)


def places(value: Any, deeper: int = 12) -> Iterator[tuple[Any, Any]]:
    """Every container and key or index in a value of JSON, as deep as a sound one goes."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        if deeper:
            yield from places(value[key], deeper - 1)


def copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def change_structure(value: dict[str, Any], drawn: random.Random) -> None:
    """One entry somewhere becomes another value, goes, comes twice, changes its name or place, or lies deeper."""
    container, key = drawn.choice(list(places(value)))
    kind = drawn.randrange(7)
    if kind == 0:
        del container[key]
    elif kind == 1:
        container[key] = [container[key]] * drawn.choice((1, 2, 2_000))
    elif kind == 2:
        container[key] = {str(drawn.choice(SCALARS)): container[key]}
    elif kind == 3 and isinstance(container, dict):
        container[str(drawn.choice(SCALARS))] = container[key] if drawn.random() < 0.5 else container.pop(key)
    elif kind == 4:
        other, place = drawn.choice(list(places(value)))
        container[key] = copy(other[place])
    elif kind == 5:
        for _ in range(drawn.choice((3, 100, 700))):  # near what a parser takes; `change_bytes` goes beyond
            container[key] = [container[key]]
    else:
        container[key] = drawn.choice(SCALARS)


def change_bytes(data: bytes, drawn: random.Random) -> bytes:
    """A bit, a byte or a run of them is changed, cut, repeated or put in."""
    begin, end = sorted(drawn.randrange(len(data) + 1) for _ in range(2))
    kind = drawn.randrange(5)
    if kind == 0:
        flipped = bytearray(data)
        flipped[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
        return bytes(flipped)
    if kind == 1:
        return data[:begin]
    if kind == 2:
        return data[:begin] + data[end:]
    if kind == 3:
        return data[:end] + data[begin:]
    return data[:begin] + drawn.choice(BYTES) + data[begin:]


def hostile_files(cache: Path, drawn: random.Random) -> tuple[str, dict[str, bytes]]:
    """What kind of change, and the files of a sound cache that it changes, by path."""
    name = drawn.choice((*RECORDS, *METADATA, ROOT, ROOT))
    data = (cache / name).read_bytes()
    if drawn.random() < 0.3:
        changed = change_bytes(data, drawn)
        return f"bytes of {name}", sealed(cache, name, changed) if drawn.random() < 0.5 else {name: changed}
    value = json.loads(data)
    whole = value
    if name == ROOT and drawn.random() < 0.8:
        comet = value["attributes"]["comet"]
        value = comet if drawn.random() < 0.2 else comet[drawn.choice(("recipe", "recipe", "provenance"))]
    try:
        for _ in range(drawn.choice((1, 1, 1, 2, 5))):
            if value:
                change_structure(value, drawn)
        if drawn.random() < 0.7:
            return f"structure of {name}, signed", signed(cache, name, whole)
        return f"structure of {name}", {name: json.dumps(whole).encode()}
    except (ValueError, RecursionError):  # NaN or a depth that no writer writes
        return hostile_files(cache, drawn)


def signed(cache: Path, name: str, value: dict[str, Any]) -> dict[str, bytes]:
    """The file, and everything that vouches for it."""
    if name in RECORDS:
        value.pop("checksum", None)
        return {name: with_checksum(value)}
    files = {}
    comet = value.get("attributes", {}).get("comet") if isinstance(value.get("attributes"), dict) else None
    if name == ROOT and isinstance(comet, dict) and "recipe" in comet:
        comet["recipe_id"] = sha256(canonical(comet["recipe"]))
        for record in RECORDS[1:]:
            told = json.loads((cache / record).read_bytes())
            files |= signed(cache, record, told | {"recipe_id": comet["recipe_id"]})
    return files | sealed(cache, name, json.dumps(value).encode(), comet)


def sealed(cache: Path, name: str, data: bytes, comet: object = None) -> dict[str, bytes]:
    """A file of the seal, and the seal with its size and digest; a record alone."""
    if name in RECORDS:
        return {name: data}
    seal = json.loads((cache / SEAL).read_bytes())
    seal["files"][name] = {"bytes": len(data), "sha256": file_record(data).sha256}
    if isinstance(comet, dict) and isinstance(comet.get("recipe_id"), str):
        seal["recipe_id"] = comet["recipe_id"]
    seal.pop("checksum")
    return {name: data, SEAL: with_checksum(seal)}


@contextmanager
def changed(cache: Path, files: dict[str, bytes]) -> Iterator[None]:
    """Other files in a cache for as long as it takes."""
    sound = {name: (cache / name).read_bytes() for name in files}
    try:
        for name, data in files.items():
            (cache / name).write_bytes(data)
        yield
    finally:
        for name, data in sound.items():
            (cache / name).write_bytes(data)


def read_what_it_says(cache: Path) -> str:
    """All that a cache says of itself; "refused" in place of a CometError, whose text is one short line."""
    try:
        found = open_cache(cache)
        said = f"{describe(found)} {options_of_build(found)}"
        found.require_complete()
    except CometError as error:
        if len(str(error)) > 4_000:
            raise AssertionError(f"a message of {len(str(error))} characters: {str(error)[:200]}") from error
        return "refused"
    return said
