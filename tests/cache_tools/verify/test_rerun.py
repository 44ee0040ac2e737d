"""verify --teacher: sound caches pass in every dtype, parts as far as they go; another teacher is refused."""

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
from helpers.small_caches import change_json, small_recipe
from safetensors.torch import load_file, save_file

from cache_tools import open_cache
from cache_tools.cli.main import main
from cache_tools.errors import CometError
from cache_tools.settings import RerunSettings
from cache_tools.store.copy import cut, merge
from cache_tools.store.ledger import Extent
from cache_tools.store.recipe import Recipe
from cache_tools.verify.rerun import dtype_to_run_in, sample_rows
from cache_tools.verify.verify import verify

ATTENTION = {"attention_weight", "certain_key", "drawn_key"}


def rows_of(recipe: Recipe) -> int:
    return recipe.train_rows + recipe.validation_rows


@pytest.mark.parametrize("kind", ["topk float32", "topk bfloat16", "threshold float32", "threshold bfloat16"])
def test_a_sound_cache_is_given_again(built: dict[str, Path], again: RerunSettings, kind: str) -> None:
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
    built: dict[str, Path], again: RerunSettings, keep: str, built_in: str, run_in: str
) -> None:
    report = verify(built[f"{keep} {built_in}"], again=replace(again, dtype=run_in))
    assert report.damage == []
    assert report.runs is not None
    (run,) = report.runs
    assert run.kind == (built_in, "cpu", run_in, "cpu")
    for name in ("topk_logprob" if keep == "topk" else "sample_logweight", "attention_weight"):
        assert run.worst[name].mean > 0.001, "it did compute in another dtype"
        assert run.worst[name].largest < run.allowed(name).largest / 2, "the margin"


def test_without_a_teacher_nothing_is_said_of_it(built: dict[str, Path]) -> None:
    said = CliRunner().invoke(main, ["verify", str(built["topk float32"]), "--json"])
    assert "teacher" not in json.loads(said.stdout)
    wrong = CliRunner().invoke(main, ["verify", str(built["topk float32"]), "--rows", "7", "--batch-size", "2"])
    assert wrong.exit_code == 2
    assert wrong.stderr == "error: --rows, --batch-size: nothing to do without --teacher\n"


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
        verify(root, again=RerunSettings(str(folder)))


def test_a_part_is_run_again_as_far_as_it_goes(built: dict[str, Path], again: RerunSettings, tmp_path: Path) -> None:
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
    built: dict[str, Path], again: RerunSettings, tmp_path: Path
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
    built: dict[str, Path], again: RerunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = out_of_memory_above(5, monkeypatch, torch.OutOfMemoryError("out of memory"))
    report = verify(built["threshold float32"], again=replace(again, batch_size=16))
    assert report.damage == []
    assert report.runs is not None
    assert report.runs[0].rows == rows_of(open_cache(built["threshold float32"]).recipe)
    assert max(tried) > 5
    assert tried[-1] <= 4


def test_a_cache_without_shards_has_nothing_to_compare(copy: Callable[[str], Path], again: RerunSettings) -> None:
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
            replace(RerunSettings("teacher"), **change)
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
