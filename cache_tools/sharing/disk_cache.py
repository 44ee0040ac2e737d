"""Files kept by their SHA-256 in one folder of bounded size, which all processes of a machine share."""

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
WAIT_SECONDS = 3600.0  # for another process that fetches the same file, slowly and after several tries
LOOK_SECONDS = 1.0


class DiskCache:
    """The least recently used files go when room is needed, so never more than `local.size` bytes lie there.

    A file is fetched by one process while the others wait for it, unless `closed` is set. One that is not what its
    record says, as after a power cut, is fetched again.
    """

    def __init__(self, local: LocalCache) -> None:
        self.local = local
        self.closed = threading.Event()
        self._sound: set[str] = set()  # compared in this process
        for name in (FILES, LOCKS):
            with self._disk():
                (local.folder / name).mkdir(parents=True, exist_ok=True)

    def get(self, record: FileRecord, fetch: Callable[[], bytes]) -> bytes:
        """The content of a file, from the folder or else by `fetch`, which returns what its record says.

        Raises what `fetch` raises, and CometError when the file has no room, or another process hangs over it.
        """
        if (data := self._find(record)) is None:
            with self.locked(record.sha256[:2]):
                if (data := self._find(record)) is None:
                    data = fetch()
                    self._keep(record, data)
        return data

    def require_open(self) -> None:
        """Raises CometError when nobody wants anything any more."""
        if self.closed.is_set():
            raise CometError(f"{self.local.folder}: stopped; nothing more is read into it")

    def _find(self, record: FileRecord) -> bytes | None:
        path = self._path(record)
        if not path.exists():
            return None
        try:
            data = read_bounded(path, record.size)
        except CometError:
            if path.exists():
                raise
            return None  # another process has made room in this moment
        if record.sha256 not in self._sound and not record.matches(data):
            path.unlink(missing_ok=True)
            return None
        self._sound.add(record.sha256)
        with suppress(OSError):
            os.utime(path)  # used now
        return data

    def _keep(self, record: FileRecord, data: bytes) -> None:
        with self.locked("room"), self._disk():
            self._make_room(len(data))
            incoming = self.local.folder / INCOMING  # one name, as one writes at a time: nothing is left over
            incoming.write_bytes(data)
            os.replace(incoming, self._path(record))
        self._sound.add(record.sha256)

    def _make_room(self, size: int) -> None:
        if size > self.local.size:
            raise CometError(
                f"--local-size: a file has {size:,} bytes, more than the {self.local.size:,} that may be kept in "
                f"{self.local.folder}; give more",
                exit_code=2,
            )
        used = self._used()
        left = sum(size for _, size, _ in used)
        for _, old_size, path in used:
            if left + size <= self.local.size:
                return
            with suppress(PermissionError):  # Windows removes no file that is being read
                path.unlink(missing_ok=True)
                left -= old_size

    def _used(self) -> list[tuple[int, int, Path]]:
        """When last used, how large, and where: every file, the least recently used first."""
        found = []
        for entry in os.scandir(self.local.folder / FILES):
            with suppress(FileNotFoundError):
                status = entry.stat()
                found.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        return sorted(found)

    def _path(self, record: FileRecord) -> Path:
        return self.local.folder / FILES / record.sha256

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """One process and thread at a time. Raises CometError when another one hangs, or nobody wants it any more."""
        path = self.local.folder / LOCKS / name
        lock, end = filelock.FileLock(path, timeout=min(LOOK_SECONDS, WAIT_SECONDS)), time.monotonic() + WAIT_SECONDS
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
                f"{self.local.folder}: {error.strerror or error}; choose another --local-cache or less --local-size"
            ) from None
