"""A folder gets its name when it is whole, and never takes the place of another."""

from pathlib import Path

import pytest

from cache_tools.errors import CometError
from comet.publish import published_folder


def test_it_is_as_readable_as_any_new_folder(tmp_path: Path) -> None:
    with published_folder(tmp_path / "new" / "model") as folder:
        (folder / "weights").write_bytes(b"1")
        (folder / "weights").chmod(0o600)
        assert not (tmp_path / "new" / "model").exists()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    for ours, plain in (("new/model", "plain"), ("new/model/weights", "plain/file")):
        assert (tmp_path / ours).stat().st_mode == (tmp_path / plain).stat().st_mode
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), published_folder(tmp_path / "model"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def collide(path: Path) -> None:
    with published_folder(path) as folder:
        (folder / "ours").touch()
        path.mkdir()
        (path / "theirs").touch()


def test_what_came_to_exist_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(CometError, match="model: was created meanwhile; remove it"):
        collide(tmp_path / "model")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/theirs"]
