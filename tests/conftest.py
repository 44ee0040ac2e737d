"""What several tests share: the small real teacher that ships with the package, and where the real data lies."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY

import cache_tools.sample

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, as `one_thread` is of this one
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"  # the servers of the tests are here
SAMPLE = Path(cache_tools.sample.__file__).parent
SHARED = REPOSITORY.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", metavar="all|K/N", help="Run the slow tests, too: all, or the K-th of N shares of them.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests that were not asked for, by the option or by name."""
    asked = config.getoption("slow")
    if asked == "all" or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    share = share_of(slow, asked) if asked else []
    left_out = set(slow) - set(share)
    config.hook.pytest_deselected(items=[item for item in slow if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def share_of(items: list[pytest.Item], asked: str) -> list[pytest.Item]:
    try:
        number, of = map(int, asked.split("/"))
        if 1 <= number <= of:
            return items[number - 1 :: of]
    except ValueError:
        pass
    raise pytest.UsageError(f"--slow is all or K/N with 1 <= K <= N, for example 2/7, not {asked!r}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU is here")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices, and a machine that may be busy: torch's threads would wait for each other more than compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sample_teacher() -> Path:
    """A real small masked LM for Kinyarwanda: 4 layers, hidden 192, vocabulary 8,000."""
    return SAMPLE / "teacher"


@pytest.fixture(scope="session")
def sample_text() -> Path:
    """300 Kinyarwanda sentences, one a line."""
    return SAMPLE / "text.txt"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real text, vocabulary and teacher that may not be part of the project. Skips where they are absent."""
    if not (SHARED / "teacher" / "model.safetensors").is_file():
        pytest.skip(f"the shared data is not here: {SHARED} (real text and a real teacher, not redistributable)")
    return SHARED
