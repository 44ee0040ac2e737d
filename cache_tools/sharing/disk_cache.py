"""A folder of bounded size for files named by their SHA-256, shared by all processes of a machine."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from cache_tools.errors import CometError
from cache_tools.settings import LocalCache
from cache_tools.store.ledger import FileRecord
from cache_tools.store.records import read_bounded

FILES = "files"
LOCKS = "locks"
INCOMING = "incoming"
WAIT_SECONDS = 3600.0  # for another process that fetches the same file, slowly and after several retries
POLL_SECONDS = 1.0


class DiskCache:
    """Holds at most `local.size` bytes of files; the least recently used ones are evicted.

    Each file is fetched by one process while the others wait, until `closed` is set. A file that differs from its
    record, as after a power cut, is fetched again.
    """

    def __init__(self, local: LocalCache) -> None:
        self.local = local
        self.closed = threading.Event()
        self._verified: set[str] = set()  # SHA-256 of the files that this process has compared
        for name in (FILES, LOCKS):
            with self._disk():
                (local.folder / name).mkdir(parents=True, exist_ok=True)

    def get(self, record: FileRecord, fetch: Callable[[], bytes]) -> bytes:
        """Return the content of a file, from the folder or else from `fetch`, which must return the file of `record`.

        Raises the errors of `fetch`, and CometError if the file is too large, or another process holds its lock.
        """
        if (data := self._find(record)) is None:
            with self.locked(record.sha256[:2]):
                if (data := self._find(record)) is None:
                    data = fetch()
                    self._store(record, data)
        return data

    def require_open(self) -> None:
        """Raise CometError once `closed` is set."""
        if self.closed.is_set():
            raise CometError(f"{self.local.folder}: closed; nothing more is read into it")

    def _find(self, record: FileRecord) -> bytes | None:
        path = self._path(record)
        if not path.exists():
            return None
        try:
            data = read_bounded(path, record.size)
        except CometError:  # longer, unreadable, or evicted meanwhile by another process
            data = b""
        is_known = record.sha256 in self._verified and len(data) == record.size
        if not is_known and not record.matches(data):
            with self._disk():
                path.unlink(missing_ok=True)
            return None
        self._verified.add(record.sha256)
        with suppress(OSError):
            os.utime(path)  # for the order of eviction
        return data

    def _store(self, record: FileRecord, data: bytes) -> None:
        with self.locked("room"), self._disk():
            self._make_room(len(data))
            incoming = self.local.folder / INCOMING  # one name, as one process writes at a time: no leftovers
            incoming.write_bytes(data)
            os.replace(incoming, self._path(record))
        self._verified.add(record.sha256)

    def _make_room(self, size: int) -> None:
        if size > self.local.size:
            raise CometError(
                f"--local-size: a file has {size:,} bytes, more than the {self.local.size:,} that may be kept in "
                f"{self.local.folder}; give a larger size",
                exit_code=2,
            )
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, old_size, path in files:
            if total + size <= self.local.size:
                return
            with suppress(PermissionError):  # Windows removes no file that is being read
                path.unlink(missing_ok=True)
                total -= old_size

    def _files(self) -> list[tuple[int, int, Path]]:
        """Return time of last use, size and path of every file, the least recently used first."""
        files = []
        for entry in os.scandir(self.local.folder / FILES):
            with suppress(FileNotFoundError):
                status = entry.stat()
                files.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        return sorted(files)

    def _path(self, record: FileRecord) -> Path:
        return self.local.folder / FILES / record.sha256

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a lock against other threads and processes. Raises CometError if it stays taken, or `closed` is set."""
        path = self.local.folder / LOCKS / name
        lock, end = filelock.FileLock(path, timeout=min(POLL_SECONDS, WAIT_SECONDS)), time.monotonic() + WAIT_SECONDS
        while not lock.is_locked:
            self.require_open()
            try:
                lock.acquire()
            except filelock.Timeout:
                if time.monotonic() > end:
                    raise CometError(
                        f"{path}: another process has held this lock for {WAIT_SECONDS / 60:.0f} minutes; stop it"
                    ) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CometError(
                f"{self.local.folder}: {error.strerror or error}; choose another --local-cache or a smaller "
                "--local-size"
            ) from None
