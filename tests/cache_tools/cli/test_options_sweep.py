"""Every option and argument of every command of comet-cache, with values that it can hardly mean."""

from pathlib import Path

import click
import pytest
from helpers.small_caches import make_cache, small_recipe
from helpers.sweep import VALUES, answer, cases

from cache_tools import open_cache
from cache_tools.cli.main import main
from cache_tools.store.copy import cut
from cache_tools.store.ledger import without_text

CALLS: dict[str, tuple[list[str], dict[str, str]]] = {
    "build": ([], {"--lang": "kin", "--text": "text.txt", "--teacher": "./nowhere", "--out": "new.zarr"}),
    "languages": ([], {}),
    "info": (["nowhere.zarr"], {}),
    "verify": (["c.zarr"], {"--teacher": "./nowhere"}),
    "repair": (["c.zarr"], {"--teacher": "./nowhere"}),
    "push": (["nowhere.zarr", "new.zarr"], {}),
    "pull": (["nowhere.zarr", "new.zarr"], {}),
    "subset": (["nowhere.zarr", "new.zarr"], {}),
    "merge": (["nowhere.zarr", "new.zarr"], {}),
    "attach": (["detached.zarr"], {"--text": "text.txt", "--exclude": "text.txt"}),
}
"""A call of each command that ends before any work: a teacher, a source or a tokenizer is not there."""

LEGAL = {
    ("build", "--lang", "nan"), ("build", "--lang", "infinite"),  # codes of languages
    ("build", "--attention-layers", "zero"), ("build", "--attention-layers", "negative"),
    ("build", "--start-layers", "zero"), ("build", "--start-layers", "negative"),
    ("attach", "--text", "a point"), ("attach", "--exclude", "a point"),  # a folder with text
    ("build", "--seed", "zero"), ("verify", "--seed", "zero"), ("repair", "--seed", "zero"),
    *(("build", option, name) for option in ("--out", "--push-to")
      for name in ("nan", "infinite", "minus infinite", "negative", "zero", "a float beyond all", "letters")),
}  # fmt: skip
"""Command, option and name of a value that may be: then the rest of the call is what is wrong."""

ABSENT = (
    "no such folder",
    "no such cache",
    "no cache there",
    "not in the hub's cache",
    "cannot be loaded",
    "tokenizer.json",
)
NAMED_OTHERWISE = {("build", "--text", "a point"): "--out", ("build", "--exclude", "a point"): "--out"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "text.txt").write_text("Muraho neza cyane.\n")
    make_cache(folder / "c.zarr", small_recipe())
    cache = open_cache(folder / "c.zarr")
    cut(cache, folder / "detached.zarr", without_text(cache.extent))
    return folder


def test_every_command_is_swept() -> None:
    assert set(CALLS) == set(main.commands)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_no_value_of_an_option_gives_more_than_a_line(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arguments, options = CALLS[name]
    for option, value in cases(main.commands[name]):
        given = options | {option: VALUES[value]}
        call = [name, *arguments, *(part for pair in given.items() for part in pair)]
        found, case = answer(main, call, folder), (name, option, value)
        assert found.left == [], case
        if case in LEGAL:
            assert found.code in (1, 2) and any(words in found.error for words in ABSENT), (case, found.error)
        elif option == "--teacher":
            assert found.code in (1, 2) and "teacher" in found.error, (case, found.error)  # 1: the hub is not there
        else:
            assert found.code == 2 and NAMED_OTHERWISE.get(case, option) in found.error, (case, found.error)


@pytest.mark.parametrize("name", [name for name, (arguments, _) in CALLS.items() if arguments])
def test_no_value_of_an_argument_gives_more_than_a_line(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    arguments, options = CALLS[name]
    required = [part for pair in options.items() for part in pair]
    for position in range(len(arguments)):
        for value in VALUES.values():
            given = [*arguments[:position], value, *arguments[position + 1 :]]
            found = answer(main, [name, *required, "--", *given], folder)
            assert found.code in (1, 2) and (found.error or found.stdout) and found.left == [], (given, found)


def test_the_sweep_reaches_every_option() -> None:
    swept = {option for option, _ in cases(main.commands["build"])}
    valued = [one for one in main.commands["build"].params if isinstance(one, click.Option) and not one.is_flag]
    assert len(swept) == len(valued) > 20
