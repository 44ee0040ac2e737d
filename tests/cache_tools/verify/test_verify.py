"""verify and repair: every damage is named with its shard, no sound cache is accused, repaired ones are whole again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.builds import digests
from helpers.settings import build_settings
from helpers.small_caches import change_json, exchange, flip_byte, rewrite

from cache_tools import build_cache, open_cache
from cache_tools.cli.facts import describe
from cache_tools.cli.main import main
from cache_tools.cli.verify import as_lines
from cache_tools.errors import CometError
from cache_tools.signals import ATTENTION
from cache_tools.store.copy import cut
from cache_tools.store.ledger import Extent
from cache_tools.verify.verify import verify

KINDS = {
    "threshold": {"temperatures": (1.0, 2.0)},
    "topk": {"keep": "topk", "temperatures": (2.0, 0.5, 1.0), "attention_layers": "last", "attention_keys": 48},
    "topk without T = 1": {"keep": "topk", "temperatures": (2.0, 0.5), "attention_layers": "none"},
}

WAY_OUT = (
    "Copy the damaged files from a sound copy (`comet-cache pull` into this folder copies all but zarr.json and "
    "ledger/seal.json), or build the cache again"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, sample_text: Path) -> dict[str, Path]:
    """Complete caches of a real teacher that nobody changes."""
    folder = tmp_path_factory.mktemp("built")
    for kind in KINDS:
        build_cache(build_settings(folder / kind, sample_teacher, sample_text, views=2, **KINDS[kind]))
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture
def copy(built: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of them to damage."""
    return lambda kind="threshold": Path(shutil.copytree(built[kind], tmp_path / "kin.zarr"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_cache_is_sound_in_depth(built: dict[str, Path], kind: str) -> None:
    report = verify(built[kind], deep=True)
    assert report.damage == []
    assert report.notes == []
    assert (report.missing, report.shards) == (0, len(list((built[kind] / "ledger").glob("*-*.json"))))
    everything = [
        p for p in built[kind].rglob("*") if p.is_file() and p.name not in ("lock", "seal.json", "extent.json")
    ]
    assert report.files == len(everything)


def test_a_part_is_sound_in_depth(built: dict[str, Path], tmp_path: Path) -> None:
    cache = open_cache(built["threshold"])
    for arrays in (cache.extent.arrays, ("input_ids", "length", *ATTENTION.arrays), ("sample_id",)):
        part = Extent(cache.recipe.recipe_id, arrays, {"train": ((1, 2),), "validation": ()})
        cut(cache, tmp_path / str(len(arrays)), part)
        assert verify(tmp_path / str(len(arrays)), deep=True).damage == []


def test_every_damaged_shard_is_named_and_repaired(
    copy: Callable[..., Path], built: dict[str, Path], sample_teacher: Path, sample_text: Path
) -> None:
    """A flipped byte, a deleted file, two records exchanged, tokens changed; then repair and build."""
    root = copy()
    flip_byte(root / "train/sample_id/c/0/0/0/0")
    (root / "validation/entropy/c/0/0/0").unlink()
    exchange(root / "ledger/train-00001.json", root / "ledger/train-00002.json")
    flip_byte(root / "train/target_id/c/3/0")
    damaged = [("train", 0), ("train", 1), ("train", 2), ("train", 3), ("validation", 0)]
    assert verify(root).damaged_shards == damaged
    said = CliRunner().invoke(main, ["verify", str(root)])
    assert said.exit_code == 1
    assert "damaged shards: train 0, train 1, train 2, train 3, validation 0" in said.stdout
    assert f"comet-cache repair {root}" in said.stdout
    done = CliRunner().invoke(main, ["repair", str(root)])
    assert (done.exit_code, done.stdout.count("dropped shard")) == (0, 5)
    assert verify(root).damage == []
    assert verify(root).missing == 5
    half = CliRunner().invoke(main, ["verify", str(root)])
    assert half.exit_code == 0
    assert "sound as far as it goes: 5 of" in half.stdout
    build_cache(build_settings(root, sample_teacher, sample_text, views=2, **KINDS["threshold"]))
    assert digests(root) == digests(built["threshold"])
    assert CliRunner().invoke(main, ["repair", str(root)]).stdout == "nothing is damaged\n"


@pytest.mark.parametrize("path", ["zarr.json", "train/zarr.json", "tokenizer/tokenizer.json", "vocabulary/id/c/0"])
def test_damage_that_no_shard_is_to_blame_for(copy: Callable[..., Path], path: str) -> None:
    root = copy()
    flip_byte(root / path, 30)
    report = verify(root)
    assert report.damaged_shards == []
    assert str(root / path) in report.damage[0].message
    done = CliRunner().invoke(main, ["repair", str(root)])
    assert done.exit_code == 1
    assert f"{WAY_OUT}\n" in done.stderr


@pytest.mark.parametrize("name", ["train/sample_id/c/0/0/0/1", "ledger/train-00099.json", "notes.txt", ".hidden/x.pkl"])
def test_unknown_files_are_damage(copy: Callable[..., Path], name: str) -> None:
    root = copy()
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("x")
    (damage,) = verify(root).damage
    assert damage.message == f"{root / name}: unknown file; it belongs to nothing in this cache"
    way_out = "Remove what does not belong; the cache itself is not damaged"
    assert way_out in CliRunner().invoke(main, ["verify", str(root)]).stdout
    assert way_out in CliRunner().invoke(main, ["repair", str(root)]).stderr
    flip_byte(root / "vocabulary/id/c/0")
    said = CliRunner().invoke(main, ["verify", str(root)]).stdout
    assert f"{WAY_OUT}, and remove what does not belong" in said


def test_what_systems_leave_in_folders_is_noted(copy: Callable[..., Path], built: dict[str, Path]) -> None:
    root = copy()
    names = (".DS_Store", "train/._zarr.json", "Icon\r", "ledger/Thumbs.db", "desktop.ini", ".directory", ".nfs00a1")
    for name in (*names, "lost+found/1", "@eaDir/x@S", ".Trash-1000/files/x", ".stfolder/y", ".zarr.json.swp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\0\0\0\1Bud1")
    report = verify(root, deep=True)
    assert report.damage == []
    (note,) = report.notes
    assert note.startswith("not part of the cache, and no damage: .DS_Store, .Trash-1000, .directory")
    assert note.endswith(" and 7 more, which systems leave in folders")
    said = CliRunner().invoke(main, ["verify", str(root)])
    assert (said.exit_code, said.stdout.splitlines()[-1]) == (0, "sound and complete")
    assert describe(open_cache(root))["bytes"] == describe(open_cache(built["threshold"]))["bytes"]


def test_links_and_special_files_are_damage(copy: Callable[..., Path], built: dict[str, Path]) -> None:
    root = copy()
    file = root / "train/length/c/0"
    file.unlink()
    file.symlink_to(built["threshold"] / "train/length/c/0")
    os.mkfifo(root / "pipe")
    (root / "more").symlink_to(built["threshold"], target_is_directory=True)
    found = {damage.message.split(":")[0] for damage in verify(root).damage}
    assert found == {str(path) for path in (file, root / "pipe", root / "more")}


def test_what_a_dead_builder_left_is_noted(copy: Callable[..., Path]) -> None:
    root = copy()
    (root / "ledger/train-00001.json").unlink()
    (root / ".staging-1").mkdir()
    (root / ".staging-1/sample_id").write_text("half")
    report = verify(root)
    assert report.damage == []
    assert report.missing == 1
    assert ".staging-1/sample_id: of a running or killed builder; the next build removes it" in report.notes
    assert "train/sample_id/c/1/0/0/0: of an uncommitted shard; the next build replaces it" in report.notes


def test_rows_are_masked_again_some_at_a_time(copy: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """And named by their numbers in the shard."""
    root = copy()
    assert verify(root, deep=True).damage == []
    keys = np.array(open_cache(root).read_shard("train", 0)["row_key"])
    keys[[5, 7]] += np.uint64(1)
    rewrite(root, "row_key", keys)
    for at_once in (1, 300):
        monkeypatch.setattr("cache_tools.verify.values.REMASKED_AT_ONCE", at_once)
        (damage,) = verify(root, deep=True).damage
        assert "row_key: differs from the masking of view 0 at row 5 (of 2)" in damage.message


SAMPLE, BEST, HOT = KINDS
WRONG = {
    "another mask": (
        "threshold",
        "input_ids",
        lambda a: np.where(a == a[0, 3], 5, a),
        "differs from the masking of view 0",
    ),
    "another target": (
        "threshold",
        "target_id",
        lambda a: np.where(a == a[0, 0], 7, a),
        "row_key: differs from the masking",
    ),
    "another key": (
        "threshold",
        "row_key",
        lambda a: a + np.uint64(1),
        "row_key: differs from the masking of view 0",
    ),
    "weights of more than 1": (SAMPLE, "sample_logweight", lambda a: a / 2, "expected weights that make 1"),
    "weights above 1": (SAMPLE, "sample_logweight", lambda a: -a, "expected log weights"),
    "an infinite weight": (
        "threshold",
        "sample_logweight",
        lambda a: np.where(np.isfinite(a), np.inf, a),
        "log weights",
    ),
    "a token twice": (SAMPLE, "sample_id", lambda a: np.where(a >= 0, 9, a), "expected different tokens"),
    "negative entropy": (SAMPLE, "entropy", lambda a: -a, "entropy: expected 0 to log 8000"),
    "too much entropy": (SAMPLE, "entropy_seen", lambda a: a + 9, "entropy_seen: expected 0 to log"),
    "attention below 1/k": (SAMPLE, "attention_weight", lambda a: a // 2, "expected certain keys of at least 1/6"),
    "attention of other sums": (BEST, "attention_weight", lambda a: a // 2, "the weights of a query to make 1"),
    "attention to no key": (SAMPLE, "attention_weight", lambda a: np.maximum(a, 110), "a weight where there is no key"),
    "drawn keys among all": (BEST, "attention_weight", lambda a: np.where(a < 9, 0, a), "keys of at least 1/48"),
    "rising log-probabilities": (BEST, "topk_logprob", lambda a: a[..., ::-1].copy(), "expected falling log-prob"),
    "mass of more than 1": (BEST, "topk_logprob", lambda a: a / 2, "expected kept and tail mass to make 1"),
    "no tail": (
        "topk",
        "tail_logmass",
        lambda a: np.where(np.isnan(a), a, -np.inf),
        "tail_logmass_seen: more than tail_logmass",
    ),
    "tails of other temperatures": (
        "topk",
        "tail_logmass",
        lambda a: a[..., [1, 0, 2]],
        "outside the bounds of its mass",
    ),
    "tails without T = 1": (
        "topk without T = 1",
        "tail_logmass",
        lambda a: a[..., ::-1].copy(),
        "the bounds of its mass",
    ),
    "the best token twice": (BEST, "topk_id", lambda a: np.where(a >= 0, 3, a), "expected 8 different tokens"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_values_that_cannot_be_right_are_found_in_depth(copy: Callable[..., Path], wrong: str) -> None:
    """Under sound checksums, as a faulty builder would write them."""
    kind, name, change, message = WRONG[wrong]
    root = copy(kind)
    array = open_cache(root).read_shard("train", 0)[name]
    rewrite(root, name, change(array).astype(array.dtype))
    assert verify(root).damage == []
    report = verify(root, deep=True)
    assert ("train", 0) in report.damaged_shards
    assert f"`comet-cache repair {root} --deep` drops them; the same `comet-cache build` rebuilds them" in as_lines(
        report
    )
    assert any(message in damage.message for damage in report.damage), report.damage


def test_tokens_that_no_text_gives_again_are_to_be_pulled(copy: Callable[..., Path]) -> None:
    root = copy()
    (root / "train/input_ids/c/0/0").unlink()
    report = verify(root)
    assert any("`comet-cache build` rebuilds them" in line for line in as_lines(report))
    report.is_continued = True  # as of a build with --continue-views
    assert any("only `comet-cache pull` from a sound copy brings these back" in line for line in as_lines(report))


def test_json_for_machines(copy: Callable[..., Path]) -> None:
    root = copy()
    facts = json.loads(CliRunner().invoke(main, ["verify", str(root), "--json"]).stdout)
    assert (facts["state"], facts["deep"], facts["damage"], facts["damaged_shards"]) == ("complete", False, [], [])
    change_json(root / "ledger/train-00001.json", lambda record: record.update(shard=2), sign=True)
    done = CliRunner().invoke(main, ["verify", str(root), "--json"])
    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["state"], facts["damaged_shards"]) == (1, "damaged", [["train", 1]])


def test_no_cache_at_all_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(CometError, match="no such cache"):
        verify(tmp_path / "nothing")
    assert CliRunner().invoke(main, ["verify", str(tmp_path / "nothing")]).exit_code == 2
