"""Two versions of one shard, or of one start, that come to one location at once: one of them stays whole."""

import threading
from pathlib import Path

import pytest
from helpers.transfers import KEYS, POLICY, built, carry_out, planned, transfer

from cache_tools import open_cache
from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.listing import read_listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.remote import Remote
from cache_tools.sharing.plan import Plan, plan
from cache_tools.sharing.transfer import Transfer
from cache_tools.store import copy
from cache_tools.store.ledger import EXTENT, FileRecord, ShardKey, shard_record_path
from cache_tools.verify.verify import verify


@pytest.fixture
def there(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "there")


def another(late: Plan, to: Folder) -> tuple[threading.Thread, list[str]]:
    """A transfer in another thread, not begun yet, and where its error will be."""
    errors: list[str] = []

    def run() -> None:
        try:
            carry_out(late, to)
        except CometError as error:
            errors.append(str(error))

    return threading.Thread(target=run), errors


def test_what_another_has_completed_meanwhile_stays(there: Folder, tmp_path: Path) -> None:
    mine, theirs = built(tmp_path / "mine", {"device": "mine"}, seed=1), built(tmp_path / "theirs")
    late = planned(mine, there)
    carry_out(planned(theirs, there), there)
    carry_out(late, there)
    assert open_cache(there.root).cache_id == theirs.cache_id != mine.cache_id
    assert verify(there.root).damage == []


def test_of_two_versions_that_come_at_once_one_is_whole(
    there: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one comes whole when half of this one's files are there, and so under this one's other half."""
    mine, theirs = built(tmp_path / "mine", {"device": "mine"}, seed=1), built(tmp_path / "theirs")
    late, other, move = planned(mine, there), planned(theirs, there), Transfer.copy_file
    files = {spec.chunk_path(0) for spec in mine.specs["train"].values()}
    moved: list[str] = []

    def file(self: Transfer, path: str, *arguments: object) -> None:
        move(self, path, *arguments)  # type: ignore[arg-type]
        if self.plan is late and path in files:
            moved.append(path)
            if len(moved) == len(files) // 2:
                carry_out(other, Folder(there.root))

    monkeypatch.setattr(Transfer, "copy_file", file)
    carry_out(late, there)
    assert len(moved) == 2 * len(files), "all of them came again"
    assert verify(there.root).damage == []
    numerics = {p: record.numerics for p in KEYS if (record := open_cache(there.root).record(*p))}
    assert numerics["train", 0] == {"device": "mine"}


def test_the_files_of_a_shard_and_its_record_are_one_version(
    there: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other transfer begins once this one has seen that there is no record, and is about to write its own."""
    mine, theirs = built(tmp_path / "mine", {"device": "mine"}, seed=1), built(tmp_path / "theirs")
    to = Folder(there.root)
    late, other, write = planned(mine, there), planned(theirs, to), Transfer._write
    began = threading.Thread(target=lambda: carry_out(other, to))

    def record(self: Transfer, path: str, data: bytes) -> None:
        if self.plan is late and path == shard_record_path("train", 0):
            began.start()
            began.join(0.5)
        write(self, path, data)

    monkeypatch.setattr(Transfer, "_write", record)
    carry_out(late, there)
    began.join()
    assert verify(there.root).damage == []


def test_of_two_merges_at_once_each_shard_is_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other merge begins when this one has all files of a shard there, and is about to write its record."""
    mine, theirs = built(tmp_path / "mine", {"device": "mine"}, seed=1), built(tmp_path / "theirs")
    folder, publish = tmp_path / "there", copy._publish
    began = threading.Thread(target=lambda: copy.merge([theirs], folder))

    def slowly(data: bytes, record: FileRecord, staging: Path, to: Path, path: str, **options: bool) -> None:
        if path == shard_record_path("train", 0) and began.ident is None:
            began.start()
            began.join(0.5)
        publish(data, record, staging, to, path, **options)

    monkeypatch.setattr(copy, "_publish", slowly)
    merged = copy.merge([mine], folder)
    began.join()
    assert verify(folder).damage == []
    assert (record := merged.record("train", 0)) is not None and record.numerics == {"device": "mine"}


def test_of_two_extents_at_once_the_second_is_refused(
    there: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole cache comes when a part of it is there and is about to write its extent."""
    cache, to = built(tmp_path / "mine"), Folder(there.root)
    early, late, write = planned(cache, there, Part(max_tokens=1)), planned(cache, to), Transfer._write
    began, errors = another(late, to)

    def extent(self: Transfer, path: str, data: bytes) -> None:
        if self.plan is early and path == EXTENT:
            began.start()
            began.join(0.5)
        write(self, path, data)

    monkeypatch.setattr(Transfer, "_write", extent)
    carry_out(early, there)
    began.join()
    (error,) = errors
    assert error.startswith(f"{there.root}: another part of this cache was copied there meanwhile; run the same")
    assert open_cache(there.root).extent == early.extent != late.extent
    assert verify(there.root).damage == []


def test_a_url_whose_record_is_overwritten_at_once(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen no record. The one whose files came last writes its record first, and then reads the other's."""
    mine, theirs = built(tmp_path / "mine", {"device": "mine"}, seed=1), built(tmp_path / "theirs")
    to, again = (Remote(memory, POLICY) for _ in range(2))
    late, other, write = planned(mine, to), planned(theirs, again), Transfer._write
    both, copied, second = threading.Barrier(2, timeout=60), threading.Event(), threading.Event()
    seen: set[int] = set()

    def record(self: Transfer, path: str, data: bytes) -> None:
        is_first_try = path == shard_record_path("train", 0) and id(self.plan) not in seen
        if is_first_try:
            seen.add(id(self.plan))
            copied.set()
            both.wait()
            if self.plan is other:
                assert second.wait(60)
        write(self, path, data)
        if is_first_try:
            second.set()
            both.wait()

    monkeypatch.setattr(Transfer, "_write", record)
    threads = [threading.Thread(target=transfer(one).run) for one in (other, late)]
    for thread in threads:
        thread.start()
        assert copied.wait(60)
    for thread in threads:
        thread.join()
    assert len(seen) == 2
    monkeypatch.undo()
    pulled = Folder(tmp_path / "pulled")
    with pulled.staging():
        transfer(plan(read_listing(to, POLICY), pulled, Part(), POLICY)).run()
    assert verify(pulled.root).damage == []


def test_a_url_where_another_version_always_comes_back(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = built(tmp_path / "mine", {"device": "mine"}, seed=1), built(tmp_path / "theirs")
    to, write = Remote(memory, POLICY), Transfer._write
    path_of_record = shard_record_path("train", 0)
    record = (theirs.root / path_of_record).read_bytes()

    def overwritten(self: Transfer, path: str, data: bytes) -> None:
        write(self, path, record if path == path_of_record else data)

    monkeypatch.setattr(Transfer, "_write", overwritten)
    with pytest.raises(CometError, match=r"kin: another transfer is copying another version of shard train 0; ru"):
        transfer(planned(mine, to)).run()


def test_of_two_starts_that_come_at_once_the_first_stays(
    there: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their roots are the same: teacher, text and settings are. Only the weights differ, as of two machines."""
    first, second = built(tmp_path / "first"), built(tmp_path / "second", start_seed=1)
    assert first.seal != second.seal
    to = Folder(there.root)
    early, late, move = planned(first, there), planned(second, to), Transfer.copy_file
    a_file = next(path for path in first.seal.files if path.startswith("start/"))
    began, errors = another(late, to)

    def file(self: Transfer, path: str, record: FileRecord) -> None:
        if self.plan is early and path == a_file:
            began.start()
            began.join(0.5)
        move(self, path, record)

    monkeypatch.setattr(Transfer, "copy_file", file)
    carry_out(early, there)
    began.join()
    assert errors == [f"{there.root}: another cache was started there meanwhile; choose another location"]
    assert verify(there.root).damage == []


def test_another_version_without_all_arrays_is_not_completed(there: Folder, tmp_path: Path) -> None:
    mine, theirs = built(tmp_path / "mine", {"device": "mine"}), built(tmp_path / "theirs")
    late = planned(mine, there)
    carry_out(planned(theirs, there, Part(signals="logits")), there)
    with (
        there.staging(),
        pytest.raises(CometError, match=r"shard train 0 is another version than that of .*mine and cannot"),
    ):
        transfer(late).copy_shard(ShardKey("train", 0))
