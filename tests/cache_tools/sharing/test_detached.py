"""A cache without its text under every command: it works on what is there, or says what to do."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest
from click.testing import Result
from helpers.commands import run
from helpers.crashes import crashing
from helpers.small_caches import NO_START, commit, flip_byte, make_cache, prepare_cache, shard_keys, small_recipe

from cache_tools import Cache, open_cache
from cache_tools.cli.verify import as_lines
from cache_tools.errors import CometError
from cache_tools.sharing.parts import NOT_ANONYMOUS
from cache_tools.signals import TEXT_ARRAYS
from cache_tools.store.ledger import CARD, whole_extent, with_tokens, without_text
from cache_tools.verify.verify import verify

RECIPE = small_recipe(**NO_START)
ATTACH = "comet-cache attach {} --text corpus.txt --exclude 'my test.tsv'"
MADE_FROM = {
    "language": "kin",
    "text": [{"name": "corpus.txt"}],
    "excluded": [{"name": "my test.tsv"}],
    "documents": 9,
    "excluded_documents": 1,
    "excluded_run_words": 8,
}


@pytest.fixture
def whole(tmp_path: Path) -> Cache:
    make_cache(tmp_path / "whole", RECIPE, attributes={"provenance": MADE_FROM})
    return open_cache(tmp_path / "whole")


@pytest.fixture
def detached(whole: Cache, tmp_path: Path) -> Cache:
    return ready(run("subset", whole.root, tmp_path / "detached", "--detach-text"), tmp_path / "detached")


def ready(done: Result, folder: Path) -> Cache:
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return open_cache(folder)


def refusal(done: Result, code: int = 2) -> str:
    assert done.exit_code == code, done.output
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


def text_files(folder: Path) -> list[Path]:
    """The chunks of the text; its arrays stay declared, since what was sealed stays."""
    return [path for name in TEXT_ARRAYS for path in folder.glob(f"*/{name}/c/**/*") if path.is_file()]


def test_what_lacks_is_the_text(whole: Cache, detached: Cache) -> None:
    assert set(whole.extent.arrays) - set(detached.extent.arrays) == {"input_ids", "target_id"}
    assert detached.extent.shards == whole.extent.shards
    assert with_tokens(detached.extent, RECIPE) == whole.extent == whole_extent(RECIPE)
    assert len(text_files(whole.root)) == 8 and text_files(detached.root) == []
    for key in shard_keys(RECIPE):
        assert detached.record(*key) == whole.record(*key)
        arrays = detached.read_shard(*key)
        assert arrays.keys() == set(detached.extent.arrays)
        assert all(array.tobytes() == whole.read_shard(*key)[name].tobytes() for name, array in arrays.items())


def test_info_says_it_and_how_to_attach(detached: Cache) -> None:
    said = ATTACH.format(detached.root)
    assert f"  text detached      {said}\n" in run("info", detached.root).stdout
    assert json.loads(run("info", detached.root, "--json").stdout)["text_detached"] == said


def test_what_a_cache_says_cannot_make_a_command_of_its_own(tmp_path: Path) -> None:
    """Names are quoted for a shell, and control characters shown."""
    hostile = {"text": [{"name": "a'; rm -rf ~ #\n\x1b[31m"}], "language": "kin"}
    make_cache(tmp_path / "whole", RECIPE, attributes={"provenance": hostile})
    assert run("push", tmp_path / "whole", tmp_path / "kin", "--detach-text").exit_code == 0
    quoted = r"""--text 'a'"'"'; rm -rf ~ #\n\x1b[31m'"""
    assert f"comet-cache attach {tmp_path / 'kin'} {quoted}\n" in run("info", tmp_path / "kin").stdout
    assert f"\ncomet-cache attach kin.zarr {quoted}\n" in (tmp_path / "kin" / CARD).read_text()


@pytest.mark.parametrize(("count", "said"), [(0, "FILE_OR_FOLDER"), (3, "0 --text 1 --text 2"), (4, "FILE_OR_FOLDER")])
def test_many_texts_are_not_all_named(tmp_path: Path, count: int, said: str) -> None:
    texts = {"text": [{"name": str(i)} for i in range(count)]}
    make_cache(tmp_path / "whole", RECIPE, attributes={"provenance": texts})
    detached = ready(run("subset", tmp_path / "whole", tmp_path / "kin", "--detach-text"), tmp_path / "kin")
    with pytest.raises(CometError, match=rf"kin: holds no text; attach the text first: comet-cache .* --text {said}$"):
        detached.require_text()


@pytest.mark.parametrize("deep", [False, True])
def test_verify_looks_at_what_is_there(whole: Cache, detached: Cache, deep: bool) -> None:
    report = verify(detached.root, deep)
    assert (report.shards, report.missing, report.notes) == (4, 0, [])
    if not deep:  # of random numbers most values cannot be right
        assert report.damage == []
        assert verify(whole.root).files - report.files == len(text_files(whole.root))
    last = as_lines(report)[-1]
    assert last == f"it holds no text; to train from it attach the text first: {ATTACH.format(detached.root)}"
    facts = json.loads(run("verify", detached.root, "--json").stdout)
    assert (facts["state"], facts["text_detached"]) == ("complete", True)
    assert json.loads(run("verify", whole.root, "--json").stdout)["text_detached"] is False


def test_a_damaged_shard_is_dropped_and_pulled_again(whole: Cache, detached: Cache) -> None:
    flip_byte(detached.root / "train/topk_id/c/1/0/0")
    cache_id = detached.cache_id
    assert "`comet-cache repair" in run("verify", detached.root).stdout
    done = run("repair", detached.root)
    assert done.stdout.splitlines() == [
        "dropped shard train 1",
        "1 shards dropped; the same `comet-cache pull` fetches them again",
    ]
    assert not any(path.is_file() for path in detached.root.glob("train/*/c/1/**/*"))
    assert ready(run("pull", whole.root, detached.root, "--detach-text"), detached.root).cache_id == cache_id


def test_text_that_was_half_attached_goes_with_its_shard(whole: Cache, detached: Cache) -> None:
    """Else a detached cache would hold text that nobody looks for."""
    for path in text_files(whole.root):
        there = detached.root / path.relative_to(whole.root)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
    report = verify(detached.root)
    assert report.damage == []
    (note,) = report.notes
    assert note.startswith("8 files of the text, which this copy is not meant to hold: of an attach or a pull")
    flip_byte(detached.root / "train/topk_id/c/1/0/0")
    assert run("repair", detached.root).exit_code == 0
    assert not (detached.root / "train/input_ids/c/1/0").exists()
    assert (detached.root / "train/length/c/1").exists()
    assert verify(detached.root).damage == []


def test_text_of_a_shard_that_nobody_committed_is_named(whole: Cache, detached: Cache) -> None:
    (detached.root / "ledger/train-00001.json").unlink()
    (detached.root / "train/target_id/c/1").mkdir(parents=True)
    shutil.copyfile(whole.root / "train/target_id/c/1/0", detached.root / "train/target_id/c/1/0")
    report = verify(detached.root)
    assert report.damage == []
    assert [note for note in report.notes if note.startswith("1 files of the text, which this copy is not meant to")]


def test_other_text_than_the_ledger_describes_is_damage(whole: Cache, detached: Cache) -> None:
    (detached.root / "train/target_id/c/1").mkdir(parents=True)
    (detached.root / "train/target_id/c/1/0").write_bytes((whole.root / "train/target_id/c/0/0").read_bytes())
    (damage,) = verify(detached.root).damage
    assert damage.message.startswith(f"{detached.root}/train/target_id/c/1/0: not the file that the ledger describes")


def test_the_teacher_is_not_run_on_it(detached: Cache, sample_teacher: Path) -> None:
    said = refusal(run("verify", detached.root, "--teacher", sample_teacher))
    assert said == f"{detached.root}: holds no text; attach the text first: {ATTACH.format(detached.root)}"


def test_parts_of_it_have_no_text_either(whole: Cache, detached: Cache, tmp_path: Path) -> None:
    part = ready(run("subset", detached.root, tmp_path / "a", "--max-tokens", 64), tmp_path / "a")
    same = ready(run("subset", whole.root, tmp_path / "b", "--max-tokens", 64, "--detach-text"), tmp_path / "b")
    pulled = ready(run("pull", whole.root, tmp_path / "c", "--max-tokens", 64, "--detach-text"), tmp_path / "c")
    assert part.cache_id == same.cache_id == pulled.cache_id
    assert (part.extent.shards["train"], part.extent.has_text) == (((0, 1),), False)


def test_parts_of_it_are_merged(whole: Cache, detached: Cache, tmp_path: Path) -> None:
    part = ready(run("subset", detached.root, tmp_path / "part", "--max-tokens", 64), tmp_path / "part")
    merged = ready(run("merge", part.root, detached.root, tmp_path / "merged"), tmp_path / "merged")
    assert merged.cache_id == detached.cache_id
    said = refusal(run("merge", part.root, whole.root, tmp_path / "both"))
    assert said.startswith(f"{whole.root}: holds other tokens or arrays than {part.root} (arrays: length, ")
    assert said.endswith("; attach the text to both first, with comet-cache attach")
    assert not (tmp_path / "both").exists()


def test_pulling_the_whole_brings_the_text(whole: Cache, detached: Cache) -> None:
    cache = ready(run("pull", whole.root, detached.root), detached.root)
    assert cache.cache_id == whole.cache_id
    assert len(text_files(detached.root)) == 8


def test_pulling_it_pins_the_cache_with_its_text_or_without(whole: Cache, detached: Cache, tmp_path: Path) -> None:
    for number, pin in enumerate((whole.cache_id, detached.cache_id)):
        there = tmp_path / str(number)
        assert ready(run("pull", detached.root, there, "--id", pin), there).cache_id == detached.cache_id
    said = refusal(run("pull", detached.root, tmp_path / "other", "--id", "0" * 64), 1)
    assert "expected the cache id 000" in said


def test_shards_without_text_do_not_join_a_cache_that_has_it(whole: Cache, detached: Cache, tmp_path: Path) -> None:
    part = ready(run("subset", whole.root, tmp_path / "part", "--max-tokens", 64), tmp_path / "part")
    said = refusal(run("pull", detached.root, part.root), 1)
    assert said == (
        f"{part.root}: shard train 1 would lack input_ids, target_id, which {detached.root} does not hold either; "
        "choose another location, attach the text there, and merge the two"
    )
    assert open_cache(part.root).cache_id == part.cache_id


def test_push_says_what_it_does_not_move_and_asks_for_no_licence(whole: Cache, tmp_path: Path) -> None:
    asked = refusal(run("push", whole.root, tmp_path / "there"))
    assert asked.endswith("say so with --i-may-share-this; if not, leave the text out with --detach-text")
    done = run("push", whole.root, tmp_path / "there", "--detach-text")
    there = ready(done, tmp_path / "there")
    lines = done.stdout.splitlines()
    assert lines[0] == f"no text is copied; that of corpus.txt (licence not stated) stays here. {NOT_ANONYMOUS}"
    assert lines[2:] == [f"{there.root}: complete, without its text", f"  cache id           {there.cache_id}"]
    assert text_files(there.root) == []
    assert run("push", there.root, tmp_path / "further").stdout.splitlines()[0] == lines[0]


def test_its_card_says_how_to_attach(whole: Cache, tmp_path: Path) -> None:
    there = ready(run("push", whole.root, tmp_path / "there", "--detach-text"), tmp_path / "there")
    card = (there.root / CARD).read_text()
    assert f"| cache id | `{there.cache_id}` |\n| cache id with its text | `{whole.cache_id}` |\n" in card
    assert f"does not hold it: anyone who has the text can re-attach it. {NOT_ANONYMOUS}\n" in card
    assert "word for word" not in card
    assert f"--id {there.cache_id}\n{ATTACH.format('kin.zarr')}\ncomet-cache verify kin.zarr --deep\n" in card
    assert "with its text" not in (whole_card := card_of(whole, tmp_path)) and "attach" not in whole_card


def card_of(cache: Cache, folder: Path) -> str:
    assert run("push", cache.root, folder / "open", "--i-may-share-this").exit_code == 0
    return (folder / "open" / CARD).read_text()


def test_pushed_to_another_kind_of_place(whole: Cache, memory: str, tmp_path: Path) -> None:
    assert run("push", whole.root, memory, "--detach-text").exit_code == 0
    assert not [path for path in fsspec.filesystem("memory").find("lab") if "input_ids/c" in path]
    pulled = ready(run("pull", memory, tmp_path / "back"), tmp_path / "back")
    assert pulled.extent == without_text(whole.extent)


def test_pushed_while_it_is_built(tmp_path: Path) -> None:
    shards = prepare_cache(tmp_path / "half", RECIPE)
    keys = shard_keys(RECIPE)
    for key in keys[:2]:
        commit(tmp_path / "half", RECIPE, key, shards[key])
    assert "2 shards are not built yet" in refusal(
        run("push", tmp_path / "half", tmp_path / "there", "--detach-text"), 1
    )
    for key in keys[2:]:
        commit(tmp_path / "half", RECIPE, key, shards[key])
    there = ready(run("push", tmp_path / "half", tmp_path / "there", "--detach-text"), tmp_path / "there")
    assert there.extent == without_text(whole_extent(RECIPE))
    assert text_files(there.root) == []


@pytest.mark.parametrize("command", ["push", "pull"])
def test_a_place_that_has_the_text_is_no_place_without_it(whole: Cache, tmp_path: Path, command: str) -> None:
    assert run("pull", whole.root, tmp_path / "there").exit_code == 0
    said = refusal(run(command, whole.root, tmp_path / "there", "--detach-text"))
    assert said == (
        f"{tmp_path / 'there'}: already holds the text of this cache; omit --detach-text, or choose another location"
    )


def test_text_that_a_stopped_push_left_is_found(whole: Cache, tmp_path: Path) -> None:
    """No extent says that it is there."""
    with crashing(tmp_path / "count", None) as watch:
        run("push", whole.root, tmp_path / "count", "--i-may-share-this")
    there = tmp_path / "there"
    with crashing(there, watch.operations - 25):
        run("push", whole.root, there, "--i-may-share-this")
    assert text_files(there) and (there / "ledger/seal.json").exists() and not (there / "ledger/extent.json").exists()
    said = refusal(run("push", whole.root, there, "--detach-text"))
    assert " holds text, left by a copy of the whole that was stopped; choose another location, or remove" in said
    assert not (there / "ledger/extent.json").exists()
