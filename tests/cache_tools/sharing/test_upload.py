"""`--push-to`: another location that is a sound cache at every moment of the build, and nothing waits for it."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from helpers.builds import digests
from helpers.pushes import HASTY, committed

from cache_tools import build_cache, open_cache
from cache_tools.build import pipeline
from cache_tools.build.workers import Worker
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.sharing.locations.location import locate
from cache_tools.signals import family_of
from cache_tools.store.copy import cut
from cache_tools.store.ledger import CARD, Extent
from cache_tools.store.records import write_durably


def without_locks(folder: Path) -> dict[str, str]:
    """All files but locks and the card."""
    return {path: digest for path, digest in digests(folder).items() if not path.endswith(("lock", CARD))}


@pytest.mark.parametrize("url", ["{}", "file://{}"])
def test_what_is_pushed_while_building_is_the_cache(settings: BuildSettings, tmp_path: Path, url: str) -> None:
    there = tmp_path / "there" / "kin.zarr"
    cache = build_cache(settings, push_to=url.format(there))
    assert without_locks(there) == without_locks(settings.out)
    assert open_cache(there).cache_id == cache.cache_id
    assert f"| cache id | `{cache.cache_id}` |" in (there / CARD).read_text()


def test_every_shard_is_pushed_as_soon_as_it_is_committed(
    settings: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, commit = tmp_path / "there", pipeline.commit_shard

    def once(*arguments: Any) -> None:
        if committed(settings.out) == 1:
            raise CometError("the machine is needed elsewhere")
        commit(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "commit_shard", once)
        with pytest.raises(CometError, match="the machine is needed elsewhere"):
            build_cache(settings, push_to=str(there))
    here, copy = open_cache(settings.out), open_cache(there)
    done = [p for p in (("validation", 0), ("train", 0)) if here.record(*p) is not None]
    assert len(done) == 1
    for name, array in copy.read_shard(*done[0]).items():
        np.testing.assert_array_equal(array, here.read_shard(*done[0])[name])
    build_cache(settings, push_to=str(there))
    assert without_locks(there) == without_locks(settings.out)


@pytest.mark.slow
def test_shards_committed_before_are_pushed_too(settings: BuildSettings, tmp_path: Path) -> None:
    build_cache(settings)
    build_cache(settings, push_to=str(tmp_path / "there"))
    assert without_locks(tmp_path / "there") == without_locks(settings.out)


@pytest.mark.slow
def test_a_half_pushed_shard_is_pushed_again(settings: BuildSettings, tmp_path: Path) -> None:
    there = tmp_path / "there"
    build_cache(settings, push_to=str(there))
    (there / "ledger/train-00000.json").unlink()
    (there / "train/topk_id/c/0/0/0").write_bytes(b"half")
    build_cache(settings, push_to=str(there))
    assert without_locks(there) == without_locks(settings.out)


def test_a_shard_that_is_there_already_stays(settings: BuildSettings, tmp_path: Path) -> None:
    there = tmp_path / "there"
    build_cache(replace(settings, batch_size=2, out=there))
    before = {path: (there / path).stat().st_mtime_ns for path in without_locks(there) if (there / path).is_file()}
    build_cache(replace(settings, batch_size=2), push_to=str(there))
    assert before == {path: (there / path).stat().st_mtime_ns for path in before}


def test_another_cache_is_never_touched(settings: BuildSettings, tmp_path: Path) -> None:
    there = tmp_path / "there"
    build_cache(replace(settings, top_k=4, out=there))
    before = digests(there)
    said = r"there: exists and is another cache than the one asked for \(--top-k: asked 8, the cache has 4\); choose "
    with pytest.raises(CometError, match=said + "another --push-to, or give the options it was begun with"):
        build_cache(settings, push_to=str(there))
    assert digests(there) == before


def test_foreign_files_are_never_overwritten(settings: BuildSettings, tmp_path: Path) -> None:
    there = tmp_path / "there"
    write_durably(there / "zarr.json", b"mine")
    with pytest.raises(
        CometError, match=r"there: holds another cache; choose another location \(.*there/zarr.json: not a"
    ):
        build_cache(settings, push_to=str(there))
    assert (there / "zarr.json").read_bytes() == b"mine"


@pytest.mark.slow
def test_a_damaged_file_is_not_pushed(settings: BuildSettings, tmp_path: Path) -> None:
    build_cache(settings)
    shutil.copyfile(settings.out / "train/topk_id/c/1/0/0", settings.out / "train/topk_id/c/0/0/0")
    said = (
        rf"--push-to {settings.out}/train/topk_id/c/0/0/0: more than the .* damaged; {settings.out} keeps what is built"
    )
    with pytest.raises(CometError, match=said):
        build_cache(settings, push_to=str(tmp_path / "there"))
    assert not (tmp_path / "there/ledger/train-00000.json").exists()


def test_an_unwritable_folder_is_refused_before_anything_is_built(settings: BuildSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CometError, match=r"--push-to .*file/kin.zarr: cannot be created \(Not a directory\)"):
        build_cache(settings, push_to=str(tmp_path / "file" / "kin.zarr"))
    assert not settings.out.exists()


def test_the_text_s_licence_is_asked_before_anything_is_done(
    settings: BuildSettings, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CometError) as caught:
        build_cache(settings, push_to=memory)
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        f"--push-to {memory}: the licence of text.txt (licence not stated) is unknown or restricts its use; if you may "
        "share it, say so with --i-may-share-this"
    )
    assert (
        "a cache holds its text word for word; this one holds that of text.txt (licence not stated)"
        in capsys.readouterr().out
    )
    assert not settings.out.exists()
    assert locate(memory, HASTY).is_empty()
    cache = build_cache(settings, push_to=memory, i_may_share_this=True)
    said = capsys.readouterr().out
    assert f"{memory}: complete, cache id {cache.cache_id}\n" in said
    assert f"| cache id | `{cache.cache_id}` |" in fsspec.filesystem("memory").cat(f"/lab/kin/{CARD}").decode()


def test_credentials_are_written_and_said_nowhere(
    settings: BuildSettings, tmp_path: Path, memory: str, capfd: pytest.CaptureFixture[str]
) -> None:
    url = memory.replace("memory://lab", "memory://annabel-lee:s3cret@lab") + "?token=t0ken"
    pushed = build_cache(settings, push_to=url, i_may_share_this=True)
    build_cache(replace(settings, out=tmp_path / "other"), push_to=url, i_may_share_this=True)
    with pytest.raises(CometError) as caught:
        build_cache(replace(settings, out=tmp_path / "third", top_k=4), push_to=url, i_may_share_this=True)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    system = fsspec.filesystem("memory")
    there = [system.cat(path) for path in system.find("/")]
    assert len(there) > len(pushed.seal.files) and len(files) > 2 * len(pushed.seal.files)
    shown = "".join(capfd.readouterr()) + str(caught.value)
    assert "memory://lab/kin: complete" in shown and "memory://lab/kin: exists and is another cache" in shown
    for secret in ("s3cret", "t0ken", "annabel-lee"):
        assert not any(secret.encode() in content for content in files + there)
        assert secret not in shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "http://127.0.0.1:9/kin",
            "http://127.0.0.1:9/kin: HTTP is read-only; push to a folder that the server",
        ),
        (
            "hf://datasets/lab/kin",
            "hf://datasets/lab/kin: every file would be a commit of its own; push to a folder, t",
        ),
        ("gopher://lab/kin", "gopher://lab/kin: fsspec does not support gopher://"),
    ],
)
def test_places_that_nobody_can_push_to(settings: BuildSettings, url: str, said: str) -> None:
    with pytest.raises(CometError, match=f"^{re.escape(said)}") as caught:
        build_cache(settings, push_to=url, i_may_share_this=True)
    assert caught.value.exit_code == 2
    assert not settings.out.exists()


@pytest.mark.slow
def test_a_worker_pushes_its_own_shards_and_names_those_missing(
    settings: BuildSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What lies beside them on a shared disk is not there before its own worker has brought it."""
    cache, there = build_cache(settings), tmp_path / "there"
    for index, left, said in ((0, 2, "2 shards are not there yet"), (1, 0, f"complete, cache id {cache.cache_id}")):
        build_cache(settings, Worker(index, 2), push_to=str(there))
        assert committed(there) == 5 - left
        assert f"{there}: {said}\n" in capsys.readouterr().out
        assert (f"| cache id | `{cache.cache_id}` |" in (there / CARD).read_text()) == (not left)


def test_a_part_without_arrays_is_not_built_on(settings: BuildSettings, tmp_path: Path) -> None:
    cache = build_cache(settings)
    logits = [name for name in cache.extent.arrays if family_of(name) != "attention"]
    cut(cache, tmp_path / "there", replace(cache.extent, arrays=tuple(logits)))
    with pytest.raises(
        CometError, match=r"there: holds a part of a cache, without attention_gap, attention_weight, which cannot be bu"
    ):
        build_cache(settings, push_to=str(tmp_path / "there"))


@pytest.mark.slow
def test_the_first_shards_of_a_cache_are_built_on(settings: BuildSettings, tmp_path: Path) -> None:
    """What lies there is a smaller complete cache; it becomes the whole."""
    cache = build_cache(settings)
    few = Extent(cache.extent.recipe_id, cache.extent.arrays, {"train": ((0, 2),), "validation": ((0, 1),)})
    cut(cache, tmp_path / "there", few)
    fresh = build_cache(replace(settings, out=tmp_path / "fresh"), push_to=str(tmp_path / "there"))
    assert fresh.cache_id == cache.cache_id == open_cache(tmp_path / "there").cache_id


@pytest.mark.slow
def test_other_sealed_files_of_the_same_recipe_are_refused(settings: BuildSettings, tmp_path: Path) -> None:
    """Two machines have prepared the same text, each by itself."""
    build_cache(replace(settings, batch_size=2))
    build_cache(replace(settings, out=tmp_path / "there", batch_size=3))
    with pytest.raises(
        CometError, match=r"there: holds another cache than .*kin.zarr \(zarr.json sha256: .* choose an"
    ):
        build_cache(settings, push_to=str(tmp_path / "there"))
