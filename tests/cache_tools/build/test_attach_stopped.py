"""comet-cache attach that is killed, stopped or lied to: a cache is detached as before, or has its text whole."""

import errno
import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import numcodecs
import pytest
from helpers.attaching import call, files, given
from helpers.builds import Running
from helpers.commands import run
from helpers.crashes import crashing
from helpers.small_caches import change_json, flip_byte

import cache_tools.build.attach
from cache_tools import Cache, open_cache
from cache_tools.build.attach import attach
from cache_tools.build.restore import rebuild_tokens
from cache_tools.errors import CometError
from cache_tools.signals import TEXT_ARRAYS, TOKEN_ARRAYS
from cache_tools.store.copy import cut
from cache_tools.store.layout import encode_chunk
from cache_tools.store.ledger import SEAL, file_record, token_digest, without_text
from cache_tools.store.staging import exclusive
from cache_tools.verify.verify import verify


@pytest.mark.slow
def test_a_crash_at_any_step_leaves_it_detached_or_whole(whole: Cache, tmp_path: Path, corpus: Path) -> None:
    """Called again it is the whole, and what was there already stays as it was written."""
    expected = files(whole.root)
    cache = cut(whole, tmp_path / "count" / "kin.zarr", without_text(whole.extent))
    with crashing(cache.root.parent, None) as watch:
        attach(cache, *given(corpus))
    at_end = range(watch.operations - 24, watch.operations, 2)  # where the files get their names
    points = sorted({*random.Random(1).sample(range(watch.operations - 24), 4), *at_end, watch.operations - 1})
    deaths, states = 0, set()
    for at in points:
        cache = cut(whole, tmp_path / str(at) / "kin.zarr", without_text(whole.extent))
        with crashing(cache.root.parent, at) as died:
            attach(cache, *given(corpus))
        deaths += died.crashed
        left = files(cache.root)
        assert {path for path, digest in left.items() if digest != expected[path]} <= {"ledger/extent.json"}
        assert open_cache(cache.root).extent.has_text == (left == expected)
        report = verify(cache.root)
        assert report.damage == []
        states.add(any("files of the text, which this copy is not meant to hold" in note for note in report.notes))
        stamps = {path: (cache.root / path).stat().st_ino for path in left if path != "ledger/extent.json"}
        assert attach(open_cache(cache.root), *given(corpus)).cache_id == whole.cache_id
        assert files(cache.root) == expected
        assert {path: (cache.root / path).stat().st_ino for path in stamps} == stamps
        assert verify(cache.root).damage == []
    assert deaths == len(points)
    assert states == {False, True}


def test_the_extent_is_widened_under_the_lock(detached: Cache, corpus: Path) -> None:
    """Another process may be about to widen it, too, by what it has read."""
    attaching = threading.Thread(target=lambda: attach(detached, *given(corpus)))
    wanted = [
        detached.root / detached.specs["train"]["input_ids"].chunk_path(s) for s in detached.extent.indices("train")
    ]
    with exclusive(detached.root):
        attaching.start()
        while attaching.is_alive() and not all(path.exists() for path in wanted):
            time.sleep(0.01)
        attaching.join(0.5)
        assert not open_cache(detached.root).extent.has_text
    attaching.join()
    assert open_cache(detached.root).extent.has_text


def test_killed_at_any_moment_and_called_again(whole: Cache, detached: Cache, corpus: Path, tmp_path: Path) -> None:
    arguments = call(detached, [corpus / "a.txt", corpus / "b.txt"], corpus / "test.txt")
    for delay in (0.05, 0.2, 0.35):
        running = Running(arguments, tmp_path / "log")
        running.process.join(delay)
        running.send(signal.SIGKILL)
        now = open_cache(detached.root)
        assert now.extent in (detached.extent, whole.extent)
        assert now.extent.has_text == (files(detached.root) == files(whole.root))
    ended = Running(arguments, tmp_path / "log").wait()
    assert (ended.code, ended.stderr) == (0, ""), ended
    assert files(detached.root) == files(whole.root)
    assert not list(detached.root.glob(".staging-*"))


def test_the_next_call_removes_what_a_killed_one_left(detached: Cache, corpus: Path) -> None:
    attach(detached, *given(corpus))
    (detached.root / ".staging-dead").mkdir()
    (detached.root / ".staging-dead/lock").touch()
    attach(open_cache(detached.root), *given(corpus))
    assert not list(detached.root.glob(".staging-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(
    detached: Cache, corpus: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = files(detached.root)

    def read(*arguments: object) -> object:
        os.kill(os.getpid(), number)
        return rebuild_tokens(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_tools.build.attach, "rebuild_tokens", read)
    message = r"kin\.zarr: stopped; it is detached as before, run the same command again$"
    with pytest.raises(KeyboardInterrupt, match=message):
        attach(detached, *given(corpus))
    assert files(detached.root) == before
    assert not list(detached.root.glob(".staging-*"))


def test_a_full_disk_is_one_line_and_leaves_it_detached(
    whole: Cache, detached: Cache, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files(detached.root)
    monkeypatch.setattr(os, "fsync", full)
    done = run(*call(detached, [corpus / "a.txt", corpus / "b.txt"], corpus / "test.txt"))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {detached.root}: cannot be written (No space left on device); ")
    monkeypatch.undo()
    assert files(detached.root) == before
    assert attach(detached, *given(corpus)).cache_id == whole.cache_id


def test_what_a_cache_holds_may_not_change_meanwhile(
    whole: Cache, detached: Cache, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(cache: Cache, *arguments: object) -> object:
        change_json(
            cache.root / "ledger/extent.json",
            lambda e: e.update(shards={"train": [], "validation": [[0, 1]]}),
            sign=True,
        )
        return rebuild_tokens(cache, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_tools.build.attach, "rebuild_tokens", read)
    with pytest.raises(CometError, match=r"its extent has changed meanwhile; run the same command again$"):
        attach(detached, *given(corpus))
    assert not open_cache(detached.root).extent.has_text
    assert open_cache(detached.root).extent.shards["train"] == ()


def first_file(cache: Cache, name: str) -> Path:
    return cache.root / cache.specs["train"][name].chunk_path(0)


@pytest.mark.parametrize("kind", ["another", "link", "pipe"])
def test_files_in_the_way_are_refused_and_stay(detached: Cache, corpus: Path, tmp_path: Path, kind: str) -> None:
    """A hostile copy, whose extent does not list them. Nothing else reads them either."""
    file = first_file(detached, "target_id")
    file.parent.mkdir(parents=True)
    if kind == "link":
        (tmp_path / "outside").write_bytes(b"mine")
        file.symlink_to(tmp_path / "outside")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(b"another")
    said = {"another": "in the way: not the file that the ledger describes", "link": "a link;", "pipe": "a pipe"}[kind]
    with pytest.raises(CometError, match=rf"{file}: {said}"):
        attach(open_cache(detached.root), *given(corpus))
    assert os.path.lexists(file)
    (damage,) = verify(detached.root).damage
    assert str(file) in damage.message
    with pytest.raises(CometError, match=r"this copy does not hold target_id$"):
        open_cache(detached.root).read_shard("train", 0, ["target_id"])
    if kind == "link":
        assert (tmp_path / "outside").read_bytes() == b"mine"


def test_a_folder_that_leads_outside_is_refused(detached: Cache, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (detached.root / "train/target_id/c").symlink_to(tmp_path / "outside")
    with pytest.raises(CometError, match=r"train/target_id/c: a link; a cache holds files only"):
        attach(open_cache(detached.root), *given(corpus))
    assert list((tmp_path / "outside").iterdir()) == []


def other_tokens(cache: Cache) -> tuple[dict[str, bytes], str]:
    """Files of token arrays with another target in row 0, and their digest."""
    arrays = cache.read_shard("train", 0, TOKEN_ARRAYS)
    arrays["target_id"] = arrays["target_id"].copy()
    arrays["target_id"][0, 0] = 5
    specs = cache.specs["train"]
    return {name: encode_chunk(specs[name], arrays[name]) for name in TOKEN_ARRAYS}, token_digest(arrays)


def forge_digest(root: Path, digest: str) -> None:
    change_json(root / SEAL, lambda seal: seal["token_digests"]["train"].__setitem__(0, digest), sign=True)


def test_a_forged_digest_is_not_believed(whole: Cache, detached: Cache, corpus: Path) -> None:
    """Even where files that fit it lie in their place, with a record that fits them."""
    forged, digest = other_tokens(whole)
    forge_digest(detached.root, digest)
    expected = (
        r"the text does not give its tokens: those of shard train 0 are not the sealed ones, though every row has its "
        r"key: the cache is damaged or forged\. Nothing was changed$"
    )
    with pytest.raises(CometError, match=expected):
        attach(open_cache(detached.root), *given(corpus))
    for name in TEXT_ARRAYS:
        file = first_file(detached, name)
        file.parent.mkdir(parents=True)
        file.write_bytes(forged[name])
    described = {"bytes": len(forged["target_id"]), "sha256": file_record(forged["target_id"]).sha256}
    change_json(detached.root / "ledger/train-00000.json", lambda r: r["files"].update(target_id=described), sign=True)
    with pytest.raises(CometError, match=expected):
        attach(open_cache(detached.root), *given(corpus))
    assert not open_cache(detached.root).extent.has_text


@pytest.mark.parametrize("name", TOKEN_ARRAYS)
def test_files_of_another_encoder_are_not_taken(detached: Cache, corpus: Path, name: str) -> None:
    """The tokens are right, but the cache would have another id than the one that it is known by."""
    record = detached.root / "ledger/train-00001.json"
    change_json(
        record,
        lambda r: (r["files"][name].update(sha256="0" * 64), r["numerics"].update(numcodecs="0.15.0")),
        sign=True,
    )
    with pytest.raises(
        CometError,
        match=r"the tokens of shard train 1 are right, but their files are not those of its commit record: they were "
        rf"encoded by another version of numcodecs \(0\.15\.0; here {re.escape(numcodecs.__version__)}\), or the "
        r"record is forged; install that version and run the same command again\. Nothing was changed$",
    ):
        attach(open_cache(detached.root), *given(corpus))
    assert not open_cache(detached.root).extent.has_text
    change_json(record, lambda r: r["numerics"].pop("numcodecs"), sign=True)
    with pytest.raises(CometError, match=r"another version of numcodecs \(not recorded; here "):
        attach(open_cache(detached.root), *given(corpus))


def test_another_tokenizer_is_refused(detached: Cache, corpus: Path) -> None:
    path = "tokenizer/tokenizer_config.json"
    change_json(detached.root / path, lambda config: config.update(eos_token="<pad>", sep_token="<pad>"))
    data = (detached.root / path).read_bytes()
    described = {"bytes": len(data), "sha256": file_record(data).sha256}
    change_json(detached.root / SEAL, lambda seal: seal["files"].update({path: described}), sign=True)
    with pytest.raises(CometError, match=r"its tokenizer is not that of its recipe: expected sha256 and special ids"):
        attach(open_cache(detached.root), *given(corpus))


def test_damaged_keys_are_damage(detached: Cache, corpus: Path) -> None:
    flip_byte(first_file(detached, "row_key"))
    with pytest.raises(CometError, match=r"row_key/c/0: \d+ bytes that do not match the ledger"):
        attach(detached, given(corpus)[0][:1], given(corpus)[1])
