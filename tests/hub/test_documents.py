"""Every command and all Python of README.md, CONTRIBUTING.md and docs/ as they stand, one page after another, each in a
folder of its own; and that the pages fit the code."""

import json
import lzma
import re
import runpy
import shlex
from pathlib import Path

import pytest
from helpers import REPOSITORY
from helpers.hub_clients import Clients
from helpers.hub_data import card
from helpers.hub_server import Hub
from helpers.python_of_pages import python_of
from helpers.small_caches import small_recipe

from cache_tools.store.recipe import Recipe
from comet.student.family import XLM_R
from comet.student.shape import COMET, SMALLER, choose_shape, count_parameters

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"
WRITTEN = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PAGES = [*WRITTEN, NOTEBOOK]
OURS = {
    "comet-cache": ("cache_tools", []),
    "comet-train": ("comet", ["train"]),
    "comet-eval": ("comet", ["eval"]),
    "comet-export": ("comet", ["export"]),
}
ELSEWHERE = (
    "python3 -m venv",
    ". .venv/bin/activate",
    "pip install",
    "python -m pytest",
    "ruff",
    "mypy",
    "python docs/api.py",
)
"""What `.ci/run` or another test runs."""
FEW_STEPS = ["--steps", "4"]
"""Of every training; that students learn is for other tests to show."""
ONE_VIEW = ["--views", "1"]
"""Of every build; with so little text it would have sixteen."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """Of all its blocks, in their order; what `&&` joins one after another."""
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    joined = [part.strip() for line in lines for part in line.partition(" #")[0].split("&&")]
    ours = [line for line in joined if line and not line.startswith(ELSEWHERE)]
    return [shlex.split(line) for line in ours]


@pytest.fixture
def folder(tmp_path: Path, lines: list[str]) -> Path:
    """What a person has there: a corpus, and the files of a task."""
    with lzma.open(tmp_path / "corpus.txt.xz", "wt", encoding="utf-8") as corpus:
        corpus.write("\n".join(lines))
    (tmp_path / "afrisenti" / "kin").mkdir(parents=True)
    for name, content in tweets(lines).items():
        (tmp_path / "afrisenti" / "kin" / name).write_bytes(content)
    return tmp_path


def tweets(lines: list[str]) -> dict[str, bytes]:
    """AfriSenti's format, sentences that the corpus has, too."""
    sizes = {"train": (0, 24), "dev": (24, 32), "test": (32, 44)}
    return {
        f"{split}.tsv": "\n".join(["tweet\tlabel", *(f"{lines[i]}\t{label(i)}" for i in range(*size)), ""]).encode()
        for split, size in sizes.items()
    }


def label(index: int) -> str:
    return ("positive", "neutral", "negative")[index % 3]


@pytest.fixture(scope="module")
def sentiments(hub: Hub, lines: list[str]) -> None:
    files = {f"data/kin/{name.replace('dev', 'validation')}": content for name, content in tweets(lines).items()}
    splits = {split: f"data/kin/{split}.tsv" for split in ("train", "validation", "test")}
    hub.add("datasets/masakhane/afrisenti", files | {"README.md": card("cc-by-4.0", {"kin": splits})})


@pytest.mark.usefixtures("sentiments")
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name != "README.md")) for page in PAGES]
)
def test_all_that_a_page_shows_runs(page: Path, clients: Clients, folder: Path) -> None:
    """Its commands, and then its Python, which finds what they made."""
    for program, *arguments in commands(page):
        module, first = OURS[program]
        if any("://" in argument for argument in arguments):
            continue  # test_servers.py has the servers; that the options exist is tested below
        if program == "comet-train":
            arguments += FEW_STEPS
        if arguments[0] == "build" and "--views" not in arguments:
            arguments += ONE_VIEW
        ended = clients.run(module, [*first, *arguments], folder)
        assert ended.code == 0, (program, *arguments, ended)
    if python_of(page):
        ended = clients.run("helpers.python_of_pages", [str(page)], folder)
        assert ended.code == 0, ended


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_pages_have_commands() -> None:
    assert len(commands(REPOSITORY / "README.md")) >= 8
    assert len(commands(REPOSITORY / "docs" / "tutorial.md")) >= 10


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells and not [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]


def test_the_reference_is_that_of_the_docstrings() -> None:
    page = runpy.run_path(str(REPOSITORY / "docs" / "api.py"))["page"]
    assert (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8") == page(), "run python docs/api.py"


@pytest.fixture
def large() -> Recipe:
    """The recipe of a cache of AfroXLMR-large, as far as shapes follow from it."""
    return small_recipe(
        teacher_parameters=559_890_432,
        teacher_layers=24,
        teacher_hidden=1024,
        teacher_heads=16,
        start_layers=tuple(range(24)),
        start_width=512,
        start_neurons=2048,
    )


@pytest.mark.parametrize("page", ["SECURITY.md", "cache_tools/store/FORMAT.md"])
def test_every_test_that_a_promise_names_exists(page: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (REPOSITORY / page).read_text(encoding="utf-8"))
    assert named
    for path, name in named:
        assert f"def {name}(" in (REPOSITORY / path).read_text(encoding="utf-8"), (path, name)


def test_the_table_of_students_is_right(large: Recipe) -> None:
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    for name in (*SMALLER, COMET.name):
        shape = choose_shape(name, large, 16_000)
        sizes = f"{shape.layers} × {shape.hidden} | {count_parameters(shape, 16_000, XLM_R):,} |"
        assert [line for line in lines if line.startswith(f"| `{name}`") and line.endswith(sizes)]
    assert [1 - SMALLER[name] for name in SMALLER] == pytest.approx([0.15, 0.1, 0.05])


OPTION = re.compile(r"(?<![\w-])--[a-z0-9][a-z0-9-]+")
OTHERS = {"--nproc-per-node", "--dist", "--check", "--help", "--repo-type", "--small", "--slow"}
"""Of torchrun, pytest, ruff, hf, benchmarks, and of every command."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    from cache_tools.cli.main import main as comet_cache
    from comet.cli.evaluate import evaluate_models
    from comet.cli.export import export_model
    from comet.cli.train import train

    every = [*comet_cache.commands.values(), train, evaluate_models, export_model]
    known = {name for command in every for option in command.params for name in option.opts}
    assert set(OPTION.findall(page.read_text(encoding="utf-8"))) <= known | OTHERS
