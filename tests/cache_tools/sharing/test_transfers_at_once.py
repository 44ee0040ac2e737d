"""Several transfers to one location at once: what one has completed stays, and nothing is mixed or silently dropped."""

import threading
from pathlib import Path

import pytest
from helpers.small_caches import make_cache, small_recipe
from helpers.transfers import KEYS, RECIPE, built, carry_out, planned, transfer

from cache_tools import open_cache
from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.transfer import Transfer
from cache_tools.store.ledger import SEAL
from cache_tools.verify.verify import verify


@pytest.fixture
def there(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "there")


def test_two_plans_of_one_cache(there: Folder, tmp_path: Path) -> None:
    """The later one finds everything there, and moves nothing."""
    cache = built(tmp_path / "one")
    both = planned(cache, there), planned(cache, there)
    carry_out(both[0], there)
    before = {path: path.stat().st_ino for path in there.root.rglob("*/c/**/*")}
    carry_out(both[1], there)
    assert before == {path: path.stat().st_ino for path in before}
    assert open_cache(there.root).cache_id == cache.cache_id


def test_a_shard_that_came_without_all_arrays_is_completed(there: Folder, tmp_path: Path) -> None:
    cache = built(tmp_path / "one")
    late = planned(cache, there)
    carry_out(planned(cache, there, Part(signals="logits")), there)
    with there.staging():
        for shard in late.lacking:
            transfer(late).copy_shard(shard)
    again = planned(cache, there)
    assert again.size == 0
    carry_out(again, there)
    assert open_cache(there.root).cache_id == cache.cache_id
    assert verify(there.root).damage == []


def test_another_extent_that_came_meanwhile_is_not_dropped(there: Folder, tmp_path: Path) -> None:
    cache = built(tmp_path / "one")
    late = planned(cache, there, Part(max_tokens=64))
    carry_out(planned(cache, there, Part(signals="logits")), there)
    with pytest.raises(CometError, match=r"there: another part of this cache was copied there meanwhile; run the sam"):
        carry_out(late, there)
    assert "attention_gap" not in open_cache(there.root).extent.arrays
    carry_out(planned(cache, there, Part()), there)
    assert open_cache(there.root).cache_id == cache.cache_id


@pytest.mark.parametrize("until", ["zarr.json", SEAL])
def test_another_cache_that_came_meanwhile_is_not_touched(there: Folder, tmp_path: Path, until: str) -> None:
    make_cache(tmp_path / "mine", small_recipe(seed=7))
    theirs, mine = built(tmp_path / "theirs"), open_cache(tmp_path / "mine")
    late = planned(mine, there)
    carry_out(planned(theirs, there), there)
    if until == "zarr.json":
        (there.root / SEAL).unlink()
    before = {path: path.read_bytes() for path in there.root.rglob("*") if path.is_file()}
    with pytest.raises(CometError, match=r"there: another cache was started there meanwhile; choose another location"):
        carry_out(late, there)
    assert before == {path: path.read_bytes() for path in there.root.rglob("*") if path.is_file()}


def test_a_cache_begun_meanwhile_is_not_taken_for_other_files(
    there: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, is_empty = built(tmp_path / "one"), Folder.is_empty
    to = Folder(there.root)
    other = planned(cache, to)

    def late(self: Folder) -> bool:
        carry_out(other, to)
        return is_empty(self)

    monkeypatch.setattr(Folder, "is_empty", late)
    carry_out(planned(cache, there), there)
    assert open_cache(there.root).cache_id == cache.cache_id


def test_an_unsealed_push_of_another_machine_says_what_to_do(there: Folder, tmp_path: Path) -> None:
    theirs = built(tmp_path / "theirs")
    make_cache(tmp_path / "mine", RECIPE, attributes={"settings": {"batch_size": 8}})
    carry_out(planned(theirs, there), there)
    (there.root / SEAL).unlink()
    with pytest.raises(CometError) as caught:
        planned(open_cache(tmp_path / "mine"), there)
    assert str(caught.value) == (
        f"{there.name}: holds another cache; choose another location (same recipe, started by another machine and "
        "never sealed: remove it if no build of it is running)"
    )


def test_what_is_begun_can_be_pulled_as_far_as_it_is(
    there: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extent is there before the first shard, but after the arrays that earlier shards lacked."""
    cache = built(tmp_path / "one")
    carry_out(planned(cache, there, Part(max_tokens=64, signals="logits")), there)
    growing, write = planned(cache, there), Transfer.write_extent

    def extent(self: Transfer) -> None:
        write(self)
        assert verify(there.root).damage == []

    monkeypatch.setattr(Transfer, "write_extent", extent)
    with there.staging():
        transfer(growing).begin()
        copy = open_cache(there.root)
        assert copy.extent == cache.extent
        assert [p for p in KEYS if copy.record(*p) is not None] == [("train", 0), ("validation", 0)]
        assert verify(there.root).damage == []
        for shard in KEYS:
            record = cache.record(*shard)
            assert record is not None
            transfer(growing).copy_arrays(shard, record, cache.extent.arrays)
            assert verify(there.root).damage == []
    assert open_cache(there.root).cache_id == cache.cache_id


def test_many_at_once(there: Folder, tmp_path: Path) -> None:
    """Eight threads, each with a plan of its own."""
    cache = built(tmp_path / "one")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            to = Folder(there.root)
            carry_out(planned(cache, to), to)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert open_cache(there.root).cache_id == cache.cache_id
    assert verify(there.root).damage == []
