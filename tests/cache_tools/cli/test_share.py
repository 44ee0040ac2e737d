"""comet-cache subset and merge, as a person meets them."""

import json
import re
from pathlib import Path

import pytest
from helpers.commands import run
from helpers.small_caches import NO_START, commit, make_cache, prepare_cache, shard_keys, small_recipe

from cache_tools import Cache, open_cache
from cache_tools.settings import Part
from cache_tools.sharing.parts import part_extent
from cache_tools.signals import ATTENTION, TOKEN_ARRAYS
from cache_tools.store.ledger import Extent, whole_extent

RECIPE = small_recipe(train_rows=158, **NO_START)  # 40 shards


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """40 + 1 shards that nobody changes."""
    root = tmp_path_factory.mktemp("whole") / "kin.zarr"
    make_cache(root, RECIPE)
    return open_cache(root)


def shard_bytes(cache: Cache) -> int:
    """Bytes of what a part is measured by: sealed files, and the arrays of the extent."""
    sealed = sum(file.size for file in cache.seal.files.values())
    return sealed + sum(record.files[name].size for record in cache.records().values() for name in cache.extent.arrays)


@pytest.mark.parametrize("fraction", [0.5, 0.8, 1.0])
def test_a_fraction_is_one_of_the_bytes(whole: Cache, tmp_path: Path, fraction: float) -> None:
    done = run("subset", whole.root, tmp_path / "part", "--fraction", fraction)
    assert done.exit_code == 0, done.output
    part = open_cache(tmp_path / "part")
    part.require_complete()
    assert shard_bytes(part) == pytest.approx(fraction * shard_bytes(whole), abs=shard_bytes(whole) / 60)
    assert part.extent.shards["validation"] == ((0, 1),)
    assert part.cache_id in done.stdout
    if fraction < 1:
        held = len(part.extent.indices("train"))
        assert f"{held} of 40 train and 1 of 1 validation shards" in done.stdout
        assert json.loads(run("info", part.root, "--json").stdout)["part"] in done.stdout
    else:
        assert part.cache_id == whole.cache_id


def test_one_training_shard_is_always_in_a_part(whole: Cache, tmp_path: Path) -> None:
    for name, option in (("fraction", ("--fraction", 1e-6)), ("tokens", ("--max-tokens", 1))):
        done = run("subset", whole.root, tmp_path / name, *option)
        assert done.exit_code == 0
        said = re.match(
            r"(\d+)% of the bytes instead of 0%: vocabulary, start, validation and one training shard are", done.stdout
        )
        assert (said is not None) == (name == "fraction")
        assert open_cache(tmp_path / name).extent.shards == {"train": ((0, 1),), "validation": ((0, 1),)}


@pytest.mark.parametrize(("tokens", "shards"), [(64, 1), (127, 1), (128, 2), (158 * 16 - 1, 39), (158 * 16, 40)])
def test_max_tokens_is_never_passed(whole: Cache, tokens: int, shards: int) -> None:
    assert extent_of(whole, Part(max_tokens=tokens)).shards["train"] == ((0, shards),)


def test_of_two_limits_the_smaller_one_holds(whole: Cache) -> None:
    assert extent_of(whole, Part(fraction=1.0, max_tokens=128)).shards["train"] == ((0, 2),)
    assert extent_of(whole, Part(fraction=1e-6, max_tokens=128)).shards["train"] == ((0, 1),)


def extent_of(cache: Cache, part: Part) -> Extent:
    return part_extent(cache.recipe, cache.seal, cache.extent, cache.records().values(), part, cache.root)


@pytest.mark.parametrize(
    ("signals", "arrays"),
    [
        ("logits", ("topk_id", "topk_logprob", "tail_logmass", "tail_logmass_seen")),
        ("attention", ("attention_gap", "attention_weight")),
        ("all", ("topk_id", "topk_logprob", "tail_logmass", "tail_logmass_seen", *ATTENTION.arrays)),
    ],
)
def test_signals_come_with_their_tokens(whole: Cache, signals: str, arrays: tuple[str, ...]) -> None:
    extent = extent_of(whole, Part(signals=signals))
    assert extent.arrays == (*TOKEN_ARRAYS, *arrays)
    assert extent.shards == whole.extent.shards


def test_signals_that_a_cache_does_not_hold(whole: Cache, tmp_path: Path) -> None:
    run("subset", whole.root, tmp_path / "logits", "--signals", "logits", "--max-tokens", 64)
    done = run("subset", tmp_path / "logits", tmp_path / "maps", "--signals", "attention")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'logits'}: holds no attention, only input_ids, length, ")


def test_a_part_of_a_half_built_cache_is_complete(tmp_path: Path) -> None:
    shards = prepare_cache(tmp_path / "half", RECIPE)
    for key in (("train", 1), ("train", 3), ("train", 4), ("validation", 0)):
        commit(tmp_path / "half", RECIPE, key, shards[key])
    assert run("subset", tmp_path / "half", tmp_path / "part", "--max-tokens", 128).exit_code == 0
    assert open_cache(tmp_path / "part").extent.shards["train"] == ((1, 2), (3, 4))
    open_cache(tmp_path / "part").require_complete()


def test_nothing_to_take_a_part_of(tmp_path: Path) -> None:
    prepare_cache(tmp_path / "none", RECIPE)
    done = run("subset", tmp_path / "none", tmp_path / "part", "--fraction", 0.5)
    assert (done.exit_code, done.stderr) == (
        1,
        f"error: {tmp_path / 'none'}: no training shard is built yet, so there is no part to take\n",
    )


def test_a_url_with_a_slash_too_few_is_no_folder(whole: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("push", whole.root, "s3:/bucket/kin.zarr", "--i-may-share-this")
    assert done.exit_code == 2
    assert done.stderr == "error: s3:/bucket/kin.zarr: neither a folder nor a URL; did you mean s3://…?\n"
    assert not list(tmp_path.iterdir())


def test_a_part_must_be_named(whole: Cache, tmp_path: Path) -> None:
    done = run("subset", whole.root, tmp_path / "part")
    assert done.exit_code == 2
    assert done.stderr == "error: subset: no part chosen; give --fraction, --max-tokens, --signals or --detach-text\n"
    assert run("subset", whole.root, tmp_path / "part", "--fraction", 0).exit_code == 2
    assert not (tmp_path / "part").exists()


def half(root: Path, keys: list[tuple[str, int]], **numerics: str) -> Path:
    shards = prepare_cache(root, small_recipe())
    for key in keys:
        commit(root, small_recipe(), key, shards[key], numerics)
    return root


def test_halves_of_two_labs_are_the_cache_of_one(tmp_path: Path) -> None:
    make_cache(tmp_path / "whole")
    keys = shard_keys(small_recipe())
    numerics = {"device": "cpu", "dtype": "float32"}
    sources = [half(tmp_path / str(i), keys[i::2], **numerics) for i in range(2)]
    done = run("merge", *sources, tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert open_cache(tmp_path / "merged").cache_id == open_cache(tmp_path / "whole").cache_id
    assert done.stdout.splitlines()[:3] == [
        f"{sources[0]}: 2 shards with device cpu, dtype float32",
        f"{sources[1]}: 2 shards with device cpu, dtype float32",
        f"{tmp_path / 'merged'}: complete",
    ]


def test_of_different_versions_the_first_is_kept_and_said(tmp_path: Path) -> None:
    one = half(tmp_path / "one", [("train", 0), ("train", 2)], device="cpu")
    other = half(tmp_path / "other", [("train", 0), ("train", 1)], device="cuda")
    same = half(tmp_path / "same", [("train", 1), ("train", 2)], device="cpu")
    done = run("merge", one, other, same, tmp_path / "merged")
    assert done.exit_code == 0, done.output
    said = f"2 shards have different versions; the first is kept: train 0 of {one}, train 1 of {other}"
    assert said in done.stdout.splitlines()
    merged = open_cache(tmp_path / "merged")
    devices = {key: record.numerics["device"] for key, record in merged.records().items()}
    assert devices == {("train", 0): "cpu", ("train", 1): "cuda", ("train", 2): "cpu"}
    assert f"{merged.root}: 3 of 4 shards built" in done.stdout


def test_other_recipes_are_not_merged(tmp_path: Path) -> None:
    make_cache(tmp_path / "one")
    make_cache(tmp_path / "other", small_recipe(seed=7, top_k=3))
    done = run("merge", tmp_path / "one", tmp_path / "other", tmp_path / "merged")
    assert done.exit_code == 2
    assert re.search(r"other: another recipe than .*one \(seed: 0 against 7; top_k: 4 against 3\)", done.stderr)
    assert not (tmp_path / "merged").exists()


def test_parts_of_one_cache_are_merged(whole: Cache, tmp_path: Path) -> None:
    run("subset", whole.root, tmp_path / "few", "--max-tokens", 128)
    assert run("merge", tmp_path / "few", whole.root, tmp_path / "merged").exit_code == 0
    assert open_cache(tmp_path / "merged").extent == whole_extent(RECIPE)
    assert open_cache(tmp_path / "merged").cache_id == whole.cache_id
