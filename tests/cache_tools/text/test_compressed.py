"""Compressed files: all of their content or one line, and no file for what its name says it is when it is not."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.errors import CometError
from cache_tools.text.compressed import READ_ERRORS, open_binary

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def content(path: Path) -> bytes:
    with open_binary(path) as file:
        return file.read()


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("ending", PACKERS)
def test_several_members_are_read_one_after_the_other(tmp_path: Path, ending: str) -> None:
    """As `cat a.gz b.gz` and parallel compressors make them."""
    parts = [b"first\n", b"", noise(3_000_000), b"last\n"]
    path = tmp_path / f"kin.txt{ending}"
    path.write_bytes(b"".join(map(PACKERS[ending], parts)))
    assert content(path) == b"".join(parts)


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("behind", [b"garbage!", b"\x00\x00garbage"], ids=["garbage", "padded garbage"])
def test_what_follows_the_last_member_is_not_passed_over(tmp_path: Path, ending: str, behind: bytes) -> None:
    path = tmp_path / f"kin.txt{ending}"
    path.write_bytes(PACKERS[ending](b"Mwaramutse\n") + behind)
    with pytest.raises(READ_ERRORS):
        content(path)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 3)), min_size=1, max_size=4))
def test_padding_between_streams_of_xz(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[bytes, int]]
) -> None:
    """The format allows zeros there, four at a time; `lzma.open` ends at them."""
    path = tmp_path_factory.mktemp("xz") / "kin.txt.xz"
    path.write_bytes(b"".join(lzma.compress(part) + bytes(4 * padding) for part, padding in parts))
    assert content(path) == b"".join(part for part, _ in parts)


@pytest.mark.parametrize("padding", [1, 2, 3, 7])
def test_padding_of_another_length(tmp_path: Path, padding: int) -> None:
    path = tmp_path / "kin.txt.xz"
    path.write_bytes(lzma.compress(b"Mwaramutse\n") + bytes(padding))
    with pytest.raises(lzma.LZMAError):
        content(path)


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("lost", [1, 9, 2_000])
def test_a_truncated_file(tmp_path: Path, ending: str, lost: int) -> None:
    path = tmp_path / f"kin.txt{ending}"
    path.write_bytes((PACKERS[ending](b"first\n") + PACKERS[ending](noise(100_000)))[:-lost])
    with pytest.raises(READ_ERRORS):
        content(path)


@pytest.mark.parametrize(
    ("name", "packed", "said"),
    [
        ("kin.txt", gzip.compress(b"x"), "kin.txt: is a .gz file by its content; rename it to kin.txt.gz"),
        ("kin.txt", lzma.compress(b"x"), "kin.txt: is a .xz file by its content; rename it to kin.txt.xz"),
        ("kin.txt.gz", PACKERS[".zst"](b"x"), "kin.txt.gz: is a .zst file by its content; rename it to kin.txt.gz.zst"),
        ("kin.txt", bz2.compress(b"x"), "kin.txt: is a .bz2 file by its content; unpack or convert it first"),
        ("kin.jsonl", b"PK\x03\x04rest", "kin.jsonl: is a .zip file by its content; unpack or convert it first"),
        ("kin.txt", b"PAR1\x15rest", "kin.txt: is a .parquet file by its content; unpack or convert it first"),
        ("kin.txt", "Mwaramutse".encode("utf-16"), "kin.txt: is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8"),
        ("kin.txt", "Mwaramutse".encode("utf-32"), "kin.txt: is UTF-32; convert it first: iconv -f UTF-32 -t UTF-8"),
    ],
    ids=["gz", "xz", "twice", "bz2", "zip", "parquet", "utf-16", "utf-32"],
)
def test_a_file_of_another_kind_than_its_name_says(tmp_path: Path, name: str, packed: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(CometError) as caught:
        content(tmp_path / name)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("text", [b"BZh is no word\n", b"PAR1 is no word\n"])
def test_a_text_that_begins_almost_like_another_kind(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "kin.txt").write_bytes(text)
    assert content(tmp_path / "kin.txt") == text


def test_an_ending_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "KIN.TXT.GZ").write_bytes(gzip.compress(b"Mwaramutse\n"))
    assert content(tmp_path / "KIN.TXT.GZ") == b"Mwaramutse\n"
