"""Documents out of files of every kind, and one clear line for each that cannot be read."""

import gzip
import json
import lzma
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import cache_tools.text.files.text_file
from cache_tools.errors import CometError
from cache_tools.text.files.documents import READERS, documents
from cache_tools.text.files.items import ITEM_READERS
from cache_tools.text.files.text_file import FORMATS, ITEM_FORMATS
from cache_tools.text.packing import document_hash
from cache_tools.text.sources import find_sources

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def read(path: Path) -> list[str]:
    return [text for source in find_sources((str(path),)) for text in documents(source)]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def parquet(path: Path, column: str, values: list[str | None]) -> Path:
    datasets.Dataset.from_dict({column: values}).to_parquet(path)
    return path


def error_of(path: Path) -> CometError:
    """The CometError that reading this path raises."""
    with pytest.raises(CometError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("ending", PACKERS)
def test_lines_of_text(tmp_path: Path, ending: str) -> None:
    content = "\ufeffMwaramutse\r\n\n  \t\nUmunsi mwiza  \n\u00a0\nijambo\u2028rimwe\nnta murongo wanyuma".encode()
    path = written(tmp_path / f"kin.txt{ending}", PACKERS[ending](content))
    assert read(path) == ["Mwaramutse", "Umunsi mwiza", "ijambo\u2028rimwe", "nta murongo wanyuma"]


@pytest.mark.parametrize("ending", PACKERS)
def test_records_of_json_lines(tmp_path: Path, ending: str) -> None:
    records = [{"text": "a\nb", "id": 1}, {"text": " "}, {"text": "\u00e9 \u4e2d"}]
    content = "\ufeff" + "\n\n".join(json.dumps(record) for record in records)
    path = written(tmp_path / f"kin.jsonl{ending}", PACKERS[ending](content.encode()))
    assert read(path) == ["a\nb", "\u00e9 \u4e2d"]


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_every_member_of_a_concatenated_file_is_read(tmp_path: Path, ending: str) -> None:
    pack = PACKERS[ending]
    assert read(written(tmp_path / f"kin.txt{ending}", pack(b"one\n") + pack(b"two\n"))) == ["one", "two"]


@pytest.mark.parametrize("ending", PACKERS)
def test_an_empty_file_holds_no_document(tmp_path: Path, ending: str) -> None:
    assert read(written(tmp_path / f"kin.txt{ending}", PACKERS[ending](b""))) == []


def test_parquet(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "kin.parquet", "text", ["Mwaramutse", "  ", " a\nb "])) == ["Mwaramutse", "a\nb"]


def test_an_empty_parquet_file_holds_no_document(tmp_path: Path) -> None:
    path = tmp_path / "kin.parquet"
    datasets.Dataset.from_dict({"text": []}, datasets.Features({"text": datasets.Value("string")})).to_parquet(path)
    assert read(path) == []


def test_a_folder_stands_for_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    names = ("b.txt", "a.jsonl", "c.txt.gz", "sub/a.txt")
    for name in (*names, "README.md", "model.bin", "d.parquet.gz", "e.gz"):
        written(tmp_path / name, gzip.compress(name.encode()) if name.endswith(".gz") else name.encode())
    found = find_sources((str(tmp_path),))
    assert [source.path.relative_to(tmp_path).as_posix() for source in found] == [
        "a.jsonl",
        "b.txt",
        "c.txt.gz",
        "sub/a.txt",
    ]
    assert [source.name for source in found] == ["a.jsonl", "b.txt", "c.txt.gz", "a.txt"]
    assert [source.bytes for source in found] == [(tmp_path / name).stat().st_size for name in sorted(names)]


def test_several_paths_keep_the_order_they_were_given_in(tmp_path: Path) -> None:
    paths = [str(written(tmp_path / name, name.encode())) for name in ("z.txt", "a.txt")]
    texts = [text for source in find_sources(tuple(paths)) for text in documents(source)]
    assert texts == ["z.txt", "a.txt"]


@pytest.mark.parametrize("name", ["a b.txt", "a*[1]?.txt", "a::b.txt", "a%20b.txt", "corpus.jsonl.txt", "a#b.txt"])
def test_any_file_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    assert read(written(tmp_path / name, b"Mwaramutse\n")) == ["Mwaramutse"]


def test_any_parquet_file_name_is_taken_as_it_is(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "part[1].parquet", "text", ["Mwaramutse"])) == ["Mwaramutse"]


def test_relative_paths_are_taken_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "kin.txt", b"Mwaramutse\n")
    monkeypatch.chdir(tmp_path)
    assert read(Path("kin.txt")) == ["Mwaramutse"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n\0"))))
def test_lines_come_back_stripped_and_in_order(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("text") / "kin.txt"
    written(path, "\n".join(["first", *lines]).encode())
    assert read(path) == ["first", *(unicodedata.normalize("NFC", line.strip()) for line in lines if line.strip())]


def test_letters_and_marks_apart_are_put_together(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "Ẹ̀kọ́ Yorùbá ṣe pàtàkì")
    for path in (
        written(tmp_path / "yor.txt", apart.encode()),
        written(tmp_path / "yor.jsonl", json.dumps({"text": apart}).encode()),
        parquet(tmp_path / "yor.parquet", "text", [apart]),
    ):
        assert read(path) == [unicodedata.normalize("NFC", apart)] != [apart]


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """It could be read once only, and the text is read for its tokens and for its hash."""
    os.mkfifo(tmp_path / "kin.txt")
    error = error_of(tmp_path / "kin.txt")
    assert str(error).startswith(f"--text {tmp_path}/kin.txt: not a file that can be read twice; write a pipe's")
    assert error.exit_code == 2


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    error = error_of(tmp_path / "kin.txt")
    assert str(error) == f"--text {tmp_path}/kin.txt: no such file or folder"
    assert error.exit_code == 2


@pytest.mark.parametrize("name", ["kin.csv", "kin.doc", "kin", "kin.parquet.gz", "kin.gz", "kin.txt.bz2"])
def test_a_file_with_another_ending(tmp_path: Path, name: str) -> None:
    error = error_of(written(tmp_path / name, b"Mwaramutse"))
    assert str(error) == (
        f"--text {tmp_path / name}: expected .txt, .jsonl, .parquet (all but .parquet also with .gz, .xz, .zst), "
        f"found {name!r}; save it as .txt, one document per line"
    )
    assert error.exit_code == 2


def test_a_folder_without_text(tmp_path: Path) -> None:
    written(tmp_path / "README.md", b"Mwaramutse")
    error = error_of(tmp_path)
    assert str(error) == f"--text {tmp_path}: the folder holds no .txt, .jsonl, .parquet file"
    assert error.exit_code == 2


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    error = error_of(written(tmp_path / "kin.txt", b"good\n\nMu\xe9\xe8 x\n"))
    assert str(error) == (
        "kin.txt line 3: byte 3 is not UTF-8 (b'\\xe9\\xe8 x'); convert the file to UTF-8 first, as by iconv -f latin1 "
        "-t utf-8"
    )
    assert error.exit_code == 1


def test_broken_json(tmp_path: Path) -> None:
    error = error_of(written(tmp_path / "kin.jsonl", b'{"text": "a"}\n{"text": "b"\n'))
    assert str(error).startswith("kin.jsonl line 2: not JSON: ")


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"text": "a", "n": ' + "1" * 5000 + "}"], ids=["too deep", "too long a number"]
)
def test_json_that_python_refuses(tmp_path: Path, line: str) -> None:
    assert str(error_of(written(tmp_path / "kin.jsonl", line.encode()))).startswith("kin.jsonl line 1: not JSON: ")


@pytest.mark.parametrize("record", ['{"id": 1}', '{"text": null}', '{"text": 3}', '["text"]', '"text"', "7"])
def test_a_record_without_a_text(tmp_path: Path, record: str) -> None:
    error = error_of(written(tmp_path / "kin.jsonl", f'{{"text": "a"}}\n{record}\n'.encode()))
    assert str(error) == (
        f'kin.jsonl line 2: expected an object with a string "text", found {record!r}; write each document as '
        '{"text": "…"} on a line of its own'
    )


def test_half_a_surrogate_pair_is_not_text(tmp_path: Path) -> None:
    """JSON can spell it, UTF-8 cannot: it must not get as far as the hash or the tokenizer."""
    path = written(tmp_path / "kin.jsonl", b'{"text": "fine"}\n{"text": "a \\ud83d b"}\n')
    with pytest.raises(CometError, match=r"^kin\.jsonl line 2: "):
        [document_hash(text) for text in read(path)]


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_truncated_archive(tmp_path: Path, ending: str) -> None:
    content = b"".join(b"%d %s\n" % (n, os.urandom(20).hex().encode()) for n in range(5000))
    packed = PACKERS[ending](content)
    error = error_of(written(tmp_path / f"kin.txt{ending}", packed[: len(packed) // 2]))
    line, _, reason = str(error).removeprefix(f"kin.txt{ending} line ").partition(": cannot be read: ")
    assert int(line) >= 1
    assert reason


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["content", "header"])
def test_a_damaged_archive(tmp_path: Path, ending: str, damage: str) -> None:
    packed = bytearray(PACKERS[ending](b"".join(b"%d\n" % (n * n) for n in range(5000))))
    at = len(packed) // 2 if damage == "content" else 0
    packed[at] ^= 0xFF
    error = error_of(written(tmp_path / f"kin.txt{ending}", bytes(packed)))
    line, _, reason = str(error).removeprefix(f"kin.txt{ending} line ").partition(": cannot be read: ")
    assert int(line) >= 1
    assert reason


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(cache_tools.text.files.text_file, "MAX_LINE_BYTES", 2**20)
    longest = b"a" * (2**20 - 1) + b"\n"
    path = tmp_path / f"kin.txt{ending}"
    assert len(read(written(path, PACKERS[ending](longest + longest)))) == 2
    error = error_of(written(path, PACKERS[ending](longest + b"a" + longest + b"b\n")))
    assert str(error) == f"kin.txt{ending} line 2: longer than 1 MiB; expected one document per line"


def test_parquet_without_a_text_column(tmp_path: Path) -> None:
    error = error_of(parquet(tmp_path / "kin.parquet", "sentence", ["Mwaramutse"]))
    assert str(error) == "kin.parquet: expected one string column \"text\", found ['sentence']"


def test_parquet_with_a_missing_text(tmp_path: Path) -> None:
    error = error_of(parquet(tmp_path / "kin.parquet", "text", ["Mwaramutse", None]))
    assert str(error).startswith('kin.parquet row 2: expected a string in the column "text", found')


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    error = error_of(written(tmp_path / "kin.parquet", b"Mwaramutse"))
    assert str(error).startswith("kin.parquet: cannot be read as Parquet: ")


def test_parquet_with_a_column_named_twice(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "kin.parquet")
    expected = "kin.parquet: expected one string column \"text\", found ['text', 'text']"
    assert str(error_of(tmp_path / "kin.parquet")) == expected


def test_parquet_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    offsets, data = (pyarrow.py_buffer(part) for part in (np.array([0, 3, 6], np.int32).tobytes(), b"abc\xe9\xe8z"))
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, data])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "kin.parquet")
    expected = "kin.parquet row 2: byte 1 is not UTF-8; write the file again as UTF-8"
    assert str(error_of(tmp_path / "kin.parquet")) == expected


def test_json_with_two_texts(tmp_path: Path) -> None:
    path = written(tmp_path / "kin.jsonl", b'{"text": "a"}\n{"text": "b", "text": "c"}\n')
    assert str(error_of(path)) == 'kin.jsonl line 2: not JSON: "text" occurs twice in an object'


def test_hidden_files_are_no_text_and_others_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    written(tmp_path / "elsewhere" / "c.txt", b"three\n")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / ".hidden").mkdir()
    for name in ("old.zarr/ledger", "lost+found", "@eaDir"):
        (folder / name).mkdir(parents=True)
    for name in ("old.zarr/ledger/seal.json", "old.zarr/notes.txt", "lost+found/old.txt", "@eaDir/a.txt"):
        written(folder / name, b"not of this text\n")
    for name in (".hidden/a.txt", "._a.txt", ".DS_Store", "a.txt", "B.TXT", "notes.doc", "data.csv"):
        written(folder / name, b"\x00\x05\x16\x07\xb0" if "._" in name else name.encode())
    found = find_sources((str(folder),))
    assert [source.name for source in found] == ["B.TXT", "a.txt"]
    assert [document for source in found for document in documents(source)] == ["B.TXT", "a.txt"]
    said = capsys.readouterr().out
    expected = "left out for their endings, as caches, or as links to folders: old.zarr, data.csv, linked, notes.doc"
    assert said == f"--text {folder}: {expected}\n"


def test_a_window_too_long_for_readers(tmp_path: Path) -> None:
    """Of `zstd --long=31`."""
    far = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=True)
    packed = zstandard.ZstdCompressor(compression_params=far).compressobj()
    path = written(tmp_path / "kin.txt.zst", packed.compress(b"Mwaramutse\n" * 999) + packed.flush())
    assert str(error_of(path)).endswith("; compress it again without --long")


def test_wide_characters_without_a_mark(tmp_path: Path) -> None:
    path = written(tmp_path / "kin.txt", "Mwaramutse\nMuraho\n".encode("utf-16-le"))
    assert str(error_of(path)) == "kin.txt line 1: holds a NUL; if it is UTF-16, convert it to UTF-8 first"


def test_every_format_has_its_readers() -> None:
    assert set(FORMATS) == set(READERS)
    assert set(ITEM_FORMATS) == set(ITEM_READERS)
