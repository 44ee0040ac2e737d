"""verify --teacher: sound caches pass in every dtype; what the teacher does not give is named with its shard."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.builds import Ended, assert_one_error_line
from helpers.scarce_memory import out_of_memory_above
from helpers.settings import build_settings
from helpers.small_caches import change_json, rewrite, small_recipe
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from cache_tools import build_cache, open_cache
from cache_tools.cli.main import main
from cache_tools.errors import CometError
from cache_tools.settings import RecheckSettings
from cache_tools.signals import family_of
from cache_tools.store.copy import cut, merge
from cache_tools.store.ledger import Extent
from cache_tools.store.recipe import Recipe
from cache_tools.verify.rerun import dtype_to_run_in, sample_rows
from cache_tools.verify.verify import verify

ALL_ROWS = 10_000
SEQ_LEN = 48
ATTENTION = {"attention_weight", "certain_key", "drawn_key"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, sample_text: Path) -> dict[str, Path]:
    """Complete caches that nobody changes; those of one keep are of one recipe."""
    folder = tmp_path_factory.mktemp("built")
    settings = build_settings(folder, sample_teacher, sample_text, temperatures=(1.0, 2.0))
    for keep, top_k in (("topk", 8), ("threshold", 32)):
        for dtype in ("float32", "bfloat16"):
            out = folder / f"{keep} {dtype}"
            build_cache(replace(settings, out=out, keep=keep, top_k=top_k, dtype=dtype))
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def copy(built: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of them to change."""
    return lambda kind: Path(shutil.copytree(built[kind], tmp_path / "kin.zarr"))


@pytest.fixture
def again(sample_teacher: Path) -> RecheckSettings:
    """Every row, so that whatever is wrong is looked at."""
    return RecheckSettings(str(sample_teacher), rows=ALL_ROWS, device="cpu")


def rows_of(recipe: Recipe) -> int:
    return recipe.train_rows + recipe.validation_rows


@pytest.mark.parametrize("kind", ["topk float32", "topk bfloat16", "threshold float32", "threshold bfloat16"])
def test_a_sound_cache_is_given_again(built: dict[str, Path], again: RecheckSettings, kind: str) -> None:
    keep, dtype = kind.split()
    report = verify(built[kind], again=again)
    assert report.damage == []
    assert report.runs is not None
    (run,) = report.runs
    assert run.kind == (dtype, "cpu", dtype, "cpu")
    assert (run.rows, run.shards) == (rows_of(open_cache(built[kind]).recipe), report.shards)
    logits = {"topk_logprob", "tail_logmass", "tail_logmass_seen", "kl", "topk_id"}
    sample = {"sample_logweight", "entropy", "entropy_seen", "kl", "certain_id", "drawn_id", "drawn_logprob"}
    assert set(run.worst) == (logits if keep == "topk" else sample) | ATTENTION
    for name in set(run.worst) - {"drawn_id", "drawn_key"}:
        assert run.worst[name].median == 0, f"{name}: other batches, the same numbers"


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["topk", "threshold"])
@pytest.mark.parametrize(("built_in", "run_in"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_another_dtype_is_near_enough_and_not_the_same(
    built: dict[str, Path], again: RecheckSettings, keep: str, built_in: str, run_in: str
) -> None:
    report = verify(built[f"{keep} {built_in}"], again=replace(again, dtype=run_in))
    assert report.damage == []
    assert report.runs is not None
    (run,) = report.runs
    assert run.kind == (built_in, "cpu", run_in, "cpu")
    for name in ("topk_logprob" if keep == "topk" else "sample_logweight", "attention_weight"):
        assert run.worst[name].mean > 0.001, "it did compute in another dtype"
        assert run.worst[name].largest < run.allowed(name).largest / 2, "the margin"


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
    copy: Callable[[str], Path], again: RecheckSettings, forged: str
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


def test_without_a_teacher_nothing_is_said_of_it(built: dict[str, Path]) -> None:
    said = CliRunner().invoke(main, ["verify", str(built["topk float32"]), "--json"])
    assert "teacher" not in json.loads(said.stdout)
    wrong = CliRunner().invoke(main, ["verify", str(built["topk float32"]), "--rows", "7", "--batch-size", "2"])
    assert wrong.exit_code == 2
    assert wrong.stderr == "error: --rows, --batch-size: nothing to do without --teacher\n"


def test_what_is_no_number_is_damage(copy: Callable[[str], Path], again: RecheckSettings) -> None:
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


def test_a_damaged_shard_is_not_run_again(copy: Callable[[str], Path], again: RecheckSettings) -> None:
    root = copy("topk float32")
    (root / "train/topk_id/c/0/0/0").unlink()
    report = verify(root, again=again)
    assert [damage.shard for damage in report.damage] == [("train", 0)]
    assert report.runs is not None
    assert report.runs[0].shards == report.shards - 1


def test_ids_that_nobody_may_index_by_are_damage(copy: Callable[[str], Path], again: RecheckSettings) -> None:
    root = copy("topk float32")
    rewrite(root, "topk_id", open_cache(root).read_shard("train", 0)["topk_id"] + np.int32(8000))
    (damage,) = verify(root, again=again).damage
    assert damage.shard == ("train", 0)
    assert "topk_id: a value lies outside" in damage.message


def test_an_unknown_dtype_is_damage(copy: Callable[[str], Path], again: RecheckSettings) -> None:
    root = copy("topk float32")
    change_json(root / "ledger/train-00001.json", lambda r: r["numerics"].update(dtype="int8"), sign=True)
    (damage,) = verify(root, again=again).damage
    assert damage.shard == ("train", 1)
    assert damage.message.endswith("its commit record has dtype int8, expected float32, float16, bfloat16")


@pytest.fixture
def other_teacher(sample_teacher: Path, tmp_path: Path) -> Path:
    """The sample teacher with one weight changed."""
    folder = Path(shutil.copytree(sample_teacher, tmp_path / "teacher"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.bias"][7] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_another_teacher_is_refused_by_what_differs(built: dict[str, Path], other_teacher: Path) -> None:
    root = built["topk float32"]
    said = CliRunner().invoke(main, ["verify", str(root), "--teacher", str(other_teacher)])
    expected = open_cache(root).recipe.teacher_sha256[:12]
    ended = Ended(said.exit_code, said.stdout, said.stderr)
    words = f"not the teacher of {root}: teacher weights sha256 differ: expected {expected}…, found "
    assert_one_error_line(ended, 2, f"--teacher {other_teacher}: {words}", "; give the one that it was built with")
    assert said.stderr.count("differ") == 1


def test_another_tokenizer_is_another_teacher(built: dict[str, Path], sample_teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sample_teacher, tmp_path / "teacher"))
    change_json(folder / "tokenizer.json", lambda t: t.update(normalizer=None))
    root = built["topk float32"]
    with pytest.raises(
        CometError, match=rf"not the teacher of {root}: tokenizer sha256 differ: expected .{{12}}…, found"
    ):
        verify(root, again=RecheckSettings(str(folder)))


def test_a_part_is_run_again_as_far_as_it_goes(built: dict[str, Path], again: RecheckSettings, tmp_path: Path) -> None:
    cache = open_cache(built["threshold float32"])
    shards: dict[str, tuple[tuple[int, int], ...]] = {"train": ((1, 2),), "validation": ()}
    cut(cache, tmp_path / "whole", Extent(cache.recipe.recipe_id, cache.extent.arrays, shards))
    report = verify(tmp_path / "whole", again=again)
    assert report.damage == []
    assert report.runs is not None
    assert [(run.shards, run.rows) for run in report.runs] == [(1, 16)]
    names = ("input_ids", "length", "target_position", "row_key", "attention_gap", "attention_weight")
    cut(cache, tmp_path / "attention", Extent(cache.recipe.recipe_id, names, shards))
    report = verify(tmp_path / "attention", again=again)
    assert report.damage == []
    assert report.runs is not None
    assert set(report.runs[0].worst) == ATTENTION
    cut(cache, tmp_path / "ids", Extent(cache.recipe.recipe_id, names[:4], shards))
    with pytest.raises(CometError, match=r"this copy holds input_ids, .*row_key; to run the teacher again expected"):
        verify(tmp_path / "ids", again=again)


def test_shards_of_several_dtypes_are_judged_each_by_its_own(
    built: dict[str, Path], again: RecheckSettings, tmp_path: Path
) -> None:
    """A teacher that was rounded to bfloat16 first would be far off in float32."""
    one, other = open_cache(built["topk bfloat16"]), open_cache(built["topk float32"])
    shards: dict[str, tuple[tuple[int, int], ...]] = {"train": ((1, 2),), "validation": ()}
    part = cut(one, tmp_path / "part", Extent(one.recipe.recipe_id, one.extent.arrays, shards))
    merge([part, other], tmp_path / "merged")
    report = verify(tmp_path / "merged", again=again)
    assert report.damage == []
    assert report.runs is not None
    assert [(run.built_in, run.run_in) for run in report.runs] == [("bfloat16", "bfloat16"), ("float32", "float32")]
    assert report.runs[0].shards == 1
    assert report.runs[1].worst["topk_logprob"].mean < 0.002


def test_where_memory_runs_out_batches_are_smaller(
    built: dict[str, Path], again: RecheckSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = out_of_memory_above(5, monkeypatch, torch.OutOfMemoryError("out of memory"))
    report = verify(built["threshold float32"], again=replace(again, batch_size=16))
    assert report.damage == []
    assert report.runs is not None
    assert report.runs[0].rows == rows_of(open_cache(built["threshold float32"]).recipe)
    assert max(tried) > 5
    assert tried[-1] <= 4


def test_a_cache_without_shards_has_nothing_to_compare(copy: Callable[[str], Path], again: RecheckSettings) -> None:
    root = copy("topk float32")
    for record in (root / "ledger").glob("*-*.json"):
        record.unlink()
    report = verify(root, again=again)
    assert (report.damage, report.runs) == ([], [])


def test_the_options_are_checked() -> None:
    for change, words in (
        ({"rows": 0}, "--rows 0"),
        ({"seed": -1}, "--seed -1"),
        ({"batch_size": 0}, "--batch-size 0"),
    ):
        with pytest.raises(CometError, match=f"^{words}: expected ") as caught:
            replace(RecheckSettings("teacher"), **change)
        assert caught.value.exit_code == 2


def test_rows_are_drawn_from_seed_and_recipe_alone() -> None:
    recipe = small_recipe(train_rows=70, validation_rows=12)
    places = [("train", shard) for shard in range(18)] + [("validation", shard) for shard in range(3)]
    drawn = sample_rows(recipe, places, 9, 0)
    assert sum(map(len, drawn.values())) == 9
    assert len(drawn) == 9, "as many shards as can be"
    assert {group for group, _ in drawn} == {"train", "validation"}
    again = sample_rows(recipe, places[::-1], 9, 0)
    assert {place: rows.tolist() for place, rows in again.items()} == {p: rows.tolist() for p, rows in drawn.items()}
    for other in (sample_rows(recipe, places, 9, 1), sample_rows(replace(recipe, seed=1), places, 9, 0)):
        assert {p: rows.tolist() for p, rows in other.items()} != {p: rows.tolist() for p, rows in drawn.items()}
    assert set(sample_rows(recipe, places, 2, 5)) & {("validation", shard) for shard in range(3)}
    held = sample_rows(recipe, places[:2], 5, 0)
    assert {place: len(rows) for place, rows in held.items()} in (
        {places[0]: 3, places[1]: 2},
        {places[0]: 2, places[1]: 3},
    )
    whole = sample_rows(recipe, places, 1000, 0)
    assert {place: rows.tolist() for place, rows in whole.items()} == {
        place: list(range(recipe.shard_rows(*place))) for place in places
    }
    assert all((np.diff(rows) > 0).all() for rows in drawn.values())
    assert sample_rows(recipe, [], 5, 0) == {}
    assert len({sample_rows(recipe, places[:1], 1, seed)["train", 0][0] for seed in range(20)}) == 4, (
        "any row of a shard"
    )


def test_the_dtype_of_the_shard_unless_another_is_asked_for() -> None:
    cpu = torch.device("cpu")
    assert [dtype_to_run_in(dtype, "auto", cpu) for dtype in ("float32", "bfloat16", "float16")] == [
        "float32",
        "bfloat16",
        "float16",
    ]
    assert dtype_to_run_in("bfloat16", "float32", cpu) == "float32"


def test_a_gpu_without_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    gpu = torch.device("cuda")
    assert dtype_to_run_in("bfloat16", "auto", gpu) == "float32"
    assert dtype_to_run_in("float16", "auto", gpu) == "float16"
