"""Moving a cache: in the right order, in parts, past crashes and full disks, and never over anything that is there."""

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.builds import digests
from helpers.commands import pull, run
from helpers.crashes import crashing
from helpers.small_caches import NUMERICS, commit, flip_byte, make_cache, prepare_cache, shard_keys, small_recipe
from tqdm import tqdm

from cache_tools import Cache, open_cache
from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.listing import read_listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.plan import plan
from cache_tools.sharing.retry import RetryPolicy, Unreachable, map_concurrently, retry
from cache_tools.sharing.transfer import Transfer
from cache_tools.signals import ATTENTION
from cache_tools.store.ledger import ShardKey
from cache_tools.store.staging import STAGING
from cache_tools.verify.verify import verify

RECIPE = small_recipe()
POLICY = RetryPolicy(retries=2, pause=0.01)


def arrived(folder: Path) -> dict[str, str]:
    """The files that have their names; a process that only seems to have died still holds its staging folder."""
    found = {path: digest for path, digest in digests(folder).items() if digest != "folder"}
    return {path: d for path, d in found.items() if not path.startswith(STAGING) and path != "ledger/lock"}


@pytest.mark.slow
def test_a_pull_killed_anywhere_leaves_whole_files_and_resumes(whole: Cache, tmp_path: Path) -> None:
    sent = arrived(whole.root)
    with crashing(tmp_path / "count", None) as watch:
        pull(whole.root, tmp_path / "count")
    generator, deaths = random.Random(0), 0
    for at in sorted(generator.sample(range(watch.operations), 16)):
        there = tmp_path / str(at)
        with crashing(there, at) as died:
            run("pull", whole.root, there)
        deaths += died.crashed  # not all: two threads may both make a folder, so the number of operations varies
        left = arrived(there)
        assert left.items() <= sent.items()
        assert in_order(set(left), set(sent), whole)
        assert pull(whole.root, there).cache_id == whole.cache_id
        assert arrived(there) == sent
    assert deaths >= 14


def in_order(left: set[str], sent: set[str], cache: Cache) -> bool:
    """A shard only after the seal, a record only with its files, the seal only with its own, the extent at the end."""
    needs = {"ledger/seal.json": set(cache.seal.files), "ledger/extent.json": sent - {"ledger/extent.json"}}
    for group, shard in shard_keys(RECIPE):
        files = {spec.chunk_path(shard) for spec in cache.specs[group].values()}
        needs |= {f"ledger/{group}-{shard:05d}.json": files} | {path: {"ledger/seal.json"} for path in files}
    return all(needs[path] <= left for path in left & needs.keys())


def test_what_was_cut_is_not_moved_again(tmp_path: Path) -> None:
    make_cache(tmp_path / "larger", small_recipe(train_rows=200))
    larger = open_cache(tmp_path / "larger")
    found = read_listing(Folder(larger.root), POLICY)
    there = Folder(tmp_path / "there")
    first = plan(found, there, Part(), POLICY)
    moved: list[int] = []

    def until_half(size: int) -> None:
        moved.append(size)
        if sum(moved) > 0.8 * first.size:
            raise CometError("cut")

    with there.staging(), pytest.raises(CometError, match=r"^cut$"):
        Transfer(first, POLICY, until_half).run()
    again = plan(found, there, Part(), POLICY)
    assert 0 < again.size < 0.8 * first.size
    with there.staging():
        Transfer(again, POLICY, lambda size: None).run()
    assert open_cache(there.root).cache_id == again.cache_id == larger.cache_id


def test_a_damaged_source_gives_nothing_of_the_shard(whole: Cache, tmp_path: Path) -> None:
    flip_byte(whole.root / "train/topk_id/c/1/0/0")
    done = run("pull", whole.root, tmp_path / "there")
    assert done.exit_code == 1
    assert "train/topk_id/c/1/0/0: " in done.stderr and "…, but the ledger has " in done.stderr
    assert not (tmp_path / "there" / "train/topk_id/c/1/0/0").exists()
    assert not (tmp_path / "there" / "ledger/train-00001.json").exists()


def test_a_disk_that_is_full_is_one_line(whole: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = run("pull", whole.root, tmp_path / "there")
    assert done.exit_code == 1
    assert done.stderr == (
        f"error: {tmp_path / 'there'}: cannot be written (No space left on device); the source is safe. Fix the "
        "folder and run the same command again to continue\n"
    )
    monkeypatch.undo()
    assert pull(whole.root, tmp_path / "there").cache_id == whole.cache_id


def test_the_first_failure_stops_the_others_with_its_own_error() -> None:
    stop, begun = threading.Event(), []

    def work(item: int) -> None:
        begun.append(item)
        if item == 3:
            raise CometError("the fourth")
        assert stop.wait(2.0)

    with pytest.raises(CometError, match=r"^the fourth$"):
        map_concurrently(work, range(60), stop)
    assert len(begun) < 20


def test_a_signal_while_work_is_handed_out_ends_what_began() -> None:
    class Interrupted(list[int]):
        def __iter__(self) -> Iterator[int]:
            yield 0
            raise KeyboardInterrupt

    stop, waited = threading.Event(), list[bool]()
    with pytest.raises(KeyboardInterrupt):
        map_concurrently(lambda _: waited.append(stop.wait(60)), Interrupted(), stop)
    assert waited == [True]


def test_only_what_may_pass_is_tried_again() -> None:
    for error, times in ((Unreachable("away"), 3), (CometError("wrong"), 1)):
        calls = []

        def fail(error: CometError = error, calls: list[int] = calls) -> None:
            calls.append(1)
            raise error

        with pytest.raises(CometError, match=str(error)):
            retry(fail, POLICY, threading.Event())
        assert len(calls) == times


def test_a_larger_part_adds_only_what_is_missing(whole: Cache, tmp_path: Path) -> None:
    """Other shards, other arrays, and the product of both."""
    there = Folder(tmp_path / "there")
    found = read_listing(Folder(whole.root), POLICY)
    everything = plan(found, there, Part(), POLICY).size
    total = 0
    for part in (Part(max_tokens=64), Part(max_tokens=128, signals="logits"), Part(signals="attention"), Part()):
        planned = plan(found, there, part, POLICY)
        with there.staging():
            Transfer(planned, POLICY, lambda size: None).run()
        total += planned.size
        assert verify(there.root).damage == []
        assert open_cache(there.root).cache_id == planned.cache_id
    assert planned.size == 0
    assert total == everything
    assert open_cache(there.root).cache_id == whole.cache_id


def test_arrays_of_a_stopped_pull_are_completed(whole: Cache, tmp_path: Path) -> None:
    """There are records of shards, but no extent that says which arrays they came with."""
    pull(whole.root, tmp_path / "there", "--signals", "logits")
    (tmp_path / "there" / "ledger/extent.json").unlink()
    assert pull(whole.root, tmp_path / "there").cache_id == whole.cache_id
    assert verify(tmp_path / "there").damage == []


def test_a_part_pins_the_whole_or_itself(whole: Cache, tmp_path: Path) -> None:
    part = pull(whole.root, tmp_path / "one", "--max-tokens", 64, "--id", whole.cache_id)
    assert pull(whole.root, tmp_path / "other", "--max-tokens", 64, "--id", part.cache_id).cache_id == part.cache_id


def built(root: Path, keys: list[tuple[str, int]], numerics: dict[str, str]) -> Path:
    shards = prepare_cache(root, RECIPE)
    for key in keys:
        commit(root, RECIPE, key, shards[key], numerics)
    return root


def test_a_shard_of_another_builder_stays(tmp_path: Path) -> None:
    """The destination's version is kept, and everything else comes."""
    keys = [("train", 0), ("train", 1), ("train", 2), ("validation", 0)]
    mine = built(tmp_path / "mine", keys[:1], {"device": "another"})
    there = tmp_path / "there"
    assert run("pull", mine, there).exit_code == 1
    before = (there / "ledger/train-00000.json").read_bytes()
    theirs = built(tmp_path / "theirs", keys, NUMERICS)
    pull(theirs, there)
    assert (there / "ledger/train-00000.json").read_bytes() == before
    planned = plan(read_listing(Folder(theirs), POLICY), Folder(there), Part(), POLICY)
    assert planned.cache_id == open_cache(there).cache_id != open_cache(theirs).cache_id
    assert verify(there).damage == []


def test_another_version_cannot_complete_a_shard(tmp_path: Path) -> None:
    keys = [("train", 0), ("train", 1), ("train", 2), ("validation", 0)]
    one = built(tmp_path / "one", keys, NUMERICS)
    other = built(tmp_path / "other", keys, {"device": "another"})
    pull(one, tmp_path / "there", "--signals", "logits")
    done = run("pull", other, tmp_path / "there")
    assert done.exit_code == 2
    assert done.stderr == (
        f"error: {tmp_path / 'there'}: shard train 0 is another version than that of {other} and cannot be completed "
        "from it; choose another location\n"
    )


def test_a_source_without_the_arrays_that_the_destination_has(whole: Cache, tmp_path: Path) -> None:
    run("subset", whole.root, tmp_path / "maps", "--signals", "attention")
    pull(whole.root, tmp_path / "there", "--signals", "logits", "--max-tokens", 64)
    done = run("pull", tmp_path / "maps", tmp_path / "there")
    assert done.exit_code == 1
    lacking = "topk_id, topk_logprob, tail_logmass, tail_logmass_seen"
    assert done.stderr == (
        f"error: {tmp_path / 'there'}: shard train 1 would lack {lacking}, which {tmp_path / 'maps'} does not hold "
        "either\n"
    )


def test_a_dropped_shard_is_pulled_again(whole: Cache, tmp_path: Path) -> None:
    there = pull(whole.root, tmp_path / "there").root
    flip_byte(there / "train/topk_id/c/1/0/0")
    assert run("repair", there).exit_code == 0
    assert pull(whole.root, there).cache_id == whole.cache_id
    assert verify(there).damage == []


@pytest.mark.parametrize("path", ["train/zarr.json", "vocabulary/id/c/0", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), flip_byte, lambda path: path.write_bytes(b"")])
def test_a_damaged_sealed_file_is_pulled_again(
    whole: Cache, tmp_path: Path, path: str, damage: Callable[[Path], object]
) -> None:
    there = pull(whole.root, tmp_path / "there").root
    damage(there / path)
    size = tqdm.format_sizeof((whole.root / path).stat().st_size, "B")
    assert run("pull", whole.root, there).stdout.startswith(f"{size} to copy\n")
    assert verify(there).damage == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pull", "gopher://x/y", "there"), "gopher://x/y: fsspec does not support gopher://"),
        (
            ("pull", "zip::s3://a/b", "there"),
            "zip::s3://a/b: chained URLs are not supported; give that of the cache itself",
        ),
        (
            ("pull", "whole", "memory://x"),
            "memory://x: pull copies into a folder; to copy elsewhere, pull and then push",
        ),
        (("push", "memory://x", "there"), "memory://x: push copies from a folder; to copy from elsewhere, pull first"),
    ],
)
def test_calls_that_cannot_be(whole: Cache, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(*(str(tmp_path / a) if a in ("whole", "there") else a for a in arguments))
    assert (done.exit_code, done.stderr) == (2, f"error: {said}\n")
    assert not (tmp_path / "there").exists()


def test_rsync_cp_and_zip_copy_a_cache(whole: Cache, tmp_path: Path) -> None:
    shutil.copytree(whole.root, tmp_path / "copied")
    shutil.make_archive(str(tmp_path / "kin"), "zip", whole.root)
    shutil.unpack_archive(tmp_path / "kin.zip", tmp_path / "unzipped")
    for name in ("copied", "unzipped"):
        assert verify(tmp_path / name).damage == []
        assert open_cache(tmp_path / name).cache_id == whole.cache_id
    (tmp_path / "copied" / "train/topk_id/c/2/0/0").unlink()
    assert [damage.shard for damage in verify(tmp_path / "copied").damage] == [("train", 2)]


def test_a_larger_pull_that_was_cut_is_no_damage(whole: Cache, tmp_path: Path) -> None:
    """The smaller part stays complete, and what came of the larger one is said to be of a pull, if it is sound."""
    there = pull(whole.root, tmp_path / "there", "--max-tokens", 64, "--signals", "logits").root
    part = open_cache(there).cache_id
    to = Folder(there)
    planned = plan(read_listing(Folder(whole.root), POLICY), to, Part(), POLICY)
    cut = Transfer(planned, POLICY, lambda size: None)
    with to.staging():
        cut.copy_shard(ShardKey("train", 0))
        cut.copy_shard(ShardKey("train", 2))
        cut.copy_files(planned.source.records["train", 1], planned.lacking["train", 1][:3])
    assert open_cache(there).cache_id == part
    done = run("verify", there)
    assert done.exit_code == 0, done.output
    note = (
        "files of shards or arrays that this copy is not meant to hold yet: of a pull that is under way or was stopped"
    )
    assert f"note: {len(ATTENTION.arrays) + len(whole.extent.arrays) + 1 + 3} {note}" in done.stdout
    assert done.stdout.endswith("sound and complete\n")
    flip_byte(there / "train/attention_gap/c/0/0/0/0")
    done = run("verify", there)
    assert done.exit_code == 1
    assert "train/attention_gap/c/0/0/0/0: not the file that the ledger describes" in done.stdout
    assert "damaged shards: train 0\n" in done.stdout
    assert run("repair", there).exit_code == 0
    assert pull(whole.root, there).cache_id == whole.cache_id
    assert verify(there).damage == verify(there).notes == []


@pytest.mark.parametrize("name", ["train/topk_id/c/9/0/0", "ledger/train-00009.json", "train/topk_id/c/01/0/0"])
def test_a_shard_that_the_whole_cache_has_not_is_unknown(whole: Cache, name: str) -> None:
    (whole.root / name).parent.mkdir(parents=True, exist_ok=True)
    (whole.root / name).write_bytes(b"x")
    assert [damage.message for damage in verify(whole.root).damage] == [
        f"{whole.root / name}: unknown file; it belongs to nothing in this cache"
    ]
