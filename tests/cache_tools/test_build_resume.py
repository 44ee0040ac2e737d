"""A build that is killed, stopped or begun again gives what one uninterrupted build gives, byte by byte."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builds import ENVIRONMENT, REPOSITORY, Running, assert_one_error_line, build, build_arguments, digests

from cache_tools import open_cache
from cache_tools.errors import CometError

OPTIONS: dict[str, Any] = {"seq_len": 64, "views": 2, "rows_per_shard": 8, "top_k": 8, "attention_size": 8}
KILLS = 4
RANDOM_DELAYS = random.Random(20250117)


@dataclass(frozen=True)
class Build:
    """An uninterrupted build: its folder, the digests of its files, and how long it takes in a forked process."""

    folder: Path
    digests: dict[str, str]
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, sample_text: Path) -> Build:
    """Built by a fresh interpreter, as a person would, and once more by a forked process."""
    folder = tmp_path_factory.mktemp("whole") / "kin.zarr"
    arguments = build_arguments(folder, sample_teacher, sample_text, **OPTIONS)
    command = [sys.executable, "-m", "cache_tools", *arguments]
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    again = tmp_path_factory.mktemp("forked") / "kin.zarr"
    warm = Running(["--help"], again.parent / "log").wait()
    assert warm.code == 0, warm.stderr
    start = time.monotonic()
    assert build(again, sample_teacher, sample_text, again.parent / "log", **OPTIONS).code == 0
    seconds = time.monotonic() - start
    assert digests(again) == digests(folder)
    return Build(folder, digests(folder), seconds)


@pytest.fixture
def start(tmp_path: Path, sample_teacher: Path, sample_text: Path) -> Callable[[], Running]:
    """Starts the build of `whole` in `tmp_path/work/kin.zarr`."""
    work = tmp_path / "work"
    work.mkdir()
    return lambda: Running(build_arguments(work / "kin.zarr", sample_teacher, sample_text, **OPTIONS), tmp_path / "log")


def records(out: Path) -> list[Path]:
    return [path for path in (out / "ledger").glob("*-*.json")]


def stamps(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    """What changes when a file is written again, even with the same bytes."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


def committed_files(out: Path) -> list[Path]:
    """The records of the committed shards and all of their files."""
    cache = open_cache(out)
    shards = [
        (group, shard)
        for group in ("train", "validation")
        for shard in cache.extent.indices(group)
        if cache.record(group, shard) is not None
    ]
    return [
        *records(out),
        *(out / spec.chunk_path(shard) for group, shard in shards for spec in cache.specs[group].values()),
    ]


def assert_same_as_whole(work: Path, whole: Build) -> None:
    assert [path.name for path in work.iterdir()] == ["kin.zarr"], "something was left beside the cache"
    assert digests(work / "kin.zarr") == whole.digests


@pytest.mark.parametrize(
    ("first", "second"), [((i + RANDOM_DELAYS.random()) / KILLS, RANDOM_DELAYS.random()) for i in range(KILLS)]
)
def test_killed_twice_at_any_moment_and_run_again_gives_the_same_bytes(
    first: float, second: float, tmp_path: Path, whole: Build, start: Callable[[], Running]
) -> None:
    for share in (first, second):
        running = start()
        time.sleep(share * whole.seconds)
        assert running.send(signal.SIGKILL).code in (0, -signal.SIGKILL)
    ended = start().wait()
    assert (ended.code, ended.stderr) == (0, "")
    assert_same_as_whole(tmp_path / "work", whole)


@pytest.mark.parametrize("sign", ["", "ids.bin", "cache/train/input_ids/c/0/0", "cache/zarr.json"])
def test_killed_while_preparing_leaves_no_cache_and_the_next_run_cleans_up(
    sign: str, tmp_path: Path, whole: Build, start: Callable[[], Running]
) -> None:
    work = tmp_path / "work"
    running = start()
    seen = running.wait_until(lambda: any((path / sign).exists() for path in work.glob(".kin.zarr.preparing-*")))
    assert seen, "the preparing folder never showed"
    assert running.send(signal.SIGKILL).code == -signal.SIGKILL
    assert not (work / "kin.zarr").exists()
    assert len(list(work.iterdir())) == 1, "the killed process should have left its hidden folder"
    assert start().wait().code == 0
    assert_same_as_whole(work, whole)


def test_what_was_committed_before_a_kill_is_never_written_again(
    tmp_path: Path, whole: Build, start: Callable[[], Running]
) -> None:
    out = tmp_path / "work" / "kin.zarr"
    kept: dict[Path, tuple[int, int]] = {}
    for wanted in (1, 4, 8):
        running = start()
        assert running.wait_until(lambda wanted=wanted: len(records(out)) >= wanted)
        assert running.send(signal.SIGKILL).code == -signal.SIGKILL
        assert wanted <= len(records(out)) < len(records(whole.folder))
        assert kept == stamps(list(kept))
        kept = stamps(committed_files(out))
    assert list(out.glob(".staging-*")), "a kill in the middle of a build leaves the staging folder"
    assert start().wait().code == 0
    assert kept == stamps(list(kept))
    assert_same_as_whole(out.parent, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_shard_in_work_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path, whole: Build, start: Callable[[], Running]
) -> None:
    out = tmp_path / "work" / "kin.zarr"
    running = start()
    assert running.wait_until(lambda: len(records(out)) >= 2)
    ended = running.send(number)
    left = len(records(whole.folder)) - len(records(out))
    assert 0 < left < len(records(whole.folder)) - 1
    assert ended.code == 1
    assert ended.stdout == "stopping after the shard in work (once more to stop at once)\n"
    assert ended.stderr == f"error: {out}: stopped with {left} shards to go; run the same command again to go on\n"
    assert not list(out.glob(".*"))
    kept = stamps(committed_files(out))
    assert start().wait().code == 0
    assert kept == stamps(list(kept))
    assert_same_as_whole(out.parent, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_preparing_leaves_nothing_behind(
    number: signal.Signals, tmp_path: Path, whole: Build, start: Callable[[], Running]
) -> None:
    work = tmp_path / "work"
    running = start()
    assert running.wait_until(lambda: any(work.glob(".kin.zarr.preparing-*/ids.bin")))
    ended = running.send(number)
    assert ended.code == 1
    assert len(ended.stderr.splitlines()) == 1
    assert list(work.iterdir()) == []
    assert start().wait().code == 0
    assert_same_as_whole(work, whole)


def test_a_second_signal_stops_at_once_and_loses_at_most_the_shard_in_work(
    tmp_path: Path, whole: Build, start: Callable[[], Running]
) -> None:
    out = tmp_path / "work" / "kin.zarr"
    running = start()
    assert running.wait_until(lambda: len(records(out)) >= 2)
    os.kill(running.pid, signal.SIGINT)
    assert running.wait_until(lambda: "stopping" in running.read("stdout"))
    assert running.send(signal.SIGINT).code == 1
    assert not list(out.glob(".*"))
    assert start().wait().code == 0
    assert_same_as_whole(out.parent, whole)


def test_two_builds_at_once_make_one_cache(tmp_path: Path, whole: Build, start: Callable[[], Running]) -> None:
    arguments = (tmp_path / "work" / "kin.zarr", *whole_inputs(whole))
    running = [Running(build_arguments(*arguments, **OPTIONS), tmp_path / f"log{i}") for i in range(2)]
    assert [(ended.code, ended.stderr) for ended in (r.wait() for r in running)] == [(0, ""), (0, "")]
    assert_same_as_whole(tmp_path / "work", whole)
