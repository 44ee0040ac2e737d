"""comet-train as a person runs it: real processes, real caches, no teacher and no network."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers import REPOSITORY
from helpers.builds import Ended, Running

from cache_tools import Cache, build_cache
from cache_tools.settings import BuildSettings
from comet.cli import train as command

ALONE = """
import runpy, socket, sys
def refuse(*args):
    raise AssertionError("the trainer used the network")
socket.socket.connect = socket.getaddrinfo = refuse
sys.argv = ["comet", "train", *sys.argv[1:]]
try:
    runpy.run_module("comet", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
assert not [name for name in sys.modules if name.startswith("cache_tools.teacher")], "the trainer loaded a teacher"
"""

PLAIN_TRANSFORMERS = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("comet", "cache_tools"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForMaskedLM, AutoTokenizer
model, tokenizer = AutoModelForMaskedLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
batch = tokenizer(["Umwana <mask> ishuri.", "Mwaramutse"], padding=True, return_tensors="pt")
print(json.dumps({"kind": type(model).__name__, "logits": list(model(**batch).logits.shape)}))
"""


def train(*arguments: str, folder: Path) -> Ended:
    log = folder.with_name(f"{folder.name} log")
    return Running(["train", *arguments], log, {"HOME": str(folder)}, module="comet", folder=folder).wait()


@pytest.fixture(scope="module")
def trained(settings: BuildSettings, sample_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with kin.zarr and kin-student, trained after the teacher was deleted and with the network refused."""
    folder = tmp_path_factory.mktemp("trained")
    teacher = shutil.copytree(sample_teacher, folder / "teacher")
    build_cache(replace(settings, out=folder / "kin.zarr", teacher=str(teacher), attention_layers="last"))
    shutil.rmtree(teacher)
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    command = [sys.executable, "-c", ALONE, "--cache", "kin.zarr", "--steps", "30"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_student_comes_nearer_to_the_teacher_and_says_so(trained: Path) -> None:
    output = (trained / "output.txt").read_text()
    shape = re.match(r"student: small \(4 layers × (\d+), 6 heads, FFN \d+\), for a teacher of 3,460,160 p", output)
    assert shape is not None, output
    assert output.count("measuring whether bfloat16 is faster here") == (not torch.cuda.is_available())
    assert f"\nit begins with layers 0, 1, 2, 3 of the teacher's 0–3, cut to width {shape[1]}\n" in output
    assert "attention matched in layer (student ← teacher): 3 ← 3" in output
    row = next(line for line in output.splitlines() if line.startswith("validation KL"))
    assert "The KL is bucketed: the top 16 tokens, and all others as one" in output
    before, after, teacher = (float(number) for number in row.split()[-3:])
    assert after < 0.9 * before
    assert teacher == 0
    assert 'AutoModelForMaskedLM.from_pretrained("kin-student")' in output


def test_the_student_is_an_ordinary_folder_without_pickles(trained: Path) -> None:
    files = sorted(path.name for path in (trained / "kin-student").iterdir())
    expected = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert files == expected
    assert not list(trained.glob(".*")), "a temporary folder was left behind"
    config = json.loads((trained / "kin-student" / "config.json").read_text())
    assert "attn" not in json.dumps(config).replace("attention_probs", ""), "the capture leaked into the config"


def test_transformers_loads_the_student_without_this_project(trained: Path) -> None:
    command = [sys.executable, "-c", PLAIN_TRANSFORMERS, "kin-student"]
    done = subprocess.run(command, cwd=trained, env={"HOME": str(trained)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    size = json.loads((trained / "kin-student" / "config.json").read_text())["vocab_size"]
    assert result["kind"] == "XLMRobertaForMaskedLM" and result["logits"][0] == 2 and result["logits"][2] == size < 8000


@pytest.mark.slow
def test_the_same_call_gives_the_same_student(trained: Path) -> None:
    done = train("--cache", "kin.zarr", "--steps", "30", "--output", "again", folder=trained)
    assert done.code == 0, done.stderr
    first, second = ((trained / name / "model.safetensors").read_bytes() for name in ("kin-student", "again"))
    assert first == second


def test_an_output_that_exists_is_not_touched(trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (trained / "kin-student").iterdir()}
    done = train("--cache", "kin.zarr", "--steps", "1", folder=trained)
    assert done.code == 2
    assert done.stderr == (
        "error: kin-student, kin-student.html, kin-student.toml: exist; choose another --output or remove them first\n"
    )
    assert before == {path: path.stat().st_mtime_ns for path in (trained / "kin-student").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--cache", "none.zarr"], "error: none.zarr: no such cache; expected a folder that", 2),
        (["--cache", "half.zarr"], "error: half.zarr: the cache is incomplete: 1 of", 1),
        (["--cache", "future.zarr"], "error: future.zarr: cache format '3'; this version of comet reads format 2", 1),
        (["--cache", "plain"], "error: plain: not a cache: it has no zarr.json", 2),
        (["--cache", "kin.zarr", "--cache", "other.zarr"], "error: --cache other.zarr: its top k is 3, but 16 in", 2),
        (["--cache", "kin.zarr", "--student", "huge"], "error: --student huge: expected auto, comet", 2),
        (["--cache", "kin.zarr", "--set", "nonsense=1"], "error: --set nonsense: unknown field; expected one of ", 2),
        (["--cache", "kin.zarr", "--set", "nonsense"], "error: --set nonsense: expected name=value", 2),
        (["--cache", "kin.zarr", "--set", "report_to=wandb"], "error: --set report_to=wandb: expected ", 2),
        (
            ["--cache", "kin.zarr", "--recipe", "papre"],
            "error: --recipe papre: no such objective; expected default, paper, or a TOML",
            2,
        ),
        (
            ["--cache", "kin.zarr", "--validate-steps", "0"],
            "error: --validate-steps 0: expected a whole number from 1",
            2,
        ),
    ],
)
def test_bad_calls_give_one_clear_line_and_leave_nothing(
    trained: Path, settings: BuildSettings, arguments: list[str], message: str, code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make_bad_caches(trained, settings)
    before = sorted(trained.iterdir())
    monkeypatch.chdir(trained)
    done = CliRunner().invoke(command.train, [*arguments, "--output", "new"])
    assert done.exit_code == code, done.output
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr
    assert sorted(trained.iterdir()) == before


def make_bad_caches(folder: Path, settings: BuildSettings) -> None:
    if (folder / "half.zarr").exists():
        return
    shutil.copytree(folder / "kin.zarr", folder / "half.zarr")
    (folder / "half.zarr" / "ledger" / "train-00001.json").unlink()
    shutil.copytree(folder / "kin.zarr", folder / "future.zarr")
    metadata = folder / "future.zarr" / "zarr.json"
    document = json.loads(metadata.read_text())
    document["attributes"]["comet"]["recipe"]["format"] = 3
    metadata.write_text(json.dumps(document))
    (folder / "plain").mkdir()
    build_cache(replace(settings, out=folder / "other.zarr", top_k=3, attention_layers="last"))


@pytest.mark.slow
def test_a_threshold_cache_trains_too(threshold_cache: Cache, tmp_path: Path) -> None:
    done = train("--cache", str(threshold_cache.root), "--steps", "40", "--output", "student", folder=tmp_path)
    assert done.code == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("validation KL"))
    estimated = (
        "The KL, weighted by the teacher's probability of these tokens, is estimated from up to 16 sampled "
        "tokens at each target."
    )
    assert estimated in done.stdout
    before, after, _ = (float(number) for number in row.split()[-3:])
    assert after < before


RECIPE = """
hard_weight = { start = 0.5, end = 0.0, shape = "cosine" }
temperature = [[0, 2.0], [0.5, 1.0]]
logit_loss = "residual"
layer_map = [[-1, 0]]
"""


@pytest.mark.slow
def test_an_own_recipe_with_frequent_validation_and_tensorboard(trained: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "mine.toml").write_text(RECIPE)
    options = ["--student", "nano", "--steps", "50", "--validate-steps", "20", "--recipe", "mine.toml"]
    options += ["--set", "report_to=tensorboard", "--set", "activation_checkpointing=True", "--output", "student"]
    done = train("--cache", str(trained / "kin.zarr"), *options, folder=tmp_path)
    assert done.code == 0, done.stderr
    assert "attention matched in layer (student ← teacher): 0 ← 3" in done.stdout
    card = " ".join((tmp_path / "student" / "README.md").read_text().split())
    assert "logits 1 (residual) at temperature 2, then 1 from 50% on, labels 0.5 to 0 (cosine)" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.toml", "student", "student.html", "student.runs", "student.toml"
    ]  # fmt: skip
    (run,) = (tmp_path / "student.runs").iterdir()
    told = EventAccumulator(str(run)).Reload()
    assert [event.step for event in told.Scalars("eval/kl")] == [20, 40, 50], "and once in the end"
    hard = [event.value for event in told.Scalars("train/hard")]
    losses = {name: [event.value for event in told.Scalars(f"train/{name}")] for name in ("loss", "kd", "attention")}
    rest = [loss - kd - a for loss, kd, a in zip(*losses.values(), strict=True)]
    weights = [r / h for r, h in zip(rest, hard, strict=True)]
    assert weights == sorted(weights, reverse=True) and weights[0] < 0.5 and 0 < weights[-1] < 0.05
    assert all(event.value > 0 for event in told.Scalars("train/tokens_per_second"))


def test_an_earlier_run_of_tensorboard_is_not_written_over(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "student.runs").mkdir()
    done = train("--cache", str(trained / "kin.zarr"), "--output", "student", folder=tmp_path)
    assert done.code == 2
    assert "student.runs: exists; choose another --output or remove it first" in done.stderr


def test_the_paper_s_recipe_says_where_it_differs(trained: Path) -> None:
    done = train("--cache", "kin.zarr", "--recipe", "paper", "--steps", "3", "--output", "paper", folder=trained)
    assert done.code == 0, done.stderr
    assert (
        "objective paper, which differs from the paper in this:\n"
        "  - logits are matched at masked positions only, as far as the cache keeps them\n"
        "  - of attention maps the cache holds a sample of queries and keys, pooled to m×m before the learned "
        "projection\nit begins with layers 0, 1, 2, 3 of the teacher's"
    ) in done.stdout, "nothing of how the student begins and of its precision, which are said as they are"
