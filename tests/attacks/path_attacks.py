"""Attacks by what lies at a path: links, pipes, devices, unknown files, and names that are paths."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from forging import CHUNK, RECORD, TOKENIZER, Attack, Change, change_record

from cache_tools.store.ledger import EXTENT, SEAL


def replaced(threat: str, path: str, by: Callable[[Path], object], refused: str, against: str = "train") -> Attack:
    """Remove a file, and make something else in its place."""

    def change(cache: Path) -> None:
        (cache / path).unlink()
        by(cache / path)

    return Attack(threat, against, change, refused)


def linked(threat: str, path: str, against: str) -> Attack:
    """Move a file or a folder out of the cache, and link to it."""

    def change(cache: Path) -> None:
        elsewhere = (cache / path).rename(cache.parent / "elsewhere")
        (cache / path).symlink_to(elsewhere)

    return Attack(threat, against, change, "a link")


def unknown(threat: str, path: str, content: str = "", refused: str = "unknown file") -> Attack:
    """Add a file that is not in the ledger."""

    def change(cache: Path) -> None:
        (cache / path).parent.mkdir(parents=True, exist_ok=True)
        (cache / path).write_text(content)

    return Attack(threat, "verify --deep", change, refused)


def named(threat: str, record: str, change: Change, refused: str) -> Attack:
    """Name a path in a record where the name of an array belongs."""
    return Attack(threat, "train", lambda cache: change_record(cache, record, change), refused)


def list_a_file_outside(cache: Path) -> None:
    (cache.parent / "secret").write_text("secret")
    change_record(cache, SEAL, lambda seal: seal["files"].update({"../secret": seal["files"]["zarr.json"]}))


def make_socket(path: Path) -> None:
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path.name)


ATTACKS = {
    # pipes, sockets, devices and folders
    "fifo_as_chunk": replaced(
        "A named pipe in place of a chunk: who opens it waits for ever.", CHUNK, os.mkfifo, "a pipe or a device"
    ),
    "fifo_as_record": replaced(
        "A named pipe in place of a commit record.", RECORD, os.mkfifo, "a pipe or a device", "info"
    ),
    "fifo_as_seal": replaced("A named pipe in place of the seal.", SEAL, os.mkfifo, "ledger is gone", "info"),
    "fifo_as_tokenizer": replaced(
        "A named pipe in place of the tokenizer.", TOKENIZER, os.mkfifo, "a pipe or a device", "tokenizer"
    ),
    "socket_as_chunk": replaced("A socket in place of a chunk.", CHUNK, make_socket, "cannot be read"),
    "folder_as_chunk": replaced("A folder in place of a chunk.", CHUNK, os.mkdir, "Is a directory"),
    "endless_device": replaced(
        "A record that is the device /dev/zero, which never ends.",
        RECORD,
        lambda path: path.symlink_to("/dev/zero"),
        "a link",
        "info",
    ),
    # links
    "link_to_itself": replaced(
        "A commit record that is a link to itself.", RECORD, lambda path: path.symlink_to(path), "a link", "info"
    ),
    "linked_chunk": linked(
        "A chunk that is a link to a sound one elsewhere: what is checked now is another file later.", CHUNK, "train"
    ),
    "linked_record": linked("A commit record that is a link.", RECORD, "info"),
    "linked_tokenizer": linked("A tokenizer that is a link to a file of the user.", TOKENIZER, "tokenizer"),
    "linked_folder": linked(
        "A folder of the cache that is a link to one outside, where a repair would remove files.", "train", "train"
    ),
    "linked_ledger": linked(
        "A ledger that is a link to another cache's, whose records a build would write.", "ledger", "info"
    ),
    # records that name paths
    "absolute_path": named(
        "A commit record that names a file of the system as an array.",
        RECORD,
        lambda record: record["files"].update({"/etc/passwd": record["files"]["length"]}),
        "expected records of",
    ),
    "group_as_a_path": named(
        "A record of a shard in a group that is a path.",
        RECORD,
        lambda record: record.update(group="../validation"),
        "group: expected train, found '../validation'",
    ),
    "path_in_the_extent": named(
        "An extent that names a path as an array.",
        EXTENT,
        lambda extent: extent["arrays"].append("../../etc"),
        "arrays: expected some of",
    ),
    "path_traversal": Attack(
        "A seal that lists a file outside of the cache.", "train", list_a_file_outside, "expected records of"
    ),
    # files that the ledger does not list
    "extra_files": unknown(
        "Files that the ledger does not list, such as code beside the tokenizer.",
        "tokenizer/tokenization_evil.py",
        "raise SystemExit",
        "tokenizer/tokenization_evil.py: unknown file",
    ),
    "zarr_2_metadata": unknown(
        "Metadata of Zarr 2 with a pickle filter beside ours, for a reader that prefers it.",
        "train/entropy/.zarray",
        json.dumps({"zarr_format": 2, "dtype": "|O", "filters": [{"id": "pickle"}]}),
        "train/entropy/.zarray: unknown file",
    ),
    "escape_codes_in_a_name": unknown(
        "A file whose name drives the terminal that `verify` prints it on.", "\x1b]0;owned\x07\x1b[2J"
    ),
    "lines_in_a_name": unknown(
        "A file whose name has a line of its own that says that all is well.", "x\nsound and complete\n"
    ),
    "undecodable_name": unknown("A file whose name is no UTF-8.", os.fsdecode(b"\xff\xfe")),
    "overlong_names": unknown(
        "Files of names as long as a file system allows, in folders of such names.",
        "/".join(("x" * 255, "y" * 255, "z" * 255)),
    ),
}
