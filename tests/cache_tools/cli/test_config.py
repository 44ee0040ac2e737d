"""Options from a TOML file: every one of them, refused when there is no such, and less than the command line."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cache_tools import open_cache
from cache_tools.cli.build import build
from cache_tools.cli.config import NOT_IN_FILES, as_toml, options_of
from cache_tools.cli.main import main
from cache_tools.errors import CometError
from comet.cli.train import train


def written(folder: Path, text: str) -> Path:
    (folder / "options.toml").write_text(text, encoding="utf-8")
    return folder / "options.toml"


def test_values_of_every_kind_by_either_spelling(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'lang = "kin"\ntext = ["a.txt", "b.txt"]\nexclude = "dev.tsv"\ntop_k = 32\nmask-prob = 0.2\nsample = true\n'
        'temperatures = [1, 2.5]\nattention-layers = [-1, -7]\nmax-hours = 3\nout = "x.zarr"\n',
    )
    assert options_of(path, build.params) == {
        "language": "kin",
        "text": ["a.txt", "b.txt"],
        "exclude": ["dev.tsv"],
        "top_k": 32,
        "mask_prob": 0.2,
        "sample": True,
        "temperatures": "1,2.5",
        "attention_layers": "-1,-7",
        "max_hours": 3,
        "out": "x.zarr",
    }
    path = written(tmp_path, "[set]\nwarmup_steps = 3\nreport_to = 'none'\nbf16 = true\n[recipe]\nhard_weight = 0.5\n")
    assert options_of(path, train.params) == {
        "settings": ["warmup_steps=3", "report_to='none'", "bf16=True"],
        "objective": {"hard_weight": 0.5},
    }


@pytest.mark.parametrize("command", [build, train])
def test_every_option_can_stand_in_a_file(command: click.Command, tmp_path: Path) -> None:
    names = {option for p in command.params for option in p.opts if option.startswith("--")}
    names -= {f"--{name}" for name in NOT_IN_FILES}
    flags = {option for p in command.params if getattr(p, "is_flag", False) for option in p.opts}
    lines = [f"{name[2:]} = {'true' if name in flags else 1}" for name in sorted(names)]
    assert len(options_of(written(tmp_path, "\n".join(lines)), command.params)) == len(names) > 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk = 3", "unknown option 'topk'; did you mean top-k?"),
        ("attention_kys = 3", "unknown option 'attention_kys'; did you mean attention-keys?"),
        ("xyzzy = 3", "unknown option 'xyzzy'; expected one of attention-keys, attention-layers, "),
        ("config = 'x'", "unknown option 'config'"),
        ("top-k = 3\ntop_k = 4", "top-k is given twice, with dashes and with underscores"),
        ("top-k = true", "top-k = true: expected a string or a number"),
        ("top-k = 2026-01-01", 'top-k = "2026-01-01": expected a string or a number'),
        ("sample = 'no'", 'sample = "no": expected true or false'),
        ("text = [['a']]", 'text = [["a"]]: expected a list of strings or numbers'),
        ("[top-k]\na = 1", 'top-k = {"a": 1}: expected a value, not a table'),
        ("top-k = ", "not TOML: "),
        ("lang = '\xff'", "not TOML: "),
        ('lang = "a\\u0000b"', 'lang = "a\\u0000b": expected text without NUL'),
        ('text = ["a", "a\\u0000b"]', 'text = ["a", "a\\u0000b"]: expected text without NUL'),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CometError) as caught:
        options_of(path, build.params)
    assert str(caught.value).startswith(f"--config {path}: {message}")
    done = CliRunner().invoke(main, ["build", "--config", str(path)])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: --config {path}: ") and done.stderr.count("\n") == 1


def test_a_byte_order_mark_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text("\ufefflang = 'kin'\n", encoding="utf-8")
    assert options_of(tmp_path / "options.toml", build.params) == {"language": "kin"}
    with pytest.raises(CometError, match=rf"^--config {tmp_path}: cannot be read \(Is a directory\)"):
        options_of(tmp_path, build.params)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(train, ["--config", str(tmp_path / "no.toml")])
    assert (done.exit_code, done.stderr) == (
        2,
        f"error: --config {tmp_path}/no.toml: cannot be read (No such file or directory)\n",
    )


def test_the_command_line_wins(tmp_path: Path) -> None:
    path = written(tmp_path, 'lang = "yor"\ntop-k = 0\nsample = true\nseq-len = 4\n')
    done = CliRunner().invoke(main, ["build", "--config", str(path)])
    assert done.stderr.startswith("error: --sample is in kin, found --lang yor")
    done = CliRunner().invoke(main, ["build", "--config", str(path), "--lang", "kin", "--seq-len", "64"])
    assert done.stderr.startswith("error: --top-k 0: expected 2 to 16384")


def test_a_cache_says_with_which_options_it_is_built_again(
    sample_text: Path, sample_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "kin.txt").write_text(sample_text.read_text())
    (tmp_path / "in" / "dev.tsv").write_text("Mama yazindutse kare ateka icyayi cy'abana.")
    (tmp_path / "in" / "teacher").symlink_to(sample_teacher)
    command = ["build", "--lang", "rw", "--teacher", str(tmp_path / "in" / "teacher"), "--views", "2", "--top-k", "8"]
    command += ["--text", str(tmp_path / "in" / "kin.txt"), "--exclude", str(tmp_path / "in" / "dev.tsv")]
    command += ["--temperatures", "1,2", "--max-tokens", "700", "--attention-layers", "-1,-3"]
    command += ["--mask-prob", "0.2", "--seed", "5"]
    assert CliRunner().invoke(main, [*command, "--out", str(tmp_path / "first.zarr")]).exit_code == 0
    toml = CliRunner().invoke(main, ["info", str(tmp_path / "first.zarr"), "--toml"]).stdout
    assert str(tmp_path) not in toml

    (tmp_path / "in" / "teacher").rename(tmp_path / "in" / sample_teacher.name)
    monkeypatch.chdir(tmp_path / "in")
    done = CliRunner().invoke(main, ["build", "--config", str(written(tmp_path, toml)), "--out", "again.zarr"])
    assert done.exit_code == 0, done.output
    assert open_cache(Path("again.zarr")).cache_id == open_cache(tmp_path / "first.zarr").cache_id


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "lang": 'k"i\\n\u00e9\x1b\x7f\x9b\u202e😊',
        "text": ["a b", "c"],
        "top-k": 3,
        "mask-prob": 1e-7,
        "teacher": None,
        "sample": False,
    }
    read = options_of(written(tmp_path, as_toml(options)), build.params)
    del options["teacher"]
    assert read == {{"lang": "language"}.get(name, name).replace("-", "_"): value for name, value in options.items()}
