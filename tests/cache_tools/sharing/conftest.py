"""A location that is no folder of this machine."""

from collections.abc import Iterator
from contextlib import suppress

import fsspec
import pytest


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of an empty folder in fsspec's memory."""
    yield "memory://lab/kin"
    with suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("lab", recursive=True)
