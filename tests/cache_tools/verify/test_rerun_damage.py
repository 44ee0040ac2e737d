"""verify --teacher: what the teacher does not give is named with its shard, and what cannot be run is damage."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.small_caches import change_json, rewrite
from numpy.typing import NDArray

from cache_tools import open_cache
from cache_tools.cli.main import main
from cache_tools.settings import RerunSettings
from cache_tools.signals import family_of
from cache_tools.verify.verify import verify

SEQ_LEN = 48


def roll(values: NDArray) -> NDArray:
    """Those of the target before, or the attention of the row before."""
    return np.roll(values, 1, axis=0)


def other_draws(ids: NDArray) -> NDArray:
    """The ids of each sample [T, n_T, k] but the first eight replaced by tokens that are not in it."""
    changed = np.array(ids)
    for sample in changed.reshape(-1, ids.shape[-1]):
        others = np.setdiff1d(np.arange(5, 7999, 61), sample)
        last = np.flatnonzero(sample >= 0)[8:]
        sample[last] = others[: len(last)]
    return changed


def codes_turned(codes: NDArray) -> NDArray:
    """The codes of each query's certain keys in the opposite order."""
    changed = np.array(codes)
    for of_query in changed.reshape(-1, codes.shape[-1]):
        of_query[of_query > 0] = of_query[of_query > 0][::-1]
    return changed


def last_key_before(gaps: NDArray) -> NDArray:
    """The last key of each query one place nearer to the beginning, where nothing is kept."""
    changed = np.array(gaps)
    for of_query in changed.reshape(-1, gaps.shape[-1]):
        last = np.flatnonzero(of_query < SEQ_LEN)[-1:]
        of_query[last] -= of_query[last] > 0
    return changed


VALUES = ("topk_logprob", "tail_logmass", "tail_logmass_seen")
SAMPLE = ("sample_id", "sample_logweight")
FORGED: dict[str, tuple[str, tuple[str, ...], Callable[[NDArray], NDArray], str]] = {
    "values of other targets": ("topk float32", VALUES, roll, "topk_logprob: off by"),
    "values of other targets, bfloat16": ("topk bfloat16", VALUES, roll, "topk_logprob: off by"),
    "everything of other targets": ("topk bfloat16", ("topk_id", *VALUES), roll, "kl: off by"),
    "other tokens": ("topk bfloat16", ("topk_id",), lambda ids: ids % 7990 + 5, "topk_id: "),
    "a little less tail": ("topk float32", VALUES[2:], lambda tail: tail - np.float32(0.01), "tail_logmass_seen: off"),
    "attention of other rows": ("topk bfloat16", ("attention_gap", "attention_weight"), roll, "certain_key: "),
    "codes exchanged": ("threshold float32", ("attention_weight",), codes_turned, "attention_weight: off by"),
    "other keys": ("threshold float32", ("attention_gap",), last_key_before, "drawn_key: "),
    "samples of other targets": ("threshold bfloat16", SAMPLE, roll, "sample_logweight: off by"),
    "entropies of other targets": ("threshold bfloat16", ("entropy",), roll, "entropy: off by"),
    "a little entropy": ("threshold float32", ("entropy_seen",), lambda e: e + np.float32(0.01), "entropy_seen: off"),
    "other draws": ("threshold float32", ("sample_id",), other_draws, "drawn_id: "),
    "other draws, bfloat16": ("threshold bfloat16", ("sample_id",), other_draws, "drawn_logprob: off by"),
}


@pytest.mark.slow
@pytest.mark.parametrize("forged", FORGED)
def test_values_that_the_teacher_does_not_give_are_damage(
    copy: Callable[[str], Path], again: RerunSettings, forged: str
) -> None:
    """Under sound checksums, and such that they could be right."""
    kind, names, change, message = FORGED[forged]
    root = copy(kind)
    arrays = open_cache(root).read_shard("train", 0)
    for name in names:
        array = np.array(arrays[name])
        full = arrays["length"] == SEQ_LEN  # whose queries are as many
        changed = full if family_of(name) == "attention" else arrays["target_id"] >= 0
        array[changed] = change(array[changed])
        rewrite(root, name, array)
    assert verify(root, deep=True).damage == []
    report = verify(root, again=again)
    assert report.damaged_shards == [("train", 0)]
    assert any(message in damage.message for damage in report.damage), report.damage
    assert all(damage.message.startswith(f"{root}: shard train 0: ") for damage in report.damage)


def test_damage_is_reported_to_people_and_machines(copy: Callable[[str], Path], sample_teacher: Path) -> None:
    root = copy("threshold float32")
    rewrite(root, "entropy", open_cache(root).read_shard("train", 0)["entropy"] + np.float32(1))
    call = ["verify", str(root), "--teacher", str(sample_teacher), "--device", "cpu"]
    said = CliRunner().invoke(main, call)
    assert said.exit_code == 1
    assert "damaged shards: train 0\n" in said.stdout
    assert f"`comet-cache repair {root} --teacher {sample_teacher} --device cpu` drops them" in said.stdout
    assert "in float32 on cpu; built in float32 on cpu\n" in said.stdout
    assert "  entropy, nats " in said.stdout
    done = CliRunner().invoke(main, [*call, "--json", "--rows", "20", "--batch-size", "3"])
    assert done.exit_code == 1
    facts = json.loads(done.stdout)
    assert facts["damaged_shards"] == [["train", 0]]
    (run,) = facts["teacher"]
    assert (run["built_in"], run["run_in"], run["run_on"], run["rows"]) == ("float32", "float32", "cpu", 20)
    entropy, drawn = run["worst_shard"]["entropy"], run["worst_shard"]["drawn_id"]
    assert entropy["largest"] > 100 * entropy["allowed_largest"] > 0
    assert set(drawn) == {"count", "mean", "median", "p99", "largest", "allowed_mean"}


def test_what_the_teacher_found_is_repaired_with_it(copy: Callable[[str], Path], sample_teacher: Path) -> None:
    """The ledger alone has nothing against the shard."""
    root = copy("threshold float32")
    rewrite(root, "entropy", open_cache(root).read_shard("train", 0)["entropy"] + np.float32(1))
    assert CliRunner().invoke(main, ["repair", str(root)]).stdout == "nothing is damaged\n"
    done = CliRunner().invoke(main, ["repair", str(root), "--teacher", str(sample_teacher), "--rows", "40"])
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "dropped shard train 0")
    assert open_cache(root).missing("train") == [0]


def test_what_is_no_number_is_damage(copy: Callable[[str], Path], again: RerunSettings) -> None:
    """The reader refuses it before anything is compared."""
    root = copy("threshold float32")
    entropy = np.array(open_cache(root).read_shard("train", 0)["entropy"])
    entropy[0, 0, 0] = np.nan
    rewrite(root, "entropy", entropy)
    (damage,) = verify(root, again=again).damage
    assert damage.shard == ("train", 0)
    assert "entropy: expected a finite number, found another at row 0, target 0" in damage.message
    said = CliRunner().invoke(main, ["verify", str(root), "--teacher", again.teacher, "--json"])
    assert said.exit_code == 1 and "entropy: expected a finite number" in str(json.loads(said.stdout)["damage"])


def test_a_damaged_shard_is_not_run_again(copy: Callable[[str], Path], again: RerunSettings) -> None:
    root = copy("topk float32")
    (root / "train/topk_id/c/0/0/0").unlink()
    report = verify(root, again=again)
    assert [damage.shard for damage in report.damage] == [("train", 0)]
    assert report.runs is not None
    assert report.runs[0].shards == report.shards - 1


def test_ids_that_nobody_may_index_by_are_damage(copy: Callable[[str], Path], again: RerunSettings) -> None:
    root = copy("topk float32")
    rewrite(root, "topk_id", open_cache(root).read_shard("train", 0)["topk_id"] + np.int32(8000))
    (damage,) = verify(root, again=again).damage
    assert damage.shard == ("train", 0)
    assert "topk_id: a value lies outside" in damage.message


def test_an_unknown_dtype_is_damage(copy: Callable[[str], Path], again: RerunSettings) -> None:
    root = copy("topk float32")
    change_json(root / "ledger/train-00001.json", lambda r: r["numerics"].update(dtype="int8"), sign=True)
    (damage,) = verify(root, again=again).damage
    assert damage.shard == ("train", 1)
    assert damage.message.endswith("its commit record has dtype int8, expected float32, float16, bfloat16")
