"""A student learns from the signals that a copy of a cache holds, and from no copy without logits."""

from pathlib import Path

import pytest

from cache_tools import Cache
from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.parts import part_extent
from cache_tools.store.copy import cut
from comet import StudentConfig, distill
from comet.train.dataset import held_recipe


def copy_of(cache: Cache, signals: str, folder: Path) -> Cache:
    """A copy that holds all shards and only these signals."""
    records = [record for key in cache.extent.keys() if (record := cache.record(*key))]
    return cut(cache, folder, part_extent(cache.recipe, cache.seal, cache.extent, records, Part(signals=signals), ""))


@pytest.mark.slow
def test_a_copy_without_attention_teaches_logits(cache: Cache, tmp_path: Path) -> None:
    lines: list[str] = []
    logits = copy_of(cache, "logits", tmp_path / "logits.zarr")
    assert held_recipe([cache]) == cache.recipe
    for caches in ([logits], [cache, logits]):
        assert held_recipe(caches).attention_layers == ()
    result = distill([logits], StudentConfig(tmp_path / "student", student="nano", steps=2), lines.append)
    assert "the cache holds no attention: that part of the objective is left out" in "\n".join(lines)
    assert result.after.kl < result.before.kl


def test_a_copy_without_logits_teaches_nothing(cache: Cache, tmp_path: Path) -> None:
    attention = copy_of(cache, "attention", tmp_path / "maps.zarr")
    with pytest.raises(CometError, match=r"maps.zarr: this copy holds no logits to learn from \(it lacks tail_logmass"):
        distill([attention], StudentConfig(tmp_path / "student", steps=1))
