"""Nothing is trained from a cache without its text; once that is attached, everything is as it was."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cache_tools import Cache, open_cache
from cache_tools.build.attach import attach
from cache_tools.errors import CometError
from cache_tools.store.copy import cut
from cache_tools.store.ledger import without_text
from comet import StudentConfig, distill, open_for_training
from comet.cli.train import train
from comet.train.dataset import CacheRows, shards_of


@pytest.fixture
def detached(cache: Cache, tmp_path: Path) -> Cache:
    return cut(cache, tmp_path / "my kin.zarr", without_text(cache.extent))


def test_a_training_says_what_to_do_first(detached: Cache, tmp_path: Path) -> None:
    done = CliRunner().invoke(train, ["--cache", str(detached.root), "--output", str(tmp_path / "student")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {detached.root}: holds no text; attach the text first: comet-cache attach '{detached.root}' "
        "--text text.txt\n"
    )
    assert not (tmp_path / "student").exists()
    with pytest.raises(CometError, match="attach the text first"):
        distill([detached], StudentConfig(tmp_path / "student", steps=1))


def test_what_is_read_after_an_attach_is_what_was_read_before(cache: Cache, detached: Cache, sample_text: Path) -> None:
    attach(detached, (str(sample_text),))
    (attached,) = open_for_training([detached.root])
    for group in ("train", "validation"):
        before, after = (
            CacheRows(shards_of([one], group), cache.extent.arrays) for one in (open_cache(cache.root), attached)
        )
        assert len(before) == len(after) > 0
        rows = range(len(before))
        for name, array in before.__getitems__(rows).items():
            np.testing.assert_array_equal(after.__getitems__(rows)[name], array)
