"""verify knows a start that its teacher does not give, or that no teacher could."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.settings import build_settings
from helpers.small_caches import change_json

from cache_tools import build_cache, open_cache
from cache_tools.settings import Part, RerunSettings
from cache_tools.sharing.parts import part_extent
from cache_tools.store.copy import cut
from cache_tools.store.layout import encode_chunk
from cache_tools.store.ledger import SEAL, file_record, without_text
from cache_tools.store.start import read_start, start_arrays
from cache_tools.verify.verify import verify


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, sample_text: Path) -> Path:
    """A complete cache that nobody changes, with a start narrower than its teacher."""
    folder = tmp_path_factory.mktemp("built")
    settings = build_settings(folder / "kin.zarr", sample_teacher, sample_text, start_layers="0,3", start_width=96)
    return build_cache(settings).root


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "kin.zarr"))


@pytest.fixture
def again(sample_teacher: Path) -> RerunSettings:
    return RerunSettings(str(sample_teacher), rows=1, device="cpu")


def changed(root: Path, name: str, change: Callable[[np.ndarray], object]) -> None:
    """Change an array of the start, under sound checksums."""
    array = read_start(open_cache(root), name).copy()
    change(array)
    spec, records = start_arrays(open_cache(root).recipe)[name], {}
    for index in spec.chunks():
        path, data = spec.chunk_path(*index), encode_chunk(spec, array[spec.region(index)])
        (root / path).write_bytes(data)
        records[path] = file_record(data).to_json()
    change_json(root / SEAL, lambda seal: seal["files"].update(records), sign=True)


def test_a_start_is_that_of_its_teacher(built: Path, again: RerunSettings) -> None:
    report = verify(built, deep=True, again=again)
    assert not report.damage and not report.notes


def a_quarter_more(array: np.ndarray) -> None:
    array *= 1.25


def one_matrix_of_another_layer(array: np.ndarray) -> None:
    array[0, 2] = array[1, 2]


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("embedding", a_quarter_more, "start/embedding: 25."),
        ("position", a_quarter_more, "start/position: 25."),
        ("ffn", a_quarter_more, "start/ffn: 25."),
        ("ffn_vector", a_quarter_more, "start/ffn_vector: 25."),
        ("norm", a_quarter_more, "start/norm: 25."),
        ("head", a_quarter_more, "start/head: 25."),
        ("attention", one_matrix_of_another_layer, "start/attention (values and outputs): "),
        ("attention_vector", a_quarter_more, "start/attention_vector (queries): 25."),
    ],
)
def test_what_the_teacher_does_not_give_is_named(
    copy: Path, again: RerunSettings, name: str, change: Callable[[np.ndarray], object], named: str
) -> None:
    changed(copy, name, change)
    assert not verify(copy, deep=True).damage
    messages = [damage.message for damage in verify(copy, again=again).damage]
    assert any(named in message and message.endswith("expected at most 1%") for message in messages), messages


def test_the_sign_of_a_heads_dimension_does_not_matter(copy: Path, again: RerunSettings) -> None:
    def turned(array: np.ndarray) -> None:
        array[:, :2, 5] *= -1  # query and key

    changed(copy, "attention", turned)
    changed(copy, "attention_vector", lambda vectors: vectors[:, 1, 5:6].__imul__(-1))
    assert not verify(copy, again=again).damage


def scaled(array: np.ndarray) -> None:
    array[:, 0] *= 2


def twice_the_first(array: np.ndarray) -> None:
    array[1, 0] = array[1, 1]


def below_zero(array: np.ndarray) -> None:
    array[0, 3, 0] = -1


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("basis", scaled, "start/basis: the columns are not orthonormal"),
        ("head_order", twice_the_first, "start/head_order: expected different numbers below 6 in each layer"),
        ("neuron_order", twice_the_first, "start/neuron_order: expected different numbers below 768 in each layer"),
        ("norm", below_zero, "start/norm: a second moment is negative"),
    ],
)
def test_deep_finds_values_that_no_teacher_gives(
    copy: Path, name: str, change: Callable[[np.ndarray], object], expected: str
) -> None:
    changed(copy, name, change)
    assert not verify(copy).damage
    assert [expected in damage.message for damage in verify(copy, deep=True).damage] == [True]


def test_a_copy_without_the_rows_says_that_the_start_was_not_compared(
    built: Path, tmp_path: Path, again: RerunSettings
) -> None:
    cache = open_cache(built)
    records = [record for key in cache.extent.keys() if (record := cache.record(*key)) is not None]
    extent = part_extent(cache.recipe, cache.seal, cache.extent, records, Part(max_tokens=1), built)
    part = cut(cache, tmp_path / "part", extent)
    report = verify(part.root, again=again)
    assert not report.damage
    assert [note.startswith("the start was not compared with the teacher: ") for note in report.notes] == [True]
    detached = cut(cache, tmp_path / "detached", without_text(cache.extent))
    assert not verify(detached.root, deep=True).damage
