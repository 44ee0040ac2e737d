"""Small JSON records: read strictly, within bounds, and only with their checksum."""

from pathlib import Path
from typing import Any

import pytest
from helpers.hostile_json import JSON_VALUES
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.errors import CometError
from cache_tools.store.records import canonical, parse_json, read_bounded, read_checked, with_checksum


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "checksum"), JSON_VALUES, max_size=4))
def test_a_checked_record_comes_back(tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("record") / "record.json"
    path.write_bytes(with_checksum(record))
    assert canonical(read_checked(path)) == canonical(record)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_record_is_written_with_a_number_that_json_lacks(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        with_checksum({"a": [number]})


def test_every_changed_byte_of_a_record_is_noticed(tmp_path: Path) -> None:
    good = with_checksum({"group": "train", "shard": 12, "files": {"length": {"bytes": 7}}})
    path = tmp_path / "record.json"
    for at in range(len(good) - 1):  # the line feed at the end is no part of the record
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(CometError, match="the cache is damaged"):
            read_checked(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 1}', "a key occurs twice"),
        ('{"b": {"a": 1, "a": 2}}', "a key occurs twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        ("[1]", "expected a JSON object, found list"),
        ("null", "expected a JSON object, found NoneType"),
        ('{"a": 1', "not a valid JSON record"),
        ("", "not a valid JSON record"),
        ('{"a": "\udcff"}', "not a valid JSON record"),
        ("[" * 100_000, "not a valid JSON record"),
        ('{"a": ' + "1" * 5000 + "}", "not a valid JSON record"),
    ],
)
def test_json_that_is_not_a_record(text: str, reason: str) -> None:
    with pytest.raises(CometError) as caught:
        parse_json(text.encode("utf-8", "surrogateescape"), "kin.zarr/zarr.json")
    assert str(caught.value).startswith("kin.zarr/zarr.json: ")
    assert reason in str(caught.value)


def test_a_number_beyond_floating_point_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"a": 1e999, "checksum": "0"}')
    with pytest.raises(CometError, match="the cache is damaged"):
        read_checked(path)


def test_files_are_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(CometError, match=rf"^{path}: larger than the 4 bytes it may have; the cache is damaged$"):
        read_bounded(path, 4)
    with pytest.raises(CometError, match=r"cannot be read \(No such file or directory\); the cache is incomplete"):
        read_bounded(tmp_path / "missing", 4)
    with pytest.raises(CometError, match="cannot be read"):
        read_bounded(tmp_path, 4)
