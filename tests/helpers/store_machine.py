"""Caches under everything that can happen to them, against a model in memory.

Two laboratories build the same recipe with slightly different values. Shards are committed, caches cut and merged,
files damaged and repaired, and every call may die before any one of its file operations. Whatever happened, a cache
gives exactly what the model says that it holds, or an error.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache_tools.errors import CometError
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.copy import cut, merge, put_tokens, ranges
from cache_tools.store.layout import group_arrays
from cache_tools.store.ledger import Extent, ShardKey, shard_record_path
from cache_tools.store.reader import Cache, open_cache
from cache_tools.store.recipe import GROUPS
from cache_tools.store.writer import drop_shard
from helpers.crashes import crashing
from helpers.small_caches import commit, prepare_cache, shard_keys, small_recipe

RECIPE = small_recipe(attention_layers=(), top_k=2, temperatures=(1.0,))
KEYS = shard_keys(RECIPE)
NAMES = ("a", "b", "c", "d")

crash_points = st.none() | st.integers(0, 60)
names, keys = st.sampled_from(NAMES), st.sampled_from(KEYS)


@dataclass
class Model:
    """What one cache must hold: by key the laboratory that its values are from; which shards are not to be read."""

    extent: tuple[ShardKey, ...]
    committed: dict[ShardKey, int] = field(default_factory=dict)
    damaged: set[ShardKey] = field(default_factory=set)
    without_tokens: set[ShardKey] = field(default_factory=set)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.models: dict[str, Model] = {}
        self.next = 0

    @initialize()
    def two_laboratories(self) -> None:
        tokens = prepare_cache(self.folder / "prepared", RECIPE)
        rounded = {key: dict(arrays) for key, arrays in tokens.items()}
        for arrays in rounded.values():
            arrays["topk_logprob"] = (arrays["topk_logprob"] * np.float16(1.01)).astype(np.float16)
        self.values = (tokens, rounded)

    def root(self, name: str) -> Path:
        return self.folder / name

    def attempt(self, call: Callable[[], Any], crash_at: int | None) -> None:
        """The call, dead before one of its file operations, and then, as a person would, once more."""
        with crashing(self.folder, crash_at) as watch:
            call()
        if watch.crashed:
            for name in self.models:
                self.holds_what_it_should(name, died=True)
            call()

    @rule(name=names)
    def prepare(self, name: str) -> None:
        """As a build does: made elsewhere, and renamed when it is whole."""
        if name not in self.models:
            shutil.copytree(self.root("prepared"), self.root(name))
            self.models[name] = Model(tuple(KEYS))

    @precondition(lambda self: self.models)
    @rule(data=st.data(), key=keys, laboratory=st.sampled_from((0, 1)), crash_at=crash_points)
    def commit(self, data: st.DataObject, key: ShardKey, laboratory: int, crash_at: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        model = self.models[name]
        if key in model.damaged | model.without_tokens or key not in model.extent:
            return
        arrays = self.values[laboratory][key]
        model.committed.setdefault(key, laboratory)
        self.attempt(lambda: self.write(name, key, arrays), crash_at)

    def write(self, name: str, key: ShardKey, arrays: dict[str, Any]) -> None:
        shutil.rmtree(self.folder / f"{name}.staging", ignore_errors=True)  # a builder's, whose owner is dead
        commit(self.root(name), RECIPE, key, arrays)

    @precondition(lambda self: self.models)
    @rule(data=st.data(), into=names, crash_at=crash_points)
    def cut(self, data: st.DataObject, into: str, crash_at: int | None) -> None:
        source = data.draw(st.sampled_from(sorted(self.models)))
        model = self.models[source]
        sound = [p for p in model.extent if p in model.committed and p not in model.damaged]
        if into in self.models or not sound:
            return
        chosen = data.draw(st.lists(st.sampled_from(sound), min_size=1, unique=True))
        shards = {group: ranges({shard for g, shard in chosen if g == group}) for group in GROUPS}
        extent = Extent(RECIPE.recipe_id, open_cache(self.root(source)).extent.arrays, shards)
        self.attempt(lambda: cut(open_cache(self.root(source)), self.root(into), extent), crash_at)
        held = {key: model.committed[key] for key in chosen}
        self.models[into] = Model(tuple(p for p in KEYS if p in held), held)

    @precondition(lambda self: self.models)
    @rule(data=st.data(), into=names, crash_at=crash_points)
    def merge(self, data: st.DataObject, into: str, crash_at: int | None) -> None:
        sources = data.draw(st.lists(st.sampled_from(sorted(self.models)), min_size=1, unique=True))
        models = [self.models[source] for source in sources]
        if into in self.models or any(model.damaged for model in models):
            return
        caches = [open_cache(self.root(source)) for source in sources]
        self.attempt(lambda: merge(caches, self.root(into)), crash_at)
        held: dict[ShardKey, int] = {}
        for model in models:
            held = model.committed | held
        extent = tuple(p for p in KEYS if any(p in model.extent for model in models))
        self.models[into] = Model(extent, held, without_tokens=set(extent) - set(held))

    @precondition(lambda self: self.models)
    @rule(data=st.data(), how=st.sampled_from(("flip", "truncate", "delete", "exchange")), key=keys)
    def damage(self, data: st.DataObject, how: str, key: ShardKey) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        model, root = self.models[name], self.root(name)
        if key not in model.committed:
            return
        specs = open_cache(root).specs[key[0]]
        files = [shard_record_path(*key), *(spec.chunk_path(key[1]) for spec in specs.values())]
        relative = data.draw(st.sampled_from(files))
        file, record = root / relative, relative == files[0]
        before = file.read_bytes() if file.exists() else None
        if before is None or (how == "delete" and record):  # a shard without its record was never committed
            return
        if how == "exchange":
            file.write_bytes((root / data.draw(st.sampled_from(files))).read_bytes() if not record else b"{}")
        elif how == "delete":
            file.unlink()
        elif how == "truncate":
            os.truncate(file, data.draw(st.integers(0, len(before) - 1)))
        else:
            bit = data.draw(st.integers(0, 8 * len(before) - 1))
            file.write_bytes(before[: bit // 8] + bytes([before[bit // 8] ^ 1 << bit % 8]) + before[bit // 8 + 1 :])
        if not file.exists() or file.read_bytes() != before:
            model.damaged.add(key)

    @precondition(lambda self: self.models)
    @rule(data=st.data(), crash_at=crash_points)
    def repair(self, data: st.DataObject, crash_at: int | None) -> None:
        """Drops what is damaged; the tokens come from a sound cache again, as from the text."""
        name = data.draw(st.sampled_from(sorted(self.models)))
        model, root = self.models[name], self.root(name)
        for key in sorted(model.damaged):
            del model.committed[key]
            model.damaged.remove(key)
            model.without_tokens.add(key)
            self.attempt(lambda key=key: drop_shard(open_cache(root), *key), crash_at)  # type: ignore[misc]
            specs = open_cache(root).specs[key[0]]
            assert not any(
                (root / spec.chunk_path(key[1])).exists() for n, spec in specs.items() if n not in TOKEN_ARRAYS
            )
        for key in sorted(model.without_tokens):
            files = {name: (self.root("prepared") / path).read_bytes() for name, path in token_paths(key).items()}
            self.attempt(lambda key=key, files=files: put_tokens(open_cache(root), *key, files), crash_at)  # type: ignore[misc]
        model.without_tokens.clear()

    @invariant()
    def every_cache_holds_what_it_should(self) -> None:
        for name in self.models:
            self.holds_what_it_should(name)

    def holds_what_it_should(self, name: str, died: bool = False) -> None:
        """`died`: a call died, so the shard that it was about may be there or not, as long as it is whole."""
        cache, model = open_cache(self.root(name)), self.models[name]
        assert tuple((g, s) for g in GROUPS for s in cache.extent.indices(g)) == model.extent
        for key in model.extent:
            found = self.read(cache, key)
            if key in model.damaged:
                assert found is None
            elif key in model.committed:
                assert found is not None or died
            else:
                assert found is None or died
            if found is not None:
                candidates = [model.committed[key]] if key in model.committed else [0, 1]
                assert any(same(found, self.values[laboratory][key]) for laboratory in candidates)
        complete = set(model.extent) == set(model.committed)
        if complete and not model.damaged and not died:
            assert len(cache.cache_id) == 64

    def read(self, cache: Cache, key: ShardKey) -> dict[str, Any] | None:
        try:
            return cache.read_shard(*key)
        except CometError:
            return None

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


def token_paths(key: ShardKey) -> dict[str, str]:
    specs = group_arrays(RECIPE, key[0])
    return {name: specs[name].chunk_path(key[1]) for name in TOKEN_ARRAYS}


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return all(
        np.array_equal(array, expected[name], equal_nan=array.dtype.kind == "f") for name, array in found.items()
    )
