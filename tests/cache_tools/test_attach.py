"""comet-cache attach: the very cache that never lacked its text, or nothing at all."""

import errno
import lzma
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numcodecs
import pytest
from builds import Running, digests
from click.testing import CliRunner, Result
from crashes import crashing
from small_caches import change_json, flip_byte, prepare_cache, small_recipe
from tiny_teachers import TEACHERS

import cache_tools.attach
from cache_tools import Cache, build_cache, open_cache
from cache_tools.attach import attach
from cache_tools.cli import main
from cache_tools.errors import CometError
from cache_tools.restore import read_again
from cache_tools.settings import BuildSettings
from cache_tools.store.copying import cut
from cache_tools.store.layout import TEXT_ARRAYS, TOKEN_ARRAYS, encode_chunk
from cache_tools.store.ledger import SEAL, Extent, file_record, token_digest, whole_extent, without_text
from cache_tools.verify import verify


@pytest.fixture(scope="module")
def lines(sample_text: Path) -> list[str]:
    return sample_text.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> Path:
    """Two files of text, more than the cache takes, and an evaluation file that three documents share words with."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text("\n".join(lines[:60]))
    (folder / "b.txt").write_text("\n".join(lines[60:]))
    (folder / "test.txt").write_text("\n".join([lines[4], lines[7], lines[61]]))
    return folder


@pytest.fixture(scope="module")
def settings(sample_teacher: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    return BuildSettings(
        out=tmp_path_factory.mktemp("whole") / "kin.zarr",
        language="kin",
        teacher=str(sample_teacher),
        text=(str(corpus / "a.txt"), str(corpus / "b.txt")),
        exclude=(str(corpus / "test.txt"),),
        max_tokens=1500,
        seq_len=48,
        views=3,
        seed=7,
        rows_per_shard=16,
        top_k=8,
        attention_size=8,
        device="cpu",
    )


@pytest.fixture(scope="module")
def whole(settings: BuildSettings) -> Cache:
    return build_cache(settings)


@pytest.fixture
def detached(whole: Cache, tmp_path: Path) -> Cache:
    return cut(whole, tmp_path / "kin.zarr", without_text(whole.extent))


def call(cache: Cache, text: list[Path], exclude: Path | None) -> list[str]:
    options = [part for one in text for part in ("--text", str(one))]
    return ["attach", str(cache.root), *options, *(["--exclude", str(exclude)] if exclude else [])]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, str]:
    """Without locks, and without what a process that only seems to have died still holds."""
    found = {path: digest for path, digest in digests(folder).items() if digest != "folder"}
    return {path: d for path, d in found.items() if not path.endswith("lock") and ".staging-" not in path}


def given(corpus: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (str(corpus / "a.txt"), str(corpus / "b.txt")), (str(corpus / "test.txt"),)


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
    assert again.stdout.startswith(f"{detached.root}: holds its text already; nothing to attach\n")


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
    cache = build_cache(
        BuildSettings(
            out=folder / "whole", language="kin", teacher=str(teacher), text=(str(text),), max_tokens=900, seq_len=32,
            top_k=4, attention_layers="none", device="cpu",
        )
    )  # fmt: skip
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


def test_a_death_before_any_file_operation_leaves_a_detached_cache_or_the_whole(
    whole: Cache, tmp_path: Path, corpus: Path
) -> None:
    """Called again it is the whole, and what was there already stays as it was written."""
    expected = files(whole.root)
    cache = cut(whole, tmp_path / "count" / "kin.zarr", without_text(whole.extent))
    with crashing(cache.root.parent, None) as watch:
        attach(cache, *given(corpus))
    at_end = range(watch.operations - 24, watch.operations)  # where the files get their names
    points = sorted({*random.Random(1).sample(range(watch.operations - 24), 8), *at_end})
    deaths, states = 0, set()
    for at in points:
        cache = cut(whole, tmp_path / str(at) / "kin.zarr", without_text(whole.extent))
        with crashing(cache.root.parent, at) as died:
            attach(cache, *given(corpus))
        deaths += died.crashed
        left = files(cache.root)
        assert {path for path, digest in left.items() if digest != expected[path]} <= {"ledger/extent.json"}
        assert open_cache(cache.root).extent.has_text == (left == expected)
        report = verify(cache.root)
        assert report.damage == []
        states.add(any("of a text that is being attached" in note for note in report.notes))
        stamps = {path: (cache.root / path).stat().st_ino for path in left if path != "ledger/extent.json"}
        assert attach(open_cache(cache.root), *given(corpus)).cache_id == whole.cache_id
        assert files(cache.root) == expected
        assert {path: (cache.root / path).stat().st_ino for path in stamps} == stamps
        assert verify(cache.root).damage == []
    assert deaths == len(points)
    assert states == {False, True}


def test_killed_at_any_moment_and_called_again(whole: Cache, detached: Cache, corpus: Path, tmp_path: Path) -> None:
    arguments = call(detached, [corpus / "a.txt", corpus / "b.txt"], corpus / "test.txt")
    for delay in (0.05, 0.2, 0.35):
        running = Running(arguments, tmp_path / "log")
        running.process.join(delay)
        running.send(signal.SIGKILL)
        now = open_cache(detached.root)
        assert now.extent in (detached.extent, whole.extent)
        assert now.extent.has_text == (files(detached.root) == files(whole.root))
    ended = Running(arguments, tmp_path / "log").wait()
    assert (ended.code, ended.stderr) == (0, ""), ended
    assert files(detached.root) == files(whole.root)
    assert not list(detached.root.glob(".staging-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(
    detached: Cache, corpus: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = files(detached.root)

    def read(*arguments: object) -> object:
        os.kill(os.getpid(), number)
        return read_again(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_tools.attach, "read_again", read)
    with pytest.raises(CometError, match=r"kin\.zarr: stopped; it is detached as before, run the same command again$"):
        attach(detached, *given(corpus))
    assert files(detached.root) == before
    assert not list(detached.root.glob(".staging-*"))


def test_a_full_disk_is_one_line_and_leaves_it_detached(
    whole: Cache, detached: Cache, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files(detached.root)
    monkeypatch.setattr(os, "fsync", full)
    done = run(*call(detached, [corpus / "a.txt", corpus / "b.txt"], corpus / "test.txt"))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {detached.root}: cannot be written (No space left on device); ")
    monkeypatch.undo()
    assert files(detached.root) == before
    assert attach(detached, *given(corpus)).cache_id == whole.cache_id


def test_a_half_built_cache_gets_the_text_of_what_is_there_and_is_built_to_the_end(
    whole: Cache, settings: BuildSettings, corpus: Path, tmp_path: Path
) -> None:
    half = Path(shutil.copytree(whole.root, tmp_path / "half"))
    for record in sorted((half / "ledger").glob("train-*.json"))[1:]:
        record.unlink()
    shutil.rmtree(half / "train/input_ids/c/1", ignore_errors=True)
    done = run("push", half, tmp_path / "kin.zarr", "--detach-text")
    assert done.exit_code == 1
    assert "shards are not built yet; what there is has arrived" in done.stderr
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


def test_what_a_cache_holds_may_not_change_meanwhile(
    whole: Cache, detached: Cache, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(cache: Cache, *arguments: object) -> object:
        change_json(
            cache.root / "ledger/extent.json",
            lambda e: e.update(shards={"train": [], "validation": [[0, 1]]}),
            sign=True,
        )
        return read_again(cache, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_tools.attach, "read_again", read)
    with pytest.raises(CometError, match=r"what it holds has changed meanwhile; run the same command again$"):
        attach(detached, *given(corpus))
    assert not open_cache(detached.root).extent.has_text
    assert open_cache(detached.root).extent.shards["train"] == ()


def first_file(cache: Cache, name: str) -> Path:
    return cache.root / cache.specs["train"][name].chunk_path(0)


@pytest.mark.parametrize("kind", ["another", "link", "pipe"])
def test_files_in_the_way_are_refused_and_stay(detached: Cache, corpus: Path, tmp_path: Path, kind: str) -> None:
    """A hostile copy, whose extent does not list them. Nothing else reads them either."""
    file = first_file(detached, "target_id")
    file.parent.mkdir(parents=True)
    if kind == "link":
        (tmp_path / "outside").write_bytes(b"mine")
        file.symlink_to(tmp_path / "outside")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(b"another")
    said = {"another": "in the way: not the file that the ledger describes", "link": "a link;", "pipe": "a pipe"}[kind]
    with pytest.raises(CometError, match=rf"{file}: {said}"):
        attach(open_cache(detached.root), *given(corpus))
    assert os.path.lexists(file)
    (damage,) = verify(detached.root).damage
    assert str(file) in damage.message
    with pytest.raises(CometError, match=r"this copy does not hold target_id$"):
        open_cache(detached.root).read_shard("train", 0, ["target_id"])
    if kind == "link":
        assert (tmp_path / "outside").read_bytes() == b"mine"


def test_a_folder_that_leads_outside_is_refused(detached: Cache, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (detached.root / "train/target_id/c").symlink_to(tmp_path / "outside")
    with pytest.raises(CometError, match=r"train/target_id/c: a link; a cache holds files only"):
        attach(open_cache(detached.root), *given(corpus))
    assert list((tmp_path / "outside").iterdir()) == []


def other_tokens(cache: Cache) -> tuple[dict[str, bytes], str]:
    """Files of token arrays with another target in row 0, and their digest."""
    arrays = cache.read_shard("train", 0, TOKEN_ARRAYS)
    arrays["target_id"] = arrays["target_id"].copy()
    arrays["target_id"][0, 0] = 5
    specs = cache.specs["train"]
    return {name: encode_chunk(specs[name], arrays[name]) for name in TOKEN_ARRAYS}, token_digest(arrays)


def forge_digest(root: Path, digest: str) -> None:
    change_json(root / SEAL, lambda seal: seal["token_digests"]["train"].__setitem__(0, digest), sign=True)


def test_a_forged_digest_is_not_believed(whole: Cache, detached: Cache, corpus: Path) -> None:
    """Even where files that fit it lie in their place, with a record that fits them."""
    forged, digest = other_tokens(whole)
    forge_digest(detached.root, digest)
    expected = (
        r"the text does not give its tokens: those of shard train 0 are not the sealed ones, though every row has its "
        r"key: the cache is damaged or forged\. Nothing was changed$"
    )
    with pytest.raises(CometError, match=expected):
        attach(open_cache(detached.root), *given(corpus))
    for name in TEXT_ARRAYS:
        file = first_file(detached, name)
        file.parent.mkdir(parents=True)
        file.write_bytes(forged[name])
    described = {"bytes": len(forged["target_id"]), "sha256": file_record(forged["target_id"]).sha256}
    change_json(detached.root / "ledger/train-00000.json", lambda r: r["files"].update(target_id=described), sign=True)
    with pytest.raises(CometError, match=expected):
        attach(open_cache(detached.root), *given(corpus))
    assert not open_cache(detached.root).extent.has_text


@pytest.mark.parametrize("name", TOKEN_ARRAYS)
def test_files_that_another_encoder_wrote_are_not_taken_for_the_cache(detached: Cache, corpus: Path, name: str) -> None:
    """The tokens are right, but the cache would have another id than the one that it is known by."""
    record = detached.root / "ledger/train-00001.json"
    change_json(
        record,
        lambda r: (r["files"][name].update(sha256="0" * 64), r["numerics"].update(numcodecs="0.15.0")),
        sign=True,
    )
    with pytest.raises(
        CometError,
        match=r"the tokens of shard train 1 come out right, but not as the very files of its commit record: they were "
        rf"encoded by another version of numcodecs \(0\.15\.0; here {re.escape(numcodecs.__version__)}\), or the "
        r"record is forged; install that version and run the same command again\. Nothing was changed$",
    ):
        attach(open_cache(detached.root), *given(corpus))
    assert not open_cache(detached.root).extent.has_text
    change_json(record, lambda r: r["numerics"].pop("numcodecs"), sign=True)
    with pytest.raises(CometError, match=r"another version of numcodecs \(not recorded; here "):
        attach(open_cache(detached.root), *given(corpus))


def test_records_name_the_encoder(whole: Cache) -> None:
    record = whole.record("train", 0)
    assert record is not None and record.numerics["numcodecs"] == numcodecs.__version__


def test_another_tokenizer_is_refused(detached: Cache, corpus: Path) -> None:
    path = "tokenizer/tokenizer_config.json"
    change_json(detached.root / path, lambda config: config.update(eos_token="<pad>", sep_token="<pad>"))
    data = (detached.root / path).read_bytes()
    described = {"bytes": len(data), "sha256": file_record(data).sha256}
    change_json(detached.root / SEAL, lambda seal: seal["files"].update({path: described}), sign=True)
    with pytest.raises(CometError, match=r"its tokenizer is not that of its recipe: expected sha256 and special ids"):
        attach(open_cache(detached.root), *given(corpus))


def test_damaged_keys_are_damage(detached: Cache, corpus: Path) -> None:
    flip_byte(first_file(detached, "row_key"))
    with pytest.raises(CometError, match=r"row_key/c/0: \d+ bytes that do not match the ledger"):
        attach(detached, given(corpus)[0][:1], given(corpus)[1])


def test_a_detached_cache_is_not_anonymous(whole: Cache) -> None:
    """docs/sharing.md says how much a first guess tells."""
    arrays = whole.read_shard("train", 0)
    used = arrays["target_id"] >= 0
    guess = arrays["sample_id"][:, :, 0, 0][used]
    assert (guess == arrays["target_id"][used]).mean() > 0.3
