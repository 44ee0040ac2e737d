"""Attacks on commit records, the seal and the extent, under sound checksums."""

import shutil
import tempfile
from pathlib import Path

from forging import RECORD, Attack, Change, change_detached, change_record, chunk_path, sound_cache

from cache_tools.store.ledger import EXTENT, SEAL


def record(threat: str, change: Change, refused: str, path: str = RECORD) -> Attack:
    """Change a commit record, the seal or the extent."""
    return Attack(threat, "info", lambda cache: change_record(cache, path, change), refused)


def append_to_a_record(cache: Path) -> None:
    with (cache / RECORD).open("ab") as file:
        file.write(b'{"shard":0}\n')


def take_a_record_of_another_recipe(cache: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(sound_cache(Path(folder), "topk") / RECORD, cache / RECORD)


def detach_and_replace_the_text(cache: Path) -> None:
    change_detached(cache)
    (cache / chunk_path(cache, "target_id")).write_bytes(b"another text")


ATTACKS = {
    # commit records
    "negative_size": record(
        "A file of minus one byte.",
        lambda record: record["files"]["entropy"].update(bytes=-1),
        "entropy: expected a size up to",
    ),
    "overflowing_size": record(
        "A file of 2⁶⁴ + 84 bytes, which is 84 in a machine word.",
        lambda record: record["files"]["entropy"].update(bytes=2**64 + 84),
        "entropy: expected a size up to",
    ),
    "record_over_4_mib": record(
        "A commit record that is larger than a record may be.",
        lambda record: record.update(numerics={"device": "x" * 2**22}),
        "larger than the 4194304 bytes it may have",
    ),
    "escape_codes_in_numerics": record(
        "Escape codes in what a shard was computed on.",
        lambda record: record["numerics"].update(device="\x1b[2J"),
        "expected numerics as short texts",
    ),
    "garbage_after_a_record": Attack(
        "A second object after a record.", "info", append_to_a_record, "not a valid JSON record"
    ),
    "renamed_shard": Attack(
        "The record of one shard under the name of another.",
        "train",
        lambda cache: shutil.copy(cache / "ledger/train-00001.json", cache / RECORD),
        "shard: expected 0, found '1'",
    ),
    "shard_of_another_recipe": Attack(
        "A shard of a cache of another recipe, with its record.",
        "train",
        take_a_record_of_another_recipe,
        "recipe_id: expected",
    ),
    # the seal and the extent
    "seal_of_many_files": record(
        "A seal that lists thousands of files that no cache has.",
        lambda seal: seal["files"].update({f"vocabulary/{n}": {"bytes": 1, "sha256": "a" * 64} for n in range(30_000)}),
        "expected records of",
        SEAL,
    ),
    "extent_of_billions": record(
        "An extent of billions of shards, where the recipe has four.",
        lambda extent: extent["shards"].update(train=[[0, 2**62]]),
        "shards of train: expected ascending ranges up to 4",
        EXTENT,
    ),
    "extent_of_many_ranges": record(
        "An extent of 200,000 ranges, as many as a record has room for.",
        lambda extent: extent["shards"].update(train=[[n, n + 1] for n in range(0, 400_000, 2)]),
        "shards of train: expected ascending ranges up to 4",
        EXTENT,
    ),
    "detached_and_trained": Attack(
        "An extent without the text, whose files are there all the same: what nothing vouches for, fed to a training.",
        "train",
        change_detached,
        "holds no text; attach the text first: comet-cache attach",
    ),
    "detached_and_undeclared": Attack(
        "An extent without the text, whose files are there all the same: other files than those of the ledger.",
        "verify",
        detach_and_replace_the_text,
        "not the file that the ledger describes",
    ),
}
