"""A finished training that is given again with --resume, as by a batch system, is no error."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cache_tools import Cache
from comet.cli.train import train

OPTIONS = ("--student", "nano", "--steps", "2", "--dtype", "float32", "--set", "logging_steps=1")


def again(cache: Cache, output: Path, *options: str) -> Result:
    return CliRunner().invoke(train, ["--cache", str(cache.root), "--output", str(output), *options])


@pytest.fixture(scope="module")
def trained(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "student"
    assert again(cache, output, *OPTIONS).exit_code == 0
    return output


@pytest.mark.parametrize("options", [(), ("--save-minutes", "1"), ("--batch-size", "16")])
def test_a_finished_training_is_said_to_be_finished(cache: Cache, trained: Path, options: tuple[str, ...]) -> None:
    done = again(cache, trained, *OPTIONS, "--resume", *options)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"{trained}: this training has finished; there is nothing to resume\n"


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        ("--resume", *OPTIONS, "--seed", "1"),
        ("--resume", *OPTIONS, "--learning-rate", "0.1"),
        ("--resume", *OPTIONS[:2], *OPTIONS[4:]),
        ("--resume", *OPTIONS[:6]),
        ("--resume", *OPTIONS, "--recipe", "paper"),
    ],
    ids=["no resume", "seed", "rate", "steps", "setting", "objective"],
)
def test_another_training_is_refused_as_ever(cache: Cache, trained: Path, options: tuple[str, ...]) -> None:
    refused = again(cache, trained, *options)
    assert refused.exit_code == 2
    assert "exist; choose another --output or remove them first" in refused.stderr


@pytest.mark.parametrize("left", ["checkpoints", "no options", "damaged options"])
def test_what_does_not_show_that_it_has_finished_is_refused(
    cache: Cache, trained: Path, tmp_path: Path, left: str
) -> None:
    output = tmp_path / "student"
    shutil.copytree(trained, output)
    if left == "checkpoints":
        (tmp_path / "student.checkpoints").mkdir()
    if left != "no options":
        used = trained.with_name("student.toml").read_text(encoding="utf-8").replace(str(trained), str(output))
        (tmp_path / "student.toml").write_text(used if left == "checkpoints" else "=", encoding="utf-8")
    refused = again(cache, output, *OPTIONS, "--resume")
    assert refused.exit_code == 2
    assert "choose another --output or remove" in refused.stderr
