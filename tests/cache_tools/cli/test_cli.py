"""comet-cache as a person meets it: help, info, the dry run, the sample."""

import json
import os
import pty
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import REPOSITORY

from cache_tools import open_cache
from cache_tools.cli import entry
from cache_tools.cli.facts import describe
from cache_tools.cli.main import main
from cache_tools.errors import printable
from cache_tools.store.staging import STAGING
from cache_tools.text.languages import LANGUAGES


@pytest.fixture(scope="module")
def sample_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `comet-cache build --lang kin --sample` gives, with its output beside it."""
    folder = tmp_path_factory.mktemp("sample")
    done = CliRunner().invoke(main, ["build", "--lang", "rw", "--sample", "--out", str(folder / "kin.zarr")])
    assert done.exit_code == 0, done.output
    (folder / "output.txt").write_text(done.stdout)
    return folder / "kin.zarr"


def test_the_sample_builds_and_says_what_it_is(sample_cache: Path) -> None:
    output = sample_cache.with_name("output.txt").read_text()
    assert f"{sample_cache}: complete" in output
    assert "Kinyarwanda (kin)" in output
    assert f"train a student:  comet-train --cache {sample_cache}" in output


def test_info_in_words_and_in_json(sample_cache: Path) -> None:
    words = CliRunner().invoke(main, ["info", str(sample_cache)])
    machine = CliRunner().invoke(main, ["info", str(sample_cache), "--json"])
    facts = json.loads(machine.stdout)
    cache = open_cache(sample_cache)
    assert facts["state"] == "complete"
    assert facts["cache_id"] == cache.cache_id
    assert facts["bytes"] == sum(path.stat().st_size for path in sample_cache.rglob("*") if path.is_file())
    assert facts["cache_id"] in words.stdout
    assert f" {facts['bytes']:,} ({facts['bytes'] / 1e6:.1f} MB)\n" in words.stdout


def test_the_options_of_the_sample_name_what_has_no_folder(sample_cache: Path) -> None:
    first, *_ = CliRunner().invoke(main, ["info", str(sample_cache), "--toml"]).stdout.splitlines()
    assert first == "# add the folders of these, which a cache does not record: teacher, text.txt"


def test_info_while_files_come_and_go(sample_cache: Path, tmp_path: Path) -> None:
    """Another build may be writing, and removing what it wrote."""
    cache = shutil.copytree(sample_cache, tmp_path / "kin.zarr")
    expected = describe(open_cache(cache))["bytes"]
    (cache / f"{STAGING}0").mkdir()
    (cache / f"{STAGING}0" / "sample_id").write_bytes(b"half")
    (cache / "removed").symlink_to(cache / "nowhere")
    assert describe(open_cache(cache))["bytes"] == expected


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cache_tools", *arguments]
    subprocess.run(command, stdout=theirs, stderr=theirs, env=os.environ | environment, check=False)
    os.close(theirs)
    with os.fdopen(ours, "rb") as terminal:
        return terminal.read1(2**16).decode()


def test_colours_are_for_terminals_whose_owner_wants_them(sample_cache: Path, tmp_path: Path) -> None:
    shown = on_a_terminal("info", str(sample_cache))
    assert f"{sample_cache}: \x1b[32mcomplete\x1b[0m" in shown and "\x1b[2mlanguage" in shown
    assert "\x1b[31merror:\x1b[0m" in on_a_terminal("info", str(tmp_path / "nothing"))
    assert "\x1b[32msound and complete" in on_a_terminal("verify", str(sample_cache))
    assert "\x1b" not in on_a_terminal("info", str(sample_cache), NO_COLOR="1")


def test_a_terminal_is_told_at_once_that_a_cache_is_complete(sample_cache: Path) -> None:
    shown = on_a_terminal("build", "--sample", "--seq-len", "32", "--out", str(sample_cache)).splitlines()
    complete = f"{sample_cache}: already complete; comparing it with the teacher and the text"
    assert shown[:2] == [complete, "loading torch …"]
    assert "--seq-len: asked 32, the cache has 128" in shown[-1]


def test_a_terminal_is_told_what_it_what_it_waits_for(sample_cache: Path) -> None:
    call = ["attach", str(sample_cache), "--text", "text.txt"]
    assert "loading torch …" in on_a_terminal(*call)
    assert CliRunner().invoke(main, call).stderr == ""


def test_a_reader_that_goes_away_is_no_error(sample_cache: Path) -> None:
    """As `head` does."""
    command = [sys.executable, "-m", "cache_tools", "info", str(sample_cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""


@pytest.mark.parametrize("command", ["info", "verify", "repair"])
def test_something_else_than_a_cache_is_one_line(tmp_path: Path, command: str) -> None:
    done = CliRunner().invoke(main, [command, str(tmp_path)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}: not a cache: it has no zarr.json; expected a folder that " + (
        "`comet-cache build` made\n"
    )


@pytest.mark.slow
def test_the_dry_run_estimates_and_leaves_nothing(
    sample_cache: Path, sample_text: Path, sample_teacher: Path, tmp_path: Path
) -> None:
    command = ["build", "--lang", "kin", "--sample", "--out", str(tmp_path / "kin.zarr"), "--dry-run"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    recipe = open_cache(sample_cache).recipe
    of_views, of_teacher, costs = done.stdout.splitlines()
    assert of_views.startswith("16 masked views of each row, ")
    assert of_teacher.startswith("the teacher predicts ")
    assert costs.startswith(f"dry run, nothing kept: {recipe.train_rows + recipe.validation_rows:,} rows from ")
    estimated = float(done.stdout.split("about ")[1].split(" MB")[0]) * 1e6
    actual = sum(path.stat().st_size for path in sample_cache.rglob("*") if path.is_file())
    assert estimated == pytest.approx(actual, rel=0.15)
    assert not list(tmp_path.iterdir())


def test_what_a_cache_says_cannot_drive_the_terminal() -> None:
    assert printable("red\x1b[31m\nline\x00\u202e") == r"red\x1b[31m\nline\x00\u202e"


def test_the_languages_in_words_and_in_json() -> None:
    words = CliRunner().invoke(main, ["languages"]).stdout.splitlines()
    assert words[0].split() == ["code", "name", "also", "Wikipedia", "FineWeb-2"]
    assert words[2].split() == ["swa", "Swahili", "sw", "swh", "sw", "swh_Latn"]
    assert words[12].startswith("run   Kirundi ") and max(map(len, words)) <= 82
    machine = json.loads(CliRunner().invoke(main, ["languages", "--json"]).stdout)
    by_code = {language["code"]: language["corpora"] for language in machine}
    assert len(by_code) == len(LANGUAGES) == 20
    assert by_code["swa"] == ["hf:wikimedia/wikipedia:20231101.sw", "hf:HuggingFaceFW/fineweb-2:swh_Latn"]
    assert by_code["eng"] == ["hf:wikimedia/wikipedia:20231101.en"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lang", "lug"], "error: --lang lug: no default corpus; give --text FILE_OR_FOLDER"),
        (["--lang", "kin", "--text", "hf:"], "error: --text hf:: expected hf:NAME or hf:NAME:CONFIG, such as hf:Hugg"),
        (["--lang", "yor", "--sample"], "error: --sample is in kin, found --lang yor"),
        (["--lang", "kin", "--sample", "--temperatures", "0"], "error: --temperatures 0: expected up to 16 different"),
        (["--lang", "kin", "--sample", "--mask-prob", "1"], "error: --mask-prob 1.0: expected a share between 0 and 1"),
        (["--lang", "kin", "--sample", "--device", "warp"], "error: --device warp: not available here"),
    ],
)
def test_wrong_calls_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["build", *arguments, "--out", str(tmp_path / "x.zarr")])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


SLOW = ("torch", "transformers", "datasets", "huggingface_hub", "pyarrow", "zarr", "sklearn", "numpy", "http.client")

IMPORTED = f"""
import json, runpy, sys
module, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(set(sys.modules) & set({SLOW}))))
"""


@pytest.mark.parametrize(
    "command",
    ["cache_tools --help", "cache_tools build --help", "cache_tools languages", "cache_tools info CACHE",
     "comet train --help", "comet eval --help"],
)  # fmt: skip
def test_what_only_says_something_imports_nothing_slow(command: str, sample_cache: Path) -> None:
    arguments = [str(sample_cache) if part == "CACHE" else part for part in command.split()]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *output, imported = done.stdout.splitlines()
    assert len(output) > 10 and json.loads(imported) == (["numpy"] if "CACHE" in command else [])


REFUSED = f"""
import json, runpy, sys
module, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert end.code == 2, end.code
print(json.dumps(sorted(set(sys.modules) & set({SLOW[:3]}))))
"""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("cache_tools build --lang kin --text nowhere.txt", "error: --text nowhere.txt: no such file or folder"),
        ("cache_tools build --lang kin --text CACHE/zarr.json", "error: --text CACHE/zarr.json: lies in the cache"),
        ("comet train --cache CACHE --output there", "error: there: exists; choose another --output"),
        ("comet train --cache CACHE --output CACHE/s", "error: --output CACHE/s: lies in the cache"),
        ("comet train --cache nowhere.zarr", "error: nowhere.zarr: no such cache"),
        ("comet train --cache CACHE --local-size x", "error: --local-size x"),
        ("comet train --cache CACHE --steps 0", "error: --steps 0: expected a whole number from 1"),
        ("comet train --cache CACHE --steps 1 --epochs 2", "error: --epochs and --steps: expected one of them"),
        ("comet train --cache CACHE --student smal", "error: --student smal: expected auto, comet, small, "),
        (
            "comet train --cache CACHE --recipe papr",
            "error: --recipe papr: no such objective; expected default, paper, or a TOML file",
        ),
        ("comet train --cache CACHE --set warmup", "error: --set warmup: expected name=value"),
        (
            "comet eval --model there --task afrisent --lang kin",
            "error: --task afrisent: no such task; expected afrisenti, masakhaner, ",
        ),
        ("comet eval --model there --task sib200 --lang kin --seeds 0", "error: --seeds 0: expected a whole number"),
        (
            "comet eval --model there --task sib200 --lang kin --results there",
            "error: --results there: expected a name",
        ),
        ("comet export nowhere", "error: nowhere: no such folder"),
        ("cache_tools build --lang kin --sample --views 0", "error: --views 0: expected 1 to 1000"),
        ("cache_tools build --lang swa --sample", "error: --sample is in kin"),
    ],
)
def test_what_is_wrong_without_torch_is_said_without_waiting_for_it(
    call: str, said: str, sample_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, *call.replace("CACHE", str(sample_cache)).split()],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done
    assert done.stderr.startswith(said.replace("CACHE", str(sample_cache))), done.stderr


def test_ours_is_not_shadowed_here() -> None:
    assert entry.shadowed_by() is None


def test_the_other_comet_is_named_when_it_shadows_ours(tmp_path: Path) -> None:
    """A real environment with the metadata and package folder that the translation metric installs."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "comet").mkdir()
    (site / "comet" / "__init__.py").write_text("")
    (site / "unbabel_comet-2.2.0.dist-info").mkdir()
    (site / "unbabel_comet-2.2.0.dist-info" / "METADATA").write_text("Name: unbabel-comet\nVersion: 2.2.0\n")
    (site / "cache_tools").symlink_to(REPOSITORY / "cache_tools")
    program = "from cache_tools.cli import entry; entry.comet_train()"
    path = os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))  # for numpy and zarr
    done = subprocess.run(
        [str(tmp_path / "env" / "bin" / "python"), "-c", program],
        env={"PYTHONPATH": f"{site}{os.pathsep}{path}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the name `comet` belongs to the package unbabel-comet (a translation metric)")
    assert done.stderr.count("\n") == 1
