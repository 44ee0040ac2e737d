"""Caches that are trained on together: the same rows twice, and text of one's validation in another's training."""

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.settings import build_settings

from cache_tools import Cache, build_cache
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings, LocalCache
from cache_tools.store.copy import cut
from cache_tools.text.draws import mix
from comet import StudentConfig, distill, overlap
from comet.overlap import RUN, SHORTEST, require_other_text, run_hashes
from comet.preparation import open_for_training

BOS, EOS, PAD = 0, 2, 1
CODE = mix(np.arange(300, dtype=np.uint64), np.uint64(0))


def hashes(*rows: list[int]) -> set[int]:
    """The runs of these rows, padded to one length."""
    width = max(map(len, rows))
    tokens = np.array([row + [PAD] * (width - len(row)) for row in rows], dtype=np.int32)
    return set(run_hashes(tokens, np.array(list(map(len, rows)), dtype=np.uint16), CODE, (BOS, EOS)).tolist())


def test_a_document_has_the_same_runs_wherever_it_stands_in_its_row() -> None:
    draw = random.Random(0)
    document, other, short = (draw.choices(range(5, 300), k=k) for k in (RUN + 3, RUN, SHORTEST))
    alone = hashes([BOS, *document, EOS])
    assert len(alone) == 4
    packed = hashes([BOS, *short, EOS, *other, EOS], [BOS, *other, EOS, *document, EOS, *short, EOS])
    assert packed >= alone and len(packed) == 4 + 1 + 1
    assert hashes([BOS, *short, EOS]) < packed
    assert hashes([BOS, *short[1:], EOS]) == set()
    cut_in_two = hashes([BOS, *document[: RUN + 1], EOS], [BOS, *document[RUN + 1 :], EOS])
    assert len(cut_in_two & alone) == 2
    assert hashes([BOS, *document[:5], EOS, *document[5:], EOS]).isdisjoint(alone)


@pytest.fixture(scope="module")
def lines(sample_text: Path) -> list[str]:
    return sample_text.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def few(lines: list[str], sample_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A tenth of the documents is held out, since there are few targets."""
    return built(tmp_path_factory.mktemp("few"), lines, sample_teacher)


def settings_in(folder: Path, teacher: Path, **changes: Any) -> BuildSettings:
    options = {"max_tokens": None, "attention_layers": "none", "start_layers": "none", "keep": "topk"} | changes
    return build_settings(folder / "kin.zarr", teacher, folder / "kin.txt", **options)


def built(folder: Path, lines: list[str], teacher: Path, **changes: Any) -> Cache:
    folder.mkdir(exist_ok=True)
    (folder / "kin.txt").write_text("\n".join(lines), encoding="utf-8")
    return build_cache(settings_in(folder, teacher, **changes))


@pytest.fixture
def of_many_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is built holds out a fiftieth, as if it had many views."""
    monkeypatch.setattr("cache_tools.build.prepare.validation_share", lambda targets: 0.02)


def test_the_same_rows_twice_are_refused_wherever_they_lie(few: Cache, tmp_path: Path) -> None:
    (tmp_path / "link.zarr").symlink_to(few.root)
    extent = replace(few.extent, shards=few.extent.shards | {"train": ((0, 1),)})
    part, copy = cut(few, tmp_path / "part.zarr", extent), cut(few, tmp_path / "copy.zarr", few.extent)
    for other in (few.root, tmp_path / "link.zarr", part.root, copy.root, f"file://{few.root}"):
        with pytest.raises(
            CometError, match=rf"^--cache .*: the same cache as {few.root}, or another part or"
        ) as caught:
            open_for_training([few.root, other], LocalCache(tmp_path / "local", 10**9))
        assert caught.value.exit_code == 2


@pytest.mark.usefixtures("of_many_targets")
def test_what_one_holds_out_and_another_trains_is_refused(
    few: Cache, lines: list[str], sample_teacher: Path, tmp_path: Path
) -> None:
    many = built(tmp_path, lines, sample_teacher, seed=5)
    assert many.recipe.validation_rows * few.recipe.train_rows < few.recipe.validation_rows * many.recipe.train_rows
    for caches in ([many, few], [few, many]):
        with pytest.raises(CometError) as caught:
            distill(caches, StudentConfig(tmp_path / "student", steps=1))
        said = str(caught.value)
        assert said.startswith(f"--cache {few.root}: ") and caught.value.exit_code == 2
        assert f"% of the text that {few.root} holds out for validation is trained on in {many.root}, so" in said
        assert float(said.split("% of the text")[0].rpartition(" ")[2]) > 30


@pytest.mark.slow
def test_texts_that_are_split_alike_and_other_texts_pass(
    few: Cache, lines: list[str], sample_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = built(tmp_path / "seed", lines, sample_teacher, seed=5, seq_len=40, mask_prob=0.1, views=2)
    backwards = [" ".join(reversed(line.split())) for line in lines]
    other = built(tmp_path / "text", backwards, sample_teacher)
    capsys.readouterr()
    require_other_text([few, same, other])
    require_other_text([few])
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("of_many_targets")
def test_little_that_two_texts_happen_to_share_is_said(
    few: Cache, sample_teacher: Path, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    backwards = [" ".join(reversed(line.split())) for line in lines]
    both = built(tmp_path, [*backwards, *lines[:60]], sample_teacher)
    monkeypatch.setattr("comet.overlap.MOST_SHARED", 0.9)
    require_other_text([few, both])
    said = f"of the text that {few.root} holds out for validation is trained on in {both.root}\n"
    assert re.search(rf"^\d+\.\d% {re.escape(said)}", capsys.readouterr().out, re.MULTILINE)
    found = overlap._distinct
    many = np.arange(2**20, dtype=np.uint64)
    monkeypatch.setattr(overlap, "_distinct", lambda cache, group: np.union1d(found(cache, group), many))
    require_other_text([few, both])
    assert f"less than 0.1% {said}" in capsys.readouterr().out
