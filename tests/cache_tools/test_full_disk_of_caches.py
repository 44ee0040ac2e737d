"""A disk that is full at any stage of a build, a pull, a subset or a merge: one line, and the same call goes on."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.settings import build_settings
from helpers.small_disk import enlarge, small_disk

from cache_tools import Cache, build_cache, open_cache
from cache_tools.cli.main import main
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings

COPIES = (["pull"], ["subset", "--signals", "logits"], ["merge"], ["push", "--i-may-share-this"])
SHARES = (0.02, 0.3, 0.6, 0.9)  # of what a cache takes


@pytest.fixture(scope="module")
def settings(sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    out = tmp_path_factory.mktemp("whole") / "kin.zarr"
    return build_settings(out, sample_teacher, sample_text, max_tokens=3000, seq_len=64, rows_per_shard=8)


@pytest.fixture(scope="module")
def whole(settings: BuildSettings) -> Cache:
    return build_cache(settings)


def kilobytes(cache: Cache, share: float) -> int:
    """As a file system in memory counts, in pages."""
    pages = sum(-(-path.stat().st_size // 4096) for path in cache.root.rglob("*") if path.is_file())
    return max(int(4 * pages * share), 20)


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
def test_a_build_goes_on_after_room_was_made(
    share: float, settings: BuildSettings, whole: Cache, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, kilobytes(whole, share)):
        here = replace(settings, out=disk / "kin.zarr")
        with pytest.raises(CometError, match="No space left on device") as caught:
            build_cache(here)
        assert str(disk) in str(caught.value) and "\n" not in str(caught.value)
        enlarge(disk)
        assert build_cache(here).cache_id == whole.cache_id
        assert [path.name for path in disk.iterdir()] == ["kin.zarr"]


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "command", [["pull"], ["subset", "--signals", "logits"], ["merge"], ["push", "--i-may-share-this"]]
)
def test_a_copy_goes_on_after_room_was_made(command: list[str], share: float, whole: Cache, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    name, *options = command
    call = [name, str(whole.root), str(disk / "copy.zarr"), *options]
    plain = CliRunner().invoke(main, [name, str(whole.root), str(tmp_path / "plain.zarr"), *options])
    assert plain.exit_code == 0, plain.output
    copied = open_cache(tmp_path / "plain.zarr")
    with small_disk(disk, kilobytes(copied, share)):
        failed = CliRunner().invoke(main, call)
        assert failed.exit_code == 1 and "cannot be written (No space left on device)" in failed.stderr, failed.output
        assert failed.stderr.count("error:") == 1 and "unexpected" not in failed.stderr
        enlarge(disk)
        done = CliRunner().invoke(main, call)
        assert done.exit_code == 0, done.output
        assert open_cache(disk / "copy.zarr").cache_id == copied.cache_id
        assert CliRunner().invoke(main, ["verify", str(disk / "copy.zarr")]).exit_code == 0
