"""comet-cache attach: the very cache that never lacked its text, or nothing at all."""

import lzma
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numcodecs
import pytest
from helpers.attaching import call, files, given
from helpers.commands import run
from helpers.settings import build_settings
from helpers.small_caches import change_json, prepare_cache, small_recipe
from helpers.tiny_teachers import TEACHERS

from cache_tools import Cache, build_cache, open_cache
from cache_tools.build.attach import attach
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.signals import TEXT_ARRAYS, TOKEN_ARRAYS
from cache_tools.store.copy import cut
from cache_tools.store.ledger import Extent, whole_extent, without_text
from cache_tools.verify.verify import verify


def test_a_cache_that_was_detached_and_attached_is_the_cache(whole: Cache, detached: Cache, corpus: Path) -> None:
    """Seed, views, limit and what was left out are those of the cache; nobody says them again."""
    assert not any((detached.root / spec.path / "c").exists() for s in detached.specs.values() for n, spec in s.items()
                   if n in TEXT_ARRAYS)  # fmt: skip
    assert detached.cache_id != whole.cache_id
    done = run(*call(detached, [corpus / "a.txt", corpus / "b.txt"], corpus / "test.txt"))
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert whole.cache_id in done.stdout
    assert open_cache(detached.root).cache_id == whole.cache_id
    assert files(detached.root) == files(whole.root)
    assert not list(detached.root.glob(".staging-*"))
    report = verify(detached.root, deep=True)
    assert (report.damage, report.notes, report.attaching) == ([], [], None)
    again = run(*call(detached, [corpus / "a.txt", corpus / "b.txt"], corpus / "test.txt"))
    assert again.exit_code == 0
    assert again.stdout.startswith(f"{detached.root}: already holds its text; nothing to attach\n")


@pytest.mark.parametrize("kind", TEACHERS)
def test_tokenizers_of_other_kinds(kind: str, tmp_path: Path, sample_text: Path) -> None:
    """Their special tokens, spelt in a text, are text."""
    (tmp_path / "teacher").mkdir()
    TEACHERS[kind](tmp_path / "teacher", sample_text)
    spelt = "Ni <mask> ya </s> n'iya <s>, [MASK] na [SEP] cyangwa [CLS].\n"
    (tmp_path / "text.txt").write_text(spelt * 3 + sample_text.read_text(encoding="utf-8"), encoding="utf-8")
    round_trip(tmp_path, tmp_path / "teacher", tmp_path / "text.txt")


def test_a_special_token_that_has_no_role(tmp_path: Path, sample_teacher: Path, sample_text: Path) -> None:
    shutil.copytree(sample_teacher, tmp_path / "teacher")
    change_json(tmp_path / "teacher/tokenizer_config.json", lambda c: c.update(extra_special_tokens=["▁ni"]))
    cache = round_trip(tmp_path, tmp_path / "teacher", sample_text)
    assert 17 in cache.recipe.special_ids


def round_trip(folder: Path, teacher: Path, text: Path) -> Cache:
    settings = build_settings(
        folder / "whole", teacher, text, max_tokens=900, seq_len=32, top_k=4, attention_layers="none"
    )
    cache = build_cache(settings)
    there = cut(cache, folder / "detached", without_text(cache.extent))
    assert attach(there, (str(text),)).cache_id == cache.cache_id
    return cache


def test_a_part_gets_the_text_of_the_part(whole: Cache, tmp_path: Path, corpus: Path) -> None:
    options = ("--max-tokens", 800, "--signals", "attention")
    assert run("subset", whole.root, tmp_path / "part", *options).exit_code == 0
    assert run("subset", whole.root, tmp_path / "kin.zarr", *options, "--detach-text").exit_code == 0
    attached = attach(open_cache(tmp_path / "kin.zarr"), *given(corpus))
    assert attached.cache_id == open_cache(tmp_path / "part").cache_id
    assert files(attached.root) == files(tmp_path / "part")


def test_a_copy_without_any_token_array(whole: Cache, tmp_path: Path, corpus: Path) -> None:
    """Where there are no keys, the seal alone decides."""
    extent = Extent(whole.recipe.recipe_id, ("sample_id",), whole.extent.shards)
    bare = cut(whole, tmp_path / "kin.zarr", extent)
    with pytest.raises(CometError, match=r"does not give its tokens: it gives \d+ rows of train, the cache has \d+;"):
        attach(bare, given(corpus)[0][:1], given(corpus)[1])
    attached = attach(bare, *given(corpus))
    assert attached.extent.arrays == (*TOKEN_ARRAYS, "sample_id")
    assert verify(bare.root, deep=True).damage == []


def test_a_text_in_another_file_is_the_text_all_the_same(
    whole: Cache, detached: Cache, corpus: Path, tmp_path: Path
) -> None:
    with lzma.open(tmp_path / "b.txt.xz", "wb") as file:
        file.write((corpus / "b.txt").read_bytes())
    shutil.copyfile(corpus / "a.txt", tmp_path / "renamed.txt")
    done = run(*call(detached, [tmp_path / "renamed.txt", tmp_path / "b.txt.xz"], corpus / "test.txt"))
    assert done.exit_code == 0, done.output
    assert (
        "note: b.txt.xz: sha256 differs from the one the cache was made from; whether it is the text all the same, its "
        "tokens will say\n"
    ) in done.output
    assert "renamed.txt" not in done.output
    assert open_cache(detached.root).cache_id == whole.cache_id


def change_word(lines: list[str]) -> list[str]:
    return [*lines[:20], lines[20].replace(" ", " umuntu ", 1), *lines[21:]]


FIRST = r"row \d+ of \w+ \(shard \d\) is the first that differs; here it begins '\w"
WRONG: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "one word more": (change_word, "here it begins .Uyu umuntu mukobwa"),
    "another order": (lambda lines: lines[::-1], FIRST),
    "other letters": (lambda lines: [line.upper() for line in lines], FIRST),
    "cut off": (
        lambda lines: lines[:40],
        r"(\d+ documents of [\d,]+ tokens), the cache was made from (?!\1)\d+ documents of",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_text_is_refused_and_the_difference_named(
    wrong: str, detached: Cache, corpus: Path, tmp_path: Path
) -> None:
    change, expected = WRONG[wrong]
    mine = tmp_path / "mine"
    shutil.copytree(corpus, mine)
    (mine / "a.txt").write_text("\n".join(change((corpus / "a.txt").read_text().splitlines())))
    if wrong == "cut off":
        (mine / "b.txt").write_text((corpus / "b.txt").read_text()[:1000])
    before = files(detached.root)
    with pytest.raises(CometError) as refused:
        attach(detached, *given(mine))
    message = str(refused.value)
    assert message.startswith(f"{detached.root}: the text does not give its tokens: ")
    assert "a.txt: sha256 differs from the one the cache was made from" in message
    assert message.endswith(". Nothing was changed")
    assert refused.value.exit_code == 1
    assert re.search(expected, message), message
    assert files(detached.root) == before
    assert not list(detached.root.glob(".staging-*"))


def test_files_in_another_order_are_named(detached: Cache, corpus: Path) -> None:
    (a, b), exclude = given(corpus)
    with pytest.raises(CometError, match=r"these files in another order; the cache was made with a\.txt, b\.txt"):
        attach(detached, (b, a), exclude)


def test_fewer_files_are_named(detached: Cache, corpus: Path) -> None:
    with pytest.raises(CometError, match=r"--exclude: 0 files, but the cache was made with 1 \(test\.txt\)"):
        attach(detached, given(corpus)[0])
    with pytest.raises(CometError, match=r"--text: 1 files, but the cache was made with 2 \(a\.txt, b\.txt\)"):
        attach(detached, given(corpus)[0][:1], given(corpus)[1])


@pytest.mark.parametrize("option", ["--text", "--exclude"])
def test_text_that_is_not_there(detached: Cache, corpus: Path, option: str) -> None:
    text = given(corpus)[0] if option == "--exclude" else ("nowhere.txt",)
    with pytest.raises(CometError, match=rf"^{option} nowhere\.txt: no such file or folder$") as refused:
        attach(detached, text, ("nowhere.txt",))
    assert refused.value.exit_code == 2


def test_a_half_built_cache_gets_its_text_and_is_then_completed(
    whole: Cache, settings: BuildSettings, corpus: Path, tmp_path: Path
) -> None:
    half = Path(shutil.copytree(whole.root, tmp_path / "half"))
    for record in sorted((half / "ledger").glob("train-*.json"))[1:]:
        record.unlink()
    shutil.rmtree(half / "train/input_ids/c/1", ignore_errors=True)
    done = run("push", half, tmp_path / "kin.zarr", "--detach-text")
    assert done.exit_code == 1
    assert "shards are not built yet; all others are copied" in done.stderr
    there = replace(settings, out=tmp_path / "kin.zarr")
    with pytest.raises(CometError, match=r"holds no text; attach the text first: comet-cache attach"):
        build_cache(there)
    attached = attach(open_cache(there.out), *given(corpus))
    assert attached.extent == whole_extent(whole.recipe)
    assert len(attached.missing("train")) == whole.recipe.shards("train") - 1
    (there.out / "README.md").unlink()
    assert build_cache(there).cache_id == whole.cache_id
    assert files(there.out) == files(whole.root)


def test_a_cache_without_a_shard_has_nothing_to_attach_to(tmp_path: Path, sample_text: Path) -> None:
    prepare_cache(tmp_path / "kin.zarr", small_recipe())
    extent = without_text(whole_extent(small_recipe()))
    change_json(tmp_path / "kin.zarr/ledger/extent.json", lambda e: e.update(arrays=list(extent.arrays)), sign=True)
    with pytest.raises(CometError, match=r"no shard is there to attach a text to; pull or merge some first$"):
        attach(open_cache(tmp_path / "kin.zarr"), (str(sample_text),))


def test_records_name_the_encoder(whole: Cache) -> None:
    record = whole.record("train", 0)
    assert record is not None and record.numerics["numcodecs"] == numcodecs.__version__


def test_a_detached_cache_is_not_anonymous(whole: Cache) -> None:
    """docs/sharing.md says how much a first guess tells."""
    arrays = whole.read_shard("train", 0)
    used = arrays["target_id"] >= 0
    guess = arrays["sample_id"][:, :, 0, 0][used]
    assert (guess == arrays["target_id"][used]).mean() > 0.3
