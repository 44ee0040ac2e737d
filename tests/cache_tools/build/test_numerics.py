"""What the bytes and the id of a cache depend on beside its recipe, and that `info` says so."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.builds import digests
from helpers.settings import build_settings

from cache_tools import Cache, build_cache
from cache_tools.cli.facts import describe
from cache_tools.store.copy import cut, merge


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def built(out: Path, teacher: Path, text: Path, threads: int, batch_size: int = 8) -> Cache:
    torch.set_num_threads(threads)
    settings = build_settings(out, teacher, text, batch_size=batch_size, start_layers="none", dtype="float32")
    return build_cache(settings)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_is_in_the_id_and_in_what_info_says(
    tmp_path: Path, sample_teacher: Path, sample_text: Path
) -> None:
    one, again, two = (
        built(tmp_path / name, sample_teacher, sample_text, count) for name, count in (("1", 1), ("1b", 1), ("2", 2))
    )
    assert digests(one.root) == digests(again.root) and one.cache_id == again.cache_id
    assert one.recipe == two.recipe and one.cache_id != two.cache_id
    assert one.seal == two.seal, "rows and vocabulary are the same whatever the threads"
    for cache, threads in ((one, 1), (two, 2)):
        computed = str(describe(cache)["computed"])
        assert f"threads {threads}, " in computed and "batch_size 8, device cpu, dtype float32" in computed
        assert f"{len(cache.extent.keys())} shards with" in computed and "otherwise" not in computed
    part = replace(one.extent, shards=one.extent.shards | {"train": ((0, 1),)})
    mixed = merge([cut(one, tmp_path / "part", part), two], tmp_path / "mixed")
    assert str(describe(mixed)["computed"]).endswith("; the others differently")


@pytest.mark.usefixtures("threads")
def test_the_batch_size_is_in_the_id(tmp_path: Path, sample_teacher: Path, sample_text: Path) -> None:
    eight, five = (built(tmp_path / str(n), sample_teacher, sample_text, 1, batch_size=n) for n in (8, 5))
    assert eight.recipe == five.recipe and eight.cache_id != five.cache_id
    assert "batch_size 5, " in str(describe(five)["computed"])
