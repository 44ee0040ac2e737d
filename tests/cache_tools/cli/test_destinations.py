"""Where commands write: never into a cache, nor into what they read, nor around it; found before anything is read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.builds import digests
from helpers.commands import run
from helpers.small_caches import make_cache, small_recipe

from cache_tools import open_cache
from cache_tools.errors import CometError
from cache_tools.settings import LocalCache
from cache_tools.sharing.remote_shards import open_remote
from cache_tools.sharing.retry import RetryPolicy
from cache_tools.verify.verify import verify

COPIES = {
    "pull": ["pull"],
    "push": ["push", "--i-may-share-this"],
    "subset": ["subset", "--signals", "logits"],
    "merge": ["merge"],
}
PLACES: dict[str, Callable[[Path], object]] = {
    "in it": lambda root: root / "part.zarr",
    "deep in it": lambda root: root / "train" / "new" / "part.zarr",
    "by a link": lambda root: root.parent / "link" / "part.zarr",
    "by a way round": lambda root: root.parent / "other" / ".." / root.name / "part.zarr",
    "itself": lambda root: root,
    "itself by a link": lambda root: root.parent / "link",
    "around it": lambda root: root.parent,
    "in another cache": lambda root: root.parent / "other.zarr" / "part.zarr",
    "no name": lambda root: ".",
    "a file": lambda root: root.parent / "file",
    "below a file": lambda root: root.parent / "file" / "part.zarr",
    "a folder of other things": lambda root: root.parent / "things",
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, another one, a link to the first, a file and a folder of other things."""
    folder = tmp_path_factory.mktemp("disk")
    for name, seed in (("kin.zarr", 0), ("other.zarr", 1)):
        make_cache(folder / name, small_recipe(seed=seed))
    (folder / "link").symlink_to(folder / "kin.zarr")
    (folder / "file").write_text("x")
    (folder / "things").mkdir()
    (folder / "things" / "notes.txt").write_text("x")
    return folder


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", COPIES)
def test_a_copy_lands_apart_from_caches_or_not_at_all(name: str, place: str, caches: Path) -> None:
    root, before = caches / "kin.zarr", digests(caches)
    command, *options = COPIES[name]
    done = run(command, root, PLACES[place](root), *options)
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.output
    assert digests(caches) == before


@pytest.mark.parametrize("name", ["pull", "push"])
def test_a_url_of_a_file_is_a_folder_too(name: str, caches: Path) -> None:
    root, before = caches / "kin.zarr", digests(caches)
    done = run(name, root, f"file://{root}/part.zarr", *COPIES[name][1:])
    assert done.exit_code == 2 and f"DST {root}/part.zarr: lies in the cache {root}, which holds" in done.stderr
    if name == "pull":
        done = run(name, f"file://{root}", caches)
        assert done.exit_code == 2 and f"DST {caches}: contains {root}; give a folder beside it" in done.stderr
    assert digests(caches) == before


@pytest.mark.parametrize("name", COPIES)
def test_a_fresh_disk_with_nothing_but_a_system_s_own_files_will_do(name: str, caches: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "lost+found").mkdir(parents=True)
    (disk / ".DS_Store").write_bytes(b"\0")
    command, *options = COPIES[name]
    for _ in range(2):  # the second finds all of it there
        done = run(command, caches / "kin.zarr", disk, *options)
        assert done.exit_code == 0, done.output
    report = verify(disk)
    assert report.damage == [] and report.notes[0].startswith("not part of the cache, and no damage: .DS_Store, lost")


def test_a_copy_that_was_stopped_goes_on(caches: Path, tmp_path: Path) -> None:
    root, part = caches / "kin.zarr", tmp_path / "part.zarr"
    shutil.copytree(root / "vocabulary", part / "vocabulary")
    (part / ".staging-0").mkdir()
    assert run("subset", root, part, "--signals", "logits").exit_code == 0
    assert verify(part).damage == []


def build(*options: object) -> list[str]:
    """A build whose teacher is nowhere: any other error came before it was sought."""
    return ["build", "--lang", "kin", "--teacher", "./nowhere", *map(str, options)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts" / "more").mkdir(parents=True)
    (tmp_path / "texts" / "kin.txt").write_text("Muraho neza cyane.\n")
    (tmp_path / "link").symlink_to(tmp_path / "texts")
    return tmp_path / "texts"


def refused(call: list[str]) -> str:
    done = run(*call)
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.output
    return done.stderr.removeprefix("error: ").strip()


def test_a_build_lands_apart_from_caches_and_texts(texts: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = caches / "kin.zarr"
    for out in (root / "new.zarr", caches / "link" / "new.zarr", root / "train" / "new.zarr"):
        assert "lies in the cache" in refused(build("--text", texts, "--out", out))
        assert "lies in the cache" in refused([*build("--text", texts, "--out", out), "--dry-run"])
        assert "lies in the cache" in refused(build("--text", texts, "--out", texts.parent / "n", "--push-to", out))
    monkeypatch.chdir(texts)
    for out in ("new.zarr", texts / "more" / "new.zarr", texts.parent / "link" / "new.zarr"):
        assert refused(build("--text", texts, "--out", out)).endswith(f"lies in {texts}; give a folder beside it")
        found = refused(build("--text", "kin.txt", "--exclude", texts, "--out", out))
        assert found.endswith(f"lies in {texts}; give a folder beside it")
    assert "a folder of that" not in refused(build("--text", "kin.txt", "--out", "new.zarr"))
    assert "is " in refused(build("--text", texts, "--out", texts))
    assert sorted(path.name for path in texts.rglob("*")) == ["kin.txt", "more"]


def test_a_build_is_pushed_apart_from_itself(texts: Path) -> None:
    out = texts.parent / "new.zarr"
    for to, words in {
        out: f"is {out} itself",
        out / "copy": f"lies in {out}",
        f"file://{out}/copy": f"lies in {out}",
        texts.parent: f"contains {out}",
        ".": "expected a path that ends in a name",
    }.items():
        said = refused(build("--text", texts / "kin.txt", "--out", out, "--push-to", to))
        assert said.startswith("--push-to ") and words in said
    assert not out.exists()


def test_a_cache_is_no_text(texts: Path, caches: Path) -> None:
    for text in (caches / "kin.zarr", caches / "kin.zarr" / "tokenizer", caches / "link"):
        said = refused(build("--text", text, "--out", texts.parent / "new.zarr"))
        assert f"--text {text}: lies in the cache {caches / 'kin.zarr'}, whose files are not texts" in said


def test_shards_from_afar_are_not_kept_in_a_cache(caches: Path) -> None:
    before = digests(caches)
    for folder in (caches / "kin.zarr", caches / "kin.zarr" / "local", caches / "link" / "local"):
        with pytest.raises(CometError, match=r"^--local-cache .*(lies in|is) the cache") as caught:
            open_remote("http://127.0.0.1:9/kin.zarr", LocalCache(folder, 10**9), RetryPolicy())
        assert caught.value.exit_code == 2
    assert digests(caches) == before


def test_a_path_of_another_type() -> None:
    with pytest.raises(CometError, match=r"^expected the path of a cache, found None"):
        open_cache(None)  # type: ignore[arg-type]
