"""A build that is killed, stopped or begun again gives what one uninterrupted build gives, byte by byte."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY
from helpers.builds import ENVIRONMENT, Running, assert_one_error_line, build, build_arguments, digests
from helpers.settings import SMALL
from safetensors.torch import load_file, save_file

from cache_tools import build_cache, open_cache
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings

OPTIONS = SMALL | {"max_tokens": 1600, "views": 2, "rows_per_shard": 4}
KILLS = 3
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
def start(tmp_path: Path, sample_teacher: Path, sample_text: Path) -> Callable[..., Running]:
    """Starts the build of `whole`; the cache goes to `kin.zarr` in the folder `work` of `tmp_path`."""
    (tmp_path / "work").mkdir()
    arguments = build_arguments(tmp_path / "work" / "kin.zarr", sample_teacher, sample_text, **OPTIONS)
    return lambda log="log": Running(arguments, tmp_path / log)


def records(out: Path) -> list[Path]:
    return list((out / "ledger").glob("*-*.json"))


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
    ("first", "second"),
    [
        pytest.param((i + RANDOM_DELAYS.random()) / KILLS, RANDOM_DELAYS.random(), marks=[pytest.mark.slow] * (i != 1))
        for i in range(KILLS)
    ],
)
def test_killed_twice_and_resumed_gives_the_same_bytes(
    first: float, second: float, tmp_path: Path, whole: Build, start: Callable[..., Running]
) -> None:
    for share in (first, second):
        running = start()
        time.sleep(share * whole.seconds)
        assert running.send(signal.SIGKILL).code in (0, -signal.SIGKILL)
    ended = start().wait()
    assert (ended.code, ended.stderr) == (0, "")
    assert_same_as_whole(tmp_path / "work", whole)


@pytest.mark.slow
def test_a_build_killed_while_preparing_leaves_no_cache(
    tmp_path: Path, whole: Build, start: Callable[..., Running]
) -> None:
    work = tmp_path / "work"
    for sign in ("", "ids.bin", "cache/train/input_ids/c/0/0", "cache/tokenizer"):
        left = set(work.iterdir())
        running = start()
        seen = running.wait_until(
            lambda sign=sign, left=left: any((f / sign).exists() for f in {*work.iterdir()} - left)
        )
        assert seen, f"a preparing folder with {sign!r} never showed"
        assert running.send(signal.SIGKILL).code == -signal.SIGKILL
        assert not (work / "kin.zarr").exists()
        assert len(list(work.iterdir())) == 1, "of all the killed ones only the last may have left a folder"
    assert start().wait().code == 0
    assert_same_as_whole(work, whole)


@pytest.mark.slow
def test_what_was_committed_before_a_kill_is_never_written_again(
    tmp_path: Path, whole: Build, start: Callable[..., Running]
) -> None:
    out = tmp_path / "work" / "kin.zarr"
    kept: dict[Path, tuple[int, int]] = {}
    for wanted in (1, 4, 9):
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
def test_a_signal_stops_after_the_current_shard(
    number: signal.Signals, tmp_path: Path, whole: Build, start: Callable[..., Running]
) -> None:
    out = tmp_path / "work" / "kin.zarr"
    running = start()
    assert running.wait_until(lambda: len(records(out)) >= 2)
    ended = running.send(number)
    left = len(records(whole.folder)) - len(records(out))
    assert 0 < left < len(records(whole.folder)) - 1
    assert ended.code == 1
    of_teacher, said, done = ended.stdout.splitlines()
    assert of_teacher.startswith("the teacher predicts ")
    assert said.startswith("stopping after the current shard, ") and said.endswith(" (interrupt again to stop at once)")
    assert re.fullmatch(r"teacher: [\d,]+ tokens in [\d.]+ s \([\d,]+ a second\), device idle \d+\.\d%", done)
    assert ended.stderr == f"{out}: stopped with {left} shards to go; run the same command again to continue\n"
    assert not list(out.glob(".*"))
    kept = stamps(committed_files(out))
    assert start().wait().code == 0
    assert kept == stamps(list(kept))
    assert_same_as_whole(out.parent, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_preparing_leaves_nothing_behind(
    number: signal.Signals, tmp_path: Path, start: Callable[..., Running]
) -> None:
    work = tmp_path / "work"
    running = start()
    assert running.wait_until(lambda: any(work.glob(".kin.zarr.preparing-*/ids.bin")))
    ended = running.send(number)
    assert list(work.iterdir()) == []
    assert ended.code == 1
    assert ended.stderr == "stopped while preparing the text; nothing is kept, run the same command again\n"


def test_a_second_signal_loses_at_most_the_current_shard(
    tmp_path: Path, whole: Build, start: Callable[..., Running]
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


@pytest.mark.slow
def test_files_that_vanish_during_a_build(tmp_path: Path, whole: Build, start: Callable[..., Running]) -> None:
    """Someone clears away the folder that a shard is being written in: an error in one line, or none, and no hang."""
    out, running = tmp_path / "work" / "kin.zarr", start()
    vanished = 0
    while running.process.is_alive() and vanished < 3:
        for folder in {path.parent for path in out.glob(".staging-*/*")}:
            shutil.rmtree(folder, ignore_errors=True)
            vanished += 1
    ended = running.wait()
    if ended.code:
        assert ended.stdout.startswith("the teacher predicts ") and ended.stdout.count("\n") == 1
        assert_one_error_line(replace(ended, stdout=""), 1, "kin.zarr", "No such file or directory")
    assert vanished
    ended = start().wait()
    assert (ended.code, ended.stderr) == (0, "")
    assert_same_as_whole(tmp_path / "work", whole)


@pytest.mark.slow
def test_two_builds_at_once_make_one_cache(tmp_path: Path, whole: Build, start: Callable[..., Running]) -> None:
    both = [start("log 1"), start("log 2")]
    first_seen: dict[Path, tuple[int, int]] = {}

    def note() -> bool:
        first_seen.update(stamps([path for path in records(tmp_path / "work" / "kin.zarr") if path not in first_seen]))
        return False

    for running in both:
        running.wait_until(note)
        ended = running.wait()
        assert (ended.code, ended.stderr) == (0, "")
    assert stamps(list(first_seen)) == first_seen, "a committed shard was written again"
    assert_same_as_whole(tmp_path / "work", whole)


def test_a_complete_build_run_again_changes_nothing(
    tmp_path: Path, whole: Build, sample_teacher: Path, sample_text: Path
) -> None:
    files = [path for path in whole.folder.rglob("*") if path.is_file()]
    before = stamps(files)
    ended = build(whole.folder, sample_teacher, sample_text, tmp_path / "log", **OPTIONS)
    assert (ended.code, ended.stderr) == (0, "")
    assert "complete" in ended.stdout
    assert stamps(files) == before
    assert digests(whole.folder) == whole.digests


def test_a_refusal_is_one_line(tmp_path: Path, whole: Build, sample_teacher: Path, sample_text: Path) -> None:
    ended = build(whole.folder, sample_teacher, sample_text, tmp_path / "log", **OPTIONS | {"top_k": 9})
    assert_one_error_line(ended, 2, "--top-k: asked 9, the cache has 8", str(whole.folder))
    assert digests(whole.folder) == whole.digests


OTHER_OPTIONS: dict[str, Any] = {
    "top_k": 9,
    "seq_len": 63,
    "views": 3,
    "mask_prob": 0.2,
    "seed": 1,
    "keep": "topk",
    "temperatures": (1.0, 3.0),
    "attention_layers": "last",
    "attention_queries": 3,
    "attention_keys": 12,
    "rows_per_shard": 16,
    "max_tokens": 1601,
    "dtype": "bfloat16",
    "batch_size": 7,
}


def refusal(whole: Build, **changes: Any) -> str:
    """What the call with other settings is refused with; in this process, for speed."""
    with pytest.raises(CometError) as caught:
        build_cache(
            BuildSettings(**{"out": whole.folder, "language": "kin", "views": 1, "device": "cpu"} | OPTIONS | changes)
        )
    assert caught.value.exit_code == 2
    assert digests(whole.folder) == whole.digests
    return str(caught.value)


def test_other_options_are_refused_by_name(whole: Build, sample_teacher: Path, sample_text: Path) -> None:
    said = refusal(whole, teacher=str(sample_teacher), text=(str(sample_text),), **OTHER_OPTIONS)
    for name in OTHER_OPTIONS:
        assert f"--{name.replace('_', '-')}: asked" in said


def test_other_views_than_the_default_are_refused(whole: Build, sample_teacher: Path, sample_text: Path) -> None:
    said = refusal(whole, teacher=str(sample_teacher), text=(str(sample_text),), views=None)
    assert "(--views: asked 16, the cache has 2)" in said


def test_another_language_is_refused(whole: Build, sample_teacher: Path, sample_text: Path) -> None:
    assert "--lang" in refusal(whole, teacher=str(sample_teacher), text=(str(sample_text),), language="swa")


def test_excluding_other_documents_is_refused(
    tmp_path: Path, whole: Build, sample_teacher: Path, sample_text: Path
) -> None:
    excluded = tmp_path / "excluded.txt"
    excluded.write_text(sample_text.read_text().splitlines()[0])
    changes = {"text": (str(sample_text),), "exclude": (str(excluded),)}
    assert "--exclude" in refusal(whole, teacher=str(sample_teacher), **changes)


@pytest.mark.parametrize("change", ["name", "length", "a letter"])
def test_other_text_is_refused(
    change: str, tmp_path: Path, whole: Build, sample_teacher: Path, sample_text: Path
) -> None:
    text = tmp_path / ("other.txt" if change == "name" else sample_text.name)
    content = sample_text.read_text()
    text.write_text({"name": content, "length": content + "more\n", "a letter": content.replace("a", "e", 1)}[change])
    assert "--text" in refusal(whole, teacher=str(sample_teacher), text=(str(text),))


def test_another_teacher_is_refused(tmp_path: Path, whole: Build, sample_teacher: Path, sample_text: Path) -> None:
    weights = tmp_path / "teacher" / "model.safetensors"
    shutil.copytree(sample_teacher, weights.parent)
    tensors = load_file(weights)
    tensors["lm_head.bias"] = tensors["lm_head.bias"] + 1
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "teacher weights sha256" in refusal(whole, teacher=str(weights.parent), text=(str(sample_text),))


def test_another_tokenizer_is_refused(tmp_path: Path, whole: Build, sample_teacher: Path, sample_text: Path) -> None:
    shutil.copytree(sample_teacher, tmp_path / "teacher")
    file = tmp_path / "teacher" / "tokenizer.json"
    state = json.loads(file.read_text())
    pieces = state["model"]["vocab"]
    pieces[-2][0], pieces[-3][0] = pieces[-3][0], pieces[-2][0]
    file.write_text(json.dumps(state))
    assert "tokenizer sha256" in refusal(whole, teacher=str(tmp_path / "teacher"), text=(str(sample_text),))
