"""A disk that refuses in the middle of a build: a prompt end with a clear error, nothing lost, no thread left."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.builds import digests
from helpers.settings import build_settings

import cache_tools.build.build
import cache_tools.store.writer
from cache_tools import build_cache
from cache_tools.build.prepare import save_cache_tokenizer
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.teacher.forward import TeacherPass
from cache_tools.text.model_tokenizer import load_teacher_tokenizer

FILES_IN_A_SHARD = 6  # of the teacher: five arrays and the record
SHARDS_IN_FLIGHT = 3  # in work, waiting behind the writer, and in the writer's hands


@pytest.fixture
def settings(tmp_path: Path, sample_teacher: Path, sample_text: Path) -> BuildSettings:
    (tmp_path / "work").mkdir()
    return settings_for(tmp_path / "work" / "kin.zarr", sample_teacher, sample_text)


def settings_for(out: Path, teacher: Path, text: Path) -> BuildSettings:
    return build_settings(out, teacher, text, max_tokens=700, seq_len=32, rows_per_shard=2, top_k=4, attention_keys=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, sample_text: Path) -> dict[str, str]:
    """What an undisturbed build in this process gives."""
    out = tmp_path_factory.mktemp("whole") / "kin.zarr"
    cache = build_cache(settings_for(out, sample_teacher, sample_text))
    assert cache.recipe.shards("train") > 8
    return digests(out)


@pytest.fixture
def shards_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each shard that the teacher was run over."""
    computed: list[int] = []
    real = TeacherPass.launch

    def counting(*args: Any) -> Any:
        computed.append(1)
        return real(*args)

    monkeypatch.setattr(TeacherPass, "launch", counting)
    return computed


@pytest.fixture
def threads_before(whole: dict[str, str]) -> Iterator[None]:
    """Fails when a test leaves a thread behind, other than zarr's and those that the first build left for good."""
    before = set(threading.enumerate())
    yield
    assert {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")} <= before


def refuse_from(call: int, where: str, real: Callable[..., Any], only_once: bool) -> Callable[..., Any]:
    """`real`, which has no space left at the given call about a path with `where` in it, and after it."""
    calls = 0

    def refusing(path: Any, *args: Any) -> Any:
        nonlocal calls
        calls += where in str(path)
        if where in str(path) and (calls == call or (calls > call and not only_once)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *args)

    return refusing


@pytest.mark.slow
@pytest.mark.usefixtures("threads_before")
@pytest.mark.parametrize(
    ("function", "call", "only_once"),
    [("os.replace", 1, False), ("os.replace", 8, False), ("os.replace", 18, True), ("write_durably", 16, False)],
)
def test_a_full_disk_ends_the_build_at_once_and_loses_nothing(
    function: str,
    call: int,
    only_once: bool,
    settings: BuildSettings,
    whole: dict[str, str],
    shards_computed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        owner = os if function == "os.replace" else cache_tools.store.writer
        name = function.removeprefix("os.")
        patch.setattr(owner, name, refuse_from(call, "/.staging-", getattr(owner, name), only_once))
        with pytest.raises(CometError) as caught:
            build_cache(settings)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "No space left on device" in message
    assert str(settings.out) in message
    assert "run the same command again" in message
    assert len(message.splitlines()) == 1
    records = list((settings.out / "ledger").glob("*-*.json"))
    before = (call - 1) // FILES_IN_A_SHARD
    assert before <= len(records) <= before + only_once, "a disk that recovers may take the shard that waited"
    assert len(shards_computed) <= before + SHARDS_IN_FLIGHT
    assert not list(settings.out.glob(".*"))
    shards_computed.clear()
    cache = build_cache(settings)
    total = cache.recipe.shards("train") + cache.recipe.shards("validation")
    assert len(shards_computed) == total - len(records), "what was committed is not computed again"
    assert digests(settings.out) == whole


@pytest.mark.usefixtures("threads_before")
@pytest.mark.parametrize("call", [1, 40])
def test_a_full_disk_while_preparing_leaves_nothing(
    call: int, settings: BuildSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cache_tools.store.writer.write_durably
    monkeypatch.setattr(cache_tools.store.writer, "write_durably", refuse_from(call, ".preparing-", real, False))
    with pytest.raises(CometError, match="No space left on device"):
        build_cache(settings)
    assert not any(settings.out.parent.iterdir())


def test_a_full_disk_while_the_tokenizer_is_written_is_named(tmp_path: Path, sample_teacher: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        save_cache_tokenizer(load_teacher_tokenizer(str(sample_teacher)), tmp_path)


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "3" / "0").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "3" / "0").write_bytes(content)


def swap_two_shards(folder: Path) -> None:
    (folder / "3").rename(folder / "other")
    (folder / "4").rename(folder / "3")
    (folder / "other").rename(folder / "4")


@pytest.mark.usefixtures("threads_before")
@pytest.mark.parametrize("damage", [flip_a_bit, swap_two_shards])
def test_tokens_that_were_damaged_after_preparing_end_the_build(
    damage: Callable[[Path], None], settings: BuildSettings, shards_computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_once = cache_tools.build.build.prepare_once

    def prepare_and_damage(*args: Any) -> None:
        prepare_once(*args)
        damage(settings.out / "train" / "input_ids" / "c")

    monkeypatch.setattr(cache_tools.build.build, "prepare_once", prepare_and_damage)
    with pytest.raises(CometError, match=r"damaged|not the sealed ones"):
        build_cache(settings)
    assert len(list((settings.out / "ledger").glob("train-*.json"))) == 2
    assert len(list((settings.out / "ledger").glob("*-*.json"))) == len(shards_computed) - 1  # one was on its way


@pytest.mark.usefixtures("threads_before")
def test_a_device_that_fails_ends_the_build_with_its_own_error(
    settings: BuildSettings, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TeacherPass.launch
    calls = 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("the device is gone")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherPass, "launch", failing)
        with pytest.raises(RuntimeError, match="the device is gone"):
            build_cache(settings)
    assert len(list((settings.out / "ledger").glob("*-*.json"))) == 2, "the third was on its way"
    build_cache(settings)
    assert digests(settings.out) == whole
