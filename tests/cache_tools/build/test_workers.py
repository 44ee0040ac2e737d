"""Several workers make the very cache that one makes: in one folder, in any order, with any number of restarts; or in
two places, merged."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.builds import digests
from helpers.settings import build_settings

from cache_tools import build_cache, open_cache
from cache_tools.build.pipeline import missing_shards
from cache_tools.build.workers import Worker, parse_worker
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings, RerunSettings
from cache_tools.store.copy import merge
from cache_tools.verify.verify import verify


@pytest.fixture(scope="module")
def settings(sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    return build_settings(
        tmp_path_factory.mktemp("one") / "kin.zarr", sample_teacher, sample_text, max_tokens=None, seq_len=64, views=2
    )


@pytest.fixture(scope="module")
def of_one(settings: BuildSettings) -> dict[str, str]:
    build_cache(settings)
    return digests(settings.out)


@pytest.mark.slow
def test_every_shard_is_one_worker_s(settings: BuildSettings, of_one: dict[str, str], tmp_path: Path) -> None:
    parts = replace(settings, out=tmp_path / "kin.zarr")
    build_cache(parts, Worker(0, 3))
    fresh = open_cache(parts.out)
    assert not missing_shards(fresh, Worker(0, 3))
    left = [missing_shards(fresh, Worker(index, 3)) for index in (1, 2)]
    assert left[0] and left[1]
    assert not set(left[0]) & set(left[1])
    assert set(left[0]) | set(left[1]) == set(missing_shards(fresh))
    build_cache(parts, Worker(2, 3))
    build_cache(parts, Worker(1, 3))
    assert digests(parts.out) == of_one


@pytest.mark.slow
def test_another_division_goes_on_where_the_first_stopped(
    settings: BuildSettings, of_one: dict[str, str], tmp_path: Path
) -> None:
    parts = replace(settings, out=tmp_path / "kin.zarr")
    build_cache(parts, Worker(0, 2))
    build_cache(parts)
    assert digests(parts.out) == of_one


def test_after_the_time_no_shard_begins_and_the_next_run_goes_on(
    settings: BuildSettings, of_one: dict[str, str], tmp_path: Path
) -> None:
    short = replace(settings, out=tmp_path / "kin.zarr")
    with pytest.raises(CometError, match=r"stopped with \d+ shards to go; run the same command again to continue"):
        build_cache(short, max_hours=1e-9)
    committed = len(list((short.out / "ledger").glob("train-*"))) + len(list((short.out / "ledger").glob("val*")))
    assert committed == 0, "it was over before the first shard: the time to prepare counts"
    build_cache(short)
    assert digests(short.out) == of_one


def test_a_build_that_ends_in_time_does_not_wait_for_it(settings: BuildSettings, of_one: dict[str, str]) -> None:
    started = time.monotonic()
    build_cache(settings, max_hours=24)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("1/4", {}, Worker(0, 4)),
        ("4/4", {"RANK": "1", "WORLD_SIZE": "2"}, Worker(3, 4)),
        (None, {"RANK": "1", "WORLD_SIZE": "2"}, Worker(1, 2, waits=True)),
        (None, {"RANK": "0", "WORLD_SIZE": "2"}, Worker(0, 2)),
        (None, {}, Worker(0, 1)),
    ],
)
def test_workers_by_option_or_rank(text: str | None, environment: dict[str, str], expected: Worker) -> None:
    assert parse_worker(text, environment) == expected


@pytest.mark.slow
def test_halves_built_in_two_places_merge_into_the_cache_of_one(
    settings: BuildSettings, of_one: dict[str, str], tmp_path: Path
) -> None:
    """The second does not wait for what the first prepares in a folder of its own."""
    halves = [build_cache(replace(settings, out=tmp_path / str(i)), parse_worker(f"{i}/2")) for i in (2, 1)]
    merged = merge(halves, tmp_path / "merged")
    assert merged.cache_id == open_cache(settings.out).cache_id
    assert of_one == digests(merged.root)


@pytest.mark.slow
def test_halves_of_other_numerics_merge_and_pass_the_teacher(settings: BuildSettings, tmp_path: Path) -> None:
    halves = [
        build_cache(replace(settings, out=tmp_path / dtype, dtype=dtype), Worker(index, 2))
        for index, dtype in enumerate(("float32", "bfloat16"))
    ]
    merged = merge(halves, tmp_path / "merged")
    assert {merged.record("train", shard).numerics["dtype"] for shard in merged.extent.indices("train")} == {
        "float32",
        "bfloat16",
    }
    report = verify(merged.root, deep=True, again=RerunSettings(settings.teacher, rows=32))
    assert report.damage == report.notes == []
    assert report.runs is not None and len(report.runs) == 2


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "-1/4", "1/0", ""])
def test_workers_that_cannot_be(text: str) -> None:
    with pytest.raises(CometError, match=r"expected i/n with i from 1 to n, such as 2/4"):
        parse_worker(text, {})


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_worker_without_shards_is_refused(index: int, count: int) -> None:
    """It would end at once, as if the cache were done."""
    with pytest.raises(CometError, match=f"^worker: expected an index from 0, below the count, found {index}"):
        Worker(index, count)
