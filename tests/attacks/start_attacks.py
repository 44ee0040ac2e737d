"""Attacks by the start: its files, its metadata, the recipe's fields about it, and its values."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forging import (
    Attack,
    Change,
    change_recipe,
    change_record,
    change_sealed,
    change_sealed_array,
    with_crc,
    write_sealed,
)
from numpy import inf, nan

from cache_tools.store.layout import CRC_BYTES
from cache_tools.store.ledger import SEAL

CHUNK = "start/attention/c/1/0/0/0"
WHOLE = "start/head/c/0/0/0"


def file(threat: str, change: Callable[[Path], object], refused: str, path: str = CHUNK) -> Attack:
    """Change the file of a chunk, and nothing that vouches for it."""
    return Attack(threat, "train", lambda cache: change(cache / path), refused)


def recipe(threat: str, refused: str, against: str = "info", **fields: Any) -> Attack:
    """Change fields of the recipe, and everything that follows from them."""
    return Attack(threat, against, lambda cache: change_recipe(cache, **fields), refused)


def metadata(threat: str, change: Change, refused: str, path: str = "start/attention/zarr.json") -> Attack:
    """Change the metadata of an array or of the group."""
    return Attack(threat, "info", lambda cache: change_sealed(cache, path, change), refused)


def value(threat: str, name: str, number: float, refused: str = "", against: str = "train") -> Attack:
    """Put a number into all of an array's first chunk."""

    def change(cache: Path) -> None:
        change_sealed_array(cache, f"start/{name}", lambda array: array.fill(number))

    return Attack(threat, against, change, refused or f"start/{name}: a value is not finite")


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.parents[7] / "elsewhere"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def declare_gigabytes(cache: Path) -> None:
    packed = bytearray((cache / WHOLE).read_bytes()[:-CRC_BYTES])
    packed[4:8] = (2**31 - 1).to_bytes(4, "little")
    write_sealed(cache, WHOLE, with_crc(bytes(packed)))


def exchange_layers(cache: Path) -> None:
    first, second = cache / "start/attention/c/0/0/0/0", cache / CHUNK
    aside = first.rename(cache.parent / "aside")
    second.rename(first)
    aside.rename(second)


def grow(cache: Path) -> None:
    change_record(cache, SEAL, lambda seal: seal["files"][CHUNK].update(bytes=2**40))


ATTACKS = {
    # files
    "start_flipped_bit": file("A bit of the start flipped.", flip_a_byte, "that do not match the ledger"),
    "start_missing_chunk": file("A layer that the ledger lists, and whose file is not there.", Path.unlink, "be read"),
    "start_gigabytes": file(
        "A chunk of the start of eight gigabytes that takes no room on the attacker's disk.",
        lambda path: os.truncate(path, 2**33),
        "larger than the 2068 bytes it may have",
    ),
    "start_link": file("A chunk of the start that is a link to a sound one elsewhere.", link, "a link"),
    "start_fifo": file("A named pipe in place of a chunk of the start.", pipe, "a pipe or a device"),
    "start_layers_exchanged": Attack(
        "The files of two layers exchanged, which alone are sound.",
        "train",
        exchange_layers,
        "that do not match the ledger",
    ),
    "start_of_a_terabyte": Attack(
        "A seal that lists a terabyte of start.", "train", grow, f"{CHUNK}: expected a size up to 2068"
    ),
    "start_bomb": Attack(
        "A chunk of the start that says it becomes two gigabytes.",
        "train",
        declare_gigabytes,
        "start/head: a chunk declares 2147483647 bytes, expected 3072",
    ),
    "start_folder_missing": Attack(
        "A recipe with a start, and no such folder.", "info", lambda cache: shutil.rmtree(cache / "start"), "be read"
    ),
    "start_unknown_file": Attack(
        "A file in the start that is not in the ledger.",
        "verify --deep",
        lambda cache: (cache / "start/attention/c/1/0/0/1").write_bytes(b"x"),
        "start/attention/c/1/0/0/1: unknown file",
    ),
    # metadata
    "start_shape": metadata(
        "A layer that is declared 2⁶⁰ wide, so that a reader makes room for it.",
        lambda array: array.update(shape=[2, 4, 16, 2**60]),
        "shape: expected [2, 4, 16, 16], found",
    ),
    "start_chunk_grid": metadata(
        "A start in other chunks than the ledger knows.",
        lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=[1, 1, 1, 1]),
        "chunk_grid: expected",
    ),
    "start_codec": metadata(
        "A start as pickles, by the codec of numcodecs.",
        lambda array: array.update(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
        "codecs: expected",
    ),
    "start_attributes": metadata(
        "Attributes of the start, which a reader of Zarr hands on.",
        lambda group: group.update(attributes={"code": "here"}),
        "start/zarr.json: attributes: expected",
        "start/zarr.json",
    ),
    # the recipe
    "start_width_of_no_head": recipe(
        "A start whose width its heads do not divide.",
        "recipe field 'start_width': expected a multiple of 2",
        start_width=15,
    ),
    "start_wider_than_the_teacher": recipe(
        "A start that is wider than its teacher.", "recipe field 'start_width': expected at most 16", start_width=18
    ),
    "start_of_no_layers": recipe(
        "A start that has a width and no layers.",
        "recipe field 'start_width': expected a number above 0 if layers are kept, else 0, found '16'",
        start_layers=(),
    ),
    "start_layers_beyond": recipe(
        "A start of a layer that the teacher does not have.",
        "recipe field 'start_layers': expected 0 to 4096 different numbers from 0 to 1",
        start_layers=(0, 2),
    ),
    "start_of_a_layer_twice": recipe(
        "A start of one layer twice.",
        "recipe field 'start_layers': expected 0 to 4096 different numbers",
        start_layers=(1, 1),
    ),
    "start_of_countless_neurons": recipe(
        "A start of more neurons than any layer has, for which a reader makes room.",
        "recipe field 'start_neurons': expected a whole number from 0 to 131072",
        start_neurons=2**40,
    ),
    "start_of_many_neurons": recipe(
        "A start of as many neurons as are allowed, whose files are those of 32.",
        "start/neuron_order: a chunk declares 256 bytes, expected 1048576",
        "train",
        start_neurons=2**17,
    ),
    "start_of_many_layers": recipe(
        "A start of a thousand layers, of which a seal lists two.",
        "expected records of",
        teacher_layers=1024,
        start_layers=tuple(range(1024)),
    ),
    "start_of_gigabytes_a_chunk": recipe(
        "A start whose numbers are all allowed, and whose basis would take gigabytes.",
        "basis would take 68719476736 bytes of memory",
        teacher_hidden=2**20,
        start_width=2**14,
    ),
    "start_of_another_family": recipe(
        "A start of a teacher whose students are of a family that has none of its parts.",
        "start_rope': expected two numbers",
        teacher_architecture="ModernBertForMaskedLM",
    ),
    # values
    "start_infinite": value("Infinities in the layers that a student begins with.", "attention", inf),
    "start_nan": value("A start that is no number.", "ffn", nan),
    "start_nan_in_a_vector": value("A scale of a norm that is no number.", "norm", nan),
    "start_infinite_bias": value("Infinite biases of the head.", "head_bias", -inf),
    "start_singular_head": value(
        "Moments of the head that no matrix can be divided by.", "head", 0, "the cache is damaged"
    ),
    "start_negative_moment": value(
        "Moments below zero, whose root is no number, so that every weight becomes none.",
        "norm",
        -1,
        "the cache is damaged",
    ),
}
