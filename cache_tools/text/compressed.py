"""Open text files as bytes, decompressed by their ending; refuse a file whose content does not match its name."""

import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from cache_tools.errors import CometError

COMPRESSIONS = (".gz", ".xz", ".zst")
READ_ERRORS = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error)
XZ = b"\xfd7zXZ\x00"
SIGNATURES: dict[str, bytes | tuple[bytes, ...]] = {
    ".gz": b"\x1f\x8b",
    ".xz": XZ,
    ".zst": b"\x28\xb5\x2f\xfd",
    ".bz2": tuple(b"BZh%d1AY&" % level for level in range(1, 10)),
    ".zip": b"PK\x03\x04",
    ".7z": b"7z\xbc\xaf\x27\x1c",
    ".lz4": b"\x04\x22\x4d\x18",
    ".parquet": b"PAR1\x15",  # no text begins so
}
WIDE = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
READ_AT_ONCE = 2**20


def open_binary(path: Path) -> BinaryIO:
    """Open a file for its decompressed bytes. Raises CometError if its content is of another kind than its ending."""
    ending = path.suffix.lower()
    _require_kind(path, ending)
    if ending == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if ending == ".xz":
        return io.BufferedReader(XzStreams(path.open("rb")), READ_AT_ONCE)
    if ending == ".zst":
        import pyarrow  # here: slow to import; unlike zstandard's reader it raises an error for a truncated file

        return io.BufferedReader(cast(io.RawIOBase, pyarrow.input_stream(path, compression="zstd")), READ_AT_ONCE)
    return path.open("rb")


def _require_kind(path: Path, ending: str) -> None:
    with path.open("rb") as file:
        first = file.read(8)
    for kind, signature in SIGNATURES.items():
        if first.startswith(signature) and kind != ending:
            way_out = f"rename it to {path.name}{kind}" if kind in COMPRESSIONS else "unpack or convert it first"
            raise CometError(f"{path.name}: is a {kind} file by its content; {way_out}")
    for mark, name in WIDE.items():
        if first.startswith(mark) and ending not in COMPRESSIONS:
            raise CometError(f"{path.name}: is {name}; convert it first: iconv -f {name} -t UTF-8 FILE > NEW")


class XzStreams(io.RawIOBase):
    """The content of all streams of an .xz file. Unlike `lzma.open` it reads on after padding between two streams, and
    raises LZMAError for anything else there, EOFError at a truncated stream."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream: lzma.LZMADecompressor | None = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        self._rest = b""  # compressed bytes that were read and not used yet

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        while (stream := self._next_stream()) is not None:
            if stream.needs_input and not self._rest:
                self._rest = self._file.read(READ_AT_ONCE)
                if not self._rest:
                    raise EOFError("compressed file ended before the end of a stream")
            found = stream.decompress(self._rest, len(view))
            self._rest = stream.unused_data if stream.eof else b""
            if stream.eof:
                self._stream = None
            if found:
                view[: len(found)] = found
                return len(found)
        return 0

    def _next_stream(self) -> lzma.LZMADecompressor | None:
        """Return the stream at work, the next one after padding, or None at the end of the file."""
        if self._stream is None:
            padding = 0
            while not (rest := self._rest.lstrip(b"\x00")):
                padding += len(self._rest)
                self._rest = self._file.read(READ_AT_ONCE)
                if not self._rest:
                    break
            padding += len(self._rest) - len(rest)
            if padding % 4 or (rest and not rest.startswith(XZ[: len(rest)])):
                raise lzma.LZMAError("bytes after the end of a stream that are no stream")
            self._rest = rest
            self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ) if rest else None
        return self._stream

    def close(self) -> None:
        self._file.close()
        super().close()
