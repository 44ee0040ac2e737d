"""Complete small caches of random numbers, made with the store's own writers, and ways to damage them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools import open_cache
from cache_tools.signals import TOKEN_ARRAYS, UNUSED_ID, UNUSED_POSITION
from cache_tools.store.layout import encode_chunk, group_arrays, vocabulary_arrays
from cache_tools.store.ledger import TOKENIZER, TOKENIZER_FILES, ShardKey, file_record, whole_extent
from cache_tools.store.recipe import GROUPS, Recipe
from cache_tools.store.records import with_checksum
from cache_tools.store.start import start_arrays
from cache_tools.store.writer import commit_shard, seal, write_token_shard

Shards = dict[ShardKey, dict[str, NDArray]]

NUMERICS = {"device": "cpu", "dtype": "float32"}
NO_START: dict[str, Any] = {
    "start_layers": (),
    "start_width": 0,
    "start_neurons": 0,
    "start_positions": 0,
    "start_rows": 0,
}
"""Changes of a recipe."""


def small_recipe(**changes: Any) -> Recipe:
    """10 + 3 rows in shards of 4, so that the last shard of each group is not full, and a start of two layers."""
    fields: dict[str, Any] = {
        "teacher_sha256": "a" * 64,
        "teacher_architecture": "XLMRobertaForMaskedLM",
        "teacher_parameters": 1000,
        "teacher_layers": 3,
        "teacher_hidden": 12,
        "teacher_heads": 2,
        "tokenizer_sha256": "b" * 64,
        "vocab_size": 50,
        "bos_id": 0,
        "eos_id": 2,
        "pad_id": 1,
        "mask_id": 49,
        "special_ids": (0, 1, 2, 3, 49),
        "tokens_sha256": "c" * 64,
        "seen_sha256": "d" * 64,
        "seen_size": 30,
        "embedding_width": 6,
        "train_rows": 10,
        "validation_rows": 3,
        "seq_len": 16,
        "max_targets": 3,
        "views": 1,
        "continued_views": 1,
        "continued_sha256": "",
        "mask_prob": 0.2,
        "seed": 0,
        "keep": "topk",
        "top_k": 4,
        "temperatures": (1.0, 2.0),
        "attention_layers": (1, 2),
        "attention_queries": 4,
        "attention_keys": 5,
        "rows_per_shard": 4,
        "start_layers": (0, 2),
        "start_width": 8,
        "start_neurons": 10,
        "start_positions": 16,
        "start_rows": 4,
    }
    return Recipe(**(fields | changes))


def shard_keys(recipe: Recipe) -> list[ShardKey]:
    return whole_extent(recipe).keys()


def random_attention(generator: np.random.Generator, recipe: Recipe, length: NDArray) -> dict[str, NDArray]:
    """The arrays of attention of rows of these lengths: 1 to k keys of each query."""
    shape = len(length), len(recipe.attention_layers), recipe.attention_slots, recipe.attention_keys
    gap, weight = np.full(shape, recipe.seq_len, np.uint16), np.zeros(shape, np.uint8)
    for row, layer, query in np.ndindex(shape[:3]):
        if query * recipe.attention_queries < length[row]:
            count = generator.integers(1, recipe.attention_keys + 1)
            keys = np.sort(generator.permutation(int(length[row]))[:count])
            gap[row, layer, query, :count] = np.diff(keys, prepend=-1) - 1
            weight[row, layer, query, :count] = generator.integers(0, 255, count)
    return {"attention_gap": gap, "attention_weight": weight}


def random_shard(recipe: Recipe, group: str, shard: int, seed: int = 0) -> dict[str, NDArray]:
    """All arrays of one shard: ids and positions in range, a row with an unused slot, tails that may be empty."""
    generator = np.random.default_rng((seed, GROUPS.index(group), shard))
    rows = recipe.shard_rows(group, shard)
    arrays: dict[str, NDArray] = {}
    for name, spec in group_arrays(recipe, group).items():
        shape = (rows, *spec.chunk[1:])
        if spec.dtype.kind == "f":
            arrays[name] = -generator.exponential(3.0, shape).astype(spec.dtype)
        elif name in ("topk_id", "sample_id"):
            arrays[name] = generator.random((*shape[:-1], recipe.vocab_size)).argsort(-1)[..., : shape[-1]].astype("i4")
        else:
            arrays[name] = generator.integers(0, recipe.vocab_size, shape).astype(spec.dtype)
    arrays["length"] = generator.integers(9, recipe.seq_len + 1, rows).astype(np.uint16)
    arrays["row_key"] = generator.integers(0, 2**64, rows, dtype=np.uint64)
    positions = [np.sort(generator.permutation(8)[: recipe.max_targets]) for _ in range(rows)]
    arrays["target_position"][:] = 1 + np.array(positions)
    unused = (0, recipe.max_targets - 1)
    arrays["target_position"][unused], arrays["target_id"][unused] = UNUSED_POSITION, UNUSED_ID
    if recipe.attention_layers:
        arrays |= random_attention(generator, recipe, arrays["length"])
    kept, values = ("topk_id", "topk_logprob")
    if recipe.keep == "threshold":
        kept, values = ("sample_id", "sample_logweight")
        arrays[kept][0, 0, 0, -1], arrays[values][0, 0, 0, -1] = UNUSED_ID, -np.inf
    else:
        arrays["tail_logmass_seen"][0, 0, 0] = -np.inf
    arrays[kept][unused], arrays[values][unused] = UNUSED_ID, np.nan
    return arrays


def prepare_cache(
    root: Path,
    recipe: Recipe,
    seed: int = 0,
    attributes: dict[str, object] | None = None,
    start_seed: int | None = None,
) -> Shards:
    """A sealed cache at `root` with its tokens and no committed shard. Returns what its shards are to hold."""
    shards = {key: random_shard(recipe, *key, seed) for key in shard_keys(recipe)}
    digests: dict[str, tuple[str, ...]] = dict.fromkeys(GROUPS, ())
    for (group, shard), arrays in shards.items():
        tokens = {name: arrays[name] for name in TOKEN_ARRAYS}
        digests[group] += (write_token_shard(root, group_arrays(recipe, group), shard, tokens),)
    (root / TOKENIZER).mkdir()
    for name in TOKENIZER_FILES:
        (root / TOKENIZER / name).write_text(f'{{"name": "{name}"}}')
    described: dict[str, object] = {
        "recipe": recipe_json(recipe),
        "recipe_id": recipe.recipe_id,
        "provenance": {},
        "settings": {},
    }
    vocabulary, start = (
        random_vocabulary(recipe, seed),
        random_start(recipe, seed if start_seed is None else start_seed),
    )
    seal(root, recipe, described | (attributes or {}), vocabulary, start, digests)
    return shards


def recipe_json(recipe: Recipe) -> dict[str, object]:
    """The recipe as it comes back from JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(recipe).items()}


def random_vocabulary(recipe: Recipe, seed: int = 0) -> dict[str, NDArray]:
    generator = np.random.default_rng(seed)
    arrays = {
        name: generator.normal(size=spec.shape).astype(spec.dtype) for name, spec in vocabulary_arrays(recipe).items()
    }
    arrays["id"] = np.sort(generator.permutation(recipe.vocab_size)[: recipe.seen_size]).astype(np.int32)
    arrays["count"] = generator.integers(1, 1000, recipe.seen_size)
    return arrays


def random_start(recipe: Recipe, seed: int = 0) -> dict[str, NDArray]:
    """The arrays of the start: the order of heads and neurons as permutations, all else normal."""
    generator = np.random.default_rng((seed, 1))
    return {
        name: generator.random(spec.shape).argsort(-1).astype(spec.dtype)
        if spec.dtype.kind == "i"
        else generator.normal(size=spec.shape).astype(spec.dtype)
        for name, spec in start_arrays(recipe).items()
    }


def commit(
    root: Path, recipe: Recipe, key: ShardKey, arrays: dict[str, NDArray], numerics: dict[str, str] = NUMERICS
) -> None:
    """Commits one shard of a prepared cache, from a staging folder that is empty again afterwards."""
    staging = root.parent / f"{root.name}.staging"
    staging.mkdir(exist_ok=True)
    specs = group_arrays(recipe, key[0])
    files = {name: file_record((root / specs[name].chunk_path(key[1])).read_bytes()) for name in TOKEN_ARRAYS}
    teacher = {name: array for name, array in arrays.items() if name not in TOKEN_ARRAYS}
    commit_shard(root, staging, recipe, *key, teacher, files, numerics)
    assert not list(staging.iterdir())


def make_cache(
    root: Path, recipe: Recipe | None = None, seed: int = 0, attributes: dict[str, object] | None = None
) -> Shards:
    """A complete cache at `root`. Returns what its shards hold."""
    recipe = recipe or small_recipe()
    shards = prepare_cache(root, recipe, seed, attributes)
    for key, arrays in shards.items():
        commit(root, recipe, key, arrays)
    return shards


def change_json(path: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = False) -> None:
    """Edits a JSON file; `sign` gives a record the checksum of its new content, as a forger would."""
    record = json.loads(path.read_text())
    change(record)
    if sign:
        del record["checksum"]
        path.write_bytes(with_checksum(record))
    else:
        path.write_text(json.dumps(record))


def rewrite(root: Path, name: str, array: NDArray) -> None:
    """Puts another array into shard train 0, with sound checksums."""
    spec = open_cache(root).specs["train"][name]
    data = encode_chunk(spec, array)
    (root / spec.chunk_path(0)).write_bytes(data)
    record = {"bytes": len(data), "sha256": file_record(data).sha256}
    change_json(root / "ledger/train-00000.json", lambda r: r["files"].update({name: record}), sign=True)


def flip_byte(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
