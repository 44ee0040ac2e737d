"""Where comet-eval writes: decided before the work, never over something else, by several evaluations at once."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.small_disk import enlarge, small_disk

from cache_tools.errors import CometError
from comet.evaluate.evaluation import evaluate
from comet.evaluate.finetuning import FineTuning
from comet.evaluate.results import ModelResult, Results, Run, Subject, add_to_results, open_results
from comet.evaluate.settings import PAGE_SIGN, EvaluationSettings, require_places

SUBJECT = Subject("sib200", "kin", "a", "test", "b", 5, 16, None, None)
EMPTY = Results(SUBJECT, [["sports"]], ())


def model(name: str, *seeds: int, score: float = 0.5) -> ModelResult:
    runs = tuple(Run(seed, score, None, 1.0, [["sports"]]) for seed in seeds)
    return ModelResult(name, f"sha of {name}", 1, 1.0, 128, 0, 0, FineTuning(5, 16, 1e-4), 1.0, runs)


def test_evaluations_at_once_keep_each_other_s_runs(tmp_path: Path) -> None:
    path = tmp_path / "new" / "all.json"

    def one(number: int) -> None:
        for seed in range(5):
            add_to_results(path, EMPTY, model(f"model {number}", *range(seed + 1)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    found = open_results(path, SUBJECT, EMPTY.gold)
    assert {m.name: [run.seed for run in m.runs] for m in found.models} == {
        f"model {number}": [0, 1, 2, 3, 4] for number in range(8)
    }
    assert {file.name for file in path.parent.iterdir()} == {"all.json", ".all.json.lock"}


def test_runs_of_one_model_from_two_evaluations_are_joined(tmp_path: Path) -> None:
    add_to_results(tmp_path / "r.json", EMPTY, model("a", 0, 2))
    found = add_to_results(tmp_path / "r.json", EMPTY, model("a", 1, 2, score=0.9)).find("sha of a")
    assert found is not None
    assert [(run.seed, run.score) for run in found.runs] == [(0, 0.5), (1, 0.9), (2, 0.5)], "the earlier run stays"


def test_runs_of_another_fine_tuning_are_not_taken_for_these(tmp_path: Path) -> None:
    """Of a version whose default learning rate was another: the options are the same."""
    results = add_to_results(tmp_path / "r.json", EMPTY, model("a", 0))
    assert results.with_runs(model("a")).runs == model("a", 0).runs
    now = replace(model("a"), how=FineTuning(5, 16, 2e-4))
    with pytest.raises(
        CometError, match=r"^--results: its runs of a were made with learning rate 0\.0001, now 0\.0002;"
    ):
        results.with_runs(now)
    assert results.with_runs(model("b")).runs == ()


def test_a_file_that_became_another_one_is_not_overwritten(tmp_path: Path) -> None:
    add_to_results(tmp_path / "r.json", replace(EMPTY, subject=replace(SUBJECT, epochs=9)), model("a", 0))
    before = (tmp_path / "r.json").read_bytes()
    with pytest.raises(CometError, match="was made with epochs 9, now 5"):
        add_to_results(tmp_path / "r.json", EMPTY, model("b", 0))
    assert (tmp_path / "r.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"train_sha256": "c", "reported_sha256": "d"}, "other texts or labels in train and test than there are now"),
        (
            {"epochs": 9, "reported": "dev", "train_sha256": "c"},
            "reported dev, now test; epochs 9, now 5; other texts or labels in train than there are now",
        ),
    ],
)
def test_what_differs_is_said_in_words(change: dict[str, Any], differs: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    add_to_results(path, replace(EMPTY, subject=replace(SUBJECT, **change)), model("a", 0))
    with pytest.raises(CometError) as caught:
        open_results(path, SUBJECT, EMPTY.gold)
    expected = f"--results {path}: was made with {differs}; give another file, or the same options and data"
    assert (str(caught.value), caught.value.exit_code) == (expected, 2)


def test_a_full_disk_keeps_the_runs_there_are(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "r.json"
    with small_disk(path.parent, 40):
        add_to_results(path, EMPTY, model("a", 0))
        before = path.read_bytes()
        with pytest.raises(CometError, match=r"r.json: cannot be written \(No space left on device\); runs in it are"):
            add_to_results(path, EMPTY, model("b", *range(999)))
        assert path.read_bytes() == before
        assert {file.name for file in path.parent.iterdir()} == {"r.json", ".r.json.lock"}
        enlarge(path.parent)
        assert len(add_to_results(path, EMPTY, model("b", *range(999))).models) == 2


def places(**given: str) -> EvaluationSettings:
    paths = {name: Path(path) for name, path in given.items()}
    return EvaluationSettings(models=("kin-student",), task="sib200", language="kin", **paths)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"results": "r.html"}, "--results r.html: expected a name that ends in .json"),
        ({"results": "r"}, "--results r: expected a name that ends in .json"),
        ({"results": "folder.json"}, "--results folder.json: is a folder; expected the path of a file"),
        ({"results": "file/r.json"}, r"--results file/r.json: cannot be created \(Not a directory\)"),
        ({"results": "x" * 300 + ".json"}, "--results x+.json: expected a name of at most"),
        ({"results": "theirs.json"}, "theirs.html, where its page belongs, is another file; give another name"),
        ({"results": "kin.zarr/r.json"}, "lies in the cache .*kin.zarr, which holds nothing but its own files"),
        ({"output": "file/x"}, r"--output file/x: cannot be created \(Not a directory\)"),
        ({"output": "kin.zarr/x"}, "--output kin.zarr/x: lies in the cache "),
        (
            {"output": "a.json", "results": "a.json"},
            "--output a.json: is where results or page go; give another folder",
        ),
        ({"output": "a.html", "results": "a.json"}, "--output a.html: is where results or page go"),
    ],
)
def test_a_place_that_cannot_be_is_found_before_any_work(
    given: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "theirs.html").write_text("<html>a page of mine</html>")
    (tmp_path / "kin.zarr" / "ledger").mkdir(parents=True)
    (tmp_path / "kin.zarr" / "ledger" / "seal.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CometError, match=message) as caught:
        evaluate(places(**given), print)  # there is neither the model nor data
    assert caught.value.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_of_its_own_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "r.html").write_bytes(b"<html><head>\n" + PAGE_SIGN)
    require_places(places(results=str(tmp_path / "r.json")))


def test_the_results_are_plain_json(tmp_path: Path) -> None:
    add_to_results(tmp_path / "r.json", EMPTY, model("a", 0))
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in content["models"]] == ["a"]
