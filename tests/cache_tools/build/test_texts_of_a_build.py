"""Which of several texts a build reads, that it says so, and texts that are given twice."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.settings import build_settings

from cache_tools import build_cache, open_cache
from cache_tools.build.attach import attach
from cache_tools.build.dry_run import estimate
from cache_tools.cli.facts import describe
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.sharing.card import text_licences
from cache_tools.store.copy import cut
from cache_tools.store.ledger import without_text
from cache_tools.store.provenance import attach_command


@pytest.fixture
def texts(tmp_path: Path, sample_text: Path) -> Path:
    lines = sample_text.read_text(encoding="utf-8").splitlines()
    for name, part in {"a.txt": lines[:100], "b.txt": lines[100:200], "blank.txt": ["", " "]}.items():
        (tmp_path / name).write_text("\n".join(part), encoding="utf-8")
    return tmp_path


def settings(texts: Path, teacher: Path, *names: str, **changes: object) -> BuildSettings:
    options = {"attention_layers": "none", "start_layers": "none"} | changes
    return build_settings(texts / "kin.zarr", teacher, *(texts / name for name in names), **options)


def test_what_is_no_language_is_said_before_a_text_is_read(texts: Path, sample_teacher: Path) -> None:
    """A program that calls the package knows nothing of the command's own check."""
    asked = replace(settings(texts, sample_teacher, "no such text.txt"), language="kinyarwanda")
    with pytest.raises(CometError, match=r"--lang 'kinyarwanda' is not a language code: expected ISO 639-3"):
        build_cache(asked)


def test_a_text_behind_the_limit_is_said_not_to_be_read(
    texts: Path, sample_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = settings(texts, sample_teacher, "a.txt", "b.txt", max_tokens=700)
    said = "--text: no token comes from b.txt: 700 tokens were reached before (--max-tokens)\n"
    estimate(asked)
    assert said in capsys.readouterr().out
    cache = build_cache(asked)
    assert said in capsys.readouterr().out
    total = cache.provenance["text_tokens"]
    assert [text["tokens"] for text in cache.provenance["text"]] == [total, 0]
    assert describe(cache)["text"] == f"a.txt ({total:,} tokens), b.txt (0 tokens)"
    assert list(text_licences(cache.provenance)) == ["a.txt"]
    assert attach_command(cache.root, cache.provenance).endswith("--text a.txt")
    assert build_cache(asked).cache_id == cache.cache_id
    detached = cut(cache, texts / "detached.zarr", without_text(cache.extent))
    capsys.readouterr()
    assert attach(detached, (str(texts / "a.txt"),)).cache_id == cache.cache_id
    assert "differs" not in capsys.readouterr().out


def test_what_is_of_each_text_is_told(texts: Path, sample_teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = build_cache(settings(texts, sample_teacher, "a.txt", "blank.txt", "b.txt", max_tokens=None))
    assert "--text: no token comes from blank.txt: there is no text in it\n" in capsys.readouterr().out
    a, blank, b = (text["tokens"] for text in open_cache(cache.root).provenance["text"])
    assert a + b == cache.provenance["text_tokens"] and 0 == blank < b < a * 2
    alone = settings(texts, sample_teacher, "b.txt", max_tokens=None)
    assert build_cache(BuildSettings(**vars(alone) | {"out": texts / "b.zarr"})).provenance["text_tokens"] == b


@pytest.mark.parametrize("again", ["a.txt", "link.txt", "copy.txt", "folder"])
def test_a_text_given_twice_is_refused(again: str, texts: Path, sample_teacher: Path) -> None:
    (texts / "link.txt").symlink_to(texts / "a.txt")
    (texts / "folder").mkdir()
    for name in ("copy.txt", "folder/other.txt"):
        (texts / name).write_bytes((texts / "a.txt").read_bytes())
    with pytest.raises(CometError, match=rf"^--text \S+: the same text as {texts}/a.txt, which would count twice") as e:
        build_cache(settings(texts, sample_teacher, "a.txt", "b.txt", again))
    assert e.value.exit_code == 2
    assert not (texts / "kin.zarr").exists()


def test_a_text_given_twice_in_other_bytes_is_said(
    texts: Path, sample_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (texts / "a.txt.gz").write_bytes(gzip.compress((texts / "a.txt").read_bytes()))
    build_cache(settings(texts, sample_teacher, "a.txt", "a.txt.gz", max_tokens=None))
    assert "100 of 200 documents repeat another word for word: is a text given twice" in capsys.readouterr().out


def test_more_views_than_one_by_default_are_said(
    texts: Path, sample_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They multiply the teacher's time."""
    for views, is_said in ((None, True), (2, False)):
        found = estimate(settings(texts, sample_teacher, "a.txt", views=views, max_tokens=300))
        said = f"16 masked views of each row, since the text has only {found.text_tokens} tokens (--views)\n"
        assert (said in capsys.readouterr().out) == is_said
